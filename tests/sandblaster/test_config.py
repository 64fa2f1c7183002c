"""The options of Sandblaster are checked when they are made."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from dask_belief.errors import ArgumentError
from dask_belief.optim.conjugate_gradient import ConjugateGradient
from dask_belief.optim.descent import GradientDescent
from dask_belief.optim.lbfgs import CurvatureMemory
from dask_belief.sandblaster.config import Sandblaster

COUNTS = ("max_iter", "history_size", "max_evaluations", "max_search_evaluations", "n_shards", "unit_rows")
NUMBERS = ("l2", "l1", "gtol", "ftol", "max_seconds", "backup_after")


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


@pytest.mark.parametrize("name", ["max_iter", "history_size", "l2", "l1", "gtol", "ftol", "c1"])
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


def test_scipys_names_are_taken() -> None:
    """Where an option differs from SciPy's by name only, both names mean the same."""
    theirs = Sandblaster(maxiter=7, maxfun=9, maxcor=3, maxls=5)
    assert theirs == Sandblaster(max_iter=7, max_evaluations=9, history_size=3, max_search_evaluations=5)
    assert dataclasses.replace(theirs, l2=0.5).max_iter == 7


def test_scipys_name_is_checked_under_ours() -> None:
    """What is wrong is told by the name of the option."""
    with pytest.raises(ArgumentError, match=r"^history_size: expected a whole number"):
        Sandblaster(maxcor=0)


def test_both_names_with_two_values_are_refused() -> None:
    """Nobody knows which was meant; the same value twice is no question."""
    with pytest.raises(ArgumentError, match=r"^maxiter: is max_iter by SciPy's name"):
        Sandblaster(max_iter=5, maxiter=6)
    assert Sandblaster(max_iter=5, maxiter=5).max_iter == 5


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, CurvatureMemory),
        ({"direction": "conjugate_gradient"}, ConjugateGradient),
        ({"direction": "gradient_descent"}, GradientDescent),
        ({"direction": GradientDescent}, GradientDescent),
    ],
)
def test_direction_is_made_anew_for_each_run(options: dict[str, Any], kind: type) -> None:
    """By name, or by a function of the user's."""
    method = Sandblaster(**options)
    assert isinstance(method.direction_rule(), kind)
    assert method.direction_rule() is not method.direction_rule()


def test_options_reach_the_curvature_memory() -> None:
    """History size, damping and the diagonal."""
    memory = Sandblaster(history_size=4, damping=True, first_hessian="adagrad").direction_rule()
    assert isinstance(memory, CurvatureMemory)
    assert (memory.history_size, memory.is_damped, memory.has_diagonal) == (4, True, True)


def test_what_makes_no_direction_rule_is_refused() -> None:
    """With what it made instead."""
    with pytest.raises(ArgumentError, match=r"^direction: .* it made a dict"):
        Sandblaster(direction=dict).direction_rule()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "newton"}, r"^direction: expected 'lbfgs'"),
        ({"first_hessian": "identity"}, r"^first_hessian: "),
        ({"damping": 1}, r"^damping: expected True or False"),
        ({"damping": True, "l1": 0.1}, r"^damping: does not go with l1"),
        ({"damping": True, "direction": "conjugate_gradient"}, r"^direction: damping and first_hessian are L-BFGS's"),
        ({"l1": 0.1, "direction": "conjugate_gradient"}, r"^direction: conjugate gradients do not go with l1"),
        ({"c1": 0.6}, r"^c1, c2: "),
        ({"c1": 0.2, "c2": 0.1}, r"^c1, c2: "),
        ({"c2": 1.0}, r"^c1, c2: "),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    """At once, by name."""
    with pytest.raises(ArgumentError, match=message):
        Sandblaster(**options)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "Sandblaster L-BFGS"),
        ({"l1": 0.1}, "Sandblaster OWL-QN"),
        ({"direction": "conjugate_gradient"}, "Sandblaster conjugate gradient"),
        ({"direction": GradientDescent}, "Sandblaster GradientDescent"),
    ],
)
def test_method_has_a_name(options: dict[str, Any], name: str) -> None:
    """For progress and results."""
    assert Sandblaster(**options).name == name
