"""Reading ahead, step by step: the reader stops and goes where the test says."""

from __future__ import annotations

import threading
import weakref

import numpy as np
import pytest

from dask_belief.data.cache import UnitCache
from dask_belief.data.prefetch import Prefetcher
from dask_belief.data.units import WorkUnit
from dask_belief.errors import ArgumentError, NoProgressError
from tests.small_cluster import eventually

LIMIT = 30.0
UNITS = [WorkUnit(number, 10 * number, 10 * number + 10) for number in range(6)]


class Source:
    """Reads units, tells who read which, and waits at those that are held."""

    def __init__(self) -> None:
        self.reads: list[tuple[int, str]] = []
        self.begun = [threading.Event() for _ in UNITS]
        self.may_end = [threading.Event() for _ in UNITS]
        for event in self.may_end:
            event.set()
        self.broken: set[int] = set()

    def hold(self, number: int) -> None:
        self.may_end[number].clear()

    def read(self, unit: WorkUnit):
        self.reads.append((unit.number, threading.current_thread().name))
        self.begun[unit.number].set()
        assert self.may_end[unit.number].wait(LIMIT)
        if unit.number in self.broken:
            raise OSError(f"unit {unit.number} is torn")
        return np.arange(unit.start, unit.stop), np.arange(unit.rows)

    def numbers(self) -> list[int]:
        return [number for number, _ in self.reads]


@pytest.fixture
def source():
    return Source()


def test_scheduled_units_are_read_once_by_the_reader(source):
    """Units that were scheduled come from the reader's thread, in order, each read once."""
    with Prefetcher(source.read) as prefetcher:
        prefetcher.schedule(UNITS)
        for event in source.begun:
            assert event.wait(LIMIT)
        for unit in UNITS:
            inputs, targets = prefetcher.take(unit, LIMIT)
            np.testing.assert_array_equal(inputs, np.arange(unit.start, unit.stop))
            assert len(targets) == unit.rows
    assert source.numbers() == list(range(6))
    assert {name for _, name in source.reads} == {"dask-belief-prefetch"}


def test_an_unscheduled_unit_is_read_by_the_caller(source):
    """What nobody scheduled is read at once, in the caller's thread, and no thread is started."""
    with Prefetcher(source.read) as prefetcher:
        prefetcher.take(UNITS[2], LIMIT)
    assert source.reads == [(2, threading.current_thread().name)]


def test_a_unit_out_of_turn_is_read_by_the_caller(source):
    """Whoever wants a unit that is still queued does not wait for those before it."""
    source.hold(0)
    with Prefetcher(source.read) as prefetcher:
        prefetcher.schedule(UNITS[:3])
        assert source.begun[0].wait(LIMIT)
        inputs, _ = prefetcher.take(UNITS[2], LIMIT)
        assert inputs[0] == 20
        assert source.reads[1] == (2, threading.current_thread().name)
        source.may_end[0].set()
        prefetcher.take(UNITS[0], LIMIT)
        prefetcher.take(UNITS[1], LIMIT)
    assert sorted(source.numbers()) == [0, 1, 2]


def test_reading_ahead_stops_when_enough_is_ready(source):
    """With room for one unit the second is read after the first was taken, and a later one can still be had."""
    with Prefetcher(source.read, ready_bytes=1) as prefetcher:
        prefetcher.schedule(UNITS[:3])
        assert source.begun[0].wait(LIMIT)
        prefetcher.take(UNITS[2], LIMIT)
        assert not source.begun[1].is_set()
        prefetcher.take(UNITS[0], LIMIT)
        assert source.begun[1].wait(LIMIT)
        prefetcher.take(UNITS[1], LIMIT)
    assert sorted(source.numbers()) == [0, 1, 2]


def test_a_read_that_does_not_end_is_named(source):
    """Waiting for a read that has begun has a limit, and the error says which unit."""
    source.hold(1)
    with Prefetcher(source.read) as prefetcher:
        prefetcher.schedule([UNITS[1]])
        assert source.begun[1].wait(LIMIT)
        with pytest.raises(NoProgressError, match=r"unit 1 \(rows 10 to 20\)"):
            prefetcher.take(UNITS[1], 0.01)
        source.may_end[1].set()
        assert prefetcher.take(UNITS[1], LIMIT)[0][0] == 10


def test_an_error_of_the_reader_surfaces_at_take(source):
    """A unit that cannot be read raises where it is taken; others go on, and it can be tried again."""
    source.broken.add(0)
    with Prefetcher(source.read) as prefetcher:
        prefetcher.schedule(UNITS[:2])
        assert source.begun[1].wait(LIMIT)
        with pytest.raises(OSError, match="unit 0 is torn"):
            prefetcher.take(UNITS[0], LIMIT)
        assert prefetcher.take(UNITS[1], LIMIT)[0][0] == 10
        source.broken.clear()
        assert prefetcher.take(UNITS[0], LIMIT)[0][0] == 0


