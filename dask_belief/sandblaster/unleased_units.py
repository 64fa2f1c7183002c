"""The units of an evaluation that are with nobody, by the replica that they belong to.

Units belong to the replica that computed them last, since it has their data. It takes them from the front, in the
order in which they lie on disk; who has none left helps where most is left, and takes from the back::

    owner ──> │ 3 4 5 6 7 │      │ 20 21 22 │ <── helper

What is taken is a node of the binary tree over unit numbers, and lies in one run of units of one owner.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable

import numpy as np

from dask_belief.binary_tree import Node

NOBODY = -1
"""The owner of units that nobody has computed yet."""


class UnleasedUnits:
    """Runs of units that wait, by owner; a question costs the logarithm of the number of owners.

    Parameters
    ----------
    n_units
        Units of an evaluation.
    seconds_left
        Given an owner and a number of units: how long it would take for them. Where that is longest, help goes first;
        infinite for an owner that will never come to them.

    Attributes
    ----------
    n_left
        How many units wait.
    """

    def __init__(self, n_units: int, seconds_left: Callable[[int, int], float]) -> None:
        self.n_left = 0
        self._n_units = n_units
        self._seconds_left = seconds_left
        # Runs (start, stop) in the order of the units, and how many units they have together.
        self._runs: dict[int, deque[tuple[int, int]]] = {}
        self._n_of: dict[int, int] = {}
        # Owners by seconds left, the longest first. A number may be older, and thus larger, than the truth: it is put
        # right when its turn comes.
        self._by_left: list[tuple[float, int]] = []

    def fill(self, owners: np.ndarray) -> None:
        """Let every unit wait; `owners` holds the owner's number of each, ``(n_units,)``."""
        self._runs, self._n_of, self.n_left = {}, {}, len(owners)
        for start, stop, owner in _runs_of(np.arange(len(owners)), owners):
            self._runs.setdefault(owner, deque()).append((start, stop))
            self._n_of[owner] = self._n_of.get(owner, 0) + stop - start
        self._by_left = [(-self._seconds_left(owner, n_left), owner) for owner, n_left in self._n_of.items()]
        heapq.heapify(self._by_left)

    def n_of(self, owner: int) -> int:
        """How many units of an owner wait."""
        return self._n_of.get(owner, 0)

    def take_first(self, owner: int, max_level: int) -> Node:
        """Take a node that begins with the owner's first unit, of this level at most."""
        runs = self._runs[owner]
        start, stop = runs.popleft()
        node = self._widest(start, start, stop, max_level)
        end = node.leaves(self._n_units).stop
        if end < stop:
            runs.appendleft((end, stop))
        self._count(owner, start - end)
        return node

    def take_last(self, owner: int, max_level: int) -> Node:
        """Take a node that ends with the owner's last unit, of this level at most."""
        runs = self._runs[owner]
        start, stop = runs.pop()
        node = self._widest(stop - 1, start, stop, max_level)
        begin = node.leaves(self._n_units).start
        if start < begin:
            runs.append((start, begin))
        self._count(owner, begin - stop)
        return node

    def longest(self) -> int:
        """The owner whose waiting units would take it longest; some unit must wait."""
        while True:
            negative, owner = self._by_left[0]
            n_left = self.n_of(owner)
            if not n_left:
                heapq.heappop(self._by_left)
            elif (now := -self._seconds_left(owner, n_left)) > negative:
                heapq.heapreplace(self._by_left, (now, owner))
            else:
                return owner

    def look_again(self, owner: int) -> None:
        """Take note that an owner has become slower, or has left."""
        if n_left := self.n_of(owner):
            heapq.heappush(self._by_left, (-self._seconds_left(owner, n_left), owner))

    def put_back(self, units: np.ndarray, owners: np.ndarray) -> None:
        """Let units wait again, sorted, that were taken."""
        for start, stop, owner in _runs_of(units, owners):
            self._runs[owner] = _joined([*self._runs.get(owner, ()), (start, stop)])
            self._count(owner, stop - start)
            self.look_again(owner)

    def remove(self, units: np.ndarray, owners: np.ndarray) -> None:
        """Let units wait no longer, sorted, that did wait."""
        for start, stop, owner in _runs_of(units, owners):
            cut = [
                part
                for run_start, run_stop in self._runs[owner]
                for part in ((run_start, min(run_stop, start)), (max(run_start, stop), run_stop))
                if part[0] < part[1]
            ]
            self._runs[owner] = _joined(cut)
            self._count(owner, start - stop)

    def _count(self, owner: int, change: int) -> None:
        self._n_of[owner] = self.n_of(owner) + change
        self.n_left += change

    def _widest(self, unit: int, start: int, stop: int, max_level: int) -> Node:
        """The largest node with `unit` in the run ``start`` up to, not including, ``stop``."""
        node = Node(0, unit)
        while node.level < max_level:
            units = node.parent().leaves(self._n_units)
            if units.start < start or units.stop > stop:
                break
            node = node.parent()
        return node


def _runs_of(units: np.ndarray, owners: np.ndarray) -> list[tuple[int, int, int]]:
    """Runs (start, stop, owner) of sorted units."""
    if not len(units):
        return []
    is_first = np.ones(len(units), bool)
    is_first[1:] = (np.diff(units) != 1) | (np.diff(owners) != 0)
    first = np.flatnonzero(is_first)
    last = np.append(first[1:], len(units)) - 1
    return list(zip(units[first].tolist(), (units[last] + 1).tolist(), owners[first].tolist(), strict=True))


def _joined(runs: list[tuple[int, int]]) -> deque[tuple[int, int]]:
    """Runs in order, those that touch made one."""
    joined: deque[tuple[int, int]] = deque()
    for start, stop in sorted(runs):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined
