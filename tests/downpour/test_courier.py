"""The courier: one line, in order, beside the computation."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from dask_belief.backend import get_backend
from dask_belief.downpour.courier import Arrived, Courier
from dask_belief.errors import CallTimeoutError, StaleError
from dask_belief.parameter_server.directory import Directory
from dask_belief.parameter_server.exchange import Exchange, Exchanged
from dask_belief.parameter_server.messages import LeaseKey, PushKey, StepKey
from dask_belief.parameter_server.selection import Selection
from tests.parameter_server.local_actors import LocalActors

LENGTH = 3
LEASE = LeaseKey(0, 0)


class RecordingServer:
    """Adds what is pushed, gives the sum, and can hold exchanges back.

    Attributes
    ----------
    began
        What was exchanged, in the order in which it came: the key, and whether something is fetched.
    gate
        Closed, it holds back exchanges.
    error
        What exchanges raise.
    """

    def __init__(self) -> None:
        self.directory = Directory(0, LENGTH, "float32", (), ())
        self.began: list[tuple[PushKey | None, bool]] = []
        self.values = np.zeros(LENGTH, np.float32)
        self.n_updates = 0
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    async def exchange(self, ask: Exchange) -> Exchanged:
        self.began.append((ask.push, ask.into is not None))
        while not self.gate.is_set():
            await asyncio.sleep(0.001)
        if self.error is not None:
            raise self.error
        if ask.vector is not None:
            self.n_updates += 1
            if ask.push_selection is None:
                self.values += ask.vector
            else:
                ask.push_selection.add(ask.vector, self.values)
        if ask.into is not None:
            ask.into[:] = self.values if ask.fetch_selection is None else ask.fetch_selection.take(self.values)
        pushed, fetched = (0 if vector is None else vector.nbytes for vector in (ask.vector, ask.into))
        return Exchanged((self.n_updates,), pushed, fetched)


@pytest.fixture
def server() -> RecordingServer:
    return RecordingServer()


@pytest.fixture
def courier(server: RecordingServer) -> Iterator[Courier]:
    with LocalActors() as actors:
        yield Courier(server.directory, server.exchange, actors.caller, get_backend("numpy"))
        server.gate.set()


def push_key(step: int) -> PushKey:
    return PushKey(LEASE, step, step)


def ones(factor: float = 1.0) -> np.ndarray:
    return np.full(LENGTH, factor, np.float32)


def push(step: int, factor: float = 1.0, base: int = 0) -> tuple[Exchange, np.ndarray]:
    """A push of one mini-batch, with the vector that it hands over."""
    vector = ones(factor)
    return Exchange("a", StepKey(LEASE, step + 1), push_key(step), vector, (base,)), vector


def fetch(wanted: Selection | None = None) -> tuple[Exchange, None]:
    return Exchange("a", StepKey(LEASE, 0), fetch_selection=wanted), None


def last_values(arrived: list[Arrived]) -> np.ndarray:
    return arrived[-1].values


def test_nothing_arrives_where_nothing_was_fetched(courier: Courier) -> None:
    """A push alone brings no parameters."""
    assert courier.arrived(10) == []
    courier.send(*push(0), None)
    assert courier.arrived(10) == []


def test_fetch_takes_effect_at_its_step(courier: Courier, server: RecordingServer) -> None:
    """Not before, and once; it is waited for when it is due, and not when it is not."""
    server.gate.clear()
    sent = courier.send(*fetch(), effective_step=3)
    assert courier.arrived(2) == []
    assert not sent.done()
    server.gate.set()
    np.testing.assert_array_equal(last_values(courier.arrived(3)), ones(0))
    assert courier.arrived(4) == []


def test_fetch_holds_what_was_pushed_before_it(courier: Courier, server: RecordingServer) -> None:
    """Exchanges are made one after another in the order in which they were told, whatever the network does."""
    courier.send(*push(0), effective_step=1)
    courier.send(*push(1, 10), effective_step=2)
    np.testing.assert_array_equal(last_values(courier.arrived(1)), ones(1))
    np.testing.assert_array_equal(last_values(courier.arrived(2)), ones(11))
    assert server.began == [(push_key(0), True), (push_key(1), True)]


def test_exchange_begins_after_the_one_before_has_ended(courier: Courier, server: RecordingServer) -> None:
    """A fetch never overtakes the push before it."""
    server.gate.clear()
    first = courier.send(*push(0), None)
    second = courier.send(*fetch(), effective_step=1)
    assert not first.done()
    assert not second.done()
    assert len(server.began) <= 1
    server.gate.set()
    np.testing.assert_array_equal(last_values(courier.arrived(1)), ones())
    assert server.began == [(push_key(0), False), (None, True)]


def test_all_that_are_due_come_in_order(courier: Courier) -> None:
    """Each with its versions; what is not due stays."""
    for step in range(2):
        courier.send(*push(step), effective_step=step)
    arrived = courier.arrived(1)
    assert [each.versions for each in arrived] == [(1,), (2,)]
    np.testing.assert_array_equal([each.values for each in arrived], [ones(1), ones(2)])
    courier.send(*push(2), effective_step=4)
    courier.send(*push(3), effective_step=5)
    assert [each.versions for each in courier.arrived(4)] == [(3,)]


def test_part_of_the_parameters_comes_compact(courier: Courier, server: RecordingServer) -> None:
    """At the beginning of a buffer of all parameters' length, with what it covers."""
    server.values[:] = [1, 2, 3]
    wanted = Selection(np.array([[0, 1], [2, 3]]))
    courier.send(*fetch(wanted), effective_step=0)
    [arrived] = courier.arrived(0)
    assert arrived.selection == wanted
    assert len(arrived.buffer) == LENGTH
    np.testing.assert_array_equal(arrived.values, [1, 3])
    assert courier.traffic.fetched_bytes == 8


