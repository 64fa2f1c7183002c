"""A network as a description: sizes, predictions, configuration, and what is refused at the door."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest

from dask_belief.backend import get_backend
from dask_belief.errors import ArgumentError, DataError
from dask_belief.models import Dense, Network
from dask_belief.models.network import BATCH_ROWS
from tests.models.cases import LOSSES, ROWS, SEED, SMALL, classes, network_for, rows, targets_for


def test_rows_of_any_shape_of_the_same_size() -> None:
    """Images as they are stored and flat rows give the same."""
    network = Network([Dense(3)], "softmax", (2, 2))
    parameters, inputs, targets = network.initial_parameters(SEED), rows(ROWS, 4), classes(ROWS, 3)
    np.testing.assert_array_equal(
        network.predict(parameters, inputs), network.predict(parameters, inputs.reshape(ROWS, 2, 2))
    )
    network.loss_and_gradient(parameters, inputs.reshape(ROWS, 4, 1), targets)


def test_predictions() -> None:
    """Probabilities for softmax and logistic, values for squared; always (rows, outputs), however they are cut."""
    inputs = rows(ROWS, 4)
    for loss in LOSSES:
        network = network_for(loss, "relu")
        parameters = network.initial_parameters(SEED, np.float64)
        predictions = network.predict(parameters, inputs)
        assert predictions.shape == (ROWS, 3)
        np.testing.assert_allclose(network.predict(parameters, inputs, batch_rows=2), predictions, rtol=1e-12)
        z = network_for("squared", "relu").predict(parameters, inputs)
        expected = {
            "softmax": np.exp(z) / np.exp(z).sum(axis=1, keepdims=True),
            "logistic": 1 / (1 + np.exp(-z)),
            "squared": z,
        }[loss]
        np.testing.assert_allclose(predictions, expected, rtol=1e-12)
    single = network_for("logistic", "relu", n_outputs=1)
    assert single.predict(single.initial_parameters(SEED), inputs).shape == (ROWS, 1)


@pytest.mark.parametrize("loss", LOSSES)
def test_evaluation_gives_sums(loss: str) -> None:
    """The loss that the gradient comes with, the rows, and how many are right; over more rows than one batch."""
    network, n_rows = network_for(loss, "tanh"), BATCH_ROWS + 10
    parameters, inputs, targets = network.initial_parameters(SEED), rows(n_rows, 4), targets_for(loss, n_rows)
    sums = network.evaluate(parameters, inputs, targets)
    assert all(type(value) is float for value in sums.values())
    assert sums["rows"] == n_rows
    assert sums["loss"] == pytest.approx(network.loss_and_gradient(parameters, inputs, targets)[0], rel=1e-5)
    likeliest = network.predict(parameters, inputs).argmax(axis=1)
    expected = {
        "softmax": {"correct": float((likeliest == targets).sum())} if loss == "softmax" else {},
        "logistic": {"correct": float((likeliest == targets.argmax(axis=-1)).sum())},
        "squared": {},
    }[loss]
    assert {name: sums[name] for name in sums if name not in ("loss", "rows")} == expected


def test_initial_parameters_are_named_streams() -> None:
    """The same seed gives the same numbers, of either dtype; another seed others; a layer more changes no other."""
    first = SMALL.initial_parameters(SEED, np.float64)
    np.testing.assert_array_equal(SMALL.initial_parameters(SEED), first.astype(np.float32))
    assert SMALL.initial_parameters(SEED).dtype == np.float32
    assert not np.array_equal(SMALL.initial_parameters(SEED + 1, np.float64), first)
    longer = Network([*SMALL.layers, Dense(3)], "softmax", (4,))
    np.testing.assert_array_equal(longer.initial_parameters(SEED, np.float64)[: SMALL.n_parameters], first)
    views = SMALL.layout.views(first)
    assert not views["1.bias"].any()
    assert views["0.weights"].any()


def test_description() -> None:
    """Sizes, names and the penalised parameters follow from layers and shape."""
    assert SMALL.n_parameters == 4 * 6 + 6 + 6 * 5 + 5 + 5 * 3 + 3
    assert SMALL.n_outputs == 3
    assert list(SMALL.layout.slices) == ["0.weights", "0.bias", "1.weights", "1.bias", "2.weights", "2.bias"]
    assert SMALL.penalised.dtype == bool
    for name, where in SMALL.layout.slices.items():
        assert (SMALL.penalised[where] == name.endswith("weights")).all()
    with pytest.raises(ValueError, match=r"read-only"):
        SMALL.penalised[0] = False


@pytest.mark.parametrize("loss", LOSSES)
def test_configuration_round_trip(loss: str) -> None:
    """Through JSON text and back gives an equal network; so does a pickle, buffers left behind."""
    network = network_for(loss, "relu")
    before = len(pickle.dumps(network))
    network.loss_and_gradient(network.initial_parameters(SEED), rows(1000, 4), targets_for(loss, 1000))
    assert Network.from_config(json.loads(json.dumps(network.to_config()))) == network
    text = pickle.dumps(network)
    assert pickle.loads(text) == network
    assert len(text) == before < 1000
    assert copy.deepcopy(network) == network
    assert network != SMALL


def test_config_that_is_not_known_is_refused() -> None:
    """Another format, a key too many, one too few, an unknown layer or loss: nothing is guessed."""
    config = SMALL.to_config()
    for bad in (
        {**config, "format": 2},
        {**config, "optimiser": "adam"},
        {key: value for key, value in config.items() if key != "loss"},
        {**config, "layers": [{"layer": "lstm"}]},
        {**config, "loss": "hinge"},
        {},
    ):
        with pytest.raises(ArgumentError):
            Network.from_config(bad)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], "softmax", (4,)), "^layers: "),
        (([Dense(3), "relu"], "softmax", (4,)), "^layers: "),
        (([Dense(3)], "hinge", (4,)), "^loss: "),
        (([Dense(1)], "softmax", (4,)), "^loss: 'softmax' needs two"),
        (([Dense(3)], "softmax", 4), "^input_shape: "),
        (([Dense(3)], "softmax", (0,)), "^input_shape: "),
    ],
)
def test_networks_that_make_no_sense_are_refused(arguments: tuple, message: str) -> None:
    """When made, not when used."""
    with pytest.raises(ArgumentError, match=message):
        Network(*arguments)


GOOD = {"parameters": SMALL.initial_parameters(SEED), "inputs": rows(ROWS, 4), "targets": classes(ROWS, 3)}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"parameters": np.zeros(5, np.float32)}, r"^parameters: expected shape \(83,\), got \(5,\)"),
        ({"parameters": np.zeros(83, int)}, "^parameters: expected dtype float32 or float64, got int64"),
        ({"inputs": rows(ROWS, 5)}, r"^inputs: expected rows of shape \(4,\), got an array of \(9, 5\)"),
        ({"inputs": np.float32(1)}, "^inputs: "),
        ({"targets": classes(ROWS - 1, 3)}, "^targets: expected 9 rows"),
        ({"targets": np.full(ROWS, 3)}, "^targets: expected classes from 0 to 2, got 3 to 3"),
        ({"targets": rows(ROWS)}, "^targets: expected whole numbers"),
        ({"out": np.zeros(83)}, "^out: expected dtype float32, as parameters, got float64"),
        ({"out": np.zeros(82, np.float32)}, "^out: expected shape"),
        ({"out": np.zeros(166, np.float32)[::2]}, "^out: expected contiguous"),
        ({"out": [0.0] * 83}, "^out: expected an array of numpy, got list"),
    ],
)
def test_batches_that_do_not_fit_are_refused(changed: dict, message: str) -> None:
    """Each message begins with the argument and says what was expected and found."""
    with pytest.raises(ArgumentError, match=message):
        SMALL.loss_and_gradient(**{**GOOD, **changed})


def test_evaluate_and_predict_refuse_as_well() -> None:
    """Other lengths of inputs and targets, other widths, other parameters, no batch."""
    with pytest.raises(ArgumentError, match=r"^targets: expected as many rows as inputs, 9, got 10"):
        SMALL.evaluate(GOOD["parameters"], GOOD["inputs"], classes(10, 3))
    with pytest.raises(ArgumentError, match=r"^inputs: "):
        SMALL.predict(GOOD["parameters"], rows(3, 5))
    with pytest.raises(ArgumentError, match=r"^parameters: "):
        SMALL.predict(GOOD["parameters"][1:], rows(3, 4))
    with pytest.raises(ArgumentError, match=r"^batch_rows: "):
        SMALL.predict(GOOD["parameters"], rows(3, 4), batch_rows=0)


def test_data_are_checked_before_any_work() -> None:
    """Width of the inputs; shape, dtype and range of the targets. What fits passes."""
    SMALL.check_data((4,), (), np.int64, (0, 2))
    SMALL.check_data((2, 2), (1,), "uint8")
    for bad, message in [
        (((5,), (), np.int64, (0, 2)), r"^inputs: expected rows of shape \(4,\).*got \(5,\)"),
        (((4,), (3,), np.int64, (0, 2)), "^targets: expected 1 a row"),
        (((4,), (), np.float32, (0, 2)), "^targets: expected whole numbers"),
        (((4,), (), np.int64, (0, 3)), "^targets: expected classes from 0 to 2, got 0 to 3"),
    ]:
        with pytest.raises(DataError, match=message):
            SMALL.check_data(*bad)


def test_on_another_backend_it_is_the_same_network() -> None:
    """A backend is where it computes, no part of what it is."""
    moved = SMALL.on(get_backend("numpy"))
    assert moved == SMALL
    assert moved.backend is get_backend("numpy")
    assert hash(moved) == hash(SMALL)
