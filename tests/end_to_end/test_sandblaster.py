"""Sandblaster from one end to the other, on clusters whose workers are threads that talk over TCP."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from distributed import Client
from scipy.optimize import minimize

import dask_belief as db
from dask_belief.monitoring.events import IterationEnded, RunStarted, Stopped, Validated
from tests.small_cluster import eventually


def softmax_regression() -> db.Network:
    return db.Network([db.Dense(4)], loss="softmax", input_shape=(10,))


def scipy_minimum(network: db.Network, store: Path, l2: float) -> float:
    dataset = db.ZarrDataset(store)
    inputs, targets = dataset.read(0, dataset.n_rows, dtype=np.float64)

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        loss, gradient = network.loss_and_gradient(parameters, inputs, targets)
        weights = parameters * network.penalised
        return loss / len(inputs) + 0.5 * l2 * (weights @ weights), gradient / len(inputs) + l2 * weights

    start = network.initial_parameters(0).astype(np.float64)
    return float(minimize(objective, start, jac=True, method="L-BFGS-B", options={"gtol": 1e-9, "ftol": 0}).fun)


def test_reaches_scipys_minimum_in_float64(two_workers: Client, store: Path) -> None:
    """The minimum of a convex problem is SciPy's, to nine digits."""
    network = softmax_regression()
    method = db.Sandblaster(l2=1e-3, gtol=1e-9, ftol=0.0, max_iter=200)
    result = db.train(network, store, method, client=two_workers, dtype="float64", progress=False)
    assert result.stop.converged
    assert result.parameters.dtype == np.float64
    assert result.loss == pytest.approx(scipy_minimum(network, store, 1e-3), rel=1e-9)


def test_loss_is_the_objective_at_the_parameters(two_workers: Client, store: Path, network: db.Network) -> None:
    """The reported loss is mean loss plus penalty over all rows, at the parameters that are returned."""
    result = db.train(network, store, db.Sandblaster(max_iter=5, l2=0.01), client=two_workers, progress=False)
    dataset = db.ZarrDataset(store)
    inputs, targets = dataset.read(0, dataset.n_rows)
    loss, _ = network.loss_and_gradient(result.parameters, inputs, targets)
    weights = result.parameters[network.penalised].astype(np.float64)
    assert result.loss == pytest.approx(loss / dataset.n_rows + 0.005 * weights @ weights, rel=1e-6)


def test_validates_beside_training_and_at_the_end(two_workers: Client, store: Path, network, held_out) -> None:
    """Validation runs at the last point at the latest, and tells loss and accuracy."""
    method = db.Sandblaster(max_iter=30)
    result = db.train(network, store, method, client=two_workers, validation=held_out, progress=False)
    last = [event for event in result.history.events if isinstance(event, Validated)][-1]
    sums = network.evaluate(result.parameters, *held_out)
    assert last.loss == pytest.approx(sums["loss"] / sums["rows"], rel=1e-6)
    assert result.validation["accuracy"] == pytest.approx(sums["correct"] / sums["rows"])
    assert result.validation["accuracy"] > 0.6


def test_history_tells_the_run_from_start_to_stop(two_workers: Client, store: Path, network: db.Network) -> None:
    """Events come in order, each iteration once, and the loss falls."""
    result = db.train(network, store, db.Sandblaster(max_iter=6), client=two_workers, progress=False)
    events = result.history.events
    assert isinstance(events[0], RunStarted) and isinstance(events[-1], Stopped)
    iterations = [event for event in events if isinstance(event, IterationEnded)]
    assert [event.iteration for event in iterations] == [1, 2, 3, 4, 5, 6]
    assert result.history["loss"] == sorted(result.history["loss"], reverse=True)
    assert result.stop.reason is db.StopReason.MAX_ITERATIONS
    assert result.passes == iterations[-1].evaluations


def test_a_callback_that_returns_true_ends_the_run(two_workers: Client, store: Path, network: db.Network) -> None:
    """The run stops after the iteration at which it was asked to, with the point found so far."""

    def stop(event: object) -> bool:
        return isinstance(event, IterationEnded) and event.iteration == 3

    result = db.train(network, store, db.Sandblaster(), client=two_workers, callbacks=[stop], progress=False)
    assert result.stop.reason is db.StopReason.CALLBACK
    assert len(result.history["gradient_norm"]) == 3


def test_an_interrupt_ends_the_run_with_the_point_found(two_workers: Client, store: Path, network) -> None:
    """Ctrl-C gives the best point back, and leaves no task and no actor on the cluster."""

    def interrupt(event: object) -> None:
        if isinstance(event, IterationEnded) and event.iteration == 3:
            raise KeyboardInterrupt

    method = db.Sandblaster(max_iter=50)
    result = db.train(network, store, method, client=two_workers, callbacks=[interrupt], progress=False)
    assert result.stop.reason is db.StopReason.INTERRUPTED
    inputs, targets = db.ZarrDataset(store).read(0, 3000)
    loss, _ = network.loss_and_gradient(result.parameters, inputs, targets)
    assert result.loss == pytest.approx(loss / 3000, rel=1e-6)
    eventually(lambda: not two_workers.who_has())


