"""Backup copies: which of the leases that are out, or which part of one, an idle replica should compute as well.

Section 4.2 of the paper: near the end of a batch the coordinator schedules "multiple copies of the outstanding portions
and uses the result from whichever model replica finishes first"; MapReduce (Dean and Ghemawat, OSDI 2004, section 3.6)
calls them backup tasks. Here a lease is worth a copy when it is *late*, that is, out for longer than so many times what
it should take, or *slow*: at its known speed its holder will clearly end after the one who asks would.

The copy is a node below the lease, so that several idle replicas share what a straggler has::

    out at a straggler           8 units
    copies at three others     2 | 2 | 2 | then 1 | 1

A copy is a lease like any other. When it is late as well, its units may be copied once more, and no further.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from dask_belief.binary_tree import Node
from dask_belief.sandblaster.pace import lease_units

MOST_HOLDERS = 3
"""How many replicas may have a unit at a time: the first, one with a copy, and another when the copy is late too."""

# What can be gained in less is not worth the messages, and leases that are as short vary by as much.
_SLACK_SECONDS = 0.05

# What a lease is given before anyone's speed is known: one at a replica that hangs from the start is copied, too.
_UNKNOWN_SECONDS = 10.0

# How many leases are looked at for one question, beside those that are late.
_MOST_LOOKS = 8


@dataclass(frozen=True)
class BackupCounts:
    """What became of copies.

    Attributes
    ----------
    started
        Copies that were handed out.
    won
        Copies that were first to finish at least one of their units.
    wasted_seconds
        What replicas spent on units that others finished first: copies, and leases that were copied.
    """

    started: int = 0
    won: int = 0
    wasted_seconds: float = 0.0


@dataclass(frozen=True)
class Outstanding:
    """A lease that is out.

    Attributes
    ----------
    node
        Its units.
    begins
        When its holder began it, or will, if it has another to end first.
    seconds, typical_seconds
        What its units should take its holder, and a typical replica; None while nothing is known of anyone's speed.
    holders
        By how many replicas each of its units is held, ``(n_units_of_node,)``; 0 when it is done.
    depth
        0 for the first lease of its units, 1 for a copy, 2 for a copy of a copy.
    """

    node: Node
    begins: float
    seconds: float | None
    typical_seconds: float | None
    holders: np.ndarray
    depth: int

    @property
    def ends(self) -> float:
        """When it should be finished; infinite while nothing is known."""
        return math.inf if self.seconds is None else self.begins + self.seconds

    @property
    def open_units(self) -> np.ndarray:
        """Which units may be copied, by position: they are not done, and nobody beyond this lease has them."""
        return (self.holders > 0) & (self.holders <= min(self.depth + 1, MOST_HOLDERS - 1))


@dataclass(frozen=True)
class Idle:
    """A replica that asks when no unit is left unleased.

    Attributes
    ----------
    unit_seconds
        What a unit takes it; None while nothing is known of anyone's speed.
    share
        Its part of the speed of all.
    held
        What it has itself: another copy of that would be no help.
    """

    unit_seconds: float | None
    share: float
    held: tuple[Node, ...] = ()

    def has_part_of(self, node: Node) -> bool:
        """Whether it has some of these units."""
        return any(own.covers(node) or node.covers(own) for own in self.held)


def late_at(lease: Outstanding, backup_after: float) -> float:
    """When a lease is late: so many times what it should take after it began.

    A slow holder is allowed no longer overrun than a typical one: what a copy takes is not longer either.

    Parameters
    ----------
    lease
        The lease.
    backup_after
        The multiple; 0 calls every lease late at once.

    Returns
    -------
    float
        Seconds by the clock of `begins`.
    """
    if backup_after == 0:
        return -math.inf
    if lease.seconds is None or lease.typical_seconds is None:
        return lease.begins + backup_after * _UNKNOWN_SECONDS + _SLACK_SECONDS
    allowed = min(backup_after * lease.seconds, lease.seconds + (backup_after - 1) * lease.typical_seconds)
    return lease.begins + allowed + _SLACK_SECONDS


def is_slow(lease: Outstanding, idle: Idle, backup_after: float, now: float) -> bool:
    """Whether its holder will clearly end after the idle replica would with the part that it would be given.

    What the holder still needs is compared with `backup_after` times what the idle replica needs. Others that are idle
    will take the rest.
    """
    if lease.seconds is None or idle.unit_seconds is None:
        return False
    n_open = int(np.count_nonzero(lease.open_units))
    own_seconds = lease_units(n_open, idle.share, idle.unit_seconds) * idle.unit_seconds
    return lease.ends - now > backup_after * own_seconds + _SLACK_SECONDS


def node_to_copy(lease: Outstanding, idle: Idle) -> Node | None:
    """The part of a lease that an idle replica should compute as well.

    Returns
    -------
    Node or None
        The first node of units that may be copied, half of the replica's fair share of them at most; None when there
        are no such units, or it has some of the lease itself.
    """
    is_open = lease.open_units
    if not is_open.any() or idle.has_part_of(lease.node):
        return None
    n_open, first = int(np.count_nonzero(is_open)), lease.node.number << lease.node.level
    level = lease_units(n_open, idle.share, idle.unit_seconds).bit_length() - 1
    node = Node(0, first + int(np.argmax(is_open)))
    while node.level < min(level, lease.node.level):
        wider = node.parent()
        start = (wider.number << wider.level) - first
        # A node that is cut by the end of the tree has as many units as there are.
        if not is_open[start : start + (1 << wider.level)].all():
            break
        node = wider
    return node


Key = TypeVar("Key")


class BackupQueue(Generic[Key]):
    """The leases that are out, in the two orders in which they come to deserve a copy, so that few are looked at.

    Parameters
    ----------
    look
        Gives the facts of a lease by its key; None when it is out no longer.
    backup_after
        See `late_at`; None: nothing is ever copied.
    """

    def __init__(self, look: Callable[[Key], Outstanding | None], backup_after: float | None) -> None:
        self._look = look
        self._backup_after = backup_after
        # Both heaps may hold what is out no longer, or a time that has changed since: each is checked in its turn. A
        # running number keeps equal times in the order in which they came.
        self._by_late: list[tuple[float, int, Key]] = []
        self._by_end: list[tuple[float, int, Key]] = []
        self._late: OrderedDict[Key, None] = OrderedDict()
        # Leases that were offered before anyone's speed was known.
        self._unrated: list[Key] = []
        self._order = itertools.count()

    def clear(self) -> None:
        """Forget all leases."""
        for leases in (self._by_late, self._by_end, self._late, self._unrated):
            leases.clear()

    def offer(self, key: Key) -> None:
        """Take in a lease that is out; one that is known may be offered again, when its times have changed."""
        lease = self._look(key) if self._backup_after is not None else None
        if lease is None or self._backup_after is None:
            return
        if lease.seconds is None:
            self._unrated.append(key)
        else:
            heapq.heappush(self._by_end, (-lease.ends, next(self._order), key))
        heapq.heappush(self._by_late, (late_at(lease, self._backup_after), next(self._order), key))

    def rate(self) -> None:
        """Offer again what came before anyone's speed was known."""
        unrated, self._unrated = self._unrated, []
        for key in unrated:
            self.offer(key)

    @property
    def next_late(self) -> float:
        """When the next lease is late, as far as is known; no copy starts before for want of time alone."""
        return self._by_late[0][0] if self._by_late else math.inf

    def choose(self, idle: Idle, now: float) -> tuple[Key, Node] | None:
        """What an idle replica should compute as well: a lease and a node in it; those late the longest first."""
        if self._backup_after is None:
            return None
        self._note_late(now, self._backup_after)
        return self._choose_late(idle) or self._choose_slow(idle, now, self._backup_after)

    def _note_late(self, now: float, backup_after: float) -> None:
        while self._by_late and self._by_late[0][0] <= now:
            _, order, key = heapq.heappop(self._by_late)
            lease = self._look(key)
            if lease is None:
                continue
            if (at := late_at(lease, backup_after)) <= now:
                self._late[key] = None
            else:
                heapq.heappush(self._by_late, (at, order, key))

    def _choose_late(self, idle: Idle) -> tuple[Key, Node] | None:
        through: list[Key] = []
        chosen = None
        for key in self._late:
            lease = self._look(key)
            if lease is None or not lease.open_units.any():
                # Should a copy of it be lost, it is offered again.
                through.append(key)
            elif (node := node_to_copy(lease, idle)) is not None:
                chosen = key, node
                break
        for key in through:
            del self._late[key]
        return chosen

    def _choose_slow(self, idle: Idle, now: float, backup_after: float) -> tuple[Key, Node] | None:
        """From the leases that should end last: if the first of them is not slow, the others are not."""
        own: list[tuple[float, int, Key]] = []
        chosen = None
        while self._by_end and len(own) < _MOST_LOOKS:
            negative, order, key = self._by_end[0]
            lease = self._look(key)
            if lease is None or not lease.open_units.any():
                heapq.heappop(self._by_end)
            elif -lease.ends != negative:
                heapq.heapreplace(self._by_end, (-lease.ends, order, key))
            elif idle.has_part_of(lease.node):
                own.append(heapq.heappop(self._by_end))
            else:
                if is_slow(lease, idle, backup_after, now) and (node := node_to_copy(lease, idle)) is not None:
                    chosen = key, node
                break
        for entry in own:
            heapq.heappush(self._by_end, entry)
        return chosen
