"""A fully connected layer: shapes, first values, configuration, and what it leaves alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dask_belief.backend import get_backend
from dask_belief.errors import ArgumentError
from dask_belief.models import Network
from dask_belief.models.layers import LAYERS, Dense, Workspace, layer_from_config
from dask_belief.seeds import stream

SEED = 5
backend = get_backend("numpy")


def test_shapes() -> None:
    """Inputs of any shape are taken flat; weights are (inputs, units)."""
    layer = Dense(4)
    assert layer.output_shape((2, 3)) == (4,)
    assert layer.parameter_shapes((2, 3)) == {"weights": (6, 4), "bias": (4,)}


def test_forward_is_the_formula_and_leaves_the_inputs() -> None:
    """activation(inputs @ weights + bias), rows of two axes flattened."""
    generator = np.random.default_rng(SEED)
    inputs, weights, bias = (generator.standard_normal(shape) for shape in ((5, 2, 3), (6, 4), (4,)))
    before = inputs.copy()
    outputs = Dense(4, "tanh").forward(backend, {"weights": weights, "bias": bias}, inputs, Workspace(backend))
    np.testing.assert_allclose(outputs, np.tanh(inputs.reshape(5, 6) @ weights + bias), rtol=1e-12)
    np.testing.assert_array_equal(inputs, before)


def test_backward_gives_the_shape_of_the_inputs_or_nothing() -> None:
    """The derivative by the inputs has their shape; the first layer need not form it. Gradients are overwritten."""
    generator = np.random.default_rng(SEED)
    layer, workspace = Dense(4), Workspace(backend)
    inputs, delta = generator.standard_normal((5, 2, 3)), generator.standard_normal((5, 4))
    parameters = {"weights": generator.standard_normal((6, 4)), "bias": np.zeros(4)}
    gradients = {"weights": np.full((6, 4), np.nan), "bias": np.full(4, np.nan)}
    outputs = layer.forward(backend, parameters, inputs, workspace)
    arguments = (backend, parameters, gradients, inputs, outputs, delta, workspace)
    below = layer.backward(*arguments, needs_input_delta=True)
    assert below is not None
    np.testing.assert_allclose(below, (delta @ parameters["weights"].T).reshape(5, 2, 3), rtol=1e-12)
    np.testing.assert_allclose(gradients["weights"], inputs.reshape(5, 6).T @ delta, rtol=1e-12)
    np.testing.assert_allclose(gradients["bias"], delta.sum(axis=0), rtol=1e-12)
    assert layer.backward(*arguments, needs_input_delta=False) is None


def test_first_values_follow_the_initialiser() -> None:
    """The bias begins at zero; weights by the name given, or by what suits the activation."""
    shape = (50,)

    def weights(layer: Dense) -> np.ndarray:
        return layer.initial("weights", shape, stream(SEED, "test"))

    assert not Dense(4).initial("bias", shape, stream(SEED, "test")).any()
    assert not weights(Dense(4, "relu", "zeros")).any()
    np.testing.assert_array_equal(weights(Dense(4, "relu")), weights(Dense(4, initialiser="he_normal")))
    np.testing.assert_array_equal(weights(Dense(4, "tanh")), weights(Dense(4, "relu", "glorot_uniform")))


def test_penalty_covers_weights_alone() -> None:
    """Biases are free."""
    assert Dense(2).is_penalised("weights")
    assert not Dense(2).is_penalised("bias")


def test_a_layer_can_be_left_out_of_penalties() -> None:
    """With ``penalised=False`` its weights are free as well, and the network's mask says so."""
    free = Dense(2, penalised=False)
    assert not free.is_penalised("weights")
    assert not free.is_penalised("bias")
    network = Network([Dense(3, "relu"), free], "softmax", (4,))
    assert network.penalised.tolist() == [True] * 12 + [False] * (3 + 6 + 2)


def test_a_configuration_of_before_penalised_loads() -> None:
    """Without the field the weights are penalised, as they were when it was written."""
    assert layer_from_config({"layer": "dense", "units": 3, "activation": None, "initialiser": None}) == Dense(3)


@pytest.mark.parametrize("n_rows", [0, 1, 9])
def test_one_unit(n_rows: int) -> None:
    """With one unit the derivative by the inputs is an outer product."""
    generator = np.random.default_rng(SEED)
    layer, workspace = Dense(1), Workspace(backend)
    inputs, delta = generator.standard_normal((n_rows, 4)), generator.standard_normal((n_rows, 1))
    parameters = {"weights": generator.standard_normal((4, 1)), "bias": np.zeros(1)}
    gradients = {"weights": np.full((4, 1), np.nan), "bias": np.full(1, np.nan)}
    outputs = layer.forward(backend, parameters, inputs, workspace)
    below = layer.backward(backend, parameters, gradients, inputs, outputs, delta, workspace, needs_input_delta=True)
    assert below is not None
    np.testing.assert_allclose(outputs, inputs @ parameters["weights"], rtol=1e-12)
    np.testing.assert_allclose(below, np.outer(delta[:, 0], parameters["weights"][:, 0]), rtol=1e-12)
    np.testing.assert_allclose(gradients["weights"], inputs.T @ delta, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("layer", [Dense(3), Dense(np.int64(7), "relu", "zeros"), Dense(2, penalised=False)])
def test_configuration_round_trip(layer: Dense) -> None:
    """Through JSON text and back gives an equal layer, also where the number of units came from NumPy."""
    assert layer_from_config(json.loads(json.dumps(layer.to_config()))) == layer


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"units": 3}, "^layer: expected one of .*dense, .*embedding.*, got None"),
        ({"layer": "transformer", "units": 3}, "^layer: .*'transformer'"),
        ({"layer": "dense", "units": 3, "dropout": 0.5}, "^layer: .*dropout"),
        ({"layer": "dense"}, "^layer: .*units"),
        ({"layer": "dense", "units": 0}, "^units: "),
    ],
)
def test_unknown_configurations_are_refused(config: dict[str, object], message: str) -> None:
    """An unknown kind, an unknown, missing or wrong field: each is named."""
    with pytest.raises(ArgumentError, match=message):
        layer_from_config(config)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((0,), "units"),
        ((2.5,), "units"),
        ((True,), "units"),
        ((3, "gelu"), "activation"),
        ((3, None, "ones"), "initialiser"),
        ((3, None, None, 1), "penalised"),
    ],
)
def test_bad_arguments_are_refused(arguments: tuple[object, ...], name: str) -> None:
    """Units are a positive whole number; activation and initialiser are known by name."""
    with pytest.raises(ArgumentError, match=rf"^{name}: "):
        Dense(*arguments)


def test_every_layer_is_listed_under_its_kind() -> None:
    """A configuration names layers by kind."""
    assert all(kind == layer.kind for kind, layer in LAYERS.items())


def test_workspace_keeps_and_grows() -> None:
    """The same name gives the same memory, smaller shapes its beginning; dtypes and names are apart."""
    workspace = Workspace(backend)
    real = np.dtype(np.float32)
    first = workspace.array("a", (4, 5), real)
    assert np.shares_memory(workspace.array("a", (2, 5), real), first)
    assert not np.shares_memory(workspace.array("b", (4, 5), real), first)
    assert workspace.array("a", (4, 5), np.dtype(np.float64)).dtype == np.float64
    larger = workspace.array("a", (40, 5), real)
    assert larger.shape == (40, 5)
    assert np.shares_memory(workspace.array("a", (4, 5), real), larger)
