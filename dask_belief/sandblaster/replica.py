"""A Sandblaster replica: the paper's ProcessPortion (Algorithm 1.2), lease after lease."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dask_belief.backend import Scalar, get_backend
from dask_belief.cluster.actors import ActorAddress, Caller
from dask_belief.cluster.full_device import lacking_bytes
from dask_belief.cluster.hub import RUN_IS_OVER, Over
from dask_belief.cluster.hub_line import Asked, HubLine
from dask_belief.cluster.limits import Limits, limits
from dask_belief.cluster.replicas import Team, live, read_ahead_bytes
from dask_belief.cluster.standing import Standing
from dask_belief.data.cache import UnitCache
from dask_belief.data.dataset import Dataset, DirectDataset
from dask_belief.data.prefetch import Prefetcher
from dask_belief.data.stream import Streamer
from dask_belief.data.units import UnitPlan, WorkUnit
from dask_belief.errors import DaskBeliefError, ReplicaError, StaleError
from dask_belief.memory_needs import task_parameters
from dask_belief.memory_plan import CACHE_SHARE
from dask_belief.model_parallel.executor import PartitionedBatchExecutor
from dask_belief.model_parallel.partitioned import PartitionedNetwork
from dask_belief.model_parallel.plan import LEAD
from dask_belief.model_parallel.team import OwnPart, PieceLife, own_part, renew_by
from dask_belief.objective import Objective
from dask_belief.parameter_server.directory import Directory, Renew
from dask_belief.parameter_server.executor import BatchExecutor, PlainBatchExecutor, blocks
from dask_belief.sandblaster.coordinator import Report
from dask_belief.sandblaster.effort import Effort
from dask_belief.sandblaster.memory_plan import most_in_flight
from dask_belief.sandblaster.unit_scheduler import Lease

logger = logging.getLogger(__name__)

Batch = tuple[np.ndarray, np.ndarray]

# How a replica needs less memory on its device.
_DEVICE_ADVICE = (
    "give each of them to one worker process with one thread, or ask for a smaller cache_bytes= or unit_rows="
)

# A lease that has taken so long may have been copied: from then on the replica listens whether it is still wanted.
_WATCH_AFTER_SECONDS = 0.1


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
        For decoded data; None for the default.
    host_cache_bytes
        The default on the host: what is planned. On a device it is a share of what is free there.
    limits
        Of the run.
    team
        The tasks of the replica, where the network is in pieces.
    """

    objective: Objective
    plan: UnitPlan
    directory: Directory
    coordinator: ActorAddress
    backend: str
    cache_bytes: int | None
    host_cache_bytes: int
    limits: Limits
    team: Team | None = None


def sandblaster_replica(spec: ReplicaSpec, dataset: Dataset, replica: str) -> str:
    """Compute leases until the run is over; runs as one long Dask task.

    Returns
    -------
    str
        Why it ended.
    """

    def make(standing: Standing) -> Evaluator:
        return Evaluator(spec, dataset, replica, standing)

    return live(replica, spec.backend, spec.limits, make, _DEVICE_ADVICE)


def sandblaster_piece(spec: ReplicaSpec, number: int, replica: str) -> str:
    """Compute one piece of a replica's network until the lead ends; runs as one long Dask task."""

    def make(standing: Standing) -> PieceLife:
        caller = Caller.of_worker(standing.worker)
        renew = renew_by(spec.coordinator, replica, caller, spec.limits.poll_seconds)
        own = _own_part(spec, number, renew, caller, standing)
        return PieceLife(_plain_executor(spec, own, caller), number, own.correspondent)

    return live(f"piece {number} of {replica}", spec.backend, spec.limits, make, _DEVICE_ADVICE)


def _own_part(spec: ReplicaSpec, number: int, renew: Renew, caller: Caller, standing: Standing) -> OwnPart:
    assert isinstance(spec.objective, PartitionedNetwork) and spec.team is not None
    backend = get_backend(spec.backend)
    return own_part(spec.objective, spec.team, number, spec.directory, renew, caller, standing, backend)


