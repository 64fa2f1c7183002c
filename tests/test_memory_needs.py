"""What one replica and one task compute in follows from the sizes of the model and of the rows."""

from __future__ import annotations

import numpy as np

import dask_belief as db
from dask_belief.memory_needs import evaluation_bytes, extra_gradients, sent_bytes, workspace_bytes


class Own:
    n_parameters = 3


def test_workspace_of_a_network_follows_from_its_layers() -> None:
    """Outputs and derivatives of each layer, the last once more, and rows as they are or as ids."""
    network = db.Network([db.Dense(30, "tanh"), db.Dense(5)], loss="softmax", input_shape=(7,))
    assert workspace_bytes(network, 10, 32, 4) == 10 * ((2 * 35 + 5 + 1) * 4 + 7 * 8)

    assert workspace_bytes(Own(), 10, 32, 4) == 4 * 10 * 32
    assert (extra_gradients(network), extra_gradients(Own())) == (0, 1)


def test_data_in_memory_are_sent() -> None:
    """A store is read where it is."""
    rows = db.ArrayDataset(np.zeros((10, 3), np.float32), np.zeros(10, np.int64))
    assert sent_bytes(rows) == 10 * 12 + 80
    assert sent_bytes(None) == 0
    network = db.Network([db.Dense(2)], loss="softmax", input_shape=(3,))
    assert evaluation_bytes(network, rows, "float32") >= 4 * network.n_parameters + 10 * rows.row_bytes(np.float32)