def test_memory_is_bounded(courier: Courier) -> None:
    """A hundred exchanges need no more than a few vectors, as long as they are handed back."""
    made: set[int] = set()
    for step in range(100):
        buffer = courier.buffer()
        made.add(id(buffer))
        courier.send(Exchange("a", StepKey(LEASE, step), push_key(step), buffer, (0,)), buffer, effective_step=step + 1)
        for arrived in courier.arrived(step):
            made.add(id(arrived.buffer))
            courier.give_back(arrived.buffer)
    assert len(made) <= 6


def test_parameters_are_the_callers_until_given_back(courier: Courier) -> None:
    """No later exchange writes into them."""
    courier.send(*push(0), effective_step=0)
    [kept] = courier.arrived(0)
    for step in range(1, 6):
        courier.send(*push(step), effective_step=step)
        [later] = courier.arrived(step)
        assert later.buffer is not kept.buffer
        courier.give_back(later.buffer)
    np.testing.assert_array_equal(kept.values, ones())


def test_traffic_is_counted(courier: Courier) -> None:
    """Pushes, fetches and bytes of what has ended; the staleness of a push is that of its stalest piece."""
    courier.send(*push(0, base=0), None)
    courier.send(*push(1, base=0), effective_step=0)
    courier.send(*fetch(), effective_step=0)
    courier.arrived(0)
    traffic = courier.traffic
    assert (traffic.n_pushes, traffic.n_fetches) == (2, 2)
    assert (traffic.pushed_bytes, traffic.fetched_bytes) == (2 * 4 * LENGTH, 2 * 4 * LENGTH)
    assert traffic.staleness_sum == 0 + 1
    assert min(traffic.push_waiting_seconds, traffic.fetch_waiting_seconds) >= 0


def test_error_of_an_exchange_is_raised_and_stops_the_line(courier: Courier, server: RecordingServer) -> None:
    """Whoever waits gets it, and what was told after it is not sent: a push behind a lost one would leave a gap."""
    server.error = StaleError("of another generation")
    courier.send(*push(0), None)
    second = courier.send(*push(1), effective_step=1)
    with pytest.raises(StaleError, match="of another generation"):
        courier.arrived(1)
    with pytest.raises(StaleError):
        second.result(10)
    assert server.began == [(push_key(0), False)]


def test_exchange_that_does_not_end_is_told(server: RecordingServer) -> None:
    """Past the limit, which is named."""
    server.gate.clear()
    with LocalActors() as actors:
        courier = Courier(server.directory, server.exchange, actors.caller, get_backend("numpy"), limit_seconds=0.05)
        courier.send(*fetch(), effective_step=0)
        with pytest.raises(CallTimeoutError, match=r"exchange with the shards on .* within 0\.05 seconds"):
            courier.arrived(0)
        server.gate.set()


def test_time_limit_of_the_exchange_itself_goes_through(courier: Courier, server: RecordingServer) -> None:
    """It is told as it was raised, not as one of the courier's."""
    server.error = CallTimeoutError("shard 0 did not answer")
    courier.send(*fetch(), effective_step=0)
    with pytest.raises(CallTimeoutError, match="shard 0 did not answer"):
        courier.arrived(0)


def test_third_exchange_waits_for_the_first(courier: Courier, server: RecordingServer) -> None:
    """Two are under way at most: the replica cannot run ahead of a slow network without end."""
    server.gate.clear()
    first = courier.send(*push(0), None)
    courier.send(*push(1), None)
    threading.Timer(0.05, server.gate.set).start()
    courier.send(*push(2), None)
    assert first.done()
    assert courier.traffic.push_waiting_seconds > 0
