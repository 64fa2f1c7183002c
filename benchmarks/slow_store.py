"""A Zarr store that gives so many bytes a second, to all processes of this machine together."""

from __future__ import annotations

import asyncio
import fcntl
import struct
import time
from collections.abc import Iterable
from pathlib import Path

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, WrapperStore

_TIME = struct.Struct("d")


class SlowStore(WrapperStore[LocalStore]):
    """A folder behind a line of limited width, as a store over a network is; it can be sent to other processes.

    Who reads books the line for as long as the bytes take, after what others have booked, and has them at the end of
    that time. The line saves nothing up while nobody reads. Bookings are kept in a file beside the folder, in seconds
    of the system's monotonic clock, which is one for all processes.

    Parameters
    ----------
    path
        The folder.
    bytes_per_second
        Of the line.
    """

    def __init__(self, path: Path, bytes_per_second: float) -> None:
        super().__init__(LocalStore(path, read_only=True))
        self._path = path
        self._bytes_per_second = bytes_per_second
        self._booked_until = path.with_suffix(".line")

    def __reduce__(self) -> tuple[type[SlowStore], tuple[Path, float]]:
        return type(self), (self._path, self._bytes_per_second)

    def __str__(self) -> str:
        return f"{self._path.name} at {self._bytes_per_second / 1e6:g} MB/s"

    def with_read_only(self, read_only: bool = True) -> SlowStore:
        """Give the store itself: it is only read."""
        return self

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read, and wait until the bytes are through."""
        found = await super().get(key, prototype, byte_range)
        if found is not None:
            await self._pass(len(found))
        return found

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read parts, and wait until their bytes are through."""
        found = await super().get_partial_values(prototype, key_ranges)
        await self._pass(sum(len(part) for part in found if part is not None))
        return found

    async def _pass(self, n_bytes: int) -> None:
        until = self._book(n_bytes / self._bytes_per_second)
        await asyncio.sleep(max(0.0, until - time.monotonic()))

    def _book(self, seconds: float) -> float:
        """Book the line, and give the end of the booked time."""
        with self._booked_until.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            stored = file.read(_TIME.size)
            before = _TIME.unpack(stored)[0] if stored else 0.0
            until = max(before, time.monotonic()) + seconds
            file.truncate(0)
            file.write(_TIME.pack(until))
        return until
