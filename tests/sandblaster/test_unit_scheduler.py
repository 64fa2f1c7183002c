"""Leases of units: every unit is done once and counted once, whatever replicas do; and who is given what."""

from __future__ import annotations

import heapq
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_belief.binary_tree import Node
from dask_belief.sandblaster.backups import MOST_HOLDERS, BackupCounts
from dask_belief.sandblaster.unit_scheduler import Lease, UnitScheduler

EXAMPLES = settings(derandomize=True, deadline=None, max_examples=150)


def losses_of(lease: Lease, n_units: int) -> np.ndarray:
    """A loss a unit that tells unit and evaluation."""
    return np.array([1000.0 * lease.evaluation + unit for unit in lease.node.leaves(n_units)])


def leaves(lease: Lease, n_units: int) -> set[int]:
    return set(lease.node.leaves(n_units))


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


def simulate(
    scheduler: UnitScheduler, unit_seconds: dict[str, float], evaluation: int, silent: set[str] | None = None
) -> float:
    """One evaluation by a virtual clock; silent replicas take a lease and are never heard of again.

    Gives how long it took. Who is idle asks again when something was reported, or when a lease may be late.
    """
    silent = silent or set()
    began = now = 1000.0 * evaluation
    for replica in unit_seconds:
        scheduler.join(replica)
    scheduler.begin(evaluation, now)
    idle = list(unit_seconds)
    ends: list[tuple[float, str, Lease]] = []
    while not scheduler.is_complete:
        for replica in list(idle):
            if (lease := scheduler.next_lease(replica, now)) is not None:
                idle.remove(replica)
                if replica not in silent:
                    seconds = unit_seconds[replica] * len(lease.node.leaves(scheduler.n_units))
                    heapq.heappush(ends, (now + seconds, replica, lease))
        look = scheduler.next_look
        if idle and look < (ends[0][0] if ends else math.inf):
            now = max(now, look)
            continue
        now, replica, lease = heapq.heappop(ends)
        finish(scheduler, replica, lease, now)
        idle.append(replica)
        # What is no longer wanted is broken off.
        for unwanted in [entry for entry in ends if not scheduler.is_wanted(entry[2])]:
            ends.remove(unwanted)
            scheduler.give_up(unwanted[1], unwanted[2], now)
            idle.append(unwanted[1])
    for _, replica, lease in ends:
        scheduler.give_up(replica, lease, now)
    return now - began


def run_alone_own(scheduler: UnitScheduler, replica: str, n_own: int) -> list[Node]:
    """One replica takes and finishes leases of its own units, which are so many."""
    nodes: list[Node] = []
    while sum(len(node.leaves(scheduler.n_units)) for node in nodes) < n_own:
        lease = scheduler.next_lease(replica, 2.0)
        assert lease is not None
        finish(scheduler, replica, lease, 3.0)
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


BACKUPS = st.sampled_from([None, 0.0, 1.5])


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, int, list[tuple[str, int]]]:
    """Units, largest level, and what happens: which of five replicas does what, in any order."""
    n_units, max_level = draw(st.integers(1, 40)), draw(st.integers(0, 5))
    what = st.sampled_from(
        ["take", "take", "finish", "finish", "give up", "finish again", "leave", "join", "late", "begin"]
    )
    return n_units, max_level, draw(st.lists(st.tuples(what, st.integers(0, 4)), max_size=60))


