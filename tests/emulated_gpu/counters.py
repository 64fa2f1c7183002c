"""What the emulated device was asked to do: launches, waits, allocations, copies."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields

LIBRARY = "libamdhip64.so.7"


@dataclass
class Counters:
    """Counts of one process, over all its devices and threads.

    Attributes
    ----------
    launches
        Of kernels, and of matrix products, each of which is one on a device.
    waits
        Calls in which the host waited for the device.
    allocations
        Of device memory from the driver; what CuPy's pool hands out again is none.
    copies_to_device, copies_to_host, copies_within, bytes_to_device, bytes_to_host, bytes_within
        Copies by direction, and their bytes.
    """

    launches: int = 0
    waits: int = 0
    allocations: int = 0
    copies_to_device: int = 0
    copies_to_host: int = 0
    copies_within: int = 0
    bytes_to_device: int = 0
    bytes_to_host: int = 0
    bytes_within: int = 0


@contextmanager
def counted() -> Iterator[Counters]:
    """Count what happens in the block; the numbers are there once it has ended."""
    counters, before = Counters(), _read()
    yield counters
    for field, then, now in zip(fields(Counters), before, _read(), strict=True):
        setattr(counters, field.name, now - then)


def _read() -> list[int]:
    numbers = (ctypes.c_long * len(astuple(Counters())))()
    _library().emulated_gpu_counters(numbers)
    return list(numbers)


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(LIBRARY)
