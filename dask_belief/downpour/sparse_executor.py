"""The executor of Downpour for objectives that touch few parameters in a mini-batch, such as embeddings.

What a mini-batch does not touch is neither fetched nor pushed, and the replica makes no pass over it. A fetch brings
what will be touched until the next one takes effect, so it looks ahead at the rows.
"""

from __future__ import annotations

import concurrent.futures
import logging
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_belief.backend import Scalar
from dask_belief.downpour.config import Downpour
from dask_belief.downpour.courier import Arrived, Carry
from dask_belief.downpour.executor import PlainStepExecutor, StepSpec
from dask_belief.objective import Objective, touched_of
from dask_belief.parameter_server.consistency import ElasticAveraging, Synchronous
from dask_belief.parameter_server.exchange import Exchange, Exchanged, Sent
from dask_belief.parameter_server.executor import Ahead
from dask_belief.parameter_server.messages import PushKey, StepKey
from dask_belief.parameter_server.selection import Selection

logger = logging.getLogger(__name__)

Vector = NDArray[np.floating]

_NOTHING = Selection(np.empty((0, 2), np.int64))


def is_sparse(objective: Objective, method: Downpour, backend: str) -> bool:
    """Whether exchanges may leave out what mini-batches do not touch; says in the log why not, where it could be."""
    if touched_of(objective) is None:
        return False
    whole = {
        "l2 draws on every parameter": method.l2 > 0.0,
        "Synchronous and ElasticAveraging exchange all parameters": isinstance(
            method.staleness, Synchronous | ElasticAveraging
        ),
        f"backend {backend!r} computes on a device": backend != "numpy",
    }
    reasons = [reason for reason, holds in whole.items() if holds]
    if reasons:
        logger.info("parameters are exchanged whole, although mini-batches touch few: %s", "; ".join(reasons))
    return not reasons


class SparseStepExecutor(PlainStepExecutor):
    """Steps of Algorithm 1.1 on what each mini-batch touches.

    The parameters of the replica are right where they were fetched for what comes next, and old elsewhere. Rules with
    a memory (momentum, Adam) let it rest where nothing was touched.

    Parameters
    ----------
    spec, carry
        See `PlainStepExecutor`.
    """

    is_sparse = True

    def __init__(self, spec: StepSpec, carry: Carry | None = None) -> None:
        super().__init__(spec, carry)
        touched = touched_of(spec.objective)
        assert touched is not None
        self._ranges_of = touched
        self._touched = _NOTHING
        self._since_push = _NOTHING
        self._total: Vector = np.zeros(self.parameters.shape, spec.directory.dtype)
        self._compact: dict[str, Vector] = {}

    def exchange(
        self, at: StepKey, push: PushKey | None, effective_step: float | None, ahead: Ahead
    ) -> concurrent.futures.Future[Exchanged] | None:
        """Begin to push what was touched, to fetch what will be, or both in one message."""
        if push is None and effective_step is None:
            return None
        wanted = None if effective_step is None else Selection(self._ranges_of(*ahead()))
        ask = Exchange(self._replica, at, fetch_selection=wanted)
        if push is None:
            return self._courier.send(ask, None, effective_step)
        buffer, chosen = self._courier.buffer(), self._since_push
        vector = self._gathered(chosen, buffer[: chosen.n_elements])
        self._since_push = _NOTHING
        ask = Exchange(self._replica, at, push, vector, self._versions, chosen, fetch_selection=wanted)
        return self._courier.send(ask, buffer, effective_step)

    def _gathered(self, chosen: Selection, out: Sent) -> Sent:
        """What has accrued where it was touched, as it travels; what rounding leaves out stays for the next push."""
        if not self._is_narrow:
            chosen.take(self._total, out=out)
            chosen.fill(self._total, 0.0)
            return out
        compact = chosen.take(self._total, out=self._scratch_for("accrued", chosen))
        self._backend.take_bfloat16_(compact, out)
        chosen.put(compact, self._total)
        return out

    def _use(self, arrived: Arrived) -> None:
        self._versions = arrived.versions
        assert arrived.selection is not None
        values = arrived.values
        if self._is_narrow:
            values = self._scratch_for("fetched", arrived.selection)
            self._backend.from_bfloat16_(arrived.values, values)
        arrived.selection.put(values, self.parameters)
        self._courier.give_back(arrived.buffer)

    def compute(self, inputs: Any, targets: Any, key: int | None = None) -> Scalar:
        """Find the gradient sum of a mini-batch where it touches; gives the loss sum."""
        self._touched = Selection(self._ranges_of(inputs, targets))
        return self._gradients(self.parameters, inputs, targets, self.gradient, only_touched=True, key=key)

    def accrue(self, n_rows: int) -> None:
        """Add the mean gradient of the last mini-batch to what has accrued; make the local step."""
        chosen = self._touched
        gradient = chosen.take(self.gradient, out=self._scratch_for("gradient", chosen))
        self._backend.scale_(1.0 / n_rows, gradient)
        self._clip(gradient)
        if self._makes_local_steps:
            self._step_where_touched(chosen, gradient)
        chosen.add(gradient, self._total)
        self._since_push = chosen if not len(self._since_push) else Selection.union(self._since_push, chosen)

    def _step_where_touched(self, chosen: Selection, gradient: Vector) -> None:
        vectors = {"": self.parameters, **self._local_state}
        parts = {name: chosen.take(vector, out=self._scratch_for(name, chosen)) for name, vector in vectors.items()}
        is_penalised = None
        if self._penalty is not None:
            is_penalised = chosen.take(self._penalty)
        state = {name: parts[name] for name in self._local_state}
        self._local_step(parts[""], gradient, state, is_penalised)
        for name, vector in vectors.items():
            chosen.put(parts[name], vector)

    def _scratch_for(self, name: str, chosen: Selection) -> Vector:
        """Memory for a compact vector, kept from step to step."""
        held = self._compact.get(name)
        if held is None or len(held) < chosen.n_elements:
            held = self._compact[name] = np.empty(chosen.n_elements, self.parameters.dtype)
        return held[: chosen.n_elements]

    def accrued_is_finite(self) -> bool:
        """Whether what has accrued is finite, and not so huge that its square is not."""
        chosen = self._since_push
        return math.isfinite(self._squares(chosen.take(self._total, out=self._scratch_for("accrued", chosen))))
