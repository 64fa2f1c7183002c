"""How fast each replica is, learned from the leases that it finished, and how long its next lease should be."""

from __future__ import annotations

import math

# Of what was known before, this much counts when the next lease is finished. An evaluation is about eight leases of a
# replica, so most of what is known stems from the last one or two evaluations.
_KEPT = 0.7

# A lease costs about three messages, of a millisecond or two each on the way and half a millisecond of the processor at
# either end. So leases are to be so long; and so long at least near the end, whatever would balance better.
_LEASE_SECONDS = 0.01
_LEAST_LEASE_SECONDS = 0.004

# The least part of its share that a replica is given at once: halving comes there in four leases.
_LEAST_PART = 1 / 16

# What a clock that did not move is taken for.
_LEAST_SECONDS = 1e-9


def lease_units(n_left: int, share: float, unit_seconds: float | None, n_units: int = 0) -> int:
    """How many units a lease should have: half of a fair share, but not so few that messages take the time.

    Parameters
    ----------
    n_left
        The units that are to be shared.
    share
        The replica's part of the speed of all.
    unit_seconds
        What a unit takes it; None while that is not known.
    n_units
        Units of the evaluation: leases are not so short that they would be many more than eight.

    Returns
    -------
    int
        At least 1.
    """
    # What is lost in rounding must not cost a whole unit.
    fair_share = int(n_left * share + 1e-9)
    least = max(1, int(_LEAST_PART * n_units * share))
    if unit_seconds is None:
        return max(1, fair_share // 2, min(least, fair_share))
    least = max(least, math.ceil(_LEASE_SECONDS / unit_seconds))
    units = max(1, fair_share // 2, min(least, fair_share))
    if units * unit_seconds <= _LEASE_SECONDS:
        # A lease is a power of two of units. Where it is hardly worth its messages, that is rather more than less.
        units = 1 << round(math.log2(units))
    return max(units, int(_LEAST_LEASE_SECONDS / unit_seconds))


class Paces:
    """The seconds a unit of every replica that takes part; who has finished nothing yet is taken as typical.

    Seconds and units of finished leases are added up, the older ones counting less and less, so that a long lease
    tells more than a short one.

    Examples
    --------
    >>> paces = Paces()
    >>> for name in ("quick", "slow", "new"):
    ...     paces.join(name)
    >>> paces.note("quick", seconds=8.0, n_units=8)
    >>> paces.note("slow", seconds=10.0, n_units=5)
    >>> paces.unit_seconds("slow"), round(paces.unit_seconds("new"), 3)
    (2.0, 1.333)
    >>> round(paces.share("quick"), 3)
    0.444
    """

    def __init__(self) -> None:
        # Seconds and units that were noted, by replica; None before the first.
        self._noted: dict[str, tuple[float, float] | None] = {}
        # The summed speed, in units a second, of the replicas whose pace is known, and how many they are.
        self._known_speed = 0.0
        self._n_known = 0

    def join(self, replica: str) -> None:
        """Count a replica in; one that is known already stays as it is."""
        self._noted.setdefault(replica, None)

    def leave(self, replica: str) -> None:
        """Count a replica out."""
        self._known_speed -= self._speed(replica)
        self._n_known -= self._noted.pop(replica, None) is not None
        if not self._n_known:
            self._known_speed = 0.0

    def note(self, replica: str, seconds: float, n_units: int) -> None:
        """Take into account that so many units took a replica so long; nothing is noted of one that has left."""
        if replica not in self._noted:
            return
        before = self._noted[replica]
        self._known_speed -= self._speed(replica)
        self._n_known += before is None
        old_seconds, old_units = before or (0.0, 0.0)
        self._noted[replica] = (
            _KEPT * old_seconds + max(seconds, _LEAST_SECONDS),
            _KEPT * old_units + n_units,
        )
        self._known_speed += self._speed(replica)

    def note_at_least(self, replica: str, seconds: float, n_units: int) -> None:
        """Take into account that so many units would have taken at least so long: it tells only if that is slow."""
        expected = self.unit_seconds(replica)
        if expected is not None and seconds > expected * n_units:
            self.note(replica, seconds, n_units)

    def settle(self) -> None:
        """Add up the speeds anew, which takes out what rounding has left in their running sum."""
        self._known_speed = math.fsum(self._speed(replica) for replica in self._noted)

    @property
    def typical_seconds(self) -> float | None:
        """What a unit takes at the mean of the known speeds; None before the first is known."""
        return self._n_known / self._known_speed if self._n_known else None

    def unit_seconds(self, replica: str) -> float | None:
        """What a unit takes the replica, or is thought to; None before anything is known of anyone."""
        noted = self._noted.get(replica)
        return self.typical_seconds if noted is None else noted[0] / noted[1]

    def share(self, replica: str) -> float:
        """The replica's part of the speed of all."""
        seconds, typical = self.unit_seconds(replica), self.typical_seconds
        relative = 1.0 if seconds is None or typical is None else typical / seconds
        return relative / max(1, len(self._noted))

    def _speed(self, replica: str) -> float:
        noted = self._noted.get(replica)
        return 0.0 if noted is None else noted[1] / noted[0]
