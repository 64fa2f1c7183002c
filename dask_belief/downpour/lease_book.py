"""Which replica trains on which rows next: a pure book of leases, in an order that depends on seed and epoch alone.

An epoch covers every row once. The leases of the next epoch go out when none of this one is left, so there is no
barrier between epochs. What a lost replica had goes to another, ahead of the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from dask_belief.parameter_server.messages import LeaseKey
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
        Every finished lease.
    steps, rows
        Mini-batches and rows trained on.
    """

    finished: tuple[LeaseKey, ...]
    steps: int
    rows: int


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
    warm_start_steps
        Until so many mini-batches are done, only the replica that came first is given leases (section 4.2 of the
        paper's experiments: "training only a single model replica before unleashing the other replicas").
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
        self, n_leases: int, epochs: int, seed: int, warm_start_steps: int = 0, state: BookState | None = None
    ) -> None:
        self.n_leases = n_leases
        self.epochs = epochs
        self.steps = state.steps if state else 0
        self.rows = state.rows if state else 0
        self.n_taken_over = 0
        self._seed = seed
        self._warm_start_steps = warm_start_steps
        self._finished: set[LeaseKey] = {LeaseKey(*key) for key in state.finished} if state else set()
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

    def next_lease(self, replica: str) -> RowLease | None:
        """Give the next lease; None when there is none for this replica now."""
        self.join(replica)
        if self.steps < self._warm_start_steps and replica != next(iter(self._replicas)):
            return None
        if self._returned:
            self.n_taken_over += 1
            return self._give(self._returned.popleft(), replica, is_taken_over=True)
        while not self._waiting:
            if self._epoch + 1 >= self.epochs:
                return None
            self._epoch += 1
            self._waiting.extend(self._order(self._epoch))
        return self._give(self._waiting.popleft(), replica, is_taken_over=self._is_resumed)

    def _order(self, epoch: int) -> Iterable[LeaseKey]:
        order = stream(self._seed, "leases", epoch).permutation(self.n_leases)
        keys = (LeaseKey(epoch, int(number)) for number in order)
        return (key for key in keys if key not in self._finished)

    def _give(self, key: LeaseKey, replica: str, is_taken_over: bool) -> RowLease:
        self._held[key] = replica
        return RowLease(key, is_taken_over)

    def finish(self, key: LeaseKey, steps: int, rows: int) -> bool:
        """Note a lease as finished, whoever finished it; False when it was already."""
        if key in self._finished:
            return False
        self._finished.add(key)
        self._held.pop(key, None)
        if key in self._returned:
            self._returned.remove(key)
        self.steps += steps
        self.rows += rows
        return True

    @property
    def n_finished(self) -> int:
        """Finished leases, over all epochs."""
        return len(self._finished)

    @property
    def is_over(self) -> bool:
        """Whether every lease of every epoch is finished."""
        return self.n_finished == self.n_leases * self.epochs

    def state(self) -> BookState:
        """What to save."""
        return BookState(tuple(sorted(self._finished)), self.steps, self.rows)