@EXAMPLES
@given(histories(), BACKUPS)
def test_evaluation_ends_with_every_unit_once(
    history: tuple[int, int, list[tuple[str, int]]], backup_after: float | None
) -> None:
    """Whatever is lost, joins, is given up, is finished twice or too late: one that is left ends the evaluation.

    On the way: who asks is given a unit that waits, if there is one; copies are of units that others have, bounded,
    and counted; what is wanted is what is not done.
    """
    n_units, max_level, events = history
    scheduler = UnitScheduler(n_units, max_level, backup_after)
    evaluation, now, n_copies = 1, 0.0, 0
    scheduler.begin(evaluation, now)
    held: dict[str, list[Lease]] = {f"r{number}": [] for number in range(5)}
    done: list[tuple[str, Lease]] = []
    lost: list[tuple[str, Lease]] = []
    finished: set[int] = set()

    def units_at(replica: str) -> set[int]:
        return {unit for lease in held[replica] if lease.evaluation == evaluation for unit in leaves(lease, n_units)}

    for what, number in events:
        now += 1.0
        replica = f"r{number}"
        if what == "take":
            out = set().union(*map(units_at, held))
            waiting = set(range(n_units)) - finished - out
            lease = scheduler.next_lease(replica, now)
            assert lease is not None or not waiting
            if lease is not None:
                units = leaves(lease, n_units)
                assert lease.evaluation == evaluation
                assert units
                assert lease.node.level <= max_level
                assert units <= waiting if waiting else units <= out - finished - units_at(replica)
                n_copies += not waiting
                held[replica].append(lease)
            for unit in set(range(n_units)) - finished:
                assert sum(unit in units_at(one) for one in held) <= MOST_HOLDERS
        elif what == "finish" and held[replica]:
            lease = held[replica].pop(0)
            units = leaves(lease, n_units)
            is_news = lease.evaluation == evaluation and not units <= finished
            assert finish(scheduler, replica, lease, now) == is_news
            done.append((replica, lease))
            if is_news:
                finished |= units
        elif what == "give up" and held[replica]:
            scheduler.give_up(replica, held[replica].pop(), now)
        elif what == "finish again" and done:
            finish(scheduler, *done[number % len(done)], now)
        elif what == "leave":
            scheduler.leave(replica)
            lost += [(replica, lease) for lease in held[replica]]
            held[replica] = []
        elif what == "late" and lost:
            replica, lease = lost.pop()
            if finish(scheduler, replica, lease, now):
                finished |= leaves(lease, n_units)
        elif what == "join":
            scheduler.join(replica)
        elif what == "begin" and scheduler.is_complete:
            evaluation += 1
            scheduler.begin(evaluation, now)
            finished = set()
        assert scheduler.n_done == len(finished)
        assert scheduler.is_complete == (len(finished) == n_units)
        for lease in [lease for leases in held.values() for lease in leases]:
            is_open = lease.evaluation == evaluation and not leaves(lease, n_units) <= finished
            assert scheduler.is_wanted(lease) == is_open
    backups = scheduler.backups
    assert backups.started == n_copies >= backups.won
    assert backups.wasted_seconds >= 0.0
    for replica in held:
        scheduler.leave(replica)
    run_alone(scheduler, "the last", now)
    assert scheduler.is_complete
    assert scheduler.next_lease("the last", now + 1e6) is None
    np.testing.assert_array_equal(scheduler.losses, 1000.0 * evaluation + np.arange(n_units))


@EXAMPLES
@given(st.integers(1, 60), st.integers(0, 6), st.lists(st.floats(0.1, 10.0), min_size=1, max_size=8), st.data())
def test_evaluation_ends_beside_replicas_that_say_nothing(
    n_units: int, max_level: int, unit_seconds: list[float], data: st.DataObject
) -> None:
    """A replica that hangs is not known as lost: copies alone end the evaluation, unless all holders of a unit hang."""
    scheduler = UnitScheduler(n_units, max_level)
    n_silent = data.draw(st.integers(0, min(MOST_HOLDERS, len(unit_seconds)) - 1))
    replicas = {f"r{number}": seconds for number, seconds in enumerate(unit_seconds)}
    for evaluation in (1, 2):
        simulate(scheduler, replicas, evaluation, silent=set(list(replicas)[:n_silent]))
        np.testing.assert_array_equal(scheduler.losses, 1000.0 * evaluation + np.arange(n_units))


@EXAMPLES
@given(st.integers(50, 200), st.lists(st.floats(0.5, 10.0), min_size=2, max_size=6))
def test_replicas_of_any_speed_end_together(n_units: int, unit_seconds: list[float]) -> None:
    """An evaluation takes little more than all of them together need: two units of the quickest or so."""
    scheduler = UnitScheduler(n_units, 6)
    replicas = {f"r{number}": seconds for number, seconds in enumerate(unit_seconds)}
    ideal = n_units / sum(1 / seconds for seconds in unit_seconds)
    for evaluation in (1, 2, 3):
        took = simulate(scheduler, replicas, evaluation)
        assert took <= 1.2 * ideal + 4 * min(unit_seconds)


def test_straggler_costs_little() -> None:
    """Of four replicas one is ten times slower: below 1.1 times the ideal, and without copies far above at first."""
    replicas = {"a": 1.0, "b": 1.0, "c": 1.0, "straggler": 10.0}
    ideal = 128 / 3.1
    with_copies, without = UnitScheduler(128, 6), UnitScheduler(128, 6, backup_after=None)
    times = [[simulate(scheduler, replicas, n) / ideal for n in (1, 2, 3)] for scheduler in (with_copies, without)]
    assert max(times[0]) < 1.1
    assert times[1][0] > 1.8
    # Once its speed is known, it is given less.
    assert times[1][1] < 1.5
    assert without.backups == BackupCounts()


