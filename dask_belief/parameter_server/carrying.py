"""Carrying the state of shards: to where it is saved, from there to a new shard, or from one shard to another.

Actors call nobody, so short Dask tasks do it, each pinned to one end of the way::

    save        shard ──> task on the keeper's worker ──> keeper          or    shard ──> task there ──> checkpoint
    fill        keeper, checkpoint ──> task on the new shard's worker ──> shard
    hand over   shard ──> task on the new shard's worker ──> shard        or    keeper ──> task there ──> new keeper
"""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from distributed import Client, Future, get_worker
from numpy.typing import NDArray

from dask_belief.checkpoint import CheckpointStore, Part, SavedState
from dask_belief.cluster.actors import ActorAddress, Caller
from dask_belief.cluster.futures import is_loss, let_go
from dask_belief.cluster.limits import AT_HAND_SECONDS, Limits, limited_by
from dask_belief.errors import ActorLostError, CallTimeoutError, StaleError
from dask_belief.parameter_server.updates import STATE, VALUES, SavedPiece

Vector = NDArray[np.floating]

# How often the driver looks whether an errand is done.
_LOOK_SECONDS = 0.005


class Place(Protocol):
    """Where saved parts are; `dask_belief.checkpoint.CheckpointStore` is one."""

    def write_part(self, name: str, start: int, values: Vector) -> Part:
        """Keep a part of a vector."""

    def read_part(self, name: str, part: Part) -> Vector:
        """Give a part that was kept."""


class PlaceSpec(Protocol):
    """Says where, small enough to travel."""

    def open(self, caller: Caller) -> Place:
        """Give the place itself, for one who has the way to actors."""


@dataclass(frozen=True)
class InCheckpoint:
    """The run's checkpoint.

    Attributes
    ----------
    store
        Where it is.
    """

    store: CheckpointStore

    def open(self, caller: Caller) -> Place:
        """See `PlaceSpec`."""
        return self.store


@dataclass(frozen=True)
class Keepers:
    """The memory of other workers.

    Attributes
    ----------
    of_piece
        The keeper of each piece, by where the piece begins.
    """

    of_piece: Mapping[int, ActorAddress]

    def open(self, caller: Caller) -> Place:
        """See `PlaceSpec`."""
        return _KeptParts(self, caller)


class _KeptParts:
    def __init__(self, keepers: Keepers, caller: Caller) -> None:
        self._of_piece = keepers.of_piece
        self._caller = caller

    def write_part(self, name: str, start: int, values: Vector) -> Part:
        self._caller.run(self._caller.call(self._of_piece[start], "write", name, start, values))
        return Part(start, start + len(values), "")

    def read_part(self, name: str, part: Part) -> Vector:
        values: Vector = self._caller.run(self._caller.call(self._of_piece[part.start], "read", name, part.start))
        return values


@dataclass(frozen=True)
class End:
    """A shard at one end of a way.

    Attributes
    ----------
    actor, generation
        Its address, and the generation of the directory by which it may be called.
    start
        Where its range begins in the whole vector.
    pieces
        The pieces of its range.
    """

    actor: ActorAddress
    generation: int
    start: int
    pieces: tuple[range, ...]


class _ShardLine:
    """The shard at an end, called piece by piece."""

    def __init__(self, end: End, caller: Caller) -> None:
        self._end = end
        self._caller = caller

    def call(self, method: str, *arguments: object) -> Any:
        return self._caller.run(self._caller.call(self._end.actor, method, self._end.generation, *arguments))

    def read(self, name: str, piece: range) -> Vector:
        values: Vector = self.call("read", name, piece.start - self._end.start, len(piece))
        return values

    def write(self, name: str, start: int, values: Vector) -> None:
        self.call("write", name, start - self._end.start, values)

    def save(self, piece: range, with_staged: bool = False) -> SavedPiece:
        saved: SavedPiece = self.call("save", piece.start - self._end.start, len(piece), with_staged)
        return saved

    def restore(self, piece: range, saved: SavedPiece, is_behind: bool = False) -> None:
        self.call("restore", piece.start - self._end.start, saved, is_behind)


Note = dict[str, Any]
"""What is known of a saved piece of a Downpour run beside its vectors, as plain JSON."""


def _note(saved: SavedPiece) -> Note:
    marks = [[*lease, mark] for lease, mark in sorted(saved.marks.items())]
    counts = {"n_updates": saved.n_updates, "n_rounds": saved.n_rounds, "n_lost": saved.n_lost}
    return {"marks": marks, **counts, "state": list(saved.state)}


