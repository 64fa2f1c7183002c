"""Waiting for Dask futures with a limit, through their own client, be it the current one or not."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from distributed import Client, Future


def let_go(client: Client, futures: Iterable[Future[Any]]) -> None:
    """Forget futures; those that have not ended are cancelled, wherever they are."""
    futures = list(futures)
    if client.status == "running":
        unfinished = [future for future in futures if not future.done()]
        if unfinished:
            client.cancel(unfinished, force=True)
    for future in futures:
        future.release()


def is_loss(error: BaseException) -> bool:
    """Whether the exception of a future only says that its worker went away."""
    names = ("KilledWorker", "CancelledError", "FutureCancelledError", "NoValidWorkerError")
    return type(error).__name__ in names or "Worker holding Actor was lost" in str(error)


def wait_for(futures: Iterable[Future[Any]], timeout_seconds: float) -> None:
    """Wait until every future has ended, well or badly.

    Raises
    ------
    TimeoutError
        When the limit passes first.
    """
    until = time.monotonic() + timeout_seconds
    for future in futures:
        if not future.done():
            future.exception(timeout=max(0.001, until - time.monotonic()))
