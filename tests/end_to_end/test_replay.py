"""A recorded run with several replicas is run again in one process, and ends with the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from distributed import Client

import dask_belief as db
from dask_belief.downpour.record import read_record
from tests.small_cluster import kill_worker

from .conftest import blobs  # noqa: TID252
from .timetable import Failing, Timetable, first_then_long, idle_workers  # noqa: TID252

PLAIN = {"n_replicas": 3, "rule": db.Adagrad(0.05), "batch_size": 20, "epochs": 2}

OPTIONS = {
    "as in the paper": {},
    "waiting for fetches": {"fetch_lag": 0},
    "seldom": {"n_fetch": 3, "n_push": 2},
    "seldom and late": {"n_fetch": 4, "n_push": 4, "fetch_lag": 3},
    "warm start": {"warm_start_steps": 30, "n_push": 2},
    "penalties": {"l2": 1e-3, "weight_decay": 0.01, "clip_norm": 0.5},
    "all at once": {"l2": 1e-3, "weight_decay": 0.01, "clip_norm": 0.5, "n_fetch": 2, "n_push": 3, "fetch_lag": 2},
    "MaxStaleness": {"staleness": db.MaxStaleness(1)},
    "ScaleByStaleness": {"staleness": db.ScaleByStaleness(), "n_push": 2},
    "Synchronous": {"staleness": db.Synchronous()},
    "Synchronous, with a backup": {"staleness": db.Synchronous(backup_replicas=1)},
    "ElasticAveraging": {"staleness": db.ElasticAveraging(0.9)},
    "ElasticAveraging, seldom": {"staleness": db.ElasticAveraging(0.9), "n_fetch": 3, "n_push": 3, "l2": 1e-3},
    "Adam with a schedule": {"rule": db.Adam(db.Warmup(20, then=db.Cosine(0.01, 200))), "weight_decay": 0.01},
    "bfloat16": {"wire_dtype": "bfloat16", "n_push": 2},
    "bfloat16, Synchronous": {"wire_dtype": "bfloat16", "staleness": db.Synchronous()},
    "bfloat16, ElasticAveraging": {
        "wire_dtype": "bfloat16",
        "staleness": db.ElasticAveraging(0.9),
        "n_fetch": 2,
        "n_push": 2,
    },
    "local steps by Nesterov": {"rule": db.Nesterov(db.StepDecay(0.02, 0.5, 50), 0.9), "n_fetch": 3, "n_push": 3},
}


def train(client: Client, objective, data, record: Path, callbacks=(), **options) -> db.TrainingResult:
    method = db.Downpour(**PLAIN | options)
    return db.train(objective, data, method, client=client, seed=5, callbacks=callbacks, progress=False, record=record)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_replay_has_the_bits_of_the_run(two_workers: Client, store: Path, network, tmp_path: Path, options) -> None:
    """Network and data are found by what the record says of them."""
    result = train(two_workers, network, store, tmp_path / "record.zarr", **options)
    assert (max(result.history.staleness()) == 0) == isinstance(options.get("staleness"), db.Synchronous)
    assert db.replay(tmp_path / "record.zarr").tobytes() == result.parameters.tobytes()


@pytest.mark.parametrize("options", first_then_long(OPTIONS.values(), 3), ids=OPTIONS)
def test_a_replay_over_shards_and_a_lost_replica(connect, wide_network, tmp_path: Path, monkeypatch, options) -> None:
    """Two shards, and a worker with a replica is lost on the way: others go on where it was in its leases."""
    data = db.ArrayDataset(*blobs(1200, seed=6), chunk_rows=100)
    with connect(4) as client:
        [idle] = idle_workers(client, n_shards=2)
        table = Timetable(monkeypatch, {50: lambda: kill_worker(client, idle)})
        more = {"n_replicas": 4, "n_shards": 2, "lease_rows": 200}
        result = train(client, wide_network, data, tmp_path / "record.zarr", **more | options)
    monkeypatch.undo()
    assert table.n_begun >= 120
    assert "WorkerLost" in result.history["event"] and "Rebuilt" not in result.history["event"]
    assert db.replay(tmp_path / "record.zarr", dataset=data).tobytes() == result.parameters.tobytes()


@pytest.mark.parametrize("is_made", [False, True], ids=["not made", "made, its answer lost"])
@pytest.mark.parametrize("shard", [0, 2])
@pytest.mark.parametrize(
    "options", first_then_long([{"n_push": 2}, {}, {"staleness": db.ElasticAveraging(0.9)}]), ids=str
)
def test_a_replay_of_half_a_push(
    two_workers: Client, wide_network, tmp_path: Path, monkeypatch, options, shard: int, is_made: bool
) -> None:
    """An exchange that some shards have seen and others have not, and the replica's successor."""
    data = db.ArrayDataset(*blobs(600, seed=6), chunk_rows=100)
    failing = Failing(monkeypatch, "exchange", 21, f"shard {shard}", is_made)
    result = train(two_workers, wide_network, data, tmp_path / "record.zarr", n_shards=3, **options)
    assert failing.has_failed
    monkeypatch.undo()
    assert db.replay(tmp_path / "record.zarr", dataset=data).tobytes() == result.parameters.tobytes()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_fetch": 3, "n_push": 2, "fetch_lag": 2, "weight_decay": 0.01, "clip_norm": 1.0},
        {"staleness": db.MaxStaleness(1), "rule": db.Adam(0.01)},
    ],
    ids=str,
)
def test_a_replay_of_sparse_exchanges(two_workers: Client, tmp_path: Path, options) -> None:
    """Of a table of three shards, of which a mini-batch touches a few rows."""
    words = db.Network([db.Embedding(20_000, 8), db.Dense(3)], loss="softmax", input_shape=(2,))
    ids = np.random.default_rng(2).integers(0, 500, (1000, 2))
    data = db.ArrayDataset(ids.astype(np.float32), ids.sum(1) % 3, chunk_rows=100)
    result = train(two_workers, words, data, tmp_path / "record.zarr", n_shards=3, **options)
    assert result.history.rows("DownpourProgressed")[-1]["pushed_bytes"] < 100 * words.n_parameters
    assert db.replay(tmp_path / "record.zarr", dataset=data).tobytes() == result.parameters.tobytes()


