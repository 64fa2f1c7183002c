"""What is saved of a run while it goes on, and where: in its checkpoint, or in the memory of other workers.

::

    begin       vectors get a second name on the shards, under which they stay as they are; errands carry what is new
    poll        when all has arrived: in a checkpoint the manifest is written; what the state does not name is dropped

A state that is not complete is none: the one before stays until then, in the place and on the shards. So a shard that
lives on goes back by itself, and only one that was lost is filled from the place.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_belief.checkpoint import CheckpointStore, Part, SavedState
from dask_belief.cluster.asking import from_store
from dask_belief.cluster.limits import limits
from dask_belief.errors import ActorLostError, CallTimeoutError
from dask_belief.parameter_server.carrying import (
    Carried,
    Errand,
    Errands,
    Fill,
    FillUpdates,
    InCheckpoint,
    PlaceSpec,
    Save,
)
from dask_belief.parameter_server.deployment import Deployment
from dask_belief.parameter_server.directory import Directory
from dask_belief.parameter_server.keepers import KeeperSet
from dask_belief.parameter_server.messages import Alias, Drop
from dask_belief.parameter_server.ranges import pieces
from dask_belief.parameter_server.updates import VALUES
from dask_belief.share import Share

logger = logging.getLogger(__name__)

Vector = NDArray[np.floating]

HELD = "held:"
"""What stands before the name of a saved vector on the shards."""

# Saving may take this part of a run's time; and what is lost without is seldom worth less than a second.
SAVING_SHARE = 0.05
LEAST_SECONDS = 1.0

# How often whoever waits for a save looks.
_LOOK_SECONDS = 0.005

_ALL_SHARDS = -1
"""Stands for all shards where a vector was saved by a run with others."""


@dataclass(frozen=True)
class SavedNow:
    """A state that has been saved.

    Attributes
    ----------
    state
        What was saved.
    seconds
        How long it took, beside the work.
    n_bytes
        Of the vectors that were carried.
    """

    state: SavedState
    seconds: float
    n_bytes: int


@dataclass(frozen=True)
class _UnderWay:
    """A save that is under way.

    Attributes
    ----------
    number, state
        Its number, and what the method says of itself.
    names
        Vectors by their names on the shards, each with its name in the place; empty for updates.
    own
        The driver's vectors in the same way.
    shards
        The keys of the shards that hold the vectors.
    began, at
        When it was begun, by `time.monotonic`, and in seconds of the run.
    """

    number: int
    state: dict[str, Any]
    names: dict[str, str]
    own: dict[str, str]
    shards: frozenset[str]
    began: float
    at: float


class Vault:
    """Saves the state of a run, and knows the newest that is complete.

    Parameters
    ----------
    run
        The name of the run.
    store
        The run's checkpoint; None to save in the memory of other workers.
    every_seconds
        How often; None for as often as a twentieth of the time allows.
    resumed
        What the run goes on from; None for nothing.
    commit
        Writes the manifest of a state to the checkpoint.

    Attributes
    ----------
    newest
        The newest complete state; None for none.
    saved_at
        The seconds of the run at which the newest state was begun to be saved; 0 for none of this run.
    n_saved
        How many this run has saved.
    is_able
        Whether to save at all.
    """

    def __init__(
        self,
        run: str,
        store: CheckpointStore | None,
        every_seconds: float | None,
        resumed: SavedState | None,
        commit: Callable[[SavedState], None],
    ) -> None:
        self.newest = resumed
        self.n_saved = 0
        self.is_able = True
        self._run = run
        self._store = store
        self._every_seconds = every_seconds
        self._share = Share(SAVING_SHARE, LEAST_SECONDS)
        self._began_at = self.saved_at = 0.0
        self._commit = commit
        self._number = (
            0 if store is None else from_store(store.path, "looking at", lambda: max(store.numbers(), default=0))
        )
        # Complete parts in the place: by the vector's name there, then by the number of the shard.
        self._parts: dict[str, dict[int, tuple[Part, ...]]] = {}
        # What will never change, by what it is called for good: its name in the place.
        self._lasting: dict[str, str] = {}
        if resumed is not None:
            self._parts = {name: {_ALL_SHARDS: tuple(parts)} for name, parts in resumed.vectors.items()}
            self._lasting = {_lasting_of(name): name for name in self._parts}
        self._keepers = KeeperSet()
        # Names of vectors that shards hold for a save; the keys of the shards that hold all vectors of the newest
        # state, and the numbers of those that do not, as of the last look.
        self._held: set[str] = set()
        self._holders: frozenset[str] = frozenset()
        self._lacking: set[int] = set()
        self._errands: Errands | None = None
        self._under_way: _UnderWay | None = None

    @property
    def is_saving(self) -> bool:
        """Whether a save is under way."""
        return self._under_way is not None

    def is_due(self, now: float) -> bool:
        """Whether to begin a save, `now` seconds after the run began."""
        if self.is_saving or not self.is_able:
            return False
        if self._every_seconds is not None:
            return now - self._began_at >= self._every_seconds
        return now >= LEAST_SECONDS and self._share.is_due(now)

    def has_place(self, deployment: Deployment) -> bool:
        """Whether there is somewhere to save to: a checkpoint, or a second worker."""
        return self._store is not None or len(deployment.workers) > 1

    # Saving.

    def begin(
        self,
        deployment: Deployment,
        state: Mapping[str, Any],
        vectors: Mapping[str, str | None] | None,
        now: float,
        own: Mapping[str, Vector] | None = None,
    ) -> bool:
        """Begin to save; False where there is no place for it.

        Parameters
        ----------
        deployment
            The run on the cluster.
        state
            What the method says of itself; plain JSON where the place is a checkpoint.
        vectors
            Names on the shards, each with what it is called for good where it will never change, such as ``"s7"`` for
            the step of iteration 7, else None. None to save what updates are made of.
        now
            Seconds since the run began.
        own
            Vectors of the driver's that belong to the state, by names under which they never change; for a checkpoint.
        """
        self._began_at = now
        self._number += 1
        if self._store is None:
            renewed = self._keepers.make_missing(deployment)
            if renewed is None:
                # Asked for again after a while, not at every turn.
                self._share.took(now, now)
                return False
            # What the old ones held is given up, and carried to these with this save.
            self._forget_parts(renewed)
        written = self._write_own({} if own is None or self._store is None else own)
        names = {name: self._name(name, lasting) for name, lasting in (vectors or {}).items()}
        directory, number = deployment.directory, None if vectors is not None else self._number
        shards = range(len(directory.shards))
        if names:
            self._held.update(names.values())
            deployment.execute(*(Alias(HELD + name, each) for each, name in names.items()))
        keys = _keys_of(directory)
        self._under_way = _UnderWay(self._number, dict(state), names, written, keys, time.monotonic(), now)
        if self._errands is None:
            # One for all saves: the key of a task is never used again.
            self._errands = Errands(deployment.client, self._run)
        place = self._place(directory)
        for shard in shards:
            actor = directory.shards[shard]
            source = deployment.shards.end(shard, actor, directory.generation)
            wanted = tuple((HELD + name, name) for name in names.values() if not self._has(name, shard))
            worker = actor.worker if self._store is not None else self._keepers.workers[shard]
            self._errands.send([(worker, Save(source, place, limits(), wanted, number))])
        return True

    def _name(self, own: str, lasting: str | None) -> str:
        known = None if lasting is None else self._lasting.get(lasting)
        return known or f"{lasting or own}@{self._number}"

    def _write_own(self, own: Mapping[str, Vector]) -> dict[str, str]:
        """Write the driver's vectors that are new to the checkpoint; gives the name of each there."""
        assert self._store is not None or not own
        names = {}
        for name, vector in own.items():
            names[name] = self._name(name, name)
            if names[name] not in self._parts and self._store is not None:
                parts = from_store(self._store.path, f"writing {name} to", self._writing(names[name], vector))
                self._parts[names[name]] = {_ALL_SHARDS: tuple(parts)}
        return names

    def _writing(self, name: str, vector: Vector) -> Callable[[], list[Part]]:
        store, spans = self._store, pieces(range(len(vector)), vector.dtype)
        assert store is not None
        return lambda: [store.write_part(name, span.start, vector[span.start : span.stop]) for span in spans]

    def _has(self, name: str, shard: int) -> bool:
        return not {shard, _ALL_SHARDS}.isdisjoint(self._parts.get(name, ()))

    def _place(self, directory: Directory) -> PlaceSpec:
        if self._store is not None:
            return InCheckpoint(self._store)
        return self._keepers.place(directory)

    def poll(self, deployment: Deployment, now: float) -> SavedNow | None:
        """See whether the save under way is complete; one that cannot be completed is given up.

        Raises
        ------
        Exception
            When a checkpoint cannot be written.
        """
        under_way = self._under_way
        if under_way is None or self._errands is None:
            return None
        try:
            brought: list[Carried] | None = self._errands.poll(deployment.workers)
            if brought is None:
                self._check_time(under_way, self._errands.workers)
                return None
        except (ActorLostError, CallTimeoutError) as error:
            # A lost worker is told of in other ways; one that takes too long is not.
            level = logging.WARNING if isinstance(error, CallTimeoutError) else logging.INFO
            logger.log(level, "save %d is given up: %s", under_way.number, error)
            self.give_up()
            return None
        self._under_way = None
        saved, began = self._tied(under_way, brought), time.monotonic()
        if self._store is None:
            self._commit(saved)
        else:
            from_store(self._store.path, f"committing state {saved.number} to", lambda: self._commit(saved))
        # What the carrying took, not what this waited for besides.
        seconds = max(each.seconds for each in brought) + time.monotonic() - began
        self.newest, self.saved_at = saved, under_way.at
        self.n_saved += 1
        self._holders = under_way.shards
        self._drop_others(deployment)
        self._share.took(now - seconds, now)
        return SavedNow(saved, seconds, sum(each.n_bytes for each in brought))

    @staticmethod
    def _check_time(under_way: _UnderWay, workers: list[str]) -> None:
        limit_seconds = limits().no_progress_seconds
        if time.monotonic() - under_way.began > limit_seconds:
            raise CallTimeoutError(
                f"saved state {under_way.number} was not carried within {limit_seconds:g} seconds by tasks on "
                f"{', '.join(workers)}. Look whether these workers are paused for lack of memory, and whether what "
                "they save to answers; where it is only slow, save less often or give a larger "
                "Limits(no_progress_seconds=...)."
            )

    def finish(self, deployment: Deployment, now: Callable[[], float]) -> SavedNow | None:
        """Wait for the save under way; None when it was given up."""
        while self.is_saving:
            saved = self.poll(deployment, now())
            if saved is not None:
                return saved
            deployment.take_news()
            time.sleep(_LOOK_SECONDS)
        return None

    def _tied(self, under_way: _UnderWay, brought: list[Carried]) -> SavedState:
        """Tie together what was carried now and what was there."""
        names = {*under_way.names.values(), *under_way.own.values()}
        notes: dict[str, Any] = {}
        for shard, carried in enumerate(brought):
            notes |= {str(start): note for start, note in carried.notes.items()}
            for name, parts in carried.vectors.items():
                self._parts.setdefault(name, {})[shard] = tuple(parts)
                names.add(name)
        vectors = {
            name: tuple(part for _, parts in sorted(self._parts[name].items()) for part in parts)
            for name in sorted(names)
        }
        # Whoever would know a lasting vector by this name finds all of it there from now on.
        self._lasting = {_lasting_of(name): name for name in vectors}
        state = under_way.state | {"vectors": under_way.names, "own": under_way.own, "notes": notes}
        return SavedState(under_way.number, vectors, state)

    def own(self, name: str) -> Vector | None:
        """Read one of the driver's vectors back from the newest state; None where it has none of that name."""
        saved = self.newest
        if saved is None or self._store is None or name not in saved.state["own"]:
            return None
        store, at = self._store, saved.state["own"][name]
        parts = saved.vectors[at]
        read = from_store(store.path, f"reading {name} from", lambda: [store.read_part(at, part) for part in parts])
        return np.concatenate(read)

    def give_up(self) -> None:
        """Forget the save under way."""
        if self._errands is not None:
            self._errands.drop()
        self._under_way = None

    def _forget_parts(self, shards: Iterable[int]) -> None:
        for shard in shards:
            for parts in self._parts.values():
                parts.pop(shard, None)

    def look(self, deployment: Deployment) -> None:
        """Take note of keepers that are lost or have to go, and of shards that do not hold the newest state.

        What a keeper that has to go holds is handed over; what a lost one held is carried again with the next save. A
        shard does not hold the state when it was made anew from something else, or was handed over since.
        """
        self._lacking = self._without_state(deployment.directory)
        leaving = self._keepers.leaving(deployment)
        if leaving:
            # Its parts are on their way to where they would soon be gone.
            self.give_up()
            self._share.reset()
            self._keepers.hand_over(deployment, {shard: self._kept(shard) for shard in leaving})
        lost = self._keepers.lose(deployment)
        if lost:
            self.give_up()
            self._forget_parts(lost)
        if lost or self._lacking:
            # Until then the loss of one more worker costs the whole state.
            self._share.reset()

    def _kept(self, shard: int) -> list[tuple[str, int]]:
        """What the keeper of a shard holds of the newest state."""
        names = () if self.newest is None else self.newest.vectors
        return [(name, part.start) for name in names for part in self._parts.get(name, {}).get(shard, ())]

    def keeper_workers(self) -> dict[int, str]:
        """The worker of each shard's keeper."""
        return self._keepers.workers

    def _drop_others(self, deployment: Deployment) -> None:
        """Let go of what the newest state does not name, on shards and keepers; a checkpoint does so by itself."""
        named = self._saved.vectors
        unwanted = sorted(self._held - named.keys())
        self._held -= set(unwanted)
        self._parts = {name: parts for name, parts in self._parts.items() if name in named}
        if unwanted:
            deployment.execute(*(Drop(HELD + name) for name in unwanted))
        self._keepers.keep(deployment, named)

    # Going back to the newest state.

    def can_fill(self, lost: Collection[int]) -> bool:
        """Whether the newest state is at hand for shards that were lost, and for others that lack it."""
        if self.newest is None:
            return False
        return all(self._has(name, shard) for name in self.newest.vectors for shard in {*lost, *self._lacking})

    def _without_state(self, directory: Directory) -> set[int]:
        """The shards that do not hold the vectors of the newest state, where it has any."""
        if self.newest is None or not self.newest.state.get("vectors"):
            return set()
        return {index for index, shard in enumerate(directory.shards) if shard.key not in self._holders}

    def fills(self, deployment: Deployment, directory: Directory, lost: Collection[int]) -> list[tuple[str, Errand]]:
        """The errands that bring the vectors of the newest state to shards that lack them; `go_back` takes them up."""
        saved, place = self._saved, self._place(directory)
        shards = {*lost, *self._without_state(directory)}
        vectors = tuple((name, HELD + name) for name in sorted(saved.state["vectors"].values()))
        fills: list[tuple[str, Errand]] = []
        for shard in sorted(shards):
            actor = directory.shards[shard]
            target = deployment.shards.end(shard, actor, directory.generation)
            fills.append((actor.worker, Fill(target, place, limits(), saved, vectors)))
        return fills

    def go_back(self, deployment: Deployment) -> None:
        """Let all shards take up the newest state, once those that lacked it are filled."""
        saved = self._saved
        deployment.execute(*(Alias(own, HELD + name) for own, name in sorted(saved.state["vectors"].items())))
        self._held.update(saved.vectors)
        self._holders = _keys_of(deployment.directory)

    def part_ways(self) -> None:
        """Note that the run goes another way from here on: what is made on it has names that were used before."""
        self._lasting.clear()

    def update_fills(
        self, deployment: Deployment, directory: Directory, shards: Iterable[int], is_behind: bool
    ) -> list[tuple[str, Errand]]:
        """The errands that fill shards with what updates are made of; see `Updates.restore` for `is_behind`."""
        saved = self._saved
        notes = {int(start): note for start, note in saved.state["notes"].items()}
        [values] = [name for name in saved.vectors if name.startswith(f"{VALUES}@")]
        number = int(values.rpartition("@")[2])
        place = self._place(directory)
        fills: list[tuple[str, Errand]] = []
        for shard in shards:
            actor = directory.shards[shard]
            end = deployment.shards.end(shard, actor, directory.generation)
            fills.append((actor.worker, FillUpdates(end, place, limits(), saved, number, notes, is_behind)))
        return fills

    @property
    def _saved(self) -> SavedState:
        assert self.newest is not None
        return self.newest


def cuts_of(saved: SavedState) -> tuple[int, ...]:
    """Where the pieces of saved updates begin: the pieces of a run that goes on from them must not span two."""
    return tuple(
        sorted(part.start for name in saved.vectors if name.startswith(f"{VALUES}@") for part in saved.vectors[name])
    )


def _keys_of(directory: Directory) -> frozenset[str]:
    return frozenset(shard.key for shard in directory.shards)


def _lasting_of(name: str) -> str:
    return name.rpartition("@")[0]
