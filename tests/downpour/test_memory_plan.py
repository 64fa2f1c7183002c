"""What Downpour needs in memory follows from its options and sizes."""

from __future__ import annotations

import numpy as np
import pytest

import dask_belief as db
from dask_belief.data.units import plan_units
from dask_belief.downpour.memory_plan import downpour_needs
from dask_belief.memory_needs import Needs

ROWS = db.ArrayDataset(np.zeros((1000, 7), np.float32), np.zeros(1000, np.int64), chunk_rows=100)
NETWORK = db.Network([db.Dense(3)], loss="softmax", input_shape=(7,))


def needs(**options) -> Needs:
    plan = plan_units(1000, 100, ROWS.row_bytes(np.float32), NETWORK.n_parameters, unit_rows=200)
    return downpour_needs(db.Downpour(**options), NETWORK, ROWS, None, "float32", plan, n_replicas=4)


def test_numbers_by_hand() -> None:
    """Of a network of 24 parameters and rows of 36 bytes, by Adagrad."""
    found = needs(batch_size=50)
    assert (found.vector_bytes, found.item_bytes) == (96, 4)
    # In use, gradient, an exchange of two; another, what has accrued, what is not yet due.
    assert (found.replica_vectors, found.passing_replica_vectors) == (4, 4)
    assert (found.unit_bytes, found.data_bytes) == (200 * 36, 1000 * 36)
    # Values and sums; a snapshot; kept twice, without the snapshot.
    assert (found.shard_vectors, found.passing_vectors) == (2, 1)
    assert (found.kept_vectors, found.passing_kept_vectors) == (2, 2)
    # Three outputs and derivatives, three for the loss, its value, and seven inputs; the rows themselves.
    assert found.workspace_bytes == 50 * (10 * 4 + 7 * 8) + 50 * 36
    assert found.sent_bytes == 2 * ROWS.n_bytes
    assert found.cache_bytes == 0


@pytest.mark.parametrize(
    ("options", "on_replica", "on_shards"),
    [
        ({"rule": db.SGD(0.1)}, 8, 2),
        ({"rule": db.Adam(0.1)}, 8, 4),
        # A replica that goes on between fetches makes steps of the rule.
        ({"rule": db.Adam(0.1), "n_fetch": 2}, 10, 4),
        ({"rule": db.SGD(0.1), "l2": 1.0}, 10, 2),
        # Two exchanges of four halves, one that is not due, and one of a push on a device.
        ({"rule": db.SGD(0.1), "wire_dtype": "bfloat16"}, 6, 2),
        # What was left out of the parameters.
        (
            {"rule": db.SGD(0.1), "wire_dtype": "bfloat16", "staleness": db.ElasticAveraging(), "n_replicas": 4},
            7,
            2,
        ),
        # Each round's pushes wait for it to end.
        ({"rule": db.SGD(0.1), "staleness": db.Synchronous()}, 8, 2 + 4),
        # The shards make no steps of the rule.
        ({"rule": db.Adam(0.1), "staleness": db.ElasticAveraging(), "n_replicas": 4}, 10, 2),
    ],
    ids=str,
)
def test_vectors_follow_from_the_options(options, on_replica: int, on_shards: int) -> None:
    """Each option that costs a vector is counted, where it costs it."""
    found = needs(**options)
    assert found.replica_vectors + found.passing_replica_vectors == on_replica
    assert found.shard_vectors + found.passing_vectors == on_shards


def test_exchanges_are_those_of_the_courier() -> None:
    """The line of a courier is as long as is planned."""
    from dask_belief.downpour import courier, memory_plan

    assert memory_plan._REPLICA_VECTORS + memory_plan._PASSING_VECTORS == 4 + 2 * courier._IN_FLIGHT
