"""Gradient descent: how far its first steps go."""

from __future__ import annotations

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
