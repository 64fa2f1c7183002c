"""Manifests: what ties the parts of a checkpoint together, with the state of the method, as JSON with a digest."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import numbers
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

from dask_belief.checkpoint.parts import Part, check_whole, path_of
from dask_belief.errors import ArgumentError, CheckpointError
from dask_belief.optim.stopping import number_to_json

FORMAT = 1
KIND = "dask_belief_checkpoint"

# Six digits, and more only where there is need: one number has one name.
_MANIFEST, _HISTORY = (re.compile(kind + r"-([0-9]{6}|[1-9][0-9]{6,15})\.json") for kind in ("manifest", "history"))


@dataclass(frozen=True)
class SavedState:
    """What was saved of a run.

    Attributes
    ----------
    number
        Grows from one to the next, and is not negative.
    vectors
        The parts of each vector, in order.
    state
        What else the method needs, as JSON.
    """

    number: int
    vectors: Mapping[str, tuple[Part, ...]]
    state: Mapping[str, Any]


@dataclass(frozen=True)
class Loaded:
    """A checkpoint that was found.

    In `state`, `description` and `history` numbers that are not finite are the words of
    `dask_belief.optim.stopping.number_to_json`.

    Attributes
    ----------
    saved
        Vectors by their parts, and the state of the method.
    description
        Of the run.
    history
        Its events, in order.
    number
        That of `saved`.
    written
        When, in UTC, in ISO format.
    """

    saved: SavedState
    description: Mapping[str, Any]
    history: tuple[Mapping[str, Any], ...]
    number: int
    written: str


def manifest_key(number: int) -> str:
    """The file of a manifest."""
    return f"manifest-{number:06d}.json"


def history_key(number: int) -> str:
    """The file of the events that belong to a manifest."""
    return f"history-{number:06d}.json"


def manifest_number(name: str) -> int | None:
    """The number of a manifest's file; None for any other."""
    return _number(_MANIFEST, name)


def history_number(name: str) -> int | None:
    """The number of a file of events; None for any other."""
    return _number(_HISTORY, name)


def _number(pattern: re.Pattern[str], name: str) -> int | None:
    found = pattern.fullmatch(name)
    return None if found is None else int(found[1])


def write(saved: SavedState, description: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """The files of a checkpoint beside its parts, in the order in which they have to be written.

    Raises
    ------
    ArgumentError
        When something is not JSON.
    CheckpointError
        When a vector is not whole.
    """
    vectors = {}
    for name, parts in saved.vectors.items():
        ordered = sorted(parts, key=lambda part: part.start)
        check_whole(name, ordered)
        vectors[name] = [{**vars(part), "path": path_of(name, part)} for part in ordered]
    # An identity of its own tells the history, and so the manifest, of another checkpoint from this one, even where
    # both are empty.
    events = _canonical({"id": uuid.uuid4().hex, "events": _plain(history, "history")})
    body: dict[str, Any] = {
        "kind": KIND,
        "format": FORMAT,
        "version": _version(),
        "number": saved.number,
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "description": _plain(description, "description"),
        "state": _plain(saved.state, "state"),
        "vectors": vectors,
        "history": {"path": history_key(saved.number), "digest": _digest(events)},
    }
    body["digest"] = _digest(_canonical(body))
    manifest = json.dumps(body, indent=1, allow_nan=False).encode()
    return {history_key(saved.number): events, manifest_key(saved.number): manifest}


@dataclass(frozen=True)
class Manifest:
    """A manifest that was read, without its history.

    Attributes
    ----------
    saved, description, written
        See `Loaded`.
    history_digest
        Of the file of events.
    """

    saved: SavedState
    description: Mapping[str, Any]
    written: str
    history_digest: str

    def paths(self) -> set[str]:
        """Where the parts are."""
        return {path_of(name, part) for name, parts in self.saved.vectors.items() for part in parts}

    def with_history(self, data: bytes) -> Loaded:
        """Join it with its events.

        Raises
        ------
        CheckpointError
            When they are not those that were written.
        """
        number = self.saved.number
        if _digest(data) != self.history_digest:
            raise CheckpointError(f"{history_key(number)} is not the one that was written: its digest is another")
        return Loaded(self.saved, self.description, tuple(json.loads(data)["events"]), number, self.written)


def read(number: int, data: bytes) -> Manifest:
    """Read the file of manifest `number`.

    Raises
    ------
    CheckpointError
        When it is damaged, of another checkpoint, of other software or of a newer version.
    """
    file = manifest_key(number)
    try:
        body = json.loads(data, parse_constant=_refuse)
        is_ours = isinstance(body, dict) and body.get("kind") == KIND
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is empty, cut or damaged, it is not JSON ({error})") from None
    if not is_ours:
        raise CheckpointError(f"{file} is not a manifest of dask_belief, or is damaged")
    if isinstance(body.get("format"), int) and body["format"] > FORMAT:
        raise CheckpointError(
            f"{file} has format {body['format']}, written by dask_belief {body.get('version')}; this version reads up "
            f"to {FORMAT}: update dask_belief"
        )
    try:
        found = body.pop("digest")
        is_right = found == _digest(_canonical(body)) and body["format"] == FORMAT
    except (KeyError, ValueError, RecursionError):
        is_right = False
    if not is_right:
        raise CheckpointError(f"{file} is not as it was written: its digest is another")
    try:
        return _understood(file, number, body)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} lacks what a manifest has, or has something else there: {error!r}") from error


def _understood(file: str, number: int, body: Mapping[str, Any]) -> Manifest:
    """Make something of what was read; raises whatever it stumbles on."""
    if body["number"] != number:
        raise CheckpointError(f"{file} is the manifest of checkpoint {body['number']}, under another name")
    vectors = {
        name: tuple(Part(part["start"], part["stop"], part["digest"]) for part in parts)
        for name, parts in body["vectors"].items()
    }
    for name, parts in vectors.items():
        if not parts or any(list(map(type, vars(part).values())) != [int, int, str] for part in parts):
            raise TypeError(f"the parts of {name}")
        check_whole(name, parts)
    saved = SavedState(number, vectors, body["state"])
    return Manifest(saved, body["description"], body["written"], body["history"]["digest"])


def _version() -> str:
    try:
        return metadata.version("dask-belief")
    except metadata.PackageNotFoundError:
        return "not installed"


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _canonical(value: Any) -> bytes:
    """One text for one value: keys in order, no spaces, ASCII; floats by `repr`, which reads back the same bits."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is not JSON")


def _plain(value: Any, where: str) -> Any:
    """Make what JSON gives back as it was: lists for sequences, words for numbers that are not finite.

    Raises
    ------
    ArgumentError
        When it is something else, such as a mapping whose keys are numbers.
    """
    if value is None or isinstance(value, str | bool):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, np.generic):
        return _plain(value.item(), where)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else number_to_json(value)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {str(key): _plain(inner, where) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_plain(inner, where) for inner in value]
    raise ArgumentError(f"{where}: plain JSON is needed, got {value!r}.")
