"""What is told of a Downpour run while it goes on, from what ledger and shards say; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from dask_belief.downpour.ledger import LedgerStatus
from dask_belief.monitoring import staleness
from dask_belief.monitoring.events import DownpourProgressed, ReplicaProgress, ShardProgress

# What an event adds up over replicas.
_SUMMED = (
    "n_pushes",
    "pushed_bytes",
    "fetched_bytes",
    *(entry.name for entry in fields(ReplicaProgress) if entry.name.endswith("_seconds")),
)


class Progress:
    """Makes events, each from what is known now and what the one before told.

    Parameters
    ----------
    n_rows
        Rows of the data set.
    began
        Seconds of the run at which this one begins to count.
    """

    def __init__(self, n_rows: int, began: float = 0.0) -> None:
        self._n_rows = n_rows
        self._loss_sum, self._loss_rows = 0.0, 0
        self._trained, self._at = 0, began

    def event(
        self, status: LedgerStatus, shards: Sequence[ShardProgress], penalty: float, seconds: float
    ) -> DownpourProgressed | None:
        """Tell how far the run is; None when no lease was finished since the last time."""
        n_rows = status.loss_rows - self._loss_rows
        if n_rows <= 0:
            return None
        loss = (status.loss_sum - self._loss_sum) / n_rows + penalty
        self._loss_sum, self._loss_rows = status.loss_sum, status.loss_rows
        # Replicas tell of rows between the ends of leases, too.
        trained = max(status.loss_rows, sum(replica.rows for replica in status.replicas))
        speed = (trained - self._trained) / (seconds - self._at) if seconds > self._at else 0.0
        self._trained, self._at = trained, seconds
        counts = staleness.merged(*(shard.staleness for shard in shards))
        sums = {name: sum(getattr(replica, name) for replica in status.replicas) for name in _SUMMED}
        return DownpourProgressed(
            steps=status.steps,
            epochs=status.rows / self._n_rows,
            rows=status.rows,
            loss=loss,
            seconds=seconds,
            rows_per_second=speed,
            rate=sum(shard.rate for shard in shards) / len(shards),
            n_dropped=sum(shard.n_dropped for shard in shards),
            server_seconds=sum(shard.busy_seconds for shard in shards),
            staleness_mean=staleness.mean(counts),
            staleness_p95=staleness.quantile(counts, 0.95),
            staleness_max=staleness.largest(counts),
            staleness=counts,
            replicas=status.replicas,
            shards=tuple(shards),
            **sums,
        )

    @staticmethod
    def line(event: DownpourProgressed) -> str:
        """Write an event in one line."""
        return (
            f"{event.steps} steps, {event.epochs:.2f} epochs, loss {event.loss:.6g}, {event.rows_per_second:,.0f} rows "
            f"a second, rate {event.rate:.3g}, staleness {event.staleness_mean:.1f} (most {event.staleness_max:.0f}), "
            f"{event.seconds:.1f} s"
        )
