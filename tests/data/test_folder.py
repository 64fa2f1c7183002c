"""Files that are there whole or not at all, in a local folder and behind a URL."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from dask_belief.data.folder import Folder


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    if request.param == "local":
        yield Folder(tmp_path / "a folder")
        return
    url = f"memory://{uuid.uuid4().hex}/inner"
    yield Folder(url)
    system, root = fsspec.core.url_to_fs(url)
    if system.exists(root):
        system.rm(root, recursive=True)


def test_files_are_written_listed_and_removed(folder: Folder) -> None:
    """A later write replaces; folders that are empty are no longer listed."""
    assert folder.names() == []
    assert folder.keys("a") == []
    folder.put("a/b/1", b"old")
    folder.put("a/b/1", memoryview(b"new"), is_durable=True)
    folder.put("a/2", b"")
    folder.put("c", b"x")
    assert folder.names() == ["a", "c"]
    assert folder.keys("a") == ["a/2", "a/b/1"]
    assert (folder.get("a/b/1"), folder.get("a/2")) == (b"new", b"")
    folder.remove(["a/b/1", "a/nothing", "a/2"])
    assert folder.names() == ["c"]
    with pytest.raises(FileNotFoundError):
        folder.get("a/2")


def test_folder_with_other_files_stays(tmp_path: Path) -> None:
    """Neither it nor the folder itself is removed with a file."""
    folder = Folder(tmp_path)
    folder.put("a/1", b"1")
    folder.put("a/2", b"2")
    folder.remove(["a/1"])
    assert folder.keys("a") == ["a/2"]
    folder.remove(["a/2"])
    assert os.listdir(tmp_path) == []


def test_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither half a file nor its unfinished form; what was there stays."""
    folder = Folder(tmp_path)
    folder.put("a", b"old")

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        folder.put("a", b"new")
    assert folder.names() == ["a"]
    assert folder.get("a") == b"old"


def test_file_url_is_a_local_folder(tmp_path: Path) -> None:
    """With what such a URL writes otherwise written as in paths."""
    inner = tmp_path / "with space"
    Folder(inner).put("a", b"1")
    folder = Folder(inner.as_uri())
    assert folder.is_local
    assert folder.get("a") == b"1"


def test_errors_of_other_kinds_become_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package for a store raises what it likes."""
    folder = Folder("memory://nowhere")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no credentials")

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "ls", fail)
    with pytest.raises(OSError, match="no credentials"):
        folder.names()
