"""One evaluation over all rows: value, gradient, norm and slope against NumPy, and what goes wrong in between."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from dask_belief.cluster.limits import LIMITS
from dask_belief.cluster.membership import Lost
from dask_belief.errors import NonFiniteError, NoProgressError
from dask_belief.monitoring.events import WorkerLost
from dask_belief.parameter_server.messages import BeginSum, Combine, Dot
from dask_belief.parameter_server.ranges import BLOCK
from dask_belief.sandblaster import full_batch
from dask_belief.sandblaster.minimiser import POINT
from dask_belief.seeds import stream
from tests.sandblaster.local_run import LocalRun, status

SEED = 51
N = 6
ROWS = (1.0, 2.0, 0.5, 3.0, 1.5)
L2 = 0.3
PENALISED = np.array([True, True, False, True, False, True])


def vector(name: str, n: int = N) -> np.ndarray:
    return stream(SEED, name).standard_normal(n)


def quartic(w: np.ndarray) -> tuple[float, np.ndarray]:
    """Sum of ``w^4``, and its gradient."""
    return float((w**4).sum()), 4 * w**3


@pytest.mark.parametrize("unit_rows", [1, 2, 5])
@pytest.mark.parametrize(("penalised", "l2"), [(None, 0.0), (None, L2), (PENALISED, L2)])
def test_point_is_that_of_numpy(unit_rows: int, penalised: np.ndarray | None, l2: float) -> None:
    """Mean loss and penalty, the gradient of both, its largest magnitude, and its product with the direction."""
    initial, direction = vector("initial"), vector("direction")
    with LocalRun(quartic, initial, ROWS, unit_rows=unit_rows, l2=l2, penalised=penalised) as scene:
        scene.deployment.run(scene.deployment.server.write("d", direction))
        scene.batch.begin(POINT)
        point = scene.batch.finish(POINT, "g", "d")
        gradient = scene.deployment.vector("g")
    covered = np.ones(N) if penalised is None else penalised
    value, expected = quartic(initial)
    expected = np.mean(ROWS) * expected + l2 * covered * initial
    np.testing.assert_allclose(gradient, expected, rtol=1e-14)
    assert point.value == pytest.approx(np.mean(ROWS) * value + l2 / 2 * (covered * initial**2).sum(), rel=1e-14)
    assert point.gradient_norm == pytest.approx(np.abs(expected).max(), rel=1e-14)
    assert point.slope == pytest.approx(expected @ direction, rel=1e-13)


def test_point_has_the_same_bits_on_any_number_of_shards() -> None:
    """Value, slope and norm, of a vector that is long enough to be cut."""
    initial = vector("long", 2 * BLOCK + 10)
    points = []
    for n_shards in (1, 2, 3):
        with LocalRun(quartic, initial, ROWS, n_shards=n_shards, l2=L2) as scene:
            scene.batch.begin(POINT)
            points.append(scene.batch.finish(POINT, "g", POINT))
    assert points[0] == points[1] == points[2]
    assert points[0].slope > 0


def test_evaluation_costs_two_rounds_of_messages() -> None:
    """One opens it and one closes it, with all that was asked for beside."""
    with LocalRun(quartic, vector("initial")) as scene:
        scalars = scene.batch.begin("trial", Combine("trial", ((2.0, POINT),)), Dot(((POINT, "trial"),)))
        assert len(scene.deployment.rounds) == 1
        point = scene.batch.finish("trial", "g", POINT)
        assert len(scene.deployment.rounds) == 2
    initial = vector("initial")
    assert scalars == [[pytest.approx(2 * initial @ initial, rel=1e-14)]]
    # The trial point of the same message is where the loss is looked at.
    assert point.value == pytest.approx(quartic(2 * initial)[0], rel=1e-14)


def test_slope_is_zero_without_a_direction() -> None:
    """The first evaluation has none."""
    with LocalRun(quartic, vector("initial")) as scene:
        scene.batch.begin(POINT)
        assert scene.batch.finish(POINT, "g").slope == 0.0


def test_evaluations_are_numbered_on_from_an_earlier_generation() -> None:
    """So that what a replica of that generation still sends is told apart."""
    with LocalRun(quartic, vector("initial"), n_done=7) as scene:
        for _ in range(2):
            scene.batch.begin(POINT)
            scene.batch.finish(POINT, "g")
        assert [command.evaluation for command in scene.deployment.of_kind(BeginSum)] == [8, 9]
        assert scene.batch.n_done == 9


# What is not finite.


@pytest.mark.parametrize("fault", [math.nan, math.inf])
def test_first_evaluation_that_is_not_finite_names_the_rows(fault: float) -> None:
    """Up to three units with their rows, and how many more there are."""
    with LocalRun(quartic, vector("initial"), (1.0, fault, 1.0, fault), unit_rows=2) as scene:
        scene.batch.begin(POINT)
        with pytest.raises(NonFiniteError, match=r"in unit 0 \(rows 0 to 1\), unit 1 \(rows 2 to 3\)\. Look"):
            scene.batch.finish(POINT, "g")
    with LocalRun(quartic, vector("initial"), [fault] * 5, unit_rows=1) as scene:
        scene.batch.begin(POINT)
        with pytest.raises(NonFiniteError, match=r"unit 2 \(rows 2 to 2\) and 2 more"):
            scene.batch.finish(POINT, "g")


def test_first_sum_that_overflows_is_told() -> None:
    """Each unit's loss is a number, and their sum is not."""
    with LocalRun(lambda w: (1e308, w), vector("initial")) as scene:
        scene.batch.begin(POINT)
        scene.deployment.statuses = [status(n_done=2, loss=math.inf)]
        with pytest.raises(NonFiniteError, match="infinite in the sum"):
            scene.batch.finish(POINT, "g")


