"""Calls that wait for the scheduler end within a limit, whatever it does."""

from __future__ import annotations

import _thread
import asyncio
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import Future as Promise

import pytest
from distributed import Client

from dask_belief.cluster.asking import answer_within, in_time, known_of_workers, send, threads_of_workers
from dask_belief.cluster.limits import Limits, limited_by, limits
from dask_belief.errors import CallTimeoutError
from tests.small_cluster import eventually


def test_answer_comes_through() -> None:
    """With the limits that are in force where it is asked for."""
    with limited_by(Limits(call_seconds=7.0)):
        assert in_time("a number", lambda: limits().call_seconds) == 7.0


@pytest.mark.parametrize("error", [ValueError("no"), TimeoutError("of its own")])
def test_what_the_call_raises_comes_through(error: Exception) -> None:
    """Also where it is a limit of its own that passed."""

    def fail() -> None:
        raise error

    with pytest.raises(type(error), match=str(error)) as caught:
        in_time("nothing", fail)
    assert caught.value is error


def test_answer_that_does_not_come_is_an_error() -> None:
    """It names what was asked for, and how long was waited."""
    is_over = threading.Event()
    try:
        with (
            limited_by(Limits(call_seconds=0.05)),
            pytest.raises(CallTimeoutError, match=r"asked for its workers and did not answer within 0\.05 seconds"),
        ):
            in_time("its workers", lambda: is_over.wait(30.0))
    finally:
        is_over.set()


def test_call_under_way_that_does_not_end_is_an_error() -> None:
    """It names what was waited for, and how long; the call goes on."""
    under_way: Promise[int] = Promise()
    with pytest.raises(CallTimeoutError, match=r"the report of replica-3 did not come within 0\.05 seconds"):
        answer_within(0.05, under_way, "the report of replica-3")
    under_way.set_result(5)
    assert answer_within(0.05, under_way, "the report of replica-3") == 5


@pytest.mark.parametrize("error", [ValueError("no"), TimeoutError("of its own")])
def test_what_a_call_under_way_raises_comes_through(error: Exception) -> None:
    """Also where it is a limit of its own that passed."""
    under_way: Promise[int] = Promise()
    under_way.set_exception(error)
    with pytest.raises(type(error)) as caught:
        answer_within(1.0, under_way, "a report")
    assert caught.value is error


class Held:
    """Something that is on the cluster as long as anybody has it."""


def test_answer_that_comes_too_late_is_let_go() -> None:
    """Also while somebody still has the error, as a log does."""
    may_answer, held = threading.Event(), []

    def ask() -> Held:
        may_answer.wait(30.0)
        answer = Held()
        held.append(weakref.ref(answer))
        return answer

    with pytest.raises(CallTimeoutError) as kept:
        in_time("something", ask, 0.05)
    assert kept.value.__traceback__ is not None
    may_answer.set()
    eventually(lambda: bool(held) and held[0]() is None)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Whatever this is started from may ignore interrupts, as a shell does for what it runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interrupt_ends_the_wait() -> None:
    """Who waits is the calling thread, in which an interrupt is raised."""
    is_over = threading.Event()

    def ask() -> None:
        _thread.interrupt_main()
        is_over.wait(30.0)

    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            in_time("nothing", ask, 20.0)
    finally:
        is_over.set()
    assert time.monotonic() - began < 19.0


def test_workers_and_what_is_sent_to_them(own_client: Client) -> None:
    """As Dask gives them."""
    workers = threads_of_workers(own_client)
    assert workers == dict(own_client.nthreads())
    worker = max(workers)
    sent = send(own_client, {"a": 1}, worker)
    assert own_client.who_has([sent]) == {sent.key: (worker,)}
    assert sent.result() == {"a": 1}
    with pytest.raises(KeyError):
        send(own_client, {"a": 1}, "tcp://127.0.0.1:1")


def test_what_is_known_of_workers_is_known_at_any_moment(own_client: Client) -> None:
    """Also while the client asks for itself, as it does every two seconds, and learns of no worker."""
    is_over = threading.Event()

    async def ask_for_itself() -> None:
        while not is_over.is_set():
            await own_client._update_scheduler_info()

    asking = asyncio.run_coroutine_threadsafe(ask_for_itself(), own_client.loop.asyncio_loop)
    try:
        workers = set(own_client.nthreads())
        assert all(set(known_of_workers(own_client)) == workers for _ in range(100))
    finally:
        is_over.set()
        asking.result(10.0)


def test_data_set_may_take_longer_than_a_worker_may_be_silent(own_client: Client, monkeypatch) -> None:
    """Neither the limit of a call nor that of a frozen worker cuts it off; one of its own does."""
    scatter = Client.scatter

    def slow(*given: object, **options: object) -> object:
        threading.Event().wait(0.3)
        return scatter(*given, **options)

    monkeypatch.setattr(Client, "scatter", slow)
    worker = max(threads_of_workers(own_client))
    with limited_by(Limits(call_seconds=0.1, frozen_seconds=0.1, start_seconds=0.1)):
        sent = send(own_client, [1, 2], worker)
    assert sent.result() == [1, 2]
    with (
        limited_by(Limits(no_progress_seconds=0.1)),
        pytest.raises(CallTimeoutError, match=r"data for the run were not on .* within 0\.1 seconds"),
    ):
        send(own_client, [3], worker)
