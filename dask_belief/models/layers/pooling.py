"""Pooling: each output is the largest, the root of the squares' sum, or the mean of what a window covers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from dask_belief.backend import Array, Backend
from dask_belief.models.box import Box
from dask_belief.models.layers import windows as over
from dask_belief.models.layers.base import Layer, Part, Workspace
from dask_belief.models.layout import Shape


@dataclass(frozen=True)
class Pool2D(Layer):
    """What the kinds of pooling share; each channel is pooled alone."""

    kernel: int | over.Pair
    """Of the window: one number, or height and width."""

    stride: int | over.Pair | None = None
    """From window to window; None for the kernel: windows side by side."""

    padding: over.Padding = "valid"
    """``"valid"`` for none, ``"same"`` for as many outputs as there are strides, or places on each side."""

    def __post_init__(self) -> None:
        """Check the fields."""
        kernel = over.as_pair("kernel", self.kernel)
        object.__setattr__(self, "kernel", kernel)
        object.__setattr__(self, "stride", kernel if self.stride is None else over.as_pair("stride", self.stride))
        object.__setattr__(self, "padding", over.as_padding(self.padding, kernel))

    def windows(self, input_shape: Shape) -> over.Windows:
        """Give the windows over an image."""
        return over.windows_over(type(self).__name__, input_shape, self.kernel, self.stride, self.padding)  # type: ignore[arg-type]

    def output_shape(self, input_shape: Shape) -> Shape:
        """Give windows down, windows across, channels."""
        return (*self.windows(input_shape).shape, input_shape[2])

    def parameter_shapes(self, input_shape: Shape) -> dict[str, Shape]:
        """Give none."""
        return {}

    def initial(self, name: str, input_shape: Shape, generator: np.random.Generator) -> npt.NDArray[np.float64]:
        """Raise `KeyError`: it has no parameters."""
        raise KeyError(name)

    def cut_axes(self, input_shape: Shape) -> frozenset[int]:
        """Give all three: rows, columns, channels."""
        return frozenset({0, 1, 2})

    def part(self, outputs: Box, input_shape: Shape) -> Part:
        """Give the layer of some windows of some channels."""
        needed, padding = self.windows(input_shape).needed(outputs, input_shape[2])
        inputs = needed.along(2, outputs.starts[2], outputs.stops[2])
        return Part(replace(self, padding=padding), outputs, inputs, {})

    def operations(self, input_shape: Shape) -> float:
        """Count one for each place of each window, as if nothing were used twice."""
        rows, columns = self.windows(input_shape).shape
        return 2.0 * rows * columns * input_shape[2]

    def workspace_numbers(self, input_shape: Shape) -> int:
        """Count outputs, padded images, derivatives by these and by inputs, and what is pooled along one axis."""
        windows = self.windows(input_shape)
        n_padded = windows.rows.padded * windows.columns.padded * input_shape[2]
        n_outputs = windows.shape[0] * windows.shape[1] * input_shape[2]
        return 2 * n_outputs + 4 * n_padded + windows.rows.padded * windows.shape[1] * input_shape[2]

    def forward(self, backend: Backend, parameters: Mapping[str, Array], inputs: Array, workspace: Workspace) -> Array:
        """Give the pooled images, ``(n_rows, *output_shape)``."""
        windows = self.windows(inputs.shape[1:])
        outputs = workspace.array("outputs", (len(inputs), *windows.shape, inputs.shape[3]), inputs.dtype)
        self._pool(backend, inputs, windows, outputs, workspace)
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
        """Give the derivative by the inputs; see `Layer.backward`."""
        if not needs_input_delta:
            return None
        windows = self.windows(inputs.shape[1:])
        shape = (len(inputs), windows.rows.padded, windows.columns.padded, inputs.shape[3])
        around = workspace.array("around", shape, inputs.dtype)
        self._spread(backend, inputs, outputs, delta, windows, around, workspace)
        return over.without_padding(around, windows, workspace)

    @abstractmethod
    def _pool(self, backend: Backend, inputs: Array, windows: over.Windows, out: Array, workspace: Workspace) -> None:
        """Write the outputs."""

    @abstractmethod
    def _spread(
        self,
        backend: Backend,
        inputs: Array,
        outputs: Array,
        delta: Array,
        windows: over.Windows,
        around: Array,
        workspace: Workspace,
    ) -> None:
        """Write the derivative by the padded inputs; `delta` may be overwritten."""


@dataclass(frozen=True)
class MaxPool2D(Pool2D):
    """The largest value of each window; of several the first has the derivative. Padding is never the largest.

    Raises
    ------
    ArgumentError
        Kernel, stride or padding are wrong, or the inputs are no images or smaller than a window.

    Examples
    --------
    >>> MaxPool2D(2).output_shape((28, 28, 8))
    (14, 14, 8)
    """

    kind: ClassVar[str] = "max_pool_2d"

    def _pool(self, backend: Backend, inputs: Array, windows: over.Windows, out: Array, workspace: Workspace) -> None:
        over.window_maxima(backend, self._around(inputs, windows, workspace), windows, out, workspace)

    @staticmethod
    def _around(inputs: Array, windows: over.Windows, workspace: Workspace) -> Array:
        return over.padded(inputs, windows, float(np.finfo(inputs.dtype).min), workspace)

    def _spread(
        self,
        backend: Backend,
        inputs: Array,
        outputs: Array,
        delta: Array,
        windows: over.Windows,
        around: Array,
        workspace: Workspace,
    ) -> None:
        xp, images = backend.xp, self._around(inputs, windows, workspace)
        is_largest = workspace.array("is largest", outputs.shape, np.dtype(np.bool_))
        share = workspace.array("share", outputs.shape, outputs.dtype)
        around[...] = 0
        for row in range(windows.rows.kernel):
            for column in range(windows.columns.kernel):
                place = over.at(windows, row, column)
                xp.equal(images[place], outputs, out=is_largest)
                xp.multiply(delta, is_largest, out=share)
                around[place] += share
                # The derivative is taken: who comes later gets none.
                xp.subtract(delta, share, out=delta)


@dataclass(frozen=True)
class L2Pool2D(Pool2D):
    """The root of the sum of the squares in each window; its derivative is zero where all of them are.

    Raises
    ------
    ArgumentError
        Kernel, stride or padding are wrong, or the inputs are no images or smaller than a window.
    """

    kind: ClassVar[str] = "l2_pool_2d"

    def _pool(self, backend: Backend, inputs: Array, windows: over.Windows, out: Array, workspace: Workspace) -> None:
        xp = backend.xp
        squares = workspace.array("squares", inputs.shape, inputs.dtype)
        xp.multiply(inputs, inputs, out=squares)
        over.window_sums(backend, over.padded(squares, windows, 0.0, workspace), windows, out, workspace)
        xp.sqrt(out, out=out)

    def _spread(
        self,
        backend: Backend,
        inputs: Array,
        outputs: Array,
        delta: Array,
        windows: over.Windows,
        around: Array,
        workspace: Workspace,
    ) -> None:
        xp = backend.xp
        # Where the root is zero so are all inputs: whatever is divided by is multiplied by zero.
        divisor = workspace.array("share", outputs.shape, outputs.dtype)
        xp.maximum(outputs, float(np.finfo(outputs.dtype).tiny), out=divisor)
        xp.divide(delta, divisor, out=delta)
        is_zero = workspace.array("is zero", outputs.shape, np.dtype(np.bool_))
        xp.greater(outputs, 0, out=is_zero)
        xp.multiply(delta, is_zero, out=delta)
        over.spread(backend, delta, windows, around, workspace)
        inner = over.within(around, windows)
        xp.multiply(inner, inputs, out=inner)


@dataclass(frozen=True)
class AveragePool2D(Pool2D):
    """The mean of what each window covers of the image; padding does not count.

    Raises
    ------
    ArgumentError
        Kernel, stride or padding are wrong, or the inputs are no images or smaller than a window.
    """

    kind: ClassVar[str] = "average_pool_2d"

    @property
    def needs_outputs(self) -> bool:
        """False: the derivative does not depend on them."""
        return False

    def _pool(self, backend: Backend, inputs: Array, windows: over.Windows, out: Array, workspace: Workspace) -> None:
        over.window_sums(backend, over.padded(inputs, windows, 0.0, workspace), windows, out, workspace)
        backend.xp.multiply(out, self._shares(windows, inputs.dtype, workspace), out=out)

    @staticmethod
    def _shares(windows: over.Windows, dtype: np.dtype[np.floating], workspace: Workspace) -> Array:
        """Give one over the places of the image that each window covers."""

        def make() -> npt.NDArray[np.floating]:
            counts = []
            for window in (windows.rows, windows.columns):
                first = np.arange(window.n_outputs) * window.stride - window.before
                counts.append(np.minimum(first + window.kernel, window.size) - np.maximum(first, 0))
            shares: npt.NDArray[np.floating] = (1.0 / np.multiply.outer(*counts))[:, :, None].astype(dtype)
            return shares

        return workspace.constant(make, "shares", windows, str(dtype))

    def _spread(
        self,
        backend: Backend,
        inputs: Array,
        outputs: Array,
        delta: Array,
        windows: over.Windows,
        around: Array,
        workspace: Workspace,
    ) -> None:
        backend.xp.multiply(delta, self._shares(windows, inputs.dtype, workspace), out=delta)
        over.spread(backend, delta, windows, around, workspace)
