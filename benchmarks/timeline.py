"""What a run has done by when, from its events: for programs that measure how it gets over a loss."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import numpy as np

from dask_belief.monitoring.events import DownpourProgressed, Event, IterationEnded, Rebuilt, Resumed

WINDOW_SECONDS = 3.0
"""Speeds are means over so long."""


@dataclass(repr=False)
class Timeline:
    """Events with the moments at which they arrived; a callback of a run.

    Attributes
    ----------
    should_stop
        Whether to end the run at its next event.
    """

    should_stop: bool = False
    _entries: list[tuple[float, Event]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, event: Event) -> bool:
        """Take note of an event."""
        self.note(event, time.monotonic())
        return self.should_stop

    def note(self, event: Event, at: float) -> None:
        """Take note of an event that arrived at that moment, by `time.monotonic`."""
        with self._lock:
            self._entries.append((at, event))

    def entries(self) -> list[tuple[float, Event]]:
        """Give all events until now."""
        with self._lock:
            return list(self._entries)

    def first(self, kinds: type[Event] | tuple[type[Event], ...], since: float) -> tuple[float, Event] | None:
        """Give the first event of some kinds that arrived after a moment; None when there is none yet."""
        return next(((at, event) for at, event in self.entries() if at > since and isinstance(event, kinds)), None)

    def progress(self, since: float) -> float | None:
        """Tell when the run came further for the first time after a moment."""
        found = self.first((IterationEnded, DownpourProgressed), since)
        return None if found is None else found[0]

    def work(self) -> tuple[np.ndarray, np.ndarray]:
        """Give moments, and the work done by then: evaluations, or rows; what is done again counts again."""
        moments: list[float] = []
        done: list[float] = []
        evaluations = {0: 1}
        total, last = 0.0, None
        for at, event in self.entries():
            match event:
                case IterationEnded():
                    evaluations[event.iteration] = level = event.evaluations
                case DownpourProgressed():
                    level = event.rows
                case Rebuilt(iteration=int(iteration)):
                    last = float(evaluations.get(iteration, 0))
                    continue
                case Resumed():
                    last = None
                    continue
                case _:
                    continue
            total += 0.0 if last is None else max(0.0, level - last)
            last = float(level)
            moments.append(at)
            done.append(total)
        return np.array(moments), np.array(done)

    def speed(self, begin: float, end: float) -> float:
        """Work a second between two moments."""
        moments, done = self.work()
        if len(moments) < 2:
            return 0.0
        low, high = np.interp([begin, end], moments, done)
        return float(high - low) / (end - begin)

    def is_back(self, since: float, speed: float) -> float | None:
        """The first moment after one from which on the run was so fast for `WINDOW_SECONDS`; None when not yet."""
        moments, done = self.work()
        if not len(moments):
            return None
        for begin in [since, *moments[moments > since]]:
            if begin + WINDOW_SECONDS > moments[-1]:
                return None
            low, high = np.interp([begin, begin + WINDOW_SECONDS], moments, done)
            if high - low >= speed * WINDOW_SECONDS:
                return float(begin)
        return None
