"""One evaluation over all rows: value, gradient and what is asked of it against NumPy; what goes wrong meanwhile."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dask_belief.cluster.limits import limits
from dask_belief.cluster.membership import Lost
from dask_belief.errors import NonFiniteError, NoProgressError
from dask_belief.monitoring.events import WorkerLost
from dask_belief.parameter_server.messages import Absolutes, BeginSum, Combine, Dot, MaxNorm, SquaredPenalty
from dask_belief.parameter_server.ranges import BLOCK
from dask_belief.sandblaster import full_batch
from dask_belief.sandblaster.full_batch import Evaluated, Penalty, TimeIsUp
from dask_belief.sandblaster.round import Round
from dask_belief.sandblaster.steps import POINT
from dask_belief.seeds import stream
from tests.sandblaster.local_run import LocalRun, status

SEED = 51
N = 6
ROWS = (1.0, 2.0, 0.5, 3.0, 1.5)
L2, L1 = 0.3, 0.2
PENALISED = np.array([True, True, False, True, False, True])


def vector(name: str, n: int = N) -> np.ndarray:
    return stream(SEED, name).standard_normal(n)


def quartic(w: np.ndarray) -> tuple[float, np.ndarray]:
    """Sum of ``w^4``, and its gradient."""
    return float((w**4).sum()), 4 * w**3


def nothing(to_shards: Round) -> None:
    """Ask for nothing beside the objective."""


def norm(to_shards: Round) -> None:
    to_shards.ask("norm", MaxNorm("g"))


def norm_and_slope(to_shards: Round) -> None:
    norm(to_shards)
    to_shards.ask("slope", Dot((("g", "d"),)))


def evaluate(scene: LocalRun, ask: Callable[[Round], None] = nothing) -> Evaluated:
    """One evaluation at the point; its gradient goes to ``g``."""
    scene.batch.begin(Round(), POINT)
    return scene.batch.finish(POINT, "g", ask)


@pytest.mark.parametrize("unit_rows", [1, 2, 5])
@pytest.mark.parametrize(
    ("penalised", "l2", "l1"), [(None, 0.0, 0.0), (None, L2, 0.0), (PENALISED, L2, 0.0), (PENALISED, L2, L1)]
)
def test_point_is_that_of_numpy(unit_rows: int, penalised: np.ndarray | None, l2: float, l1: float) -> None:
    """Mean loss and penalties, the gradient of its smooth part, and what is asked of it in the same round."""
    initial, direction = vector("initial"), vector("direction")
    with LocalRun(quartic, initial, ROWS, unit_rows=unit_rows, l2=l2, l1=l1, penalised=penalised) as scene:
        scene.deployment.run(scene.deployment.server.write("d", direction))
        point = evaluate(scene, norm_and_slope)
        gradient = scene.deployment.vector("g")
    covered = np.ones(N) if penalised is None else penalised
    value, expected = quartic(initial)
    expected = np.mean(ROWS) * expected + l2 * covered * initial
    penalty = l2 / 2 * (covered * initial**2).sum() + l1 * (covered * np.abs(initial)).sum()
    np.testing.assert_allclose(gradient, expected, rtol=1e-14)
    assert point.value == pytest.approx(np.mean(ROWS) * value + penalty, rel=1e-14)
    assert point.answers["norm"] == [pytest.approx(np.abs(expected).max(), rel=1e-14)]
    assert point.answers["slope"] == [pytest.approx(expected @ direction, rel=1e-13)]
    assert point.fault is None


def test_point_has_the_same_bits_on_any_number_of_shards() -> None:
    """Value, slope and norm, of a vector that is long enough to be cut."""
    initial = vector("long", 2 * BLOCK + 10)
    points = []
    for n_shards in (1, 2, 3):
        with LocalRun(quartic, initial, ROWS, n_shards=n_shards, l2=L2, l1=L1) as scene:
            scene.deployment.run(scene.deployment.server.write("d", initial))
            point = evaluate(scene, norm_and_slope)
        points.append((point.value, point.answers))
    assert points[0] == points[1] == points[2]
    assert points[0][1]["slope"][0] > 0


def test_evaluation_costs_two_rounds_of_messages() -> None:
    """One opens it and one closes it, with all that was asked for beside; their seconds are told."""
    with LocalRun(quartic, vector("initial"), l2=L2, l1=L1) as scene:
        opening = Round()
        opening.do(Combine("trial", ((2.0, POINT),)))
        opening.ask("square", Dot(((POINT, "trial"),)))
        answers = scene.batch.begin(opening, "trial")
        assert len(scene.deployment.rounds) == 1
        point = scene.batch.finish("trial", "g", nothing)
        assert len(scene.deployment.rounds) == 2
        assert point.vector_seconds >= opening.seconds
    initial = vector("initial")
    assert answers == {"square": [pytest.approx(2 * initial @ initial, rel=1e-14)]}
    # The trial point of the same message is where the loss and the penalties are looked at.
    penalty = L2 / 2 * (4 * initial @ initial) + L1 * 2 * np.abs(initial).sum()
    assert point.value == pytest.approx(quartic(2 * initial)[0] + penalty, rel=1e-14)


def test_what_the_coordinator_says_is_handed_on() -> None:
    """Effort and backups, as the status has them."""
    with LocalRun(quartic, vector("initial")) as scene:
        point = evaluate(scene)
    assert point.status.effort == status().effort
    assert point.status.n_done == 2


def test_no_number_of_an_evaluation_is_used_twice() -> None:
    """Neither by one that is begun again after a loss: what was sent for the one before is told apart."""
    with LocalRun(quartic, vector("initial")) as scene:
        for _ in range(2):
            evaluate(scene)
        # Begun, and never finished.
        scene.batch.begin(Round(), POINT)
        scene.batch = scene.new_batch(has_value=True)
        for _ in range(2):
            evaluate(scene)
        assert [command.evaluation for command in scene.deployment.of_kind(BeginSum)] == [1, 2, 3, 4, 5]


# The penalty.


@pytest.mark.parametrize(
    ("penalty", "asked", "value"),
    [
        (Penalty(), {}, 0.0),
        (Penalty(l2=0.5), {"squares": SquaredPenalty("w")}, 0.25 * 30),
        (Penalty(l1=2.0), {"absolutes": Absolutes("w")}, 2.0 * 10),
        (Penalty(0.5, 2.0), {"squares": SquaredPenalty("w"), "absolutes": Absolutes("w")}, 0.25 * 30 + 2.0 * 10),
    ],
)
def test_penalty_asks_for_what_it_needs(penalty: Penalty, asked: dict[str, Any], value: float) -> None:
    """And makes its value of the answers."""
    to_shards: Any = Asked()
    penalty.ask(to_shards, "w")
    assert to_shards.asked == asked
    answers = {"squares": [30.0], "absolutes": [10.0]}
    assert penalty.value({name: answers[name] for name in asked}) == value


class Asked:
    """Notes what is asked for."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

    def ask(self, name: str, command: Any) -> None:
        self.asked[name] = command


