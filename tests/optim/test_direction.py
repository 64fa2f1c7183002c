"""What every rule owes to its caller, whichever it is, and what passes between the two."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from dask_belief.errors import ArgumentError, NonFiniteError
from dask_belief.optim.conjugate_gradient import ConjugateGradient
from dask_belief.optim.descent import GradientDescent
from dask_belief.optim.direction import (
    Direction,
    DirectionRule,
    Update,
    curvature_of,
    exact_sum,
    find_product,
    product_key,
)
from dask_belief.optim.lbfgs import CurvatureMemory
from dask_belief.optim.line_search import Outcome
from tests.optim.minimise import Vectors, minimise, minimise_l1, problems

RULES: dict[str, Callable[[], DirectionRule]] = {
    "lbfgs": CurvatureMemory,
    "lbfgs-3": lambda: CurvatureMemory(3),
    "lbfgs-damped": lambda: CurvatureMemory(is_damped=True),
    "lbfgs-diagonal": lambda: CurvatureMemory(has_diagonal=True),
    "lbfgs-diagonal-damped": lambda: CurvatureMemory(has_diagonal=True, is_damped=True),
    "conjugate-gradient": ConjugateGradient,
    "descent": GradientDescent,
}


@pytest.fixture(params=RULES.values(), ids=list(RULES))
def rule(request: pytest.FixtureRequest) -> DirectionRule:
    """Each of the rules."""
    made: DirectionRule = request.param()
    return made


def diagonal_for(n, seed=41):
    return np.random.default_rng(seed).uniform(0.3, 3, n)


def begun(rule, gradient):
    """The vectors of a run whose rule was told a first gradient."""
    vectors = Vectors(g=gradient, h0=diagonal_for(len(gradient)))
    vectors.update(rule, None)
    return vectors


def walked(rule, iterations=5, seed=42):
    """The vectors of a run after some steps of an exact search on a parabola."""
    generator = np.random.default_rng(seed)
    scales = np.geomspace(1, 30, 20)
    point = generator.standard_normal(20)
    vectors = begun(rule, scales * point)
    for _ in range(iterations):
        direction = vectors.along(rule.direction())
        step = -float(vectors.named["g"] @ direction) / float(direction @ (scales * direction))
        slot = rule.free_slot()
        vectors.named |= {f"s{slot}": step * direction, f"y{slot}": scales * (step * direction)}
        vectors.named["g"] = vectors.named["g"] + vectors.named[f"y{slot}"]
        vectors.update(rule, slot, step)
    return vectors


@pytest.mark.parametrize("problem", problems())
@pytest.mark.parametrize("name", RULES)
def test_every_rule_comes_down_on_every_problem(name, problem):
    """Each rule ends at a small gradient; gradient descent does so where that takes it less than a thousand steps."""
    objective, start = problems()[problem]
    is_slow = name == "descent" and problem != "logistic-20"
    max_iter = 500 if is_slow else 5000
    found = minimise(objective, start, rule=RULES[name](), max_iter=max_iter, diagonal=diagonal_for(len(start)))
    assert found.value < objective(start)[0]
    assert np.abs(found.gradient).max() <= 1e-5 or is_slow


def test_products_are_asked_for_once(rule):
    """With a pair and without, at the start and after some steps, no product comes twice in either order."""
    walked(rule)
    for products in (rule.products(None), rule.products(rule.free_slot())):
        assert products[0] == ("g", "g")
        assert len({product_key(product) for product in products}) == len(products)
    assert set(rule.products(None)) <= set(rule.products(rule.free_slot()))


def test_the_slope_is_that_of_the_direction(rule):
    """From products alone the rule gives what the vectors give, and it goes down (seed 42)."""
    for make in (lambda rule: begun(rule, np.linspace(-1, 2, 20)), walked):
        vectors = make(rule)
        direction = vectors.along(rule.direction())
        assert rule.slope() == pytest.approx(vectors.named["g"] @ direction, rel=1e-9)
        assert rule.slope() < 0
        assert 0 < rule.first_step() < math.inf


def test_reset_leaves_steepest_descent_and_no_memory(rule):
    """After reset the direction is as if there had been no pair, and first moves promise the gradient's length."""
    vectors = walked(rule)
    before = vectors.along(rule.direction())
    has_memory = rule.has_memory
    rule.reset()
    after = vectors.along(rule.direction())
    assert has_memory == (not np.array_equal(before, after))
    assert not rule.has_memory
    assert {*rule.direction().terms, *rule.direction().scaled_terms} == {"g"}
    assert rule.slope() == pytest.approx(vectors.named["g"] @ after)
    assert rule.first_step() * -rule.slope() == pytest.approx(np.linalg.norm(vectors.named["g"]))


