"""Nonlinear conjugate gradients against the linear method, the formulas on vectors, and its restarts."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.optimize

from dask_belief.errors import ArgumentError
from dask_belief.optim.conjugate_gradient import ConjugateGradient
from tests.optim.minimise import Vectors, minimise, problems


def begun(gradient):
    """A rule that was told a first gradient, and the vectors."""
    rule, vectors = ConjugateGradient(), Vectors(g=np.array(gradient, float))
    vectors.update(rule, None)
    return rule, vectors


def moved(rule, vectors, step, gradient):
    """The update by a step along the rule's direction, to a point with that gradient."""
    vectors.named["s0"] = step * vectors.along(rule.direction())
    vectors.named["y0"] = np.array(gradient, float) - vectors.named["g"]
    vectors.named["g"] = np.array(gradient, float)
    return vectors.update(rule, 0, step)


def test_on_a_parabola_it_is_the_linear_method():
    """With exact searches the directions are conjugate, and n steps reach the minimum (seed 52)."""
    generator = np.random.default_rng(52)
    root = generator.standard_normal((8, 8))
    hessian = root @ root.T + np.eye(8)
    gradient = generator.standard_normal(8)
    rule, vectors = begun(gradient)
    directions: list[np.ndarray] = []
    for iteration in range(8):
        direction = vectors.along(rule.direction())
        step = -float(vectors.named["g"] @ direction) / float(direction @ hessian @ direction)
        for earlier in directions:
            assert abs(direction @ hessian @ earlier) <= 1e-8 * np.linalg.norm(direction) * np.linalg.norm(earlier)
        directions.append(direction)
        update = moved(rule, vectors, step, vectors.named["g"] + step * hessian @ direction)
        assert update.is_kept or iteration == 7
        assert update.curvature == pytest.approx((direction @ hessian @ direction) / (direction @ direction))
    assert np.abs(vectors.named["g"]).max() <= 1e-8 * np.abs(gradient).max()


def test_the_direction_is_polak_and_ribieres():
    """Two steps with gradients nearly orthogonal: d = -g + beta d_old by the formula on vectors."""
    gradients = [np.array(each, float) for each in ([3.0, 0.0, 1.0], [0.2, 2.0, 0.1], [-0.1, 0.1, 1.5])]
    rule, vectors = begun(gradients[0])
    direction = -gradients[0]
    for old, new in pairwise(gradients):
        moved(rule, vectors, 0.7, new)
        direction = -new + (new @ (new - old)) / (old @ old) * direction
        np.testing.assert_allclose(vectors.along(rule.direction()), direction, rtol=1e-12)


def test_a_negative_beta_is_zero():
    """Polak-Ribiere+: where a gradient has become smaller in the same direction, go on from steepest descent."""
    rule, vectors = begun([1.0, 0.0])
    update = moved(rule, vectors, 1.0, [0.15, 0.0])
    assert not update.is_kept and not rule.has_memory


@pytest.mark.parametrize(("share", "goes_on"), [(0.19, True), (0.21, False), (-0.19, True), (-0.21, False)])
def test_gradients_far_from_orthogonal_start_again(share, goes_on):
    """Powell's test at a fifth, on both sides."""
    rule, vectors = begun([4 * share, 10.0])
    gradient = [4.0, 0.0]
    assert moved(rule, vectors, 1.0, gradient).is_kept is goes_on
    assert rule.has_memory is goes_on


def test_a_direction_that_would_not_descend_starts_again():
    """A step that ended too steep, as searches that fail half way do, gives way to steepest descent."""
    rule, vectors = begun([1.0, 0.0])
    # Not orthogonal to the last direction at all, yet nearly so to the last gradient: the step was no step along d.
    vectors.named |= {"s0": np.array([0.0, 1.0]), "y0": np.array([-1.0, 2.0]), "g": np.array([0.0, 2.0])}
    assert not vectors.update(rule, 0, 1.0).is_kept
    assert rule.slope() == -4.0


