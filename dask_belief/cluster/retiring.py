"""Taking workers away without loss: runs move off them first, then Dask retires them.

Dask's own `Client.retire_workers` moves plain data, and refuses a worker that holds an actor, as a run's shards are.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Sequence
from typing import Any

from distributed import Client

from dask_belief.cluster.announcer import REQUESTS
from dask_belief.cluster.asking import in_time, log_event, threads_of_workers
from dask_belief.cluster.limits import limits
from dask_belief.errors import ArgumentError, CallTimeoutError, ClusterError

logger = logging.getLogger(__name__)

_ASK_AGAIN_SECONDS = 0.2


def retire_workers(client: Client, workers: Sequence[str], timeout_seconds: float | None = None) -> list[str]:
    """Ask every run on the cluster to move off some workers, then retire and close them.

    A run moves its shards, its coordinator or ledger and its leases to the workers that stay, and goes on; what it
    trains is not changed by it.

    Parameters
    ----------
    client
        A synchronous client of the cluster; the runs may have others.
    workers
        The addresses of the workers to take away.
    timeout_seconds
        How long to wait until they are gone; None for twice ``Limits.start_seconds``.

    Returns
    -------
    list of str
        The workers that were retired, in the order given.

    Raises
    ------
    ArgumentError
        When a worker is not there, or none would stay.
    ClusterError
        When a run did not move off in time, or Dask did not let a worker go. Then the runs may use the workers again.

    Examples
    --------
    >>> db.retire_workers(client, ["tcp://10.0.0.7:41123"])  # doctest: +SKIP
    ['tcp://10.0.0.7:41123']
    """
    wanted = _check_workers(client, workers)
    if not wanted:
        return []
    limit_seconds = 2 * limits().start_seconds if timeout_seconds is None else timeout_seconds
    if not limit_seconds > 0:
        raise ArgumentError(f"timeout_seconds: expected a positive number, got {timeout_seconds!r}.")
    until = time.monotonic() + limit_seconds
    replies = f"{REQUESTS}-{uuid.uuid4().hex}"
    try:
        while remaining := _there(client, wanted):
            _move_off(client, remaining, replies, until, limit_seconds)
            _retire(client, remaining, until, limit_seconds)
    except BaseException:
        if client.status == "running":
            # The error that led here is the one to tell.
            with contextlib.suppress(CallTimeoutError):
                _take_back(client, wanted)
        raise
    return wanted


def _check_workers(client: Client, workers: Sequence[str]) -> list[str]:
    if isinstance(workers, str) or not all(isinstance(worker, str) for worker in workers):
        raise ArgumentError(f"workers: expected a list of addresses, got {workers!r}.")
    wanted = list(dict.fromkeys(workers))
    there = set(threads_of_workers(client))
    unknown = [worker for worker in wanted if worker not in there]
    if unknown:
        raise ArgumentError(f"workers: the cluster has no {', '.join(unknown)}; it has {', '.join(sorted(there))}.")
    if wanted and not there - set(wanted):
        raise ArgumentError("workers: these are all that the cluster has, and none would stay. Start others first.")
    return wanted


def _there(client: Client, workers: Sequence[str]) -> list[str]:
    there = set(threads_of_workers(client))
    return [worker for worker in workers if worker in there]


def _move_off(client: Client, workers: Sequence[str], replies: str, until: float, limit_seconds: float) -> None:
    """Ask the runs until none of them has anything on the workers; one that ends meanwhile does not answer again."""
    while staying := _ask(client, workers, replies):
        if time.monotonic() > until:
            where = "; ".join(f"run {run} from {', '.join(on)}" for run, on in sorted(staying.items()))
            raise ClusterError(
                f"retire_workers: not moved off within {limit_seconds:g} seconds: {where}. Give it more time, or end "
                "these runs first."
            )
        time.sleep(_ASK_AGAIN_SECONDS)


def _ask(client: Client, workers: Sequence[str], replies: str) -> dict[str, list[str]]:
    """Ask each run to leave the workers; gives, by run, those on which it still is."""
    number = uuid.uuid4().hex
    log_event(client, REQUESTS, {"action": "leave", "workers": list(workers), "replies": replies, "number": number})
    # The announcers answer while the scheduler logs the request, so all their answers are there by now.
    answers = in_time("the answers of runs", lambda: client.get_events(replies))
    mine = (answer for _, answer in answers if answer["number"] == number)
    return {answer["run"]: answer["staying"] for answer in mine if answer["staying"]}


def _retire(client: Client, workers: Sequence[str], until: float, limit_seconds: float) -> None:
    """Let Dask retire workers, once: it keeps those whose actors are just being let go, and is asked again then."""
    scheduler: Any = client.scheduler
    seconds = max(0.1, until - time.monotonic())
    try:
        client.sync(scheduler.retire_workers, workers=list(workers), close_workers=True, callback_timeout=seconds)
    except TimeoutError as error:
        raise ClusterError(_not_gone(workers, limit_seconds)) from error
    remaining = _there(client, workers)
    if remaining and time.monotonic() > until:
        raise ClusterError(_not_gone(remaining, limit_seconds))
    if remaining:
        time.sleep(_ASK_AGAIN_SECONDS)


def _not_gone(workers: Sequence[str], limit_seconds: float) -> str:
    return (
        f"retire_workers: {', '.join(workers)} not gone within {limit_seconds:g} seconds, although no run is there. "
        "Dask keeps a worker that holds somebody's actor, or data that fit nowhere else: look at it in the dashboard."
    )


def _take_back(client: Client, workers: Sequence[str]) -> None:
    """Let the runs use the workers again."""
    log_event(client, REQUESTS, {"action": "stay", "workers": list(workers)})
