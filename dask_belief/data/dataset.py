"""What training asks of a data set, and the one that lies in memory."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import weakref
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from dask_belief.data import checks
from dask_belief.data.batches import Batch
from dask_belief.data.blocks import is_dask_array, sliceable
from dask_belief.data.checks import Range
from dask_belief.data.store import StoreLike
from dask_belief.data.transform import Scale
from dask_belief.data.write import default_chunk_rows, write_dataset
from dask_belief.data.zarr_dataset import ZarrDataset
from dask_belief.errors import ArgumentError, EmptyDataError

__all__ = ["ArrayDataset", "Dataset", "DatasetLike", "DirectDataset", "ZarrDataset", "as_dataset"]

logger = logging.getLogger(__name__)


@runtime_checkable
class Dataset(Protocol):
    """Rows of inputs and targets that are read by runs; `ZarrDataset` says what each member means."""

    @property
    def n_rows(self) -> int:
        """Rows, one or more."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one row of inputs."""

    @property
    def target_shape(self) -> tuple[int, ...]:
        """The shape of one row of targets; ``()`` for one number."""

    @property
    def input_dtype(self) -> np.dtype[Any]:
        """The dtype of inputs as stored."""

    @property
    def target_dtype(self) -> np.dtype[Any]:
        """The dtype of targets as stored."""

    @property
    def chunk_rows(self) -> int:
        """Rows of a chunk, in which reading is cheapest."""

    @property
    def n_bytes(self) -> int:
        """Bytes of all rows as stored, before compression."""

    @property
    def transform(self) -> Scale:
        """From stored inputs to those that `read` gives."""

    def row_bytes(self, dtype: npt.DTypeLike = np.float32) -> int:
        """Bytes of one row as `read` gives it in `dtype`."""

    def read(self, start: int, stop: int, dtype: npt.DTypeLike = np.float32) -> Batch:
        """Give the rows `start` up to, not including, `stop`: C-contiguous, the caller's own."""

    def target_range(self) -> Range | None:
        """The lowest and the highest target; None when a row has no target."""

    def check(self, nan: bool = False) -> None:
        """Raise if the data cannot be trained on; ``nan=True`` looks at every value."""


@runtime_checkable
class DirectDataset(Dataset, Protocol):
    """A data set that may be read in small pieces, by who computes, as fast as in large ones."""

    @property
    def is_direct(self) -> bool:
        """Whether it is one: nothing has to be decoded but by a cast."""

    def advise(self, start: int, stop: int) -> None:
        """Tell the system that the rows `start` up to, not including, `stop` are wanted soon, and do not wait."""


DatasetLike: TypeAlias = "Dataset | StoreLike | tuple[Any, Any]"