@EXAMPLES
@given(st.integers(1, 60), st.integers(0, 6), st.integers(1, 6))
def test_leases_do_not_overlap(n_units: int, max_level: int, n_replicas: int) -> None:
    """Without losses and copies each unit is leased once."""
    scheduler = UnitScheduler(n_units, max_level, backup_after=None)
    replicas = [f"r{number}" for number in range(n_replicas)]
    for replica in replicas:
        scheduler.join(replica)
    for evaluation in (1, 2):
        scheduler.begin(evaluation, 0.0)
        nodes = [node for of_replica in run_in_turns(scheduler, replicas).values() for node in of_replica]
        assert sorted(unit for node in nodes for unit in node.leaves(n_units)) == list(range(n_units))


@EXAMPLES
@given(st.integers(1, 60), st.integers(0, 6), st.integers(1, 6))
def test_replica_is_given_its_own_units_first(n_units: int, max_level: int, n_replicas: int) -> None:
    """Nobody gets another's unit while one whose home it is is left."""
    scheduler = UnitScheduler(n_units, max_level)
    replicas = [f"r{number}" for number in range(n_replicas)]
    for replica in replicas:
        scheduler.join(replica)
    scheduler.begin(1, 0.0)
    run_in_turns(scheduler, replicas)
    scheduler.begin(2, 0.0)
    homes = [scheduler._by_number[number].name for number in scheduler._owner.tolist()]
    had = {replica: {unit for unit, home in enumerate(homes) if home == replica} for replica in replicas}
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
    scheduler.begin(1, 0.0)
    assert [scheduler.next_lease(replica, 0.0) for replica in "abcd"] == [
        Lease(1, Node(0, first)) for first in (0, 8, 16, 24)
    ]


def test_units_of_a_lost_replica_go_to_those_that_are_left() -> None:
    """In the next evaluation they are shared out again."""
    scheduler = UnitScheduler(8, 0)
    for replica in "ab":
        scheduler.join(replica)
    scheduler.begin(1, 0.0)
    run_in_turns(scheduler, ["a", "b"])
    scheduler.leave("b")
    scheduler.begin(2, 0.0)
    assert run_alone(scheduler, "a") == [Node(0, unit) for unit in range(8)]


def test_idle_replica_helps_the_one_with_most_left_from_the_end() -> None:
    """It takes what the owner would come to last."""
    scheduler = UnitScheduler(12, 0)
    for replica in "abc":
        scheduler.join(replica)
    scheduler.begin(1, 0.0)
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
    scheduler.begin(1, 0.0)
    nodes = run_in_turns(scheduler, ["a", "b"])
    levels = [node.level for node in nodes["a"]]
    assert levels[0] == 3
    assert levels[-1] == 0
    assert levels == sorted(levels, reverse=True)


def test_new_replica_takes_part_at_once() -> None:
    """One that asks in the middle of an evaluation gets work."""
    scheduler = UnitScheduler(8, 0)
    scheduler.join("a")
    scheduler.begin(1, 0.0)
    scheduler.next_lease("a", 0.0)
    assert scheduler.next_lease("new", 0.0) == Lease(1, Node(0, 7))


def test_units_of_a_lost_lease_are_leased_again() -> None:
    """All of them, and no others; what it finished stays done."""
    scheduler = UnitScheduler(4, 1)
    for replica in "ab":
        scheduler.join(replica)
    scheduler.begin(1, 0.0)
    first = scheduler.next_lease("a", 0.0)
    second = scheduler.next_lease("a", 0.0)
    assert first is not None
    assert second is not None
    finish(scheduler, "a", first, 1.0)
    scheduler.leave("a")
    units = [unit for node in run_alone(scheduler, "b") for unit in node.leaves(4)]
    assert sorted(units) == sorted(set(range(4)) - set(first.node.leaves(4)))


def two_with_a_slow_one(backup_after: float | None = 1.5) -> tuple[UnitScheduler, Lease]:
    """Two units at two replicas; the quick one has finished its own after a second. Gives the slow one's lease."""
    scheduler = UnitScheduler(2, 0, backup_after)
    scheduler.begin(1, 0.0)
    quick = scheduler.next_lease("quick", 0.0)
    slow = scheduler.next_lease("slow", 0.0)
    assert quick is not None
    assert slow is not None
    finish(scheduler, "quick", quick, 1.0)
    return scheduler, slow


