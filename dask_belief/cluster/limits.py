"""How long the package waits for what: one place, so that nothing waits for ever.

The limits of a run are a matter of context: whoever begins a run, or a task of one, does it within `limited_by`, and
whatever waits asks `limits` as it begins to wait. A new thread has the default limits, unless it is told otherwise; a
coroutine that is handed to an event loop has those of the thread that handed it over.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, fields

from dask_belief.errors import ArgumentError


@dataclass(frozen=True)
class Limits:
    """Every wait of a run, in seconds.

    Attributes
    ----------
    call_seconds
        One call to an actor, the transfer of its vectors included.
    connect_seconds
        Until a worker takes a connection; one that does not is gone.
    poll_seconds
        How long a question that waits for work is held open before it is answered with "nothing yet".
    watch_seconds
        How often the driver looks at losses, replicas and time while it waits; so also how late it can notice them.
    silence_seconds
        A replica whose question its coordinator or ledger has not answered for so long ends by itself.
    start_seconds
        Until actors that are made must be there, and until a worker must have come back when none is left.
    stop_seconds
        How long the replicas are given to end at the end of a run before they are cancelled.
    no_progress_seconds
        After so long without any finished work the run ends with an error.
    frozen_seconds
        A worker that the scheduler has not heard of for so long is taken for lost by the run.
    urgent_seconds
        How long each of replicas and scheduler is given at the end of a run that is interrupted, or failed.
    deserted_seconds
        How long the scheduler keeps what listens for a run whose client it has lost: it may come back.
    """

    call_seconds: float = 60.0
    connect_seconds: float = 5.0
    poll_seconds: float = 2.0
    watch_seconds: float = 0.1
    silence_seconds: float = 60.0
    start_seconds: float = 60.0
    stop_seconds: float = 5.0
    no_progress_seconds: float = 600.0
    frozen_seconds: float = 20.0
    urgent_seconds: float = 0.5
    deserted_seconds: float = 60.0

    @property
    def two_calls_seconds(self) -> float:
        """A call that waits for another one, such as a report that follows a push: each has `call_seconds`."""
        return 2 * self.call_seconds

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ArgumentError(f"{field.name}: a limit must be a positive number of seconds, got {value!r}.")


# What nobody sets, since it is no time that anybody works in.

GRACE_SECONDS = 5.0
"""What is added where a wait is around another that has a limit of its own, so that the inner one tells what it was."""

AT_HAND_SECONDS = 1.0
"""For a result that is there already, and only has to be brought from a worker of the cluster."""

NO_WORKER_SECONDS = 0.5
"""How long the scheduler looks for a worker that it is to send data to, and that may have left this moment."""

LAST_CALL_SECONDS = 2.0
"""For a call to an actor once the run is interrupted: its worker may be frozen, and the driver keeps a copy."""

NEWS_SECONDS = 2.0
"""When a call to an actor fails or takes longer, word that its worker is gone follows within moments, if it is gone."""

_DEFAULT = Limits()
_in_force: ContextVar[Limits] = ContextVar("dask_belief_limits", default=_DEFAULT)


def limits() -> Limits:
    """Give the limits that are in force here."""
    return _in_force.get()


@contextlib.contextmanager
def limited_by(chosen: Limits) -> Iterator[None]:
    """Put other limits in force, for as long as the block lasts."""
    token = _in_force.set(chosen)
    try:
        yield
    finally:
        _in_force.reset(token)
