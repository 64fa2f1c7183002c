"""ZarrDataset: what is opened, what is refused, and that what is read is what was stored."""

from __future__ import annotations

import json
import pickle
import shutil
import threading
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.storage import LocalStore, MemoryStore

from dask_belief.data.store import read_rows
from dask_belief.data.transform import Scale
from dask_belief.data.write import write_dataset
from dask_belief.data.zarr_dataset import ZarrDataset
from dask_belief.errors import ArgumentError, DataError, EmptyDataError, MissingStoreError, NonFiniteDataError

ROWS, CHUNK = 23, 5


def rows_of(dtype="float32", target_dtype="int64", n_rows=ROWS):
    generator = np.random.default_rng(11)
    inputs = generator.integers(0, 100, (n_rows, 3, 2)).astype(dtype)
    return inputs, generator.integers(0, 2, n_rows).astype(target_dtype)


def store_of(inputs, targets, chunks=(CHUNK, CHUNK), zarr_format=3, **arrays):
    """A group made by other software: no mark."""
    store = MemoryStore()
    group = zarr.create_group(store, zarr_format=zarr_format)
    for name, rows, chunk in (("inputs", inputs, chunks[0]), ("targets", targets, chunks[1])):
        if rows is not None:
            shape = chunk if isinstance(chunk, tuple) else (chunk, *rows.shape[1:])
            shape = tuple(max(size, 1) for size in shape)  # newer versions of Zarr refuse chunks of no length
            array = group.create_array(name, shape=rows.shape, chunks=shape, dtype=rows.dtype, **arrays)
            array[...] = rows
    return store


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "uint8", "int16", "bool", ">f4", ">i2"])
@pytest.mark.parametrize("run", [np.float32, np.float64])
def test_reading_is_casting_and_scaling(zarr_format, dtype, run):
    """Every stored dtype, of either format and byte order, is read as the plain formula has it."""
    inputs, targets = rows_of(dtype)
    dataset = ZarrDataset(store_of(inputs, targets, zarr_format=zarr_format), transform=Scale(0.5, -1.0))
    for start, stop in [(0, ROWS), (5, 15), (20, 23), (6, 8), (3, 12), (7, 7)]:
        found, found_targets = dataset.read(start, stop, run)
        np.testing.assert_array_equal(found, inputs[start:stop].astype(run) * run(0.5) - run(1.0))
        np.testing.assert_array_equal(found_targets, targets[start:stop])
        assert found.dtype == run
        assert found.flags.c_contiguous
        assert found.flags.owndata
        assert found.flags.writeable


@pytest.mark.parametrize(
    ("stored", "run", "expected"),
    [
        ("int32", "float32", "int64"),
        ("uint8", "float64", "int64"),
        ("bool", "float32", "int64"),
        ("float64", "float32", "float32"),
        ("float32", "float64", "float64"),
    ],
)
def test_targets_keep_their_nature(stored, run, expected):
    """Whole targets come as int64 in any run, floats in the run's dtype; inputs' scale does not touch them."""
    inputs, targets = rows_of(target_dtype=stored)
    found = ZarrDataset(store_of(inputs, targets), transform=Scale(3.0)).read(2, 19, run)[1]
    assert found.dtype == expected
    np.testing.assert_array_equal(found, targets[2:19].astype(expected))


@given(st.integers(0, ROWS), st.integers(0, ROWS), st.integers(1, ROWS + 3))
def test_any_rows_of_any_chunks(one, other, chunk):
    """Any run of rows, whatever the chunks, is read as slicing has it."""
    inputs, targets = rows_of("uint8")
    start, stop = sorted((one, other))
    found, found_targets = ZarrDataset(store_of(inputs, targets, (chunk, chunk))).read(start, stop)
    np.testing.assert_array_equal(found, inputs[start:stop])
    np.testing.assert_array_equal(found_targets, targets[start:stop])


def test_spans_cut_at_chunks_change_nothing(monkeypatch):
    """Rows read chunk by chunk are those read all at once."""
    inputs, targets = rows_of("uint8")
    dataset = ZarrDataset(store_of(inputs, targets))
    monkeypatch.setattr("dask_belief.data.zarr_dataset.REMOTE_SPAN_BYTES", 1)
    assert list(dataset._spans(3, 17)) == [(3, 5), (5, 10), (10, 15), (15, 17)]
    np.testing.assert_array_equal(dataset.read(3, 17)[0], inputs[3:17])


