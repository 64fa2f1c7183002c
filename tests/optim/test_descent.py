"""Gradient descent: how far its first steps go."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from dask_belief.optim.descent import GradientDescent
from dask_belief.optim.direction import Direction
from tests.optim.minimise import Vectors, minimise, quadratic


def after_a_pair(step, change, gradient):
    """A rule that was told of one step."""
    rule = GradientDescent()
    vectors = Vectors(g=np.array(gradient), s0=np.array(step), y0=np.array(change))
    vectors.update(rule, None)
    return rule, vectors.update(rule, 0)


def test_the_first_step_is_barzilai_and_borweins():
    """After a step with positive curvature it is s.s / s.y, whatever the gradient."""
    rule, update = after_a_pair([1.0, 2.0], [3.0, 1.0], [7.0, 0.0])
    assert (update.is_kept, update.curvature, rule.first_step()) == (True, 1.0, 1.0)
    rule, _ = after_a_pair([1e-3, 0.0], [0.1, 5.0], [7.0, 0.0])
    assert rule.first_step() == pytest.approx(0.01)


@pytest.mark.parametrize("change", [[-1.0, 0.0], [0.0, 3.0], [math.nan, 0.0], [math.inf, 0.0]])
def test_without_curvature_a_move_is_as_long_as_the_last(change):
    """Negative, zero or unknown curvature says nothing of the scale, but the last move does."""
    rule, update = after_a_pair([0.25, 0.0], change, [0.0, -5.0])
    assert not update.is_kept
    assert rule.first_step() == pytest.approx(0.05)
    rule.reset()
    assert rule.first_step() == pytest.approx(0.2)


def test_the_direction_never_changes():
    """Minus the gradient, with a pair and without, so that there is nothing to forget."""
    rule, _ = after_a_pair([1.0, 2.0], [3.0, 1.0], [7.0, 0.0])
    assert (rule.direction(), rule.slope(), rule.has_memory) == (Direction({"g": -1.0}), -49.0, False)


def test_on_a_parabola_it_takes_tens_of_steps_rather_than_hundreds():
    """At condition 100 fixed steps take more than 500 iterations to 1e-5 (seed 51)."""
    found = minimise(quadratic(30, 100, seed=51), np.zeros(30), rule=GradientDescent(), max_iter=400)
    assert np.abs(found.gradient).max() <= 1e-5


# What it knows, as JSON.

KNOWN = ("squared", "length", "curvature")


@pytest.mark.parametrize("number", [0.1 + 0.2, 5e-324, -0.0, 1e308, math.inf, -math.inf, math.nan])
def test_what_is_known_comes_back_bit_for_bit(number):
    """Through strict JSON, whatever the numbers are."""
    config = GradientDescent.from_config(dict.fromkeys(KNOWN, number)).to_config()
    again = GradientDescent.from_config(json.loads(json.dumps(config, allow_nan=False)))
    for name in KNOWN:
        found = getattr(again, f"_{name}")
        assert np.float64(found).tobytes() == np.float64(number).tobytes(), name


@pytest.mark.parametrize("slot", [None, 0])
def test_a_rule_that_comes_back_goes_on_alike(slot):
    """Before its first update, after it, and with a pair."""
    dots = {("g", "g"): 0.7, ("g", "s0"): -0.3, ("g", "y0"): 0.6, ("s0", "s0"): 0.9, ("s0", "y0"): 0.5}
    rule = GradientDescent()
    fresh = GradientDescent.from_config(json.loads(json.dumps(rule.to_config())))
    for each in (rule, fresh):
        each.update(None, {("g", "g"): 1.1})
        if slot is not None:
            each.update(slot, dots, step=0.5)
    again = GradientDescent.from_config(json.loads(json.dumps(rule.to_config())))
    for _ in range(2):
        found = [(each.direction(), each.slope(), each.first_step()) for each in (rule, fresh, again)]
        assert found[0] == found[1] == found[2]
        updates = [each.update(0, dots, step=0.25) for each in (rule, fresh, again)]
        assert updates[0] == updates[1] == updates[2]


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("other", ["nonsense", [], {}])
def test_what_describes_no_rule_is_refused(name, other):
    """A number that is none; and one that is missing."""
    config = GradientDescent().to_config()
    del config[name]
    with pytest.raises(KeyError):
        GradientDescent.from_config(config)
    with pytest.raises((TypeError, ValueError)):
        GradientDescent.from_config(config | {name: other})
