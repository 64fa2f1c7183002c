"""A run on a cluster: made, watched, losing workers, made anew, closed with nothing left behind."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
from distributed import Client, get_worker

from dask_belief.cluster.actors import ActorAddress
from dask_belief.cluster.limits import Limits, limited_by, limits
from dask_belief.cluster.membership import Joined, Lost, Membership
from dask_belief.cluster.replicas import stand_aside
from dask_belief.errors import (
    ActorLostError,
    ClusterError,
    NonFiniteError,
    NoWorkersError,
    ReplicaError,
    StaleError,
)
from dask_belief.optim.rules import SGD
from dask_belief.parameter_server import deployment as deployment_module
from dask_belief.parameter_server.client import ParameterServer
from dask_belief.parameter_server.deployment import Deployment, DeploymentSpec, deployed
from dask_belief.parameter_server.directory import Directory
from dask_belief.parameter_server.messages import Dot, SquaredPenalty
from dask_belief.parameter_server.ranges import BLOCK, shard_ranges
from dask_belief.parameter_server.shards import ShardsSpec
from dask_belief.parameter_server.updates import VALUES, UpdateSpec
from dask_belief.seeds import stream
from tests.small_cluster import close_worker, eventually, kill_worker

SEED = 91
N_PARAMETERS = BLOCK + 10
GO_ON = threading.Event()
STARTED: list[tuple[str, str]] = []
RAISED: list[Exception] = []
PUBLISHED: list[tuple[int, int]] = []
"""The cluster's workers are threads of this process: what replicas saw, and what the next of them is to raise."""


class Desk:
    """A hub that notes what it is told."""

    def __init__(self, generation: int, greeting: str) -> None:
        self.generation = generation
        self.notes: list[str] = [greeting]

    async def leave(self, generation: int, replica: str) -> None:
        self.notes.append(f"leave {replica}")

    async def told(self, generation: int) -> list[str]:
        if generation != self.generation:
            raise StaleError("of another generation")
        return self.notes

    async def publish(self, generation: int, number: int, directory: Directory) -> None:
        PUBLISHED.append((generation, number))

    async def restore(self, generation: int, *state: object) -> None:
        self.notes.append(f"restored {state}")

    async def finish(self, generation: int) -> None:
        GO_ON.set()


def replica(spec: tuple[Directory, ActorAddress], dataset: object, name: str) -> str:
    """Goes on until the hub ends the run."""
    standing = stand_aside()
    STARTED.append((name, get_worker().address))
    if RAISED:
        raise RAISED[0]
    while not (GO_ON.wait(0.01) or standing.should_end):
        pass
    return "over"


def brief(spec: tuple[Directory, ActorAddress], dataset: object, name: str) -> str:
    """Ends at once, although nobody said so."""
    stand_aside()
    return "done"


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    GO_ON.clear()
    STARTED.clear()
    RAISED.clear()
    PUBLISHED.clear()
    yield
    GO_ON.set()


def spec_of(
    n_shards: int = 2, penalised: np.ndarray | None = None, n_copies: int = 0, **changes: Any
) -> DeploymentSpec:
    ranges = shard_ranges(N_PARAMETERS, n_shards)
    updates = UpdateSpec(SGD(1.0)) if n_copies else None
    options: dict[str, Any] = {
        "run": "test",
        "method": "a method",
        "shards": ShardsSpec(N_PARAMETERS, "float32", penalised, updates, ranges, n_copies=n_copies),
        "n_replicas": None,
        "hub": Desk,
        "hub_arguments": ("hello",),
        "hub_state": lambda deployment: ("state", deployment.n_hubs),
        "hub_cost": "a little",
        "replica": replica,
        "replica_spec": lambda directory, hub: (directory, hub),
        "dataset": "rows",
    }
    return DeploymentSpec(**{**options, **changes})


Opened = Callable[..., AbstractContextManager[Deployment]]


@pytest.fixture
def membership(own_client: Client) -> Iterator[Membership]:
    membership = Membership(own_client, "dask-belief-test")
    yield membership
    membership.close()


@pytest.fixture
def opened(own_client: Client, membership: Membership) -> Opened:
    return lambda **changes: deployed(own_client, spec_of(**changes), membership)


def watch_until(deployment: Deployment, is_so: Callable[[], bool]) -> None:
    def look() -> bool:
        deployment.watch()
        return is_so()

    eventually(look)


