"""What layers say of their workspaces is what they take, so that a run's memory can be reckoned."""

from __future__ import annotations

import math

import numpy as np
import pytest

import dask_belief as db
from dask_belief.backend import get_backend
from dask_belief.models.box import Box

N_ROWS = 64

CASES = [
    (db.Dense(5, "tanh"), (4,)),
    (db.Embedding(9, 4), (6,)),
    (db.Flatten(), (3, 4, 2)),
    (db.LayerNorm(), (3, 8)),
    (db.LocalContrastNorm2D(3), (9, 8, 2)),
    (db.Dropout(), (3, 4)),
    (db.Add([db.Dense(8, "tanh"), db.Dense(4)]), (4,)),
    (db.Add([db.LocalContrastNorm2D(3), db.LayerNorm(), db.Dropout()]), (9, 8, 2)),
]


def taken(layer: db.Layer, input_shape: tuple[int, ...]) -> int:
    """How many numbers of memory one pass leaves in the workspace."""
    backend = get_backend("numpy")
    workspace = db.Workspace(backend, (0,))
    workspace.key = 1
    is_of_ids = isinstance(layer, db.Embedding)
    inputs = np.zeros((N_ROWS, *input_shape), np.int64 if is_of_ids else np.float32)
    parameters = {name: np.ones(shape, np.float32) for name, shape in layer.parameter_shapes(input_shape).items()}
    gradients = {name: np.empty_like(array) for name, array in parameters.items()}
    outputs = layer.forward(backend, parameters, inputs, workspace)
    delta = np.zeros_like(outputs)
    layer.backward(backend, parameters, gradients, inputs, outputs, delta, workspace, needs_input_delta=not is_of_ids)

    def held(workspace: db.Workspace) -> int:
        own = sum(array.size for array in workspace._buffers.values())
        return own + sum(held(inner) for inner in workspace._inner.values())

    return held(workspace)


@pytest.mark.parametrize("is_part", [False, True])
@pytest.mark.parametrize(("layer", "shape"), CASES)
def test_a_layer_takes_no_more_than_it_says(layer: db.Layer, shape: tuple[int, ...], is_part: bool) -> None:
    """Beside the derivative by its inputs, which the layer below has counted; nor half of it. Parts as well."""
    n_used = 0
    if is_part:
        outputs = layer.output_shape(shape)
        part = layer.part(Box.whole(outputs).along(0, 0, max(1, outputs[0] // 2)), shape)
        boxes = part.parameters
        n_used = sum(2 * box.size for box in boxes.values())
        layer, shape = part.layer, part.inputs.shape
    said, found = layer.workspace_numbers(shape) * N_ROWS, taken(layer, shape)
    assert found <= said + math.prod(shape) * N_ROWS + n_used
    assert found >= said / 2 - N_ROWS
