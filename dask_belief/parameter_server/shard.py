"""One shard: a range of the parameters, what is kept for them, and the few things that may be asked of it.

A plain class. That it runs as a Dask actor, all of whose calls come one after another, is the cluster's business: so
there is no lock. Every call names the generation of the run, and every reply is a copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_belief.binary_tree import Node
from dask_belief.errors import StaleError
from dask_belief.optim.rules import Rule
from dask_belief.parameter_server.gradient_sum import GradientSum
from dask_belief.parameter_server.messages import (
    Absolutes,
    Align,
    BeginSum,
    Combine,
    Command,
    Dot,
    Drop,
    EndSum,
    FirstHessian,
    LeaseKey,
    MaxNorm,
    Multiply,
    ProjectedStep,
    PseudoGradient,
    PushKey,
    Reply,
    SquaredPenalty,
    Swap,
)
from dask_belief.parameter_server.vectors import Vectors

Vector = NDArray[np.floating]

VALUES = "values"
"""The name of the vector that Downpour's rule updates in place."""

STATE = "state:"
"""What stands before the names of the rule's own vectors."""


@dataclass(frozen=True)
class ShardSpec:
    """What a shard is made from.

    Attributes
    ----------
    generation
        The generation of the run; calls of another are refused.
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
    rule
        Downpour's rule; None for Sandblaster.
    """

    generation: int
    index: int
    shard: range
    n_parameters: int
    dtype: str
    penalised: NDArray[np.bool_] | None = None
    rule: Rule | None = None

    def __getstate__(self) -> dict[str, Any]:
        # The mask travels as bits: by way of Dask's scheduler, which is not made for a byte a parameter.
        packed = None if self.penalised is None else np.packbits(self.penalised)
        return self.__dict__ | {"penalised": packed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        packed = state["penalised"]
        mask = None if packed is None else np.unpackbits(packed, count=len(state["shard"])).view(np.bool_)
        self.__dict__.update(state | {"penalised": mask})


@dataclass(frozen=True)
class SavedPiece:
    """All that a shard keeps for one piece of a Downpour run.

    Attributes
    ----------
    values
        The parameters of the piece.
    state
        The rule's vectors over it, by name.
    marks
        Per lease the last mini-batch applied to it.
    n_updates
        How many pushes it has had.
    """

    values: Vector
    state: dict[str, Vector]
    marks: dict[LeaseKey, int]
    n_updates: int

    @property
    def n_bytes(self) -> int:
        """Bytes of its vectors."""
        return sum(vector.nbytes for vector in (self.values, *self.state.values()))


class Shard:
    """Holds and updates one range of the parameters (paper, sections 4.1 and 4.2)."""

    def __init__(self, spec: ShardSpec) -> None:
        self._spec = spec
        self._vectors = Vectors(spec.shard, spec.n_parameters, spec.dtype, spec.penalised)
        # Sandblaster: the sum under way, and the last command's number with its reply, for one that is repeated.
        self._sum: GradientSum | None = None
        self._number = -1
        self._replies: tuple[Reply, ...] = ()
        # Downpour: per lease and piece the last mini-batch applied, leases that are finished for good, and how many
        # pushes each piece has had.
        self._marks: dict[tuple[LeaseKey, int], int] = {}
        self._finished: set[LeaseKey] = set()
        self._n_updates: dict[int, int] = {}
        self._state_names: tuple[str, ...] = ()

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
            case BeginSum(evaluation, parameters, n_units):
                self._sum = GradientSum(evaluation, parameters, n_units)
            case EndSum(evaluation, into, n_rows, l2):
                gradient_sum = self._current_sum(evaluation)
                total = vectors.make(into)
                gradient_sum.collect(total, n_rows)
                vectors.add_penalty_gradient(total, gradient_sum.parameters, l2)
        return None

    # Downpour (section 4.1): updates by the replicas, each mini-batch once.

    def begin_updates(self, generation: int) -> None:
        """Make the rule's state for the values that were written."""
        self._check(generation)
        state = self._rule.init(self._vectors[VALUES])
        self._state_names = tuple(state)
        for name, values in state.items():
            self._vectors.make(STATE + name)[:] = values

    def exchange(
        self,
        generation: int,
        key: PushKey | None,
        offset: int,
        length: int,
        gradient: Vector | None,
        should_fetch: bool,
    ) -> tuple[int, Vector | None]:
        """Apply a push, give the values after it, or both in one message.

        Parameters
        ----------
        key
            The work that `gradient` stands for; None to fetch alone. One at or below the mark is dropped.
        offset, length
            The piece of this shard's range.
        gradient
            The accrued mean gradients of the key's mini-batches.
        should_fetch
            Whether to give a copy of the piece's values.

        Returns
        -------
        n_updates, values
            How many pushes the piece has had, and the values or None.

        Raises
        ------
        StaleError
            When the push leaves a gap behind the mark, or comes from another generation.
        """
        self._check(generation)
        if key is not None and gradient is not None:
            self._apply(PushKey(LeaseKey(*key[0]), *key[1:]), offset, gradient)
        values = self._vectors[VALUES][offset : offset + length].copy() if should_fetch else None
        return self._n_updates.get(offset, 0), values

    def _apply(self, key: PushKey, offset: int, gradient: Vector) -> None:
        mark = self._marks.get((key.lease, offset), -1)
        if key.lease in self._finished or key.last <= mark:
            return
        if key.first != mark + 1:
            raise StaleError(
                f"shard {self._spec.index}: a push of mini-batches {key.first} to {key.last} of lease {key.lease.lease}"
                f" came when {mark} was the last applied; there is a gap."
            )
        piece = slice(offset, offset + len(gradient))
        state = {name: self._vectors[STATE + name][piece] for name in self._state_names}
        self._rule.apply(self._vectors[VALUES][piece], gradient, state, self._rule.learning_rate)
        self._marks[key.lease, offset] = key.last
        self._n_updates[offset] = self._n_updates.get(offset, 0) + 1

    def applied(self, generation: int, lease: LeaseKey, n_pieces: int) -> int:
        """The last mini-batch of a lease that every piece of this shard has applied; -1 for none."""
        self._check(generation)
        marks = [mark for (key, _), mark in self._marks.items() if key == LeaseKey(*lease)]
        return min(marks) if len(marks) == n_pieces else -1

    def save(self, generation: int, offset: int, length: int) -> SavedPiece:
        """Give a copy of all that is kept for one piece, as of one instant."""
        self._check(generation)
        piece = slice(offset, offset + length)
        return SavedPiece(
            values=self._vectors[VALUES][piece].copy(),
            state={name: self._vectors[STATE + name][piece].copy() for name in self._state_names},
            marks={lease: mark for (lease, at), mark in self._marks.items() if at == offset},
            n_updates=self._n_updates.get(offset, 0),
        )

    def restore(self, generation: int, offset: int, saved: SavedPiece) -> None:
        """Put a saved piece in place."""
        self._check(generation)
        piece = slice(offset, offset + len(saved.values))
        self._vectors.make(VALUES)[piece] = saved.values
        self._state_names = tuple(saved.state)
        for name, values in saved.state.items():
            self._vectors.make(STATE + name)[piece] = values
        self._marks.update({(LeaseKey(*lease), offset): mark for lease, mark in saved.marks.items()})
        self._n_updates[offset] = saved.n_updates

    def forget_marks(self, generation: int, leases: list[LeaseKey]) -> None:
        """Drop the marks of leases that the ledger's saved state covers; what is pushed for them later is dropped."""
        self._check(generation)
        self._finished.update(LeaseKey(*lease) for lease in leases)
        self._marks = {key: mark for key, mark in self._marks.items() if key[0] not in self._finished}

    @property
    def _rule(self) -> Rule:
        if self._spec.rule is None:
            raise StaleError(f"shard {self._spec.index}: updates were sent to a shard that has no rule.")
        return self._spec.rule

    def _check(self, generation: int) -> None:
        if generation != self._spec.generation:
            raise StaleError(
                f"shard {self._spec.index}: generation {generation} was named, this is {self._spec.generation}."
            )
