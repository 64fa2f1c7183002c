"""Faults by chance, from a seed: what happens next, to which worker, and that it is undone again."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

import dask_belief as db
from benchmarks.faulty_cluster import FaultyCluster

WEIGHTS = {"kill": 5, "freeze": 3, "slow": 2, "retire": 3, "add": 1}
"""How often each kind happens, beside the others."""

MOST_WORKERS = 6
FREEZE_SECONDS = (1.0, 8.0)
SLOW_SECONDS = (2.0, 5.0)
_BURST_SECONDS = 0.05
_ADDED_AFTER_SECONDS = (1.0, 4.0)
_LEAST_UNTOUCHED = 2


@dataclass(frozen=True)
class Happened:
    """A fault that happened.

    Attributes
    ----------
    kind, roles
        What, and what the run had on that worker, by name; empty for replicas only.
    at_seconds
        Since the run began.
    seconds
        How long it lasted, for what lasts.
    """

    kind: str
    roles: tuple[str, ...]
    at_seconds: float
    seconds: float = 0.0


class Faults:
    """Makes faults happen to one run.

    Parameters
    ----------
    cluster
        Where.
    random
        Decides.

    Attributes
    ----------
    happened
        All of them, in order.
    failures
        What went wrong in making them happen that should not.
    """

    def __init__(self, cluster: FaultyCluster, random: np.random.Generator) -> None:
        self.happened: list[Happened] = []
        self.failures: list[str] = []
        self._cluster = cluster
        self._random = random
        self._began = time.monotonic()
        self._is_over = threading.Event()
        self._touched: set[str] = set()
        self._helpers: list[threading.Thread] = []

    def strike(self) -> str | None:
        """Let a fault happen; gives its kind, or None where too few workers are left untouched."""
        kinds, weights = list(WEIGHTS), np.array(list(WEIGHTS.values()), float)
        kind = kinds[int(self._random.choice(len(kinds), p=weights / weights.sum()))]
        place, lasting = float(self._random.random()), float(self._random.random())
        free = [worker for worker in self._cluster.processes() if worker not in self._touched]
        if kind == "add":
            if self._cluster.n_workers < MOST_WORKERS:
                self._help("", lambda *_: self._cluster.add(), kind, (), 0.0)
                return kind
            kind = "retire"
        if len(free) <= _LEAST_UNTOUCHED:
            return None
        worker = free[int(place * len(free))]
        roles = sorted(self._cluster.roles().get(worker, ()))
        match kind:
            case "kill":
                if self._cluster.kill(worker):
                    self._note(kind, roles)
            case "freeze":
                self._help(worker, self._freeze, kind, roles, _between(FREEZE_SECONDS, lasting))
            case "slow":
                self._help(worker, self._slow, kind, roles, _between(SLOW_SECONDS, lasting))
            case "retire":
                self._help(worker, self._retire, kind, roles, _between(_ADDED_AFTER_SECONDS, lasting))
        return kind

    def note_client(self, kind: str) -> None:
        """Take note of what was done to the client."""
        self._note(kind, ("client",))

    def _note(self, kind: str, roles: Collection[str], seconds: float = 0.0) -> None:
        self.happened.append(Happened(kind, tuple(roles), time.monotonic() - self._began, seconds))

    def _help(
        self, worker: str, act: Callable[[str, float], None], kind: str, roles: Collection[str], seconds: float
    ) -> None:
        self._touched.add(worker)
        self._note(kind, roles, seconds)
        helper = threading.Thread(target=self._act, args=(act, kind, worker, seconds), daemon=True)
        self._helpers.append(helper)
        helper.start()

    def _act(self, act: Callable[[str, float], None], kind: str, worker: str, seconds: float) -> None:
        try:
            act(worker, seconds)
        except Exception as error:
            self.failures.append(f"{kind} of {worker}: {type(error).__name__}: {error}")
        finally:
            self._touched.discard(worker)

    def _freeze(self, worker: str, seconds: float) -> None:
        pid = self._cluster.stop(worker)
        if pid is not None:
            self._is_over.wait(seconds)
            self._cluster.go_on([pid])

    def _slow(self, worker: str, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._is_over.is_set():
            pid = self._cluster.stop(worker)
            if pid is None:
                return
            self._is_over.wait(_BURST_SECONDS)
            self._cluster.go_on([pid])
            self._is_over.wait(_BURST_SECONDS)

    def _retire(self, worker: str, seconds: float) -> None:
        try:
            self._cluster.retire(worker)
        except db.ArgumentError:
            # It was lost in the meantime.
            return
        self._is_over.wait(seconds)
        self._cluster.add()

    def close(self, limit_seconds: float = 90.0) -> None:
        """Undo what lasts, and wait until that is done."""
        self._is_over.set()
        self._cluster.go_on()
        until = time.monotonic() + limit_seconds
        for helper in self._helpers:
            helper.join(max(0.0, until - time.monotonic()))
        if any(helper.is_alive() for helper in self._helpers):
            self.failures.append(f"what was done to a worker did not come to an end within {limit_seconds:g} seconds")
        self._cluster.go_on()


def _between(bounds: tuple[float, float], part: float) -> float:
    return bounds[0] + part * (bounds[1] - bounds[0])


def moments(random: np.random.Generator, mean_seconds: float, together: float) -> itertools.chain[float]:
    """Seconds to wait before each fault, without end: 0 for one that comes together with the last."""

    def pauses() -> list[float]:
        pause = float(random.uniform(0.5, 1.5)) * mean_seconds
        return [pause, 0.0] if random.random() < together else [pause]

    return itertools.chain.from_iterable(pauses() for _ in itertools.count())
