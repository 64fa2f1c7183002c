"""What a Downpour run needs in memory, from sizes alone.

::

    replica     parameters in use, gradient, what has accrued; two exchanges, each with what is pushed and what is
                fetched; what was fetched and is not due yet; scratch; the local rule's vectors
    shards      values, the rule's vectors, a snapshot; the pushes of a round of synchronous training
"""

from __future__ import annotations

import numpy as np

from dask_belief.data.dataset import Dataset
from dask_belief.data.units import UnitPlan
from dask_belief.downpour.config import Downpour
from dask_belief.memory_needs import (
    Needs,
    evaluation_bytes,
    extra_gradients,
    sent_bytes,
    task_parameters,
    workspace_bytes,
)
from dask_belief.objective import Objective, touched_of
from dask_belief.parameter_server.consistency import ElasticAveraging, Synchronous

# Parameters in use, a gradient, an exchange with what is pushed and what is fetched.
_REPLICA_VECTORS = 4
# What has accrued; what was fetched and is not due yet; the other exchange in the line of `downpour.courier`.
_PASSING_VECTORS = 2 + 2

# The same where what travels is half as long: an exchange is one vector; the last half is that of a push on a device.
_NARROW_REPLICA_VECTORS = 3
_NARROW_PASSING_VECTORS = 1 + 1 + 1

# What a sparse executor keeps beside: the sum since the last push; compact parameters, gradient and sum.
_SPARSE_VECTORS = 4


def downpour_needs(
    method: Downpour,
    objective: Objective,
    dataset: Dataset,
    validation: Dataset | None,
    dtype: str,
    plan: UnitPlan,
    n_replicas: int,
) -> Needs:
    """Reckon what a run of Downpour needs.

    Parameters
    ----------
    method, objective, dataset, validation, dtype
        As given to `dask_belief.train`.
    plan
        How the rows are cut into leases.
    n_replicas
        Of the run, on all workers.
    """
    item_bytes, row_bytes = np.dtype(dtype).itemsize, dataset.row_bytes(dtype)
    vector_bytes = task_parameters(objective) * item_bytes
    is_elastic = isinstance(method.staleness, ElasticAveraging)
    is_narrow = method.wire_dtype is not None
    n_state = len(method.rule.init(np.zeros(1, dtype)))
    on_shards = 0 if is_elastic else n_state
    staged = n_replicas if isinstance(method.staleness, Synchronous) else 0
    batch_rows = min(method.batch_size, plan.largest_rows)
    # The mini-batch is gathered from its lease.
    workspace = workspace_bytes(objective, batch_rows, row_bytes, item_bytes) + batch_rows * row_bytes
    evaluations = [each for each in (dataset, validation) if each is not None]
    return Needs(
        vector_bytes=vector_bytes,
        item_bytes=item_bytes,
        replica_vectors=(_NARROW_REPLICA_VECTORS if is_narrow else _REPLICA_VECTORS)
        + _own_vectors(method, n_state, is_elastic),
        passing_replica_vectors=(_NARROW_PASSING_VECTORS if is_narrow else _PASSING_VECTORS)
        + extra_gradients(objective)
        + _sparse_vectors(objective, n_state),
        shared_vectors=0,
        unit_bytes=plan.largest_rows * row_bytes,
        data_bytes=dataset.n_rows * row_bytes,
        workspace_bytes=workspace,
        shard_vectors=1 + on_shards,
        # The snapshot that is evaluated, and the pushes of a round.
        passing_vectors=1 + staged,
        # A push comes in as the values go out; one of half the length is widened beside.
        n_under_way=2,
        kept_vectors=1 + on_shards,
        passing_kept_vectors=1 + on_shards,
        # At the end the rows are sent once more, to find the loss.
        sent_bytes=2 * sent_bytes(dataset) + sent_bytes(validation),
        evaluation_bytes=max(evaluation_bytes(objective, each, dtype) for each in evaluations),
        cache_bytes=0,
        advice="ask for more workers and shards, fewer replicas, or smaller lease_rows",
    )


def _own_vectors(method: Downpour, n_state: int, is_elastic: bool) -> int:
    """Vectors that options ask for; those of the rule only where a replica makes local steps."""
    # Which parameters are penalised, and scratch.
    n_vectors = 2 if method.l2 or method.weight_decay else 0
    # What rounding left out of the replica's parameters; of gradients it stays in what has accrued.
    n_vectors += is_elastic and method.wire_dtype is not None
    makes_local_steps = is_elastic or method.n_fetch > 1 or method.lag > 1
    return n_vectors + n_state * makes_local_steps


def _sparse_vectors(objective: Objective, n_state: int) -> int:
    return 0 if touched_of(objective) is None else _SPARSE_VECTORS + n_state