def idle_worker(own_client: Client, deployment: Deployment) -> str:
    """The worker that holds neither a shard nor the hub."""
    actors = {actor.worker for actor in deployment._actors}
    [idle] = set(own_client.nthreads()) - actors
    return idle


def test_run_is_placed_and_answers(opened: Opened) -> None:
    """Shards spread over workers, a hub made with generation and arguments, vectors that go out and come back."""
    mask = np.arange(N_PARAMETERS) >= 4
    with opened(penalised=mask) as deployment:
        directory = deployment.directory
        assert (directory.generation, directory.n_parameters) == (0, N_PARAMETERS)
        assert directory.ranges == (range(0, BLOCK), range(BLOCK, N_PARAMETERS))
        assert len({shard.worker for shard in directory.shards}) == 2
        assert deployment.ask("told") == ["hello"]
        vector, into = np.ones(N_PARAMETERS, np.float32), np.empty(N_PARAMETERS, np.float32)
        deployment.run(deployment.server.write("x", vector))
        deployment.run(deployment.server.read("x", into))
        np.testing.assert_array_equal(into, vector)
        assert deployment.execute(Dot((("x", "x"),)), SquaredPenalty("x")) == [[N_PARAMETERS], [N_PARAMETERS - 4]]


def test_replicas_run_on_every_thread(own_client: Client, opened: Opened) -> None:
    """Or as many as were asked for, with actors free to answer meanwhile."""
    with opened() as deployment:
        deployment.start_replicas()
        watch_until(deployment, lambda: len(STARTED) == 3)
        assert Counter(worker for _, worker in STARTED) == dict.fromkeys(own_client.nthreads(), 1)
        assert deployment.n_replicas == 3
        assert deployment.ask("told") == ["hello"]
    STARTED.clear()
    GO_ON.clear()
    with opened(run="another", n_replicas=4) as deployment:
        deployment.start_replicas()
        watch_until(deployment, lambda: len(STARTED) == 4)


def test_nothing_stays_on_the_cluster(own_client: Client, opened: Opened) -> None:
    """After its end, and after an error in it."""
    tasks = own_client.cluster.scheduler.tasks
    with opened() as deployment:
        deployment.start_replicas()
        watch_until(deployment, lambda: len(STARTED) == 3)
        assert tasks
        began = time.monotonic()
    # The hub told the replicas, so nobody had to be cancelled.
    assert time.monotonic() - began < limits().stop_seconds
    eventually(lambda: not tasks)
    GO_ON.clear()
    with pytest.raises(KeyboardInterrupt), opened() as deployment:
        deployment.start_replicas()
        raise KeyboardInterrupt
    eventually(lambda: not tasks)


def test_lost_replica_is_told_to_the_hub_and_not_missed(own_client: Client, opened: Opened) -> None:
    """The loss of a worker without an actor costs its replicas; with a stated number, others take their place."""
    with opened(n_replicas=3, n_shards=1) as deployment:
        deployment.start_replicas()
        watch_until(deployment, lambda: len(STARTED) == 3)
        idle = idle_worker(own_client, deployment)
        [lost] = [name for name, worker in STARTED if worker == idle]
        close_worker(own_client, idle)
        watch_until(deployment, lambda: len(STARTED) == 4)
        assert deployment.changes == [Lost(idle)]
        assert deployment.ask("told") == ["hello", f"leave {lost}"]
        assert STARTED[3][0] not in [name for name, _ in STARTED[:3]]


def test_joining_worker_gets_a_replica(own_client: Client, opened: Opened) -> None:
    """One on each of its threads."""
    with opened() as deployment:
        deployment.start_replicas()
        own_client.cluster.scale(4)
        watch_until(deployment, lambda: len(STARTED) == 4)
        [joined] = deployment.changes
        assert isinstance(joined, Joined)
        assert STARTED[3][1] == joined.worker


