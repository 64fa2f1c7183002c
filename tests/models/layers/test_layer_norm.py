"""Normalisation along the last axis, against its formula."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dask_belief.backend import get_backend
from dask_belief.errors import ArgumentError
from dask_belief.models import Dense, Network
from dask_belief.models.layers import LayerNorm, Workspace, layer_from_config
from dask_belief.testing import check_layer
from tests.backend.usable import USABLE
from tests.models.cases import SEED, central_differences, classes, rows

EPSILON = 1e-5


def oracle(inputs: np.ndarray, gain: np.ndarray, bias: np.ndarray) -> np.ndarray:
    outputs = np.empty_like(inputs)
    for place in np.ndindex(*inputs.shape[:-1]):
        nodes = inputs[place]
        mean = sum(nodes) / len(nodes)
        variance = sum((node - mean) ** 2 for node in nodes) / len(nodes)
        outputs[place] = [
            gain[j] * (node - mean) / (variance + EPSILON) ** 0.5 + bias[j] for j, node in enumerate(nodes)
        ]
    return outputs


@pytest.mark.parametrize("name", USABLE)
@pytest.mark.parametrize("shape", [(6,), (1,), (2, 5), (3, 2, 4)])
def test_forward_is_the_formula(name: str, shape: tuple[int, ...]) -> None:
    """Of each row and each place, with gain and bias of their own."""
    backend, inputs = get_backend(name), rows(4, *shape)
    gain, bias = rows(shape[-1], seed=2), rows(shape[-1], seed=3)
    parameters = {"gain": backend.asarray(gain), "bias": backend.asarray(bias)}
    with backend.computing():
        found = LayerNorm(EPSILON).forward(backend, parameters, backend.asarray(inputs), Workspace(backend))
    np.testing.assert_allclose(backend.to_host(found), oracle(inputs, gain, bias), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", USABLE)
@pytest.mark.parametrize("shape", [(6,), (1,), (2, 5), (3, 2, 4)])
def test_it_keeps_the_contract(name: str, shape: tuple[int, ...]) -> None:
    """Gradients, parts along every axis, dtypes and the rest."""
    check_layer(LayerNorm(), shape, backend=get_backend(name))


@pytest.mark.parametrize("name", USABLE)
def test_the_gradient_of_a_network_with_one(name: str) -> None:
    """Between two layers, against central differences."""
    net = Network([Dense(6, "tanh"), LayerNorm(), Dense(3)], "softmax", (4,), backend=get_backend(name))
    parameters = net.initial_parameters(SEED, np.float64)
    inputs, targets = rows(9, 4), classes(9, 3)
    _, gradient = net.loss_and_gradient(parameters, inputs, targets)
    expected = central_differences(lambda p: net.loss_and_gradient(p, inputs, targets)[0], parameters)
    np.testing.assert_allclose(net.backend.to_host(gradient), expected, rtol=1e-6, atol=1e-6)


def test_equal_nodes_give_the_bias() -> None:
    """Nothing is divided by zero."""
    parameters = {"gain": np.ones(3), "bias": np.array([1.0, 2.0, 3.0])}
    backend = get_backend("numpy")
    found = LayerNorm().forward(backend, parameters, np.full((2, 3), 7.0), Workspace(backend))
    np.testing.assert_array_equal(found, [[1, 2, 3], [1, 2, 3]])


def test_no_penalty_covers_gain_and_bias() -> None:
    """Nor do they begin at random: the layer begins as the formula without them."""
    generator = np.random.default_rng(SEED)
    assert not LayerNorm().is_penalised("gain")
    assert not LayerNorm().is_penalised("bias")
    assert LayerNorm().initial("gain", (2, 3), generator).tolist() == [1, 1, 1]
    assert LayerNorm().initial("bias", (2, 3), generator).tolist() == [0, 0, 0]


@pytest.mark.parametrize("epsilon", [0, -1, None, "small", float("inf")])
def test_wrong_arguments_are_refused(epsilon: object) -> None:
    """A number above zero."""
    with pytest.raises(ArgumentError, match=r"^epsilon: "):
        LayerNorm(epsilon)


def test_configuration_round_trip() -> None:
    """Through JSON text and back."""
    assert layer_from_config(json.loads(json.dumps(LayerNorm(1e-3).to_config()))) == LayerNorm(1e-3)
