"""Events add up what ledger, replicas and shards tell."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest

from dask_belief.downpour.progress import Progress
from dask_belief.monitoring.events import ReplicaProgress
from dask_belief.monitoring.staleness import N_BINS
from tests.downpour.facts import ledger_status, replica_progress, shard_progress

SHARDS = [shard_progress()]


def test_loss_is_that_of_the_rows_since_the_event_before() -> None:
    """With the penalty as it is now; nothing is told while no lease was finished."""
    progress = Progress(n_rows=120)
    assert progress.event(ledger_status(0), SHARDS, 0.0, 1.0) is None
    first = progress.event(ledger_status(2, loss_sum=60.0), SHARDS, 0.5, 2.0)
    assert first is not None
    assert (first.loss, first.steps, first.rows, first.epochs, first.seconds) == (1.5, 6, 60, 0.5, 2.0)
    assert progress.event(ledger_status(2, loss_sum=60.0), SHARDS, 0.5, 3.0) is None
    second = progress.event(ledger_status(3, loss_sum=75.0), SHARDS, 0.0, 4.0)
    assert second is not None
    assert second.loss == pytest.approx(15 / 30)


def test_speed_counts_rows_between_the_ends_of_leases() -> None:
    """As the replicas tell of them, since the event before."""
    progress = Progress(120)
    replicas = (replica_progress("a", rows=40), replica_progress("b", rows=30))
    first = progress.event(ledger_status(1, replicas=replicas), SHARDS, 0.0, 2.0)
    assert first is not None
    assert first.rows_per_second == 70 / 2
    second = progress.event(ledger_status(4, replicas=replicas), SHARDS, 0.0, 4.0)
    assert second is not None
    assert second.rows_per_second == (120 - 70) / 2


def test_replicas_are_summed() -> None:
    """Pushes, bytes and every kind of seconds; each replica is told of as well."""
    names = [entry.name for entry in fields(ReplicaProgress) if entry.name not in ("replica", "worker")]
    replicas = tuple(
        replica_progress(replica, **{name: factor * (number + 1) for number, name in enumerate(names)})
        for replica, factor in (("a", 1), ("b", 10))
    )
    event = Progress(120).event(ledger_status(1, replicas=replicas), SHARDS, 0.0, 1.0)
    assert event is not None
    assert event.replicas == replicas
    for number, name in enumerate(names):
        if name not in ("steps", "rows", "n_fetches", "staleness_mean"):
            assert getattr(event, name) == 11 * (number + 1), name


def test_shards_are_summed_and_their_rates_averaged() -> None:
    """Staleness of all their pushes together."""
    counts = [tuple(int(bin_ in chosen) for bin_ in range(N_BINS)) for chosen in ((0, 2), (2, 5))]
    shards = [
        shard_progress(number, rate=rate, n_dropped=number + 1, busy_seconds=2.0, staleness=counts[number])
        for number, rate in enumerate((0.1, 0.3))
    ]
    event = Progress(120).event(ledger_status(1), shards, 0.0, 1.0)
    assert event is not None
    assert event.shards == tuple(shards)
    assert (event.n_dropped, event.server_seconds) == (3, 4.0)
    assert event.rate == pytest.approx(0.2)
    assert event.staleness == tuple(map(sum, zip(*counts, strict=True)))
    assert (event.staleness_mean, event.staleness_p95, event.staleness_max) == (9 / 4, 5, 5)


def test_line_tells_an_event_also_where_nothing_was_measured() -> None:
    """For the log."""
    progress = Progress(120)
    event = progress.event(ledger_status(2), SHARDS, 0.0, 2.0)
    assert event is not None
    assert math.isnan(event.staleness_mean)
    assert Progress.line(event).startswith("6 steps, 0.50 epochs, loss 2, 30 rows a second, rate 0.1, staleness nan")
