"""A Sandblaster replica: the paper's ProcessPortion (Algorithm 1.2), lease after lease."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from dask_belief.backend import get_backend
from dask_belief.cluster.actors import ActorAddress, Caller
from dask_belief.cluster.limits import LIMITS
from dask_belief.cluster.polling import Over
from dask_belief.cluster.replicas import Standing, stand_aside
from dask_belief.data.cache import UnitCache
from dask_belief.data.dataset import Dataset
from dask_belief.data.prefetch import READY_BYTES, Prefetcher
from dask_belief.data.units import UnitPlan, WorkUnit
from dask_belief.errors import ActorLostError, CallTimeoutError, DaskBeliefError, ReplicaError, StaleError
from dask_belief.objective import Objective
from dask_belief.parameter_server.client import Directory
from dask_belief.parameter_server.executor import PlainExecutor, blocks
from dask_belief.sandblaster.coordinator import Report
from dask_belief.sandblaster.unit_scheduler import Lease

logger = logging.getLogger(__name__)

Batch = tuple[np.ndarray, np.ndarray]

CACHE_SHARE = 0.4
"""The part of a worker's memory limit that is used to keep decoded data between passes."""

READ_AHEAD_SHARE = 0.05
"""The part of it that is used for data that are read ahead."""

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
    standing = stand_aside()
    backend = get_backend(spec.backend)
    backend.single_thread()
    evaluator = Evaluator(spec, dataset, replica, standing)
    try:
        with backend.computing():
            return evaluator.run()
    except (ActorLostError, CallTimeoutError) as error:
        # The driver sees the same loss, and starts new replicas with new addresses.
        logger.warning("%s ends: %s", replica, error)
        return f"the server was lost: {error}"
    finally:
        evaluator.close()


class Evaluator:
    """Asks for leases, computes them, pushes their sums, reports.

    The next lease is asked for while the last unit of the present one is computed, and its data are read meanwhile;
    a sum is pushed while the next lease is computed.
    """

    def __init__(self, spec: ReplicaSpec, dataset: Dataset, replica: str, standing: Standing) -> None:
        self._spec = spec
        self._dataset = dataset
        self._replica = replica
        self._standing = standing
        self._caller = Caller.of_worker(standing.worker)
        self._backend = get_backend(spec.backend)
        self._executor = PlainExecutor(
            spec.objective, spec.directory, self._caller, self._backend, n_units=len(spec.plan)
        )
        share = memory_share(standing)
        self._cache = UnitCache(int(CACHE_SHARE * share) if spec.cache_bytes is None else spec.cache_bytes)
        ready_bytes = min(READY_BYTES, int(READ_AHEAD_SHARE * share))
        self._prefetcher = Prefetcher(self._read, self._cache, ready_bytes=ready_bytes)
        self._fetched = -1
        self._deliveries: list[concurrent.futures.Future[None]] = []

    def run(self) -> str:
        """The loop of Algorithm 1.2's replica."""
        self._call("hello", self._replica, self._backend.kind())
        asked = self._ask()
        while not self._standing.should_end:
            answer = self._await(asked)
            if isinstance(answer, Over):
                return "the run is over"
            asked = self._process(answer) if answer is not None else self._ask()
        return "cancelled, or the coordinator was silent"

    def close(self) -> None:
        """Let the reader go."""
        self._prefetcher.close()

    def _process(self, lease: Lease) -> concurrent.futures.Future[Lease | Over | None]:
        """Compute the units of a lease and begin to push their sum; gives the question for the next lease."""
        n_units = len(self._spec.plan)
        units = [self._spec.plan[number] for number in lease.node.leaves(n_units)]
        hits = self._cache.stats.hits
        self._prefetcher.schedule(units)
        asked: concurrent.futures.Future[Lease | Over | None] | None = None
        losses: list[float] = []
        faulty: list[int] = []
        try:
            if lease.evaluation != self._fetched:
                self._executor.fetch(lease.evaluation)
                self._fetched = lease.evaluation
            for unit in units:
                if unit is units[-1]:
                    asked = self._ask()
                losses.append(self._compute(unit))
                if not (np.isfinite(losses[-1]) and self._executor.gradient_is_finite()):
                    faulty.append(unit.number)
                self._executor.add(unit.number)
        except StaleError:
            # The evaluation was completed by others, or given up, since the lease was handed out.
            self._executor.drop_sum()
            return asked or self._ask()
        report = Report(lease, np.array(losses), tuple(faulty), self._cache.stats.hits - hits)
        self._deliver(report)
        return asked or self._ask()

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
        self._deliveries.append(self._caller.start(self._report_after(pushed, report)))
        while len(self._deliveries) > _DELIVERIES_IN_FLIGHT or (self._deliveries and self._deliveries[0].done()):
            self._deliveries.pop(0).result(2 * LIMITS.call_seconds)

    async def _report_after(self, pushed: concurrent.futures.Future[None], report: Report) -> None:
        try:
            await asyncio.wrap_future(pushed)
        except StaleError:
            return
        arguments = (self._spec.directory.generation, self._replica, report)
        await self._caller.call(self._spec.coordinator, "report", *arguments)

    def _read(self, unit: WorkUnit) -> Batch:
        return self._dataset.read(unit.start, unit.stop, dtype=np.dtype(self._spec.directory.dtype))

    def _ask(self) -> concurrent.futures.Future[Lease | Over | None]:
        generation = self._spec.directory.generation
        question = self._caller.call(
            self._spec.coordinator, "next_lease", generation, self._replica, LIMITS.poll_seconds
        )
        asked = self._caller.start(question)
        asked.add_done_callback(self._read_ahead)
        return asked

    def _read_ahead(self, asked: concurrent.futures.Future[Lease | Over | None]) -> None:
        if asked.cancelled() or asked.exception() is not None:
            return
        lease = asked.result()
        if isinstance(lease, Lease):
            plan = self._spec.plan
            self._prefetcher.schedule([plan[number] for number in lease.node.leaves(len(plan))])

    def _await(self, asked: concurrent.futures.Future[Any]) -> Lease | Over | None:
        answer: Lease | Over | None = asked.result(LIMITS.poll_seconds + LIMITS.call_seconds)
        self._standing.heard()
        return answer

    def _call(self, method: str, *arguments: object) -> Any:
        generation = self._spec.directory.generation
        return self._caller.run(self._caller.call(self._spec.coordinator, method, generation, *arguments))


def memory_share(standing: Standing) -> float:
    """Bytes of the worker's memory limit for one of its threads; 2.5 GiB where there is no limit."""
    limit = standing.worker.memory_manager.memory_limit
    return limit / standing.worker.state.nthreads if limit else 2.5 * 2**30
