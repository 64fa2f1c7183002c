"""How freed memory is kept: what the C library is asked for, and that nothing is asked of another."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import dask
import pytest
from distributed import Client, LocalCluster

from dask_belief.cluster.memory import (
    Thresholds,
    WorkerMemory,
    keep_freed_memory,
    memory_of_workers,
    memory_thresholds,
    read_ahead_bytes,
)

MiB = 2**20
# From malloc.h.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3


class Library:
    """A C library that notes what it is asked for, and answers 1 as glibc does when a setting is taken."""

    def __init__(self, *answers: int) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[int, int]] = []

    def mallopt(self, parameter: int, value: int) -> int:
        self.asked.append((parameter, value))
        return self._answers.pop(0) if self._answers else 1


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """A process asks once; each test is the first."""
    keep_freed_memory.cache_clear()
    yield
    keep_freed_memory.cache_clear()


def with_library(monkeypatch: pytest.MonkeyPatch, *answers: int, name: str = "glibc") -> Library:
    library = Library(*answers)

    def opened(path: object) -> Any:
        assert path is None, "the process's own library is meant"
        return library

    monkeypatch.setattr(platform, "libc_ver", lambda: (name, "2.36"))
    monkeypatch.setattr(ctypes, "CDLL", opened)
    return library


@pytest.mark.parametrize(
    ("memory_bytes", "kept", "unmapped"),
    [
        pytest.param(400 * MiB, 20 * MiB, 5 * MiB, id="a twentieth of little"),
        pytest.param(4000 * MiB, 200 * MiB, 32 * MiB, id="no larger than glibc takes"),
        pytest.param(64_000 * MiB, 256 * MiB, 32 * MiB, id="256 MiB of much"),
        pytest.param(float("inf"), 256 * MiB, 32 * MiB, id="no limit"),
    ],
)
def test_kept_memory_follows_the_limit_of_the_process(
    memory_bytes: float, kept: int, unmapped: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A twentieth, at most 256 MiB; blocks up to a quarter of that are taken from what is kept."""
    library = with_library(monkeypatch)
    assert keep_freed_memory(memory_bytes) is True
    assert library.asked == [(TRIM_THRESHOLD, kept), (MMAP_THRESHOLD, unmapped)]


@pytest.mark.parametrize("answers", [(0,), (1, 0)])
def test_setting_that_is_not_taken_is_said(answers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """False when either of the two was refused."""
    with_library(monkeypatch, *answers)
    assert keep_freed_memory(4000 * MiB) is False


@pytest.mark.parametrize("name", ["", "musl"])
def test_other_c_libraries_are_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of macOS and of musl have other settings, or none."""
    library = with_library(monkeypatch, name=name)
    assert keep_freed_memory(4000 * MiB) is False
    assert library.asked == []


def test_process_is_set_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker has a replica a thread, and each says it."""
    library = with_library(monkeypatch)
    for _ in range(3):
        assert keep_freed_memory(4000 * MiB)
    assert len(library.asked) == 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the settings")
def test_glibc_takes_the_settings() -> None:
    """The real library answers that it did; in a process of its own, so that this one stays as it is."""
    program = "from dask_belief.cluster.memory import keep_freed_memory; print(keep_freed_memory(2**32))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "True"


def test_scheduler_knows_the_limit_of_each_worker() -> None:
    """Of all workers, however many; 0 where there is none."""
    for limit in (0, 2000 * MiB):
        with (
            LocalCluster(
                7,
                threads_per_worker=3,
                processes=False,
                protocol="tcp://",
                memory_limit=limit,
                dashboard_address="127.0.0.1:0",
            ) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            found = memory_of_workers(client)
            assert set(found) == set(client.nthreads())
            assert set(found.values()) == {WorkerMemory(limit, 3, 0)}


def test_thresholds_are_those_of_dask() -> None:
    """As they are by default, and as they were set; False is never."""
    assert memory_thresholds() == Thresholds(0.6, 0.7, 0.8)
    with dask.config.set(
        {"distributed.worker.memory.spill": False, "distributed.worker.memory.pause": 0.9},
    ):
        assert memory_thresholds() == Thresholds(0.6, None, 0.9)


@pytest.mark.parametrize(("memory_bytes", "expected"), [(10, 1), (400 * MiB, 20 * MiB), (64_000 * MiB, 128 * MiB)])
def test_little_is_read_ahead(memory_bytes: float, expected: int) -> None:
    """A twentieth, at most 128 MiB; something in any case."""
    assert read_ahead_bytes(memory_bytes) == expected


def test_threads_share_a_limit() -> None:
    """Where there is none a replica reckons with 2.5 GiB."""
    assert WorkerMemory(900, 3).replica_bytes == 300
    assert WorkerMemory(0, 3).replica_bytes == 2560 * MiB
