"""Checkpoints whose manifest says something else than a run writes, field by field: a clear word, or a sound run."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

import dask_belief as db
from dask_belief.checkpoint import CheckpointStore, manifest
from tests.end_to_end.conftest import blobs

Way = tuple[str | int, ...]
NONSENSE: tuple[Any, ...] = ("nonsense", -7, None, [], {}, [[None]], {"a": 1})


def ways(value: Any, until: Way = ()) -> Iterator[Way]:
    """The way to each field, and to each first entry of a list."""
    entries: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list):
        entries = list(enumerate(value[:1]))
    for name, inner in entries:
        yield (*until, name)
        yield from ways(inner, (*until, name))


def changed(body: dict[str, Any], way: Way, change: Callable[[Any, Any], None]) -> dict[str, Any]:
    """A copy with one field changed, and the digest that belongs to it."""
    body = copy.deepcopy(body)
    at: Any = body
    for name in way[:-1]:
        at = at[name]
    change(at, way[-1])
    body.pop("digest")
    body["digest"] = manifest._digest(manifest._canonical(body))
    return body


@pytest.fixture(scope="module")
def saved(two_workers: Client, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, int]]:
    """A checkpoint of each method, in the second of which a run by two methods was broken off."""
    folder = tmp_path_factory.mktemp("saved")
    rows, held_out = folder / "rows.zarr", folder / "held-out.zarr"
    db.write_dataset(rows, *blobs(200, seed=0), chunk_rows=50)
    db.write_dataset(held_out, *blobs(50, seed=1), chunk_rows=50)
    network = db.Network([db.Dense(4)], loss="softmax", input_shape=(10,))
    downpour = db.Downpour(n_replicas=1, epochs=1, batch_size=50)
    ended = db.Sandblaster(max_iter=3, n_shards=1, ftol=0.0, gtol=0.0)
    for name, methods in (("sandblaster", [downpour, ended]), ("downpour", [ended, downpour])):
        db.train(
            network,
            rows,
            methods,
            client=two_workers,
            validation=held_out,
            checkpoint=db.Checkpoint(folder / name, keep=1),
            progress=False,
        )
    return {name: (folder / name, CheckpointStore(folder / name).numbers()[-1]) for name in ("sandblaster", "downpour")}


def resumed_with(client: Client, path: Path, number: int, body: dict[str, Any]) -> str:
    """What comes of it: an empty word for a run that goes on."""
    (path / manifest.manifest_key(number)).write_text(json.dumps(body))
    try:
        db.resume(path, client=client, progress=False)
    except (db.CheckpointError, db.ArgumentError, db.MissingStoreError) as error:
        assert len(str(error)) > 20
        return str(error)
    return ""


def damaged(
    client: Client, saved: tuple[Path, int], tmp_path: Path, part: str, changes: list[tuple[str, Any]]
) -> tuple[list[str], list[str]]:
    """Go on with each damage; gives those that went on as if nothing was, and those that broke in another way."""
    path, number = saved
    body = json.loads((path / manifest.manifest_key(number)).read_text())
    went_on, broke = [], []
    # As it is, written again, it is sound: what is refused below is refused for its damage.
    place = tmp_path / "sound"
    shutil.copytree(path, place)
    assert resumed_with(client, place, number, changed(body, ("number",), lambda at, name: None)) == ""
    for count, way in enumerate(way for way in ways(body) if way[0] == part):
        for what, other in changes:

            def change(at: Any, name: Any, what: str = what, other: Any = other) -> None:
                if what == "removed":
                    del at[name]
                else:
                    at[name] = other

            label = f"{'.'.join(map(str, way))} {what}"
            place = tmp_path / f"{count}-{what}"
            shutil.copytree(path, place)
            try:
                if not resumed_with(client, place, number, changed(body, way, change)):
                    went_on.append(label)
            except Exception as error:
                broke.append(f"{label}: {error!r}")
            shutil.rmtree(place)
    return went_on, broke


@pytest.mark.parametrize("method", ["sandblaster", "downpour"])
@pytest.mark.parametrize("part", ["description", "state"])
def test_what_is_missing_is_told(
    two_workers: Client, saved: dict[str, tuple[Path, int]], tmp_path: Path, method: str, part: str
) -> None:
    """Never an error of Python's own."""
    _, broke = damaged(two_workers, saved[method], tmp_path, part, [("removed", None)])
    assert not broke, "\n".join(broke)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("method", ["sandblaster", "downpour"])
@pytest.mark.parametrize("part", ["description", "state", "vectors"])
def test_nonsense_is_told(
    two_workers: Client, saved: dict[str, tuple[Path, int]], tmp_path: Path, method: str, part: str
) -> None:
    """Whatever stands there instead."""
    changes = [(f"is {other!r}"[:20], other) for other in NONSENSE]
    _, broke = damaged(two_workers, saved[method], tmp_path, part, changes)
    assert not broke, "\n".join(broke)
