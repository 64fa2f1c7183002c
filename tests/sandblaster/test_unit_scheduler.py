"""Leases of units: every unit is done once and counted once, whatever replicas do; and who is given what."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_belief.binary_tree import Node
from dask_belief.sandblaster.unit_scheduler import Lease, UnitScheduler, should_copy

EXAMPLES = settings(derandomize=True, deadline=None, max_examples=150)


def losses_of(lease: Lease, n_units: int) -> np.ndarray:
    """A loss a unit that tells unit and evaluation."""
    return np.array([1000.0 * lease.evaluation + unit for unit in lease.node.leaves(n_units)])


def finish(scheduler: UnitScheduler, replica: str, lease: Lease, now: float) -> bool:
    return scheduler.finish(replica, lease, losses_of(lease, scheduler.n_units), now)


def run_alone(scheduler: UnitScheduler, replica: str, now: float = 0.0, seconds: float = 1.0) -> list[Node]:
    """One replica takes and finishes leases until there are none for it."""
    nodes = []
    while (lease := scheduler.next_lease(replica, now)) is not None:
        now += seconds * len(lease.node.leaves(scheduler.n_units))
        assert finish(scheduler, replica, lease, now)
        nodes.append(lease.node)
    return nodes


def run_in_turns(scheduler: UnitScheduler, replicas: list[str], now: float = 0.0) -> dict[str, list[Node]]:
    """Replicas of one speed: each finishes one lease, then the next one's turn."""
    nodes: dict[str, list[Node]] = {replica: [] for replica in replicas}
    while not scheduler.is_complete:
        for replica in replicas:
            lease = scheduler.next_lease(replica, now)
            now += 1.0
            if lease is not None:
                finish(scheduler, replica, lease, now)
                nodes[replica].append(lease.node)
    return nodes


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, int, list[tuple[str, int]]]:
    """Units, largest level, and what happens: which of five replicas does what, in any order."""
    n_units, max_level = draw(st.integers(1, 40)), draw(st.integers(0, 5))
    what = st.sampled_from(["take", "take", "finish", "finish", "finish again", "leave", "join", "late", "begin"])
    return n_units, max_level, draw(st.lists(st.tuples(what, st.integers(0, 4)), max_size=60))


@EXAMPLES
@given(histories())
def test_evaluation_ends_with_every_unit_once(history: tuple[int, int, list[tuple[str, int]]]) -> None:
    """Whatever is lost, joins, is finished twice or too late: one replica that is left ends the evaluation."""
    n_units, max_level, events = history
    scheduler = UnitScheduler(n_units, max_level)
    evaluation, now = 1, 0.0
    scheduler.begin(evaluation)
    held: dict[str, list[Lease]] = {f"r{number}": [] for number in range(5)}
    done: list[tuple[str, Lease]] = []
    lost: list[tuple[str, Lease]] = []
    finished: set[int] = set()
    for what, number in events:
        now += 1.0
        replica = f"r{number}"
        if what == "take":
            lease = scheduler.next_lease(replica, now)
            if lease is not None:
                units = set(lease.node.leaves(n_units))
                assert lease.evaluation == evaluation
                assert units
                assert lease.node.level <= max_level
                assert not units <= finished
                held[replica].append(lease)
        elif what == "finish" and held[replica]:
            lease = held[replica].pop(0)
            units = set(lease.node.leaves(n_units))
            is_news = lease.evaluation == evaluation and not units <= finished
            assert finish(scheduler, replica, lease, now) == is_news
            done.append((replica, lease))
            if is_news:
                finished |= units
        elif what == "finish again" and done:
            finish(scheduler, *done[number % len(done)], now)
        elif what == "leave":
            scheduler.leave(replica)
            lost += [(replica, lease) for lease in held[replica]]
            held[replica] = []
        elif what == "late" and lost:
            replica, lease = lost.pop()
            if finish(scheduler, replica, lease, now):
                finished |= set(lease.node.leaves(n_units))
        elif what == "join":
            scheduler.join(replica)
        elif what == "begin" and scheduler.is_complete:
            evaluation += 1
            scheduler.begin(evaluation)
            finished = set()
        assert scheduler.n_done == len(finished)
        assert scheduler.is_complete == (len(finished) == n_units)
    for replica in held:
        scheduler.leave(replica)
    run_alone(scheduler, "the last", now)
    assert scheduler.is_complete
    assert scheduler.next_lease("the last", now + 1e6) is None
    np.testing.assert_array_equal(scheduler.losses, 1000.0 * evaluation + np.arange(n_units))


@EXAMPLES
@given(st.integers(1, 60), st.integers(0, 6), st.integers(1, 6))
def test_leases_do_not_overlap(n_units: int, max_level: int, n_replicas: int) -> None:
    """Without losses and copies each unit is leased once."""
    scheduler = UnitScheduler(n_units, max_level)
    replicas = [f"r{number}" for number in range(n_replicas)]
    for replica in replicas:
        scheduler.join(replica)
    for evaluation in (1, 2):
        scheduler.begin(evaluation)
        nodes = [node for of_replica in run_in_turns(scheduler, replicas).values() for node in of_replica]
        assert sorted(unit for node in nodes for unit in node.leaves(n_units)) == list(range(n_units))
    assert scheduler.n_copies == 0


