"""Which replica computes which units next: events and the clock in, leases out.

A lease is a node of the binary tree over unit numbers, so that a lease's sum is a node of the fixed sum. Leases are
long at first and short near the end (guided self-scheduling), and longer for a quick replica than for a slow one, so
that all end together (section 4.2: "much smaller than 1/N of the batch"). Each unit has a home: the replica that is
given it first, in sequence, since it has the data. Others help, near the end; a home changes only when replicas do much
more or less than they have at home. When no unit is left unleased, idle replicas are given copies of what is late or
slow; the first to finish counts::

                      next_lease                         finish
    unleased units ───────────────> out at one replica ──────────> done
          ^                             │       ^                    ^
          │  leave, give_up             │ late  │ or slow            │ the first of them
          └─────────────────────────────┤       │                    │
                                        └─> out at two or three ─────┘
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace

import numpy as np

from dask_belief.binary_tree import Node, root
from dask_belief.sandblaster.backups import BackupCounts, BackupQueue, Idle, Outstanding
from dask_belief.sandblaster.pace import Paces, lease_units
from dask_belief.sandblaster.unleased_units import NOBODY, UnleasedUnits

# Before any speed is known nobody knows either who else is about to come: nobody's fair share is more than this.
_UNKNOWN_SHARE = 0.25

# Less than this between a lease's issue and its report, beside its units, is messages.
_MESSAGE_SECONDS = 0.05

# Homes are cut anew, one run of units each, when more than this part of all units was not done at home, and when losses
# have scattered them: a lease must lie in one run. Else help costs some reading and changes nothing. Simulated with
# 1,000 workers that stall, 15 % of the units change their place in an evaluation; with half of this, 74 %.
_MOST_DRIFT = 0.1
_MOST_RUNS = 4


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


@dataclass(eq=False)
class _Replica:
    """A replica that takes part; `number` says who owns units, `reported` is when a lease of it last came to an end."""

    name: str
    number: int
    reported: float = -math.inf
    held: dict[Lease, _Out] = field(default_factory=dict)


@dataclass(eq=False)
class _Out:
    """A lease that is out; a copy knows what it was copied from. What was spent before `counted` counts as wasted."""

    lease: Lease
    holder: _Replica
    issued: float
    copied_from: _Out | None = None
    counted: float = -math.inf

    @property
    def depth(self) -> int:
        return 0 if self.copied_from is None else self.copied_from.depth + 1


class UnitScheduler:
    """Leases the units of one evaluation after another; pure, so it can be driven by any clock.

    A question or report costs the logarithm of the number of replicas, and a little for each unit of the lease.

    Parameters
    ----------
    n_units
        Units of an evaluation.
    max_level
        The largest level of a lease: the partial sums of a lease of level l take l + 1 vectors.
    backup_after
        A lease may be copied when it has been out for so many times what it should take; also before, when its holder
        is so slow that the idle replica will clearly be done earlier. 0: every lease, as soon as a replica is idle;
        None: never.

    Attributes
    ----------
    evaluation
        The evaluation under way; -1 before the first.
    n_done
        Units of the evaluation that are done.
    backups
        What became of copies, over all evaluations.
    """

    def __init__(self, n_units: int, max_level: int, backup_after: float | None = 1.5) -> None:
        self.n_units = n_units
        self.evaluation = -1
        self.n_done = n_units
        self.backups = BackupCounts()
        self._max_level = min(max_level, root(n_units).level)
        # By unit: whether it is done, its loss, how many replicas have it leased (0 once it is done), and the numbers
        # of the replica that is its home and of the one that computed it last.
        self._is_done = np.ones(n_units, bool)
        self._losses = np.zeros(n_units, np.float64)
        self._n_holders = np.zeros(n_units, np.int8)
        self._owner = np.full(n_units, NOBODY, np.int64)
        self._computed_by = np.full(n_units, NOBODY, np.int64)
        self._replicas: dict[str, _Replica] = {}
        self._by_number: dict[int, _Replica] = {}
        self._n_seen = 0
        self._paces = Paces()
        self._unleased = UnleasedUnits(n_units, self._seconds_left)
        self._copyable = BackupQueue(self._look, backup_after)

    def join(self, replica: str) -> None:
        """Count a replica in; one that is known already stays as it is."""
        if replica not in self._replicas:
            joined = _Replica(replica, self._n_seen)
            self._n_seen += 1
            self._replicas[replica] = self._by_number[joined.number] = joined
            self._paces.join(replica)

    def leave(self, replica: str) -> None:
        """Count a replica out: what it had leased and nobody else has is unleased again."""
        left = self._replicas.pop(replica, None)
        if left is None:
            return
        del self._by_number[left.number]
        self._paces.leave(replica)
        held, left.held = left.held, {}
        for out in held.values():
            self._release(out)
        self._unleased.look_again(left.number)

    def begin(self, evaluation: int, now: float) -> None:
        """Open an evaluation: every unit is unleased, and what is still out of the one before is of no use."""
        for replica in self._replicas.values():
            # It works on the first that it holds; the others wait for that.
            for out in itertools.islice(replica.held.values(), 1):
                self._waste(self._uncounted(out, now))
            for out in replica.held.values():
                out.counted = now
        self.evaluation = evaluation
        self.n_done = 0
        self._is_done[:] = False
        self._n_holders[:] = 0
        self._copyable.clear()
        self._paces.settle()
        self._find_homes()
        self._unleased.fill(self._owner)

    def _find_homes(self) -> None:
        """Give a home to units that have none, and cut homes anew where they do not fit what replicas do."""
        numbers = np.array(sorted(self._by_number), np.int64)
        if not len(numbers):
            return
        is_orphan = ~np.isin(self._owner, numbers)
        if is_orphan.all():
            self._cut(numbers, np.ones(len(numbers)))
            return
        orphans = np.flatnonzero(is_orphan)
        self._owner[orphans] = numbers[np.arange(len(orphans)) * len(numbers) // max(1, len(orphans))]
        first = np.flatnonzero(np.diff(self._owner, prepend=NOBODY - 1))
        is_known = np.isin(self._computed_by, numbers)
        at_home = np.bincount(self._owner, minlength=self._n_seen)
        done = np.bincount(np.where(is_known, self._computed_by, self._owner), minlength=self._n_seen)
        # Each unit that was done elsewhere is missing at one home and too many at another.
        has_drifted = np.abs(done - at_home).sum() > 2 * _MOST_DRIFT * self.n_units
        if has_drifted or len(first) > _MOST_RUNS * len(numbers):
            # In the order of the longest run of each, so that most data stay where they are.
            lengths = np.diff(first, append=self.n_units)
            longest: dict[int, tuple[int, int]] = {}
            for start, length, owner in zip(first.tolist(), lengths.tolist(), self._owner[first].tolist(), strict=True):
                longest[owner] = max(longest.get(owner, (0, 0)), (length, start))
            in_order = sorted(self._by_number, key=lambda number: longest.get(number, (0, self.n_units))[1])
            self._cut(np.array(in_order), done[in_order].astype(np.float64))

    def _cut(self, numbers: np.ndarray, shares: np.ndarray) -> None:
        """Give each replica one run of units, in this order and in these proportions.

        The borders lie where nodes of some size begin, so that the runs are few nodes.
        """
        shares = self.n_units * shares / shares.sum()
        grain = 1 << max(0, int(shares[shares > 0].min() / 4).bit_length() - 1)
        borders = np.minimum(np.round(np.cumsum(shares) / grain) * grain, self.n_units).astype(np.int64)
        borders[-1] = self.n_units
        self._owner[:] = np.repeat(numbers, np.diff(borders, prepend=0))

    def next_lease(self, replica: str, now: float) -> Lease | None:
        """Give the next lease for a free replica; None when there is nothing for it at this moment."""
        self.join(replica)
        asking = self._replicas[replica]
        copied_from = None
        if self._unleased.n_left:
            node = self._take(asking)
        elif (copy := self._copyable.choose(self._idle(asking), now)) is not None:
            copied_from, node = copy
            self.backups = replace(self.backups, started=self.backups.started + 1)
        else:
            return None
        lease = Lease(self.evaluation, node)
        self._n_holders[self._units(node)] += 1
        out = asking.held[lease] = _Out(lease, asking, now, copied_from)
        self._copyable.offer(out)
        return lease

    def _take(self, replica: _Replica) -> Node:
        unit_seconds, share = self._paces.unit_seconds(replica.name), self._paces.share(replica.name)
        if unit_seconds is None:
            share = min(share, _UNKNOWN_SHARE)
        n_units = lease_units(self._unleased.n_left, share, unit_seconds, self.n_units)
        level = min(n_units.bit_length() - 1, self._max_level)
        if self._unleased.n_of(replica.number):
            return self._unleased.take_first(replica.number, level)
        owner = self._unleased.longest()
        # What an owner has left is helped with from the end, which it would come to last.
        return (self._unleased.take_last if owner in self._by_number else self._unleased.take_first)(owner, level)

    def _idle(self, replica: _Replica) -> Idle:
        held = tuple(lease.node for lease in replica.held if lease.evaluation == self.evaluation)
        return Idle(self._paces.unit_seconds(replica.name), self._paces.share(replica.name), held)

    def finish(
        self, replica: str, lease: Lease, losses: np.ndarray, now: float, busy_seconds: float | None = None
    ) -> bool:
        """Take a finished lease.

        Parameters
        ----------
        replica, lease
            Who finished what.
        losses
            Its loss sums, a unit in order.
        now
            The clock.
        busy_seconds
            What the replica says that it spent on the units. The clock says more, by what messages took; None to go by
            the clock alone.

        Returns
        -------
        bool
            False when it is of another evaluation, or others have finished all of it: the first to finish counts.
        """
        out, seconds = self._end(replica, lease, now, busy_seconds, is_finished=True)
        units = self._units(lease.node)
        fresh = ~self._is_done[units] if lease.evaluation == self.evaluation else np.zeros(len(losses), bool)
        n_fresh = int(np.count_nonzero(fresh))
        if out is not None and n_fresh < len(losses):
            self._waste(self._uncounted(out, now, seconds) * (1 - n_fresh / len(losses)))
        if not n_fresh:
            return False
        if out is not None and out.copied_from is not None:
            self.backups = replace(self.backups, won=self.backups.won + 1)
        # Units of a replica that was thought lost wait for another; they need not wait any more.
        waiting = units.start + np.flatnonzero(fresh & (self._n_holders[units] == 0))
        self._unleased.remove(waiting, self._owner[waiting])
        self._losses[units][fresh] = losses[fresh]
        self._is_done[units] = True
        self._n_holders[units] = 0
        self.n_done += n_fresh
        if replica in self._replicas:
            self._computed_by[units] = self._replicas[replica].number
        return True

    def give_up(self, replica: str, lease: Lease, now: float) -> None:
        """Take note that a replica broke a lease off: what of it is still wanted, and with nobody else, is unleased."""
        out, seconds = self._end(replica, lease, now, None, is_finished=False)
        if out is None:
            return
        self._waste(self._uncounted(out, now, seconds))
        self._release(out)

    def is_wanted(self, lease: Lease) -> bool:
        """Whether a lease is of the evaluation under way, and some unit of it is not done."""
        return lease.evaluation == self.evaluation and not self._is_done[self._units(lease.node)].all()

    @property
    def is_complete(self) -> bool:
        """Whether every unit of the evaluation is done."""
        return self.n_done == self.n_units

    @property
    def losses(self) -> np.ndarray:
        """The loss sum of each unit, float64, ``(n_units,)``; of use once the evaluation is complete."""
        return self._losses.copy()

    @property
    def next_look(self) -> float:
        """When an idle replica may find a lease late that is not late yet, by the clock; infinite when never.

        It need not ask before, unless something was reported meanwhile or someone has left.
        """
        return self._copyable.next_late

    # What is out.

    def _end(
        self, replica: str, lease: Lease, now: float, busy_seconds: float | None, is_finished: bool
    ) -> tuple[_Out | None, float]:
        """Take a lease off its holder, and learn from it; gives it and its seconds, or None if it was not out there."""
        known = self._replicas.get(replica)
        out = known.held.pop(lease, None) if known is not None else None
        if known is None or out is None:
            return None, 0.0
        # Replicas ask ahead: work on a lease begins when the one before is finished.
        seconds = now - max(out.issued, known.reported)
        known.reported = now
        # Messages take some milliseconds; what takes longer beside the units, such as a large push, belongs to them.
        is_quick = busy_seconds is not None and seconds - busy_seconds < _MESSAGE_SECONDS
        spent = busy_seconds if busy_seconds is not None and is_quick else seconds
        self._learn(replica, spent, len(lease.node.leaves(self.n_units)), is_finished)
        # Of an older evaluation, nothing more will be heard.
        for older in [held for held in known.held if held.evaluation < lease.evaluation]:
            del known.held[older]
        # The next begins now, which tells when it should end.
        for following in itertools.islice(known.held.values(), 1):
            self._copyable.offer(following)
        return out, seconds

    def _release(self, out: _Out) -> None:
        """Count a lease's holder off its units: what nobody holds waits again, the rest may be copied once more."""
        if out.lease.evaluation != self.evaluation:
            return
        units = self._units(out.lease.node)
        self._n_holders[units][~self._is_done[units]] -= 1
        free = units.start + np.flatnonzero(~self._is_done[units] & (self._n_holders[units] == 0))
        self._unleased.put_back(free, self._owner[free])
        above = out.copied_from
        while above is not None:
            self._copyable.offer(above)
            above = above.copied_from

    def _look(self, out: _Out) -> Outstanding | None:
        """The facts of a lease; None when it is out no longer."""
        if out.lease not in out.holder.held or out.lease.evaluation != self.evaluation:
            return None
        unit_seconds, typical = self._paces.unit_seconds(out.holder.name), self._paces.typical_seconds
        begins = out.holder.reported
        for held in out.holder.held.values():
            # One that is left from an evaluation before is broken off.
            if held.lease.evaluation != self.evaluation:
                continue
            begins = max(begins, held.issued)
            if held is out:
                break
            begins += (unit_seconds or 0.0) * len(held.lease.node.leaves(self.n_units))
        holders = self._n_holders[self._units(out.lease.node)]
        return Outstanding(
            node=out.lease.node,
            begins=begins,
            seconds=None if unit_seconds is None else unit_seconds * len(holders),
            typical_seconds=None if typical is None else typical * len(holders),
            holders=holders,
            depth=out.depth,
        )

    def _learn(self, replica: str, seconds: float, n_units: int, is_finished: bool) -> None:
        is_first = self._paces.typical_seconds is None
        (self._paces.note if is_finished else self._paces.note_at_least)(replica, seconds, n_units)
        if is_first and self._paces.typical_seconds is not None:
            self._copyable.rate()

    def _seconds_left(self, owner: int, n_units: int) -> float:
        """How long an owner would take for so many units; one that has left never comes to them."""
        replica = self._by_number.get(owner)
        return math.inf if replica is None else n_units * (self._paces.unit_seconds(replica.name) or 1.0)

    def _uncounted(self, out: _Out, now: float, seconds: float | None = None) -> float:
        """The seconds spent on a lease so far, less those that were counted as wasted before."""
        if seconds is None:
            seconds = max(0.0, now - max(out.issued, out.holder.reported))
        return min(seconds, now - out.counted)

    def _waste(self, seconds: float) -> None:
        self.backups = replace(self.backups, wasted_seconds=self.backups.wasted_seconds + seconds)

    def _units(self, node: Node) -> slice:
        units = node.leaves(self.n_units)
        return slice(units.start, units.stop)