def test_a_run_leaves_nothing_on_the_cluster(two_workers: Client, store: Path, network: db.Network) -> None:
    """No task, no data and no actor is known to the scheduler after a run."""
    db.train(network, store, db.Sandblaster(max_iter=2), client=two_workers, progress=False)

    def remaining(dask_scheduler) -> int:
        return len(dask_scheduler.tasks)

    eventually(lambda: two_workers.run_on_scheduler(remaining) == 0)
    assert not two_workers.who_has()


class LinearRegression:
    """A user's objective, as short as the documentation shows it: it knows nothing of the package."""

    n_parameters = 10

    def initial_parameters(self, seed: int) -> np.ndarray:
        return np.zeros(10)

    def loss_and_gradient(self, parameters, inputs, targets):
        residual = inputs @ parameters - targets
        return 0.5 * float(residual @ residual), inputs.T @ residual


def test_trains_an_objective_of_the_users_own(two_workers: Client) -> None:
    """Least squares by a few lines of the user's, on NumPy arrays as they are, is what the normal equations give."""
    random = np.random.default_rng(5)
    inputs = random.normal(size=(500, 10))
    targets = inputs @ np.arange(10.0) + random.normal(size=500)
    method = db.Sandblaster(gtol=1e-8, ftol=0.0)
    data = (inputs, targets)
    result = db.train(LinearRegression(), data, method, client=two_workers, dtype="float64", progress=False)
    expected, *_ = np.linalg.lstsq(inputs, targets)
    np.testing.assert_allclose(result.parameters, expected, rtol=1e-7)


def test_an_error_of_the_objective_says_where_it_arose(two_workers: Client) -> None:
    """What the objective raises in a replica reaches the caller with unit and rows."""

    class Broken(LinearRegression):
        def loss_and_gradient(self, parameters, inputs, targets):
            raise ValueError("no such thing")

    data = (np.zeros((20, 10)), np.zeros(20))
    with pytest.raises(db.ReplicaError, match=r"ValueError: no such thing.*unit \d+ \(rows \d+ to \d+\)"):
        db.train(Broken(), data, db.Sandblaster(), client=two_workers, progress=False)


def test_goes_on_from_the_result_of_another_run(two_workers: Client, store: Path, network: db.Network) -> None:
    """A run that begins at a result does not begin above its loss."""
    first = db.train(network, store, db.Sandblaster(max_iter=5), client=two_workers, progress=False)
    second = db.train(network, store, db.Sandblaster(max_iter=5), client=two_workers, initial=first, progress=False)
    assert second.history["loss"][0] < first.loss


def test_an_error_of_a_callback_keeps_the_best_point(two_workers: Client, store: Path, network: db.Network) -> None:
    """What a callback raises goes through, with the parameters found so far, and leaves nothing on the cluster."""

    def fail(event: object) -> None:
        if isinstance(event, IterationEnded) and event.iteration == 3:
            raise ZeroDivisionError("in a callback")

    with pytest.raises(ZeroDivisionError) as caught:
        db.train(network, store, db.Sandblaster(), client=two_workers, callbacks=[fail], progress=False)
    assert caught.value.kept_parameters.shape == (network.n_parameters,)
    eventually(lambda: not two_workers.who_has())


def test_a_report_that_is_lost_does_not_hold_up_the_run(connect, store: Path, network, lost_reports) -> None:
    """A replica whose delivery failed ends, and its units go to the next, in the middle of an evaluation."""
    with connect(1) as client:
        result = db.train(network, store, db.Sandblaster(max_iter=3), client=client, progress=False)
    assert lost_reports
    assert result.stop.reason is db.StopReason.MAX_ITERATIONS


def test_long_leases_are_no_silence(connect, store: Path, network: db.Network) -> None:
    """A replica that computes for longer than its hub may be silent goes on computing."""
    slow, limits = SlowNetwork(network), db.Limits(silence_seconds=0.05)
    method = db.Sandblaster(max_iter=1, unit_rows=3000)
    with connect(1) as client:
        result = db.train(slow, store, method, client=client, progress=False, limits=limits)
    assert result.stop.reason is db.StopReason.MAX_ITERATIONS


class SlowNetwork:
    """Takes longer for a unit than the limit that a test sets."""

    def __init__(self, network: db.Network) -> None:
        self.network = network
        self.n_parameters = network.n_parameters

    def initial_parameters(self, seed: int) -> np.ndarray:
        return self.network.initial_parameters(seed)

    def loss_and_gradient(self, parameters, inputs, targets):
        threading.Event().wait(0.1)
        return self.network.loss_and_gradient(parameters, inputs, targets)