@dataclass(frozen=True)
class Carried:
    """What was saved of one shard.

    Attributes
    ----------
    vectors
        The parts of each vector, by its name in the place.
    notes
        Of pieces of a Downpour run, by where they begin.
    n_bytes
        Of all parts.
    seconds
        How long it took.
    """

    vectors: dict[str, list[Part]] = field(default_factory=dict)
    notes: dict[int, Note] = field(default_factory=dict)
    n_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Save:
    """Save vectors of one shard, or with `number` all that its updates are made of.

    Attributes
    ----------
    source, place, limits
        From where, to where, and how long to wait.
    vectors
        Names on the shard, each with its name in the place.
    number
        Of the save, for a Downpour run.
    """

    source: End
    place: PlaceSpec
    limits: Limits
    vectors: tuple[tuple[str, str], ...] = ()
    number: int | None = None

    def run(self, caller: Caller) -> Carried:
        """Carry piece by piece."""
        shard, place = _ShardLine(self.source, caller), self.place.open(caller)
        vectors: dict[str, list[Part]] = {}
        notes: dict[int, Note] = {}
        n_bytes, began = 0, time.monotonic()
        for piece in self.source.pieces:
            found = [(name, shard.read(own, piece)) for own, name in self.vectors]
            if self.number is not None:
                saved = shard.save(piece)
                notes[piece.start] = _note(saved)
                found = [(f"{name}@{self.number}", vector) for name, vector in vectors_of(saved)]
            for name, values in found:
                vectors.setdefault(name, []).append(place.write_part(name, piece.start, values))
                n_bytes += values.nbytes
        return Carried(vectors, notes, n_bytes, time.monotonic() - began)


def vectors_of(saved: SavedPiece) -> list[tuple[str, Vector]]:
    """The vectors of a saved piece under the names that they have on the shard."""
    return [(VALUES, saved.values), *((STATE + name, vector) for name, vector in saved.state.items())]


@dataclass(frozen=True)
class Fill:
    """Fill a new shard with vectors that were saved.

    Attributes
    ----------
    target, place, limits
        To where, from where, and how long to wait.
    saved
        What was saved.
    vectors
        Names in the place, each with the name that it gets on the shard.
    """

    target: End
    place: PlaceSpec
    limits: Limits
    saved: SavedState
    vectors: tuple[tuple[str, str], ...]

    def run(self, caller: Caller) -> None:
        """Carry part by part: the borders may be others than those of the shard."""
        shard, place = _ShardLine(self.target, caller), self.place.open(caller)
        low, high = self.target.start, self.target.pieces[-1].stop
        for name, own in self.vectors:
            for part in self.saved.vectors[name]:
                start, stop = max(low, part.start), min(high, part.stop)
                if start < stop:
                    values = place.read_part(name, part)
                    shard.write(own, start, values[start - part.start : stop - part.start])


@dataclass(frozen=True)
class FillUpdates:
    """Fill a new shard of a Downpour run; each of its pieces lies within one that was saved.

    Attributes
    ----------
    target, place, limits, saved
        See `Fill`.
    number
        Of the save.
    notes
        Of the saved pieces, by where they begin.
    is_behind
        Whether the other shards have gone on since: see `Updates.restore`.
    """

    target: End
    place: PlaceSpec
    limits: Limits
    saved: SavedState
    number: int
    notes: Mapping[int, Note]
    is_behind: bool

    def run(self, caller: Caller) -> None:
        """Carry each saved piece to the pieces that lie within it."""
        shard, place = _ShardLine(self.target, caller), self.place.open(caller)
        for part in self.saved.vectors[f"{VALUES}@{self.number}"]:
            within = [piece for piece in self.target.pieces if part.start <= piece.start < part.stop]
            if not within:
                continue
            note = self.notes[part.start]
            values = self._read(place, VALUES, part)
            state = {name: self._read(place, STATE + name, part) for name in note["state"]}
            marks = {tuple(lease): mark for *lease, mark in note["marks"]}
            for piece in within:
                cut = slice(piece.start - part.start, piece.stop - part.start)
                of_piece = {name: vector[cut] for name, vector in state.items()}
                counts = (note["n_updates"], note["n_rounds"], note["n_lost"])
                saved = SavedPiece(values[cut], of_piece, marks, *counts)  # type: ignore[arg-type]
                shard.restore(piece, saved, self.is_behind)

    def _read(self, place: Place, name: str, like: Part) -> Vector:
        saved_name = f"{name}@{self.number}"
        [part] = [part for part in self.saved.vectors[saved_name] if part.start == like.start]
        return place.read_part(saved_name, part)


@dataclass(frozen=True)
class HandOver:
    """Carry what one shard holds to another, which takes its place or becomes its copy.

    Attributes
    ----------
    source, target, limits
        From where, to where, and how long to wait.
    vectors
        Names of vectors; None for all that updates are made of.
    """

    source: End
    target: End
    limits: Limits
    vectors: tuple[str, ...] | None = None

    def run(self, caller: Caller) -> None:
        """Carry piece by piece."""
        source, target = _ShardLine(self.source, caller), _ShardLine(self.target, caller)
        if self.vectors is None:
            target.call("forget_marks", source.call("finished"))
        for piece in self.source.pieces:
            if self.vectors is None:
                target.restore(piece, source.save(piece, with_staged=True))
                continue
            for name in self.vectors:
                target.write(name, piece.start, source.read(name, piece))


