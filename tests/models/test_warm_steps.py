"""A step that is not the first takes no memory: all that layers write lies in workspaces, which are kept."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import dask_belief as db

N_ROWS = 4096

CASES = [
    ([db.Dense(64, "tanh")], (48,)),
    ([db.Dense(64, "tanh"), db.Dropout(0.5)], (48,)),
    ([db.Dense(64), db.LayerNorm()], (48,)),
    ([db.Dense(64), db.LayerNorm(), db.Flatten()], (48,)),
    ([db.Add([db.LocalContrastNorm2D(3)]), db.LayerNorm(), db.Dropout(0.5)], (8, 6, 4)),
    ([db.Add([db.Dense(32, "relu"), db.Dense(48)])], (48,)),
]


@pytest.mark.parametrize(("layers", "shape"), CASES)
def test_a_warm_step_takes_no_memory(layers: list[db.Layer], shape: tuple[int, ...]) -> None:
    """Less than a quarter of one array of a layer: of a loss there are some numbers a row, of NumPy a buffer or two."""
    network = db.Network([*layers, db.Dense(3)], "softmax", shape)
    parameters = network.initial_parameters(0)
    gradient = np.empty_like(parameters)
    inputs = np.random.default_rng(0).standard_normal((N_ROWS, *shape)).astype(np.float32)
    targets = np.zeros(N_ROWS, np.int64)
    key = 1 if network.draws else None
    for _ in range(2):
        network.loss_and_gradient(parameters, inputs, targets, out=gradient, key=key)
    tracemalloc.start()
    try:
        network.loss_and_gradient(parameters, inputs, targets, out=gradient, key=key)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 0.25 * 48 * N_ROWS * 4
