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


class MiniBatches:
    """The mini-batches of some rows, in an order that a generator draws; each row comes once.

    The order is drawn when this is made and depends on the generator and the number of rows alone, so a successor that
    is given the same stream has the same borders, and can go on at mini-batch `first`.

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

    Raises
    ------
    ArgumentError
        If `batch_rows` is less than 1, `first` negative, or the lengths differ.

    Examples
    --------
    >>> rows = np.arange(5)
    >>> drawn = MiniBatches(rows[:, None], rows, 2, np.random.default_rng(0))
    >>> [(number, targets.tolist()) for number, _, targets in drawn]
    [(0, [2, 4]), (1, [3, 0]), (2, [1])]
    """

    def __init__(
        self,
        inputs: npt.NDArray[Any],
        targets: npt.NDArray[Any],
        batch_rows: int,
        generator: np.random.Generator,
        *,
        first: int = 0,
    ) -> None:
        if len(inputs) != len(targets):
            raise ArgumentError(f"inputs, targets: lengths differ, {len(inputs)} and {len(targets)} rows")
        if first < 0:
            raise ArgumentError(f"first: 0 or more is needed, found {first}")
        self._rows = (inputs, targets)
        self._batch_rows = row_count("batch_rows", batch_rows)
        self._first = first
        self._order = generator.permutation(len(inputs))

    def __len__(self) -> int:
        """How many there are in all, those before `first` among them."""
        return n_batches(len(self._order), self._batch_rows)

    def __iter__(self) -> Iterator[tuple[int, npt.NDArray[Any], npt.NDArray[Any]]]:
        """Give each mini-batch's number and its rows, in buffers that are used again for the next but one.

        So a mini-batch may be kept while the next is gathered, and no longer.
        """
        n_rows = min(self._batch_rows, len(self._order))
        buffers = [tuple(np.empty((n_rows, *rows.shape[1:]), rows.dtype) for rows in self._rows) for _ in range(2)]
        for number in range(self._first, len(self)):
            chosen = self._chosen(number, number + 1)
            inputs, targets = (buffer[: len(chosen)] for buffer in buffers[number % 2])
            for rows, some in zip(self._rows, (inputs, targets), strict=True):
                # mode="clip" writes straight into the buffer; the default checks indices by way of a copy.
                np.take(rows, chosen, axis=0, out=some, mode="clip")
            yield number, inputs, targets

    def ahead(self, start: int, stop: int) -> Batch:
        """Give the rows of the mini-batches from `start` to `stop`, the last not included, as far as there are any."""
        chosen = self._chosen(start, stop)
        inputs, targets = self._rows
        return inputs[chosen], targets[chosen]

    def _chosen(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        return self._order[start * self._batch_rows : stop * self._batch_rows]
