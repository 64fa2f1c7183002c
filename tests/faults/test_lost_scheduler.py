"""The scheduler is killed in the middle of a run: the run says so within a limit, with the best point in hand."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from distributed import Client

import dask_belief as db
from dask_belief.monitoring.events import DownpourProgressed, Event, IterationEnded
from tests.small_cluster import eventually


def start(module: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Run a command-line program of Dask's, where this project can be imported."""
    command = [sys.executable, "-m", module, *arguments]
    root = Path(__file__).parents[2]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[Client, subprocess.Popen[bytes]]]:
    """A scheduler and a worker as processes of their own, as on a real cluster."""
    file = tmp_path / "scheduler.json"
    common = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(file)]
    scheduler = start("distributed.cli.dask_scheduler", "--port", "0", *common)
    folder = ["--local-directory", str(tmp_path)]
    worker = start("distributed.cli.dask_worker", "--no-nanny", "--nthreads", "1", *folder, *common)
    try:
        eventually(file.exists, limit_seconds=60)
        # The limit is also how long the client tries to find its scheduler again.
        with Client(scheduler_file=str(file), set_as_default=False, timeout=8) as client:
            client.wait_for_workers(1, timeout=60)
            yield client, scheduler
    finally:
        for process in (worker, scheduler):
            process.kill()
            process.wait(30)


@pytest.mark.long
@pytest.mark.parametrize("method", [db.Sandblaster(max_iter=100_000, ftol=0.0, gtol=0.0), db.Downpour(epochs=100_000)])
def test_a_lost_scheduler_is_an_error_that_keeps_the_best_point(cluster, store: Path, method) -> None:
    """The error says that the scheduler is gone, and carries finite parameters of the right length."""
    client, scheduler = cluster
    network = db.Network([db.Dense(8, "sigmoid"), db.Dense(1)], loss="logistic", input_shape=(20,))

    def kill(event: Event) -> None:
        if isinstance(event, IterationEnded | DownpourProgressed):
            scheduler.send_signal(signal.SIGKILL)

    with pytest.raises(db.ClusterError, match="scheduler is gone") as caught:
        db.train(network, store, method, client=client, callbacks=[kill], progress=False)
    assert caught.value.kept_parameters is not None
    assert caught.value.kept_parameters.shape == (network.n_parameters,)
    assert np.isfinite(caught.value.kept_parameters).all()