@dataclass(frozen=True)
class HandOverParts:
    """Carry what one keeper holds to another, which takes its place.

    Attributes
    ----------
    source, target, limits
        From where, to where, and how long to wait.
    parts
        The name of each part's vector, and where the part begins.
    """

    source: ActorAddress
    target: ActorAddress
    limits: Limits
    parts: tuple[tuple[str, int], ...]

    def run(self, caller: Caller) -> None:
        """Carry part by part."""
        for name, start in self.parts:
            values = caller.run(caller.call(self.source, "read", name, start))
            caller.run(caller.call(self.target, "write", name, start, values))


Errand = Save | Fill | FillUpdates | HandOver | HandOverParts


def carry(errand: Errand) -> Carried | None:
    """Run an errand; a Dask task."""
    with limited_by(errand.limits):
        return errand.run(Caller.of_worker(get_worker()))


class Errands:
    """Errands that are under way together, for the driver.

    Parameters
    ----------
    client
        The run's client.
    prefix
        Names the run; part of each task's key.
    """

    def __init__(self, client: Client, prefix: str) -> None:
        self._client = client
        self._prefix = prefix
        self._n_sent = 0
        self._futures: dict[Future[Any], str] = {}

    @property
    def is_running(self) -> bool:
        """Whether any are under way."""
        return bool(self._futures)

    def send(self, errands: Sequence[tuple[str, Errand]]) -> None:
        """Begin errands, each on the worker that is named with it."""
        for worker, errand in errands:
            self._n_sent += 1
            future = self._client.submit(
                carry,
                errand,
                key=f"{type(errand).__name__.lower()}-{self._prefix}-{self._n_sent}",
                workers=[worker],
                allow_other_workers=False,
                pure=False,
                retries=0,
            )
            self._futures[future] = worker

    def poll(self, workers: Mapping[str, int]) -> list[Any] | None:
        """Give what they brought once all are done, in the order in which they were sent; else None.

        Parameters
        ----------
        workers
            Those that are there.

        Raises
        ------
        ActorLostError
            When one cannot be done: a worker or an actor at an end of its way is gone, or does not answer.
        Exception
            What one raised, such as that a checkpoint cannot be written.
        """
        if not self._futures:
            return []
        gone = [worker for worker in self._futures.values() if worker not in workers]
        failed = [future for future in self._futures if future.status in ("error", "cancelled", "lost")]
        if not gone and not failed and not all(future.done() for future in self._futures):
            return None
        try:
            if gone:
                raise ActorLostError(f"worker {gone[0]} was lost, and what was carried by it.")
            for future in failed:
                self._raise(future)
            return [future.result(timeout=AT_HAND_SECONDS) for future in self._futures]
        except concurrent.futures.TimeoutError as error:
            raise ActorLostError(f"what was carried was lost: {error!r}") from error
        finally:
            self.drop()

    @staticmethod
    def _raise(future: Future[Any]) -> None:
        error = None if future.cancelled() else future.exception(timeout=AT_HAND_SECONDS)
        if error is None or is_loss(error) or isinstance(error, ActorLostError | CallTimeoutError | StaleError):
            raise ActorLostError(f"what was carried by {future.key} did not arrive: {error!r}") from error
        raise error

    @property
    def workers(self) -> list[str]:
        """The workers of those that are under way and have not ended."""
        return sorted({worker for future, worker in self._futures.items() if not future.done()})

    def finish(self, watch: Callable[[], Mapping[str, int]], limit_seconds: float) -> list[Any]:
        """Wait for them.

        Parameters
        ----------
        watch
            Called now and then: tells the workers that are there, and may raise to end the wait.
        limit_seconds
            For all of them.

        Raises
        ------
        CallTimeoutError
            When the limit passes.
        ActorLostError, Exception
            See `poll`.
        """
        until = time.monotonic() + limit_seconds
        try:
            while (brought := self.poll(watch())) is None:
                if time.monotonic() > until:
                    workers = sorted(set(self._futures.values()))
                    raise CallTimeoutError(
                        f"the state of shards was not carried within {limit_seconds:g} seconds, by {workers}. Look at "
                        "these workers: they may be paused for lack of memory."
                    )
                time.sleep(_LOOK_SECONDS)
        except BaseException:
            self.drop()
            raise
        return brought

    def drop(self) -> None:
        """Forget what is under way."""
        let_go(self._client, self._futures)
        self._futures = {}
