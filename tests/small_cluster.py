"""A cluster of threads that behaves as over a network, and what tests do to it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from distributed import Client, LocalCluster


def small_cluster(n_workers: int, threads_per_worker: int = 1) -> LocalCluster:
    """Starts in a tenth of a second; ``tcp://`` makes real messages, where ``inproc://`` hands the objects over."""
    return LocalCluster(
        n_workers=n_workers,
        threads_per_worker=threads_per_worker,
        processes=False,
        protocol="tcp://",
        dashboard_address="127.0.0.1:0",
        memory_limit=0,
    )


def close_worker(client: Client, address: str) -> None:
    """Close a worker, its actors and tasks with it, and wait until the scheduler has taken note."""
    cluster = client.cluster
    [worker] = [worker for worker in cluster.workers.values() if worker.address == address]
    client.sync(worker.close, nanny=False, reason="test")
    _await_leave(client, address)


def kill_worker(client: Client, address: str) -> None:
    """Break a worker's connection off, as the end of its process does, and wait until the scheduler has taken note."""
    [worker] = [worker for worker in client.cluster.workers.values() if worker.address == address]

    async def abort() -> None:
        worker.batched_stream.abort()

    client.sync(abort)
    _await_leave(client, address)


@contextlib.contextmanager
def frozen(client: Client, address: str) -> Iterator[None]:
    """Stop a worker's process, which must be one of its own, for as long as the block lasts."""
    pid = client.run(os.getpid, workers=[address])[address]
    assert pid != os.getpid()
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _await_leave(client: Client, address: str) -> None:
    eventually(lambda: address not in client.nthreads())
    # The cluster keeps a list of its own, which must have heard as well before it is closed.
    eventually(lambda: address not in client.cluster.scheduler_info["workers"])


def eventually(is_so: Callable[[], bool], limit_seconds: float = 5.0) -> None:
    """Wait for something that another thread brings about; fails when the limit passes first."""
    until = time.monotonic() + limit_seconds
    while not is_so():
        assert time.monotonic() < until, f"not so within {limit_seconds:g} seconds"
        time.sleep(0.005)


def peak_bytes(client: Client) -> dict[str, int]:
    """The most memory that the process of each worker has had resident since it began, by address."""

    def of_this_process() -> int:
        # Not getrusage: what it gives is inherited from the process that started this one.
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
        return 1024 * int(line.split()[1])

    return client.run(of_this_process)
