"""Runs that outlive their client: the driver is a task on the cluster, and is found again by the run's name.

::

    train(detach=True) ──▶ task on a worker: a client of its own, and all that a driver does
                             │  events ──▶ topic of the run's name        orders ◀── topic, looked at now and then
    attach(name) ◀───────────┴─ its future, published under the run's name

The task is not pinned: when its worker is lost, Dask runs it again on another, and it goes on from its checkpoint, or
begins anew where it has none. What is told, and ordered, says of which run it is: a name may be used again.
"""

from __future__ import annotations

import concurrent.futures
import logging
import math
import time
import uuid
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from distributed import Client, Future, get_worker

from dask_belief.cluster.asking import in_time, log_event, threads_of_workers
from dask_belief.cluster.connection import connected, current_client
from dask_belief.cluster.limits import limits
from dask_belief.cluster.replicas import stand_aside
from dask_belief.cluster.standing import Standing
from dask_belief.errors import ArgumentError, CallTimeoutError, ClusterError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_PUBLISHED = "dask-belief-run-{}"
_EVENTS = "dask-belief-events-{}"
_ORDERS = "dask-belief-orders-{}"

_STOP = "stop"

# How often a driver looks for orders at most, at its events.
_ORDERS_SECONDS = 0.25

# How often whoever waits for a result looks whether the scheduler is still there.
_LOOK_SECONDS = 0.5


class Desk:
    """What a detached driver hears and tells: a callback of its run, which asks to stop when it was ordered to.

    Parameters
    ----------
    client
        The driver's own client.
    name, key
        The name of the run, and what tells it from others of that name.
    standing
        Of the driver's task.
    describe
        Makes plain JSON of an event.
    """

    def __init__(
        self, client: Client, name: str, key: str, standing: Standing, describe: Callable[[Any], dict[str, Any]]
    ) -> None:
        self._client = client
        self._name = name
        self._key = key
        self._standing = standing
        self._describe = describe
        self._looked_at = -math.inf
        self._is_stopped = False

    def __call__(self, event: Any) -> bool:
        """Tell of an event; answers whether the run is to stop."""
        log_event(self._client, _EVENTS.format(self._name), {"run": self._key, "event": self._describe(event)})
        now = time.monotonic()
        # Orders are kept by the scheduler: those that a driver had which was lost are found, too.
        if not self._is_stopped and now - self._looked_at >= _ORDERS_SECONDS:
            self._looked_at = now
            orders = _told(self._client, _ORDERS.format(self._name), self._key)
            self._is_stopped = any(order.get("action") == _STOP for order in orders)
        return self._is_stopped or not self._standing.is_wanted


def _told(client: Client, topic: str, key: str) -> list[dict[str, Any]]:
    """What a topic has of one run, in order."""
    return [told for _, told in in_time("events", lambda: client.get_events(topic)) if told.get("run") == key]


Work = Callable[[Any, Client, Desk], Result]
"""What a detached driver does, with what it was told, its client and its desk."""


def _drive(work: Work[Result], order: Any, name: str, key: str, describe: Callable[[Any], dict[str, Any]]) -> Result:
    """Run a driver; a Dask task."""
    standing = stand_aside()
    worker = get_worker()
    with Client(worker.scheduler.address, security=worker.security, set_as_default=False) as client:
        return work(order, client, Desk(client, name, key, standing, describe))


def detach_driver(
    client: Client, name: str, work: Work[Result], order: object, describe: Callable[[Any], dict[str, Any]]
) -> DetachedRun[Result]:
    """Start a driver on the cluster.

    Parameters
    ----------
    client
        Of the cluster.
    name
        Of the run, by which it is found again.
    work, order
        What the driver does, and what it is told; both are sent to a worker.
    describe
        Makes plain JSON of an event.

    Raises
    ------
    ArgumentError
        When there is a run of that name.
    """
    published = _PUBLISHED.format(name)
    if published in in_time("the names of runs", client.list_datasets):
        raise ArgumentError(
            f"name: there is a run {name!r} on this cluster. Attach to it, or let it go by attach({name!r}).forget()."
        )
    # A key of its own: whoever still holds an older run of this name would else be given that one's result for this.
    key = f"{published}-{uuid.uuid4().hex[:8]}"
    future: Future[Result] = client.submit(_drive, work, order, name, key, describe, key=key, pure=False, retries=0)
    in_time("a name for the run", lambda: client.publish_dataset(future, name=published))
    logger.info("run %s goes on without this client; attach(%r) finds it again", name, name)
    return DetachedRun(client, name, future)


