"""The L1 penalty from one end to the other: what is zero is zero, and the point is a minimum."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from distributed import Client

import dask_belief as db


def objective_of(network: db.Network, parameters: np.ndarray, store: Path, l1: float, l2: float) -> tuple:
    """The objective at some parameters, and the gradient of its smooth part, in float64."""
    inputs, targets = db.ZarrDataset(store).read(0, 3000, dtype=np.float64)
    loss, gradient = network.loss_and_gradient(parameters.astype(np.float64), inputs, targets)
    weights = parameters.astype(np.float64) * network.penalised
    value = loss / len(inputs) + l1 * np.abs(weights).sum() + 0.5 * l2 * (weights @ weights)
    return value, gradient / len(inputs) + l2 * weights


@pytest.mark.parametrize(("direction", "gtol"), [("lbfgs", 1e-7), ("gradient_descent", 1e-4)])
@pytest.mark.parametrize("l2", [0.0, 0.02], ids=["l1 alone", "elastic net"])
def test_the_point_is_a_minimum_with_exact_zeros(two_workers: Client, store: Path, l2, direction, gtol) -> None:
    """Zero weights have slopes within the penalty, others slopes that balance it, and biases none at all."""
    network, l1 = db.Network([db.Dense(4)], loss="softmax", input_shape=(10,)), 0.03
    method = db.Sandblaster(l1=l1, l2=l2, direction=direction, gtol=gtol, ftol=0.0, max_iter=500)
    result = db.train(network, store, method, client=two_workers, dtype="float64", progress=False)
    assert result.stop.reason is db.StopReason.GRADIENT_SMALL
    found, penalised = result.parameters, network.penalised
    value, slope = objective_of(network, found, store, l1, l2)
    is_zero = penalised & (found == 0)
    assert 0 < is_zero.sum() < penalised.sum()
    assert np.abs(slope[is_zero]).max() <= l1 + gtol
    assert np.abs(slope + l1 * np.sign(found))[penalised & ~is_zero].max() <= 2 * gtol
    assert np.abs(slope[~penalised]).max() <= 2 * gtol
    assert np.abs(found[~penalised]).min() > 1e-3
    assert result.loss == pytest.approx(value, rel=1e-12)


def test_a_heavy_penalty_leaves_the_biases_alone(two_workers: Client, store: Path, network: db.Network) -> None:
    """All weights of a network are zero, and its last biases are the logarithms of the classes' shares."""
    method = db.Sandblaster(l1=10.0, gtol=1e-6, ftol=0.0, max_iter=200)
    result = db.train(network, store, method, client=two_workers, dtype="float64", progress=False)
    assert result.stop.converged
    assert (result.parameters[network.penalised] == 0).all()
    _, targets = db.ZarrDataset(store).read(0, 3000)
    shares = np.bincount(targets) / len(targets)
    np.testing.assert_allclose(result.predict(np.zeros((1, 10)))[0], shares, atol=1e-5)


def test_a_layer_can_be_left_out_of_the_penalty(two_workers: Client, store: Path) -> None:
    """Weights of a layer that is not penalised are none of them zero, where all of the other layer's are."""
    layers = [db.Dense(16, "tanh", penalised=False), db.Dense(4)]
    network = db.Network(layers, loss="softmax", input_shape=(10,))
    method = db.Sandblaster(l1=10.0, max_iter=50)
    result = db.train(network, store, method, client=two_workers, progress=False)
    weights = network.layout.views(result.parameters)
    zeros = {name: int((values == 0).sum()) for name, values in weights.items() if "weights" in name}
    assert list(zeros.values()) == [0, 64]
