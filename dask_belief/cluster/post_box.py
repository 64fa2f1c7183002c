"""Letters between long-running tasks on different workers.

An actor takes them in on the worker of whom they are for, who has the box itself in hand and waits for one by its name.
So tasks send each other arrays straight from worker to worker, and neither scheduler nor driver sees them::

    task on worker A ── Correspondent.send ──> PostBox on worker B ── Correspondent.receive ──> task on worker B
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import threading
import time
import weakref
from collections import deque
from collections.abc import Hashable, Sequence
from typing import Any

from dask_belief.cluster.actors import ActorAddress, Caller
from dask_belief.cluster.limits import limits
from dask_belief.cluster.standing import Standing
from dask_belief.errors import CallTimeoutError, StaleError

# How often whoever waits looks whether it should go on.
_LOOK_SECONDS = 0.1

_here: weakref.WeakValueDictionary[str, PostBox] = weakref.WeakValueDictionary()
"""The boxes of this process, by their names."""


class PostBox:
    """Keeps what has arrived until it is asked for; an actor, and safe from several threads.

    Parameters
    ----------
    name
        Unique on the cluster.
    """

    def __init__(self, name: str) -> None:
        self._lock = threading.Lock()
        self._letters: dict[Hashable, concurrent.futures.Future[Any]] = {}
        _here[name] = self

    async def put(self, letter: Sequence[Any], content: Any) -> None:
        """Take a letter in; on the worker's event loop."""
        self.expect(tuple(letter)).set_result(content)

    def expect(self, letter: Hashable) -> concurrent.futures.Future[Any]:
        """Give the letter, or what will be it."""
        with self._lock:
            return self._letters.setdefault(letter, concurrent.futures.Future())

    def forget(self, letter: Hashable) -> None:
        """Let a letter go that was read."""
        with self._lock:
            self._letters.pop(letter, None)


class Correspondent:
    """One of several tasks that write to each other.

    Parameters
    ----------
    boxes
        The box of each of them.
    own_name
        What this one's box was called when it was made.
    caller, standing
        Of its task.

    Attributes
    ----------
    waiting_seconds
        How long it has waited for letters.
    sent_bytes
        Of arrays that it has sent.
    """

    def __init__(self, boxes: Sequence[ActorAddress], own_name: str, caller: Caller, standing: Standing) -> None:
        self._boxes = boxes
        self._caller = caller
        self._standing = standing
        # Whoever made the actors waited until they were there.
        self._own = _here[own_name]
        self._sent: deque[concurrent.futures.Future[Any]] = deque()
        self.waiting_seconds = 0.0
        self.sent_bytes = 0

    def send(self, to: int, letter: tuple[Any, ...], content: Any) -> None:
        """Begin to send a letter; what went wrong with an earlier one is raised here.

        Raises
        ------
        ActorLostError, CallTimeoutError
            When a letter did not arrive.
        """
        while self._sent and self._sent[0].done():
            self._sent.popleft().result()
        self.sent_bytes += getattr(content, "nbytes", 0)
        self._sent.append(self._caller.start(self.deliver(to, letter, content)))

    async def deliver(self, to: int, letter: tuple[Any, ...], content: Any) -> None:
        """Send a letter from the event loop; raises what went wrong with it, see `send`, which is the task's own."""
        await self._caller.call(self._boxes[to], "put", letter, content)

    def receive(self, letter: tuple[Any, ...], what: str) -> Any:
        """Wait for a letter.

        Parameters
        ----------
        letter
            Its name.
        what
            It in words, for errors.

        Raises
        ------
        StaleError
            When this task is cancelled meanwhile.
        CallTimeoutError
            When it does not come within `Limits.no_progress_seconds`: whoever was to send it is not lost, and yet does
            not.
        """
        expected = self._own.expect(letter)
        began, limit_seconds = time.monotonic(), limits().no_progress_seconds
        try:
            while True:
                try:
                    return expected.result(_LOOK_SECONDS)
                except concurrent.futures.TimeoutError:
                    self._look(what, time.monotonic() - began, limit_seconds)
        finally:
            self._own.forget(letter)
            self.waiting_seconds += time.monotonic() - began

    def _look(self, what: str, waited_seconds: float, limit_seconds: float) -> None:
        if self._standing.is_cancelled:
            raise StaleError(f"cancelled while it waited for {what}.")
        for sent in list(itertools.takewhile(lambda each: each.done(), self._sent)):
            self._sent.popleft()
            sent.result()
        if waited_seconds > limit_seconds:
            raise CallTimeoutError(
                f"{what} did not arrive on {self._standing.worker.address} within {limit_seconds:g} seconds. Look in "
                "the dashboard what the worker that sends it is doing."
            )

    async def arrival(self, letter: tuple[Any, ...]) -> Any:
        """Wait for a letter on the event loop; whoever waits for this has a limit."""
        try:
            return await asyncio.wrap_future(self._own.expect(letter))
        finally:
            self._own.forget(letter)

    def start(self, coroutine: Any) -> concurrent.futures.Future[Any]:
        """Run a coroutine on the event loop."""
        return self._caller.start(coroutine)