def test_lease_that_is_out_twice_survives_the_loss_of_one_holder() -> None:
    """A copy still counts as out when the original's holder leaves."""
    scheduler, slow = two_with_a_slow_one()
    assert scheduler.next_lease("quick", 100.0) == slow
    scheduler.leave("slow")
    assert scheduler.next_lease("third", 100.1) is None
    assert finish(scheduler, "quick", slow, 101.0)
    assert scheduler.is_complete


def test_late_lease_is_copied_once_to_another() -> None:
    """When no unit is unleased, after 1.5 times what a unit takes; not to its holder, and not twice."""
    scheduler, slow = two_with_a_slow_one()
    assert scheduler.next_look == pytest.approx(1.55)
    assert scheduler.next_lease("quick", 1.5) is None
    assert scheduler.next_lease("slow", 1.6) is None
    assert scheduler.next_lease("quick", 1.6) == slow
    assert scheduler.next_lease("third", 1.7) is None
    assert scheduler.backups.started == 1
    # Either may be first; the other's result has the same bits.
    assert finish(scheduler, "slow", slow, 2.0)
    assert scheduler.is_complete
    assert not scheduler.is_wanted(slow)
    assert not finish(scheduler, "quick", slow, 2.1)
    assert scheduler.n_done == 2
    assert scheduler.backups == BackupCounts(started=1, won=0, wasted_seconds=pytest.approx(0.5))


def test_copy_that_wins_and_a_loser_that_is_told_to_stop() -> None:
    """What the loser spent is counted as wasted, and tells of its speed."""
    scheduler, slow = two_with_a_slow_one()
    assert scheduler.next_lease("quick", 2.0) == slow
    assert finish(scheduler, "quick", slow, 3.0)
    scheduler.give_up("slow", slow, 3.5)
    assert scheduler.backups == BackupCounts(started=1, won=1, wasted_seconds=pytest.approx(3.5))
    scheduler.give_up("slow", slow, 9.0)
    assert scheduler.backups.wasted_seconds == pytest.approx(3.5)


def test_late_copy_is_copied_once_more() -> None:
    """And the copy of the copy is the last."""
    scheduler, slow = two_with_a_slow_one()
    assert scheduler.next_lease("quick", 2.0) == slow
    assert scheduler.next_lease("third", 3.0) is None
    assert scheduler.next_lease("third", 4.0) == slow
    assert scheduler.next_lease("fourth", 1e6) is None
    scheduler.leave("third")
    assert scheduler.next_lease("fourth", 1e6) == slow


def test_lost_copy_is_made_again() -> None:
    """The lease that it was copied from is still late."""
    scheduler, slow = two_with_a_slow_one()
    assert scheduler.next_lease("quick", 2.0) == slow
    scheduler.leave("quick")
    assert scheduler.next_lease("third", 2.1) == slow


def test_lease_of_a_slow_replica_is_copied_before_it_is_late() -> None:
    """At its known speed it would end long after the one who asks."""
    scheduler, slow = two_with_a_slow_one()
    finish(scheduler, "slow", slow, 10.0)
    scheduler.begin(2, 10.0)
    slow_again = scheduler.next_lease("slow", 10.0)
    quick_again = scheduler.next_lease("quick", 10.0)
    assert slow_again is not None
    assert quick_again is not None
    finish(scheduler, "quick", quick_again, 11.0)
    assert scheduler.next_lease("quick", 11.0) == Lease(2, slow_again.node)


def test_backups_at_once() -> None:
    """With 0, whatever is out is copied as soon as a replica is idle, before any speed is known."""
    scheduler = UnitScheduler(1, 0, backup_after=0)
    scheduler.begin(1, 0.0)
    leases = [scheduler.next_lease(replica, 0.0) for replica in "abcd"]
    assert leases == [Lease(1, Node(0, 0))] * 3 + [None]


