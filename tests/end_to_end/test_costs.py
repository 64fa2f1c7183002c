"""What a run cost is in its history: seconds, bytes, the cache, copies."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from distributed import Client

import dask_belief as db
from dask_belief.data.units import plan_units
from dask_belief.run import Run
from tests.small_cluster import small_cluster


@pytest.fixture
def never_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver copies no point while the run goes on: how often it does depends on time."""
    monkeypatch.setattr(Run, "is_keeping_due", property(lambda run: False))


@pytest.mark.usefixtures("never_kept")
@pytest.mark.parametrize("n_threads", [1, 3])
def test_parameters_are_fetched_once_an_evaluation(store: Path, network: db.Network, n_threads: int) -> None:
    """The replicas of a worker share what one of them fetched; the sums that are pushed cover each unit once."""
    method = db.Sandblaster(max_iter=4, backup_after=None)
    with small_cluster(1, n_threads) as cluster, Client(cluster, set_as_default=False) as client:
        history = db.train(network, store, method, client=client, progress=False).history
    vector_bytes = 4 * network.n_parameters
    evaluations = np.diff([0, *history["evaluations"]])
    assert history["fetched_bytes"] == list(vector_bytes * evaluations)
    pushed = np.array(history["pushed_bytes"]) / (vector_bytes * evaluations)
    n_units = len(plan_units(3000, 100, 44, network.n_parameters))
    # A lease is one push; there are fewer leases than units, and more than replicas.
    assert (pushed >= n_threads).all() and (pushed < n_units).all()


@pytest.mark.usefixtures("never_kept")
def test_each_worker_fetches_once_at_most(two_workers: Client, store: Path, network: db.Network) -> None:
    """Two workers fetch twice as much at most, whole vectors each time."""
    result = db.train(network, store, db.Sandblaster(max_iter=4), client=two_workers, progress=False)
    fetches = np.array(result.history["fetched_bytes"]) / (4 * network.n_parameters)
    evaluations = np.diff([0, *result.history["evaluations"]])
    assert (fetches == np.round(fetches)).all()
    assert (evaluations <= fetches).all() and (fetches <= 2 * evaluations).all()


def test_the_cache_hits_from_the_second_pass_on(store: Path, network: db.Network) -> None:
    """Every unit is read in the first pass; afterwards it is in the cache, unless that has no room."""
    n_units = len(plan_units(3000, 100, 44, network.n_parameters))
    with small_cluster(n_workers=1) as cluster, Client(cluster, set_as_default=False) as client:
        history = {
            cache_bytes: db.train(
                network, store, db.Sandblaster(max_iter=3, cache_bytes=cache_bytes), client=client, progress=False
            ).history
            for cache_bytes in (None, 0)
        }
    evaluations = history[None]["evaluations"]
    lookups = np.diff([0, *evaluations]) * n_units
    hits, misses = (np.array(history[None][name]) for name in ("cache_hits", "cache_misses"))
    assert misses[0] == n_units and not misses[1:].any()
    assert (hits + misses == lookups).all()
    assert history[0]["cache_hits"] == [0, 0, 0]
    assert history[0]["cache_misses"] == list(lookups)


def test_seconds_add_up(two_workers: Client, store: Path, network: db.Network) -> None:
    """What was spent is more than nothing and no more than there was of two replicas; the busiest is one of them."""
    result = db.train(network, store, db.Sandblaster(max_iter=4), client=two_workers, progress=False)
    rows = result.history.rows("IterationEnded")
    computing, busiest, waiting, reading, sending, vectors = (
        np.array([row[f"{name}_seconds"] for row in rows])
        for name in ("computing", "busiest", "waiting", "reading", "sending", "vector")
    )
    elapsed = np.diff([0.0, *(row["seconds"] for row in rows)])
    assert (np.array([computing, busiest, waiting, sending, vectors]) > 0).all()
    assert (busiest <= computing).all() and (computing <= 2 * busiest + 1e-9).all()
    assert (computing + reading <= 2 * elapsed).all()
    assert (vectors <= elapsed).all()


def test_the_search_is_in_the_history(two_workers: Client, store: Path, network: db.Network) -> None:
    """Curvature and both Wolfe numbers of each iteration, within the search's constants."""
    method = db.Sandblaster(max_iter=6)
    history = db.train(network, store, method, client=two_workers, progress=False).history
    assert all(curvature > 0 for curvature in history["curvature"])
    assert all(ratio >= method.c1 for ratio in history["decrease_ratio"])
    assert all(0 <= ratio <= 0.9 for ratio in history["slope_ratio"])
    frame = history.to_frame()
    assert len(frame["curvature"].dropna()) == 6


def test_copies_are_counted(store: Path, network: db.Network) -> None:
    """With idle replicas and no patience copies are started; without copies nothing is."""
    with small_cluster(n_workers=4) as cluster, Client(cluster, set_as_default=False) as client:

        def counts(backup_after: float | None) -> list[float]:
            method = db.Sandblaster(max_iter=3, unit_rows=1500, backup_after=backup_after)
            history = db.train(network, store, method, client=client, progress=False).history
            names = ("backups_started", "backups_won", "backups_wasted_seconds")
            return [math.fsum(history[name]) for name in names]

        started, won, wasted = counts(0.0)
        assert started > 0 and 0 <= won <= started and wasted > 0
        assert counts(None) == [0, 0, 0]
