"""Windows over images, against counting places one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_belief.backend import get_backend
from dask_belief.errors import ArgumentError
from dask_belief.models.layers import Workspace
from dask_belief.models.layers import windows as over
from dask_belief.models.layers.windows import Window, Windows, as_padding, as_pair, windows_over
from dask_belief.seeds import stream

WINDOWS = st.builds(
    lambda kernel, stride, before, after, size: Window(kernel, stride, before % kernel, after % kernel, size),
    st.integers(1, 5),
    st.integers(1, 6),
    st.integers(0, 4),
    st.integers(0, 4),
    st.integers(5, 12),
)


def places(window: Window, number: int) -> list[int]:
    """The places of the image that a window covers."""
    first = number * window.stride - window.before
    return [place for place in range(first, first + window.kernel) if 0 <= place < window.size]


@given(WINDOWS)
def test_windows_lie_within_the_padded_image(window: Window) -> None:
    """All of them, and no further one would."""
    last = (window.n_outputs - 1) * window.stride + window.kernel
    assert last <= window.padded < last + window.stride


@given(WINDOWS, st.data())
def test_what_some_windows_need(window: Window, data: st.DataObject) -> None:
    """The places that they cover and no others; and with the padding that is left they are the same windows."""
    start = data.draw(st.integers(0, window.n_outputs - 1))
    stop = data.draw(st.integers(start + 1, window.n_outputs))
    first, last, before, after = window.needed(start, stop)
    covered = sorted({place for number in range(start, stop) for place in places(window, number)})
    assert (first, last) == (covered[0], covered[-1] + 1)
    part = Window(window.kernel, window.stride, before, after, last - first)
    assert part.n_outputs == stop - start
    for number in range(start, stop):
        assert [first + place for place in places(part, number - start)] == places(window, number)


@pytest.mark.parametrize("size", range(1, 12))
@pytest.mark.parametrize("stride", [1, 2, 3, 5])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
def test_same_gives_as_many_windows_as_strides(size: int, stride: int, kernel: int) -> None:
    """However large the kernel, and the image."""
    windows = windows_over("Layer", (size, size, 1), (kernel, kernel), (stride, stride), "same")
    assert windows.shape == (-(-size // stride),) * 2


@given(WINDOWS, WINDOWS, st.integers(1, 3))
def test_adding_patches_is_the_way_back_of_viewing_them(rows: Window, columns: Window, n_channels: int) -> None:
    """For any values: <patches(x), v> = <x, added(v)>; from any row of windows on."""
    windows, backend = Windows(rows, columns), get_backend("numpy")
    random = stream(0, "patches")
    images = random.normal(size=(2, rows.padded, columns.padded, n_channels))
    first = rows.n_outputs // 2
    view = over.patches(backend, images, windows, first, rows.n_outputs)
    values = random.normal(size=view.shape)
    added = np.zeros_like(images)
    over.add_patches(backend, values, added, windows, first, Workspace(backend))
    assert np.vdot(view, values) == pytest.approx(np.vdot(images, added), rel=1e-10, abs=1e-10)


@given(WINDOWS, WINDOWS)
def test_sums_and_their_way_back(rows: Window, columns: Window) -> None:
    """Sums and maxima against patches; spreading against the same scalar product."""
    windows, backend, workspace = Windows(rows, columns), get_backend("numpy"), Workspace(get_backend("numpy"))
    random = stream(1, "sums")
    images = random.normal(size=(2, rows.padded, columns.padded, 3))
    view = over.patches(backend, images, windows, 0, rows.n_outputs)
    sums, largest = np.empty((2, *windows.shape, 3)), np.empty((2, *windows.shape, 3))
    over.window_sums(backend, images, windows, sums, workspace)
    over.window_maxima(backend, images, windows, largest, workspace)
    assert np.allclose(sums, view.sum(axis=(3, 4))) and np.array_equal(largest, view.max(axis=(3, 4)))
    values, spread = random.normal(size=sums.shape), np.empty_like(images)
    over.spread(backend, values, windows, spread, workspace)
    assert np.vdot(sums, values) == pytest.approx(np.vdot(images, spread), rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("value", [0, -1, 1.5, (1, 2, 3), "2", None, (2, 0)])
def test_wrong_pairs_are_refused(value: object) -> None:
    """By the argument's name."""
    with pytest.raises(ArgumentError, match=r"^stride:"):
        as_pair("stride", value)


@pytest.mark.parametrize("value", ["full", 1, ((1, 1),), ((3, 0), (0, 0)), ((0, 0), (0, -1)), None])
def test_wrong_paddings_are_refused(value: object) -> None:
    """Padding of a whole kernel would make windows that see nothing."""
    with pytest.raises(ArgumentError, match=r"^padding:"):
        as_padding(value, (3, 3))


@pytest.mark.parametrize("shape", [(4,), (4, 4), (2, 9, 1), (9, 2, 1)])
def test_images_that_no_window_fits_are_refused(shape: tuple[int, ...]) -> None:
    """And what is no image."""
    with pytest.raises(ArgumentError, match=r"^layers: a Conv2D"):
        windows_over("Conv2D", shape, (3, 3), (1, 1), "valid")
