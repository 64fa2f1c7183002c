"""Writing the checkpoints of a run: part by part, then committed, then pruned."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dask_belief.checkpoint import manifest as manifests
from dask_belief.checkpoint import pruning
from dask_belief.checkpoint.manifest import KIND, SavedState
from dask_belief.checkpoint.parts import (
    CHUNK,
    FOLDER,
    Part,
    Vector,
    array_metadata,
    bytes_of,
    digest_of,
    group_metadata,
    number_in,
    path_of,
)
from dask_belief.checkpoint.reading import GROUP, CheckpointReader, numbers_of
from dask_belief.checks import check_count, check_number
from dask_belief.data.folder import PARTIAL
from dask_belief.errors import ArgumentError, CheckpointError

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Where and how often a run saves itself.

    Parameters
    ----------
    path
        An empty folder, or an fsspec URL such as ``s3://bucket/run``, that every worker reaches.
    every_seconds
        The time between two checkpoints; None for as often as 5 % of the run's time allow, 0 for as often as can be.
    keep
        How many checkpoints stay there.

    Raises
    ------
    ArgumentError
        A parameter is not of its kind; the message names it.
    """

    path: str | Path
    every_seconds: float | None = None
    keep: int = 2

    def __post_init__(self) -> None:
        if not isinstance(self.path, str | Path) or not str(self.path).strip():
            raise ArgumentError(f"path: a folder or a URL is needed, got {self.path!r}.")
        check_number("every_seconds", self.every_seconds, low=0.0, may_be_none=True)
        check_count("keep", self.keep)


class CheckpointStore(CheckpointReader):
    """The checkpoints in one folder.

    Parts are written from anywhere, by stores of their own; all else is the driver's. The numbers in the names of
    vectors that a save writes must not be below those of the newest checkpoint: what lies below, and is named by no
    checkpoint, counts as left over from a save that was broken off, and is removed.

    Parameters
    ----------
    path
        The folder, or an fsspec URL.
    keep
        How many checkpoints a commit leaves.
    """

    def __init__(self, path: str | os.PathLike[str], keep: int = 2) -> None:
        super().__init__(path)
        self._keep = keep
        # Set by `prepare`: which of several runs that write here, one after another, this is.
        self._writer: str | None = None

    def prepare(self, resumed: int | None = None) -> None:
        """Make the folder ready for a run that begins, or goes on, here.

        What a save that was broken off has left is removed. A run that wrote here before cannot commit any more.

        Parameters
        ----------
        resumed
            The checkpoint that the run goes on from. Newer ones stay until its first commit.

        Raises
        ------
        ArgumentError
            When there are other things, or, for a run that begins, checkpoints.
        CheckpointError
            When it cannot be written.
        """
        with self._writing():
            if self._folder.is_local and os.path.isfile(self.path):
                raise ArgumentError(f"checkpoint: {self.path} is a file. Give an empty folder.")
            names = self._folder.names()
            numbers = numbers_of(names)
            self._refuse_foreign(names, numbers)
            if numbers and resumed is None:
                raise ArgumentError(
                    f"checkpoint: {self.path} holds checkpoints of a run, the newest is {numbers[-1]}. Go on from it "
                    "with db.resume(path), or give an empty folder."
                )
            self._writer = uuid.uuid4().hex
            mark = {"format": manifests.FORMAT, "writer": self._writer}
            self._folder.put(GROUP, group_metadata({KIND: mark}), is_durable=True)
            self._folder.remove(name for name in names if name.endswith(PARTIAL))
            self._folder.remove(pruning.unwanted_files(names, numbers))
            readable = self._readable(numbers)
            # What a damaged one needs is not known.
            if len(readable) == len(numbers):
                keys = self._folder.keys(FOLDER)
                self._folder.remove(pruning.unwanted_parts(keys, readable.values(), below=None))
            self._folder.remove_empty(FOLDER)

    def _refuse_foreign(self, names: Sequence[str], numbers: Sequence[int]) -> None:
        foreign = [name for name in names if not pruning.is_ours(name)]
        if not foreign and GROUP in names and not numbers and self._mark() is None:
            foreign = [GROUP]
        if foreign:
            raise ArgumentError(
                f"checkpoint: {self.path} holds other things, such as {foreign[0]}. Give an empty folder."
            )

    def write_part(self, name: str, start: int, values: Vector) -> Part:
        """Write a part of a vector; the same again does no harm.

        Parameters
        ----------
        name
            Such as ``"x@12"``.
        start
            Where the part begins in the whole vector.
        values
            ``(n_values,)``, one or more.

        Raises
        ------
        CheckpointError
            When it cannot be written.
        """
        number_in(name)
        dtype, data = bytes_of(values)
        stop = start + len(values)
        part = Part(start, stop, digest_of(name, start, stop, dtype, data))
        path = path_of(name, part)
        with self._writing():
            self._folder.put(f"{path}/{CHUNK}", data)
            self._folder.put(f"{path}/{GROUP}", array_metadata(len(values), dtype))
        return part

    def commit(
        self, saved: SavedState, description: Mapping[str, Any], history: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Make what was written a checkpoint, the newest from now on, and remove those that are not kept.

        Checkpoints with higher numbers are of a way that the run did not go on from, and are removed too.

        Raises
        ------
        ArgumentError
            When state, description or history are not JSON.
        CheckpointError
            When a part is not there, another run writes here, or it cannot be written. Nothing has changed then.
        """
        check_count("number", saved.number, low=0)
        files = manifests.write(saved, description, history)
        with self._writing():
            self._refuse_other_writer()
            self._refuse_incomplete(saved)
            for key, data in files.items():
                self._folder.put(key, data, is_durable=True)
        try:
            self._prune(saved.number)
        except OSError:
            _LOG.warning("old checkpoints could not be removed from %s", self.path, exc_info=True)

    def _refuse_other_writer(self) -> None:
        mark = self._mark()
        if self._writer is not None and (mark is None or mark.get("writer") != self._writer):
            raise CheckpointError(
                f"checkpoint: another run has begun to write to {self.path}, or its zarr.json was changed. This run "
                "writes no more there."
            )

    def _refuse_incomplete(self, saved: SavedState) -> None:
        there = set(self._folder.keys(FOLDER))
        for name, parts in saved.vectors.items():
            for part in parts:
                if f"{path_of(name, part)}/{CHUNK}" not in there:
                    raise CheckpointError(
                        f"checkpoint: {saved.number} cannot be committed to {self.path}: values {part.start} to "
                        f"{part.stop} of {name} are not there."
                    )

    def _prune(self, newest: int) -> None:
        """Remove manifests, then what no manifest names."""
        names = self._folder.names()
        numbers = numbers_of(names)
        readable = self._readable(numbers)
        if newest not in readable:
            return
        unwanted = pruning.unwanted_manifests(numbers, readable, newest, self._keep)
        kept = set(numbers).difference(unwanted)
        self._folder.remove(pruning.keys_of(unwanted))
        self._folder.remove(pruning.unwanted_files(names, kept))
        # What a damaged one needs is not known; it is soon too old to be kept.
        if kept <= set(readable):
            below = pruning.highest_number(readable[newest])
            keys = self._folder.keys(FOLDER)
            self._folder.remove(pruning.unwanted_parts(keys, [readable[number] for number in kept], below))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"checkpoint: {self.path} cannot be written: {error}; it must be a folder or URL that every worker may "
                "write to, with space for the checkpoints that are kept and one more."
            ) from error
