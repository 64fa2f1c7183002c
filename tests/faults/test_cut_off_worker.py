"""A worker is cut off while its process runs on: the run takes it for lost, and what it sends later harms nothing.

Not what happens to a frozen one: it computes on, its shard takes what its own replica pushes, and all that it could not
send arrives when the connection is mended.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

import dask_belief as db
from dask_belief.cluster.placement import place
from dask_belief.monitoring.events import DownpourProgressed, Event, IterationEnded, Rebuilt, WorkerJoined, WorkerLost
from dask_belief.parameter_server.vault import Vault
from tests.faults.clusters import assert_clean
from tests.faults.wide import few_rows, wide_network
from tests.faults.wires import WiredCluster, wired
from tests.row_counts import BATCH_SIZE, OPTIONS, RowCounts

LIMITS = db.Limits(frozen_seconds=2.0, call_seconds=20.0, connect_seconds=3.0, no_progress_seconds=60.0)
NOTICED_SECONDS = 15.0
"""Until a loss is noticed at the latest: five heartbeats of half a second, and what a slow machine adds."""

LIMIT_SECONDS = 60.0
N_ROWS, EPOCHS, N_OTHERS = 2048, 6, 40

pytestmark = [pytest.mark.long, pytest.mark.timeout(100)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WiredCluster]:
    """Three workers; each is whole again after a test."""
    with wired(3, tmp_path_factory.mktemp("wired")) as cluster:
        yield cluster


@pytest.fixture
def save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs save as often as they can."""
    monkeypatch.setattr(Vault, "is_due", lambda vault, now: not vault.is_saving)


def address_of(client: Client, role: str, n_shards: int) -> str:
    """The worker that will hold the last shard, the hub, or replicas only."""
    workers = list(client.nthreads())
    placement = place(workers, n_shards)
    idle = set(workers) - {placement.hub, *placement.shards}
    return {"shard": placement.shards[-1], "hub": placement.hub, "replica": min(idle, default="")}[role]


class CutOff:
    """A callback that cuts a worker off at an event, and mends its wires once the run goes on without it.

    Parameters
    ----------
    cluster, address
        The worker.
    at
        The event at which it is cut off: its kind, and the how manieth of that kind.
    until
        The kind of event, of those that come after the loss, at which the wires are mended.

    Attributes
    ----------
    noticed_seconds
        From the cut until the run told of the loss.
    has_joined
        Whether the run has taken the worker back.
    """

    def __init__(self, cluster: WiredCluster, address: str, at: tuple[type, int], until: type) -> None:
        self.noticed_seconds = math.inf
        self.has_joined = False
        self._cluster, self._address = cluster, address
        self._kind, self._after = at
        self._until = until
        self._cut_at = 0.0
        self._is_mended = False

    def __call__(self, event: Event) -> bool:
        if isinstance(event, self._kind):
            self._after -= 1
            if self._after == 0:
                self._cut_at = time.monotonic()
                self._cluster.cut(self._address)
        if isinstance(event, WorkerLost) and event.address == self._address and self.noticed_seconds == math.inf:
            self.noticed_seconds = time.monotonic() - self._cut_at
            # No connection was broken, and Dask goes on with it.
            assert self._address in self._cluster.client.nthreads()
        if isinstance(event, self._until) and self.noticed_seconds < math.inf and not self._is_mended:
            self._is_mended = True
            self.mend()
            # What was held arrives before this comes.
            self._cluster.await_word_of(self._address)
        if isinstance(event, WorkerJoined) and event.address == self._address and self._is_mended:
            self.has_joined = True
        return self.has_joined

    def mend(self) -> None:
        """Let it speak and hear; also where the run has come to a bad end, for the tests that follow."""
        self._cluster.mend(self._address)


