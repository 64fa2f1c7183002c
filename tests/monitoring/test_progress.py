"""The progress line in a terminal, in the log, and where nobody looks."""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import Any, ClassVar

import pytest

from dask_belief.monitoring.callbacks import Callback
from dask_belief.monitoring.events import (
    DownpourProgressed,
    IterationEnded,
    RunStarted,
    Stopped,
    Validated,
    WorkerLost,
)
from dask_belief.monitoring.progress import ProgressBar, RowBar
from dask_belief.optim.stopping import Stop, StopReason

STOPPED = Stop(StopReason.MAX_ITERATIONS)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def sandblaster(n_iterations=3, planned: float | None = 100.0, seconds=1.0):
    yield RunStarted("Sandblaster", n_rows=10, n_parameters=5, n_workers=2, planned=planned)
    for iteration in range(1, n_iterations + 1):
        now = iteration * seconds
        yield IterationEnded(iteration, 2 * iteration, 1 / iteration, 0.1, 1.0, now, 2.0 * iteration)
        yield Validated(loss=1.5 / iteration, metrics={}, passes=2.0 * iteration, seconds=now)
        yield WorkerLost("tcp://127.0.0.1:1", seconds=now)
    yield Stopped(STOPPED, seconds=n_iterations * seconds)


def show(bar, events):
    for event in events:
        bar(event)


def test_a_terminal_gets_one_line_with_everything():
    """Method, iteration, both losses, time and share stand on the last line."""
    terminal = Terminal()
    show(ProgressBar(stream=terminal, delay_seconds=0), sandblaster())
    last = terminal.getvalue().rstrip().split("\r")[-1]
    assert last.startswith("Sandblaster: iteration 3 of 100, loss 0.3333, validation 0.5, 3 s |")
    assert last.rstrip().endswith("3%")
    assert terminal.getvalue().endswith("\n")


def test_a_run_that_converged_ends_with_a_full_bar():
    """Ending before the limit is no failure, and the line still tells the limit."""
    terminal = Terminal()
    events = [*list(sandblaster())[:-1], Stopped(Stop(StopReason.GRADIENT_SMALL), seconds=3.0)]
    show(ProgressBar(stream=terminal, delay_seconds=0), events)
    last = terminal.getvalue().rstrip().split("\r")[-1]
    assert "iteration 3 of 100" in last and last.endswith("|100%")


def test_downpour_counts_epochs():
    """Epochs are shown in parts, and a plan of epochs as it is."""
    terminal = Terminal()
    events = [
        RunStarted("Downpour", 10, 5, 2, planned=5.0, planned_unit="epochs"),
        DownpourProgressed(steps=7, epochs=1.25, rows=12, loss=0.25, seconds=61.0),
        Stopped(STOPPED, seconds=61.0),
    ]
    show(ProgressBar(stream=terminal, delay_seconds=0), events)
    assert "Downpour: epoch 1.25 of 5, loss 0.25, 61 s |" in terminal.getvalue()
    assert "25%" in terminal.getvalue()


def test_downpours_speed_and_staleness_are_shown_where_they_are_known():
    """Between the losses and the time; a Sandblaster after it shows none of it, and the time runs on."""
    terminal = Terminal()
    bar = ProgressBar(stream=terminal, delay_seconds=0)
    progressed = DownpourProgressed(7, 1.25, 12, 0.25, 61.0, rows_per_second=81920.4, staleness_mean=2.71)
    show(bar, [RunStarted("Downpour", 10, 5, 2, planned=5.0, planned_unit="epochs"), progressed])
    bar(Validated(loss=0.5, metrics={}, passes=1.25, seconds=61.0))
    bar(Stopped(STOPPED, seconds=61.0))
    last = terminal.getvalue().rstrip().split("\r")[-1]
    assert last.startswith("Downpour: epoch 1.25 of 5, loss 0.25, validation 0.5, 81,920 rows/s, staleness 2.7, 61 s |")
    show(bar, [RunStarted("Sandblaster", 10, 5, 2, planned=9.0, seconds=62.0)])
    bar(IterationEnded(1, 2, 0.125, 0.1, 1.0, 63.0, 3.25))
    bar.close()
    last = terminal.getvalue().rstrip().split("\r")[-1]
    assert last.startswith("Sandblaster: iteration 1 of 9, loss 0.125, 63 s |")


def test_without_a_plan_there_is_a_line_and_no_bar():
    """An unlimited run has no share to show."""
    terminal = Terminal()
    show(ProgressBar(stream=terminal, delay_seconds=0), sandblaster(planned=None))
    assert "iteration 3, loss" in terminal.getvalue()
    assert "%" not in terminal.getvalue() and "|" not in terminal.getvalue()


def test_a_short_run_shows_no_bar():
    """What ends before the delay leaves no line behind."""
    terminal = Terminal()
    show(ProgressBar(stream=terminal, delay_seconds=1000.0), sandblaster())
    assert "Sandblaster" not in terminal.getvalue()


@pytest.mark.parametrize("seconds", [1.0, 10.0])
def test_where_there_is_no_terminal_the_log_gets_a_line_now_and_then(seconds, caplog):
    """By the events' clock at most one line in five seconds, and one at the end."""
    caplog.set_level(logging.INFO, logger="dask_belief.monitoring.progress")
    stream = io.StringIO()
    show(ProgressBar(stream=stream), sandblaster(n_iterations=12, seconds=seconds))
    lines = [record.getMessage() for record in caplog.records]
    assert stream.getvalue() == ""
    assert len(lines) == (2 + 1 if seconds == 1.0 else 12 + 1)
    assert lines[-1] == f"Sandblaster: iteration 12 of 100, loss 0.08333, validation 0.125, {12 * seconds:.0f} s"


