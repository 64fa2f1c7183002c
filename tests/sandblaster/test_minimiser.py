"""L-BFGS on the shards: where it ends, what an iteration costs in messages, and what happens when there is no step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize

from dask_belief.evaluation import SNAPSHOT
from dask_belief.monitoring.events import Event, IterationEnded, Validated
from dask_belief.monitoring.metrics import MetricSums
from dask_belief.optim.lbfgs import GRADIENT, CurvatureMemory
from dask_belief.optim.stopping import Criteria, Stop, StopReason
from dask_belief.parameter_server.messages import BeginSum, Combine, Command, Dot
from dask_belief.parameter_server.ranges import BLOCK
from dask_belief.sandblaster import minimiser as minimiser_module
from dask_belief.sandblaster.minimiser import DIRECTION, POINT, TRIAL, Minimiser, Progress
from dask_belief.seeds import stream
from tests.optim.minimise import minimise, problems, rosenbrock
from tests.sandblaster.local_run import LocalRun

SEED = 61
N = 40
START = np.tile([-1.2, 1.0], N // 2)
EXACT = Criteria(gtol=1e-8, ftol=0.0, max_iter=1000)


def minimiser(
    scene: LocalRun, criteria: Criteria = EXACT, history_size: int = 10, progress: Progress | None = None
) -> Minimiser:
    made = Minimiser(scene.run, scene.deployment, scene.batch, criteria, history_size, progress or Progress())
    # Every point is copied to the driver, not only those for which there is time: the same on every machine.
    scene.run._keeping.took = lambda began, ended: None  # type: ignore[method-assign]
    return made


def bowl(curvatures: np.ndarray) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """A parabola with these curvatures along the axes, and its minimum, 0, at 1."""

    def function(w: np.ndarray) -> tuple[float, np.ndarray]:
        away = w - 1
        return float(curvatures @ away**2 / 2), curvatures * away

    return function


# Where it ends.


@pytest.mark.parametrize("name", ["rosenbrock-10", "quadratic-30", "logistic-20"])
def test_run_ends_where_scipy_ends(name: str) -> None:
    """At the same loss, with a gradient as small as was asked for, and the point on the host."""
    function, start = problems()[name]
    with LocalRun(function, start) as scene:
        stop = minimiser(scene, Criteria(gtol=1e-6, ftol=0.0, max_iter=1000)).minimise()
        assert stop.reason is StopReason.GRADIENT_SMALL
        np.testing.assert_array_equal(scene.run.best, scene.deployment.vector(POINT))
    options = {"gtol": 1e-6, "ftol": 0.0, "maxiter": 1000, "maxfun": 10_000}
    scipys = scipy.optimize.minimize(function, start, jac=True, method="L-BFGS-B", options=options)
    value, gradient = function(scene.run.best)
    assert value == pytest.approx(scipys.fun, rel=1e-6, abs=1e-10)
    assert np.abs(gradient).max() == pytest.approx(stop.numbers["gradient_norm"], rel=1e-9)


@pytest.mark.parametrize("name", ["rosenbrock-10", "quadratic-30", "logistic-20"])
def test_run_costs_as_many_evaluations_as_with_whole_vectors(name: str) -> None:
    """The same method on NumPy vectors in one place needs as many, but for rounding."""
    function, start = problems()[name]
    with LocalRun(function, start) as scene:
        progress = Progress()
        minimiser(scene, Criteria(gtol=1e-6, ftol=0.0, max_iter=1000), progress=progress).minimise()
    assert progress.evaluations == pytest.approx(minimise(function, start, gtol=1e-6).evaluations, rel=0.1)


def test_penalty_is_part_of_what_is_minimised() -> None:
    """The minimum of ``a/2 (w - 1)^2 + l2/2 w^2`` is at ``a / (a + l2)``; at 1 where the penalty does not reach."""
    curvatures, penalised = np.geomspace(1, 10, 4), np.array([True, False, True, True])
    with LocalRun(bowl(curvatures), np.zeros(4), l2=0.5, penalised=penalised) as scene:
        minimiser(scene).minimise()
    np.testing.assert_allclose(scene.run.best, curvatures / (curvatures + 0.5 * penalised), rtol=1e-6)


def test_path_has_the_same_bits_on_any_number_of_shards() -> None:
    """Every loss, gradient norm and step, and the parameters."""
    n = 2 * BLOCK + 10
    start = stream(SEED, "start").standard_normal(n)
    function = bowl(np.geomspace(1, 50, n))
    seen = []
    for n_shards in (1, 3):
        with LocalRun(function, start, n_shards=n_shards, l2=0.1) as scene:
            minimiser(scene, Criteria(max_iter=4)).minimise()
            ended = scene.of_kind(IterationEnded)
        seen.append(([(event.loss, event.gradient_norm, event.step) for event in ended], scene.run.best))
    assert seen[0][0] == seen[1][0]
    assert len(seen[0][0]) == 4
    np.testing.assert_array_equal(seen[0][1], seen[1][1])


# What it costs in messages.


def is_direction(commands: tuple[Command, ...]) -> bool:
    return any(isinstance(command, Combine) and command.into == DIRECTION for command in commands)


def is_dots_of_memory(commands: tuple[Command, ...]) -> bool:
    """A round that brings the table of dot products; slopes are brought by others, which open or close a sum."""
    return isinstance(commands[-1], Dot) and (GRADIENT, GRADIENT) in commands[-1].pairs


@pytest.mark.parametrize("history_size", [3, 30])
def test_direction_costs_one_round_of_dot_products_and_one_of_combination(history_size: int) -> None:
    """Whatever the history size: an evaluation costs two rounds, a direction one more, and its combination none."""
    with LocalRun(rosenbrock, START) as scene:
        progress = Progress()
        made = minimiser(scene, history_size=history_size, progress=progress)
        made.minimise()
        rounds = scene.deployment.rounds
    assert progress.iteration > 40
    assert made._memory.n_pairs == history_size
    dots, combined = (
        [which(commands) for commands in rounds].count(True) for which in (is_dots_of_memory, is_direction)
    )
    # The first table is that of the gradient alone; each iteration brings the next, and combines once.
    assert dots == progress.iteration + 1
    assert combined == progress.iteration
    assert len(rounds) == 2 * progress.evaluations + dots


def test_combination_and_first_trial_are_one_message_over_the_whole_history() -> None:
    """It names the gradient and both vectors of every pair once, and opens the evaluation at the trial point."""
    with LocalRun(rosenbrock, START) as scene:
        minimiser(scene, Criteria(gtol=0.0, ftol=0.0, max_iter=35), history_size=30).minimise()
        last = [commands for commands in scene.deployment.rounds if is_direction(commands)][-1]
    direction, slope, trial, opened = last
    names = [name for _, name in direction.terms]
    assert len(names) == len(set(names)) == 2 * 30 + 1
    assert slope == Dot(((DIRECTION, GRADIENT),))
    assert trial == Combine(TRIAL, ((1.0, POINT), (1.0, DIRECTION)))
    assert isinstance(opened, BeginSum)


@pytest.mark.parametrize("history_size", [3, 30])
def test_dot_products_of_an_iteration_grow_with_the_history_and_not_with_its_square(history_size: int) -> None:
    """Six a pair: the new two and the gradient with what is kept; products between kept vectors are known."""
    with LocalRun(rosenbrock, START) as scene:
        minimiser(scene, Criteria(gtol=0.0, ftol=0.0, max_iter=35), history_size=history_size).minimise()
        tables = [commands[-1].pairs for commands in scene.deployment.rounds if is_dots_of_memory(commands)]
    assert len(tables[-1]) <= 6 * (history_size + 1)
    assert len(set(tables[-1])) == len(tables[-1])


# What listeners and the next generation are told.


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


def test_next_generation_goes_on_from_the_kept_point() -> None:
    """Iterations are counted on from it, evaluations from those that were made, and it ends at the same minimum."""
    function = bowl(np.geomspace(1, 100, 20))
    progress = Progress()
    with LocalRun(function, np.zeros(20)) as first:
        minimiser(first, Criteria(gtol=1e-8, ftol=0.0, max_iter=5), progress=progress).minimise()
    progress.iteration, progress.value = 7, -1.0
    progress.go_back()
    made = progress.evaluations
    with LocalRun(function, first.run.best, n_done=made) as second:
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
    assert stop.reason is StopReason.GRADIENT_SMALL
    assert (progress.iteration, progress.evaluations, progress.value) == (0, 1, 0.0)


def test_callback_ends_the_run() -> None:
    """After the iteration at which it asked."""
    with LocalRun(rosenbrock, START) as scene:
        scene.answer = True
        stop = minimiser(scene).minimise()
    assert (stop.reason, len(scene.of_kind(IterationEnded))) == (StopReason.CALLBACK, 1)


# No step.


class Turns:
    """A function whose gradient is the wrong way round, or not there, from its `after`-th evaluation on."""

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


def run_of(function: Turns, progress: Progress) -> tuple[Stop, LocalRun, list[Any], np.ndarray]:
    with LocalRun(function, np.zeros(5), rows=(1.0,), unit_rows=1) as scene:
        stop = minimiser(scene, progress=progress).minimise()
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


def test_steepest_descent_is_not_tried_twice() -> None:
    """At the start it is the first direction already."""
    _, scene, directions, point = run_of(Turns(1, uphill), Progress())
    assert [direction.terms for direction in directions] == [((-1.0, GRADIENT),)]
    np.testing.assert_array_equal(point, np.zeros(5))
    assert not scene.of_kind(IterationEnded)


def test_values_that_are_nowhere_finite_end_the_run_by_that_reason() -> None:
    """At the first point, which was finite."""
    stop, _, _, point = run_of(Turns(1, lambda value, gradient: (math.nan, gradient)), Progress())
    assert stop.reason is StopReason.NOT_FINITE
    np.testing.assert_array_equal(point, np.zeros(5))


def test_run_goes_on_after_a_step_that_was_not_finite() -> None:
    """The line search comes back to where there are numbers."""

    def walled(w: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = bowl(np.ones(3))(w)
        return (value, gradient) if w.max() < 1.0 + 1e-3 else (math.inf, np.full(3, np.nan))

    with LocalRun(walled, np.array([-50.0, 0.0, 0.5])) as scene:
        assert minimiser(scene).minimise().reason is StopReason.GRADIENT_SMALL
    np.testing.assert_allclose(scene.run.best, 1.0, atol=1e-7)


class Overreaching:
    """A line search that tries a far step after a good one, and comes back."""

    succeeded = True

    def __init__(self, options: object, value: float, slope: float, first_step: float) -> None:
        self.step = self.best_step = first_step
        self.done = False

    def tell(self, value: float, slope: float) -> None:
        self.done = self.step != self.best_step
        self.step = 10 * self.best_step


def test_best_trial_is_gone_back_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the last one was not the best: point, gradient and value are those of the step that is told."""
    monkeypatch.setattr(minimiser_module, "LineSearch", Overreaching)
    function = bowl(np.geomspace(1, 10, 5))
    with LocalRun(function, np.zeros(5)) as scene:
        progress = Progress()
        minimiser(scene, Criteria(max_iter=1), progress=progress).minimise()
        [event] = scene.of_kind(IterationEnded)
        point, gradient = scene.deployment.vector(POINT), scene.deployment.vector(GRADIENT)
    np.testing.assert_allclose(point, -event.step * function(np.zeros(5))[1], rtol=1e-14)
    np.testing.assert_allclose(gradient, function(point)[1], rtol=1e-14)
    assert event.loss == progress.value == pytest.approx(function(point)[0], rel=1e-14)
    # The first point, two trials, and the better of them again.
    assert event.evaluations == 4


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


# Validation.


class Distance:
    """Stands for an evaluation on the cluster: the snapshot's distance from 1, which is there at once."""

    is_running = False

    def __init__(self, scene: LocalRun) -> None:
        self._deployment = scene.deployment
        self.n_started = 0

    def start(self, directory: Any) -> None:
        assert directory is self._deployment.directory
        self.is_running = True
        self.n_started += 1
        self._loss = float(np.abs(self._deployment.vector(SNAPSHOT) - 1).max())

    def poll(self) -> MetricSums:
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
