"""How runs end that cannot go on: by a number that is not finite, or by the clock, in the middle of an evaluation."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from distributed import Client

import dask_belief as db
from dask_belief.data.units import plan_units
from dask_belief.seeds import stream

N_ROWS, UNIT_ROWS, BAD_ROW = 2000, 50, 1234


class Points:
    """Numbers the points at which it is asked, in the order in which they come; may be shared by threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: dict[bytes, int] = {}

    def number(self, parameters: np.ndarray) -> int:
        """The number of a point, from 0; the same each time."""
        with self._lock:
            return self._numbers.setdefault(parameters.tobytes(), len(self._numbers))

    def clear(self) -> None:
        """Forget all points."""
        self._numbers.clear()


POINTS = Points()
"""Of the test under way, whose workers are threads of this process."""


class LeastSquares:
    """A plain regression."""

    n_parameters = 6

    def initial_parameters(self, seed):
        return np.zeros(6)

    def loss_and_gradient(self, parameters, inputs, targets):
        residual = inputs @ parameters - targets
        return 0.5 * float(residual @ residual), inputs.T @ residual


class Spoilt(LeastSquares):
    """From the third point on, loss or gradient of the rows around one is not finite."""

    def __init__(self, bad_input: float, in_loss: float, in_gradient: float) -> None:
        self.bad_input, self.in_loss, self.in_gradient = bad_input, in_loss, in_gradient

    def loss_and_gradient(self, parameters, inputs, targets):
        loss, gradient = super().loss_and_gradient(parameters, inputs, targets)
        if POINTS.number(parameters) >= 3 and (inputs[:, 0] == self.bad_input).any():
            return loss + self.in_loss, gradient + self.in_gradient
        return loss, gradient


class Slow(LeastSquares):
    """From the second point on, a unit takes a twentieth of a second."""

    def loss_and_gradient(self, parameters, inputs, targets):
        if POINTS.number(parameters) >= 1:
            threading.Event().wait(0.05)
        return super().loss_and_gradient(parameters, inputs, targets)


@pytest.fixture
def rows() -> db.ArrayDataset:
    """A regression of such a condition that it takes several iterations."""
    POINTS.clear()
    random = stream(4, "rows")
    inputs = random.normal(size=(N_ROWS, 6)) * np.geomspace(0.1, 3.0, 6)
    targets = inputs @ np.arange(1.0, 7.0) + random.normal(size=N_ROWS)
    return db.ArrayDataset(inputs, targets, chunk_rows=UNIT_ROWS)


def mean_loss(parameters: np.ndarray, rows: db.ArrayDataset) -> float:
    loss, _ = LeastSquares().loss_and_gradient(parameters, *rows.read(0, N_ROWS, dtype=np.float64))
    return loss / N_ROWS


@pytest.mark.parametrize("options", [{}, {"l1": 1e-3}, {"direction": "conjugate_gradient"}], ids=str)
@pytest.mark.parametrize(
    ("in_loss", "in_gradient"), [(np.nan, 0.0), (np.inf, 0.0), (0.0, np.nan), (0.0, np.inf), (-np.inf, np.nan)]
)
def test_what_is_not_finite_later_ends_the_run_at_the_best_point(
    two_workers: Client, rows: db.ArrayDataset, in_loss: float, in_gradient: float, options
) -> None:
    """The run ends without an exception, says in which unit and rows it arose, and gives the last good point."""
    bad_inputs, _ = rows.read(BAD_ROW, BAD_ROW + 1, dtype=np.float64)
    objective = Spoilt(float(bad_inputs[0, 0]), in_loss, in_gradient)
    method = db.Sandblaster(unit_rows=UNIT_ROWS, gtol=0.0, ftol=0.0, max_search_evaluations=6, **options)
    result = db.train(objective, rows, method, client=two_workers, dtype="float64", progress=False)
    assert result.stop.reason is db.StopReason.NOT_FINITE
    [unit] = [
        unit for unit in plan_units(N_ROWS, UNIT_ROWS, 56, 6, unit_rows=UNIT_ROWS) if unit.start <= BAD_ROW < unit.stop
    ]
    found = [result.stop.numbers[name] for name in ("unit", "first_row", "last_row")]
    assert found == [unit.number, unit.start, unit.stop - 1]
    assert f"rows {unit.start} to {unit.stop - 1} (unit {unit.number})" in result.stop.advice
    assert result.loss == result.history["loss"][-1] < mean_loss(np.zeros(6), rows)
    penalty = method.l1 * np.abs(result.parameters).sum()
    assert result.loss == pytest.approx(mean_loss(result.parameters, rows) + penalty, rel=1e-12)


def test_time_ends_the_run_in_the_middle_of_an_evaluation(two_workers: Client, rows: db.ArrayDataset) -> None:
    """An evaluation that takes much longer than the time allowed is given up, and the point before it is the result.

    Replicas are told to stop within their leases.
    """
    method = db.Sandblaster(unit_rows=UNIT_ROWS // 10, max_seconds=1.0)
    # The second evaluation alone takes two replicas ten seconds.
    result = db.train(Slow(), rows, method, client=two_workers, dtype="float64", progress=False)
    assert result.stop.reason is db.StopReason.MAX_SECONDS
    assert result.stop.numbers["seconds"] >= 1.0
    assert result.seconds < 2.5
    assert not result.repeatable
    assert (result.parameters == 0).all()
    assert result.loss == pytest.approx(mean_loss(np.zeros(6), rows), rel=1e-12)
