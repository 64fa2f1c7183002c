"""Whether a run that seems to go on learns nothing; pure."""

from __future__ import annotations

from collections.abc import Sequence

from dask_belief.downpour.ledger import LedgerStatus
from dask_belief.errors import NoProgressError
from dask_belief.monitoring.events import ShardProgress


class Stall:
    """Notes what changes, and when.

    Parameters
    ----------
    limit_seconds
        How long something may stay as it is.
    """

    def __init__(self, limit_seconds: float) -> None:
        self._limit_seconds = limit_seconds
        self._n_updates: dict[int, int] = {}
        self._changed_at: dict[int, float] = {}
        self._rate = 0.0
        self._compared_at: tuple[int, int, float] | None = None
        self._has_learned = False

    def look(self, status: LedgerStatus, shards: Sequence[ShardProgress], now: float) -> None:
        """Take note of each shard's updates.

        Raises
        ------
        NoProgressError
            When there were none for too long, or one shard had none while others had.
        """
        for shard in shards:
            if self._n_updates.get(shard.shard) != shard.n_updates:
                self._n_updates[shard.shard] = shard.n_updates
                self._changed_at[shard.shard] = now
        self._rate = max((shard.rate for shard in shards), default=0.0)
        if status.is_over:
            return
        limit, newest = self._limit_seconds, max(self._changed_at.values(), default=now)
        if now - newest > limit:
            raise NoProgressError(
                f"no update was made for {limit:g} seconds, with {status.n_finished} leases finished by "
                f"{status.n_replicas} replicas. Look at the workers' logs, or allow more by stalled_after_seconds."
            )
        for number, changed_at in self._changed_at.items():
            if newest - changed_at > limit:
                raise NoProgressError(
                    f"shard {number} had no update for {limit:g} seconds, while others had: no replica reaches it. "
                    "Look at its worker, and at the network between it and the replicas."
                )

    def should_compare(self, status: LedgerStatus, n_leases: int) -> bool:
        """Whether it is time to see that the parameters change: at the beginning, and each epoch until they have."""
        if self._has_learned:
            # That they change no more may be because nothing is left to learn.
            return False
        return self._compared_at is None or status.n_finished - self._compared_at[0] >= n_leases

    def compare(self, status: LedgerStatus, squares: float) -> None:
        """Compare the parameters' sum of squares with that of an epoch before.

        Raises
        ------
        NoProgressError
            When updates were made at a rate above zero, and changed nothing.
        """
        n_updates = sum(self._n_updates.values())
        before, self._compared_at = self._compared_at, (status.n_finished, n_updates, squares)
        self._has_learned = before is not None and squares != before[2]
        if before is None or n_updates <= before[1] or self._rate == 0.0 or status.loss_sum == 0.0:
            return
        if squares == before[2]:
            raise NoProgressError(
                f"the parameters did not change in {n_updates - before[1]} updates: every gradient is zero, or too "
                "small for their dtype. Compare the objective's gradient with finite differences, begin from other "
                "parameters, raise the rate, or use dtype='float64'."
            )
