"""Reading where nothing has to be decoded: in pieces, by who computes, just before they are computed.

::

    scheduled      | unit 7                | unit 8                | unit 9 ...
    pieces         |  done | now |  ready in the system's memory   | not asked for yet
                                 └────────── ahead_bytes ─────────┘

Rows of plain chunks (`dask_belief.data.plain_chunks`) need no processor but for one copy out of the system's memory.
So no thread reads ahead: the system is asked to bring the next rows from the disk, and does so while others are
computed. The copy goes through one buffer of a few megabytes, which stays in the processor's cache until its rows
were computed; units that are read ahead as a whole go to main memory and back. For logistic regression that is a fifth
of the processor's time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator

from dask_belief.data.batches import Batch, blocks_of
from dask_belief.data.cache import UnitCache
from dask_belief.data.units import WorkUnit
from dask_belief.errors import ArgumentError

# A piece and what it is computed with stay in the processor's last cache, of which a core has 2 MB or more; opening the
# files of a piece, 30 microseconds, is a tenth of copying it.
PIECE_BYTES = 4 * 2**20

# About a twentieth of a second of a fast disk.
AHEAD_BYTES = 64 * 2**20


class Streamer:
    """Gives units in blocks of rows, as `Prefetcher` does, and reads them in the caller's thread.

    Parameters
    ----------
    read
        Reads the rows from `start` up to `stop`.
    advise
        Asks the system to bring these rows near, and does not wait for them.
    row_bytes
        Bytes of a row as `read` gives it.
    cache
        Where units are looked for first; each use is one lookup. Units that have room there are read as a whole.
    piece_bytes, ahead_bytes
        Read about so much at once, and ask for so much ahead.

    Raises
    ------
    ArgumentError
        If `row_bytes`, `piece_bytes` or `ahead_bytes` is less than 1.

    Examples
    --------
    >>> import numpy as np
    >>> streamer = Streamer(lambda low, high: (np.arange(low, high), np.zeros(high - low)), lambda low, high: None, 16)
    >>> streamer.schedule([WorkUnit(0, 0, 5)])
    >>> [inputs.tolist() for inputs, targets in streamer.blocks(WorkUnit(0, 0, 5), 2, timeout_seconds=10)]
    [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        read: Callable[[int, int], Batch],
        advise: Callable[[int, int], None],
        row_bytes: int,
        cache: UnitCache | None = None,
        *,
        piece_bytes: int = PIECE_BYTES,
        ahead_bytes: int = AHEAD_BYTES,
    ) -> None:
        for name, value in (("row_bytes", row_bytes), ("piece_bytes", piece_bytes), ("ahead_bytes", ahead_bytes)):
            if value < 1:
                raise ArgumentError(f"{name}: at least 1 is needed, found {value}")
        self._read = read
        self._advise = advise
        self._row_bytes = row_bytes
        self._cache = cache
        self._piece_bytes = piece_bytes
        self._ahead_rows = -(-ahead_bytes // row_bytes)
        # Units are scheduled by another thread than the one that computes.
        self._lock = threading.Lock()
        # Units to come, and the row up to which each was asked for.
        self._queued: dict[WorkUnit, int] = {}

    def schedule(self, units: Iterable[WorkUnit]) -> None:
        """Ask for these units next, after those that are scheduled already; returns at once."""
        with self._lock:
            for unit in units:
                self._queued.setdefault(unit, unit.start)

    def blocks(self, unit: WorkUnit, block_rows: int, timeout_seconds: float) -> Iterator[Batch]:
        """Give the inputs and targets of a unit in blocks of so many rows, the last perhaps of fewer.

        Parameters
        ----------
        unit
            Scheduled or not.
        block_rows
            Rows of a block; a block is valid until the next is asked for.
        timeout_seconds
            Not used: the system is waited for as long as it takes.

        Raises
        ------
        Exception
            Whatever `read` raises.
        """
        with self._lock:
            asked_up_to = self._queued.pop(unit, unit.start)
        found = self._cache.get(unit) if self._cache is not None else None
        if found is None and self._cache is not None and self._cache.has_room(unit, unit.rows * self._row_bytes):
            found = self._read(unit.start, unit.stop)
            self._cache.put(unit, found)
        if found is not None:
            self._ask_ahead(unit.stop, unit.stop, unit.stop)
            yield from blocks_of(found, block_rows)
            return
        piece_rows = block_rows * max(1, self._piece_bytes // (block_rows * self._row_bytes))
        for start in range(unit.start, unit.stop, piece_rows):
            stop = min(start + piece_rows, unit.stop)
            asked_up_to = self._ask_ahead(stop, unit.stop, max(asked_up_to, stop))
            yield from blocks_of(self._read(start, stop), block_rows)

    def drop(self) -> None:
        """Forget all that was scheduled."""
        with self._lock:
            self._queued.clear()

    def close(self) -> None:
        """Forget all that was scheduled; twice does no harm."""
        self.drop()

    def _ask_ahead(self, start: int, stop: int, asked_up_to: int) -> int:
        """Ask for what comes after row `start` of a unit, as far ahead as is allowed; gives how far in this unit."""
        wanted = []
        until = min(stop, start + self._ahead_rows)
        if until > asked_up_to:
            wanted.append((asked_up_to, until))
        left = self._ahead_rows - (stop - start)
        with self._lock:
            for unit, asked in self._queued.items():
                if left <= 0:
                    break
                if self._cache is None or unit not in self._cache:
                    border = min(unit.stop, unit.start + left)
                    if border > asked:
                        wanted.append((asked, border))
                        self._queued[unit] = border
                    left -= unit.rows
        for low, high in wanted:
            self._advise(low, high)
        return max(asked_up_to, until)
