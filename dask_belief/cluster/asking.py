"""Waiting for answers: of Dask's scheduler and of stores of files, whose calls have no limit, and of calls under way.

A scheduler that is gone ends its clients' calls. One that is stopped, swaps or is cut off keeps the connection, and
Dask's `Client` waits for its answer for ever. So does a file system over a network that has gone.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future as Promise
from typing import Any, TypeVar

from distributed import Client, Future

from dask_belief.cluster.limits import NO_WORKER_SECONDS, limits
from dask_belief.errors import CallTimeoutError, CheckpointError, ClusterError

Result = TypeVar("Result")


class _TooLateError(Exception):
    """No answer within the limit."""


def in_time(what: str, ask: Callable[[], Result], timeout_seconds: float | None = None) -> Result:
    """Make a call that waits for the scheduler, and wait for it no longer than `Limits.call_seconds`.

    Parameters
    ----------
    what
        What the scheduler is asked for, as in "the scheduler was asked for ...".
    ask
        The call. It runs in another thread, which is left behind when the limit passes.
    timeout_seconds
        Another limit.

    Raises
    ------
    CallTimeoutError
        When the limit passes.
    Exception
        What the call raised.
    """
    limit_seconds = limits().call_seconds if timeout_seconds is None else timeout_seconds
    try:
        return _within(limit_seconds, ask)
    except _TooLateError as error:
        raise CallTimeoutError(
            f"the scheduler was asked for {what} and did not answer within {limit_seconds:g} seconds. Look whether its "
            "process is stopped, swaps, or is cut off."
        ) from error


def from_store(path: str, what: str, ask: Callable[[], Result]) -> Result:
    """Make a call that reads or writes a checkpoint, and wait for it no longer than `Limits.no_progress_seconds`.

    Parameters
    ----------
    path
        Of the checkpoint.
    what
        What is done there.
    ask
        The call, made as by `in_time`. What it may yet write when nobody waits any more is complete or absent, too.

    Raises
    ------
    CheckpointError
        When the limit passes.
    Exception
        What the call raised.
    """
    limit_seconds = limits().no_progress_seconds
    try:
        return _within(limit_seconds, ask)
    except _TooLateError as error:
        raise CheckpointError(
            f"checkpoint: {what} {path} did not end within {limit_seconds:g} seconds. Look whether that folder or "
            "store answers at all; where it is only slow, give a larger Limits(no_progress_seconds=...)."
        ) from error


def answer_within(limit_seconds: float, under_way: Promise[Result], what: str) -> Result:
    """Wait for a call to workers that was begun on the event loop.

    Parameters
    ----------
    limit_seconds
        How long to wait.
    under_way
        What was begun; it goes on when the limit passes.
    what
        What is waited for and of whom, as the beginning of a sentence.

    Raises
    ------
    CallTimeoutError
        When the limit passes.
    Exception
        What the call raised.
    """
    try:
        return under_way.result(limit_seconds)
    except TimeoutError as error:
        if under_way.done():
            # It is what the call itself raised, or the answer has just come.
            return under_way.result()
        raise CallTimeoutError(
            f"{what} did not come within {limit_seconds:g} seconds. That worker may be frozen or overloaded: look at "
            "it in the dashboard."
        ) from error


def _within(limit_seconds: float, ask: Callable[[], Result]) -> Result:
    """Make a call in another thread, which is left behind when the limit passes."""
    promise: Promise[Result] = Promise()

    def keep() -> None:
        # What comes when nobody waits any more is let go at once: it may hold something on the cluster.
        try:
            result = ask()
        except BaseException as error:
            if promise.set_running_or_notify_cancel():
                promise.set_exception(error)
        else:
            if promise.set_running_or_notify_cancel():
                promise.set_result(result)

    threading.Thread(target=contextvars.copy_context().run, args=(keep,), name="dask-belief-asks", daemon=True).start()
    try:
        return promise.result(limit_seconds)
    except TimeoutError as error:
        if not promise.cancel():
            # It has just come, or is what the call itself raised.
            return promise.result()
        raise _TooLateError from error


def send(client: Client, thing: Result, worker: str) -> Future[Result]:
    """Send something to one worker, for as long as its future lives.

    Raises
    ------
    KeyError, OSError
        When the worker is not there.
    CallTimeoutError
        When it has not got all of it within `Limits.no_progress_seconds`: a data set in memory may take a while.
    """

    def scatter() -> list[Future[Result]]:
        sent: list[Future[Result]] = client.scatter([thing], workers=[worker], hash=False, timeout=NO_WORKER_SECONDS)
        return sent

    limit_seconds = limits().no_progress_seconds
    try:
        [future] = _within(limit_seconds, scatter)
    except _TooLateError as error:
        raise CallTimeoutError(
            f"data for the run were not on {worker} within {limit_seconds:g} seconds. Look whether that worker and the "
            "scheduler answer. Data that are in memory travel to each worker: write large ones with write_dataset, or "
            "give a larger Limits(no_progress_seconds=...)."
        ) from error
    return future


def log_event(client: Client, topic: str, message: object, timeout_seconds: float | None = None) -> None:
    """Log an event as `Client.log_event` does, and wait until the scheduler has it; raises `CallTimeoutError`."""
    in_time("an event to be logged", lambda: client.log_event(topic, message), timeout_seconds)


def threads_of_workers(client: Client) -> dict[str, int]:
    """Ask the scheduler for its workers, each with its number of threads; raises `CallTimeoutError`."""
    return dict(in_time("its workers", client.nthreads))


def known_of_workers(client: Client) -> dict[str, dict[str, Any]]:
    """Ask the scheduler for all that it knows of its workers, by address.

    `Client.scheduler_info` gives what the client was told last, and now and then it is told of no worker at all: every
    two seconds Dask asks for itself, for the numbers without the workers.

    Raises
    ------
    CallTimeoutError
        When the scheduler does not answer in time.
    ClusterError
        When the client was closed.
    """
    scheduler = client.scheduler
    if scheduler is None:
        raise ClusterError("client: it is closed, and knows no scheduler. Connect a new one.")
    found = in_time("what it knows of its workers", lambda: client.sync(scheduler.identity, n_workers=-1))
    workers: dict[str, dict[str, Any]] = found["workers"]
    return workers