# What is not finite.


@pytest.mark.parametrize("fault", [math.nan, math.inf])
def test_first_evaluation_that_is_not_finite_names_the_rows(fault: float) -> None:
    """Up to three units with their rows, and how many more there are."""
    named = r"in unit 0 \(rows 0 to 1\), unit 1 \(rows 2 to 3\)\. Look"
    few = LocalRun(quartic, vector("initial"), (1.0, fault, 1.0, fault), unit_rows=2)
    with few as scene, pytest.raises(NonFiniteError, match=named):
        evaluate(scene)
    many = LocalRun(quartic, vector("initial"), [fault] * 5, unit_rows=1)
    with many as scene, pytest.raises(NonFiniteError, match=r"unit 2 \(rows 2 to 2\) and 2 more"):
        evaluate(scene)


def test_first_sum_that_overflows_is_told() -> None:
    """Each unit's loss is a number, and their sum is not."""
    with LocalRun(lambda w: (1e308, w), vector("initial")) as scene:
        scene.deployment.statuses = [status(n_done=2, loss=math.inf)]
        with pytest.raises(NonFiniteError, match="infinite in the sum"):
            evaluate(scene)


def test_later_evaluation_that_is_not_finite_is_a_value_for_the_search() -> None:
    """A step was too long: the value is NaN, whatever the sum of the losses is, and the first faulty unit is named."""
    faults = {"gradient": 0.0}

    def hole(w: np.ndarray) -> tuple[float, np.ndarray]:
        return 1.0, w + faults["gradient"]

    with LocalRun(hole, vector("initial"), (0.0, 0.0, 1.0, 1.0), unit_rows=1) as scene:
        assert math.isfinite(evaluate(scene).value)
        faults["gradient"] = math.inf
        with np.errstate(invalid="ignore"):
            point = evaluate(scene, norm)
    assert math.isnan(point.value)
    # Units whose rows weigh nothing have NaN for a gradient: zero times infinity.
    assert point.fault == scene.plan[0]
    assert math.isnan(point.answers["norm"][0])


