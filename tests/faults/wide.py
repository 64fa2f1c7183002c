"""A network for whose parameters several shards are made, and few rows to train it on."""

from __future__ import annotations

import numpy as np

import dask_belief as db
from dask_belief.parameter_server.ranges import BLOCK
from dask_belief.seeds import stream

_N_INPUTS, _N_ROWS, _CHUNK_ROWS = 20, 500, 50


def wide_network(n_shards: int, activation: str = "sigmoid") -> db.Network:
    """A network of as many blocks of parameters, each of which may have a shard of its own; "relu" costs least."""
    n_hidden = 10 + BLOCK * (n_shards - 1) // (_N_INPUTS + 2)
    return db.Network([db.Dense(n_hidden, activation), db.Dense(1)], loss="logistic", input_shape=(_N_INPUTS,))


def few_rows() -> db.ArrayDataset:
    """Noise around a line."""
    random = stream(12, "rows")
    inputs = random.normal(size=(_N_ROWS, _N_INPUTS)).astype(np.float32)
    targets = (inputs @ random.normal(size=_N_INPUTS) + random.normal(size=_N_ROWS) > 0).astype(np.int64)
    return db.ArrayDataset(inputs, targets, chunk_rows=_CHUNK_ROWS)
