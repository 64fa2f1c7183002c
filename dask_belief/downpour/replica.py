"""A Downpour replica: the paper's Algorithm 1.1, lease after lease."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dask_belief.backend import get_backend
from dask_belief.cluster.actors import ActorAddress, Caller
from dask_belief.cluster.hub import RUN_IS_OVER, Over
from dask_belief.cluster.hub_line import Asked, HubLine
from dask_belief.cluster.limits import Limits, limits
from dask_belief.cluster.replicas import Team, live, read_ahead_bytes
from dask_belief.cluster.standing import Standing
from dask_belief.data.dataset import Dataset
from dask_belief.data.prefetch import Prefetcher
from dask_belief.data.units import UnitPlan, WorkUnit
from dask_belief.downpour.config import Downpour
from dask_belief.downpour.courier import Carry
from dask_belief.downpour.executor import ElasticStepExecutor, PlainStepExecutor, StepSpec, exchange_seconds
from dask_belief.downpour.lease_book import RowLease
from dask_belief.downpour.ledger import LeaseReport
from dask_belief.downpour.pace import Pace
from dask_belief.downpour.sparse_executor import SparseStepExecutor, is_sparse
from dask_belief.downpour.synchronous import SynchronousLine
from dask_belief.downpour.trainer import Trainer, Work
from dask_belief.model_parallel.executor import PartitionedStepExecutor
from dask_belief.model_parallel.partitioned import PartitionedNetwork
from dask_belief.model_parallel.plan import LEAD
from dask_belief.model_parallel.team import OwnPart, PieceLife, own_part, renew_by
from dask_belief.monitoring.events import ReplicaProgress
from dask_belief.objective import Objective, draws_of
from dask_belief.parameter_server.client import ParameterServer
from dask_belief.parameter_server.consistency import ElasticAveraging, MaxStaleness, Synchronous
from dask_belief.parameter_server.directory import Directory
from dask_belief.parameter_server.executor import StepExecutor
from dask_belief.parameter_server.messages import LeaseKey

logger = logging.getLogger(__name__)

Vector = NDArray[np.floating]

# How a replica needs less memory on its device.
_DEVICE_ADVICE = "give each of them to one worker process with one thread, or ask for a smaller batch_size="

# How often a replica tells of itself.
_TELLING_SECONDS = 0.5


@dataclass(frozen=True)
class ReplicaSpec:
    """What a replica is told at its start.

    Attributes
    ----------
    objective, plan, method
        What is trained, how the rows are cut into leases, and the options.
    directory, ledger
        Where the shards and the ledger are.
    backend
        The name of the backend.
    seed
        The run's root seed.
    limits
        Of the run.
    team
        The tasks of the replica, where the network is in pieces.
    """

    objective: Objective
    plan: UnitPlan
    method: Downpour
    directory: Directory
    ledger: ActorAddress
    backend: str
    seed: int
    limits: Limits
    team: Team | None = None


def downpour_replica(spec: ReplicaSpec, dataset: Dataset, replica: str) -> str:
    """Train on leases until the run is over; runs as one long Dask task.

    Returns
    -------
    str
        Why it ended.
    """

    def make(standing: Standing) -> Replica:
        return Replica(spec, dataset, replica, standing)

    return live(replica, spec.backend, spec.limits, make, _DEVICE_ADVICE)


def downpour_piece(spec: ReplicaSpec, number: int, replica: str) -> str:
    """Compute one piece of a replica's network until the lead ends; runs as one long Dask task."""

    def make(standing: Standing) -> PieceLife:
        caller = Caller.of_worker(standing.worker)
        renew = renew_by(spec.ledger, replica, caller, spec.limits.poll_seconds)
        steps = StepSpec(replica, spec.objective, spec.directory, caller, get_backend(spec.backend), spec.method, renew)
        own = _own_part(steps, spec.team, number, standing)
        return PieceLife(_own_executor(steps, own), number, own.correspondent)

    return live(f"piece {number} of {replica}", spec.backend, spec.limits, make, _DEVICE_ADVICE)


