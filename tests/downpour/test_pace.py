"""A replica's pace: it tells what it has done, goes on while it may, and waits otherwise."""

from __future__ import annotations

import concurrent.futures
from typing import Any

import pytest

from dask_belief.downpour.pace import Pace
from dask_belief.errors import ActorLostError, CallTimeoutError


class Hub:
    """Answers ticks when it is told to; by itself at once, where `allowed` gives an answer."""

    def __init__(self, *allowed: int | Exception | None) -> None:
        self.ticks: list[int] = []
        self.waiting: list[concurrent.futures.Future[Any]] = []
        self._allowed = list(allowed)

    def start(self, method: str, done: int, limit_seconds: float) -> concurrent.futures.Future[Any]:
        assert method == "tick"
        self.ticks.append(done)
        asked: concurrent.futures.Future[Any] = concurrent.futures.Future()
        answer = self._allowed.pop(0) if self._allowed else None
        if isinstance(answer, Exception):
            asked.set_exception(answer)
        elif answer is not None:
            asked.set_result(answer)
        else:
            self.waiting.append(asked)
        return asked

    def wait_for(self, asked: concurrent.futures.Future[Any]) -> Any:
        return asked.result(5.0)


def pace_of(hub: Any, limit_seconds: float = 60.0) -> Pace:
    return Pace(hub, limit_seconds)


def test_first_mini_batch_needs_no_leave() -> None:
    """Nor is the same count told twice."""
    hub = Hub(9)
    pace = pace_of(hub)
    pace.keep(0)
    assert hub.ticks == []
    pace.keep(1)
    pace.keep(1)
    assert hub.ticks == [1]


def test_each_mini_batch_is_told_and_not_waited_for() -> None:
    """As long as an older answer allows the next: the messages hide behind the computation."""
    hub = Hub(4)
    pace = pace_of(hub)
    for done in (1, 2, 3):
        pace.keep(done)
    assert hub.ticks == [1, 2, 3]
    assert len(hub.waiting) == 2
    hub.waiting[0].set_result(5)
    pace.keep(4)
    assert hub.ticks == [1, 2, 3, 4]


def test_answer_that_is_not_enough_is_asked_for_again() -> None:
    """The ledger answers after a while, although the slowest has not moved."""
    hub = Hub(1, 1, 2)
    pace = pace_of(hub)
    pace.keep(1)
    assert hub.ticks == [1, 1, 1]


def test_wait_ends_with_the_limit() -> None:
    """The error says what was waited for."""
    pace = pace_of(Hub(*[1] * 1000), limit_seconds=0.0)
    with pytest.raises(CallTimeoutError, match="the slowest replica made no mini-batch within 0 seconds"):
        pace.keep(1)


def test_lost_ledger_goes_through() -> None:
    """The replica ends by it."""
    with pytest.raises(ActorLostError, match="gone"):
        pace_of(Hub(ActorLostError("gone"))).keep(1)


def test_waiting_is_counted() -> None:
    """In seconds, over all mini-batches."""
    pace = pace_of(Hub(2, 3))
    pace.keep(1)
    pace.keep(2)
    assert pace.waiting_seconds >= 0
