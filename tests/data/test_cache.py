"""The cache of decoded units: bounded in bytes, and useful when passes are larger than it is."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_belief.data.cache import UnitCache
from dask_belief.errors import ArgumentError

UNIT_BYTES = 100


def unit(number: int, n_bytes: int = UNIT_BYTES):
    return np.full(n_bytes - 8, number % 256, np.uint8), np.array([number])


def run(cache: UnitCache, order) -> int:
    """Use units in this order as a replica does; gives the hits."""
    before = cache.stats.hits
    for number in order:
        if cache.get(number) is None:
            cache.put(number, unit(number))
    return cache.stats.hits - before


def test_a_unit_comes_back_as_it_was_put():
    """A hit gives the arrays that were put, read-only."""
    cache = UnitCache(1_000)
    inputs, targets = unit(7)
    assert cache.get(7) is None
    assert cache.put(7, (inputs, targets))
    found = cache.get(7)
    assert found is not None
    assert found[0] is inputs
    assert found[1] is targets
    with pytest.raises(ValueError, match="read-only"):
        found[0][0] = 1
    assert (cache.stats.hits, cache.stats.misses, cache.stats.n_bytes) == (1, 1, UNIT_BYTES)


def test_cyclic_passes_hit_on_all_that_fits():
    """With room for 4 of 10 units, every pass after the first hits 4 times; a plain LRU cache never would."""
    cache = UnitCache(4 * UNIT_BYTES)
    assert run(cache, range(10)) == 0
    assert [run(cache, range(10)) for _ in range(5)] == [4] * 5


@given(seed=st.integers(0, 20), fits=st.integers(0, 12), n_units=st.integers(1, 12))
def test_shuffled_passes_hit_on_all_that_fits(seed, fits, n_units):
    """Passes in a new random order each time never throw a resident out."""
    cache = UnitCache(fits * UNIT_BYTES)
    generator = np.random.default_rng(seed)
    run(cache, generator.permutation(n_units))
    for _ in range(6):
        assert run(cache, generator.permutation(n_units)) == min(fits, n_units)
    assert cache.stats.evictions == 0


def test_it_follows_when_the_work_changes():
    """Units that are no longer asked for give way to those asked for three times since, and hits come back."""
    cache = UnitCache(4 * UNIT_BYTES)
    run(cache, list(range(10)) * 3)
    hits = [run(cache, range(100, 110)) for _ in range(5)]
    assert hits == [0, 0, 0, 4, 4]
    assert cache.stats.evictions == 4


def test_only_as_many_give_way_as_must():
    """A large newcomer takes the room of several residents, those unused for longest, or of none."""
    cache = UnitCache(4 * UNIT_BYTES)
    run(cache, range(4))
    for _ in range(2):
        cache.get(99)
    assert not cache.put(99, unit(99, 2 * UNIT_BYTES))
    cache.get(3)
    cache.get(99)
    assert cache.put(99, unit(99, 2 * UNIT_BYTES))
    assert [cache.get(number) is not None for number in range(4)] == [False, False, True, True]


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(8, 400)), max_size=80), st.integers(0, 600))
def test_bytes_never_exceed_the_capacity(uses, capacity):
    """Whatever comes in whatever size, residents fit and the count of bytes is theirs."""
    cache = UnitCache(capacity)
    resident: dict[int, int] = {}
    for number, n_bytes in uses:
        if cache.get(number) is None:
            resident.pop(number, None)
            if cache.put(number, unit(number, n_bytes)):
                resident[number] = n_bytes
        assert cache.stats.n_bytes <= capacity
    held = [size for number, size in resident.items() if cache.get(number) is not None]
    assert cache.stats.n_bytes == sum(held)
    assert cache.stats.entries == len(held)


def test_the_memory_of_strangers_is_bounded(monkeypatch):
    """Keys that were only ever asked for are forgotten, oldest first."""
    monkeypatch.setattr("dask_belief.data.cache.REMEMBERED_KEYS", 3)
    cache = UnitCache(0)
    for number in range(10):
        cache.get(number)
    assert list(cache._lookups) == [7, 8, 9]


def test_clear_forgets():
    """A cleared cache is empty and starts to fill again."""
    cache = UnitCache(4 * UNIT_BYTES)
    run(cache, range(4))
    cache.clear()
    assert cache.stats.n_bytes == cache.stats.entries == 0
    assert run(cache, [*range(4), *range(4)]) == 4


def test_shrinking_keeps_what_was_used_last() -> None:
    """As much as fits leaves, the units unused for longest first; the room is gone for good, and never grows."""
    cache = UnitCache(4 * UNIT_BYTES)
    for number in range(4):
        cache.put(number, unit(number))
    assert cache.get(0) is not None
    cache.shrink(2 * UNIT_BYTES)
    assert [number for number in range(4) if number in cache] == [0, 3]
    assert (cache.stats.n_bytes, cache.stats.evictions) == (2 * UNIT_BYTES, 2)
    assert not cache.has_room(4, UNIT_BYTES)
    cache.shrink(3 * UNIT_BYTES)
    assert cache.capacity_bytes == 2 * UNIT_BYTES
    cache.shrink(-1)
    assert (cache.capacity_bytes, cache.stats.n_bytes, cache.stats.entries) == (0, 0, 0)


def test_putting_twice_counts_once():
    """Two threads that read the same unit leave one copy."""
    cache = UnitCache(1_000)
    assert cache.put(1, unit(1))
    assert cache.put(1, unit(1))
    assert cache.stats.n_bytes == UNIT_BYTES


def test_threads_do_not_disturb_the_count():
    """After four threads used overlapping units at once, bytes and entries agree."""
    cache = UnitCache(6 * UNIT_BYTES)
    threads = [
        threading.Thread(target=run, args=(cache, np.random.default_rng(seed).integers(0, 12, 500)))
        for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = cache.stats
    assert stats.hits + stats.misses == 2_000
    assert stats.n_bytes == stats.entries * UNIT_BYTES <= 6 * UNIT_BYTES


def test_a_negative_capacity_is_refused():
    """Fewer than 0 bytes cannot be kept."""
    with pytest.raises(ArgumentError, match=r"^capacity_bytes"):
        UnitCache(-1)


def test_looking_whether_a_unit_is_there_is_no_use() -> None:
    """It counts neither as a hit nor as a miss, and changes nothing of who gives way."""
    cache = UnitCache(capacity_bytes=100)
    cache.put("a", (np.zeros(8), np.zeros(2)))
    assert "a" in cache and "b" not in cache
    assert (cache.stats.hits, cache.stats.misses) == (0, 0)


@given(uses=st.lists(st.tuples(st.integers(0, 7), st.integers(9, 60))), capacity=st.integers(0, 150))
def test_room_is_told_as_it_is_found(uses, capacity) -> None:
    """Whatever came before, `has_room` says what `put` does, and changes nothing itself."""
    cache = UnitCache(capacity)
    for number, n_bytes in uses:
        cache.get(number)
        before = cache.stats
        has_room = cache.has_room(number, n_bytes)
        assert cache.stats == before
        assert cache.put(number, unit(number, n_bytes)) is has_room
