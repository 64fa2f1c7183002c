"""Actors on a cluster of threads that talks TCP: each way in which a call can end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import dask
import numpy as np
import pytest
from distributed import Client, get_worker

from dask_belief.binary_tree import Node
from dask_belief.cluster.actors import (
    ActorAddress,
    ActorHost,
    Caller,
    DirectLine,
    Line,
    LineThroughScheduler,
    all_of,
)
from dask_belief.cluster.limits import Limits, limited_by
from dask_belief.errors import ActorLostError, CallTimeoutError, StaleError
from tests.faults.conftest import processes
from tests.small_cluster import close_worker, eventually, frozen

GO_ON = threading.Event()
"""Set to let slow methods end; the cluster's workers are threads of this process."""


class Counter:
    """A synchronous actor."""

    def __init__(self, start: int = 0) -> None:
        self._n = start

    def add(self, n: int) -> int:
        self._n += n
        return self._n

    def double(self, vector: np.ndarray) -> np.ndarray:
        return 2 * vector

    def same(self, thing: object) -> object:
        return thing

    def where(self) -> str:
        return str(get_worker().address)

    def slow(self) -> None:
        GO_ON.wait(30)

    def slow_by(self, seconds: float) -> str:
        time.sleep(seconds)
        return "done"

    def fail(self, error: Exception) -> None:
        raise error


class Loop:
    """An asynchronous actor."""

    async def answer(self, what: str) -> str:
        return what


class Unmakeable:
    def __init__(self) -> None:
        raise ValueError("cannot be made")


@pytest.fixture
def host(client: Client, request: pytest.FixtureRequest) -> Iterator[ActorHost]:
    GO_ON.clear()
    host = ActorHost(client, request.node.name)
    yield host
    GO_ON.set()
    host.close()


@pytest.fixture(params=["direct", "through the scheduler"])
def caller(request: pytest.FixtureRequest, client: Client, workers: list[str]) -> Caller:
    """Both ways in which a client reaches actors."""
    if request.param == "direct":
        return Caller.of_client(client, workers)
    return Caller(client.loop.asyncio_loop, LineThroughScheduler(client.scheduler))


@pytest.fixture
def counter(host: ActorHost, workers: list[str]) -> ActorAddress:
    address = host.spawn(Counter, "counter 0", workers[1], 10)
    host.ready([address])
    return address


def test_actor_is_made_where_it_was_asked_for(host: ActorHost, caller: Caller, workers: list[str]) -> None:
    """Each on its worker, and known by name and key."""
    addresses = [host.spawn(Counter, f"counter {number}", worker) for number, worker in enumerate(workers)]
    host.ready(addresses)
    assert [caller.run(caller.call(address, "where")) for address in addresses] == workers
    assert [address.worker for address in addresses] == workers
    assert len({address.key for address in addresses}) == 2


def test_calls_change_the_actor_and_answer(counter: ActorAddress, caller: Caller) -> None:
    """State is kept between calls."""
    assert caller.run(caller.call(counter, "add", 1)) == 11
    assert caller.run(caller.call(counter, "add", 5)) == 16


def test_vectors_travel_both_ways(counter: ActorAddress, caller: Caller) -> None:
    """An array arrives as an array, of the same dtype, also one that is read-only."""
    vector = np.arange(5, dtype=np.float32)
    vector.flags.writeable = False
    doubled = caller.run(caller.call(counter, "double", vector))
    np.testing.assert_array_equal(doubled, 2 * vector)
    assert doubled.dtype == np.float32


def test_asynchronous_method_is_awaited(host: ActorHost, caller: Caller, workers: list[str]) -> None:
    """The caller gets its result and not a coroutine."""
    address = host.spawn(Loop, "loop", workers[0])
    host.ready([address])
    assert caller.run(caller.call(address, "answer", "yes")) == "yes"


def test_task_calls_an_actor_on_another_worker(counter: ActorAddress, client: Client, workers: list[str]) -> None:
    """Of use from any worker, by its address alone."""

    def task(address: ActorAddress) -> int:
        caller = Caller.of_worker(get_worker())
        n: int = caller.run(caller.call(address, "add", 2))
        return n

    assert client.submit(task, counter, workers=[workers[0]], pure=False).result(10) == 12