def test_later_sum_that_overflows_has_no_unit_to_name() -> None:
    """Each unit's loss is a number: the value is infinite, and no unit is at fault."""
    with LocalRun(quartic, vector("initial")) as scene:
        evaluate(scene)
        answer = scene.deployment.ask

        def overflowing(*arguments: Any) -> Any:
            return replace(answer(*arguments), loss=math.inf)

        scene.deployment.ask = overflowing
        point = evaluate(scene)
    assert (point.value, point.fault) == (math.inf, None)


# Waiting.


class Clock:
    """Stands still until it is moved."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(full_batch, "time", clock)
    return clock


def patient(scene: LocalRun, clock: Clock, n_done: list[int]) -> None:
    """Answer with these numbers of units, four tenths of the limit apart, before the evaluation is made."""
    ask = scene.deployment.ask

    def slow(*arguments: Any) -> Any:
        clock.now += 0.4 * limits().no_progress_seconds
        return ask(*arguments)

    scene.deployment.statuses = [status(n_done=number, n_replicas=3) for number in n_done]
    scene.deployment.ask = slow


def test_cluster_is_looked_after_while_waiting(clock: Clock) -> None:
    """At each answer: who was lost is told, and kinds of replicas are noted."""
    with LocalRun(quartic, vector("initial")) as scene:
        patient(scene, clock, [0, 1, 1])
        scene.deployment.changes.append(Lost("tcp://gone"))
        evaluate(scene)
        assert scene.deployment.n_watched == 4
        assert [event.address for event in scene.of_kind(WorkerLost)] == ["tcp://gone"]
        assert scene.run.kinds == {"local"}


def test_units_that_are_finished_now_and_then_are_progress(clock: Clock) -> None:
    """However long the whole takes."""
    with LocalRun(quartic, vector("initial")) as scene:
        patient(scene, clock, [0, 0, 0, 1, 1, 1, 2, 2, 2])
        assert evaluate(scene).value > 0
        assert clock.now > 3 * limits().no_progress_seconds
        # When the first unit was finished, and when the second was.
        assert scene.deployment.n_progressed == 2


def test_no_progress_is_an_error_after_the_limit(clock: Clock) -> None:
    """It says how far the evaluation was, and how many replicas there are."""
    with LocalRun(quartic, vector("initial")) as scene:
        patient(scene, clock, [1] * 10)
        with pytest.raises(NoProgressError, match="with 1 of 2 done and 3 replicas"):
            evaluate(scene)
        # The first answer begins the count, and three more of four tenths each pass the limit.
        assert clock.now == pytest.approx(4 * 0.4 * limits().no_progress_seconds)


def test_time_between_evaluations_is_no_lack_of_progress(clock: Clock) -> None:
    """The parameters may be copied, or a validation waited for, for long."""
    with LocalRun(quartic, vector("initial")) as scene:
        for _ in range(2):
            clock.now += 10 * limits().no_progress_seconds
            evaluate(scene)
        assert len(scene.deployment.of_kind(BeginSum)) == 2


# Time.


def test_first_evaluation_is_made_whatever_time_it_takes() -> None:
    """Without it there would be no value to give back."""
    with LocalRun(quartic, vector("initial"), max_seconds=0.0) as scene:
        scene.deployment.statuses = [status(n_done=0), status(n_done=1)]
        assert math.isfinite(evaluate(scene).value)


def test_later_evaluation_is_given_up_when_time_is_up() -> None:
    """While it is under way; one that is complete is taken."""
    with LocalRun(quartic, vector("initial"), max_seconds=0.0) as scene:
        for _ in range(2):
            assert math.isfinite(evaluate(scene).value)
        scene.deployment.statuses = [status(n_done=1)]
        with pytest.raises(TimeIsUp):
            evaluate(scene)


def test_evaluation_is_not_given_up_before_time_is_up() -> None:
    """The limit is the run's, from its beginning."""
    with LocalRun(quartic, vector("initial"), max_seconds=1000.0) as scene:
        evaluate(scene)
        scene.deployment.statuses = [status(n_done=1)]
        assert math.isfinite(evaluate(scene).value)
