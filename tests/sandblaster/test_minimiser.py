"""The main loop on the shards: where it ends, what an iteration costs in messages, and what happens without a step."""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import scipy.optimize

from dask_belief.evaluation import SNAPSHOT
from dask_belief.monitoring.events import Event, IterationEnded, Validated
from dask_belief.monitoring.metrics import MetricSums
from dask_belief.optim.backtracking import ProjectedSearch
from dask_belief.optim.conjugate_gradient import ConjugateGradient
from dask_belief.optim.descent import GradientDescent
from dask_belief.optim.direction import Direction, DirectionRule
from dask_belief.optim.lbfgs import CurvatureMemory
from dask_belief.optim.line_search import Outcome, StrongWolfe
from dask_belief.optim.stopping import Criteria, Stop, StopReason
from dask_belief.parameter_server.messages import (
    BeginSum,
    Combine,
    Command,
    Dot,
    EndSum,
    MaxNorm,
    ProjectedStep,
    Swap,
)
from dask_belief.parameter_server.ranges import BLOCK
from dask_belief.sandblaster.minimiser import Minimiser
from dask_belief.sandblaster.progress import Progress
from dask_belief.sandblaster.steps import DIRECTION, GRADIENT, POINT, TRIAL, OrthantWise, Search, Smooth, Steps
from dask_belief.seeds import stream
from tests.optim.minimise import minimise, problems, rosenbrock
from tests.sandblaster.local_run import LocalRun, status

SEED = 61
N = 40
START = np.tile([-1.2, 1.0], N // 2)
EXACT = Criteria(gtol=1e-8, ftol=0.0, max_iter=1000)
LOOSER = Criteria(gtol=1e-6, ftol=0.0, max_iter=2000)


def minimiser(
    scene: LocalRun,
    criteria: Criteria = EXACT,
    *,
    rule: Any = None,
    steps: Steps | None = None,
    progress: Progress | None = None,
    keeps: bool = True,
) -> Minimiser:
    """With `keeps` every point is copied to the driver, else none: the same on every machine."""
    chosen: DirectionRule = rule or CurvatureMemory()
    steps = steps or Smooth(StrongWolfe(c2=chosen.c2))
    scene.run._keeping._ready_at = -math.inf if keeps else math.inf
    scene.run._keeping.took = lambda began, ended: None  # type: ignore[method-assign]
    return Minimiser(scene.run, scene.deployment, scene.batch, chosen, steps, criteria, progress or Progress(), {})


def bowl(curvatures: np.ndarray) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """A parabola with these curvatures along the axes, and its minimum, 0, at 1."""

    def function(w: np.ndarray) -> tuple[float, np.ndarray]:
        away = w - 1
        return float(curvatures @ away**2 / 2), curvatures * away

    return function


def orthant_wise(l1: float) -> OrthantWise:
    return OrthantWise(ProjectedSearch(), l1)


# Where it ends.


RULES: list[Any] = [
    pytest.param(CurvatureMemory, id="lbfgs"),
    pytest.param(lambda: CurvatureMemory(is_damped=True), id="damped"),
    pytest.param(ConjugateGradient, id="conjugate gradient"),
    pytest.param(GradientDescent, id="gradient descent"),
]


@pytest.mark.parametrize("name", ["rosenbrock-10", "quadratic-30", "logistic-20"])
def test_run_ends_where_scipy_ends(name: str) -> None:
    """At the same loss, with a gradient as small as was asked for, and the point on the host."""
    function, start = problems()[name]
    with LocalRun(function, start) as scene:
        stop = minimiser(scene, LOOSER).minimise()
        assert stop.reason is StopReason.GRADIENT_SMALL
        np.testing.assert_array_equal(scene.run.best, scene.deployment.vector(POINT))
    options = {"gtol": 1e-6, "ftol": 0.0, "maxiter": 1000, "maxfun": 10_000}
    scipys = scipy.optimize.minimize(function, start, jac=True, method="L-BFGS-B", options=options)
    value, gradient = function(scene.run.best)
    assert value == pytest.approx(scipys.fun, rel=1e-6, abs=1e-10)
    assert np.abs(gradient).max() == pytest.approx(stop.numbers["gradient_norm"], rel=1e-9)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["rosenbrock-2", "quadratic-30", "logistic-20"])
def test_run_goes_the_way_of_whole_vectors(name: str, rule: Callable[[], Any]) -> None:
    """The same method on NumPy vectors in one place: as many evaluations, the same value; on any problem, by any rule.

    Fifteen iterations, after which rounding has not yet come to much.
    """
    function, start = problems()[name]
    expected = minimise(function, start, rule=rule(), gtol=1e-6, max_iter=15)
    with LocalRun(function, start) as scene:
        progress = Progress()
        minimiser(scene, Criteria(1e-6, 0.0, 15), rule=rule(), progress=progress).minimise()
    assert (progress.iteration, progress.evaluations) == (expected.iterations, expected.evaluations)
    assert progress.value == pytest.approx(expected.value, rel=1e-6)


