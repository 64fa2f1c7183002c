"""One vector over all shards: what the driver commands, and what replicas fetch and push.

Both send to all shards at once and wait with a limit. Vectors travel in the pieces of `ranges.pieces`, received into
the place where they are used; a few pieces a shard are in flight, since Dask has no back-pressure of its own.

A shard that is lost is replaced, and then there is a newer `Directory`. A replica asks its hub for it as soon as a call
fails, or takes long, and sends again what did not come through; keys and tree nodes see to it that nothing counts
twice::

    replica ── exchange ──x shard 1 (lost)
            ── "a directory newer than 3?" ──> hub  ... the driver makes shard 1 anew ...  <── directory 4
            ── exchange ──> shard 1 (replaced)
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_belief.binary_tree import Node
from dask_belief.cluster.actors import Caller, all_of
from dask_belief.cluster.limits import NEWS_SECONDS, limits
from dask_belief.errors import ActorLostError, OldDirectoryError
from dask_belief.monitoring.events import ShardProgress
from dask_belief.parameter_server.directory import Directory, Renew
from dask_belief.parameter_server.exchange import Exchange, Exchanged
from dask_belief.parameter_server.messages import Command, Finished, LeaseKey, Logged, Round
from dask_belief.parameter_server.selection import Selection
from dask_belief.parameter_server.vectors import join_nodes

Vector = NDArray[np.floating]

_PIECES_IN_FLIGHT = 2

Calls = Callable[[Directory], list[Awaitable[Any]]]
"""Makes the same calls by one directory or another."""


@dataclass(frozen=True)
class _Piece:
    """One piece of a shard: `number` among all, `offset` within the shard, `place` within the whole vector."""

    number: int
    shard: int
    offset: int
    place: slice

    @property
    def length(self) -> int:
        return int(self.place.stop - self.place.start)


class ParameterServer:
    """All shards as one vector; its methods are coroutines for the event loop of a `Caller`.

    Parameters
    ----------
    directory
        Where the shards are.
    caller
        Of the worker or the client that this runs on.
    renew
        Asks for a newer directory, for a replica; None for the driver, which makes them.

    Attributes
    ----------
    directory
        Where the shards are, as far as is known here.
    received_bytes, sent_bytes
        Bytes of vectors that have come from the shards and gone to them so far, also where both are in one process.
    """

    def __init__(self, directory: Directory, caller: Caller, renew: Renew | None = None) -> None:
        self.directory = directory
        self._caller = caller
        self._renew = renew
        self._renewing = asyncio.Lock()
        self._numbers = itertools.count()
        self.received_bytes = 0
        self.sent_bytes = 0
        numbers = itertools.count()
        self._pieces = [
            [
                _Piece(next(numbers), shard, piece.start - span.start, slice(piece.start, piece.stop))
                for piece in directory.pieces(shard)
            ]
            for shard, span in enumerate(directory.ranges)
        ]
        self._places = [piece.place for of_shard in self._pieces for piece in of_shard]

    @property
    def n_pieces(self) -> int:
        """In how many pieces the whole vector travels."""
        return len(self._places)

    async def _each_shard(self, method: str, *arguments: object) -> list[Any]:
        return await all_of(self._call(shard, method, *arguments) for shard in range(len(self.directory.shards)))

    async def _call(self, shard: int, method: str, *arguments: object) -> Any:
        """Call a shard, and when it is replaced meanwhile, its replacement."""

        def calls(directory: Directory) -> list[Awaitable[Any]]:
            return [self._caller.call(directory.shards[shard], method, directory.generation, *arguments)]

        return (await self._through(calls))[0]

    async def _through(self, calls: Calls) -> list[Any]:
        """Make calls by the present directory, and again by each newer one until they come through."""
        while True:
            directory = self.directory
            if self._renew is None:
                return await all_of(calls(directory))
            try:
                return await self._unless_renewed(directory, calls)
            except (ActorLostError, OldDirectoryError) as error:
                await self._renewed(directory.generation, error)

    async def _unless_renewed(
        self, directory: Directory, calls: Callable[[Directory], list[Awaitable[Any]]]
    ) -> list[Any]:
        """Make calls; given up with `OldDirectoryError` when they take long and there is a newer directory."""
        calling = asyncio.ensure_future(all_of(calls(directory)))
        asking: asyncio.Future[None] | None = None
        try:
            # It may be to a worker that is frozen: whether its shard was replaced is asked beside it.
            await asyncio.wait({calling}, timeout=NEWS_SECONDS)
            if not calling.done():
                asking = asyncio.ensure_future(self._renewed(directory.generation, None))
                await asyncio.wait({calling, asking}, return_when=asyncio.FIRST_COMPLETED)
            if calling.done():
                return calling.result()
            assert asking is not None
            asking.result()
            raise OldDirectoryError(f"directory {directory.generation} is an old one.")
        finally:
            for each in (calling, asking):
                if each is not None:
                    # What it raises has been seen, or says no more than what is raised here.
                    each.add_done_callback(lambda done: done.cancelled() or done.exception())
                    each.cancel()

    async def _renewed(self, generation: int, because: Exception | None) -> None:
        """Wait for a directory newer than `generation`.

        Raises
        ------
        Exception
            `because`, when none came within `Limits.call_seconds`.
        """
        assert self._renew is not None
        until = time.monotonic() + limits().call_seconds
        async with self._renewing:
            while self.directory.generation <= generation:
                found = await self._renew(generation)
                if found is not None:
                    self.directory = found
                elif because is not None and time.monotonic() > until:
                    raise because

    async def _each_piece(
        self, action: Callable[[_Piece], Awaitable[None]], shards: Collection[int] | None = None
    ) -> None:
        """Act on all pieces, or on those of some shards: all shards at once, a few pieces of each at a time."""
        chosen = self._pieces if shards is None else [self._pieces[shard] for shard in sorted(shards)]
        if all(len(of_shard) == 1 for of_shard in chosen):
            await all_of(action(piece) for [piece] in chosen)
            return

        async def work(waiting: Iterator[_Piece]) -> None:
            for piece in waiting:
                await action(piece)

        queues = [iter(of_shard) for of_shard in chosen]
        await all_of(work(waiting) for waiting in queues for _ in range(_PIECES_IN_FLIGHT))

    # For the driver.

    async def write(self, name: str, vector: Vector, shards: Collection[int] | None = None) -> None:
        """Set a named vector on the shards, or on some of them."""

        async def send(piece: _Piece) -> None:
            await self._call(piece.shard, "write", name, piece.offset, vector[piece.place])
            self.sent_bytes += vector[piece.place].nbytes

        await self._each_piece(send, shards)

    async def read(self, name: str, into: Vector) -> None:
        """Bring a named vector from the shards."""

        async def receive(piece: _Piece) -> None:
            into[piece.place] = await self._call(piece.shard, "read", name, piece.offset, piece.length)
            self.received_bytes += into[piece.place].nbytes

        await self._each_piece(receive)

    async def execute(self, *commands: Command) -> list[list[float]]:
        """Run a batch of commands on all shards, in one round of messages.

        Returns
        -------
        list of list of float
            The scalars of each command that has any, in order: the same bits with any number of shards.
        """
        number = next(self._numbers)
        answers = await self._each_shard("execute", number, commands)
        return [scalars for each in zip(*answers, strict=True) if (scalars := self._join(each))]

    def _join(self, parts: Sequence[float | list[dict[Node, float]] | None]) -> list[float]:
        if parts[0] is None:
            return []
        if isinstance(parts[0], float):
            return [float(np.max(np.array(parts, np.float64)))]
        per_pair = zip(*(part for part in parts if isinstance(part, list)), strict=True)
        return [join_nodes([_as_nodes(part) for part in pair], self.directory.n_parameters) for pair in per_pair]

    async def begin_updates(self, shards: Collection[int] | None = None, is_behind: bool = False) -> None:
        """Make the rule's state on the shards, or on some of them; see `Updates.begin` for `is_behind`."""
        chosen = range(len(self._pieces)) if shards is None else shards
        await all_of([self._call(shard, "begin_updates", is_behind) for shard in chosen])

    async def forget_marks(self, finished: Finished, shards: Collection[int] | None = None) -> None:
        """Drop the marks of leases that the ledger's saved state covers; on all actors, or on some shards."""
        if shards is None:
            await all_of(self._actors("forget_marks", finished))
        else:
            await all_of([self._call(shard, "forget_marks", finished) for shard in shards])

    def _actors(self, method: str, *arguments: object) -> list[Awaitable[Any]]:
        """Call all shards and their copies, for the driver."""
        directory = self.directory
        return [self._caller.call(actor, method, directory.generation, *arguments) for actor in directory.actors]

    async def marks(self, shards: Collection[int], of_any: bool = False) -> list[dict[LeaseKey, int]]:
        """Tell for some shards the last mini-batch of each lease that all their pieces have, or any."""
        answers = await all_of([self._call(shard, "marks", of_any) for shard in shards])
        return [{LeaseKey(*lease): mark for lease, mark in answer.items()} for answer in answers]

    async def advance(
        self, shards: Collection[int], marks: dict[LeaseKey, int], held: dict[LeaseKey, int] | None = None
    ) -> int:
        """Count mini-batches as applied that shards, put back to an older state, have lost; gives the most of one.

        See `Updates.advance`; nothing is held without a mark where it is left out.
        """
        lost: list[int] = await all_of([self._call(shard, "advance", marks, held or {}) for shard in shards])
        return max(lost)

    async def freeze(self) -> None:
        """Let no exchange change the shards from now on."""
        await self._each_shard("freeze")

    async def names(self) -> list[str]:
        """Tell the names of all vectors that the shards hold."""
        names: list[str] = (await self._each_shard("names"))[0]
        return names

    async def n_rounds(self) -> int:
        """Tell how many rounds of synchronous training the shards have closed that can be reached."""
        calls = [self._call(shard, "n_rounds") for shard in range(len(self._pieces))]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        return max((answer for answer in answers if isinstance(answer, int)), default=0)

    async def state_names(self) -> list[str]:
        """Tell the names of the rule's vectors."""
        names: list[str] = (await self._each_shard("state_names"))[0]
        return names

    async def counts(self) -> list[ShardProgress]:
        """Tell of each shard's updates."""
        return await self._each_shard("counts")

    async def take_logs(self) -> list[list[Logged]]:
        """Give, for each piece of the whole vector, the recorded exchanges since the last time."""
        logs: list[list[Logged]] = [[] for _ in self._places]

        async def receive(piece: _Piece) -> None:
            logs[piece.number] = await self._call(piece.shard, "take_log", piece.offset)

        await self._each_piece(receive)
        return logs

    # For replicas.

    async def fetch(self, evaluation: int, into: Vector) -> None:
        """Bring the parameters of an evaluation (section 4.2: once at the start of a batch)."""

        async def receive(piece: _Piece) -> None:
            into[piece.place] = await self._call(piece.shard, "fetch", evaluation, piece.offset, piece.length)
            self.received_bytes += into[piece.place].nbytes

        await self._each_piece(receive)

    async def add(self, evaluation: int, node: Node, gradient: Vector) -> None:
        """Push the gradient sum of one tree node, each shard its slice."""

        async def send(piece: _Piece) -> None:
            part = gradient[piece.place]

            def calls(directory: Directory) -> list[Awaitable[Any]]:
                shard = directory.shards[piece.shard]
                # The shard keeps what it is given, while the replica uses its own again.
                given = part.copy() if self._caller.hands_over(shard) else part
                arguments = (directory.generation, evaluation, node, piece.offset, given)
                return [self._caller.call(shard, "add", *arguments)]

            await self._through(calls)
            self.sent_bytes += part.nbytes

        await self._each_piece(send)

    async def exchange(self, ask: Exchange) -> Exchanged:
        """Push accrued gradients, fetch values, or both in one message a piece (section 4.1)."""
        versions = [0] * self.n_pieces
        pushed_bytes = fetched_bytes = 0
        push_at = _offsets(ask.push_selection, self._places)
        fetch_at = _offsets(ask.fetch_selection, self._places)

        async def swap(piece: _Piece) -> None:
            nonlocal pushed_bytes, fetched_bytes
            number = piece.number
            gradient, runs = None, None
            if ask.push is not None and ask.vector is not None:
                runs, part = push_at(number)
                gradient = ask.vector[part]
            fetch: bool | NDArray[np.int64] = ask.into is not None and not ask.is_elastic
            if fetch and ask.fetch_selection is not None:
                fetch = fetch_at(number)[0]  # type: ignore[assignment]
            base = ask.bases[number] if ask.bases else 0
            before = (ask.replica, ask.at, ask.push, base, piece.offset, piece.length, gradient, runs)
            versions[number], values = await self._exchange(piece.shard, before, fetch, ask.closed)
            if gradient is not None:
                pushed_bytes += gradient.nbytes
            if ask.into is not None and values is not None:
                _, part = fetch_at(number)
                ask.into[part] = values
                fetched_bytes += values.nbytes

        await self._each_piece(swap)
        self.sent_bytes += pushed_bytes
        self.received_bytes += fetched_bytes
        return Exchanged(tuple(versions), pushed_bytes, fetched_bytes)

    async def _exchange(
        self, shard: int, before: tuple[Any, ...], fetch: bool | NDArray[np.int64], closed: Round | None
    ) -> tuple[int, Vector | None]:
        """Exchange with a shard and, where something changes, with its copy; done when both have answered."""
        changes = before[2] is not None or closed is not None

        def calls(directory: Directory) -> list[Awaitable[Any]]:
            generation, copy = directory.generation, directory.copy_of(shard)
            actors = [(directory.shards[shard], fetch)]
            if copy is not None and changes:
                actors.append((copy, False))
            return [
                self._caller.call(actor, "exchange", generation, *before, wanted, closed) for actor, wanted in actors
            ]

        versions, values = (await self._through(calls))[0]
        return versions, values

    async def applied(self, lease: LeaseKey) -> int:
        """The last mini-batch of a lease that every shard has applied, and every copy; -1 for none."""
        marks = await all_of([self._applied(shard, lease) for shard in range(len(self._pieces))])
        return min(marks)

    async def _applied(self, shard: int, lease: LeaseKey) -> int:
        n_pieces = len(self._pieces[shard])

        def calls(directory: Directory) -> list[Awaitable[Any]]:
            actors = [actor for actor in (directory.shards[shard], directory.copy_of(shard)) if actor is not None]
            return [self._caller.call(actor, "applied", directory.generation, lease, n_pieces) for actor in actors]

        marks: list[int] = await self._through(calls)
        return min(marks)


def _as_nodes(part: dict[Node, float]) -> dict[Node, float]:
    """Nodes as they left: a named tuple may arrive as a plain one."""
    return {Node(*node): value for node, value in part.items()}


def _offsets(
    selection: Selection | None, places: list[slice]
) -> Callable[[int], tuple[NDArray[np.int64] | None, slice]]:
    """For each piece: what of it is chosen, as ranges of its own, and where its part of a compact vector lies."""
    if selection is None:
        return lambda number: (None, places[number])
    parts = [selection.within(place.start, place.stop) for place in places]
    borders = list(itertools.accumulate((part.n_elements for part in parts), initial=0))
    return lambda number: (parts[number].runs, slice(borders[number], borders[number + 1]))
