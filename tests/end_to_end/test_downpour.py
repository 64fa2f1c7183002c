"""Downpour from one end to the other, on clusters whose workers are threads that talk over TCP."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from distributed import Client

import dask_belief as db
from dask_belief.cluster.placement import place
from dask_belief.downpour import driver
from dask_belief.downpour.lease_plan import plan_leases
from dask_belief.monitoring.events import DownpourProgressed, Rebuilt, WorkerJoined, WorkerLost
from dask_belief.parameter_server.vault import Vault
from dask_belief.seeds import stream
from tests.row_counts import BATCH_SIZE, OPTIONS, RowCounts, SparseRowCounts
from tests.small_cluster import eventually, kill_worker

from .algorithm_1_1 import by_the_paper  # noqa: TID252
from .conftest import blobs  # noqa: TID252
from .timetable import Failing, Timetable, first_then_long  # noqa: TID252

RULES = [
    db.SGD(0.1),
    db.Momentum(0.02, 0.9),
    db.Nesterov(0.02, 0.9),
    db.Adagrad(0.05),
    db.RMSProp(0.005),
    db.Adam(0.01),
    db.Adam(db.Warmup(20, then=db.Cosine(0.01, 100))),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule)[:60])
def test_one_replica_without_lag_is_plain_mini_batch_descent(two_workers: Client, store: Path, network, rule) -> None:
    """With one replica, n_fetch = n_push = 1 and no lag, the run is the sequential formula, to the bit."""
    method = db.Downpour(n_replicas=1, rule=rule, batch_size=32, epochs=1, fetch_lag=0)
    result = db.train(network, store, method, client=two_workers, seed=3, progress=False)
    assert result.parameters.tobytes() == by_the_paper(network, db.ZarrDataset(store), method, 3, "float32").tobytes()
    assert result.repeatable


@pytest.mark.parametrize(
    "options",
    [
        {"n_fetch": 1, "n_push": 4, "fetch_lag": 0},
        {"n_fetch": 3, "n_push": 2},
        {"n_fetch": 4, "n_push": 4, "fetch_lag": 3},
        {"n_fetch": 5, "n_push": 1, "fetch_lag": 5, "rule": db.Momentum(0.01, 0.9)},
        {"l2": 0.1, "weight_decay": 0.2, "clip_norm": 0.3, "rule": db.Adagrad(0.05)},
        {"l2": 0.1, "weight_decay": 0.2, "clip_norm": 0.3, "n_fetch": 3, "n_push": 4, "lease_rows": 700},
    ],
    ids=str,
)
def test_one_replica_is_algorithm_1_1(two_workers: Client, store: Path, network, options) -> None:
    """What is fetched and pushed when, what is accrued, penalised, clipped and decayed: see `by_the_paper`."""
    method = db.Downpour(**({"n_replicas": 1, "rule": db.SGD(0.1), "batch_size": 32, "epochs": 2} | options))
    result = db.train(network, store, method, client=two_workers, seed=3, dtype="float64", progress=False)
    expected = by_the_paper(network, db.ZarrDataset(store), method, 3, "float64")
    np.testing.assert_allclose(result.parameters, expected, rtol=1e-9, atol=1e-12)


EXCHANGES = [
    {},
    {"fetch_lag": 0},
    {"n_fetch": 3, "n_push": 2},
    {"n_fetch": 4, "n_push": 4, "fetch_lag": 4},
    {"n_push": 5, "warm_start_steps": 20},
    {"n_fetch": 2, "n_push": 3, "l2": 1e-3, "weight_decay": 0.01, "clip_norm": 0.5},
]


@pytest.mark.parametrize("options", first_then_long(EXCHANGES, 3), ids=str)
def test_one_replica_is_a_function_of_its_seed(two_workers: Client, wide_network: db.Network, options) -> None:
    """Two runs with one replica have the same bits, with one shard and with three; another seed has not."""

    def run(seed: int, n_shards: int) -> bytes:
        method = db.Downpour(n_replicas=1, n_shards=n_shards, rule=db.Adagrad(0.05), batch_size=50, **options)
        data = db.ArrayDataset(*blobs(300, seed=4), chunk_rows=100)
        result = db.train(wide_network, data, method, client=two_workers, seed=seed, progress=False)
        assert result.repeatable
        return result.parameters.tobytes()

    first = run(1, 1)
    assert first == run(1, 1) == run(1, 3) != run(2, 1)


def test_several_replicas_and_shards_learn(connect, store: Path, wide_network, held_out) -> None:
    """Three replicas on two workers, with three shards, learn the clouds; every row is gone over once an epoch."""
    method = db.Downpour(n_replicas=3, n_shards=3, rule=db.Adagrad(0.01), batch_size=50, epochs=3, warm_start_steps=10)
    with connect(2) as client:
        result = db.train(wide_network, store, method, client=client, validation=held_out, progress=False)
    assert result.stop.reason is db.StopReason.EPOCHS_DONE
    assert result.passes == 3.0
    assert result.validation["accuracy"] > 0.6
    last = [event for event in result.history.events if isinstance(event, DownpourProgressed)][-1]
    assert (last.rows, last.steps, last.epochs) == (9000, 180, 3.0)


COVERING = [
    {},
    {"n_fetch": 3, "n_push": 2, "warm_start_steps": 9},
    {"n_push": 5, "fetch_lag": 0},
    {"n_fetch": 4, "n_push": 4, "fetch_lag": 4},
    {"staleness": db.MaxStaleness(1)},
    {"staleness": db.MaxStaleness(0), "n_push": 3},
]
by_covering = pytest.mark.parametrize("options", COVERING, ids=str)
by_touch = pytest.mark.parametrize("kind", first_then_long([RowCounts, SparseRowCounts]), ids=["dense", "sparse"])


@by_covering
@pytest.mark.parametrize("kind", [RowCounts, SparseRowCounts], ids=["dense", "sparse"])
def test_an_epoch_covers_every_row_once(two_workers: Client, kind, options) -> None:
    """Three replicas on two shards: what was pushed is every row three times in three epochs, on each shard."""
    objective = kind(512, n_shards=2)
    method = db.Downpour(**OPTIONS, n_replicas=3, n_shards=2, epochs=3, **options)
    result = db.train(objective, objective.data(), method, client=two_workers, progress=False)
    assert objective.found(result.parameters) == [[3.0], [3.0]]
    assert result.passes == 3.0


@by_covering
@by_touch
def test_rows_count_once_when_workers_come_and_go(connect, monkeypatch, kind, options) -> None:
    """A worker joins and takes part, its replica is lost, another joins: on the shards nothing shows."""
    objective = kind(1024, n_shards=2)
    method = db.Downpour(**OPTIONS, n_shards=2, epochs=3, lease_rows=64, **options)
    with connect(2) as client:
        first = set(client.nthreads())

        def join() -> None:
            # Of the first two one may not have begun yet: it is not the one that is waited for.
            table.await_other_than(first | table.workers)
            client.cluster.scale(len(client.cluster.workers) + 1)

        def lose() -> None:
            table.await_other_than(set())
            for address in sorted(table.workers - first):
                kill_worker(client, address)

        table = Timetable(monkeypatch, {20: join, 70: lose, 120: join})
        result = db.train(objective, objective.data(), method, client=client, progress=False)
        kinds = [type(event) for event in result.history.events]
    assert len(table.workers - first) == 2
    assert WorkerJoined in kinds and WorkerLost in kinds and Rebuilt not in kinds
    assert objective.found(result.parameters) == [[3.0], [3.0]]


@by_touch
@pytest.mark.parametrize("is_made", [False, True], ids=["not made", "made, its answer lost"])
@pytest.mark.parametrize(
    ("method_of", "actor"),
    [("exchange", "shard 0"), ("exchange", "shard 1"), ("report", ""), ("next_lease", ""), ("applied", "shard 1")],
    ids=" ".join,
)
def test_rows_count_once_when_a_call_fails(two_workers, monkeypatch, kind, method_of, actor, is_made) -> None:
    """A push that one shard has and another has not, a lost answer or report: the successor goes on behind it."""
    # Something must be taken over for `applied` to be asked.
    Failing(monkeypatch, "exchange", 5, "shard 0") if method_of == "applied" else None
    failing = Failing(monkeypatch, method_of, {"exchange": 13, "applied": 0}.get(method_of, 2), actor, is_made)
    objective = kind(512, n_shards=2)
    method = db.Downpour(**OPTIONS, n_replicas=2, n_shards=2, epochs=2, n_push=2)
    result = db.train(objective, objective.data(), method, client=two_workers, progress=False)
    assert failing.has_failed
    assert objective.found(result.parameters) == [[2.0], [2.0]]


@pytest.mark.parametrize(("role", "shard_copies"), [("shard", 0), ("shard", 1), ("hub", 0)])
@by_touch
def test_rows_count_once_when_an_actor_is_lost(connect, monkeypatch, role: str, shard_copies: int, kind) -> None:
    """A worker with a shard or the ledger is lost. What lives on has each row once, and so has a shard with a copy.

    One without goes back to what was saved, by as many mini-batches as is told, and counts nothing twice.
    The driver takes note of the ledger, and saves, as often as it looks.
    """
    monkeypatch.setattr(driver, "_PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr(Vault, "is_due", lambda vault, now: not vault.is_saving)
    limits = db.Limits(connect_seconds=1.0)
    objective = kind(1024, n_shards=2)
    method = db.Downpour(**OPTIONS, n_shards=2, shard_copies=shard_copies, epochs=4, n_push=2)
    with connect(3) as client:
        placement = place(list(client.nthreads()), 2)
        victim = {"shard": placement.shards[1], "hub": placement.hub}[role]
        Timetable(monkeypatch, {100: lambda: kill_worker(client, victim)})
        result = db.train(objective, objective.data(), method, client=client, progress=False, limits=limits)
    rebuilt = [event for event in result.history.events if isinstance(event, Rebuilt)]
    assert rebuilt
    assert result.passes == 4.0
    counts = objective.counts(result.parameters)
    assert (counts[0] == 4.0).all()
    missing = 4.0 - counts[1]
    assert (missing >= 0.0).all()
    told, lost = sum(event.updates_lost for event in rebuilt), missing.sum() / BATCH_SIZE
    if role == "hub" or shard_copies:
        assert (told, lost) == (0, 0.0)
    assert lost == told


def test_a_worker_that_joins_late_trains(connect, store: Path, network: db.Network, monkeypatch) -> None:
    """It is told of in the history, with steps of its own."""
    with connect(1) as client:

        def join() -> None:
            table.await_other_than(set(table.workers))
            client.cluster.scale(2)

        table = Timetable(monkeypatch, {5: join})
        result = db.train(network, store, db.Downpour(epochs=2, batch_size=20), client=client, progress=False)
    replicas = result.history.replicas()
    assert {replica["worker"] for replica in replicas} == table.workers
    assert len(replicas) == 2 and all(replica["steps"] > 0 for replica in replicas)
    assert sum(replica["rows"] for replica in replicas) == 6000


def test_history_tells_speed_waits_and_staleness(two_workers: Client, store: Path, network: db.Network) -> None:
    """What is told of replicas, of shards and in all adds up, and agrees with what was to be done."""
    method = db.Downpour(n_replicas=2, batch_size=20, epochs=3, staleness=db.MaxStaleness(2))
    result = db.train(network, store, method, client=two_workers, progress=False)
    history = result.history
    last = history.rows("DownpourProgressed")[-1]
    replicas, [shard] = history.replicas(), history.shards()
    n_batches = 3 * 3000 // 20
    assert sum(history.staleness().values()) == shard["n_updates"] == n_batches
    # Of each replica's last lease the report leaves before its last pushes are counted.
    assert n_batches - 2 * 3 <= last["n_pushes"] <= n_batches
    assert sum(replica["steps"] for replica in replicas) == n_batches
    assert last["pushed_bytes"] == last["n_pushes"] * network.n_parameters * 4
    assert last["fetched_bytes"] == sum(replica["n_fetches"] for replica in replicas) * network.n_parameters * 4
    assert shard["received_bytes"] == n_batches * network.n_parameters * 4
    assert all(rate > 0 for rate in history["rows_per_second"])
    names = [name for name in last if name.endswith("_seconds") and name not in ("seconds", "server_seconds")]
    assert len(names) == 7
    for name in names:
        assert last[name] == pytest.approx(sum(replica[name] for replica in replicas))
        assert 0 <= last[name] <= 2 * result.seconds
    assert last["computing_seconds"] > 0 and 0 < last["server_seconds"] <= result.seconds
    assert 0 <= last["staleness_mean"] <= last["staleness_p95"] <= last["staleness_max"]
    assert last["rate"] == method.rule.rate(n_batches)


def test_loss_is_the_objective_at_the_parameters(two_workers: Client, store: Path, network: db.Network) -> None:
    """The reported loss is mean loss plus penalty over all rows, at the parameters that are returned."""
    method = db.Downpour(rule=db.SGD(0.1), epochs=2, l2=0.01)
    result = db.train(network, store, method, client=two_workers, progress=False)
    dataset = db.ZarrDataset(store)
    inputs, targets = dataset.read(0, dataset.n_rows)
    loss, _ = network.loss_and_gradient(result.parameters, inputs, targets)
    weights = result.parameters[network.penalised].astype(np.float64)
    assert result.loss == pytest.approx(loss / dataset.n_rows + 0.005 * weights @ weights, rel=1e-6)


def test_penalty_draws_weights_but_not_biases(connect, store: Path, network: db.Network) -> None:
    """With a heavy penalty the weights shrink to nothing, and the biases do not."""
    method = db.Downpour(n_replicas=1, rule=db.SGD(0.05), epochs=4, l2=5.0)
    with connect(1) as client:
        result = db.train(network, store, method, client=client, progress=False)
    assert np.abs(result.parameters[network.penalised]).max() < 0.05
    assert np.abs(result.parameters[~network.penalised]).max() > 1e-4


def test_a_callback_ends_the_run(two_workers: Client, store: Path, network: db.Network) -> None:
    """A run of many epochs ends soon after a callback asks for it, with the parameters as they are then."""
    method = db.Downpour(epochs=1000, batch_size=10)
    callbacks = [lambda event: isinstance(event, DownpourProgressed)]
    result = db.train(network, store, method, client=two_workers, callbacks=callbacks, progress=False)
    assert result.stop.reason is db.StopReason.CALLBACK
    assert 0 < result.passes < 1000


def test_a_time_limit_ends_the_run(two_workers: Client, store: Path, network: db.Network) -> None:
    """max_seconds ends a run that has not had all its epochs."""
    method = db.Downpour(epochs=100_000, batch_size=10, max_seconds=0.5)
    result = db.train(network, store, method, client=two_workers, progress=False)
    assert result.stop.reason is db.StopReason.MAX_SECONDS
    assert 0 < result.passes < 100_000


def test_divergence_keeps_the_last_finite_point(two_workers: Client, store: Path) -> None:
    """A rate that is far too high ends with NOT_FINITE or an error that names the rows, never with NaN parameters."""
    network = db.Network([db.Dense(16, "relu"), db.Dense(1)], loss="squared", input_shape=(10,))
    inputs, _ = db.ZarrDataset(store).read(0, 3000)
    data = (inputs, inputs[:, 0])
    method = db.Downpour(rule=db.SGD(50.0), epochs=50, batch_size=20)
    try:
        result = db.train(network, data, method, client=two_workers, progress=False)
    except db.NonFiniteError as error:
        assert "rows" in str(error)
    else:
        assert result.stop.reason is db.StopReason.NOT_FINITE
        assert np.isfinite(result.parameters).all()


def test_a_run_leaves_nothing_on_the_cluster(two_workers: Client, store: Path, network, held_out) -> None:
    """No task, no data and no actor is known to the scheduler after a run."""
    db.train(network, store, db.Downpour(epochs=1), client=two_workers, validation=held_out, progress=False)

    def remaining(dask_scheduler) -> int:
        return len(dask_scheduler.tasks)

    eventually(lambda: two_workers.run_on_scheduler(remaining) == 0)
    assert not two_workers.who_has()


def test_a_driver_that_is_busy_at_the_end_loses_nothing(connect, store: Path, network: db.Network) -> None:
    """Replicas that ended because the run is over are not started again, however late the driver looks."""

    def dawdle(event: object) -> None:
        if isinstance(event, DownpourProgressed):
            threading.Event().wait(0.3)

    method = db.Downpour(n_replicas=4, epochs=2, batch_size=10)
    with connect(1) as client:
        result = db.train(network, store, method, client=client, callbacks=[dawdle], progress=False)
    assert result.stop.reason is db.StopReason.EPOCHS_DONE
    assert result.passes == 2.0


def test_a_report_that_is_lost_does_not_hold_up_the_run(connect, store: Path, network, lost_reports) -> None:
    """A replica whose report failed ends; the lease goes to the next, which has nothing left to do in it."""
    with connect(1) as client:
        result = db.train(network, store, db.Downpour(n_replicas=1, epochs=1), client=client, progress=False)
    assert lost_reports
    assert result.stop.reason is db.StopReason.EPOCHS_DONE
    assert result.passes == 1.0
    assert not result.repeatable


class Spoilt:
    """Least squares whose gradient is NaN for one row, although its loss is not."""

    n_parameters = 10

    def initial_parameters(self, seed: int) -> np.ndarray:
        return np.zeros(10)

    def loss_and_gradient(self, parameters, inputs, targets):
        residual = inputs @ parameters - targets
        weights = np.where(targets == 7.0, np.nan, 1.0)
        return 0.5 * float(residual @ residual), inputs.T @ (residual * weights)


def test_a_gradient_that_is_nan_never_reaches_the_shards(connect) -> None:
    """It ends the run by an error that names the rows, and the parameters that are kept are finite."""
    inputs, targets = stream(3, "rows").normal(size=(2000, 10)), np.zeros(2000)
    targets[1234] = 7.0
    data = db.ArrayDataset(inputs, targets, chunk_rows=100)
    with connect(1) as client, pytest.raises(db.NonFiniteError, match=r"gradient .* unit \d+ \(rows") as caught:
        db.train(Spoilt(), data, db.Downpour(rule=db.SGD(0.01), n_replicas=1), client=client, progress=False)
    assert np.isfinite(caught.value.kept_parameters).all()


def test_leases_keep_within_bytes_and_hold_a_whole_mini_batch() -> None:
    """Rows of images do not make leases of gigabytes, and small chunks do not make small mini-batches."""
    images = plan_leases(db.Downpour(batch_size=100), 1_000_000, 100, 600_000, 1000)
    assert images.largest_rows * 600_000 <= 64 * 2**20
    small = plan_leases(db.Downpour(batch_size=100), 1000, 32, 40, 1000)
    assert small.largest_rows >= 96
