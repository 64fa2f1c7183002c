"""Stale-synchronous training: how far each replica may go (Ho et al., NIPS 2013); pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class _Clock:
    done: int = 0
    """Mini-batches that the replica has made."""
    ahead: int = 0
    """What its clock shows more: it began beside the slowest."""
    is_at_work: bool = False

    @property
    def time(self) -> int:
        return self.done + self.ahead


class Clocks:
    """One clock a replica, which counts its mini-batches; the slowest of those at work decides how far others may go.

    Parameters
    ----------
    max_staleness
        Mini-batches that a replica may be ahead of the slowest.
    """

    def __init__(self, max_staleness: int) -> None:
        self._max_staleness = max_staleness
        self._clocks: dict[str, _Clock] = {}
        # How far the slowest had come when there was one at work.
        self._reached = 0

    def work(self, replica: str) -> None:
        """Note that a replica has work: it begins beside the slowest, or goes on where it was when that is further."""
        clock = self._clocks.setdefault(replica, _Clock())
        if not clock.is_at_work:
            clock.ahead = max(clock.ahead, self._slowest(default=max(clock.time, self._reached)) - clock.done)
            clock.is_at_work = True

    def rest(self, replica: str) -> None:
        """Note that a replica has no work: nobody waits for it."""
        if replica in self._clocks:
            self._clocks[replica].is_at_work = False

    def leave(self, replica: str) -> None:
        """Forget a replica."""
        self._clocks.pop(replica, None)

    def note(self, replica: str, done: int) -> None:
        """Note how many mini-batches a replica has made in all; older news changes nothing."""
        clock = self._clocks.setdefault(replica, _Clock())
        clock.done = max(clock.done, done)

    def allowed(self, replica: str) -> int:
        """How many mini-batches a replica may begin in all, as things are."""
        clock = self._clocks.get(replica, _Clock())
        return self._slowest(default=clock.time) + self._max_staleness + 1 - clock.ahead

    def _slowest(self, default: int) -> int:
        at_work = [clock.time for clock in self._clocks.values() if clock.is_at_work]
        if not at_work:
            return default
        self._reached = max(self._reached, min(at_work))
        return min(at_work)
