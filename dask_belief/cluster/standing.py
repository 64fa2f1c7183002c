"""What a long-running task knows of itself on its worker."""

from __future__ import annotations

import time

from dask.typing import Key
from distributed import Worker

from dask_belief.cluster import memory
from dask_belief.cluster.limits import limits


class Standing:
    """What a running replica knows of its own task: whether it should go on."""

    def __init__(self, worker: Worker, key: Key) -> None:
        self.worker = worker
        self._key = key
        self._asked_at: float | None = None

    def listen(self) -> None:
        """Note that the hub was asked something; until it answers, it is silent."""
        self._asked_at = time.monotonic()

    def heard(self) -> None:
        """Note that the hub answered."""
        self._asked_at = None

    @property
    def memory_bytes(self) -> float:
        """The replica's part of its worker's memory limit; 2.5 GiB where there is no limit."""
        limit = self.worker.memory_manager.memory_limit or 0
        return memory.WorkerMemory(limit, self.n_threads).replica_bytes

    @property
    def n_threads(self) -> int:
        """The threads of its worker, each of which may have a replica."""
        return int(self.worker.state.nthreads)

    @property
    def is_wanted(self) -> bool:
        """Whether the task was not cancelled."""
        task = self.worker.state.tasks.get(self._key)
        return task is not None and task.state in ("executing", "long-running")

    @property
    def is_cancelled(self) -> bool:
        """Whether the task was cancelled, or the worker is closing."""
        return not self.is_wanted or self.worker.status.name not in ("running", "paused")

    @property
    def should_end(self) -> bool:
        """Whether it is cancelled, or the hub has been silent for too long; asked between two leases."""
        asked_at = self._asked_at
        is_silent = asked_at is not None and time.monotonic() - asked_at > limits().silence_seconds
        return is_silent or self.is_cancelled
