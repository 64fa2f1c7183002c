"""Networks and batches that the tests of the models share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dask_belief.models import Dense, Network

SEED = 1
ROWS = 9
LOSSES = ["softmax", "logistic", "squared"]


def rows(*shape: int, seed: int = SEED) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def classes(n_rows: int, n_classes: int) -> np.ndarray:
    return np.random.default_rng(SEED).integers(0, n_classes, n_rows)


def network_for(loss: str, activation: str | None, last: str | None = None, n_outputs: int = 3) -> Network:
    return Network([Dense(6, activation), Dense(5, activation), Dense(n_outputs, last)], loss, (4,))


def targets_for(loss: str, n_rows: int, n_outputs: int = 3) -> np.ndarray:
    if loss == "softmax":
        return classes(n_rows, n_outputs)
    if loss == "logistic":
        return (rows(n_rows, n_outputs, seed=2) > 0).astype(int)
    return rows(n_rows, n_outputs, seed=2)


def central_differences(function: Callable[[np.ndarray], float], at: np.ndarray, step: float = 1e-5) -> np.ndarray:
    gradient = np.empty_like(at)
    for number in range(at.size):
        there = at.copy()
        there[number] = at[number] + step
        above = function(there)
        there[number] = at[number] - step
        gradient[number] = (above - function(there)) / (2 * step)
    return gradient


SMALL = network_for("softmax", "tanh")
