"""An objective whose gradient counts rows, so that the end of a Downpour run shows how often each was trained on.

The loss of row i is parameter i, and so its gradient is one there and zero elsewhere, whatever the parameters are. By
`SGD`, with whole mini-batches of a power of two, every sum is exact: what was pushed twice, or not at all, shows to the
row, in whatever order it came.
"""

from __future__ import annotations

import numpy as np

import dask_belief as db
from dask_belief.parameter_server.ranges import BLOCK

BATCH_SIZE = 16
RATE = 0.5
OPTIONS = {"rule": db.SGD(RATE), "batch_size": BATCH_SIZE}
"""What a method needs for sums that are exact."""


class RowCounts:
    """Counts rows, each shard for itself.

    Parameters
    ----------
    n_rows
        Of the data set: a multiple of `BATCH_SIZE`, and at most a block of parameters.
    n_shards
        Each row has a parameter on each of so many shards.
    """

    def __init__(self, n_rows: int, n_shards: int = 1) -> None:
        self.n_rows = n_rows
        self.n_shards = n_shards
        self.n_parameters = BLOCK * (n_shards - 1) + n_rows

    def data(self, chunk_rows: int = 4 * BATCH_SIZE) -> db.ArrayDataset:
        """Rows that hold their own number."""
        rows = np.arange(self.n_rows, dtype=np.float32)
        return db.ArrayDataset(rows[:, None], rows, chunk_rows=chunk_rows)

    def initial_parameters(self, seed: int) -> np.ndarray:
        return np.zeros(self.n_parameters)

    def loss_and_gradient(self, parameters, inputs, targets) -> tuple[float, np.ndarray]:
        places = self._places(inputs)
        gradient = np.zeros(self.n_parameters, parameters.dtype)
        gradient[places] = 1.0
        # A mean loss of one at the start: zero would stand for a run that is done.
        return float(parameters[places].sum(dtype=np.float64)) + len(inputs), gradient

    def _places(self, inputs: np.ndarray) -> np.ndarray:
        rows = inputs[:, 0].astype(np.int64)
        return (rows + BLOCK * np.arange(self.n_shards)[:, None]).ravel()

    def counts(self, parameters: np.ndarray) -> np.ndarray:
        """How often each shard counted each row, ``(n_shards, n_rows)``."""
        moved = -parameters * (BATCH_SIZE / RATE)
        return np.stack([moved[BLOCK * number :][: self.n_rows] for number in range(self.n_shards)])

    def found(self, parameters: np.ndarray) -> list[list[float]]:
        """The different counts that there are, of each shard."""
        return [np.unique(of_shard).tolist() for of_shard in self.counts(parameters)]


class SparseRowCounts(RowCounts):
    """Says which parameters a mini-batch touches, so that no others are exchanged."""

    def touched(self, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        places = np.unique(self._places(inputs))
        return np.stack([places, places + 1], axis=1)
