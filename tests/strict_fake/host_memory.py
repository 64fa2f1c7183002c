"""Host memory that a device copies from or to while the host goes on."""

from __future__ import annotations

import itertools
import threading
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.strict_fake.device import Progress
from tests.strict_fake.memory import UnorderedAccessError

_lock = threading.Lock()
_pinned: dict[int, tuple[int, int]] = {}
_numbers = itertools.count()


def poison(values: npt.NDArray[Any]) -> None:
    """Fill with what shows when it is read: not a number, or a number that is no index."""
    if values.dtype.kind in "fc":
        values.fill(np.nan)
    elif values.dtype.kind in "iu":
        values.fill(np.iinfo(values.dtype).max // 3)
    else:
        values.fill(1)


def pin(values: npt.NDArray[Any]) -> None:
    """Take this memory for pinned as long as it lives."""
    number = next(_numbers)
    start = values.ctypes.data
    with _lock:
        _pinned[number] = start, start + values.nbytes
    weakref.finalize(values, _pinned.pop, number, None)


def is_pinned(values: npt.NDArray[Any]) -> bool:
    """Tell whether an array lies in pinned memory."""
    return is_pinned_pointer(values.ctypes.data)


def is_pinned_pointer(pointer: int) -> bool:
    """Tell whether there is pinned memory at that address."""
    with _lock:
        return any(start <= pointer < stop for start, stop in _pinned.values())


def require_unchanged_until_done(source: npt.NDArray[Any], progress: Progress) -> None:
    """Check that pinned memory which a device reads is left alone until the host has waited for it."""
    before = source.tobytes()

    def check() -> None:
        if source.tobytes() != before:
            raise UnorderedAccessError("pinned memory was filled again before the copy from it was known to be done")

    progress.when_done(check)


def deliver_when_done(values: npt.NDArray[Any], out: npt.NDArray[Any], progress: Progress) -> None:
    """Give what was asked for without waiting once the host has waited; until then nothing that could be used."""
    now = values.copy()
    poison(out)
    progress.when_done(lambda: np.copyto(out, now))
