"""From Downpour to Sandblaster: the point, and Adagrad's sums as the first inverse Hessian."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from distributed import Client

import dask_belief as db
from dask_belief.monitoring.events import RunStarted


@pytest.fixture(scope="module")
def downpour(two_workers: Client, store: Path) -> db.TrainingResult:
    """One epoch by Adagrad."""
    network = db.Network([db.Dense(16, "tanh"), db.Dense(4)], loss="softmax", input_shape=(10,))
    method = db.Downpour(n_replicas=1, rule=db.Adagrad(0.05), batch_size=50, epochs=1)
    return db.train(network, store, method, client=two_workers, progress=False)


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
    options = {"client": two_workers, "dtype": "float64", "progress": False}
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
