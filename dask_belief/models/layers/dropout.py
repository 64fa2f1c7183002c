"""Nodes that are left out at random while a network is trained.

Hinton, Srivastava, Krizhevsky, Sutskever and Salakhutdinov, "Improving neural networks by preventing co-adaptation of
feature detectors", 2012; with the scaling where it is trained ("inverted"), so that predictions need none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from dask_belief.backend import Array, Backend
from dask_belief.checks import check_number
from dask_belief.errors import ArgumentError
from dask_belief.models.box import Box
from dask_belief.models.layers.base import Layer, Part, Workspace
from dask_belief.models.layout import Shape


@dataclass(frozen=True)
class Dropout(Layer):
    """Each node is zero with probability `rate`, else multiplied by ``1 / (1 - rate)``; only while it is trained.

    Which nodes is a pure function of the pass's key, the layer's place in the network, the row's place in the
    mini-batch and the node's among the layer's: see `Workspace.key`. Without a key, as in predictions, inputs
    are passed on.

    Raises
    ------
    ArgumentError
        `rate` is no number from 0 up to, not including, 1.

    Examples
    --------
    >>> Dropout(0.5).output_shape((20,)), Dropout(0.5).draws, Dropout(0).draws
    ((20,), True, False)
    """

    kind: ClassVar[str] = "dropout"

    rate: float = 0.5
    """The share of nodes that is left out."""

    def __post_init__(self) -> None:
        """Check the rate."""
        check_number("rate", self.rate, low=0)
        if self.rate >= 1:
            raise ArgumentError(f"rate: expected a number from 0 up to, not including, 1, got {self.rate!r}.")
        object.__setattr__(self, "rate", float(self.rate))

    @property
    def draws(self) -> bool:
        """Whether the rate is more than zero."""
        return self.rate > 0

    @property
    def needs_outputs(self) -> bool:
        """False: what was drawn is kept."""
        return False

    @property
    def is_view(self) -> bool:
        """True: where nothing is drawn, inputs are passed on."""
        return True

    def output_shape(self, input_shape: Shape) -> Shape:
        """Give the shape of the inputs."""
        return input_shape

    def parameter_shapes(self, input_shape: Shape) -> dict[str, Shape]:
        """Give none."""
        return {}

    def initial(self, name: str, input_shape: Shape, generator: np.random.Generator) -> npt.NDArray[np.float64]:
        """Raise `KeyError`: it has no parameters."""
        raise KeyError(name)

    def forward(self, backend: Backend, parameters: Mapping[str, Array], inputs: Array, workspace: Workspace) -> Array:
        """Give the inputs times what is drawn for them."""
        if workspace.key is None or not self.draws:
            return inputs
        mask = self._mask(backend, inputs, workspace)
        outputs = workspace.array("outputs", inputs.shape, inputs.dtype)
        backend.xp.multiply(inputs, mask, out=outputs)
        return outputs

    def backward(
        self,
        backend: Backend,
        parameters: Mapping[str, Array],
        gradients: Mapping[str, Array],
        inputs: Array,
        outputs: Array,
        delta: Array,
        workspace: Workspace,
        *,
        needs_input_delta: bool,
    ) -> Array | None:
        """Give what comes from above times what was drawn."""
        if not needs_input_delta:
            return None
        if workspace.key is not None and self.draws:
            backend.xp.multiply(delta, workspace.array("mask", inputs.shape, inputs.dtype), out=delta)
        return delta

    def cut_axes(self, input_shape: Shape) -> frozenset[int]:
        """Give every axis."""
        return frozenset(range(len(input_shape)))

    def part(self, outputs: Box, input_shape: Shape) -> Part:
        """Give what draws for some nodes what the whole draws for them."""
        is_whole = outputs == Box.whole(input_shape)
        return Part(self if is_whole else _SomeNodes(self.rate, input_shape, outputs), outputs, outputs, {})

    def workspace_numbers(self, input_shape: Shape) -> int:
        """Count outputs and what is drawn; the derivative is the one above, written anew."""
        return 2 * math.prod(input_shape)

    def operations(self, input_shape: Shape) -> float:
        """Count ten for the number that each node draws."""
        return 10.0 * math.prod(input_shape)

    def _nodes(self, shape: Shape) -> npt.NDArray[np.int64]:
        """Give the numbers of the nodes, which are of that shape, among those of the whole layer."""
        return np.arange(math.prod(shape))

    def _mask(self, backend: Backend, inputs: Array, workspace: Workspace) -> Array:
        """Draw for the inputs: 0 or ``1 / (1 - rate)`` each."""
        drawn_from = workspace.drawn_from
        assert drawn_from is not None
        shape = inputs.shape[1:]
        mask = workspace.array("mask", inputs.shape, inputs.dtype)
        # Of the next power of two, so that few are made where mini-batches are of many lengths.
        n_rows = 1 << max(0, len(inputs) - 1).bit_length()
        rows = workspace.constant(lambda: np.arange(n_rows)[:, np.newaxis], "rows", n_rows)
        nodes = workspace.constant(lambda: self._nodes(shape)[np.newaxis], "nodes", shape)
        backend.dropout_mask_(
            mask.reshape(len(inputs), math.prod(shape)),
            rows[: len(inputs)],
            nodes,
            seed=drawn_from,
            first_row=workspace.first_row,
            width=self._width(shape),
            rate=self.rate,
        )
        return mask

    def _width(self, shape: Shape) -> int:
        """Give how many nodes the whole layer has."""
        return math.prod(shape)


@dataclass(frozen=True)
class _SomeNodes(Dropout):
    """A box of the nodes of a `Dropout`."""

    kind: ClassVar[str] = "dropout part"

    whole: Shape = ()
    box: Box = Box((), ())  # noqa: RUF009  (a frozen dataclass itself)

    def _nodes(self, shape: Shape) -> npt.NDArray[np.int64]:
        return np.arange(math.prod(self.whole)).reshape(self.whole)[self.box.within(Box.whole(self.whole))].reshape(-1)

    def _width(self, shape: Shape) -> int:
        return math.prod(self.whole)