def attach(name: str, client: Client | None = None) -> DetachedRun[Any]:
    """Find a run that was started with ``detach=True``.

    Parameters
    ----------
    name
        Of the run.
    client
        A synchronous client of the cluster; None for Dask's current one.

    Raises
    ------
    ArgumentError
        When there is no run of that name.

    Examples
    --------
    >>> run = db.attach("nightly", client)    # doctest: +SKIP
    >>> run.is_done                           # doctest: +SKIP
    False
    >>> result = run.result()                 # doctest: +SKIP
    """
    with connected(current_client() if client is None else client) as client:
        known = in_time("the names of runs", client.list_datasets)
        published = _PUBLISHED.format(name)
        if published not in known:
            prefix = _PUBLISHED.format("")
            runs = sorted(each.removeprefix(prefix) for each in known if str(each).startswith(prefix))
            raise ArgumentError(
                f"name: there is no run {name!r} on this cluster; there are: {', '.join(runs) or 'none'}."
            )
        return DetachedRun(client, name, in_time("the run", lambda: client.get_dataset(published)))


class DetachedRun(Generic[Result]):
    """A run whose driver is on the cluster.

    Attributes
    ----------
    name
        Its name.
    """

    def __init__(self, client: Client, name: str, future: Future[Result]) -> None:
        self.name = name
        self._client = client
        self._future = future

    def __repr__(self) -> str:
        """Tell name and state."""
        return f"<DetachedRun {self.name!r}: {self._future.status}>"

    @property
    def is_done(self) -> bool:
        """Whether it has ended, well or badly."""
        return bool(self._future.done())

    def events(self) -> list[dict[str, Any]]:
        """Give the newest events of the run as plain JSON, in order; the scheduler keeps some thousand."""
        return [told["event"] for told in _told(self._client, _EVENTS.format(self.name), str(self._future.key))]

    def stop(self) -> None:
        """Ask the run to end with the best point it has; it does so at its next event."""
        log_event(self._client, _ORDERS.format(self.name), {"run": self._future.key, "action": _STOP})

    def result(self, timeout_seconds: float | None = None) -> Result:
        """Wait for the result, and let the run's name go.

        Parameters
        ----------
        timeout_seconds
            How long to wait; None for as long as the run lives, which has limits of its own.

        Raises
        ------
        CallTimeoutError
            When the run has not ended by then; it goes on.
        ClusterError
            When the scheduler is gone or does not answer, or somebody has forgotten the run.
        Exception
            What ended the run instead of a result.
        """
        began = time.monotonic()
        until = None if timeout_seconds is None else began + timeout_seconds
        looked_at = began
        while not self._future.done():
            if self._client.status != "running":
                raise self._gone()
            if time.monotonic() - looked_at > limits().frozen_seconds:
                # One that stands still keeps its connections, and the client says that it is running.
                self._look_at_scheduler(time.monotonic() - began)
                looked_at = time.monotonic()
            seconds = _LOOK_SECONDS if until is None else min(_LOOK_SECONDS, until - time.monotonic())
            if seconds <= 0:
                raise CallTimeoutError(
                    f"run {self.name} did not end within {timeout_seconds:g} seconds; it goes on. Ask again, or "
                    "look at events()."
                )
            _wait(self._future, seconds)
        return self._taken(until)

    def _taken(self, until: float | None) -> Result:
        """Bring the result of a run that has ended, and let the name go; not where it could not be brought."""
        try:
            result = self._future.result(timeout=limits().call_seconds)
        except concurrent.futures.CancelledError as error:
            if self._client.status != "running":
                raise self._gone() from error
            raise ClusterError(f"run {self.name} was forgotten before it had ended; there is no result.") from error
        except TimeoutError as error:
            if self._future.status == "error":
                # The run itself ended so.
                self.forget()
                raise
            if not self._future.done():
                # The worker that held it was lost, and Dask computes it once more.
                left = None if until is None else max(0.0, until - time.monotonic())
                return self.result(left)
            raise CallTimeoutError(
                f"the result of run {self.name} was not brought within {limits().call_seconds:g} seconds. Look whether "
                "the worker that holds it is frozen, and ask again: it stays under the run's name."
            ) from error
        except BaseException:
            self.forget()
            raise
        self.forget()
        return result

    def _look_at_scheduler(self, waited_seconds: float) -> None:
        try:
            threads_of_workers(self._client)
        except CallTimeoutError as error:
            raise ClusterError(
                f"run {self.name} was waited for, {waited_seconds:.0f} seconds, and {error} The run itself may go on: "
                "attach to it again once the scheduler answers."
            ) from error

    def _gone(self) -> ClusterError:
        return ClusterError(f"run {self.name}: the connection to Dask's scheduler is gone. Connect a new client.")

    def forget(self) -> None:
        """Let the run's name go, and with it the result; a run that has not ended is cancelled."""
        if self._client.status != "running":
            return
        if not self._future.done():
            self._client.cancel([self._future], force=True)
        in_time("nothing but to forget the run", lambda: self._client.unpublish_dataset(_PUBLISHED.format(self.name)))


def _wait(future: Future[Any], seconds: float) -> None:
    try:
        future.exception(timeout=seconds)
    except (TimeoutError, concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
        return