@pytest.mark.parametrize("name", ["rosenbrock-10", "quadratic-30", "logistic-20"])
def test_run_costs_as_many_evaluations_as_with_whole_vectors(name: str) -> None:
    """To the end, but for rounding."""
    function, start = problems()[name]
    with LocalRun(function, start) as scene:
        progress = Progress()
        minimiser(scene, LOOSER, progress=progress).minimise()
    assert progress.evaluations == pytest.approx(minimise(function, start, gtol=1e-6).evaluations, rel=0.1)


def test_penalty_is_part_of_what_is_minimised() -> None:
    """The minimum of ``a/2 (w - 1)^2 + l2/2 w^2`` is at ``a / (a + l2)``; at 1 where the penalty does not reach."""
    curvatures, penalised = np.geomspace(1, 10, 4), np.array([True, False, True, True])
    with LocalRun(bowl(curvatures), np.zeros(4), l2=0.5, penalised=penalised) as scene:
        minimiser(scene).minimise()
    np.testing.assert_allclose(scene.run.best, curvatures / (curvatures + 0.5 * penalised), rtol=1e-6)


def test_both_penalties_are_part_of_what_is_minimised() -> None:
    """The minimum of ``a/2 (w - 1)^2 + l2/2 w^2 + l1 |w|`` is at ``max(a - l1, 0) / (a + l2)``: some are zero."""
    curvatures, penalised = np.geomspace(0.5, 10, 6), np.array([True, False, True, True, True, True])
    with LocalRun(bowl(curvatures), np.zeros(6), l2=0.5, l1=1.5, penalised=penalised) as scene:
        progress = Progress()
        stop = minimiser(scene, LOOSER, steps=orthant_wise(1.5), progress=progress).minimise()
    weight = 1.5 * penalised
    expected = np.maximum(curvatures - weight, 0) / (curvatures + 0.5 * penalised)
    np.testing.assert_allclose(scene.run.best, expected, rtol=1e-6)
    np.testing.assert_array_equal(scene.run.best == 0, expected == 0)
    penalty = 0.25 * (penalised * expected**2).sum() + (weight * expected).sum()
    assert progress.value == pytest.approx(bowl(curvatures)(expected)[0] + penalty, rel=1e-12)
    # Where zero is the answer the gradient is not small: the pseudo-gradient is.
    assert stop.reason is StopReason.GRADIENT_SMALL


@pytest.mark.parametrize("l1", [0.0, 1.0])
def test_path_has_the_same_bits_on_any_number_of_shards(l1: float) -> None:
    """Every loss, gradient norm and step, and the parameters; with an L1 penalty, too."""
    n = 2 * BLOCK + 10
    start = stream(SEED, "start").standard_normal(n)
    function = bowl(np.geomspace(1, 50, n))
    seen = []
    for n_shards in (1, 3):
        with LocalRun(function, start, n_shards=n_shards, l2=0.1, l1=l1) as scene:
            minimiser(scene, Criteria(max_iter=4), steps=orthant_wise(l1) if l1 else None).minimise()
            ended = scene.of_kind(IterationEnded)
        seen.append(([(event.loss, event.gradient_norm, event.step) for event in ended], scene.run.best))
    assert seen[0][0] == seen[1][0]
    assert len(seen[0][0]) == 4
    np.testing.assert_array_equal(seen[0][1], seen[1][1])
    assert (seen[0][1] == 0).any() == bool(l1)


# What it costs in messages.


def is_direction(commands: tuple[Command, ...]) -> bool:
    return any(isinstance(command, Combine) and command.into == DIRECTION for command in commands)


@pytest.mark.parametrize("l1", [0.0, 1e-3], ids=["smooth", "orthant-wise"])
@pytest.mark.parametrize("history_size", [3, 30])
def test_evaluation_costs_two_rounds_whatever_the_history(history_size: int, l1: float) -> None:
    """A direction, its slope, its pair and all dot products cost none beside; the last point is accepted by one."""
    with LocalRun(rosenbrock, START, l1=l1) as scene:
        progress, rule = Progress(), CurvatureMemory(history_size)
        steps = orthant_wise(l1) if l1 else None
        made = minimiser(scene, LOOSER, rule=rule, steps=steps, progress=progress, keeps=False)
        assert made.minimise().reason is StopReason.GRADIENT_SMALL
        rounds = scene.deployment.rounds
    assert progress.iteration > 35
    assert rule.n_pairs == history_size
    opens, closes = (
        [any(isinstance(command, kind) for command in commands) for commands in rounds] for kind in (BeginSum, EndSum)
    )
    # They take turns; after the last one the accepted trial is made the point.
    assert opens == [True, False] * progress.evaluations + [False]
    assert closes == [False, True] * progress.evaluations + [False]
    assert {type(command) for command in rounds[-1]} == {Swap}
    assert [is_direction(commands) for commands in rounds].count(True) == progress.iteration


