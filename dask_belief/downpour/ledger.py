"""The ledger: gives out leases of rows and takes reports; a plain class that runs as a Dask actor on the event loop."""

from __future__ import annotations

import time
from dataclasses import dataclass

from dask_belief.cluster.hub import Hub
from dask_belief.downpour.lease_book import BookState, LeaseBook, RowLease
from dask_belief.parameter_server.messages import LeaseKey


@dataclass(frozen=True)
class LeaseReport:
    """A lease whose every push was applied by every shard.

    Attributes
    ----------
    key
        The lease.
    steps, rows
        Mini-batches and rows of the lease, whoever trained on them.
    loss_sum, loss_rows
        The loss sum, each at the parameters of its moment, over the rows that this replica trained on: a part of the
        lease, when it was taken over.
    """

    key: LeaseKey
    steps: int
    rows: int
    loss_sum: float
    loss_rows: int


@dataclass(frozen=True)
class LedgerStatus:
    """How far the run is.

    Attributes
    ----------
    steps, rows
        Mini-batches and rows of finished leases.
    n_finished
        Finished leases, over all epochs.
    is_over
        Whether all are.
    loss_sum, loss_rows
        Summed over the reports since the run's start.
    n_taken_over
        Leases that went to another replica than the first.
    n_replicas
        Replicas that have said hello and not left.
    kinds
        What decides the last bits of a replica's results, each that was seen.
    """

    steps: int
    rows: int
    n_finished: int
    is_over: bool
    loss_sum: float
    loss_rows: int
    n_taken_over: int
    n_replicas: int
    kinds: tuple[str, ...]


class Ledger(Hub):
    """The book of leases as replicas and driver reach it.

    Parameters
    ----------
    generation
        The generation of the run; messages of another are refused.
    n_leases, epochs, seed, warm_start_steps
        See `LeaseBook`.
    """

    def __init__(self, generation: int, n_leases: int, epochs: int, seed: int, warm_start_steps: int) -> None:
        super().__init__(generation)
        self._arguments = (n_leases, epochs, seed, warm_start_steps)
        self._book = LeaseBook(*self._arguments)
        self._loss_sum, self._loss_rows = 0.0, 0

    def _join(self, replica: str) -> None:
        self._book.join(replica)

    def _leave(self, replica: str) -> None:
        self._book.leave(replica)

    def _next_lease(self, replica: str, now: float) -> RowLease | None:
        return self._book.next_lease(replica)

    async def report(self, generation: int, replica: str, report: LeaseReport) -> None:
        """Take a finished lease."""
        self._check(generation)
        if self._book.finish(LeaseKey(*report.key), report.steps, report.rows):
            self._loss_sum += report.loss_sum
            self._loss_rows += report.loss_rows
        self._is_over = self._is_over or self._book.is_over
        self._bell.ring()

    async def restore(self, generation: int, state: BookState) -> None:
        """Go on from a saved state, before any replica starts."""
        self._check(generation)
        self._book = LeaseBook(*self._arguments, state=state)

    async def state(self, generation: int) -> BookState:
        """What to save; taken before the shards', so that no lease counts as finished whose pushes are not saved."""
        self._check(generation)
        return self._book.state()

    async def wait(self, generation: int, n_finished: int, limit_seconds: float) -> LedgerStatus:
        """Give the status as soon as more than `n_finished` leases are finished, or when the limit passes."""
        self._check(generation)
        until = time.monotonic() + limit_seconds
        while self._book.n_finished <= n_finished and (now := time.monotonic()) < until:
            await self._bell.wait(until - now)
        book = self._book
        return LedgerStatus(
            steps=book.steps,
            rows=book.rows,
            n_finished=book.n_finished,
            is_over=book.is_over,
            loss_sum=self._loss_sum,
            loss_rows=self._loss_rows,
            n_taken_over=book.n_taken_over,
            n_replicas=len(self._replicas),
            kinds=tuple(sorted(self._kinds)),
        )
