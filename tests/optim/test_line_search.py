"""The line search on the functions of Moré and Thuente's paper, and on everything that can go wrong along a line."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dask_belief.errors import ArgumentError
from dask_belief.optim.line_search import LineSearch, Outcome, StrongWolfe
from tests.optim.minimise import minimise


def run(function, options=None, first_step=1.0):
    """Search along a function of one variable that returns value and slope; the steps tried come with the search."""
    value, slope = function(0.0)
    search = LineSearch(options or StrongWolfe(), value, slope, first_step)
    steps = []
    while not search.done:
        steps.append(search.step)
        search.tell(*function(search.step))
    return search, steps


def parabola(minimum, curvature=1.0):
    return lambda t: (curvature * (t - minimum) ** 2 / 2, curvature * (t - minimum))


# The paper's functions, equations (5.1) to (5.4).


def paper_1(t, beta=2.0):
    return -t / (t**2 + beta), (t**2 - beta) / (t**2 + beta) ** 2


def paper_2(t, beta=0.004):
    return (t + beta) ** 5 - 2 * (t + beta) ** 4, 5 * (t + beta) ** 4 - 8 * (t + beta) ** 3


def paper_3(t, beta=0.01, length=39):
    wave = 2 * (1 - beta) / (length * math.pi) * math.sin(length * math.pi / 2 * t)
    wave_slope = (1 - beta) * math.cos(length * math.pi / 2 * t)
    if t <= 1 - beta:
        return 1 - t + wave, -1 + wave_slope
    if t >= 1 + beta:
        return t - 1 + wave, 1 + wave_slope
    return (t - 1) ** 2 / (2 * beta) + beta / 2 + wave, (t - 1) / beta + wave_slope


def yanai(beta1, beta2):
    def gamma(beta):
        return math.sqrt(1 + beta**2) - beta

    def function(t):
        left, right = math.hypot(1 - t, beta2), math.hypot(t, beta1)
        value = gamma(beta1) * left + gamma(beta2) * right
        return value, gamma(beta1) * (t - 1) / left + gamma(beta2) * t / right

    return function


# Per table of the paper's section 5: function, c1, c2. Where the paper takes both equal, c2 is larger by rounding.
PAPER = {
    "table-1": (paper_1, 1e-3, 0.1),
    "table-2": (paper_2, 0.1, 0.1 + 1e-12),
    "table-3": (paper_3, 0.1, 0.1 + 1e-12),
    "table-4": (yanai(0.001, 0.001), 1e-3, 1e-3 + 1e-12),
    "table-5": (yanai(0.01, 0.001), 1e-3, 1e-3 + 1e-12),
    "table-6": (yanai(0.001, 0.01), 1e-3, 1e-3 + 1e-12),
}


def reference_steps(function, options, first_step):
    """What SciPy's dcsrch, a translation of the authors' own code, tries with the same options."""
    dcsrch = pytest.importorskip("scipy.optimize._dcsrch").DCSRCH
    steps = []

    def value_at(t):
        steps.append(float(t))
        return function(t)[0]

    value, slope = function(0.0)
    search = dcsrch(
        value_at, lambda t: function(t)[1], options.c1, options.c2, options.interval_tolerance, 0.0, options.max_step
    )
    search(first_step, phi0=value, derphi0=slope, maxiter=options.max_evaluations)
    return steps


@pytest.mark.parametrize("first_step", [1e-3, 1e-1, 1e1, 1e3])
@pytest.mark.parametrize("name", PAPER)
def test_the_papers_functions_end_at_a_wolfe_step(name, first_step):
    """On the six functions, from four first steps, both conditions hold and the trials are dcsrch's, one by one."""
    function, c1, c2 = PAPER[name]
    options = StrongWolfe(c1=c1, c2=c2, interval_tolerance=0.0, relative_noise=0.0)
    search, steps = run(function, options, first_step)
    value, slope = function(0.0)
    best_value, best_slope = function(search.best_step)
    assert search.outcome is Outcome.WOLFE and search.succeeded
    assert search.best_value == best_value <= value + c1 * search.best_step * slope
    assert abs(best_slope) <= c2 * abs(slope)
    np.testing.assert_allclose(steps, reference_steps(function, options, first_step), rtol=1e-6)


@pytest.mark.parametrize(
    ("function", "options", "first_step"),
    [
        (paper_1, StrongWolfe(c1=1e-3, c2=0.1), 1e-3),
        (paper_2, StrongWolfe(c1=0.1, c2=0.11), 1e3),
        (paper_3, StrongWolfe(c1=0.1, c2=0.11), 1e1),
        (parabola(30.0), StrongWolfe(), 1.0),
        (parabola(0.01), StrongWolfe(), 1.0),
    ],
)
def test_a_short_interval_ends_without_another_evaluation(function, options, first_step):
    """The steps are dcsrch's, but where the interval is too short the best step is not evaluated a second time."""
    search, steps = run(function, options, first_step)
    again = [search.best_step] if search.outcome is Outcome.INTERVAL_SMALL else []
    np.testing.assert_allclose([*steps, *again], reference_steps(function, options, first_step), rtol=1e-9)
    assert search.succeeded


