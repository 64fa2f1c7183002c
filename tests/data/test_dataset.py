"""ArrayDataset, and what as_dataset makes of what training is given."""

from __future__ import annotations

import gc
import logging
import os
import pickle
import subprocess
import sys

import dask
import dask.array as da
import numpy as np
import pytest
from zarr.storage import MemoryStore

from dask_belief.data.dataset import ArrayDataset, Dataset, as_dataset
from dask_belief.data.transform import Scale
from dask_belief.data.write import write_dataset
from dask_belief.data.zarr_dataset import ZarrDataset
from dask_belief.errors import ArgumentError, DataError, EmptyDataError, MissingStoreError, NonFiniteDataError


def rows_of(dtype="float32", target_dtype="int64"):
    generator = np.random.default_rng(2)
    return generator.integers(0, 99, (11, 3)).astype(dtype), generator.integers(0, 2, 11).astype(target_dtype)


@pytest.mark.parametrize("target_dtype", ["bool", "int32", "float64", "uint8"])
@pytest.mark.parametrize("dtype", ["uint8", "float64", "float32", ">f4"])
@pytest.mark.parametrize("run", [np.float32, np.float64])
def test_memory_and_store_agree(dtype, target_dtype, run):
    """The same rows give the same facts and, to the bit, the same reads from memory and from a store."""
    inputs, targets = rows_of(dtype, target_dtype)
    memory = ArrayDataset(inputs, targets, chunk_rows=4, transform=Scale(1 / 3, 0.1))
    stored = write_dataset(MemoryStore(), inputs, targets, chunk_rows=4, scale=1 / 3, offset=0.1)
    for name in ("n_rows", "input_shape", "target_shape", "chunk_rows", "n_bytes", "transform"):
        assert getattr(memory, name) == getattr(stored, name), name
    assert memory.row_bytes(run) == stored.row_bytes(run)
    assert memory.target_range() == stored.target_range()
    for start, stop in [(0, 11), (4, 8), (5, 7)]:
        for one, other in zip(memory.read(start, stop, run), stored.read(start, stop, run), strict=True):
            assert one.dtype == other.dtype
            assert one.flags.c_contiguous
            np.testing.assert_array_equal(one, other)


def test_both_kinds_are_data_sets():
    """The protocol holds for both, so either can be trained on."""
    inputs, targets = rows_of()
    assert isinstance(ArrayDataset(inputs, targets), Dataset)
    assert isinstance(write_dataset(MemoryStore(), inputs, targets, chunk_rows=4), Dataset)
    assert not isinstance((inputs, targets), Dataset)


def test_what_is_read_is_a_copy():
    """Writing into what was read does not change the caller's arrays."""
    inputs, targets = rows_of()
    kept = inputs.copy(), targets.copy()
    for rows in ArrayDataset(inputs, targets).read(0, 11):
        rows[:] = -1
    np.testing.assert_array_equal(inputs, kept[0])
    np.testing.assert_array_equal(targets, kept[1])


def test_default_chunks_are_about_4_mib():
    """Without chunk_rows the chunk grid follows from the bytes of a row."""
    dataset = ArrayDataset(np.zeros((3_000, 1_000)), np.zeros(3_000))
    assert dataset.chunk_rows == 4 * 2**20 // 8_008
    assert ArrayDataset(np.zeros((5, 1)), np.zeros(5)).chunk_rows == 5


@pytest.mark.parametrize(
    ("inputs", "targets", "error", "message"),
    [
        (np.zeros((3, 2)), np.zeros(4), ArgumentError, "lengths differ, 3 and 4"),
        (np.zeros((0, 2)), np.zeros(0), EmptyDataError, "no rows"),
        (np.zeros((3, 0)), np.zeros(3), ArgumentError, "hold no number"),
        (np.float64(1), np.zeros(1), ArgumentError, "^inputs"),
        (np.zeros(1), np.float64(1), ArgumentError, "^targets"),
        (np.array(["a"]), np.zeros(1), DataError, "^inputs: the dtype"),
        (np.zeros(1), np.array([None]), DataError, "^targets: the dtype is object"),
    ],
)
def test_unfit_arrays_are_refused(inputs, targets, error, message):
    """Each way in which two arrays cannot be a data set has its own message."""
    with pytest.raises(error, match=message):
        ArrayDataset(inputs, targets)