def test_drop_forgets_what_was_scheduled_ready_or_being_read(source):
    """After a drop nothing old comes back: the unit under way is read anew, the queue is empty."""
    source.hold(0)
    with Prefetcher(source.read) as prefetcher:
        prefetcher.schedule(UNITS[:3])
        assert source.begun[0].wait(LIMIT)
        prefetcher.drop()
        source.may_end[0].set()
        prefetcher.take(UNITS[0], LIMIT)
        prefetcher.schedule([UNITS[4]])
        prefetcher.take(UNITS[4], LIMIT)
    assert source.numbers().count(0) == 2
    assert not {1, 2} & set(source.numbers())


def test_the_cache_is_asked_first_and_filled(source):
    """The second pass reads nothing, and each use is one lookup."""
    cache = UnitCache(10**6)
    with Prefetcher(source.read, cache) as prefetcher:
        for _ in range(2):
            prefetcher.schedule(UNITS)
            for unit in UNITS:
                prefetcher.take(unit, LIMIT)
    assert sorted(source.numbers()) == list(range(6))
    assert (cache.stats.hits, cache.stats.misses) == (6, 6)


def test_close_ends_the_thread_and_reading_goes_on_without_it(source):
    """After close no thread is left, nothing is read ahead, and units can still be had."""
    prefetcher = Prefetcher(source.read)
    prefetcher.schedule(UNITS[:1])
    prefetcher.take(UNITS[0], LIMIT)
    prefetcher.close()
    prefetcher.close()
    assert "dask-belief-prefetch" not in {thread.name for thread in threading.enumerate()}
    prefetcher.schedule(UNITS[1:])
    assert prefetcher.take(UNITS[1], LIMIT)[0][0] == 10
    assert source.numbers() == [0, 1]


def test_close_does_not_wait_for_ever(source):
    """A read that hangs is left behind after the limit, and its thread ends once the read does."""
    source.hold(0)
    prefetcher = Prefetcher(source.read)
    prefetcher.schedule(UNITS[:2])
    assert source.begun[0].wait(LIMIT)
    prefetcher.close(timeout_seconds=0.01)
    thread = prefetcher._thread
    assert thread is not None
    assert thread.is_alive()
    source.may_end[0].set()
    thread.join(LIMIT)
    assert not thread.is_alive()
    assert source.numbers() == [0]


def test_a_shelf_without_room_is_refused():
    """Fewer than 1 byte of ready units makes no sense."""
    with pytest.raises(ArgumentError, match=r"^ready_bytes"):
        Prefetcher(lambda unit: (np.zeros(1), np.zeros(1)), ready_bytes=0)


def test_what_is_in_the_cache_is_not_read_ahead(source):
    """It is left to `take`, so that the thread need not wake up, nor be made, for it."""
    cache = UnitCache(10**6)
    with Prefetcher(source.read, cache) as prefetcher:
        prefetcher.take(UNITS[0], timeout_seconds=10)
        prefetcher.schedule([UNITS[0]])
        assert prefetcher._thread is None
        prefetcher.take(UNITS[0], timeout_seconds=10)
    assert (cache.stats.hits, cache.stats.misses) == (1, 1)


def test_a_unit_comes_in_blocks(source):
    """Blocks are cut from the unit, which is read once; the last is short."""
    with Prefetcher(source.read) as prefetcher:
        blocks = [inputs.tolist() for inputs, _ in prefetcher.blocks(UNITS[1], 4, LIMIT)]
    assert blocks == [[10, 11, 12, 13], [14, 15, 16, 17], [18, 19]]
    assert source.numbers() == [1]


@pytest.mark.parametrize(("cache_bytes", "expected"), [(0, 10 * 2 * 8), (10_000, 0)])
def test_bytes_that_wait_are_those_that_nothing_else_keeps(source, cache_bytes, expected) -> None:
    """A unit that was read ahead counts until it is taken; one that the cache has, too, does not."""
    with Prefetcher(source.read, UnitCache(cache_bytes)) as prefetcher:
        assert prefetcher.n_bytes == 0
        prefetcher.schedule(UNITS[:1])
        eventually(lambda: len(prefetcher._ready) == 1)
        assert prefetcher.n_bytes == expected
        prefetcher.take(UNITS[0], LIMIT)
        assert prefetcher.n_bytes == 0


def test_a_unit_is_there_until_it_may_be_let_go(source) -> None:
    """The call comes in the thread that used it, with the unit still held, also where that was broken off."""
    units: list[weakref.ref[np.ndarray]] = []
    calls: list[tuple[bool, bool]] = []
    mine = threading.current_thread()

    def read(unit: WorkUnit):
        inputs, targets = source.read(unit)
        units.append(weakref.ref(inputs))
        return inputs, targets

    def note() -> None:
        calls.append((units[-1]() is not None, threading.current_thread() is mine))

    with Prefetcher(read, before_letting_go=note) as prefetcher:
        assert sum(len(inputs) for inputs, _ in prefetcher.blocks(UNITS[0], 4, LIMIT)) == 10
        assert calls == [(True, True)]
        assert units[0]() is None
        broken_off = prefetcher.blocks(UNITS[1], 4, LIMIT)
        next(broken_off)
        assert len(calls) == 1
        broken_off.close()
        assert calls == [(True, True)] * 2
        assert units[1]() is None