@pytest.mark.parametrize("stream", ["none", "closed"])
def test_without_stderr_nothing_is_shown(stream, monkeypatch, caplog):
    """A program without stderr, or with a closed one, is not disturbed."""
    caplog.set_level(logging.INFO, logger="dask_belief")
    closed = Terminal()
    closed.close()
    monkeypatch.setattr(sys, "stderr", None if stream == "none" else closed)
    show(ProgressBar(delay_seconds=0), sandblaster())
    assert not caplog.records


def test_a_stream_that_is_closed_on_the_way_does_not_end_the_run():
    """Writing to it fails once, and then nothing more is shown."""
    terminal = Terminal()
    bar = ProgressBar(stream=terminal, delay_seconds=0)
    events = list(sandblaster())
    bar(events[0])
    terminal.close()
    show(bar, events[1:])
    assert bar._bar is None


def test_switched_off_it_shows_nothing(caplog):
    """`progress=False` is silent in the terminal and in the log."""
    caplog.set_level(logging.INFO, logger="dask_belief")
    terminal = Terminal()
    show(ProgressBar(progress=False, stream=terminal, delay_seconds=0), sandblaster())
    show(ProgressBar(progress=False, stream=io.StringIO()), sandblaster())
    assert terminal.getvalue() == "" and not caplog.records


def test_it_never_asks_to_stop():
    """As a callback it returns None for every event."""
    listener: Callback = ProgressBar(stream=Terminal(), delay_seconds=0)
    assert all(listener(event) is None for event in sandblaster())


def test_close_ends_a_bar_that_saw_no_end():
    """After an error in the run the line is finished, once."""
    terminal = Terminal()
    bar = ProgressBar(stream=terminal, delay_seconds=0)
    for event in list(sandblaster())[:-1]:
        bar(event)
    bar.close()
    bar.close()
    assert terminal.getvalue().count("\n") == 1


def test_one_bar_serves_one_run_after_another():
    """The second run starts from nothing."""
    terminal = Terminal()
    bar = ProgressBar(stream=terminal, delay_seconds=0)
    show(bar, sandblaster(n_iterations=9))
    show(bar, [RunStarted("Downpour", 10, 5, 2, planned=5.0, planned_unit="epochs"), Stopped(STOPPED, seconds=1.0)])
    assert terminal.getvalue().rstrip().split("\r")[-1].startswith("Downpour: epoch 0.00 of 5, 1 s |")


def test_a_notebook_gets_a_bar(monkeypatch):
    """In a notebook's kernel stderr is no terminal, and a bar is made none the less."""

    class Shell:
        config: ClassVar[dict[str, Any]] = {"IPKernelApp": {}}

    class IPython:
        get_ipython = staticmethod(Shell)

    stderr = io.StringIO()
    monkeypatch.setitem(sys.modules, "IPython", IPython)
    monkeypatch.setattr(sys, "stderr", stderr)
    show(ProgressBar(delay_seconds=0), sandblaster())
    assert "Sandblaster: iteration 3 of 100" in stderr.getvalue()


def test_terminal_without_width_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pseudo-terminal of no columns, as batch systems make them, is no place for a bar."""

    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return True

        def fileno(self) -> int:
            return 2

    stream = Stream()
    for columns, has_bar in ((0, False), (80, True)):
        monkeypatch.setattr(os, "get_terminal_size", lambda _, n=columns: os.terminal_size((n, 24)))
        bar = ProgressBar(stream=stream)
        bar(RunStarted("method", n_rows=1, n_parameters=1, n_workers=1, planned=3.0))
        assert (bar._bar is not None) == has_bar
        bar.close()


def add_rows(bar):
    for _ in range(3):
        bar.add(250)
    bar.close()


def test_rows_are_counted_on_one_line():
    """In a terminal, once it takes longer."""
    terminal, brief = Terminal(), Terminal()
    add_rows(RowBar("predicting", 1000, stream=terminal, delay_seconds=0))
    add_rows(RowBar("predicting", 1000, stream=brief, delay_seconds=1000.0))
    last = terminal.getvalue().rstrip().split("\r")[-1]
    assert last.startswith("predicting: 750 of 1,000 rows, 0 s |") and last.rstrip().endswith("75%")
    assert brief.getvalue().strip() == ""


def test_rows_are_counted_in_the_log_where_there_is_no_terminal(caplog):
    """And nowhere when it is switched off, or the stream is closed on the way."""
    caplog.set_level(logging.INFO, logger="dask_belief.monitoring.progress")
    add_rows(RowBar("predicting", 1000, stream=io.StringIO(), interval_seconds=0.0))
    assert [record.getMessage()[:30] for record in caplog.records] == [
        "predicting: 250 of 1,000 rows,",
        "predicting: 500 of 1,000 rows,",
        "predicting: 750 of 1,000 rows,",
    ]
    caplog.clear()
    add_rows(RowBar("predicting", 1000, False, stream=io.StringIO(), interval_seconds=0.0))
    terminal = Terminal()
    bar = RowBar("predicting", 1000, stream=terminal, delay_seconds=0)
    bar.add(1)
    terminal.close()
    add_rows(bar)
    assert not caplog.records
