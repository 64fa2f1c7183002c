"""`write_dataset`: any source of rows becomes one chunked Zarr store, without all of it in memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from dask_belief.data import checks
from dask_belief.data.batches import Batch
from dask_belief.data.blocks import aligned, row_blocks
from dask_belief.data.checks import Range
from dask_belief.data.store import (
    MARK,
    Mark,
    StoreLike,
    address_of,
    create_array,
    create_group,
    refuse_existing,
    require_codec,
)
from dask_belief.data.transform import Scale
from dask_belief.data.zarr_dataset import ZarrDataset
from dask_belief.errors import ArgumentError, DataError, EmptyDataError

if TYPE_CHECKING:
    import zarr

# Of an iterator nobody knows the length, so its arrays grow by this many chunks at a time (each growth rewrites the
# metadata, each chunk too many costs a delete at the end).
GROWTH_CHUNKS = 64

# What Zarr's codecs and most object stores take in one piece.
LARGEST_CHUNK_BYTES = 2**31 - 1


def write_dataset(
    store: StoreLike,
    inputs: Any,
    targets: Any = None,
    *,
    chunk_rows: int,
    scale: float = 1.0,
    offset: float = 0.0,
    compressor: Any = None,
    overwrite: bool = False,
) -> ZarrDataset:
    """Write inputs and targets to a Zarr store (format 3), chunk by chunk.

    Values keep their dtype. The store is marked as complete when the last row is in; one whose writing broke off is
    refused when it is opened.

    Parameters
    ----------
    store
        A local path, a URL that fsspec knows, or a Zarr store.
    inputs, targets
        Arrays of equal length: NumPy, Dask (computed a few blocks at a time on the current scheduler, inputs and
        targets together), or anything with ``shape``, ``dtype`` and slices of rows, such as a Zarr or HDF5 array. Or
        no `targets`, and for `inputs` an iterator of ``(inputs, targets)`` blocks of any number of rows, all of one
        dtype and row shape. About 64 MiB, or one block of the source if that is more, are held at once.
    chunk_rows
        Rows of a chunk. Reading is fastest with chunks of about 1 to 8 MiB.
    scale, offset
        What turns stored inputs into those that are trained on, ``stored * scale + offset``, applied when they are
        read. Store images as bytes with ``scale=1/255``.
    compressor
        None, ``"lz4"``, ``"zstd"`` or a codec of Zarr's. None, the default, is chosen for training speed: from a local
        disk, uncompressed floats were read two to four times as fast as with LZ4 and five times as fast as with Zarr's
        own default, Zstandard, and decoding takes the processor from the training. Choose ``"lz4"`` where the network
        or the disk gives less than about 0.5 GB/s.
    overwrite
        Whether to replace a Zarr store that is there. A folder that holds other files is never replaced.

    Returns
    -------
    ZarrDataset
        What was written, opened.

    Raises
    ------
    ArgumentError
        If lengths differ, blocks differ in dtype or row shape, or a store is there and `overwrite` is False.
    EmptyDataError
        If there are no rows.
    NonFiniteDataError
        If a value is NaN or infinite; names the array and the row.
    DataError
        If a dtype is no number's.

    Examples
    --------
    >>> import numpy as np
    >>> images = np.zeros((10, 28, 28), dtype=np.uint8)
    >>> data = write_dataset("memory://doc-write.zarr", images, np.arange(10), chunk_rows=4, scale=1 / 255)
    >>> data.n_rows, data.chunk_rows, data.input_shape, data.target_range()
    (10, 4, (28, 28), (0.0, 9.0))
    """
    chunk_rows = checks.row_count("chunk_rows", chunk_rows)
    transform = Scale(scale, offset)
    codec = require_codec(compressor)
    address = address_of(store)
    refuse_existing(address, overwrite)
    source = row_blocks(inputs, targets, chunk_rows)
    # The first block is taken before the store is touched: most mistakes show in it.
    blocks = aligned(source.stream, chunk_rows)
    first = next(blocks, None)
    if first is None:
        raise EmptyDataError("inputs: there are no rows to write")
    _require_rows(first, chunk_rows)
    _require_finite(first, 0)
    group = create_group(address, overwrite)
    writer = _Writer(group, first, chunk_rows, source.n_rows, codec)
    writer.append(first)
    for block in blocks:
        writer.append(block)
    n_rows, target_range = writer.finish()
    group.attrs[MARK] = Mark(n_rows, transform, target_range).to_attributes()
    return ZarrDataset(address)


def default_chunk_rows(row_bytes: int) -> int:
    """Rows of a chunk of about 4 MiB, which is read at full speed and shared out finely enough."""
    return max(1, 4 * 2**20 // max(1, row_bytes))


class _Writer:
    """Appends aligned blocks to the two arrays and keeps the range of the targets."""

    def __init__(self, group: zarr.Group, like: Batch, chunk_rows: int, n_rows: int | None, codec: Any) -> None:
        self._n_rows = n_rows
        self._chunk_rows = chunk_rows
        self._position = 0
        self._target_range: Range | None = None
        self._size = n_rows or len(like[0])
        self._arrays = tuple(
            create_array(group, name, (self._size, *rows.shape[1:]), rows.dtype, chunk_rows, codec)
            for name, rows in zip(("inputs", "targets"), like, strict=True)
        )

    def append(self, block: Batch) -> None:
        """Write the next rows; all blocks but the last end on a chunk border."""
        stop = self._position + len(block[0])
        _require_finite(block, self._position)
        self._target_range = checks.widened(self._target_range, block[1], self._position)
        if stop > self._size:
            self._resize(stop + GROWTH_CHUNKS * self._chunk_rows)
        for array, rows in zip(self._arrays, block, strict=True):
            array[self._position : stop] = rows
        self._position = stop

    def finish(self) -> tuple[int, Range]:
        """Cut the arrays to the rows that came; gives their number and the range of the targets."""
        if self._n_rows is not None and self._n_rows != self._position:
            raise DataError(
                f"inputs: {self._n_rows} rows were announced and {self._position} came; "
                "the source changed while it was read, write it again"
            )
        if self._size != self._position:
            self._resize(self._position)
        assert self._target_range is not None, "rows without a target are refused before"
        return self._position, self._target_range

    def _resize(self, n_rows: int) -> None:
        for array in self._arrays:
            array.resize((n_rows, *array.shape[1:]))
        self._size = n_rows


def _require_rows(block: Batch, chunk_rows: int) -> None:
    """Check the rows of the first block: numbers, at least one a row, chunks of a size that can be written."""
    rows: npt.NDArray[Any]
    for name, rows in zip(("inputs", "targets"), block, strict=True):
        checks.stored_dtype(name, rows.dtype)
        row_bytes = math.prod(rows.shape[1:]) * rows.dtype.itemsize
        if not row_bytes:
            raise ArgumentError(f"{name}: rows of shape {rows.shape[1:]} hold no number")
        if chunk_rows * row_bytes > LARGEST_CHUNK_BYTES:
            raise ArgumentError(
                f"chunk_rows: {chunk_rows} rows of {name} are {chunk_rows * row_bytes:,} bytes, a chunk can have "
                f"{LARGEST_CHUNK_BYTES:,}; use {default_chunk_rows(row_bytes)}"
            )


def _require_finite(block: Batch, first_row: int) -> None:
    for name, rows in zip(("inputs", "targets"), block, strict=True):
        checks.require_finite(name, rows, first_row)
