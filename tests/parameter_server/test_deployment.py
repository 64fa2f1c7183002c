"""One generation on a cluster: made, watched, losing workers, closed with nothing left behind."""

from __future__ import annotations

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
from dask_belief.cluster.limits import LIMITS
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
from dask_belief.parameter_server.client import Directory
from dask_belief.parameter_server.deployment import Deployment, DeploymentSpec, deployed
from dask_belief.parameter_server.messages import Dot, SquaredPenalty
from dask_belief.parameter_server.ranges import BLOCK
from tests.small_cluster import close_worker, eventually, kill_worker

N_PARAMETERS = BLOCK + 10
GO_ON = threading.Event()
STARTED: list[tuple[str, str]] = []
RAISED: list[Exception] = []
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
    yield
    GO_ON.set()


def spec_of(**changes: Any) -> DeploymentSpec:
    options: dict[str, Any] = {
        "run": "test",
        "method": "a method",
        "n_parameters": N_PARAMETERS,
        "dtype": "float32",
        "penalised": None,
        "n_shards": None,
        "n_replicas": None,
        "updates": None,
        "hub": Desk,
        "hub_arguments": ("hello",),
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
    return lambda generation=0, **changes: deployed(own_client, spec_of(**changes), generation, membership)


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


def test_generation_is_placed_and_answers(own_client: Client, opened: Opened) -> None:
    """Shards spread over workers, a hub made with generation and arguments, vectors that go out and come back."""
    mask = np.arange(N_PARAMETERS) >= 4
    with opened(3, penalised=mask) as deployment:
        directory = deployment.directory
        assert (directory.generation, directory.n_parameters) == (3, N_PARAMETERS)
        assert directory.ranges == (range(0, BLOCK), range(BLOCK, N_PARAMETERS))
        assert len({shard.worker for shard in directory.shards}) == 2
        assert deployment.ask("told") == ["hello"]
        vector, into = np.ones(N_PARAMETERS, np.float32), np.empty(N_PARAMETERS, np.float32)
        deployment.run(deployment.server.write("x", vector))
        deployment.run(deployment.server.read("x", into))
        np.testing.assert_array_equal(into, vector)
        assert deployment.execute(Dot((("x", "x"),)), SquaredPenalty("x")) == [[N_PARAMETERS], [N_PARAMETERS - 4]]


@pytest.mark.parametrize(("n_shards", "expected"), [(1, 1), (2, 2), (7, 2)])
def test_number_of_shards_is_a_limit(opened: Opened, n_shards: int, expected: int) -> None:
    """As many as were asked for, but none smaller than a block."""
    with opened(n_shards=n_shards) as deployment:
        assert len(deployment.directory.shards) == expected


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
    with opened(1, n_replicas=4) as deployment:
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
    assert time.monotonic() - began < LIMITS.stop_seconds
    eventually(lambda: not tasks)
    GO_ON.clear()
    with pytest.raises(KeyboardInterrupt), opened(1) as deployment:
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


@pytest.mark.parametrize("which", ["shard 0", "desk"])
def test_loss_of_an_actor_ends_the_generation(own_client: Client, opened: Opened, which: str) -> None:
    """By an error that names what was lost; closing takes no time of waiting for the dead; the next one is complete."""
    with pytest.raises(ActorLostError, match=which) as raised, opened(n_shards=1) as deployment:
        deployment.start_replicas()
        watch_until(deployment, lambda: len(STARTED) == 3)
        [worker] = [actor.worker for actor in deployment._actors if actor.name == which]
        kill_worker(own_client, worker)
        # The replicas end by themselves, as those of a run do that hear of the loss.
        GO_ON.set()
        try:
            watch_until(deployment, lambda: False)
        finally:
            began = time.monotonic()
    assert time.monotonic() - began < 0.8 * LIMITS.stop_seconds
    assert worker in str(raised.value)
    eventually(lambda: not own_client.cluster.scheduler.tasks)
    GO_ON.clear()
    with opened(1, n_shards=1) as deployment:
        deployment.start_replicas()
        assert deployment.ask("told") == ["hello"]
        assert worker not in [actor.worker for actor in deployment._actors]


def test_changes_before_a_loss_are_kept(own_client: Client, opened: Opened) -> None:
    """The lost worker is among the changes that the driver can take, although the generation ended by it."""
    with pytest.raises(ActorLostError), opened(n_shards=1) as deployment:
        worker = deployment.directory.shards[0].worker
        close_worker(own_client, worker)
        watch_until(deployment, lambda: False)
    assert deployment.changes == [Lost(worker)]


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
    """There is nothing to open a generation on."""
    for worker in list(own_client.nthreads()):
        close_worker(own_client, worker)
    with pytest.raises(NoWorkersError), opened():
        pass


def test_lost_scheduler_is_an_error(own_client: Client, membership: Membership) -> None:
    """Watching says that the connection is gone, and closing does not hang."""
    client = Client(own_client.scheduler.address, set_as_default=False)
    with (
        pytest.raises(ClusterError, match="connection to Dask's scheduler is gone"),
        deployed(client, spec_of(), 0, membership) as deployment,
    ):
        client.close()
        deployment.watch()