def test_idle_replicas_share_what_a_straggler_has() -> None:
    """Parts of its lease, none of them twice; of the lease, what is not done yet counts."""
    scheduler = UnitScheduler(16, 3, backup_after=15.0)
    for replica in "abcd":
        scheduler.join(replica)
    scheduler.begin(1, 0.0)
    straggler = Lease(1, Node(1, 0))
    assert scheduler.next_lease("a", 0.0) == straggler
    run_alone(scheduler, "b", 0.0, 0.5)
    assert scheduler.n_done == 14
    copies = [scheduler.next_lease(replica, 20.0) for replica in "bcd"]
    assert copies == [Lease(1, Node(0, 0)), Lease(1, Node(0, 1)), None]
    assert finish(scheduler, "b", copies[0], 21.0)
    assert scheduler.is_wanted(straggler)
    assert finish(scheduler, "a", straggler, 21.5)
    assert scheduler.is_complete
    # Half of what a did was done before, and c is not through.
    assert scheduler.backups == BackupCounts(started=2, won=1, wasted_seconds=pytest.approx(10.75))


def test_owners_of_scattered_units_are_given_runs_again() -> None:
    """As many units as each did, in the order of their homes: leases can be long again."""
    scheduler = UnitScheduler(64, 6)
    for replica in "abcd":
        scheduler.join(replica)
    scheduler.begin(1, 0.0)
    # Unit by unit in turns, but for a's first and c's last.
    owners = ["a"] * 12 + [*"abcd"] * 10 + ["c"] * 12
    for unit, replica in enumerate(owners):
        finish(scheduler, replica, Lease(1, Node(0, unit)), 1.0)
    scheduler.begin(2, 2.0)
    runs = {replica: run_alone_own(scheduler, replica, owners.count(replica)) for replica in "abcd"}
    units = [unit for nodes in runs.values() for node in nodes for unit in node.leaves(64)]
    assert sorted(units) == list(range(64))
    for replica, nodes in runs.items():
        own = [unit for node in nodes for unit in node.leaves(64)]
        assert own == list(range(own[0], own[0] + owners.count(replica)))
    assert [runs[replica][0].leaves(64).start for replica in "abcd"] == [0, 22, 32, 54]


def test_homes_stay_when_help_was_small() -> None:
    """What was done elsewhere once is given to its home again, where its data are."""
    scheduler = UnitScheduler(64, 6)
    for replica in "ab":
        scheduler.join(replica)
    scheduler.begin(1, 0.0)
    for unit in range(64):
        finish(scheduler, "a" if unit < 36 else "b", Lease(1, Node(0, unit)), 1.0)
    scheduler.begin(2, 2.0)
    of_b = scheduler.next_lease("b", 2.0)
    assert of_b is not None
    assert of_b.node.leaves(64).start == 32


def test_homes_change_when_help_was_large() -> None:
    """More than a tenth of all was done elsewhere: the next time it is not."""
    scheduler = UnitScheduler(64, 6)
    for replica in "ab":
        scheduler.join(replica)
    scheduler.begin(1, 0.0)
    for unit in range(64):
        finish(scheduler, "a" if unit < 48 else "b", Lease(1, Node(0, unit)), 1.0)
    scheduler.begin(2, 2.0)
    of_b = scheduler.next_lease("b", 2.0)
    assert of_b is not None
    assert of_b.node.leaves(64).start == 48


def test_messages_are_no_part_of_a_pace() -> None:
    """What a replica says counts where the clock says hardly more; a push that takes long is part of the work."""
    for late, expected in ((0.04, 0.1), (3.0, 3.1)):
        scheduler = UnitScheduler(1, 0)
        scheduler.begin(1, 0.0)
        lease = scheduler.next_lease("a", 0.0)
        assert lease is not None
        scheduler.finish("a", lease, losses_of(lease, 1), 0.1 + late, busy_seconds=0.1)
        assert scheduler._paces.unit_seconds("a") == pytest.approx(expected)


def test_replica_that_asks_ahead_is_not_called_late() -> None:
    """A lease begins when the one before it is finished."""
    scheduler = UnitScheduler(4, 0)
    simulate(scheduler, {"a": 1.0, "b": 1.0}, 1)
    scheduler.begin(2, 2000.0)
    first, ahead = scheduler.next_lease("a", 2000.0), scheduler.next_lease("a", 2000.0)
    assert first is not None
    assert ahead is not None
    for now in (2000.0, 2001.0):
        lease = scheduler.next_lease("b", now)
        assert lease is not None
        finish(scheduler, "b", lease, now + 1.0)
    finish(scheduler, "a", first, 2002.4)
    assert scheduler.next_lease("b", 2003.9) is None
    assert scheduler.next_lease("b", 2005.0) == ahead


