"""Fixtures that several folders share: a small cluster of threads that talks TCP, as over a network."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from distributed import Client, LocalCluster

from tests.small_cluster import small_cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Two workers for the tests of a module that harm none of them.

    Not for the session: Hypothesis takes the random numbers that a living cluster's threads draw for a test's own.
    """
    with small_cluster(n_workers=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(cluster: LocalCluster) -> Iterator[Client]:
    """A client of `cluster` that does not become the current one."""
    with Client(cluster, set_as_default=False) as client:
        yield client


@pytest.fixture
def workers(client: Client) -> list[str]:
    """The addresses of the two workers, in order."""
    return sorted(client.nthreads())


@pytest.fixture
def own_client() -> Iterator[Client]:
    """A client of three workers that the test may kill."""
    with small_cluster(n_workers=3) as cluster, Client(cluster, set_as_default=False) as client:
        yield client
