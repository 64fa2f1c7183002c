"""What a Sandblaster run needs in memory beside its data, from sizes alone.

::

    replica     parameters, gradient of a unit, gradient of a further row block,
                partial sums of the lease (level + 1 of them), sums on their way to the shards
    shards      the vectors that have names (points, gradients, direction, history), nodes that wait for a sibling

The largest level of a lease is chosen so that its partial sums stay within a stated share: longer leases would save
messages, and cost memory.
"""

from __future__ import annotations

import numpy as np

from dask_belief.data.dataset import Dataset
from dask_belief.data.units import UnitPlan
from dask_belief.memory_needs import (
    Needs,
    evaluation_bytes,
    extra_gradients,
    sent_bytes,
    task_parameters,
    workspace_bytes,
)
from dask_belief.objective import Objective
from dask_belief.optim.lbfgs import CurvatureMemory
from dask_belief.sandblaster.config import Sandblaster

SUM_BYTES = 256 * 2**20
"""Partial sums of a lease, where they are more than one vector."""

MAX_LEVEL = 6
"""The longest lease is of 64 units."""

IN_FLIGHT_BYTES = 64 * 2**20
"""Sums on their way to the shards, where they are more than one."""

MOST_IN_FLIGHT = 2

# Two points, two gradients, the direction; with an L1 penalty two pseudo-gradients and the move.
_SMOOTH_VECTORS = 5
_ORTHANT_VECTORS = 8

# Point and gradient of a saved state.
_SAVED_POINTS = 2


def largest_level(vector_bytes: int) -> int:
    """The largest level of a lease whose partial sums stay within `SUM_BYTES`; 0 where not even two do."""
    return max(0, min(MAX_LEVEL, SUM_BYTES // vector_bytes - 1))


def most_in_flight(vector_bytes: int) -> int:
    """How many sums a replica may have on their way before it waits: one at least."""
    return max(1, min(MOST_IN_FLIGHT, IN_FLIGHT_BYTES // vector_bytes))


def sandblaster_needs(
    method: Sandblaster,
    objective: Objective,
    dataset: Dataset,
    validation: Dataset | None,
    dtype: str,
    plan: UnitPlan,
    n_replicas: int,
) -> Needs:
    """Reckon what a run of Sandblaster needs.

    Parameters
    ----------
    method, objective, dataset, validation, dtype
        As given to `dask_belief.train`.
    plan
        How the rows are cut into units.
    n_replicas
        Of the run, on all workers.
    """
    item_bytes, row_bytes = np.dtype(dtype).itemsize, dataset.row_bytes(dtype)
    vector_bytes = task_parameters(objective) * item_bytes
    rule = method.direction_rule()
    n_pairs = rule.history_size if isinstance(rule, CurvatureMemory) else 1
    named = (_ORTHANT_VECTORS if method.l1 else _SMOOTH_VECTORS) + 2 * (n_pairs + 1)
    # The first Hessian with the sums that it is made from; the snapshot that is validated.
    named += 2 * (method.first_hessian == "adagrad") + (validation is not None)
    state = _SAVED_POINTS + 2 * n_pairs
    fair_share = -(-len(plan) // n_replicas)
    level = min(largest_level(vector_bytes), fair_share.bit_length() - 1)
    return Needs(
        vector_bytes=vector_bytes,
        item_bytes=item_bytes,
        # A gradient, a sum, and one on its way.
        replica_vectors=3,
        # The gradient of a further block; the other partial sums; the other sums on their way.
        passing_replica_vectors=1 + extra_gradients(objective) + level + most_in_flight(vector_bytes) - 1,
        # See `parameter_server.shared_fetch`.
        shared_vectors=2,
        unit_bytes=plan.largest_rows * row_bytes,
        data_bytes=dataset.n_rows * row_bytes,
        workspace_bytes=workspace_bytes(objective, min(plan.block_rows, plan.largest_rows), row_bytes, item_bytes),
        shard_vectors=named,
        # A saved state stays on the shards until a newer one is complete. It may be so old that it shares no pair with
        # what is there now; what is being saved shares all but a point.
        passing_vectors=state + _SAVED_POINTS + most_waiting(len(plan), n_replicas),
        n_under_way=most_in_flight(vector_bytes),
        kept_vectors=state,
        passing_kept_vectors=state,
        sent_bytes=sent_bytes(dataset) + sent_bytes(validation),
        evaluation_bytes=0 if validation is None else evaluation_bytes(objective, validation, dtype),
        cache_bytes=method.cache_bytes,
        advice="ask for more workers and shards, a smaller history_size, smaller cache_bytes or unit_rows",
    )


def most_waiting(n_units: int, n_replicas: int) -> int:
    """How many sums wait for a sibling on a shard, at most."""
    # What a replica has done of its own run, and of the ends of others', are runs of units: each is covered by two
    # nodes a level at most.
    levels = (max(1, n_units) - 1).bit_length()
    return min(-(-n_units // 2), 2 * n_replicas * max(1, levels))
