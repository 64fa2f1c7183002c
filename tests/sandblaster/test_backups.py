"""Which leases are copied, and which part of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_belief.binary_tree import Node
from dask_belief.sandblaster.backups import (
    MOST_HOLDERS,
    BackupQueue,
    Idle,
    Outstanding,
    is_slow,
    late_at,
    node_to_copy,
)

EXAMPLES = settings(derandomize=True, deadline=None, max_examples=200)
ALONE = Idle(1.0, 1.0)
FOUR = Node(2, 1)


def out(
    node: Node = FOUR, *, begins: float = 0.0, seconds: float | None = 4.0, holders: str = "1111", depth: int = 0
) -> Outstanding:
    """Units 4 to 7; a second each is typical, and taken by the holder too unless said otherwise."""
    typical = None if seconds is None else 4.0
    return Outstanding(node, begins, seconds, typical, np.array([int(digit) for digit in holders], np.int8), depth)


def queue_of(leases: dict[str, Outstanding], backup_after: float | None = 1.5) -> BackupQueue[str]:
    """All of these leases are out; who is taken from the dictionary is out no longer."""
    queue: BackupQueue[str] = BackupQueue(leases.get, backup_after)
    for name in leases:
        queue.offer(name)
    return queue


def test_late_after_a_multiple_of_the_expected_time() -> None:
    """Counted from when its holder began it, with a little beside."""
    assert late_at(out(begins=10.0), 1.5) == pytest.approx(16.0, abs=0.1)
    assert late_at(out(begins=10.0), 1.5) > 16.0
    assert late_at(out(seconds=2.0), 1.5) == pytest.approx(3.0, abs=0.1)


def test_slow_holder_is_allowed_no_longer_overrun() -> None:
    """Forty seconds and half of what is typical; with a multiple below one, the part of its own time."""
    assert late_at(out(seconds=40.0), 1.5) == pytest.approx(42.0, abs=0.1)
    assert late_at(out(seconds=40.0), 0.5) == pytest.approx(20.0, abs=0.1)


def test_before_a_speed_is_known_leases_have_long() -> None:
    """Unless everything is late at once; and none is called slow."""
    assert late_at(out(seconds=None), 1.5) == pytest.approx(15.0, abs=0.1)
    assert late_at(out(seconds=None), 0) == -math.inf
    assert not is_slow(out(seconds=None), ALONE, 1.5, 0.0)


def test_slow_holder_is_one_that_ends_clearly_later() -> None:
    """Twenty seconds are left: worth it for one that needs up to thirteen for the two units that it would be given."""
    lease = out(seconds=30.0)
    assert is_slow(lease, Idle(6.5, 1.0), 1.5, now=10.0)
    assert not is_slow(lease, Idle(6.8, 1.0), 1.5, now=10.0)
    # It would be given one where others help, or copy the rest already.
    assert is_slow(lease, Idle(13.0, 0.5), 1.5, now=10.0)
    assert is_slow(out(seconds=30.0, holders="1221"), Idle(13.0, 1.0), 1.5, now=10.0)


def test_whole_lease_is_copied_by_one_that_is_alone() -> None:
    """Half of its fair share first, in sequence."""
    assert node_to_copy(out(), ALONE) == Node(1, 2)
    assert node_to_copy(out(holders="2211"), ALONE) == Node(0, 6)
    assert node_to_copy(out(holders="2221"), ALONE) == Node(0, 7)
    assert node_to_copy(out(holders="2222"), ALONE) is None


def test_several_share_a_lease() -> None:
    """The smaller a replica's part of the speed of all, the smaller its part of the lease."""
    assert node_to_copy(out(Node(3, 0), holders="1" * 8), Idle(1.0, 0.5)) == Node(1, 0)
    assert node_to_copy(out(Node(3, 0), holders="1" * 8), Idle(1.0, 0.1)) == Node(0, 0)


def test_units_that_are_done_are_not_copied() -> None:
    """Those that are left are."""
    assert node_to_copy(out(holders="0011"), ALONE) == Node(0, 6)
    assert node_to_copy(out(Node(3, 0), holders="01111111"), ALONE) == Node(0, 1)
    assert node_to_copy(out(holders="0000"), ALONE) is None


def test_copy_of_a_copy_and_no_further() -> None:
    """A unit is at three replicas at most."""
    assert node_to_copy(out(holders="2222", depth=1), ALONE) == Node(1, 2)
    assert node_to_copy(out(holders="3333", depth=2), ALONE) is None
    # The first holder was lost.
    assert node_to_copy(out(holders="1111", depth=1), ALONE) == Node(1, 2)


