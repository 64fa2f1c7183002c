"""A keeper: holds saved parts of one shard in the memory of another worker."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from dask_belief.errors import StaleError

Vector = NDArray[np.floating]


class Keeper:
    """Parts of vectors by name and by where they begin; written once, read when a shard is made anew.

    A plain class that runs as a Dask actor. What it holds is not Dask's to spill.
    """

    def __init__(self) -> None:
        self._parts: dict[tuple[str, int], Vector] = {}

    def write(self, name: str, start: int, values: Vector) -> None:
        """Keep a part of a vector, in the very memory that is given; the same again replaces it."""
        self._parts[name, start] = values

    def read(self, name: str, start: int) -> Vector:
        """Give a copy of a part.

        Raises
        ------
        StaleError
            When it is not here, or not any more.
        """
        if (name, start) not in self._parts:
            raise StaleError(f"keeper: there is no part of {name!r} that begins at {start}.")
        return self._parts[name, start].copy()

    def keep(self, names: Collection[str]) -> None:
        """Let all vectors go but these."""
        self._parts = {key: values for key, values in self._parts.items() if key[0] in names}

    def n_bytes(self) -> int:
        """Tell the bytes of all parts."""
        return sum(values.nbytes for values in self._parts.values())
