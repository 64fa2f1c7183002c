"""Carries fetches and pushes between a replica and the shards, while the replica computes.

One line, in the order in which it is told: a push is applied before the fetch that was begun after it, so with one
replica what a fetch holds does not depend on timing. A push and a fetch that are due together share one message.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dask_belief.backend import Backend
from dask_belief.cluster.actors import Caller
from dask_belief.cluster.limits import LIMITS
from dask_belief.parameter_server.client import ParameterServer
from dask_belief.parameter_server.messages import PushKey

Vector = NDArray[np.floating]

# A push that finds so many exchanges before it waits: nothing is dropped, and memory stays bounded.
_IN_FLIGHT = 2


@dataclass
class _Exchange:
    future: concurrent.futures.Future[int]
    pushed: Vector | None
    fetched: Vector | None
    effective_step: int


class Courier:
    """The line of one replica.

    Parameters
    ----------
    server, caller
        The shards, and the way to them.
    backend
        Where the replica's vectors live; what travels is host memory.
    """

    def __init__(self, server: ParameterServer, caller: Caller, backend: Backend) -> None:
        self._server = server
        self._caller = caller
        self._backend = backend
        self._line: deque[_Exchange] = deque()
        self._last: concurrent.futures.Future[int] | None = None
        self._free: list[Vector] = []
        self._arrived: Vector | None = None

    def send(
        self, key: PushKey | None, accrued: Vector | None, effective_step: int | None
    ) -> concurrent.futures.Future[int]:
        """Begin an exchange.

        Parameters
        ----------
        key, accrued
            What to push, copied before this returns; None to fetch alone.
        effective_step
            From which step the fetched parameters are to be used; None to push alone.
        """
        while len(self._line) >= _IN_FLIGHT:
            self._finish_first()
        pushed = None if accrued is None else self._backend.to_host(accrued, out=self._buffer())
        fetched = None if effective_step is None else self._buffer()
        future = self._caller.start(self._exchange(self._last, key, pushed, fetched))
        self._last = future
        self._line.append(_Exchange(future, pushed, fetched, -1 if effective_step is None else effective_step))
        return future

    async def _exchange(
        self,
        before: concurrent.futures.Future[int] | None,
        key: PushKey | None,
        pushed: Vector | None,
        fetched: Vector | None,
    ) -> int:
        if before is not None:
            await asyncio.wrap_future(before)
        return await self._server.exchange(key, pushed, fetched)

    def arrived(self, step: float) -> Vector | None:
        """The newest parameters that take effect at `step` or before, waited for if need be; None when there are none.

        They are the caller's until it hands them back with `give_back`.
        """
        while any(exchange.fetched is not None and exchange.effective_step <= step for exchange in self._line):
            self._finish_first()
        newest, self._arrived = self._arrived, None
        return newest

    def give_back(self, parameters: Vector) -> None:
        """Let a vector be used again."""
        self._free.append(parameters)

    def _finish_first(self) -> None:
        exchange = self._line.popleft()
        exchange.future.result(2 * LIMITS.call_seconds)
        if exchange.pushed is not None:
            self._free.append(exchange.pushed)
        if exchange.fetched is not None:
            if self._arrived is not None:
                self._free.append(self._arrived)
            self._arrived = exchange.fetched

    def _buffer(self) -> Vector:
        directory = self._server.directory
        return self._free.pop() if self._free else self._backend.host_empty((directory.n_parameters,), directory.dtype)
