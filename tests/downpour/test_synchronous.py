"""An exchange of synchronous training: push, arrive, and fetch what the round has made of it, with the real actors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from dask_belief.cluster.actors import ActorAddress
from dask_belief.downpour.ledger import Ledger, LedgerSpec
from dask_belief.downpour.synchronous import SynchronousLine
from dask_belief.errors import StaleError
from dask_belief.optim.rules import SGD
from dask_belief.parameter_server.client import ParameterServer
from dask_belief.parameter_server.consistency import Synchronous
from dask_belief.parameter_server.exchange import Exchange, Exchanged
from dask_belief.parameter_server.messages import LeaseKey, PushKey, StepKey
from dask_belief.parameter_server.updates import VALUES, UpdateSpec
from tests.parameter_server.local_actors import LocalActors, deploy

LENGTH = 5
GENERATION = 0


class Scene:
    """Two shards, a ledger whose replicas have a lease each, and a line for each replica."""

    def __init__(self, actors: LocalActors, replicas: str, backup_replicas: int = 0) -> None:
        staleness = Synchronous(backup_replicas)
        self.actors = actors
        self.server = deploy(actors, [range(3), range(3, LENGTH)], updates=UpdateSpec(SGD(1.0), staleness=staleness))
        self.run(self.server.write(VALUES, np.zeros(LENGTH, np.float32)))
        self.run(self.server.begin_updates())
        self.ledger: ActorAddress = actors.register(
            "ledger", Ledger(GENERATION, LedgerSpec(len(replicas), 2, 0, staleness=staleness))
        )
        self.leases: dict[str, LeaseKey] = {}
        self.lines = {replica: self.line(replica) for replica in replicas}
        self.into = {replica: np.full(LENGTH, np.nan, np.float32) for replica in replicas}
        for replica in replicas:
            self.run(self.ask(replica, "hello", "numpy"))
            self.leases[replica] = LeaseKey(*self.run(self.ask(replica, "next_lease", 10.0)).key)

    def run(self, coroutine: Any) -> Any:
        return self.actors.caller.run(coroutine)

    async def ask(self, replica: str, method: str, *arguments: object) -> Any:
        return await self.actors.caller.call(self.ledger, method, GENERATION, replica, *arguments)

    def line(self, replica: str) -> SynchronousLine:
        server = ParameterServer(self.server.directory, self.actors.caller)
        return SynchronousLine(server, lambda method, *arguments: self.ask(replica, method, *arguments))

    async def fetch(self, replica: str) -> Exchanged:
        at = StepKey(self.leases[replica], 0)
        return await self.lines[replica](Exchange(replica, at, into=self.into[replica]))

    async def step(self, replica: str, step: int, gradient: float) -> Exchanged:
        """Push the gradient of one mini-batch, and fetch."""
        lease = self.leases[replica]
        at, key, vector = StepKey(lease, step + 1), PushKey(lease, step, step), np.full(LENGTH, gradient, np.float32)
        return await self.lines[replica](Exchange(replica, at, key, vector, (step, step), into=self.into[replica]))

    async def begin(self) -> None:
        await asyncio.gather(*map(self.fetch, self.lines))


@pytest.fixture
def actors() -> Iterator[LocalActors]:
    with LocalActors() as carrier:
        yield carrier


def test_all_step_by_the_mean_and_see_the_same(actors: LocalActors) -> None:
    """Round after round, in as many updates; bytes are those of one push and one fetch."""
    scene = Scene(actors, "abc")
    scene.run(scene.begin())
    expected = 0.0
    for step in range(3):

        async def together(step: int = step) -> list[Exchanged]:
            gradients = {name: 3.0 * (number + step) for number, name in enumerate("abc")}
            return await asyncio.gather(*(scene.step(name, step, each) for name, each in gradients.items()))

        done = scene.run(together())
        expected -= 3.0 * (1 + step)
        for replica, each in zip("abc", done, strict=True):
            np.testing.assert_allclose(scene.into[replica], expected)
            assert each.versions == (step + 1,) * 2
            assert (each.pushed_bytes, each.fetched_bytes) == (4 * LENGTH, 4 * LENGTH)
    counts = scene.run(scene.server.counts())
    assert [(each.n_updates, each.n_dropped, each.staleness[0]) for each in counts] == [(3, 0, 9)] * 2


def test_late_push_is_dropped_and_its_lease_goes_on(actors: LocalActors) -> None:
    """The late one sees the parameters of the others, and is a member of the next round."""
    scene = Scene(actors, "ab", backup_replicas=1)
    scene.run(scene.begin())
    scene.run(scene.step("a", 0, 1.0))
    scene.run(scene.step("b", 0, 100.0))
    np.testing.assert_array_equal(scene.into["b"], np.full(LENGTH, -1.0))
    scene.run(scene.step("b", 1, 2.0))
    np.testing.assert_array_equal(scene.into["b"], np.full(LENGTH, -3.0))
    # Its late push is now known as done to all shards.
    assert scene.run(scene.server.applied(scene.leases["b"])) == 1
    assert [each.n_dropped for each in scene.run(scene.server.counts())] == [1, 1]


def test_round_goes_on_without_one_that_is_lost(actors: LocalActors) -> None:
    """It had pushed to the shards and not arrived: its push is in no step, and its successor's is."""
    scene = Scene(actors, "ab")
    scene.run(scene.begin())

    async def scenario() -> None:
        stepping = asyncio.ensure_future(scene.step("a", 0, 2.0))
        lease = scene.leases["b"]
        gradient = np.full(LENGTH, 50.0, np.float32)
        await scene.server.exchange(Exchange("b", StepKey(lease, 1), PushKey(lease, 0, 0), gradient, (0, 0)))
        await scene.ask("b", "leave")
        await stepping

    scene.run(scenario())
    np.testing.assert_array_equal(scene.into["a"], np.full(LENGTH, -2.0))
    scene.leases["a"] = scene.leases["b"]
    assert scene.run(scene.server.applied(scene.leases["b"])) == -1
    scene.run(scene.step("a", 0, 5.0))
    np.testing.assert_array_equal(scene.into["a"], np.full(LENGTH, -7.0))