def test_lost_shard_is_told_to_the_driver(own_client: Client, opened: Opened) -> None:
    """By an error that names it; closing takes no time of waiting for the dead, and the loss is among the changes."""
    with pytest.raises(ActorLostError, match="shard 0") as raised, opened(n_shards=1) as deployment:
        deployment.start_replicas()
        watch_until(deployment, lambda: len(STARTED) == 3)
        worker = deployment.directory.shards[0].worker
        kill_worker(own_client, worker)
        # The replicas end by themselves, as those of a run do that hear of the loss.
        GO_ON.set()
        try:
            watch_until(deployment, lambda: False)
        finally:
            began = time.monotonic()
    assert time.monotonic() - began < 0.8 * limits().stop_seconds
    assert worker in str(raised.value)
    assert deployment.changes == [Lost(worker)]
    eventually(lambda: not own_client.cluster.scheduler.tasks)


def read(deployment: Deployment, name: str = "x") -> np.ndarray:
    into = np.empty(N_PARAMETERS, np.float32)
    deployment.run(deployment.server.read(name, into))
    return into


def write(deployment: Deployment, name: str = "x") -> np.ndarray:
    vector = stream(SEED, name).standard_normal(N_PARAMETERS).astype(np.float32)
    deployment.run(deployment.server.write(name, vector))
    return vector


def test_lost_shard_is_made_anew(own_client: Client, opened: Opened) -> None:
    """On another worker, told to the hub, and the driver goes on by the newer directory; others are as they were."""
    with opened() as deployment:
        vector = write(deployment)
        lost = deployment.directory.shards[1]
        kill_worker(own_client, lost.worker)
        with pytest.raises(ActorLostError):
            watch_until(deployment, lambda: False)
        assert deployment.lost_shards() == [1]

        def carry(server: ParameterServer) -> list[Any]:
            deployment.run(server.write("x", vector, [1]))
            return []

        deployment.replace([1], carry, {})
        assert deployment.lost_shards() == []
        assert deployment.server.directory is deployment.directory
        assert deployment.directory.generation == 1
        assert PUBLISHED == [(0, 1)]
        assert deployment.directory.shards[1].key != lost.key
        assert deployment.directory.shards[1].worker != lost.worker
        np.testing.assert_array_equal(read(deployment), vector)
        deployment.watch()


def test_lost_hub_is_made_anew_from_what_the_driver_knows(own_client: Client, opened: Opened) -> None:
    """With a generation of its own; it is told of the shards, replicas are started anew, and the driver goes on."""
    with opened(n_shards=1) as deployment:
        deployment.start_replicas()
        watch_until(deployment, lambda: len(STARTED) == 3)
        vector, hub = write(deployment), deployment._hub
        assert hub.worker != deployment.directory.shards[0].worker
        kill_worker(own_client, hub.worker)
        assert deployment.ask("told") == ["hello", "restored ('state', 1)"]
        assert deployment.n_hubs == 2
        assert (deployment._hub.generation, deployment._hub.worker != hub.worker) == (1, True)
        assert PUBLISHED[-1] == (1, 0)
        [(reason, cost)] = deployment.rebuilt
        assert reason.startswith("desk was made anew: ")
        assert cost == "a little"
        watch_until(deployment, lambda: len({name for name, _ in STARTED}) == 5)
        np.testing.assert_array_equal(read(deployment), vector)


def test_hub_is_made_anew_when_the_driver_asks(own_client: Client, opened: Opened) -> None:
    """As often as it does: no key is used twice, and the old ones are gone."""
    with opened(n_shards=1) as deployment:
        keys = [deployment._hub.key]
        for _ in range(3):
            deployment.renew_hub("all shards went back.")
            keys.append(deployment._hub.key)
        assert len(set(keys)) == 4
        assert deployment.ask("told") == ["hello", "restored ('state', 3)"]
        tasks = own_client.cluster.scheduler.tasks
        eventually(lambda: [key in tasks for key in keys] == [False, False, False, True])


