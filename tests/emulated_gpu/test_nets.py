"""Whole networks trained on the host and on a device: the same parameters; and gradients that are those of the loss."""

from __future__ import annotations

import numpy as np
import pytest

from dask_belief.backend import Backend, cupy_status, get_backend
from dask_belief.models import Dense, Embedding, Network
from dask_belief.optim.rules import SGD, Adagrad, Adam, AnyRule, Momentum, Nesterov, RMSProp
from dask_belief.optim.schedules import InverseTimeDecay
from tests.models.cases import central_differences

IS_USABLE, REASON = cupy_status()
pytestmark = pytest.mark.skipif(not IS_USABLE, reason=f"needs CuPy and a device, real or emulated: {REASON}")

SEED = 11
N_STEPS, N_ROWS = 12, 17
TOLERANCE = 1e-4
"""Of the largest parameter: float32 keeps seven digits, of which the steps lose some."""

LOSSES = ("softmax", "logistic", "squared")
ACTIVATIONS = (None, "relu", "sigmoid", "tanh")
RULES: list[AnyRule] = [
    SGD(0.05),
    SGD(InverseTimeDecay(0.1, 5)),
    Momentum(0.02),
    Nesterov(0.02),
    Adagrad(0.05),
    RMSProp(0.005),
    Adam(0.01),
]


def dense(loss: str, activation: str | None, last: str | None = None) -> Network:
    return Network([Dense(13, activation), Dense(7, activation), Dense(3, last)], loss, (5,))


def embedding(loss: str) -> Network:
    """A table from which a row chooses four entries, some of them twice."""
    return Network([Embedding(11, 3), Dense(6, "tanh"), Dense(3)], loss, (4,))


def batch(network: Network, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The mini-batch of a step, on the host."""
    generator = np.random.default_rng([SEED, number])
    first = network.layers[0]
    shape = (N_ROWS, *network.input_shape)
    ids = isinstance(first, Embedding)
    inputs = generator.integers(0, first.n_entries, shape) if ids else generator.standard_normal(shape)
    if network.loss == "softmax":
        return inputs, generator.integers(0, network.n_outputs, N_ROWS)
    targets = generator.standard_normal((N_ROWS, network.n_outputs))
    return inputs, (targets > 0).astype(np.float64) if network.loss == "logistic" else targets


def trained(network: Network, rule: AnyRule, backend: Backend) -> tuple[np.ndarray, list[float]]:
    """The parameters after some steps, on the host, and the loss of each."""
    network = network.on(backend)
    with backend.computing():
        parameters = backend.asarray(network.initial_parameters(SEED))
        gradient = backend.empty(parameters.shape, parameters.dtype)
        state = rule.init(parameters)
        losses = []
        for number in range(N_STEPS):
            loss, _ = network.loss_and_gradient(parameters, *batch(network, number), out=gradient)
            losses.append(loss)
            backend.scale_(1 / N_ROWS, gradient)
            rule.apply(parameters, gradient, state, number, backend=backend)
        return backend.to_host(parameters), losses


def check_training(network: Network, rule: AnyRule) -> None:
    """Both backends end at the same parameters, which are far from where they began."""
    expected, losses = trained(network, rule, get_backend("numpy"))
    found, found_losses = trained(network, rule, get_backend("cupy"))
    scale = float(np.abs(expected).max())
    moved = np.abs(expected - network.initial_parameters(SEED)).max()
    assert moved > 50 * TOLERANCE * scale
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * scale)
    np.testing.assert_allclose(found_losses, losses, rtol=TOLERANCE)


@pytest.mark.parametrize("last", [None, "tanh"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_dense_networks_are_trained_alike(loss: str, activation: str | None, last: str | None) -> None:
    """Each activation with each loss, in the hidden layers and in the last one."""
    check_training(dense(loss, activation, last), Adagrad(0.05))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{type(rule).__name__}-{type(rule.learning_rate).__name__}")
@pytest.mark.parametrize("kind", ["dense", "embedding"])
def test_every_rule_trains_alike(kind: str, rule: AnyRule) -> None:
    """The rules, with the state that they keep on the device."""
    check_training(dense("softmax", "tanh") if kind == "dense" else embedding("softmax"), rule)


@pytest.mark.parametrize("loss", LOSSES)
def test_embeddings_are_trained_alike(loss: str) -> None:
    """A table whose entries come several times in a mini-batch."""
    check_training(embedding(loss), Adagrad(0.05))


def test_one_output_is_trained_alike() -> None:
    """A single output, whose products are of matrix and vector."""
    check_training(Network([Dense(9, "relu"), Dense(1)], "logistic", (5,)), Adagrad(0.05))


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", ["dense", "embedding"])
def test_gradient_is_that_of_the_loss(kind: str, loss: str, activation: str) -> None:
    """In float64, on the device alone: central differences of its own loss."""
    backend = get_backend("cupy")
    network = (dense(loss, activation, activation) if kind == "dense" else embedding(loss)).on(backend)
    inputs, targets = batch(network, 0)
    start = network.initial_parameters(SEED, np.float64)

    def loss_at(parameters: np.ndarray) -> float:
        return network.loss_and_gradient(parameters, inputs, targets)[0]

    _, gradient = network.loss_and_gradient(start, inputs, targets)
    expected = central_differences(loss_at, start)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(backend.to_host(gradient), expected, rtol=1e-6, atol=1e-7 * np.abs(expected).max())


def test_loss_that_is_not_awaited() -> None:
    """It is an array of one float64 on the device, of the same value, and may be added up there."""
    backend = get_backend("cupy")
    network = dense("softmax", "tanh").on(backend)
    parameters, rows = network.initial_parameters(SEED), batch(network, 0)
    awaited, _ = network.loss_and_gradient(parameters, *rows)
    loss, _ = network.loss_and_gradient(parameters, *rows, is_awaited=False)
    assert not isinstance(loss, float)
    assert loss.shape == () and loss.dtype == np.float64
    with backend.computing():
        assert backend.item(0.0 + loss + loss) == pytest.approx(2 * awaited, rel=1e-12)