@pytest.mark.usefixtures("save_always")
@pytest.mark.parametrize(("role", "n_shards"), [("replica", 1), ("shard", 2), ("hub", 2)])
def test_sandblaster_keeps_its_bits(cluster: WiredCluster, role: str, n_shards: int) -> None:
    """The worker is lost, and joins when it is heard again; before, between and after no bit is another."""
    client, network, rows = cluster.client, wide_network(n_shards), few_rows()
    cut_off = CutOff(cluster, address_of(client, role, n_shards), (IterationEnded, 4), IterationEnded)

    def train(max_iter: int, **options: Any) -> db.TrainingResult:
        method = db.Sandblaster(max_iter=max_iter, l2=1e-3, gtol=0.0, ftol=0.0, n_shards=n_shards)
        return db.train(network, rows, method, client=client, progress=False, limits=LIMITS, **options)

    try:
        result = train(100_000, callbacks=[cut_off])
    finally:
        cut_off.mend()
    assert_clean(client)
    assert result.stop.reason is db.StopReason.CALLBACK and cut_off.has_joined
    assert cut_off.noticed_seconds < NOTICED_SECONDS
    assert result.repeatable
    unbroken = train(len(result.history["loss"]))
    assert result.history["loss"] == unbroken.history["loss"]
    assert result.history["step"] == unbroken.history["step"]
    assert result.parameters.tobytes() == unbroken.parameters.tobytes()


class Ahead:
    """One process trains as fast as it can, and others do some mini-batches, until there is a file."""

    def __init__(self, counting: RowCounts, pid: int, go_on: Path) -> None:
        self.counting = counting
        self.n_parameters = counting.n_parameters
        self.initial_parameters = counting.initial_parameters
        self.pid, self.go_on = pid, go_on
        self._n_begun = 0

    def loss_and_gradient(self, parameters, inputs, targets):
        self._n_begun += 1
        until = time.monotonic() + LIMIT_SECONDS
        while os.getpid() != self.pid and self._n_begun > N_OTHERS and not self.go_on.exists():
            assert time.monotonic() < until, "the worker did not come back"
            threading.Event().wait(0.01)
        return self.counting.loss_and_gradient(parameters, inputs, targets)


@pytest.mark.usefixtures("save_always")
@pytest.mark.parametrize(
    ("role", "n_shards", "shard_copies"), [("replica", 1, 0), ("shard", 2, 0), ("shard", 2, 1), ("hub", 2, 0)]
)
def test_downpour_counts_each_mini_batch_once(
    cluster: WiredCluster, tmp_path: Path, role: str, n_shards: int, shard_copies: int
) -> None:
    """Also those whose pushes arrive when others have done them again; what the lost shard alone had is told."""
    client = cluster.client
    counting, address = RowCounts(N_ROWS, n_shards), address_of(client, role, n_shards)
    objective = Ahead(counting, cluster.pid(address), tmp_path / "go-on")
    cut_off = CutOff(cluster, address, (DownpourProgressed, 1), WorkerLost if role == "replica" else Rebuilt)

    def until_joined(event: Event) -> None:
        if cut_off(event):
            objective.go_on.touch()

    options = {**OPTIONS, "lease_rows": 64, "epochs": EPOCHS, "n_shards": n_shards, "shard_copies": shard_copies}
    try:
        result = db.train(
            objective,
            counting.data(),
            db.Downpour(**options),
            client=client,
            callbacks=[until_joined],
            progress=False,
            limits=LIMITS,
        )
    finally:
        cut_off.mend()
        objective.go_on.touch()
    assert_clean(client)
    assert cut_off.has_joined
    assert cut_off.noticed_seconds < NOTICED_SECONDS
    assert result.stop.reason is db.StopReason.EPOCHS_DONE
    assert result.passes == EPOCHS
    told = sum(event.updates_lost for event in result.history.events if isinstance(event, Rebuilt))
    counts = counting.counts(result.parameters)
    assert counts.max() == EPOCHS
    assert (EPOCHS - counts).sum() / BATCH_SIZE == told
    assert told == 0 or (role, shard_copies) == ("shard", 0)
