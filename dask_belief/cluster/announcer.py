"""What a run has on the scheduler: it tells of workers that come, go, fall silent, or are to be left.

All of it travels as Dask's events, so nothing but the connections that are there already is needed::

    retire_workers ── "leave" ──▶ REQUESTS ──▶ every announcer ── "leaving" ──▶ its run's topic ──▶ Membership
          ▲                                                                                            │
          └── who has not left yet ── reply ──── its announcer ◀── "left" ── its run's topic ◀─────────┘
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any

from dask.typing import Key
from distributed import Scheduler, SchedulerPlugin
from distributed.scheduler import TaskStateState, heartbeat_interval

PREFIX = "dask-belief-"
"""What the name of every run's announcer begins with; the run's name follows."""

REQUESTS = "dask-belief-requests"
"""The topic on which all runs of a cluster are asked to leave workers."""

# A worker that missed so many heartbeats is silent; less may be the delay of one.
_HEARTBEATS = 5
_LOOKS = 8
_LEAST_LOOK_SECONDS = 0.25
_LATE_LOOKS = 2


class Silence:
    """Finds the workers that were not heard of for too long, from what is known of each; it reads no clock itself."""

    def __init__(self) -> None:
        # By worker: what was known of its last heartbeat, and when that was last seen to have changed.
        self._heard: dict[str, tuple[float, float]] = {}
        self._silent: set[str] = set()
        self._looked_at: float | None = None

    def __contains__(self, worker: str) -> bool:
        """Whether a worker was last said to be silent."""
        return worker in self._silent

    def look(
        self, now: float, heartbeats: Mapping[str, float], limit_seconds: float, late_seconds: float
    ) -> tuple[list[str], list[str]]:
        """Give the workers that have fallen silent since the last look, and those that were heard again.

        Parameters
        ----------
        now
            The time of this look, by a clock that never goes back.
        heartbeats
            By worker, the scheduler's note of its last heartbeat: a number that another heartbeat changes.
        limit_seconds
            How long a worker may be silent.
        late_seconds
            So long after the last look the scheduler itself was stopped, and heard nobody: the clocks start anew.
        """
        is_late = self._looked_at is not None and now - self._looked_at > late_seconds
        self._looked_at = now
        for gone in self._heard.keys() - heartbeats.keys():
            self.forget(gone)
        fallen, again = [], []
        for worker, heartbeat in heartbeats.items():
            known, at = self._heard.get(worker, (None, now))
            if known != heartbeat:
                self._heard[worker] = (heartbeat, now)
                if known is not None and worker in self._silent:
                    self._silent.discard(worker)
                    again.append(worker)
            elif is_late:
                self._heard[worker] = (heartbeat, now)
            elif now - at > limit_seconds and worker not in self._silent:
                self._silent.add(worker)
                fallen.append(worker)
        return fallen, again

    def give_up(self, worker: str, heartbeat: float, now: float) -> None:
        """Take a worker for silent until its next heartbeat."""
        self._heard[worker] = (heartbeat, now)
        self._silent.add(worker)

    def forget(self, worker: str) -> None:
        """Forget a worker that left."""
        self._heard.pop(worker, None)
        self._silent.discard(worker)


class Announcer(SchedulerPlugin):
    """Runs on the scheduler and announces, under a topic of the run's own, which workers it has and has not.

    Parameters
    ----------
    topic
        Of the run; also this plugin's name.
    client
        The id of the run's client: without it there is nobody to tell.
    frozen_seconds
        A worker that was not heard of for so long, and for no less than five heartbeats, is announced as lost.
    deserted_seconds
        So long after the scheduler has lost the client this goes by itself.
    """

    def __init__(self, topic: str, client: str, frozen_seconds: float, deserted_seconds: float) -> None:
        self.name = topic
        self.topic = topic
        self._run = topic.removeprefix(PREFIX)
        self._client = client
        self._frozen_seconds = frozen_seconds
        self._deserted_seconds = deserted_seconds
        self._silence = Silence()
        # Workers that the run was asked to leave, and whether it has.
        self._leaving: dict[str, bool] = {}
        self._deserted_at: float | None = None

    async def start(self, scheduler: Scheduler) -> None:
        """Begin to look at the workers now and then, on the scheduler's event loop."""
        self._scheduler = scheduler
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(self._look_seconds, self._look)

    async def close(self) -> None:
        """Stop looking, as the scheduler ends."""
        self._timer.cancel()

    # Who is there.

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Announce a worker that joined."""
        self._announce("joined", worker, n_threads=scheduler.workers[worker].nthreads)

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: object) -> None:
        """Announce a worker that left."""
        self._silence.forget(worker)
        self._leaving.pop(worker, None)
        self._announce("lost", worker)

    def transition(
        self,
        key: Key,
        start: TaskStateState,
        finish: TaskStateState,
        *_: object,
        stimulus_id: str,
        **__: object,
    ) -> None:
        """Take an actor of this run that did not come to be off the list of its worker's actors.

        Dask leaves it there when the actor is let go before it was made, as on a worker that was frozen, or when making
        it failed; and it retires no worker that has an actor. So `retire_workers` would wait for nothing. Nothing of
        Dask's code is replaced, and actors of others are left as they are.
        """
        if start != "processing" or finish == "memory" or f"-{self._run}-" not in str(key):
            return
        if (task := self._scheduler.tasks.get(key)) and task.actor:
            for worker in self._scheduler.workers.values():
                worker.actors.discard(task)

    def _announce(self, action: str, worker: str, **more: object) -> None:
        self._scheduler.log_event(self.topic, {"action": action, "worker": worker, **more})

    # Who is silent.

    @property
    def _limit_seconds(self) -> float:
        return max(self._frozen_seconds, _HEARTBEATS * heartbeat_interval(len(self._scheduler.workers)))

    @property
    def _look_seconds(self) -> float:
        return max(_LEAST_LOOK_SECONDS, self._limit_seconds / _LOOKS)

    def _look(self) -> None:
        """Announce who fell silent and who was heard again, and come back later, as long as this is registered."""
        scheduler, now = self._scheduler, time.monotonic()
        if scheduler.plugins.get(self.name) is not self or self._is_deserted(now):
            return
        look_seconds = self._look_seconds
        heartbeats = {worker: state.last_seen for worker, state in scheduler.workers.items()}
        late_seconds = (1 + _LATE_LOOKS) * look_seconds
        fallen, again = self._silence.look(now, heartbeats, self._limit_seconds, late_seconds)
        self._timer = self._loop.call_later(look_seconds, self._look)
        for worker in fallen:
            self._announce("lost", worker, reason="silent")
            if worker in self._leaving:
                self._leaving[worker] = True
        for worker in again:
            if worker not in self._leaving:
                self.add_worker(scheduler, worker)

    def _is_deserted(self, now: float) -> bool:
        """Whether the run's client is gone for good; then this plugin goes, too."""
        if self._has_client:
            self._deserted_at = None
            return False
        self._deserted_at = self._deserted_at or now
        if now - self._deserted_at < self._deserted_seconds:
            return False
        self._scheduler.remove_plugin(self.name)
        return True

    @property
    def _has_client(self) -> bool:
        return self._client in self._scheduler.clients

    # Who is to be left.

    def log_event(self, topic: str, msg: Any) -> None:
        """Hear what the run says, and what all runs are asked."""
        if topic == REQUESTS:
            workers = [worker for worker in msg["workers"] if worker in self._scheduler.workers]
            if msg["action"] == "stay":
                self._stay(workers)
            elif self._has_client:
                staying = self._leave(workers)
                answer = {"run": self._run, "staying": staying, "number": msg["number"]}
                self._scheduler.log_event(msg["replies"], answer)
        elif topic == self.topic:
            match msg["action"]:
                case "left" if msg["worker"] in self._leaving:
                    self._leaving[msg["worker"]] = True
                case "given up" if (state := self._scheduler.workers.get(msg["worker"])) is not None:
                    self._silence.give_up(msg["worker"], state.last_seen, time.monotonic())
                case "closed":
                    self._timer.cancel()
                    self._scheduler.remove_plugin(self.name)

    def _leave(self, workers: Iterable[str]) -> list[str]:
        """Pass the request on, once for each worker, and give those that the run has not left yet."""
        for worker in workers:
            if worker not in self._leaving:
                # A worker that the run has lost is left already.
                self._leaving[worker] = worker in self._silence
                if not self._leaving[worker]:
                    self._announce("leaving", worker)
        return [worker for worker in workers if not self._leaving[worker]]

    def _stay(self, workers: Iterable[str]) -> None:
        """The request is taken back: the run may use the workers again."""
        for worker in workers:
            if self._leaving.pop(worker, None) is not None and worker not in self._silence:
                self.add_worker(self._scheduler, worker)
