"""How long the package waits for what: one place, so that nothing waits for ever."""

from __future__ import annotations

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
        Until the actors of a generation must be there, and for sending the data set to a worker.
    stop_seconds
        How long the replicas are given to end at the end of a run before they are cancelled.
    no_progress_seconds
        After so long without any finished work the run ends with an error.
    """

    call_seconds: float = 60.0
    connect_seconds: float = 5.0
    poll_seconds: float = 2.0
    watch_seconds: float = 0.1
    silence_seconds: float = 60.0
    start_seconds: float = 60.0
    stop_seconds: float = 5.0
    no_progress_seconds: float = 600.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ArgumentError(f"{field.name}: a limit must be a positive number of seconds, got {value!r}.")


LIMITS = Limits()