class ArrayDataset:
    """Training data in memory: two NumPy arrays, used as they are and not copied.

    It pickles with its arrays, so every process that is sent one holds them all; write large ones to a store that
    the workers reach.

    Parameters
    ----------
    inputs
        Shape ``(n_rows, ...)``: booleans, integers or floats.
    targets
        Shape ``(n_rows, ...)``, likewise.
    chunk_rows
        Rows of a chunk, by which work units are cut; None: about 4 MiB.
    transform
        How inputs become those that are trained on.

    Raises
    ------
    EmptyDataError
        If there are no rows.
    ArgumentError
        If lengths differ.
    DataError
        If a dtype is no number's.

    Examples
    --------
    >>> data = ArrayDataset(np.eye(3), np.array([0, 1, 1]))
    >>> data.n_rows, data.input_shape, data.target_range()
    (3, (3,), (0.0, 1.0))
    """

    def __init__(
        self,
        inputs: npt.ArrayLike,
        targets: npt.ArrayLike,
        *,
        chunk_rows: int | None = None,
        transform: Scale | None = None,
    ) -> None:
        self._inputs, self._targets = np.asarray(inputs), np.asarray(targets)
        self.transform: Scale = transform or Scale()
        for name, rows in (("inputs", self._inputs), ("targets", self._targets)):
            checks.stored_dtype(name, rows.dtype)
            if not rows.ndim:
                raise ArgumentError(f"{name}: an array of rows is needed, found one number")
        if len(self._inputs) != len(self._targets):
            raise ArgumentError(f"inputs, targets: lengths differ, {len(self._inputs)} and {len(self._targets)} rows")
        self.n_rows: int = len(self._inputs)
        if not self.n_rows:
            raise EmptyDataError("inputs: there are no rows")
        if not self._inputs.size:
            raise ArgumentError(f"inputs: rows of shape {self._inputs.shape[1:]} hold no number")
        self.input_shape: tuple[int, ...] = self._inputs.shape[1:]
        self.target_shape: tuple[int, ...] = self._targets.shape[1:]
        self.input_dtype: np.dtype[Any] = self._inputs.dtype
        self.target_dtype: np.dtype[Any] = self._targets.dtype
        self.n_bytes: int = self._inputs.nbytes + self._targets.nbytes
        if chunk_rows is None:
            chunk_rows = default_chunk_rows(self.n_bytes // self.n_rows)
        self.chunk_rows: int = min(checks.row_count("chunk_rows", chunk_rows), self.n_rows)

    def __repr__(self) -> str:
        return (
            f"ArrayDataset(n_rows={self.n_rows}, input_shape={self.input_shape}, "
            f"target_shape={self.target_shape}, chunk_rows={self.chunk_rows})"
        )

    def __sizeof__(self) -> int:
        # What Dask counts against a worker's memory.
        return object.__sizeof__(self) + self.n_bytes

    @property
    def is_direct(self) -> bool:
        """True: rows lie in memory."""
        return True

    def advise(self, start: int, stop: int) -> None:
        """Do nothing: rows lie in memory."""

    def row_bytes(self, dtype: npt.DTypeLike = np.float32) -> int:
        """Bytes of one row, inputs and targets, as `read` gives it in `dtype`."""
        return checks.decoded_row_bytes(self.input_shape, self.target_shape, self.target_dtype, dtype)

    def read(self, start: int, stop: int, dtype: npt.DTypeLike = np.float32) -> Batch:
        """Copy the rows `start` up to, not including, `stop`; as `ZarrDataset.read`."""
        run = checks.run_dtype(dtype)
        checks.row_range(start, stop, self.n_rows)
        inputs = np.empty((stop - start, *self.input_shape), run)
        self.transform.decode(self._inputs[start:stop], inputs)
        return inputs, self._targets[start:stop].astype(checks.decoded_dtype(self.target_dtype, run), order="C")

    def target_range(self) -> Range | None:
        """The lowest and the highest target; None when a row has no target.

        Raises
        ------
        NonFiniteDataError
            If a target is NaN or infinite.
        """
        return checks.widened(None, self._targets, 0)

    def check(self, nan: bool = False) -> None:
        """Look for what is not finite, if ``nan=True``; all else was checked when the data set was made.

        Raises
        ------
        NonFiniteDataError
            If inputs or targets hold NaN or infinity; names the array and the first such row.
        """
        if nan:
            checks.require_finite("inputs", self._inputs, 0)
            checks.require_finite("targets", self._targets, 0)


def as_dataset(data: DatasetLike) -> Dataset:
    """Make a data set of whatever `dask_belief.train` is given.

    Parameters
    ----------
    data
        A data set as it is; a path, URL or Zarr store to open; or a tuple ``(inputs, targets)`` of arrays. A tuple
        of Dask arrays is written once to a temporary Zarr store on this machine, which is deleted with the data set
        that is returned; its path is logged. Write the store yourself where workers run on other machines.

    Returns
    -------
    Dataset
        Ready to be read.

    Raises
    ------
    ArgumentError
        If `data` is none of these.
    DataError
        If the data cannot be trained on; see `ZarrDataset` and `write_dataset`.
    """
    if isinstance(data, tuple):
        if len(data) != 2:
            raise ArgumentError(f"dataset: a tuple (inputs, targets) is needed, found one of {len(data)} items")
        if any(is_dask_array(rows) for rows in data):
            return _written_to_temporary(*data)
        return ArrayDataset(*data)
    if isinstance(data, Dataset):
        return data
    if isinstance(data, np.ndarray) or is_dask_array(data):
        raise ArgumentError("dataset: the targets are missing; give a tuple (inputs, targets)")
    return ZarrDataset(data)


def _written_to_temporary(inputs: Any, targets: Any) -> ZarrDataset:
    inputs, targets = sliceable("inputs", inputs), sliceable("targets", targets)
    folder = tempfile.mkdtemp(prefix="dask-belief-")
    try:
        path = os.path.join(folder, "data.zarr")
        logger.info("writing Dask arrays of shapes %s and %s to %s", inputs.shape, targets.shape, path)
        input_bytes = int(np.prod(inputs.shape[1:])) * inputs.dtype.itemsize
        dataset = write_dataset(path, inputs, targets, chunk_rows=default_chunk_rows(input_bytes))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(dataset, shutil.rmtree, folder, ignore_errors=True)
    return dataset
