"""The closed set of reasons to stop, and the decision after an iteration."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from dask_belief.errors import ArgumentError
from dask_belief.optim.stopping import (
    Criteria,
    Stop,
    StopReason,
    check_iteration,
    number_from_json,
    number_to_json,
)

GOING_ON: dict[str, Any] = {
    "iteration": 5,
    "evaluations": 7,
    "seconds": 3.0,
    "loss": 0.5,
    "previous_loss": 0.6,
    "gradient_norm": 0.1,
}
CRITERIA = Criteria(gtol=1e-5, ftol=1e-9, max_iter=100, max_evaluations=200, max_seconds=60.0)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"gradient_norm": 1e-5}, StopReason.GRADIENT_SMALL),
        ({"gradient_norm": 0.0, "previous_loss": None}, StopReason.GRADIENT_SMALL),
        ({"loss": 0.6 - 5e-10}, StopReason.DECREASE_SMALL),
        ({"loss": 0.6}, StopReason.DECREASE_SMALL),
        ({"loss": 0.6 + 1e-3}, StopReason.DECREASE_SMALL),
        ({"loss": 1e6 - 5e-4, "previous_loss": 1e6}, StopReason.DECREASE_SMALL),
        ({"iteration": 100}, StopReason.MAX_ITERATIONS),
        ({"evaluations": 201}, StopReason.MAX_EVALUATIONS),
        ({"seconds": 60.0}, StopReason.MAX_SECONDS),
        ({"loss": math.nan}, StopReason.NOT_FINITE),
        ({"loss": -math.inf}, StopReason.NOT_FINITE),
        ({"gradient_norm": math.nan}, StopReason.NOT_FINITE),
    ],
)
def test_each_criterion_stops_at_its_limit(facts, reason):
    """Each limit alone, exactly reached, gives its own reason."""
    stop = check_iteration(CRITERIA, **{**GOING_ON, **facts})
    assert stop is not None and stop.reason is reason


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"gradient_norm": 1.01e-5},
        {"loss": 0.6 - 2e-9},
        {"previous_loss": None, "iteration": 0},
        {"iteration": 99, "evaluations": 199, "seconds": 59.9},
    ],
)
def test_short_of_every_limit_it_goes_on(facts):
    """Just before the limits, and before the first iteration, there is no reason to stop."""
    assert check_iteration(CRITERIA, **{**GOING_ON, **facts}) is None


def test_no_limit_is_no_limit():
    """None for a limit never stops, and zero for a tolerance stops on no decrease only."""
    criteria = Criteria(gtol=0.0, ftol=0.0, max_iter=None)
    facts = GOING_ON | {"iteration": 10**9, "evaluations": 10**9, "seconds": 1e9, "loss": 0.6 - 1e-15}
    assert check_iteration(criteria, **facts) is None


def test_good_reasons_come_before_limits():
    """A run that converges at its last iteration says that it converged."""
    stop = check_iteration(CRITERIA, **GOING_ON | {"iteration": 100, "gradient_norm": 1e-6, "loss": 0.6})
    assert stop == Stop(StopReason.GRADIENT_SMALL, {"gradient_norm": 1e-6, "gtol": 1e-5})


@pytest.mark.parametrize("reason", list(StopReason))
def test_every_reason_says_what_it_means_and_what_to_do(reason):
    """One line of text with the numbers, one sentence of advice, and the way through JSON and back."""
    stop = Stop(reason, {"loss": 0.125, "step": math.nan, "limit": math.inf})
    assert "loss=0.125" in str(stop) and "\n" not in str(stop)
    assert str(Stop(reason)) and "(" not in str(Stop(reason))
    assert stop.advice.endswith(".")
    again = Stop.from_config(json.loads(json.dumps(stop.to_config(), allow_nan=False)))
    assert again.reason is reason
    assert str(again) == str(stop)


def test_not_finite_names_the_rows_where_it_arose():
    """With unit and rows among the numbers, the advice is to look there, and all digits of a row are written."""
    where = {"loss": math.nan, "unit": 1041.0, "first_row": 12345000.0, "last_row": 12345999.0}
    stop = Stop(StopReason.NOT_FINITE, where)
    assert "huge values in rows 12345000 to 12345999 (unit 1041)" in stop.advice
    assert "first_row=12345000" in str(stop)
    assert "in the data" in Stop(StopReason.NOT_FINITE, {"loss": math.nan}).advice


def test_rounding_tells_the_noise():
    """The estimate of the noise is among the numbers of the line."""
    stop = Stop(StopReason.LINE_SEARCH_ROUNDING, {"loss": 0.25, "noise": 3.1e-9})
    assert "noise=3.1e-09" in str(stop)


def test_converged_are_those_where_nothing_is_left_to_gain():
    """A small gradient, a small decrease and rounding count as converged, the other reasons do not."""
    converged = {reason for reason in StopReason if Stop(reason).converged}
    assert converged == {StopReason.GRADIENT_SMALL, StopReason.DECREASE_SMALL, StopReason.LINE_SEARCH_ROUNDING}


def test_an_unknown_reason_is_refused():
    """The message lists the reasons there are."""
    with pytest.raises(ArgumentError, match=r"gradient_small.*got 'bored'"):
        Stop.from_config({"reason": "bored", "numbers": {}})


@pytest.mark.parametrize("number", [0.0, -1.5, 7, 1e-300, math.inf, -math.inf])
def test_numbers_pass_through_strict_json(number):
    """Infinity too, for which JSON has no word of its own."""
    assert number_from_json(json.loads(json.dumps(number_to_json(number), allow_nan=False))) == number


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gtol", -1e-5),
        ("gtol", math.nan),
        ("ftol", -1.0),
        ("max_iter", -1),
        ("max_iter", 2.5),
        ("max_evaluations", -1),
        ("max_seconds", -0.1),
    ],
)
def test_bad_criteria_are_refused_by_name(name, value):
    """Each limit out of its range is named in the error."""
    with pytest.raises(ArgumentError, match=f"^{name}"):
        Criteria(**{name: value})
