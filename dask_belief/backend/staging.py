"""Bringing rows from ordinary host memory to a device without waiting for it; imported only once CuPy is known to work.

A device copies at full speed, and beside what it computes, from pinned memory alone. So rows are copied to one of a few
pinned buffers first, and from there to the device, in the order of the calling thread's stream::

    rows ── memcpy ──▶ pinned buffer 0 ── stream ──▶ device        while the device is still at the rows before
                       pinned buffer 1

A buffer is filled again once the event behind its last copy has come about. That is the one wait, and it bounds how far
the host runs ahead of the device.
"""

from __future__ import annotations

from typing import Any

import cupy
import cupyx
import numpy as np

from dask_belief.backend.base import Array

N_BUFFERS = 4
"""Inputs and targets of two mini-batches: those that the device is at, and those that come next."""

MOST_BYTES = 16 * 2**20
"""Larger arrays go in parts of this size; copying one takes longer than any call."""


class Staging:
    """The pinned buffers of one thread, for its stream on one device; they grow to what is asked of them."""

    def __init__(self) -> None:
        self._buffers: list[Any] = [None] * N_BUFFERS
        self._copied: list[Any] = [None] * N_BUFFERS
        self._next = 0

    def copy(self, host: Array, device: Any) -> None:
        """Begin to copy `host` to `device`, both C-contiguous and alike; `host` may be changed at once."""
        source, target = host.reshape(-1).view(np.uint8), device.reshape(-1).view(np.uint8)
        for start in range(0, len(source), MOST_BYTES):
            part = slice(start, start + MOST_BYTES)
            self._copy_part(source[part], target[part])

    def _copy_part(self, source: Array, target: Any) -> None:
        number, self._next = self._next, (self._next + 1) % N_BUFFERS
        copied, buffer = self._copied[number], self._buffers[number]
        if copied is not None and not copied.done:
            copied.synchronize()
        if buffer is None or len(buffer) < len(source):
            buffer = self._buffers[number] = cupyx.empty_pinned(len(source), np.uint8)
        if copied is None:
            copied = self._copied[number] = cupy.cuda.Event(disable_timing=True)
        buffer[: len(source)] = source
        target.set(buffer[: len(source)])
        copied.record(cupy.cuda.get_current_stream())


def is_pinned(host: Array) -> bool:
    """Tell whether an array lies in pinned memory."""
    return bool(cupy.cuda.runtime.pointerGetAttributes(host.ctypes.data).hostPointer)
