"""A replica's side of stale-synchronous training: it tells what it has done, and waits when it is too far ahead."""

from __future__ import annotations

import time
from collections import deque

from dask_belief.cluster.hub_line import Asked, HubLine
from dask_belief.cluster.limits import limits
from dask_belief.errors import CallTimeoutError


class Pace:
    """Holds one replica back.

    Parameters
    ----------
    hub
        The line to the ledger.
    limit_seconds
        How long to wait for slower replicas.

    Attributes
    ----------
    waiting_seconds
        Waited so far.
    """

    def __init__(self, hub: HubLine, limit_seconds: float) -> None:
        self._hub = hub
        self._limit_seconds = limit_seconds
        self._done = 0
        self._allowed = 0
        self._asked: deque[Asked] = deque()
        self.waiting_seconds = 0.0

    def keep(self, done: int) -> None:
        """Tell how many mini-batches this replica has made, and wait until it may begin the next.

        Raises
        ------
        CallTimeoutError
            When the slowest replica made none within the limit.
        """
        if done == self._done:
            return
        self._done = done
        self._ask()
        began = time.monotonic()
        while self._asked and self._asked[0].done():
            self._take()
        while self._allowed <= done:
            if time.monotonic() - began > self._limit_seconds:
                raise CallTimeoutError(
                    f"the slowest replica made no mini-batch within {self._limit_seconds:g} seconds, and this one may "
                    "not go further ahead. Look in the dashboard which worker does nothing, or allow a larger "
                    "max_staleness."
                )
            if not self._asked:
                self._ask()
            self._take()
        self.waiting_seconds += time.monotonic() - began

    def _ask(self) -> None:
        self._asked.append(self._hub.start("tick", self._done, limits().poll_seconds))

    def _take(self) -> None:
        self._allowed = self._hub.wait_for(self._asked.popleft())
