"""The plain executor of Downpour: one flat vector, what has accrued, the local step, and the courier to the shards."""

from __future__ import annotations

import concurrent.futures
import math

import numpy as np
from numpy.typing import NDArray

from dask_belief.backend import Backend
from dask_belief.cluster.actors import Caller
from dask_belief.downpour.config import Downpour
from dask_belief.downpour.courier import Courier
from dask_belief.objective import Objective, penalised_of
from dask_belief.parameter_server.client import Directory
from dask_belief.parameter_server.executor import PlainExecutor
from dask_belief.parameter_server.messages import LeaseKey, PushKey

Vector = NDArray[np.floating]


class PlainStepExecutor(PlainExecutor):
    """Steps of Algorithm 1.1 with one flat vector.

    Parameters
    ----------
    objective, directory, caller, backend
        See `PlainExecutor`.
    method
        The options of the run: rule, penalty, and how often is fetched.
    """

    def __init__(
        self, objective: Objective, directory: Directory, caller: Caller, backend: Backend, method: Downpour
    ) -> None:
        super().__init__(objective, directory, caller, backend)
        self._host = backend.host_empty((directory.n_parameters,), directory.dtype)
        self.parameters = backend.asarray(self._host)
        self._rule = method.rule
        self._courier = Courier(self.server, caller, backend)
        self._penalty = self._penalty_weights(penalised_of(objective), method.l2)
        shape, dtype = (directory.n_parameters,), directory.dtype
        self._accrued: Vector = backend.zeros(shape, dtype)
        self._scratch: Vector = backend.empty(shape, dtype)
        self._local_state = method.rule.init(self.parameters)
        # A local step that the next fetch overwrites before it is used is not worth making.
        self._is_local_step_seen = not (method.n_fetch == 1 and method.fetch_lag <= 1)

    def exchange(self, push: PushKey | None, effective_step: int | None) -> concurrent.futures.Future[int] | None:
        """Begin to push what has accrued, to fetch parameters that take effect at a step, or both in one message."""
        if push is None and effective_step is None:
            return None
        sent = self._courier.send(push, self._accrued if push is not None else None, effective_step)
        if push is not None:
            self._accrued[:] = 0
        return sent

    def take_effect(self, step: float) -> None:
        """Use the fetched parameters that take effect at `step` or before, waited for if need be."""
        fetched = self._courier.arrived(step)
        if fetched is not None:
            self._courier.give_back(self._use(fetched))

    def _use(self, host: Vector) -> Vector:
        """Compute with the parameters in a host vector from now on; gives the host vector that was used before."""
        former, self._host = self._host, host
        arrived = self._backend.asarray(host)
        if arrived is host:
            self.parameters = host
        else:
            self._backend.xp.copyto(self.parameters, arrived)
        return former

    def accrue(self, n_rows: int) -> None:
        """Add the mean gradient of the last mini-batch, penalty included, to what has accrued; make the local step."""
        gradient = self.take_gradient()
        self._backend.scale_(1.0 / n_rows, gradient)
        if self._penalty is not None:
            self._backend.xp.multiply(self.parameters, self._penalty, out=self._scratch)
            self._backend.add_(self._scratch, gradient)
        self._backend.add_(gradient, self._accrued)
        if self._is_local_step_seen:
            self._rule.apply(self.parameters, gradient, self._local_state, self._rule.learning_rate, self._backend)

    def accrued_is_finite(self) -> bool:
        """Whether what has accrued is finite, and not so huge that its square is not."""
        return math.isfinite(self._backend.item(self._backend.xp.dot(self._accrued, self._accrued)))

    def applied(self, lease: LeaseKey) -> int:
        """The last mini-batch of a lease that every shard has applied; -1 for none."""
        return self._caller.run(self.server.applied(lease))

    def _penalty_weights(self, mask: NDArray[np.bool_] | None, l2: float) -> Vector | None:
        if l2 == 0.0:
            return None
        weights = np.full(self.parameters.shape, l2, self.server.directory.dtype)
        if mask is not None:
            weights *= mask
        penalty: Vector = self._backend.asarray(weights)
        return penalty
