"""What a run needs in memory follows from sizes."""

from __future__ import annotations

import pytest

from dask_belief.sandblaster.memory_plan import (
    IN_FLIGHT_BYTES,
    MAX_LEVEL,
    SUM_BYTES,
    largest_level,
    most_in_flight,
    plan_memory,
)

MIB = 2**20
# The paper's speech network (EX1) in float32.
SPEECH_BYTES = 4 * 41_777_152


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


def test_replica_of_the_papers_network_needs_less_than_one_and_a_half_gib() -> None:
    """Vectors only; activations of a row block come on top and are small beside them."""
    plan = plan_memory(SPEECH_BYTES, n_vectors=30, n_units=1000, n_replicas=100)
    assert plan.replica_bytes < 1.2 * 2**30
    assert plan.vectors_bytes == 30 * SPEECH_BYTES


def test_sums_under_way_are_never_more_than_half_the_units() -> None:
    """Two siblings do not both wait."""
    assert plan_memory(100, 1, n_units=7, n_replicas=50).waiting_bytes == 4 * 100
    assert plan_memory(100, 1, n_units=1024, n_replicas=2).waiting_bytes == 2 * 2 * 10 * 100