def test_nobody_copies_its_own() -> None:
    """Neither its lease, nor the copy that another made of a part of it."""
    assert node_to_copy(out(), Idle(1.0, 1.0, (Node(2, 1),))) is None
    assert node_to_copy(out(Node(1, 2), holders="22", depth=1), Idle(1.0, 1.0, (Node(2, 1),))) is None
    assert node_to_copy(out(), Idle(1.0, 1.0, (Node(2, 0),))) is not None


def test_cut_node_is_copied_with_the_units_that_it_has() -> None:
    """At the end of the tree."""
    assert node_to_copy(out(Node(3, 1), holders="11111"), ALONE) == Node(1, 4)
    assert node_to_copy(out(Node(1, 6), holders="1"), ALONE) == Node(0, 12)


@EXAMPLES
@given(
    st.integers(0, 4).flatmap(
        lambda level: st.tuples(
            st.just(level), st.text("0123", min_size=(1 << level) // 2 + 1, max_size=1 << level), st.integers(0, 2)
        )
    ),
    st.integers(0, 5),
    st.floats(0.01, 1.0),
)
def test_part_to_copy_is_open_and_in_the_lease(lease: tuple[int, str, int], number: int, share: float) -> None:
    """Every unit of it may be copied, and there is one whenever a unit may."""
    level, holders, depth = lease
    outstanding = out(Node(level, number), holders=holders, depth=depth)
    node = node_to_copy(outstanding, Idle(1.0, share))
    first = number << level
    may_be = {
        first + position for position, digit in enumerate(holders) if 0 < int(digit) <= min(depth + 1, MOST_HOLDERS - 1)
    }
    assert (node is None) == (not may_be)
    if node is not None:
        units = set(node.leaves(first + len(holders)))
        assert units
        assert units <= may_be
        assert min(units) == min(may_be)


def test_late_ones_are_copied_in_the_order_in_which_they_are_late() -> None:
    """Not before they are; and when all of it is with others, the next."""
    leases = {"b": out(Node(2, 1), begins=1.0), "a": out(Node(2, 0), begins=0.0), "c": out(Node(2, 2), begins=50.0)}
    queue = queue_of(leases)
    assert queue.choose(Idle(100.0, 1.0), 6.0) is None
    assert queue.next_late == pytest.approx(6.05)
    assert queue.choose(Idle(100.0, 1.0), 8.0) == ("a", Node(1, 0))
    leases["a"] = out(Node(2, 0), holders="2222")
    assert queue.choose(Idle(100.0, 1.0), 8.0) == ("b", Node(1, 2))
    del leases["b"]
    assert queue.choose(Idle(100.0, 1.0), 8.0) is None
    # A copy of a was lost: it is offered again.
    leases["a"] = out(Node(2, 0), holders="2211")
    queue.offer("a")
    assert queue.choose(Idle(100.0, 1.0), 8.0) == ("a", Node(0, 2))


def test_slow_one_is_copied_before_it_is_late() -> None:
    """The one that should end last, passing by the own lease of the one who asks."""
    leases = {"x": out(Node(2, 0), seconds=100.0), "y": out(Node(2, 1), seconds=80.0), "z": out(Node(2, 2))}
    queue = queue_of(leases)
    assert queue.choose(Idle(1.0, 0.5), 1.0) == ("x", Node(0, 0))
    assert queue.choose(Idle(1.0, 0.5, (Node(2, 0),)), 1.0) == ("y", Node(0, 4))
    assert queue.choose(Idle(70.0, 0.5), 1.0) is None
    # Passing by has not lost it.
    assert queue.choose(Idle(1.0, 0.5), 1.0) == ("x", Node(0, 0))


def test_lease_whose_time_has_changed_is_put_right() -> None:
    """What its holder did before took longer than expected, or it was found to be quicker."""
    leases = {"a": out(begins=0.0)}
    queue = queue_of(leases)
    leases["a"] = out(begins=10.0)
    assert queue.choose(Idle(100.0, 1.0), 7.0) is None
    assert queue.next_late == pytest.approx(16.05)
    assert queue.choose(Idle(100.0, 1.0), 17.0) is not None


def test_never_and_at_once() -> None:
    """None: nothing is copied, however late; 0: everything, at once, before any speed is known."""
    assert queue_of({"a": out(seconds=1.0)}, None).choose(ALONE, 1e9) is None
    assert queue_of({"a": out(seconds=None)}, 0.0).choose(Idle(None, 0.5), 0.0) == ("a", Node(0, 4))


def test_leases_from_before_a_speed_was_known_are_rated_later() -> None:
    """As soon as the first is."""
    leases = {"a": out(seconds=None)}
    queue = queue_of(leases)
    leases["a"] = out(seconds=4.0)
    assert queue.choose(Idle(100.0, 1.0), 7.0) is None
    queue.rate()
    assert queue.choose(Idle(100.0, 1.0), 7.0) is not None
    queue.clear()
    assert queue.choose(Idle(100.0, 1.0), 7.0) is None
