"""Reading the checkpoints in a folder: found by their manifests, and checked by their digests."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from dask_belief.checkpoint import manifest as manifests
from dask_belief.checkpoint.manifest import KIND, Loaded, Manifest, history_key, manifest_key
from dask_belief.checkpoint.parts import CHUNK, Part, Vector, check_whole, path_of, values_of
from dask_belief.data.folder import Folder
from dask_belief.errors import CheckpointError, MissingStoreError

GROUP = "zarr.json"


class CheckpointReader:
    """The checkpoints in one folder, to read; can be sent anywhere.

    Parameters
    ----------
    path
        The folder, or an fsspec URL.

    Attributes
    ----------
    path
        An absolute path, or the URL.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._folder = Folder(path)
        self.path = self._folder.address

    def numbers(self) -> list[int]:
        """The checkpoints that are there, damaged or not, oldest first.

        Raises
        ------
        CheckpointError
            When the folder cannot be read.
        """
        return numbers_of(self._names())

    def newest(self) -> Loaded:
        """Find the newest checkpoint.

        Raises
        ------
        MissingStoreError
            When there is none.
        CheckpointError
            When it is damaged; the message offers the one before.
        """
        numbers = self.numbers()
        if not numbers:
            raise self._nothing()
        return self.load(numbers[-1])

    def load(self, number: int) -> Loaded:
        """Find a checkpoint by its number; its vectors are checked as they are read, or by `verify`.

        Raises
        ------
        MissingStoreError
            When it is not there.
        CheckpointError
            When it is damaged; the message offers the one before.
        """
        numbers = self.numbers()
        if not numbers:
            raise self._nothing()
        if number not in numbers:
            there = ", ".join(map(str, numbers))
            raise MissingStoreError(f"checkpoint: {self.path} has no checkpoint {number!r}; it has {there}.")
        try:
            return self._load(number)
        except CheckpointError as error:
            raise self._damaged(number, str(error)) from error

    def read_part(self, name: str, part: Part) -> Vector:
        """Read a part of a vector, ``(n_values,)``, not writable.

        Raises
        ------
        CheckpointError
            When it is damaged; the message offers a checkpoint without it.
        """
        path = path_of(name, part)
        try:
            try:
                data = self._folder.get(f"{path}/{CHUNK}")
            except OSError as error:
                where = f"values {part.start} to {part.stop} of {name}"
                raise CheckpointError(f"{where} cannot be read, {type(error).__name__}: {error}") from error
            return values_of(name, part, data)
        except CheckpointError as error:
            having = [number for number, found in self._readable(self.numbers()).items() if path in found.paths()]
            raise self._damaged(max(having, default=None), str(error), path) from error

    def read_vector(self, loaded: Loaded, name: str) -> Vector:
        """Read a whole vector, ``(n_parameters,)``, of the dtype in which it was written.

        Raises
        ------
        CheckpointError
            When it is damaged, or the checkpoint has none of this name.
        """
        parts = loaded.saved.vectors.get(name)
        if not parts:
            there = ", ".join(sorted(loaded.saved.vectors)) or "none"
            raise CheckpointError(f"checkpoint: {loaded.number} at {self.path} has no vector {name}; it has {there}.")
        first = self.read_part(name, parts[0])
        vector = np.empty(parts[-1].stop, first.dtype)
        vector[: parts[0].stop] = first
        for part in parts[1:]:
            values = self.read_part(name, part)
            if values.dtype != vector.dtype:
                raise self._damaged(loaded.number, f"{name} is of {vector.dtype} and of {values.dtype}")
            vector[part.start : part.stop] = values
        return vector

    def verify(self, loaded: Loaded) -> None:
        """Read every part, and let it go.

        Raises
        ------
        CheckpointError
            When one is damaged.
        """
        for name, parts in loaded.saved.vectors.items():
            check_whole(name, parts)
            for part in parts:
                self.read_part(name, part)

    def _names(self) -> list[str]:
        try:
            return self._folder.names()
        except OSError as error:
            raise CheckpointError(f"checkpoint: {self.path} cannot be read as a folder: {error}") from error

    def _manifest(self, number: int) -> Manifest:
        try:
            return manifests.read(number, self._folder.get(manifest_key(number)))
        except OSError as error:
            raise CheckpointError(f"{manifest_key(number)} cannot be read: {error}") from error

    def _load(self, number: int) -> Loaded:
        found = self._manifest(number)
        try:
            return found.with_history(self._folder.get(history_key(number)))
        except OSError as error:
            raise CheckpointError(f"{history_key(number)} cannot be read: {error}") from error

    def _readable(self, numbers: Sequence[int]) -> dict[int, Manifest]:
        found = {}
        for number in numbers:
            with suppress(CheckpointError):
                found[number] = self._manifest(number)
        return found

    def _mark(self) -> Mapping[str, Any] | None:
        """What the folder's group says of itself; None when it is not there, not readable or not ours."""
        try:
            found = json.loads(self._folder.get(GROUP))["attributes"][KIND]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def _nothing(self) -> MissingStoreError | CheckpointError:
        """Say what is in a folder that has no manifest."""
        names = self._names()
        if names and self._mark() is None:
            return CheckpointError(
                f"checkpoint: {self.path} holds other things, such as {names[0]}, and no checkpoint. Check the path."
            )
        why = "its first one was not completed" if names else "it is empty, or not there; check the path"
        return MissingStoreError(f"checkpoint: {self.path} holds no checkpoint: {why}.")

    def _damaged(self, number: int | None, what: str, path: str | None = None) -> CheckpointError:
        """Say what is wrong, and offer the newest checkpoint before it that reads well and has no part at `path`."""
        offer = "There is no other to go back to."
        for other in reversed(self.numbers() if number is None else [n for n in self.numbers() if n < number]):
            with suppress(CheckpointError):
                if path is None or path not in self._manifest(other).paths():
                    written = self._load(other).written
                    offer = (
                        f"The one before, {other}, written {written}, can be tried: db.resume(path, number={other})."
                    )
                    break
        which = f"checkpoint {number} at {self.path}" if number is not None else f"the checkpoint at {self.path}"
        return CheckpointError(f"{which} is damaged: {what}. {offer}")


def numbers_of(names: Sequence[str]) -> list[int]:
    """The manifests among files, oldest first."""
    return sorted(number for name in names if (number := manifests.manifest_number(name)) is not None)
