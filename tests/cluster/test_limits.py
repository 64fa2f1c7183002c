"""Limits are positive seconds."""

from __future__ import annotations

import dataclasses
import math

import pytest

from dask_belief.cluster.limits import LIMITS, Limits
from dask_belief.errors import ArgumentError


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Limits)])
@pytest.mark.parametrize("value", [0, -1.0, math.nan])
def test_limit_that_is_not_positive_is_refused(name: str, value: float) -> None:
    """Zero, a negative number and NaN are refused by the limit's name."""
    with pytest.raises(ArgumentError, match=f"^{name}: "):
        Limits(**{name: value})


def test_limits_fit_together() -> None:
    """A question is held open for less than the silence after which a replica ends, and looked at more often."""
    assert LIMITS.watch_seconds < LIMITS.poll_seconds < LIMITS.silence_seconds <= LIMITS.no_progress_seconds
    assert LIMITS.poll_seconds < LIMITS.call_seconds
