"""The history as a table, a data frame, a picture, and JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import sys

import pytest

from dask_belief.errors import ArgumentError
from dask_belief.monitoring.events import (
    DownpourProgressed,
    IterationEnded,
    Rebuilt,
    Resumed,
    RunStarted,
    Saved,
    Stopped,
    Validated,
    WorkerLost,
)
from dask_belief.monitoring.history import History
from dask_belief.optim.stopping import Stop, StopReason
from tests.monitoring.test_events import EVENTS, REPLICAS, SHARDS, counted


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
    assert columns == {
        "curvature": [1.5],
        "slope_ratio": [0.25],
        "busiest_seconds": [0.15],
        "pushed_bytes": [800, 1200],
    }
    assert history["backups_won"] == [1]


def test_downpours_epochs_are_its_passes():
    """Both methods have the column that curves are drawn against."""
    history = History([DownpourProgressed(steps=1, epochs=0.5, rows=5, loss=0.1, seconds=1.0)])
    assert history["passes"] == history["epochs"] == [0.5]


def progressed(seconds, n_replicas=2, **measures):
    return DownpourProgressed(
        steps=1,
        epochs=0.5,
        rows=5,
        loss=0.1,
        seconds=seconds,
        replicas=REPLICAS[:n_replicas],
        shards=SHARDS,
        **measures,
    )


def test_downpours_scalars_are_columns_and_its_tables_are_not():
    """Every number of the event has a column; what has many numbers has a table of its own."""
    history = History(EVENTS)
    [row] = history.rows(DownpourProgressed)
    [event] = [event for event in EVENTS if isinstance(event, DownpourProgressed)]
    scalars = {name: value for name, value in vars(event).items() if not isinstance(value, tuple)}
    assert row == {"event": "DownpourProgressed", **scalars, "passes": 2.25}
    assert {"rows_per_second", "rate", "n_dropped", "server_seconds", "staleness_p95"} <= row.keys()
    for name in ("staleness", "replicas", "shards"):
        with pytest.raises(ArgumentError, match=f"'{name}'"):
            history[name]


def test_the_distribution_of_staleness_is_that_of_the_last_event():
    """By the lower end of each bin, those without pushes left out; nothing measured gives nothing."""
    history = History(
        [progressed(1.0, staleness=counted(0, 1)), progressed(2.0, staleness=counted(0, 1, 1, 3, 40, 63))]
    )
    history(Stopped(Stop(StopReason.EPOCHS_DONE), 3.0))
    assert history.staleness() == {0: 1, 1: 2, 3: 1, 32: 2}
    assert History().staleness() == History([progressed(1.0)]).staleness() == {}


def test_replicas_and_shards_are_tables_of_the_last_event():
    """A row each, single numbers only; a shard's staleness as mean, 95 of 100, and largest."""
    history = History([progressed(1.0, n_replicas=1), progressed(2.0)])
    assert [row["replica"] for row in history.replicas()] == ["replica-1", "replica-2"]
    assert history.replicas()[1] == dataclasses.asdict(REPLICAS[1])
    first, second = history.shards()
    assert (first["n_updates"], first["busy_seconds"], second["rate"]) == (6, 0.25, math.inf)
    assert (first["staleness_mean"], first["staleness_p95"], first["staleness_max"]) == (51.5 / 6, 63.0, 63.0)
    assert (second["staleness_mean"], second["staleness_max"]) == (0.6, 3.0)
    assert all(not isinstance(value, (tuple, list)) for row in history.shards() for value in row.values())
    assert History().replicas() == History().shards() == []


def test_replicas_and_shards_are_kept_of_the_last_event_only():
    """What is kept of a long run on many workers does not grow with their number; the distribution is kept."""
    history = History()
    for seconds in (1.0, 2.0, 3.0):
        history(progressed(seconds, staleness=counted(0)))
        history(WorkerLost("tcp://127.0.0.1:1"))
    kept = [event for event in history if isinstance(event, DownpourProgressed)]
    assert [len(event.replicas) for event in kept] == [len(event.shards) for event in kept] == [0, 0, 2]
    assert [event.seconds for event in kept] == [1.0, 2.0, 3.0]
    assert all(event.staleness == counted(0) for event in kept)
    again = History.from_config(history.to_config())
    assert again.replicas() == history.replicas() and again.shards() == history.shards()


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


