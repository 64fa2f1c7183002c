"""Mini-batches: every row once, in an order that the stream of random numbers fixes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_belief.data.batches import MiniBatches, blocks_of, n_batches
from dask_belief.errors import ArgumentError
from dask_belief.seeds import stream


def rows_of(n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    inputs = np.arange(n_rows * 2, dtype=np.float32).reshape(n_rows, 2)
    return inputs, np.arange(n_rows)


@given(n_rows=st.integers(0, 60), batch_rows=st.integers(1, 70), seed=st.integers(0, 5))
def test_every_row_comes_once_with_its_target(n_rows, batch_rows, seed):
    """Batches are numbered from 0, full but for the last, and hold each row once beside its own target."""
    inputs, targets = rows_of(n_rows)
    seen: list[int] = []
    sizes: list[int] = []
    for number, some, their in MiniBatches(inputs, targets, batch_rows, stream(seed, "rows")):
        assert number == len(sizes)
        np.testing.assert_array_equal(some, inputs[their])
        seen += their.tolist()
        sizes.append(len(some))
    assert sorted(seen) == list(range(n_rows))
    assert len(sizes) == n_batches(n_rows, batch_rows)
    assert all(size == batch_rows for size in sizes[:-1])


def test_the_stream_fixes_the_order():
    """The same stream gives the same batches, another one others."""

    def drawn(*name: str | int) -> list[list[int]]:
        return [their.tolist() for _, _, their in MiniBatches(*rows_of(50), 7, stream(3, *name))]

    assert drawn("rows", 1) == drawn("rows", 1)
    assert drawn("rows", 1) != drawn("rows", 2)


def test_a_successor_goes_on_with_the_same_batches():
    """Beginning at batch 3 gives what a run from the start gives from there on."""
    whole = [(k, their.tolist()) for k, _, their in MiniBatches(*rows_of(50), 7, stream(3, "rows"))]
    rest = [(k, their.tolist()) for k, _, their in MiniBatches(*rows_of(50), 7, stream(3, "rows"), first=3)]
    assert rest == whole[3:]


def test_a_batch_outlives_the_next_one():
    """A batch is intact while the next is gathered; its buffer serves the next but one."""
    batches = iter(MiniBatches(*rows_of(30), 10, stream(3, "rows")))
    _, first, _ = next(batches)
    kept = first.copy()
    _, second, _ = next(batches)
    np.testing.assert_array_equal(first, kept)
    _, third, _ = next(batches)
    assert np.shares_memory(first, third)
    assert not np.shares_memory(first, second)


@pytest.mark.parametrize(
    ("name", "n_targets", "batch_rows"), [("batch_rows", 4, 0), ("batch_rows", 4, 1.5), ("inputs, targets", 3, 2)]
)
def test_bad_arguments_are_refused_at_the_call(name, n_targets, batch_rows):
    """Mistakes are told by the call itself, not by the first batch."""
    with pytest.raises(ArgumentError, match=f"^{name}"):
        MiniBatches(rows_of(4)[0], rows_of(n_targets)[1], batch_rows, stream(0, "rows"))


def test_a_negative_first_batch_is_refused():
    """There is no batch before number 0."""
    with pytest.raises(ArgumentError, match=r"^first"):
        MiniBatches(*rows_of(4), 2, stream(0, "rows"), first=-1)


def test_blocks_are_views_in_order():
    """Blocks share the memory of the rows and cover them once; the last is short."""
    inputs, targets = rows_of(7)
    blocks = list(blocks_of((inputs, targets), 3))
    assert [their.tolist() for _, their in blocks] == [[0, 1, 2], [3, 4, 5], [6]]
    assert all(np.shares_memory(some, inputs) for some, _ in blocks)
    np.testing.assert_array_equal(np.concatenate([some for some, _ in blocks]), inputs)
