"""Which replica computes which units next: events and the clock in, leases out.

A lease is a node of the binary tree over unit numbers, so that a lease's sum is a node of the fixed sum. Leases are
long at first and short near the end (guided self-scheduling), so that all replicas end together whatever their speed
(section 4.2: "much smaller than 1/N of the batch"). A replica is given the units that it had in the last evaluation
first, in sequence, since it has their data. When no unit is left unleased, a lease that takes far longer than leases
do is copied to an idle replica; the first to finish counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dask_belief.binary_tree import Node

_UNLEASED, _LEASED, _DONE = 0, 1, 2

# A lease is copied when it has been out for so many times what leases of its size take; never before the first time.
_COPY_FACTOR = 3.0
_COPY_AFTER_SECONDS = 0.25

# A lease costs about three messages of a millisecond or two each.
_LEASE_SECONDS = 0.01


@dataclass(frozen=True)
class Lease:
    """Units for one replica.

    Attributes
    ----------
    evaluation
        The evaluation that the units are computed for; its parameters are fetched once.
    node
        The tree node whose units are to be computed, added and pushed as one sum.
    """

    evaluation: int
    node: Node


def should_copy(age_seconds: float, n_units: int, unit_seconds: float | None) -> bool:
    """Whether a lease that is out so long is worth a copy on an idle replica.

    Parameters
    ----------
    age_seconds
        How long the lease has been out.
    n_units
        Its units.
    unit_seconds
        What a unit has taken so far; None before any is known, when nothing can be called slow.
    """
    if unit_seconds is None:
        return False
    return age_seconds > max(_COPY_AFTER_SECONDS, _COPY_FACTOR * n_units * unit_seconds)


class UnitScheduler:
    """Leases the units of one evaluation after another; pure, so it can be driven by any clock.

    Parameters
    ----------
    n_units
        Units of an evaluation.
    max_level
        The largest level of a lease: the partial sums of a lease of level l take l + 1 vectors.

    Attributes
    ----------
    evaluation
        The evaluation under way; -1 before the first.
    n_copies
        Leases that were copied, over all evaluations.
    """

    def __init__(self, n_units: int, max_level: int) -> None:
        self.n_units = n_units
        self.evaluation = -1
        self.n_copies = 0
        self._max_level = max_level
        self._state = np.full(n_units, _DONE, np.int8)
        self._owner = np.full(n_units, -1, np.int64)
        self._losses = np.zeros(n_units, np.float64)
        self._replicas: dict[str, int] = {}
        self._n_seen = 0
        self._out: dict[tuple[str, Node], float] = {}
        self._unit_seconds: float | None = None

    def join(self, replica: str) -> None:
        """Count a replica in; one that is known already stays as it is."""
        if replica not in self._replicas:
            self._replicas[replica] = self._n_seen
            self._n_seen += 1

    def leave(self, replica: str) -> None:
        """Count a replica out: what it had leased and nobody else has is unleased again."""
        self._replicas.pop(replica, None)
        for lease in [lease for lease in self._out if lease[0] == replica]:
            del self._out[lease]
        held = np.zeros(self.n_units, bool)
        for _, node in self._out:
            held[_units(node, self.n_units)] = True
        self._state[(self._state == _LEASED) & ~held] = _UNLEASED

    def begin(self, evaluation: int) -> None:
        """Open an evaluation: every unit is unleased."""
        self.evaluation = evaluation
        self._state[:] = _UNLEASED
        self._out.clear()
        self._share_orphans()

    def _share_orphans(self) -> None:
        """Give units whose owner is gone, or that never had one, to the replicas in equal runs."""
        numbers = np.array(sorted(self._replicas.values()), np.int64)
        orphans = np.flatnonzero(~np.isin(self._owner, numbers))
        if len(numbers) and len(orphans):
            self._owner[orphans] = numbers[np.arange(len(orphans)) * len(numbers) // len(orphans)]

    def next_lease(self, replica: str, now: float) -> Lease | None:
        """Give the next lease for a free replica; None when there is nothing for it at this moment."""
        self.join(replica)
        unleased = self._state == _UNLEASED
        n_left = int(np.count_nonzero(unleased))
        node = self._pick(self._replicas[replica], unleased, n_left) if n_left else self._pick_copy(replica, now)
        if node is None:
            return None
        units = _units(node, self.n_units)
        fresh = self._state[units] == _UNLEASED
        self._state[units][fresh] = _LEASED
        self._out[replica, node] = now
        return Lease(self.evaluation, node)

    def _pick(self, number: int, unleased: np.ndarray, n_left: int) -> Node:
        own = unleased & (self._owner == number)
        if own.any():
            allowed, unit = own, int(np.argmax(own))
        else:
            # The end of the longest remaining run of another: the part that its owner would come to last.
            counts = np.bincount(self._owner[unleased] + 1)
            allowed = unleased & (self._owner + 1 == int(np.argmax(counts)))
            unit = self.n_units - 1 - int(np.argmax(allowed[::-1]))
        level = min(self._lease_units(n_left).bit_length() - 1, self._max_level)
        node = Node(0, unit)
        while node.level < level and allowed[_units(node.parent(), self.n_units)].all():
            node = node.parent()
        return node

    def _lease_units(self, n_left: int) -> int:
        """How many units a lease should have: half of a fair share, but not so few that asking takes the time."""
        fair_share = n_left // len(self._replicas)
        least = math.ceil(_LEASE_SECONDS / self._unit_seconds) if self._unit_seconds else 1
        return max(1, fair_share // 2, min(least, fair_share))

    def _pick_copy(self, replica: str, now: float) -> Node | None:
        """The oldest lease that is slow, is out once, and belongs to another."""
        nodes = [node for _, node in self._out]
        for (holder, node), since in sorted(self._out.items(), key=lambda item: item[1]):
            pending = int(np.count_nonzero(self._state[_units(node, self.n_units)] == _LEASED))
            is_slow = pending > 0 and should_copy(now - since, pending, self._unit_seconds)
            if is_slow and holder != replica and nodes.count(node) == 1:
                self.n_copies += 1
                return node
        return None

    def finish(self, replica: str, lease: Lease, losses: np.ndarray, now: float) -> bool:
        """Take a finished lease, its loss sums a unit in order.

        Returns
        -------
        bool
            False when it is of another evaluation, or others have finished all of it: the first to finish counts.
        """
        if lease.evaluation != self.evaluation:
            return False
        since = self._out.pop((replica, lease.node), None)
        units = _units(lease.node, self.n_units)
        fresh = self._state[units] != _DONE
        if not fresh.any():
            return False
        if since is not None:
            seconds = (now - since) / len(losses)
            former = seconds if self._unit_seconds is None else self._unit_seconds
            self._unit_seconds = 0.8 * former + 0.2 * seconds
        self._losses[units][fresh] = losses[fresh]
        self._state[units] = _DONE
        if replica in self._replicas:
            self._owner[units] = self._replicas[replica]
        return True

    @property
    def n_done(self) -> int:
        """Units of the evaluation that are done."""
        return int(np.count_nonzero(self._state == _DONE))

    @property
    def is_complete(self) -> bool:
        """Whether every unit of the evaluation is done."""
        return self.n_done == self.n_units

    @property
    def losses(self) -> np.ndarray:
        """The loss sum of each unit, float64, ``(n_units,)``; of use once the evaluation is complete."""
        return self._losses.copy()


def _units(node: Node, n_units: int) -> slice:
    units = node.leaves(n_units)
    return slice(units.start, units.stop)
