"""Synchronous training with backup replicas: whose gradients make a step (Chen et al., 2016); pure.

::

    replica 0   push ──> arrive ─────────┐ round 3 closes when enough have arrived
    replica 1   push ──────> arrive ─────┤   members: 0, 1          shards: one step by their mean
    replica 2   push ────────────────────┼──> arrive: too late      round 4 tells the shards of its push

A replica arrives once all shards hold its push, so whatever is decided here every shard can carry out.
"""

from __future__ import annotations

from collections.abc import Collection

from dask_belief.parameter_server.messages import PushKey, Round


class Rounds:
    """Decides, for all shards alike, which pushes make a round.

    Parameters
    ----------
    backup_replicas
        So many of the replicas need not be waited for.

    Attributes
    ----------
    last
        The round that was closed last; None before the first.
    """

    def __init__(self, backup_replicas: int) -> None:
        self._backup_replicas = backup_replicas
        self._arrived: dict[str, PushKey] = {}
        self._late: list[PushKey] = []
        self.last: Round | None = None

    @property
    def number(self) -> int:
        """The number of the round that is open."""
        return 0 if self.last is None else self.last.number + 1

    def begin_at(self, number: int) -> None:
        """Go on with round `number`, in place of a ledger that was lost; what it had of the rounds is gone."""
        self.last = Round(number - 1, (), ()) if number else None

    def arrive(self, replica: str, number: int, key: PushKey) -> bool:
        """Note that all shards hold a push for round `number`; False when that round is closed already."""
        if number < self.number:
            self._late.append(key)
            return False
        self._arrived[replica] = key
        return True

    def close(self, at_work: Collection[str]) -> bool:
        """Close the open round if enough have arrived of the replicas that are at work; tells whether it did."""
        waited_for = max(1, len({*at_work, *self._arrived}) - self._backup_replicas)
        if len(self._arrived) < waited_for:
            return False
        self.last = Round(self.number, tuple(sorted(set(self._arrived.values()))), tuple(sorted(self._late)))
        self._arrived.clear()
        self._late.clear()
        return True