def test_parts_of_one_chunk_decode_it_once(monkeypatch):
    """Three parts of a chunk, one after the other, cost one read of each array; another chunk costs another."""
    inputs, targets = rows_of()
    dataset = ZarrDataset(store_of(inputs, targets))
    reads = []

    def counted(array, start, stop, out=None):
        reads.append((start, stop))
        return read_rows(array, start, stop, out)

    monkeypatch.setattr("dask_belief.data.store.read_rows", counted)
    for start, stop in [(5, 7), (7, 8), (8, 10)]:
        np.testing.assert_array_equal(dataset.read(start, stop)[0], inputs[start:stop])
    assert reads == [(5, 10)] * 2
    np.testing.assert_array_equal(dataset.read(21, 22)[0], inputs[21:22])
    assert reads[2:] == [(20, 23)] * 2


def test_rows_that_were_handed_out_are_the_callers(tmp_path):
    """Writing into what was read changes neither the store nor the next read."""
    inputs, targets = rows_of()
    dataset = write_dataset(tmp_path / "a.zarr", inputs, targets, chunk_rows=CHUNK)
    for start, stop in [(0, 10), (1, 3)]:
        found, found_targets = dataset.read(start, stop)
        found[:] = -1
        found_targets[:] = -1
        np.testing.assert_array_equal(dataset.read(start, stop)[0], inputs[start:stop])
        np.testing.assert_array_equal(dataset.read(start, stop)[1], targets[start:stop])


def test_facts_are_told():
    """Shapes, dtypes, chunks and bytes are those of the arrays."""
    inputs, targets = rows_of("uint8", "float64")
    dataset = ZarrDataset(store_of(inputs, targets))
    assert (dataset.n_rows, dataset.chunk_rows) == (ROWS, CHUNK)
    assert (dataset.input_shape, dataset.target_shape) == ((3, 2), ())
    assert (dataset.input_dtype.name, dataset.target_dtype.name) == ("uint8", "float64")
    assert dataset.n_bytes == inputs.nbytes + targets.nbytes
    assert dataset.row_bytes(np.float32) == 6 * 4 + 4
    assert dataset.transform.is_identity
    assert f"n_rows={ROWS}" in repr(dataset)


def test_chunks_larger_than_the_data_are_cut():
    """Arrays of one chunk agree, however much room each left in it."""
    inputs, targets = rows_of()
    assert ZarrDataset(store_of(inputs, targets, (100, 1_000))).chunk_rows == ROWS


def test_the_target_range_is_found_once(monkeypatch):
    """Without a mark one pass over the targets finds their range; it is kept."""
    inputs, targets = rows_of(target_dtype="int32")
    targets[17] = 9
    targets[20] = -4
    dataset = ZarrDataset(store_of(inputs, targets))
    monkeypatch.setattr("dask_belief.data.zarr_dataset.REMOTE_SPAN_BYTES", 1)
    assert dataset.target_range() == (-4.0, 9.0)
    monkeypatch.setattr("dask_belief.data.store.read_rows", None)
    assert dataset.target_range() == (-4.0, 9.0)


def test_rows_without_targets_have_no_range():
    """Targets of no number have no range."""
    dataset = ZarrDataset(store_of(rows_of()[0], np.empty((ROWS, 0))))
    assert dataset.target_range() is None
    assert dataset.read(0, 2)[1].shape == (2, 0)


@pytest.mark.parametrize("as_what", ["path", "string", "relative", "store", "group", "url", "subgroup"])
def test_every_way_to_name_a_store(as_what, tmp_path, monkeypatch):
    """A path, a URL, a store and a group open the same data, and survive a pickle."""
    inputs, targets = rows_of()
    path = tmp_path / "a.zarr"
    write_dataset(path, inputs, targets, chunk_rows=CHUNK, scale=2.0)
    monkeypatch.chdir(tmp_path)
    if as_what == "subgroup":
        parent = zarr.create_group(tmp_path / "parent.zarr")
        shutil.copytree(path, tmp_path / "parent.zarr" / "child")
        named: Any = parent["child"]
    else:
        named = {
            "path": path,
            "string": str(path),
            "relative": "a.zarr",
            "store": LocalStore(path),
            "group": zarr.open_group(path),
            "url": f"file://{path}",
        }[as_what]
    dataset = pickle.loads(pickle.dumps(ZarrDataset(named)))
    monkeypatch.chdir("/")
    again = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(again.read(0, ROWS)[0], 2 * inputs)
    assert again.target_range() == (0.0, 1.0)


def test_a_pickle_holds_no_data(tmp_path):
    """What travels is the address, the names, the transform and the range."""
    inputs, targets = rows_of()
    dataset = write_dataset(tmp_path / "a.zarr", inputs, targets, chunk_rows=CHUNK)
    dataset.read(1, 3)
    assert len(pickle.dumps(dataset)) < 600


def test_a_store_in_memory_cannot_be_sent():
    """Another process could not open it, so pickling says so at once."""
    dataset = ZarrDataset(store_of(*rows_of()))
    with pytest.raises(ArgumentError, match="MemoryStore"):
        pickle.dumps(dataset)


