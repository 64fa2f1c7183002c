"""The Zarr store: where it is, what is in it, and the mark that says it is complete.

This is the only file that calls Zarr by name, and it imports Zarr when a store is first touched: that costs 170 ms,
half as much again as `dask.distributed` itself, and who trains on NumPy arrays never needs it.

A store that `write_dataset` made carries a mark in the attributes of its group, written in two parts::

    before the first row   {"dask_belief": {"format": 1}}
    after the last one     {"dask_belief": {"format": 1, "n_rows": ..., "transform": ..., "target_range": ...}}

so that one whose writing broke off is told from a complete one. Stores made by other software carry no mark and are
read as they are.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from dask_belief.data.checks import Range
from dask_belief.data.plain_chunks import PlainChunks
from dask_belief.data.transform import Scale
from dask_belief.errors import ArgumentError, DataError, MissingStoreError

if TYPE_CHECKING:
    import zarr
    from zarr.abc.store import Store
    from zarr.storage import StorePath

Address: TypeAlias = "str | Store | StorePath"
StoreLike: TypeAlias = "str | os.PathLike[str] | Store | StorePath | zarr.Group"

MARK = "dask_belief"
FORMAT = 1


@dataclass(frozen=True)
class Mark:
    """What a store says about itself.

    Attributes
    ----------
    n_rows
        Rows written.
    transform
        From stored inputs to those that are trained on.
    target_range
        The lowest and the highest target.
    """

    n_rows: int
    transform: Scale
    target_range: Range

    def to_attributes(self) -> dict[str, Any]:
        """The attribute of the group, as plain JSON."""
        return {
            "format": FORMAT,
            "n_rows": self.n_rows,
            "transform": self.transform.to_config(),
            "target_range": list(self.target_range),
        }


def address_of(store: StoreLike) -> Address:
    """What other processes need to find `store`: an absolute path or a URL where there is one.

    Raises
    ------
    ArgumentError
        If `store` is neither a path, a URL nor something of Zarr's.
    """
    if isinstance(store, str) and "://" in store:
        return store
    if isinstance(store, (str, os.PathLike)) and os.fspath(store):
        return os.path.abspath(os.path.expanduser(os.fspath(store)))
    if "zarr" in sys.modules:
        import zarr
        from zarr.abc.store import Store
        from zarr.storage import LocalStore, StorePath

        found = store.store_path if isinstance(store, zarr.Group) else store
        place, path = (found.store, found.path) if isinstance(found, StorePath) else (found, "")
        if isinstance(place, LocalStore):
            return os.path.join(os.path.abspath(place.root), path) if path else os.path.abspath(place.root)
        if isinstance(found, (Store, StorePath)):
            return found
    raise ArgumentError(f"store: a path, a URL or a Zarr store is needed, found {store!r}")


def require_sendable(address: Address) -> None:
    """Check that another process can open `address`.

    Raises
    ------
    ArgumentError
        If it lives in the memory of this process.
    """
    if isinstance(address, str):
        return
    from zarr.storage import MemoryStore

    if isinstance(getattr(address, "store", address), MemoryStore):
        raise ArgumentError(
            "store: this data set lies in a MemoryStore, which other processes cannot open; "
            "write it to a path or a URL that all workers reach"
        )


def open_group(address: Address) -> zarr.Group:
    """Open the group at `address`, of Zarr format 2 or 3, for reading.

    Raises
    ------
    MissingStoreError
        If there is no group.
    DataError
        If what is there cannot be read as a Zarr group.
    ArgumentError
        If a package for this kind of URL is not installed.
    """
    import zarr
    from zarr.errors import ContainsArrayError

    try:
        return zarr.open_group(address, mode="r")
    except FileNotFoundError:
        raise MissingStoreError(
            f"store: there is no Zarr group at {address}; check the path, and that this machine can see it"
        ) from None
    except ContainsArrayError:
        raise DataError(f"store: {address} is a single array; give the group that holds inputs and targets") from None
    except ImportError as error:
        raise ArgumentError(f"store: {address} needs a package that is missing: {error}") from error
    except ValueError as error:
        raise DataError(f"store: {address} cannot be opened as a Zarr group: {error}; check the path") from error


def open_array(group: zarr.Group, name: str, address: Address) -> zarr.Array[Any]:
    """Open the array `name` of a group.

    Raises
    ------
    MissingStoreError
        If the group has no such array.
    """
    import zarr

    found = group.get(name)
    if isinstance(found, zarr.Array):
        return found
    there = sorted(key for key, _ in group.arrays())
    raise MissingStoreError(
        f"{name}: {address} has no array of this name; it has {', '.join(there) or 'none'}; "
        "name them with inputs= and targets="
    )


def read_mark(group: zarr.Group, address: Address) -> Mark | None:
    """What the store says about itself; None when other software wrote it.

    Raises
    ------
    DataError
        If its writing broke off, or a newer version of this package wrote it.
    """
    found: Any = group.attrs.get(MARK)
    if not isinstance(found, Mapping):
        return None
    if found.get("format") != FORMAT:
        raise DataError(f"store: {address} has format {found.get('format')}, this version reads {FORMAT}; upgrade")
    if "n_rows" not in found:
        raise DataError(
            f"store: {address} is not complete, its writing broke off or goes on; write it again with overwrite=True"
        )
    try:
        low, high = found["target_range"]
        return Mark(int(found["n_rows"]), Scale.from_config(found["transform"]), (float(low), float(high)))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"store: the attribute {MARK} of {address} is damaged ({error!r}); write the data set again"
        ) from error


def refuse_existing(address: Address, overwrite: bool) -> None:
    """Check that a data set may be written to `address`.

    Raises
    ------
    ArgumentError
        If something is there that may not be replaced. Never replaced is a folder of other files: a slip in the path
        would empty it.
    """
    import zarr

    try:
        zarr.open(address, mode="r")
    except (FileNotFoundError, ValueError):
        if isinstance(address, str) and (os.path.isfile(address) or (os.path.isdir(address) and os.listdir(address))):
            raise ArgumentError(f"store: {address} holds files that are not Zarr's; choose another path") from None
        return
    if not overwrite:
        raise ArgumentError(f"store: there is a Zarr store at {address}; choose another path, or pass overwrite=True")


def create_group(address: Address, overwrite: bool) -> zarr.Group:
    """Create an empty group, in Zarr format 3, that is marked as not complete."""
    import zarr

    return zarr.create_group(address, overwrite=overwrite, zarr_format=3, attributes={MARK: {"format": FORMAT}})


def create_array(
    group: zarr.Group, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], chunk_rows: int, codec: Any
) -> zarr.Array[Any]:
    """Create an array that is chunked along axis 0 alone, with native bytes and every chunk written.

    Zarr leaves out chunks of zeros unless told otherwise, and reads a chunk that is not there as the fill value. So
    all chunks are written, and a lost one of floats reads as NaN, which no training overlooks.
    """
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype.newbyteorder("="),
        chunks=(chunk_rows, *shape[1:]),
        compressors=codec,
        fill_value=math.nan if dtype.kind == "f" else 0,
        config={"write_empty_chunks": True},
    )


def require_codec(compressor: Any) -> Any:
    """The codec that an argument `compressor` means.

    Raises
    ------
    ArgumentError
        If it is a name that is not known.
    """
    if not isinstance(compressor, str):
        return compressor
    from zarr.codecs import BloscCodec

    # By name: newer versions of Zarr know no enumeration of them.
    if compressor == "lz4":
        return BloscCodec(cname="lz4", clevel=5)
    if compressor == "zstd":
        return BloscCodec(cname="zstd", clevel=5)
    raise ArgumentError(f"compressor: None, 'lz4', 'zstd' or a codec of Zarr's is needed, found {compressor!r}")


class StoredRows:
    """The rows of one array, read by runs, as they are stored; safe from several threads.

    Parameters
    ----------
    array
        Chunked along axis 0 alone.
    """

    def __init__(self, array: zarr.Array[Any]) -> None:
        self._array = array
        self._plain = plain_chunks(array)

    @property
    def is_plain(self) -> bool:
        """Whether a part of a chunk can be read without the rest of it."""
        return self._plain is not None

    def read(self, start: int, stop: int, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Read rows as they are stored, into `out` when it is given (C-contiguous, of the array's dtype).

        Raises
        ------
        DataError
            If a chunk cannot be decoded; errors of the operating system and of the network are left as they are.
        """
        if self._plain is not None:
            rows = np.empty((stop - start, *self._plain.row_shape), self._plain.dtype) if out is None else out
            if self._plain.read(start, stop, rows):
                return rows
        return read_rows(self._array, start, stop, out)

    def advise(self, start: int, stop: int) -> None:
        """Ask the system to bring rows near, where they are plain files; does not wait."""
        if self._plain is not None:
            self._plain.advise(start, stop)


