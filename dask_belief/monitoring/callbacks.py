"""Who listens to a run: any function of an event; one that returns True asks to stop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TypeAlias

from dask_belief.errors import ArgumentError
from dask_belief.monitoring.events import Event

logger = logging.getLogger(__name__)

Callback: TypeAlias = Callable[[Event], bool | None]
"""Gets every event of a run, in the order in which they happen."""


class CallbackList:
    """Hands each event to all callbacks.

    Parameters
    ----------
    callbacks
        Called in this order. Every one gets every event, also after one of them asked to stop.

    Raises
    ------
    ArgumentError
        One of them cannot be called.

    Examples
    --------
    >>> from dask_belief.monitoring.events import WorkerLost
    >>> listeners = CallbackList([lambda event: None, lambda event: True])
    >>> listeners(WorkerLost("tcp://127.0.0.1:1234"))
    True
    """

    def __init__(self, callbacks: Iterable[Callback] = ()) -> None:
        self._callbacks = tuple(callbacks)
        for callback in self._callbacks:
            if not callable(callback):
                raise ArgumentError(f"callbacks: functions of one event are needed, got {callback!r}")

    def __call__(self, event: Event) -> bool:
        """Call all of them.

        Returns
        -------
        bool
            Whether any of them returned True. Only True itself asks to stop, so that a callback which happens to return
            a number or an array does not end a run. What a callback raises goes through: it ends the run, and the
            callbacks after it do not get the event.
        """
        answers = [callback(event) for callback in self._callbacks]
        for callback, answer in zip(self._callbacks, answers, strict=True):
            if answer is True:
                logger.info("callback %r asks to stop at %s", callback, type(event).__name__)
        return any(answer is True for answer in answers)
