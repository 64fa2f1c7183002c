"""All workers are killed at once, and others are there soon: what a run goes on from, and what it says of it."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster

import dask_belief as db
from dask_belief.monitoring.events import DownpourProgressed, Event, IterationEnded, Rebuilt, Saved
from tests.faults.clusters import assert_clean
from tests.row_counts import BATCH_SIZE, OPTIONS, RowCounts

LIMITS = db.Limits(connect_seconds=3.0)
N_WORKERS = 2
N_ROWS, EPOCHS, MAX_ITER = 2048, 12, 60
ALL_ITERATIONS = list(range(1, MAX_ITER + 1))

pytestmark = [pytest.mark.long, pytest.mark.timeout(100)]


class Workers:
    """A cluster of worker processes without nannies: whoever kills them starts others."""

    def __init__(self, client: Client, folder: Path) -> None:
        self.client = client
        self._folder = folder
        self._there: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start all workers."""
        address = str(self.client.scheduler.address)
        options = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--memory-limit", "0"]
        self._there = [
            subprocess.Popen(
                [
                    *[sys.executable, "-m", "distributed.cli.dask_worker", address, *options],
                    *["--local-directory", str(self._folder)],
                ],
                cwd=Path(__file__).parents[2],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for _ in range(N_WORKERS)
        ]

    def kill(self) -> None:
        """Kill all workers, at one moment."""
        for worker in self._there:
            worker.kill()
        for worker in self._there:
            worker.wait(30)

    def pids(self) -> set[int]:
        """The processes of those that were started last."""
        return {worker.pid for worker in self._there}


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """A scheduler in this process, and two workers in their own."""
    options: dict[str, Any] = {"processes": False, "protocol": "tcp://", "dashboard_address": "127.0.0.1:0"}
    with (
        LocalCluster(n_workers=0, silence_logs=50, **options) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        workers = Workers(client, tmp_path_factory.mktemp("workers"))
        try:
            workers.start()
            client.wait_for_workers(N_WORKERS, timeout=60)
            yield workers
        finally:
            workers.kill()


class KillAll:
    """A callback that kills all workers once all that it waits for has happened, and starts others.

    Parameters
    ----------
    workers
        Of the cluster.
    kinds
        The events that must have been told, in this order.

    Attributes
    ----------
    pids
        The processes that it has killed.
    """

    def __init__(self, workers: Workers, *kinds: type) -> None:
        self.pids: set[int] = set()
        self._workers = workers
        self._awaited = list(kinds)

    def __call__(self, event: Event) -> None:
        if self.pids or not isinstance(event, self._awaited[0]):
            return
        del self._awaited[0]
        if not self._awaited:
            self.pids = self._workers.pids()
            self._workers.kill()
            self._workers.start()


def network() -> db.Network:
    return db.Network([db.Dense(8, "sigmoid"), db.Dense(1)], loss="logistic", input_shape=(20,))


def saving(folder: Path, is_saved: bool) -> db.Checkpoint | None:
    return db.Checkpoint(folder / "run", every_seconds=0) if is_saved else None


def rebuilt(result: db.TrainingResult) -> list[Rebuilt]:
    return [event for event in result.history.events if isinstance(event, Rebuilt)]


@pytest.mark.parametrize("is_saved", [True, False], ids=["checkpoint", "no checkpoint"])
def test_sandblaster_goes_on(workers: Workers, store: Path, tmp_path: Path, is_saved: bool) -> None:
    """From its checkpoint with the same bits; else from the driver's copy, and says that it cannot be repeated."""
    client = workers.client
    kill = KillAll(workers, IterationEnded, Saved, IterationEnded, IterationEnded)

    def train(**options: Any) -> db.TrainingResult:
        method = db.Sandblaster(max_iter=MAX_ITER, l2=1e-3, gtol=0.0, ftol=0.0)
        return db.train(network(), store, method, client=client, progress=False, limits=LIMITS, **options)

    result = train(callbacks=[kill], checkpoint=saving(tmp_path, is_saved))
    assert_clean(client)
    assert kill.pids.isdisjoint(client.run(os.getpid).values())
    assert result.stop.reason is db.StopReason.MAX_ITERATIONS
    assert [event.iteration for event in result.history.events if isinstance(event, IterationEnded)] == ALL_ITERATIONS
    [went_back] = [event for event in rebuilt(result) if event.iteration is not None]
    assert went_back.iteration is not None and went_back.iteration > 0
    assert result.repeatable == is_saved
    unbroken = train()
    n_same = MAX_ITER if is_saved else went_back.iteration
    assert result.history["loss"][:n_same] == unbroken.history["loss"][:n_same]
    if is_saved:
        assert result.parameters.tobytes() == unbroken.parameters.tobytes()
    else:
        # The point is the copy's, and the search goes down from there.
        assert all(after <= before for before, after in itertools.pairwise(result.history["loss"]))
        assert result.loss == pytest.approx(unbroken.loss, rel=0.05)


@pytest.mark.parametrize("is_saved", [True, False], ids=["checkpoint", "no checkpoint"])
def test_downpour_goes_on(workers: Workers, tmp_path: Path, is_saved: bool) -> None:
    """From its checkpoint without skipping or repeating a row; else with what was lost after the copy told."""
    client, counting = workers.client, RowCounts(N_ROWS, n_shards=2)
    kill = KillAll(workers, Saved, DownpourProgressed, DownpourProgressed)
    method = db.Downpour(**{**OPTIONS, "lease_rows": 64, "epochs": EPOCHS, "n_shards": 2})
    result = db.train(
        counting,
        counting.data(),
        method,
        client=client,
        callbacks=[kill],
        progress=False,
        limits=LIMITS,
        checkpoint=saving(tmp_path, is_saved),
    )
    assert_clean(client)
    assert kill.pids.isdisjoint(client.run(os.getpid).values())
    assert result.stop.reason is db.StopReason.EPOCHS_DONE
    assert result.passes == EPOCHS
    lost = (EPOCHS - counting.counts(result.parameters)).sum(axis=1) / BATCH_SIZE
    told = [event.updates_lost for event in rebuilt(result) if event.updates_lost]
    assert not result.repeatable
    if is_saved:
        assert (lost.tolist(), told) == ([0, 0], [])
        return
    # What came while the driver copied may be in the copy, and is told all the same.
    [n_told] = told
    assert 0 < lost.max() <= n_told
