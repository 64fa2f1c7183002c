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
from dask_belief.monitoring.events import ShardProgress
from dask_belief.parameter_server.messages import Command, Finished, LeaseKey, Logged, PushKey, Round, StepKey
from dask_belief.parameter_server.ranges import pieces
from dask_belief.parameter_server.selection import Selection
from dask_belief.parameter_server.updates import SavedPiece
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
class Exchange:
    """What a replica of a Downpour run asks of all shards at once.

    Attributes
    ----------
    replica, at
        Who asks, and where in its work.
    push, vector, bases
        The work to push, its accrued gradients, and per piece how many updates it had had at the fetch they come from;
        None, None and empty to fetch alone.
    push_selection
        What `vector` covers, compact; None for all parameters.
    into
        Where to write the values; None to push alone.
    fetch_selection
        What is wanted of them, compact; None for all.
    closed
        The round of synchronous training to apply first.
    is_elastic
        Whether `vector` holds the replica's parameters, and `into` takes what the shards' moved by.
    """

    replica: str
    at: StepKey
    push: PushKey | None = None
    vector: Vector | None = None
    bases: tuple[int, ...] = ()
    push_selection: Selection | None = None
    into: Vector | None = None
    fetch_selection: Selection | None = None
    closed: Round | None = None
    is_elastic: bool = False


@dataclass(frozen=True)
class Exchanged:
    """What came of it: per piece how many updates it has had, and bytes of vectors."""

    versions: tuple[int, ...]
    pushed_bytes: int
    fetched_bytes: int


@dataclass
class Traffic:
    """What a replica has exchanged so far.

    Attributes
    ----------
    n_pushes, n_fetches, pushed_bytes, fetched_bytes
        Of exchanges that have ended.
    push_waiting_seconds, fetch_waiting_seconds
        What it has waited for room in the line, and for parameters that were due.
    staleness_sum
        Of all pushes; of each that of its stalest piece.
    """

    n_pushes: int = 0
    n_fetches: int = 0
    pushed_bytes: int = 0
    fetched_bytes: int = 0
    push_waiting_seconds: float = 0.0
    fetch_waiting_seconds: float = 0.0
    staleness_sum: int = 0


@dataclass(frozen=True)
class _Piece:
    """One piece of one shard: `number` among all, `offset` within the shard, `place` within the whole vector."""

    number: int
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
        numbers = itertools.count()
        self._pieces = [
            [
                _Piece(next(numbers), shard, piece.start - span.start, slice(piece.start, piece.stop))
                for piece in pieces(span, directory.dtype)
            ]
            for shard, span in zip(directory.shards, directory.ranges, strict=True)
        ]
        self._places = [piece.place for of_shard in self._pieces for piece in of_shard]

    @property
    def n_pieces(self) -> int:
        """In how many pieces the whole vector travels."""
        return len(self._places)

    async def _each_shard(self, method: str, *arguments: object) -> list[Any]:
        generation = self.directory.generation
        return await all_of(self._caller.call(shard, method, generation, *arguments) for shard in self.directory.shards)

    async def _each_piece(self, action: Callable[[_Piece], Awaitable[None]]) -> None:
        """Act on all pieces: all shards at once, a few pieces of each at a time."""
        if len(self._places) == len(self._pieces):
            await all_of(action(piece) for [piece] in self._pieces)
            return

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

    async def forget_marks(self, finished: Finished) -> None:
        """Drop the marks of leases that the ledger's saved state covers."""
        await self._each_shard("forget_marks", finished)

    async def freeze(self) -> None:
        """Let no exchange change the shards from now on."""
        await self._each_shard("freeze")

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
            logs[piece.number] = await self._call(piece, "take_log", piece.offset)

        await self._each_piece(receive)
        return logs

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
            versions[number], values = await self._call(
                piece,
                "exchange",
                ask.replica,
                ask.at,
                ask.push,
                ask.bases[number] if ask.bases else 0,
                piece.offset,
                piece.length,
                gradient,
                runs,
                fetch,
                ask.closed,
            )
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


def _offsets(
    selection: Selection | None, places: list[slice]
) -> Callable[[int], tuple[NDArray[np.int64] | None, slice]]:
    """For each piece: what of it is chosen, as ranges of its own, and where its part of a compact vector lies."""
    if selection is None:
        return lambda number: (None, places[number])
    parts = [selection.within(place.start, place.stop) for place in places]
    borders = list(itertools.accumulate((part.n_elements for part in parts), initial=0))
    return lambda number: (parts[number].runs, slice(borders[number], borders[number + 1]))
