"""From Downpour to Sandblaster: the point, and Adagrad's sums as the first inverse Hessian; in two calls and in one."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client

import dask_belief as db
from dask_belief.monitoring.events import DownpourProgressed, IterationEnded, RunStarted, Stopped

ADAGRAD = db.Downpour(n_replicas=1, rule=db.Adagrad(0.05), batch_size=50, epochs=1)
L_BFGS = db.Sandblaster(max_iter=3)


@pytest.fixture(scope="module")
def downpour(two_workers: Client, store: Path) -> db.TrainingResult:
    """One epoch by Adagrad."""
    network = db.Network([db.Dense(16, "tanh"), db.Dense(4)], loss="softmax", input_shape=(10,))
    return db.train(network, store, ADAGRAD, client=two_workers, progress=False)


def test_goes_on_with_adagrads_sums(two_workers: Client, store: Path, network, downpour: db.TrainingResult) -> None:
    """The run begins at the result's point with a diagonal of its own, and ends lower."""

    def first(first_hessian: str) -> db.TrainingResult:
        method = db.Sandblaster(max_iter=20, first_hessian=first_hessian)
        return db.train(network, store, method, client=two_workers, initial=downpour, progress=False)

    result, scaled = first("adagrad"), first("scaled")
    losses = result.history["loss"]
    assert downpour.loss > losses[0] > losses[-1] == result.loss
    assert losses[0] != scaled.history["loss"][0]
    # The same minimum is near, whichever way is taken.
    assert result.loss < downpour.loss - 0.5 * (downpour.loss - scaled.loss)


def test_the_first_step_goes_along_the_diagonal(two_workers: Client, store: Path, network, downpour) -> None:
    """The first direction is minus the gradient over the roots of the sums, whatever the line search makes of it."""
    method = db.Sandblaster(max_iter=1, first_hessian="adagrad")
    options: dict[str, Any] = {"client": two_workers, "dtype": "float64", "progress": False}
    result = db.train(network, store, method, initial=downpour, **options)
    begin = downpour.parameters.astype(np.float64)
    inputs, targets = db.ZarrDataset(store).read(0, 3000, dtype=np.float64)
    _, gradient = network.loss_and_gradient(begin, inputs, targets)
    moved, along = result.parameters - begin, -gradient / np.sqrt(downpour.rule_state["accumulator"])
    cosine = moved @ along / np.sqrt((moved @ moved) * (along @ along))
    assert cosine == pytest.approx(1.0, abs=1e-4)
    steepest = -(moved @ gradient) / np.sqrt((moved @ moved) * (gradient @ gradient))
    assert steepest < 0.99


def test_the_sums_survive_saving(two_workers: Client, store: Path, network, downpour, tmp_path: Path) -> None:
    """A run that begins at the result as it was saved and loaded has the bits of one that begins at the result."""
    downpour.save(tmp_path / "downpour.zarr")
    loaded = db.load_result(tmp_path / "downpour.zarr")
    assert loaded.rule_state["accumulator"].tobytes() == downpour.rule_state["accumulator"].tobytes()
    method = db.Sandblaster(max_iter=3, first_hessian="adagrad")
    one, other = (
        db.train(network, store, method, client=two_workers, initial=each, progress=False)
        for each in (downpour, loaded)
    )
    assert one.parameters.tobytes() == other.parameters.tobytes()
    assert not one.rule_state


def test_sums_that_are_missing_are_refused(two_workers: Client, store: Path, network, downpour) -> None:
    """Without a result, with parameters alone, or with the result of another rule, before any work starts."""
    by_sgd = db.Downpour(rule=db.SGD(0.1), epochs=1)
    plain = db.train(network, store, by_sgd, client=two_workers, progress=False)
    events: list[object] = []
    for initial in (None, downpour.parameters, plain):
        with pytest.raises(db.ArgumentError, match=r"^first_hessian: .*Downpour"):
            method = db.Sandblaster(first_hessian="adagrad")
            db.train(
                network, store, method, client=two_workers, initial=initial, callbacks=[events.append], progress=False
            )
    assert not any(isinstance(event, RunStarted) for event in events)


# By the path of a saved result.


def test_a_run_begins_at_the_path_of_a_saved_result(
    two_workers: Client, store: Path, network, downpour, tmp_path: Path
) -> None:
    """As a string or as a Path, as if the result itself had been given, with Adagrad's sums."""
    downpour.save(tmp_path / "downpour.zarr")
    method = db.Sandblaster(max_iter=2, first_hessian="adagrad")
    results = [
        db.train(network, store, method, client=two_workers, initial=initial, progress=False)
        for initial in (downpour, tmp_path / "downpour.zarr", str(tmp_path / "downpour.zarr"))
    ]
    assert len({result.parameters.tobytes() for result in results}) == 1


# In one call.


