"""The record of a run: what is written can be read, and its tables say what every fetch held."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zarr

from dask_belief.data.units import UnitPlan, plan_units
from dask_belief.downpour.config import Downpour
from dask_belief.downpour.executor import update_spec
from dask_belief.downpour.record import ATTRIBUTE, FORMAT, Recorder, check_path, fetches, read_record
from dask_belief.errors import ArgumentError, DataError, MissingStoreError
from dask_belief.optim.rules import SGD
from dask_belief.parameter_server.client import ParameterServer
from dask_belief.parameter_server.consistency import ElasticAveraging, Staleness, Synchronous
from dask_belief.parameter_server.exchange import Exchange
from dask_belief.parameter_server.messages import LeaseKey, Logged, PushKey, Round, StepKey
from dask_belief.parameter_server.updates import VALUES
from tests.parameter_server.local_actors import LocalActors, deploy

SPANS = (range(3), range(3, 5))
LENGTH = 5
LEASE, OTHER = LeaseKey(0, 4), LeaseKey(1, 2)
PLAN = plan_units(30, 10, 8, LENGTH, unit_rows=10)


class Scene:
    """Shards that keep their log, the recorder of a run on them, and what it is given of the rest."""

    def __init__(self, actors: LocalActors, path: Path, staleness: Staleness | None = None) -> None:
        self.method = Downpour(rule=SGD(1.0), staleness=staleness, n_replicas=2)
        self.server: ParameterServer = deploy(actors, SPANS, updates=update_spec(self.method, is_recorded=True))
        self.run = actors.caller.run
        self.run(self.server.write(VALUES, np.zeros(LENGTH, np.float32)))
        self.run(self.server.begin_updates())
        self.facts: Any = SimpleNamespace(
            initial=np.zeros(LENGTH, np.float32), seed=7, dtype="float32", objective=None, dataset=None
        )
        self.recorder = Recorder(path, self.facts, self.method, PLAN)

    @property
    def deployment(self) -> Any:
        return SimpleNamespace(server=self.server, run=self.run, directory=self.server.directory)

    def exchange(self, replica: int, at: StepKey, push: PushKey | None, is_fetched: bool, **more: Any) -> None:
        vector = None if push is None else np.ones(LENGTH, np.float32)
        into = np.empty(LENGTH, np.float32) if is_fetched else None
        ask = Exchange(f"replica-{replica}", at, push, vector, () if push is None else (0, 0), into=into, **more)
        self.run(self.server.exchange(ask))

    def close(self) -> np.ndarray:
        last = np.empty(LENGTH, np.float32)
        self.run(self.server.read(VALUES, last))
        self.recorder.close(self.deployment, last, ["numpy"])
        return last


@pytest.fixture
def actors() -> Iterator[LocalActors]:
    with LocalActors() as carrier:
        yield carrier


def play(scene: Scene) -> None:
    """Two replicas, one of which takes over a lease and repeats a push."""
    scene.recorder.begin(scene.server.directory)
    scene.exchange(0, StepKey(LEASE, 0), None, True)
    scene.exchange(0, StepKey(LEASE, 2), PushKey(LEASE, 0, 1), True)
    scene.recorder.collect(scene.deployment)
    scene.exchange(11, StepKey(LEASE, 1, began=1), None, True)
    scene.exchange(11, StepKey(LEASE, 2, began=1), PushKey(LEASE, 1, 1), False)
    scene.exchange(0, StepKey(OTHER, 3), PushKey(OTHER, 0, 2), True)


def test_record_is_read_as_it_was_written(actors: LocalActors, tmp_path: Path) -> None:
    """Order, keys, and what was taken, piece by piece; options, plan and both ends of the parameters."""
    scene = Scene(actors, tmp_path / "record.zarr")
    play(scene)
    last = scene.close()
    record = read_record(tmp_path / "record.zarr")
    expected = [
        Logged("replica-0", StepKey(LEASE, 0), -1, -1, False, True),
        Logged("replica-0", StepKey(LEASE, 2), 0, 1, True, True),
        Logged("replica-11", StepKey(LEASE, 1, 1), -1, -1, False, True),
        Logged("replica-11", StepKey(LEASE, 2, 1), 1, 1, False, False),
        Logged("replica-0", StepKey(OTHER, 3), 0, 2, True, True),
    ]
    assert record.logs == [expected] * 2
    assert record.shards == SPANS
    np.testing.assert_array_equal(record.initial, np.zeros(LENGTH))
    np.testing.assert_array_equal(record.last, last)
    assert Downpour.from_config(record.head["method"]) == scene.method
    assert UnitPlan(**record.head["plan"]) == PLAN
    assert (record.head["seed"], record.head["kinds"]) == (7, ["numpy"])


def test_table_tells_what_every_fetch_held(actors: LocalActors, tmp_path: Path) -> None:
    """Who, where, when it took effect, and how many updates each piece had had; a first fetch is waited for."""
    scene = Scene(actors, tmp_path / "record.zarr")
    play(scene)
    scene.close()
    table: Any = zarr.open_group(str(tmp_path / "record.zarr"), mode="r")["fetches"]
    assert np.asarray(table[...]).tolist() == [
        [0, *LEASE, 0, 0, 0, 0],
        [0, *LEASE, 2, 1, 1, 1],
        [11, *LEASE, 1, 0, 1, 1],
        [0, *OTHER, 3, 1, 2, 2],
    ]


def test_pieces_may_have_had_different_updates(actors: LocalActors) -> None:
    """Each has an order of its own; a piece that a lost replica did not reach has none to tell."""
    row = (0, *LEASE, 0, 0, -1, -1, 0, 1)
    push = (1, *OTHER, 2, 0, 0, 1, 1, 0)
    tables = [np.array(rows, np.int64).reshape(-1, len(row)) for rows in ([push, row], [row, push], [push])]
    assert fetches(tables, Downpour()).tolist() == [[0, *LEASE, 0, 0, 1, 0, -1]]
    assert fetches([tables[0][:0]], Downpour()).shape == (0, 6)


def test_rounds_can_be_read_from_a_record(actors: LocalActors, tmp_path: Path) -> None:
    """Members and late ones stand before the exchange that applied the round; a fetch holds so many rounds."""
    scene = Scene(actors, tmp_path / "record.zarr", Synchronous())
    scene.recorder.begin(scene.server.directory)
    scene.exchange(0, StepKey(LEASE, 0), None, True)
    key = PushKey(LEASE, 0, 0)
    scene.exchange(0, StepKey(LEASE, 1), key, False)
    closed = Round(0, (key,), (PushKey(OTHER, 0, 0),))
    scene.exchange(0, StepKey(LEASE, 1), None, True, closed=closed)
    scene.close()
    record = read_record(tmp_path / "record.zarr")
    for log in record.logs:
        assert [each.replica for each in log] == ["replica-0", "replica-0", "", "", "replica-0"]
        assert Logged.closed(log[2:4]) == closed
    table: Any = zarr.open_group(str(tmp_path / "record.zarr"), mode="r")["fetches"]
    assert [row[4:] for row in np.asarray(table[...]).tolist()] == [[0, 0, 0], [0, 1, 1]]


def test_elastic_exchanges_are_fetches(actors: LocalActors, tmp_path: Path) -> None:
    """They bring what the parameters were moved by."""
    scene = Scene(actors, tmp_path / "record.zarr", ElasticAveraging())
    scene.recorder.begin(scene.server.directory)
    scene.exchange(0, StepKey(LEASE, 0), None, True)
    scene.exchange(0, StepKey(LEASE, 1), PushKey(LEASE, 0, 0), True, is_elastic=True)
    scene.close()
    table: Any = zarr.open_group(str(tmp_path / "record.zarr"), mode="r")["fetches"]
    assert [row[3:] for row in np.asarray(table[...]).tolist()] == [[0, 0, 0, 0], [1, 1, 1, 1]]


def test_record_without_an_end_is_refused(actors: LocalActors, tmp_path: Path) -> None:
    """One that was broken off, or whose shards were lost on the way: its tables are there, to be read."""
    scene = Scene(actors, tmp_path / "record.zarr")
    play(scene)
    with pytest.raises(DataError, match="did not come to its end, or lost a shard"):
        read_record(tmp_path / "record.zarr")
    scene.recorder.break_off()
    scene.close()
    with pytest.raises(DataError, match="did not come to its end, or lost a shard"):
        read_record(tmp_path / "record.zarr")
    tables: Any = zarr.open_group(str(tmp_path / "record.zarr"), mode="r")
    assert [tables[f"pieces/{number}"].shape[0] for number in range(len(SPANS))] == [5, 5]


def test_record_of_a_newer_version_is_refused(actors: LocalActors, tmp_path: Path) -> None:
    """With both versions."""
    scene = Scene(actors, tmp_path / "record.zarr")
    play(scene)
    scene.close()
    group = zarr.open_group(str(tmp_path / "record.zarr"), mode="r+")
    head: Any = group.attrs[ATTRIBUTE]
    group.attrs[ATTRIBUTE] = head | {"format": FORMAT + 1}
    with pytest.raises(DataError, match=f"has format {FORMAT + 1}, this version knows up to {FORMAT}"):
        read_record(tmp_path / "record.zarr")


@pytest.mark.parametrize("what", ["nothing", "a file", "another group"])
def test_what_is_no_record_is_refused(what: str, tmp_path: Path) -> None:
    """Where it is read."""
    path = tmp_path / "record.zarr"
    if what == "a file":
        path.write_text("no record")
    elif what == "another group":
        zarr.open_group(str(path), mode="w")
    with pytest.raises(MissingStoreError, match="holds no record"):
        read_record(path)


def test_recorder_begins_anew_over_an_older_record(actors: LocalActors, tmp_path: Path) -> None:
    """Nothing of the older one stays."""
    path = tmp_path / "record.zarr"
    scene = Scene(actors, path)
    play(scene)
    scene.close()
    again = Recorder(path, scene.facts, dataclasses.replace(scene.method, epochs=9), PLAN)
    again.begin(scene.server.directory)
    again.close(scene.deployment, np.zeros(LENGTH, np.float32), [])
    record = read_record(path)
    assert record.logs == [[], []]
    assert record.head["method"]["epochs"] == 9


@pytest.mark.parametrize("what", ["a file", "a folder with something in it", "another group"])
def test_what_is_no_record_is_not_overwritten(what: str, tmp_path: Path) -> None:
    """Where it would be written."""
    path = tmp_path / "record.zarr"
    if what == "a file":
        path.write_text("no record")
    elif what == "another group":
        zarr.open_group(str(path), mode="w")
    else:
        path.mkdir()
        (path / "notes").write_text("mine")
    with pytest.raises(ArgumentError, match=r"^record: .* holds something else than a record"):
        check_path(path)


def test_record_may_take_the_place_of_nothing_or_of_a_record(actors: LocalActors, tmp_path: Path) -> None:
    """Nothing, an empty folder, and an older record."""
    path = tmp_path / "record.zarr"
    check_path(path)
    path.mkdir()
    check_path(path)
    play(Scene(actors, path))
    check_path(path)
