"""Which workers are there, and who came or went: heard from the scheduler, not guessed from silence."""

from __future__ import annotations

import logging
import queue
import threading
import time
from dataclasses import dataclass
from typing import Any

from distributed import Client, Scheduler, SchedulerPlugin

from dask_belief.cluster.limits import LIMITS
from dask_belief.errors import ClusterError, NoWorkersError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Joined:
    """A worker joined the cluster, with so many threads."""

    worker: str
    n_threads: int


@dataclass(frozen=True)
class Lost:
    """A worker left the cluster, of its own or by force."""

    worker: str


class Announcer(SchedulerPlugin):
    """Runs on the scheduler and announces the workers that join and leave, under a topic of the run's own."""

    def __init__(self, topic: str) -> None:
        self.name = topic
        self.topic = topic

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Announce a worker that joined."""
        message = {"action": "joined", "worker": worker, "n_threads": scheduler.workers[worker].nthreads}
        scheduler.log_event(self.topic, message)

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: object) -> None:
        """Announce a worker that left."""
        scheduler.log_event(self.topic, {"action": "lost", "worker": worker})


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
        Number of threads by address, of the workers that are there, as of the last `poll` or `refresh`.

    Raises
    ------
    ClusterError
        When the scheduler does not let itself be listened to.
    """

    def __init__(self, client: Client, topic: str) -> None:
        self._client = client
        self._topic = topic
        self._announced: queue.SimpleQueue[Joined | Lost] = queue.SimpleQueue()
        self._is_listening = threading.Event()
        self._news: list[Joined | Lost] = []
        try:
            client.subscribe_topic(topic, self._hear)
            client.register_plugin(Announcer(topic))
            self._await_echo()
            # Asked once announcements arrive, so that nobody joins or leaves unheard in between.
            self.workers: dict[str, int] = dict(client.nthreads())
        except BaseException:
            self.close()
            raise

    def _await_echo(self) -> None:
        """Wait until a word of our own comes back: a subscription travels on its own, and later than calls do."""
        until = time.monotonic() + LIMITS.start_seconds
        while not self._is_listening.wait(0.02):
            if time.monotonic() > until:
                raise ClusterError(f"the scheduler sent no events within {LIMITS.start_seconds:g} seconds. Look at it.")
            self._client.log_event(self._topic, {"action": "listening"})

    def _hear(self, event: tuple[float, dict[str, Any]]) -> None:
        _, message = event
        match message["action"]:
            case "joined":
                self._announced.put(Joined(message["worker"], message["n_threads"]))
            case "lost":
                self._announced.put(Lost(message["worker"]))
            case "listening":
                self._is_listening.set()

    def poll(self) -> list[Joined | Lost]:
        """What changed since the last time; brings `workers` up to date."""
        self._take_announcements()
        changes, self._news = self._news, []
        return changes

    def _take_announcements(self) -> None:
        while not self._announced.empty():
            change = self._announced.get()
            if isinstance(change, Joined):
                is_news = change.worker not in self.workers
                self.workers[change.worker] = change.n_threads
            else:
                is_news = self.workers.pop(change.worker, None) is not None
            if is_news:
                self._news.append(change)

    def refresh(self) -> None:
        """Ask the scheduler itself which workers are there; what is new is kept for the next `poll`."""
        found = dict(self._client.nthreads())
        for worker in self.workers.keys() - found.keys():
            self._announced.put(Lost(worker))
        for worker in found.keys() - self.workers.keys():
            self._announced.put(Joined(worker, found[worker]))
        self._take_announcements()

    def close(self) -> None:
        """Stop listening, and take the plugin off the scheduler."""
        if self._client.status == "running":
            self._client.unsubscribe_topic(self._topic)
            self._client.unregister_scheduler_plugin(self._topic)


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
    logger.warning("no worker is left: waiting up to %g s for one", LIMITS.start_seconds)
    try:
        client.wait_for_workers(1, timeout=LIMITS.start_seconds)
    except TimeoutError as error:
        raise NoWorkersError(
            f"no worker came back within {LIMITS.start_seconds:g} seconds. Start workers and train again."
        ) from error
    membership.refresh()