@EXAMPLES
@given(st.integers(1, 60), st.integers(0, 6), st.integers(1, 6))
def test_replica_is_given_its_own_units_first(n_units: int, max_level: int, n_replicas: int) -> None:
    """From the second evaluation on, nobody gets another's unit while one of its own is left."""
    scheduler = UnitScheduler(n_units, max_level)
    replicas = [f"r{number}" for number in range(n_replicas)]
    for replica in replicas:
        scheduler.join(replica)
    scheduler.begin(1)
    had = {
        replica: {unit for node in nodes for unit in node.leaves(n_units)}
        for replica, nodes in run_in_turns(scheduler, replicas).items()
    }
    scheduler.begin(2)
    left = set(range(n_units))
    now = 0.0
    while not scheduler.is_complete:
        for replica in reversed(replicas):
            lease = scheduler.next_lease(replica, now)
            now += 1.0
            if lease is None:
                continue
            units = set(lease.node.leaves(n_units))
            own = had[replica] & left
            assert not own or units <= own
            # In sequence, as its disk and its cache like it.
            assert not own or min(units) == min(own)
            left -= units
            finish(scheduler, replica, lease, now)


def test_units_are_shared_in_equal_runs_at_first() -> None:
    """In the first evaluation each of the replicas that are there begins at its own run of units."""
    scheduler = UnitScheduler(32, 0)
    for replica in "abcd":
        scheduler.join(replica)
    scheduler.begin(1)
    assert [scheduler.next_lease(replica, 0.0) for replica in "abcd"] == [
        Lease(1, Node(0, first)) for first in (0, 8, 16, 24)
    ]


def test_units_of_a_lost_replica_go_to_those_that_are_left() -> None:
    """In the next evaluation they are shared out again."""
    scheduler = UnitScheduler(8, 0)
    for replica in "ab":
        scheduler.join(replica)
    scheduler.begin(1)
    run_in_turns(scheduler, ["a", "b"])
    scheduler.leave("b")
    scheduler.begin(2)
    assert run_alone(scheduler, "a") == [Node(0, unit) for unit in range(8)]


def test_idle_replica_helps_the_one_with_most_left_from_the_end() -> None:
    """It takes what the owner would come to last."""
    scheduler = UnitScheduler(12, 0)
    for replica in "abc":
        scheduler.join(replica)
    scheduler.begin(1)
    for _ in range(4):
        lease = scheduler.next_lease("a", 0.0)
        assert lease is not None
        finish(scheduler, "a", lease, 0.1)
    scheduler.next_lease("b", 0.2)
    # b has three units left unleased, c has four.
    assert scheduler.next_lease("a", 0.2) == Lease(1, Node(0, 11))


def test_leases_are_long_first_and_short_at_the_end() -> None:
    """Half of an equal share of what is left, never above the largest level."""
    scheduler = UnitScheduler(64, 3)
    for replica in "ab":
        scheduler.join(replica)
    scheduler.begin(1)
    nodes = run_in_turns(scheduler, ["a", "b"])
    levels = [node.level for node in nodes["a"]]
    assert levels[0] == 3
    assert levels[-1] == 0
    assert levels == sorted(levels, reverse=True)


def test_new_replica_takes_part_at_once() -> None:
    """One that asks in the middle of an evaluation gets work."""
    scheduler = UnitScheduler(8, 0)
    scheduler.join("a")
    scheduler.begin(1)
    scheduler.next_lease("a", 0.0)
    assert scheduler.next_lease("new", 0.0) == Lease(1, Node(0, 7))


def test_units_of_a_lost_lease_are_leased_again() -> None:
    """All of them, and no others; what it finished stays done."""
    scheduler = UnitScheduler(4, 1)
    for replica in "ab":
        scheduler.join(replica)
    scheduler.begin(1)
    first = scheduler.next_lease("a", 0.0)
    second = scheduler.next_lease("a", 0.0)
    assert first is not None
    assert second is not None
    finish(scheduler, "a", first, 1.0)
    scheduler.leave("a")
    units = [unit for node in run_alone(scheduler, "b") for unit in node.leaves(4)]
    assert sorted(units) == sorted(set(range(4)) - set(first.node.leaves(4)))


def test_lease_that_is_out_twice_survives_the_loss_of_one_holder() -> None:
    """A copy still counts as out when the original's holder leaves."""
    scheduler = UnitScheduler(2, 0)
    scheduler.begin(1)
    quick = scheduler.next_lease("quick", 0.0)
    slow = scheduler.next_lease("slow", 0.0)
    assert quick is not None
    assert slow is not None
    finish(scheduler, "quick", quick, 1.0)
    assert scheduler.next_lease("quick", 100.0) == slow
    scheduler.leave("slow")
    assert scheduler.next_lease("third", 100.1) is None
    assert finish(scheduler, "quick", slow, 101.0)
    assert scheduler.is_complete


