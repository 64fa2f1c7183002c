"""What is said to a shard: commands on named vectors, and the keys of pushes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dask_belief.binary_tree import Node
from dask_belief.checks import check_number
from dask_belief.errors import ArgumentError


@dataclass(frozen=True)
class Combine:
    """``into = sum of coefficient * vector``; `into` may be one of the vectors, and is made when it is not there."""

    into: str
    terms: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Multiply:
    """``into = left * right``, element by element."""

    into: str
    left: str
    right: str


@dataclass(frozen=True)
class Swap:
    """Let two vectors exchange their names; no number is moved."""

    left: str
    right: str


@dataclass(frozen=True)
class Dot:
    """Sums of products of two vectors, or of three; answers with the tree nodes of each, in their order."""

    products: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        for names in self.products:
            if len(names) not in (2, 3):
                raise ArgumentError(f"products: each is of two vectors or of three, got {names}")


@dataclass(frozen=True)
class MaxNorm:
    """The largest magnitude in a vector; NaN when it holds one."""

    name: str


@dataclass(frozen=True)
class SquaredPenalty:
    """The sum of squares of the penalised elements of a vector; answers with tree nodes."""

    name: str


@dataclass(frozen=True)
class Absolutes:
    """The sum of magnitudes of the penalised elements of a vector; answers with tree nodes."""

    name: str


# OWL-QN (Andrew and Gao, "Scalable training of L1-regularized log-linear models", ICML 2007). Parameters that are not
# penalised are free: their orthant is the whole line.


@dataclass(frozen=True)
class PseudoGradient:
    """Write into `into` the pseudo-gradient of ``f + l1 * ||w||_1`` at `point`, where `gradient` is that of f.

    It is the steepest of the one-sided derivatives where an element is zero (their equation 4).
    """

    into: str
    point: str
    gradient: str
    l1: float

    def __post_init__(self) -> None:
        check_number("l1", self.l1, low=0.0)


@dataclass(frozen=True)
class Align:
    """Set to zero, where `point` is zero, what of `direction` does not go down along the pseudo-gradient `steepest`.

    There the move would leave the orthant, or the objective would rise. Andrew and Gao align all elements; those that
    are not zero are held by `ProjectedStep`, and what is left of the direction is still one of descent, since
    ``d . v = -v . H v`` less terms that are not negative. It is then a quasi-Newton direction within the orthant: a
    quarter of the evaluations over 60 regressions with correlated inputs, to the same minima.
    """

    direction: str
    steepest: str
    point: str


@dataclass(frozen=True)
class ProjectedStep:
    """``into = point + step * direction``, zero where it leaves the orthant.

    The orthant is that of `point`, and where an element of it is zero, that of minus `steepest`.
    """

    into: str
    point: str
    direction: str
    steepest: str
    step: float


@dataclass(frozen=True)
class FirstHessian:
    """Write into `into` a diagonal first inverse Hessian, from Adagrad's sums of squared gradients.

    ``1 / (sqrt(sums) + 1e-6)``: positive and finite. What multiple of it fits is found from the first pair.
    """

    into: str
    sums: str


@dataclass(frozen=True)
class Drop:
    """Forget a vector."""

    name: str


@dataclass(frozen=True)
class Alias:
    """Let a vector have a second name, under which it stays as it is now; nothing is copied."""

    into: str
    name: str


@dataclass(frozen=True)
class BeginSum:
    """Open the sum of one evaluation's gradients; `parameters` is the vector that replicas fetch for it."""

    evaluation: int
    parameters: str
    n_units: int


@dataclass(frozen=True)
class EndSum:
    """Close the sum: ``into = sum / n_rows + l2 * parameters`` (the last term where parameters are penalised)."""

    evaluation: int
    into: str
    n_rows: int
    l2: float


Command = (
    Combine
    | Multiply
    | Swap
    | Dot
    | MaxNorm
    | SquaredPenalty
    | Absolutes
    | PseudoGradient
    | Align
    | ProjectedStep
    | FirstHessian
    | Drop
    | Alias
    | BeginSum
    | EndSum
)
Reply = float | list[dict[Node, float]] | None


class LeaseKey(NamedTuple):
    """One lease of one epoch of a Downpour run: what the marks of a shard are kept by."""

    epoch: int
    lease: int


class PushKey(NamedTuple):
    """A push is known by its work: mini-batches `first` to `last` (inclusive) of a lease."""

    lease: LeaseKey
    first: int
    last: int

    @classmethod
    def of(cls, parts: tuple[tuple[int, int], int, int]) -> PushKey:
        """Make it of what a message brought: a named tuple may arrive as a plain one."""
        lease, first, last = parts
        return cls(LeaseKey(*lease), first, last)


class StepKey(NamedTuple):
    """Where in its work a replica began an exchange: before mini-batch `step` of a lease, or after the last one.

    `began` is the mini-batch at which it began with the lease, above 0 where another had done a part of it.
    """

    lease: LeaseKey
    step: int
    began: int = 0


class Round(NamedTuple):
    """What became of the pushes of one round of synchronous training, decided once for all shards.

    Attributes
    ----------
    number
        Rounds before this one.
    members
        The pushes whose mean makes the step.
    late
        Pushes that came too late for their round: their mini-batches count as done.
    """

    number: int
    members: tuple[PushKey, ...]
    late: tuple[PushKey, ...]

    @classmethod
    def of(cls, parts: tuple[int, tuple[Any, ...], tuple[Any, ...]]) -> Round:
        """Make it of what a message brought."""
        number, members, late = parts
        return cls(number, tuple(map(PushKey.of, members)), tuple(map(PushKey.of, late)))


@dataclass(frozen=True)
class Finished:
    """Finished leases: all of the epochs before `epoch`, and some more; so it stays small however long a run is."""

    epoch: int
    more: frozenset[LeaseKey]

    def __contains__(self, lease: LeaseKey) -> bool:
        """Whether a lease is among them."""
        return lease.epoch < self.epoch or lease in self.more


NOTHING_FINISHED = Finished(0, frozenset())
"""What is finished as a run begins."""


class Logged(NamedTuple):
    """One exchange with one piece of a shard, as it is recorded; or a push of a round that the next exchange closes.

    Attributes
    ----------
    replica, at
        Who began it, and where in its work; of a push in a round, no name, its lease, and the number of the round.
    first, last
        Of the push; -1 where there was none.
    is_taken
        Whether the push was applied, or in synchronous training kept for its round; of a push in a round, whether it is
        a member.
    has_fetched
        Whether values were given.
    """

    replica: str
    at: StepKey
    first: int
    last: int
    is_taken: bool
    has_fetched: bool

    @classmethod
    def closing(cls, closed: Round) -> list[Logged]:
        """Write down what a round is made of."""
        pushes = [(key, True) for key in closed.members] + [(key, False) for key in closed.late]
        return [cls("", StepKey(key.lease, closed.number), key.first, key.last, is_in, False) for key, is_in in pushes]

    @staticmethod
    def closed(pushes: Sequence[Logged]) -> Round | None:
        """Read the round that `closing` wrote; None where there is nothing."""
        if not pushes:
            return None
        keys = [(PushKey(push.at.lease, push.first, push.last), push.is_taken) for push in pushes]
        members = tuple(key for key, is_in in keys if is_in)
        return Round(pushes[0].at.step, members, tuple(key for key, is_in in keys if not is_in))
