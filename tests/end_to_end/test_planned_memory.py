"""What a worker comes to need lies between the least and the most that are planned for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from distributed import Client, LocalCluster

import dask_belief as db
from dask_belief.cluster.memory import memory_of_workers, memory_thresholds
from dask_belief.cluster.placement import place
from dask_belief.data.dataset import Dataset
from dask_belief.data.units import plan_units
from dask_belief.downpour.lease_plan import plan_leases
from dask_belief.downpour.memory_plan import downpour_needs
from dask_belief.memory_plan import MemoryPlan, placed_elsewhere, plan_memory, workers_of_run
from dask_belief.parameter_server.ranges import shard_ranges
from dask_belief.sandblaster.memory_plan import sandblaster_needs
from dask_belief.seeds import stream
from tests.small_cluster import peak_bytes

MIB = 2**20

pytestmark = pytest.mark.long


def noise(n_rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    random = stream(3, "noise")
    return random.normal(size=(n_rows, width)).astype(np.float32), random.integers(0, 10, n_rows)


def network(width: int, *hidden: int) -> db.Network:
    return db.Network([*(db.Dense(n, "tanh") for n in hidden), db.Dense(10)], loss="softmax", input_shape=(width,))


def planned(
    client: Client, objective: db.Network, dataset: Dataset, method: db.Sandblaster | db.Downpour, is_kept: bool
) -> MemoryPlan:
    """The plan of a run; with `is_kept` what is saved of each shard is kept on another worker."""
    memory, n_parameters = memory_of_workers(client), objective.n_parameters
    ranges = shard_ranges(n_parameters, method.n_shards or len(memory))
    placement = place(list(memory), len(ranges))
    shards = [(worker, len(span)) for worker, span in zip(placement.shards, ranges, strict=True)]
    others = placed_elsewhere(memory, placement.shards) if is_kept else []
    kept = [(other, length) for other, (_, length) in zip(others, shards, strict=False)]
    n_replicas = method.n_replicas if isinstance(method, db.Downpour) else None
    workers = workers_of_run(memory, n_replicas, 1, shards, placement.hub, kept)
    given = (dataset.n_rows, dataset.chunk_rows, dataset.row_bytes(np.float32), n_parameters)
    n_running = sum(facts.n_replicas for facts in workers)
    if isinstance(method, db.Downpour):
        needs = downpour_needs(method, objective, dataset, None, "float32", plan_leases(method, *given), n_running)
    else:
        units = plan_units(*given, unit_rows=method.unit_rows)
        needs = sandblaster_needs(method, objective, dataset, None, "float32", units, n_running)
    return plan_memory(needs, workers, memory_thresholds())


@pytest.mark.parametrize(
    ("method", "n_threads"),
    [
        pytest.param(db.Sandblaster(max_iter=8, history_size=3, gtol=0.0), 1, id="one replica a worker"),
        pytest.param(db.Sandblaster(max_iter=8, history_size=3, gtol=0.0), 3, id="three replicas a worker"),
        pytest.param(db.Sandblaster(max_iter=8, history_size=3, gtol=0.0, l1=1e-6, n_shards=1), 1, id="orthants"),
        pytest.param(db.Downpour(epochs=2, rule=db.Adam(1e-4), l2=1e-5, n_fetch=2, n_push=2), 1, id="Adam"),
        pytest.param(db.Downpour(epochs=2, rule=db.SGD(1e-3), n_shards=2), 3, id="three replicas of SGD a worker"),
    ],
)
def test_vectors(method, n_threads: int) -> None:
    """Of a network of 5 million parameters, 20 MiB a vector, on little data."""
    objective, rows = network(300, 2000, 2200), noise(600, 300)
    dataset = db.ArrayDataset(*rows, chunk_rows=20)
    with (
        LocalCluster(2, threads_per_worker=n_threads, memory_limit=0, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        least, most = (planned(client, objective, dataset, method, is_kept) for is_kept in (False, True))
        db.train(objective, dataset, method, client=client, progress=False)
        peaks = peak_bytes(client)
    check(least, most, peaks)


@pytest.mark.parametrize("method", [db.Sandblaster(max_iter=4), db.Downpour(epochs=1, rule=db.SGD(0.01))], ids=type)
def test_rows(tmp_path: Path, method) -> None:
    """Of a small model on 90 MB of rows, compressed, by workers whose limit leaves room for a part of them."""
    objective = network(600)
    dataset = db.write_dataset(tmp_path / "rows.zarr", *noise(40_000, 600), chunk_rows=1000)
    with (
        LocalCluster(2, threads_per_worker=1, memory_limit=400 * MIB, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        least, most = (planned(client, objective, dataset, method, is_kept) for is_kept in (False, True))
        most.check()
        db.train(objective, dataset, method, client=client, progress=False)
        peaks = peak_bytes(client)
    check(least, most, peaks)


def check(without_keepers: MemoryPlan, plan: MemoryPlan, peaks: dict[str, int]) -> None:
    """Worker by worker: no more than the most, no less than the least."""
    for least, most in zip(without_keepers.workers, plan.workers, strict=True):
        peak = peaks[most.facts.worker]
        assert least.least_bytes <= peak <= most.bytes.total, f"{peak / MIB:.4g} MiB were needed. {most}"
