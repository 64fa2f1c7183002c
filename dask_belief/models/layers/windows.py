"""Windows that go over an image: where they lie, what a box of their outputs needs, and sums over them.

Along one axis, with a kernel of 3, a stride of 2, and one place of padding before and after::

    places          0   1   2   3   4
    padded      .   0   1   2   3   4   .
    windows    |--- 0 ---|
                       |--- 1 ---|
                               |--- 2 ---|

Padding is zeros, or nothing at all: what it is a layer says. A part of a layer has places of the image where its
windows reach beyond its own outputs, and padding only where the image ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dask_belief.backend import Array, Backend
from dask_belief.checks import check_count
from dask_belief.errors import ArgumentError
from dask_belief.models.box import Box
from dask_belief.models.layers.base import Workspace
from dask_belief.models.layout import Shape

Pair = tuple[int, int]

Padding = str | tuple[Pair, Pair]
"""``"valid"``, ``"same"``, or so many places (above, below), (left, right)."""


@dataclass(frozen=True)
class Window:
    """Windows along one axis."""

    kernel: int
    stride: int
    before: int
    """Places of padding."""

    after: int
    size: int
    """Places of the image."""

    @property
    def n_outputs(self) -> int:
        """How many windows there are."""
        return (self.size + self.before + self.after - self.kernel) // self.stride + 1

    @property
    def padded(self) -> int:
        """How many places there are with the padding."""
        return self.size + self.before + self.after

    def needed(self, start: int, stop: int) -> tuple[int, int, int, int]:
        """Give the places that windows from `start` to `stop` cover, and the padding before and after that is left."""
        first = start * self.stride - self.before
        last = (stop - 1) * self.stride - self.before + self.kernel
        return max(0, first), min(self.size, last), max(0, -first), max(0, last - self.size)


@dataclass(frozen=True)
class Windows:
    """Windows over an image."""

    rows: Window
    columns: Window

    @property
    def shape(self) -> Pair:
        """How many there are along each axis."""
        return self.rows.n_outputs, self.columns.n_outputs

    def needed(self, outputs: Box, n_channels: int) -> tuple[Box, tuple[Pair, Pair]]:
        """Give the box of inputs that some windows cover, with all channels, and the padding that is left to them."""
        top, bottom, above, below = self.rows.needed(outputs.starts[0], outputs.stops[0])
        left, right, before, after = self.columns.needed(outputs.starts[1], outputs.stops[1])
        return Box((top, left, 0), (bottom, right, n_channels)), ((above, below), (before, after))


def as_pair(name: str, value: Any) -> Pair:
    """Give a pair of whole numbers above zero, of one of them or two; raises `ArgumentError`."""
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2:
        raise ArgumentError(f"{name}: expected a whole number above zero or a pair of them, got {value!r}.")
    for each in pair:
        check_count(name, each)
    return int(pair[0]), int(pair[1])


def as_padding(value: Any, kernel: Pair) -> Padding:
    """Give a padding as it is kept; raises `ArgumentError`."""
    if value in ("valid", "same"):
        return str(value)
    expected = "expected 'valid', 'same' or ((above, below), (left, right)), each less than the kernel"
    try:
        for before, after in value:
            check_count("padding", before, low=0)
            check_count("padding", after, low=0)
        pairs = tuple((int(before), int(after)) for before, after in value)
        rows, columns = pairs
    except (TypeError, ValueError):
        raise ArgumentError(f"padding: {expected}, got {value!r}.") from None
    if any(not 0 <= each < length for pair, length in zip(pairs, kernel, strict=True) for each in pair):
        raise ArgumentError(f"padding: {expected}, got {value!r} with a kernel of {kernel}.")
    return rows, columns


def windows_over(kind: str, input_shape: Shape, kernel: Pair, stride: Pair, padding: Padding) -> Windows:
    """Give the windows over an image.

    Raises
    ------
    ArgumentError
        The inputs are no images, or smaller than a window.
    """
    if len(input_shape) != 3:
        raise ArgumentError(f"layers: a {kind} takes images of shape (height, width, channels), got {input_shape}.")
    along = []
    for axis in range(2):
        size, length, step = input_shape[axis], kernel[axis], stride[axis]
        before, after = _padding_of(padding, axis, size, length, step)
        if size + before + after < length:
            raise ArgumentError(
                f"layers: a {kind} with a kernel of {kernel} and padding {padding!r} was given images of "
                f"{input_shape}: no window fits. Make the kernel smaller, or pad by 'same'."
            )
        along.append(Window(length, step, before, after, size))
    return Windows(*along)


def _padding_of(padding: Padding, axis: int, size: int, length: int, step: int) -> Pair:
    if padding == "valid":
        return 0, 0
    if padding == "same":
        # As many windows as it takes strides to go over the image.
        total = max(0, ((size - 1) // step) * step + length - size)
        return total // 2, total - total // 2
    assert not isinstance(padding, str)
    return padding[axis]


def padded(inputs: Array, windows: Windows, value: float, workspace: Workspace) -> Array:
    """Give images with `value` around them; the images themselves where there is nothing to be put."""
    rows, columns = windows.rows, windows.columns
    if (rows.padded, columns.padded) == (rows.size, columns.size):
        return inputs
    around = workspace.array("padded", (len(inputs), rows.padded, columns.padded, inputs.shape[3]), inputs.dtype)
    around[...] = value
    within(around, windows)[...] = inputs
    return around


def within(around: Array, windows: Windows) -> Array:
    """View the image without its padding."""
    rows, columns = windows.rows, windows.columns
    return around[:, rows.before : rows.before + rows.size, columns.before : columns.before + columns.size]


def without_padding(around: Array, windows: Windows, workspace: Workspace) -> Array:
    """Give the image without its padding, and without gaps, as a derivative has to be."""
    inner = within(around, windows)
    if inner.shape == around.shape:
        return around
    image = workspace.array("without padding", inner.shape, inner.dtype)
    image[...] = inner
    return image


def patches(backend: Backend, images: Array, windows: Windows, first: int, last: int) -> Array:
    """View what some rows of windows cover, ``(n_rows, last - first, n_columns, kernel_h, kernel_w, channels)``.

    Windows overlap, and so does the view: it is read only.
    """
    rows, columns = windows.rows, windows.columns
    n, _, _, n_channels = images.shape
    by_row, by_place, by_column, by_channel = images.strides
    view: Array = backend.xp.lib.stride_tricks.as_strided(
        images[:, first * rows.stride :] if first else images,
        (n, last - first, columns.n_outputs, rows.kernel, columns.kernel, n_channels),
        (by_row, rows.stride * by_place, columns.stride * by_column, by_place, by_column, by_channel),
    )
    return view


def add_patches(
    backend: Backend, values: Array, images: Array, windows: Windows, first: int, workspace: Workspace
) -> None:
    """Add to images what was found for the places of each patch, whose shape is that of `patches`; `first` as there.

    First across, all rows of a patch at once, then down: for a kernel of 10 by 10 and one row of windows 20 additions
    of long runs in place of 100 of short ones, which takes half the time (64 rows of (20, 20, 8)). Windows next to
    each other overlap, so those that do not are added together: all that is added at once has places of its own.
    """
    rows, columns = windows.rows, windows.columns
    n, n_rows, n_channels = len(images), values.shape[1], images.shape[3]
    across = workspace.array("across", (n, n_rows, rows.kernel, images.shape[2], n_channels), images.dtype)
    across[...] = 0
    by_image, by_window, by_place, by_column, by_channel = across.strides
    places = backend.xp.lib.stride_tricks.as_strided(
        across,
        (n, n_rows, columns.n_outputs, rows.kernel, columns.kernel, n_channels),
        (by_image, by_window, columns.stride * by_column, by_place, by_column, by_channel),
    )
    apart = -(-columns.kernel // columns.stride)
    for group in range(min(apart, columns.n_outputs)):
        some = places[:, :, group::apart]
        backend.xp.add(some, values[:, :, group::apart], out=some)
    for row in range(rows.kernel):
        top = first * rows.stride + row
        lines = images[:, top : top + (n_rows - 1) * rows.stride + 1 : rows.stride]
        backend.xp.add(lines, across[:, :, row], out=lines)


def window_sums(backend: Backend, images: Array, windows: Windows, out: Array, workspace: Workspace) -> None:
    """Write the sums over all windows, ``(n_rows, *windows.shape, channels)``, of padded images."""
    _reduced(backend.xp.add, images, windows, out, workspace)


def window_maxima(backend: Backend, images: Array, windows: Windows, out: Array, workspace: Workspace) -> None:
    """Write the largest value of each window."""
    _reduced(backend.xp.maximum, images, windows, out, workspace)


def _reduced(join: Any, images: Array, windows: Windows, out: Array, workspace: Workspace) -> None:
    rows, columns = windows.rows, windows.columns
    across = workspace.array("across", (len(images), images.shape[1], columns.n_outputs, images.shape[3]), images.dtype)
    across[...] = images[:, :, _steps(columns, 0)]
    for place in range(1, columns.kernel):
        join(across, images[:, :, _steps(columns, place)], out=across)
    out[...] = across[:, _steps(rows, 0)]
    for place in range(1, rows.kernel):
        join(out, across[:, _steps(rows, place)], out=out)


def spread(backend: Backend, values: Array, windows: Windows, out: Array, workspace: Workspace) -> None:
    """Add each window's value to all places that it covers: write that to padded images."""
    rows, columns = windows.rows, windows.columns
    across = workspace.array("across", (len(out), out.shape[1], columns.n_outputs, out.shape[3]), out.dtype)
    across[...] = 0
    for place in range(rows.kernel):
        across[:, _steps(rows, place)] += values
    out[...] = 0
    for place in range(columns.kernel):
        out[:, :, _steps(columns, place)] += across


def _steps(window: Window, place: int) -> slice:
    """Where one place of each window lies, along the window's axis."""
    return slice(place, place + (window.n_outputs - 1) * window.stride + 1, window.stride)


def at(windows: Windows, row: int, column: int) -> tuple[slice, slice, slice]:
    """Where one place of each window lies in padded images."""
    return slice(None), _steps(windows.rows, row), _steps(windows.columns, column)


def runs(length: int, each: int) -> Sequence[tuple[int, int]]:
    """Cut a length into runs of so many, one at least."""
    step = max(1, each)
    return [(start, min(start + step, length)) for start in range(0, length, step)]