@pytest.fixture(scope="module")
def both(two_workers: Client, store: Path) -> db.TrainingResult:
    """One epoch by Adagrad and three iterations of L-BFGS."""
    network = db.Network([db.Dense(16, "tanh"), db.Dense(4)], loss="softmax", input_shape=(10,))
    return db.train(network, store, [ADAGRAD, L_BFGS], client=two_workers, progress=False)


def test_one_call_gives_the_bits_of_two(two_workers: Client, store: Path, network, downpour, both) -> None:
    """Adagrad's sums are handed over where the Sandblaster leaves its first diagonal open."""
    method = db.Sandblaster(max_iter=3, first_hessian="adagrad")
    second = db.train(network, store, method, client=two_workers, initial=downpour, progress=False)
    assert both.parameters.tobytes() == second.parameters.tobytes()
    assert (both.loss, both.stop) == (second.loss, second.stop)
    assert both.passes == downpour.passes + second.passes
    assert both.repeatable and not both.rule_state
    assert both.method == "Downpour SGD, then Sandblaster L-BFGS"


def test_scaled_by_name_takes_no_sums(two_workers: Client, store: Path, network, downpour) -> None:
    """Then the point alone is handed over, as between two calls that say nothing of a diagonal."""
    methods = [ADAGRAD, db.Sandblaster(max_iter=3, first_hessian="scaled")]
    one = db.train(network, store, methods, client=two_workers, progress=False)
    two = db.train(network, store, L_BFGS, client=two_workers, initial=downpour, progress=False)
    assert one.parameters.tobytes() == two.parameters.tobytes()


def test_history_of_one_call_runs_on(both: db.TrainingResult, tmp_path: Path) -> None:
    """The events of both methods in their order, with seconds and passes that never go back; it survives saving."""
    kinds = [type(event) for event in both.history]
    assert kinds.count(RunStarted) == kinds.count(Stopped) == 2
    assert kinds.index(IterationEnded) > max(place for place, kind in enumerate(kinds) if kind is DownpourProgressed)
    for column in ("seconds", "passes"):
        values = both.history[column]
        assert values == sorted(values)
    assert both.history["seconds"][-1] == both.seconds
    assert both.history["passes"][-1] == both.passes
    assert both.history["stop"] == ["epochs_done", both.stop.reason.value]
    losses = both.history["loss"]
    assert losses[-1] == both.loss < losses[0]
    both.save(tmp_path / "both.zarr")
    assert db.load_result(tmp_path / "both.zarr").history.rows(Stopped) == both.history.rows(Stopped)


def test_progress_is_shown_of_both_methods(
    two_workers: Client, store: Path, network, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each has its own line, the last of which tells its end."""
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with caplog.at_level(logging.INFO, "dask_belief.monitoring.progress"):
        db.train(network, store, [ADAGRAD, L_BFGS], client=two_workers)
    lines = [record.getMessage() for record in caplog.records if record.name == "dask_belief.monitoring.progress"]
    assert any(line.startswith("Downpour SGD: epoch 1.00 of 1, loss ") for line in lines)
    assert lines[-1].startswith("Sandblaster L-BFGS: iteration 3 of 3, loss ")


def test_a_callback_ends_all_methods(two_workers: Client, store: Path, network) -> None:
    """One that asks in the first is heard, and the second is not begun."""
    events: list[object] = []

    def ask(event: object) -> bool:
        events.append(event)
        return isinstance(event, DownpourProgressed)

    result = db.train(network, store, [ADAGRAD, L_BFGS], client=two_workers, callbacks=[ask], progress=False)
    assert result.stop.reason is db.StopReason.CALLBACK
    assert result.method == "Downpour SGD"
    assert sum(isinstance(event, RunStarted) for event in events) == 1
    assert np.isfinite(result.loss)


def test_a_method_that_makes_it_worse_is_undone(two_workers: Client, store: Path, network) -> None:
    """Downpour at a rate that is far too large, after L-BFGS: the point at which it began is the result."""
    wild = db.Downpour(n_replicas=1, rule=db.SGD(30.0), batch_size=50, epochs=1)
    result = db.train(network, store, (L_BFGS, wild), client=two_workers, progress=False)
    first = db.train(network, store, L_BFGS, client=two_workers, progress=False)
    assert result.parameters.tobytes() == first.parameters.tobytes()
    assert result.loss == first.loss
    assert result.stop.reason is db.StopReason.EPOCHS_DONE


def test_an_error_in_the_second_method_carries_the_point_of_the_first(
    two_workers: Client, store: Path, network, downpour
) -> None:
    """A callback that fails as the second begins."""

    def fail(event: object) -> None:
        if isinstance(event, RunStarted) and event.method.startswith("Sandblaster"):
            raise KeyError("planted")

    with pytest.raises(KeyError, match="planted") as caught:
        db.train(network, store, [ADAGRAD, L_BFGS], client=two_workers, callbacks=[fail], progress=False)
    kept = caught.value.kept_parameters
    assert kept.tobytes() == downpour.parameters.tobytes()
