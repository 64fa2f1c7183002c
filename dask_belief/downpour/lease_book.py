"""Which replica trains on which rows next: a pure book of leases, in an order that depends on seed and epoch alone.

An epoch covers every row once. The leases of the next epoch go out when none of this one is left, so there is no
barrier between epochs. What a lost replica had goes to another, ahead of the rest.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dask_belief.parameter_server.messages import Finished, LeaseKey
from dask_belief.seeds import stream


@dataclass(frozen=True)
class RowLease:
    """Some rows for one replica.

    Attributes
    ----------
    key
        Epoch and number of the unit of rows.
    is_taken_over
        Whether another replica may have trained on a part of it.
    """

    key: LeaseKey
    is_taken_over: bool


@dataclass(frozen=True)
class BookState:
    """What is needed to go on after a loss: the finished leases, and how far the run has come.

    Attributes
    ----------
    finished
        The finished leases.
    steps, rows
        Mini-batches and rows trained on.
    is_released
        Whether the warm start is over.
    """

    finished: Finished
    steps: int
    rows: int
    is_released: bool = False

    def to_config(self) -> dict[str, Any]:
        """Describe it by plain JSON."""
        return {
            "epoch": self.finished.epoch,
            "finished": [list(key) for key in sorted(self.finished.more)],
            "steps": self.steps,
            "rows": self.rows,
            "is_released": self.is_released,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> BookState:
        """Rebuild it from `to_config`; raises `KeyError`, `TypeError` or `ValueError` for what is not one."""
        more = frozenset(LeaseKey(int(epoch), int(lease)) for epoch, lease in config["finished"])
        finished = Finished(int(config["epoch"]), more)
        return cls(finished, int(config["steps"]), int(config["rows"]), bool(config["is_released"]))


class LeaseBook:
    """Gives out the leases of all epochs.

    Parameters
    ----------
    n_leases
        Leases of an epoch.
    epochs
        Passes over the data.
    seed
        The run's root seed.
    warm_start_steps, warm_start_seconds
        Until so many mini-batches are done, and for so long after the first lease was given, only the replica that came
        first is given leases ("training only a single model replica before unleashing the other replicas", section
        4.1).
    state
        Where to go on.

    Attributes
    ----------
    steps, rows
        Mini-batches and rows of the finished leases.
    n_taken_over
        Leases that a lost replica had, and that were given to another.
    """

    def __init__(
        self,
        n_leases: int,
        epochs: int,
        seed: int,
        warm_start_steps: int = 0,
        warm_start_seconds: float = 0.0,
        state: BookState | None = None,
    ) -> None:
        self.n_leases = n_leases
        self.epochs = epochs
        self.steps = state.steps if state else 0
        self.rows = state.rows if state else 0
        self.n_taken_over = 0
        self._seed = seed
        self._warm_start_steps = warm_start_steps
        self._warm_start_seconds = warm_start_seconds
        self._began: float | None = None
        self._is_released = state is not None and state.is_released
        self._n_done = [0] * epochs
        self._whole = 0
        # Of the epochs that are not whole yet.
        self._finished: set[LeaseKey] = set()
        if state is not None:
            self._take(state.finished)
        self._is_resumed = state is not None
        self._replicas: dict[str, None] = {}
        self._held: dict[LeaseKey, str] = {}
        self._returned: deque[LeaseKey] = deque()
        self._epoch = -1
        self._waiting: deque[LeaseKey] = deque()

    def join(self, replica: str) -> None:
        """Count a replica in; the order in which they come decides who makes the warm start."""
        self._replicas.setdefault(replica)

    def leave(self, replica: str) -> None:
        """Count a replica out; its leases go to others."""
        self._replicas.pop(replica, None)
        for key in [key for key, holder in self._held.items() if holder == replica]:
            del self._held[key]
            self._returned.append(key)

    def _take(self, finished: Finished) -> None:
        self._whole = finished.epoch
        self._finished = {LeaseKey(*key) for key in finished.more}
        self._n_done[: self._whole] = [self.n_leases] * self._whole
        for key in self._finished:
            self._n_done[key.epoch] += 1

    def next_lease(self, replica: str, now: float) -> RowLease | None:
        """Give the next lease; None when there is none for this replica now."""
        self.join(replica)
        self._began = now if self._began is None else self._began
        if not self._is_released and self._is_warming_up(now):
            if replica != next(iter(self._replicas)):
                return None
        else:
            self._is_released = True
        if self._returned:
            self.n_taken_over += 1
            return self._give(self._returned.popleft(), replica, is_taken_over=True)
        while not self._waiting:
            if self._epoch + 1 >= self.epochs:
                return None
            self._epoch += 1
            self._waiting.extend(self._order(self._epoch))
        return self._give(self._waiting.popleft(), replica, is_taken_over=self._is_resumed)

    def _is_warming_up(self, now: float) -> bool:
        began = now if self._began is None else self._began
        return self.steps < self._warm_start_steps or now - began < self._warm_start_seconds

    @property
    def warm_start_ends_at(self) -> float:
        """When the others are released, as far as the clock decides it; infinity when it does not."""
        is_by_clock = self._began is not None and self.steps >= self._warm_start_steps and not self._is_released
        return (self._began or 0.0) + self._warm_start_seconds if is_by_clock else math.inf

    @property
    def at_work(self) -> set[str]:
        """The replicas that hold a lease."""
        return set(self._held.values())

    def _order(self, epoch: int) -> Iterable[LeaseKey]:
        order = stream(self._seed, "leases", epoch).permutation(self.n_leases)
        keys = (LeaseKey(epoch, int(number)) for number in order)
        return (key for key in keys if not self._is_finished(key))

    def _is_finished(self, key: LeaseKey) -> bool:
        return key.epoch < self._whole or key in self._finished

    def _give(self, key: LeaseKey, replica: str, is_taken_over: bool) -> RowLease:
        self._held[key] = replica
        return RowLease(key, is_taken_over)

    def finish(self, key: LeaseKey, steps: int, rows: int) -> bool:
        """Note a lease as finished, whoever finished it; False when it was already."""
        if self._is_finished(key):
            return False
        self._finished.add(key)
        self._n_done[key.epoch] += 1
        while self._whole < self.epochs and self._n_done[self._whole] == self.n_leases:
            self._finished = {other for other in self._finished if other.epoch != self._whole}
            self._whole += 1
        self._held.pop(key, None)
        if key in self._returned:
            self._returned.remove(key)
        self.steps += steps
        self.rows += rows
        return True

    @property
    def n_finished(self) -> int:
        """Finished leases, over all epochs."""
        return sum(self._n_done)

    @property
    def is_over(self) -> bool:
        """Whether every lease of every epoch is finished."""
        return self.n_finished == self.n_leases * self.epochs

    def state(self) -> BookState:
        """What to save."""
        return BookState(Finished(self._whole, frozenset(self._finished)), self.steps, self.rows, self._is_released)
