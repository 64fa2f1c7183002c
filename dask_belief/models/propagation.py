"""Forward and backward through the layers of a network, in buffers that are kept from call to call."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from dask_belief.backend import Array, Backend
from dask_belief.models.layers import Workspace
from dask_belief.models.losses import Loss
from dask_belief.models.stack import OfLayers, Stack


class Propagation:
    """The arithmetic of one network on one backend; checks nothing but targets.

    Each thread has buffers of its own, and what a method gives is valid until the thread's next call. `rows` is
    ``(n_rows, *input_shape)``; it, `parameters` and `gradient` are of one dtype and lie where `backend` computes. For
    an `Embedding` it is what `Embedding.ids` gave.

    Parameters
    ----------
    stack
        The layers.
    loss
        Of their outputs.
    backend
        What to compute with.
    """

    def __init__(self, stack: Stack, loss: Loss, backend: Backend) -> None:
        self._layers = stack.layers
        # Where the last outputs may be the rows that were given, which are not to be written.
        self._gives_rows = all(layer.is_view for layer in stack.layers)
        self._has_embedding = stack.embedding is not None
        self._loss = loss
        self._n_outputs = stack.n_outputs
        self._backend = backend
        self._of_thread = _OfThread(backend, len(stack.layers))

    def predict(self, parameters: OfLayers, rows: Array) -> Array:
        """Give the predictions, ``(n_rows, n_outputs)``."""
        z = self._outputs(parameters, rows)
        self._loss.prediction_(self._backend, z)
        return z

    def evaluate(self, parameters: OfLayers, rows: Array, targets: Array) -> dict[str, float]:
        """Give sums over the rows: ``"loss"``, and ``"correct"`` where the loss knows what is."""
        z = self._outputs(parameters, rows)
        of_rows = self._loss.prepare(self._backend, targets, z)
        sums = {}
        # Before the loss, which writes its derivative in z's place.
        is_correct = self._loss.is_correct(self._backend, z, of_rows)
        if is_correct is not None:
            sums["correct"] = self._backend.item(is_correct.sum())
        sums["loss"] = self._backend.item(self._loss_and_delta(z, of_rows))
        return sums

    def loss_and_gradient(
        self,
        parameters: OfLayers,
        rows: Array,
        targets: Array,
        gradient: OfLayers,
        *,
        only_touched: bool = False,
        key: int | None = None,
        first_row: int = 0,
    ) -> Array:
        """Give the loss summed over the rows, and write its gradient: all, or only what the rows touch.

        The loss is an array of one float64, which on a device need not be known yet. `key` and `first_row` are what
        `Workspace` says.
        """
        arrays = self._forward(parameters, rows, key, first_row)
        delta = arrays[-1]
        if self._layers[-1].needs_outputs or self._layers[-1].is_view:
            delta = self._copy(delta)
        z = delta.reshape(len(rows), self._n_outputs)
        loss = self._loss_and_delta(z, self._loss.prepare(self._backend, targets, z))
        if self._has_embedding and not only_touched:
            gradient[0]["weights"][...] = 0
        self._backward(parameters, gradient, arrays, delta)
        return loss

    def _outputs(self, parameters: OfLayers, rows: Array) -> Array:
        """Give the last outputs, ``(n_rows, n_outputs)``, to be written."""
        outputs = self._forward(parameters, rows)[-1]
        return (self._copy(outputs) if self._gives_rows else outputs).reshape(len(rows), self._n_outputs)

    def _copy(self, outputs: Array) -> Array:
        copy = self._of_thread.of_loss.array("delta", outputs.shape, outputs.dtype)
        copy[...] = outputs
        return copy

    def _forward(self, parameters: OfLayers, rows: Array, key: int | None = None, first_row: int = 0) -> list[Array]:
        """Give the inputs, and the outputs of each layer."""
        arrays = [rows]
        for layer, own, workspace in zip(self._layers, parameters, self._of_thread.workspaces, strict=True):
            workspace.key, workspace.first_row = key, first_row
            arrays.append(layer.forward(self._backend, own, arrays[-1], workspace))
        return arrays

    def _loss_and_delta(self, z: Array, targets: Array) -> Array:
        """Give the loss summed in float64, and write its derivative in z's place."""
        losses = self._of_thread.of_loss.array("losses", (len(z),), z.dtype)
        self._loss.gradient_(self._backend, z, targets, losses)
        total: Array = losses.sum(dtype=np.float64)
        return total

    def _backward(self, parameters: OfLayers, gradients: OfLayers, arrays: Sequence[Array], delta: Array) -> None:
        """Write the gradients, from the last layer to the first."""
        above: Array | None = delta
        for number in reversed(range(len(self._layers))):
            assert above is not None
            above = self._layers[number].backward(
                self._backend,
                parameters[number],
                gradients[number],
                arrays[number],
                arrays[number + 1],
                above,
                self._of_thread.workspaces[number],
                needs_input_delta=number > 0,
            )


class _OfThread(threading.local):
    """The buffers of one thread."""

    def __init__(self, backend: Backend, n_layers: int) -> None:
        self.workspaces = [Workspace(backend, (number,)) for number in range(n_layers)]
        self.of_loss = Workspace(backend)
