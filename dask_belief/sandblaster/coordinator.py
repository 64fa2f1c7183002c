"""The coordinator: hands out leases, takes reports, and never sees a parameter (section 4.2).

A plain class with asynchronous methods, which run as a Dask actor on its worker's event loop: nothing here takes
longer than a moment.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from dask_belief.binary_tree import Node, TreeSum
from dask_belief.cluster.hub import Hub
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


class Coordinator(Hub):
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
        super().__init__(generation)
        self._scheduler = UnitScheduler(n_units, max_level)
        self._faulty: set[int] = set()
        self._n_cached = 0

    def _join(self, replica: str) -> None:
        self._scheduler.join(replica)

    def _leave(self, replica: str) -> None:
        self._scheduler.leave(replica)

    def _next_lease(self, replica: str, now: float) -> Lease | None:
        return self._scheduler.next_lease(replica, now)

    async def report(self, generation: int, replica: str, report: Report) -> None:
        """Take a finished lease."""
        self._check(generation)
        if self._scheduler.finish(replica, report.lease, report.losses, time.monotonic()):
            self._faulty.update(report.faulty)
            self._n_cached += report.was_cached
        self._bell.ring()

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


def _tree_total(losses: np.ndarray) -> float:
    """The sum of the units' losses in the shape in which their gradients are summed."""
    total: TreeSum[float] = TreeSum(len(losses), lambda left, right: left + right)
    for unit, loss in enumerate(losses):
        total.add(Node(0, unit), float(loss))
    return total.total
