"""Chunks read as files: the same rows as Zarr's, or Zarr is asked."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_belief.data import plain_chunks
from dask_belief.data.store import StoredRows
from dask_belief.data.store import plain_chunks as plain_chunks_of
from dask_belief.errors import DataError

ROWS, CHUNK = 23, 5
DEFAULTS = {"compressors": None, "fill_value": 7, "config": {"write_empty_chunks": True}}
OTHER_ORDER = ">" if sys.byteorder == "little" else "<"


def array_at(path, rows, *, zarr_format=3, chunk_rows=CHUNK, **options):
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    chunks = options.pop("chunks", (chunk_rows, *rows.shape[1:]))
    array = group.create_array("rows", shape=rows.shape, dtype=rows.dtype, chunks=chunks, **DEFAULTS | options)
    array[:] = rows
    return zarr.open_group(path, mode="r")["rows"]


def rows_of(dtype="float32", shape=(3, 2)):
    return np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 100, (ROWS, *shape)).astype(dtype)


@pytest.fixture
def no_zarr(monkeypatch):
    """Reading by Zarr fails."""
    monkeypatch.setattr("dask_belief.data.store.read_rows", None)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "int64", "bool"])
@pytest.mark.parametrize("shape", [(3, 2), (4,), ()])
def test_every_run_of_rows_is_read_without_zarr(tmp_path, no_zarr, zarr_format, dtype, shape):
    """Any rows, across chunks and up to the last short one, are those that were written."""
    rows = rows_of(dtype, shape)
    stored = StoredRows(array_at(tmp_path / "a.zarr", rows, zarr_format=zarr_format))
    assert stored.is_plain
    for start in range(ROWS):
        for stop in range(start, ROWS + 1):
            found = stored.read(start, stop)
            assert found.dtype == rows.dtype
            np.testing.assert_array_equal(found, rows[start:stop])


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.integers(1, 40), st.integers(0, ROWS), st.integers(0, ROWS))
def test_any_chunks_and_rows_into_an_array(tmp_path_factory, chunk_rows, one, other):
    """Rows land in the array that is given, whatever the chunks, also where one is larger than the data."""
    rows, (start, stop) = rows_of(), sorted((one, other))
    stored = StoredRows(array_at(tmp_path_factory.mktemp("a") / "a.zarr", rows, chunk_rows=chunk_rows))
    out = np.zeros((stop - start, 3, 2), np.float32)
    assert stored.read(start, stop, out) is out
    np.testing.assert_array_equal(out, rows[start:stop])


@pytest.mark.parametrize(
    "options",
    [
        {"compressors": zarr.codecs.BloscCodec(cname="lz4")},
        {"filters": [zarr.codecs.TransposeCodec(order=(2, 1, 0))]},
        {"serializer": zarr.codecs.BytesCodec(endian="big" if sys.byteorder == "little" else "little")},
        {"shards": (2 * CHUNK, 3, 2)},
        {"zarr_format": 2, "order": "F"},
        {"zarr_format": 2, "compressors": {"id": "zlib", "level": 1}},
        {"chunks": (CHUNK, 4, 2)},
    ],
    ids=lambda options: "-".join(options),
)
def test_what_has_to_be_decoded_is_left_to_zarr(tmp_path, options):
    """Compressed, permuted, sharded or padded chunks are not plain, and are read all the same."""
    rows = rows_of()
    stored = StoredRows(array_at(tmp_path / "a.zarr", rows, **options))
    assert not stored.is_plain
    np.testing.assert_array_equal(stored.read(3, 12), rows[3:12])


def test_another_order_of_bytes_is_left_to_zarr(tmp_path):
    """Numbers of format 2 in the other order of bytes are not plain."""
    rows = rows_of().astype(f"{OTHER_ORDER}f4")
    assert plain_chunks_of(array_at(tmp_path / "a.zarr", rows, zarr_format=2)) is None


def test_a_store_of_another_kind_is_left_to_zarr():
    """A store in memory has no files."""
    assert plain_chunks_of(array_at(zarr.storage.MemoryStore(), rows_of())) is None


def test_a_chunk_that_is_not_there_is_the_fill_value(tmp_path):
    """What a missing file means, Zarr knows."""
    rows = rows_of()
    stored = StoredRows(array_at(tmp_path / "a.zarr", rows))
    (tmp_path / "a.zarr/rows/c/1/0/0").unlink()
    found = stored.read(3, 12)
    np.testing.assert_array_equal(found[[0, 1, 7, 8]], rows[[3, 4, 10, 11]])
    assert (found[2:7] == 7).all()
    stored.advise(0, ROWS)


@pytest.mark.parametrize("n_bytes", [0, 100, 121])
def test_a_file_of_another_size_is_an_error(tmp_path, n_bytes):
    """A chunk that was cut, or grew, is refused, also where the rows that are wanted are there."""
    stored = StoredRows(array_at(tmp_path / "a.zarr", rows_of()))
    (tmp_path / "a.zarr/rows/c/1/0/0").write_bytes(bytes(n_bytes))
    with pytest.raises(DataError, match="a chunk is damaged"):
        stored.read(5, 6)


def test_advice_covers_the_bytes_of_the_rows(tmp_path, monkeypatch):
    """Each file is asked for the bytes from the first to the last of the rows, in steps, unless they are near."""
    asked = []
    monkeypatch.setattr(plain_chunks, "_ADVICE_BYTES", 24)
    monkeypatch.setattr("os.posix_fadvise", lambda _, offset, n_bytes, __: asked.append((offset, n_bytes)))
    monkeypatch.setattr(plain_chunks, "_is_near", lambda *_: False)
    stored = StoredRows(array_at(tmp_path / "a.zarr", rows_of()))
    stored.advise(3, 6)
    assert asked == [(72, 24), (96, 24), (0, 24)]
    monkeypatch.setattr(plain_chunks, "_is_near", lambda *_: True)
    stored.advise(0, ROWS)
    assert len(asked) == 3


def test_advice_does_no_harm_where_there_is_none(tmp_path, monkeypatch):
    """On a system without it nothing is asked, and rows are read all the same."""
    monkeypatch.delattr("os.posix_fadvise", raising=False)
    monkeypatch.delattr("os.RWF_NOWAIT", raising=False)
    rows = rows_of()
    stored = StoredRows(array_at(tmp_path / "a.zarr", rows))
    stored.advise(0, ROWS)
    np.testing.assert_array_equal(stored.read(0, ROWS), rows)


def test_past_the_end_nothing_is_near(tmp_path):
    """A byte that is not there is not in memory; one that was just written may be told to be."""
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    with path.open("rb") as file:
        assert isinstance(plain_chunks._is_near(file.fileno(), 99), bool)
        assert not plain_chunks._is_near(file.fileno(), 100)
