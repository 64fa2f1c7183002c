"""write_dataset: any source becomes the same store, and what cannot be trained on is refused."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import GzipCodec
from zarr.storage import MemoryStore

from dask_belief.data.blocks import aligned
from dask_belief.data.write import GROWTH_CHUNKS, write_dataset
from dask_belief.data.zarr_dataset import ZarrDataset
from dask_belief.errors import ArgumentError, DataError, EmptyDataError, NonFiniteDataError

ROWS = 37


def rows_of(n_rows=ROWS, dtype="float32"):
    generator = np.random.default_rng(5)
    return generator.integers(0, 250, (n_rows, 4)).astype(dtype), generator.integers(0, 3, n_rows)


def blocks_of(inputs, targets, sizes):
    start = 0
    for size in sizes:
        yield inputs[start : start + size], targets[start : start + size]
        start += size


def sources():
    """Each kind of source of the same rows: name, inputs, targets."""
    inputs, targets = rows_of()
    unknown = da.from_array(targets, chunks=8) >= 0
    store = MemoryStore()
    group = zarr.create_group(store)
    group.create_array("x", data=inputs, chunks=(7, 4))
    return {
        "numpy": (inputs, targets),
        "lists": (inputs.tolist(), targets.tolist()),
        "dask": (da.from_array(inputs, chunks=(8, 2)), da.from_array(targets, chunks=11)),
        "dask and numpy": (da.from_array(inputs, chunks=(8, 4)), targets),
        "numpy and dask": (inputs, da.from_array(targets, chunks=8)),
        "dask of unknown rows": (
            da.from_array(inputs, chunks=(8, 4))[unknown],
            da.from_array(targets, chunks=8)[unknown],
        ),
        "zarr": (group["x"], targets),
        "blocks": (blocks_of(inputs, targets, [1, 0, 20, 3, 13]), None),
        "list of blocks": (list(blocks_of(inputs, targets, [30, 7])), None),
    }


@pytest.mark.parametrize("source", list(sources()))
def test_every_source_makes_the_same_store(source):
    """Rows, chunks, the range of the targets and completeness do not depend on where the rows came from."""
    inputs, targets = rows_of()
    with dask.config.set(scheduler="synchronous"):
        dataset = write_dataset(MemoryStore(), *sources()[source], chunk_rows=10)
    found, found_targets = dataset.read(0, ROWS)
    np.testing.assert_array_equal(found, inputs)
    np.testing.assert_array_equal(found_targets, targets)
    assert dataset.chunk_rows == 10
    assert dataset.target_range() == (0.0, 2.0)
    dataset.check(nan=True)


@given(sizes=st.lists(st.integers(0, 30), max_size=12), chunk_rows=st.integers(1, 12))
def test_aligned_blocks_end_on_chunk_borders(sizes, chunk_rows):
    """Blocks of any sizes are cut and joined so that all but the last are whole chunks, and no row is lost."""
    inputs, targets = rows_of(sum(sizes))
    blocks = list(aligned(blocks_of(inputs, targets, sizes), chunk_rows))
    assert all(len(rows) % chunk_rows == 0 and len(rows) for rows, _ in blocks[:-1])
    if sum(sizes):
        np.testing.assert_array_equal(np.concatenate([rows for rows, _ in blocks]), inputs)
        np.testing.assert_array_equal(np.concatenate([rows for _, rows in blocks]), targets)
    else:
        assert not blocks


def test_an_iterator_may_reuse_its_buffer():
    """A source that fills the same array for each block is written as if it had made new ones."""
    inputs, targets = rows_of()
    buffer, their = np.empty((5, 4), np.float32), np.empty(5, np.int64)

    def reusing():
        for start in range(0, ROWS, 5):
            rows = min(5, ROWS - start)
            buffer[:rows], their[:rows] = inputs[start : start + rows], targets[start : start + rows]
            yield buffer[:rows], their[:rows]

    dataset = write_dataset(MemoryStore(), reusing(), chunk_rows=8)
    np.testing.assert_array_equal(dataset.read(0, ROWS)[0], inputs)
    np.testing.assert_array_equal(dataset.read(0, ROWS)[1], targets)


def test_a_long_iterator_leaves_no_chunk_too_many(tmp_path):
    """Arrays that grew in steps end with exactly the rows and chunks that came."""
    n_rows = 2 * GROWTH_CHUNKS + 3
    inputs, targets = rows_of(n_rows)
    dataset = write_dataset(tmp_path / "a.zarr", blocks_of(inputs, targets, [1] * n_rows), chunk_rows=1)
    assert dataset.n_rows == n_rows
    assert len(list((tmp_path / "a.zarr" / "targets" / "c").iterdir())) == n_rows
    np.testing.assert_array_equal(dataset.read(0, n_rows)[1], targets)


def test_not_all_is_held_at_once(monkeypatch):
    """Of a large source a few chunks are asked for at a time, in order, each row once."""
    monkeypatch.setattr("dask_belief.data.blocks.BLOCK_BYTES", 2 * 10 * 16)
    inputs, targets = rows_of(100)
    asked = []

    class Watched:
        shape, dtype = inputs.shape, inputs.dtype

        def __getitem__(self, rows):
            asked.append((rows.start, rows.stop))
            return inputs[rows]

    write_dataset(MemoryStore(), Watched(), targets, chunk_rows=10)
    assert asked == [(start, start + 20) for start in range(0, 100, 20)]


def test_what_inputs_and_targets_share_is_computed_once(monkeypatch):
    """Each Dask block is computed once, although inputs and targets both come from it."""
    monkeypatch.setattr("dask_belief.data.blocks.BLOCK_BYTES", 1)
    computed = []

    def load(block):
        computed.append(len(block))
        return block

    table = da.from_array(np.arange(60.0).reshape(20, 3), chunks=(5, 3)).map_blocks(load, meta=np.empty((0, 3)))
    with dask.config.set(scheduler="synchronous"):
        dataset = write_dataset(MemoryStore(), table[:, :2], table[:, 2], chunk_rows=4)
    assert computed == [5, 5, 5, 5]
    np.testing.assert_array_equal(dataset.read(0, 20, np.float64)[1], np.arange(2.0, 60.0, 3.0))


def test_integers_stay_small_and_are_scaled_when_read():
    """Bytes are stored as bytes; the declared transform is found again on opening."""
    inputs, targets = rows_of(dtype="uint8")
    store = MemoryStore()
    write_dataset(store, inputs, targets, chunk_rows=10, scale=1 / 255, offset=-0.5)
    dataset = ZarrDataset(store)
    assert dataset.input_dtype == np.uint8
    assert dataset.n_bytes == inputs.nbytes + targets.nbytes
    np.testing.assert_allclose(dataset.read(3, 9)[0], inputs[3:9] / 255 - 0.5, rtol=0, atol=1e-7)


def test_foreign_bytes_become_native():
    """Numbers in the other byte order are stored in this machine's."""
    inputs, targets = rows_of(dtype=">f4")
    dataset = write_dataset(MemoryStore(), inputs, targets.astype(">i4"), chunk_rows=10)
    assert dataset.input_dtype.isnative
    assert dataset.target_dtype.isnative
    np.testing.assert_array_equal(dataset.read(0, ROWS)[0], inputs)