def test_direction_and_first_trial_are_one_message_over_the_whole_history() -> None:
    """It accepts the last trial, names the gradient and both vectors of every pair once, and opens the evaluation."""
    with LocalRun(rosenbrock, START) as scene:
        rule = CurvatureMemory(30)
        minimiser(scene, Criteria(gtol=0.0, ftol=0.0, max_iter=35), rule=rule, keeps=False).minimise()
        last = [commands for commands in scene.deployment.rounds if is_direction(commands)][-1]
    *accepted, direction, slope, trial, opened = last
    assert accepted == [Swap(POINT, TRIAL), Swap(GRADIENT, "trial_g")]
    names = [name for _, name in direction.terms]
    assert len(names) == len(set(names)) == 2 * 30 + 1
    assert slope == Dot(((DIRECTION, GRADIENT),))
    assert trial == Combine(TRIAL, ((1.0, POINT), (1.0, DIRECTION)))
    assert isinstance(opened, BeginSum)


def test_message_that_ends_an_evaluation_brings_all_that_the_next_direction_needs() -> None:
    """The gradient, the trial's slope, the pair in a slot that holds nothing, its norm and its products."""
    with LocalRun(rosenbrock, START) as scene:
        minimiser(scene, Criteria(gtol=0.0, ftol=0.0, max_iter=1), keeps=False).minimise()
        rounds = scene.deployment.rounds
    ended, slope, step, change, norm, dots = rounds[3]
    assert isinstance(ended, EndSum)
    assert ended.into == "trial_g"
    assert slope == Dot((("trial_g", DIRECTION),))
    assert step == Combine("s0", ((1.0, TRIAL), (-1.0, POINT)))
    assert change == Combine("y0", ((1.0, "trial_g"), (-1.0, GRADIENT)))
    assert norm == MaxNorm("trial_g")
    assert {frozenset(product) for product in dots.products} >= {
        frozenset(("trial_g",)),
        frozenset(("trial_g", "s0")),
        frozenset(("s0", "y0")),
    }
    # The gradient of the rule is that of the trial: it may be accepted.
    assert not any(GRADIENT in product for product in dots.products)


@pytest.mark.parametrize("history_size", [3, 30])
def test_dot_products_of_an_evaluation_grow_with_the_history_and_not_with_its_square(history_size: int) -> None:
    """Six a pair: the new two and the gradient with what is kept; products between kept vectors are known."""
    with LocalRun(rosenbrock, START) as scene:
        rule = CurvatureMemory(history_size)
        minimiser(scene, Criteria(gtol=0.0, ftol=0.0, max_iter=35), rule=rule, keeps=False).minimise()
        tables = [commands[-1].products for commands in scene.deployment.rounds if isinstance(commands[-1], Dot)]
    assert len(tables[-1]) <= 6 * (history_size + 1)
    assert len(set(tables[-1])) == len(tables[-1])


def test_point_is_settled_before_it_is_copied() -> None:
    """An accepted trial is the point when others read it: the copy that is kept, and the snapshot for validation."""
    with LocalRun(rosenbrock, START) as scene:
        seen: list[tuple[float, float]] = []

        def note(event: Event) -> None:
            if isinstance(event, IterationEnded):
                losses.append(event.loss)

        losses: list[float] = []
        scene.run._callbacks = note  # type: ignore[assignment]
        made = minimiser(scene, Criteria(gtol=0.0, ftol=0.0, max_iter=12))
        keep = scene.run.keep

        def look(deployment: Any, name: str) -> None:
            keep(deployment, name)
            seen.append((rosenbrock(scene.run.best)[0], losses[-1]))

        scene.run.keep = look  # type: ignore[method-assign]
        made.minimise()
    assert len(seen) == 12
    for found, told in seen:
        assert found == pytest.approx(told, rel=1e-12)


# What listeners are told, and whoever goes on.


def test_iterations_are_told_as_they_were() -> None:
    """Numbered from 1, losses falling, evaluations as passes, and the last as `Progress` has it."""
    with LocalRun(rosenbrock, START) as scene:
        progress = Progress()
        minimiser(scene, progress=progress).minimise()
    events = scene.of_kind(IterationEnded)
    assert [event.iteration for event in events] == list(range(1, len(events) + 1))
    losses = [event.loss for event in events]
    assert losses == sorted(losses, reverse=True)
    assert [event.passes for event in events] == [float(event.evaluations) for event in events]
    last = events[-1]
    assert (progress.iteration, progress.evaluations, progress.value) == (last.iteration, last.evaluations, last.loss)
    assert progress.value == pytest.approx(rosenbrock(scene.run.best)[0], rel=1e-9, abs=1e-300)
    assert (progress.kept_iteration, progress.kept_value) == (progress.iteration, progress.value)


def test_numbers_of_the_search_are_told() -> None:
    """Curvature along the step, and both Wolfe numbers, within what the search asks for."""
    with LocalRun(bowl(np.full(6, 7.0)), np.linspace(-3, 3, 6)) as scene:
        minimiser(scene).minimise()
    for event in scene.of_kind(IterationEnded):
        # A parabola that is the same along every axis has one curvature.
        assert event.curvature == pytest.approx(7.0, rel=1e-9)
    with LocalRun(rosenbrock, START) as scene:
        minimiser(scene).minimise()
    for event in scene.of_kind(IterationEnded):
        assert event.decrease_ratio >= 1e-4
        assert event.slope_ratio <= 0.9


