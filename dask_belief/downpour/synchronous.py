"""Exchanges of synchronous training: push, arrive, and fetch what the round has made of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from dask_belief.cluster.limits import limits
from dask_belief.parameter_server.client import ParameterServer
from dask_belief.parameter_server.exchange import Exchange, Exchanged
from dask_belief.parameter_server.messages import PushKey, Round


class SynchronousLine:
    """Stands before `ParameterServer.exchange`, and makes of one exchange the messages of a round.

    Parameters
    ----------
    server
        The shards.
    ask_ledger
        Calls a method of the ledger in this replica's name.
    """

    def __init__(self, server: ParameterServer, ask_ledger: Callable[..., Awaitable[Any]]) -> None:
        self._server = server
        self._ask_ledger = ask_ledger
        self._closed: Round | None = None

    async def __call__(self, ask: Exchange) -> Exchanged:
        """Push and wait until the round is closed, fetch its parameters, or both."""
        pushed_bytes, done = 0, Exchanged((0,) * self._server.n_pieces, 0, 0)
        if ask.push is not None:
            number = self._number
            await self._server.exchange(replace(ask, into=None, bases=(number,) * self._server.n_pieces))
            pushed_bytes = 0 if ask.vector is None else ask.vector.nbytes
            self._closed = await self._arrive(number, ask.push)
            if ask.into is None:
                # After this replica's last push nobody else may tell the shards of the round.
                await self._server.exchange(Exchange(ask.replica, ask.at, closed=self._closed))
            # Its staleness is nothing: what is late makes no step.
            done = replace(done, versions=tuple(base + 1 for base in ask.bases))
        if ask.into is not None:
            if ask.push is None:
                # Others may have gone on while this replica had no work.
                last = await self._ask_ledger("closed", -1, limits().poll_seconds)
                self._closed = None if last is None else Round.of(last)
            done = await self._server.exchange(replace(ask, push=None, vector=None, bases=(), closed=self._closed))
        return replace(done, pushed_bytes=pushed_bytes)

    @property
    def _number(self) -> int:
        return 0 if self._closed is None else self._closed.number + 1

    async def _arrive(self, number: int, push: PushKey) -> Round:
        answer = await self._ask_ledger("arrive", number, push, limits().poll_seconds)
        while answer is None:
            answer = await self._ask_ledger("closed", number, limits().poll_seconds)
        return Round.of(answer)
