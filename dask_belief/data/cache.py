"""Decoded units, kept between passes within a stated number of bytes.

Training reads its data pass after pass. When they do not fit, a cache that keeps what was used last has always just
thrown away what comes next, and never hits. This one keeps what it has: on every pass it hits on all that fits.

A newcomer that finds no room is turned away, unless it was asked for three times since a resident was last used; then
it takes that resident's place, the one unused for longest first. Between two uses of a resident, passes that visit
every unit once, in any order and a new one each time, can ask for another unit at most twice. So nothing is ever
thrown out while the work stays the same, and when it changes (a lost replica's units come here) the cache follows
within three passes. The rule counts lookups, never seconds.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from dask_belief.data.batches import Batch
from dask_belief.errors import ArgumentError

# A newcomer takes the place of a resident that was not used since the newcomer's this many-th last lookup.
LOOKUPS_TO_ENTER = 3

# Units that are not in the cache and whose lookups are remembered; about 200 bytes each.
REMEMBERED_KEYS = 16_384


@dataclass(frozen=True)
class CacheStats:
    """What a cache has done so far.

    Attributes
    ----------
    hits, misses
        Lookups that found their unit, and those that did not.
    evictions
        Residents that gave way.
    entries, n_bytes
        Residents now, and their bytes.
    """

    hits: int
    misses: int
    evictions: int
    entries: int
    n_bytes: int


class UnitCache:
    """Keeps decoded units within `capacity_bytes`; safe from several threads.

    Parameters
    ----------
    capacity_bytes
        Bytes of all arrays together; 0 keeps nothing.

    Raises
    ------
    ArgumentError
        If `capacity_bytes` is negative.

    Examples
    --------
    >>> import numpy as np
    >>> cache = UnitCache(capacity_bytes=100)
    >>> cache.get(0) is None
    True
    >>> cache.put(0, (np.zeros(8, dtype=np.float32), np.zeros(2, dtype=np.int64)))
    True
    >>> cache.get(0) is None, cache.stats.n_bytes
    (False, 48)
    """

    def __init__(self, capacity_bytes: int) -> None:
        if capacity_bytes < 0:
            raise ArgumentError(f"capacity_bytes: 0 or more is needed, found {capacity_bytes}")
        self.capacity_bytes = capacity_bytes
        self._lock = threading.Lock()
        # Residents, the one unused for longest first.
        self._batches: OrderedDict[Hashable, Batch] = OrderedDict()
        self._last_used: dict[Hashable, int] = {}
        # The last lookups of keys that were not resident, the key unasked for longest first.
        self._lookups: OrderedDict[Hashable, tuple[int, ...]] = OrderedDict()
        self._clock = 0
        self._n_bytes = 0
        self._hits = self._misses = self._evictions = 0

    def get(self, key: Hashable) -> Batch | None:
        """Look a unit up; the arrays are read-only and shared. Call it once for each use of a unit."""
        with self._lock:
            self._clock += 1
            batch = self._batches.get(key)
            if batch is not None:
                self._hits += 1
                self._batches.move_to_end(key)
                self._last_used[key] = self._clock
                return batch
            self._misses += 1
            self._lookups[key] = (*self._lookups.pop(key, ()), self._clock)[-LOOKUPS_TO_ENTER:]
            if len(self._lookups) > REMEMBERED_KEYS:
                self._lookups.popitem(last=False)
            return None

    def __contains__(self, key: Hashable) -> bool:
        """Whether a unit is resident; no use, and no lookup that counts."""
        with self._lock:
            return key in self._batches

    def put(self, key: Hashable, batch: Batch) -> bool:
        """Offer a unit that was just read, and give its arrays away: those on the host become read-only.

        Returns
        -------
        bool
            Whether the unit is in the cache now.
        """
        for rows in batch:
            if isinstance(rows, np.ndarray):
                rows.flags.writeable = False
        needed = sum(rows.nbytes for rows in batch)
        with self._lock:
            if key in self._batches:
                return True
            if needed > self.capacity_bytes:
                return False
            leaving = self._give_way_to(key, needed)
            if leaving is None:
                return False
            for old in leaving:
                self._evict(old)
            self._batches[key] = batch
            self._n_bytes += needed
            self._last_used[key] = self._lookups.pop(key, (self._clock,))[-1]
            return True

    def has_room(self, key: Hashable, n_bytes: int) -> bool:
        """Whether `put` would take a unit of so many bytes now; no lookup that counts."""
        with self._lock:
            is_small_enough = n_bytes <= self.capacity_bytes
            return key in self._batches or (is_small_enough and self._give_way_to(key, n_bytes) is not None)

    def shrink(self, capacity_bytes: int) -> None:
        """Keep no more than so many bytes from now on; the units unused for longest leave first."""
        with self._lock:
            self.capacity_bytes = min(self.capacity_bytes, max(0, capacity_bytes))
            while self._n_bytes > self.capacity_bytes:
                self._evict(next(iter(self._batches)))

    def clear(self) -> None:
        """Forget all units, and who asked for them; the counts of hits and misses go on."""
        with self._lock:
            self._batches.clear()
            self._last_used.clear()
            self._lookups.clear()
            self._n_bytes = 0

    @property
    def stats(self) -> CacheStats:
        """The counts at this moment."""
        with self._lock:
            return CacheStats(self._hits, self._misses, self._evictions, len(self._batches), self._n_bytes)

    def _evict(self, key: Hashable) -> None:
        """Forget one resident, but not when it was used last."""
        self._n_bytes -= sum(rows.nbytes for rows in self._batches.pop(key))
        self._lookups[key] = (self._last_used.pop(key),)
        self._evictions += 1

    def _give_way_to(self, key: Hashable, needed: int) -> list[Hashable] | None:
        """The residents that leave so that `key` has room, perhaps none; None when too few have to."""
        free = self.capacity_bytes - self._n_bytes
        lookups = self._lookups.get(key, ())
        since = lookups[0] if len(lookups) == LOOKUPS_TO_ENTER else 0
        leaving: list[Hashable] = []
        for resident, batch in self._batches.items():
            if free >= needed or self._last_used[resident] >= since:
                break
            leaving.append(resident)
            free += sum(rows.nbytes for rows in batch)
        return leaving if free >= needed else None
