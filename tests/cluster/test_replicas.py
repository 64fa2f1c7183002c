"""Replicas as long-running futures: started by us, pinned, ended in every way."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from distributed import Client, get_worker

from dask_belief.cluster.limits import Limits, limited_by
from dask_belief.cluster.replicas import Ended, ReplicaPool, read_ahead_bytes, stand_aside
from dask_belief.cluster.standing import Standing
from tests.small_cluster import close_worker, eventually

GO_ON = threading.Event()
STARTED: list[tuple[str, str, object, object]] = []
LEFT: list[str] = []
"""The cluster's workers are threads of this process, so replicas of these tests tell here what they see."""


def replica(spec: str, dataset: object, name: str) -> str:
    """Goes on until it is told to end, one way or the other."""
    standing = stand_aside()
    STARTED.append((name, get_worker().address, spec, dataset))
    try:
        while not GO_ON.wait(0.01):
            if standing.should_end:
                return "cancelled"
        if spec == "fails":
            raise ValueError("bad rows")
        return "over"
    finally:
        LEFT.append(name)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    GO_ON.clear()
    STARTED.clear()
    LEFT.clear()
    yield
    GO_ON.set()


def pool_of(client: Client, prefix: str, spec: str = "spec") -> ReplicaPool:
    return ReplicaPool(client, prefix, replica, spec, {"rows": 7})


def poll_ended(pool: ReplicaPool, n: int) -> list[Ended]:
    ended: list[Ended] = []

    def is_enough() -> bool:
        ended.extend(pool.ended())
        return len(ended) >= n

    eventually(is_enough)
    return ended


def test_replica_runs_where_it_was_started(client: Client, workers: list[str]) -> None:
    """With spec, data set and a name that is never used twice; several on one thread, since they stand aside."""
    pool = pool_of(client, "where")
    names = [pool.start(worker) for worker in (workers[0], workers[1], workers[1])]
    eventually(lambda: len(STARTED) == 3)
    assert names == ["replica-0", "replica-1", "replica-2"]
    assert sorted(STARTED) == [
        ("replica-0", workers[0], "spec", {"rows": 7}),
        ("replica-1", workers[1], "spec", {"rows": 7}),
        ("replica-2", workers[1], "spec", {"rows": 7}),
    ]
    assert pool.by_worker == Counter({workers[1]: 2, workers[0]: 1})
    assert (len(pool), pool.n_started) == (3, 3)
    # The threads are free for other tasks meanwhile.
    assert [client.submit(sum, [1, 2], workers=[worker], pure=False).result(10) for worker in workers] == [3, 3]
    assert pool.ended() == []
    GO_ON.set()
    pool.stop()
    assert len(pool) == 0


def test_ended_replica_is_told_once(client: Client, workers: list[str]) -> None:
    """With its name, its worker and no error; then it is forgotten."""
    pool = pool_of(client, "ended")
    pool.start(workers[1])
    GO_ON.set()
    assert poll_ended(pool, 1) == [Ended("replica-0", workers[1], None, "over")]
    assert pool.ended() == []
    assert len(pool) == 0
    assert pool.start(workers[0]) == "replica-1"
    pool.stop()


def test_error_of_a_replica_is_told(client: Client, workers: list[str]) -> None:
    """What it raised comes along."""
    pool = pool_of(client, "error", spec="fails")
    pool.start(workers[0])
    GO_ON.set()
    [ended] = poll_ended(pool, 1)
    assert isinstance(ended.error, ValueError)
    assert ended.error.args == ("bad rows",)


def test_cancelled_replica_is_told_and_ends(client: Client, workers: list[str]) -> None:
    """A future that somebody cancelled counts as ended, and the replica itself notices."""
    pool = pool_of(client, "cancelled")
    pool.start(workers[0])
    eventually(lambda: len(STARTED) == 1)
    [running] = pool._running.values()
    client.cancel(running.futures, force=True)
    assert len(poll_ended(pool, 1)) == 1
    eventually(lambda: LEFT == ["replica-0"])


def test_stop_cancels_what_does_not_end(client: Client, workers: list[str]) -> None:
    """Replicas that do not end by themselves are cancelled, notice it, and leave nothing on the scheduler."""
    pool = pool_of(client, "stopped")
    for worker in workers:
        pool.start(worker)
    eventually(lambda: len(STARTED) == 2)
    pool.stop(timeout_seconds=0.05)
    assert len(pool) == 0
    eventually(lambda: len(LEFT) == 2)
    eventually(lambda: not client.cluster.scheduler.tasks)


def test_replicas_of_a_lost_worker_are_forgotten(own_client: Client) -> None:
    """All of that worker's, by name, and their futures do not wait for it for ever."""
    gone, stays, _ = sorted(own_client.nthreads())
    pool = pool_of(own_client, "lost")
    for worker in (gone, stays, gone):
        pool.start(worker)
    eventually(lambda: len(STARTED) == 3)
    close_worker(own_client, gone)
    assert pool.lose(gone) == ["replica-0", "replica-2"]
    assert pool.lose(gone) == []
    assert pool.by_worker == Counter({stays: 1})
    GO_ON.set()
    assert poll_ended(pool, 1) == [Ended("replica-1", stays, None, "over")]
    pool.stop()
    eventually(lambda: not own_client.cluster.scheduler.tasks)


def test_start_on_a_worker_that_just_left(own_client: Client) -> None:
    """A worker may leave before its loss is heard: nothing is started there, at once, and nothing stays behind."""
    gone = min(own_client.nthreads())
    pool = pool_of(own_client, "late")
    close_worker(own_client, gone)
    began = time.monotonic()
    assert pool.start(gone) is None
    assert time.monotonic() - began < 5
    assert len(pool) == 0
    assert pool.lose(gone) == []
    eventually(lambda: not own_client.cluster.scheduler.tasks)


def test_silence_ends_a_replica(client: Client) -> None:
    """When its hub has left a question unanswered for too long; what the replica computes meanwhile is no silence."""

    def task() -> tuple[bool, bool, bool]:
        with limited_by(Limits(silence_seconds=0.2)):
            standing = stand_aside()
            time.sleep(0.25)
            unasked = standing.should_end
            standing.listen()
            time.sleep(0.25)
            silent = standing.should_end
            standing.heard()
            return unasked, silent, standing.should_end

    assert client.submit(task, pure=False).result(10) == (False, True, False)


def test_memory_is_shared_by_the_threads_of_a_worker(client: Client) -> None:
    """A replica's part is its worker's limit over the threads; 2.5 GiB where there is no limit."""

    def task() -> tuple[float, int, float, int]:
        standing = stand_aside()
        unlimited, ahead = standing.memory_bytes, read_ahead_bytes(standing)
        manager = standing.worker.memory_manager
        former, manager.memory_limit = manager.memory_limit, 1000
        limited, less_ahead = standing.memory_bytes, read_ahead_bytes(standing)
        manager.memory_limit = former
        return unlimited, ahead, limited, less_ahead

    assert client.submit(task, pure=False).result(10) == (2.5 * 2**30, 128 * 2**20, 1000, 50)


def test_standing_of_an_unknown_task_is_to_end(client: Client) -> None:
    """A task that the worker has forgotten is no longer wanted."""

    def task() -> bool:
        return Standing(get_worker(), "no-such-task").should_end

    assert client.submit(task, pure=False).result(10)
