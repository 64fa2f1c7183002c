"""One run of `benchmarks.chaos` through all its processes: what happens to them, and what they do when they hang."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chaos_faults import Faults
from benchmarks.chaos_run import Order
from benchmarks.faulty_cluster import FaultyCluster
from benchmarks.record import ROOT
from dask_belief.checkpoint import CheckpointStore

SILENT_SECONDS, LONGEST_SECONDS = 120.0, 600.0
"""A run that says nothing for so long, or has not ended after so long, is taken for hung."""

CLIENT_SHARE = 0.08
"""The part of the faults that happen to the process that drives the run."""

_MOST_CLIENT_FAULTS = 2
_INTERRUPTED_SECONDS = 60.0

PROMISED_SECONDS = 5.0
"""What a run may take to end after an interrupt."""
_STACKS_SECONDS = 3.0
_LOOK_SECONDS = 0.05


@dataclass
class Outcome:
    """One run.

    Attributes
    ----------
    number, method, options, checkpoint
        What was trained; `checkpoint` is "none", or how often it was written.
    seconds, attempts
        Of all its processes, and how many there were.
    faults
        What happened, in order.
    rebuilt
        What the last of its processes made anew, and what that cost.
    verdict
        In one word.
    failures
        What was wrong.
    interrupted_seconds
        From each interrupt to the end of the process.
    missing
        Downpour: mini-batches that shards lack.
    memory
        Megabytes, after the run.
    """

    number: int
    method: str
    options: dict[str, Any]
    checkpoint: str
    seconds: float = 0.0
    attempts: int = 0
    faults: list[dict[str, Any]] = field(default_factory=list)
    rebuilt: list[dict[str, Any]] = field(default_factory=list)
    verdict: str = ""
    failures: list[str] = field(default_factory=list)
    interrupted_seconds: list[float] = field(default_factory=list)
    missing: float = 0.0
    memory: dict[str, float] = field(default_factory=dict)


class Trainer:
    """`benchmarks.chaos_run` in a process of its own."""

    def __init__(self, order: Order, log: Path) -> None:
        self.log = log
        at = log.with_suffix(".json")
        at.write_text(json.dumps(asdict(order)))
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.chaos_run", str(at)], cwd=ROOT, stdout=out, stderr=out
            )

    @property
    def is_silent(self) -> bool:
        """Whether it has said nothing for too long."""
        return time.time() - self.log.stat().st_mtime > SILENT_SECONDS


class Life:
    """A run through all its processes.

    Parameters
    ----------
    order
        What the first of them is told.
    log
        Where they say what happens, without the number.
    outcome, faults, random
        What is noted, what happens, and what decides.
    """

    def __init__(self, order: Order, log: Path, outcome: Outcome, faults: Faults, random: np.random.Generator) -> None:
        self._order = order
        self._log = log
        self._outcome = outcome
        self._faults = faults
        self._random = random
        self._is_hung = False
        self._trainer = self._start(order)

    def _start(self, order: Order) -> Trainer:
        self._outcome.attempts += 1
        return Trainer(order, self._log.with_name(f"{self._log.name}-{self._outcome.attempts}.log"))

    def live(self, pauses: Iterator[float]) -> None:
        """Let faults happen until the run has ended, or hangs."""
        until, next_at = time.monotonic() + LONGEST_SECONDS, time.monotonic() + next(pauses)
        while self._trainer.process.poll() is None:
            if self._trainer.is_silent or time.monotonic() > until:
                self._is_hung = True
                return
            if time.monotonic() >= next_at:
                self._strike()
                next_at = time.monotonic() + next(pauses)
            time.sleep(_LOOK_SECONDS)
        if self._trainer.process.returncode:
            self._outcome.failures.append(f"ended with an error: {last_line(self._trainer.log)}")

    def _strike(self) -> None:
        is_at_client = self._random.random() < CLIENT_SHARE
        if is_at_client and self._outcome.attempts <= _MOST_CLIENT_FAULTS:
            self._strike_client(is_kill=bool(self._random.random() < 0.5))
        else:
            self._faults.strike()

    def _strike_client(self, is_kill: bool) -> None:
        """Kill the driving process, or interrupt it, and resume the run where it has a checkpoint."""
        if is_kill and self._order.checkpoint is None:
            return
        process = self._trainer.process
        self._faults.note_client("kill client" if is_kill else "interrupt")
        began = time.monotonic()
        process.send_signal(signal.SIGKILL if is_kill else signal.SIGINT)
        try:
            process.wait(_INTERRUPTED_SECONDS)
        except subprocess.TimeoutExpired:
            self._is_hung = True
            return
        if not is_kill:
            self._outcome.interrupted_seconds.append(seconds := time.monotonic() - began)
            if seconds > PROMISED_SECONDS:
                self._outcome.failures.append(f"an interrupt took {seconds:.1f} seconds")
        result = Path(self._order.result)
        if result.exists() and json.loads(result.read_text())["reason"] != "INTERRUPTED":
            return
        if self._order.checkpoint is None:
            self._outcome.verdict = "interrupted"
            return
        if process.returncode in (0, -signal.SIGKILL):
            result.unlink(missing_ok=True)
            has_saved = bool(
                Path(self._order.checkpoint).exists() and CheckpointStore(self._order.checkpoint).numbers()
            )
            self._trainer = self._start(replace(self._order, should_resume=has_saved))

    def end(self, cluster: FaultyCluster) -> None:
        """Take note of a run that hangs, with the stacks of all who take part, and end it."""
        process = self._trainer.process
        if process.poll() is not None:
            return
        if self._is_hung:
            self._outcome.verdict = "hung"
            self._outcome.failures.append(f"hung; its last word: {last_line(self._trainer.log)}")
            process.send_signal(signal.SIGUSR1)
            cluster.dump_stacks()
            time.sleep(_STACKS_SECONDS)
        process.kill()
        process.wait()


def last_line(log: Path) -> str:
    """Give the last line of a log that says something."""
    lines = [each for each in log.read_text(errors="replace").splitlines() if each.strip()]
    return lines[-1] if lines else "nothing"