def test_lease_asked_ahead_is_judged_by_what_the_one_before_took() -> None:
    """A replica that has become slow shows it with its first lease; the next is copied before it is late."""
    scheduler = UnitScheduler(16, 2)
    simulate(scheduler, {"a": 1.0, "b": 1.0}, 1)
    scheduler.begin(2, 2000.0)
    first, ahead = scheduler.next_lease("a", 2000.0), scheduler.next_lease("a", 2000.0)
    assert first is not None
    assert ahead is not None
    n_units = len(first.node.leaves(16))
    finish(scheduler, "a", first, 2000.0 + 20 * n_units)
    run_alone(scheduler, "b", 2000.0 + 20 * n_units, 1.0)
    assert scheduler.is_complete
    assert scheduler.backups.won > 0


def test_first_that_asks_is_not_given_half_of_all() -> None:
    """Before any speed is known others may be about to come."""
    scheduler = UnitScheduler(64, 6)
    scheduler.begin(1, 0.0)
    lease = scheduler.next_lease("a", 0.0)
    assert lease is not None
    assert lease.node.level == 3


def test_what_is_out_when_an_evaluation_ends_is_wasted() -> None:
    """As far as it was spent by then; what follows is counted when it is given up."""
    scheduler, slow = two_with_a_slow_one()
    scheduler.next_lease("quick", 2.0)
    finish(scheduler, "quick", slow, 3.0)
    scheduler.begin(2, 5.0)
    assert scheduler.backups.wasted_seconds == pytest.approx(5.0)
    scheduler.give_up("slow", slow, 7.0)
    assert scheduler.backups.wasted_seconds == pytest.approx(7.0)
    assert not scheduler.is_wanted(slow)


def test_given_up_units_that_are_still_wanted_are_leased_again() -> None:
    """Nobody else has them."""
    scheduler = UnitScheduler(4, 0)
    scheduler.begin(1, 0.0)
    lease = scheduler.next_lease("a", 0.0)
    assert lease is not None
    scheduler.give_up("a", lease, 1.0)
    assert {node.number for node in run_alone(scheduler, "b")} == {0, 1, 2, 3}


def test_quick_replica_is_given_longer_leases() -> None:
    """In the proportion of the speeds that it has shown."""
    scheduler = UnitScheduler(64, 6)
    replicas = {"quick": 1.0, "slow": 4.0}
    simulate(scheduler, replicas, 1)
    scheduler.begin(2, 5000.0)
    quick, slow = (scheduler.next_lease(replica, 5000.0) for replica in replicas)
    assert quick is not None
    assert slow is not None
    # Half of four fifths of 64 units, and half of a fifth of what is left, down to a power of two.
    assert (quick.node.level, slow.node.level) == (4, 2)


def test_late_report_does_not_disturb_the_same_lease_of_the_next_evaluation() -> None:
    """A replica often has the same node again: its report of the evaluation before leaves the new lease out."""
    scheduler = UnitScheduler(2, 0)
    for replica in "ab":
        scheduler.join(replica)
    for evaluation in (1, 2):
        scheduler.begin(evaluation, 0.0)
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
    scheduler.begin(1, 0.0)
    run_alone(scheduler, "a")
    scheduler.losses[:] = -1
    assert scheduler.losses[0] == 1000.0


def test_second_report_of_a_unit_changes_nothing() -> None:
    """Of a lease that was done in parts by others, the units that were not done yet count."""
    scheduler = UnitScheduler(2, 1)
    scheduler.begin(1, 0.0)
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
    scheduler.begin(1, 0.0)
    run_alone(scheduler, "a", seconds=0.001)
    scheduler.begin(2, 0.0)
    sizes = [len(node.leaves(64)) for node in run_alone(scheduler, "a", seconds=0.001)]
    assert sum(sizes) == 64
    slow = UnitScheduler(64, 6)
    for replica in "ab":
        slow.join(replica)
    slow.begin(1, 0.0)
    run_alone(slow, "a", seconds=1.0)
    slow.begin(2, 0.0)
    assert len(sizes) < len(run_alone(slow, "a", seconds=1.0))


def test_lease_of_quick_units_is_no_more_than_all() -> None:
    """However much more than all units would be worth its messages."""
    scheduler = UnitScheduler(5, 6)
    for evaluation in (1, 2):
        scheduler.begin(evaluation, 0.0)
        nodes = run_alone(scheduler, "a", seconds=1e-6)
    assert nodes == [Node(3, 0)]