def test_key_of_a_hub_that_could_not_be_made_is_not_used_again(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its worker was lost while it was made, say."""
    monkeypatch.setattr(deployment_module, "NEWS_SECONDS", 0.0)
    with opened(n_shards=1) as deployment:
        spawned: list[ActorAddress] = []
        ready, give_up = deployment.host.ready, deployment._membership.give_up

        def once(actors: list[ActorAddress]) -> None:
            spawned.extend(actors)
            ready(actors)
            if len(spawned) == 1:
                raise ActorLostError("lost while it was made")

        monkeypatch.setattr(deployment.host, "ready", once)
        monkeypatch.setattr(deployment._membership, "give_up", lambda worker: None)
        deployment.renew_hub("all shards went back.")
        assert len({actor.key for actor in spawned}) == 2
        assert deployment.ask("told") == ["hello", "restored ('state', 1)"]
        assert give_up is not deployment._membership.give_up


@pytest.mark.parametrize("gone", ["shard", "copy"])
def test_copy_takes_the_place_of_its_shard(own_client: Client, opened: Opened, gone: str) -> None:
    """The driver need do nothing; what is missing is made again where there is a worker for it."""
    with opened(n_shards=1, n_copies=1) as deployment:
        vector = write(deployment, VALUES)
        deployment.run(deployment.server.begin_updates())
        deployment.copy_shards()
        [shard], [copy] = deployment.directory.shards, deployment.directory.copies
        assert copy is not None
        assert copy.worker != shard.worker
        lost, stays = (shard, copy) if gone == "shard" else (copy, shard)
        kill_worker(own_client, lost.worker)
        deployment.watch()
        assert (deployment.directory.shards, deployment.directory.copies) == ((stays,), (None,))
        assert lost.name in deployment.rebuilt[0][0]
        np.testing.assert_array_equal(read(deployment, VALUES), vector)
        deployment.copy_shards()
        [another] = deployment.directory.copies
        assert another is not None
        assert another.key not in {shard.key, copy.key}
        assert another.worker not in {stays.worker, lost.worker}


def test_shard_is_made_anew_with_its_copy(own_client: Client, opened: Opened) -> None:
    """When both are lost, others that lost their copy at the same time go on."""
    with opened(n_copies=1) as deployment:
        vector = write(deployment, VALUES)
        deployment.run(deployment.server.begin_updates())
        deployment.copy_shards()
        [first, other], copies = deployment.directory.shards, deployment.directory.copies
        assert copies[0] is not None
        for worker in {first.worker, copies[0].worker} - {other.worker}:
            kill_worker(own_client, worker)
        with contextlib.suppress(ActorLostError):
            watch_until(deployment, lambda: len(deployment.changes) >= 1)
        lost = deployment.lost_shards()

        def carry(server: ParameterServer) -> list[Any]:
            deployment.run(server.write(VALUES, vector, lost))
            deployment.run(server.begin_updates(lost, is_behind=True))
            return []

        deployment.replace(lost, carry, {})
        assert deployment.lost_shards() == []
        workers = own_client.nthreads()
        assert {actor.worker for actor in deployment.directory.actors} <= set(workers)
        np.testing.assert_array_equal(read(deployment, VALUES), vector)
        deployment.copy_shards()
        deployment.watch()


def test_error_of_the_objective_is_raised(opened: Opened) -> None:
    """Named with its replica and worker, and with its cause."""
    RAISED.append(ZeroDivisionError("in my model"))
    with pytest.raises(ReplicaError, match="raised ZeroDivisionError: in my model") as raised, opened() as deployment:
        deployment.start_replicas()
        watch_until(deployment, lambda: False)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_error_of_the_package_goes_through(opened: Opened) -> None:
    """It says already what is wrong."""
    RAISED.append(NonFiniteError("the loss is nan"))
    with pytest.raises(NonFiniteError, match="the loss is nan"), opened() as deployment:
        deployment.start_replicas()
        watch_until(deployment, lambda: False)


def test_replica_that_ends_is_started_again_but_not_for_ever(opened: Opened) -> None:
    """When replicas end again and again although their workers live, the run ends."""
    with (
        pytest.raises(ClusterError, match="replicas ended 10 times without any work finished in between"),
        opened(replica=brief) as deployment,
    ):
        deployment.start_replicas()
        watch_until(deployment, lambda: False)


def test_no_worker_is_an_error(own_client: Client, opened: Opened) -> None:
    """There is nothing to open a run on."""
    for worker in list(own_client.nthreads()):
        close_worker(own_client, worker)
    with limited_by(Limits(start_seconds=0.1)), pytest.raises(NoWorkersError), opened():
        pass


def test_lost_scheduler_is_an_error(own_client: Client, membership: Membership) -> None:
    """Watching says that the connection is gone, and closing does not hang."""
    client = Client(own_client.scheduler.address, set_as_default=False)
    with (
        pytest.raises(ClusterError, match="connection to Dask's scheduler is gone"),
        deployed(client, spec_of(), membership) as deployment,
    ):
        client.close()
        deployment.watch()
