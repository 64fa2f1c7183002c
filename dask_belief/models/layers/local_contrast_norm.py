"""Images whose local mean is subtracted, and whose local contrast is made one.

Jarrett, Kavukcuoglu, Ranzato and LeCun, "What is the best multi-stage architecture for object recognition?", ICCV 2009,
section 2; Le et al., "Building high-level features using large scale unsupervised learning", ICML 2012, section 3. Both
weigh a window by a Gaussian whose weights, over places and channels, add up to one. They divide by ``max(c, sigma)``,
where c is an image's mean of sigma (Jarrett) or 0.01 (Le). Here it is ``sqrt(sigma**2 + epsilon)``, with 0.01**2 for
`epsilon`. With c**2 for epsilon that is never below ``max(c, sigma)`` and at most 1.42 times it, and it has a
derivative everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from dask_belief.backend import Array, Backend
from dask_belief.checks import check_count, check_number
from dask_belief.errors import ArgumentError
from dask_belief.models.box import Box
from dask_belief.models.layers.base import Layer, Part, Workspace
from dask_belief.models.layout import Shape


@dataclass(frozen=True)
class LocalContrastNorm2D(Layer):
    """Subtractive and divisive normalisation of ``(height, width, channels)``, over a window and all channels.

    ``v = x - mean(x)`` and ``outputs = v / sqrt(mean(v**2) + epsilon)``, where a mean is over the window around a place
    and over all channels, weighted by a Gaussian. Where the window reaches beyond the image, what is inside of it
    counts alone: weights are divided by their sum there. It has no parameters.

    Raises
    ------
    ArgumentError
        `size` is no odd whole number or pair of them, `sigma` or `epsilon` no number above zero, or the inputs are no
        images.

    Examples
    --------
    >>> LocalContrastNorm2D(9).output_shape((32, 32, 8))
    (32, 32, 8)
    """

    kind: ClassVar[str] = "local_contrast_norm_2d"

    size: int | tuple[int, int] = 9
    """Of the window, odd: one number, or height and width."""

    sigma: float | None = None
    """The Gaussian's standard deviation in nodes; None for a quarter of the window along each axis."""

    epsilon: float = 1e-4
    """Added to the local variance."""

    def __post_init__(self) -> None:
        """Check the fields."""
        pair = self.size if isinstance(self.size, (tuple, list)) else (self.size, self.size)
        if len(pair) != 2:
            raise ArgumentError(f"size: expected an odd whole number or a pair of them, got {self.size!r}.")
        for length in pair:
            check_count("size", length)
            if int(length) % 2 == 0:
                raise ArgumentError(f"size: expected odd numbers, so that a window has a centre, got {self.size!r}.")
        object.__setattr__(self, "size", (int(pair[0]), int(pair[1])))
        check_number("sigma", self.sigma, low=0, is_open=True, may_be_none=True)
        check_number("epsilon", self.epsilon, low=0, is_open=True)
        object.__setattr__(self, "sigma", None if self.sigma is None else float(self.sigma))
        object.__setattr__(self, "epsilon", float(self.epsilon))

    def output_shape(self, input_shape: Shape) -> Shape:
        """Give the shape of the inputs."""
        if len(input_shape) != 3:
            raise ArgumentError(
                f"layers: a LocalContrastNorm2D takes images of shape (height, width, channels), got {input_shape}."
            )
        return input_shape

    def parameter_shapes(self, input_shape: Shape) -> dict[str, Shape]:
        """Give none."""
        return {}

    def initial(self, name: str, input_shape: Shape, generator: np.random.Generator) -> npt.NDArray[np.float64]:
        """Raise `KeyError`: it has no parameters."""
        raise KeyError(name)

    def forward(self, backend: Backend, parameters: Mapping[str, Array], inputs: Array, workspace: Workspace) -> Array:
        """Give the inputs normalised."""
        xp, dtype, n_rows = backend.xp, inputs.dtype, len(inputs)
        here = self._places(inputs.shape[1:])
        first, second = self._windows(here, dtype, workspace)
        centred = workspace.array("centred", (n_rows, *here.centred.shape), dtype)
        mean = _mean(backend, inputs, workspace, "mean")
        mean = _weighed(backend, mean, first, workspace, "local mean")
        xp.subtract(inputs[_at(here.centred.within(here.inputs))], mean, out=centred)
        squares = workspace.array("scratch", centred.shape, dtype)
        xp.multiply(centred, centred, out=squares)
        mean = _mean(backend, squares, workspace, "mean")
        divisor = _weighed(backend, mean, second, workspace, "divisor")
        xp.add(divisor, self.epsilon, out=divisor)
        xp.sqrt(divisor, out=divisor)
        outputs = workspace.array("outputs", (n_rows, *here.outputs.shape), dtype)
        xp.divide(centred[_at(here.outputs.within(here.centred))], divisor, out=outputs)
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
        xp, dtype, n_rows = backend.xp, delta.dtype, len(inputs)
        here = self._places(inputs.shape[1:])
        first, second = self._windows(here, dtype, workspace)
        n_channels = inputs.shape[-1]
        centred = workspace.array("centred", (n_rows, *here.centred.shape), dtype)
        divisor = workspace.array("divisor", (n_rows, *here.outputs.shape[:2], 1), dtype)
        # By the local variance, twice, as a share of each channel: minus (delta . outputs) / divisor**2 / channels.
        products = workspace.array("scratch", outputs.shape, dtype)
        xp.multiply(delta, outputs, out=products)
        xp.divide(delta, divisor, out=delta)
        by_variance = _mean(backend, products, workspace, "mean")
        xp.divide(by_variance, divisor, out=by_variance)
        xp.divide(by_variance, divisor, out=by_variance)
        xp.multiply(by_variance, -outputs.shape[-1] / n_channels, out=by_variance)
        by_squares = _weighed(backend, by_variance, second.transposed, workspace, "by squares")
        by_centred = workspace.array("by centred", centred.shape, dtype)
        xp.multiply(centred, by_squares, out=by_centred)
        direct = by_centred[_at(here.outputs.within(here.centred))]
        xp.add(direct, delta, out=direct)
        # By the local mean, of which each channel has a share as well.
        by_mean = _mean(backend, by_centred, workspace, "mean")
        by_mean = _weighed(backend, by_mean, first.transposed, workspace, "by mean")
        if here.centred == here.inputs:
            xp.subtract(by_centred, by_mean, out=by_centred)
            return by_centred
        input_delta = workspace.array("input_delta", inputs.shape, dtype)
        input_delta[...] = by_mean
        xp.negative(input_delta, out=input_delta)
        direct = input_delta[_at(here.centred.within(here.inputs))]
        xp.add(direct, by_centred, out=direct)
        return input_delta

    def cut_axes(self, input_shape: Shape) -> frozenset[int]:
        """Give all three: a part has the whole's true borders as its own, and reaches two windows beyond the others."""
        return frozenset({0, 1, 2})

    def part(self, outputs: Box, input_shape: Shape) -> Part:
        """Give what computes some nodes from those within two windows of them, in all channels."""
        if outputs == Box.whole(input_shape):
            return super().part(outputs, input_shape)
        layer = _SomeNodes(self.size, self.sigma, self.epsilon, input_shape, outputs)
        return Part(layer, outputs, self._reached(outputs, input_shape).inputs, {})

    def workspace_numbers(self, input_shape: Shape) -> int:
        """Count centred nodes and products besides; there are seven planes without channels and a divisor as well."""
        return super().workspace_numbers(input_shape) + 2 * math.prod(input_shape) + 8 * math.prod(input_shape[:2])

    def operations(self, input_shape: Shape) -> float:
        """Count the two products with the windows of each axis, and twelve for each node."""
        height, width, n_channels = input_shape
        return 4.0 * height * width * (height + width) + 12.0 * height * width * n_channels

    def _places(self, input_shape: Shape) -> _Places:
        """Give what is computed where, from the shape of the inputs that are given."""
        return self._reached(Box.whole(input_shape), input_shape)

    def _reached(self, outputs: Box, whole: Shape) -> _Places:
        assert isinstance(self.size, tuple)
        centred = inputs = outputs.along(2, 0, whole[2])
        for axis in (0, 1):
            reach = self.size[axis] // 2
            start, stop = outputs.starts[axis], outputs.stops[axis]
            centred = centred.along(axis, max(0, start - reach), min(whole[axis], stop + reach))
            inputs = inputs.along(axis, max(0, start - 2 * reach), min(whole[axis], stop + 2 * reach))
        return _Places(outputs, centred, inputs, whole)

    def _windows(self, here: _Places, dtype: np.dtype[np.floating], workspace: Workspace) -> tuple[_Windows, _Windows]:
        """Give the weights by which local means are formed: of the inputs, and of the centred nodes."""
        assert isinstance(self.size, tuple)
        found = []
        for name, to, of in (("inputs", here.centred, here.inputs), ("centred", here.outputs, here.centred)):
            matrices = []
            for axis in (0, 1):
                chosen = slice(to.starts[axis], to.stops[axis]), slice(of.starts[axis], of.stops[axis])
                size, length = self.size[axis], here.whole[axis]

                def make(
                    size: int = size, length: int = length, chosen: tuple[slice, slice] = chosen
                ) -> npt.NDArray[np.floating]:
                    return np.ascontiguousarray(_window(length, size, self.sigma or size / 4)[chosen], dtype)

                matrices.append(workspace.constant(make, name, axis, here.inputs.shape, dtype))
            found.append(_Windows(*matrices))
        return found[0], found[1]