def test_search_without_slopes_tells_none() -> None:
    """Within an orthant, the ratio of slopes is not known; all else is."""
    with LocalRun(bowl(np.geomspace(1, 10, 5)), np.zeros(5), l1=0.5) as scene:
        minimiser(scene, steps=orthant_wise(0.5)).minimise()
    for event in scene.of_kind(IterationEnded):
        assert math.isnan(event.slope_ratio)
        assert event.decrease_ratio >= 1e-4
        assert event.curvature >= 1.0 - 1e-12


def test_costs_of_an_iteration_are_those_of_its_evaluations() -> None:
    """All of them, the first point's with the first iteration; and what was copied to the driver since."""
    with LocalRun(rosenbrock, START) as scene:
        minimiser(scene, Criteria(gtol=0.0, ftol=0.0, max_iter=8)).minimise()
    events, before = scene.of_kind(IterationEnded), 0
    one = status()
    for event in events:
        n_evaluations = event.evaluations - before
        before = event.evaluations
        assert event.computing_seconds == pytest.approx(n_evaluations * one.effort.computing_seconds)
        assert event.busiest_seconds == pytest.approx(n_evaluations * one.busiest_seconds)
        copied = START.nbytes if event.iteration > 1 else 0
        assert event.fetched_bytes == n_evaluations * one.effort.fetched_bytes + copied
        assert 0 < event.vector_seconds < event.seconds


def test_iteration_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """With its number, the objective, and what it cost."""
    with caplog.at_level(logging.INFO, "dask_belief"), LocalRun(rosenbrock, START) as scene:
        minimiser(scene, Criteria(gtol=0.0, ftol=0.0, max_iter=3)).minimise()
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("iteration")]
    assert [line.split(":")[0] for line in lines] == ["iteration 1", "iteration 2", "iteration 3"]
    for line, event in zip(lines, scene.of_kind(IterationEnded), strict=True):
        assert "\n" not in line
        assert f"f {event.loss:.8g}" in line


def test_run_goes_on_from_the_kept_point_alone() -> None:
    """Iterations are counted on from it, evaluations from those that were made, and it ends at the same minimum."""
    function = bowl(np.geomspace(1, 100, 20))
    progress = Progress()
    with LocalRun(function, np.zeros(20)) as first:
        minimiser(first, Criteria(gtol=1e-8, ftol=0.0, max_iter=5), progress=progress).minimise()
    progress.iteration, progress.value = 7, -1.0
    progress.go_back()
    made = progress.evaluations
    with LocalRun(function, first.run.best) as second:
        minimiser(second, progress=progress).minimise()
    events = second.of_kind(IterationEnded)
    assert events[0].iteration == 6
    # One evaluation more to know the value at the kept point again.
    assert events[0].evaluations >= made + 2
    assert events[0].loss < first.of_kind(IterationEnded)[-1].loss
    np.testing.assert_allclose(second.run.best, 1.0, rtol=1e-6)


# Why it ends.


@pytest.mark.parametrize(
    ("criteria", "reason"),
    [
        (Criteria(gtol=1e-6, ftol=0.0), StopReason.GRADIENT_SMALL),
        (Criteria(gtol=0.0, ftol=1e-2), StopReason.DECREASE_SMALL),
        (Criteria(gtol=0.0, ftol=0.0, max_iter=3), StopReason.MAX_ITERATIONS),
        (Criteria(gtol=0.0, ftol=0.0, max_evaluations=6), StopReason.MAX_EVALUATIONS),
        (Criteria(gtol=0.0, ftol=0.0, max_seconds=0.0), StopReason.MAX_SECONDS),
    ],
)
def test_criteria_are_looked_at_after_each_iteration(criteria: Criteria, reason: StopReason) -> None:
    """Each of them ends the run, by its own reason."""
    with LocalRun(bowl(np.geomspace(1, 100, 20)), np.zeros(20)) as scene:
        assert minimiser(scene, criteria).minimise().reason is reason


def test_minimum_as_start_is_seen_by_the_first_evaluation() -> None:
    """No iteration is made, and no direction."""
    with LocalRun(bowl(np.ones(4)), np.ones(4)) as scene:
        progress = Progress()
        stop = minimiser(scene, progress=progress).minimise()
        assert not any(is_direction(commands) for commands in scene.deployment.rounds)
        assert len(scene.deployment.rounds) == 2
    assert stop.reason is StopReason.GRADIENT_SMALL
    assert (progress.iteration, progress.evaluations, progress.value) == (0, 1, 0.0)


def test_callback_ends_the_run() -> None:
    """After the iteration at which it asked."""
    with LocalRun(rosenbrock, START) as scene:
        scene.answer = True
        stop = minimiser(scene).minimise()
    assert (stop.reason, len(scene.of_kind(IterationEnded))) == (StopReason.CALLBACK, 1)