def test_slow_lease_is_copied_once_to_another() -> None:
    """When no unit is unleased, after three times what a unit takes; not to its holder, and not twice."""
    scheduler = UnitScheduler(2, 0)
    scheduler.begin(1)
    quick = scheduler.next_lease("quick", 0.0)
    slow = scheduler.next_lease("slow", 0.0)
    assert quick is not None
    assert slow is not None
    finish(scheduler, "quick", quick, 1.0)
    assert scheduler.next_lease("quick", 2.9) is None
    assert scheduler.next_lease("slow", 3.1) is None
    assert scheduler.next_lease("quick", 3.1) == slow
    assert scheduler.next_lease("third", 3.2) is None
    assert scheduler.n_copies == 1
    # Either may be first; the other's result has the same bits.
    assert finish(scheduler, "slow", slow, 4.0)
    assert scheduler.is_complete
    assert not finish(scheduler, "quick", slow, 4.1)
    assert scheduler.n_done == 2


def test_late_report_does_not_disturb_the_same_lease_of_the_next_evaluation() -> None:
    """A replica often has the same node again: its report of the evaluation before leaves the new lease out."""
    scheduler = UnitScheduler(2, 0)
    for replica in "ab":
        scheduler.join(replica)
    for evaluation in (1, 2):
        scheduler.begin(evaluation)
        of_a, of_b = scheduler.next_lease("a", 0.0), scheduler.next_lease("b", 0.0)
        assert of_a is not None
        assert of_b is not None
        if evaluation == 1:
            finish(scheduler, "a", of_a, 1.0)
            finish(scheduler, "b", of_b, 1.0)
    assert not finish(scheduler, "b", Lease(1, of_b.node), 1.0)
    finish(scheduler, "a", of_a, 1.0)
    # b is slow now: its lease must still be known as out since 0, or nobody would ever help.
    assert scheduler.next_lease("a", 100.0) == of_b


def test_nothing_is_leased_before_the_first_evaluation() -> None:
    """A replica that comes early waits."""
    scheduler = UnitScheduler(4, 2)
    assert scheduler.next_lease("a", 0.0) is None
    assert scheduler.evaluation == -1


def test_losses_are_a_copy() -> None:
    """Nobody changes the scheduler's own."""
    scheduler = UnitScheduler(1, 0)
    scheduler.begin(1)
    run_alone(scheduler, "a")
    scheduler.losses[:] = -1
    assert scheduler.losses[0] == 1000.0


def test_second_report_of_a_unit_changes_nothing() -> None:
    """Of a lease that was done in parts by others, the units that were not done yet count."""
    scheduler = UnitScheduler(2, 1)
    scheduler.begin(1)
    whole = scheduler.next_lease("a", 0.0)
    assert whole is not None
    assert scheduler.finish("b", Lease(1, Node(0, 0)), np.array([7.0]), 1.0)
    assert not scheduler.finish("b", Lease(1, Node(0, 0)), np.array([8.0]), 1.0)
    assert scheduler.finish("a", Lease(1, Node(1, 0)), np.array([9.0, 9.0]), 2.0)
    np.testing.assert_array_equal(scheduler.losses, [7.0, 9.0])
    assert scheduler.is_complete


def test_leases_of_quick_units_are_not_too_short() -> None:
    """Where a unit takes less than asking for it, leases stay longer near the end, up to a fair share."""
    scheduler = UnitScheduler(64, 6)
    for replica in "ab":
        scheduler.join(replica)
    scheduler.begin(1)
    run_alone(scheduler, "a", seconds=0.001)
    scheduler.begin(2)
    sizes = [len(node.leaves(64)) for node in run_alone(scheduler, "a", seconds=0.001)]
    assert sum(sizes) == 64
    slow = UnitScheduler(64, 6)
    for replica in "ab":
        slow.join(replica)
    slow.begin(1)
    run_alone(slow, "a", seconds=1.0)
    slow.begin(2)
    assert len(sizes) < len(run_alone(slow, "a", seconds=1.0))


@pytest.mark.parametrize(
    ("age_seconds", "n_units", "unit_seconds", "expected"),
    [
        (1e9, 1, None, False),
        (0.2, 1, 0.01, False),
        (0.26, 1, 0.01, True),
        (29.0, 10, 1.0, False),
        (31.0, 10, 1.0, True),
    ],
)
def test_what_counts_as_slow(age_seconds: float, n_units: int, unit_seconds: float | None, expected: bool) -> None:
    """More than three times what its units take and than a quarter of a second; nothing before a unit is known."""
    assert should_copy(age_seconds, n_units, unit_seconds) is expected