def test_actor_of_the_same_worker_is_called_without_a_message(
    counter: ActorAddress, client: Client, workers: list[str]
) -> None:
    """Its arguments are handed over as they are, it answers and raises all the same, and the caller can tell."""

    def task(address: ActorAddress) -> tuple[bool, bool, int]:
        caller = Caller.of_worker(get_worker())
        sent = object()
        returned = caller.run(caller.call(address, "same", sent)) is sent
        try:
            caller.run(caller.call(address, "fail", StaleError("mine")))
        except StaleError:
            n: int = caller.run(caller.call(address, "add", 2))
        return caller.hands_over(address), returned, n

    assert client.submit(task, counter, workers=[workers[1]], pure=False).result(10) == (True, True, 12)


def test_unknown_actor_of_the_same_worker_is_lost(client: Client, workers: list[str]) -> None:
    """As one of another worker."""

    def task(worker: str) -> str:
        caller = Caller.of_worker(get_worker())
        try:
            caller.run(caller.call(ActorAddress("shard 3", worker, "no-such-key"), "add", 1))
        except ActorLostError:
            return "lost"
        return "answered"

    assert client.submit(task, workers[0], workers=[workers[0]], pure=False).result(10) == "lost"


@pytest.mark.parametrize(("worker", "expected"), [("tcp://127.0.0.1:1", False), ("inproc://127.0.0.1/1/2", True)])
def test_messages_copy_but_in_one_process(client: Client, worker: str, expected: bool) -> None:
    """A client's actors get copies, unless all are threads of one process that do not talk TCP."""
    caller = Caller.of_client(client, [])
    assert caller.hands_over(ActorAddress("shard 0", worker, "key")) is expected


@pytest.mark.parametrize(
    "arguments",
    [(None, True, 3, 0.5, "name"), (np.float64(2.5), np.int64(3)), ((1, (2, "a")), [1, 2]), (Node(2, 1), {"a": 1.0})],
)
def test_arguments_arrive_as_they_are(counter: ActorAddress, caller: Caller, arguments: tuple) -> None:
    """Plain ones and others, alone and within tuples, by value and with their types; named tuples may be plain ones."""
    for argument in arguments:
        returned = caller.run(caller.call(counter, "same", argument))
        assert returned == argument
        assert isinstance(argument, type(returned))


@pytest.mark.parametrize(
    "error",
    [StaleError("of another run"), ValueError("bad"), KeyError("missing"), OSError("disk"), TimeoutError("own")],
    ids=lambda error: type(error).__name__,
)
def test_what_a_method_raises_goes_through(counter: ActorAddress, caller: Caller, error: Exception) -> None:
    """As it is: not even one that looks like a lost connection is taken for one."""
    with pytest.raises(type(error)) as raised:
        caller.run(caller.call(counter, "fail", error))
    assert type(raised.value) is type(error)
    assert raised.value.args == error.args


def test_slow_method_is_a_timeout(counter: ActorAddress, caller: Caller) -> None:
    """A call that takes longer than its limit names actor, worker, method and limit."""
    expected = rf"counter 0 on {counter.worker} did not answer 'slow' within 0\.05 seconds"
    with pytest.raises(CallTimeoutError, match=expected):
        caller.run(caller.call(counter, "slow", timeout_seconds=0.05))


def test_unknown_actor_is_lost(caller: Caller, workers: list[str]) -> None:
    """A key that the worker does not know is that of an actor that is gone."""
    with pytest.raises(ActorLostError, match="shard 3 on "):
        caller.run(caller.call(ActorAddress("shard 3", workers[0], "no-such-key"), "add", 1))


def test_released_actor_is_lost(host: ActorHost, counter: ActorAddress, caller: Caller) -> None:
    """Once its host lets it go, an actor is forgotten; the host may be closed again."""
    host.close()
    host.close()

    def is_gone() -> bool:
        try:
            caller.run(caller.call(counter, "add", 1))
        except ActorLostError:
            return True
        return False

    eventually(is_gone)