def test_threads_read_at_once(tmp_path):
    """Four threads that read parts of the same chunks all get their own rows."""
    inputs, targets = rows_of("uint8", n_rows=400)
    dataset = write_dataset(tmp_path / "a.zarr", inputs, targets, chunk_rows=50)
    wrong = []

    def read(seed):
        for start in np.random.default_rng(seed).integers(0, 380, 40):
            if not np.array_equal(dataset.read(int(start), int(start) + 20)[0], inputs[start : start + 20]):
                wrong.append(start)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_arrays_of_other_names():
    """Arrays are found under the names that are given."""
    store = MemoryStore()
    group = zarr.create_group(store)
    inputs, targets = rows_of()
    group.create_array("x", data=inputs, chunks=(CHUNK, 3, 2))
    group.create_array("y", data=targets, chunks=(CHUNK,))
    assert ZarrDataset(store, inputs="x", targets="y").n_rows == ROWS
    with pytest.raises(MissingStoreError, match=r"^inputs: .* it has x, y"):
        ZarrDataset(store)


def test_a_missing_store_is_named(tmp_path):
    """The path that was tried is in the message, and nothing is created there."""
    with pytest.raises(MissingStoreError, match=r"nowhere\.zarr"):
        ZarrDataset(tmp_path / "nowhere.zarr")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["file", "folder", "array", "damaged"])
def test_what_is_no_group_is_refused(content, tmp_path):
    """A file, a folder of other files, a single array and damaged metadata are told apart from a missing store."""
    path = tmp_path / "a"
    if content == "file":
        path.write_text("x")
    elif content == "folder":
        path.mkdir()
        (path / "b.txt").write_text("x")
    elif content == "array":
        zarr.create_array(path, data=np.zeros(3))
    else:
        path.mkdir()
        (path / "zarr.json").write_text("{")
    with pytest.raises(DataError, match=f"^store: .*{path}"):
        ZarrDataset(path)


@pytest.mark.parametrize("store", [None, 5, "", b"bytes", {"a": 1}])
def test_what_names_no_store_is_refused(store):
    """An argument of another kind is refused as an argument."""
    with pytest.raises(ArgumentError, match=r"^store"):
        ZarrDataset(store)


def test_an_unknown_protocol_is_refused():
    """A URL that fsspec does not know, or whose package is missing, is named."""
    with pytest.raises(DataError, match="nope://"):
        ZarrDataset("nope://bucket/data.zarr")


@pytest.mark.parametrize("transform", [0.5, {"scale": 0.5}])
def test_a_transform_of_another_kind_is_refused(transform):
    """A bare number or a dictionary is no transform."""
    with pytest.raises(ArgumentError, match=r"^transform"):
        ZarrDataset(store_of(*rows_of()), transform=transform)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"targets": rows_of(n_rows=22)[1]}, DataError, "lengths differ, 23 and 22"),
        ({"chunks": (5, 4)}, DataError, "mismatched chunks, 5 and 4"),
        ({"chunks": ((5, 3, 1), 5)}, DataError, r"chunks \(5, 3, 1\) cut the rows"),
        ({"inputs": np.zeros((0, 3)), "targets": np.zeros(0)}, EmptyDataError, "no rows"),
        ({"inputs": np.zeros((ROWS, 0)), "chunks": ((5, 1), 5)}, DataError, "hold no number"),
        ({"inputs": np.zeros((ROWS, 2), "complex64")}, DataError, "inputs: the dtype is complex64"),
        ({"targets": np.zeros(ROWS, "datetime64[s]")}, DataError, "targets: the dtype is datetime64"),
        ({"targets": None}, MissingStoreError, "targets: .* no array of this name; it has inputs"),
        ({"targets": np.float64(3.0), "chunks": (5, ())}, DataError, "targets: the array is one number"),
    ],
)
@pytest.mark.filterwarnings("ignore:The data type:zarr.errors.UnstableSpecificationWarning")
def test_unfit_arrays_are_refused(change, error, message):
    """Each way in which two arrays cannot be a data set has its own message, on opening."""
    inputs, targets = rows_of()
    arguments = {"inputs": inputs, "targets": targets} | change
    with pytest.raises(error, match=message):
        ZarrDataset(store_of(**arguments))


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (4, 3), (0, ROWS + 1)])
def test_rows_that_are_not_there_are_refused(start, stop):
    """Rows outside of the data are named, and how many there are."""
    with pytest.raises(ArgumentError, match=f"rows {start} to {stop} .* 0 to {ROWS}"):
        ZarrDataset(store_of(*rows_of())).read(start, stop)


