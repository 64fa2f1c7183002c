"""One vector over all shards: what the driver commands, and what replicas fetch and push.

Both send to all shards at once and wait with a limit. Vectors travel in the pieces of `ranges.pieces`, received into
the place where they are used; a few pieces a shard are in flight, since Dask has no back-pressure of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_belief.binary_tree import Node
from dask_belief.cluster.actors import ActorAddress, Caller, all_of
from dask_belief.parameter_server.messages import Command, LeaseKey, PushKey
from dask_belief.parameter_server.ranges import pieces
from dask_belief.parameter_server.shard import SavedPiece
from dask_belief.parameter_server.vectors import join_nodes

Vector = NDArray[np.floating]

_PIECES_IN_FLIGHT = 2


@dataclass(frozen=True)
class Directory:
    """Where the shards of one generation are; what a replica is given.

    Attributes
    ----------
    generation
        The generation of the run.
    n_parameters, dtype
        Of the whole vector.
    shards
        The address of each shard.
    ranges
        The range of each shard, in order and without a gap.
    """

    generation: int
    n_parameters: int
    dtype: str
    shards: tuple[ActorAddress, ...]
    ranges: tuple[range, ...]


@dataclass(frozen=True)
class _Piece:
    """One piece of one shard: `offset` within the shard, `place` within the whole vector."""

    shard: ActorAddress
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

    Attributes
    ----------
    directory
        Where the shards are.
    received_bytes, sent_bytes
        Bytes of vectors that have come from the shards and gone to them so far, also where both are in one process.
    """

    def __init__(self, directory: Directory, caller: Caller) -> None:
        self.directory = directory
        self._caller = caller
        self._numbers = itertools.count()
        self.received_bytes = 0
        self.sent_bytes = 0
        self._pieces = [
            [
                _Piece(shard, piece.start - span.start, slice(piece.start, piece.stop))
                for piece in pieces(span, directory.dtype)
            ]
            for shard, span in zip(directory.shards, directory.ranges, strict=True)
        ]

    async def _each_shard(self, method: str, *arguments: object) -> list[Any]:
        generation = self.directory.generation
        return await all_of(self._caller.call(shard, method, generation, *arguments) for shard in self.directory.shards)

    async def _each_piece(self, action: Callable[[_Piece], Awaitable[None]]) -> None:
        """Act on all pieces: all shards at once, a few pieces of each at a time."""

        async def work(waiting: Iterator[_Piece]) -> None:
            for piece in waiting:
                await action(piece)

        queues = [iter(of_shard) for of_shard in self._pieces]
        await all_of(work(waiting) for waiting in queues for _ in range(_PIECES_IN_FLIGHT))

    # For the driver.

    async def write(self, name: str, vector: Vector) -> None:
        """Set a named vector on the shards."""

        async def send(piece: _Piece) -> None:
            await self._call(piece, "write", name, piece.offset, vector[piece.place])
            self.sent_bytes += vector[piece.place].nbytes

        await self._each_piece(send)

    async def read(self, name: str, into: Vector) -> None:
        """Bring a named vector from the shards."""

        async def receive(piece: _Piece) -> None:
            into[piece.place] = await self._call(piece, "read", name, piece.offset, piece.length)
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

    async def begin_updates(self) -> None:
        """Make the rule's state on every shard."""
        await self._each_shard("begin_updates")

    async def save(self) -> dict[int, SavedPiece]:
        """Give all that the shards keep, by where each piece begins in the whole vector."""
        saved: dict[int, SavedPiece] = {}

        async def receive(piece: _Piece) -> None:
            given: SavedPiece = await self._call(piece, "save", piece.offset, piece.length)
            saved[piece.place.start] = given
            self.received_bytes += given.n_bytes

        await self._each_piece(receive)
        return saved

    async def restore(self, saved: dict[int, SavedPiece]) -> None:
        """Put back what `save` gave; the shards must be cut as they were."""

        async def send(piece: _Piece) -> None:
            given = saved[piece.place.start]
            await self._call(piece, "restore", piece.offset, given)
            self.sent_bytes += given.n_bytes

        await self._each_piece(send)

    async def forget_marks(self, leases: list[LeaseKey]) -> None:
        """Drop the marks of leases that the ledger's saved state covers."""
        await self._each_shard("forget_marks", leases)

    # For replicas.

    async def fetch(self, evaluation: int, into: Vector) -> None:
        """Bring the parameters of an evaluation (section 4.2: once at the start of a batch)."""

        async def receive(piece: _Piece) -> None:
            into[piece.place] = await self._call(piece, "fetch", evaluation, piece.offset, piece.length)
            self.received_bytes += into[piece.place].nbytes

        await self._each_piece(receive)

    async def add(self, evaluation: int, node: Node, gradient: Vector) -> None:
        """Push the gradient sum of one tree node, each shard its slice."""

        async def send(piece: _Piece) -> None:
            part = gradient[piece.place]
            if self._caller.hands_over(piece.shard):
                # The shard keeps what it is given, while the replica uses its own again.
                part = part.copy()
            await self._call(piece, "add", evaluation, node, piece.offset, part)
            self.sent_bytes += part.nbytes

        await self._each_piece(send)

    async def exchange(self, key: PushKey | None, gradient: Vector | None, into: Vector | None) -> int:
        """Push accrued gradients, fetch values, or both in one message a piece (section 4.1).

        Returns
        -------
        int
            The most pushes that a piece has had: a clock of the server.
        """
        counts: list[int] = []

        async def swap(piece: _Piece) -> None:
            part = None if gradient is None else gradient[piece.place]
            n_updates, values = await self._call(
                piece, "exchange", key, piece.offset, piece.length, part, into is not None
            )
            counts.append(n_updates)
            if part is not None:
                self.sent_bytes += part.nbytes
            if into is not None:
                into[piece.place] = values
                self.received_bytes += into[piece.place].nbytes

        await self._each_piece(swap)
        return max(counts)

    async def applied(self, lease: LeaseKey) -> int:
        """The last mini-batch of a lease that every shard has applied; -1 for none."""
        generation = self.directory.generation
        marks: list[int] = await all_of(
            self._caller.call(shard, "applied", generation, lease, len(of_shard))
            for shard, of_shard in zip(self.directory.shards, self._pieces, strict=True)
        )
        return min(marks)

    async def _call(self, piece: _Piece, method: str, *arguments: object) -> Any:
        return await self._caller.call(piece.shard, method, self.directory.generation, *arguments)


def _as_nodes(part: dict[Node, float]) -> dict[Node, float]:
    """Nodes as they left: a named tuple may arrive as a plain one."""
    return {Node(*node): value for node, value in part.items()}
