"""Downpour from one end to the other, on clusters whose workers are threads that talk over TCP."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from distributed import Client

import dask_belief as db
from dask_belief.data.batches import mini_batches
from dask_belief.downpour.driver import plan_leases
from dask_belief.monitoring.events import DownpourProgressed
from dask_belief.seeds import stream
from tests.small_cluster import eventually


def sequential(network: db.Network, store: Path, method: db.Downpour, seed: int) -> np.ndarray:
    """The same run in one process, with the formulas of the paper: fetch, gradient, push, one after another."""
    dataset = db.ZarrDataset(store)
    plan = plan_leases(
        dataset.n_rows,
        dataset.chunk_rows,
        dataset.row_bytes("float32"),
        network.n_parameters,
        method.batch_size,
        method.lease_rows,
    )
    values = network.initial_parameters(seed)
    state = method.rule.init(values)
    for epoch in range(method.epochs):
        for lease in stream(seed, "leases", epoch).permutation(len(plan)):
            unit = plan[int(lease)]
            inputs, targets = dataset.read(unit.start, unit.stop)
            order = stream(seed, "rows", epoch, int(lease))
            for _, x, y in mini_batches(inputs, targets, method.batch_size, order):
                _, gradient = network.loss_and_gradient(values, x, y)
                gradient *= np.float32(1 / len(x))
                method.rule.apply(values, gradient, state, method.rule.learning_rate)
    return values


@pytest.mark.parametrize("rule", [db.SGD(0.1), db.Momentum(0.02, 0.9), db.Adagrad(0.05)], ids=lambda rule: rule.name)
def test_one_replica_without_lag_is_plain_mini_batch_descent(connect, store: Path, network, rule) -> None:
    """With one replica, n_fetch = n_push = 1 and no lag, the run is the sequential formula, to the bit."""
    method = db.Downpour(n_replicas=1, rule=rule, batch_size=32, epochs=2, fetch_lag=0)
    with connect(2) as client:
        result = db.train(network, store, method, client=client, seed=3, progress=False)
    assert result.parameters.tobytes() == sequential(network, store, method, 3).tobytes()


@pytest.mark.parametrize("options", [{}, {"n_fetch": 3, "n_push": 2}, {"n_push": 5, "warm_start_steps": 20}], ids=str)
def test_one_replica_is_a_function_of_its_seed(connect, store: Path, network: db.Network, options) -> None:
    """Two runs with one replica have the same bits, whatever lies between fetches and pushes; another seed has not."""

    def run(seed: int) -> bytes:
        method = db.Downpour(n_replicas=1, rule=db.Adagrad(0.05), batch_size=50, epochs=2, **options)
        with connect(2) as client:
            return db.train(network, store, method, client=client, seed=seed, progress=False).parameters.tobytes()

    assert run(1) == run(1) != run(2)


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
    images = plan_leases(1_000_000, 100, 600_000, 1000, batch_size=100, lease_rows=None)
    assert images.largest_rows * 600_000 <= 64 * 2**20
    small = plan_leases(1000, 32, 40, 1000, batch_size=100, lease_rows=None)
    assert small.largest_rows >= 96
