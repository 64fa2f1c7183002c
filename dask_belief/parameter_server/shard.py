"""One shard: a range of the parameters, what is kept for them, and the few things that may be asked of it.

A plain class. That it runs as a Dask actor, all of whose calls come one after another, is the cluster's business: so
there is no lock. Every call names the generation of the list of shards, and every reply is a copy.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_belief.binary_tree import Node
from dask_belief.errors import OldDirectoryError, StaleError
from dask_belief.monitoring.events import ShardProgress
from dask_belief.parameter_server.gradient_sum import GradientSum
from dask_belief.parameter_server.messages import (
    Absolutes,
    Alias,
    Align,
    BeginSum,
    Combine,
    Command,
    Dot,
    Drop,
    EndSum,
    Finished,
    FirstHessian,
    LeaseKey,
    Logged,
    MaxNorm,
    Multiply,
    ProjectedStep,
    PseudoGradient,
    PushKey,
    Reply,
    Round,
    SquaredPenalty,
    StepKey,
    Swap,
)
from dask_belief.parameter_server.updates import Push, SavedPiece, Updates, UpdateSpec
from dask_belief.parameter_server.vectors import Vectors

Vector = NDArray[np.floating]


@dataclass(frozen=True)
class ShardSpec:
    """What a shard is made from.

    Attributes
    ----------
    generation
        Of the list of shards by which it is made; calls by an older one are refused.
    index
        The number of the shard.
    shard
        Its range of the whole vector.
    n_parameters
        The length of the whole vector.
    dtype
        The name of the run's dtype.
    penalised
        Boolean, ``(len(shard),)``; None for all.
    updates
        How Downpour's pushes are applied; None for Sandblaster.
    """

    generation: int
    index: int
    shard: range
    n_parameters: int
    dtype: str
    penalised: NDArray[np.bool_] | None = None
    updates: UpdateSpec | None = None

    def __getstate__(self) -> dict[str, Any]:
        # The mask travels as bits: by way of Dask's scheduler, which is not made for a byte a parameter.
        packed = None if self.penalised is None else np.packbits(self.penalised)
        return self.__dict__ | {"penalised": packed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        packed = state["penalised"]
        mask = None if packed is None else np.unpackbits(packed, count=len(state["shard"])).view(np.bool_)
        self.__dict__.update(state | {"penalised": mask})


class Shard:
    """Holds and updates one range of the parameters (paper, sections 4.1 and 4.2)."""

    def __init__(self, spec: ShardSpec) -> None:
        self._spec = spec
        self._generation = spec.generation
        self._vectors = Vectors(spec.shard, spec.n_parameters, spec.dtype, spec.penalised)
        # Sandblaster: the sum under way, and the last command's number with its reply, for one that is repeated.
        self._sum: GradientSum | None = None
        self._number = -1
        self._replies: tuple[Reply, ...] = ()
        # Downpour.
        self._given_updates = None if spec.updates is None else Updates(self._vectors, spec.updates)
        self._is_frozen = False
        self._busy_seconds = 0.0
        self._received_bytes = 0
        self._sent_bytes = 0

    # When a shard is replaced, this one or another: the list of shards has a new generation.

    def adopt(self, generation: int) -> None:
        """Refuse from now on what was sent by a list of shards older than this; told twice, nothing happens."""
        self._generation = max(self._generation, generation)

    def names(self, generation: int) -> list[str]:
        """Tell the names of all vectors."""
        self._check(generation)
        return self._vectors.names

    # Vectors in and out, in pieces.

    def write(self, generation: int, name: str, offset: int, piece: Vector) -> None:
        """Set a piece of a vector, which begins at `offset` of this shard's range."""
        self._check(generation)
        self._vectors.make(name)[offset : offset + len(piece)] = piece

    def read(self, generation: int, name: str, offset: int, length: int) -> Vector:
        """Give a copy of a piece of a vector."""
        self._check(generation)
        return self._vectors[name][offset : offset + length].copy()

    def memory(self, generation: int) -> dict[str, int]:
        """Tell the bytes of all named vectors (``"vectors"``), and of gradient sums (``"waiting"``)."""
        self._check(generation)
        waiting = 0 if self._sum is None else self._sum.n_bytes
        return {"vectors": self._vectors.n_bytes, "waiting": waiting}

    # Sandblaster (section 4.2): commands of the coordinator, gradients of the replicas.

    def execute(self, generation: int, number: int, commands: tuple[Command, ...]) -> tuple[Reply, ...]:
        """Run a numbered batch of commands; a repeated number gets the saved reply and is not run again."""
        self._check(generation)
        if number < self._number:
            raise StaleError(f"shard {self._spec.index}: commands {number} came after {self._number}.")
        if number > self._number:
            # What is not finite shows in the scalars, and whoever asked for them decides what to do.
            with np.errstate(over="ignore", invalid="ignore"):
                self._replies = tuple(self._run(command) for command in commands)
            self._number = number
        return self._replies

    def fetch(self, generation: int, evaluation: int, offset: int, length: int) -> Vector:
        """Give a copy of a piece of the parameters of the evaluation under way.

        Raises
        ------
        StaleError
            When it is not under way, or not any more: its vector may have another name or other values by now.
        """
        self._check(generation)
        gradient_sum = self._current_sum(evaluation)
        if gradient_sum.is_closed:
            raise StaleError(f"shard {self._spec.index}: evaluation {evaluation} is over, its parameters are not kept.")
        return self.read(generation, gradient_sum.parameters, offset, length)

    def add(self, generation: int, evaluation: int, node: Node, offset: int, piece: Vector) -> bool:
        """Take a piece of the gradient sum over the units of `node`; False when they were covered already."""
        self._check(generation)
        gradient_sum = self._current_sum(evaluation)
        with np.errstate(over="ignore", invalid="ignore"):
            return gradient_sum.add(Node(*node), offset, piece)

    def _current_sum(self, evaluation: int) -> GradientSum:
        if self._sum is None:
            raise StaleError(f"shard {self._spec.index}: no evaluation is under way, but {evaluation} was named.")
        self._sum.check(evaluation)
        return self._sum

    def _run(self, command: Command) -> Reply:
        vectors = self._vectors
        match command:
            case Combine(into, terms):
                vectors.combine(into, terms)
            case Multiply(into, left, right):
                vectors.multiply(into, left, right)
            case Swap(left, right):
                vectors.swap(left, right)
            case Dot(products):
                return vectors.dots(products)
            case MaxNorm(name):
                return vectors.max_norm(name)
            case SquaredPenalty(name):
                return [vectors.squared_penalty(name)]
            case Absolutes(name):
                return [vectors.absolutes(name)]
            case PseudoGradient(into, point, gradient, l1):
                vectors.pseudo_gradient(into, point, gradient, l1)
            case Align(direction, steepest, point):
                vectors.align(direction, steepest, point)
            case ProjectedStep(into, point, direction, steepest, step):
                vectors.projected_step(into, point, direction, steepest, step)
            case FirstHessian(into, sums):
                vectors.first_hessian(into, sums)
            case Drop(name):
                vectors.drop(name)
            case Alias(into, name):
                vectors.alias(into, name)
            case BeginSum(evaluation, parameters, n_units):
                self._sum = GradientSum(evaluation, parameters, n_units)
            case EndSum(evaluation, into, n_rows, l2):
                gradient_sum = self._current_sum(evaluation)
                total = vectors.make(into)
                gradient_sum.collect(total, n_rows)
                vectors.add_penalty_gradient(total, gradient_sum.parameters, l2)
        return None

    # Downpour (section 4.1): updates by the replicas, each mini-batch once.

    def begin_updates(self, generation: int, is_behind: bool = False) -> None:
        """Make the rule's state for the values that were written; see `Updates.begin`."""
        self._check(generation)
        self._updates.begin(is_behind)

    def exchange(
        self,
        generation: int,
        replica: str,
        at: StepKey,
        push: PushKey | None,
        base: int,
        offset: int,
        length: int,
        gradient: Vector | None,
        runs: NDArray[np.int64] | None,
        fetch: bool | NDArray[np.int64],
        closed: Round | None = None,
    ) -> tuple[int, Vector | None]:
        """Apply a push to one piece, give the values after it, or both in one message.

        Parameters
        ----------
        replica, at
            Who asks, and where in its work.
        push, base, gradient, runs
            See `updates.Push`; None, 0, None and None to fetch alone.
        offset, length
            The piece of this shard's range.
        fetch, closed
            See `Updates.exchange`.

        Returns
        -------
        n_updates, values
            See `Updates.exchange`.

        Raises
        ------
        StaleError
            When the push leaves a gap behind the mark, comes from another generation, or after the end.
        """
        self._check(generation)
        if self._is_frozen:
            raise StaleError(f"shard {self._spec.index}: the training is over; {replica} came too late.")
        began = time.thread_time()
        arrived = None
        if push is not None and gradient is not None:
            arrived = Push(PushKey.of(push), base, gradient, runs)
            self._received_bytes += gradient.nbytes
        where = StepKey(LeaseKey(*at[0]), *at[1:])
        decided = None if closed is None else Round.of(closed)
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                n_updates, values = self._updates.exchange(
                    replica, where, slice(offset, offset + length), arrived, fetch, decided
                )
        except StaleError as error:
            raise StaleError(f"shard {self._spec.index}: {error}") from None
        self._sent_bytes += 0 if values is None else values.nbytes
        self._busy_seconds += time.thread_time() - began
        return n_updates, values

    def freeze(self, generation: int) -> None:
        """Let nothing change from now on: the training is over, though replicas may not have heard of it."""
        self._check(generation)
        self._is_frozen = True

    def marks(self, generation: int, of_any: bool = False) -> dict[LeaseKey, int]:
        """Tell the last mini-batch of each lease that every piece has, or any; see `Updates.marks`."""
        self._check(generation)
        return self._updates.marks(of_any)

    def advance(self, generation: int, marks: dict[LeaseKey, int], held: dict[LeaseKey, int]) -> int:
        """Count mini-batches as applied that this shard, put back to an older state, lost; see `Updates.advance`."""
        self._check(generation)
        return self._updates.advance(_of_leases(marks), _of_leases(held))

    def finished(self, generation: int) -> Finished:
        """Tell the leases whose marks were dropped."""
        self._check(generation)
        return self._updates.finished

    def n_rounds(self, generation: int) -> int:
        """Tell how many rounds of synchronous training were closed."""
        self._check(generation)
        return self._updates.n_rounds

    def state_names(self, generation: int) -> list[str]:
        """Tell the names of the rule's vectors, each of which is named with `STATE` before it."""
        self._check(generation)
        return list(self._updates.state_names)

    def applied(self, generation: int, lease: LeaseKey, n_pieces: int) -> int:
        """The last mini-batch of a lease that every piece of this shard has applied; -1 for none."""
        self._check(generation)
        return self._updates.applied(LeaseKey(*lease), n_pieces)

    def counts(self, generation: int) -> ShardProgress:
        """Tell how many updates there were, how stale they were, and what they cost."""
        self._check(generation)
        updates = self._updates
        return ShardProgress(
            shard=self._spec.index,
            n_updates=updates.n_updates,
            n_dropped=updates.n_dropped,
            n_lost=updates.n_lost,
            received_bytes=self._received_bytes,
            sent_bytes=self._sent_bytes,
            busy_seconds=self._busy_seconds,
            rate=updates.rate,
            staleness=updates.staleness,
        )

    def save(self, generation: int, offset: int, length: int, with_staged: bool = False) -> SavedPiece:
        """Give a copy of all that is kept for one piece, as of one instant; see `Updates.save`."""
        self._check(generation)
        return self._updates.save(slice(offset, offset + length), with_staged)

    def restore(self, generation: int, offset: int, saved: SavedPiece, is_behind: bool = False) -> None:
        """Put a saved piece in place; see `Updates.restore`."""
        self._check(generation)
        self._updates.restore(offset, saved, is_behind)

    def forget_marks(self, generation: int, finished: Finished) -> None:
        """Drop the marks of leases that the ledger's saved state covers; what is pushed for them later is dropped."""
        self._check(generation)
        self._updates.forget_marks(finished)

    def take_log(self, generation: int, offset: int) -> list[Logged]:
        """Give the recorded exchanges with one piece since the last time, in their order."""
        self._check(generation)
        return self._updates.take_log(offset)

    @property
    def _updates(self) -> Updates:
        if self._given_updates is None:
            raise StaleError(f"shard {self._spec.index}: updates were sent to a shard that has no rule.")
        return self._given_updates

    def _check(self, generation: int) -> None:
        if generation < self._generation:
            raise OldDirectoryError(
                f"shard {self._spec.index}: generation {generation} was named, this is {self._generation}."
            )
        if generation > self._generation:
            raise StaleError(
                f"shard {self._spec.index}: generation {generation} was named, this is {self._generation}: it was "
                "replaced, or not told."
            )


def _of_leases(marks: dict[LeaseKey, int]) -> dict[LeaseKey, int]:
    """Marks whose leases travelled as plain tuples."""
    return {LeaseKey(*lease): mark for lease, mark in marks.items()}
