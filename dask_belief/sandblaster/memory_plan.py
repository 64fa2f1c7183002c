"""What a Sandblaster run needs in memory beside its data, from sizes alone.

::

    replica     parameters, gradient of a unit, gradient of a further row block,
                partial sums of the lease (level + 1 of them), sums on their way to the shards
    shards      the vectors that have names (points, gradients, direction, history), nodes that wait for a sibling

The largest level of a lease is chosen so that its partial sums stay within a stated share: longer leases would save
messages, and cost memory.
"""

from __future__ import annotations

from dataclasses import dataclass

SUM_BYTES = 256 * 2**20
"""Partial sums of a lease, where they are more than one vector."""

MAX_LEVEL = 6
"""The longest lease is of 64 units."""

IN_FLIGHT_BYTES = 64 * 2**20
"""Sums on their way to the shards, where they are more than one."""

MOST_IN_FLIGHT = 2


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of vectors, at most.

    Attributes
    ----------
    replica_bytes
        Of one replica that has its worker to itself; the parameters of several on one worker are shared.
    vectors_bytes
        Of the named vectors on all shards together.
    waiting_bytes
        Of gradient sums that wait for a sibling, on all shards together.
    """

    replica_bytes: int
    vectors_bytes: int
    waiting_bytes: int


def largest_level(vector_bytes: int) -> int:
    """The largest level of a lease whose partial sums stay within `SUM_BYTES`; 0 where not even two do."""
    return max(0, min(MAX_LEVEL, SUM_BYTES // vector_bytes - 1))


def most_in_flight(vector_bytes: int) -> int:
    """How many sums a replica may have on their way before it waits: one at least."""
    return max(1, min(MOST_IN_FLIGHT, IN_FLIGHT_BYTES // vector_bytes))


def plan_memory(vector_bytes: int, n_vectors: int, n_units: int, n_replicas: int) -> MemoryPlan:
    """Reckon what a run needs.

    Parameters
    ----------
    vector_bytes
        Of one vector of all parameters.
    n_vectors
        Named vectors on the shards.
    n_units, n_replicas
        Of the run.
    """
    level = largest_level(vector_bytes)
    # The sum that is being computed next stands beside those in flight.
    of_replica = 3 + (level + 1) + most_in_flight(vector_bytes)
    # What a replica has done of its own run, and of the ends of others', are runs of units: each is covered by two
    # nodes a level at most.
    levels = (max(1, n_units) - 1).bit_length()
    waiting = min(-(-n_units // 2), 2 * n_replicas * max(1, levels))
    return MemoryPlan(of_replica * vector_bytes, n_vectors * vector_bytes, waiting * vector_bytes)
