"""Bad input is refused by name before any work starts, by either method."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client

import dask_belief as db
from dask_belief.monitoring.events import RunStarted

METHODS = [db.Sandblaster(max_iter=2), db.Downpour(epochs=1)]
by_both = pytest.mark.parametrize("method", METHODS, ids=["sandblaster", "downpour"])


@pytest.fixture
def refused(two_workers: Client):
    """Calls train, and gives the error's text; fails when a method was started before the refusal."""

    def call(error: type[Exception], *arguments, **options) -> str:
        events: list[object] = []
        with pytest.raises(error) as caught:
            given: dict[str, Any] = {"callbacks": [events.append], "progress": False} | options
            db.train(*arguments, client=two_workers, **given)
        assert not any(isinstance(event, RunStarted) for event in events)
        return str(caught.value)

    return call


@by_both
def test_a_missing_store(refused, network: db.Network, method, tmp_path: Path) -> None:
    """The path that is not there is named."""
    assert "nowhere.zarr" in refused(db.MissingStoreError, network, tmp_path / "nowhere.zarr", method)


@by_both
def test_an_empty_set(refused, network: db.Network, method) -> None:
    """No rows are an error of their own."""
    assert "no rows" in refused(db.EmptyDataError, network, (np.zeros((0, 10)), np.zeros(0, int)), method)


@by_both
def test_a_wrong_input_width(refused, network: db.Network, method) -> None:
    """The width that was found and the one that the network has are both told."""
    text = refused(db.DataError, network, (np.zeros((5, 11)), np.zeros(5, int)), method)
    assert text.startswith("dataset: ") and "11" in text and "10" in text


@by_both
def test_targets_outside_the_classes(refused, network: db.Network, method) -> None:
    """A class that the network does not have is refused before it is computed with."""
    text = refused(db.DataError, network, (np.zeros((5, 10)), np.array([0, 1, 2, 3, 4])), method)
    assert "4" in text


@by_both
def test_validation_rows_are_checked_too(refused, store: Path, network: db.Network, method) -> None:
    """The argument that is at fault is named."""
    rows = (np.zeros((5, 3)), np.zeros(5, int))
    assert refused(db.DataError, network, store, method, validation=rows).startswith("validation: ")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"dtype": "float16"}, "dtype"),
        ({"dtype": "no such"}, "dtype"),
        ({"seed": -1}, "seed"),
        ({"initial": np.zeros(3)}, "initial"),
        ({"initial": np.full(244, np.nan)}, "initial"),
        ({"backend": "abacus"}, "backend"),
        ({"callbacks": None}, "callbacks"),
        ({"progress": 3}, "progress"),
        ({"limits": 20.0}, "limits"),
    ],
    ids=str,
)
def test_options_of_train(refused, store: Path, network: db.Network, options, name: str) -> None:
    """Each option is refused with its name first."""
    assert refused(db.ArgumentError, network, store, db.Sandblaster(), **options).startswith(name)


def test_a_path_without_a_result_as_the_beginning(refused, store: Path, network: db.Network, tmp_path: Path) -> None:
    """A path that is not there, and one of a data set: the argument and the path are named."""
    for initial in ("nowhere.zarr", tmp_path / "nowhere.zarr", store):
        text = refused(db.MissingStoreError, network, store, db.Sandblaster(), initial=initial)
        assert text.startswith("initial: ") and str(initial) in text


def test_lists_of_methods(refused, store: Path, network: db.Network) -> None:
    """An empty one, and one with an element that is no method or cannot be, wherever in the list it stands."""
    good = db.Downpour(epochs=1)
    assert refused(db.ArgumentError, network, store, []).startswith("method: ")
    assert refused(db.ArgumentError, network, store, ()).startswith("method: ")
    text = refused(db.ArgumentError, network, store, [good, "L-BFGS"])
    assert text.startswith("method: ") and "str at place 1" in text
    assert refused(db.ArgumentError, network, store, [good, [good]]).startswith("method: ")
    text = refused(db.ArgumentError, network, store, (good, db.Sandblaster(n_shards=10_000)))
    assert text.startswith("n_shards: ")
    asks = db.Sandblaster(first_hessian="adagrad")
    for methods in ([asks, good], [db.Downpour(rule=db.SGD(0.1), epochs=1), asks]):
        assert refused(db.ArgumentError, network, store, methods).startswith("first_hessian: ")


