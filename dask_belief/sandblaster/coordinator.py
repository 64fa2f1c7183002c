"""The coordinator: hands out leases, takes reports, and never sees a parameter (section 4.2).

A plain class with asynchronous methods, which run as a Dask actor on its worker's event loop: nothing here takes
longer than a moment.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from dask_belief.binary_tree import tree_total
from dask_belief.cluster.hub import Hub
from dask_belief.sandblaster.backups import BackupCounts
from dask_belief.sandblaster.effort import Effort
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
    effort
        What it cost.
    """

    lease: Lease
    losses: np.ndarray
    faulty: tuple[int, ...] = ()
    effort: Effort = field(default_factory=Effort)


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
    effort
        Of all replicas on this evaluation.
    busiest_seconds
        Computing of the replica that computed longest.
    backups
        Copies of leases, over all evaluations.
    kinds
        What decides the last bits of a replica's results, each that was seen.
    """

    n_done: int
    loss: float | None
    faulty: tuple[int, ...]
    n_replicas: int
    effort: Effort
    busiest_seconds: float
    backups: BackupCounts
    kinds: tuple[str, ...]


class Coordinator(Hub):
    """One evaluation after another, unit by unit.

    Parameters
    ----------
    generation
        How many coordinators were begun before; messages to another are refused.
    n_units
        Units of an evaluation.
    max_level
        Of a lease.
    backup_after
        See `UnitScheduler`.
    """

    def __init__(self, generation: int, n_units: int, max_level: int, backup_after: float | None) -> None:
        super().__init__(generation)
        self._scheduler = UnitScheduler(n_units, max_level, backup_after)
        self._faulty: set[int] = set()
        self._efforts: dict[str, Effort] = {}

    def _join(self, replica: str) -> None:
        self._scheduler.join(replica)

    def _leave(self, replica: str) -> None:
        self._scheduler.leave(replica)

    def _next_lease(self, replica: str, now: float) -> Lease | None:
        return self._scheduler.next_lease(replica, now)

    def _next_look(self) -> float:
        return self._scheduler.next_look

    async def report(self, generation: int, replica: str, report: Report) -> None:
        """Take a finished lease."""
        self._check(generation)
        busy_seconds = report.effort.reading_seconds + report.effort.computing_seconds
        if self._scheduler.finish(replica, report.lease, report.losses, time.monotonic(), busy_seconds):
            self._faulty.update(report.faulty)
        self._efforts[replica] = self._efforts.get(replica, Effort()) + report.effort
        self._bell.ring()

    async def give_up(self, generation: int, replica: str, lease: Lease) -> None:
        """Take note that a replica broke a lease off, since it was no longer wanted."""
        self._check(generation)
        self._scheduler.give_up(replica, lease, time.monotonic())
        self._bell.ring()

    async def until_unwanted(self, generation: int, replica: str, lease: Lease, limit_seconds: float) -> bool:
        """Tell a replica as soon as others have done its lease, or the run is over; False when the limit passes."""
        self._check(generation)
        until = time.monotonic() + limit_seconds
        while self._is_wanted(lease) and (now := time.monotonic()) < until:
            await self._bell.wait(until - now)
        return not self._is_wanted(lease)

    def _is_wanted(self, lease: Lease) -> bool:
        # A run that its limit in seconds has ended does not wait for the leases that are out.
        return not self._is_over and self._scheduler.is_wanted(lease)

    async def evaluate(self, generation: int, evaluation: int, limit_seconds: float) -> Status:
        """Open an evaluation, unless it is under way; give its status as soon as it is complete or the limit passes."""
        self._check(generation)
        if evaluation != self._scheduler.evaluation:
            self._faulty.clear()
            self._efforts.clear()
            self._scheduler.begin(evaluation, time.monotonic())
            self._bell.ring()
        until = time.monotonic() + limit_seconds
        while not self._scheduler.is_complete and (now := time.monotonic()) < until:
            await self._bell.wait(until - now)
        scheduler = self._scheduler
        return Status(
            n_done=scheduler.n_done,
            loss=tree_total(scheduler.losses) if scheduler.is_complete else None,
            faulty=tuple(sorted(self._faulty)),
            n_replicas=len(self._replicas),
            effort=sum(self._efforts.values(), Effort()),
            busiest_seconds=max((effort.computing_seconds for effort in self._efforts.values()), default=0.0),
            backups=scheduler.backups,
            kinds=tuple(sorted(self._kinds)),
        )
