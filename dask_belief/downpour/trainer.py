"""Algorithm 1.1 on one lease: fetch, compute, accrue, push; what carries messages is the executor's business."""

from __future__ import annotations

import concurrent.futures
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from dask_belief.backend import Scalar
from dask_belief.data.batches import MiniBatches
from dask_belief.data.units import WorkUnit
from dask_belief.downpour.config import Downpour
from dask_belief.errors import DaskBeliefError, NonFiniteError, ReplicaError
from dask_belief.parameter_server.consistency import ElasticAveraging, Synchronous
from dask_belief.parameter_server.exchange import Exchanged
from dask_belief.parameter_server.executor import Ahead, StepExecutor
from dask_belief.parameter_server.messages import LeaseKey, PushKey, StepKey
from dask_belief.seeds import key as key_of
from dask_belief.seeds import stream


@dataclass(frozen=True)
class Work:
    """One lease with its rows.

    Attributes
    ----------
    key, unit
        Which it is.
    inputs, targets
        Its rows, in their order in the data set.
    """

    key: LeaseKey
    unit: WorkUnit
    inputs: NDArray[Any]
    targets: NDArray[Any]


@dataclass(frozen=True)
class Trained:
    """What was done of a lease.

    Attributes
    ----------
    n_steps
        Mini-batches of the whole lease.
    loss_sum, n_rows
        Over the rows that were trained on: a part of the lease, when it was taken over.
    sent
        The lease's last push, on its way; None when there was none.
    """

    n_steps: int
    loss_sum: float
    n_rows: int
    sent: concurrent.futures.Future[Exchanged] | None


class Trainer:
    """Trains on leases, one after another.

    Parameters
    ----------
    executor
        Fetches, computes, accrues and pushes.
    method
        The options.
    seed
        The run's root seed: it decides the order of a lease's rows.
    draws
        Whether the objective draws random numbers.

    Attributes
    ----------
    executor
        As given.
    n_steps, n_rows, computing_seconds
        Mini-batches and rows trained on so far, and the time in the objective and the local steps.
    """

    def __init__(self, executor: StepExecutor, method: Downpour, seed: int, draws: bool = False) -> None:
        self.executor = executor
        self.n_steps = 0
        self.n_rows = 0
        self.computing_seconds = 0.0
        self._method = method
        self._seed = seed
        self._draws = draws
        self._is_elastic = isinstance(method.staleness, ElasticAveraging)
        # What the next lease will touch, and what rounds it will find, is not known at the end of this one.
        self._begins_with_fetch = executor.is_sparse or isinstance(method.staleness, Synchronous)
        # After how many mini-batches the last fetch was begun.
        self._fetched_at: int | None = None

    def train(self, work: Work, first: int, may_go_on: Callable[[], bool]) -> Trained | None:
        """Train on one lease: Algorithm 1.1, with steps counted within the lease.

        Parameters
        ----------
        work
            The lease.
        first
            The mini-batch to begin with: the one after what every shard has applied.
        may_go_on
            Asked before each mini-batch is computed.

        Returns
        -------
        Trained or None
            None when it was broken off.

        Raises
        ------
        NonFiniteError, ReplicaError
            What the objective or the data did, with the rows.
        """
        executor, key = self.executor, work.key
        order = stream(self._seed, "rows", *key)
        batches = MiniBatches(work.inputs, work.targets, self._method.batch_size, order, first=first)
        push: PushKey | None = None
        loss_sum: Scalar = 0.0
        pushed_to, n_rows = first - 1, 0
        for step, inputs, targets in batches:
            executor.exchange(StepKey(key, step, first), push, *self._fetch(batches, step, first, push))
            # What is done is on its way, however long this replica is held back.
            if not may_go_on():
                return None
            executor.take_effect(self.n_steps)
            loss_sum = loss_sum + self._compute(inputs, targets, work, step)
            n_rows += len(inputs)
            push = None
            if (step + 1) % self._method.n_push == 0 or step == len(batches) - 1:
                self._require_finite(work.unit, step, executor.number(loss_sum))
                push = PushKey(key, pushed_to + 1, step)
                pushed_to = step
        end = len(batches)
        sent = executor.exchange(StepKey(key, end, first), push, *self._fetch(batches, end, first, push))
        return Trained(end, executor.number(loss_sum), n_rows, sent)

    def _fetch(self, batches: MiniBatches, step: int, first: int, push: PushKey | None) -> tuple[float | None, Ahead]:
        """When the fetch that is begun now takes effect, and for which rows it is; None when none is begun.

        What takes effect when is counted in mini-batches of this replica, over its leases. A fetch that is begun at the
        end of a lease, with its last push, is the one with which the next begins.
        """
        n_fetch, lag, done = self._method.n_fetch, self._method.lag, self.n_steps
        if self._is_elastic and self._fetched_at is not None:
            return (None if push is None else done + lag), _nothing
        if (step != first and step != len(batches) and step % n_fetch) or done == self._fetched_at:
            return None, _nothing
        # A replica's first fetch, and such a one at the start of a lease, is waited for: it has nothing else to use.
        is_waited_for = self._fetched_at is None or (step == first and self._begins_with_fetch)
        wait = 0 if is_waited_for else lag
        if self._begins_with_fetch and step + wait >= len(batches):
            # It would take effect in the next lease, which begins with another.
            return None, _nothing
        self._fetched_at = done
        until = (step // n_fetch + 1) * n_fetch + lag
        return done + wait, lambda: batches.ahead(step + wait, until)

    def _compute(self, inputs: Any, targets: Any, work: Work, step: int) -> Scalar:
        """The loss sum of a mini-batch, whose gradient has accrued then; on a device it is looked at with a push."""
        began, unit = time.perf_counter(), work.unit
        # By the mini-batch alone, so that whoever computes it draws the same.
        drawn_from = key_of(self._seed, "pass", *work.key, step) if self._draws else None
        try:
            loss = self.executor.compute(inputs, targets, drawn_from)
        except DaskBeliefError:
            raise
        except Exception as error:
            raise ReplicaError(
                f"the objective raised {type(error).__name__}: {error}, in mini-batch {step} of unit {unit.number} "
                f"(rows {unit.start} to {unit.stop - 1})."
            ) from error
        if isinstance(loss, float) and not math.isfinite(loss):
            raise NonFiniteError(f"the loss is {loss} in mini-batch {step} of {_told(unit)}")
        self.executor.accrue(len(inputs))
        self.n_steps += 1
        self.n_rows += len(inputs)
        self.computing_seconds += time.perf_counter() - began
        return loss

    def _require_finite(self, unit: WorkUnit, step: int, loss_sum: float) -> None:
        """Refuse to push what would spoil the shards."""
        where = f"in mini-batch {step}, or since the push before it, of {_told(unit)}"
        if not math.isfinite(loss_sum):
            raise NonFiniteError(f"the loss is {loss_sum} {where}")
        if not self.executor.accrued_is_finite():
            raise NonFiniteError(f"the gradient is NaN, infinite or huge {where}")


def _told(unit: WorkUnit) -> str:
    return (
        f"unit {unit.number} (rows {unit.start} to {unit.stop - 1}, shuffled). Look for NaN or huge values in these "
        "rows (dataset.check(nan=True)), scale the inputs, or lower the learning rate."
    )


def _nothing() -> tuple[NDArray[Any], NDArray[Any]]:
    """The rows of a fetch that is not made."""
    raise AssertionError("no fetch was begun")
