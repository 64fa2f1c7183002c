"""One line that tells how far a run has come, in a terminal, a notebook, or the log."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
import warnings
from typing import Any, TextIO

from dask_belief.monitoring.events import DownpourProgressed, Event, IterationEnded, RunStarted, Stopped, Validated

logger = logging.getLogger(__name__)


class ProgressBar:
    """A callback that shows the method, how far it is, the losses, Downpour's speed and staleness, and the time.

    ::

        Sandblaster: iteration 12 of 100, loss 0.3456, validation 0.3561, 14 s |██▍                 | 12%
        Downpour: epoch 1.25 of 5, loss 0.3456, 81,920 rows/s, staleness 2.7, 61 s |█████              | 25%

    Until something is done it tells what memory is planned. Methods that run one after another in one call have a bar
    each, and the time runs on.

    In a terminal and in a notebook it is a bar of tqdm's. Where stderr is neither (a file, a batch system), the line
    goes to the log every few seconds instead. Where stderr is closed nothing is shown.

    Parameters
    ----------
    progress
        False: nothing is ever shown.
    stream
        Where the bar is written; None: `sys.stderr` as it is when the run starts.
    delay_seconds
        A run that ends sooner shows no bar.
    interval_seconds
        The time between two lines of the log, by the clock of the events.
    """

    def __init__(
        self,
        progress: bool = True,
        *,
        stream: TextIO | None = None,
        delay_seconds: float = 2.0,
        interval_seconds: float = 5.0,
    ) -> None:
        self.progress = progress
        self.delay_seconds = delay_seconds
        self.interval_seconds = interval_seconds
        self._stream = stream
        self._bar: Any = None
        """The bar, between the start and the end of a run that has one."""
        self._is_logging = False
        self._logged_seconds = 0.0
        self._run = RunStarted("training", n_rows=0, n_parameters=0, n_workers=0)
        self._done = 0.0
        """Iterations or epochs so far."""
        self._losses: dict[str, float] = {}
        """The last loss, and the last validation loss, under the words that are shown."""
        self._flow: list[str] = []
        """Speed and staleness as they are shown, where they are known."""

    def __call__(self, event: Event) -> None:
        """Show what the event changed. Never raises because of where it writes: it then shows nothing more."""
        if not self.progress:
            return
        try:
            self._take(event)
        except (OSError, ValueError) as error:
            logger.debug("no more progress is shown: %s", error)
            self._bar, self._is_logging = None, False

    def close(self) -> None:
        """Leave the bar as it is; for a run that ends without a `Stopped` event."""
        bar, self._bar, self._is_logging = self._bar, None, False
        if bar is not None:
            bar.close()

    def _take(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._start(event)
        elif isinstance(event, IterationEnded):
            self._done, self._losses["loss"] = event.iteration, event.loss
        elif isinstance(event, DownpourProgressed):
            self._done, self._losses["loss"] = event.epochs, event.loss
            self._flow = _flow(event)
        elif isinstance(event, Validated):
            self._losses["validation"] = event.loss
        elif not isinstance(event, Stopped):
            return
        if isinstance(event, Stopped) and event.stop.converged and self._bar is not None and self._done:
            # All is done, if before its limit; a notebook paints a bar that is not full as failed.
            self._bar.total = self._done
        self._show(event.seconds, is_last=isinstance(event, Stopped))
        if isinstance(event, Stopped):
            self.close()

    def _start(self, event: RunStarted) -> None:
        self.close()
        self._run, self._done, self._losses, self._flow = event, 0.0, {}, []
        self._logged_seconds = event.seconds
        stream = self._stream or sys.stderr
        if stream is None or stream.closed:
            return
        if _is_terminal(stream) or _is_notebook():
            self._bar = _new_bar(stream, self._run.planned, self.delay_seconds)
        else:
            self._is_logging = True

    def _show(self, seconds: float, is_last: bool) -> None:
        line = self._line(seconds)
        if self._bar is not None:
            self._bar.set_description_str(line, refresh=False)
            self._bar.update(self._done - self._bar.n)
        elif self._is_logging and (is_last or seconds - self._logged_seconds >= self.interval_seconds):
            logger.info("%s", line)
            self._logged_seconds = seconds

    def _line(self, seconds: float) -> str:
        singular = {"iterations": "iteration", "epochs": "epoch"}.get(self._run.planned_unit, self._run.planned_unit)
        limit = "" if self._run.planned is None else f" of {self._run.planned:g}"
        done = f"{self._done:.0f}" if singular == "iteration" else f"{self._done:.2f}"
        losses = [f"{name} {loss:.4g}" for name, loss in self._losses.items()]
        if not self._done and self._run.memory:
            losses.append(self._run.memory)
        return f"{self._run.method}: " + ", ".join(
            [f"{singular} {done}{limit}", *losses, *self._flow, f"{seconds:.0f} s"]
        )


class RowBar:
    """Shows how many rows are done of so many, where and as `ProgressBar` does.

    ::

        predicting: 81,920 of 336,776 rows, 14 s |████▉               | 24%

    Parameters
    ----------
    what
        Is done with the rows.
    n_rows
        All of them.
    progress, stream, delay_seconds, interval_seconds
        See `ProgressBar`.
    """

    def __init__(
        self,
        what: str,
        n_rows: int,
        progress: bool = True,
        *,
        stream: TextIO | None = None,
        delay_seconds: float = 2.0,
        interval_seconds: float = 5.0,
    ) -> None:
        self._what, self._n_rows, self._n_done = what, n_rows, 0
        self._interval_seconds = interval_seconds
        self._began = self._logged = time.monotonic()
        self._bar: Any = None
        stream = stream or sys.stderr
        self._is_logging = progress and stream is not None and not stream.closed
        if self._is_logging and (_is_terminal(stream) or _is_notebook()):
            self._bar, self._is_logging = _new_bar(stream, n_rows, delay_seconds), False

    def add(self, n_rows: int) -> None:
        """Count rows that are done. Never raises because of where it writes: it then shows nothing more."""
        self._n_done += n_rows
        now = time.monotonic()
        line = f"{self._what}: {self._n_done:,} of {self._n_rows:,} rows, {now - self._began:.0f} s"
        try:
            if self._bar is not None:
                self._bar.set_description_str(line, refresh=False)
                self._bar.update(n_rows)
            elif self._is_logging and now - self._logged >= self._interval_seconds:
                logger.info("%s", line)
                self._logged = now
        except (OSError, ValueError) as error:
            logger.debug("no more progress is shown: %s", error)
            self._bar, self._is_logging = None, False

    def close(self) -> None:
        """Leave the bar as it is."""
        bar, self._bar, self._is_logging = self._bar, None, False
        if bar is not None:
            bar.close()


def _new_bar(stream: TextIO, total: float | None, delay_seconds: float) -> Any:
    with warnings.catch_warnings():
        # A notebook without ipywidgets gets tqdm's text bar; it need not be told each time.
        warnings.filterwarnings("ignore", message="IProgress not found")
        from tqdm.auto import tqdm
    # A notebook draws its own bar, in the place of {bar} as it stands.
    bar = "{bar}" if _is_notebook() else "|{bar:20}|"
    return tqdm(
        total=total,
        delay=delay_seconds,
        bar_format="{desc}" if total is None else "{desc} " + bar + "{percentage:3.0f}%",
        miniters=0,
        file=None if _is_notebook() else stream,
    )


def _flow(event: DownpourProgressed) -> list[str]:
    """Rows a second and mean staleness, where they are known."""
    shown = []
    if math.isfinite(event.rows_per_second):
        shown.append(f"{event.rows_per_second:,.0f} rows/s")
    if math.isfinite(event.staleness_mean):
        shown.append(f"staleness {event.staleness_mean:.1f}")
    return shown


def _is_terminal(stream: TextIO) -> bool:
    """Whether a bar can be seen: a pseudo-terminal that nobody looks at often has no width."""
    if not stream.isatty():
        return False
    try:
        return os.get_terminal_size(stream.fileno()).columns > 0
    except (OSError, ValueError):
        # Not a file of the system's: what it says of itself must do.
        return True


def _is_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config
