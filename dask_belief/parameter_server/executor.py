"""The seam between a method and a model: fetch, compute, push.

A replica of either method never holds the model itself: it tells an executor what to do. The plain executors (below,
and `dask_belief.downpour.executor`) do it with one flat vector and the objective; a partitioned one passes the same
words on to its pieces, each of which talks to its own shards.
"""

from __future__ import annotations

import concurrent.futures
import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dask_belief.backend import Backend
from dask_belief.binary_tree import Node, TreeSum
from dask_belief.cluster.actors import Caller
from dask_belief.objective import Gradients, Objective
from dask_belief.parameter_server.client import Directory, ParameterServer
from dask_belief.parameter_server.messages import LeaseKey, PushKey

Vector = NDArray[np.floating]


class Executor(Protocol):
    """What both methods tell the model to do; each word costs the same few messages whatever the model's size."""

    def compute(self, inputs: Any, targets: Any) -> float:
        """Find the gradient sum of some rows, kept inside until it is added or accrued; gives the loss sum."""

    def gradient_is_finite(self) -> bool:
        """Whether the gradient found so far holds neither NaN nor infinity."""


class BatchExecutor(Executor, Protocol):
    """What Sandblaster tells the model to do: gradients of units, summed in a tree (Algorithm 1.2)."""

    def fetch(self, evaluation: int) -> None:
        """Bring the parameters of an evaluation."""

    def add(self, unit: int) -> None:
        """Add what the last `compute` calls found, as unit number `unit`, to the sum of the lease."""

    def drop_sum(self) -> None:
        """Forget the sum of the lease."""

    def push_sum(self, evaluation: int, node: Node) -> concurrent.futures.Future[None]:
        """Begin to push the sum of the lease `node`, and open a new one."""


class StepExecutor(Executor, Protocol):
    """What Downpour tells the model to do: a step every mini-batch, fetches and pushes now and then (Algorithm 1.1)."""

    def exchange(self, push: PushKey | None, effective_step: int | None) -> concurrent.futures.Future[int] | None:
        """Begin to push what has accrued, to fetch parameters that take effect at a step, or both in one message."""

    def take_effect(self, step: float) -> None:
        """Use the fetched parameters that take effect at `step` or before, waited for if need be."""

    def accrue(self, n_rows: int) -> None:
        """Add the mean gradient of the last mini-batch to what has accrued, and make the local step."""

    def accrued_is_finite(self) -> bool:
        """Whether what has accrued holds neither NaN nor infinity."""

    def applied(self, lease: LeaseKey) -> int:
        """The last mini-batch of a lease that every shard has applied; -1 for none."""


def blocks(n_rows: int, block_rows: int) -> Iterator[slice]:
    """The row blocks in which a unit is computed: of a size fixed by the plan, so that sums keep their bits."""
    return (slice(start, min(start + block_rows, n_rows)) for start in range(0, n_rows, block_rows))


class PlainExecutor:
    """One flat vector, one objective, one thread.

    Parameters
    ----------
    objective
        What is trained; bound to the backend when it offers ``on(backend)``.
    directory
        Where the shards are.
    caller
        Of the worker on which the replica runs.
    backend
        Where the arrays live.
    n_units
        Leaves of the tree in which leases are summed.
    """

    def __init__(
        self, objective: Objective, directory: Directory, caller: Caller, backend: Backend, n_units: int = 1
    ) -> None:
        on = getattr(objective, "on", None)
        bound: Objective = objective if on is None else on(backend)
        self._gradients = Gradients(bound)
        self._backend = backend
        self._caller = caller
        self._n_units = n_units
        self.server = ParameterServer(directory, caller)
        shape, dtype = (directory.n_parameters,), directory.dtype
        self._host = backend.host_empty(shape, dtype)
        self.parameters: Vector = backend.asarray(self._host)
        self.gradient: Vector = backend.empty(shape, dtype)
        self._is_started = False
        self._more: Vector | None = None
        self._free: list[Vector] = []
        self._sum = self._new_sum()

    def fetch(self, evaluation: int) -> None:
        """Bring the parameters of an evaluation."""
        self._caller.run(self.server.fetch(evaluation, self._host))
        self.use(self._host)

    def use(self, host: Vector) -> Vector:
        """Compute with the parameters in a host vector from now on; gives the host vector that was used before."""
        former, self._host = self._host, host
        arrived = self._backend.asarray(host)
        if arrived is host:
            self.parameters = host
        else:
            self._backend.xp.copyto(self.parameters, arrived)
        return former

    def compute(self, inputs: Any, targets: Any) -> float:
        """Find the gradient sum of some rows and add it to what the unit has; gives the loss sum of these rows."""
        inputs, targets = self._backend.asarray(inputs), self._backend.asarray(targets)
        if not self._is_started:
            self._is_started = True
            return self._gradients(self.parameters, inputs, targets, self.gradient)
        if self._more is None:
            self._more = self._backend.empty(self.gradient.shape, self.gradient.dtype)
        loss = self._gradients(self.parameters, inputs, targets, self._more)
        self._backend.add_(self._more, self.gradient)
        return loss

    def gradient_is_finite(self) -> bool:
        """Whether the gradient found so far holds neither NaN nor infinity."""
        extremes = self._backend.item(self.gradient.max()), self._backend.item(self.gradient.min())
        return all(math.isfinite(extreme) for extreme in extremes)

    def take_gradient(self) -> Vector:
        """Give the gradient sum found so far, valid until the next `compute`, and begin a new one."""
        self._is_started = False
        return self.gradient

    def add(self, unit: int) -> None:
        """Add the unit's gradient to the sum of the lease, in the order of the tree."""
        total = self.take_gradient()
        self.gradient = self._free.pop() if self._free else self._backend.empty(total.shape, total.dtype)
        self._sum.add(Node(0, unit), total)

    def drop_sum(self) -> None:
        """Forget what was added since the last push: the evaluation it belonged to is over."""
        self._is_started = False
        self._free.extend(self._sum.waiting.values())
        self._sum = self._new_sum()

    def push_sum(self, evaluation: int, node: Node) -> concurrent.futures.Future[None]:
        """Begin to push the sum of the lease `node`, each shard its slice; the future ends when all have it."""
        [total] = self._sum.waiting.values()
        self._sum = self._new_sum()
        return self._caller.start(self._push_sum(evaluation, node, total))

    async def _push_sum(self, evaluation: int, node: Node, total: Vector) -> None:
        await self.server.add(evaluation, node, self._backend.to_host(total))
        self._free.append(total)

    def _new_sum(self) -> TreeSum[Vector]:
        return TreeSum(self._n_units, self._join)

    def _join(self, left: Vector, right: Vector) -> Vector:
        self._backend.add_(right, left)
        self._free.append(right)
        return left
