"""Models of many parameters: no worker holds more of them than the memory plan says, and none has to hold all."""

from __future__ import annotations

import numpy as np
import pytest
from distributed import Client, LocalCluster

import dask_belief as db
from dask_belief.data.units import plan_units
from dask_belief.monitoring.events import WorkerLost
from dask_belief.sandblaster.memory_plan import sandblaster_needs
from dask_belief.seeds import stream
from tests.small_cluster import peak_bytes

MIB = 2**20

pytestmark = pytest.mark.long


def processes(n_workers: int, memory_limit: int) -> LocalCluster:
    """Worker processes of one thread each, which their nannies kill when they go beyond the limit; 0 for none."""
    return LocalCluster(
        n_workers=n_workers, threads_per_worker=1, memory_limit=memory_limit, dashboard_address="127.0.0.1:0"
    )


def noise(n_rows: int, width: int, n_classes: int, chunk_rows: int) -> db.ArrayDataset:
    random = stream(9, "noise")
    inputs = random.normal(size=(n_rows, width)).astype(np.float32)
    return db.ArrayDataset(inputs, random.integers(0, n_classes, n_rows), chunk_rows=chunk_rows)


def test_state_that_no_worker_could_hold_alone() -> None:
    """Points, gradients and history of 2 million parameters fill four workers, none of which comes near its limit."""
    limit, history_size = 440 * MIB, 30
    network = db.Network([db.Dense(2048, "tanh"), db.Dense(24)], loss="softmax", input_shape=(1000,))
    # Two points, two gradients, the direction, and one pair more than are kept.
    n_vectors = 5 + 2 * (history_size + 1)
    assert n_vectors * 4 * network.n_parameters > limit
    method = db.Sandblaster(max_iter=history_size + 4, history_size=history_size, l2=1e-2, gtol=0.0, ftol=0.0)
    with processes(4, limit) as cluster, Client(cluster, set_as_default=False) as client:
        workers = set(client.nthreads())
        result = db.train(network, noise(320, 1000, 24, 20), method, client=client, progress=False)
        peaks = peak_bytes(client)
    assert result.stop.reason is db.StopReason.MAX_ITERATIONS
    assert not any(isinstance(event, WorkerLost) for event in result.history.events)
    assert set(peaks) == workers
    assert max(peaks.values()) < 0.9 * limit


def test_a_replica_of_the_papers_largest_plain_network() -> None:
    """Of 42 million parameters a replica needs at most 1.5 GiB, and no more than the memory plan says.

    Section 5 of the paper: four sigmoid layers of 2,560 on 11 frames of 40 features, and 8,192 classes.
    """
    layers = [*(db.Dense(2560, "sigmoid") for _ in range(4)), db.Dense(8192)]
    network = db.Network(layers, loss="softmax", input_shape=(11 * 40,))
    assert 41e6 < network.n_parameters < 43e6
    method, dataset = db.Sandblaster(max_iter=1, history_size=1, n_shards=1), noise(384, 440, 8192, 64)
    with processes(2, 0) as cluster, Client(cluster, set_as_default=False) as client:
        before = peak_bytes(client)
        result = db.train(network, dataset, method, client=client, progress=False)
        after = peak_bytes(client)
    assert np.isfinite(result.loss)
    # The first address has the shard.
    _, replica_only = sorted(before)
    needed = after[replica_only] - before[replica_only]
    units = plan_units(384, 64, dataset.row_bytes("float32"), network.n_parameters)
    needs = sandblaster_needs(method, network, dataset, None, "float32", units, n_replicas=2)
    vectors = needs.replica_vectors + needs.passing_replica_vectors + needs.shared_vectors
    planned = vectors * needs.vector_bytes
    # What is not vectors: modules that are imported, the rows, the activations; and pieces of 16 MiB of messages, of
    # which some more are under way where the other worker is slow to take them.
    assert needed < planned + 224 * MIB
    assert needed < 1536 * MIB