def test_time_that_is_up_within_an_evaluation_gives_the_last_point() -> None:
    """The evaluation is given up; point, value and iteration are those before it, and the numbers tell the limit."""
    function = bowl(np.geomspace(1, 100, 20))
    with LocalRun(function, np.zeros(20), max_seconds=50.0) as scene:
        progress, answer = Progress(), scene.deployment.ask

        def slow(method: str, evaluation: int, limit_seconds: float) -> Any:
            if evaluation < 8:
                return answer(method, evaluation, limit_seconds)
            scene.run._began -= 60.0
            return status(n_done=1)

        scene.deployment.ask = slow
        criteria = Criteria(gtol=0.0, ftol=0.0, max_seconds=50.0)
        stop = minimiser(scene, criteria, progress=progress, keeps=False).minimise()
        point = scene.deployment.vector(POINT)
    assert stop.reason is StopReason.MAX_SECONDS
    assert stop.numbers["max_seconds"] == 50.0
    assert stop.numbers["seconds"] >= 60.0
    last = scene.of_kind(IterationEnded)[-1]
    assert (progress.iteration, progress.value) == (last.iteration, last.loss)
    assert function(point)[0] == pytest.approx(last.loss, rel=1e-12)
    assert last.evaluations < 8


# No step.


class Turns:
    """A function that is another one, or not there, from its `after`-th evaluation on."""

    def __init__(self, after: int, fault: Callable[[float, np.ndarray], tuple[float, np.ndarray]]) -> None:
        self._after = after
        self._fault = fault
        self._function = bowl(np.geomspace(1, 100, 5))
        self.n_evaluations = 0

    def __call__(self, w: np.ndarray) -> tuple[float, np.ndarray]:
        # One unit an evaluation, so calls are evaluations.
        self.n_evaluations += 1
        value, gradient = self._function(w)
        return self._fault(value, gradient) if self.n_evaluations > self._after else (value, gradient)


def uphill(value: float, gradient: np.ndarray) -> tuple[float, np.ndarray]:
    return value + 1e3, gradient


def nowhere(value: float, gradient: np.ndarray) -> tuple[float, np.ndarray]:
    return math.nan, gradient


def run_of(
    function: Turns, progress: Progress, steps: Steps | None = None, l1: float = 0.0
) -> tuple[Stop, LocalRun, list[Any], np.ndarray]:
    with LocalRun(function, np.zeros(5), rows=(1.0,), unit_rows=1, l1=l1) as scene:
        stop = minimiser(scene, steps=steps, progress=progress).minimise()
        directions = [c for c in scene.deployment.of_kind(Combine) if c.into == DIRECTION]
        return stop, scene, directions, scene.deployment.vector(POINT)


def test_steepest_descent_is_tried_before_the_run_gives_up() -> None:
    """After four evaluations nothing lowers the value: along the L-BFGS direction, then along minus the gradient."""
    progress = Progress()
    stop, scene, directions, point = run_of(Turns(4, uphill), progress)
    assert stop.reason in {StopReason.LINE_SEARCH_FAILED, StopReason.LINE_SEARCH_ROUNDING}
    assert not stop.numbers["loss"] > progress.value
    assert len(directions[-2].terms) > 1
    assert directions[-1].terms == ((-1.0, GRADIENT),)
    # The point is that of the last good iteration.
    assert progress.iteration == len(scene.of_kind(IterationEnded)) > 0
    np.testing.assert_array_equal(point, scene.run.best)
    assert bowl(np.geomspace(1, 100, 5))(point)[0] == pytest.approx(progress.value, rel=1e-12)


def test_steepest_descent_is_tried_within_an_orthant_too() -> None:
    """Along minus the pseudo-gradient."""
    progress = Progress()
    stop, scene, directions, point = run_of(Turns(4, uphill), progress, orthant_wise(0.1), l1=0.1)
    assert stop.reason is StopReason.LINE_SEARCH_FAILED
    assert len(directions[-2].terms) > 1
    assert directions[-1].terms == ((-1.0, "v"),)
    np.testing.assert_array_equal(point, scene.run.best)
    assert progress.iteration == len(scene.of_kind(IterationEnded)) > 0


def test_steepest_descent_is_not_tried_twice() -> None:
    """At the start it is the first direction already."""
    _, scene, directions, point = run_of(Turns(1, uphill), Progress())
    assert [direction.terms for direction in directions] == [((-1.0, GRADIENT),)]
    np.testing.assert_array_equal(point, np.zeros(5))
    assert not scene.of_kind(IterationEnded)


def test_values_that_are_nowhere_finite_end_the_run_by_that_reason() -> None:
    """At the first point, which was finite; the numbers say where they arose."""
    stop, _, _, point = run_of(Turns(1, nowhere), Progress())
    assert stop.reason is StopReason.NOT_FINITE
    assert {name: stop.numbers[name] for name in ("unit", "first_row", "last_row")} == dict.fromkeys(
        ("unit", "first_row", "last_row"), 0.0
    )
    np.testing.assert_array_equal(point, np.zeros(5))


