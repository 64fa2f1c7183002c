"""Ranges of a vector, against a boolean mask that says the same."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dask_belief.errors import ArgumentError
from dask_belief.parameter_server import selection
from dask_belief.parameter_server.selection import LONG, Runs, Selection

SEED = 71


def mask_of(runs: Runs, length: int) -> NDArray[np.bool_]:
    mask = np.zeros(length, bool)
    for start, stop in runs:
        mask[start:stop] = True
    return mask


@st.composite
def runs_and_length(draw: st.DrawFn, grain: int = 1) -> tuple[Runs, int]:
    """Sorted ranges on multiples of the grain, some long, some that meet, and a vector that holds them."""
    lengths = st.one_of(st.integers(1, 5), st.integers(LONG - 2, LONG + 2))
    pairs = draw(st.lists(st.tuples(st.integers(0, 6), lengths), max_size=12))
    borders = grain * np.cumsum(np.array(pairs, np.int64).reshape(-1))
    return borders.reshape(-1, 2), int(borders[-1] if len(borders) else 0) + draw(st.integers(0, 5))


CASES = st.one_of(runs_and_length(), runs_and_length(grain=8))


def numbers(length: int) -> NDArray[np.float64]:
    return np.random.default_rng(SEED).standard_normal(length)


@given(CASES)
def test_copies_are_those_of_a_mask(case: tuple[Runs, int]) -> None:
    """Take, put, add and fill do to the chosen elements what a mask does, and nothing to the others."""
    runs, length = case
    chosen, mask, vector = Selection(runs), mask_of(runs, length), numbers(length)
    assert chosen.n_elements == mask.sum()
    assert len(chosen) == len(runs)
    out = np.full(chosen.n_elements, np.nan)
    assert chosen.take(vector, out) is out
    np.testing.assert_array_equal(out, vector[mask])
    np.testing.assert_array_equal(chosen.take(vector), vector[mask])

    compact = numbers(chosen.n_elements)[::-1].copy()
    expected, found = vector.copy(), vector.copy()
    expected[mask] = compact
    chosen.put(compact, found)
    np.testing.assert_array_equal(found, expected)
    expected[mask] += compact
    chosen.add(compact, found)
    np.testing.assert_array_equal(found, expected)
    expected[mask] = 7
    chosen.fill(found, 7)
    np.testing.assert_array_equal(found, expected)


@given(CASES, st.integers(0, 40_000), st.integers(0, 40_000))
def test_within_is_the_mask_of_the_part(case: tuple[Runs, int], start: int, size: int) -> None:
    """Clipped at both ends and counted from the part's beginning, also where the part ends behind the vector."""
    runs, length = case
    start = min(start, length)
    part = Selection(runs).within(start, start + size)
    expected = mask_of(runs, length + size)[start : start + size]
    np.testing.assert_array_equal(mask_of(part.runs, size), expected)
    assert Selection(part.runs) == part
    vector = numbers(size)
    np.testing.assert_array_equal(part.take(vector), vector[expected])


@given(CASES, CASES, CASES)
def test_union_is_that_of_masks(a: tuple[Runs, int], b: tuple[Runs, int], c: tuple[Runs, int]) -> None:
    """Elements that any of them chooses, once each; what meets is one run."""
    cases = (a, b, c)
    length = max(length for _, length in cases)
    union = Selection.union(*(Selection(runs) for runs, _ in cases))
    expected = np.logical_or.reduce([mask_of(runs, length) for runs, _ in cases])
    np.testing.assert_array_equal(mask_of(union.runs, length), expected)
    assert Selection(union.runs) == union
    assert (union.runs[1:, 0] > union.runs[:-1, 1]).all()


def test_union_of_nothing() -> None:
    """No selections, or empty ones, choose nothing."""
    empty = Selection(np.empty((0, 2), np.int64))
    for union in (Selection.union(), Selection.union(empty), Selection.union(empty, empty)):
        assert union == empty
        assert union.n_elements == 0
        assert union.take(np.zeros(0)).size == 0