def test_a_good_first_step_costs_one_evaluation():
    """The minimum of a parabola is accepted as it is found."""
    search, steps = run(parabola(1.0))
    assert steps == [1.0]
    assert (search.outcome, search.best_step, search.best_value) == (Outcome.WOLFE, 1.0, 0.0)


@pytest.mark.parametrize("minimum", [1e-6, 1e-2, 1.0, 50.0, 1e6])
@pytest.mark.parametrize("scale", [1e-100, 1.0, 1e100])
def test_the_scale_of_the_loss_does_not_matter(minimum, scale):
    """The same steps are tried on a function times any positive number."""

    def function(t):
        return scale * (t - minimum) ** 2, scale * 2 * (t - minimum)

    search, steps = run(function)
    assert search.outcome is Outcome.WOLFE
    assert steps == pytest.approx(run(lambda t: ((t - minimum) ** 2, 2 * (t - minimum)))[1], rel=1e-9)


@pytest.mark.parametrize("edge", [1e-6, 0.03, 0.5, 2.5])
@pytest.mark.parametrize("broken", [(math.nan, math.nan), (math.inf, 1.0), (1.0, math.nan), (-math.inf, -1.0)])
def test_steps_that_are_not_finite_are_kept_away_from(edge, broken):
    """With NaN or infinity from `edge` on, no step reaches a bad one again, and a decrease is found before it."""

    def function(t):
        return broken if t >= edge else (-math.log(edge + 1e-3 - t) - 2 * t / edge, 1 / (edge + 1e-3 - t) - 2 / edge)

    value, slope = function(0.0)
    assert slope < 0
    search, steps = run(function)
    assert search.succeeded and 0 < search.best_step < edge
    assert search.best_value < value
    for number, step in enumerate(steps):
        assert all(step < bad for bad in steps[:number] if bad >= edge)


def test_a_wall_behind_a_bracket_is_kept_away_from():
    """NaN between the two ends of a bracket puts up a wall as well."""

    def function(t):
        if 0.35 <= t < 0.9:
            return math.nan, math.nan
        return (10.0, 50.0) if t >= 0.9 else parabola(0.3, curvature=100.0)(t)

    search, steps = run(function, StrongWolfe(c2=0.1))
    assert any(0.35 <= step < 0.9 for step in steps)
    assert search.outcome is Outcome.WOLFE
    assert search.best_step == pytest.approx(0.3, rel=0.1)


def test_nothing_finite_ends_with_its_own_outcome():
    """NaN at every step tried ends after the evaluations allowed, with step 0."""
    search, steps = run(lambda t: (1.0, -1.0) if t == 0 else (math.nan, math.nan), StrongWolfe(max_evaluations=7))
    assert (search.outcome, search.best_step, search.best_value, len(steps)) == (Outcome.NOT_FINITE, 0.0, 1.0, 7)
    assert not search.succeeded
    assert steps == sorted(steps, reverse=True)


@pytest.mark.parametrize(("value", "slope"), [(math.nan, -1.0), (1.0, math.nan), (math.inf, -1.0), (1.0, -math.inf)])
def test_a_start_that_is_not_finite_ends_at_once(value, slope):
    """There is nothing to compare with, so no evaluation is spent."""
    search = LineSearch(StrongWolfe(), value, slope)
    assert (search.outcome, search.evaluations, search.step) == (Outcome.NOT_FINITE, 0, 0.0)


@pytest.mark.parametrize("slope", [0.0, 1e-300, 3.0])
def test_a_direction_that_does_not_descend_ends_at_once(slope):
    """A slope that is not negative is refused before any evaluation."""
    search = LineSearch(StrongWolfe(), 1.0, slope)
    assert (search.outcome, search.done, search.succeeded, search.best_step) == (Outcome.NO_DESCENT, True, False, 0.0)


def test_the_evaluations_are_limited_and_the_best_step_kept():
    """With three evaluations on a distant minimum, the last and lowest of the three is the result."""
    search, steps = run(parabola(1e6), StrongWolfe(max_evaluations=3))
    assert (search.outcome, search.evaluations, search.best_step) == (Outcome.MAX_EVALUATIONS, 3, steps[-1])
    assert search.succeeded


