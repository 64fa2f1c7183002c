"""The ledger: gives out leases of rows and takes reports; a plain class that runs as a Dask actor on the event loop."""

from __future__ import annotations

import time
from dataclasses import dataclass

from dask_belief.cluster.polling import Bell, Over
from dask_belief.downpour.lease_book import BookState, LeaseBook, RowLease
from dask_belief.errors import StaleError
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
    n_replicas: int
    kinds: tuple[str, ...]


class Ledger:
    """The book of leases as replicas and driver reach it.

    Parameters
    ----------
    generation
        The generation of the run; messages of another are refused.
    n_leases, epochs, seed, warm_start_steps
        See `LeaseBook`.
    """

    def __init__(self, generation: int, n_leases: int, epochs: int, seed: int, warm_start_steps: int) -> None:
        self._generation = generation
        self._arguments = (n_leases, epochs, seed, warm_start_steps)
        self._book = LeaseBook(*self._arguments)
        self._kinds: set[str] = set()
        self._replicas: set[str] = set()
        self._loss_sum, self._loss_rows = 0.0, 0
        self._is_over = False
        self._bell = Bell()

    # For replicas.

    async def hello(self, generation: int, replica: str, kind: str) -> None:
        """Count a replica in."""
        self._check(generation)
        self._kinds.add(kind)
        self._replicas.add(replica)
        self._book.join(replica)
        self._bell.ring()

    async def next_lease(self, generation: int, replica: str, limit_seconds: float) -> RowLease | Over | None:
        """Give a lease as soon as there is one; None when the limit passes first."""
        self._check(generation)
        until = time.monotonic() + limit_seconds
        # A replica that was counted out is not to take work by a question that it left open.
        while not (self._is_over or self._book.is_over) and replica in self._replicas:
            lease = self._book.next_lease(replica)
            if lease is not None:
                return lease
            now = time.monotonic()
            if now >= until:
                return None
            await self._bell.wait(until - now)
        return Over()

    async def report(self, generation: int, replica: str, report: LeaseReport) -> None:
        """Take a finished lease."""
        self._check(generation)
        if self._book.finish(LeaseKey(*report.key), report.steps, report.rows):
            self._loss_sum += report.loss_sum
            self._loss_rows += report.loss_rows
        self._bell.ring()

    # For the driver.

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
            n_replicas=len(self._replicas),
            kinds=tuple(sorted(self._kinds)),
        )

    async def leave(self, generation: int, replica: str) -> None:
        """Count a replica out: its leases go to others."""
        self._check(generation)
        self._replicas.discard(replica)
        self._book.leave(replica)
        self._bell.ring()

    async def finish(self, generation: int) -> None:
        """End the run: every replica that asks for work is told so."""
        self._check(generation)
        self._is_over = True
        self._bell.ring()

    def _check(self, generation: int) -> None:
        if generation != self._generation:
            raise StaleError(f"ledger: generation {generation} was named, this is {self._generation}.")
