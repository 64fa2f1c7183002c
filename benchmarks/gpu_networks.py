"""The networks whose steps on a GPU are counted, timed and put on paper, with mini-batches as replicas get them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dask_belief.models import Dense, Embedding, Network
from pipelines.tabular.model import Settings, logistic_regression
from pipelines.tabular.model import network as flights_network

SPEECH_WIDTHS = (440, 2560, 2560, 2560, 2560, 8192)
FLIGHT_COLUMNS = 165
"""Columns that `pipelines.tabular` makes of the flights."""

NARROW = 24
"""A width at which the CPU is quick; at least the columns of the narrowest network."""


@dataclass(frozen=True)
class Case:
    """A network with the rows of a mini-batch.

    Attributes
    ----------
    name, network
        Which it is.
    batch_rows
        Rows of a mini-batch.
    target_dtype
        In which a data set hands over its targets.
    """

    name: str
    network: Network
    batch_rows: int
    target_dtype: str = "int64"

    @property
    def casts_targets(self) -> bool:
        """Whether the loss needs its targets in another dtype than the data set's, which is a launch more."""
        return self.target_dtype != ("int64" if self.network.loss == "softmax" else "float32")

    def rows(self, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Draw a mini-batch, on the host: normal inputs or ids of entries, and targets of the loss."""
        generator = np.random.default_rng(seed)
        first, network, n_rows = self.network.layers[0], self.network, self.batch_rows
        shape = (n_rows, *network.input_shape)
        if isinstance(first, Embedding):
            inputs: np.ndarray = generator.integers(0, first.n_entries, shape)
        else:
            inputs = generator.standard_normal(shape, dtype=np.float32)
        if network.loss == "softmax":
            return inputs, generator.integers(0, network.n_outputs, n_rows)
        target_shape = (n_rows,) if network.n_outputs == 1 else (n_rows, network.n_outputs)
        return inputs, generator.integers(0, 2, target_shape).astype(self.target_dtype)

    def narrowed(self, batch_rows: int = 8) -> Case:
        """Give the same layers, but narrow ones: they launch as many kernels, and cost an emulated device little."""
        network = self.network
        layers: list[Any] = []
        for layer in network.layers:
            if isinstance(layer, Dense):
                layers.append(replace(layer, units=min(layer.units, NARROW)))
            elif isinstance(layer, Embedding):
                layers.append(replace(layer, n_entries=min(layer.n_entries, NARROW)))
            else:
                layers.append(layer)
        shape = tuple(min(size, NARROW) for size in network.input_shape)
        return replace(self, network=Network(layers, network.loss, shape), batch_rows=batch_rows)


def cases() -> dict[str, Case]:
    """Give the networks by name, the paper's first."""
    settings = Settings()
    rows = settings.downpour_batch
    found = [
        # 42 million parameters: the paper's acoustic model, as benchmarks/bench_large_model.py has it.
        Case("speech", _dense(SPEECH_WIDTHS, "sigmoid"), 256),
        # Of benchmarks/bench_gradient.py.
        Case("images", _dense((784, 1024, 1024, 10), "relu"), 1000),
        Case("flights", flights_network(FLIGHT_COLUMNS, settings), rows),
        Case("flights, logistic", logistic_regression(FLIGHT_COLUMNS), rows),
        # A table as of words or users, of which a mini-batch touches 2600 rows.
        Case("embedding", Network([Embedding(100_000, 16), Dense(64, "relu"), Dense(1)], "logistic", (26,)), rows),
    ]
    return {case.name: case for case in found}


def _dense(widths: tuple[int, ...], activation: str) -> Network:
    hidden = [Dense(units, activation) for units in widths[1:-1]]
    return Network([*hidden, Dense(widths[-1])], "softmax", widths[:1])
