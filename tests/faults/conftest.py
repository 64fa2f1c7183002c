"""Clusters of worker processes that tests may kill."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from distributed import Client, LocalCluster

import dask_belief as db
from dask_belief.seeds import stream


@contextlib.contextmanager
def processes(n_workers: int, memory_limit: str | int = 0) -> Iterator[Client]:
    """A cluster of single-threaded worker processes, each started again by its nanny when it dies."""
    with (
        LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            memory_limit=memory_limit,
            dashboard_address="127.0.0.1:0",
            silence_logs=50,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture
def client() -> Iterator[Client]:
    """Three worker processes for one test; a killed one comes back under another address."""
    with processes(3) as client:
        yield client


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6,000 rows of noise around a line, in chunks of 100."""
    path = tmp_path_factory.mktemp("data") / "train.zarr"
    random = stream(11, "rows")
    inputs = random.normal(size=(6000, 20)).astype(np.float32)
    targets = (inputs @ random.normal(size=20) + random.normal(size=6000) > 0).astype(np.int64)
    db.write_dataset(path, inputs, targets, chunk_rows=100)
    return path


def kill(client: Client, address: str) -> None:
    """Send SIGKILL to a worker's process: no handler, no farewell."""
    pid = client.run(os.getpid, workers=[address])[address]
    os.kill(pid, signal.SIGKILL)


Killer = Callable[[Client, str], None]
