"""The search along a projected path: what it takes, how it shrinks, how it ends; and whole runs with an L1 penalty."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize

from dask_belief.errors import ArgumentError
from dask_belief.optim.backtracking import Backtracking, ProjectedSearch
from dask_belief.optim.descent import GradientDescent
from dask_belief.optim.line_search import Outcome
from tests.optim.minimise import correlated_regression, minimise_l1, problems, quadratic


def run(function, options=None, first_step=1.0, slope=-1.0):
    """Search along a function of the step that returns value and promise; the steps tried come with the search."""
    search = Backtracking(options or ProjectedSearch(), function(0.0)[0], slope, first_step)
    steps = []
    while not search.done:
        steps.append(search.step)
        search.tell(*function(search.step))
    return search, steps


def parabola(minimum, start=0.0):
    """``start + (t - minimum)**2 - minimum**2``, with the promise that its slope at 0 makes."""
    return lambda t: (start + (t - minimum) ** 2 - minimum**2, -2 * minimum * t)


def test_a_sufficient_decrease_is_taken_at_once():
    """One evaluation, and the ratios tell what was promised and kept."""
    search, steps = run(parabola(0.8))
    assert (steps, search.outcome, search.best_step) == ([1.0], Outcome.DECREASE, 1.0)
    assert search.succeeded
    assert search.best_value == pytest.approx(-0.6)
    assert search.decrease_ratio == pytest.approx(0.6 / 1.6)
    assert math.isnan(search.slope_ratio)


def test_a_shorter_step_is_the_minimum_of_the_parabola():
    """Where the values are those of a parabola, the second trial is its minimum, if that is within the limits."""
    search, steps = run(parabola(0.3))
    assert steps == pytest.approx([1.0, 0.3])
    assert search.outcome is Outcome.DECREASE


@pytest.mark.parametrize(("minimum", "second"), [(0.01, 0.1), (0.4999, 0.4999), (1e-6, 0.1)])
def test_shrinking_keeps_to_its_limits(minimum, second):
    """No step is less than a tenth of the one before it."""
    _, steps = run(parabola(minimum))
    assert steps[1] == pytest.approx(second)


def test_no_step_is_more_than_half_of_the_one_before():
    """A value only just too high, with a c1 that asks for nearly all of the promise, halves the step."""
    _, steps = run(parabola(10.0), ProjectedSearch(c1=0.99, max_evaluations=4), first_step=4.0)
    assert steps == [4.0, 2.0, 1.0, 0.5]


@pytest.mark.parametrize("c1", [1e-4, 0.3, 0.9])
@pytest.mark.parametrize("minimum", [1e-5, 0.02, 0.4, 3.0])
def test_whatever_is_taken_has_sufficient_decrease(c1, minimum):
    """f(t) <= f(0) + c1 * promise holds at the best step, and at no trial before it."""
    search, steps = run(parabola(minimum), ProjectedSearch(c1=c1))
    holds = [parabola(minimum)(t)[0] <= c1 * parabola(minimum)(t)[1] for t in steps]
    assert search.outcome is Outcome.DECREASE
    assert holds == [False] * (len(steps) - 1) + [True]
    assert search.best_step == steps[-1] == search.step


def test_values_that_are_not_finite_are_backed_away_from():
    """NaN and infinity shrink the step to a tenth, until there is a value."""
    search, steps = run(lambda t: parabola(0.02)(t) if t < 0.05 else (math.nan, -t))
    assert steps == pytest.approx([1.0, 0.1, 0.01])
    assert search.outcome is Outcome.DECREASE
    search, steps = run(lambda t: (0.0, 0.0) if t == 0 else (math.inf, -t), ProjectedSearch(max_evaluations=4))
    assert (search.outcome, search.best_step, len(steps)) == (Outcome.NOT_FINITE, 0.0, 4)


@pytest.mark.parametrize(
    ("value", "slope", "outcome"),
    [
        (math.nan, -1.0, Outcome.NOT_FINITE),
        (1.0, math.nan, Outcome.NOT_FINITE),
        (1.0, 0.0, Outcome.NO_DESCENT),
        (1.0, 1e-300, Outcome.NO_DESCENT),
    ],
)
def test_without_descent_no_value_is_asked_for(value, slope, outcome):
    """A start that is not finite or a direction that does not go down ends before any evaluation."""
    search = Backtracking(ProjectedSearch(), value, slope)
    assert (search.outcome, search.evaluations, search.step, search.succeeded) == (outcome, 0, 0.0, False)


def test_a_move_of_nothing_ends_the_search():
    """Where all of the move was held back, shorter steps would move nothing either."""
    search, steps = run(lambda t: (1.0, 0.0))
    assert (search.outcome, len(steps)) == (Outcome.NO_DESCENT, 1)


def test_a_promise_that_vanishes_on_the_way_is_no_descent_that_fails():
    """Steps too short to change a number end the search, and it is not said that the direction goes up."""
    search, _ = run(lambda t: (2.0, -t) if t > 0.1 else (1.0, 0.0))
    assert search.outcome is Outcome.INTERVAL_SMALL
    assert not search.succeeded


def test_a_promise_of_ascent_shortens_the_step():
    """Where the projection held back what descends, a shorter step does not: it is found."""
    search, steps = run(lambda t: (-t, -t) if t < 0.2 else (-t, t))
    assert steps == pytest.approx([1.0, 0.1])
    assert search.outcome is Outcome.DECREASE
    search, steps = run(lambda t: (-t, t), ProjectedSearch(max_evaluations=3))
    assert (search.outcome, len(steps)) == (Outcome.NO_DESCENT, 3)


def test_the_evaluations_are_limited():
    """A function that only rises, whatever was promised, ends at the limit without a step."""
    search, steps = run(lambda t: (1.0 + t, -t), ProjectedSearch(max_evaluations=6))
    assert (search.outcome, search.best_step, search.best_value, len(steps)) == (Outcome.MAX_EVALUATIONS, 0.0, 1.0, 6)
    assert math.isnan(search.decrease_ratio)


@pytest.mark.parametrize("change", [0.0, 3e-9, 9e-9])
def test_below_rounding_a_rise_costs_one_evaluation(change):
    """A promise and a change within the noise end the search as rounding, and the change is the noise seen."""
    search, steps = run(lambda t: (1.0 + (change if t else 0.0), -1e-9 * t), ProjectedSearch(relative_noise=1e-8))
    assert (search.outcome, search.best_step, len(steps)) == (Outcome.ROUNDING, 0.0, 1)
    assert search.noise == pytest.approx(change)


def test_below_rounding_a_lower_value_is_taken():
    """It meets the condition like any other; a run of such steps ends, since each is lower than the last."""
    search, steps = run(lambda t: (1.0 - (1e-9 if t else 0.0), -1e-9 * t), ProjectedSearch(relative_noise=1e-8))
    assert (search.outcome, search.best_step, len(steps)) == (Outcome.DECREASE, 1.0, 1)


def test_an_equal_value_is_no_decrease():
    """A promise that vanishes beside the value does not make a success of no change at all."""
    search, _ = run(lambda t: (1.0, -1e-30 * t), ProjectedSearch(relative_noise=0.0, max_evaluations=5))
    assert not search.succeeded


def test_a_promise_just_above_rounding_costs_few_evaluations():
    """Ten times the noise allowed, on a plateau: the step shrinks until the promise is within it, then ends."""
    search, steps = run(lambda t: (1.0 + (2e-9 if t else 0.0), -1e-7 * t), ProjectedSearch(relative_noise=1e-8))
    assert search.outcome is Outcome.ROUNDING
    assert len(steps) <= 5


def test_without_a_sample_the_noise_is_what_is_allowed():
    """No trial was so short that its change was rounding alone."""
    search, _ = run(parabola(0.8, start=3.0), ProjectedSearch(relative_noise=1e-8))
    assert search.noise == pytest.approx(3e-8)


def test_a_search_that_has_ended_takes_no_more():
    """A value told too much is an error that names the outcome."""
    search, _ = run(parabola(0.8))
    with pytest.raises(ArgumentError, match="decrease"):
        search.tell(0.0, 0.0)


@pytest.mark.parametrize("first_step", [0.0, -1.0, math.nan, math.inf])
def test_a_bad_first_step_is_refused(first_step):
    """The first step must be positive and finite."""
    with pytest.raises(ArgumentError, match=r"^first_step"):
        Backtracking(ProjectedSearch(), 1.0, -1.0, first_step)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("c1", 0.0),
        ("c1", 1.0),
        ("c1", math.nan),
        ("shrink_least", 0.0),
        ("shrink_least", 1.0),
        ("shrink_most", 0.05),
        ("shrink_most", 1.0),
        ("max_evaluations", 0),
        ("relative_noise", -1e-9),
    ],
)
def test_bad_options_are_refused_by_name(name, value):
    """Each option out of its range is named in the error."""
    with pytest.raises(ArgumentError, match=f"^{name}"):
        ProjectedSearch(**{name: value})


def split_minimum(objective, n, l1):
    """SciPy's minimum with the parameters split into two parts that are not negative."""

    def split(parts):
        value, gradient = objective(parts[:n] - parts[n:])
        return value + l1 @ (parts[:n] + parts[n:]), np.concatenate([gradient + l1, l1 - gradient])

    options = {"maxcor": 20, "gtol": 1e-10, "ftol": 1e-16, "maxiter": 50_000, "maxfun": 100_000}
    found = scipy.optimize.minimize(
        split, np.zeros(2 * n), jac=True, method="L-BFGS-B", bounds=[(0, None)] * (2 * n), options=options
    )
    return found.fun, found.x[:n] - found.x[n:]


