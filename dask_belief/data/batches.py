"""Mini-batches: the rows of one lease, shuffled and gathered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from dask_belief.data.checks import row_count
from dask_belief.errors import ArgumentError

Batch: TypeAlias = tuple[npt.NDArray[Any], npt.NDArray[Any]]
"""Inputs and targets of the same rows."""


def n_batches(n_rows: int, batch_rows: int) -> int:
    """How many mini-batches `n_rows` rows make; the last one may be short."""
    return -(-n_rows // row_count("batch_rows", batch_rows))


def blocks_of(batch: Batch, block_rows: int) -> Iterator[Batch]:
    """Cut rows into blocks of so many, in order and without a copy; the last one may have fewer."""
    inputs, targets = batch
    for start in range(0, len(inputs), block_rows):
        yield inputs[start : start + block_rows], targets[start : start + block_rows]


def mini_batches(
    inputs: npt.NDArray[Any],
    targets: npt.NDArray[Any],
    batch_rows: int,
    generator: np.random.Generator,
    *,
    first: int = 0,
) -> Iterator[tuple[int, npt.NDArray[Any], npt.NDArray[Any]]]:
    """Cut rows into mini-batches, in an order that the generator draws; each row comes once.

    The order is drawn when the function is called and depends on the generator and the number of rows alone, so a
    successor that is given the same stream has the same borders, and can go on at mini-batch `first`.

    Parameters
    ----------
    inputs
        Shape ``(n_rows, ...)``.
    targets
        Shape ``(n_rows, ...)``.
    batch_rows
        Rows of a mini-batch; the last one may have fewer.
    generator
        Draws the order; see `dask_belief.seeds.stream`.
    first
        The number of the mini-batch to begin with; those before it are not gathered.

    Yields
    ------
    tuple of int, numpy.ndarray, numpy.ndarray
        The mini-batch's number from 0 and its rows, in buffers that are used again for the next but one: a
        mini-batch may be kept while the next is gathered, and no longer.

    Raises
    ------
    ArgumentError
        If `batch_rows` is less than 1, `first` negative, or the lengths differ.

    Examples
    --------
    >>> rows = np.arange(5)
    >>> drawn = mini_batches(rows[:, None], rows, 2, np.random.default_rng(0))
    >>> [(number, targets.tolist()) for number, _, targets in drawn]
    [(0, [2, 4]), (1, [3, 0]), (2, [1])]
    """
    batch_rows = row_count("batch_rows", batch_rows)
    if len(inputs) != len(targets):
        raise ArgumentError(f"inputs, targets: lengths differ, {len(inputs)} and {len(targets)} rows")
    if first < 0:
        raise ArgumentError(f"first: 0 or more is needed, found {first}")
    return _gather(inputs, targets, batch_rows, generator.permutation(len(inputs)), first)


def _gather(
    inputs: npt.NDArray[Any], targets: npt.NDArray[Any], batch_rows: int, order: npt.NDArray[np.int64], first: int
) -> Iterator[tuple[int, npt.NDArray[Any], npt.NDArray[Any]]]:
    buffer_rows = min(batch_rows, len(order))
    buffers = [
        tuple(np.empty((buffer_rows, *rows.shape[1:]), rows.dtype) for rows in (inputs, targets)) for _ in range(2)
    ]
    for number in range(first, n_batches(len(order), batch_rows)):
        rows = order[number * batch_rows : (number + 1) * batch_rows]
        batch_inputs, batch_targets = (buffer[: len(rows)] for buffer in buffers[number % 2])
        # mode="clip" writes straight into the buffer; the default checks indices by way of a copy.
        np.take(inputs, rows, axis=0, out=batch_inputs, mode="clip")
        np.take(targets, rows, axis=0, out=batch_targets, mode="clip")
        yield number, batch_inputs, batch_targets
