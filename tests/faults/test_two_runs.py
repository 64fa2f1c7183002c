"""Two runs at once on one cluster, each with a client of its own: neither meets the other, in good days or bad."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client

import dask_belief as db
from dask_belief.cluster.placement import place
from dask_belief.monitoring.events import DownpourProgressed, Event, IterationEnded, Rebuilt, WorkerLost
from tests.faults.clusters import Clusters, assert_clean
from tests.faults.conftest import kill
from tests.row_counts import OPTIONS, RowCounts

LIMIT_SECONDS = 60.0
N_ROWS, EPOCHS, MAX_ITER = 2048, 12, 25

pytestmark = [pytest.mark.long, pytest.mark.timeout(100)]

Train = Callable[..., db.TrainingResult]


@pytest.fixture(scope="module")
def clusters() -> Iterator[Clusters]:
    """A cluster of three worker processes."""
    with Clusters(n_workers=3) as clusters:
        yield clusters


def network() -> db.Network:
    return db.Network([db.Dense(8, "sigmoid"), db.Dense(1)], loss="logistic", input_shape=(20,))


def sandblaster(client: Client, rows: Path, **options: Any) -> db.TrainingResult:
    """A run that gives the same bits each time."""
    method = db.Sandblaster(max_iter=MAX_ITER, l2=1e-3, gtol=0.0, ftol=0.0, n_shards=1)
    return db.train(network(), rows, method, client=client, progress=False, **options)


def downpour(client: Client, rows: Path, **options: Any) -> db.TrainingResult:
    """A run whose result shows how often each row was counted."""
    counting = RowCounts(N_ROWS)
    method = db.Downpour(**OPTIONS, lease_rows=64, epochs=EPOCHS, n_shards=1)
    return db.train(counting, counting.data(), method, client=client, progress=False, **options)


@pytest.fixture(scope="module")
def alone(clusters: Clusters, store: Path) -> db.TrainingResult:
    """Sandblaster's result where nobody else is on the cluster."""
    return sandblaster(clusters.client(), store)


class Broken(RowCounts):
    """Raises once a file is there."""

    def __init__(self, n_rows: int, sign: Path) -> None:
        super().__init__(n_rows)
        self._sign = sign

    def loss_and_gradient(self, parameters, inputs, targets) -> tuple[float, np.ndarray]:
        if self._sign.exists():
            raise ZeroDivisionError("planted")
        return super().loss_and_gradient(parameters, inputs, targets)


def broken(sign: Path) -> Train:
    """A run that its objective ends once a file is there."""

    def train(client: Client, rows: Path, **options: Any) -> db.TrainingResult:
        counting = Broken(N_ROWS, sign)
        method = db.Downpour(**OPTIONS, lease_rows=64, epochs=1000 * EPOCHS, n_shards=1)
        return db.train(counting, counting.data(), method, client=client, progress=False, **options)

    return train


class Meeting:
    """A callback of two runs: each waits for the other at its first news, and then something happens."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._both = threading.Barrier(2, then, LIMIT_SECONDS)
        self._have_met: set[int] = set()

    def __call__(self, event: Event) -> None:
        thread = threading.get_ident()
        if isinstance(event, IterationEnded | DownpourProgressed) and thread not in self._have_met:
            self._have_met.add(thread)
            self._both.wait()


def together(client: Client, rows: Path, runs: Sequence[Train], then: Callable[[], None]) -> list[Any]:
    """Run two at once, and let something happen when both are at work; gives the results, or what was raised."""
    meeting = Meeting(then)

    def run(train: Train) -> db.TrainingResult:
        with Client(client.scheduler.address, set_as_default=False) as own:
            return train(own, rows, callbacks=[meeting])

    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(run, train) for train in runs]
        return [each.exception(LIMIT_SECONDS) or each.result() for each in running]


def assert_as_alone(train: Train, result: Any, alone: db.TrainingResult) -> None:
    """The same bits, or each row as often as it is to be counted."""
    assert isinstance(result, db.TrainingResult), result
    if train is sandblaster:
        assert result.history["loss"] == alone.history["loss"]
        assert result.parameters.tobytes() == alone.parameters.tobytes()
    else:
        assert result.passes == EPOCHS
        assert RowCounts(N_ROWS).found(result.parameters) == [[EPOCHS]]


@pytest.mark.parametrize("is_killed", [False, True], ids=["whole", "a worker is killed"])
@pytest.mark.parametrize("runs", [(sandblaster, sandblaster), (downpour, downpour), (sandblaster, downpour)])
def test_each_has_the_result_that_it_has_alone(clusters: Clusters, store: Path, alone, runs, is_killed: bool) -> None:
    """Also where one worker is killed, and with it a replica of each."""
    client = clusters.client()
    placement = place(list(client.nthreads()), 1)
    [idle] = set(client.nthreads()) - {placement.hub, *placement.shards}
    results = together(client, store, runs, lambda: kill(client, idle) if is_killed else None)
    for train, result in zip(runs, results, strict=True):
        assert_as_alone(train, result, alone)
        kinds = [type(event) for event in result.history.events]
        assert (WorkerLost in kinds) == is_killed
        assert Rebuilt not in kinds
    assert_clean(client)


@pytest.mark.parametrize("other", [sandblaster, downpour])
def test_error_in_one_does_not_end_the_other(
    clusters: Clusters, store: Path, alone, other: Train, tmp_path: Path
) -> None:
    """The objective of one raises on the workers that both have, when both are at work."""
    client, sign = clusters.client(), tmp_path / "raise now"
    error, result = together(client, store, (broken(sign), other), sign.touch)
    assert isinstance(error, db.ReplicaError) and "planted" in str(error)
    assert_as_alone(other, result, alone)
    assert_clean(client)
