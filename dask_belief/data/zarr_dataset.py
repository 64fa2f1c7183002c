"""`ZarrDataset`: inputs and targets in one Zarr group, larger than memory, read by runs of rows."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from dask_belief.data import checks
from dask_belief.data.batches import Batch
from dask_belief.data.checks import Range
from dask_belief.data.store import (
    Address,
    StoredRows,
    StoreLike,
    address_of,
    open_array,
    open_group,
    read_mark,
    require_sendable,
)
from dask_belief.data.transform import Scale
from dask_belief.errors import ArgumentError, DataError, EmptyDataError

# Rows are read in spans of about this many stored bytes, at least one chunk. From a local disk short spans are
# faster (float32 chunks of 3 MB: 6.6 GB/s one by one, 4.0 four at a time), and the copy that a cast needs stays in
# the processor's cache. Over a network many chunks have to be under way at once.
LOCAL_SPAN_BYTES = 4 * 2**20
REMOTE_SPAN_BYTES = 64 * 2**20

# Parts of one chunk are usually read one after the other, and where something has to be decoded, each part costs the
# decoding of the whole chunk. The last chunk that was read in part is kept, as stored, unless it is larger than this.
RECENT_CHUNK_BYTES = 128 * 2**20


class ZarrDataset:
    """Training data in a Zarr group, of format 2 or 3, with two arrays that are chunked along axis 0 alone.

    Opening reads the metadata only and checks them. A data set pickles as its address, so it can be sent to workers
    that reach the store; reading is safe from several threads.

    Parameters
    ----------
    store
        A local path, a URL that fsspec knows (``s3://...``), a Zarr store or a Zarr group. A path is made absolute.
    inputs, targets
        The names of the two arrays within the group.
    transform
        How stored inputs become those that are trained on; None: as the store declares, else as they are.

    Attributes
    ----------
    n_rows
        Rows in each array.
    input_shape, target_shape
        The shape of one row; ``()`` for one number a row.
    input_dtype, target_dtype
        The dtypes as stored.
    chunk_rows
        Rows of a chunk, the same for both arrays.
    n_bytes
        Bytes of both arrays as stored, before compression.
    transform
        The transform in force.

    Raises
    ------
    MissingStoreError
        If there is no such group, or it lacks an array.
    EmptyDataError
        If there are no rows.
    DataError
        If lengths or chunks of the two arrays differ, rows are cut by chunks, a dtype is no number's, or the writing
        of the store broke off.

    Examples
    --------
    >>> from dask_belief.data import ZarrDataset, write_dataset
    >>> images = np.arange(24, dtype=np.uint8).reshape(6, 4)
    >>> data = write_dataset("memory://doc.zarr", images, np.arange(6) % 2, chunk_rows=2, scale=1 / 255, overwrite=True)
    >>> inputs, targets = ZarrDataset("memory://doc.zarr").read(2, 5)
    >>> inputs.shape, inputs.dtype.name, targets.tolist()
    ((3, 4), 'float32', [0, 1, 0])
    """

    def __init__(
        self, store: StoreLike, *, inputs: str = "inputs", targets: str = "targets", transform: Scale | None = None
    ) -> None:
        if transform is not None and not isinstance(transform, Scale):
            raise ArgumentError(f"transform: a Scale is needed, found {transform!r}")
        self._address: Address = address_of(store)
        self._names = (inputs, targets)
        group = open_group(self._address)
        mark = read_mark(group, self._address)
        self._inputs = open_array(group, inputs, self._address)
        self._targets = open_array(group, targets, self._address)
        self._input_rows, self._target_rows = StoredRows(self._inputs), StoredRows(self._targets)
        self._is_ours = mark is not None
        self._target_range: Range | None = mark.target_range if mark else None
        self.transform: Scale = transform or (mark.transform if mark else Scale())
        # (number, inputs, targets) of the last chunk that was read in part. Replaced as a whole, so it needs no lock:
        # a thread that finds another chunk there reads its own.
        self._recent: tuple[int, npt.NDArray[Any], npt.NDArray[Any]] | None = None
        self._check_arrays(mark.n_rows if mark else None)
        self.n_rows: int = self._inputs.shape[0]
        self.input_shape: tuple[int, ...] = self._inputs.shape[1:]
        self.target_shape: tuple[int, ...] = self._targets.shape[1:]
        self.input_dtype: np.dtype[Any] = np.dtype(self._inputs.dtype)
        self.target_dtype: np.dtype[Any] = np.dtype(self._targets.dtype)
        self.chunk_rows: int = min(self._inputs.chunks[0], self.n_rows)
        self.n_bytes: int = self.n_rows * self._stored_row_bytes

    def __repr__(self) -> str:
        return (
            f"ZarrDataset({str(self._address)!r}, n_rows={self.n_rows}, input_shape={self.input_shape}, "
            f"target_shape={self.target_shape}, chunk_rows={self.chunk_rows})"
        )

    def __reduce__(self) -> tuple[Callable[..., ZarrDataset], tuple[Any, ...]]:
        require_sendable(self._address)
        return _reopen, (self._address, *self._names, self.transform, self._target_range)

    @property
    def address(self) -> str:
        """Where the store is, as an absolute path or a URL."""
        return str(self._address)

    @property
    def is_direct(self) -> bool:
        """Whether rows lie in local files as they are, so that reading a few costs no more than their copying."""
        return self._input_rows.is_plain and self._target_rows.is_plain

    def advise(self, start: int, stop: int) -> None:
        """Tell the system that the rows `start` up to, not including, `stop` are wanted soon, and do not wait."""
        self._input_rows.advise(start, stop)
        self._target_rows.advise(start, stop)

    def row_bytes(self, dtype: npt.DTypeLike = np.float32) -> int:
        """Bytes of one row, inputs and targets, as `read` gives it in `dtype`."""
        return checks.decoded_row_bytes(self.input_shape, self.target_shape, self.target_dtype, dtype)

    def read(self, start: int, stop: int, dtype: npt.DTypeLike = np.float32) -> Batch:
        """Read and decode the rows `start` up to, not including, `stop`.

        Parameters
        ----------
        start, stop
            Rows; runs of whole chunks are read fastest.
        dtype
            float32 or float64, of the inputs and of targets that are stored as floats. Other targets come as int64.

        Returns
        -------
        tuple of numpy.ndarray
            Inputs ``(stop - start, *input_shape)``, scaled, and targets ``(stop - start, *target_shape)``, both
            C-contiguous and the caller's own.

        Raises
        ------
        ArgumentError
            If there are no such rows, or `dtype` is another one.
        DataError
            If a chunk is damaged.
        """
        run = checks.run_dtype(dtype)
        checks.row_range(start, stop, self.n_rows)
        inputs = np.empty((stop - start, *self.input_shape), run)
        targets = np.empty((stop - start, *self.target_shape), checks.decoded_dtype(self.target_dtype, run))
        part = self._part_of_chunk(start, stop)
        if part is not None:
            self.transform.decode(part[0], inputs)
            np.copyto(targets, part[1], casting="unsafe")
            return inputs, targets
        for low, high in self._spans(start, stop):
            out = inputs[low - start : high - start]
            # Zarr decodes into an array of the stored dtype without a copy of its own.
            if self.input_dtype.newbyteorder("=") == run:
                self.transform.apply_(self._input_rows.read(low, high, out=out))
            else:
                self.transform.decode(self._input_rows.read(low, high), out)
        if self.target_dtype.newbyteorder("=") == targets.dtype:
            self._target_rows.read(start, stop, out=targets)
        else:
            np.copyto(targets, self._target_rows.read(start, stop), casting="unsafe")
        return inputs, targets

    def target_range(self) -> Range | None:
        """The lowest and the highest target: as the store declares, else found by one pass over the targets.

        Returns
        -------
        tuple of float or None
            None when a row has no target.

        Raises
        ------
        NonFiniteDataError
            If a target is NaN or infinite.
        """
        if self._target_range is None:
            found: Range | None = None
            for start, stop in self._spans(0, self.n_rows):
                found = checks.widened(found, self._target_rows.read(start, stop), start)
            self._target_range = found
        return self._target_range

    def check(self, nan: bool = False) -> None:
        """Open the store again and check it; with ``nan=True`` read all of it and look for what is not finite.

        Raises
        ------
        MissingStoreError, EmptyDataError, DataError
            As on opening; also if chunks are missing from a store that `write_dataset` made.
        NonFiniteDataError
            If inputs or targets hold NaN or infinity; names the array and the first such row.
        """
        _reopen(self._address, *self._names, self.transform, None)
        if not nan:
            return
        stored = (self._inputs, self._input_rows), (self._targets, self._target_rows)
        for name, (array, rows) in zip(self._names, stored, strict=True):
            # Zarr reads a chunk that is not there as zeros. Other software leaves chunks out on purpose; we do not.
            missing = array.nchunks - array.nchunks_initialized
            if self._is_ours and missing:
                raise DataError(f"{name}: {missing} of {array.nchunks} chunks are missing; write the data set again")
            if array.dtype.kind == "f":
                for start, stop in self._spans(0, self.n_rows):
                    checks.require_finite(name, rows.read(start, stop), start)

    @property
    def _stored_row_bytes(self) -> int:
        inputs = math.prod(self.input_shape) * self.input_dtype.itemsize
        return inputs + math.prod(self.target_shape) * self.target_dtype.itemsize

    def _spans(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Cut rows at chunk borders into spans that are read at once."""
        span_bytes = LOCAL_SPAN_BYTES if os.path.isabs(self.address) else REMOTE_SPAN_BYTES
        chunks = max(1, span_bytes // max(1, self.chunk_rows * self._stored_row_bytes))
        while start < stop:
            border = min(stop, (start // self.chunk_rows + chunks) * self.chunk_rows)
            yield start, border
            start = border

    def _part_of_chunk(self, start: int, stop: int) -> Batch | None:
        """The rows as stored when they are a part of one chunk that is worth keeping; None otherwise."""
        if self.is_direct:
            return None
        number = start // self.chunk_rows
        first = number * self.chunk_rows
        last = min(first + self.chunk_rows, self.n_rows)
        is_whole = (start, stop) == (first, last)
        if stop > last or stop == start or is_whole or self.chunk_rows * self._stored_row_bytes > RECENT_CHUNK_BYTES:
            return None
        recent = self._recent
        if recent is None or recent[0] != number:
            recent = (number, self._input_rows.read(first, last), self._target_rows.read(first, last))
            self._recent = recent
        return recent[1][start - first : stop - first], recent[2][start - first : stop - first]

    def _check_arrays(self, n_rows_written: int | None) -> None:
        """Check the metadata of the two arrays; see the class for what is raised."""
        for name, array in zip(self._names, (self._inputs, self._targets), strict=True):
            checks.stored_dtype(name, array.dtype)
            if not array.shape:
                raise DataError(f"{name}: the array is one number; its first axis has to be the rows")
            if any(chunk < size for chunk, size in zip(array.chunks[1:], array.shape[1:], strict=True)):
                raise DataError(
                    f"{name}: chunks {array.chunks} cut the rows of an array of shape {array.shape}; "
                    "chunk it along axis 0 alone (write_dataset does)"
                )
        rows, target_rows = self._inputs.shape[0], self._targets.shape[0]
        inputs, targets = self._names
        if rows != target_rows:
            raise DataError(f"{inputs} and {targets}: lengths differ, {rows} and {target_rows} rows; write them again")
        if not rows:
            raise EmptyDataError(f"store: {self._address} has no rows")
        if not math.prod(self._inputs.shape[1:]):
            raise DataError(f"{inputs}: rows of shape {self._inputs.shape[1:]} hold no number")
        chunk, target_chunk = min(self._inputs.chunks[0], rows), min(self._targets.chunks[0], rows)
        if chunk != target_chunk:
            raise DataError(
                f"{inputs} and {targets}: mismatched chunks, {chunk} and {target_chunk} rows; "
                "chunk both alike (write_dataset does)"
            )
        if n_rows_written is not None and n_rows_written != rows:
            raise DataError(
                f"store: {self._address} was completed with {n_rows_written} rows and has {rows} now; write it again"
            )


def _reopen(address: Address, inputs: str, targets: str, transform: Scale, target_range: Range | None) -> ZarrDataset:
    """Open a data set that was pickled; what its owner knows of the targets is kept."""
    dataset = ZarrDataset(address, inputs=inputs, targets=targets, transform=transform)
    if target_range is not None:
        dataset._target_range = target_range
    return dataset
