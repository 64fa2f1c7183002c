"""What the stand-in counts, under the names that the emulated device counts by."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace


@dataclass
class Counters:
    """What a piece of code asked of the device."""

    launches: int = 0
    """Kernels started, matrix products among them."""

    waits: int = 0
    """Times that the host waited for the device."""

    allocations: int = 0
    """New arrays, those among them for which CuPy's pool would find memory that is free."""

    copies_to_device: int = 0
    copies_to_host: int = 0
    copies_within: int = 0
    bytes_to_device: int = 0
    bytes_to_host: int = 0
    bytes_within: int = 0

    def since(self, before: Counters) -> Counters:
        """Give what was counted after `before`."""
        names = [field.name for field in fields(self)]
        return Counters(**{name: getattr(self, name) - getattr(before, name) for name in names})


class DeviceSynchronized(RuntimeError):
    """The host waited where `allow_synchronize` forbids it; CuPy's own name."""

    def __init__(self) -> None:
        super().__init__("Device synchronized unexpectedly")


class _Rules(threading.local):
    """What this thread may do."""

    may_wait: bool = True


_rules = _Rules()
_lock = threading.Lock()
_total = Counters()


def count(**numbers: int) -> None:
    """Add to the counters of these names."""
    with _lock:
        for name, number in numbers.items():
            setattr(_total, name, getattr(_total, name) + number)


def count_wait() -> None:
    """Count that the host waits, unless this thread must not."""
    if not _rules.may_wait:
        raise DeviceSynchronized
    count(waits=1)


@contextmanager
def allow_synchronize(allow: bool) -> Iterator[None]:
    """Let this thread wait for the device in the block, or make it an error; ``cupyx.allow_synchronize``."""
    before, _rules.may_wait = _rules.may_wait, allow
    try:
        yield
    finally:
        _rules.may_wait = before


@contextmanager
def counted() -> Iterator[Counters]:
    """Give counters of what all threads ask of the device in the block; they are filled when it ends."""
    with _lock:
        before = replace(_total)
    found = Counters()
    try:
        yield found
    finally:
        with _lock:
            spent = _total.since(before)
        for field in fields(Counters):
            setattr(found, field.name, getattr(spent, field.name))
