"""The memory of worker processes: how much there is, and how it is given back to the system, not too eagerly.

Dask's nanny starts workers with ``MALLOC_TRIM_THRESHOLD_=65536``, so that they give back what they free at once. A
replica frees and allocates buffers of the same few sizes all the time, and then spends a quarter of its processor time
on asking the system for the same pages again.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import platform
from dataclasses import dataclass

import dask
from distributed import Client

from dask_belief.cluster.asking import known_of_workers

logger = logging.getLogger(__name__)

# glibc's names for the two settings, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

_MOST_KEPT_BYTES = 256 * 2**20
# glibc takes no larger value.
_MOST_UNMAPPED_BYTES = 32 * 2**20
_KEPT_SHARE = 0.05

_READ_AHEAD_BYTES = 128 * 2**20
_READ_AHEAD_SHARE = 0.05

_UNLIMITED_BYTES = 2.5 * 2**30

_SECTION = "distributed.worker.memory"


@dataclass(frozen=True)
class WorkerMemory:
    """What a worker has in memory, and may have.

    Attributes
    ----------
    limit_bytes
        Of its process; 0 for no limit.
    n_threads
        Threads that share it.
    held_bytes
        Data that Dask holds there for its users, other than the run.
    """

    limit_bytes: int
    n_threads: int
    held_bytes: int = 0

    @property
    def replica_bytes(self) -> float:
        """What each thread has of it; 2.5 GiB where there is no limit."""
        return self.limit_bytes / self.n_threads if self.limit_bytes else _UNLIMITED_BYTES


@dataclass(frozen=True)
class Thresholds:
    """At which parts of its limit a worker does what, by the client's configuration of Dask; None for never.

    Attributes
    ----------
    target
        Data that Dask holds, beyond this part, are written to disk.
    spill
        The same, when the whole process is beyond this part.
    pause
        A process beyond this part begins no task.
    """

    target: float | None = 0.6
    spill: float | None = 0.7
    pause: float | None = 0.8


def memory_of_workers(client: Client) -> dict[str, WorkerMemory]:
    """Ask the scheduler for what it knows of each worker's memory, by address."""
    return {
        address: WorkerMemory(
            limit_bytes=int(known["memory_limit"] or 0),
            n_threads=int(known["nthreads"]),
            held_bytes=int(known.get("metrics", {}).get("managed_bytes", 0)),
        )
        for address, known in known_of_workers(client).items()
    }


def memory_thresholds() -> Thresholds:
    """Read the thresholds from Dask's configuration; the workers of a cluster elsewhere may have others."""
    found = {name: dask.config.get(f"{_SECTION}.{name}", None) for name in ("target", "spill", "pause")}
    return Thresholds(**{name: float(value) if value else None for name, value in found.items()})


def read_ahead_bytes(memory_bytes: float) -> int:
    """Bytes of data that a replica may have read ahead: a twentieth of its memory, and 128 MiB at most."""
    return max(1, min(_READ_AHEAD_BYTES, int(_READ_AHEAD_SHARE * memory_bytes)))


def kept_freed_bytes(memory_bytes: float) -> int:
    """How much freed memory a process keeps: a twentieth of what it may use, and 256 MiB at most."""
    return int(min(_MOST_KEPT_BYTES, _KEPT_SHARE * memory_bytes))


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
    kept = kept_freed_bytes(memory_bytes)
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
