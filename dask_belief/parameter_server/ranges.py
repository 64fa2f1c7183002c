"""How one flat vector is cut: into blocks for sums, shards for actors, pieces for messages.

::

    parameters  0                                                              n_parameters
    blocks      |----|----|----|----|----|----|----|----|----|----|----|----|-|     65,536 each
    shards      |              0              |              1              |     whole blocks
    pieces      |         0         |    1    |         0         |    1    |     at most 16 MiB each, whole blocks

A dot product is formed per block and joined in a tree over block numbers, so that it does not depend on the number
of shards; a piece is the unit of transfer, and of what a shard notes as applied.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable

import numpy as np
from numpy.typing import DTypeLike

from dask_belief.errors import ArgumentError

logger = logging.getLogger(__name__)

BLOCK = 65_536
PIECE_BYTES = 16 * 2**20
"""So that the memory of a piece is kept when it is freed (`cluster.memory`): what is larger glibc asks the system for
each time. A fetch of 167 MB takes 92 ms in pieces of 16 MiB, 115 to 128 in pieces of 32."""


def n_blocks(n_parameters: int) -> int:
    """The number of blocks of the whole vector, of which the last may be short."""
    return -(-n_parameters // BLOCK)


def shard_ranges(n_parameters: int, n_shards: int) -> tuple[range, ...]:
    """The contiguous range of each shard, with borders on multiples of `BLOCK`.

    A vector of fewer blocks than `n_shards` gets one shard a block: a smaller shard would cost a message and gain
    nothing.

    Raises
    ------
    ArgumentError
        When there are fewer parameters than shards, or no shard.
    """
    if n_shards < 1:
        raise ArgumentError(f"n_shards: expected 1 or more, got {n_shards}.")
    if n_shards > n_parameters:
        raise ArgumentError(
            f"n_shards: {n_shards} shards were asked for, but there are only {n_parameters} parameters. Ask for fewer."
        )
    blocks = n_blocks(n_parameters)
    if n_shards > blocks:
        logger.info("%d shards asked for, %d used: a shard holds at least %d parameters", n_shards, blocks, BLOCK)
        n_shards = blocks
    borders = [blocks * index // n_shards * BLOCK for index in range(n_shards)] + [n_parameters]
    return tuple(range(start, stop) for start, stop in itertools.pairwise(borders))


def pieces(shard: range, dtype: DTypeLike, cuts: Iterable[int] = ()) -> tuple[range, ...]:
    """The pieces in which a shard's range travels.

    Parameters
    ----------
    shard
        The range.
    dtype
        Of the vectors.
    cuts
        Where a piece begins besides. What a shard notes as applied it notes for each piece: a run that goes on with
        other shards than it had keeps their borders.
    """
    step = PIECE_BYTES // (BLOCK * np.dtype(dtype).itemsize) * BLOCK
    borders = sorted({shard.start, *(cut for cut in cuts if shard.start < cut < shard.stop), shard.stop})
    return tuple(
        range(start, min(start + step, high))
        for low, high in itertools.pairwise(borders)
        for start in range(low, high, step)
    )
