"""Clusters of worker processes that outlive what tests do to their workers, and what must not stay on them."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from distributed import Client

from tests.faults.conftest import processes
from tests.small_cluster import eventually

WHOLE_SECONDS = 15.0
"""How long a cluster is given until all its workers are there again."""

PLUGIN_PREFIX = "dask-belief-"


class Clusters:
    """One cluster at a time, used by test after test; one that is not whole again gives way to another.

    Parameters
    ----------
    n_workers
        Worker processes.
    """

    def __init__(self, n_workers: int) -> None:
        self._n_workers = n_workers
        self._open = contextlib.ExitStack()
        self._client: Client | None = None
        self._is_spoilt = False

    def __enter__(self) -> Clusters:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def client(self) -> Client:
        """The client of a cluster that is whole."""
        if self._client is None or self._is_spoilt or not self._is_whole(self._client):
            self._open.close()
            self._client = self._open.enter_context(processes(self._n_workers))
            self._is_spoilt = False
        return self._client

    def spoil(self) -> None:
        """Take note that workers were retired or added: the next test gets another cluster."""
        self._is_spoilt = True

    def _is_whole(self, client: Client) -> bool:
        try:
            client.wait_for_workers(self._n_workers, timeout=WHOLE_SECONDS)
            # One that is dying is counted as long as its connection lasts.
            return len(client.run(os.getpid)) == len(client.nthreads()) == self._n_workers
        except (TimeoutError, OSError):
            return False


def _found_on_scheduler(dask_scheduler: Any) -> dict[str, Any]:
    return {
        "tasks": sorted(dask_scheduler.tasks),
        "plugins": [name for name in dask_scheduler.plugins if str(name).startswith(PLUGIN_PREFIX)],
    }


def _found_on_worker(dask_worker: Any) -> dict[str, Any]:
    return {
        "actors": sorted(dask_worker.state.actors),
        "running": sorted(dask_worker.state.executing_count * ["task"]),
    }


def what_stays(client: Client) -> dict[str, Any]:
    """What there is of runs on the scheduler and on workers; empty when there is nothing."""
    found = client.run_on_scheduler(_found_on_scheduler)
    for worker, there in client.run(_found_on_worker).items():
        found |= {f"{kind} on {worker}": names for kind, names in there.items()}
    return {what: names for what, names in found.items() if names}


def assert_clean(client: Client, limit_seconds: float = 10.0) -> None:
    """Nothing of a run stays on the cluster."""
    with contextlib.suppress(AssertionError):
        eventually(lambda: not what_stays(client), limit_seconds)
    stays = what_stays(client)
    assert not stays, f"of the run there still is {stays}"
