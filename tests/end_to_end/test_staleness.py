"""What is done about old gradients: each way learns, tells how old they were, and is what its definition says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from distributed import Client

import dask_belief as db
from dask_belief.data.batches import MiniBatches
from dask_belief.downpour.clocks import Clocks
from dask_belief.downpour.lease_plan import plan_leases
from dask_belief.seeds import stream
from tests.row_counts import BATCH_SIZE, OPTIONS, RowCounts
from tests.small_cluster import kill_worker

from .timetable import Timetable, idle_workers  # noqa: TID252

WAYS = [
    None,
    db.MaxStaleness(0),
    db.MaxStaleness(3),
    db.ScaleByStaleness(),
    db.Synchronous(),
    db.Synchronous(backup_replicas=1),
    db.ElasticAveraging(0.9),
]
by_way = pytest.mark.parametrize("way", WAYS, ids=str)


@by_way
def test_every_way_learns_and_tells_how_stale(two_workers: Client, store: Path, network, held_out, way) -> None:
    """Three replicas learn the clouds; each update is told of with its staleness, which Synchronous does not have."""
    method = db.Downpour(n_replicas=3, rule=db.Adagrad(0.05), batch_size=20, epochs=3, staleness=way)
    result = db.train(network, store, method, client=two_workers, validation=held_out, progress=False)
    assert result.stop.reason is db.StopReason.EPOCHS_DONE
    assert result.passes == 3.0
    assert result.validation["accuracy"] > 0.6
    staleness, [shard] = result.history.staleness(), result.history.shards()
    n_batches = 3 * 3000 // 20
    if isinstance(way, db.Synchronous):
        assert set(staleness) == {0}
        assert sum(staleness.values()) + shard["n_dropped"] <= n_batches
        assert n_batches // 3 <= shard["n_updates"] <= n_batches
    else:
        assert sum(staleness.values()) == shard["n_updates"] == n_batches
        assert shard["n_dropped"] == 0
        assert shard["staleness_max"] == max(staleness) > 0


@pytest.mark.parametrize(
    ("way", "options"),
    [
        *((way, {}) for way in WAYS if way != db.Synchronous(1)),
        *((way, {"n_fetch": 3, "n_push": 3}) for way in WAYS if not isinstance(way, db.Synchronous)),
    ],
    ids=str,
)
def test_one_replica_repeats_its_bits(two_workers: Client, wide_network: db.Network, store: Path, way, options) -> None:
    """Every way is a function of the seed where there is nobody else, for one shard as for three."""
    results = []
    for n_shards in (1, 3):
        method = db.Downpour(n_replicas=1, n_shards=n_shards, batch_size=50, epochs=1, staleness=way, **options)
        data = db.ZarrDataset(store).read(0, 300)
        results.append(db.train(wide_network, data, method, client=two_workers, progress=False))
    assert results[0].repeatable and results[1].repeatable
    assert results[0].parameters.tobytes() == results[1].parameters.tobytes()


# Clocks.


class Spread:
    """How far apart the clocks of replicas at work were, after each news of one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.largest = 0
        self.n_notes = 0
        self._note = Clocks.note
        monkeypatch.setattr(Clocks, "note", lambda clocks, replica, done: self._see(clocks, replica, done))

    def _see(self, clocks: Clocks, replica: str, done: int) -> None:
        self._note(clocks, replica, done)
        times = [clock.time for clock in clocks._clocks.values() if clock.is_at_work]
        if len(times) > 1:
            self.n_notes += 1
            self.largest = max(self.largest, max(times) - min(times))


@pytest.mark.parametrize("max_staleness", [0, 2])
@pytest.mark.parametrize("n_push", [1, 3])
def test_replicas_keep_within_the_staleness_that_is_allowed(
    two_workers: Client, store: Path, network: db.Network, monkeypatch, max_staleness: int, n_push: int
) -> None:
    """A mini-batch is begun only when the slowest has made as many, less what is allowed: so one more may be done."""
    spread = Spread(monkeypatch)
    way = db.MaxStaleness(max_staleness)
    method = db.Downpour(n_replicas=2, batch_size=20, epochs=2, staleness=way, n_push=n_push)
    result = db.train(network, store, method, client=two_workers, progress=False)
    assert spread.n_notes > 100
    assert spread.largest <= max_staleness + 1
    assert result.history.rows("DownpourProgressed")[-1]["pace_waiting_seconds"] > 0


@pytest.mark.parametrize("max_staleness", [0, 2])
def test_pushes_are_no_staler_than_promised(two_workers: Client, store: Path, network, max_staleness: int) -> None:
    """Two replicas without lag: a push meets at most so many updates of the other.

    A mini-batch counts as made before its push has arrived, so at the fetch one push may be missing of what the clocks
    show, and at the push the other may have had leave for another mini-batch since.
    """
    way = db.MaxStaleness(max_staleness)
    method = db.Downpour(n_replicas=2, batch_size=20, epochs=3, staleness=way, fetch_lag=0)
    result = db.train(network, store, method, client=two_workers, progress=False)
    assert max(result.history.staleness()) <= 2 * max_staleness + 3


