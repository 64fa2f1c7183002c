"""What replicas, shards and the ledger tell of themselves, for tests that need some of it."""

from __future__ import annotations

from typing import Any

from dask_belief.downpour.ledger import LedgerStatus
from dask_belief.monitoring.events import ReplicaProgress, ShardProgress
from dask_belief.monitoring.staleness import N_BINS


def replica_progress(replica: str = "a", **told: Any) -> ReplicaProgress:
    """A replica that has done nothing but what is given."""
    counts = dict.fromkeys(("steps", "rows", "n_pushes", "n_fetches", "pushed_bytes", "fetched_bytes"), 0)
    kinds = ("computing", "reading", "fetch_waiting", "push_waiting", "lease_waiting", "pace_waiting")
    seconds = {f"{kind}_seconds": 0.0 for kind in kinds}
    return ReplicaProgress(**{"replica": replica, "worker": "tcp://local", **counts, **seconds, **told})


def shard_progress(shard: int = 0, n_updates: int = 0, rate: float = 0.1, **told: Any) -> ShardProgress:
    """A shard that has done nothing but what is given."""
    counts = {"n_dropped": 0, "received_bytes": 0, "sent_bytes": 0, "busy_seconds": 0.0, "staleness": (0,) * N_BINS}
    return ShardProgress(shard=shard, n_updates=n_updates, rate=rate, **(counts | told))


def ledger_status(n_finished: int = 0, **told: Any) -> LedgerStatus:
    """A run of 30 rows and 3 mini-batches a lease, and a loss of 2 a row."""
    rows = 30 * n_finished
    facts = {
        "steps": 3 * n_finished,
        "rows": rows,
        "is_over": False,
        "loss_sum": 2.0 * rows,
        "loss_rows": rows,
        "n_taken_over": 0,
        "n_replicas": 2,
        "kinds": ("numpy",),
        "replicas": (),
    }
    return LedgerStatus(n_finished=n_finished, **(facts | told))