def test_one_that_joins_begins_with_the_round_that_is_open(actors: LocalActors) -> None:
    """Its first fetch holds all rounds that are closed, also one that nobody has fetched yet."""
    scene = Scene(actors, "ab", backup_replicas=2)
    scene.run(scene.begin())
    scene.run(scene.step("a", 0, 1.0))
    lease = scene.leases["a"]
    pushed = Exchange("a", StepKey(lease, 2), PushKey(lease, 1, 1), np.ones(LENGTH, np.float32), (1, 1))
    scene.run(scene.server.exchange(pushed))
    scene.run(scene.ask("a", "arrive", 1, pushed.push, 1.0))
    scene.lines["c"], scene.into["c"], scene.leases["c"] = scene.line("c"), np.empty(LENGTH, np.float32), LeaseKey(1, 0)
    scene.run(scene.fetch("c"))
    np.testing.assert_array_equal(scene.into["c"], np.full(LENGTH, -2.0))
    scene.run(scene.step("c", 0, 1.0))
    np.testing.assert_array_equal(scene.into["c"], np.full(LENGTH, -3.0))


def test_end_of_the_run_ends_the_wait(actors: LocalActors) -> None:
    """Nobody will close the round."""
    scene = Scene(actors, "ab")
    scene.run(scene.begin())

    async def scenario() -> None:
        stepping = asyncio.ensure_future(scene.step("a", 0, 2.0))
        while not actors.calls["arrive"]:
            await asyncio.sleep(0)
        await actors.caller.call(scene.ledger, "finish", GENERATION)
        with pytest.raises(StaleError, match="the run is over"):
            await stepping

    scene.run(scenario())