@pytest.mark.parametrize("steps", [None, orthant_wise(0.1)], ids=["smooth", "orthant-wise"])
def test_unit_and_rows_that_are_not_finite_are_named(steps: Steps | None) -> None:
    """Of the first unit at fault, in the numbers and in the advice."""

    def faulty(parameters: Any, inputs: Any, targets: Any) -> tuple[float, Any]:
        # Away from the start, rows of more than 1 have no loss.
        is_fault = parameters.any() and inputs.max() > 1
        return math.inf if is_fault else float(len(inputs)), np.full(3, 2.0)

    rows = (1.0,) * 7 + (2.0,) * 3
    with LocalRun(rosenbrock, np.zeros(3), rows, unit_rows=3, l1=0.1 if steps else 0.0) as scene:
        scene.run.facts.objective.loss_and_gradient = faulty  # type: ignore[method-assign]
        stop = minimiser(scene, steps=steps).minimise()
    assert stop.reason is StopReason.NOT_FINITE
    assert (stop.numbers["unit"], stop.numbers["first_row"], stop.numbers["last_row"]) == (2.0, 6.0, 8.0)
    assert "rows 6 to 8 (unit 2)" in stop.advice


def test_run_goes_on_after_a_step_that_was_not_finite() -> None:
    """The line search comes back to where there are numbers."""

    def walled(w: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = bowl(np.ones(3))(w)
        return (value, gradient) if w.max() < 1.0 + 1e-3 else (math.inf, np.full(3, np.nan))

    with LocalRun(walled, np.array([-50.0, 0.0, 0.5])) as scene:
        assert minimiser(scene).minimise().reason is StopReason.GRADIENT_SMALL
    np.testing.assert_allclose(scene.run.best, 1.0, atol=1e-7)


NOISE = 1e-6


def jump(w: np.ndarray) -> float:
    """Rounding of another machine: up to a millionth, the same for the same point, as good as random for another."""
    return NOISE * (zlib.crc32(w.tobytes()) % 1000) / 1000


def rough_bowl(w: np.ndarray) -> tuple[float, np.ndarray]:
    value, gradient = bowl(np.geomspace(1, 10, 5))(w)
    return 1.0 + value + jump(w), gradient


def rough_plateau(w: np.ndarray) -> tuple[float, np.ndarray]:
    return 1.0 + jump(w), np.full(5, 1e-9)


@pytest.mark.parametrize(
    ("function", "l1", "steps"),
    [
        pytest.param(rough_plateau, 0.0, Smooth(StrongWolfe(relative_noise=NOISE)), id="smooth"),
        pytest.param(rough_bowl, 0.1, OrthantWise(ProjectedSearch(relative_noise=NOISE), 0.1), id="orthant-wise"),
    ],
)
def test_end_by_rounding_tells_the_noise(function: Any, l1: float, steps: Steps) -> None:
    """An estimate of it from what the search saw; the run counts as converged, at the best point."""
    with LocalRun(function, np.zeros(5), l1=l1) as scene:
        progress = Progress()
        stop = minimiser(scene, Criteria(gtol=0.0, ftol=0.0), steps=steps, progress=progress).minimise()
        point = scene.deployment.vector(POINT)
    assert stop.reason is StopReason.LINE_SEARCH_ROUNDING
    assert stop.converged
    assert NOISE / 20 < stop.numbers["noise"] < 2 * NOISE
    assert stop.numbers["loss"] == progress.value == pytest.approx(function(point)[0] + l1 * np.abs(point).sum())


class Uphill:
    """A rule that goes the wrong way, whenever it remembers something and at the start if it is told so."""

    c2: ClassVar[float] = 0.9

    def __init__(self, from_the_start: bool) -> None:
        self._rule = CurvatureMemory()
        self._from_the_start = from_the_start
        self.n_reset = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rule, name)

    def direction(self) -> Direction:
        return Direction({"g": 1.0 if self._from_the_start or self._rule.has_memory else -1.0})

    def reset(self) -> None:
        self.n_reset += 1
        self._rule.reset()


def test_direction_that_does_not_descend_is_not_evaluated() -> None:
    """Steepest descent takes its place, and the run goes on."""
    with LocalRun(bowl(np.geomspace(1, 4, 5)), np.zeros(5)) as scene:
        rule, progress = Uphill(from_the_start=False), Progress()
        stop = minimiser(scene, rule=rule, progress=progress).minimise()
        opened = scene.deployment.of_kind(BeginSum)
        closed = scene.deployment.of_kind(EndSum)
    assert stop.reason is StopReason.GRADIENT_SMALL
    assert rule.n_reset == progress.iteration - 1
    # Each was opened by the message that brought its slope, and opened again for the next.
    assert len(opened) == len(closed) + rule.n_reset
    assert [command.evaluation for command in opened] == list(range(1, len(opened) + 1))
    assert len({command.evaluation for command in closed}) == len(closed) == progress.evaluations


