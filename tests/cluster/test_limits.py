"""Limits are positive seconds, and a matter of context."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import math
import threading

import pytest

from dask_belief.cluster.limits import Limits, limited_by, limits
from dask_belief.errors import ArgumentError


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Limits)])
@pytest.mark.parametrize("value", [0, -1.0, math.nan])
def test_limit_that_is_not_positive_is_refused(name: str, value: float) -> None:
    """Zero, a negative number and NaN are refused by the limit's name."""
    with pytest.raises(ArgumentError, match=f"^{name}: "):
        Limits(**{name: value})


def test_limits_fit_together() -> None:
    """A question is held open for less than the silence after which a replica ends, and looked at more often."""
    default = limits()
    assert default.watch_seconds < default.poll_seconds < default.silence_seconds <= default.no_progress_seconds
    assert default.poll_seconds < default.call_seconds


def test_limits_are_in_force_for_a_block() -> None:
    """Within `limited_by` they are the given ones, also when blocks are nested, and after an error the ones before."""
    outer, inner = Limits(call_seconds=1.0), Limits(call_seconds=2.0)
    with limited_by(outer):
        with limited_by(inner):
            assert limits() is inner
        with pytest.raises(ZeroDivisionError), limited_by(inner):
            raise ZeroDivisionError
        assert limits() is outer
    assert limits() == Limits()


def test_a_thread_has_limits_of_its_own() -> None:
    """Two runs in two threads do not meet: a new thread has the default."""
    with limited_by(Limits(call_seconds=1.0)), concurrent.futures.ThreadPoolExecutor(1) as threads:
        assert threads.submit(limits).result(10) == Limits()


def test_a_coroutine_has_the_limits_of_whoever_started_it() -> None:
    """What is handed to the event loop of another thread is bound by the limits of the thread that hands it over."""

    async def found() -> Limits:
        return limits()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        with limited_by(Limits(call_seconds=1.0)):
            asked = asyncio.run_coroutine_threadsafe(found(), loop)
        assert asked.result(10) == Limits(call_seconds=1.0)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