@pytest.mark.parametrize("border", [0, 64 * 500, 64 * 500 + 7])
def test_rows_of_a_table_are_copied_by_the_row(border: int) -> None:
    """Also in a piece that begins within a row: short runs are no loop, and their index counts rows."""
    rows = np.unique(np.random.default_rng(SEED).integers(0, 5000, 1500))
    table = Selection.union(
        Selection(64 * np.stack([rows, rows + 1], axis=1)), Selection(np.array([[320_000, 400_000]]))
    )
    piece = table.within(border, 400_000)
    parts = piece._copied()
    assert len(parts) <= 4
    assert max(part.grain for part in parts) == 64
    assert len(parts) < len(piece) / 100
    vector = numbers(400_000 - border)
    np.testing.assert_array_equal(piece.take(vector), vector[mask_of(piece.runs, len(vector))])


def test_sums_of_many_short_runs_are_formed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost at the borders of the blocks."""
    monkeypatch.setattr(selection, "_ADDED_ELEMENTS", 12)
    starts = 10 * np.arange(50)
    chosen, found = Selection(np.stack([starts, starts + 5], axis=1)), numbers(600)
    expected, compact = found.copy(), numbers(250)
    expected[mask_of(chosen.runs, 600)] += compact
    chosen.add(compact, found)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [bool, np.float32, np.int64])
def test_any_dtype_is_copied(dtype: type) -> None:
    """As a mask of what is penalised is, or float32 parameters."""
    runs = np.array([[0, 1], [3, 5], [6, 9], [10, 11]])
    vector: np.ndarray = (np.arange(12) % 3).astype(dtype)
    compact = Selection(runs).take(vector)
    assert compact.dtype == dtype
    np.testing.assert_array_equal(compact, vector[mask_of(runs, 12)])


def test_sent_it_is_its_runs() -> None:
    """A pickle gives an equal one; runs cannot be changed, neither here nor by who gave them."""
    runs = np.array([[1, 3], [5, 6]])
    chosen = Selection(runs)
    chosen.take(np.zeros(6))
    assert pickle.loads(pickle.dumps(chosen)) == chosen
    assert chosen != Selection(runs[:1])
    assert chosen != runs.tolist()
    runs[0, 0] = 2
    assert chosen.runs[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        chosen.runs[0, 0] = 0
    assert repr(chosen) == "Selection(2 runs, 3 elements)"


@pytest.mark.parametrize(
    "runs",
    [
        [[2, 2]],
        [[3, 2]],
        [[-1, 2]],
        [[0, 3], [2, 5]],
        [[4, 5], [0, 1]],
        [0, 1],
        [[0, 1, 2]],
        [[0.0, 1.0]],
        np.empty((0, 3), int),
    ],
)
def test_what_are_no_runs_is_refused(runs: list) -> None:
    """Empty, reversed, negative, overlapping or unsorted ranges, another shape, other numbers."""
    with pytest.raises(ArgumentError, match=r"^runs: "):
        Selection(np.array(runs))


def test_vectors_that_do_not_fit_are_refused() -> None:
    """Too short, with gaps or of two axes; a compact one of another length: by name, before anything is written."""
    chosen = Selection(np.array([[1, 3], [5, 6]]))
    for vector in (np.zeros(5), np.zeros(20)[::2], np.zeros((6, 1))):
        for act in (
            lambda v: chosen.take(v),
            lambda v: chosen.put(np.ones(3), v),
            lambda v: chosen.add(np.ones(3), v),
            lambda v: chosen.fill(v, 1),
        ):
            with pytest.raises(ArgumentError, match=r"^vector: "):
                act(vector)
        assert not vector.any()
    with pytest.raises(ArgumentError, match=r"^out: expected shape \(3,\)"):
        chosen.take(np.zeros(6), np.zeros(4))
    with pytest.raises(ArgumentError, match=r"^compact: "):
        chosen.put(np.zeros(1), np.zeros(6))
    with pytest.raises(ArgumentError, match=r"^compact: "):
        chosen.add(np.zeros(6)[::2], np.zeros(6))
