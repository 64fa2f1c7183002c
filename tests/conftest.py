"""Fixtures that several folders share: a small cluster of threads that talks TCP, as over a network.

Dask is imported by the fixtures that need it: the tests of the numeric core run where it is not installed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

# Dask's profiler asks for the stacks of all threads every ten milliseconds, on the event loop. In Python 3.11 that may
# stand still for ever, with the interpreter's lock in hand, where the garbage collector begins meanwhile: seen once, in
# a process whose workers are threads. Dask reads this as it is first imported, here and in processes that are started.
os.environ.setdefault("DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED", "False")

# No test fails because a machine is slow. Where there is a GPU and little else, there may be no Hypothesis.
with contextlib.suppress(ImportError):
    from hypothesis import settings

    settings.register_profile("no deadline", deadline=None)
    settings.load_profile("no deadline")


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Two workers for the tests of a module that harm none of them.

    Not for the session: Hypothesis takes the random numbers that a living cluster's threads draw for a test's own.
    """
    from tests.small_cluster import small_cluster

    with small_cluster(n_workers=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(cluster: LocalCluster) -> Iterator[Client]:
    """A client of `cluster` that does not become the current one."""
    from distributed import Client

    with Client(cluster, set_as_default=False) as client:
        yield client


@pytest.fixture
def workers(client: Client) -> list[str]:
    """The addresses of the two workers, in order."""
    return sorted(client.nthreads())


@pytest.fixture
def own_client() -> Iterator[Client]:
    """A client of three workers that the test may kill."""
    from distributed import Client

    from tests.small_cluster import small_cluster

    with small_cluster(n_workers=3) as cluster, Client(cluster, set_as_default=False) as client:
        yield client
