"""Where rows to be written come from: arrays, Dask arrays or an iterator, all as one stream of blocks."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dask_belief.data import checks
from dask_belief.data.batches import Batch
from dask_belief.errors import ArgumentError

# About how much is held at once: enough for Zarr to write, and a Dask cluster to compute, several chunks side by side.
BLOCK_BYTES = 64 * 2**20


class Blocks(NamedTuple):
    """A stream of blocks; ``n_rows`` is None while nobody knows how many rows will come."""

    n_rows: int | None
    stream: Iterator[Batch]


def is_dask_array(value: object) -> bool:
    """Whether `value` is a Dask array; where `dask.array` was never imported nothing can be one."""
    module = sys.modules.get("dask.array")
    return module is not None and isinstance(value, module.Array)


def row_blocks(inputs: Any, targets: Any, chunk_rows: int) -> Blocks:
    """Stream inputs and targets from whatever holds them; see `write_dataset` for what may.

    Raises
    ------
    ArgumentError
        If lengths differ, or rows cannot be taken from what was given.
    """
    if targets is None:
        if hasattr(inputs, "shape") or not isinstance(inputs, Iterable):
            raise ArgumentError(
                f"targets: none were given; pass them, or an iterator of (inputs, targets) in place of "
                f"{type(inputs).__name__}"
            )
        return Blocks(None, _from_iterator(iter(inputs)))
    inputs, targets = sliceable("inputs", inputs), sliceable("targets", targets)
    rows, target_rows = inputs.shape[0], targets.shape[0]
    if math.isnan(rows) or math.isnan(target_rows):
        return Blocks(None, _from_unknown_dask(inputs, targets))
    if rows != target_rows:
        raise ArgumentError(f"inputs, targets: lengths differ, {rows} and {target_rows} rows")
    row_bytes = math.prod(inputs.shape[1:]) * inputs.dtype.itemsize
    if is_dask_array(inputs) or is_dask_array(targets):
        of_dask = inputs if is_dask_array(inputs) else targets
        return Blocks(rows, _from_dask(inputs, targets, _grouped(of_dask.chunks[0], row_bytes)))
    step = chunk_rows * max(1, BLOCK_BYTES // max(1, chunk_rows * row_bytes))
    borders = [*range(0, rows, step), rows]
    return Blocks(rows, _from_arrays(inputs, targets, borders))


def aligned(blocks: Iterable[Batch], chunk_rows: int) -> Iterator[Batch]:
    """Cut and join blocks so that each has a multiple of `chunk_rows` rows; only the last may have another number.

    No row of a block is kept by reference once the next is asked for, so a source may use its buffers again.
    """
    pending: list[Batch] = []
    rows = 0
    for block in blocks:
        pending.append(block)
        rows += len(block[0])
        if rows >= chunk_rows:
            inputs, targets = _joined(pending)
            cut = rows - rows % chunk_rows
            yield inputs[:cut], targets[:cut]
            pending, rows = [(inputs[cut:], targets[cut:])], rows - cut
        last_inputs, last_targets = pending.pop()
        if len(last_inputs):
            pending.append((last_inputs.copy(), last_targets.copy()))
    if rows:
        yield _joined(pending)


def _joined(pending: list[Batch]) -> Batch:
    if len(pending) == 1:
        return pending[0]
    return np.concatenate([one for one, _ in pending]), np.concatenate([one for _, one in pending])


def sliceable(name: str, value: Any) -> Any:
    """Something with shape, dtype and slices of rows: as it is (NumPy, Dask, Zarr, HDF5), else made an array."""
    if not hasattr(value, "shape") or not isinstance(getattr(value, "dtype", None), np.dtype):
        value = np.asarray(value)
    if not value.shape:
        raise ArgumentError(f"{name}: an array of rows is needed, found one number")
    return value


def _from_arrays(inputs: Any, targets: Any, borders: list[int]) -> Iterator[Batch]:
    for start, stop in itertools.pairwise(borders):
        yield np.asarray(inputs[start:stop]), np.asarray(targets[start:stop])


def _grouped(chunks: Iterable[int], row_bytes: int) -> list[int]:
    """Borders of runs of Dask blocks of about `BLOCK_BYTES` together, from 0 to the end."""
    borders, rows = [0], 0
    for chunk in chunks:
        if rows > borders[-1] and (rows + chunk - borders[-1]) * row_bytes > BLOCK_BYTES:
            borders.append(rows)
        rows += chunk
    return [*borders, rows]


def _from_dask(inputs: Any, targets: Any, borders: list[int]) -> Iterator[Batch]:
    for start, stop in itertools.pairwise(borders):
        yield _checked_pair(_computed(inputs[start:stop], targets[start:stop]), start)


def _computed(inputs: Any, targets: Any) -> Any:
    """Compute both at once, so that what they share is computed once."""
    from dask.base import compute

    together: Any = compute
    return together(inputs, targets)


def _from_unknown_dask(inputs: Any, targets: Any) -> Iterator[Batch]:
    """Block by block, where Dask does not know how many rows a block has."""
    counts = [value.numblocks[0] if is_dask_array(value) else 0 for value in (inputs, targets)]
    if 0 in counts or counts[0] != counts[1]:
        raise ArgumentError(
            "inputs, targets: Dask does not know the rows of each block, and the blocks cannot be paired "
            f"({counts[0]} and {counts[1]}); call compute_chunk_sizes() on them first"
        )

    def pairs() -> Iterator[Batch]:
        first_row = 0
        for number in range(counts[0]):
            block = _checked_pair(_computed(inputs.blocks[number], targets.blocks[number]), first_row)
            first_row += len(block[0])
            yield block

    return pairs()


def _from_iterator(pairs: Iterator[Any]) -> Iterator[Batch]:
    expected: list[tuple[Any, ...]] = []
    first_row = 0
    for pair in pairs:
        block = _checked_pair(pair, first_row)
        found = [(rows.dtype, rows.shape[1:]) for rows in block]
        expected = expected or found
        for name, one, other in zip(("inputs", "targets"), expected, found, strict=True):
            if one != other:
                raise ArgumentError(
                    f"{name}: the block at row {first_row} has rows of {other[0]} {other[1]}, "
                    f"the first block {one[0]} {one[1]}; give all blocks one dtype and shape"
                )
        first_row += len(block[0])
        yield block


def _checked_pair(pair: Any, first_row: int) -> Batch:
    try:
        inputs, targets = pair
    except (TypeError, ValueError):
        raise ArgumentError(
            f"inputs: blocks of (inputs, targets) are needed, the one at row {first_row} is a {type(pair).__name__}"
        ) from None
    block: tuple[npt.NDArray[Any], npt.NDArray[Any]] = np.asarray(inputs), np.asarray(targets)
    if not block[0].ndim or not block[1].ndim or len(block[0]) != len(block[1]):
        raise ArgumentError(
            f"inputs, targets: lengths differ in the block at row {first_row}, "
            f"shapes {block[0].shape} and {block[1].shape}"
        )
    checks.stored_dtype("inputs", block[0].dtype)
    checks.stored_dtype("targets", block[1].dtype)
    return block