# Definitions.


def test_scaling_by_staleness_scales_by_it(two_workers: Client) -> None:
    """By `SGD` on gradients that are all alike the way gone is the sum of one over staleness, or over 1."""
    objective = RowCounts(512, n_shards=2)
    method = db.Downpour(**OPTIONS, n_replicas=3, n_shards=2, epochs=3, staleness=db.ScaleByStaleness())
    result = db.train(objective, objective.data(), method, client=two_workers, progress=False, dtype="float64")
    staleness = result.history.staleness()
    assert max(staleness) < 32
    rows = BATCH_SIZE * sum(count / max(1, age) for age, count in staleness.items())
    assert objective.counts(result.parameters).sum() == pytest.approx(rows)


@pytest.mark.parametrize("backup_replicas", [0, 1])
def test_a_round_is_the_mean_of_its_members(two_workers: Client, backup_replicas: int) -> None:
    """A row counts one half where two made the round; with backups those of a dropped mini-batch do not count."""
    objective = RowCounts(1024, n_shards=2)
    way = db.Synchronous(backup_replicas)
    method = db.Downpour(**OPTIONS, n_replicas=2, n_shards=2, epochs=1, staleness=way)
    result = db.train(objective, objective.data(), method, client=two_workers, progress=False)
    counts, shards = objective.counts(result.parameters), result.history.shards()
    assert set(np.unique(counts)) <= {0.0, 0.5, 1.0}
    # Each round moves by one mini-batch's worth.
    for shard, of_shard in zip(shards, counts, strict=True):
        assert of_shard.sum() == BATCH_SIZE * shard["n_updates"]
    # One decision for all shards.
    assert (counts[0] == counts[1]).all()
    n_lost = int((counts[0] == 0).sum())
    if backup_replicas == 0:
        assert n_lost == 0
    else:
        assert 0 < n_lost < 1024 and n_lost % BATCH_SIZE == 0
    assert result.stop.reason is db.StopReason.EPOCHS_DONE and result.passes == 1.0


@pytest.mark.parametrize("n_push", [1, 3])
def test_elastic_averaging_is_a_spring(two_workers: Client, store: Path, network: db.Network, n_push: int) -> None:
    """One replica without lag: the formula of Zhang, Choromanska and LeCun's algorithm 1."""
    way = db.ElasticAveraging(0.6)
    method = db.Downpour(
        n_replicas=1,
        rule=db.SGD(0.1),
        batch_size=32,
        epochs=1,
        n_fetch=n_push,
        n_push=n_push,
        fetch_lag=0,
        staleness=way,
    )
    result = db.train(network, store, method, client=two_workers, seed=3, dtype="float64", progress=False)
    dataset = db.ZarrDataset(store)
    plan = plan_leases(method, dataset.n_rows, dataset.chunk_rows, dataset.row_bytes("float64"), network.n_parameters)
    own = network.initial_parameters(3).astype(np.float64)
    centre = own.copy()
    for lease in stream(3, "leases", 0).permutation(len(plan)):
        unit = plan[int(lease)]
        batches = MiniBatches(*dataset.read(unit.start, unit.stop), 32, stream(3, "rows", 0, int(lease)))
        for step, inputs, targets in batches:
            own -= 0.1 / len(inputs) * network.loss_and_gradient(own, inputs.astype(np.float64), targets)[1]
            if (step + 1) % n_push == 0 or step == len(batches) - 1:
                pull = 0.6 * (own - centre)
                own -= pull
                centre += pull
    np.testing.assert_allclose(result.parameters, centre, rtol=1e-9, atol=1e-12)


# Losses.


@by_way
def test_every_way_goes_on_when_a_worker_is_lost(connect, monkeypatch, way) -> None:
    """Nobody waits for a replica that is gone, or for ever; and a row is lost only to a backup."""
    objective = RowCounts(1024)
    method = db.Downpour(**OPTIONS, n_replicas=3, epochs=2, lease_rows=64, staleness=way)
    with connect(3) as client:
        [idle] = idle_workers(client)
        table = Timetable(monkeypatch, {40: lambda: kill_worker(client, idle)})
        result = db.train(objective, objective.data(), method, client=client, progress=False)
    assert table.n_begun >= 2 * 1024 // BATCH_SIZE
    assert "WorkerLost" in result.history["event"] and "Rebuilt" not in result.history["event"]
    assert result.stop.reason is db.StopReason.EPOCHS_DONE and result.passes == 2.0
    counts = objective.counts(result.parameters)
    if way is None or isinstance(way, db.MaxStaleness):
        assert (counts == 2.0).all()
    elif way == db.Synchronous():
        assert counts.min() > 0
