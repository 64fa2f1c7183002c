"""Data larger than the workers' memory limit: the run goes to its end, and no worker comes near the limit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from distributed import Client, LocalCluster

import dask_belief as db
from dask_belief.monitoring.events import WorkerLost
from dask_belief.seeds import stream
from tests.small_cluster import peak_bytes

LIMIT = 320 * 2**20
N_BLOCKS, BLOCK_ROWS, WIDTH = 30, 4000, 800


@pytest.fixture(scope="module")
def small_workers() -> Iterator[Client]:
    """Two worker processes with 320 MiB each, which their nannies kill when they go beyond."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=LIMIT, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def large_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """384 MB of float32 rows, written block by block."""
    path = tmp_path_factory.mktemp("large") / "train.zarr"

    def rows() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for block in range(N_BLOCKS):
            random = stream(0, "block", block)
            inputs = random.random((BLOCK_ROWS, WIDTH), dtype=np.float32)
            yield inputs, (inputs[:, 0] > 0.5).astype(np.int64)

    dataset = db.write_dataset(path, rows(), None, chunk_rows=1000)
    assert dataset.n_bytes > LIMIT
    return path


@pytest.mark.parametrize("method", [db.Sandblaster(max_iter=2), db.Downpour(rule=db.SGD(0.01), epochs=1)], ids=type)
def test_data_larger_than_memory(small_workers: Client, large_store: Path, method) -> None:
    """Both methods end within the limit, on the workers that they began with."""
    before = set(small_workers.nthreads())
    network = db.Network([db.Dense(2)], loss="softmax", input_shape=(WIDTH,))
    result = db.train(network, large_store, method, client=small_workers, progress=False)
    assert np.isfinite(result.loss)
    assert set(small_workers.nthreads()) == before
    assert not any(isinstance(event, WorkerLost) for event in result.history.events)
    assert max(peak_bytes(small_workers).values()) < LIMIT
