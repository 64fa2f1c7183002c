"""The shard actors of a run on a cluster: replaced, handed over, copied, and nothing of theirs left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from distributed import Client

from dask_belief.cluster.actors import ActorAddress, ActorHost, Caller
from dask_belief.errors import ActorLostError, OldDirectoryError
from dask_belief.optim.rules import SGD
from dask_belief.parameter_server.client import ParameterServer
from dask_belief.parameter_server.directory import Directory
from dask_belief.parameter_server.exchange import Exchange
from dask_belief.parameter_server.messages import LeaseKey, PushKey, StepKey
from dask_belief.parameter_server.ranges import BLOCK, shard_ranges
from dask_belief.parameter_server.shards import Shards, ShardsSpec
from dask_belief.parameter_server.updates import VALUES, UpdateSpec
from dask_belief.seeds import stream
from tests.small_cluster import eventually, kill_worker

SEED = 74
N_PARAMETERS = BLOCK + 21
LEASE = LeaseKey(0, 0)


class Held:
    """Shards, and what a driver has beside them."""

    def __init__(self, client: Client, n_copies: int = 0, updates: UpdateSpec | None = None) -> None:
        self.client, self.told = client, list[Directory]()
        self.host = ActorHost(client, "held")
        self.workers = sorted(client.nthreads())
        self.caller = Caller.of_client(client, self.workers)
        spec = ShardsSpec(N_PARAMETERS, "float32", None, updates, shard_ranges(N_PARAMETERS, 2), n_copies=n_copies)
        self.news: Callable[[], None] = lambda: None
        self.shards = Shards(client, self.host, "held", spec, self.workers[:2], self.there)
        self.host.ready(self.directory.shards)

    def there(self) -> Mapping[str, int]:
        self.news()
        return {worker: 1 for worker in self.client.nthreads() if worker in self.workers}

    @property
    def directory(self) -> Directory:
        return self.shards.directory

    @property
    def server(self) -> ParameterServer:
        return ParameterServer(self.directory, self.caller)

    def run(self, coroutine: Any) -> Any:
        return self.caller.run(coroutine)

    def write(self, name: str, shards: list[int] | None = None) -> np.ndarray:
        vector = stream(SEED, name).standard_normal(N_PARAMETERS).astype(np.float32)
        self.run(self.server.write(name, vector, shards))
        return vector

    def read(self, name: str) -> np.ndarray:
        into = np.empty(N_PARAMETERS, np.float32)
        self.run(self.server.read(name, into))
        return into

    def keys(self) -> list[str]:
        """Of the actors that are on the cluster."""
        return [str(key) for key in self.client.cluster.scheduler.tasks if str(key).startswith("shard-held")]


@pytest.fixture
def held(own_client: Client) -> Iterator[Held]:
    held = Held(own_client)
    yield held
    held.host.close()


@pytest.fixture
def copied(own_client: Client) -> Iterator[Held]:
    held = Held(own_client, n_copies=1, updates=UpdateSpec(SGD(1.0)))
    held.write(VALUES)
    held.run(held.server.begin_updates())
    held.shards.copy(held.caller, held.told.append)
    yield held
    held.host.close()


def push(held: Held, step: int, directory: Directory | None = None) -> np.ndarray:
    gradient, into = np.ones(N_PARAMETERS, np.float32), np.empty(N_PARAMETERS, np.float32)
    server = ParameterServer(directory or held.directory, held.caller)
    held.run(server.exchange(Exchange("a", StepKey(LEASE, step + 1), PushKey(LEASE, step, step), gradient, into=into)))
    return into


def test_replaced_shard_is_elsewhere_and_the_others_stay(held: Held) -> None:
    """Away from what was saved of it where that can be; the older directory is refused; the old actor is gone."""
    x, before = held.write("x"), held.directory
    # The third worker keeps what is saved, and the first one has a shard already.
    avoid = {1: held.workers[2]}

    def carry(server: ParameterServer) -> list[Any]:
        assert server.directory.generation == 1
        held.run(server.write("x", x, [1]))
        return []

    held.workers.remove(before.shards[1].worker)
    held.shards.replace([1], held.caller, held.told.append, carry, avoid)
    assert held.told == [held.directory]
    assert held.directory.shards[0] is before.shards[0]
    assert held.directory.shards[1].worker == held.workers[0]
    assert held.read("x").tobytes() == x.tobytes()
    with pytest.raises((OldDirectoryError, ActorLostError)):
        held.run(ParameterServer(before, held.caller).read("x", x.copy()))
    eventually(lambda: sorted(held.keys()) == sorted(shard.key for shard in held.directory.shards))


def test_change_that_fails_leaves_nothing(held: Held) -> None:
    """The directory stays, the new actors go, and the next one uses no key again."""
    x, before = held.write("x"), held.directory
    made: list[ActorAddress] = []

    def fail(server: ParameterServer) -> list[Any]:
        made.append(server.directory.shards[1])
        raise ActorLostError("another one")

    def carry(server: ParameterServer) -> list[Any]:
        made.append(server.directory.shards[1])
        held.run(server.write("x", x, [1]))
        return []

    for _ in range(2):
        with pytest.raises(ActorLostError):
            held.shards.replace([1], held.caller, held.told.append, fail, {})
    assert (held.directory, held.told) == (before, [])
    assert held.read("x").tobytes() == x.tobytes()
    eventually(lambda: len(held.keys()) == 2)
    held.shards.replace([1], held.caller, held.told.append, carry, {})
    assert len({actor.key for actor in made}) == 3
    assert held.directory.generation == 3
    assert held.read("x").tobytes() == x.tobytes()


def test_shard_is_handed_over(held: Held) -> None:
    """With the vectors that are named, to the bit; what is sent to it by the older directory is refused."""
    x, before = held.write("x"), held.directory
    held.write("trial")
    leaving = before.shards[0].worker
    held.workers.remove(leaving)
    held.shards.hand_over([0], held.caller, held.told.append, ("x",))
    assert held.told == [held.directory]
    assert leaving not in [shard.worker for shard in held.directory.shards]
    assert held.read("x").tobytes() == x.tobytes()
    assert held.run(held.server.names()) == ["x"]
    with pytest.raises((OldDirectoryError, ActorLostError)):
        held.run(ParameterServer(before, held.caller).write("x", x))
    eventually(lambda: len(held.keys()) == 2)


def test_copy_has_all_that_its_shard_has(copied: Held) -> None:
    """On another worker; from then on it is told of each push, and takes the shard's place with nothing lost."""
    assert all(
        copy is not None and copy.worker != shard.worker
        for shard, copy in zip(copied.directory.shards, copied.directory.copies, strict=True)
    )
    for step in range(3):
        values = push(copied, step)
    lost = copied.directory.shards[0]
    kill_worker(copied.client, lost.worker)
    gone = {lost.worker}
    names = copied.shards.promote_copies(copied.caller, gone, copied.told.append)
    assert "shard 0" in names
    assert copied.shards.on(gone) == []
    assert copied.read(VALUES).tobytes() == values.tobytes()
    # A push that was under way is sent again, and counts once.
    assert push(copied, 2).tobytes() == values.tobytes()
    assert push(copied, 3).tobytes() == (values - np.float32(1)).tobytes()
    assert copied.shards.promote_copies(copied.caller, gone, copied.told.append) == []