def test_other_dtypes_are_refused():
    """A run computes in float32 or float64."""
    dataset = ZarrDataset(store_of(*rows_of()))
    with pytest.raises(ArgumentError, match=r"^dtype"):
        dataset.read(0, 1, np.float16)
    with pytest.raises(ArgumentError, match=r"^dtype"):
        dataset.row_bytes(np.int64)


@pytest.mark.parametrize("name", ["inputs", "targets"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_check_finds_what_is_not_finite(name, value, monkeypatch):
    """The array and the first bad row are named, also behind the first span; nothing is read unless asked for."""
    arrays = dict(zip(("inputs", "targets"), rows_of(target_dtype="float32"), strict=True))
    arrays[name][16] = value
    dataset = ZarrDataset(store_of(**arrays))
    monkeypatch.setattr("dask_belief.data.zarr_dataset.REMOTE_SPAN_BYTES", 1)
    dataset.check()
    with pytest.raises(NonFiniteDataError, match=f"^{name}: row 16 "):
        dataset.check(nan=True)


def test_check_sees_what_changed_since(tmp_path):
    """A store that was removed or cut after it was opened is found by check, without reading rows."""
    dataset = write_dataset(tmp_path / "a.zarr", *rows_of(), chunk_rows=CHUNK)
    dataset.check(nan=True)
    zarr.open_array(tmp_path / "a.zarr" / "targets").resize((20,))
    with pytest.raises(DataError, match="lengths differ, 23 and 20"):
        dataset.check()
    shutil.rmtree(tmp_path / "a.zarr")
    with pytest.raises(MissingStoreError):
        dataset.check()


def test_a_lost_chunk_of_ours_is_found(tmp_path):
    """Check counts the chunks of stores that we wrote; who does not check reads NaN, not Zarr's usual zeros."""
    dataset = write_dataset(tmp_path / "a.zarr", np.zeros((20, 2)), np.zeros(20), chunk_rows=CHUNK)
    dataset.check(nan=True)
    (tmp_path / "a.zarr" / "inputs" / "c" / "2" / "0").unlink()
    with pytest.raises(DataError, match=r"^inputs: 1 of 4 chunks are missing"):
        dataset.check(nan=True)
    assert np.isnan(dataset.read(10, 15)[0]).all()


def test_chunks_that_others_left_out_are_zeros():
    """Other software leaves chunks of zeros out; these are no fault."""
    store = store_of(np.zeros((ROWS, 2)), np.zeros(ROWS))
    ZarrDataset(store).check(nan=True)
    assert not ZarrDataset(store).read(0, ROWS)[0].any()


def test_a_damaged_chunk_is_named(tmp_path):
    """A chunk that cannot be decoded is a fault of the data, with the rows in the message."""
    dataset = write_dataset(tmp_path / "a.zarr", np.zeros((20, 2)), np.zeros(20), chunk_rows=CHUNK)
    (tmp_path / "a.zarr" / "inputs" / "c" / "2" / "0").write_bytes(b"short")
    with pytest.raises(DataError, match=r"rows 10 to 15 of .*a\.zarr/inputs failed"):
        dataset.read(10, 15)


class FailingStore(MemoryStore):
    """A store whose third chunk of inputs cannot be had."""

    async def get(self, key, *arguments, **options):
        if key == "inputs/c/2/0":
            raise ConnectionError("the cable is out")
        return await super().get(key, *arguments, **options)


def test_errors_of_the_machine_are_left_as_they_are():
    """What the network reports keeps its type, so that a caller may try again, and says which rows."""
    dataset = write_dataset(FailingStore(), np.zeros((20, 2)), np.zeros(20), chunk_rows=CHUNK)
    dataset.read(0, 10)
    with pytest.raises(ConnectionError, match="the cable is out") as caught:
        dataset.read(10, 15)
    assert "rows 10 to 15" in caught.value.__notes__[0]


def test_marks_are_checked(tmp_path):
    """A store of a newer format, with a broken mark, or of other rows than were completed, is refused."""
    path = tmp_path / "a.zarr"
    write_dataset(path, *rows_of(), chunk_rows=CHUNK)
    good: Any = zarr.open_group(path).attrs["dask_belief"]
    assert json.loads(json.dumps(good)) == {
        "format": 1,
        "n_rows": ROWS,
        "transform": {"scale": 1.0, "offset": 0.0},
        "target_range": [0.0, 1.0],
    }
    for change, message in [
        ({"format": 2}, "has format 2, this version reads 1"),
        ({"n_rows": 5}, f"completed with 5 rows and has {ROWS}"),
        ({"target_range": None}, "is damaged"),
        ({"transform": {"gamma": 1}}, "is damaged"),
    ]:
        zarr.open_group(path).attrs["dask_belief"] = good | change
        with pytest.raises(DataError, match=message):
            ZarrDataset(path)