class _Places(NamedTuple):
    """Of the whole image: what is computed from what."""

    outputs: Box
    centred: Box
    """Nodes whose squares are needed."""
    inputs: Box
    whole: Shape


class _Windows(NamedTuple):
    """The weights of a window, which are a product of one matrix an axis, each ``(n_to, n_of)``."""

    of_rows: Array
    of_columns: Array

    @property
    def transposed(self) -> _Windows:
        """The way back."""
        return _Windows(self.of_rows.T, self.of_columns.T)


@dataclass(frozen=True)
class _SomeNodes(LocalContrastNorm2D):
    """A box of the nodes of a `LocalContrastNorm2D`."""

    kind: ClassVar[str] = "local_contrast_norm_2d part"

    whole: Shape = ()
    box: Box = Box((), ())  # noqa: RUF009  (a frozen dataclass itself)

    def output_shape(self, input_shape: Shape) -> Shape:
        """Give the shape of the box."""
        return self.box.shape

    def _places(self, input_shape: Shape) -> _Places:
        return self._reached(self.box, self.whole)


def _window(length: int, size: int, sigma: float) -> npt.NDArray[np.float64]:
    """Give the weights along one axis, ``(length, length)``: a row for each place, which adds up to one."""
    away = np.subtract.outer(np.arange(length), np.arange(length))
    weights = np.where(np.abs(away) <= size // 2, np.exp(-0.5 * (away / sigma) ** 2), 0.0)
    means: npt.NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return means


def _mean(backend: Backend, array: Array, workspace: Workspace, name: str) -> Array:
    """Give the mean over channels, ``(n_rows, height, width, 1)``."""
    n_channels, dtype = array.shape[-1], array.dtype
    share = workspace.constant(lambda: np.full((n_channels, 1), 1 / n_channels, dtype), "share", n_channels, dtype)
    mean = workspace.array(name, (*array.shape[:-1], 1), dtype)
    n_places = math.prod(array.shape[:-1])
    backend.by_weights_(array.reshape(n_places, n_channels), share, mean.reshape(n_places, 1))
    return mean


def _weighed(backend: Backend, plane: Array, windows: _Windows, workspace: Workspace, name: str) -> Array:
    """Give ``of_rows @ plane @ of_columns.T`` for each row's plane, ``(n_rows, n_to, n_to, 1)``."""
    n_rows, height, width, _ = plane.shape
    to_height, to_width = len(windows.of_rows), len(windows.of_columns)
    along = workspace.array("along", (n_rows, height, to_width), plane.dtype)
    backend.by_weights_(
        plane.reshape(n_rows * height, width), windows.of_columns.T, along.reshape(n_rows * height, to_width)
    )
    # One matrix for all planes, and so one product: CuPy makes a product for each of them from arrays of addresses.
    turned = workspace.array("turned", (n_rows, to_width, height), plane.dtype)
    turned[...] = along.transpose(0, 2, 1)
    down = workspace.array("down", (n_rows, to_width, to_height), plane.dtype)
    backend.by_weights_(
        turned.reshape(n_rows * to_width, height), windows.of_rows.T, down.reshape(n_rows * to_width, to_height)
    )
    weighed = workspace.array(name, (n_rows, to_height, to_width, 1), plane.dtype)
    weighed.reshape(n_rows, to_height, to_width)[...] = down.transpose(0, 2, 1)
    return weighed


def _at(where: tuple[slice, ...]) -> tuple[slice, ...]:
    """Give the same place in every row."""
    return (slice(None), *where)