def test_unfit_requests_are_refused():
    """Rows that are not there, and another dtype, are refused by name."""
    dataset = ArrayDataset(*rows_of())
    with pytest.raises(ArgumentError, match="rows 3 to 12 "):
        dataset.read(3, 12)
    with pytest.raises(ArgumentError, match=r"^dtype"):
        dataset.read(0, 1, "int8")
    with pytest.raises(ArgumentError, match=r"^chunk_rows"):
        ArrayDataset(*rows_of(), chunk_rows=0)


def test_check_finds_what_is_not_finite():
    """The array and the row are named, on request only."""
    inputs, targets = rows_of()
    inputs[7, 1] = np.inf
    dataset = ArrayDataset(inputs, targets)
    dataset.check()
    with pytest.raises(NonFiniteDataError, match=r"^inputs: row 7 "):
        dataset.check(nan=True)
    with pytest.raises(NonFiniteDataError, match=r"^targets: row 1 "):
        ArrayDataset(np.zeros(2), np.array([0, np.nan])).target_range()


def test_data_sets_are_left_as_they_are():
    """What is a data set already is not wrapped."""
    dataset = ArrayDataset(*rows_of())
    assert as_dataset(dataset) is dataset


def test_a_tuple_of_arrays_is_used_in_memory():
    """NumPy arrays are not copied."""
    inputs, targets = rows_of()
    dataset = as_dataset((inputs, targets))
    assert isinstance(dataset, ArrayDataset)
    assert dataset._inputs is inputs


def test_a_path_is_opened(tmp_path):
    """A path is opened as a store, and a missing one is told."""
    write_dataset(tmp_path / "a.zarr", *rows_of(), chunk_rows=4)
    assert as_dataset(tmp_path / "a.zarr").n_rows == 11
    with pytest.raises(MissingStoreError):
        as_dataset(str(tmp_path / "b.zarr"))


def test_dask_arrays_are_written_once_and_removed_with_the_data_set(tmp_path, monkeypatch, caplog):
    """The temporary store can be opened elsewhere, its path is logged, and it goes when the data set goes."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    inputs, targets = rows_of()
    with caplog.at_level(logging.INFO, "dask_belief"), dask.config.set(scheduler="synchronous"):
        dataset = as_dataset((da.from_array(inputs, chunks=4), targets))
    assert isinstance(dataset, ZarrDataset)
    assert dataset.address.startswith(str(tmp_path))
    assert dataset.address in caplog.text
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(dataset)).read(0, 11)[0], inputs)
    assert os.listdir(tmp_path)
    del dataset
    gc.collect()
    assert not os.listdir(tmp_path)


def test_dask_arrays_that_are_refused_leave_nothing(tmp_path, monkeypatch):
    """When writing fails the temporary folder is removed at once."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with dask.config.set(scheduler="synchronous"), pytest.raises(NonFiniteDataError):
        as_dataset((da.full((4, 2), np.nan), da.zeros(4)))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("data", [None, 3, np.zeros(3), (np.zeros(3),), (np.zeros(3),) * 3])
def test_other_things_are_refused(data):
    """What is neither a data set, a store nor a pair of arrays is refused as an argument."""
    with pytest.raises(ArgumentError):
        as_dataset(data)


def test_zarr_is_not_imported_before_it_is_needed():
    """Training data in memory costs no import of Zarr."""
    program = (
        "import sys, numpy, dask_belief.data as data;"
        "data.as_dataset((numpy.zeros((3, 2)), numpy.zeros(3))).read(0, 2);"
        "print('zarr' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "False"
