"""Nodes of several axes as one flat axis."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from dask_belief.backend import Array, Backend
from dask_belief.models.box import Box
from dask_belief.models.layers.base import Layer, Part, Workspace
from dask_belief.models.layout import Shape


@dataclass(frozen=True)
class Flatten(Layer):
    """Each row as one flat row, the last axis fastest; nothing is copied. A `Dense` layer does so by itself.

    Examples
    --------
    >>> Flatten().output_shape((8, 8, 3))
    (192,)
    """

    kind: ClassVar[str] = "flatten"

    @property
    def needs_outputs(self) -> bool:
        """False: the derivative is what comes from above."""
        return False

    @property
    def is_view(self) -> bool:
        """True."""
        return True

    def output_shape(self, input_shape: Shape) -> Shape:
        """Give the number of inputs."""
        return (math.prod(input_shape),)

    def parameter_shapes(self, input_shape: Shape) -> dict[str, Shape]:
        """Give none."""
        return {}

    def initial(self, name: str, input_shape: Shape, generator: np.random.Generator) -> npt.NDArray[np.float64]:
        """Raise `KeyError`: it has no parameters."""
        raise KeyError(name)

    def forward(self, backend: Backend, parameters: Mapping[str, Array], inputs: Array, workspace: Workspace) -> Array:
        """Give the inputs, flat."""
        return inputs.reshape(len(inputs), math.prod(inputs.shape[1:]))

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
        """Give what comes from above, in the shape of the inputs."""
        return delta.reshape(inputs.shape) if needs_input_delta else None

    def cut_axes(self, input_shape: Shape) -> frozenset[int]:
        """Give the only axis."""
        return frozenset({0})

    def part(self, outputs: Box, input_shape: Shape) -> Part:
        """Give what takes the smallest box that holds a run of flat nodes."""
        start, stop = outputs.starts[0], outputs.stops[0]
        first, last = np.unravel_index(start, input_shape), np.unravel_index(stop - 1, input_shape)
        starts, stops = [0] * len(input_shape), list(input_shape)
        for axis, (low, high) in enumerate(zip(first, last, strict=True)):
            starts[axis], stops[axis] = int(low), int(high) + 1
            if low != high:
                break
        inputs = Box(tuple(starts), tuple(stops))
        # All before the axis where it ends is one, all behind it whole: so the box is a run of flat nodes as well.
        offset = start - int(np.ravel_multi_index(inputs.starts, input_shape))
        is_all = inputs.size == outputs.size
        return Part(Flatten() if is_all else _SomeOf(offset, offset + outputs.size), outputs, inputs, {})

    def workspace_numbers(self, input_shape: Shape) -> int:
        """Give 0."""
        return 0

    def operations(self, input_shape: Shape) -> float:
        """Give 0."""
        return 0.0


@dataclass(frozen=True)
class _SomeOf(Flatten):
    """The flat nodes from `start` up to `stop` of a box."""

    kind: ClassVar[str] = "flatten part"

    start: int
    stop: int

    @property
    def is_view(self) -> bool:
        """False: a copy, which has no gaps."""
        return False

    def output_shape(self, input_shape: Shape) -> Shape:
        """Give how many there are."""
        return (self.stop - self.start,)

    def workspace_numbers(self, input_shape: Shape) -> int:
        """Count the outputs, and the derivative by all of the inputs."""
        return self.stop - self.start + math.prod(input_shape)

    def forward(self, backend: Backend, parameters: Mapping[str, Array], inputs: Array, workspace: Workspace) -> Array:
        """Give some of the inputs, flat."""
        outputs = workspace.array("outputs", (len(inputs), self.stop - self.start), inputs.dtype)
        outputs[...] = inputs.reshape(len(inputs), math.prod(inputs.shape[1:]))[:, self.start : self.stop]
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
        """Give what comes from above where it came from, and zero elsewhere."""
        if not needs_input_delta:
            return None
        input_delta = workspace.array("input_delta", inputs.shape, delta.dtype)
        input_delta[...] = 0
        input_delta.reshape(len(inputs), math.prod(inputs.shape[1:]))[:, self.start : self.stop] = delta
        return input_delta
