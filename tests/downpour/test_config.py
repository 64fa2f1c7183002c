"""The options of Downpour are checked when they are made."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from dask_belief.downpour.config import Downpour
from dask_belief.errors import ArgumentError
from dask_belief.optim.rules import SGD, Momentum

COUNTS = ("n_replicas", "n_shards", "batch_size", "n_fetch", "n_push", "epochs", "lease_rows")


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -1, 1.5, "3", True])
def test_count_below_one_is_refused(name: str, value: Any) -> None:
    """Zero, a negative or broken number, a string and a truth value are refused by the option's name."""
    with pytest.raises(ArgumentError, match=f"^{name}: expected a whole number of 1 or more"):
        Downpour(**{name: value})


@pytest.mark.parametrize("name", ["fetch_lag", "warm_start_steps"])
@pytest.mark.parametrize("value", [-1, 0.5, None])
def test_count_below_zero_is_refused(name: str, value: Any) -> None:
    """These may be zero, and no less."""
    with pytest.raises(ArgumentError, match=f"^{name}: expected a whole number of 0 or more"):
        Downpour(**{name: value})


@pytest.mark.parametrize("name", ["l2", "max_seconds"])
@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf, "0.1"])
def test_number_below_zero_is_refused(name: str, value: Any) -> None:
    """A negative number, NaN, infinity and a string are refused by the option's name."""
    with pytest.raises(ArgumentError, match=f"^{name}: expected a finite number of at least 0"):
        Downpour(**{name: value})


@pytest.mark.parametrize("rule", [None, 0.1, "adagrad", SGD])
def test_rule_must_be_one(rule: Any) -> None:
    """A rate, a name and a class are no rule."""
    with pytest.raises(ArgumentError, match=r"^rule: expected SGD, Momentum or Adagrad, got "):
        Downpour(rule=rule)


@pytest.mark.parametrize("rule", [SGD(0.1), Momentum(0.1)])
def test_rules_are_taken(rule: SGD | Momentum) -> None:
    """Each rule of the package."""
    assert Downpour(rule=rule).rule == rule


@pytest.mark.parametrize(("n_fetch", "fetch_lag"), [(1, 2), (3, 4), (1, 10)])
def test_fetch_lag_beyond_the_next_fetch_is_refused(n_fetch: int, fetch_lag: int) -> None:
    """A fetch must take effect before the one after the next is begun."""
    with pytest.raises(ArgumentError, match=f"^fetch_lag: {fetch_lag} is more than n_fetch={n_fetch}"):
        Downpour(n_fetch=n_fetch, fetch_lag=fetch_lag)


@pytest.mark.parametrize(("n_fetch", "fetch_lag"), [(1, 0), (1, 1), (3, 3)])
def test_fetch_lag_up_to_the_next_fetch_is_taken(n_fetch: int, fetch_lag: int) -> None:
    """From the base form, which waits, to as long as the next fetch."""
    assert Downpour(n_fetch=n_fetch, fetch_lag=fetch_lag).fetch_lag == fetch_lag


def test_options_cannot_be_changed() -> None:
    """A method can be given to several runs."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Downpour().epochs = 6  # type: ignore[misc]
    assert Downpour() == Downpour()
