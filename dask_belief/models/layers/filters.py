"""What layers share that go over an image with filters: options, shapes, first values, activation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dask_belief.backend import Array, Backend
from dask_belief.checks import check_count
from dask_belief.errors import ArgumentError
from dask_belief.models.activations import check_activation
from dask_belief.models.initialisers import INITIALISERS, check_initialiser, default_initialiser
from dask_belief.models.layers import windows as over
from dask_belief.models.layers.base import Layer, Workspace
from dask_belief.models.layout import Shape

_HOST_BLOCK_BYTES = 4 * 2**20
_DEVICE_BLOCK_BYTES = 256 * 2**20
"""Patches that are gathered at once: on the host they stay in a cache, on a device a launch is worth a lot of work."""


@dataclass(frozen=True)
class Filters(Layer):
    """Filters that go over an image, each with a bias."""

    filters: int
    """How many maps there are of the image."""

    kernel: int | over.Pair
    """What a filter sees at once: one number, or height and width."""

    stride: int | over.Pair = 1
    """From place to place: one number, or down and across."""

    padding: over.Padding = "valid"
    """``"valid"`` for none, ``"same"`` for as many outputs as there are strides, or places on each side; zeros."""

    activation: str | None = None
    """``"relu"``, ``"sigmoid"``, ``"tanh"`` or None; see `dask_belief.models.activations`."""

    initialiser: str | None = None
    """``"glorot_uniform"``, ``"he_normal"``, ``"zeros"``, or None for what suits the activation."""

    penalised: bool = True
    """Whether penalties (l1, l2) cover the weights; never the bias."""

    def __post_init__(self) -> None:
        """Check the fields."""
        check_count("filters", self.filters)
        object.__setattr__(self, "filters", int(self.filters))
        kernel = over.as_pair("kernel", self.kernel)
        object.__setattr__(self, "kernel", kernel)
        object.__setattr__(self, "stride", over.as_pair("stride", self.stride))
        object.__setattr__(self, "padding", over.as_padding(self.padding, kernel))
        check_activation(self.activation)
        check_initialiser(self.initialiser)
        if not isinstance(self.penalised, bool):
            raise ArgumentError(f"penalised: expected True or False, got {self.penalised!r}.")

    @property
    def needs_outputs(self) -> bool:
        """Whether there is an activation, whose derivative comes from its value."""
        return self.activation is not None

    def windows(self, input_shape: Shape) -> over.Windows:
        """Give the windows over an image."""
        return over.windows_over(type(self).__name__, input_shape, self.kernel, self.stride, self.padding)  # type: ignore[arg-type]

    def patch_size(self, input_shape: Shape) -> int:
        """Count what a filter sees at once."""
        height, width = self.kernel  # type: ignore[misc]
        return int(height * width * input_shape[2])

    def output_shape(self, input_shape: Shape) -> Shape:
        """Give places down, places across, filters."""
        return (*self.windows(input_shape).shape, self.filters)

    def initial(self, name: str, input_shape: Shape, generator: np.random.Generator) -> npt.NDArray[np.float64]:
        """Give weights by the initialiser, for what one filter sees, and a bias of zeros."""
        shape = self.parameter_shapes(input_shape)[name]
        if name == "bias":
            return np.zeros(shape)
        draw = INITIALISERS[self.initialiser or default_initialiser(self.activation)]
        return draw(generator, shape, self.patch_size(input_shape), self.filters)

    def is_penalised(self, name: str) -> bool:
        """Tell whether penalties cover that array: the weights, unless `penalised` is False."""
        return self.penalised and super().is_penalised(name)

    def cut_axes(self, input_shape: Shape) -> frozenset[int]:
        """Give all three: rows, columns, filters."""
        return frozenset({0, 1, 2})

    def operations(self, input_shape: Shape) -> float:
        """Count a product and a sum for each weight at each place."""
        rows, columns = self.windows(input_shape).shape
        return 2.0 * rows * columns * self.filters * self.patch_size(input_shape)

    def workspace_numbers(self, input_shape: Shape) -> int:
        """Count outputs, their derivatives in another order, padded images, and the derivatives by these and by inputs.

        Patches are gathered in blocks of bytes, however many rows there are; they are not counted.
        """
        windows = self.windows(input_shape)
        n_outputs = windows.shape[0] * windows.shape[1] * self.filters
        return 4 * n_outputs + 3 * windows.rows.padded * windows.columns.padded * input_shape[2]

    def block(self, backend: Backend, n_bytes_each: int) -> int:
        """Tell of how many things the patches are gathered at once, of so many bytes each."""
        at_once = _HOST_BLOCK_BYTES if backend.name == "numpy" else _DEVICE_BLOCK_BYTES
        return max(1, at_once // max(1, n_bytes_each))

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
        """Write the gradients, and give the derivative by the inputs; see `Layer.backward`."""
        windows = self.windows(inputs.shape[1:])
        backend.activation_gradient_(delta, outputs, self.activation)
        images = over.padded(inputs, windows, 0.0, workspace)
        around: Array | None = None
        if needs_input_delta:
            around = workspace.array("around", images.shape, images.dtype)
            around[...] = 0
        self._back(backend, parameters, gradients, images, delta, windows, around, workspace)
        return None if around is None else over.without_padding(around, windows, workspace)

    @abstractmethod
    def _back(
        self,
        backend: Backend,
        parameters: Mapping[str, Array],
        gradients: Mapping[str, Array],
        images: Array,
        delta: Array,
        windows: over.Windows,
        around: Array | None,
        workspace: Workspace,
    ) -> None:
        """Write the gradients of weights and bias, and add to `around` the derivative by the padded images."""


def gathered(backend: Backend, view: Array, workspace: Workspace, name: str, size: int, *first: int) -> Array:
    """Copy patches to one place, with the axes in `first` before the others; each patch is one run of `size`."""
    order = (*first, *(axis for axis in range(3) if axis not in first), 3, 4, 5)
    turned = view.transpose(order)
    copied = workspace.array(name, turned.shape, turned.dtype)
    copied[...] = turned
    lengths: tuple[Any, ...] = turned.shape[:3]
    return copied.reshape(*lengths, size)