def test_no_descent_anywhere_ends_the_run_by_that_reason() -> None:
    """When even the direction without memory goes uphill."""
    with LocalRun(bowl(np.geomspace(1, 4, 5)), np.zeros(5)) as scene:
        stop = minimiser(scene, rule=Uphill(from_the_start=True)).minimise()
        np.testing.assert_array_equal(scene.deployment.vector(POINT), np.zeros(5))
    assert stop.reason is StopReason.NO_DESCENT
    assert stop.numbers["evaluations"] == 0


class Overreaching:
    """A line search that tries a far step after a good one, and comes back."""

    succeeded = True
    outcome = Outcome.WOLFE
    evaluations = 2
    noise = decrease_ratio = slope_ratio = math.nan

    def __init__(self, value: float, first_step: float) -> None:
        self.step = self.best_step = first_step
        self.best_value = value
        self.done = False

    def tell(self, value: float, slope: float) -> None:
        self.done = self.step != self.best_step
        self.step = 10 * self.best_step


class FarSteps(Smooth):
    """Steps along a line by such a search."""

    def search(self, value: float, slope: float, first_step: float) -> Search:
        return Overreaching(value, first_step)


def test_best_trial_is_gone_back_to() -> None:
    """When the last one was not the best: point, gradient and value are those of the step that is told."""
    function = bowl(np.geomspace(1, 10, 5))
    with LocalRun(function, np.zeros(5)) as scene:
        progress = Progress()
        minimiser(scene, Criteria(max_iter=1), steps=FarSteps(StrongWolfe()), progress=progress).minimise()
        [event] = scene.of_kind(IterationEnded)
        point, gradient = scene.deployment.vector(POINT), scene.deployment.vector(GRADIENT)
        step, change = scene.deployment.vector("s0"), scene.deployment.vector("y0")
    np.testing.assert_allclose(point, -event.step * function(np.zeros(5))[1], rtol=1e-14)
    np.testing.assert_allclose(gradient, function(point)[1], rtol=1e-14)
    assert event.loss == progress.value == pytest.approx(function(point)[0], rel=1e-14)
    # So is the pair.
    np.testing.assert_array_equal(step, point)
    np.testing.assert_allclose(change, np.geomspace(1, 10, 5) * step, rtol=1e-12)
    # The first point, two trials, and the better of them again.
    assert event.evaluations == 4


# Pairs.


def test_pair_without_curvature_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The older pairs stay, and its slot is written to again; the run goes on."""
    has_curvature = CurvatureMemory._has_curvature
    asked: list[int] = []

    def third_has_none(memory: CurvatureMemory, slot: int, dots: Any) -> bool:
        asked.append(slot)
        return len(asked) != 3 and has_curvature(memory, slot, dots)

    monkeypatch.setattr(CurvatureMemory, "_has_curvature", third_has_none)
    with LocalRun(bowl(np.geomspace(1, 100, 20)), np.zeros(20)) as scene:
        assert minimiser(scene).minimise().reason is StopReason.GRADIENT_SMALL
    assert asked[:5] == [0, 1, 2, 2, 3]


def test_damped_pair_is_changed_on_the_shards() -> None:
    """In the round that accepts its trial: then it has the curvature that damping gives it, and the run goes on."""
    with LocalRun(rosenbrock, START) as scene:
        progress = Progress()
        made = minimiser(scene, rule=CurvatureMemory(is_damped=True), progress=progress, keeps=False)
        assert made.minimise().reason is StopReason.GRADIENT_SMALL
        rounds = scene.deployment.rounds
    changes = [
        (commands, command)
        for commands in rounds
        for command in commands
        if isinstance(command, Combine) and command.into.startswith("y") and BeginSum in map(type, commands)
    ]
    assert changes
    for commands, change in changes:
        # After the exchange of names, so that g is the gradient at the end of the step.
        assert commands[:2] == (Swap(POINT, TRIAL), Swap(GRADIENT, "trial_g"))
        assert commands[2] == change
        assert {name for _, name in change.terms} == {change.into, GRADIENT}
    assert len(rounds) == 2 * progress.evaluations + 1


def test_damping_bends_a_pair_to_a_fifth_of_the_curvature_that_was_expected() -> None:
    """``s.y`` of the changed pair is 0.2 ``s.Bs``, where ``B s`` is minus the step times the gradient before it."""
    with LocalRun(rosenbrock, START) as scene:
        made = minimiser(scene, rule=CurvatureMemory(is_damped=True), keeps=False)
        execute, checked = scene.deployment.execute, []

        def look(*commands: Command) -> list[list[float]]:
            changed = [each.into for each in commands if isinstance(each, Combine) and each.into[0] == "y"]
            if not changed or not isinstance(commands[0], Swap):
                return execute(*commands)
            before = scene.deployment.vector(GRADIENT)
            answers = execute(*commands)
            step, [name] = scene.of_kind(IterationEnded)[-1].step, changed
            s, y = scene.deployment.vector(f"s{name[1:]}"), scene.deployment.vector(name)
            checked.append((s @ y, 0.2 * step * -(s @ before)))
            return answers

        scene.deployment.execute = look
        made.minimise()
    assert checked
    for found, expected in checked:
        assert found == pytest.approx(expected, rel=1e-6)


def test_orthant_wise_pairs_are_of_the_smooth_part() -> None:
    """The step as it was projected, and the change of the gradient without the L1 penalty (section 3.2 there)."""
    curvatures = np.geomspace(1, 10, 5)
    with LocalRun(bowl(curvatures), np.array([1.5, -0.5, 2.0, -1.0, 0.0]), l1=0.5) as scene:
        minimiser(scene, Criteria(gtol=0.0, ftol=0.0, max_iter=1), steps=orthant_wise(0.5)).minimise()
        step, change = scene.deployment.vector("s0"), scene.deployment.vector("y0")
        assert scene.deployment.of_kind(ProjectedStep)
    np.testing.assert_allclose(change, curvatures * step, rtol=1e-12)


# Validation.


class Distance:
    """Stands for an evaluation on the cluster: the snapshot's distance from 1, which is there at once."""

    is_running = False

    def __init__(self, scene: LocalRun) -> None:
        self._deployment = scene.deployment
        self.n_started = 0

    def start(self, directory: Any, workers: list[str]) -> None:
        assert directory is self._deployment.directory
        assert workers == list(self._deployment.workers)
        self.is_running = True
        self.n_started += 1
        self._loss = float(np.abs(self._deployment.vector(SNAPSHOT) - 1).max())

    def poll(self, there: object = None) -> MetricSums:
        self.is_running = False
        return MetricSums(1, {"loss": self._loss})

    finish = poll


