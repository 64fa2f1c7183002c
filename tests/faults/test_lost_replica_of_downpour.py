"""A process with a Downpour replica is killed at a settled mini-batch: rows count once, and a replay has the bits.

What it had pushed counts, on the shards that have it; what it had not is done by others, from the first mini-batch
that some shard lacks.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

import dask_belief as db
from dask_belief.cluster.placement import place
from dask_belief.monitoring.events import Rebuilt
from tests.row_counts import BATCH_SIZE, OPTIONS, RowCounts, SparseRowCounts

from .conftest import processes  # noqa: TID252

LIMIT_SECONDS = 60.0
N_ROWS = 1024
PLAIN = {**OPTIONS, "n_shards": 2, "lease_rows": 64}
"""Leases of four mini-batches, so that every replica gets some."""


@pytest.fixture
def workers() -> Iterator[Client]:
    """Four worker processes for one test."""
    with processes(4) as client:
        yield client


class Doomed:
    """Makes one process die at its n-th mini-batch; others begin when it does, and until it dies go only so far.

    Parameters
    ----------
    objective
        What is computed.
    folder
        Where files say that the process has begun, and that it dies now.
    pid
        The process.
    n_steps
        The mini-batch at which it dies.
    n_others
        How many mini-batches others make before that, each process for itself.
    """

    def __init__(self, objective: Any, folder: Path, pid: int, n_steps: int, n_others: int) -> None:
        self.objective = objective
        self.n_parameters = objective.n_parameters
        self.initial_parameters = objective.initial_parameters
        self.begun, self.dying = folder / "begun", folder / "dying"
        self.pid = pid
        self.n_steps = n_steps
        self.n_others = n_others
        self._n_begun = 0
        # Only where there is one: that it is there says that mini-batches touch few parameters.
        if hasattr(objective, "touched"):
            self.touched = objective.touched

    def loss_and_gradient(self, parameters, inputs, targets):
        self._n_begun += 1
        if os.getpid() == self.pid:
            self.begun.touch()
            if self._n_begun == self.n_steps:
                self.dying.touch()
                os.kill(self.pid, signal.SIGKILL)
        else:
            self._wait_for(self.begun if self._n_begun <= self.n_others else self.dying)
        return self.objective.loss_and_gradient(parameters, inputs, targets)

    def _wait_for(self, path: Path) -> None:
        until = time.monotonic() + LIMIT_SECONDS
        while not path.exists():
            assert time.monotonic() < until, "nobody died"
            threading.Event().wait(0.01)


def placed(client: Client, role: str) -> int:
    """The process that will hold replicas only, the second shard, or the ledger."""
    pids = client.run(os.getpid)
    placement = place(list(client.nthreads()), 2)
    [idle] = set(pids) - {placement.hub, *placement.shards}
    return pids[{"replica": idle, "shard": placement.shards[1], "hub": placement.hub}[role]]


@pytest.mark.parametrize(
    ("kind", "n_steps"),
    [(RowCounts, 7), pytest.param(SparseRowCounts, 7, marks=pytest.mark.long), (SparseRowCounts, 1)],
    ids=["dense, in a lease", "sparse, in a lease", "sparse, at the start"],
)
def test_every_row_counts_once_and_a_replay_has_the_bits(workers: Client, tmp_path: Path, kind, n_steps: int) -> None:
    """It dies in its first mini-batch, before anything is pushed, or in the middle of a lease."""
    counting = kind(N_ROWS, n_shards=2)
    objective = Doomed(counting, tmp_path, placed(workers, "replica"), n_steps, n_others=5)
    method = db.Downpour(**PLAIN, epochs=2, n_push=2)
    result = train(workers, objective, method, record=tmp_path / "record.zarr")
    assert counting.found(result.parameters) == [[2.0], [2.0]]
    again = db.replay(tmp_path / "record.zarr", counting, counting.data())
    assert again.tobytes() == result.parameters.tobytes()


@pytest.mark.long
@pytest.mark.parametrize("options", [{"n_fetch": 2, "n_push": 3}, {"staleness": db.MaxStaleness(1)}], ids=str)
def test_every_row_counts_once_in_every_way(workers: Client, tmp_path: Path, options) -> None:
    """Also where replicas keep together: the others do not wait for a replica that is gone."""
    counting = RowCounts(N_ROWS, n_shards=2)
    # By MaxStaleness it cannot be far ahead of the others.
    objective = Doomed(counting, tmp_path, placed(workers, "replica"), 6, n_others=5)
    result = train(workers, objective, db.Downpour(**PLAIN, epochs=2, **options))
    assert counting.found(result.parameters) == [[2.0], [2.0]]


@pytest.mark.long
@pytest.mark.parametrize("way", [db.Synchronous(), db.Synchronous(1), db.ElasticAveraging(0.9)], ids=str)
def test_the_others_go_on_without_it(workers: Client, tmp_path: Path, way) -> None:
    """Rounds are closed without it, and its spring is cut."""
    counting = RowCounts(N_ROWS, n_shards=2)
    objective = Doomed(counting, tmp_path, placed(workers, "replica"), 6, n_others=5)
    result = train(workers, objective, db.Downpour(**PLAIN, n_replicas=4, epochs=2, staleness=way))
    counts = counting.counts(result.parameters)
    if way == db.Synchronous():
        assert counts.min() > 0.0
    assert counts.sum() > 0.0


@pytest.mark.long
@pytest.mark.parametrize("role", ["shard", "hub"])
def test_every_row_counts_once_when_an_actor_dies_with_it(workers: Client, tmp_path: Path, role: str) -> None:
    """A ledger costs nothing; a shard goes back to what was saved of it, by as many mini-batches as is told."""
    counting = RowCounts(N_ROWS, n_shards=2)
    objective = Doomed(counting, tmp_path, placed(workers, role), 25, n_others=20)
    result = train(workers, objective, db.Downpour(**PLAIN, epochs=3), is_rebuilt=True)
    told = sum(event.updates_lost for event in result.history.events if isinstance(event, Rebuilt))
    counts = counting.counts(result.parameters)
    assert (counts[0] == 3.0).all()
    missing = 3.0 - counts[1]
    assert (missing >= 0.0).all()
    assert missing.sum() / BATCH_SIZE == told
    assert role == "shard" or told == 0


def train(
    client: Client, objective: Doomed, method: db.Downpour, record: Path | None = None, is_rebuilt: bool = False
) -> db.TrainingResult:
    """Train to the end, with the loss that is expected on the way."""
    data = objective.objective.data()
    result = db.train(objective, data, method, client=client, progress=False, record=record)
    assert objective.dying.exists()
    assert "WorkerLost" in result.history["event"]
    assert ("Rebuilt" in result.history["event"]) == is_rebuilt
    assert result.stop.reason is db.StopReason.EPOCHS_DONE
    assert result.passes == method.epochs
    return result
