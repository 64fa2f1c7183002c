"""Something that may take a part of the time: when it is due again."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_belief.share import Share

EXAMPLES = settings(derandomize=True, deadline=None, max_examples=200)


def test_first_one_is_due_at_once() -> None:
    """Nothing was spent yet."""
    assert Share(0.05, 100.0).is_due(0.0)


@pytest.mark.parametrize(
    ("share", "cost", "pause"), [(0.05, 1.0, 19.0), (0.2, 2.0, 8.0), (0.5, 3.0, 3.0), (1.0, 5.0, 0.0)]
)
def test_what_it_cost_says_when_the_next_one_is_due(share: float, cost: float, pause: float) -> None:
    """So that the time of one and of the pause after it are in the given relation."""
    kept = Share(share)
    kept.took(10.0, 10.0 + cost)
    assert not kept.is_due(10.0 + cost + pause - 1e-6) or pause == 0
    assert kept.is_due(10.0 + cost + pause + 1e-6)


def test_least_pause_is_kept_however_little_it_costs() -> None:
    """And where it costs much, the longer of both."""
    kept = Share(0.5, least_seconds=2.0)
    kept.took(0.0, 0.0)
    assert not kept.is_due(1.9)
    assert kept.is_due(2.0)
    kept.took(2.0, 12.0)
    assert not kept.is_due(21.9)
    assert kept.is_due(22.0)


@EXAMPLES
@given(st.floats(0.01, 1.0), st.lists(st.floats(0.0, 50.0), min_size=1, max_size=30))
def test_no_more_than_its_part_is_ever_spent(share: float, costs: list[float]) -> None:
    """Begun as soon as it is due, again and again: all of it but the last one is within its part of the time."""
    kept, now, spent = Share(share), 0.0, 0.0
    for cost in costs:
        assert kept.is_due(now)
        kept.took(now, now + cost)
        spent += cost
        now += cost + cost * (1 - share) / share + 1e-9 * (1 + now)
        assert spent <= share * now * (1 + 1e-6)
