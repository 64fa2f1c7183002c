"""A network in pieces as something to be trained: its parameters lie in the order of the pieces.

::

    the network's vector    |  layer 0          |  layer 1        | ...
    the run's vector        |  piece 0: its boxes of all layers  0|  piece 1: its boxes of all layers     0| ...
                                                                ^ filled up to a whole block of a shard

So each piece's parameters are one range, which begins where a shard may begin: a piece talks only to the shards that
hold its own, and no sum depends on how many there are. What fills up is zero, has no gradient, and stays zero.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from dask_belief.backend import Array, Backend, get_backend
from dask_belief.errors import ArgumentError
from dask_belief.model_parallel.cuts import Cut
from dask_belief.model_parallel.plan import Plan, plan_of
from dask_belief.models.layout import Shape
from dask_belief.models.network import Network
from dask_belief.objective import Objective
from dask_belief.parameter_server.ranges import BLOCK, shard_ranges

FORMAT = 1
"""The version of what `PartitionedNetwork.to_config` gives."""


@dataclass(frozen=True)
class PartitionedNetwork:
    """An objective whose vector lies in the order of the pieces; else it is the network itself.

    It computes in one process what replicas compute on several workers, for data sets that are evaluated.
    """

    plan: Plan
    backend: Backend = field(default_factory=lambda: get_backend("numpy"), compare=False, repr=False, kw_only=True)

    @property
    def network(self) -> Network:
        """The whole."""
        return self.plan.network

    @functools.cached_property
    def spans(self) -> tuple[range, ...]:
        """Where each piece's parameters lie in the run's vector, with what fills them up."""
        spans, start = [], 0
        for layout in self.plan.layouts:
            stop = start + max(1, -(-layout.n_parameters // BLOCK)) * BLOCK
            spans.append(range(start, stop))
            start = stop
        return tuple(spans)

    @property
    def n_parameters(self) -> int:
        """The length of the run's vector."""
        return self.spans[-1].stop

    @functools.cached_property
    def penalised(self) -> npt.NDArray[np.bool_]:
        """Which parameters a penalty covers, in the order of the run's vector."""
        mask = self.from_network(self.network.penalised.astype(np.float32)) > 0
        mask.flags.writeable = False
        return mask

    @property
    def draws(self) -> bool:
        """Whether a layer draws random numbers."""
        return self.network.draws

    def from_network(self, vector: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Give a vector of the network in the order of the run."""
        out = np.zeros(self.n_parameters, vector.dtype)
        for span, layout, own in zip(self.spans, self.plan.layouts, self.plan.cut_vector(vector), strict=True):
            out[span.start : span.start + layout.n_parameters] = own
        return out

    def to_network(self, vector: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Give a vector of the run in the order of the network."""
        owns = [
            vector[span.start : span.start + layout.n_parameters]
            for span, layout in zip(self.spans, self.plan.layouts, strict=True)
        ]
        return self.plan.join_vectors(owns, np.empty(self.network.n_parameters, vector.dtype))

    def ranges(self, n_shards: int) -> tuple[range, ...]:
        """Give the range of each shard: at least one a piece, the others where pieces are large.

        Raises
        ------
        ArgumentError
            There are fewer than one.
        """
        if n_shards < 1:
            raise ArgumentError(f"n_shards: expected 1 or more, got {n_shards}.")
        counts = [1] * len(self.spans)
        for _ in range(n_shards - len(counts)):
            largest = max(range(len(counts)), key=lambda piece: len(self.spans[piece]) / counts[piece])
            counts[largest] += 1
        return tuple(
            range(span.start + own.start, span.start + own.stop)
            for span, count in zip(self.spans, counts, strict=True)
            for own in shard_ranges(len(span), count)
        )

    def on(self, backend: Backend) -> PartitionedNetwork:
        """Give the same, computing with another backend."""
        return replace(self, backend=backend)

    def initial_parameters(self, seed: int, dtype: npt.DTypeLike = np.float32) -> Array:
        """Draw the first parameters, those of the network."""
        return self.from_network(self.network.initial_parameters(seed, dtype))

    def loss_and_gradient(
        self, parameters: Array, inputs: Array, targets: Array, *, key: int | None = None
    ) -> tuple[float, Array]:
        """Give the loss and its gradient, both summed over the rows, computed in one piece."""
        loss, gradient = self._whole.loss_and_gradient(self._joined(parameters), inputs, targets, key=key)
        return loss, self.backend.asarray(self.from_network(self.backend.to_host(gradient)))

    def evaluate(self, parameters: Array, inputs: Array, targets: Array) -> dict[str, float]:
        """Give sums over the rows; see `Network.evaluate`."""
        return self._whole.evaluate(self._joined(parameters), inputs, targets)

    def predict(self, parameters: Array, inputs: Array) -> Array:
        """Predict; see `Network.predict`."""
        return self._whole.predict(self._joined(parameters), inputs)

    def check_data(
        self,
        input_shape: Shape,
        target_shape: Shape,
        target_dtype: npt.DTypeLike,
        target_range: tuple[float, float] | None = None,
        input_range: tuple[float, float] | None = None,
        input_dtype: npt.DTypeLike | None = None,
    ) -> None:
        """Refuse a data set that the network cannot learn from; see `Network.check_data`."""
        self.network.check_data(input_shape, target_shape, target_dtype, target_range, input_range, input_dtype)

    @functools.cached_property
    def _whole(self) -> Network:
        return self.network.on(self.backend)

    def _joined(self, parameters: Array) -> Array:
        return self.to_network(self.backend.to_host(parameters))

    def to_config(self) -> dict[str, Any]:
        """Describe it in plain JSON; see `from_config`."""
        cuts = [{"axis": layer.cut.axis, "home": layer.cut.home} for layer in self.plan.layers]
        return {
            "format": FORMAT,
            "network": self.network.to_config(),
            "pieces": self.plan.n_pieces,
            "by": self.plan.by,
            "cuts": cuts,
            "micro_batches": self.plan.micro_batches,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> PartitionedNetwork:
        """Make what `to_config` described.

        Raises
        ------
        ArgumentError
            The format or a key is unknown, or a value is wrong.
        """
        expected = {"format", "network", "pieces", "by", "cuts", "micro_batches"}
        if set(config) != expected or config["format"] != FORMAT:
            raise ArgumentError(
                f"config: expected the keys {sorted(expected)} with format {FORMAT}, got {sorted(config)} with format "
                f"{config.get('format')!r}. Another version wrote it, or it is no partitioned network."
            )
        network = Network.from_config(config["network"])
        cuts = [Cut(**cut) for cut in config["cuts"]]
        return cls(plan_of(network, config["pieces"], config["by"], cuts, config["micro_batches"]))

    def __reduce__(self) -> tuple[object, tuple[Plan, Backend]]:
        """Pickle as the plan and the backend."""
        return _restore, (self.plan, self.backend)


def run_order(objective: Objective, vector: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Give a vector of parameters as a user has it in the order in which the run has it."""
    if not isinstance(objective, PartitionedNetwork):
        return vector
    expected = objective.network.n_parameters
    if vector.shape != (expected,):
        raise ArgumentError(f"initial: expected shape ({expected},), got {vector.shape}.")
    return objective.from_network(vector)


def users_order(objective: Objective, vector: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Give a vector of the run as a user has it: of a network in pieces in the network's own order."""
    return objective.to_network(vector) if isinstance(objective, PartitionedNetwork) else vector


def users_objective(objective: Objective) -> Objective:
    """Give what a user predicts with: the network itself, where it was trained in pieces."""
    return objective.network if isinstance(objective, PartitionedNetwork) else objective


def _restore(plan: Plan, backend: Backend) -> PartitionedNetwork:
    return PartitionedNetwork(plan, backend=backend)
