"""A cluster of worker processes on this machine, for programs that do something to them: kill, stop, retire, add."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import signal
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import psutil
from distributed import Client, LocalCluster, Nanny, Status, Worker, WorkerPlugin

import dask_belief as db

_ACTORS = {"shard": "shard", "coordinator": "hub", "ledger": "hub", "keeper": "keeper"}
_PLUGIN_PREFIX = "dask-belief-"
_LOOK_SECONDS = 0.05
_CLOSED_SECONDS = 5.0
_ENDED = (Status.closing, Status.closed, Status.failed)

RETIRED_SECONDS = 60.0
"""What a run is given to move off a worker."""


class DumpStacks(WorkerPlugin):
    """Lets a worker process write the stacks of all its threads to a file when it is sent SIGUSR1."""

    name = "stacks"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def setup(self, worker: Worker) -> None:
        """Open the file of this process."""
        self._file = (self._folder / f"stacks-of-worker-{os.getpid()}.txt").open("w")
        faulthandler.register(signal.SIGUSR1, file=self._file, all_threads=True)


class FaultyCluster:
    """A scheduler in this process, and single-threaded workers that their nannies start again when they die.

    The nannies are its own, and not those of Dask's `LocalCluster`, which starts others in the place of workers that
    were retired, some time later.

    Parameters
    ----------
    n_workers
        Workers that it has when it is whole.

    Attributes
    ----------
    client
        Of the cluster.
    """

    def __init__(self, n_workers: int) -> None:
        self._n_workers = n_workers
        self._nannies: list[Nanny] = []
        self._lock = threading.Lock()
        self._stopped: set[int] = set()
        self._open = contextlib.ExitStack()
        self._cluster = self._open.enter_context(LocalCluster(n_workers=0, dashboard_address=":0", silence_logs=50))
        self.client = self._open.enter_context(Client(self._cluster, set_as_default=False))
        self._folder = self._open.enter_context(tempfile.TemporaryDirectory())
        self._open.callback(self._close_nannies)
        if not self.make_whole():
            raise RuntimeError(f"{n_workers} workers did not start")

    def __enter__(self) -> FaultyCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on()
        self._open.close()

    @property
    def address(self) -> str:
        """Of the scheduler."""
        return str(self._cluster.scheduler_address)

    async def _start_nanny(self) -> Nanny:
        return await Nanny(
            self.address,
            nthreads=1,
            host="127.0.0.1",
            memory_limit=0,
            local_directory=self._folder,
            dashboard_address=":0",
            silence_logs=50,
        )

    def _close_nannies(self, nannies: Sequence[Nanny] | None = None) -> None:
        async def close(each: Sequence[Nanny]) -> None:
            await asyncio.gather(*(nanny.close(timeout=_CLOSED_SECONDS) for nanny in each), return_exceptions=True)

        self._cluster.sync(close, list(self._nannies) if nannies is None else nannies)

    def processes(self) -> dict[str, int]:
        """The process of each worker that the scheduler knows, by address."""
        known = self._known()
        found = [(nanny.worker_address, nanny.pid) for nanny in list(self._nannies)]
        return {address: pid for address, pid in sorted(found, key=str) if address in known and pid is not None}

    def _known(self) -> set[str]:
        return set(self.client.run_on_scheduler(_addresses))

    def roles(self) -> dict[str, set[str]]:
        """What runs have on each worker, by the scheduler's word: ``"shard"``, ``"hub"``, ``"keeper"``."""
        found: dict[str, set[str]] = defaultdict(set)
        for address, key in self.client.run_on_scheduler(_actors):
            found[address].add(_ACTORS.get(key.split("-")[0], "other"))
        return found

    # What is done to workers.

    def kill(self, worker: str) -> bool:
        """Send SIGKILL; False when there is no such process any more."""
        return self._signal(self.processes().get(worker), signal.SIGKILL)

    def stop(self, worker: str) -> int | None:
        """Send SIGSTOP; gives the process, for `go_on`."""
        pid = self.processes().get(worker)
        if pid is None or not self._signal(pid, signal.SIGSTOP):
            return None
        self._stopped.add(pid)
        return pid

    def go_on(self, pids: Iterable[int] | None = None) -> None:
        """Send SIGCONT to processes; None for all that are stopped."""
        for pid in list(self._stopped) if pids is None else pids:
            self._stopped.discard(pid)
            self._signal(pid, signal.SIGCONT)

    @staticmethod
    def _signal(pid: int | None, number: signal.Signals) -> bool:
        try:
            if pid is not None:
                os.kill(pid, number)
        except ProcessLookupError:
            return False
        return pid is not None

    def dump_stacks(self) -> None:
        """Let all workers write down the stacks of their threads; see `DumpStacks`."""
        for pid in self.processes().values():
            self._signal(pid, signal.SIGUSR1)

    def retire(self, worker: str) -> None:
        """Let runs move off a worker, and take it away for good; raises what `dask_belief.retire_workers` does."""
        found = [nanny for nanny in self._nannies if nanny.worker_address == worker]
        db.retire_workers(self.client, [worker], RETIRED_SECONDS)
        with self._lock:
            self._nannies = [nanny for nanny in self._nannies if nanny not in found]
        self._close_nannies(found)

    def add(self) -> None:
        """Start one more worker, and wait until it has started."""
        nanny = self._cluster.sync(self._start_nanny)
        with self._lock:
            self._nannies.append(nanny)

    @property
    def n_workers(self) -> int:
        """How many workers there are, those among them that are just started again."""
        return len(self._nannies)

    def make_whole(self, limit_seconds: float = 60.0) -> bool:
        """Let all go on, and bring the workers back to their number; False when they are not there in time."""
        self.go_on()
        until = time.monotonic() + limit_seconds
        while not self._is_whole():
            if time.monotonic() > until:
                return False
            ended = [nanny for nanny in self._nannies if nanny.status in _ENDED]
            with self._lock:
                self._nannies = [nanny for nanny in self._nannies if nanny not in ended]
            if self.n_workers < self._n_workers:
                self.add()
            there = sorted(self.processes())
            if self.n_workers > self._n_workers and len(there) == self.n_workers:
                self.retire(there[0])
            time.sleep(_LOOK_SECONDS)
        return True

    def _is_whole(self) -> bool:
        return self.n_workers == self._n_workers == len(self.processes()) == len(self._known())

    # What there is.

    def what_stays(self, limit_seconds: float) -> list[str]:
        """What runs have left on the scheduler and on workers, looked at until there is nothing or time is up."""
        until = time.monotonic() + limit_seconds
        while found := self._left():
            if time.monotonic() > until:
                break
            time.sleep(_LOOK_SECONDS)
        return found

    def _left(self) -> list[str]:
        found: list[str] = list(self.client.run_on_scheduler(_left_on_scheduler))
        for worker, left in self.client.run(_left_on_worker, on_error="ignore").items():
            found += [f"{what} on {worker}" for what in left]
        return found

    def memory(self) -> dict[str, float]:
        """Megabytes of resident memory: of the largest worker, and of this process with the scheduler in it."""
        sizes = [0.0]
        for pid in self.processes().values():
            with contextlib.suppress(psutil.NoSuchProcess):
                sizes.append(psutil.Process(pid).memory_info().rss / 1e6)
        return {"largest_worker": max(sizes), "scheduler": psutil.Process().memory_info().rss / 1e6}


# Run on the scheduler and on workers.


def _addresses(dask_scheduler: Any) -> list[str]:
    return list(dask_scheduler.workers)


def _actors(dask_scheduler: Any) -> list[tuple[str, str]]:
    return [(worker.address, str(task.key)) for worker in dask_scheduler.workers.values() for task in worker.actors]


def _left_on_scheduler(dask_scheduler: Any) -> list[str]:
    plugins = [str(name) for name in dask_scheduler.plugins if str(name).startswith(_PLUGIN_PREFIX)]
    return [f"task {key}" for key in dask_scheduler.tasks] + [f"plugin {name}" for name in plugins]


def _left_on_worker(dask_worker: Any) -> list[str]:
    return [f"actor {key}" for key in dask_worker.state.actors] + ["task"] * dask_worker.state.executing_count
