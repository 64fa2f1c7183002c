"""Checkpoints are there whole or not at all, are kept in a stated number, and are read without this package too."""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import math
import pickle
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import zarr

from dask_belief.checkpoint import Checkpoint, CheckpointStore, Part, SavedState
from dask_belief.errors import ArgumentError, CheckpointError, MissingStoreError
from dask_belief.seeds import stream
from tests.checkpoint.saved_runs import (
    BORDERS,
    DESCRIPTION,
    SHARED,
    check,
    names_of,
    save,
    state_of,
    vector,
    write_vector,
)

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 60.0


@pytest.fixture(params=["folder", "file URL", "memory URL"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty place of each kind."""
    if request.param != "memory URL":
        yield str(tmp_path / "run") if request.param == "folder" else f"file://{tmp_path}/run"
        return
    url = f"memory://{uuid.uuid4().hex}/run"
    yield url
    system, root = fsspec.core.url_to_fs(url)
    if system.exists(root):
        system.rm(root, recursive=True)


def ready(path: str | Path, keep: int = 2) -> CheckpointStore:
    store = CheckpointStore(path, keep)
    store.prepare()
    return store


def vectors_there(path: Path) -> set[str]:
    return {folder.name for folder in (path / "vectors").iterdir()}


# Round trip


def test_checkpoint_is_read_back(path: str) -> None:
    """Vectors to the bit, state, description and history as they were, by another store."""
    save(ready(path), 12)
    store = pickle.loads(pickle.dumps(CheckpointStore(path)))
    loaded = store.newest()
    assert loaded.number == 12
    assert loaded.written.endswith("+00:00")
    check(store, loaded)
    store.verify(loaded)


def test_newest_is_the_last_committed(path: str) -> None:
    """Each of those that are kept can be had by its number."""
    store = ready(path, keep=2)
    for number in (1, 2, 1_000_000, 1_000_001):
        save(store, number)
    assert store.numbers() == [1_000_000, 1_000_001]
    check(store, store.newest())
    check(store, store.load(1_000_000))
    with pytest.raises(MissingStoreError, match=r"no checkpoint 2; it has 1000000, 1000001"):
        store.load(2)


def test_numbers_of_every_kind_are_kept(path: str) -> None:
    """NumPy's numbers become plain ones; those that are not finite become words; a float keeps its bits."""
    store = ready(path)
    state = {"a": np.float32(0.1), "b": np.int64(7), "c": (math.inf, -math.inf, math.nan), "d": 0.1 + 0.2, "e": None}
    store.commit(SavedState(0, {}, state), {}, [])
    assert store.newest().saved.state == {
        "a": float(np.float32(0.1)),
        "b": 7,
        "c": ["Infinity", "-Infinity", "NaN"],
        "d": 0.1 + 0.2,
        "e": None,
    }


@pytest.mark.parametrize("wrong", [{"a": b"bytes"}, {"a": {1: 2}}, {"a": [object()]}, {"a": np.zeros(2)}])
def test_what_is_not_json_is_refused(tmp_path: Path, wrong: dict) -> None:
    """Also what JSON would change without a word, such as keys that are numbers."""
    store = ready(tmp_path)
    with pytest.raises(ArgumentError, match="state: plain JSON"):
        store.commit(SavedState(1, {}, wrong), {}, [])
    assert store.numbers() == []


def test_zarr_alone_reads_it(tmp_path: Path) -> None:
    """The lines of the package's docstring read a vector, and the metadata are those that Zarr itself writes."""
    save(ready(tmp_path), 12)
    import dask_belief.checkpoint as package

    lines = re.findall(r"^    ((?:manifest|parts|x) = .*)$", str(package.__doc__), re.MULTILINE)
    assert len(lines) == 3
    names: dict[str, Any] = {"json": json, "Path": Path, "np": np, "zarr": zarr, "path": str(tmp_path)}
    exec("\n".join(lines), names)
    np.testing.assert_array_equal(names["x"], vector("x@12"), strict=True)

    mark: Any = zarr.open_group(tmp_path, mode="r").attrs["dask_belief_checkpoint"]
    assert mark["format"] == 1
    [part, *_] = names["parts"]
    ours = json.loads((tmp_path / part["path"] / "zarr.json").read_text())
    values = vector("x@12")[:40]
    zarr.create_array(tmp_path / "theirs", data=values, chunks=(40,), compressors=None, fill_value=math.nan)
    theirs = json.loads((tmp_path / "theirs" / "zarr.json").read_text())
    assert ours == {**theirs, "storage_transformers": []}
    assert (tmp_path / part["path"] / "c" / "0").read_bytes() == (tmp_path / "theirs" / "c" / "0").read_bytes()


def test_state_vector_has_a_safe_path(tmp_path: Path) -> None:
    """No file has a colon in its name."""
    save(ready(tmp_path), 3)
    assert vectors_there(tmp_path) == {"x@3", "g@3", "state.sums@3", "s@1"}


# Writing from many places


def write_from_elsewhere(path: str, name: str, start: int, stop: int) -> Part:
    return CheckpointStore(path).write_part(name, start, vector(name)[start:stop])


def test_many_threads_write_parts_at_once(path: str) -> None:
    """Each with a store of its own."""
    store = ready(path)
    places = [(name, start, stop) for name in names_of(5) for start, stop in itertools.pairwise(BORDERS)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda place: write_from_elsewhere(path, *place), places * 3))[: len(places)]
    vectors: dict[str, tuple[Part, ...]] = {}
    # In any order: the manifest sorts them.
    for (name, _, _), part in reversed(list(zip(places, parts, strict=True))):
        vectors[name] = (*vectors.get(name, ()), part)
    store.commit(SavedState(5, vectors, state_of(5)), DESCRIPTION, [])
    loaded = store.newest()
    assert loaded.saved.vectors["x@5"] == tuple(sorted(vectors["x@5"], key=lambda part: part.start))
    for name in names_of(5):
        np.testing.assert_array_equal(store.read_vector(loaded, name), vector(name))


WRITER = """
import sys
from dask_belief.checkpoint import CheckpointStore
from tests.checkpoint.saved_runs import vector
path, name, start, stop = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
print(CheckpointStore(path).write_part(name, start, vector(name)[start:stop]).digest)
"""


def test_many_processes_write_parts_at_once(tmp_path: Path) -> None:
    """What they wrote is one vector, and the digests are the same in each."""
    store = ready(tmp_path)
    places = list(itertools.pairwise(BORDERS))
    writers = [child(WRITER, str(tmp_path), "x@5", str(start), str(stop)) for start, stop in places]
    digests = [writer.communicate(timeout=LIMIT_SECONDS)[0].strip() for writer in writers]
    parts = tuple(Part(*place, digest) for place, digest in zip(places, digests, strict=True))
    store.commit(SavedState(5, {"x@5": parts}, {}), {}, [])
    np.testing.assert_array_equal(store.read_vector(store.newest(), "x@5"), vector("x@5"))


def child(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_late_writer_harms_nothing(path: str) -> None:
    """A worker that was taken for lost wakes up, and writes other values under the name of a part that is in use."""
    store = ready(path)
    save(store, 7)
    CheckpointStore(path).write_part("x@7", 0, vector("x@7", seed=1)[:40])
    check(store, store.newest())
    save(store, 8)
    check(store, store.load(7))


# Complete or absent


def test_save_without_commit_is_absent(path: str) -> None:
    """Its parts are removed when a run goes on here; the newest checkpoint is the one before."""
    store = ready(path)
    save(store, 4)
    write_vector(store, "x@5")
    again = CheckpointStore(path)
    assert again.newest().number == 4
    again.prepare(resumed=4)
    check(again, again.load(4))
    assert not [key for key in again._folder.keys("vectors") if "x@5" in key]


def test_incomplete_save_is_not_committed(path: str) -> None:
    """Neither with a part that was never written, nor with a vector that lacks one."""
    store = ready(path)
    parts = write_vector(store, "x@1")
    with pytest.raises(CheckpointError, match=r"values 64 to 90 of x@1 are not there"):
        store.commit(SavedState(1, {"x@1": (*parts[:2], Part(64, 90, "0" * 32))}, {}), {}, [])
    with pytest.raises(CheckpointError, match=r"x@1 has no part that begins at 40"):
        store.commit(SavedState(1, {"x@1": (parts[0], parts[2])}, {}), {}, [])
    with pytest.raises(CheckpointError, match=r"x@1 has no part"):
        store.commit(SavedState(1, {"x@1": ()}, {}), {}, [])
    assert store.numbers() == []
    with pytest.raises(MissingStoreError, match="its first one was not completed"):
        store.newest()


# Saves numbers 1, 2, ... and ends itself at the given file operation, before or after it.
KILLED = """
import os, signal, sys
from dask_belief.checkpoint import CheckpointStore
from tests.checkpoint.saved_runs import save
path, kill_at, is_before = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "before"
n_operations = 0

def counted(operation):
    def call(*arguments):
        global n_operations
        n_operations += 1
        if n_operations == kill_at and is_before:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            operation(*arguments)
        finally:
            if n_operations == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
    return call

os.replace, os.remove, os.rmdir = counted(os.replace), counted(os.remove), counted(os.rmdir)
store = CheckpointStore(path)
store.prepare()
for number in range(1, 1000):
    save(store, number)
    print(number, flush=True)
"""


def test_killed_writer_leaves_whole_checkpoints(tmp_path: Path) -> None:
    """Wherever it is killed, each manifest that is there is whole, and none that was committed and kept is missing."""
    random = stream(17, "kills")
    kills = [(int(random.integers(2, 240)), str(random.choice(["before", "after"]))) for _ in range(8)]
    writers = [child(KILLED, str(tmp_path / str(n)), str(at), when) for n, (at, when) in enumerate(kills)]
    outputs = [writer.communicate(timeout=LIMIT_SECONDS) for writer in writers]
    for n, (printed, errors) in enumerate(outputs):
        assert writers[n].returncode == -signal.SIGKILL, errors
        committed = len(printed.split())
        store = CheckpointStore(tmp_path / str(n))
        numbers = store.numbers()
        newest = max(numbers, default=0)
        assert newest in (committed, committed + 1), kills[n]
        assert set(range(max(1, newest - 1), newest + 1)) <= set(numbers), kills[n]
        for number in numbers:
            check(store, store.load(number))
        # A run that goes on here finds no obstacle, and leaves no rest.
        store.prepare(resumed=numbers[-1] if numbers else None)
        for number in range(committed + 2, committed + 5):
            save(store, number)
        expected = {name.replace(":", ".") for number in store.numbers() for name in names_of(number)}
        assert vectors_there(tmp_path / str(n)) == expected, kills[n]
        assert not list((tmp_path / str(n)).rglob("*.partial"))


# Pruning


def test_only_what_is_kept_stays(tmp_path: Path) -> None:
    """Of manifests, histories and vectors; one that is shared stays as long as any needs it."""
    store = ready(tmp_path, keep=2)
    for number in range(1, 8):
        save(store, number)
    assert store.numbers() == [6, 7]
    assert vectors_there(tmp_path) == {"x@6", "g@6", "state.sums@6", "x@7", "g@7", "state.sums@7", SHARED}
    files = {file.name for file in tmp_path.iterdir()} - {"vectors", "zarr.json"}
    assert files == {f"{kind}-00000{number}.json" for kind in ("manifest", "history") for number in (6, 7)}
    for number in (6, 7):
        check(store, store.load(number))


def test_save_under_way_is_not_pruned(path: str) -> None:
    """A commit removes what was broken off before it, and leaves what is being written for the next."""
    store = ready(path, keep=1)
    save(store, 4)
    write_vector(store, "x@5")
    parts = write_vector(store, "x@6")
    save(store, 6)
    later = write_vector(store, "x@7")
    save_again = {"x@6": parts, "x@7": later}
    store.commit(SavedState(7, save_again, {}), {}, [])
    np.testing.assert_array_equal(store.read_vector(store.newest(), "x@7"), vector("x@7"))
    assert not [key for key in store._folder.keys("vectors") if "x@5" in key]


def test_going_back_leaves_the_other_way(tmp_path: Path) -> None:
    """A run that goes on from an older checkpoint removes the newer ones at its first commit, and not before."""
    store = ready(tmp_path, keep=3)
    for number in (1, 2, 3):
        save(store, number)
    again = CheckpointStore(tmp_path, keep=3)
    again.prepare(resumed=1)
    assert again.numbers() == [1, 2, 3]
    save(again, 2, seed=1)
    assert again.numbers() == [1, 2]
    loaded = again.newest()
    np.testing.assert_array_equal(again.read_vector(loaded, "x@2"), vector("x@2", seed=1))
    check(again, again.load(1))


def test_damaged_one_is_not_counted(tmp_path: Path) -> None:
    """The good ones that are kept are as many as were asked for; nothing they need goes."""
    store = ready(tmp_path, keep=2)
    for number in (1, 2):
        save(store, number)
    (tmp_path / "manifest-000002.json").write_text("{")
    save(store, 3)
    check(store, store.load(1))
    save(store, 4)
    assert store.numbers() == [3, 4]
    for number in (3, 4):
        check(store, store.load(number))
    save(store, 5)
    assert not vectors_there(tmp_path) & {"x@1", "x@2", "x@3"}


# Who may write where


@pytest.mark.parametrize("name", ["notes.txt", "manifest-1.json", "data"])
def test_folder_with_other_things_is_refused(tmp_path: Path, name: str) -> None:
    """Nothing in it is touched."""
    (tmp_path / name).write_text("mine")
    with pytest.raises(ArgumentError, match=f"holds other things, such as {name}"):
        CheckpointStore(tmp_path).prepare()
    assert [file.name for file in tmp_path.iterdir()] == [name]
    with pytest.raises(CheckpointError, match="holds other things"):
        CheckpointStore(tmp_path).newest()


def test_other_zarr_group_is_refused(tmp_path: Path) -> None:
    """Also one that holds arrays named as ours."""
    zarr.open_group(tmp_path, mode="w").create_array("vectors", shape=(3,), dtype="f4")
    with pytest.raises(ArgumentError, match=r"such as zarr\.json"):
        CheckpointStore(tmp_path).prepare()


def test_file_is_refused(tmp_path: Path) -> None:
    """A path of a file is no folder, to write or to read."""
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ArgumentError, match="is a file"):
        CheckpointStore(file).prepare()
    with pytest.raises(CheckpointError, match="cannot be read as a folder"):
        CheckpointStore(file).newest()


def test_checkpoints_of_another_run_are_refused(path: str) -> None:
    """A run that begins does not write over them; one that goes on from them may."""
    save(ready(path), 3)
    with pytest.raises(ArgumentError, match=r"the newest is 3\. Go on from it with db\.resume"):
        CheckpointStore(path).prepare()
    again = CheckpointStore(path)
    again.prepare(resumed=3)
    save(again, 4)
    assert again.numbers() == [3, 4]


def test_run_that_was_followed_commits_no_more(path: str) -> None:
    """A run that was taken for dead, and is not, cannot disturb the one that went on from its checkpoint."""
    first = ready(path)
    save(first, 3)
    second = CheckpointStore(path)
    second.prepare(resumed=3)
    with pytest.raises(CheckpointError, match="another run has begun to write"):
        save(first, 4)
    save(second, 4)
    check(second, second.newest())


def test_what_cannot_be_written_says_so(tmp_path: Path) -> None:
    """With the reason of the system."""
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot be written: .*Not a directory"):
        CheckpointStore(tmp_path / "file" / "below").write_part("x@1", 0, vector("x@1"))


def test_folder_that_vanishes_is_no_success(tmp_path: Path) -> None:
    """A commit to a folder that was removed during the save is refused."""
    store = ready(tmp_path / "run")
    parts = write_vector(store, "x@1")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(CheckpointError):
        store.commit(SavedState(1, {"x@1": parts}, {}), {}, [])


# What is asked for wrongly


@pytest.mark.parametrize("name", ["x", "x@", "@3", "../x@3", "x/y@3", "x.y@3", "x@3@4", "", "x@-1", "x@3\n"])
def test_name_must_be_safe(tmp_path: Path, name: str) -> None:
    """No name leads out of the folder."""
    with pytest.raises(ArgumentError, match="name: letters"):
        CheckpointStore(tmp_path).write_part(name, 0, vector("x@1"))


@pytest.mark.parametrize("values", [np.arange(3), np.zeros((2, 2)), np.zeros(0), np.zeros(2, complex)])
def test_values_must_be_a_vector_of_floats(tmp_path: Path, values: np.ndarray) -> None:
    with pytest.raises(ArgumentError, match="values: a vector of floats"):
        CheckpointStore(tmp_path).write_part("x@1", 0, values)


def test_strided_values_are_written(tmp_path: Path) -> None:
    """Every dtype of floats comes back as it went, from any place in memory."""
    store = CheckpointStore(tmp_path)
    for dtype in ("float16", "float32", "float64"):
        values = np.arange(20).astype(dtype)[::-2]
        np.testing.assert_array_equal(store.read_part("x@1", store.write_part("x@1", 5, values)), values, strict=True)


def test_unknown_vector_is_refused(tmp_path: Path) -> None:
    store = ready(tmp_path)
    save(store, 1)
    with pytest.raises(CheckpointError, match=r"has no vector y@1; it has g@1, s@1, state:sums@1, x@1"):
        store.read_vector(store.newest(), "y@1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": ""}, "path: a folder"),
        ({"path": "  "}, "path: a folder"),
        ({"path": 3}, "path: a folder"),
        ({"path": "a", "every_seconds": -1.0}, "every_seconds: expected"),
        ({"path": "a", "every_seconds": math.nan}, "every_seconds: expected"),
        ({"path": "a", "keep": 0}, "keep: expected"),
        ({"path": "a", "keep": 1.5}, "keep: expected"),
    ],
)
def test_options_are_checked(options: dict, message: str) -> None:
    """Each message begins with the name of the argument."""
    with pytest.raises(ArgumentError, match=f"^{message}"):
        Checkpoint(**options)


def test_default_options() -> None:
    """As often as 5 % of the time allow, and two of them."""
    assert Checkpoint("run") == Checkpoint("run", every_seconds=None, keep=2)
    assert Checkpoint(Path("run"), every_seconds=0).every_seconds == 0


def test_url_of_a_package_that_is_missing_is_refused() -> None:
    """With the words of fsspec."""
    with pytest.raises(ArgumentError, match="cannot be opened by fsspec"):
        CheckpointStore("nosuchkind://bucket/run").newest()
