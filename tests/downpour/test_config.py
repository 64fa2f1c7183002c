"""The options of Downpour are checked when they are made."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest

from dask_belief.downpour.config import Downpour
from dask_belief.errors import ArgumentError
from dask_belief.optim.rules import SGD, Adagrad, Momentum, Rule
from dask_belief.parameter_server.consistency import (
    ElasticAveraging,
    MaxStaleness,
    ScaleByStaleness,
    Staleness,
    Synchronous,
)

COUNTS = (
    "n_replicas",
    "n_shards",
    "batch_size",
    "n_fetch",
    "n_push",
    "epochs",
    "lease_rows",
    "validate_every_steps",
    "patience",
)
WAYS = [None, MaxStaleness(2), ScaleByStaleness(), Synchronous(1), ElasticAveraging(0.7)]


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -1, 1.5, "3", True])
def test_count_below_one_is_refused(name: str, value: Any) -> None:
    """Zero, a negative or broken number, a string and a truth value are refused by the option's name."""
    with pytest.raises(ArgumentError, match=f"^{name}: expected a whole number of 1 or more"):
        Downpour(**{name: value})


@pytest.mark.parametrize("name", ["fetch_lag", "warm_start_steps"])
@pytest.mark.parametrize("value", [-1, 0.5, "1"])
def test_count_below_zero_is_refused(name: str, value: Any) -> None:
    """These may be zero, and no less."""
    with pytest.raises(ArgumentError, match=f"^{name}: expected a whole number of 0 or more"):
        Downpour(**{name: value})


@pytest.mark.parametrize("name", ["l2", "weight_decay", "warm_start_seconds", "max_seconds"])
@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf, "0.1"])
def test_number_below_zero_is_refused(name: str, value: Any) -> None:
    """A negative number, NaN, infinity and a string are refused by the option's name."""
    with pytest.raises(ArgumentError, match=f"^{name}: expected a finite number of at least 0"):
        Downpour(**{name: value})


@pytest.mark.parametrize("name", ["clip_norm", "validate_every_seconds", "stalled_after_seconds"])
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "0.1"])
def test_number_that_is_not_above_zero_is_refused(name: str, value: Any) -> None:
    """These may not be zero either."""
    with pytest.raises(ArgumentError, match=f"^{name}: expected a finite number of more than 0"):
        Downpour(**{name: value})


@pytest.mark.parametrize("rule", [None, 0.1, "adagrad", SGD])
def test_rule_must_be_one(rule: Any) -> None:
    """A rate, a name and a class are no rule."""
    with pytest.raises(ArgumentError, match=r"^rule: expected SGD, Momentum, Nesterov, Adagrad, RMSProp or Adam, got "):
        Downpour(rule=rule)


@pytest.mark.parametrize("rule", [SGD(0.1), Momentum(0.1)])
def test_rules_are_taken(rule: SGD | Momentum) -> None:
    """Each rule of the package."""
    assert Downpour(rule=rule).rule == rule


@pytest.mark.parametrize("wire_dtype", ["float16", "float32", "uint16", 16, "", np.float32])
def test_wire_dtype_is_one_or_none(wire_dtype: Any) -> None:
    """Whatever else is refused, also what NumPy would know."""
    with pytest.raises(ArgumentError, match=r"^wire_dtype: expected None or 'bfloat16', got "):
        Downpour(wire_dtype=wire_dtype)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_wire_dtype_goes_with_every_way(way: Staleness | None) -> None:
    """And is told by the options' JSON."""
    method = Downpour(n_replicas=3, staleness=way, wire_dtype="bfloat16")
    assert Downpour.from_config(json.loads(json.dumps(method.to_config()))) == method


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


@pytest.mark.parametrize(
    ("options", "lag"),
    [({}, 1), ({"staleness": Synchronous()}, 0), ({"fetch_lag": 0}, 0), ({"staleness": MaxStaleness(1)}, 1)],
    ids=str,
)
def test_lag_follows_from_the_way(options: dict[str, Any], lag: int) -> None:
    """One mini-batch, none where rounds are waited for, or as given."""
    assert Downpour(**options).lag == lag


@pytest.mark.parametrize(("name", "value"), [("n_fetch", 2), ("n_push", 2), ("fetch_lag", 1)])
def test_synchronous_rounds_are_of_one_mini_batch(name: str, value: int) -> None:
    """Fetch and push belong to the round."""
    with pytest.raises(ArgumentError, match=f"^{name}: with Synchronous it must be"):
        Downpour(staleness=Synchronous(), **{name: value})


@pytest.mark.parametrize("backup_replicas", [2, 3])
def test_backup_replicas_must_leave_one_to_wait_for(backup_replicas: int) -> None:
    """Fewer than there are replicas, where their number is known."""
    with pytest.raises(ArgumentError, match=r"^staleness: .* backup replicas of 2 leave none"):
        Downpour(n_replicas=2, staleness=Synchronous(backup_replicas))
    assert Downpour(staleness=Synchronous(backup_replicas)).n_replicas is None


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "n_replicas"),
        ({"n_replicas": 2, "staleness": ElasticAveraging(2.0)}, "staleness"),
        ({"n_replicas": 2, "n_fetch": 3, "n_push": 2}, "n_fetch"),
    ],
    ids=str,
)
def test_elastic_averaging_needs_what_its_formula_needs(options: dict[str, Any], name: str) -> None:
    """The number of replicas, an elasticity below it, and one exchange for both ways."""
    with pytest.raises(ArgumentError, match=f"^{name}: "):
        Downpour(**{"staleness": ElasticAveraging(), **options})


def test_a_way_must_be_one() -> None:
    """Not its class, nor a number."""
    with pytest.raises(ArgumentError, match=r"^staleness: expected None, MaxStaleness"):
        Downpour(staleness=Synchronous)


@pytest.mark.parametrize("rule", [SGD(0.1), Momentum(0.1, 0.5), Adagrad(0.3)], ids=str)
@pytest.mark.parametrize("staleness", WAYS, ids=str)
def test_options_come_back_from_their_config(rule: Rule, staleness: Staleness | None) -> None:
    """Through JSON, with rule and way."""
    method = Downpour(n_replicas=2, rule=rule, staleness=staleness, clip_norm=2.0, weight_decay=0.1, patience=3)
    assert Downpour.from_config(json.loads(json.dumps(method.to_config()))) == method


def test_unknown_option_in_a_config_is_refused() -> None:
    """It is named, as one of those given."""
    with pytest.raises(ArgumentError, match=r"^config: Downpour cannot be made with .*'n_workers'"):
        Downpour.from_config(Downpour().to_config() | {"n_workers": 3})
