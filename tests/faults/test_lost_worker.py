"""A worker is killed in the middle of a run: the run ends as it should, with nothing lost or counted twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from distributed import Client

import dask_belief as db
from dask_belief.cluster.placement import place
from dask_belief.monitoring.events import DownpourProgressed, Event, IterationEnded, Rebuilt, WorkerJoined, WorkerLost

from .conftest import kill  # noqa: TID252


class KillAt:
    """A callback that kills one worker at the first event that it is told to wait for."""

    def __init__(self, client: Client, address: str, kind: type, after: int) -> None:
        self.client, self.address, self.kind, self.after = client, address, kind, after

    def __call__(self, event: Event) -> None:
        if isinstance(event, self.kind):
            self.after -= 1
            if self.after == 0:
                kill(self.client, self.address)


def network() -> db.Network:
    return db.Network([db.Dense(8, "sigmoid"), db.Dense(1)], loss="logistic", input_shape=(20,))


def address_of(client: Client, role: str) -> str:
    """The worker that will hold the shard, the hub, or replicas only."""
    workers = list(client.nthreads())
    placement = place(workers, 1)
    [idle] = set(workers) - {placement.hub, *placement.shards}
    return {"shard": placement.shards[0], "hub": placement.hub, "replica": idle}[role]


def test_sandblaster_keeps_its_bits_when_a_replica_is_killed(client: Client, store: Path) -> None:
    """The units of a killed replica go to others, and the trajectory is the unbroken one's to the bit."""
    method = db.Sandblaster(max_iter=12, l2=1e-3)
    unbroken = db.train(network(), store, method, client=client, progress=False)
    killer = KillAt(client, address_of(client, "replica"), IterationEnded, 3)
    result = db.train(network(), store, method, client=client, callbacks=[killer], progress=False)
    kinds = [type(event) for event in result.history.events]
    assert WorkerLost in kinds and Rebuilt not in kinds
    assert result.history["loss"] == unbroken.history["loss"]
    assert result.parameters.tobytes() == unbroken.parameters.tobytes()


@pytest.mark.parametrize("role", ["shard", "hub"])
def test_sandblaster_goes_on_when_an_actor_is_killed(client: Client, store: Path, role: str) -> None:
    """The next generation goes on from the last point that was kept, and reaches the same minimum."""
    method = db.Sandblaster(max_iter=60, l2=1e-2, gtol=1e-3, ftol=0.0)
    unbroken = db.train(network(), store, method, client=client, progress=False)
    killer = KillAt(client, address_of(client, role), IterationEnded, 5)
    result = db.train(network(), store, method, client=client, callbacks=[killer], progress=False)
    assert Rebuilt in [type(event) for event in result.history.events]
    assert result.loss <= result.history["loss"][4]
    assert result.loss == pytest.approx(unbroken.loss, rel=1e-2)


@pytest.mark.parametrize("role", ["replica", "shard", "hub"])
def test_downpour_ends_with_every_row_once_when_a_worker_is_killed(client: Client, store: Path, role: str) -> None:
    """Whatever the killed worker held, every lease of every epoch is finished, and the network has learned."""
    killer = KillAt(client, address_of(client, role), DownpourProgressed, 2)
    method = db.Downpour(rule=db.Adagrad(0.05), batch_size=2, epochs=3)
    result = db.train(network(), store, method, client=client, callbacks=[killer], progress=False)
    kinds = [type(event) for event in result.history.events]
    assert (Rebuilt in kinds) == (role != "replica")
    assert result.stop.reason is db.StopReason.EPOCHS_DONE
    assert result.passes == 3.0
    assert result.loss < 0.5


def test_a_worker_that_joins_takes_part(client: Client, store: Path) -> None:
    """The killed worker's successor joins under another address, and the run hears of it."""
    killer = KillAt(client, address_of(client, "replica"), IterationEnded, 2)
    joined: list[str] = []

    def until_joined(event: Event) -> bool:
        if isinstance(event, WorkerJoined):
            joined.append(event.address)
        return bool(joined) and isinstance(event, IterationEnded)

    method = db.Sandblaster(max_iter=100_000, gtol=0.0, ftol=0.0, max_seconds=60.0)
    result = db.train(network(), store, method, client=client, callbacks=[killer, until_joined], progress=False)
    assert result.stop.reason is db.StopReason.CALLBACK
    assert joined[0] in client.nthreads()
    assert np.isfinite(result.loss)