def test_a_run_that_a_callback_ended_is_replayed_as_far_as_it_came(two_workers, store: Path, network, tmp_path) -> None:
    """Leases that were under way are broken off where they were."""
    stop = [lambda event: type(event).__name__ == "DownpourProgressed"]
    result = train(two_workers, network, store, tmp_path / "record.zarr", stop, epochs=10_000)
    assert result.stop.reason is db.StopReason.CALLBACK
    assert db.replay(tmp_path / "record.zarr").tobytes() == result.parameters.tobytes()


def test_what_cannot_be_replayed_is_refused(two_workers: Client, store: Path, network, tmp_path: Path) -> None:
    """No record, other data, another objective: each by name."""
    with pytest.raises(db.MissingStoreError, match="holds no record"):
        db.replay(tmp_path / "nowhere.zarr")
    with pytest.raises(db.MissingStoreError, match="holds no record"):
        db.replay(store)
    path = tmp_path / "record.zarr"
    train(two_workers, network, blobs(300, seed=6), path, epochs=1)
    with pytest.raises(db.ArgumentError, match=r"^dataset: "):
        db.replay(path)
    with pytest.raises(db.DataError, match=r"^dataset: has 200 rows"):
        db.replay(path, dataset=blobs(200, seed=6))
    with pytest.raises(db.ArgumentError, match=r"^objective: has"):
        db.replay(path, db.Network([db.Dense(4)], loss="softmax", input_shape=(10,)), blobs(300, seed=6))


def test_a_record_is_not_written_over_something_else(two_workers: Client, store: Path, network, tmp_path: Path) -> None:
    """A data set stays what it is; an older record is replaced."""
    with pytest.raises(db.ArgumentError, match=r"^record: "):
        train(two_workers, network, store, store)
    db.ZarrDataset(store).check()
    for rule in (db.SGD(0.1), db.SGD(0.2)):
        result = train(two_workers, network, store, tmp_path / "record.zarr", rule=rule, epochs=1)
    assert db.replay(tmp_path / "record.zarr").tobytes() == result.parameters.tobytes()


def test_a_record_tells_the_order_of_exchanges(two_workers: Client, store: Path, network, tmp_path: Path) -> None:
    """Each mini-batch is applied once; what each replica fetched is told with the updates it had had."""
    import zarr

    result = train(two_workers, network, store, tmp_path / "record.zarr")
    record = read_record(tmp_path / "record.zarr")
    [log] = record.logs
    taken = [(each.at.lease, step) for each in log if each.is_taken for step in range(each.first, each.last + 1)]
    assert len(taken) == len(set(taken)) == 2 * 3000 // 20 == result.history.shards()[0]["n_updates"]
    assert (record.last == result.parameters).all()
    fetches = np.asarray(zarr.open_array(tmp_path / "record.zarr" / "fetches", mode="r")[...])
    assert len(fetches) == sum(each.has_fetched for each in log)
    assert (np.diff(fetches[:, -1]) >= 0).all() and fetches[-1, -1] <= len(taken)
