"""Units that wait, against a list of them."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_belief.binary_tree import Node
from dask_belief.sandblaster.unleased_units import NOBODY, UnleasedUnits

EXAMPLES = settings(derandomize=True, deadline=None, max_examples=200)


def filled(owners: list[int]) -> UnleasedUnits:
    """All units wait; owners are of one speed, and nobody's units are never come to."""
    units = UnleasedUnits(len(owners), lambda owner, n: math.inf if owner == NOBODY else float(n))
    units.fill(np.array(owners))
    return units


def drain(units: UnleasedUnits, owner: int) -> list[int]:
    """Take all of an owner's units one by one."""
    return [units.take_first(owner, 0).number for _ in range(units.n_of(owner))]


def test_first_are_taken_in_sequence() -> None:
    """From run to run of one owner, past what is another's."""
    units = filled([0, 0, 1, 0])
    assert drain(units, 0) == [0, 1, 3]
    assert (units.n_of(0), units.n_of(1), units.n_left) == (0, 1, 1)


def test_node_is_as_wide_as_run_level_and_border_allow() -> None:
    """Nodes begin at multiples of their size, lie in one run, and may be cut by the end of the tree."""
    units = filled([0] * 7)
    assert units.take_first(0, 1) == Node(1, 0)
    assert units.take_first(0, 2) == Node(1, 1)
    # (2,1) is cut: it has units 4 to 6.
    assert units.take_first(0, 2) == Node(2, 1)
    assert units.n_left == 0


def test_last_are_taken_from_the_end() -> None:
    """A node that ends with the owner's last unit."""
    units = filled([0] * 8 + [1] * 4)
    assert units.take_last(0, 1) == Node(1, 3)
    assert units.take_last(0, 1) == Node(1, 2)
    assert units.take_last(0, 3) == Node(2, 0)


def test_help_goes_where_most_is_left() -> None:
    """And to what nobody will come to before all."""
    units = filled([0] * 3 + [1] * 5 + [NOBODY])
    assert units.longest() == NOBODY
    units.take_first(NOBODY, 0)
    assert units.longest() == 1
    for _ in range(3):
        units.take_last(1, 0)
    assert units.longest() == 0


def test_what_is_put_back_joins_its_neighbours() -> None:
    """So that it can be taken as one node again."""
    units = filled([0] * 4)
    drain(units, 0)
    units.put_back(np.array([1, 2]), np.array([0, 0]))
    units.put_back(np.array([0, 3]), np.array([0, 0]))
    assert units.take_first(0, 2) == Node(2, 0)


@EXAMPLES
@given(
    st.lists(st.integers(-1, 3), min_size=1, max_size=40),
    st.lists(st.tuples(st.sampled_from(["first", "last", "back", "remove"]), st.integers(0, 50), st.integers(0, 3))),
)
def test_same_as_a_set_of_units(owners: list[int], events: list[tuple[str, int, int]]) -> None:
    """Whatever is taken, put back and removed: first and last are found, nodes lie in what waits of one owner."""
    units, n_units = filled(owners), len(owners)
    waiting = set(range(n_units))
    for what, number, level in events:
        owner = owners[number % n_units]
        own = {unit for unit in waiting if owners[unit] == owner}
        taken = sorted(set(range(n_units)) - waiting)
        if what in ("first", "last") and own:
            node = (units.take_first if what == "first" else units.take_last)(owner, level)
            leaves = set(node.leaves(n_units))
            assert leaves <= own
            assert node.level <= level
            assert (min(own) == min(leaves)) if what == "first" else (max(own) == max(leaves))
            assert node.level == level or not set(node.parent().leaves(n_units)) <= own
            waiting -= leaves
        elif what == "back" and taken:
            some = np.array(taken[number % len(taken) :])
            units.put_back(some, np.array(owners)[some])
            waiting |= set(some.tolist())
        elif what == "remove" and waiting:
            some = np.array(sorted(waiting)[number % len(waiting) :])
            units.remove(some, np.array(owners)[some])
            waiting -= set(some.tolist())
        counts = {one: sum(owners[unit] == one for unit in waiting) for one in set(owners)}
        assert {one: units.n_of(one) for one in counts} == counts
        assert units.n_left == len(waiting)
        if waiting:
            longest = units.longest()
            assert counts[longest] == max(counts.values()) or (longest == NOBODY and counts[NOBODY])
    assert sorted(unit for one in set(owners) for unit in drain(units, one)) == sorted(waiting)
