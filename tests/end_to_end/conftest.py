"""Clusters and problems that the end-to-end tests share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, LocalCluster

import dask_belief as db
from dask_belief.cluster.actors import ActorAddress, Caller
from dask_belief.seeds import stream

Connect = Callable[[int], contextlib.AbstractContextManager[Client]]


@contextlib.contextmanager
def threaded(n_workers: int) -> Iterator[Client]:
    """A cluster whose workers are threads of this process, but talk over TCP as if they were not."""
    with (
        LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            processes=False,
            protocol="tcp://",
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(scope="session")
def connect() -> Connect:
    """Makes a cluster of so many workers."""
    return threaded


@pytest.fixture
def lost_reports(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The first report of a replica to its hub fails; what it would have told is kept here."""
    call = Caller.call
    lost: list[object] = []

    async def fail_once(self: Caller, actor: ActorAddress, method: str, *arguments: object, **options: float) -> Any:
        if method == "report" and not lost:
            lost.append(arguments)
            raise db.CallTimeoutError("planted")
        return await call(self, actor, method, *arguments, **options)

    monkeypatch.setattr(Caller, "call", fail_once)
    return lost


@pytest.fixture(scope="module")
def two_workers() -> Iterator[Client]:
    """A cluster of two workers, shared by the tests of a module."""
    with threaded(2) as client:
        yield client


def blobs(n_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Four overlapping clouds in ten dimensions, as float32 inputs and classes; all sets share the clouds."""
    centres = stream(7, "centres").normal(size=(4, 10))
    random = stream(seed, "blobs")
    targets = random.integers(0, 4, n_rows)
    inputs = centres[targets] + random.normal(size=(n_rows, 10))
    return inputs.astype(np.float32), targets


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 training rows in chunks of 100."""
    path = tmp_path_factory.mktemp("data") / "train.zarr"
    db.write_dataset(path, *blobs(3000, seed=0), chunk_rows=100)
    return path


@pytest.fixture(scope="session")
def held_out() -> tuple[np.ndarray, np.ndarray]:
    """1,000 rows of the same clouds."""
    return blobs(1000, seed=1)


@pytest.fixture
def network() -> db.Network:
    """A small network for the clouds."""
    return db.Network([db.Dense(16, "tanh"), db.Dense(4)], loss="softmax", input_shape=(10,))


@pytest.fixture
def wide_network() -> db.Network:
    """A network of three parameter blocks, so that three shards hold one each."""
    return db.Network([db.Dense(12_000, "relu"), db.Dense(4)], loss="softmax", input_shape=(10,))