def test_the_best_step_may_lie_before_the_last_one():
    """When the last trial is higher, step and best step differ, and the caller can see it."""
    values = {1.0: (0.0, -2.0), 5.0: (9.0, 7.0)}
    search = LineSearch(StrongWolfe(max_evaluations=2), 2.0, -2.1)
    while not search.done:
        search.tell(*values[search.step])
    assert (search.outcome, search.best_step, search.best_value) == (Outcome.MAX_EVALUATIONS, 1.0, 0.0)
    assert search.step == 5.0


def test_a_loss_without_bottom_ends_at_the_largest_step():
    """A line that falls for ever is followed to max_step, and said to be so."""
    search, steps = run(lambda t: (-t, -1.0), StrongWolfe(max_step=100.0))
    assert (search.outcome, search.best_step, search.best_value) == (Outcome.STEP_LIMIT, 100.0, -100.0)
    assert steps[-1] == 100.0


def test_the_first_step_is_cut_to_the_largest():
    """No step is larger than max_step, the first one included."""
    _, steps = run(parabola(3.0), StrongWolfe(max_step=2.0), first_step=50.0)
    assert steps[0] == 2.0


@pytest.mark.parametrize("noise", [1e-7, 1e-9])
@pytest.mark.parametrize("seed", range(5))
def test_below_the_noise_the_slopes_decide(noise, seed):
    """With noise in the value above all decrease, but true slopes, the flat point is found at once (seeds 0-4)."""
    generator = np.random.default_rng(seed)
    curvature = noise / 10

    def function(t):
        value, slope = parabola(1.0, curvature)(t)
        return 1.0 + value + noise * generator.uniform(-0.4, 0.4), slope

    search, steps = run(function, StrongWolfe(relative_noise=noise))
    assert (search.outcome, steps) == (Outcome.WOLFE, [1.0])
    assert run(function, StrongWolfe(relative_noise=noise), first_step=0.01)[0].outcome is Outcome.WOLFE


def test_a_plateau_of_rounding_is_said_to_be_one():
    """Where values never leave the noise and slopes do not flatten, the outcome is rounding, with step 0 (seed 6)."""
    generator = np.random.default_rng(6)

    def function(t):
        return 1.0 + 1e-9 * (t > 0) * generator.uniform(), -1e-10 if t == 0 else 1e-10 * generator.choice([-3, 3])

    search, _ = run(function, StrongWolfe(relative_noise=1e-8))
    assert (search.outcome, search.best_step, search.best_value) == (Outcome.ROUNDING, 0.0, 1.0)
    assert not search.succeeded


def test_values_rounded_to_a_grid_end_without_a_wrong_step():
    """On a parabola whose value is rounded to eight digits, near its minimum, a few evaluations are enough."""

    def function(t):
        value, slope = parabola(1.0, 1e-9)(t)
        return round(1.0 + value, 8), slope

    search, _ = run(function, StrongWolfe(relative_noise=1e-8), first_step=0.3)
    assert search.outcome is Outcome.WOLFE
    assert search.evaluations <= 2


@pytest.mark.parametrize("relative_noise", [0.0, 1e-15, 1e-7])
def test_a_wrong_gradient_does_not_vouch_for_itself(relative_noise):
    """With the sign of the slope wrong no step succeeds, nor is it called rounding, whatever noise is allowed."""
    options = StrongWolfe(relative_noise=relative_noise, max_evaluations=60)
    search, _ = run(lambda t: (1.0 + t, -1.0), options)
    assert not search.succeeded
    assert search.outcome in (Outcome.MAX_EVALUATIONS, Outcome.INTERVAL_SMALL)


def test_a_value_near_overflow_only_shortens_the_step():
    """A finite value of 1e308 does not spoil the interpolation."""

    def function(t):
        return (1e308, 1e308) if t > 0.5 else parabola(0.1)(t)

    search, _ = run(function)
    assert search.outcome is Outcome.WOLFE


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_the_search_ends_and_keeps_its_promise(seed):
    """On 20 random functions with holes of NaN, it ends in time, and a success has sufficient decrease (seeds 0-19)."""
    generator = np.random.default_rng(seed)
    heights, frequencies = generator.standard_normal(6), generator.uniform(0, 30, 6)
    hole = generator.uniform(0, 3)

    def function(t):
        if hole < t < hole + 0.2:
            return math.nan, math.nan
        value = float(np.sum(heights * np.sin(frequencies * t))) + 0.01 * t * t
        return value, float(np.sum(heights * frequencies * np.cos(frequencies * t))) + 0.02 * t

    if function(0.0)[1] >= 0:
        heights = -heights
    value, slope = function(0.0)
    options = StrongWolfe(max_evaluations=15)
    search, steps = run(function, options, first_step=10 ** generator.uniform(-3, 1))
    assert len(steps) == search.evaluations <= 15
    assert all(0 < step <= options.max_step for step in steps)
    if search.succeeded:
        assert search.best_value == function(search.best_step)[0]
        assert search.best_value <= value + options.c1 * search.best_step * slope


