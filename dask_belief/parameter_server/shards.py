"""The shard actors of a run: made, replaced when their worker is lost, handed over when it leaves, copied.

Each change makes a new `Directory` of a higher generation, in the same four steps::

    make        new actors, which know the new generation only
    fence       actors whose state is carried adopt the new generation: what is sent by the old one is refused
    carry       to the new actors, from what was saved, or from the actor that they replace or copy
    publish     all others adopt the new generation; the hub tells replicas of the new directory

Between fence and publish replicas wait for the new directory where they need a fenced shard, and the other shards
serve on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from dask_belief.cluster.actors import ActorAddress, ActorHost, Caller, all_of
from dask_belief.cluster.limits import limits
from dask_belief.cluster.placement import place_one
from dask_belief.errors import ActorLostError
from dask_belief.parameter_server.carrying import End, Errand, Errands, HandOver
from dask_belief.parameter_server.client import ParameterServer
from dask_belief.parameter_server.directory import Directory
from dask_belief.parameter_server.shard import Shard, ShardSpec
from dask_belief.parameter_server.updates import UpdateSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardsSpec:
    """What the shards of a run are made from.

    Attributes
    ----------
    n_parameters, dtype, penalised, updates
        See `ShardSpec`.
    ranges
        The range of each shard.
    cuts
        Where pieces begin besides, see `ranges.pieces`.
    n_copies
        Further actors for each shard, 0 or 1.
    """

    n_parameters: int
    dtype: str
    penalised: NDArray[np.bool_] | None
    updates: UpdateSpec | None
    ranges: tuple[range, ...]
    cuts: tuple[int, ...] = ()
    n_copies: int = 0


Carry = Callable[[ParameterServer], Sequence[tuple[str, Errand]]]
"""Fills new shards: by what it writes itself, and by the errands that it gives, each with the worker that runs it."""


Settle = Callable[[ParameterServer], None]


class Shards:
    """The shards of one run, as the driver sees them.

    Parameters
    ----------
    client, host, run
        The run's client, what makes its actors, and its name.
    spec
        What they are made from.
    workers
        On which worker each shard goes at first.
    there
        Tells the workers that are there, and that may get an actor; raises what else has happened.

    Attributes
    ----------
    directory
        Where they are.
    """

    def __init__(
        self,
        client: Client,
        host: ActorHost,
        run: str,
        spec: ShardsSpec,
        workers: Sequence[str],
        there: Callable[[], Mapping[str, int]],
    ) -> None:
        self._host = host
        self._spec = spec
        self._there = there
        self._errands = Errands(client, run)
        # Of the last change, also of one that came to nothing: a key is never used again.
        self._generation = 0
        # Whether shards have been fenced for a change that has not been published.
        self._is_fenced = False
        shards = tuple(self._spawn(index, worker, 0) for index, worker in enumerate(workers))
        copies: tuple[ActorAddress | None, ...] = (None,) * (len(shards) * min(1, spec.n_copies))
        self.directory = Directory(0, spec.n_parameters, spec.dtype, shards, spec.ranges, spec.cuts, copies)

    def _next_generation(self) -> int:
        self._generation += 1
        return self._generation

    def _spawn(self, index: int, worker: str, generation: int, is_copy: bool = False) -> ActorAddress:
        spec, span = self._spec, self._spec.ranges[index]
        penalised = None if spec.penalised is None else spec.penalised[span.start : span.stop]
        shard = ShardSpec(generation, index, span, spec.n_parameters, spec.dtype, penalised, spec.updates)
        name = f"copy of shard {index}" if is_copy else f"shard {index}"
        return self._host.spawn(Shard, name, worker, shard, generation=generation)

    def end(self, index: int, actor: ActorAddress, generation: int) -> End:
        """A shard as one end of a way."""
        return End(actor, generation, self._spec.ranges[index].start, self.directory.pieces(index))

    # Who is lost, and who has to go.

    def on(self, workers: Collection[str]) -> list[int]:
        """The shards that live on some workers, without a copy elsewhere."""
        directory = self.directory
        return [
            index
            for index, shard in enumerate(directory.shards)
            if shard.worker in workers and ((copy := directory.copy_of(index)) is None or copy.worker in workers)
        ]

    def promote_copies(self, caller: Caller, lost: Collection[str], tell: Callable[[Directory], None]) -> list[str]:
        """Let copies take the place of shards on lost workers, and forget copies there; gives the names of the lost."""
        directory, names = self.directory, []
        shards, copies = list(directory.shards), list(directory.copies)
        for index, copy in enumerate(directory.copies):
            shard = shards[index]
            if copy is None or (shard.worker not in lost and copy.worker not in lost):
                continue
            if copy.worker not in lost:
                shards[index] = copy
            elif shard.worker in lost:
                continue
            gone = shard if shard.worker in lost else copy
            names.append(gone.name)
            self._host.drop(gone)
            copies[index] = None
        if names:
            self._publish(
                caller,
                replace(directory, generation=self._next_generation(), shards=tuple(shards), copies=tuple(copies)),
                tell,
                lost,
            )
        return names

    # Changes.

    def replace(
        self,
        indices: Collection[int],
        caller: Caller,
        tell: Callable[[Directory], None],
        carry: Carry,
        avoid: Mapping[int, str],
        settle: Settle | None = None,
    ) -> None:
        """Make shards anew that were lost.

        Parameters
        ----------
        indices
            Their numbers.
        caller, tell
            The way to actors, and what publishes a directory.
        carry
            Fills them.
        avoid
            For some shards, the worker that they should not share.
        settle
            Called with the new directory when they are filled, and before replicas know of it.

        Raises
        ------
        ActorLostError
            When another worker was lost meanwhile.
        """
        if self._is_fenced:
            # Those that live have adopted a generation that was never published, and are asked things meanwhile.
            gone = {actor.worker for actor in self.directory.actors} - self._there().keys()
            self._publish(caller, replace(self.directory, generation=self._next_generation()), tell, gone)
        generation = self._next_generation()
        made = {index: self._spawn_where(index, generation, avoid) for index in indices}
        try:
            shards = tuple(made.get(index, shard) for index, shard in enumerate(self.directory.shards))
            # Their copies were lost as well, or hold what these do not.
            copies = tuple(None if index in made else copy for index, copy in enumerate(self.directory.copies))
            directory = replace(self.directory, generation=generation, shards=shards, copies=copies)
            self._host.ready(made.values())
            server = ParameterServer(directory, caller)
            self.run(carry(server))
            if settle is not None:
                settle(server)
            lost = [self.directory.shards[index] for index in made]
            left = [copy for index, copy in enumerate(self.directory.copies) if index in made and copy is not None]
            self._publish(caller, directory, tell)
        except BaseException:
            self._forget(made.values())
            raise
        self._forget([*lost, *left])

    def hand_over(
        self,
        indices: Collection[int],
        caller: Caller,
        tell: Callable[[Directory], None],
        vectors: tuple[str, ...] | None,
    ) -> None:
        """Move shards off workers that are about to leave; their copies go, and are made anew by `copy`.

        Parameters
        ----------
        indices, caller, tell
            See `replace`.
        vectors
            Names of the vectors to carry; None for all that updates are made of.
        """
        generation = self._next_generation()
        made = {index: self._spawn_where(index, generation, {}) for index in indices}
        try:
            shards = tuple(made.get(index, shard) for index, shard in enumerate(self.directory.shards))
            copies = tuple(None if index in made else copy for index, copy in enumerate(self.directory.copies))
            old = {index: self.directory.shards[index] for index in indices}
            self._host.ready(made.values())
            self._is_fenced = True
            self._adopt(caller, old.values(), generation)
            self.run(
                (
                    new.worker,
                    HandOver(
                        self.end(index, old[index], generation), self.end(index, new, generation), limits(), vectors
                    ),
                )
                for index, new in made.items()
            )
            left = [copy for index, copy in enumerate(self.directory.copies) if index in made and copy is not None]
            self._publish(caller, replace(self.directory, generation=generation, shards=shards, copies=copies), tell)
        except BaseException:
            self._forget(made.values())
            raise
        self._forget([*old.values(), *left])

    def copy(self, caller: Caller, tell: Callable[[Directory], None]) -> None:
        """Make the copies that are missing, where there is a second worker."""
        directory, there = self.directory, self._there()
        missing = [index for index, copy in enumerate(directory.copies) if copy is None]
        if not missing or len(there) < 2:
            return
        generation, copies = self._next_generation(), list(directory.copies)
        made: dict[int, ActorAddress] = {}
        for index in missing:
            taken = [*self._taken, *(copy.worker for copy in made.values())]
            worker = place_one(there, taken, avoid={directory.shards[index].worker})
            copies[index] = made[index] = self._spawn(index, worker, generation, is_copy=True)
        try:
            self._host.ready(made.values())
            self._is_fenced = True
            self._adopt(caller, [directory.shards[index] for index in made], generation)
            self.run(
                (
                    copy.worker,
                    HandOver(
                        self.end(index, directory.shards[index], generation),
                        self.end(index, copy, generation),
                        limits(),
                    ),
                )
                for index, copy in made.items()
            )
            self._publish(caller, replace(directory, generation=generation, copies=tuple(copies)), tell)
        except BaseException:
            self._forget(made.values())
            raise
        logger.info("%d shards have a copy", len(made))

    # The steps.

    @property
    def _taken(self) -> list[str]:
        return [actor.worker for actor in self.directory.actors]

    def _spawn_where(self, index: int, generation: int, avoid: Mapping[int, str]) -> ActorAddress:
        copy = self.directory.copy_of(index)
        avoided = {avoid.get(index), None if copy is None else copy.worker}
        there = self._there()
        if not there:
            # Whoever takes note of the loss waits for others.
            raise ActorLostError(f"no worker is there on which shard {index} could be made anew.")
        stay = [worker for worker in self._taken if worker in there]
        return self._spawn(index, place_one(there, stay, {worker for worker in avoided if worker}), generation)

    def run(self, errands: Iterable[tuple[str, Errand]]) -> None:
        """Run errands, and wait for them."""
        self._errands.send(list(errands))
        self._errands.finish(self._there, limits().no_progress_seconds)

    def _adopt(self, caller: Caller, actors: Iterable[ActorAddress], generation: int) -> None:
        calls = [caller.call(actor, "adopt", generation) for actor in actors]
        if calls:
            caller.run(all_of(calls))

    def _publish(
        self, caller: Caller, directory: Directory, tell: Callable[[Directory], None], lost: Collection[str] = ()
    ) -> None:
        """Let a directory be in force; actors on `lost` workers cannot be told."""
        if directory.generation != self._generation:
            raise ActorLostError(f"a copy took a shard's place while directory {directory.generation} was made.")
        # Some may have adopted it when another cannot be told.
        self._is_fenced = True
        self._adopt(caller, [actor for actor in directory.actors if actor.worker not in lost], directory.generation)
        self.directory = directory
        self._is_fenced = False
        tell(directory)

    def open_again(self, caller: Caller, tell: Callable[[Directory], None]) -> None:
        """Publish the directory anew when a change came to nothing: fenced shards serve again."""
        if self._is_fenced:
            self._publish(caller, replace(self.directory, generation=self._next_generation()), tell)

    def _forget(self, actors: Iterable[ActorAddress]) -> None:
        for actor in actors:
            self._host.drop(actor)