@pytest.mark.parametrize(("compressor", "n_codecs"), [(None, 0), ("lz4", 1), ("zstd", 1), (GzipCodec(level=1), 1)])
def test_codecs(compressor, n_codecs):
    """Nothing is compressed unless asked for; every codec gives the same rows back."""
    inputs, targets = rows_of()
    store = MemoryStore()
    dataset = write_dataset(store, inputs, targets, chunk_rows=10, compressor=compressor)
    assert len(zarr.open_array(store, path="inputs").compressors) == n_codecs
    np.testing.assert_array_equal(dataset.read(0, ROWS)[0], inputs)


def test_an_existing_store_is_replaced_only_on_demand(tmp_path):
    """Without overwrite the old rows stay; with it nothing of them is left."""
    path = tmp_path / "a.zarr"
    inputs, targets = rows_of()
    write_dataset(path, inputs, targets, chunk_rows=10)
    with pytest.raises(ArgumentError, match="overwrite=True"):
        write_dataset(path, inputs[:5], targets[:5], chunk_rows=10)
    assert ZarrDataset(path).n_rows == ROWS
    assert write_dataset(path, inputs[:5], targets[:5], chunk_rows=1, overwrite=True).n_rows == 5
    assert len(list((path / "targets" / "c").iterdir())) == 5


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_other_files_is_never_touched(tmp_path, overwrite):
    """A slip in the path empties nobody's home."""
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(ArgumentError, match="not Zarr's"):
        write_dataset(tmp_path, *rows_of(), chunk_rows=10, overwrite=overwrite)
    with pytest.raises(ArgumentError, match="not Zarr's"):
        write_dataset(tmp_path / "thesis.txt", *rows_of(), chunk_rows=10, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_empty_folder_is_a_place_to_write(tmp_path):
    """A folder that was made for the store is used."""
    assert write_dataset(tmp_path, *rows_of(), chunk_rows=10).n_rows == ROWS


def test_a_writing_that_broke_off_is_told(tmp_path):
    """A source that fails halfway leaves a store that says so when it is opened, and can be written again."""
    path = tmp_path / "a.zarr"
    inputs, targets = rows_of()

    def failing():
        yield inputs[:20], targets[:20]
        raise RuntimeError("the tape tore")

    with pytest.raises(RuntimeError, match="the tape tore"):
        write_dataset(path, failing(), chunk_rows=10)
    with pytest.raises(DataError, match="not complete"):
        ZarrDataset(path)
    assert write_dataset(path, inputs, targets, chunk_rows=10, overwrite=True).n_rows == ROWS


@pytest.mark.parametrize("row", [0, 26])
@pytest.mark.parametrize("name", ["inputs", "targets"])
def test_values_that_are_not_finite_are_refused(name, row, tmp_path):
    """The array and the row, counted over the whole source, are named; a fault in the first block touches nothing."""
    arrays = dict(zip(("inputs", "targets"), rows_of(), strict=True))
    arrays["targets"] = arrays["targets"].astype(float)
    arrays[name][row] = np.nan
    blocks = blocks_of(arrays["inputs"], arrays["targets"], [12, 12, 13])
    with pytest.raises(NonFiniteDataError, match=f"^{name}: row {row} "):
        write_dataset(tmp_path / "a.zarr", blocks, chunk_rows=10)
    assert (tmp_path / "a.zarr").exists() == (row > 0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.zeros((3, 2)), np.zeros(4)), ArgumentError, "lengths differ, 3 and 4"),
        ((da.zeros((3, 2)), da.zeros(4)), ArgumentError, "lengths differ, 3 and 4"),
        ((np.zeros((0, 2)), np.zeros(0)), EmptyDataError, "no rows"),
        ((da.zeros((0, 2)), da.zeros(0)), EmptyDataError, "no rows"),
        ((iter([]),), EmptyDataError, "no rows"),
        ((iter([(np.zeros((0, 2)), np.zeros(0))]),), EmptyDataError, "no rows"),
        ((np.zeros((3, 2)),), ArgumentError, "^targets: none were given"),
        ((5,), ArgumentError, "^targets: none were given"),
        ((np.float64(1), np.zeros(1)), ArgumentError, "^inputs: an array of rows"),
        ((np.zeros((3, 0)), np.zeros(3)), ArgumentError, "^inputs: rows of shape"),
        ((np.array(["a", "b"]), np.zeros(2)), DataError, "^inputs: the dtype is <U1"),
        ((np.zeros((2, 2)), np.array([1j, 2])), DataError, "^targets: the dtype is complex"),
        ((iter([np.zeros(3)]),), ArgumentError, "^inputs: blocks of"),
        ((iter([(np.zeros((3, 2)), np.zeros(2))]),), ArgumentError, "lengths differ in the block at row 0"),
        (
            (iter([(np.zeros((1, 2)), np.zeros(1)), (np.zeros((1, 3)), np.zeros(1))]),),
            ArgumentError,
            "the block at row 1",
        ),
        (
            (iter([(np.zeros((1, 2)), np.zeros(1)), (np.zeros((1, 2)), [1])]),),
            ArgumentError,
            "^targets: the block at row 1",
        ),
        ((da.zeros(6, chunks=3)[da.ones(6, chunks=3) > 0], np.zeros(6)), ArgumentError, "compute_chunk_sizes"),
    ],
)
def test_unfit_sources_are_refused(arguments, error, message):
    """Each way in which rows cannot become a data set has its own message."""
    with dask.config.set(scheduler="synchronous"), pytest.raises(error, match=message):
        write_dataset(MemoryStore(), *arguments, chunk_rows=10)


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ({"chunk_rows": 0}, "chunk_rows"),
        ({"chunk_rows": 2.5}, "chunk_rows"),
        ({"chunk_rows": 2**30}, "chunk_rows"),
        ({"scale": 0}, "scale"),
        ({"offset": np.nan}, "offset"),
        ({"compressor": "zip"}, "compressor"),
    ],
)
def test_unfit_options_are_refused_before_anything_is_written(option, name):
    """A bad option is refused by name, and the store stays empty."""
    store = MemoryStore()
    with pytest.raises(ArgumentError, match=f"^{name}"):
        write_dataset(store, *rows_of(), **{"chunk_rows": 10, **option})
    assert not store._store_dict
