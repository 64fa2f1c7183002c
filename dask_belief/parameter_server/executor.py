"""The seam between a method and a model: fetch, compute, push.

A replica of either method never holds the model itself: it tells an executor what to do. The plain executors (below,
and `dask_belief.downpour.executor`) do it with one flat vector and the objective; a partitioned one passes the same
words on to its pieces, each of which talks to its own shards.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dask_belief.backend import Backend, Scalar
from dask_belief.binary_tree import Node, TreeSum
from dask_belief.cluster.actors import Caller
from dask_belief.objective import Gradients, Objective
from dask_belief.parameter_server.client import ParameterServer
from dask_belief.parameter_server.directory import Directory, Renew
from dask_belief.parameter_server.exchange import Exchanged, Traffic
from dask_belief.parameter_server.messages import LeaseKey, PushKey, StepKey
from dask_belief.parameter_server.shared_fetch import shared_fetch

Vector = NDArray[np.floating]

Ahead = Callable[[], tuple[NDArray[Any], NDArray[Any]]]
"""Gives the inputs and targets for which the parameters of a fetch will be used."""


class Executor(Protocol):
    """What both methods tell the model to do; each word costs the same few messages whatever the model's size."""

    def compute(self, inputs: Any, targets: Any, key: int | None = None) -> Scalar:
        """Find the gradient sum of some rows, kept inside until it is added or accrued; gives the loss sum.

        `key` is what an objective that draws random numbers draws them from; see `Network.loss_and_gradient`. On a
        device nothing is waited for: what is given may be added up, and `number` tells it.
        """

    def number(self, loss: Scalar) -> float:
        """Tell a loss, or a sum of losses, that `compute` gave; waited for where it is not known yet."""

    def gradient_is_finite(self) -> bool:
        """Whether the gradient found so far holds neither NaN nor infinity."""

    def holdings(self) -> Mapping[str, int]:
        """Bytes of the vectors that it has where it computes, by what they are for."""

    @property
    def pieces_waiting_seconds(self) -> float:
        """Of computing, what was waited for other pieces of the network."""

    def close(self) -> None:
        """Say that there is no more to come."""


class BatchExecutor(Executor, Protocol):
    """What Sandblaster tells the model to do: gradients of units, summed in a tree (Algorithm 1.2)."""

    def fetch(self, evaluation: int) -> None:
        """Bring the parameters of an evaluation."""

    def add(self, unit: int) -> None:
        """Add what the last `compute` calls found, as unit number `unit`, to the sum of the lease."""

    def sum_is_finite(self) -> bool:
        """Whether the sum of the lease, whose units are all added, holds neither NaN nor infinity."""

    def drop_gradient(self) -> None:
        """Forget what was computed since the last `add`."""

    def drop_sum(self) -> None:
        """Forget the sum of the lease, and what was computed for it."""

    def push_sum(self, evaluation: int, node: Node) -> concurrent.futures.Future[int]:
        """Begin to push the sum of the lease `node`, and open a new one; ends with the bytes that were sent."""

    @property
    def received_bytes(self) -> int:
        """Bytes of vectors that were fetched so far."""


class StepExecutor(Executor, Protocol):
    """What Downpour tells the model to do: a step every mini-batch, fetches and pushes now and then (Algorithm 1.1)."""

    def exchange(
        self, at: StepKey, push: PushKey | None, effective_step: float | None, ahead: Ahead
    ) -> concurrent.futures.Future[Exchanged] | None:
        """Begin to push what has accrued, to fetch parameters that take effect at a step, or both in one message."""

    def take_effect(self, step: float) -> None:
        """Use the fetched parameters that take effect at `step` or before, waited for if need be."""

    def accrue(self, n_rows: int) -> None:
        """Add the mean gradient of the last mini-batch to what has accrued, and make the local step."""

    def accrued_is_finite(self) -> bool:
        """Whether what has accrued holds neither NaN nor infinity."""

    def applied(self, lease: LeaseKey) -> int:
        """The last mini-batch of a lease that every shard has applied; -1 for none."""

    @property
    def traffic(self) -> Traffic:
        """What was exchanged so far, and how long was waited for it."""

    @property
    def is_sparse(self) -> bool:
        """Whether a fetch brings only what the rows ahead of it will touch."""


def blocks(n_rows: int, block_rows: int) -> Iterator[slice]:
    """The row blocks in which a unit is computed: of a size fixed by the plan, so that sums keep their bits."""
    return (slice(start, min(start + block_rows, n_rows)) for start in range(0, n_rows, block_rows))


def bytes_of(*vectors: NDArray[Any] | None) -> int:
    """Count the bytes of vectors, those that are not there left out."""
    return sum(vector.nbytes for vector in vectors if vector is not None)


