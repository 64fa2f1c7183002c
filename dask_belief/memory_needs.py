"""What a method needs in memory, for one replica, one shard, one task: what a memory plan is made from; pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dask_belief.data.dataset import ArrayDataset, Dataset
from dask_belief.model_parallel.partitioned import PartitionedNetwork
from dask_belief.models.network import Network
from dask_belief.objective import Objective

# As `evaluation` has them.
_EVALUATION_BLOCK_BYTES = 16 * 2**20
_EVALUATION_ROWS = 4096


@dataclass(frozen=True)
class Needs:
    """What a method needs, from sizes alone; vectors are of all parameters, or of those of a piece.

    Attributes
    ----------
    vector_bytes, item_bytes
        Of a vector as a task of a replica has it, and of one parameter.
    replica_vectors
        Vectors of each replica's own.
    passing_replica_vectors
        What it has for a while, at most: partial sums, a second exchange.
    shared_vectors
        Vectors that the replicas of a worker share.
    unit_bytes, data_bytes
        Decoded rows of the largest unit or lease, and of the whole data set.
    workspace_bytes
        What a replica computes one block of rows in.
    shard_vectors
        Named vectors on a shard.
    passing_vectors
        What a shard holds for a while, at most: sums that wait, vectors that are being saved.
    n_under_way
        Exchanges of vectors that one replica has under way with a shard at once.
    kept_vectors
        Vectors that are kept of another worker's shard.
    passing_kept_vectors
        What more is kept, at most, until a newer state is complete.
    sent_bytes
        An in-memory data set, on each worker that has a replica; 0 for one that is read from a store.
    evaluation_bytes
        Of one task that evaluates a data set; 0 for a run without.
    cache_bytes
        Of each replica's cache; None for what is left over. 0 for a method that has none.
    advice
        How this method is made to need less, as the rest of a sentence.
    """

    vector_bytes: int
    item_bytes: int
    replica_vectors: int
    passing_replica_vectors: int
    shared_vectors: int
    unit_bytes: int
    data_bytes: int
    workspace_bytes: int
    shard_vectors: int
    passing_vectors: int
    n_under_way: int
    kept_vectors: int
    passing_kept_vectors: int
    sent_bytes: int
    evaluation_bytes: int
    cache_bytes: int | None
    advice: str


def workspace_bytes(objective: Objective, n_rows: int, row_bytes: int, item_bytes: int) -> int:
    """Reckon what the rows that are computed at once are computed in.

    Of a `Network` what its layers say, mostly their outputs and the derivatives by them; of another objective, which is
    not known, four times the rows.
    """
    if isinstance(objective, PartitionedNetwork):
        plan = objective.plan
        most = max(plan.nodes(piece) for piece in range(plan.n_pieces))
        return n_rows * (2 * most * item_bytes + 8 * math.prod(plan.network.input_shape))
    if not isinstance(objective, Network):
        return 4 * n_rows * row_bytes
    shape, n_numbers = tuple(objective.input_shape), 0
    for layer in objective.layers:
        n_numbers += layer.workspace_numbers(shape)
        shape = layer.output_shape(shape)
    # The loss may need the outputs of the last layer once more. Inputs are rows, or ids of 8 bytes.
    numbers_bytes = (n_numbers + objective.n_outputs + 1) * item_bytes
    return n_rows * (numbers_bytes + 8 * math.prod(objective.input_shape))


def task_parameters(objective: Objective) -> int:
    """Count the parameters that one task of a replica holds, at most: all, or those of a piece."""
    if isinstance(objective, PartitionedNetwork):
        return max(len(span) for span in objective.spans)
    return objective.n_parameters


def extra_gradients(objective: Objective) -> int:
    """Gradients that an objective makes beside the one that it is asked to fill: a network makes none."""
    return 0 if isinstance(objective, Network | PartitionedNetwork) else 1


def sent_bytes(dataset: Dataset | None) -> int:
    """What of a data set is in the memory of a worker that it was sent to, beside what is read of it."""
    return dataset.n_bytes if isinstance(dataset, ArrayDataset) else 0


def evaluation_bytes(objective: Objective, dataset: Dataset, dtype: str) -> int:
    """Reckon what one task of an `Evaluation` needs: parameters, a gradient that is not wanted, a block of rows."""
    item_bytes, row_bytes = np.dtype(dtype).itemsize, dataset.row_bytes(dtype)
    n_rows = max(1, min(_EVALUATION_ROWS, _EVALUATION_BLOCK_BYTES // row_bytes, dataset.n_rows))
    vectors = (1 + extra_gradients(objective)) * objective.n_parameters * item_bytes
    whole: Objective = objective
    if isinstance(objective, PartitionedNetwork):
        # It is evaluated in one piece, from parameters in the network's own order.
        whole, vectors = objective.network, 2 * vectors
    return vectors + 2 * n_rows * row_bytes + workspace_bytes(whole, n_rows, row_bytes, item_bytes)