class Replica:
    """Asks for leases, trains on them, reports them, and tells of itself."""

    def __init__(self, spec: ReplicaSpec, dataset: Dataset, replica: str, standing: Standing) -> None:
        method, caller = spec.method, Caller.of_worker(standing.worker)
        self._spec = spec
        self._replica = replica
        self._dataset = dataset
        self._standing = standing
        self._backend = get_backend(spec.backend)
        self._prefetcher = Prefetcher(self._read, ready_bytes=read_ahead_bytes(standing))
        self._hub = HubLine(spec.ledger, replica, standing, caller, self._read_ahead)
        is_paced = isinstance(method.staleness, MaxStaleness)
        self._push_seconds = exchange_seconds(method)
        self._pace = Pace(self._hub, method.stalled_after_seconds) if is_paced else None
        renew = self._hub.directory
        steps = StepSpec(replica, spec.objective, spec.directory, caller, self._backend, method, renew)
        carry = None
        if isinstance(method.staleness, Synchronous):
            carry = SynchronousLine(ParameterServer(spec.directory, caller, renew), self._hub.call)
        executor = step_executor(steps, carry, spec.team, standing)
        self._trainer = Trainer(executor, method, spec.seed, draws_of(spec.objective))
        self._reading_seconds = 0.0
        self._lease_waiting_seconds = 0.0
        self._told_at = -math.inf
        self._report: Asked | None = None

    def run(self) -> str:
        """Ask for leases and train on them."""
        self._hub.hello(self._backend.kind())
        asked = self._hub.ask()
        while not self._standing.should_end:
            began = time.perf_counter()
            lease = self._hub.answer(asked)
            self._lease_waiting_seconds += time.perf_counter() - began
            if self._report is not None and self._report.done():
                # One that failed ends the replica, and its lease goes to another.
                self._report.result()
            if isinstance(lease, Over):
                return RUN_IS_OVER
            asked = self._hub.ask()
            if lease is not None and not self._train(lease):
                # Its lease goes to another once it has ended, also when the ledger is heard of again meanwhile.
                break
        return "cancelled, or the ledger was silent"

    def holdings(self) -> Mapping[str, int]:
        """What this replica has on its device: the vectors of its executor; its rows are on the host."""
        return self._trainer.executor.holdings()

    def close(self) -> None:
        """Let the reader go, and the pieces."""
        self._prefetcher.close()
        self._trainer.executor.close()

    def _train(self, lease: RowLease) -> bool:
        """Train on one lease, and report it once every shard has its last push; False when it was broken off."""
        key = LeaseKey(*lease.key)
        unit = self._spec.plan[key.lease]
        began = time.perf_counter()
        rows = self._prefetcher.take(unit, timeout_seconds=limits().no_progress_seconds)
        self._reading_seconds += time.perf_counter() - began
        first = self._trainer.executor.applied(key) + 1 if lease.is_taken_over else 0
        trained = self._trainer.train(Work(key, unit, *rows), first, self._may_go_on)
        if trained is None:
            return False
        if self._report is not None:
            self._hub.wait_for_report(self._report, self._push_seconds)
        report = LeaseReport(key, trained.n_steps, unit.rows, trained.loss_sum, trained.n_rows, self._progress())
        self._report = self._hub.report_after(trained.sent, report)
        return True

    def _may_go_on(self) -> bool:
        """Between mini-batches: whether to go on, once the others have come far enough."""
        if self._pace is not None:
            self._pace.keep(self._trainer.n_steps)
        now = time.monotonic()
        if now - self._told_at >= _TELLING_SECONDS:
            self._told_at = now
            self._hub.start("tell", self._progress())
        return not self._standing.should_end

    def _progress(self) -> ReplicaProgress:
        trainer, traffic = self._trainer, self._trainer.executor.traffic
        return ReplicaProgress(
            replica=self._replica,
            worker=self._standing.worker.address,
            steps=trainer.n_steps,
            rows=trainer.n_rows,
            n_pushes=traffic.n_pushes,
            n_fetches=traffic.n_fetches,
            pushed_bytes=traffic.pushed_bytes,
            fetched_bytes=traffic.fetched_bytes,
            computing_seconds=trainer.computing_seconds,
            reading_seconds=self._reading_seconds,
            fetch_waiting_seconds=traffic.fetch_waiting_seconds,
            push_waiting_seconds=traffic.push_waiting_seconds,
            lease_waiting_seconds=self._lease_waiting_seconds,
            pace_waiting_seconds=0.0 if self._pace is None else self._pace.waiting_seconds,
            pieces_waiting_seconds=trainer.executor.pieces_waiting_seconds,
            staleness_mean=traffic.staleness_sum / traffic.n_pushes if traffic.n_pushes else math.nan,
        )

    def _read(self, unit: WorkUnit) -> tuple[np.ndarray, np.ndarray]:
        return self._dataset.read(unit.start, unit.stop, dtype=np.dtype(self._spec.directory.dtype))

    def _read_ahead(self, lease: RowLease) -> None:
        self._prefetcher.schedule([self._spec.plan[LeaseKey(*lease.key).lease]])


def step_executor(
    steps: StepSpec, carry: Carry | None, team: Team | None = None, standing: Standing | None = None
) -> StepExecutor:
    """Choose the executor that the objective and the options ask for; of a network in pieces the lead's."""
    if isinstance(steps.objective, PartitionedNetwork):
        own = _own_part(steps, team, LEAD, standing)
        inner = _own_executor(steps, own)
        return PartitionedStepExecutor(inner, steps.objective, own.correspondent, steps.backend, steps.directory.dtype)
    if isinstance(steps.method.staleness, ElasticAveraging):
        return ElasticStepExecutor(steps, carry)
    if is_sparse(steps.objective, steps.method, steps.backend.name):
        return SparseStepExecutor(steps, carry)
    return PlainStepExecutor(steps, carry)


def _own_part(steps: StepSpec, team: Team | None, number: int, standing: Standing | None) -> OwnPart:
    assert isinstance(steps.objective, PartitionedNetwork) and steps.renew is not None
    assert team is not None and standing is not None
    return own_part(steps.objective, team, number, steps.directory, steps.renew, steps.caller, standing, steps.backend)


def _own_executor(steps: StepSpec, own: OwnPart) -> StepExecutor:
    """Make the executor of one piece's own range of the parameters."""
    return step_executor(replace(steps, objective=own.objective, directory=own.directory, renew=own.renew), None)