def plain_chunks(array: zarr.Array[Any]) -> PlainChunks | None:
    """Find the files of an array that are its chunks as they are; None where something has to be decoded."""
    from zarr.storage import LocalStore

    store, metadata = array.store_path.store, array.metadata.to_dict()
    if type(store) is not LocalStore or not array.shape or not array.dtype.isnative:
        return None
    if metadata["zarr_format"] == 2:
        is_plain = not metadata["compressor"] and not metadata["filters"] and metadata["order"] == "C"
    else:
        codecs: Any = metadata["codecs"]
        is_plain = len(codecs) == 1 and codecs[0]["name"] == "bytes" and not metadata["storage_transformers"]
        is_plain = is_plain and codecs[0].get("configuration", {}).get("endian", sys.byteorder) == sys.byteorder
    if not is_plain or any(chunk != size for chunk, size in zip(array.chunks[1:], array.shape[1:], strict=True)):
        return None
    zeros = (0,) * (len(array.shape) - 1)
    return PlainChunks(
        folder=os.path.join(store.root, array.store_path.path),
        key=lambda number: array.metadata.encode_chunk_key((number, *zeros)),
        chunk_rows=array.chunks[0],
        row_shape=array.shape[1:],
        dtype=np.dtype(array.dtype),
    )


def read_rows(array: zarr.Array[Any], start: int, stop: int, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
    """Read rows by Zarr; see `StoredRows.read`."""
    from zarr.buffer.cpu import NDBuffer

    where = f"reading rows {start} to {stop} of {array.store_path}"
    try:
        if out is None:
            return array[start:stop]  # type: ignore[return-value]
        array.get_basic_selection(slice(start, stop), out=NDBuffer.from_numpy_array(out))
        return out
    except OSError as error:
        error.add_note(f"while {where}")
        raise
    except (ValueError, RuntimeError, TypeError) as error:
        raise DataError(f"store: {where} failed: {error}; a chunk is damaged, write the data set again") from error