def test_a_gradient_that_is_not_finite_is_an_error_and_changes_nothing(rule):
    """The direction of the last point survives a NaN gradient, with a pair and without."""
    walked(rule)
    before = rule.direction(), rule.slope(), rule.first_step()
    for slot in (None, rule.free_slot()):
        dots = dict.fromkeys(rule.products(slot), 1.0) | {("g", "g"): math.nan}
        with pytest.raises(NonFiniteError, match="g and g is nan"):
            rule.update(slot, dots, 1.0)
    assert (rule.direction(), rule.slope(), rule.first_step()) == before


@pytest.mark.parametrize("broken", [math.nan, math.inf, 0.0])
def test_a_pair_that_tells_nothing_leaves_a_direction_of_descent(rule, broken):
    """Products of a pair that are not finite, or all zero, never reach the direction or the first step."""
    begun(rule, np.ones(20))
    dots = dict.fromkeys(rule.products(0), broken) | dict.fromkeys(rule.products(None), 4.0)
    rule.update(0, dots, 1.0)
    assert rule.slope() == -4.0
    assert not rule.has_memory
    assert 0 < rule.first_step() < math.inf


def test_a_missing_product_is_named(rule):
    """Whoever forgets a product is told which, and by whom it was asked for."""
    with pytest.raises(ArgumentError, match=r"dots: the product of g and g is missing.*products\(\)"):
        rule.update(None, {})


@pytest.mark.parametrize("name", RULES)
def test_there_is_no_direction_before_a_gradient(name):
    """A slope that is asked for too early is an error."""
    with pytest.raises(ArgumentError, match=r"^dots"):
        RULES[name]().slope()


def test_at_a_zero_gradient_the_first_step_is_still_a_step(rule):
    """A point where nothing is left to do makes no division by zero."""
    begun(rule, np.zeros(20))
    assert rule.slope() == 0.0
    assert rule.first_step() == 1.0


def test_every_rule_is_of_the_protocol(rule):
    """What a user passes can be told apart from what has none of the methods."""
    assert isinstance(rule, DirectionRule)
    assert 0 < rule.c2 < 1
    assert not isinstance(object(), DirectionRule)


@pytest.mark.parametrize("name", ["lbfgs", "lbfgs-3", "descent"])
@pytest.mark.parametrize("problem", ["logistic-20", "logistic-100"])
def test_rules_that_suit_a_projected_search_agree_on_the_minimum(name, problem):
    """With an L1 penalty L-BFGS and gradient descent end at the same loss, with the same parameters at zero."""
    objective, start = problems()[problem]
    l1 = np.full(len(start), 3e-2)
    found = minimise_l1(objective, start, l1, rule=RULES[name](), gtol=1e-7, max_iter=20000)
    reference = minimise_l1(objective, start, l1, gtol=1e-9)
    assert found.outcome in (None, Outcome.ROUNDING)
    assert found.value == pytest.approx(reference.value, rel=1e-9)
    np.testing.assert_array_equal(found.point == 0, reference.point == 0)


def test_a_direction_needs_a_term():
    """No term at all, or the diagonal as one, is refused."""
    for terms in ({}, {"h0": 1.0}):
        with pytest.raises(ArgumentError, match=r"^terms"):
            Direction(terms)
    assert Direction({}, {"g": -1.0}).scaled_terms == {"g": -1.0}


def test_a_pair_that_is_not_kept_is_not_changed():
    """An update that contradicts itself is refused."""
    with pytest.raises(ArgumentError, match=r"^change"):
        Update(False, 1.0, {"y0": 1.0})


def test_products_are_found_under_any_order_of_names():
    """Two names or three, as they were asked for or not."""
    dots = {("g", "s0"): 1.0, ("y1", "h0", "g"): 2.0}
    assert find_product(dots, "s0", "g") == find_product(dots, "g", "s0") == 1.0
    assert find_product(dots, "g", "h0", "y1") == 2.0


def test_sums_of_scalars_are_exact_or_not_a_number():
    """No order of terms matters, and an overflow is NaN, not an exception."""
    assert exact_sum([1e100, 1.0, -1e100]) == 1.0
    assert math.isnan(exact_sum([math.inf, -math.inf]))
    assert math.isnan(exact_sum([1.7e308, 1.7e308]))


def test_the_curvature_of_no_step_is_not_a_number():
    """A step of length zero has none."""
    assert curvature_of(2.0, 3.0) == 1.5
    assert math.isnan(curvature_of(0.0, 0.0))
