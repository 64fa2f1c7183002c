"""Carries fetches and pushes between a replica and the shards, while the replica computes.

One line, in the order in which it is told: a push is applied before the fetch that was begun after it, so with one
replica what a fetch holds does not depend on timing. A push and a fetch that are due together share one message.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from dask_belief.backend import Backend
from dask_belief.cluster.actors import Caller
from dask_belief.cluster.asking import answer_within
from dask_belief.cluster.limits import limits
from dask_belief.parameter_server.directory import Directory
from dask_belief.parameter_server.exchange import Exchange, Exchanged, Sent, Traffic
from dask_belief.parameter_server.selection import Selection

Carry = Callable[[Exchange], Awaitable[Exchanged]]
"""Makes one exchange with all shards: `ParameterServer.exchange`, or what stands before it."""

# A push that finds so many exchanges before it waits: nothing is dropped, and memory stays bounded.
_IN_FLIGHT = 2


@dataclass(frozen=True)
class Arrived:
    """What a fetch brought.

    Attributes
    ----------
    buffer
        The memory of the values, of all parameters' length; whoever gets it hands it back with `Courier.give_back`.
    versions
        Per piece of the whole vector, how many updates it had had.
    selection
        What of the parameters they are, compact; None for all.
    """

    buffer: Sent
    versions: tuple[int, ...]
    selection: Selection | None

    @property
    def values(self) -> Sent:
        """The values that were fetched, compact where there is a selection."""
        return self.buffer if self.selection is None else self.buffer[: self.selection.n_elements]


@dataclass
class _UnderWay:
    future: concurrent.futures.Future[Exchanged]
    ask: Exchange
    pushed: Sent | None
    fetched: Sent | None
    effective_step: float


class Courier:
    """The line of one replica.

    Parameters
    ----------
    directory
        Where the shards are.
    carry, caller
        What makes an exchange, and the event loop that it runs on.
    backend
        Where the replica's vectors live; what travels is host memory.
    limit_seconds
        How long to wait for one exchange; None for twice the limit of a call.
    dtype
        Of what travels; None for the run's.

    Attributes
    ----------
    traffic
        What was carried so far.
    """

    def __init__(
        self,
        directory: Directory,
        carry: Carry,
        caller: Caller,
        backend: Backend,
        limit_seconds: float | None = None,
        dtype: str | None = None,
    ) -> None:
        self._workers = ", ".join(sorted({shard.worker for shard in directory.shards}))
        self._shape, self._dtype = (directory.n_parameters,), dtype or directory.dtype
        self._carry = carry
        self._caller = caller
        self._backend = backend
        self._limit_seconds = limits().two_calls_seconds if limit_seconds is None else limit_seconds
        self._line: deque[_UnderWay] = deque()
        self._last: concurrent.futures.Future[Exchanged] | None = None
        self._free: list[Sent] = []
        self._arrived: deque[tuple[float, Arrived]] = deque()
        self.traffic = Traffic()

    def send(
        self, ask: Exchange, pushed: Sent | None, effective_step: float | None
    ) -> concurrent.futures.Future[Exchanged]:
        """Begin an exchange.

        Parameters
        ----------
        ask
            What to push, and what of the parameters to fetch; `into` is filled in here.
        pushed
            The buffer in which what is pushed lies; it is the courier's from now on.
        effective_step
            From which step on the fetched parameters are to be used; None to push alone.
        """
        began = time.perf_counter()
        while len(self._line) >= _IN_FLIGHT:
            self._finish_first()
        self.traffic.push_waiting_seconds += time.perf_counter() - began
        fetched, chosen = None, ask.fetch_selection
        if effective_step is not None:
            fetched = self.buffer()
            ask = replace(ask, into=fetched if chosen is None else fetched[: chosen.n_elements])
        future = self._caller.start(self._exchange(self._last, ask))
        self._last = future
        self._line.append(_UnderWay(future, ask, pushed, fetched, -1 if effective_step is None else effective_step))
        return future

    async def _exchange(self, before: concurrent.futures.Future[Exchanged] | None, ask: Exchange) -> Exchanged:
        if before is not None:
            await asyncio.wrap_future(before)
        return await self._carry(ask)

    def arrived(self, step: float) -> list[Arrived]:
        """What takes effect at `step` or before, in order, waited for if need be; empty when there is nothing."""
        began = time.perf_counter()
        while any(each.fetched is not None and each.effective_step <= step for each in self._line):
            self._finish_first()
        self.traffic.fetch_waiting_seconds += time.perf_counter() - began
        due = []
        while self._arrived and self._arrived[0][0] <= step:
            due.append(self._arrived.popleft()[1])
        return due

    def buffer(self) -> Sent:
        """Give a host vector of all parameters' length, for `send` or for use until `give_back`."""
        return self._free.pop() if self._free else self._backend.host_empty(self._shape, self._dtype)

    def give_back(self, buffer: Sent) -> None:
        """Let a host vector be used again."""
        self._free.append(buffer)

    def _finish_first(self) -> None:
        first = self._line.popleft()
        ask, traffic = first.ask, self.traffic
        done = answer_within(
            self._limit_seconds, first.future, f"the end of an exchange with the shards on {self._workers}"
        )
        traffic.pushed_bytes += done.pushed_bytes
        traffic.fetched_bytes += done.fetched_bytes
        if first.pushed is not None:
            traffic.n_pushes += 1
            # What a piece had had when the push came: the push itself is counted in its version.
            staleness = (version - 1 - base for version, base in zip(done.versions, ask.bases, strict=True))
            traffic.staleness_sum += max(0, *staleness)
            self.give_back(first.pushed)
        if first.fetched is not None:
            traffic.n_fetches += 1
            self._arrived.append((first.effective_step, Arrived(first.fetched, done.versions, ask.fetch_selection)))
