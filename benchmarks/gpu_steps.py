"""A replica's work on one mini-batch or unit, without shards and messages: what is counted and timed on a GPU.

Each class does what an executor does between two exchanges, by the same calls in the same order (`compute` and
`accrue` of `dask_belief.downpour.executor`, `compute` and `add` of `dask_belief.parameter_server.executor`), and needs
neither Dask nor Zarr. That the executors ask no more of a device is a test, ``tests/emulated_gpu/test_budgets.py``.
"""

from __future__ import annotations

from typing import Protocol

from dask_belief.backend import Array, Backend, Scalar
from dask_belief.models import Network
from dask_belief.optim.rules import Adagrad, AnyRule


class Step(Protocol):
    """One mini-batch or unit after another; the losses are added up where they are computed."""

    parameters: Array
    loss_sum: Scalar

    def __call__(self, inputs: Array, targets: Array) -> None:
        """Compute one."""


class DownpourStep:
    """A mini-batch of Algorithm 1.1: the mean gradient, the local step, and what accrues until the next push.

    Parameters
    ----------
    network
        What is trained.
    backend
        Where.
    rule
        Of the local step.
    """

    def __init__(self, network: Network, backend: Backend, rule: AnyRule | None = None) -> None:
        self._network = network.on(backend)
        self._backend = backend
        self._rule = rule or Adagrad(0.01)
        self._n_steps = 0
        with backend.computing():
            self.parameters = backend.asarray(network.initial_parameters(seed=0))
            self._gradient = backend.empty(self.parameters.shape, self.parameters.dtype)
            self._accrued = backend.zeros(self.parameters.shape, self.parameters.dtype)
            self._state = self._rule.init(self.parameters)
        self.loss_sum: Scalar = 0.0

    def __call__(self, inputs: Array, targets: Array) -> None:
        """Make the step; rows may be on the host."""
        backend, gradient = self._backend, self._gradient
        with backend.computing():
            loss, _ = self._network.loss_and_gradient(self.parameters, inputs, targets, out=gradient, is_awaited=False)
            self.loss_sum = self.loss_sum + loss
            backend.scale_(1.0 / len(inputs), gradient)
            self._rule.apply(self.parameters, gradient, self._state, self._n_steps, backend=backend)
            backend.add_(gradient, self._accrued)
        self._n_steps += 1


class SandblasterStep:
    """A unit of Algorithm 1.2: its gradient sum, joined with that of another in the tree.

    Parameters
    ----------
    network
        What is trained.
    backend
        Where.
    """

    def __init__(self, network: Network, backend: Backend) -> None:
        self._network = network.on(backend)
        self._backend = backend
        with backend.computing():
            self.parameters = backend.asarray(network.initial_parameters(seed=0))
            self._gradient = backend.empty(self.parameters.shape, self.parameters.dtype)
            self._sum = backend.zeros(self.parameters.shape, self.parameters.dtype)
        self.loss_sum: Scalar = 0.0

    def __call__(self, inputs: Array, targets: Array) -> None:
        """Compute the unit, as one block of rows."""
        backend = self._backend
        with backend.computing():
            loss, _ = self._network.loss_and_gradient(
                self.parameters, inputs, targets, out=self._gradient, is_awaited=False
            )
            self.loss_sum = self.loss_sum + loss
            backend.add_(self._gradient, self._sum)
