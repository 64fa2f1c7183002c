"""From the options to the answer, on local shards: directions, penalties, ends, and what is lost on the way."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dask_belief.checkpoint import Loaded
from dask_belief.errors import ActorLostError, NonFiniteError
from dask_belief.monitoring.events import IterationEnded, Rebuilt
from dask_belief.optim import direction as direction_module
from dask_belief.optim.direction import DirectionRule
from dask_belief.optim.stopping import Stop, StopReason
from dask_belief.parameter_server.messages import BeginSum, Combine, Multiply
from dask_belief.parameter_server.ranges import BLOCK
from dask_belief.run import Outcome
from dask_belief.sandblaster.config import Sandblaster
from dask_belief.sandblaster.driver import SandblasterDriver
from dask_belief.sandblaster.steps import DIAGONAL, POINT
from dask_belief.seeds import stream
from tests.optim.minimise import Objective, problems, rosenbrock
from tests.sandblaster.local_run import LocalRun, status

SEED = 71


def scene_of(function: Objective, initial: np.ndarray, method: Sandblaster, **options: Any) -> LocalRun:
    """A local run with the penalties of a method."""
    return LocalRun(function, initial, l1=method.l1, l2=method.l2, n_shards=method.n_shards or 1, **options)


def driver_of(scene: LocalRun, method: Sandblaster) -> SandblasterDriver:
    scene.run.on_cluster = scene.on_cluster  # type: ignore[method-assign]
    driver = SandblasterDriver(scene.run, method)
    assert len(driver._plan) == len(scene.plan)
    return driver


def drive(
    function: Objective, initial: np.ndarray, method: Sandblaster, **options: Any
) -> tuple[Outcome, list[IterationEnded]]:
    """Run to the end."""
    with scene_of(function, initial, method, **options) as scene:
        outcome = driver_of(scene, method).drive()
        np.testing.assert_array_equal(outcome.parameters, scene.deployment.vector(POINT))
        return outcome, scene.of_kind(IterationEnded)


def exactly(**options: Any) -> Sandblaster:
    """To a gradient of 1e-6, however long it takes."""
    return Sandblaster(**({"unit_rows": 2, "gtol": 1e-6, "ftol": 0.0, "max_iter": 5000} | options))


def ill_scaled(curvatures: np.ndarray) -> Objective:
    """A parabola along the axes, with its minimum, 0, at 1."""

    def function(w: np.ndarray) -> tuple[float, np.ndarray]:
        away = w - 1
        return float(curvatures @ away**2 / 2), curvatures * away

    return function


# Directions.


def documented_rule() -> type:
    """The example of `DirectionRule`, as it stands in its documentation."""
    text = inspect.getdoc(DirectionRule)
    assert text is not None
    example = next(each for each in doctest.DocTestParser().get_examples(text) if each.source.startswith("class"))
    names: dict[str, Any] = dict(vars(direction_module))
    exec(example.source, names)
    made: type = names["HeavyBall"]
    return made


QUICK = [
    pytest.param(exactly(), id="lbfgs"),
    pytest.param(exactly(history_size=1), id="one pair"),
    pytest.param(exactly(damping=True), id="damped"),
    pytest.param(exactly(direction="conjugate_gradient"), id="conjugate gradient"),
    pytest.param(exactly(l1=1e-3), id="l1"),
]
SLOW = [
    pytest.param(exactly(direction="gradient_descent", gtol=1e-3), id="gradient descent"),
    pytest.param(exactly(direction=documented_rule(), gtol=1e-3), id="own rule"),
    pytest.param(exactly(l1=1e-3, direction="gradient_descent", gtol=1e-3), id="l1, gradient descent"),
    pytest.param(exactly(l1=1e-3, direction=documented_rule(), gtol=1e-3), id="l1, own rule"),
]


@pytest.mark.parametrize(
    ("name", "method"),
    [
        pytest.param(name, *each.values, id=f"{name}, {each.id}")
        for names, methods in ((("rosenbrock-2", "quadratic-30", "logistic-20"), QUICK), (("logistic-20",), SLOW))
        for name in names
        for each in methods
    ],
)
def test_every_method_solves_every_problem(name: str, method: Sandblaster) -> None:
    """To the gradient that was asked for, or until rounding leaves nothing; the slow ones the easy one."""
    function, start = problems()[name]
    outcome, events = drive(function, start, method)
    assert outcome.stop.reason in {StopReason.GRADIENT_SMALL, StopReason.LINE_SEARCH_ROUNDING}
    value, gradient = function(outcome.parameters)
    assert outcome.loss == pytest.approx(value + method.l1 * np.abs(outcome.parameters).sum(), rel=1e-9, abs=1e-15)
    # A few times what was asked for where rounding ended it, and with an L1 penalty within the penalty's own slope.
    assert np.abs(gradient).max() <= 3 * method.gtol + method.l1
    assert outcome.passes == events[-1].evaluations


def test_search_is_as_sharp_as_the_direction_needs() -> None:
    """A tenth of the slope may be left with conjugate gradients, unless the options say otherwise."""
    function, start = problems()["logistic-20"]
    for options, most in (({}, 0.1), ({"c2": 0.01}, 0.01), ({"c2": 0.5}, 0.5)):
        method = Sandblaster(unit_rows=2, direction="conjugate_gradient", max_iter=10, **options)
        _, events = drive(function, start, method)
        ratios = [event.slope_ratio for event in events]
        assert max(ratios) <= most
        assert len(ratios) == 10


def test_step_brings_the_share_of_the_decrease_that_is_asked_for() -> None:
    """By the option c1, along a line and within an orthant."""
    for l1 in (0.0, 1e-3):
        _, events = drive(rosenbrock, np.array([-1.2, 1.0]), exactly(c1=0.3, max_iter=30, l1=l1))
        assert min(event.decrease_ratio for event in events) >= 0.3


# Penalties.


PENALISED = np.arange(24) % 6 > 0
"""Every sixth parameter is a bias."""


def correlated() -> tuple[np.ndarray, np.ndarray]:
    """A Hessian with neighbours that resemble each other, and the minimum without a penalty."""
    apart = np.abs(np.subtract.outer(np.arange(24), np.arange(24)))
    scales = np.geomspace(0.5, 3, 24)
    return scales[:, None] * 0.6**apart * scales, stream(SEED, "centre").standard_normal(24)


def coordinate_descent(hessian: np.ndarray, centre: np.ndarray, l1: np.ndarray, l2: np.ndarray) -> np.ndarray:
    """The minimum of ``(w - c) H (w - c) / 2 + l2 w^2 / 2 + l1 |w|``, one coordinate after another, exactly."""
    w = np.zeros_like(centre)
    for _ in range(2000):
        for j in range(len(w)):
            pull = hessian[j] @ (centre - w) + hessian[j, j] * w[j]
            w[j] = np.sign(pull) * max(abs(pull) - l1[j], 0.0) / (hessian[j, j] + l2[j])
    return w


@pytest.mark.parametrize("l2", [0.0, 0.5])
@pytest.mark.parametrize("l1", [0.1, 1.0])
@pytest.mark.parametrize("penalised", [None, PENALISED], ids=["all", "no biases"])
def test_penalties_give_what_coordinate_descent_gives(l1: float, l2: float, penalised: np.ndarray | None) -> None:
    """The same minimum, the same zeros; biases are drawn by neither."""
    hessian, centre = correlated()

    def function(w: np.ndarray) -> tuple[float, np.ndarray]:
        gradient = hessian @ (w - centre)
        return float((w - centre) @ gradient / 2), gradient

    covered = np.ones(24, bool) if penalised is None else penalised
    expected = coordinate_descent(hessian, centre, l1 * covered, l2 * covered)
    outcome, _ = drive(function, np.zeros(24), exactly(l1=l1, l2=l2), penalised=penalised)
    assert outcome.stop.converged
    np.testing.assert_array_equal(outcome.parameters == 0, expected == 0)
    np.testing.assert_allclose(outcome.parameters, expected, rtol=1e-5, atol=1e-6)
    assert 0 < np.count_nonzero(expected == 0) < covered.sum()
    assert (expected[~covered] != 0).all()


def logistic() -> Objective:
    """A mean logistic loss of which a few inputs matter; the first parameter is a bias."""
    generator = stream(SEED, "inputs")
    inputs = generator.standard_normal((300, 24)) * np.geomspace(0.3, 2, 24)
    inputs[:, 0] = 1.0
    weights = np.where(np.arange(24) % 5 == 0, 1.5, 0.0)
    signs = np.where(inputs @ weights + generator.standard_normal(300) > 0, 1.0, -1.0)

    def objective(w: np.ndarray) -> tuple[float, np.ndarray]:
        margins = signs * (inputs @ w)
        pull = -signs * np.exp(-np.logaddexp(0, margins)) / 300
        return float(np.logaddexp(0, -margins).mean()), inputs.T @ pull

    return objective


def proximal_gradient(function: Objective, l1: np.ndarray, l2: float, step: float) -> np.ndarray:
    """The minimum with both penalties, by accelerated proximal gradients (Beck and Teboulle 2009)."""
    w = before = np.zeros(len(l1))
    for iteration in range(1, 20_000):
        ahead = w + (iteration - 1) / (iteration + 2) * (w - before)
        moved = ahead - step * (function(ahead)[1] + l2 * (l1 > 0) * ahead)
        before, w = w, np.sign(moved) * np.maximum(np.abs(moved) - step * l1, 0.0)
    return w


@pytest.mark.parametrize("l2", [0.0, 0.01])
@pytest.mark.parametrize("l1", [0.003, 0.03])
def test_penalised_regression_gives_what_proximal_gradients_give(l1: float, l2: float) -> None:
    """The same objective to nine digits, the same zeros; the bias is not drawn."""
    function, penalised = logistic(), np.arange(24) > 0
    expected = proximal_gradient(function, l1 * penalised, l2, step=0.5)
    outcome, _ = drive(function, np.zeros(24), exactly(l1=l1, l2=l2), penalised=penalised)

    def objective(w: np.ndarray) -> float:
        covered = w[penalised]
        return function(w)[0] + l2 / 2 * float(covered @ covered) + l1 * float(np.abs(covered).sum())

    assert outcome.stop.converged
    assert outcome.loss == pytest.approx(objective(outcome.parameters), rel=1e-12)
    assert objective(outcome.parameters) == pytest.approx(objective(expected), rel=1e-9)
    np.testing.assert_array_equal(outcome.parameters == 0, expected == 0)
    assert 0 < np.count_nonzero(expected == 0) < 23
    assert expected[0] != 0


def test_penalty_that_is_larger_than_every_slope_leaves_nothing() -> None:
    """Zero is the minimum: the first evaluation sees it."""
    function = logistic()
    largest = float(np.abs(function(np.zeros(24))[1]).max())
    outcome, events = drive(function, np.zeros(24), exactly(l1=1.01 * largest))
    assert outcome.stop.reason is StopReason.GRADIENT_SMALL
    assert (outcome.passes, events) == (1.0, [])
    assert not outcome.parameters.any()


def test_penalised_path_has_the_same_bits_on_any_number_of_shards() -> None:
    """Both penalties, a mask, and a diagonal together."""
    n = 2 * BLOCK + 10
    function, start = ill_scaled(np.geomspace(1, 1000, n)), stream(SEED, "start").standard_normal(n)
    seen = []
    for n_shards in (1, 3):
        method = Sandblaster(
            max_iter=4, unit_rows=2, l1=2.0, l2=0.1, first_hessian="adagrad", n_shards=n_shards, gtol=0.0, ftol=0.0
        )
        options = {"penalised": np.arange(n) % 10_000 > 7, "adagrad_sums": np.geomspace(1, 1e5, n)}
        outcome, events = drive(function, start, method, **options)
        seen.append(([(event.loss, event.gradient_norm, event.step) for event in events], outcome.parameters))
    assert seen[0][0] == seen[1][0]
    assert len(seen[0][0]) == 4
    np.testing.assert_array_equal(seen[0][1], seen[1][1])


# What Adagrad knows.


@pytest.mark.parametrize("l1", [0.0, 1e-3])
def test_adagrads_sums_save_evaluations_where_scales_differ(l1: float) -> None:
    """On a parabola whose curvatures span five powers of ten: gradients are large where it is steep."""
    curvatures = np.geomspace(1e-2, 1e3, 20)
    sums = np.square(curvatures * stream(SEED, "path").standard_normal((50, 20))).sum(axis=0)
    method = exactly(l1=l1, gtol=1e-4)
    scaled, _ = drive(ill_scaled(curvatures), np.zeros(20), method)
    method = exactly(l1=l1, gtol=1e-4, first_hessian="adagrad")
    diagonal, _ = drive(ill_scaled(curvatures), np.zeros(20), method, adagrad_sums=sums)
    assert scaled.stop.converged
    assert diagonal.stop.converged
    assert diagonal.loss == pytest.approx(scaled.loss, abs=1e-5)
    assert diagonal.passes < scaled.passes / 2


def test_diagonal_is_made_of_the_sums_and_the_sums_are_dropped() -> None:
    """Directions are scaled by it, from the first on."""
    sums = np.array([0.0, 1.0, 4.0, 100.0])
    method = Sandblaster(unit_rows=2, first_hessian="adagrad", max_iter=3, gtol=0.0, ftol=0.0)
    with scene_of(ill_scaled(np.geomspace(1, 10, 4)), np.zeros(4), method, adagrad_sums=sums) as scene:
        driver_of(scene, method).drive()
        np.testing.assert_allclose(scene.deployment.vector(DIAGONAL), 1 / (np.sqrt(sums) + 1e-6), rtol=1e-12)
        with pytest.raises(KeyError):
            scene.deployment.vector("adagrad_sums")
        scaled = [command for command in scene.deployment.of_kind(Multiply) if command.right == DIAGONAL]
        assert len(scaled) == 3


# Ends.


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"gtol": 1e-6, "ftol": 0.0}, StopReason.GRADIENT_SMALL),
        ({"gtol": 0.0, "ftol": 1e-2}, StopReason.DECREASE_SMALL),
        ({"gtol": 0.0, "ftol": 0.0, "max_iter": 3}, StopReason.MAX_ITERATIONS),
        ({"gtol": 0.0, "ftol": 0.0, "maxiter": 3}, StopReason.MAX_ITERATIONS),
        ({"gtol": 0.0, "ftol": 0.0, "max_evaluations": 6}, StopReason.MAX_EVALUATIONS),
        ({"gtol": 0.0, "ftol": 0.0, "maxfun": 6}, StopReason.MAX_EVALUATIONS),
        ({"gtol": 0.0, "ftol": 0.0, "max_seconds": 0.0}, StopReason.MAX_SECONDS),
    ],
)
@pytest.mark.parametrize("l1", [0.0, 0.1])
def test_options_end_the_run(options: dict[str, Any], reason: StopReason, l1: float) -> None:
    """Each by its own reason, and the last point is handed back."""
    method = Sandblaster(unit_rows=2, l1=l1, **options)
    outcome, events = drive(ill_scaled(np.geomspace(1, 100, 20)), np.zeros(20), method)
    assert outcome.stop.reason is reason
    assert outcome.loss == events[-1].loss if events else np.isfinite(outcome.loss)
    assert outcome.repeatable == (reason is not StopReason.MAX_SECONDS)


def test_run_in_float32_ends_by_rounding_and_says_so() -> None:
    """Where a gradient of zero is asked for: the numbers hold an estimate of the noise."""
    function, start = problems()["logistic-20"]

    def rounded(w: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = function(w.astype(np.float64))
        return float(np.float32(value)), gradient.astype(np.float32)

    outcome, _ = drive(rounded, start.astype(np.float32), exactly(gtol=0.0))
    assert outcome.parameters.dtype == np.float32
    assert outcome.stop.converged
    if outcome.stop.reason is StopReason.LINE_SEARCH_ROUNDING:
        assert 0 <= outcome.stop.numbers["noise"] < 1e-6
    assert np.abs(function(outcome.parameters.astype(np.float64))[1]).max() < 1e-4


def test_start_that_is_not_finite_is_an_error() -> None:
    """There is no point to give back."""
    with pytest.raises(NonFiniteError, match=r"unit 0 \(rows 0 to 1\)"):
        drive(lambda w: (np.nan, w), np.zeros(3), Sandblaster(unit_rows=2))


def test_interrupt_goes_back_to_the_point_that_was_kept() -> None:
    """Its value, its iteration, and no validation."""
    calls = 0

    def function(w: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal calls
        calls += 1
        if calls > 30:
            raise KeyboardInterrupt
        return rosenbrock(w)

    method, start = exactly(), np.tile([-1.2, 1.0], 5)
    with scene_of(function, start, method) as scene:
        # Kept at every iteration up to the sixth.
        scene.run._keeping.took = lambda began, ended: None  # type: ignore[method-assign]
        scene.run._keeping.is_due = lambda now: len(scene.of_kind(IterationEnded)) <= 6  # type: ignore[method-assign]
        outcome = driver_of(scene, method).drive()
        events = scene.of_kind(IterationEnded)
    assert len(events) > 6
    assert outcome.stop.reason is StopReason.INTERRUPTED
    assert outcome.stop.numbers["iteration"] == 6
    assert outcome.loss == events[5].loss == pytest.approx(rosenbrock(outcome.parameters)[0], rel=1e-12)


# What is lost on the way.


def losing(scene: LocalRun, evaluations: Collection[int], shards: tuple[int, ...] = (0,)) -> None:
    """Lose shards while an evaluation is made, for each of these, counted from one and by calls."""
    answer, calls = scene.deployment.ask, 0

    def ask(method: str, asked: int, limit_seconds: float) -> Any:
        nonlocal calls
        calls += 1
        if calls in evaluations:
            scene.deployment.lose(*shards)
            raise ActorLostError("a shard is gone.")
        return answer(method, asked, limit_seconds)

    scene.deployment.ask = ask


def numbers_of(events: list[IterationEnded]) -> dict[int, str]:
    """All that does not depend on time, by iteration; what was computed twice has the same bits."""
    names = ("evaluations", "loss", "gradient_norm", "step", "passes", "curvature", "decrease_ratio", "slope_ratio")
    told: dict[int, str] = {}
    for event in events:
        numbers = repr([getattr(event, name) for name in names])
        assert told.setdefault(event.iteration, numbers) == numbers
    return told


RECOVERED = [
    pytest.param({"history_size": 3}, id="lbfgs"),
    pytest.param({"history_size": 3, "first_hessian": "adagrad"}, id="diagonal"),
    pytest.param({"history_size": 3, "l1": 1e-2, "l2": 1e-2}, id="l1"),
    pytest.param({"direction": "conjugate_gradient"}, id="conjugate gradient"),
    pytest.param({"direction": documented_rule()}, id="own rule"),
]


@pytest.mark.parametrize("options", RECOVERED)
@pytest.mark.parametrize("every", [None, 1, 3])
def test_lost_shards_cost_time_and_change_no_bit(options: dict[str, Any], every: int | None) -> None:
    """At each evaluation, with saves after every iteration, some, or none yet."""
    start = np.tile([-1.2, 1.0], 5)
    method = Sandblaster(unit_rows=2, gtol=0.0, ftol=0.0, max_iter=7, **options)
    sums = {"adagrad_sums": np.geomspace(1, 100, 10)}
    expected, events = drive(rosenbrock, start, method, **sums)
    for evaluation in range(1, int(expected.passes) + 1):
        with scene_of(rosenbrock, start, method, **sums) as scene:
            driver = driver_of(scene, method)
            # There is a place to save to, and what was not saved yet is begun again.
            scene.deployment.workers = {"a": 1, "b": 1}
            scene.shelf.wanted = lambda driver=driver: every is not None and driver._progress.iteration % every == 0
            losing(scene, {evaluation})
            outcome = driver.drive()
            found, rebuilt = scene.of_kind(IterationEnded), scene.of_kind(Rebuilt)
        assert numbers_of(found) == numbers_of(events)
        assert outcome.parameters.tobytes() == expected.parameters.tobytes()
        assert (outcome.loss, outcome.stop, outcome.passes) == (expected.loss, expected.stop, expected.passes)
        assert outcome.repeatable
        assert scene.shelf.n_ways == 1
        [event] = rebuilt
        assert event.reason == "shard 0 was lost."
        again = len(found) - len(events)
        assert f"back to iteration {event.iteration} by " in event.lost
        assert event.lost.endswith(f", {again} are computed again")
        assert again <= 7 if every is None else again < every
        assert ("the beginning of the run" in event.lost) == (every is None or evaluation == 1)


def test_shards_are_lost_again_and_again() -> None:
    """Also while the run goes back; the numbers stay."""
    start, method = np.tile([-1.2, 1.0], 5), Sandblaster(unit_rows=2, gtol=0.0, ftol=0.0, max_iter=9, history_size=3)
    expected, events = drive(rosenbrock, start, method)
    with scene_of(rosenbrock, start, method) as scene:
        driver = driver_of(scene, method)
        scene.deployment.workers = {"a": 1, "b": 1}
        scene.shelf.wanted = lambda: driver._progress.iteration % 2 == 0
        losing(scene, {1, 2, 5, 6, 7, 12, 13, 16})
        replaced, n_failed = scene.deployment.replace, 0

        def failing(*arguments: Any) -> None:
            nonlocal n_failed
            n_failed += 1
            if n_failed % 3 == 0:
                raise ActorLostError("and another one.")
            replaced(*arguments)

        scene.deployment.replace = failing
        outcome = driver.drive()
    assert n_failed > 8
    assert numbers_of(scene.of_kind(IterationEnded)) == numbers_of(events)
    assert outcome.parameters.tobytes() == expected.parameters.tobytes()
    numbers = [command.evaluation for command in scene.deployment.of_kind(BeginSum)]
    assert len(set(numbers)) == len(numbers)


def test_all_shards_may_be_lost() -> None:
    """Each of several, and all at once, of a vector that is cut; each is filled with its own part."""
    n = 2 * BLOCK + 10
    function, start = ill_scaled(np.geomspace(1, 50, n)), np.linspace(-2, 2, n)
    method = Sandblaster(unit_rows=2, gtol=0.0, ftol=0.0, max_iter=4, history_size=3, n_shards=3)
    expected, events = drive(function, start, method)
    for shards in ((0,), (2,), (0, 2), (0, 1, 2)):
        with scene_of(function, start, method) as scene:
            driver = driver_of(scene, method)
            scene.shelf.wanted = lambda driver=driver: driver._progress.iteration == 2
            losing(scene, {int(events[1].evaluations) + 1}, shards)
            outcome = driver.drive()
        assert numbers_of(scene.of_kind(IterationEnded)) == numbers_of(events)
        assert outcome.parameters.tobytes() == expected.parameters.tobytes()


def test_without_a_place_to_save_it_goes_on_from_the_kept_point() -> None:
    """With the diagonal made anew, evaluations counted on, and the same minimum in the end; not to be repeated."""
    function, method = ill_scaled(np.geomspace(1, 100, 20)), exactly(first_hessian="adagrad")
    with scene_of(function, np.zeros(20), method, adagrad_sums=np.ones(20)) as scene:
        scene.run._keeping.took = lambda began, ended: None  # type: ignore[method-assign]
        losing(scene, {6})
        scene.shelf.is_place = False
        outcome = driver_of(scene, method).drive()
        np.testing.assert_allclose(scene.deployment.vector(DIAGONAL), np.ones(20), rtol=2e-6)
        [rebuilt] = scene.of_kind(Rebuilt)
        events = scene.of_kind(IterationEnded)
        before = events[: rebuilt.iteration]
    assert rebuilt.lost.startswith(f"back to iteration {len(before)} by the parameters that the driver has a copy of")
    assert outcome.stop.reason is StopReason.GRADIENT_SMALL
    assert not outcome.repeatable
    # Pairs of the iterations that come again have other values than before.
    assert scene.shelf.n_ways == 2
    assert [event.iteration for event in events] == list(range(1, len(events) + 1))
    assert events[len(before)].loss < before[-1].loss
    # The five that were done, and the kept point once more.
    assert events[len(before)].evaluations >= 5 + 2
    np.testing.assert_allclose(outcome.parameters, 1.0, rtol=1e-5)


@pytest.mark.parametrize("further", [1, 2, 3])
def test_interrupt_of_a_run_that_began_again_gives_the_better_point(further: int) -> None:
    """What is handed back belongs together: the copy that was made before the loss, its iteration, its value."""
    method, start = exactly(), np.tile([-1.2, 1.0], 5)
    with scene_of(rosenbrock, start, method) as scene:
        scene.deployment.workers = {"a": 1, "b": 1}
        scene.run._keeping.took = lambda began, ended: None  # type: ignore[method-assign]
        losing(scene, {6})
        scene.run._keeping.is_due = lambda now: not scene.of_kind(Rebuilt)  # type: ignore[method-assign]
        answer, n_after = scene.deployment.ask, 0

        def ask(*asked: Any) -> Any:
            nonlocal n_after
            n_after += bool(scene.of_kind(Rebuilt))
            if n_after == further:
                raise KeyboardInterrupt
            return answer(*asked)

        scene.deployment.ask = ask
        outcome = driver_of(scene, method).drive()
        [rebuilt] = scene.of_kind(Rebuilt)
        events = scene.of_kind(IterationEnded)
    assert rebuilt.iteration == 0
    kept = int(outcome.stop.numbers["iteration"])
    assert outcome.stop.reason is StopReason.INTERRUPTED
    assert kept >= 2
    assert outcome.loss == events[kept - 1].loss == pytest.approx(rosenbrock(outcome.parameters)[0], rel=1e-12)


@pytest.mark.parametrize("is_saved", [True, False])
def test_loss_after_the_end_is_followed_by_no_training(is_saved: bool) -> None:
    """The last point is written to the new shards, be there a saved state of an older one or not."""
    method = exactly()
    expected, _ = drive(rosenbrock, np.array([-1.2, 1.0]), method)
    with scene_of(rosenbrock, np.array([-1.2, 1.0]), method) as scene:
        driver = driver_of(scene, method)
        scene.shelf.wanted = lambda: is_saved and driver._progress.iteration == 3
        finish, n_rounds = scene.run.finish_validation, 0

        def lost() -> dict[str, float]:
            nonlocal n_rounds
            scene.run.finish_validation = finish  # type: ignore[method-assign]
            n_rounds = len(scene.deployment.evaluated_at)
            scene.deployment.lose(0)
            raise ActorLostError("a shard is gone.")

        scene.run.finish_validation = lost  # type: ignore[method-assign]
        outcome = driver.drive()
        assert len(scene.deployment.evaluated_at) == n_rounds
        np.testing.assert_array_equal(scene.deployment.vector(POINT), expected.parameters)
    assert (outcome.stop, outcome.loss, outcome.passes) == (expected.stop, expected.loss, expected.passes)
    assert outcome.repeatable
    np.testing.assert_array_equal(outcome.parameters, expected.parameters)


# Resumed.


@pytest.mark.parametrize("options", RECOVERED[:-1])
def test_resumed_run_gives_the_bits_of_one_that_was_not_broken_off(options: dict[str, Any]) -> None:
    """From each iteration, in its units whatever the options would give; also after a loss at once."""
    start = np.tile([-1.2, 1.0], 5)
    method = Sandblaster(unit_rows=2, gtol=0.0, ftol=0.0, max_iter=7, **options)
    sums = {"adagrad_sums": np.geomspace(1, 100, 10)}
    rows = (1.0, 0.3, 0.1, 0.7)
    expected, events = drive(rosenbrock, start, method, rows=rows, **sums)
    with scene_of(rosenbrock, start, method, rows=rows, **sums) as scene:
        scene.shelf.wanted = lambda: True
        first = driver_of(scene, method)
        first.drive()
        shelf = scene.shelf
    assert len(shelf.states) == 7
    for saved in shelf.states:
        for lost in ((), {1}, {2}):
            shelf.newest, shelf.wanted = saved, lambda: False
            with scene_of(rosenbrock, start, method, rows=rows, **sums) as scene:
                scene.shelf = scene.run.vault = shelf
                scene.run.facts = replace(
                    scene.run.facts, resumed=Loaded(saved, {}, (), saved.number, "1970-01-01T00:00:00+00:00")
                )
                scene.run.on_cluster = scene.on_cluster  # type: ignore[method-assign]
                # Units of one row each would give other bits.
                driver = SandblasterDriver(scene.run, replace(method, unit_rows=1))
                assert driver._plan == first._plan
                losing(scene, lost)
                outcome = driver.drive()
                found = numbers_of(scene.of_kind(IterationEnded))
            done = saved.state["iteration"]
            assert found == {key: told for key, told in numbers_of(events).items() if key > done}
            assert outcome.parameters.tobytes() == expected.parameters.tobytes()
            assert (outcome.loss, outcome.stop, outcome.passes) == (expected.loss, expected.stop, expected.passes)


def test_interrupt_of_a_resumed_run_gives_the_point_that_it_began_with() -> None:
    """With its iteration and its value."""
    start, method = np.tile([-1.2, 1.0], 5), exactly(max_iter=5)
    with scene_of(rosenbrock, start, method) as scene:
        scene.shelf.wanted = lambda: True
        driver_of(scene, method).drive()
        shelf, events = scene.shelf, scene.of_kind(IterationEnded)
    shelf.newest, shelf.wanted = shelf.states[3], lambda: False
    with scene_of(rosenbrock, start, method) as scene:
        scene.shelf = scene.run.vault = shelf
        driver = driver_of(scene, method)

        def interrupted(*asked: Any) -> Any:
            raise KeyboardInterrupt

        scene.deployment.ask = interrupted
        outcome = driver.drive()
    assert outcome.stop == Stop(StopReason.INTERRUPTED, {"iteration": 3.0})
    assert outcome.loss == events[2].loss == pytest.approx(rosenbrock(outcome.parameters)[0], rel=1e-12)


# Time.


def test_time_that_is_up_within_an_evaluation_gives_the_last_point() -> None:
    """The best that is known: all that is copied to the driver belongs to it."""
    method = exactly(max_seconds=100.0)
    with scene_of(rosenbrock, np.tile([-1.2, 1.0], 5), method) as scene:
        answer = scene.deployment.ask

        def slow(asked: str, evaluation: int, limit_seconds: float) -> Any:
            if evaluation < 9:
                return answer(asked, evaluation, limit_seconds)
            scene.run._began -= 200.0
            return status(n_done=1)

        scene.deployment.ask = slow
        outcome = driver_of(scene, method).drive()
        last = scene.of_kind(IterationEnded)[-1]
    assert outcome.stop.reason is StopReason.MAX_SECONDS
    assert outcome.loss == last.loss == pytest.approx(rosenbrock(outcome.parameters)[0], rel=1e-12)
    assert outcome.passes == 8.0
    assert not outcome.repeatable


# Deployment.


def test_deployment_is_made_of_the_options() -> None:
    """Units and the longest lease from sizes, copies and shards from the options, penalised from the objective."""
    method = Sandblaster(unit_rows=2, n_shards=3, backup_after=0.0, cache_bytes=77)
    with scene_of(rosenbrock, np.zeros(4), method) as scene:
        scene.run.facts.objective.penalised = np.array([True, False, True, True])
        driver = driver_of(scene, method)
        spec = driver._deployment_spec()
        replica: Any = spec.replica_spec(scene.deployment.directory, "coordinator")
    assert spec.hub_arguments == (2, 6, 0.0)
    assert (spec.n_replicas, spec.method) == (None, "Sandblaster L-BFGS")
    assert (len(spec.shards.ranges), spec.shards.updates, spec.shards.n_copies) == (1, None, 0)
    np.testing.assert_array_equal(spec.shards.penalised, [True, False, True, True])
    assert (replica.cache_bytes, replica.plan, replica.coordinator) == (77, driver._plan, "coordinator")


def test_no_vector_is_made_that_is_not_needed() -> None:
    """Without an L1 penalty no pseudo-gradient, without Adagrad's sums no diagonal."""
    method = exactly()
    with scene_of(rosenbrock, np.array([-1.2, 1.0]), method) as scene:
        driver_of(scene, method).drive()
        made = {command.into for command in scene.deployment.of_kind(Combine)}
        for name in ("v", "trial_v", "move", DIAGONAL):
            assert name not in made
            with pytest.raises(KeyError):
                scene.deployment.vector(name)