def test_patience_without_a_validation_set(refused, store: Path, network: db.Network) -> None:
    """It would wait for ever; wherever in a list it stands."""
    patient = db.Downpour(epochs=1, patience=2)
    for method in (patient, [db.Sandblaster(max_iter=1), patient]):
        text = refused(db.ArgumentError, network, store, method)
        assert text.startswith("patience: ") and "validation=" in text


def test_something_else_as_method_or_objective(refused, store: Path, network: db.Network) -> None:
    """A method and an objective are told from what is neither."""
    assert refused(db.ArgumentError, network, store, "L-BFGS").startswith("method: ")
    assert "loss_and_gradient" in refused(db.ArgumentError, object(), store, db.Sandblaster())
    assert "class Network" in refused(db.ArgumentError, db.Network, store, db.Sandblaster())


def test_an_objective_that_cannot_travel(refused, store: Path, network: db.Network) -> None:
    """What cannot be pickled is refused before anything is made on the cluster."""

    class Locked:
        n_parameters = 1

        def __init__(self) -> None:
            self.lock = threading.Lock()

        def initial_parameters(self, seed: int) -> np.ndarray:
            return np.zeros(1)

        def loss_and_gradient(self, parameters, inputs, targets):
            return 0.0, np.zeros(1)

    assert refused(db.ArgumentError, Locked(), store, db.Sandblaster()).startswith(
        "objective: Locked cannot be pickled"
    )


def test_inputs_without_targets(refused, network: db.Network) -> None:
    """One array is not a data set."""
    assert "targets are missing" in refused(db.ArgumentError, network, np.zeros((5, 10)), db.Sandblaster())


@pytest.mark.parametrize("kind", [db.Sandblaster, db.Downpour])
def test_more_shards_than_parameters(refused, store: Path, network: db.Network, kind) -> None:
    """The number of shards is held against the number of parameters."""
    text = refused(db.ArgumentError, network, store, kind(n_shards=10_000))
    assert text.startswith("n_shards: ") and "10000" in text and str(network.n_parameters) in text


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: db.Sandblaster(l2=-1.0), "l2"),
        (lambda: db.Sandblaster(max_iter=0), "max_iter"),
        (lambda: db.Downpour(rule=db.SGD(-0.1)), "learning_rate"),
        (lambda: db.Downpour(batch_size=0), "batch_size"),
        (lambda: db.Downpour(rule="sgd"), "rule"),
        (lambda: db.Downpour(fetch_lag=5), "fetch_lag"),
    ],
)
def test_options_of_the_methods(make, name: str) -> None:
    """A method refuses an option when it is made, with the option's name first."""
    with pytest.raises(db.ArgumentError, match=f"^{name}: "):
        make()


@pytest.mark.parametrize("kind", [db.Sandblaster, db.Downpour])
def test_an_unknown_option(kind) -> None:
    """An option that does not exist is named."""
    with pytest.raises(TypeError, match="max_iters"):
        kind(max_iters=3)


@by_both
def test_a_loss_that_is_nan_at_the_start_names_unit_and_rows(two_workers: Client, network: db.Network, method) -> None:
    """One NaN among the inputs ends the run at once, and the message says in which rows it is."""
    inputs, targets = np.zeros((3000, 10), np.float32), np.zeros(3000, int)
    inputs[2345, 6] = np.nan
    dataset = db.ArrayDataset(inputs, targets, chunk_rows=100)
    with pytest.raises(db.NonFiniteError, match=r"unit \d+ \(rows \d+ to \d+") as caught:
        db.train(network, dataset, method, client=two_workers, progress=False)
    start, stop = map(int, re.findall(r"rows (\d+) to (\d+)", str(caught.value))[0])
    assert start <= 2345 <= stop


def test_a_closed_client(store: Path, network: db.Network, connect) -> None:
    """A client that is no longer connected is refused at once."""
    with connect(1) as client:
        pass
    with pytest.raises(db.ClusterError, match="status"):
        db.train(network, store, db.Sandblaster(), client=client, progress=False)


def test_a_cluster_without_workers(store: Path, network: db.Network, connect) -> None:
    """A cluster that has no worker is told from one that is slow."""
    with connect(0) as client, pytest.raises(db.NoWorkersError, match="no worker"):
        db.train(network, store, db.Sandblaster(), client=client, progress=False)
