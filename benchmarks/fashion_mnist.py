"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017) from Debian's package: 60,000 and 10,000 images of 28 by 28."""

from __future__ import annotations

import gzip
import math
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np

import dask_belief as db

PACKAGE = "dataset-fashion-mnist"
N_FEATURES = 784
N_CLASSES = 10
CHUNK_ROWS = 1000
_FILES = {"train": "train", "test": "t10k"}


class Rows(NamedTuple):
    """Images and classes: ``(n_rows, 784)`` uint8, and ``(n_rows,)`` int64 from 0 to 9."""

    inputs: np.ndarray
    targets: np.ndarray

    def scaled(self, dtype: type = np.float32) -> np.ndarray:
        """Give the images as floats from 0 to 1."""
        return np.divide(self.inputs, 255, dtype=dtype)


def load(part: str, n_rows: int | None = None) -> Rows:
    """Read ``"train"`` or ``"test"``, or its first rows; ends the program when the package is missing."""
    found = _installed()
    prefix = _FILES[part]
    inputs = _read_idx(found[f"{prefix}-images-idx3-ubyte.gz"]).reshape(-1, N_FEATURES)
    targets = _read_idx(found[f"{prefix}-labels-idx1-ubyte.gz"]).astype(np.int64)
    return Rows(inputs[:n_rows], targets[:n_rows])


def write_store(rows: Rows, path: Path) -> db.ZarrDataset:
    """Write images and classes as a Zarr store, scaled to 0 to 1 when it is read."""
    return db.write_dataset(path, rows.inputs, rows.targets, chunk_rows=CHUNK_ROWS, scale=1 / 255)


def _installed() -> dict[str, Path]:
    """Give the package's data files by name."""
    try:
        listing = subprocess.run(["dpkg", "-L", PACKAGE], capture_output=True, text=True).stdout
    except FileNotFoundError:
        listing = ""
    files = {path.name: path for path in map(Path, listing.splitlines()) if path.name.endswith("-ubyte.gz")}
    if len(files) < 2 * len(_FILES) or not all(path.is_file() for path in files.values()):
        raise SystemExit(
            f"NOTHING WAS MEASURED: this benchmark needs Fashion-MNIST from Debian's package {PACKAGE}, which is not "
            f"installed here.\nInstall it: apt-get install {PACKAGE}"
        )
    return files


def _read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of bytes: two zeros, type 8, the number of dimensions, each as a big-endian int32, the data."""
    content = gzip.decompress(path.read_bytes())
    n_dimensions = content[3]
    shape = np.frombuffer(content, ">i4", n_dimensions, offset=4).tolist()
    start = 4 + 4 * n_dimensions
    if content[:3] != b"\0\0\x08" or len(content) != start + math.prod(shape):
        raise SystemExit(f"NOTHING WAS MEASURED: {path.name} is damaged; install {PACKAGE} again.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
