"""Device memory: who used it last, and how much is left."""

from __future__ import annotations

import threading
from collections import Counter

from tests.strict_fake.device import Progress, Stream, current_device

DEVICE_BYTES = 8 << 30
"""What a device has."""

_lock = threading.RLock()
# By device.
_used: Counter[int] = Counter()
_limits: Counter[int] = Counter()


class UnorderedAccessError(AssertionError):
    """Memory is used from a stream that does not know whether another one is done with it."""


class OutOfMemoryError(MemoryError):
    """A device has no memory left; CuPy's own name and message."""

    def __init__(self, size: int, total: int, limit: int) -> None:
        limited = f", limit set to: {limit:,} bytes" if limit else ""
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes{limited}).")


class MemoryPool:
    """The memory of the current device, of which nothing is kept back; ``cupy.get_default_memory_pool()``."""

    def take(self, n_bytes: int) -> None:
        """Take so much; raises `OutOfMemoryError`."""
        with _lock:
            limit = self.get_limit()
            if self.used_bytes() + n_bytes > (limit or DEVICE_BYTES):
                raise OutOfMemoryError(n_bytes, self.used_bytes(), limit)
            _used[current_device()] += n_bytes

    def give_back(self, n_bytes: int, device: int) -> None:
        """Give so much back, of any device."""
        with _lock:
            _used[device] -= n_bytes

    def used_bytes(self) -> int:
        """What arrays hold."""
        return _used[current_device()]

    def free_bytes(self) -> int:
        """What was freed and is kept for later: nothing."""
        return 0

    def total_bytes(self) -> int:
        """Both."""
        return self.used_bytes()

    def free_all_blocks(self, stream: Stream | None = None) -> None:
        """Give back what is kept."""

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        """Take no more than that from now on; 0 for what the device has."""
        _limits[current_device()] = int(fraction * DEVICE_BYTES) if fraction is not None else size or 0

    def get_limit(self) -> int:
        """Give the limit; 0 where there is none."""
        return _limits[current_device()]


_pool = MemoryPool()


class Memory:
    """A piece of a device's memory, shared by an array and its views; keeps who used it last.

    Views of different parts count as the same memory, so that what is found may be harmless; what is not found is not.
    """

    def __init__(self, n_bytes: int) -> None:
        _pool.take(n_bytes)
        self._n_bytes, self._device = n_bytes, current_device()
        self._written: tuple[Progress, int] | None = None
        self._read: dict[Progress, int] = {}

    def __del__(self) -> None:
        # There is nothing to give back where nothing could be taken.
        if hasattr(self, "_n_bytes"):
            _pool.give_back(self._n_bytes, self._device)

    def read_by(self, stream: Progress) -> None:
        """Note a read; raises `UnorderedAccessError` where it may come before the last write."""
        with _lock:
            self._check_after_write(stream, "reads")
            self._read[stream] = stream.next()

    def written_by(self, stream: Progress) -> None:
        """Note a write; raises `UnorderedAccessError` where it may come before the last write or read."""
        with _lock:
            self._check_after_write(stream, "writes")
            for other, number in self._read.items():
                if not stream.is_after(other, number):
                    raise UnorderedAccessError("a stream writes what another one may still be reading; wait for it")
            self._written, self._read = (stream, stream.next()), {}

    def _check_after_write(self, stream: Progress, what: str) -> None:
        if self._written is not None and not stream.is_after(*self._written):
            raise UnorderedAccessError(f"a stream {what} what another one may still be writing; wait for it first")
