"""What replicas spent on an evaluation: seconds, bytes, and how often the cache had what was wanted."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Effort:
    """Sums over leases; two of them add up.

    Attributes
    ----------
    waiting_seconds
        Without work: between a lease's end and the next one's arrival.
    reading_seconds
        Waiting for data; what was read ahead in time costs none.
    computing_seconds
        In the objective.
    sending_seconds
        From the start of a push to its last acknowledgement, beside the computing of the next lease; and fetching
        parameters, beside nothing.
    fetched_bytes, pushed_bytes
        Of vectors, over the network or from an actor of the own worker.
    cache_hits, cache_misses
        Units whose data were in the cache, and those that were read.
    """

    waiting_seconds: float = 0.0
    reading_seconds: float = 0.0
    computing_seconds: float = 0.0
    sending_seconds: float = 0.0
    fetched_bytes: int = 0
    pushed_bytes: int = 0
    cache_hits: int = 0
    cache_misses: int = 0

    def __add__(self, other: Effort) -> Effort:
        """Add field by field."""
        return Effort(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))