@pytest.mark.parametrize("weight", [1e-3, 1e-2, 1e-1])
@pytest.mark.parametrize("name", ["quadratic-30", "logistic-20", "logistic-100"])
@pytest.mark.parametrize("aligned", ["everywhere", "at zero"])
def test_with_an_l1_penalty_runs_end_where_scipy_ends(name, weight, aligned):
    """The loss is SciPy's to 1e-6, and the same parameters are at zero; the first three are not penalised."""
    objective, start = problems()[name]
    l1 = np.full(len(start), weight)
    l1[:3] = 0.0
    found = minimise_l1(objective, start, l1, gtol=1e-6, max_iter=3000, aligned=aligned)
    value, point = split_minimum(objective, len(start), l1)
    assert found.value == pytest.approx(value, rel=1e-6, abs=1e-9)
    np.testing.assert_array_equal(found.point != 0, (np.abs(point) > 1e-6) | (l1 == 0))
    at_zero = found.point == 0
    assert np.all(np.abs(objective(found.point)[1][at_zero]) <= l1[at_zero] + 1e-6)


def test_alignment_at_zero_alone_spares_most_of_the_evaluations():
    """On correlated inputs a direction aligned everywhere is no quasi-Newton direction any more (seed 53)."""
    objective = correlated_regression(300, 60, 0.9, seed=53)
    l1 = np.full(60, 1e-3)
    runs = {
        aligned: minimise_l1(objective, np.zeros(60), l1, gtol=1e-6, max_iter=5000, aligned=aligned)
        for aligned in ("everywhere", "at zero")
    }
    assert runs["at zero"].value == pytest.approx(runs["everywhere"].value, rel=1e-6)
    assert runs["at zero"].evaluations <= 0.5 * runs["everywhere"].evaluations


