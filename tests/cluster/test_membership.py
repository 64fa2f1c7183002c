"""Workers that come and go are heard of, once each."""

from __future__ import annotations

import time

import pytest
from distributed import Client

from dask_belief.cluster.limits import Limits, limited_by
from dask_belief.cluster.membership import Joined, Leaving, Lost, Membership, wait_for_a_worker
from dask_belief.errors import NoWorkersError
from tests.faults.conftest import processes
from tests.small_cluster import close_worker, eventually, frozen


def changes(membership: Membership, n: int) -> list[Joined | Lost | Leaving]:
    """Poll until this many were heard."""
    heard: list[Joined | Lost | Leaving] = []

    def is_enough() -> bool:
        heard.extend(membership.poll())
        return len(heard) >= n

    eventually(is_enough)
    return heard


def listen(client: Client, topic: str) -> Membership:
    """A membership whose subscription the scheduler has."""
    membership = Membership(client, topic)
    eventually(lambda: client.id in client.cluster.scheduler._broker._topics[topic].subscribers)
    return membership


def test_worker_that_leaves_right_after_the_start_is_heard(own_client: Client) -> None:
    """From its first moment on, a membership hears every change."""
    membership = Membership(own_client, "right-after")
    gone = min(membership.workers)
    close_worker(own_client, gone)
    assert changes(membership, 1) == [Lost(gone)]
    membership.close()


def test_workers_at_the_start_are_no_news(own_client: Client) -> None:
    """Who is there already is listed with its threads, and not announced."""
    membership = listen(own_client, "at-the-start")
    assert membership.workers == own_client.nthreads()
    assert len(membership.workers) == 3
    assert membership.poll() == []
    membership.close()


def test_lost_worker_is_heard(own_client: Client) -> None:
    """Once, and it is no longer listed; until it is polled, the list stays as it was."""
    membership = listen(own_client, "lost")
    gone, *stay = sorted(membership.workers)
    close_worker(own_client, gone)
    assert sorted(membership.workers) == [gone, *stay]
    assert changes(membership, 1) == [Lost(gone)]
    assert sorted(membership.workers) == stay
    assert membership.poll() == []
    membership.close()


def test_joining_worker_is_heard_with_its_threads(own_client: Client) -> None:
    """Once, and it is listed from then on."""
    membership = listen(own_client, "joined")
    before = set(membership.workers)
    own_client.cluster.scale(4)
    [joined] = changes(membership, 1)
    assert isinstance(joined, Joined)
    assert joined.worker not in before
    assert joined.n_threads == 1
    assert membership.workers == own_client.nthreads()
    membership.close()


def test_two_runs_hear_each_for_itself(own_client: Client) -> None:
    """One run that polls or closes takes nothing from the other."""
    first, second = listen(own_client, "first"), listen(own_client, "second")
    gone, later, _ = sorted(first.workers)
    close_worker(own_client, gone)
    assert changes(first, 1) == changes(second, 1) == [Lost(gone)]
    first.close()
    close_worker(own_client, later)
    assert changes(second, 1) == [Lost(later)]
    assert first.poll() == []
    second.close()


def test_nothing_stays_on_the_scheduler(own_client: Client) -> None:
    """After it is closed, its plugin is gone, and its topic has no subscriber."""
    membership = listen(own_client, "the-topic")
    scheduler = own_client.cluster.scheduler
    assert "the-topic" in scheduler.plugins
    membership.close()
    assert "the-topic" not in scheduler.plugins
    # Unsubscribing is a message without an answer.
    eventually(lambda: not scheduler._broker._topics["the-topic"].subscribers)


def test_close_after_the_client_is_harmless(own_client: Client) -> None:
    """A client that is closed already has nothing to be unsubscribed from."""
    client = Client(own_client.scheduler.address, set_as_default=False)
    membership = Membership(client, "closed-client")
    client.close()
    membership.close()


def test_waiting_ends_when_a_worker_comes(own_client: Client) -> None:
    """With a worker there is nothing to wait for; without one, the next one that comes is taken note of."""
    membership = listen(own_client, "waiting")
    wait_for_a_worker(own_client, membership)
    assert len(membership.workers) == 3
    for worker in list(membership.workers):
        close_worker(own_client, worker)
    changes(membership, 3)
    assert membership.workers == {}
    own_client.cluster.scale(4)
    wait_for_a_worker(own_client, membership)
    eventually(lambda: bool(membership.poll() or membership.workers))
    assert len(membership.workers) >= 1
    membership.close()


def test_waiting_for_a_worker_has_a_limit(own_client: Client) -> None:
    """When none comes back, it is an error that says how long was waited."""
    membership = listen(own_client, "none-comes")
    for worker in list(membership.workers):
        close_worker(own_client, worker)
    changes(membership, 3)
    began = time.monotonic()
    with (
        limited_by(Limits(start_seconds=0.2)),
        pytest.raises(NoWorkersError, match=r"no worker came back within 0\.2 seconds"),
    ):
        wait_for_a_worker(own_client, membership)
    assert time.monotonic() - began < 5
    membership.close()


def test_change_is_told_before_it_is_polled(own_client: Client) -> None:
    """Whoever waits on the event loop hears at once, and the poll tells of it as well."""
    membership = listen(own_client, "at-once")
    told: list[object] = []
    membership.on_change = told.append
    gone = min(membership.workers)
    close_worker(own_client, gone)
    eventually(lambda: told == [Lost(gone)])
    assert membership.poll() == [Lost(gone)]
    membership.close()


def test_frozen_worker_is_lost_and_comes_back() -> None:
    """It is told of within a few seconds, is not used although the scheduler has it, and joins when it goes on."""
    with processes(2) as client, limited_by(Limits(frozen_seconds=0.5)):
        membership = Membership(client, "frozen")
        victim = min(membership.workers)
        heard: list[object] = []

        def has_heard(n: int) -> bool:
            heard.extend(membership.poll())
            return len(heard) >= n

        with frozen(client, victim):
            eventually(lambda: has_heard(1), 30)
            assert heard == [Lost(victim, is_silent=True)]
            membership.refresh()
            assert victim not in membership.workers
            assert victim in client.nthreads()
        eventually(lambda: has_heard(2), 30)
        assert heard[1:] == [Joined(victim, 1)]
        assert victim in membership.workers
        membership.close()


def test_given_up_worker_joins_when_it_is_heard(own_client: Client) -> None:
    """The run does without it at once; the scheduler hears of it still, and says so."""
    membership = listen(own_client, "given-up")
    victim = min(membership.workers)
    told: list[object] = []
    membership.on_change = told.append
    membership.give_up(victim)
    assert told == [Lost(victim, is_silent=True)]
    heard = changes(membership, 2)
    assert heard == [Lost(victim, is_silent=True), Joined(victim, 1)]
    membership.close()
