"""Runs move off workers that are retired, and Dask lets them go."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from distributed import Client, Worker

from dask_belief.cluster.actors import ActorHost
from dask_belief.cluster.membership import Joined, Leaving, Lost, Membership
from dask_belief.cluster.retiring import retire_workers
from dask_belief.errors import ArgumentError, ClusterError
from tests.small_cluster import eventually


class Thing:
    """An actor that a run has."""


class Stuck:
    """An actor that is being made until the test lets it go on; its worker is a thread of this process."""

    may_go_on = threading.Event()

    def __init__(self) -> None:
        Stuck.may_go_on.wait(30.0)


class Unmakeable:
    """An actor that cannot be made."""

    def __init__(self) -> None:
        raise RuntimeError("it cannot be made")


class MovingRun:
    """Answers as a run does: it lets its actor go when its worker is to be left."""

    def __init__(self, client: Client, name: str, worker: str) -> None:
        self.membership = Membership(client, f"dask-belief-{name}")
        self.host = ActorHost(client, name)
        self.actor = self.host.spawn(Thing, "thing", worker)
        self.host.ready([self.actor])
        self.heard: list[object] = []
        self._is_over = threading.Event()
        self.thread = threading.Thread(target=self._live)

    def _live(self) -> None:
        while not self._is_over.wait(0.01):
            for change in self.membership.poll():
                self.heard.append(change)
                if isinstance(change, Leaving):
                    self.host.drop(self.actor)
                    self.membership.left(change.worker)

    def close(self) -> None:
        if self._is_over.is_set():
            return
        self._is_over.set()
        if self.thread.ident is not None:
            self.thread.join()
        self.membership.close()
        self.host.close()


def executing(dask_worker: Worker) -> int:
    """How many tasks a worker is at."""
    return dask_worker.state.executing_count


@pytest.fixture
def begin(own_client: Client) -> Iterator[Callable[[str, str], MovingRun]]:
    runs: list[MovingRun] = []

    def begin(name: str, worker: str) -> MovingRun:
        runs.append(MovingRun(own_client, name, worker))
        return runs[-1]

    yield begin
    for run in runs:
        run.close()


def test_without_a_run_it_just_retires(own_client: Client) -> None:
    """Nobody needs to be asked; what is gone is given back, each once."""
    first, second, last = sorted(own_client.nthreads())
    assert retire_workers(own_client, [second, first, second]) == [second, first]
    assert list(own_client.nthreads()) == [last]
    assert retire_workers(own_client, []) == []


def test_runs_move_off_first(own_client: Client, begin: Callable[[str, str], MovingRun]) -> None:
    """Each run is asked, once, and tells when it has left; then its worker is lost to it without being news."""
    gone, stays, _ = sorted(own_client.nthreads())
    runs = [begin("here", gone), begin("there", stays)]
    for run in runs:
        run.thread.start()
    assert retire_workers(own_client, [gone], timeout_seconds=30) == [gone]
    assert gone not in own_client.nthreads()
    eventually(lambda: all(Lost(gone) in run.heard for run in runs))
    for run in runs:
        assert run.heard == [Leaving(gone), Lost(gone)]
        assert gone not in run.membership.workers


def test_run_that_stays_is_named_and_may_go_on(own_client: Client, begin: Callable[[str, str], MovingRun]) -> None:
    """The error says which run, and which worker; the run has its worker back, which nobody retired."""
    gone = min(own_client.nthreads())
    run = begin("stubborn", gone)
    with pytest.raises(ClusterError, match=rf"not moved off within 0\.5 seconds: run stubborn from {gone}"):
        retire_workers(own_client, [gone], timeout_seconds=0.5)
    heard: list[object] = []

    def has_heard_both() -> bool:
        heard.extend(run.membership.poll())
        return len(heard) == 2

    eventually(has_heard_both)
    assert heard == [Leaving(gone), Joined(gone, 1)]
    assert gone in run.membership.workers
    assert gone in own_client.nthreads()


def test_run_that_ends_meanwhile_is_not_waited_for(own_client: Client, begin: Callable[[str, str], MovingRun]) -> None:
    """It does not answer any more."""
    gone = min(own_client.nthreads())
    run = begin("ending", gone)
    with ThreadPoolExecutor(1) as threads:
        retiring = threads.submit(retire_workers, own_client, [gone], timeout_seconds=30)
        eventually(lambda: Leaving(gone) in run.membership.poll())
        run.close()
        assert retiring.result(40) == [gone]


@pytest.mark.parametrize("kind", [Stuck, Unmakeable])
def test_actor_that_did_not_come_to_be_keeps_nobody(
    own_client: Client, begin: Callable[[str, str], MovingRun], kind: type
) -> None:
    """Dask alone would take it for an actor as long as its worker lives; so a frozen worker could never be retired."""
    gone, stays, _ = sorted(own_client.nthreads())
    run = begin("unlucky", stays)
    Stuck.may_go_on.clear()
    host = ActorHost(own_client, "unlucky")
    actor = host.spawn(kind, "thing", gone)
    if kind is Unmakeable:
        with pytest.raises(RuntimeError, match="it cannot be made"):
            host.ready([actor])
    else:
        eventually(lambda: own_client.run(executing, workers=[gone])[gone])
    host.drop(actor)
    run.thread.start()
    Stuck.may_go_on.set()
    assert retire_workers(own_client, [gone], timeout_seconds=10) == [gone]
    host.close()


def test_worker_that_dask_keeps_is_named(own_client: Client) -> None:
    """An actor of somebody else's is not ours to move."""
    gone = min(own_client.nthreads())
    host = ActorHost(own_client, "foreign")
    host.ready([host.spawn(Thing, "thing", gone)])
    with pytest.raises(ClusterError, match=rf"{gone} not gone within 1 seconds, although no run is there"):
        retire_workers(own_client, [gone], timeout_seconds=1)
    assert gone in own_client.nthreads()
    host.close()


def test_wrong_workers_are_refused(own_client: Client) -> None:
    """Unknown ones, all there are, and what is no list of addresses."""
    workers = sorted(own_client.nthreads())
    with pytest.raises(ArgumentError, match=r"^workers: the cluster has no tcp://nowhere:1; it has "):
        retire_workers(own_client, ["tcp://nowhere:1"])
    with pytest.raises(ArgumentError, match=r"^workers: these are all that the cluster has"):
        retire_workers(own_client, workers)
    with pytest.raises(ArgumentError, match=r"^workers: expected a list of addresses"):
        retire_workers(own_client, workers[0])
    with pytest.raises(ArgumentError, match=r"^timeout_seconds: expected a positive number"):
        retire_workers(own_client, workers[:1], timeout_seconds=0)
    assert sorted(own_client.nthreads()) == workers
