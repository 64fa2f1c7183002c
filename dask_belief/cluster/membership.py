"""Which workers are there, and who came, went or fell silent: heard from the scheduler, not guessed."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distributed import Client

from dask_belief.cluster.announcer import Announcer
from dask_belief.cluster.asking import in_time, log_event, threads_of_workers
from dask_belief.cluster.limits import limits
from dask_belief.errors import ClusterError, NoWorkersError

logger = logging.getLogger(__name__)

# Between two looks at whether a worker has come.
_LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Joined:
    """A worker joined the cluster, with so many threads, or was heard again after a silence."""

    worker: str
    n_threads: int


@dataclass(frozen=True)
class Lost:
    """A worker left the cluster, of its own or by force; or it is there, but silent: frozen, or cut off."""

    worker: str
    is_silent: bool = False


@dataclass(frozen=True)
class Leaving:
    """Somebody asks the run to move off a worker, which is there until then; see `retire_workers`."""

    worker: str


Change = Joined | Lost | Leaving


class Membership:
    """The workers of a cluster as the run's driver sees them.

    Parameters
    ----------
    client
        The run's client.
    topic
        A name that no other run on the cluster uses.

    Attributes
    ----------
    workers
        Number of threads by address, of the workers that are there and may be used, as of the last `poll` or `refresh`.
    is_urgent
        Whether to end at once: the scheduler, which may stand still, is not waited for.
    on_change
        Called with each change as soon as it is heard, on the client's event loop; `poll` tells of it later.

    Raises
    ------
    ClusterError
        When the scheduler does not let itself be listened to.
    """

    def __init__(self, client: Client, topic: str) -> None:
        self._client = client
        self._topic = topic
        self._announced: queue.SimpleQueue[Change] = queue.SimpleQueue()
        self._is_listening = threading.Event()
        self._news: list[Change] = []
        # Workers that the scheduler lists, and that the run does without.
        self._silent: set[str] = set()
        self._leaving: set[str] = set()
        self.is_urgent = False
        self.on_change: Callable[[Change], None] | None = None
        try:
            client.subscribe_topic(topic, self._hear)
            announcer = Announcer(topic, client.id, limits().frozen_seconds, limits().deserted_seconds)
            in_time("word of its workers", lambda: client.register_plugin(announcer))
            self._await_echo()
            # Asked once announcements arrive, so that nobody joins or leaves unheard in between.
            self.workers: dict[str, int] = threads_of_workers(client)
        except BaseException:
            self.close()
            raise

    def _await_echo(self) -> None:
        """Wait until a word of our own comes back: a subscription travels on its own, and later than calls do."""
        limit_seconds = limits().start_seconds
        until = time.monotonic() + limit_seconds
        while not self._is_listening.wait(0.02):
            if time.monotonic() > until:
                raise ClusterError(
                    f"the scheduler sent no events within {limit_seconds:g} seconds. Look whether its process is "
                    "stopped, swaps, or is cut off."
                )
            self._tell("listening")

    def _tell(self, action: str, **more: object) -> None:
        """Say something to the run's announcer on the scheduler."""
        seconds = limits().urgent_seconds if self.is_urgent else None
        log_event(self._client, self._topic, {"action": action, **more}, seconds)

    def _hear(self, event: tuple[float, dict[str, Any]]) -> None:
        _, message = event
        match message["action"]:
            case "joined":
                self._note(Joined(message["worker"], message["n_threads"]))
            case "lost":
                self._note(Lost(message["worker"], is_silent=message.get("reason") == "silent"))
            case "leaving":
                self._note(Leaving(message["worker"]))
            case "listening":
                self._is_listening.set()

    def _note(self, change: Change) -> None:
        self._announced.put(change)
        if self.on_change is not None:
            self.on_change(change)

    def poll(self) -> list[Change]:
        """What changed since the last time; brings `workers` up to date."""
        self._take_announcements()
        changes, self._news = self._news, []
        return changes

    def _take_announcements(self) -> None:
        while not self._announced.empty():
            change = self._announced.get()
            if self._take(change):
                self._news.append(change)

    def _take(self, change: Change) -> bool:
        """Take note of a change, and tell whether it is one."""
        worker = change.worker
        was_used, was_leaving = worker in self.workers, worker in self._leaving
        match change:
            case Joined():
                self.workers[worker] = change.n_threads
                self._silent.discard(worker)
                self._leaving.discard(worker)
                return not was_used
            case Lost():
                self.workers.pop(worker, None)
                self._leaving.discard(worker)
                (self._silent.add if change.is_silent else self._silent.discard)(worker)
                return was_used or was_leaving
            case Leaving():
                self.workers.pop(worker, None)
                self._leaving.add(worker)
                return was_used

    def refresh(self) -> None:
        """Ask the scheduler itself which workers are there; what is new is kept for the next `poll`."""
        found = threads_of_workers(self._client)
        self._take_announcements()
        known = {*self.workers, *self._silent, *self._leaving}
        for worker in known - found.keys():
            self._note(Lost(worker))
        for worker in found.keys() - known:
            self._note(Joined(worker, found[worker]))
        self._take_announcements()

    def give_up(self, worker: str) -> None:
        """Take a worker that does not answer for lost, until the scheduler hears of it again."""
        logger.warning("worker %s does not answer and is given up", worker)
        self._note(Lost(worker, is_silent=True))
        self._tell("given up", worker=worker)

    def left(self, worker: str) -> None:
        """Tell whoever asked for it that the run has nothing on a worker any more."""
        self._tell("left", worker=worker)

    def close(self) -> None:
        """Stop listening; the announcer takes itself off the scheduler."""
        self.on_change = None
        if self._client.status == "running":
            self._client.unsubscribe_topic(self._topic)
            try:
                self._tell("closed")
            except OSError as error:
                # The announcer goes by itself once the scheduler hears no more of this client.
                logger.warning("the scheduler did not hear of the run's end: %r", error)


def wait_for_a_worker(client: Client, membership: Membership) -> None:
    """Wait until the cluster has a worker.

    Raises
    ------
    NoWorkersError
        When none comes within `Limits.start_seconds`.
    """
    membership.refresh()
    if membership.workers:
        return
    limit_seconds = limits().start_seconds
    logger.warning("no worker is left: waiting up to %g s for one", limit_seconds)
    until = time.monotonic() + limit_seconds
    while not membership.workers:
        if time.monotonic() > until:
            raise NoWorkersError(
                f"no worker came back within {limit_seconds:g} seconds. Start workers and train again."
            )
        if client.status != "running":
            raise ClusterError("the connection to Dask's scheduler is gone. Connect again; the kept point is safe.")
        time.sleep(_LOOK_SECONDS)
        # What is new is kept for the next poll.
        membership.refresh()
