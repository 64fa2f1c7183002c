"""The client of a run: the one given, the current one, or a cluster on loopback made for the run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from distributed import Client, LocalCluster, default_client
from distributed.protocol.pickle import dumps

from dask_belief.cluster.asking import threads_of_workers
from dask_belief.errors import ArgumentError, ClusterError, NoWorkersError

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def connected(client: Client | None) -> Iterator[Client]:
    """Give a synchronous client with at least one worker.

    Parameters
    ----------
    client
        Used as it is; None takes Dask's current client and, where there is none, makes a `LocalCluster` on loopback
        with one single-threaded worker process a core, closed at the end.

    Raises
    ------
    ArgumentError
        For something that is not a synchronous `distributed.Client`.
    ClusterError
        When the client is closed, or its scheduler gone.
    NoWorkersError
        When the cluster has no worker.
    """
    if client is not None and not isinstance(client, Client):
        raise ArgumentError(f"client: expected a distributed.Client or None, got {type(client).__name__}.")
    with contextlib.ExitStack() as stack:
        if client is None:
            with contextlib.suppress(ValueError):
                client = default_client()
        if client is None:
            logger.info("no Dask client given or current: making a LocalCluster on loopback for this run")
            cluster = stack.enter_context(LocalCluster(threads_per_worker=1, dashboard_address="127.0.0.1:0"))
            client = stack.enter_context(Client(cluster, set_as_default=False))
        _check(client)
        yield client


def current_client() -> Client:
    """Give Dask's current client, for what needs a cluster that outlives this process; raises `ArgumentError`."""
    try:
        found: Client = default_client()
    except ValueError as error:
        raise ArgumentError("client: there is no current Dask client; give the cluster's.") from error
    return found


def _check(client: Client) -> None:
    if client.asynchronous:
        raise ArgumentError("client: an asynchronous client was given; train() blocks, so pass a synchronous one.")
    if client.status != "running":
        raise ClusterError(
            f"client: its status is {client.status!r}, not 'running'. Connect a new client to a living scheduler."
        )
    if not threads_of_workers(client):
        raise NoWorkersError("client: the cluster has no worker. Start one, e.g. cluster.scale(2), then train again.")


def check_travels(argument: str, thing: object) -> None:
    """Refuse what cannot be sent to a worker; raises `ArgumentError` with the argument's name."""
    try:
        dumps(thing)
    except Exception as error:
        raise ArgumentError(
            f"{argument}: {type(thing).__name__} cannot be pickled, so it cannot be sent to the workers: {error}."
        ) from error
