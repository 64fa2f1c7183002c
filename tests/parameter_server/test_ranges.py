"""How a vector is cut into shards and pieces."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_belief.errors import ArgumentError
from dask_belief.parameter_server.ranges import BLOCK, PIECE_BYTES, n_blocks, pieces, shard_ranges

EXAMPLES = settings(derandomize=True, deadline=None, max_examples=200)


@EXAMPLES
@given(st.integers(1, 40 * BLOCK), st.integers(1, 50))
def test_shards_cover_the_vector_in_whole_blocks(n_parameters: int, n_shards: int) -> None:
    """Shards follow one another without a gap, none is empty, and borders lie on multiples of a block."""
    n_shards = min(n_shards, n_parameters)
    ranges = shard_ranges(n_parameters, n_shards)
    assert len(ranges) == min(n_shards, n_blocks(n_parameters))
    assert (ranges[0].start, ranges[-1].stop) == (0, n_parameters)
    assert all(before.stop == after.start for before, after in itertools.pairwise(ranges))
    assert all(span.start % BLOCK == 0 for span in ranges)
    blocks = [n_blocks(len(span)) for span in ranges]
    assert max(blocks) - min(blocks) <= 1


@pytest.mark.parametrize(("n_parameters", "blocks"), [(1, 1), (BLOCK, 1), (BLOCK + 1, 2), (3 * BLOCK, 3)])
def test_last_block_may_be_short(n_parameters: int, blocks: int) -> None:
    """The number of blocks is rounded up."""
    assert n_blocks(n_parameters) == blocks


@pytest.mark.parametrize(("n_parameters", "n_shards"), [(3, 4), (10, 0), (10, -1)])
def test_impossible_number_of_shards_is_refused(n_parameters: int, n_shards: int) -> None:
    """No shard, or more shards than parameters, is an error that begins with the name of the argument."""
    with pytest.raises(ArgumentError, match=r"^n_shards: .*"):
        shard_ranges(n_parameters, n_shards)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pieces_cover_a_shard(dtype: str) -> None:
    """Pieces follow one another over the shard, each of whole blocks and of at most 16 MiB, and no fewer would do."""
    shard = range(5 * BLOCK, 300 * BLOCK + 17)
    cut = pieces(shard, dtype)
    assert (cut[0].start, cut[-1].stop) == (shard.start, shard.stop)
    assert all(before.stop == after.start for before, after in itertools.pairwise(cut))
    assert all((piece.start - shard.start) % BLOCK == 0 for piece in cut)
    assert all(len(piece) * np.dtype(dtype).itemsize <= PIECE_BYTES for piece in cut)
    assert len(cut) == -(-len(shard) * np.dtype(dtype).itemsize // PIECE_BYTES)


@EXAMPLES
@given(
    st.integers(0, 3),
    st.integers(1, 40 * 64),
    st.lists(st.integers(-10, 50 * 64), max_size=6),
    st.sampled_from(["float32", "float64"]),
)
def test_cuts_begin_pieces(start: int, length: int, cuts: list[int], dtype: str) -> None:
    """Every cut within begins a piece, those outside change nothing, and no piece is empty or larger than allowed."""
    shard, unit = range(start * BLOCK, start * BLOCK + length * (BLOCK // 64)), BLOCK // 64
    borders = [cut * unit for cut in cuts]
    cut = pieces(shard, dtype, borders)
    assert (cut[0].start, cut[-1].stop) == (shard.start, shard.stop)
    assert all(before.stop == after.start for before, after in itertools.pairwise(cut))
    assert all(0 < len(piece) * np.dtype(dtype).itemsize <= PIECE_BYTES for piece in cut)
    within = {border for border in borders if border in shard}
    assert within <= {piece.start for piece in cut}
    if not within - {shard.start}:
        assert cut == pieces(shard, dtype)


@EXAMPLES
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))
def test_pieces_of_a_run_that_was_cut_otherwise_lie_within_its_own(before: int, after: int, last: int) -> None:
    """Shards of one run, then of another with the borders of the first as cuts, then of a third with those of both."""
    n_parameters, cuts = 6 * BLOCK + 5, set[int]()
    found: list[list[range]] = []
    for n_shards in (before, after, last):
        found.append([each for span in shard_ranges(n_parameters, n_shards) for each in pieces(span, "float32", cuts)])
        cuts = {piece.start for piece in found[-1]}
    for older, newer in itertools.pairwise(found):
        assert all(any(own.start <= piece.start and piece.stop <= own.stop for own in older) for piece in newer)
