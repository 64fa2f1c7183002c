"""What a replica of Downpour asks of all shards at once, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from dask_belief.parameter_server.messages import PushKey, Round, StepKey
from dask_belief.parameter_server.selection import Selection

Sent = NDArray[Any]
"""What travels: numbers of the run's dtype, or bfloat16 as uint16."""


@dataclass(frozen=True)
class Exchange:
    """What a replica of a Downpour run asks of all shards at once.

    Attributes
    ----------
    replica, at
        Who asks, and where in its work.
    push, vector, bases
        The work to push, its accrued gradients as they travel, and per piece how many updates it had had at the fetch
        they come from; None, None and empty to fetch alone.
    push_selection
        What `vector` covers, compact; None for all parameters.
    into
        Where to write the values, as they travel; None to push alone.
    fetch_selection
        What is wanted of them, compact; None for all.
    closed
        The round of synchronous training to apply first.
    is_elastic
        Whether `vector` holds the replica's parameters, and `into` takes what the shards' moved by.
    """

    replica: str
    at: StepKey
    push: PushKey | None = None
    vector: Sent | None = None
    bases: tuple[int, ...] = ()
    push_selection: Selection | None = None
    into: Sent | None = None
    fetch_selection: Selection | None = None
    closed: Round | None = None
    is_elastic: bool = False


@dataclass(frozen=True)
class Exchanged:
    """What came of it: per piece how many updates it has had, and bytes of vectors."""

    versions: tuple[int, ...]
    pushed_bytes: int
    fetched_bytes: int


@dataclass
class Traffic:
    """What a replica has exchanged so far.

    Attributes
    ----------
    n_pushes, n_fetches, pushed_bytes, fetched_bytes
        Of exchanges that have ended.
    push_waiting_seconds, fetch_waiting_seconds
        What it has waited for room in the line, and for parameters that were due.
    staleness_sum
        Of all pushes; of each that of its stalest piece.
    """

    n_pushes: int = 0
    n_fetches: int = 0
    pushed_bytes: int = 0
    fetched_bytes: int = 0
    push_waiting_seconds: float = 0.0
    fetch_waiting_seconds: float = 0.0
    staleness_sum: int = 0
