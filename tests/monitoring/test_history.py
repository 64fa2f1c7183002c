"""The history as a table, a data frame, a picture, and JSON."""

from __future__ import annotations

import json
import math
import sys

import pytest

from dask_belief.errors import ArgumentError
from dask_belief.monitoring.events import DownpourProgressed, IterationEnded, Stopped, Validated, WorkerLost
from dask_belief.monitoring.history import History
from dask_belief.optim.stopping import Stop, StopReason
from tests.monitoring.test_events import EVENTS


def example():
    history = History()
    for event in (
        IterationEnded(1, 2, loss=0.5, gradient_norm=0.1, step=1.0, seconds=0.1, passes=2.0),
        Validated(loss=0.6, metrics={"loss": 0.6, "accuracy": 0.8}, passes=2.0, seconds=0.2),
        WorkerLost("tcp://127.0.0.1:1", seconds=0.3),
        IterationEnded(2, 3, loss=0.4, gradient_norm=0.05, step=1.0, seconds=0.4, passes=3.0),
        Validated(loss=0.55, metrics={"accuracy": 0.9}, passes=3.0, seconds=0.5),
        Stopped(Stop(StopReason.MAX_ITERATIONS), seconds=0.6, passes=3.0),
    ):
        history(event)
    return history


def test_columns_hold_the_rows_that_have_them():
    """Training and validation losses stay apart, and what all rows have is as long as the history."""
    history = example()
    assert history["loss"] == [0.5, 0.4]
    assert history["validation_loss"] == [0.6, 0.55]
    assert history["validation_accuracy"] == [0.8, 0.9]
    assert history["passes"] == [2.0, 2.0, 3.0, 3.0, 3.0]
    assert history["seconds"] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert history["stop"] == ["max_iterations"]
    assert len(history) == 6


def test_diagnostics_of_iterations_are_columns():
    """One value an iteration, whatever they are: numbers of the search, seconds, bytes, backups."""
    history = History(EVENTS)
    columns = {name: history[name] for name in ("curvature", "slope_ratio", "busiest_seconds", "pushed_bytes")}
    assert columns == {"curvature": [1.5], "slope_ratio": [0.25], "busiest_seconds": [0.15], "pushed_bytes": [800]}
    assert history["backups_won"] == [1]


def test_downpours_epochs_are_its_passes():
    """Both methods have the column that curves are drawn against."""
    history = History([DownpourProgressed(steps=1, epochs=0.5, rows=5, loss=0.1, seconds=1.0)])
    assert history["passes"] == history["epochs"] == [0.5]


def test_a_column_that_may_come_is_empty_and_any_other_is_refused():
    """A misspelt name is an error even while the history is empty; no validation set is no error."""
    history = History()
    assert history["loss"] == history["validation_loss"] == history["validation_auc"] == []
    with pytest.raises(ArgumentError, match=r"'lost_function'.*loss"):
        history["lost_function"]


def test_rows_of_one_kind():
    """By class or by name; an unknown kind is refused."""
    history = example()
    assert history.rows(Validated) == history.rows("Validated")
    assert [row["event"] for row in history.rows(Validated)] == ["Validated", "Validated"]
    assert len(history.rows()) == len(history)
    with pytest.raises(ArgumentError, match=r"WorkerLost.*'Validation'"):
        history.rows("Validation")


def test_events_are_kept_as_they_came():
    """What was appended can be had again, and not be changed from outside."""
    history = example()
    assert isinstance(history.events, tuple)
    assert list(history) == list(history.events)
    assert isinstance(history.events[2], WorkerLost)


def test_a_history_comes_back_from_json():
    """Every kind of event, through strict JSON, in order."""
    history = History(EVENTS)
    again = History.from_config(json.loads(json.dumps(history.to_config(), allow_nan=False)))
    assert again.events == tuple(EVENTS)
    assert again.rows() == history.rows()


def test_the_frame_has_a_row_an_event():
    """What a row lacks is NaN."""
    frame = example().to_frame()
    assert len(frame) == 6
    assert frame["loss"].dropna().tolist() == [0.5, 0.4]
    assert math.isnan(frame["loss"][1])
    assert len(History().to_frame()) == 0


def test_the_picture_shows_both_losses_against_passes():
    """Two named curves through the points of the history, on the axes that were given."""
    figure_module = pytest.importorskip("matplotlib.figure")
    ax = figure_module.Figure().subplots()
    assert example().plot(ax) is ax
    curves = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert curves == {
        "training loss": [[2.0, 0.5], [3.0, 0.4]],
        "validation loss": [[2.0, 0.6], [3.0, 0.55]],
    }
    assert "passes" in ax.get_xlabel() and ax.get_legend() is not None


def test_the_picture_of_nothing_is_empty():
    """A history without losses draws axes, no curve, no legend, and no warning."""
    figure_module = pytest.importorskip("matplotlib.figure")
    ax = History().plot(figure_module.Figure().subplots())
    assert not ax.lines and ax.get_legend() is None


@pytest.mark.parametrize(("package", "method"), [("pandas", "to_frame"), ("matplotlib", "plot")])
def test_a_missing_package_is_an_error_where_it_is_needed(package, method, monkeypatch):
    """The message names the package, and the history works without it."""
    monkeypatch.setitem(sys.modules, package, None)
    history = example()
    assert history["loss"] == [0.5, 0.4]
    with pytest.raises(ImportError, match=f"^{method}: needs {package}"):
        getattr(history, method)()
