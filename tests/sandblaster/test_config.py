"""The options of Sandblaster are checked when they are made."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from dask_belief.errors import ArgumentError
from dask_belief.sandblaster.config import Sandblaster

COUNTS = ("max_iter", "history_size", "max_evaluations", "n_shards", "unit_rows")
NUMBERS = ("l2", "gtol", "ftol", "max_seconds")


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -1, 1.5, "3", True])
def test_count_below_one_is_refused(name: str, value: Any) -> None:
    """Zero, a negative or broken number, a string and a truth value are refused by the option's name."""
    with pytest.raises(ArgumentError, match=f"^{name}: expected a whole number of 1 or more"):
        Sandblaster(**{name: value})


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf, "0.1", True])
def test_number_below_zero_is_refused(name: str, value: Any) -> None:
    """A negative number, NaN, infinity, a string and a truth value are refused by the option's name."""
    with pytest.raises(ArgumentError, match=f"^{name}: expected a finite number of at least 0"):
        Sandblaster(**{name: value})


@pytest.mark.parametrize("name", ["max_iter", "history_size", "l2", "gtol", "ftol"])
def test_option_that_is_needed_is_not_none(name: str) -> None:
    """Only the limits may be absent."""
    with pytest.raises(ArgumentError, match=f"^{name}: "):
        Sandblaster(**{name: None})


def test_cache_may_be_empty_but_not_negative() -> None:
    """Zero bytes keep nothing between passes."""
    assert Sandblaster(cache_bytes=0).cache_bytes == 0
    with pytest.raises(ArgumentError, match=r"^cache_bytes: expected a whole number of 0 or more or None, got -1"):
        Sandblaster(cache_bytes=-1)


def test_options_cannot_be_changed() -> None:
    """A method can be given to several runs."""
    method = Sandblaster(max_iter=5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.max_iter = 6  # type: ignore[misc]
    assert dataclasses.replace(method, l2=1e-3) == Sandblaster(max_iter=5, l2=1e-3)
