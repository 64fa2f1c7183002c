"""Where the shards of a run are, as of one moment."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from dask_belief.cluster.actors import ActorAddress
from dask_belief.parameter_server.ranges import pieces


@dataclass(frozen=True)
class Directory:
    """Where the shards are; what a replica is given.

    Attributes
    ----------
    generation
        Its number: one more each time that a shard is replaced.
    n_parameters, dtype
        Of the whole vector.
    shards
        The address of each shard.
    ranges
        The range of each shard, in order and without a gap.
    cuts
        Where pieces begin besides, see `ranges.pieces`.
    copies
        The address of the second actor of each shard, which gets each push, too; None where there is none at this
        moment. Empty for no copies.
    """

    generation: int
    n_parameters: int
    dtype: str
    shards: tuple[ActorAddress, ...]
    ranges: tuple[range, ...]
    cuts: tuple[int, ...] = ()
    copies: tuple[ActorAddress | None, ...] = ()

    def pieces(self, shard: int) -> tuple[range, ...]:
        """The pieces in which a shard's range travels."""
        return pieces(self.ranges[shard], self.dtype, self.cuts)

    def copy_of(self, shard: int) -> ActorAddress | None:
        """The second actor of a shard."""
        return self.copies[shard] if self.copies else None

    @property
    def actors(self) -> tuple[ActorAddress, ...]:
        """The address of every actor that holds parameters."""
        return (*self.shards, *(copy for copy in self.copies if copy is not None))


Renew = Callable[[int], Awaitable[Directory | None]]
"""Gives a directory newer than the generation that is named, as soon as there is one; None when a limit passes."""
