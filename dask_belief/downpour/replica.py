"""A Downpour replica: the paper's Algorithm 1.1, lease after lease."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_belief.backend import get_backend
from dask_belief.cluster.actors import ActorAddress, Caller
from dask_belief.cluster.hub import RUN_IS_OVER, Over
from dask_belief.cluster.hub_line import Asked, HubLine
from dask_belief.cluster.limits import LIMITS
from dask_belief.cluster.replicas import Standing, live, read_ahead_bytes
from dask_belief.data.batches import mini_batches, n_batches
from dask_belief.data.dataset import Dataset
from dask_belief.data.prefetch import Prefetcher
from dask_belief.data.units import UnitPlan, WorkUnit
from dask_belief.downpour.config import Downpour
from dask_belief.downpour.executor import PlainStepExecutor
from dask_belief.downpour.lease_book import RowLease
from dask_belief.downpour.ledger import LeaseReport
from dask_belief.errors import DaskBeliefError, NonFiniteError, ReplicaError
from dask_belief.objective import Objective
from dask_belief.parameter_server.client import Directory
from dask_belief.parameter_server.executor import StepExecutor
from dask_belief.parameter_server.messages import LeaseKey, PushKey
from dask_belief.seeds import stream

logger = logging.getLogger(__name__)

Vector = NDArray[np.floating]


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
    """

    objective: Objective
    plan: UnitPlan
    method: Downpour
    directory: Directory
    ledger: ActorAddress
    backend: str
    seed: int


def downpour_replica(spec: ReplicaSpec, dataset: Dataset, replica: str) -> str:
    """Train on leases until the run is over; runs as one long Dask task.

    Returns
    -------
    str
        Why it ended.
    """
    return live(replica, spec.backend, lambda standing: Trainer(spec, dataset, replica, standing))


class Trainer:
    """Fetches, computes, accrues and pushes; the courier carries while the processor computes."""

    def __init__(self, spec: ReplicaSpec, dataset: Dataset, replica: str, standing: Standing) -> None:
        self._spec = spec
        self._method = spec.method
        self._dataset = dataset
        self._standing = standing
        self._caller = Caller.of_worker(standing.worker)
        self._backend = get_backend(spec.backend)
        self._executor: StepExecutor = PlainStepExecutor(
            spec.objective, spec.directory, self._caller, self._backend, spec.method
        )
        self._prefetcher = Prefetcher(self._read, ready_bytes=read_ahead_bytes(standing))
        generation = spec.directory.generation
        self._hub = HubLine(spec.ledger, generation, replica, standing, self._caller, self._read_ahead)
        self._report: Asked | None = None

    def run(self) -> str:
        """Ask for leases and train on them."""
        self._hub.hello(self._backend.kind())
        self._executor.exchange(None, effective_step=0)
        asked = self._hub.ask()
        while not self._standing.should_end:
            lease = self._hub.answer(asked)
            if self._report is not None and self._report.done():
                # One that failed ends the replica, and its lease goes to another.
                self._report.result()
            if isinstance(lease, Over):
                return RUN_IS_OVER
            asked = self._hub.ask()
            if lease is not None:
                self._train(lease)
        return "cancelled, or the ledger was silent"

    def close(self) -> None:
        """Let the reader go."""
        self._prefetcher.close()

    def _train(self, lease: RowLease) -> None:
        """One lease: Algorithm 1.1, with steps counted within the lease."""
        method, executor, key = self._method, self._executor, LeaseKey(*lease.key)
        unit = self._spec.plan[key.lease]
        inputs, targets = self._prefetcher.take(unit, timeout_seconds=LIMITS.no_progress_seconds)
        n_steps = n_batches(unit.rows, method.batch_size)
        first = executor.applied(key) + 1 if lease.is_taken_over else 0
        order = stream(self._spec.seed, "rows", key.epoch, key.lease)
        push: PushKey | None = None
        pushed_to, loss_sum, n_rows = first - 1, 0.0, 0
        for step, x, y in mini_batches(inputs, targets, method.batch_size, order, first=first):
            if self._standing.should_end:
                return
            should_fetch = step % method.n_fetch == 0 or step == first
            executor.exchange(push, step + method.fetch_lag if should_fetch else None)
            executor.take_effect(step)
            loss_sum += self._compute(x, y, unit, step)
            n_rows += len(x)
            executor.accrue(len(x))
            push = None
            if step % method.n_push == 0 or step == n_steps - 1:
                self._require_finite(unit, step)
                push = PushKey(key, pushed_to + 1, step)
                pushed_to = step
        self._finish(push, LeaseReport(key, n_steps, unit.rows, loss_sum, n_rows))

    def _compute(self, x: Any, y: Any, unit: WorkUnit, step: int) -> float:
        """The loss sum of a mini-batch, whose gradient the executor then holds."""
        try:
            loss = self._executor.compute(x, y)
        except DaskBeliefError:
            raise
        except Exception as error:
            raise ReplicaError(
                f"the objective raised {type(error).__name__}: {error}, in mini-batch {step} of unit {unit.number} "
                f"(rows {unit.start} to {unit.stop - 1}) on {self._standing.worker.address}."
            ) from error
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"the loss is {loss} in mini-batch {step} of unit {unit.number} (rows {unit.start} to {unit.stop - 1},"
                " shuffled). Look for NaN or huge values in these rows (dataset.check(nan=True)), scale the inputs, or "
                "lower the learning rate."
            )
        return loss

    def _require_finite(self, unit: WorkUnit, step: int) -> None:
        """Refuse to push what would spoil the shards."""
        if not self._executor.accrued_is_finite():
            raise NonFiniteError(
                f"the gradient is NaN, infinite or huge in mini-batch {step}, or since the push before it, of unit "
                f"{unit.number} (rows {unit.start} to {unit.stop - 1}, shuffled). Look for NaN or huge values in these "
                "rows (dataset.check(nan=True)), scale the inputs, or lower the learning rate."
            )

    def _finish(self, push: PushKey | None, report: LeaseReport) -> None:
        """Send the lease's last push, and report the lease once every shard has applied it."""
        if self._report is not None:
            self._report.result(2 * LIMITS.call_seconds)
        # What was fetched within the lease takes effect at its end at the latest.
        sent = self._executor.exchange(push, None)
        self._report = self._hub.report_after(sent, report)
        self._executor.take_effect(math.inf)

    def _read(self, unit: WorkUnit) -> tuple[np.ndarray, np.ndarray]:
        return self._dataset.read(unit.start, unit.stop, dtype=np.dtype(self._spec.directory.dtype))

    def _read_ahead(self, lease: RowLease) -> None:
        self._prefetcher.schedule([self._spec.plan[LeaseKey(*lease.key).lease]])
