"""A replica from its first lease to its last, with shards and ledger, and without a cluster."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dask_belief.cluster.actors import Caller
from dask_belief.cluster.hub import RUN_IS_OVER
from dask_belief.cluster.limits import Limits
from dask_belief.data.units import plan_units
from dask_belief.downpour.config import Downpour
from dask_belief.downpour.executor import update_spec
from dask_belief.downpour.ledger import Ledger, LedgerSpec, LedgerStatus
from dask_belief.downpour.replica import Replica, ReplicaSpec
from dask_belief.optim.rules import SGD
from dask_belief.parameter_server.consistency import (
    ElasticAveraging,
    MaxStaleness,
    ScaleByStaleness,
    Staleness,
    Synchronous,
)
from dask_belief.parameter_server.updates import VALUES
from dask_belief.seeds import stream
from tests.parameter_server.local_actors import LocalActors, deploy

SEED = 56
LENGTH, N_ROWS, CHUNK_ROWS = 3, 60, 10


class SquaredDistance:
    """Loss ``|w - row|^2 / 2``."""

    n_parameters = LENGTH

    def initial_parameters(self, seed: int) -> np.ndarray:
        return np.zeros(LENGTH, np.float32)

    def loss_and_gradient(self, parameters: Any, inputs: Any, targets: Any) -> tuple[float, Any]:
        difference = parameters - inputs
        return 0.5 * float((difference * difference).sum()), difference.sum(axis=0)


class Rows:
    """A data set in memory."""

    n_rows = N_ROWS
    inputs = stream(SEED, "rows").standard_normal((N_ROWS, LENGTH)).astype(np.float32) + 3

    def read(self, start: int, stop: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
        return self.inputs[start:stop], np.zeros(stop - start)


class Standing:
    """A replica's standing as a Dask task; ends when it was asked so often, and for one answer only."""

    memory_bytes = 2.0**30

    def __init__(self, ends_at: int | None = None) -> None:
        self.worker: Any = SimpleNamespace(address="tcp://local")
        self._ends_at = ends_at
        self._n_asked = 0

    def listen(self) -> None:
        pass

    heard = listen

    @property
    def should_end(self) -> bool:
        self._n_asked += 1
        return self._n_asked == self._ends_at


class Scene:
    """Shards and a ledger, for replicas that share a caller."""

    def __init__(self, actors: LocalActors, **options: Any) -> None:
        options = {"rule": SGD(0.05), "batch_size": 4, "epochs": 2, "stalled_after_seconds": 20.0} | options
        self.actors, self.method = actors, Downpour(**options)
        self.plan = plan_units(N_ROWS, CHUNK_ROWS, 12, LENGTH, unit_rows=CHUNK_ROWS)
        self.server = deploy(actors, [range(2), range(2, LENGTH)], updates=update_spec(self.method, False))
        actors.caller.run(self.server.write(VALUES, np.zeros(LENGTH, np.float32)))
        actors.caller.run(self.server.begin_updates())
        spec = LedgerSpec(len(self.plan), self.method.epochs, SEED, staleness=self.method.staleness)
        self.ledger = actors.register("ledger", Ledger(0, spec))

    def ask(self, method: str, *arguments: object) -> Any:
        return self.actors.caller.run(self.actors.caller.call(self.ledger, method, 0, *arguments))

    def status(self) -> LedgerStatus:
        status: LedgerStatus = self.ask("wait", -1, 0.0)
        return status

    def live(self, replica: str, standing: Standing | None = None) -> str:
        objective, dataset, place = (each for each in (SquaredDistance(), Rows(), standing or Standing()))
        spec: Any = ReplicaSpec(
            objective, self.plan, self.method, self.server.directory, self.ledger, "numpy", SEED, Limits()
        )
        life = Replica(spec, dataset, replica, place)
        try:
            return life.run()
        finally:
            life.close()


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalActors]:
    with LocalActors() as carrier:
        monkeypatch.setattr(Caller, "of_worker", lambda worker: carrier.caller)
        yield carrier


WAYS = [None, MaxStaleness(0), ScaleByStaleness(), Synchronous(), ElasticAveraging(0.5)]


@pytest.mark.parametrize(
    ("n_replicas", "staleness"),
    [*itertools.product((1, 2, 3), WAYS), (2, Synchronous(1)), (3, Synchronous(2))],
    ids=str,
)
def test_replicas_train_to_the_end(actors: LocalActors, n_replicas: int, staleness: Staleness | None) -> None:
    """Every lease of every epoch, whatever is done about old gradients; and something is learned."""
    scene = Scene(actors, n_replicas=n_replicas, staleness=staleness)
    with ThreadPoolExecutor(n_replicas) as threads:
        ended = [threads.submit(scene.live, f"replica-{number}") for number in range(n_replicas)]
        assert {each.result(60) for each in ended} == {RUN_IS_OVER}
    status = scene.status()
    assert status.is_over
    assert (status.rows, status.loss_rows) == (2 * N_ROWS, 2 * N_ROWS)
    assert status.steps == 2 * len(scene.plan) * 3
    values = np.empty(LENGTH, np.float32)
    actors.caller.run(scene.server.read(VALUES, values))
    assert np.all(values > 0.5)


def test_one_replica_is_repeatable_to_the_bit(actors: LocalActors) -> None:
    """Its parameters, and what it tells of itself but for seconds."""
    found = []
    for _ in range(2):
        scene = Scene(actors, n_fetch=2, n_push=3)
        scene.live("replica-0")
        values = np.empty(LENGTH, np.float32)
        actors.caller.run(scene.server.read(VALUES, values))
        [told] = scene.status().replicas
        found.append((values.tobytes(), told.steps, told.rows))
    assert found[0] == found[1]
    assert found[0][1:] == (2 * 6 * 3, 2 * N_ROWS)


@pytest.mark.parametrize("ends_at", range(2, 12))
def test_lease_that_was_broken_off_goes_to_another(actors: LocalActors, ends_at: int) -> None:
    """Even if the reason to end passes at once: the replica ends, and its successor does the rest of the lease."""
    scene = Scene(actors, staleness=None, n_push=2, n_fetch=2)
    assert scene.live("replica-0", Standing(ends_at)).startswith("cancelled")
    assert not scene.status().is_over
    scene.ask("leave", "replica-0")
    assert scene.live("replica-1") == RUN_IS_OVER
    status = scene.status()
    assert status.is_over
    assert status.n_taken_over >= 1
    assert all(each.n_dropped <= 2 for each in actors.caller.run(scene.server.counts()))


def test_end_of_the_run_releases_one_that_waits_for_work(actors: LocalActors) -> None:
    """All leases are held by another."""
    scene = Scene(actors, epochs=1)
    scene.ask("hello", "holder", "numpy")
    for _ in scene.plan:
        scene.ask("next_lease", "holder", 1.0)
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(scene.live("replica-0")))
    thread.start()
    while actors.calls["hello"] != 2:
        thread.join(0.001)
    scene.ask("finish")
    thread.join(30)
    assert said == [RUN_IS_OVER]
