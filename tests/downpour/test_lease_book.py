"""The book of leases: every lease once an epoch, in an order that depends on seed and epoch alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_belief.downpour.lease_book import BookState, LeaseBook, RowLease
from dask_belief.parameter_server.messages import Finished, LeaseKey

EXAMPLES = settings(derandomize=True, deadline=None, max_examples=150)
SEED = 41
STEPS, ROWS = 3, 30
NOW = 0.0
"""The clock decides nothing, except where a test says so."""


def finished_of(*keys: LeaseKey) -> Finished:
    return Finished(0, frozenset(keys))


def take_all(book: LeaseBook, replica: str = "a") -> list[LeaseKey]:
    """One replica takes and finishes leases until there are none for it."""
    keys = []
    while (lease := book.next_lease(replica, NOW)) is not None:
        assert book.finish(lease.key, STEPS, ROWS)
        keys.append(lease.key)
    return keys


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, int, int, list[tuple[str, int]]]:
    """Leases, epochs, warm start, and what happens: which of four replicas does what."""
    what = st.sampled_from(["take", "take", "finish", "finish", "again", "leave", "join", "late"])
    events = draw(st.lists(st.tuples(what, st.integers(0, 3)), max_size=60))
    return draw(st.integers(1, 8)), draw(st.integers(1, 3)), draw(st.integers(0, 3 * STEPS)), events


@EXAMPLES
@given(histories())
def test_every_lease_is_finished_once_an_epoch(history: tuple[int, int, int, list[tuple[str, int]]]) -> None:
    """Whatever leaves, joins and reports twice or late: one replica that is left ends the run, and counts are exact."""
    n_leases, epochs, warm_start_steps, events = history
    book = LeaseBook(n_leases, epochs, SEED, warm_start_steps)
    held: dict[str, list[LeaseKey]] = {f"r{number}": [] for number in range(4)}
    lost: list[LeaseKey] = []
    finished: list[LeaseKey] = []
    for what, number in events:
        replica = f"r{number}"
        if what == "take":
            lease = book.next_lease(replica, NOW)
            if lease is not None:
                assert lease.key not in finished
                assert lease.key not in [key for keys in held.values() for key in keys]
                held[replica].append(lease.key)
        elif what == "finish" and held[replica]:
            key = held[replica].pop(0)
            assert book.finish(key, STEPS, ROWS) == (key not in finished)
            if key not in finished:
                finished.append(key)
        elif what == "again" and finished:
            assert not book.finish(finished[number % len(finished)], STEPS, ROWS)
        elif what == "leave":
            book.leave(replica)
            lost += held[replica]
            held[replica] = []
        elif what == "late" and lost:
            key = lost.pop()
            assert book.finish(key, STEPS, ROWS) == (key not in finished)
            if key not in finished:
                finished.append(key)
        elif what == "join":
            book.join(replica)
        assert (book.n_finished, book.steps, book.rows) == (
            len(finished),
            STEPS * len(finished),
            ROWS * len(finished),
        )
    for replica in held:
        book.leave(replica)
    finished += take_all(book, "the last")
    assert sorted(finished) == [LeaseKey(epoch, lease) for epoch in range(epochs) for lease in range(n_leases)]
    assert book.is_over


def test_order_depends_on_seed_and_epoch_alone() -> None:
    """Two books agree whoever takes what; another seed, and another epoch, gives another order."""
    one = take_all(LeaseBook(20, 2, SEED))
    book, other = LeaseBook(20, 2, SEED), []
    for turn in range(40):
        lease = book.next_lease(f"r{turn % 3}", NOW)
        assert lease is not None
        other.append(lease.key)
    assert one == other
    orders = [[key.lease for key in one if key.epoch == epoch] for epoch in range(2)]
    assert [sorted(order) for order in orders] == [list(range(20))] * 2
    assert orders[0] != orders[1]
    assert take_all(LeaseBook(20, 2, SEED + 1)) != one
    assert take_all(LeaseBook(20, 1, SEED)) == one[:20]


def test_next_epoch_begins_without_a_barrier() -> None:
    """When none of this epoch's leases is left, the next epoch's go out although some are not finished."""
    book = LeaseBook(2, 2, SEED)
    keys = []
    for _ in range(4):
        lease = book.next_lease("a", NOW)
        assert lease is not None
        keys.append(lease.key)
    assert [key.epoch for key in keys] == [0, 0, 1, 1]
    assert book.next_lease("a", NOW) is None
    assert not book.is_over


def test_lease_of_a_lost_replica_goes_first_and_is_marked() -> None:
    """Ahead of the rest, once, as one on which another may have trained."""
    book = LeaseBook(5, 1, SEED)
    lost, kept = book.next_lease("a", NOW), book.next_lease("b", NOW)
    assert lost is not None
    assert kept is not None
    assert not lost.is_taken_over
    book.leave("a")
    assert book.next_lease("b", NOW) == RowLease(lost.key, is_taken_over=True)
    following = book.next_lease("c", NOW)
    assert following is not None
    assert following.key not in (lost.key, kept.key)
    assert not following.is_taken_over


def test_late_report_of_a_lost_replica_counts_once() -> None:
    """If it comes before the lease went to another, nobody does it again; if after, the second report is dropped."""
    book = LeaseBook(2, 1, SEED)
    first, second = book.next_lease("a", NOW), book.next_lease("a", NOW)
    assert first is not None
    assert second is not None
    book.leave("a")
    assert book.finish(first.key, STEPS, ROWS)
    taken_over = book.next_lease("b", NOW)
    assert taken_over is not None
    assert taken_over.key == second.key
    assert book.finish(second.key, STEPS, ROWS)
    assert not book.finish(taken_over.key, STEPS, ROWS)
    assert book.is_over
    book.leave("b")
    assert book.next_lease("c", NOW) is None


@pytest.mark.parametrize("warm_start_steps", [1, STEPS, STEPS + 1])
def test_warm_start_is_for_the_first_replica(warm_start_steps: int) -> None:
    """Until its steps are done, in whole leases, the others get nothing."""
    book = LeaseBook(10, 1, SEED, warm_start_steps)
    book.join("first")
    n_leases = 0
    while book.next_lease("second", NOW) is None:
        lease = book.next_lease("first", NOW)
        assert lease is not None
        book.finish(lease.key, STEPS, ROWS)
        n_leases += 1
    assert n_leases == -(-warm_start_steps // STEPS)


def test_warm_start_goes_on_with_another_when_the_first_is_lost() -> None:
    """The next in line takes over, its lease included."""
    book = LeaseBook(10, 1, SEED, warm_start_steps=100)
    for replica in "abc":
        book.join(replica)
    lost = book.next_lease("a", NOW)
    assert lost is not None
    book.leave("a")
    assert book.next_lease("c", NOW) is None
    assert book.next_lease("b", NOW) == RowLease(lost.key, is_taken_over=True)


@EXAMPLES
@given(st.integers(1, 8), st.integers(1, 3), st.integers(0, 24), st.integers(0, 3))
def test_saved_book_goes_on_exactly(n_leases: int, epochs: int, n_done: int, n_open: int) -> None:
    """A book made from a saved state gives what the old one had not finished, in the order of the seed, and ends."""
    old = LeaseBook(n_leases, epochs, SEED)
    done: list[LeaseKey] = []
    while len(done) < n_done and (lease := old.next_lease("a", NOW)) is not None:
        old.finish(lease.key, STEPS, ROWS)
        done.append(lease.key)
    for _ in range(n_open):
        old.next_lease("b", NOW)
    new = LeaseBook(n_leases, epochs, SEED, state=old.state())
    assert (new.n_finished, new.steps, new.rows) == (len(done), STEPS * len(done), ROWS * len(done))
    everything = take_all(LeaseBook(n_leases, epochs, SEED))
    first = new.next_lease("c", NOW)
    assert first is None or first.is_taken_over
    rest = [] if first is None else [first.key]
    if first is not None:
        new.finish(first.key, STEPS, ROWS)
    rest += take_all(new, "c")
    assert rest == everything[len(done) :]
    assert new.is_over


def test_warm_start_is_not_made_again() -> None:
    """Steps count from the saved state on."""
    book = LeaseBook(
        10, 1, SEED, warm_start_steps=6, state=BookState(finished_of(LeaseKey(0, 0), LeaseKey(0, 1)), 6, 60)
    )
    book.join("first")
    assert book.next_lease("second", NOW) is not None


def test_state_takes_plain_tuples() -> None:
    """Keys are plain tuples after some serialisers."""
    plain: Any = (0, 3)
    book = LeaseBook(4, 2, SEED, state=BookState(finished_of(plain), 3, 30))
    assert LeaseKey(0, 3) not in take_all(book)
    assert book.n_finished == 8


def test_state_stays_small() -> None:
    """Whole epochs are told by their number: what is listed are leases of the epochs that are not whole."""
    book = LeaseBook(3, 4, SEED)
    keys = []
    for _ in range(8):
        lease = book.next_lease("a", NOW)
        assert lease is not None
        keys.append(lease.key)
    for key in (*keys[:3], *keys[4:]):
        book.finish(key, STEPS, ROWS)
    assert book.state().finished == Finished(1, frozenset(keys[4:]))
    book.finish(keys[3], STEPS, ROWS)
    assert book.state().finished == Finished(2, frozenset(keys[6:]))


def test_warm_start_in_seconds_ends_by_the_clock() -> None:
    """It begins with the first lease; whoever waits is told when to look again, and once released stays so."""
    book = LeaseBook(10, 1, SEED, warm_start_seconds=5.0)
    for replica in "ab":
        book.join(replica)
    assert book.warm_start_ends_at == math.inf
    assert book.next_lease("b", 90.0) is None
    assert book.next_lease("a", 91.0) is not None
    assert book.warm_start_ends_at == 95.0
    assert book.next_lease("b", 94.9) is None
    assert book.next_lease("a", 94.9) is not None
    assert book.next_lease("b", 95.0) is not None
    assert book.warm_start_ends_at == math.inf


def test_warm_start_by_steps_and_seconds_ends_with_the_later() -> None:
    """Both must have passed; while steps are missing the clock tells nothing."""
    book = LeaseBook(10, 1, SEED, warm_start_steps=1, warm_start_seconds=5.0)
    lease = book.next_lease("a", 0.0)
    assert lease is not None
    assert book.next_lease("b", 9.0) is None
    assert book.warm_start_ends_at == math.inf
    book.finish(lease.key, STEPS, ROWS)
    assert book.warm_start_ends_at == 5.0
    assert book.next_lease("b", 9.0) is not None


def test_those_at_work_hold_a_lease() -> None:
    """From its lease to the report, whoever reports, or to its loss."""
    book = LeaseBook(3, 1, SEED)
    first, second = book.next_lease("a", NOW), book.next_lease("b", NOW)
    assert first is not None
    assert second is not None
    assert book.at_work == {"a", "b"}
    book.finish(first.key, STEPS, ROWS)
    assert book.at_work == {"b"}
    book.leave("b")
    assert book.at_work == set()
    book.next_lease("c", NOW)
    book.finish(second.key, STEPS, ROWS)
    assert book.at_work == set()
