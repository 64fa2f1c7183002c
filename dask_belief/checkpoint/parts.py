"""Parts of saved vectors: what they are called, where they are, and how a wrong one is told from a right one.

Each part is an array of Zarr format 3 with one chunk and no compression: a file of metadata and a file of values, of
two lines of JSON that never change. They are written as such, without Zarr: it would take its event loop and threads to
every worker, and reading them by their digests needs nothing of the metadata, damaged or not.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dask_belief.errors import ArgumentError, CheckpointError

Vector = NDArray[np.floating]

CHUNK = "c/0"
FOLDER = "vectors"

_NAME = re.compile(r"[A-Za-z0-9_-]+(:[A-Za-z0-9_-]+)*@(?P<number>[0-9]+)")
_OF_BYTES = {2: "float16", 4: "float32", 8: "float64"}
_DIGITS_IN_PATH = 16


@dataclass(frozen=True)
class Part:
    """A part of a saved vector.

    Attributes
    ----------
    start, stop
        The values of the whole vector that it holds.
    digest
        Of name, dtype, place and values, see `digest_of`; empty where parts are kept in memory.
    """

    start: int
    stop: int
    digest: str


def number_in(name: str) -> int:
    """The number in the name of a vector, 12 in ``"x@12"``.

    Raises
    ------
    ArgumentError
        When it is no name that a vector may have.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise ArgumentError(f'name: letters, digits, "-", "_" and ":", then "@" and a number are needed, got {name!r}.')
    return int(found["number"])


def path_of(name: str, part: Part) -> str:
    """Where the array of a part is, within the checkpoint's folder.

    A colon is forbidden on some systems and means something else in some URLs.
    """
    return f"{FOLDER}/{name.replace(':', '.')}/{part.start}-{part.digest[:_DIGITS_IN_PATH]}"


def number_in_path(path: str) -> int | None:
    """The number in the name of the vector that a file below `FOLDER` belongs to; None for any other file."""
    name = path.removeprefix(f"{FOLDER}/").partition("/")[0]
    found = _NAME.fullmatch(name.replace(".", ":"))
    return None if found is None else int(found["number"])


def bytes_of(values: Vector) -> tuple[str, memoryview]:
    """The dtype and the values as they are stored: little-endian, whatever the machine; no copy where it is so."""
    dtype = values.dtype.newbyteorder("<")
    if dtype.kind != "f" or values.ndim != 1 or dtype.itemsize not in _OF_BYTES or not len(values):
        raise ArgumentError(f"values: a vector of floats is needed, got {values.dtype} of shape {values.shape}.")
    return dtype.name, np.ascontiguousarray(values, dtype).data.cast("B")


def digest_of(name: str, start: int, stop: int, dtype: str, data: bytes | memoryview) -> str:
    """32 hexadecimal digits that are others for any other values, name, dtype or place.

    BLAKE2b takes 12.5 ms for 16 MiB (1.3 GB/s; SHA-256 1.8 GB/s where the processor has instructions for it, a third
    of that where not; CRC-32 6 GB/s) beside about 45 ms for writing them. A CRC overlooks one random damage in four
    thousand million, and anyone can make another; of 128 bits, none.
    """
    digest = hashlib.blake2b(json.dumps([name, start, stop, dtype]).encode(), digest_size=16)
    digest.update(data)
    return digest.hexdigest()


def values_of(name: str, part: Part, data: bytes) -> Vector:
    """The values of a part, of its dtype; not writable.

    Raises
    ------
    CheckpointError
        When they are not those that were written.
    """
    where = f"values {part.start} to {part.stop} of {name}"
    n_values = part.stop - part.start
    n_bytes, rest = divmod(len(data), n_values)
    if rest or n_bytes not in _OF_BYTES:
        raise CheckpointError(f"{where} are {len(data)} bytes long, which is too short or too long")
    dtype = _OF_BYTES[n_bytes]
    if digest_of(name, part.start, part.stop, dtype, data) != part.digest:
        raise CheckpointError(f"{where} are not those that were written: their digest is another")
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).astype(dtype, copy=False)


def check_whole(name: str, parts: Sequence[Part]) -> None:
    """Check that parts, in order, make up a whole vector.

    Raises
    ------
    CheckpointError
        When something is missing or is there twice.
    """
    stop = 0
    for part in parts:
        if part.start != stop or part.stop <= part.start:
            raise CheckpointError(f"{name} has no part that begins at {stop}, but one from {part.start} to {part.stop}")
        stop = part.stop
    if not parts:
        raise CheckpointError(f"{name} has no part")


def array_metadata(n_values: int, dtype: str) -> bytes:
    """The ``zarr.json`` of a part."""
    return _json(
        {
            "shape": [n_values],
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [n_values]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            # A chunk that is lost reads as this, in Zarr.
            "fill_value": "NaN",
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
            "attributes": {},
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }
    )


def group_metadata(attributes: dict[str, object]) -> bytes:
    """The ``zarr.json`` of the checkpoint's folder."""
    return _json({"attributes": attributes, "zarr_format": 3, "node_type": "group"})


def _json(metadata: dict[str, object]) -> bytes:
    return json.dumps(metadata, indent=2).encode()