def test_later_evaluation_that_is_not_finite_is_a_value_for_the_line_search() -> None:
    """A step was too long: the value is NaN, whatever the sum of the losses is."""

    def hole(w: np.ndarray) -> tuple[float, np.ndarray]:
        return 1.0, np.full_like(w, np.nan)

    with LocalRun(hole, vector("initial")) as scene:
        scene.batch.begin(POINT)
        assert math.isnan(scene.batch.finish(POINT, "g", POINT).value)


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
        clock.now += 0.4 * LIMITS.no_progress_seconds
        return ask(*arguments)

    scene.deployment.statuses = [status(n_done=number, n_replicas=3) for number in n_done]
    scene.deployment.ask = slow


def test_cluster_is_looked_after_while_waiting(clock: Clock) -> None:
    """At each answer: who was lost is told, and kinds of replicas are noted."""
    with LocalRun(quartic, vector("initial")) as scene:
        scene.batch.begin(POINT)
        patient(scene, clock, [0, 1, 1])
        scene.deployment.changes.append(Lost("tcp://gone"))
        scene.batch.finish(POINT, "g")
        assert scene.deployment.n_watched == 4
        assert [event.address for event in scene.of_kind(WorkerLost)] == ["tcp://gone"]
        assert scene.run.kinds == {"local"}


def test_units_that_are_finished_now_and_then_are_progress(clock: Clock) -> None:
    """However long the whole takes."""
    with LocalRun(quartic, vector("initial")) as scene:
        scene.batch.begin(POINT)
        patient(scene, clock, [0, 0, 0, 1, 1, 1, 2, 2, 2])
        assert scene.batch.finish(POINT, "g").gradient_norm > 0
        assert clock.now > 3 * LIMITS.no_progress_seconds
        # When the first unit was finished, and when the second was.
        assert scene.deployment.n_progressed == 2


def test_no_progress_is_an_error_after_the_limit(clock: Clock) -> None:
    """It says how far the evaluation was, and how many replicas there are."""
    with LocalRun(quartic, vector("initial")) as scene:
        scene.batch.begin(POINT)
        patient(scene, clock, [1] * 10)
        with pytest.raises(NoProgressError, match="with 1 of 2 done and 3 replicas"):
            scene.batch.finish(POINT, "g")
        # The first answer begins the count, and three more of four tenths each pass the limit.
        assert clock.now == pytest.approx(4 * 0.4 * LIMITS.no_progress_seconds)


def test_time_between_evaluations_is_no_lack_of_progress(clock: Clock) -> None:
    """The parameters may be copied, or a validation waited for, for long."""
    with LocalRun(quartic, vector("initial")) as scene:
        for _ in range(2):
            clock.now += 10 * LIMITS.no_progress_seconds
            scene.batch.begin(POINT)
            scene.batch.finish(POINT, "g")
        assert scene.batch.n_done == 2