class PlainExecutor:
    """One flat vector, one objective, one thread: what the plain executors of both methods share.

    Parameters
    ----------
    objective
        What is trained; bound to the backend when it offers ``on(backend)``, and then given rows wherever they are.
    directory
        Where the shards are.
    caller
        Of the worker on which the replica runs.
    backend
        Where the arrays live.
    renew
        Asks for a newer directory when a shard does not answer.
    """

    def __init__(
        self,
        objective: Objective,
        directory: Directory,
        caller: Caller,
        backend: Backend,
        renew: Renew | None = None,
    ) -> None:
        on = getattr(objective, "on", None)
        bound: Objective = objective if on is None else on(backend)
        # One that is bound brings rows to the backend itself, and checks them on the host before.
        self._is_bound = on is not None
        self._gradients = Gradients(bound)
        self._backend = backend
        self._caller = caller
        self.server = ParameterServer(directory, caller, renew)
        self.parameters: Vector
        self.gradient = self._new_vector()
        self._is_started = False
        self._more: Vector | None = None

    def _new_vector(self) -> Vector:
        directory = self.server.directory
        vector: Vector = self._backend.empty((directory.n_parameters,), directory.dtype)
        return vector

    def compute(self, inputs: Any, targets: Any, key: int | None = None) -> Scalar:
        """Find the gradient sum of some rows and add it to what the unit has; gives the loss sum of these rows."""
        if not self._is_bound:
            inputs, targets = self._backend.asarray(inputs), self._backend.asarray(targets)
        if not self._is_started:
            self._is_started = True
            return self._gradients(self.parameters, inputs, targets, self.gradient, key=key)
        if self._more is None:
            self._more = self._new_vector()
        loss = self._gradients(self.parameters, inputs, targets, self._more, key=key)
        self._backend.add_(self._more, self.gradient)
        return loss

    def number(self, loss: Scalar) -> float:
        """Tell a loss that `compute` gave, or a sum of such; waited for where it is not known yet."""
        return loss if isinstance(loss, float) else self._backend.item(loss)

    def gradient_is_finite(self) -> bool:
        """Whether the gradient found so far holds neither NaN nor infinity."""
        return self._backend.is_finite(self.gradient)

    def holdings(self) -> Mapping[str, int]:
        """Bytes of the vectors that it has where it computes, by what they are for."""
        # Before the first fetch there are no parameters.
        parameters = getattr(self, "parameters", None)
        return {"parameters": bytes_of(parameters), "gradients": bytes_of(self.gradient, self._more)}

    def take_gradient(self) -> Vector:
        """Give the gradient sum found so far, valid until the next `compute`, and begin a new one."""
        self._is_started = False
        return self.gradient

    def drop_gradient(self) -> None:
        """Forget what was computed since the gradient was last taken."""
        self._is_started = False

    @property
    def pieces_waiting_seconds(self) -> float:
        """Nothing: the network is in one piece."""
        return 0.0

    def close(self) -> None:
        """Nothing: nobody else is to know."""


class PlainBatchExecutor(PlainExecutor):
    """Units of Algorithm 1.2 with one flat vector.

    Parameters
    ----------
    objective, directory, caller, backend, renew
        See `PlainExecutor`.
    n_units
        Leaves of the tree in which leases are summed.
    """

    def __init__(
        self,
        objective: Objective,
        directory: Directory,
        caller: Caller,
        backend: Backend,
        n_units: int,
        renew: Renew | None = None,
    ) -> None:
        super().__init__(objective, directory, caller, backend, renew)
        self._n_units = n_units
        self._shared = shared_fetch(self.server, caller, backend)
        self._received_bytes = 0
        self._free: list[Vector] = []
        self._sum = self._new_sum()

    def fetch(self, evaluation: int) -> None:
        """Bring the parameters of an evaluation, which the replicas of a worker share."""
        shared, n_bytes = self._shared.fetch(evaluation)
        self.parameters = self._backend.asarray(shared)
        # The host's memory may be filled for the next evaluation as soon as this returns.
        self._backend.sync()
        self._received_bytes += n_bytes

    @property
    def received_bytes(self) -> int:
        """Bytes of vectors that this replica fetched so far."""
        return self._received_bytes

    def holdings(self) -> Mapping[str, int]:
        """As of every executor; beside, the partial sums of the lease, and vectors for further ones."""
        return {**super().holdings(), "sums": bytes_of(*self._sum.waiting.values(), *self._free)}

    def add(self, unit: int) -> None:
        """Add the unit's gradient to the sum of the lease, in the order of the tree."""
        total = self.take_gradient()
        self.gradient = self._free.pop() if self._free else self._new_vector()
        self._sum.add(Node(0, unit), total)

    def sum_is_finite(self) -> bool:
        """Whether the sum of the lease holds neither NaN nor infinity."""
        [total] = self._sum.waiting.values()
        return self._backend.is_finite(total)

    def drop_sum(self) -> None:
        """Forget what was added since the last push: the evaluation it belonged to is over."""
        self.drop_gradient()
        self._free.extend(self._sum.waiting.values())
        self._sum = self._new_sum()

    def push_sum(self, evaluation: int, node: Node) -> concurrent.futures.Future[int]:
        """Begin to push the sum of the lease `node`, each shard its slice; the future ends when all have it."""
        [total] = self._sum.waiting.values()
        self._sum = self._new_sum()
        return self._caller.start(self._push_sum(evaluation, node, total))

    async def _push_sum(self, evaluation: int, node: Node, total: Vector) -> int:
        await self.server.add(evaluation, node, self._backend.to_host(total))
        self._free.append(total)
        return int(total.nbytes)

    def _new_sum(self) -> TreeSum[Vector]:
        return TreeSum(self._n_units, self._join)

    def _join(self, left: Vector, right: Vector) -> Vector:
        self._backend.add_(right, left)
        self._free.append(right)
        return left
