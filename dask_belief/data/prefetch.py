"""Reading ahead: the next units are read and decoded while the present one is computed.

::

    schedule ──> queued ──> being read ──> ready ──> take
                    └───────────────────────────────┘
                  a unit that is wanted before its turn is read by who wants it

One thread reads, and stops while what is ready fills `ready_bytes`. `take` waits for one thing only, the end of a
read that has begun, and so cannot wait for ever on a full shelf.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Self

from dask_belief.data.batches import Batch, blocks_of
from dask_belief.data.cache import UnitCache
from dask_belief.data.units import WorkUnit
from dask_belief.errors import ArgumentError, NoProgressError

# Two units of the largest size that is planned: one to be taken while the next is read.
READY_BYTES = 128 * 2**20


class Prefetcher:
    """Reads units ahead in a thread of its own; safe from several threads. A context manager that closes itself.

    Parameters
    ----------
    read
        Reads and decodes one unit. It is called by the prefetcher's thread and by those that call `take`.
    cache
        Where units are looked for first, and offered when they were read; each use is one lookup. Its keys are the
        units, so it belongs to one data set and one dtype.
    ready_bytes
        Read no further while this much is ready and not yet taken. One unit is always read ahead, whatever its size.
    before_letting_go
        Called by the thread that goes through `blocks`, at the end of a unit while it is still there. A device may be
        at its rows yet, and this thread's next ones come to the memory that they leave.

    Raises
    ------
    ArgumentError
        If `ready_bytes` is less than 1.

    Examples
    --------
    >>> import numpy as np
    >>> def read(unit):
    ...     return np.arange(unit.start, unit.stop), np.zeros(unit.rows)
    >>> with Prefetcher(read) as prefetcher:
    ...     prefetcher.schedule([WorkUnit(0, 0, 2), WorkUnit(1, 2, 4)])
    ...     prefetcher.take(WorkUnit(1, 2, 4), timeout_seconds=10)[0].tolist()
    [2, 3]
    """

    def __init__(
        self,
        read: Callable[[WorkUnit], Batch],
        cache: UnitCache | None = None,
        *,
        ready_bytes: int = READY_BYTES,
        before_letting_go: Callable[[], None] = lambda: None,
    ) -> None:
        if ready_bytes < 1:
            raise ArgumentError(f"ready_bytes: at least 1 is needed, found {ready_bytes}")
        self._read = read
        self._cache = cache
        self._ready_limit = ready_bytes
        self._before_letting_go = before_letting_go
        # Guards all that follows, and wakes whoever waits for a change of it.
        self._changed = threading.Condition()
        self._queued: OrderedDict[WorkUnit, None] = OrderedDict()
        self._reading: WorkUnit | None = None
        self._ready: dict[WorkUnit, Batch | BaseException] = {}
        self._ready_bytes = 0
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def schedule(self, units: Iterable[WorkUnit]) -> None:
        """Read these units next, after those that are scheduled already. Nothing is read ahead after `close`.

        What is in the cache needs no reading, and is left to `take`: for small units the thread's wake-ups would cost
        more than what they are for.
        """
        with self._changed:
            if self._is_closed:
                return
            for unit in units:
                is_cached = self._cache is not None and unit in self._cache
                if unit != self._reading and unit not in self._ready and not is_cached:
                    self._queued[unit] = None
            if not self._queued:
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._read_ahead, name="dask-belief-prefetch", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def take(self, unit: WorkUnit, timeout_seconds: float) -> Batch:
        """Give a unit's inputs and targets, and forget it.

        It comes from what was read ahead, from the cache, or is read by the caller.

        Parameters
        ----------
        unit
            Scheduled or not.
        timeout_seconds
            How long to wait for a read that has begun.

        Returns
        -------
        tuple of numpy.ndarray
            Inputs and targets; read-only if a cache is in use.

        Raises
        ------
        NoProgressError
            If the wait was longer than `timeout_seconds`.
        Exception
            Whatever `read` raised for this unit.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._reading != unit, timeout_seconds):
                raise NoProgressError(
                    f"take: reading unit {unit.number} (rows {unit.start} to {unit.stop}) did not end within "
                    f"{timeout_seconds} s; look whether the store answers, or allow more time"
                )
            self._queued.pop(unit, None)
            found = self._ready.pop(unit, None)
            if found is not None:
                self._ready_bytes -= _n_bytes(found)
                self._changed.notify_all()
        if isinstance(found, BaseException):
            raise found
        return self._look_up_or_read(unit) if found is None else found

    def blocks(self, unit: WorkUnit, block_rows: int, timeout_seconds: float) -> Iterator[Batch]:
        """Give a unit, taken as by `take`, in blocks of so many rows, the last perhaps of fewer."""
        batch = self.take(unit, timeout_seconds)
        try:
            yield from blocks_of(batch, block_rows)
        finally:
            self._before_letting_go()

    @property
    def n_bytes(self) -> int:
        """Of what was read ahead and is not yet taken, but for what the cache holds, too."""
        with self._changed:
            ready = dict(self._ready)
        return sum(_n_bytes(found) for unit, found in ready.items() if self._cache is None or unit not in self._cache)

    def drop(self) -> None:
        """Forget all that was scheduled or read ahead; a read that has begun ends unseen."""
        with self._changed:
            self._queued.clear()
            self._ready.clear()
            self._ready_bytes = 0
            self._reading = None
            self._changed.notify_all()

    def close(self, timeout_seconds: float = 10.0) -> None:
        """Forget all and end the thread, waiting so long at most for a read that has begun. Twice does no harm."""
        with self._changed:
            self._is_closed = True
            thread = self._thread
        self.drop()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _read_ahead(self) -> None:
        """The thread: read what is queued while there is room, until closed."""
        while True:
            with self._changed:
                self._changed.wait_for(self._should_go_on)
                if self._is_closed:
                    return
                unit, _ = self._queued.popitem(last=False)
                self._reading = unit
            found: Batch | BaseException
            try:
                found = self._look_up_or_read(unit)
            except BaseException as error:
                # It belongs to whoever takes the unit.
                found = error
            with self._changed:
                # After `drop` nobody waits for this unit any more.
                if self._reading is unit:
                    self._reading = None
                    self._ready[unit] = found
                    self._ready_bytes += _n_bytes(found)
                    self._changed.notify_all()
            # Not to be held while waiting for the next.
            del found

    def _should_go_on(self) -> bool:
        has_room = self._ready_bytes < self._ready_limit
        return self._is_closed or (bool(self._queued) and has_room)

    def _look_up_or_read(self, unit: WorkUnit) -> Batch:
        found = self._cache.get(unit) if self._cache is not None else None
        if found is not None:
            return found
        batch = self._read(unit)
        if self._cache is not None:
            self._cache.put(unit, batch)
        return batch


def _n_bytes(found: Batch | BaseException) -> int:
    return 0 if isinstance(found, BaseException) else sum(rows.nbytes for rows in found)
