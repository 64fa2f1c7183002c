"""Parameters are fetched once a worker, and no replica is disturbed by another's fetch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from dask_belief.backend import get_backend
from dask_belief.errors import CallTimeoutError, StaleError
from dask_belief.parameter_server.client import ParameterServer
from dask_belief.parameter_server.messages import BeginSum
from dask_belief.parameter_server.ranges import shard_ranges
from dask_belief.parameter_server.shared_fetch import SharedFetch, shared_fetch
from tests.parameter_server.local_actors import LocalActors, deploy

N = 70_000
BACKEND = get_backend("numpy")


@pytest.fixture
def actors() -> Iterator[LocalActors]:
    with LocalActors() as carrier:
        yield carrier


@pytest.fixture
def server(actors: LocalActors) -> ParameterServer:
    return deploy(actors, shard_ranges(N, 2))


def open_evaluation(actors: LocalActors, server: ParameterServer, evaluation: int) -> None:
    """Parameters that are the evaluation's number."""
    actors.caller.run(server.write("x", np.full(N, evaluation, np.float32)))
    actors.caller.run(server.execute(BeginSum(evaluation, "x", 4)))


def test_each_evaluation_is_fetched_once(actors: LocalActors, server: ParameterServer) -> None:
    """However often it is asked for, and by whom; only the call that fetched counts the bytes."""
    shared = SharedFetch(server, actors.caller, BACKEND)
    open_evaluation(actors, server, 1)
    first, first_bytes = shared.fetch(1)
    second, second_bytes = shared.fetch(1)
    assert (first_bytes, second_bytes) == (4 * N, 0)
    assert actors.calls["fetch"] == 2
    np.testing.assert_array_equal(first, 1)
    assert np.shares_memory(first, second)


def test_parameters_are_read_only(actors: LocalActors, server: ParameterServer) -> None:
    """What one replica wrote would be another's parameters."""
    open_evaluation(actors, server, 1)
    shared, _ = SharedFetch(server, actors.caller, BACKEND).fetch(1)
    with pytest.raises(ValueError, match="read-only"):
        shared[0] = 5


def test_one_replica_needs_one_vector(actors: LocalActors, server: ParameterServer) -> None:
    """It has no use for the parameters before."""
    shared = shared_fetch(server, actors.caller, BACKEND)
    vectors = []
    for evaluation in (1, 2):
        open_evaluation(actors, server, evaluation)
        vectors.append(shared.fetch(evaluation)[0])
    assert np.shares_memory(*vectors)
    np.testing.assert_array_equal(vectors[1], 2)


def test_replica_that_lags_is_not_disturbed(actors: LocalActors, server: ParameterServer) -> None:
    """While one still computes an evaluation, another begins the next."""
    shared = SharedFetch(server, actors.caller, BACKEND)
    shared.n_replicas = 2
    open_evaluation(actors, server, 1)
    lagging, _ = shared.fetch(1)
    open_evaluation(actors, server, 2)
    ahead, _ = shared.fetch(2)
    np.testing.assert_array_equal(lagging, 1)
    np.testing.assert_array_equal(ahead, 2)


def test_fetch_that_failed_is_tried_again(actors: LocalActors, server: ParameterServer) -> None:
    """What has arrived in part is nobody's."""
    shared = SharedFetch(server, actors.caller, BACKEND)
    open_evaluation(actors, server, 1)
    shared.fetch(1)
    with pytest.raises(StaleError):
        shared.fetch(7)
    assert shared.fetch(1)[1] == 4 * N


def test_replicas_of_a_worker_share(actors: LocalActors, server: ParameterServer) -> None:
    """Those of one generation on one worker; another worker's have their own."""
    actors.caller.own_address = "tcp://here"
    first, second = (shared_fetch(server, actors.caller, BACKEND) for _ in range(2))
    assert first is second
    assert first.n_replicas == 2
    actors.caller.own_address = "tcp://there"
    assert shared_fetch(server, actors.caller, BACKEND) is not first


def test_wait_for_another_replica_has_a_limit(
    actors: LocalActors, server: ParameterServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that never comes back from its fetch does not hold the others for ever."""
    shared = SharedFetch(server, actors.caller, BACKEND)

    class Held:
        def acquire(self, timeout: float) -> bool:
            return False

    stand_in: Any = Held()
    monkeypatch.setattr(shared, "_lock", stand_in)
    with pytest.raises(CallTimeoutError, match="another replica of this process"):
        shared.fetch(1)