@pytest.fixture
def impatient() -> Iterator[None]:
    """Gives up connecting after a moment."""
    with limited_by(Limits(connect_seconds=0.2)):
        yield


@pytest.mark.usefixtures("impatient")
def test_dead_address_is_lost(client: Client) -> None:
    """Where nobody listens, a call fails once the time to connect is over, long before its own limit."""
    caller = Caller(client.loop.asyncio_loop, DirectLine(client.rpc))
    began = time.monotonic()
    with pytest.raises(ActorLostError, match=r"shard 0 on tcp://127\.0\.0\.1:1 cannot be reached for 'add'"):
        caller.run(caller.call(ActorAddress("shard 0", "tcp://127.0.0.1:1", "key"), "add", 1, timeout_seconds=30))
    assert time.monotonic() - began < 20


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("way", ["direct", "through the scheduler"])
def test_actor_of_a_closed_worker_is_lost(own_client: Client, way: str) -> None:
    """A worker that left takes its actors along."""
    worker = min(own_client.nthreads())
    host = ActorHost(own_client, "closed")
    address = host.spawn(Counter, "counter", worker)
    host.ready([address])
    if way == "direct":
        line: Line = DirectLine(own_client.rpc)
    else:
        line = LineThroughScheduler(own_client.scheduler)
    caller = Caller(own_client.loop.asyncio_loop, line)
    assert caller.run(caller.call(address, "add", 1)) == 1
    close_worker(own_client, worker)
    with dask.config.set({"distributed.comm.timeouts.connect": "200ms"}), pytest.raises(ActorLostError):
        caller.run(caller.call(address, "add", 1))


def test_call_that_is_pending_when_the_worker_closes_ends(own_client: Client) -> None:
    """It does not hang until its limit, from a client or from another worker."""
    GO_ON.clear()
    first, second, _ = sorted(own_client.nthreads())
    host = ActorHost(own_client, "pending")
    address = host.spawn(Counter, "counter", first)
    host.ready([address])
    caller = Caller.of_client(own_client, [first])
    pending = caller.start(caller.call(address, "slow", timeout_seconds=60))

    def task() -> str:
        mine = Caller.of_worker(get_worker())
        try:
            mine.run(mine.call(address, "slow", timeout_seconds=60), 60)
        except ActorLostError:
            return "lost"
        return "answered"

    future = own_client.submit(task, workers=[second], pure=False)
    eventually(lambda: future.key in own_client.sync(_executing, own_client, second))
    worker = next(worker for worker in own_client.cluster.workers.values() if worker.address == first)
    began = time.monotonic()
    # The worker waits for its actor's thread when it closes in good order: that of a killed one breaks off.
    own_client.sync(_break_off, worker)
    with pytest.raises(ActorLostError):
        pending.result(20)
    assert future.result(20) == "lost"
    assert time.monotonic() - began < 15
    GO_ON.set()
    close_worker(own_client, first)


async def _executing(client: Client, worker: str) -> list[str]:
    state = await client.scheduler.processing(workers=[worker])
    return list(state.get(worker, ()))


async def _break_off(worker: Any) -> None:
    """Close all connections of a worker, as the end of its process does."""
    worker.stop()
    for comm in list(worker._comms):
        comm.abort()


