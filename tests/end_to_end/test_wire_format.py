"""Pushes and fetches of 16 bits: half the bytes, nothing lost for good, each push once, and as good an answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from distributed import Client

import dask_belief as db
from dask_belief.cluster.placement import place
from dask_belief.monitoring.events import Rebuilt, WorkerLost
from tests.row_counts import OPTIONS, RowCounts, SparseRowCounts
from tests.small_cluster import kill_worker

from .algorithm_1_1 import by_the_paper  # noqa: TID252
from .timetable import Failing, Timetable, first_then_long, idle_workers  # noqa: TID252

NARROW = {"wire_dtype": "bfloat16"}
PLAIN = {"n_replicas": 1, "rule": db.Adagrad(0.05), "batch_size": 32, "epochs": 2}

by_touch = pytest.mark.parametrize("kind", [RowCounts, SparseRowCounts], ids=["whole", "sparse"])


def train(client: Client, objective, data, **options) -> db.TrainingResult:
    method = db.Downpour(**PLAIN | NARROW | options)
    return db.train(objective, data, method, client=client, seed=3, progress=False)


def traffic(result: db.TrainingResult) -> list[int]:
    [shard] = result.history.shards()
    last = result.history.rows("DownpourProgressed")[-1]
    sums = [last["pushed_bytes"], last["fetched_bytes"]]
    # The shard may have given more by then than the replica has told of.
    assert shard["received_bytes"] >= sums[0] and shard["sent_bytes"] >= sums[1]
    return [*sums, last["steps"], last["n_pushes"]]


@pytest.mark.parametrize("rule", [db.SGD(0.1), db.Adagrad(0.05), db.Adam(0.01)], ids=str)
def test_one_replica_without_lag_is_descent_with_rounding(two_workers, store: Path, network, rule) -> None:
    """Each gradient is rounded with what was left out before, each fetch as it is: to the bit."""
    options = {"n_replicas": 1, "rule": rule, "batch_size": 32, "epochs": 1, "fetch_lag": 0}
    method = db.Downpour(**options | NARROW)
    result = train(two_workers, network, store, **options)
    expected = by_the_paper(network, db.ZarrDataset(store), method, 3, "float32")
    assert result.parameters.tobytes() == expected.tobytes()
    wide = by_the_paper(network, db.ZarrDataset(store), db.Downpour(**options), 3, "float32")
    assert result.parameters.tobytes() != wide.tobytes()
    assert result.repeatable


@pytest.mark.parametrize(
    "options",
    first_then_long(
        [
            {"n_fetch": 4, "n_push": 4, "fetch_lag": 3},
            {"n_fetch": 3, "n_push": 2},
            {"l2": 0.1, "weight_decay": 0.2, "clip_norm": 0.3, "n_fetch": 3, "n_push": 4, "lease_rows": 700},
        ]
    ),
    ids=str,
)
def test_one_replica_is_algorithm_1_1_with_rounding(two_workers, store: Path, network, options) -> None:
    """Also where it steps on its own between fetches; a rounding may fall otherwise by the last bit of a sum."""
    method = db.Downpour(**PLAIN | NARROW | options)
    result = train(two_workers, network, store, **options)
    expected = by_the_paper(network, db.ZarrDataset(store), method, 3, "float32")
    np.testing.assert_allclose(result.parameters, expected, rtol=2e-2, atol=2e-3)


def test_half_the_bytes_travel(two_workers: Client, store: Path, network) -> None:
    """As many steps, pushes and fetches, of half the length; the answer is as good."""
    narrow, wide = (train(two_workers, network, store, wire_dtype=wire) for wire in ("bfloat16", None))
    assert [2 * n for n in traffic(narrow)[:2]] == traffic(wide)[:2]
    assert traffic(narrow)[2:] == traffic(wide)[2:]
    assert narrow.loss == pytest.approx(wide.loss, rel=1e-2)


@pytest.mark.parametrize("n_shards", [1, 3])
def test_a_sparse_exchange_is_half_as_long(two_workers: Client, n_shards: int) -> None:
    """Of what mini-batches touch, and of nothing else."""
    network = db.Network([db.Embedding(20_000, 8), db.Dense(3)], loss="softmax", input_shape=(4,))
    random = np.random.default_rng(4)
    ids = (20_000 * random.random((600, 4)) ** 4).astype(np.int64)
    data = db.ArrayDataset(ids.astype(np.float32), ids.sum(axis=1) % 3, chunk_rows=100)
    rows = [
        train(two_workers, network, data, n_shards=n_shards, wire_dtype=wire).history.rows("DownpourProgressed")[-1]
        for wire in ("bfloat16", None)
    ]
    for name in ("pushed_bytes", "fetched_bytes"):
        assert 0 < 2 * rows[0][name] == rows[1][name]
    assert rows[0]["pushed_bytes"] < rows[0]["n_pushes"] * network.n_parameters / 10


@pytest.mark.parametrize(
    "staleness", [db.MaxStaleness(2), db.ScaleByStaleness(), db.Synchronous(), db.ElasticAveraging(0.9)], ids=str
)
def test_it_goes_with_each_way_of_keeping_together(two_workers, store: Path, network, staleness) -> None:
    """Two replicas learn, with half the bytes a push."""
    narrow, wide = (
        train(two_workers, network, store, n_replicas=2, staleness=staleness, wire_dtype=wire)
        for wire in ("bfloat16", None)
    )
    # The order of exchanges differs from run to run, and with it the last points of the loss.
    assert max(narrow.loss, wide.loss) < 0.25 * np.log(4)
    pushed = [result.history.rows("DownpourProgressed")[-1] for result in (narrow, wide)]
    assert [each["pushed_bytes"] // each["n_pushes"] for each in pushed] == [
        2 * network.n_parameters,
        4 * network.n_parameters,
    ]


@by_touch
@pytest.mark.parametrize("is_made", [False, True], ids=["not made", "made, its answer lost"])
def test_rows_count_once_when_a_push_fails(two_workers, monkeypatch, kind, is_made) -> None:
    """A push that one shard has and another has not; the sums are exact in eight digits, too."""
    failing = Failing(monkeypatch, "exchange", 13, "shard 1", is_made)
    objective = kind(512, n_shards=2)
    method = db.Downpour(**OPTIONS | NARROW, n_replicas=2, n_shards=2, epochs=2, n_push=2)
    result = db.train(objective, objective.data(), method, client=two_workers, progress=False)
    assert failing.has_failed
    assert objective.found(result.parameters) == [[2.0], [2.0]]


@by_touch
def test_rows_count_once_when_a_replica_is_killed(connect, monkeypatch, kind) -> None:
    """What others do again of its lease comes once to the shards."""
    objective = kind(1024, n_shards=2)
    method = db.Downpour(**OPTIONS | NARROW, n_shards=2, epochs=3, lease_rows=64, n_push=2)
    with connect(4) as client:
        [idle] = idle_workers(client, n_shards=2)
        Timetable(monkeypatch, {50: lambda: kill_worker(client, idle)})
        result = db.train(objective, objective.data(), method, client=client, progress=False)
    assert any(isinstance(event, WorkerLost) for event in result.history.events)
    assert objective.found(result.parameters) == [[3.0], [3.0]]


@by_touch
def test_rows_count_once_when_a_shard_with_a_copy_is_lost(connect, monkeypatch, kind) -> None:
    """The copy has had the same bits."""
    objective = kind(1024, n_shards=2)
    method = db.Downpour(**OPTIONS | NARROW, n_shards=2, shard_copies=1, epochs=4, n_push=2)
    with connect(3) as client:
        victim = place(list(client.nthreads()), 2).shards[1]
        Timetable(monkeypatch, {100: lambda: kill_worker(client, victim)})
        limits = db.Limits(connect_seconds=1.0)
        result = db.train(objective, objective.data(), method, client=client, progress=False, limits=limits)
    assert any(isinstance(event, Rebuilt) for event in result.history.events)
    assert objective.found(result.parameters) == [[4.0], [4.0]]


@pytest.mark.parametrize("wires", [("bfloat16", None), (None, "bfloat16")], ids=str)
def test_a_resumed_run_may_have_another(two_workers: Client, store: Path, network, tmp_path: Path, wires) -> None:
    """What is saved is of float32 either way."""
    options = PLAIN | {"epochs": 1}
    path, (before, after) = tmp_path / "checkpoint", wires
    first = db.Downpour(**options, wire_dtype=before)
    db.train(network, store, first, client=two_workers, checkpoint=path, progress=False)
    second = db.Downpour(**PLAIN, wire_dtype=after)
    result = db.resume(path, method=second, client=two_workers, progress=False)
    assert result.passes == 2.0 and result.parameters.dtype == np.float32


def test_it_is_refused_for_float64(two_workers: Client, store: Path, network) -> None:
    """Before any work starts, with what to do."""
    for method in (db.Downpour(**NARROW), [db.Downpour(**NARROW), db.Sandblaster(max_iter=2)]):
        with pytest.raises(db.ArgumentError, match=r"^wire_dtype: .* dtype is float64.* train in float32"):
            db.train(network, store, method, client=two_workers, dtype="float64", progress=False)
