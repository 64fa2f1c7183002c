"""The courier: one line, in order, beside the computation."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from dask_belief.backend import get_backend
from dask_belief.downpour.courier import Courier
from dask_belief.errors import StaleError
from dask_belief.parameter_server.client import Directory
from dask_belief.parameter_server.messages import LeaseKey, PushKey
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
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    async def exchange(self, key: PushKey | None, gradient: np.ndarray | None, into: np.ndarray | None) -> int:
        self.began.append((key, into is not None))
        while not self.gate.is_set():
            await asyncio.sleep(0.001)
        if self.error is not None:
            raise self.error
        if gradient is not None:
            self.values += gradient
        if into is not None:
            into[:] = self.values
        return len(self.began)


@pytest.fixture
def server() -> RecordingServer:
    return RecordingServer()


@pytest.fixture
def courier(server: RecordingServer) -> Iterator[Courier]:
    stand_in: Any = server
    with LocalActors() as actors:
        yield Courier(stand_in, actors.caller, get_backend("numpy"))
        server.gate.set()


def push_key(step: int) -> PushKey:
    return PushKey(LEASE, step, step)


def ones(factor: float = 1.0) -> np.ndarray:
    return np.full(LENGTH, factor, np.float32)


def test_nothing_arrives_where_nothing_was_fetched(courier: Courier) -> None:
    """A push alone brings no parameters."""
    assert courier.arrived(10) is None
    courier.send(push_key(0), ones(), None)
    assert courier.arrived(10) is None


def test_fetch_takes_effect_at_its_step(courier: Courier, server: RecordingServer) -> None:
    """Not before, and once; it is waited for when it is due, and not when it is not."""
    server.gate.clear()
    sent = courier.send(None, None, effective_step=3)
    assert courier.arrived(2) is None
    assert not sent.done()
    server.gate.set()
    np.testing.assert_array_equal(courier.arrived(3), ones(0))
    assert courier.arrived(4) is None


def test_fetch_holds_what_was_pushed_before_it(courier: Courier, server: RecordingServer) -> None:
    """Exchanges are made one after another in the order in which they were told, whatever the network does."""
    courier.send(push_key(0), ones(), effective_step=1)
    courier.send(push_key(1), ones(10), effective_step=2)
    np.testing.assert_array_equal(courier.arrived(1), ones(1))
    np.testing.assert_array_equal(courier.arrived(2), ones(11))
    assert server.began == [(push_key(0), True), (push_key(1), True)]


def test_exchange_begins_after_the_one_before_has_ended(courier: Courier, server: RecordingServer) -> None:
    """A fetch never overtakes the push before it."""
    server.gate.clear()
    first = courier.send(push_key(0), ones(), None)
    second = courier.send(None, None, effective_step=1)
    assert not first.done()
    assert not second.done()
    assert len(server.began) <= 1
    server.gate.set()
    np.testing.assert_array_equal(courier.arrived(1), ones())
    assert server.began == [(push_key(0), False), (None, True)]


def test_newest_of_several_counts(courier: Courier) -> None:
    """When two fetches are due, the later one is used."""
    courier.send(push_key(0), ones(), effective_step=0)
    courier.send(push_key(1), ones(), effective_step=1)
    np.testing.assert_array_equal(courier.arrived(1), ones(2))


def test_accrued_gradient_may_be_used_again_at_once(courier: Courier, server: RecordingServer) -> None:
    """It is copied before `send` returns."""
    server.gate.clear()
    accrued = ones(5)
    sent = courier.send(push_key(0), accrued, None)
    accrued[:] = 0
    server.gate.set()
    sent.result(10)
    np.testing.assert_array_equal(server.values, ones(5))


def test_memory_is_bounded(courier: Courier) -> None:
    """A hundred exchanges need no more than a few vectors, as long as they are handed back."""
    made: set[int] = set()
    for step in range(100):
        courier.send(push_key(step), ones(), effective_step=step + 1)
        fetched = courier.arrived(step)
        if fetched is not None:
            made.add(id(fetched))
            courier.give_back(fetched)
    assert len(made) <= 6


def test_parameters_are_the_callers_until_given_back(courier: Courier) -> None:
    """No later exchange writes into them."""
    courier.send(push_key(0), ones(), effective_step=0)
    kept = courier.arrived(0)
    assert kept is not None
    for step in range(1, 6):
        courier.send(push_key(step), ones(), effective_step=step)
        later = courier.arrived(step)
        assert later is not None
        assert later is not kept
        courier.give_back(later)
    np.testing.assert_array_equal(kept, ones())


def test_error_of_an_exchange_is_raised_and_stops_the_line(courier: Courier, server: RecordingServer) -> None:
    """Whoever waits gets it, and what was told after it is not sent: a push behind a lost one would leave a gap."""
    server.error = StaleError("of another generation")
    courier.send(push_key(0), ones(), None)
    second = courier.send(push_key(1), ones(), effective_step=1)
    with pytest.raises(StaleError, match="of another generation"):
        courier.arrived(1)
    with pytest.raises(StaleError):
        second.result(10)
    assert server.began == [(push_key(0), False)]


def test_third_exchange_waits_for_the_first(courier: Courier, server: RecordingServer) -> None:
    """Two are under way at most: the replica cannot run ahead of a slow network without end."""
    server.gate.clear()
    first = courier.send(push_key(0), ones(), None)
    courier.send(push_key(1), ones(), None)
    threading.Timer(0.05, server.gate.set).start()
    courier.send(push_key(2), ones(), None)
    assert first.done()