def test_client_falls_back_to_the_scheduler(
    client: Client, counter: ActorAddress, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a worker cannot be reached, calls go through the scheduler, which can, and it is said."""
    monkeypatch.setattr(client.rpc, "timeout", 0.2)
    with caplog.at_level("INFO", logger="dask_belief.cluster.actors"):
        caller = Caller.of_client(client, ["tcp://127.0.0.1:1"])
    assert "through the scheduler" in caplog.text
    assert caller.run(caller.call(counter, "add", 1)) == 11


def test_error_of_a_constructor_is_raised(host: ActorHost, workers: list[str]) -> None:
    """`ready` raises what making an actor raised."""
    address = host.spawn(Unmakeable, "unmakeable", workers[0])
    with pytest.raises(ValueError, match="cannot be made"):
        host.ready([address])


def test_actor_that_cannot_be_placed_is_lost(host: ActorHost) -> None:
    """`ready` does not wait for a worker that is not there for longer than its limit."""
    address = host.spawn(Counter, "counter", "tcp://127.0.0.1:1")
    with pytest.raises(ActorLostError, match=r"counter.* were not made within 0\.1 seconds"):
        host.ready([address], timeout_seconds=0.1)


def test_run_has_a_limit_of_its_own(client: Client, workers: list[str]) -> None:
    """A coroutine that never ends is cancelled a little after the limit."""
    caller = Caller.of_client(client, workers)
    cancelled = threading.Event()

    async def endless() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.set()

    with pytest.raises(CallTimeoutError, match="whose event loop is held up"):
        caller.run(endless(), timeout_seconds=-4.95)
    assert cancelled.wait(10)


def test_run_raises_what_the_coroutine_raised(client: Client, workers: list[str]) -> None:
    """Also a timeout of its own, which is not taken for that of the wait."""
    caller = Caller.of_client(client, workers)

    async def fail() -> None:
        raise TimeoutError("my own")

    with pytest.raises(TimeoutError, match="my own"):
        caller.run(fail())


def test_first_error_cancels_the_other_calls(client: Client, workers: list[str]) -> None:
    """Nothing is left running behind an error."""
    caller = Caller.of_client(client, workers)
    ended: list[str] = []

    async def endless() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("cancelled")

    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        caller.run(all_of([endless(), fail(), endless()]))
    assert ended == ["cancelled", "cancelled"]


def test_all_of_keeps_the_order(client: Client, workers: list[str]) -> None:
    """Results come in the order of the calls."""
    caller = Caller.of_client(client, workers)

    async def after(turns: int) -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        return turns

    assert caller.run(all_of(after(turns) for turns in (3, 1, 2))) == [3, 1, 2]


@pytest.mark.parametrize("way", ["direct", "through the scheduler"])
def test_call_to_a_frozen_worker_ends_when_it_is_lost(way: str) -> None:
    """At once, and later ones as well; calls to others go on, and it can be called again once it is found."""
    with processes(2) as client:
        victim, other = sorted(client.nthreads())
        host = ActorHost(client, "frozen")
        frozen_one, living = host.spawn(Counter, "counter 0", victim), host.spawn(Counter, "counter 1", other)
        host.ready([frozen_one, living])
        caller = Caller.of_client(client, [victim, other])
        if way != "direct":
            caller = Caller(client.loop.asyncio_loop, LineThroughScheduler(client.scheduler))
        with frozen(client, victim):
            pending = [caller.start(caller.call(frozen_one, "add", 1)) for _ in range(2)]
            going_on = caller.start(caller.call(living, "slow_by", 0.5))
            with pytest.raises(TimeoutError):
                pending[0].result(0.2)
            began = time.monotonic()
            caller.lose(victim)
            for call in pending:
                with pytest.raises(ActorLostError, match=r"counter 0 on .* cannot be reached for 'add'"):
                    call.result(5)
            with pytest.raises(ActorLostError, match="the worker was lost"):
                caller.run(caller.call(frozen_one, "add", 1))
            assert time.monotonic() - began < 2
            assert going_on.result(20) == "done"
        caller.found(victim)
        assert caller.run(caller.call(frozen_one, "add", 1)) >= 1
        eventually(lambda: not any(caller._under_way.values()))
        host.close()


def test_cancelled_call_is_not_a_lost_one(counter: ActorAddress, client: Client, workers: list[str]) -> None:
    """Whoever cancels a call gets what he asked for; nothing of it stays."""
    caller = Caller.of_client(client, workers)
    GO_ON.clear()
    pending = caller.start(caller.call(counter, "slow"))
    eventually(lambda: any(caller._under_way.values()))
    pending.cancel()
    assert pending.cancelled()
    eventually(lambda: not any(caller._under_way.values()))
    GO_ON.set()