def test_the_first_step_promises_the_last_decrease():
    """It is step * slope_old / slope (3.60), as long as the move is less than four times the last."""
    rule, vectors = begun([2.0, 0.0])
    moved(rule, vectors, 0.5, [0.0, 1.0])
    slope = float(vectors.named["g"] @ vectors.along(rule.direction()))
    assert rule.slope() == pytest.approx(slope)
    assert rule.first_step() == pytest.approx(0.5 * -4.0 / slope)


def test_the_first_move_is_at_most_four_times_the_last():
    """A gradient that has all but vanished does not send the first trial to the other side of the world."""
    rule, vectors = begun([2.0, 0.0])
    moved(rule, vectors, 0.5, [0.0, 1e-6])
    move = rule.first_step() * vectors.along(rule.direction())
    assert np.linalg.norm(move) == pytest.approx(4 * 1.0)


def test_the_step_must_be_told():
    """Without it the last direction is not known."""
    rule, vectors = begun([1.0, 0.0])
    vectors.named |= {"s0": np.ones(2), "y0": np.ones(2)}
    for step in (math.nan, 0.0, -1.0, math.inf):
        with pytest.raises(ArgumentError, match=r"^step"):
            vectors.update(rule, 0, step)


@pytest.mark.parametrize("name", problems())
def test_whole_runs_cost_no_more_than_scipys(name):
    """On each problem to 1e-5 at most the evaluations of SciPy's method of the same name."""
    objective, start = problems()[name]
    found = minimise(objective, start, rule=ConjugateGradient(), max_iter=5000)
    scipys = scipy.optimize.minimize(objective, start, jac=True, method="CG", options={"gtol": 1e-5, "maxiter": 10_000})
    assert np.abs(found.gradient).max() <= 1e-5
    assert found.evaluations <= scipys.nfev


# What it knows, as JSON.

KNOWN = ("squared", "of_step", "slope", "first_step")


@pytest.mark.parametrize("number", [0.1 + 0.2, 5e-324, -0.0, 1e308, math.inf, -math.inf, math.nan])
def test_what_is_known_comes_back_bit_for_bit(number):
    """Through strict JSON, whatever the numbers are."""
    config = ConjugateGradient.from_config(dict.fromkeys(KNOWN, number)).to_config()
    again = ConjugateGradient.from_config(json.loads(json.dumps(config, allow_nan=False)))
    for name in KNOWN:
        found = getattr(again, f"_{name}")
        assert np.float64(found).tobytes() == np.float64(number).tobytes(), name


@pytest.mark.parametrize("slot", [None, 0])
def test_a_rule_that_comes_back_goes_on_alike(slot):
    """Before its first update, after it, and with a pair."""
    dots = {("g", "g"): 0.7, ("g", "s0"): -0.3, ("g", "y0"): 0.6, ("s0", "s0"): 0.9, ("s0", "y0"): 0.5}
    rule = ConjugateGradient()
    fresh = ConjugateGradient.from_config(json.loads(json.dumps(rule.to_config())))
    for each in (rule, fresh):
        each.update(None, {("g", "g"): 1.1})
        if slot is not None:
            each.update(slot, dots, step=0.5)
    again = ConjugateGradient.from_config(json.loads(json.dumps(rule.to_config())))
    for _ in range(2):
        found = [(each.direction(), each.slope(), each.first_step()) for each in (rule, fresh, again)]
        assert found[0] == found[1] == found[2]
        updates = [each.update(0, dots, step=0.25) for each in (rule, fresh, again)]
        assert updates[0] == updates[1] == updates[2]


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("other", ["nonsense", [], {}])
def test_what_describes_no_rule_is_refused(name, other):
    """A number that is none; and one that is missing."""
    config = ConjugateGradient().to_config()
    del config[name]
    with pytest.raises(KeyError):
        ConjugateGradient.from_config(config)
    with pytest.raises((TypeError, ValueError)):
        ConjugateGradient.from_config(config | {name: other})