def test_the_picture_of_staleness_has_a_bar_a_bin():
    """From zero to the stalest, each as high as its count, past 31 named by both ends of the bin."""
    figure_module = pytest.importorskip("matplotlib.figure")
    ax = figure_module.Figure().subplots()
    history = History([progressed(1.0, staleness=counted(0, 0, 2, 40))])
    assert history.plot_staleness(ax) is ax
    assert [bar.get_height() for bar in ax.patches] == [2, 0, 1, *[0] * 29, 1]
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels[0] == "0" and len(labels) <= 16
    few = History([progressed(1.0, staleness=counted(0, 2))]).plot_staleness(figure_module.Figure().subplots())
    assert [label.get_text() for label in few.get_xticklabels()] == ["0", "1", "2"]


def test_the_picture_of_no_staleness_is_empty():
    """Without a measurement there are axes and no bar."""
    figure_module = pytest.importorskip("matplotlib.figure")
    for history in (History(), History([progressed(1.0)])):
        assert not history.plot_staleness(figure_module.Figure().subplots()).patches


@pytest.mark.parametrize(
    ("package", "method"), [("pandas", "to_frame"), ("matplotlib", "plot"), ("matplotlib", "plot_staleness")]
)
def test_a_missing_package_is_an_error_where_it_is_needed(package, method, monkeypatch):
    """The message names the package, and the history works without it."""
    monkeypatch.setitem(sys.modules, package, None)
    history = example()
    assert history["loss"] == [0.5, 0.4]
    with pytest.raises(ImportError, match=f"^{method}: needs {package}"):
        getattr(history, method)()


# Runs that go back.


def iterated(iteration, seconds=0.0):
    return IterationEnded(iteration, iteration + 1, 1.0 / iteration, 0.1, 1.0, seconds, float(iteration))


@pytest.mark.parametrize("back", [Rebuilt("lost", "back", 3.5, iteration=1), Resumed(7, 3.5, iteration=1)])
def test_iterations_that_a_run_goes_back_over_are_dropped(back):
    """They come again; all else that happened stays."""
    before = [RunStarted("S", 10, 2, 1), iterated(1), Saved(7), iterated(2), WorkerLost("tcp://a"), iterated(3)]
    history = History([*before, back, iterated(2, 4.0)])
    assert [event.iteration for event in history if isinstance(event, IterationEnded)] == [1, 2]
    assert [event.seconds for event in history if isinstance(event, IterationEnded)] == [0.0, 4.0]
    assert [event for event in history if not isinstance(event, IterationEnded)] == [
        before[0],
        before[2],
        before[4],
        back,
    ]
    config = json.loads(json.dumps(history.to_config()))
    assert History.from_config(config).to_config() == config


def test_a_run_goes_back_over_iterations_of_the_method_under_way_only():
    """Those of a method before have the same numbers."""
    first = [RunStarted("S", 10, 2, 1), iterated(1), iterated(2), iterated(3), Stopped(Stop(StopReason.MAX_ITERATIONS))]
    history = History(
        [*first, RunStarted("S", 10, 2, 1), iterated(1), Rebuilt("lost", "back", iteration=0), iterated(1)]
    )
    assert [event.iteration for event in history if isinstance(event, IterationEnded)] == [1, 2, 3, 1]


@pytest.mark.parametrize("other", [Rebuilt("lost", "updates", updates_lost=3), Resumed(3)])
def test_what_does_not_go_back_over_iterations_drops_none(other):
    """As a Downpour run does."""
    history = History([RunStarted("D", 10, 2, 1), iterated(1), iterated(2), other])
    assert len(history) == 4


def test_tables_of_downpour_are_found_after_going_back():
    """The last event of Downpour's stands before what is dropped, or after."""
    progressed = DownpourProgressed(1, 1.0, 10, loss=0.5, seconds=1.0, replicas=REPLICAS, shards=SHARDS)
    starts = [RunStarted("D", 10, 2, 1), progressed, RunStarted("S", 10, 2, 1), iterated(1), iterated(2)]
    history = History([*starts, Resumed(3, iteration=0)])
    assert len(history.replicas()) == len(REPLICAS)
    history(dataclasses.replace(progressed, replicas=REPLICAS[:1]))
    assert len(history.replicas()) == 1
    assert [len(event.replicas) for event in history if isinstance(event, DownpourProgressed)] == [0, 1]