def validated(scene: LocalRun, always_due: bool) -> tuple[Minimiser, Distance]:
    made, evaluation = minimiser(scene, Criteria(gtol=1e-8, ftol=0.0, max_iter=6)), Distance(scene)
    scene.validate_by(evaluation)
    scene.run._validating._ready_at = -math.inf if always_due else math.inf
    scene.run._validating.took = lambda began, ended: None  # type: ignore[method-assign]
    return made, evaluation


@pytest.mark.parametrize("always_due", [True, False])
def test_last_point_is_validated_once(always_due: bool) -> None:
    """At the end, unless it was just done; the means are those at the point that is given back."""
    with LocalRun(bowl(np.geomspace(1, 100, 5)), np.zeros(5)) as scene:
        made, evaluation = validated(scene, always_due)
        made.minimise()
        started = evaluation.n_started
        means = made.validate()
        assert means == {"loss": float(np.abs(scene.run.best - 1).max())}
        assert made.validate() == means
        assert evaluation.n_started == started + (not always_due)
        assert started == (7 if always_due else 0)


def test_validation_is_told_with_the_passes_of_its_point() -> None:
    """The evaluations that were made when the snapshot was taken."""
    with LocalRun(bowl(np.geomspace(1, 100, 5)), np.zeros(5)) as scene:
        made, _ = validated(scene, always_due=True)
        made.minimise()
        made.validate()
    passes = [1.0, *(event.passes for event in scene.of_kind(IterationEnded))]
    assert [event.passes for event in scene.of_kind(Validated)] == passes


def test_nothing_is_validated_without_a_validation_set() -> None:
    """No snapshot is taken, and there are no means."""
    with LocalRun(bowl(np.ones(3)), np.zeros(3)) as scene:
        made = minimiser(scene)
        made.minimise()
        assert made.validate() == {}
        assert not [command for command in scene.deployment.of_kind(Combine) if command.into == SNAPSHOT]
        seen: list[type[Event]] = [type(event) for event in scene.events]
        assert Validated not in seen


class ShrinksOnce(OrthantWise):
    """Orthant-wise steps whose third search finds nothing, and ends by rounding after so many evaluations."""

    def __init__(self, l1: float, evaluations: int) -> None:
        super().__init__(ProjectedSearch(), l1)
        self.n_searches = 0
        self._evaluations = evaluations

    def search(self, value: float, slope: float, first_step: float) -> Any:
        self.n_searches += 1
        search = super().search(value, slope, first_step)
        if self.n_searches == 3:
            search.outcome, search.evaluations = Outcome.ROUNDING, self._evaluations
        return search


@pytest.mark.parametrize(("evaluations", "goes_on"), [(1, False), (13, True)])
def test_orthant_wise_search_that_shrank_for_long_is_tried_anew(evaluations: int, goes_on: bool) -> None:
    """It speaks against its direction; one that met rounding at once speaks for the end."""
    steps = ShrinksOnce(0.1, evaluations)
    with LocalRun(bowl(np.geomspace(1, 100, 5)), np.zeros(5), l1=0.1) as scene:
        minimiser(scene, Criteria(gtol=1e-7, ftol=0.0), steps=steps).minimise()
    assert (steps.n_searches > 3) == goes_on
