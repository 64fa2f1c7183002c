"""Products in parts against the whole product in float64, on both sides of every bound; and which rows are a part."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_belief.backend import Array, Backend, get_backend
from dask_belief.backend.products import FEWEST_PART_ROWS, PARTS_AT_ONCE, SMALL_PRODUCT, part_rows

SEED = 3
EXAMPLES = settings(derandomize=True, deadline=None)
REAL = [np.float32, np.float64]
MOST = SMALL_PRODUCT // 7840
"""The most rows of a part with 784 inputs and 10 outputs."""
SIZES = [
    (0, 784, 10),
    (1, 784, 10),
    (MOST, 784, 10),  # the largest that is whole
    (MOST + 1, 784, 10),  # two parts
    (1000, 784, 10),  # equal parts
    (1003, 784, 10),  # parts and a rest
    (MOST * (2 * PARTS_AT_ONCE + 1) + 1, 784, 10),  # three groups and a rest
    (1000, 784, 1),  # a vector
    (300, 1024, 64),  # too many columns to cut
    (50, 3, 4),
]


def draw(*shape: int, dtype: type[np.floating] = np.float32) -> Array:
    return np.random.default_rng(SEED).standard_normal(shape).astype(dtype)


def close(backend: Backend, found: Array, expected: Array, terms: int) -> None:
    """Compare to the rounding of a sum of so many terms of size 1."""
    host = backend.to_host(found)
    tolerance = 20 * float(np.finfo(host.dtype).eps) * max(1, terms) ** 0.5
    np.testing.assert_allclose(host, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("sizes", SIZES)
def test_products_are_those_of_the_formulas(
    backend: Backend, sizes: tuple[int, int, int], dtype: type[np.floating]
) -> None:
    """By the weights, the gradient of the weights and the sums of columns; every element is written."""
    n_rows, n_inputs, n_outputs = sizes
    rows, weights, delta = (draw(*shape, dtype=dtype) for shape in (sizes[:2], sizes[1:], (n_rows, n_outputs)))
    on_device = backend.asarray(rows)

    outputs = backend.asarray(np.full((n_rows, n_outputs), np.nan, dtype))
    backend.by_weights_(on_device, backend.asarray(weights), outputs)
    close(backend, outputs, rows.astype(np.float64) @ weights, n_inputs)

    gradient = backend.asarray(np.full((n_inputs, n_outputs), np.nan, dtype))
    backend.weight_gradient_(on_device, backend.asarray(delta), gradient)
    close(backend, gradient, rows.astype(np.float64).T @ delta, n_rows)

    sums = backend.asarray(np.full(n_outputs, np.nan, dtype))
    backend.column_sums_(backend.asarray(delta), sums)
    close(backend, sums, delta.sum(axis=0, dtype=np.float64), n_rows)


@EXAMPLES
@given(st.integers(0, 100_000), st.integers(1, 5_000), st.integers(1, 500))
def test_parts_are_small_products_of_nearly_all_rows(n_rows: int, n_inputs: int, n_outputs: int) -> None:
    """A part is a small product, not a sliver, and what is left over is less than one part."""
    size = part_rows(n_rows, n_inputs, n_outputs)
    assert size <= n_rows
    if size == n_rows:
        return
    assert size * n_inputs * n_outputs <= SMALL_PRODUCT
    assert size >= FEWEST_PART_ROWS // 2
    assert n_outputs > 1
    # The rest has at most one row for each part.
    assert n_rows % size <= n_rows // size


def test_what_is_cut() -> None:
    """1000 rows of 784 for 10 outputs are 8 parts; a product that is small, a vector or a wide one stays whole."""
    assert part_rows(1000, 784, 10) == 125
    assert part_rows(100, 784, 10) == 100
    assert part_rows(1000, 784, 1) == 1000
    assert part_rows(1000, 1024, 1024) == 1000


@pytest.mark.parametrize("dtype", REAL)
def test_bits_do_not_depend_on_where_arrays_lie(dtype: type[np.floating]) -> None:
    """At any alignment in memory the same numbers give the same bits."""
    backend = get_backend("numpy")

    def moved(array: Array, n_elements: int) -> Array:
        memory = np.empty(array.size + 16, array.dtype)
        there = memory[n_elements : n_elements + array.size].reshape(array.shape)
        there[...] = array
        return there

    def results(by: int) -> bytes:
        rows, weights, delta = (moved(array, by) for array in originals)
        outputs, gradient, sums = (moved(array, by) for array in (delta, weights, weights[0]))
        backend.by_weights_(rows, weights, outputs)
        backend.weight_gradient_(rows, delta, gradient)
        backend.column_sums_(delta, sums)
        return outputs.tobytes() + gradient.tobytes() + sums.tobytes()

    originals = [draw(*shape, dtype=dtype) for shape in ((1003, 784), (784, 10), (1003, 10))]
    assert {results(by) for by in range(16)} == {results(0)}


def test_threads_do_not_share_what_they_add_in() -> None:
    """Four threads at once each get their own gradient."""
    backend = get_backend("numpy")
    rows = draw(1003, 784)
    deltas = [draw(1003, 10) * number for number in range(4)]

    def gradient(delta: Array) -> bytes:
        found = np.empty((784, 10), np.float32)
        backend.weight_gradient_(rows, delta, found)
        return found.tobytes()

    alone = [gradient(delta) for delta in deltas]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(gradient, 20 * deltas)) == 20 * alone
