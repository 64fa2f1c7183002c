"""`cluster.scale` takes a worker with a shard away, without asking: the run loses it, and goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client

import dask_belief as db
from dask_belief.monitoring.events import DownpourProgressed, Event, IterationEnded, Rebuilt, WorkerLost
from dask_belief.parameter_server.vault import Vault
from tests.faults.clusters import assert_clean
from tests.faults.conftest import processes
from tests.faults.wide import few_rows, wide_network
from tests.row_counts import BATCH_SIZE, OPTIONS, RowCounts

N_SHARDS = 3
"""One on each worker, whichever is taken away."""

N_ROWS, EPOCHS, N_QUICK = 2048, 6, 40

pytestmark = [pytest.mark.long, pytest.mark.timeout(100)]


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """Three worker processes; runs on them save as often as they can."""
    monkeypatch.setattr(Vault, "is_due", lambda vault, now: not vault.is_saving)
    with processes(N_SHARDS) as client:
        yield client


class ScaleDown:
    """A callback that has one worker fewer from an event on; it answers whether the run went on without it since.

    Parameters
    ----------
    client
        Of the cluster.
    kind, after
        The event: the how manieth of this kind.
    """

    def __init__(self, client: Client, kind: type, after: int) -> None:
        self.has_gone_on = False
        self._client, self._kind, self._after = client, kind, after
        self._was_rebuilt = False

    def __call__(self, event: Event) -> bool:
        self._was_rebuilt = self._was_rebuilt or isinstance(event, Rebuilt)
        if isinstance(event, self._kind):
            self._after -= 1
            if self._after == 0:
                self._client.cluster.scale(N_SHARDS - 1)
            self.has_gone_on = self._was_rebuilt
        return self.has_gone_on


def test_sandblaster_keeps_its_bits(workers: Client) -> None:
    """All shards go back to what was saved; no iteration has another loss, and no parameter another bit."""
    network, rows = wide_network(N_SHARDS), few_rows()

    def train(max_iter: int, *callbacks: ScaleDown) -> db.TrainingResult:
        method = db.Sandblaster(max_iter=max_iter, l2=1e-3, gtol=0.0, ftol=0.0, n_shards=N_SHARDS)
        return db.train(network, rows, method, client=workers, callbacks=callbacks, progress=False)

    result = train(100_000, ScaleDown(workers, IterationEnded, 5))
    assert_clean(workers)
    assert result.stop.reason is db.StopReason.CALLBACK
    assert len(workers.nthreads()) == N_SHARDS - 1
    unbroken = train(len(result.history["loss"]))
    assert result.history["loss"] == unbroken.history["loss"]
    assert result.parameters.tobytes() == unbroken.parameters.tobytes()
    assert result.repeatable


class Paced:
    """Mini-batches take a moment each after the first of each process, until there is a file."""

    def __init__(self, counting: RowCounts, go_on: Path) -> None:
        self.counting, self.go_on = counting, go_on
        self.n_parameters = counting.n_parameters
        self.initial_parameters = counting.initial_parameters
        self._n_begun = 0

    def loss_and_gradient(self, parameters, inputs, targets):
        self._n_begun += 1
        if self._n_begun > N_QUICK and not self.go_on.exists():
            threading.Event().wait(0.05)
        return self.counting.loss_and_gradient(parameters, inputs, targets)


@pytest.mark.parametrize("shard_copies", [0, 1])
def test_downpour_tells_what_it_lost(workers: Client, tmp_path: Path, shard_copies: int) -> None:
    """Every mini-batch counts once, but for those that the lost shard had not saved; a copy has them all."""
    counting = RowCounts(N_ROWS, N_SHARDS)
    objective, scale_down = Paced(counting, tmp_path / "go-on"), ScaleDown(workers, DownpourProgressed, 1)

    def hear(event: Event) -> None:
        if scale_down(event):
            objective.go_on.touch()

    options = {**OPTIONS, "lease_rows": 64, "epochs": EPOCHS, "n_shards": N_SHARDS, "shard_copies": shard_copies}
    result = db.train(
        objective, counting.data(), db.Downpour(**options), client=workers, callbacks=[hear], progress=False
    )
    assert_clean(workers)
    assert scale_down.has_gone_on
    assert [type(event) for event in result.history.events].count(WorkerLost) == 1
    assert result.stop.reason is db.StopReason.EPOCHS_DONE
    assert result.passes == EPOCHS
    told = sum(event.updates_lost for event in result.history.events if isinstance(event, Rebuilt))
    counts = counting.counts(result.parameters)
    assert counts.max() == EPOCHS
    assert (EPOCHS - counts).sum() / BATCH_SIZE == told
    assert told == 0 or not shard_copies