def _plain_executor(spec: ReplicaSpec, own: OwnPart, caller: Caller) -> PlainBatchExecutor:
    backend = get_backend(spec.backend)
    return PlainBatchExecutor(own.objective, own.directory, caller, backend, len(spec.plan), own.renew)


def batch_executor(spec: ReplicaSpec, renew: Renew, caller: Caller, standing: Standing) -> BatchExecutor:
    """Make the executor that the objective asks for; of a network in pieces the lead's."""
    backend = get_backend(spec.backend)
    if not isinstance(spec.objective, PartitionedNetwork):
        return PlainBatchExecutor(spec.objective, spec.directory, caller, backend, len(spec.plan), renew)
    own = _own_part(spec, LEAD, renew, caller, standing)
    inner = _plain_executor(spec, own, caller)
    return PartitionedBatchExecutor(inner, spec.objective, own.correspondent, backend, spec.directory.dtype)


class Unwanted(Exception):
    """Others have done the lease: what is left of it is not worth computing."""


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
        self._hub = HubLine(spec.coordinator, replica, standing, self._caller, self._read_ahead)
        self._executor = batch_executor(spec, self._hub.directory, self._caller, standing)
        self._cache = UnitCache(self._default_cache_bytes() if spec.cache_bytes is None else spec.cache_bytes)
        self._counted = self._cache.stats
        self._reader = self._new_reader()
        vector_bytes = task_parameters(spec.objective) * np.dtype(spec.directory.dtype).itemsize
        self._most_in_flight = most_in_flight(vector_bytes)
        self._fetched = -1
        self._deliveries: list[Asked] = []

    def run(self) -> str:
        """The loop of Algorithm 1.2's replica."""
        self._hub.hello(self._backend.kind())
        asked = self._hub.ask()
        while not self._standing.should_end:
            began = time.monotonic()
            answer = self._hub.answer(asked)
            waited = time.monotonic() - began
            self._settle()
            if isinstance(answer, Over):
                return RUN_IS_OVER
            asked = self._process(answer, waited) if answer is not None else self._hub.ask()
        return "cancelled, or the coordinator was silent"

    def _default_cache_bytes(self) -> int:
        """On the host what is planned, on a device a share of what is free, which all threads of the worker share."""
        memory = self._backend.device_memory()
        if memory is None:
            return self._spec.host_cache_bytes
        return int(CACHE_SHARE * memory.free_bytes / self._standing.n_threads)

    def holdings(self) -> Mapping[str, int]:
        """What this replica has on its device: rows that are kept or wait, and the vectors of its executor."""
        ahead_bytes = self._reader.n_bytes if isinstance(self._reader, Prefetcher) else 0
        return {**self._executor.holdings(), "cache": self._cache.stats.n_bytes, "rows read ahead": ahead_bytes}

    def close(self) -> None:
        """Let the reader and the data go: this object may live on until Python looks for circles of references."""
        self._reader.close()
        self._cache.clear()
        self._executor.close()

    def _process(self, lease: Lease, waited: float) -> Asked:
        """Compute the units of a lease and begin to push their sum; gives the question for the next lease."""
        work = _Lease(self._hub, lease, waited)
        units = [self._spec.plan[number] for number in lease.node.leaves(len(self._spec.plan))]
        try:
            losses = self._losses(units, work)
        except (StaleError, Unwanted):
            # The lease was done by others, or the evaluation given up, since it was handed out.
            self._executor.drop_sum()
            self._reader.drop()
            self._deliveries.append(self._hub.start("give_up", lease))
            return work.asked or self._hub.ask()
        is_finite = bool(np.isfinite(losses).all()) and self._executor.sum_is_finite()
        faulty = () if is_finite else self._faulty(units, losses)
        self._deliver(Report(lease, np.array(losses), faulty, work.effort + self._lookups()))
        return work.asked or self._hub.ask()

    def _losses(self, units: Sequence[WorkUnit], work: _Lease) -> list[float]:
        """Compute a lease; where the device's memory runs out, once more with less of it taken by the cache."""
        while True:
            try:
                return self._compute_all(units, work)
            except Exception as error:
                if not self._make_room(error):
                    raise
            # Not while the error is handled, which holds what the failed attempt had in hand.
            self._executor.drop_sum()
            self._reader.drop()
            self._read_ahead(work.lease)

    def _make_room(self, error: Exception) -> bool:
        """Halve what the cache holds, or more, where `error` says that memory ran out; False where that cannot help."""
        lacking, held = lacking_bytes(self._backend, error), self._cache.stats.n_bytes
        if lacking is None or not held:
            return False
        # What the device is at may read what is let go.
        self._backend.sync()
        self._cache.shrink(min(held // 2, held - lacking))
        kept = self._cache.stats.n_bytes
        logger.warning(
            "%s: the device's memory ran out, so less data are kept there between passes: %.4g of %.4g MB. Give a "
            "cache_bytes= that fits.",
            self._replica,
            kept / 1e6,
            held / 1e6,
        )
        return True

    def _compute_all(self, units: Sequence[WorkUnit], work: _Lease) -> list[float]:
        """Compute the units of a lease, the next lease asked for as the last of them begins; gives their loss sums."""
        self._fetch(work)
        found: list[Scalar] = []
        for unit in units:
            if unit is units[-1] and work.asked is None:
                work.asked = self._hub.ask()
            found.append(self._compute(unit, work))
            self._executor.add(unit.number)
        return [self._executor.number(loss) for loss in found]

    def _lookups(self) -> Effort:
        """What the cache was asked since the last lease; the reader asks ahead, so not lease by lease."""
        before, self._counted = self._counted, self._cache.stats
        return Effort(cache_hits=self._counted.hits - before.hits, cache_misses=self._counted.misses - before.misses)

    def _fetch(self, work: _Lease) -> None:
        """Bring the parameters of the evaluation, once (section 4.2: at the start of a batch)."""
        evaluation = work.lease.evaluation
        if evaluation == self._fetched:
            return
        began, before = time.monotonic(), self._executor.received_bytes
        self._executor.fetch(evaluation)
        self._fetched = evaluation
        work.effort += Effort(
            sending_seconds=time.monotonic() - began, fetched_bytes=self._executor.received_bytes - before
        )

    def _compute(self, unit: WorkUnit, work: _Lease) -> Scalar:
        """Compute a unit, block by block as they are read; gives its loss sum."""
        loss: Scalar = 0.0
        reading_seconds = computing_seconds = 0.0
        blocks_read = self._reader.blocks(unit, self._spec.plan.block_rows, limits().no_progress_seconds)
        while True:
            began = time.monotonic()
            block = next(blocks_read, None)
            taken = time.monotonic()
            reading_seconds += taken - began
            if block is None:
                break
            if self._standing.is_cancelled or work.is_unwanted:
                raise Unwanted
            loss = loss + self._block_loss(unit, *block)
            # Its memory is where the next is read.
            del block
            computing_seconds += time.monotonic() - taken
        work.effort += Effort(reading_seconds=reading_seconds, computing_seconds=computing_seconds)
        return loss

    def _block_loss(self, unit: WorkUnit, inputs: np.ndarray, targets: np.ndarray) -> Scalar:
        try:
            return self._executor.compute(inputs, targets)
        except DaskBeliefError:
            raise
        except Exception as error:
            raise ReplicaError(
                f"the objective raised {type(error).__name__}: {error}, in unit {unit.number} (rows {unit.start} to "
                f"{unit.stop - 1}) on {self._standing.worker.address}. Call loss_and_gradient on these rows to see it."
            ) from error

    def _faulty(self, units: Sequence[WorkUnit], losses: Sequence[float]) -> tuple[int, ...]:
        """The units of a lease whose loss or gradient is not finite: their gradients are found once more, one by one.

        That a sum is finite says the same of its parts, so this is done for a lease that is not.
        """
        faulty = []
        for unit, loss in zip(units, losses, strict=True):
            inputs, targets = self._read(unit)
            for rows in blocks(unit.rows, self._spec.plan.block_rows):
                self._executor.compute(inputs[rows], targets[rows])
            if not (np.isfinite(loss) and self._executor.gradient_is_finite()):
                faulty.append(unit.number)
            self._executor.drop_gradient()
        # Where only the addition overflowed, it is the lease as a whole.
        return tuple(faulty) or tuple(unit.number for unit in units)

    def _deliver(self, report: Report) -> None:
        """Push the sum of a lease and report it, while the replica goes on."""
        pushed = self._executor.push_sum(report.lease.evaluation, report.lease.node)
        self._deliveries.append(self._caller.start(self._report(pushed, report)))
        while len(self._deliveries) > self._most_in_flight:
            self._hub.wait_for_report(self._deliveries.pop(0))
        self._settle()

    async def _report(self, pushed: concurrent.futures.Future[int], report: Report) -> None:
        """Report a lease once its sum is on the shards; one that is refused as stale was done by others."""
        began = time.monotonic()
        try:
            n_bytes = await asyncio.wrap_future(pushed)
        except StaleError:
            await self._hub.call("give_up", report.lease)
            return
        sent = Effort(sending_seconds=time.monotonic() - began, pushed_bytes=n_bytes)
        await self._hub.call("report", replace(report, effort=report.effort + sent))

    def _settle(self) -> None:
        """Let go of deliveries that are through; one that failed ends the replica, and its lease goes to another."""
        while self._deliveries and self._deliveries[0].done():
            self._deliveries.pop(0).result()

    def _new_reader(self) -> Prefetcher | Streamer:
        """On the host rows that need no decoding are read in pieces by this thread; else a thread reads units ahead."""
        dataset, dtype = self._dataset, np.dtype(self._spec.directory.dtype)
        if self._backend.name == "numpy" and isinstance(dataset, DirectDataset) and dataset.is_direct:

            def read(start: int, stop: int) -> Batch:
                return dataset.read(start, stop, dtype=dtype)

            return Streamer(read, dataset.advise, dataset.row_bytes(dtype), self._cache)
        return Prefetcher(
            self._read,
            self._cache,
            ready_bytes=read_ahead_bytes(self._standing),
            before_letting_go=self._backend.sync,
        )

    def _read(self, unit: WorkUnit) -> Batch:
        """Decode a unit, and bring it to where it is computed: there the cache holds it."""
        inputs, targets = self._dataset.read(unit.start, unit.stop, dtype=np.dtype(self._spec.directory.dtype))
        batch = self._backend.asarray(inputs), self._backend.asarray(targets)
        # It is read by one thread and computed by another.
        self._backend.sync()
        return batch

    def _read_ahead(self, lease: Lease) -> None:
        plan = self._spec.plan
        self._reader.schedule([plan[number] for number in lease.node.leaves(len(plan))])


class _Lease:
    """A lease while it is computed: what it cost so far, whether it is still wanted, the question for the next."""

    def __init__(self, hub: HubLine, lease: Lease, waited: float) -> None:
        self.lease = lease
        self.effort = Effort(waiting_seconds=waited)
        self.asked: Asked | None = None
        self._hub = hub
        self._began = time.monotonic()
        self._listening: Asked | None = None

    @property
    def is_unwanted(self) -> bool:
        """Whether others have done it; asked of the hub beside the computing, and only by a lease that takes long."""
        if time.monotonic() - self._began < _WATCH_AFTER_SECONDS:
            return False
        if self._listening is None:
            self._listening = self._hub.start("until_unwanted", self.lease, limits().poll_seconds)
        if not self._listening.done():
            return False
        is_unwanted = bool(self._listening.result())
        self._listening = None
        return is_unwanted
