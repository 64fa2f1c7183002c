"""The coordinator: hands out leases, takes reports, and never sees a parameter (section 4.2).

A plain class with asynchronous methods, which run as a Dask actor on its worker's event loop: nothing here takes
longer than a moment.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from dask_belief.binary_tree import Node, TreeSum
from dask_belief.cluster.polling import Bell, Over
from dask_belief.errors import StaleError
from dask_belief.sandblaster.unit_scheduler import Lease, UnitScheduler


@dataclass(frozen=True)
class Report:
    """A lease that a replica has computed and pushed to every shard.

    Attributes
    ----------
    lease
        What was computed.
    losses
        The loss sum of each unit, float64, in order.
    faulty
        Units whose loss or gradient is NaN or infinite.
    was_cached
        Units whose data were in the replica's cache.
    """

    lease: Lease
    losses: np.ndarray
    faulty: tuple[int, ...] = ()
    was_cached: int = 0


@dataclass(frozen=True)
class Status:
    """How far an evaluation is.

    Attributes
    ----------
    n_done
        Units done.
    loss
        The loss sum over all rows, float64, once every unit is done; else None.
    faulty
        Units whose loss or gradient is NaN or infinite.
    n_replicas
        Replicas that have said hello.
    n_copies, n_cached
        Leases that were copied; units that were found in a cache.
    kinds
        What decides the last bits of a replica's results, each that was seen.
    """

    n_done: int
    loss: float | None
    faulty: tuple[int, ...]
    n_replicas: int
    n_copies: int
    n_cached: int
    kinds: tuple[str, ...]


class Coordinator:
    """One evaluation after another, unit by unit.

    Parameters
    ----------
    generation
        The generation of the run; messages of another are refused.
    n_units
        Units of an evaluation.
    max_level
        Of a lease.
    """

    def __init__(self, generation: int, n_units: int, max_level: int) -> None:
        self._generation = generation
        self._scheduler = UnitScheduler(n_units, max_level)
        self._kinds: set[str] = set()
        self._replicas: set[str] = set()
        self._faulty: set[int] = set()
        self._n_cached = 0
        self._is_over = False
        self._bell = Bell()

    # For replicas.

    async def hello(self, generation: int, replica: str, kind: str) -> None:
        """Count a replica in."""
        self._check(generation)
        self._kinds.add(kind)
        self._replicas.add(replica)
        self._scheduler.join(replica)
        self._bell.ring()

    async def next_lease(self, generation: int, replica: str, limit_seconds: float) -> Lease | Over | None:
        """Give a lease as soon as there is one; None when the limit passes first."""
        self._check(generation)
        until = time.monotonic() + limit_seconds
        # A replica that was counted out is not to take work by a question that it left open.
        while not self._is_over and replica in self._replicas:
            now = time.monotonic()
            lease = self._scheduler.next_lease(replica, now)
            if lease is not None:
                return lease
            if now >= until:
                return None
            # Woken by events, and now and then by the clock, since a lease may have become slow enough to copy.
            await self._bell.wait(min(until - now, 0.25))
        return Over()

    async def report(self, generation: int, replica: str, report: Report) -> None:
        """Take a finished lease."""
        self._check(generation)
        if self._scheduler.finish(replica, report.lease, report.losses, time.monotonic()):
            self._faulty.update(report.faulty)
            self._n_cached += report.was_cached
        self._bell.ring()

    # For the driver.

    async def evaluate(self, generation: int, evaluation: int, limit_seconds: float) -> Status:
        """Open an evaluation, unless it is under way; give its status as soon as it is complete or the limit passes."""
        self._check(generation)
        if evaluation != self._scheduler.evaluation:
            self._faulty.clear()
            self._scheduler.begin(evaluation)
            self._bell.ring()
        until = time.monotonic() + limit_seconds
        while not self._scheduler.is_complete and (now := time.monotonic()) < until:
            await self._bell.wait(until - now)
        scheduler = self._scheduler
        return Status(
            n_done=scheduler.n_done,
            loss=_tree_total(scheduler.losses) if scheduler.is_complete else None,
            faulty=tuple(sorted(self._faulty)),
            n_replicas=len(self._replicas),
            n_copies=scheduler.n_copies,
            n_cached=self._n_cached,
            kinds=tuple(sorted(self._kinds)),
        )

    async def leave(self, generation: int, replica: str) -> None:
        """Count a replica out: its leases go to others."""
        self._check(generation)
        self._replicas.discard(replica)
        self._scheduler.leave(replica)
        self._bell.ring()

    async def finish(self, generation: int) -> None:
        """End the run: every replica that asks for work is told so."""
        self._check(generation)
        self._is_over = True
        self._bell.ring()

    def _check(self, generation: int) -> None:
        if generation != self._generation:
            raise StaleError(f"coordinator: generation {generation} was named, this is {self._generation}.")


def _tree_total(losses: np.ndarray) -> float:
    """The sum of the units' losses in the shape in which their gradients are summed."""
    total: TreeSum[float] = TreeSum(len(losses), lambda left, right: left + right)
    for unit, loss in enumerate(losses):
        total.add(Node(0, unit), float(loss))
    return total.total
