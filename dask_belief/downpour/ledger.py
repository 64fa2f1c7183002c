"""The ledger: gives out leases of rows and takes reports; a plain class that runs as a Dask actor on the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dask_belief.cluster.hub import Hub
from dask_belief.downpour.clocks import Clocks
from dask_belief.downpour.lease_book import BookState, LeaseBook, RowLease
from dask_belief.downpour.rounds import Rounds
from dask_belief.errors import StaleError
from dask_belief.monitoring.events import ReplicaProgress
from dask_belief.optim.stopping import number_from_json, number_to_json
from dask_belief.parameter_server.consistency import MaxStaleness, Staleness, Synchronous
from dask_belief.parameter_server.messages import LeaseKey, PushKey, Round


@dataclass(frozen=True)
class LedgerSpec:
    """What a ledger is made from.

    Attributes
    ----------
    n_leases, epochs, seed, warm_start_steps, warm_start_seconds
        See `LeaseBook`.
    staleness
        What is done about old gradients.
    """

    n_leases: int
    epochs: int
    seed: int
    warm_start_steps: int = 0
    warm_start_seconds: float = 0.0
    staleness: Staleness | None = None

    def book(self, state: BookState | None = None) -> LeaseBook:
        """Make the book of leases."""
        return LeaseBook(
            self.n_leases, self.epochs, self.seed, self.warm_start_steps, self.warm_start_seconds, state=state
        )


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
    progress
        What the replica tells of itself.
    """

    key: LeaseKey
    steps: int
    rows: int
    loss_sum: float
    loss_rows: int
    progress: ReplicaProgress


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
    replicas
        What each replica has told of itself, those that have left among them.
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
    replicas: tuple[ReplicaProgress, ...]


@dataclass(frozen=True)
class LedgerState:
    """What a ledger is made anew from, and what is saved of it.

    Attributes
    ----------
    book
        The finished leases.
    loss_sum, loss_rows
        See `LedgerStatus`.
    """

    book: BookState
    loss_sum: float = 0.0
    loss_rows: int = 0

    def to_config(self) -> dict[str, Any]:
        """Describe it by plain JSON."""
        return {
            "book": self.book.to_config(),
            "loss_sum": number_to_json(self.loss_sum),
            "loss_rows": self.loss_rows,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LedgerState:
        """Rebuild it from `to_config`; raises `KeyError`, `TypeError` or `ValueError` for what is not one."""
        book = BookState.from_config(config["book"])
        return cls(book, float(number_from_json(config["loss_sum"])), int(config["loss_rows"]))


class Ledger(Hub):
    """The book of leases as replicas and driver reach it.

    Parameters
    ----------
    generation
        How many ledgers were begun before; messages to another are refused.
    spec
        What it is made from.
    """

    def __init__(self, generation: int, spec: LedgerSpec) -> None:
        super().__init__(generation)
        self._spec = spec
        self._book = spec.book()
        self._loss_sum, self._loss_rows = 0.0, 0
        self._told: dict[str, ReplicaProgress] = {}
        staleness = spec.staleness
        self._clocks = Clocks(staleness.max_staleness) if isinstance(staleness, MaxStaleness) else None
        self._rounds = Rounds(staleness.backup_replicas) if isinstance(staleness, Synchronous) else None

    def _join(self, replica: str) -> None:
        self._book.join(replica)

    def _leave(self, replica: str) -> None:
        self._book.leave(replica)
        if self._clocks is not None:
            self._clocks.leave(replica)
        self._look()

    def _next_lease(self, replica: str, now: float) -> RowLease | None:
        lease = self._book.next_lease(replica, now)
        if lease is not None and self._clocks is not None:
            self._clocks.work(replica)
        return lease

    def _next_look(self) -> float:
        return self._book.warm_start_ends_at

    def _look(self) -> None:
        """See who is at work, and whether those who wait may go on."""
        at_work = self._book.at_work
        if self._clocks is not None:
            for replica in self._replicas - at_work:
                self._clocks.rest(replica)
        if self._rounds is not None:
            self._rounds.close(at_work)
        self._bell.ring()

    async def report(self, generation: int, replica: str, report: LeaseReport) -> None:
        """Take a finished lease."""
        self._check(generation)
        if self._book.finish(LeaseKey(*report.key), report.steps, report.rows):
            self._loss_sum += report.loss_sum
            self._loss_rows += report.loss_rows
        self._hear(replica, report.progress)
        self._is_over = self._is_over or self._book.is_over
        self._look()

    async def tell(self, generation: int, replica: str, progress: ReplicaProgress) -> None:
        """Take what a replica tells of itself."""
        self._check(generation)
        self._hear(replica, progress)

    def _hear(self, replica: str, progress: ReplicaProgress) -> None:
        # A report waits for the last push of its lease, and may come after newer news.
        known = self._told.get(replica)
        if known is None or progress.steps >= known.steps:
            self._told[replica] = progress

    # Keeping together.

    async def tick(self, generation: int, replica: str, done: int, limit_seconds: float) -> int:
        """Note the mini-batches that a replica has made; tell how many it may begin, once it may begin another.

        When the limit passes first, the answer is what it may begin all the same.
        """
        self._check(generation)
        clocks = self._clocks
        if clocks is None:
            return done + 1
        clocks.note(replica, done)
        self._bell.ring()
        await self._until(lambda: clocks.allowed(replica) > done, limit_seconds)
        return done + 1 if self._is_over else clocks.allowed(replica)

    async def arrive(
        self, generation: int, replica: str, number: int, key: PushKey, limit_seconds: float
    ) -> Round | None:
        """Note that all shards hold a push for round `number`; tell of the last round once that one is closed."""
        self._check(generation)
        if self._rounds is not None and self._rounds.arrive(replica, number, PushKey.of(key)):
            self._look()
        return await self.closed(generation, replica, number, limit_seconds)

    async def closed(self, generation: int, replica: str, number: int, limit_seconds: float) -> Round | None:
        """Tell of the last round once round `number` is closed; None when the limit passes first, or before round 0."""
        self._check(generation)
        rounds = self._rounds
        if rounds is None:
            return None
        await self._until(lambda: rounds.number > number, limit_seconds)
        if rounds.number > number:
            return rounds.last
        if self._is_over:
            raise StaleError(f"ledger: the run is over, and round {number} will not be closed.")
        return None

    async def _until(self, is_so: Callable[[], bool], limit_seconds: float) -> None:
        """Wait until something is so, or the limit passes, or the run is over."""
        until = time.monotonic() + limit_seconds
        while not is_so() and not self._is_over and (now := time.monotonic()) < until:
            await self._bell.wait(until - now)
        # A reply at once must not keep others on this loop from theirs.
        await asyncio.sleep(0)

    # For the driver.

    async def restore(self, generation: int, state: LedgerState, n_rounds: int = 0) -> None:
        """Go on from a saved state, before any replica starts.

        Parameters
        ----------
        generation
            Of this ledger.
        state
            What was saved.
        n_rounds
            Rounds of synchronous training that shards have closed.
        """
        self._check(generation)
        self._book = self._spec.book(state.book)
        self._loss_sum, self._loss_rows = state.loss_sum, state.loss_rows
        self._is_over = self._book.is_over
        if self._rounds is not None:
            self._rounds.begin_at(n_rounds)

    async def state(self, generation: int) -> LedgerState:
        """What to save; taken before the shards', so that no lease counts as finished whose pushes are not saved."""
        self._check(generation)
        return LedgerState(self._book.state(), self._loss_sum, self._loss_rows)

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
            replicas=tuple(self._told[replica] for replica in sorted(self._told)),
        )
