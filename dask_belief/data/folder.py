"""Files of a folder, on this machine or behind an fsspec URL: each is there whole or not at all.

Keys are relative paths with slashes, ``"vectors/x@12/0-6c1b/c/0"``. A file of a local folder is written under another
name and then renamed; an object of a store is put at once. So a writer that is killed leaves no half a file under a
key, but may leave a file that ends in ``.partial``.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from dask_belief.data.store import address_of
from dask_belief.errors import ArgumentError

PARTIAL = ".partial"

Found = TypeVar("Found")


class Folder:
    """A local folder or an fsspec URL; holds its address alone, so that it can be sent anywhere.

    Every method raises `OSError` when the system or the network refuses, and `FileNotFoundError` among them.

    Parameters
    ----------
    address
        A path, or a URL such as ``file://``, ``memory://``, ``s3://``.

    Attributes
    ----------
    address
        An absolute path, or the URL.
    is_local
        Whether it is a path.

    Raises
    ------
    ArgumentError
        At first use, when a package for this kind of URL is not installed.
    """

    def __init__(self, address: str | os.PathLike[str]) -> None:
        found = os.fspath(address)
        if found.startswith("file://"):
            found = unquote(urlsplit(found).path)
        self.address = str(address_of(found)).rstrip("/") or "/"
        self.is_local = "://" not in self.address

    def put(self, key: str, data: bytes | memoryview, is_durable: bool = False) -> None:
        """Write a file, in place of one that is there.

        Parameters
        ----------
        key, data
            Which, and its bytes.
        is_durable
            Whether to wait until a local disk has it, so that it outlives a loss of power.
        """
        if self.is_local:
            _put(os.path.join(self.address, key), data, is_durable)
        else:
            self._remote(lambda system, root: system.pipe_file(f"{root}/{key}", bytes(data)))

    def get(self, key: str) -> bytes:
        """Read a file."""
        if not self.is_local:
            return self._remote(lambda system, root: bytes(system.cat_file(f"{root}/{key}")))
        with open(os.path.join(self.address, key), "rb") as file:
            return file.read()

    def names(self) -> list[str]:
        """The files and folders right below, in order; none where there is no folder."""
        if not self.is_local:
            found = self._remote(_names)
        else:
            try:
                found = os.listdir(self.address)
            except FileNotFoundError:
                found = []
        return sorted(found)

    def keys(self, below: str) -> list[str]:
        """The keys of all files below a folder, in order; none where there is no such folder."""
        if not self.is_local:
            return sorted(self._remote(lambda system, root: _keys(system, root, below)))
        found = []
        for folder, _, files in os.walk(os.path.join(self.address, below)):
            inner = os.path.relpath(folder, self.address).replace(os.sep, "/")
            found += [f"{inner}/{file}" for file in files]
        return sorted(found)

    def remove(self, keys: Iterable[str]) -> None:
        """Remove files, in this order, and local folders that are empty then; what is not there does no harm."""
        for key in keys:
            if not self.is_local:
                with suppress(FileNotFoundError):
                    self._remote(partial(_remove, key=key))
                continue
            with suppress(FileNotFoundError):
                os.remove(os.path.join(self.address, key))
            folder = os.path.dirname(key)
            with suppress(OSError):
                while folder:
                    os.rmdir(os.path.join(self.address, folder))
                    folder = os.path.dirname(folder)

    def remove_empty(self, below: str) -> None:
        """Remove local folders without files below a folder, as a writer that was killed while removing leaves them."""
        if self.is_local:
            for folder, _, _ in os.walk(os.path.join(self.address, below), topdown=False):
                with suppress(OSError):
                    os.rmdir(folder)

    def _remote(self, call: Callable[[Any, str], Found]) -> Found:
        """Call fsspec; whatever else its packages raise becomes an `OSError`."""
        import fsspec

        try:
            system, root = fsspec.core.url_to_fs(self.address)
        except (ImportError, ValueError) as error:
            raise ArgumentError(f"path: {self.address} cannot be opened by fsspec: {error}") from error
        try:
            # What others wrote since the last look counts.
            system.invalidate_cache()
            return call(system, root.rstrip("/"))
        except OSError:
            raise
        except Exception as error:
            raise OSError(f"{self.address}: {error!r}") from error


def _put(path: str, data: bytes | memoryview, is_durable: bool) -> None:
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    unfinished = f"{path}.{uuid.uuid4().hex}{PARTIAL}"
    try:
        with open(unfinished, "wb") as file:
            file.write(data)
            if is_durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            os.remove(unfinished)
        raise
    if is_durable and os.name == "posix":
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _remove(system: Any, root: str, key: str) -> None:
    system.rm_file(f"{root}/{key}")


def _names(system: Any, root: str) -> list[str]:
    try:
        found = system.ls(root, detail=False)
    except FileNotFoundError:
        return []
    return [path.rstrip("/").rpartition("/")[2] for path in found]


def _keys(system: Any, root: str, below: str) -> list[str]:
    # Some file systems lead paths by a slash, and some do not.
    start = f"{root.lstrip('/')}/"
    return [path.lstrip("/").removeprefix(start) for path in system.find(f"{root}/{below}")]
