"""How a worker process gives memory back to the system: not so eagerly that every message pays for it.

Dask's nanny starts workers with ``MALLOC_TRIM_THRESHOLD_=65536``, so that they give back what they free at once. A
replica frees and allocates buffers of the same few sizes all the time, and then spends a quarter of its processor time
on asking the system for the same pages again.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import platform

logger = logging.getLogger(__name__)

# glibc's names for the two settings, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

_MOST_KEPT_BYTES = 256 * 2**20
# glibc takes no larger value.
_MOST_UNMAPPED_BYTES = 32 * 2**20
_KEPT_SHARE = 0.05


@functools.cache
def keep_freed_memory(memory_bytes: float) -> bool:
    """Let this process keep up to a twentieth of its memory, and 256 MiB at most, when it is freed.

    Parameters
    ----------
    memory_bytes
        What the process may use in all.

    Returns
    -------
    bool
        Whether the C library knows the setting; elsewhere than on glibc nothing is done.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    kept = int(min(_MOST_KEPT_BYTES, _KEPT_SHARE * memory_bytes))
    mallopt = ctypes.CDLL(None).mallopt
    is_set = bool(mallopt(_M_TRIM_THRESHOLD, kept)) and bool(
        mallopt(_M_MMAP_THRESHOLD, min(_MOST_UNMAPPED_BYTES, kept // 4))
    )
    logger.debug("keeping up to %d bytes of freed memory: %s", kept, is_set)
    return is_set


def give_back_memory() -> bool:
    """Give what is free in this process back to the system, of all its threads; False where the C library cannot.

    glibc keeps what a thread freed for that thread, and a replica's ends with it: without this a worker would keep the
    memory of the data of one run after another.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).malloc_trim(0))
