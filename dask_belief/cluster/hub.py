"""The hub of a run, a coordinator or a ledger: replicas ask it for work, and it keeps the question until there is some.

Its methods are asynchronous and run as a Dask actor's on the event loop of a worker: nothing in them takes longer than
a moment, and nobody waits without a limit.
"""

from __future__ import annotations

import asyncio
import math
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass

from dask_belief.errors import StaleError

# Whoever waits for work is woken by events, and by the clock, since a lease may have become worth a copy: so often at
# least, and so often at most.
_LOOK_SECONDS = 0.25
_LEAST_LOOK_SECONDS = 0.005


RUN_IS_OVER = "the run is over"
"""What a replica says that ended because it was told `Over`."""


@dataclass(frozen=True)
class Over:
    """The answer to a replica that asks for work when the run is over."""


class Bell:
    """Wakes everyone who waits, on one event loop; who begins to wait later hears the next ring only."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wake everyone who waits now."""
        self._rung.set()
        self._rung = asyncio.Event()

    async def wait(self, limit_seconds: float) -> bool:
        """Wait for the next ring; False when the limit passed first."""
        try:
            await asyncio.wait_for(self._rung.wait(), limit_seconds)
        except TimeoutError:
            return False
        return True


class Hub(ABC):
    """What a coordinator and a ledger have in common: who takes part, and the wait for work.

    Parameters
    ----------
    generation
        How many hubs were begun before; messages to another are refused.
    """

    def __init__(self, generation: int) -> None:
        self._generation = generation
        self._replicas: set[str] = set()
        self._kinds: set[str] = set()
        self._is_over = False
        self._bell = Bell()
        # Where the shards are: what the driver told last, and its number.
        self._directory: object | None = None
        self._directory_number = -1

    @abstractmethod
    def _join(self, replica: str) -> None:
        """Count a replica in where leases are decided."""

    @abstractmethod
    def _leave(self, replica: str) -> None:
        """Count a replica out there; its leases go to others."""

    @abstractmethod
    def _next_lease(self, replica: str, now: float) -> object | None:
        """Give the next lease for a free replica; None when there is nothing for it at this moment."""

    def _next_look(self) -> float:
        """When there may be work without an event, by the clock."""
        return math.inf

    async def hello(self, generation: int, replica: str, kind: str) -> None:
        """Count a replica in; `kind` is what decides the last bits of its results."""
        self._check(generation)
        self._kinds.add(kind)
        self._replicas.add(replica)
        self._join(replica)
        self._bell.ring()

    async def next_lease(self, generation: int, replica: str, limit_seconds: float) -> object | None:
        """Give a lease as soon as there is one, `Over` when the run is; None when the limit passes first."""
        self._check(generation)
        until = time.monotonic() + limit_seconds
        # A replica that was counted out is not to take work by a question that it left open.
        while not self._is_over and replica in self._replicas:
            now = time.monotonic()
            lease = self._next_lease(replica, now)
            if lease is not None:
                return lease
            if now >= until:
                return None
            look = max(self._next_look() - now, _LEAST_LOOK_SECONDS)
            await self._bell.wait(min(until - now, look, _LOOK_SECONDS))
        return Over()

    async def publish(self, generation: int, number: int, directory: object) -> None:
        """Tell where the shards are from now on."""
        self._check(generation)
        self._directory, self._directory_number = directory, number
        self._bell.ring()

    async def directory(self, generation: int, replica: str, known: int, limit_seconds: float) -> object | None:
        """Give a directory of the shards with a number above `known`; None when the limit passes first.

        Raises
        ------
        StaleError
            When the replica was counted out, or the run is over.
        """
        self._check(generation)
        until = time.monotonic() + limit_seconds
        while True:
            if self._is_over or replica not in self._replicas:
                raise StaleError(f"{replica} is not a part of this run any more, and is told of no shards.")
            if self._directory_number > known:
                return self._directory
            if (now := time.monotonic()) >= until:
                return None
            await self._bell.wait(until - now)

    async def leave(self, generation: int, replica: str) -> None:
        """Count a replica out: its leases go to others."""
        self._check(generation)
        self._replicas.discard(replica)
        self._leave(replica)
        self._bell.ring()

    async def finish(self, generation: int) -> None:
        """End the run: every replica that asks for work is told so."""
        self._check(generation)
        self._is_over = True
        self._bell.ring()

    def _check(self, generation: int) -> None:
        if generation != self._generation:
            name = type(self).__name__.lower()
            raise StaleError(f"{name}: generation {generation} was named, this is {self._generation}.")
