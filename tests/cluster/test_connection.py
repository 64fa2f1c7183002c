"""Which client a run gets, and which are refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from distributed import Client, LocalCluster

from dask_belief.cluster import connection
from dask_belief.cluster.connection import connected
from dask_belief.errors import ArgumentError, ClusterError, NoWorkersError
from tests.small_cluster import close_worker


def test_given_client_is_used_and_stays_open(client: Client) -> None:
    """As it is, whatever the current one."""
    with connected(client) as given:
        assert given is client
    assert client.status == "running"


def test_current_client_is_taken(client: Client) -> None:
    """Without one, Dask's current client is used and stays open."""
    with client.as_current(), connected(None) as current:
        assert current is client
    assert client.status == "running"


def test_cluster_is_made_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a client given or current, a cluster is made for the run, closed after it, and never the current one."""
    made: list[LocalCluster] = []

    def threads(**options: Any) -> LocalCluster:
        assert options["threads_per_worker"] == 1
        cluster = LocalCluster(**{**options, "processes": False, "n_workers": 1, "dashboard_address": "127.0.0.1:0"})
        made.append(cluster)
        return cluster

    monkeypatch.setattr(connection, "LocalCluster", threads)
    with connected(None) as client:
        assert len(client.nthreads()) == 1
        with pytest.raises(ValueError, match="No client"):
            connection.default_client()
    assert client.status == "closed"
    assert [cluster.status.name for cluster in made] == ["closed"]


def test_cluster_of_the_run_is_closed_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the run fails."""
    quiet = {"n_workers": 1, "processes": False, "dashboard_address": "127.0.0.1:0"}
    monkeypatch.setattr(connection, "LocalCluster", lambda **options: LocalCluster(**{**options, **quiet}))
    with pytest.raises(KeyError, match="mine"), connected(None) as client:
        raise KeyError("mine")
    assert client.status == "closed"


@pytest.mark.parametrize("thing", ["tcp://127.0.0.1:8786", 3, Client])
def test_what_is_no_client_is_refused(thing: Any) -> None:
    """An address, a number, a class: refused by the argument's name."""
    with pytest.raises(ArgumentError, match=r"^client: expected a distributed\.Client or None"), connected(thing):
        pass


def test_asynchronous_client_is_refused(own_client: Client) -> None:
    """A run blocks, so it needs a synchronous client."""

    async def scenario() -> None:
        address = own_client.scheduler.address
        async with Client(address, asynchronous=True, set_as_default=False) as client:
            with pytest.raises(ArgumentError, match=r"^client: an asynchronous client"), connected(client):
                pass

    asyncio.run(scenario())


def test_closed_client_is_refused(own_client: Client) -> None:
    """Before anything is sent to it."""
    closed = Client(own_client.scheduler.address, set_as_default=False)
    closed.close()
    with pytest.raises(ClusterError, match="'closed', not 'running'"), connected(closed):
        pass


def test_cluster_without_workers_is_refused(own_client: Client) -> None:
    """There is nobody to train."""
    for worker in list(own_client.nthreads()):
        close_worker(own_client, worker)
    with pytest.raises(NoWorkersError, match=r"^client: the cluster has no worker"), connected(own_client):
        pass
