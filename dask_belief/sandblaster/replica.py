"""A Sandblaster replica: the paper's ProcessPortion (Algorithm 1.2), lease after lease."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from dask_belief.backend import get_backend
from dask_belief.cluster.actors import ActorAddress, Caller
from dask_belief.cluster.hub import RUN_IS_OVER, Over
from dask_belief.cluster.hub_line import Asked, HubLine
from dask_belief.cluster.limits import LIMITS
from dask_belief.cluster.replicas import Standing, live, read_ahead_bytes
from dask_belief.data.cache import UnitCache
from dask_belief.data.dataset import Dataset
from dask_belief.data.prefetch import Prefetcher
from dask_belief.data.units import UnitPlan, WorkUnit
from dask_belief.errors import DaskBeliefError, ReplicaError, StaleError
from dask_belief.objective import Objective
from dask_belief.parameter_server.client import Directory
from dask_belief.parameter_server.executor import BatchExecutor, PlainExecutor, blocks
from dask_belief.sandblaster.coordinator import Report
from dask_belief.sandblaster.unit_scheduler import Lease

logger = logging.getLogger(__name__)

Batch = tuple[np.ndarray, np.ndarray]

CACHE_SHARE = 0.4
"""The part of a worker's memory limit that is used to keep decoded data between passes."""

_DELIVERIES_IN_FLIGHT = 2


@dataclass(frozen=True)
class ReplicaSpec:
    """What a replica is told at its start.

    Attributes
    ----------
    objective, plan
        What is computed, and the units in which the rows are cut.
    directory, coordinator
        Where the shards and the coordinator are.
    backend
        The name of the backend.
    cache_bytes
        For decoded data; None for the default share of the worker's memory.
    """

    objective: Objective
    plan: UnitPlan
    directory: Directory
    coordinator: ActorAddress
    backend: str
    cache_bytes: int | None


def sandblaster_replica(spec: ReplicaSpec, dataset: Dataset, replica: str) -> str:
    """Compute leases until the run is over; runs as one long Dask task.

    Returns
    -------
    str
        Why it ended.
    """
    return live(replica, spec.backend, lambda standing: Evaluator(spec, dataset, replica, standing))


class Evaluator:
    """Asks for leases, computes them, pushes their sums, reports.

    The next lease is asked for while the last unit of the present one is computed, and its data are read meanwhile;
    a sum is pushed while the next lease is computed.
    """

    def __init__(self, spec: ReplicaSpec, dataset: Dataset, replica: str, standing: Standing) -> None:
        self._spec = spec
        self._dataset = dataset
        self._standing = standing
        self._caller = Caller.of_worker(standing.worker)
        self._backend = get_backend(spec.backend)
        self._executor: BatchExecutor = PlainExecutor(
            spec.objective, spec.directory, self._caller, self._backend, n_units=len(spec.plan)
        )
        default_bytes = int(CACHE_SHARE * standing.memory_bytes)
        self._cache = UnitCache(default_bytes if spec.cache_bytes is None else spec.cache_bytes)
        self._prefetcher = Prefetcher(self._read, self._cache, ready_bytes=read_ahead_bytes(standing))
        generation = spec.directory.generation
        self._hub = HubLine(spec.coordinator, generation, replica, standing, self._caller, self._read_ahead)
        self._fetched = -1
        self._deliveries: list[Asked] = []

    def run(self) -> str:
        """The loop of Algorithm 1.2's replica."""
        self._hub.hello(self._backend.kind())
        asked = self._hub.ask()
        while not self._standing.should_end:
            answer = self._hub.answer(asked)
            self._settle()
            if isinstance(answer, Over):
                return RUN_IS_OVER
            asked = self._process(answer) if answer is not None else self._hub.ask()
        return "cancelled, or the coordinator was silent"

    def close(self) -> None:
        """Let the reader go."""
        self._prefetcher.close()

    def _process(self, lease: Lease) -> Asked:
        """Compute the units of a lease and begin to push their sum; gives the question for the next lease."""
        n_units = len(self._spec.plan)
        units = [self._spec.plan[number] for number in lease.node.leaves(n_units)]
        hits = self._cache.stats.hits
        asked: Asked | None = None
        losses: list[float] = []
        faulty: list[int] = []
        try:
            if lease.evaluation != self._fetched:
                self._executor.fetch(lease.evaluation)
                self._fetched = lease.evaluation
            for unit in units:
                if self._standing.should_end:
                    self._executor.drop_sum()
                    return asked or self._hub.ask()
                if unit is units[-1]:
                    asked = self._hub.ask()
                losses.append(self._compute(unit))
                if not (np.isfinite(losses[-1]) and self._executor.gradient_is_finite()):
                    faulty.append(unit.number)
                self._executor.add(unit.number)
        except StaleError:
            # The evaluation was completed by others, or given up, since the lease was handed out.
            self._executor.drop_sum()
            self._prefetcher.drop()
            return asked or self._hub.ask()
        report = Report(lease, np.array(losses), tuple(faulty), self._cache.stats.hits - hits)
        self._deliver(report)
        return asked or self._hub.ask()

    def _compute(self, unit: WorkUnit) -> float:
        inputs, targets = self._prefetcher.take(unit, timeout_seconds=LIMITS.no_progress_seconds)
        try:
            loss = 0.0
            for rows in blocks(unit.rows, self._spec.plan.block_rows):
                loss += self._executor.compute(inputs[rows], targets[rows])
            return loss
        except DaskBeliefError:
            raise
        except Exception as error:
            raise ReplicaError(
                f"the objective raised {type(error).__name__}: {error}, in unit {unit.number} (rows {unit.start} to "
                f"{unit.stop - 1}) on {self._standing.worker.address}. Call loss_and_gradient on these rows to see it."
            ) from error

    def _deliver(self, report: Report) -> None:
        """Push the sum of a lease and report it, while the replica goes on."""
        pushed = self._executor.push_sum(report.lease.evaluation, report.lease.node)
        self._deliveries.append(self._hub.report_after(pushed, report))
        while len(self._deliveries) > _DELIVERIES_IN_FLIGHT:
            self._deliveries.pop(0).result(2 * LIMITS.call_seconds)
        self._settle()

    def _settle(self) -> None:
        """Let go of deliveries that are through; one that failed ends the replica, and its lease goes to another."""
        while self._deliveries and self._deliveries[0].done():
            self._deliveries.pop(0).result()

    def _read(self, unit: WorkUnit) -> Batch:
        return self._dataset.read(unit.start, unit.stop, dtype=np.dtype(self._spec.directory.dtype))

    def _read_ahead(self, lease: Lease) -> None:
        plan = self._spec.plan
        self._prefetcher.schedule([plan[number] for number in lease.node.leaves(len(plan))])