def test_a_penalty_that_is_too_large_leaves_nothing():
    """Above the largest gradient at zero all parameters stay at exactly zero, and nothing is searched."""
    objective, start = problems()["logistic-20"]
    l1 = np.full(20, 1.01 * np.abs(objective(start)[1]).max())
    found = minimise_l1(objective, start, l1)
    assert (found.evaluations, found.iterations) == (1, 0)
    found = minimise_l1(objective, start + 0.1, l1, rule=GradientDescent(), gtol=1e-8)
    assert not found.point.any()


def test_in_float32_a_run_ends_at_rounding_without_long_searches():
    """With values rounded to 1e-7 a run ends by itself, and its searches cost little (seed 54)."""
    smooth = quadratic(30, 100, seed=54)

    def objective(x):
        value, gradient = smooth(x)
        return float(np.float32(value)), gradient

    found = minimise_l1(
        objective, np.zeros(30), np.full(30, 0.05), gtol=0.0, options=ProjectedSearch(relative_noise=1e-7)
    )
    exact = minimise_l1(smooth, np.zeros(30), np.full(30, 0.05), gtol=1e-9)
    assert found.outcome is Outcome.ROUNDING
    assert found.value == pytest.approx(exact.value, rel=1e-6)
    assert found.evaluations <= 2 * found.iterations + 20