def test_a_search_that_has_ended_takes_no_more():
    """A value told too much is an error that names the outcome."""
    search, _ = run(parabola(1.0))
    with pytest.raises(ArgumentError, match="wolfe"):
        search.tell(0.0, 0.0)


@pytest.mark.parametrize("first_step", [0.0, -1.0, math.nan, math.inf])
def test_a_bad_first_step_is_refused(first_step):
    """The first step must be positive and finite."""
    with pytest.raises(ArgumentError, match=r"^first_step"):
        LineSearch(StrongWolfe(), 1.0, -1.0, first_step)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("c1", 0.0),
        ("c1", 0.5),
        ("c1", math.nan),
        ("c2", 1e-4),
        ("c2", 1.0),
        ("max_evaluations", 0),
        ("max_evaluations", 2.5),
        ("interval_tolerance", -0.1),
        ("max_step", 0.0),
        ("max_step", math.inf),
        ("relative_noise", -1e-9),
        ("relative_noise", math.nan),
    ],
)
def test_bad_options_are_refused_by_name(name, value):
    """Each option out of its range is named in the error."""
    with pytest.raises(ArgumentError, match=f"^{name}"):
        StrongWolfe(**{name: value})


def test_the_ratios_tell_how_well_the_conditions_hold():
    """On a parabola, whose numbers are known: half of the promise at the minimum, and what is left of the slope."""
    search, _ = run(parabola(1.0))
    assert (search.decrease_ratio, search.slope_ratio) == (0.5, 0.0)
    search, _ = run(parabola(1.0), first_step=0.8)
    assert search.decrease_ratio == pytest.approx(1 - 0.8 / 2)
    assert search.slope_ratio == pytest.approx(0.2)


def test_without_a_step_there_are_no_ratios():
    """A search that has no step, and one that has only begun, give NaN."""
    for search in (LineSearch(StrongWolfe(), 1.0, 1.0), LineSearch(StrongWolfe(), 1.0, -1.0)):
        assert math.isnan(search.decrease_ratio) and math.isnan(search.slope_ratio)


@pytest.mark.parametrize("noise", [1e-6, 1e-9, 1e-12])
def test_the_noise_is_seen_where_the_promise_is_below_it(noise):
    """On a parabola of noise / 10 with noise of known size, the estimate is what was added (seeds 0-9)."""
    curvature = noise / 10
    for seed in range(10):
        generator = np.random.default_rng(seed)
        added: list[float] = []

        def function(t, generator=generator, added=added):
            value, slope = parabola(1.0, curvature)(t)
            added.append(noise * generator.uniform(-0.4, 0.4) if t else 0.0)
            return 1.0 + value + added[-1], slope

        search, _ = run(function, StrongWolfe(relative_noise=noise), first_step=0.01)
        assert search.noise == pytest.approx(max(map(abs, added)), rel=1e-3)


def test_noise_that_was_not_seen_is_what_the_options_allow():
    """Where every promise is above the noise allowed, nothing was measured."""
    search, _ = run(lambda t: (2.0 + (t - 1) ** 2, 2 * (t - 1)), StrongWolfe(relative_noise=1e-7))
    assert search.noise == pytest.approx(3e-7)


def test_a_jump_that_is_larger_than_the_noise_allowed_is_seen_as_well():
    """The estimate is not cut to what was expected: that is when it is worth reading."""
    search = LineSearch(StrongWolfe(relative_noise=1e-9, max_evaluations=1), 1.0, -1e-12)
    search.tell(1.0 + 1e-5, -1e-12)
    assert search.noise == pytest.approx(1e-5)


def test_in_float32_a_run_goes_on_below_the_noise_of_its_values():
    """Logistic regression in float32: with the noise told, the gradient falls below 1e-7 at 1.5 evaluations a step."""
    generator = np.random.default_rng(21)
    inputs = generator.standard_normal((400, 30), dtype=np.float32)
    signs = np.where(inputs[:, 0] + generator.standard_normal(400) > 0, 1, -1).astype(np.float32)

    def objective(point):
        w = point.astype(np.float32)
        margins = signs * (inputs @ w)
        pull = -signs / (1 + np.exp(margins)) / np.float32(400)
        loss = np.logaddexp(np.float32(0), -margins).sum(dtype=np.float64) / 400
        gradient = inputs.T @ pull + np.float32(1e-2) * w
        return loss + 5e-3 * float(w.astype(np.float64) @ w), gradient.astype(np.float64)

    found = minimise(objective, np.zeros(30), gtol=1e-7, max_iter=60, options=StrongWolfe(relative_noise=1e-7))
    assert np.abs(found.gradient).max() <= 1e-7
    assert found.evaluations <= 1.5 * found.iterations + 1
