"""What replicas spent adds up."""

from __future__ import annotations

from dask_belief.sandblaster.effort import Effort


def test_efforts_add_field_by_field() -> None:
    """Seconds and bytes of several leases are those of all."""
    first = Effort(waiting_seconds=1.0, computing_seconds=2.0, fetched_bytes=10, cache_hits=3)
    second = Effort(waiting_seconds=0.5, reading_seconds=0.25, pushed_bytes=7, cache_misses=1)
    assert first + second == Effort(1.5, 0.25, 2.0, 0.0, 10, 7, 3, 1)


def test_no_effort_adds_nothing() -> None:
    """The sum of none is the neutral element."""
    effort = Effort(sending_seconds=3.0, pushed_bytes=5)
    assert sum([effort], Effort()) == effort
