"""What a run needs in memory follows from sizes."""

from __future__ import annotations

import numpy as np
import pytest

import dask_belief as db
from dask_belief.data.units import UnitPlan
from dask_belief.memory_needs import Needs
from dask_belief.sandblaster.memory_plan import (
    IN_FLIGHT_BYTES,
    MAX_LEVEL,
    SUM_BYTES,
    largest_level,
    most_in_flight,
    most_waiting,
    sandblaster_needs,
)

MIB = 2**20


@pytest.mark.parametrize(("vector_bytes", "level"), [(4, MAX_LEVEL), (64 * MIB, 3), (128 * MIB, 1), (200 * MIB, 0)])
def test_longest_lease_follows_from_the_bytes_of_its_partial_sums(vector_bytes: int, level: int) -> None:
    """A lease of level l holds l + 1 of them; a vector that is too large alone is summed unit by unit."""
    assert largest_level(vector_bytes) == level
    assert level == 0 or (level + 1) * vector_bytes <= SUM_BYTES


@pytest.mark.parametrize(
    ("vector_bytes", "expected"), [(4, 2), (IN_FLIGHT_BYTES // 2, 2), (IN_FLIGHT_BYTES, 1), (1 << 33, 1)]
)
def test_large_sums_travel_one_at_a_time(vector_bytes: int, expected: int) -> None:
    """Small ones two at a time; never none."""
    assert most_in_flight(vector_bytes) == expected


def test_sums_under_way_are_never_more_than_half_the_units() -> None:
    """Two siblings do not both wait."""
    assert most_waiting(7, 50) == 4
    assert most_waiting(1024, 2) == 2 * 2 * 10


ROWS = db.ArrayDataset(np.zeros((1000, 7), np.float32), np.zeros(1000, np.int64), chunk_rows=10)
NETWORK = db.Network([db.Dense(3)], loss="softmax", input_shape=(7,))
UNITS = UnitPlan(n_rows=1000, chunk_rows=10, unit_rows=10, block_rows=4)


def needs(n_replicas: int = 4, validation: db.ArrayDataset | None = None, **options) -> Needs:
    return sandblaster_needs(db.Sandblaster(**options), NETWORK, ROWS, validation, "float32", UNITS, n_replicas)


def test_numbers_by_hand() -> None:
    """Of a network of 24 parameters and rows of 36 bytes, with five pairs."""
    found = needs(history_size=5)
    assert (found.vector_bytes, found.item_bytes) == (96, 4)
    # A hundred units are 25 a replica: leases of up to 16. Two gradients, five sums, two on their way; the parameters.
    assert found.replica_vectors + found.passing_replica_vectors == 2 + 5 + 2
    assert (found.replica_vectors, found.shared_vectors) == (3, 2)
    assert (found.unit_bytes, found.data_bytes) == (360, 36_000)
    assert found.workspace_bytes == 4 * (10 * 4 + 7 * 8)
    # Five, the pairs and a free one; a saved state, the points of a newer one, and sums that wait.
    assert (found.shard_vectors, found.passing_vectors) == (5 + 2 * 6, 12 + 2 + min(50, 2 * 4 * 7))
    assert found.kept_vectors == found.passing_kept_vectors == 2 + 2 * 5
    assert (found.sent_bytes, found.evaluation_bytes, found.cache_bytes) == (ROWS.n_bytes, 0, None)
    assert "history_size" in found.advice


def test_vectors_follow_from_the_options() -> None:
    """Three more with an L1 penalty, two for a first Hessian, one to validate at; without history one pair and a free
    one.
    """
    n_vectors = needs().shard_vectors
    assert needs(l1=0.1).shard_vectors == n_vectors + 3
    assert needs(first_hessian="adagrad").shard_vectors == n_vectors + 2
    validated = needs(validation=ROWS)
    assert validated.shard_vectors == n_vectors + 1
    assert validated.evaluation_bytes > 0
    assert validated.sent_bytes == 2 * ROWS.n_bytes
    assert needs(direction="conjugate_gradient").shard_vectors == n_vectors - 2 * 9
    assert needs(cache_bytes=17).cache_bytes == 17


@pytest.mark.parametrize(("n_replicas", "n_sums"), [(1, 7), (3, 6), (50, 2), (100, 1), (1000, 1)])
def test_more_replicas_have_shorter_leases(n_replicas: int, n_sums: int) -> None:
    """A lease is at most a fair share, and so are its partial sums."""
    found = needs(n_replicas)
    assert found.replica_vectors + found.passing_replica_vectors == 2 + n_sums + 2


def test_sums_that_wait_are_never_more_than_half_the_units() -> None:
    """Two siblings do not both wait."""
    assert most_waiting(7, 50) == 4
    assert most_waiting(1024, 2) == 2 * 2 * 10
