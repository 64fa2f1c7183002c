"""What is said to a shard: commands on named vectors, and the keys of pushes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dask_belief.binary_tree import Node


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
class Dot:
    """The dot products of pairs of vectors; answers with the tree nodes of each, in the order of the pairs."""

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class MaxNorm:
    """The largest magnitude in a vector; NaN when it holds one."""

    name: str


@dataclass(frozen=True)
class SquaredPenalty:
    """The sum of squares of the penalised elements of a vector; answers with tree nodes."""

    name: str


@dataclass(frozen=True)
class Drop:
    """Forget a vector."""

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


Command = Combine | Multiply | Dot | MaxNorm | SquaredPenalty | Drop | BeginSum | EndSum
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
