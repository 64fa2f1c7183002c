"""Units read in pieces: what is given, what is read and asked for, and when."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_belief.data.cache import UnitCache
from dask_belief.data.dataset import ArrayDataset, DirectDataset
from dask_belief.data.stream import Streamer
from dask_belief.data.units import WorkUnit
from dask_belief.data.write import write_dataset
from dask_belief.errors import ArgumentError

LIMIT = 30.0
ROW_BYTES = 16
UNITS = [WorkUnit(number, 10 * number, 10 * number + 10) for number in range(6)]


class Source:
    """Gives the numbers of the rows, and notes what is read and asked for."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int, int]] = []

    def read(self, start, stop):
        self.log.append(("read", start, stop))
        return np.arange(start, stop), np.zeros(stop - start)

    def advise(self, start, stop):
        self.log.append(("advise", start, stop))

    def of(self, word):
        return [(start, stop) for what, start, stop in self.log if what == word]


@pytest.fixture
def source():
    return Source()


def streamer_of(source, cache=None, piece_rows=4, ahead_rows=7):
    return Streamer(
        source.read,
        source.advise,
        ROW_BYTES,
        cache,
        piece_bytes=piece_rows * ROW_BYTES,
        ahead_bytes=ahead_rows * ROW_BYTES,
    )


def rows_given(streamer, unit, block_rows):
    return [inputs.tolist() for inputs, _ in streamer.blocks(unit, block_rows, LIMIT)]


@settings(derandomize=True)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 40))
def test_blocks_are_those_of_the_whole_unit(block_rows, piece_rows, cache_rows):
    """Whatever is read at once, and cached or not, blocks have the same borders and every row comes once."""
    unit = WorkUnit(1, 3, 14)
    streamer = streamer_of(Source(), UnitCache(cache_rows * ROW_BYTES), piece_rows)
    expected = [list(range(start, min(start + block_rows, 14))) for start in range(3, 14, block_rows)]
    for _ in range(2):
        assert rows_given(streamer, unit, block_rows) == expected


def test_pieces_are_whole_blocks(source):
    """A piece is as many blocks as fit, at least one, and is read when its first block is wanted."""
    streamer = streamer_of(source, piece_rows=5)
    blocks = streamer.blocks(UNITS[0], 2, LIMIT)
    next(blocks), next(blocks)
    assert source.of("read") == [(0, 4)]
    next(blocks)
    assert source.of("read") == [(0, 4), (4, 8)]
    source.log.clear()
    rows_given(streamer, UNITS[0], 9)
    assert source.of("read") == [(0, 9), (9, 10)]


def test_rows_to_come_are_asked_for_once_and_so_far_ahead(source):
    """Before each piece the system is asked for what follows it, in this unit and those scheduled, and for no more."""
    streamer = streamer_of(source, piece_rows=4, ahead_rows=7)
    streamer.schedule(UNITS[:2])
    assert not source.log
    rows_given(streamer, UNITS[0], 4)
    assert source.log == [
        ("advise", 4, 10), ("advise", 10, 11), ("read", 0, 4),
        ("advise", 11, 15), ("read", 4, 8),
        ("advise", 15, 17), ("read", 8, 10),
    ]  # fmt: skip
    source.log.clear()
    rows_given(streamer, UNITS[1], 4)
    assert source.log == [("advise", 17, 20), ("read", 10, 14), ("read", 14, 18), ("read", 18, 20)]


def test_a_long_way_ahead_reaches_over_units(source):
    """Several units ahead are asked for as wholes."""
    streamer = streamer_of(source, ahead_rows=25)
    streamer.schedule(UNITS)
    next(streamer.blocks(UNITS[0], 4, LIMIT))
    assert source.of("advise") == [(4, 10), (10, 20), (20, 29)]


def test_what_was_not_scheduled_is_read(source):
    """A unit that nobody announced comes all the same; the rest of it is asked for."""
    assert rows_given(streamer_of(source), UNITS[3], 10) == [list(range(30, 40))]
    assert source.log == [("read", 30, 40)]


def test_units_with_room_in_the_cache_are_read_once_as_wholes(source):
    """The first two fit: later passes read and ask for the third alone, and each use is one lookup."""
    cache = UnitCache(20 * 16)
    streamer = streamer_of(source, cache, piece_rows=5)
    for _ in range(3):
        streamer.schedule(UNITS[:3])
        for unit in UNITS[:3]:
            rows_given(streamer, unit, 5)
    assert source.of("read") == [(0, 10), (10, 20)] + [(20, 25), (25, 30)] * 3
    assert (cache.stats.hits, cache.stats.misses, cache.stats.entries) == (4, 5, 2)
    source.log.clear()
    streamer.schedule(UNITS[:3])
    rows_given(streamer, UNITS[0], 5)
    assert source.log == [("advise", 20, 27)]


def test_drop_forgets_what_was_scheduled(source):
    """After a drop, and after close, nothing that was announced before is asked for."""
    streamer = streamer_of(source)
    streamer.schedule(UNITS)
    streamer.drop()
    rows_given(streamer, UNITS[0], 10)
    assert not source.of("advise")
    streamer.close()
    streamer.close()


def test_errors_of_the_source_surface(source):
    """What reading raises comes out where the block is asked for."""

    def torn(start, stop):
        raise OSError("the disk is torn")

    source.read = torn
    with pytest.raises(OSError, match="torn"):
        rows_given(streamer_of(source), UNITS[0], 4)


@pytest.mark.parametrize("name", ["row_bytes", "piece_bytes", "ahead_bytes"])
def test_numbers_below_one_are_refused(name, source):
    """The argument is named."""
    numbers = {"row_bytes": 1, "piece_bytes": 1, "ahead_bytes": 1} | {name: 0}
    with pytest.raises(ArgumentError, match=f"^{name}: "):
        Streamer(source.read, source.advise, numbers.pop("row_bytes"), **numbers)


def test_which_data_sets_are_direct(tmp_path):
    """Arrays in memory and plain stores are; a compressed store is not."""
    rows = np.ones((6, 2), np.float32), np.arange(6)
    plain = write_dataset(tmp_path / "plain.zarr", *rows, chunk_rows=4)
    packed = write_dataset(tmp_path / "packed.zarr", *rows, chunk_rows=4, compressor="lz4")
    for dataset, is_direct in [(ArrayDataset(*rows), True), (plain, True), (packed, False)]:
        assert isinstance(dataset, DirectDataset)
        assert dataset.is_direct is is_direct
        dataset.advise(0, 6)
