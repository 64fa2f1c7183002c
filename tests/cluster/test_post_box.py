"""Letters between tasks: each is read once by whoever waits for it, before it comes or after."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dask_belief.cluster.actors import ActorAddress, Caller
from dask_belief.cluster.limits import Limits, limited_by
from dask_belief.cluster.post_box import Correspondent, PostBox
from dask_belief.errors import ActorLostError, CallTimeoutError, StaleError


class Standing:
    """A task that may be cancelled."""

    is_cancelled = False
    worker = SimpleNamespace(address="tcp://a:1")


class Tasks:
    """Two tasks of one process, whose actors are called on an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.boxes = {f"key {number}": PostBox(f"pair-{number}") for number in range(2)}
        self.standing = Standing()
        self.is_lost = False

        async def line(worker: str, message: Any) -> dict[str, Any]:
            if self.is_lost:
                raise OSError("gone")
            await getattr(self.boxes[message.actor], message.function)(*message.arguments)
            return {"status": "OK", "result": None}

        addresses = tuple(ActorAddress(f"box {number}", "tcp://a:1", f"key {number}") for number in range(2))
        caller = Caller(loop, line)
        self.one, self.other = (
            Correspondent(addresses, f"pair-{number}", caller, self.standing) for number in range(2)
        )


@pytest.fixture
def tasks() -> Iterator[Tasks]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield Tasks(loop)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5.0)
    loop.close()


def test_a_letter_is_read_whenever_it_comes(tasks: Tasks) -> None:
    """Before somebody waits for it, or after; in any order."""
    tasks.one.send(1, ("b", 2), np.arange(3))
    tasks.one.send(1, ("a", 1), "early")
    assert tasks.other.receive(("a", 1), "a letter") == "early"
    waiting: list[Any] = []
    reader = threading.Thread(target=lambda: waiting.append(tasks.one.receive(("c", 3), "a letter")))
    reader.start()
    tasks.other.send(0, ("c", 3), "late")
    reader.join(5.0)
    assert waiting == ["late"]
    assert tasks.other.receive(("b", 2), "a letter").tolist() == [0, 1, 2]
    assert tasks.one.sent_bytes == np.arange(3).nbytes


def test_a_letter_that_was_read_is_gone(tasks: Tasks) -> None:
    """Another of the same name is another."""
    for content in ("first", "second"):
        tasks.one.send(1, ("x",), content)
        assert tasks.other.receive(("x",), "a letter") == content


def test_a_letter_that_does_not_come_is_named(tasks: Tasks) -> None:
    """With the worker that waits, how long, and where to look."""
    with (
        limited_by(Limits(no_progress_seconds=0.2)),
        pytest.raises(CallTimeoutError, match=r"^orders did not arrive on tcp://a:1 within 0\.2 seconds"),
    ):
        tasks.other.receive(("x",), "orders")


def test_who_is_cancelled_waits_no_more(tasks: Tasks) -> None:
    """Its replica was lost, or the run is over."""
    tasks.standing.is_cancelled = True
    with pytest.raises(StaleError, match="cancelled while it waited for orders"):
        tasks.other.receive(("x",), "orders")


def test_a_letter_that_cannot_be_sent_is_told_to_who_sent_it(tasks: Tasks) -> None:
    """As it waits, or sends the next."""
    tasks.is_lost = True
    tasks.one.send(1, ("x",), "never comes")
    with pytest.raises(ActorLostError, match="box 1"):
        tasks.one.receive(("y",), "an answer")