def test_handed_over_updates_go_on(copied: Held) -> None:
    """Marks and all; the copy goes, and another one is made."""
    values = push(copied, 0)
    old, copy = copied.directory.shards[0], copied.directory.copies[0]
    copied.workers.remove(old.worker)
    copied.shards.hand_over([0], copied.caller, copied.told.append, None)
    assert copied.directory.copies[0] is None
    assert push(copied, 0).tobytes() == values.tobytes()
    copied.shards.copy(copied.caller, copied.told.append)
    another = copied.directory.copies[0]
    assert another is not None
    assert copy is not None
    assert another.key != copy.key
    assert another.worker != copied.directory.shards[0].worker
    assert push(copied, 1).tobytes() == (values - np.float32(1)).tobytes()
    eventually(lambda: len(copied.keys()) == 4)


def test_change_does_not_undo_one_that_came_between(copied: Held) -> None:
    """A copy takes a shard's place while another change waits: the older directory is never in force again."""
    before = push(copied, 0)
    leaving, lost = 1, copied.directory.shards[0].worker
    told = copied.told

    def news() -> None:
        # Heard while the shard is handed over, once.
        copied.news = lambda: None
        kill_worker(copied.client, lost)
        assert copied.shards.promote_copies(copied.caller, {lost}, told.append)

    def wait_for_errands() -> None:
        if copied.shards._errands.is_running:
            news()

    copied.news = wait_for_errands
    with pytest.raises(ActorLostError):
        copied.shards.hand_over([leaving], copied.caller, told.append, None)
    generations = [directory.generation for directory in told]
    assert generations == sorted(set(generations))
    assert copied.directory is told[-1]
    assert copied.directory.shards[0].worker != lost
    # All that are left can be called by it, and nothing was lost.
    assert copied.read(VALUES).tobytes() == before.tobytes()
    assert push(copied, 1).tobytes() == (before - np.float32(1)).tobytes()


def copy_of(held: Held, index: int) -> ActorAddress:
    copy = held.directory.copy_of(index)
    assert copy is not None
    return copy


def test_one_worker_has_no_room_for_a_copy(copied: Held) -> None:
    """It would be lost with its shard."""
    copied.shards.promote_copies(copied.caller, {copy_of(copied, 0).worker}, copied.told.append)
    n_told = len(copied.told)
    copied.workers = copied.workers[:1]
    copied.shards.copy(copied.caller, copied.told.append)
    assert len(copied.told) == n_told


def test_shards_without_a_copy_elsewhere_are_lost_with_their_workers(copied: Held) -> None:
    """One whose copy lives on is not."""
    for index, shard in enumerate(copied.directory.shards):
        assert index not in copied.shards.on({shard.worker})
        assert index in copied.shards.on({shard.worker, copy_of(copied, index).worker})
