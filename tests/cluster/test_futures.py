"""Waiting for futures of a client that is not the current one."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from distributed import Client

from dask_belief.cluster.futures import wait_for

GO_ON = threading.Event()
"""The cluster's workers are threads of this process."""


@pytest.fixture(autouse=True)
def released() -> Iterator[None]:
    GO_ON.clear()
    yield
    GO_ON.set()


def slow() -> None:
    GO_ON.wait(30)


def fail() -> None:
    raise ValueError("bad")


def test_waits_for_all_however_they_end(client: Client) -> None:
    """A future that fails has ended as well as one that has a result; its error is not raised here."""
    futures = [client.submit(fail, pure=False), client.submit(sum, [1, 2], pure=False)]
    wait_for(futures, 10)
    assert [future.status for future in futures] == ["error", "finished"]


def test_cancelled_future_has_ended(client: Client) -> None:
    """One that is cancelled is not waited for."""
    future = client.submit(slow, pure=False)
    future.cancel()
    wait_for([future], 10)
    assert future.status == "cancelled"


def test_limit_is_for_all_together(client: Client) -> None:
    """What has not ended within the limit is a timeout, and the future goes on."""
    future = client.submit(slow, pure=False)
    with pytest.raises(TimeoutError):
        wait_for([client.submit(sum, [1], pure=False), future], 0.05)
    GO_ON.set()
    wait_for([future], 10)
    assert future.status == "finished"


def test_nothing_to_wait_for() -> None:
    """No future, no client needed."""
    wait_for([], 0)
