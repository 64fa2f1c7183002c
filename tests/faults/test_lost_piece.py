"""A worker with a piece of a replica is lost: that replica is made anew, and no bit and no mini-batch is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import dask_belief as db
from dask_belief.monitoring.events import DownpourProgressed
from dask_belief.seeds import stream
from tests.faults.cases import LONG_SECONDS
from tests.faults.clusters import Clusters, assert_clean
from tests.faults.injection import Fault, planted

LIMITS = db.Limits(
    frozen_seconds=2.0, call_seconds=15.0, connect_seconds=3.0, silence_seconds=15.0, no_progress_seconds=60.0
)
EPOCHS = 2

pytestmark = [pytest.mark.long, pytest.mark.timeout(100)]


@pytest.fixture(scope="module")
def clusters() -> Iterator[Clusters]:
    """A cluster of four worker processes."""
    with Clusters(n_workers=4) as clusters:
        yield clusters


def network() -> db.Network:
    return db.Network([db.Dense(8, "sigmoid"), db.Dense(6, "tanh"), db.Dense(1)], loss="logistic", input_shape=(20,))


@pytest.fixture(scope="module")
def unbroken(clusters: Clusters, store: Path) -> db.TrainingResult:
    """The run to which nothing happens."""
    return db.train(plan(), store, batches(), client=clusters.client(), progress=False)


def plan(by: str = "units"):
    return db.partition(network(), 2, by)


def batches() -> db.Sandblaster:
    return db.Sandblaster(max_iter=5, l2=1e-3, gtol=0.0, ftol=0.0, unit_rows=1000, n_shards=2)


@pytest.mark.parametrize("kind", ["kill", "freeze", "retire"])
@pytest.mark.parametrize("seed", [0, 1])
def test_batches_keep_their_bits(
    clusters: Clusters, unbroken: db.TrainingResult, store: Path, tmp_path: Path, kind: str, seed: int
) -> None:
    """Whichever worker of the team it is: the lead's, that of a piece, with a shard or without."""
    client = clusters.client()
    number = int(stream(seed, "letters", kind).integers(20, 300))
    fault = Fault(kind, "any", "letter", number, seconds=LONG_SECONDS if kind == "freeze" else 0.0)
    with planted(client, [fault], tmp_path / "faults") as faults:
        result = db.train(plan(), store, batches(), client=client, progress=False, limits=LIMITS)
        faults.await_helpers()
        assert faults.happened() is not None
    if kind == "retire":
        clusters.spoil()
    assert result.history["loss"] == unbroken.history["loss"]
    assert result.parameters.tobytes() == unbroken.parameters.tobytes()
    assert_clean(client)


@pytest.mark.parametrize("by", ["units", "layers"])
@pytest.mark.parametrize("kind", ["kill", "freeze", "retire"])
def test_each_mini_batch_counts_once(clusters: Clusters, store: Path, tmp_path: Path, kind: str, by: str) -> None:
    """With a copy of each shard: two replicas of two pieces, of which one is lost and the other goes on."""
    client = clusters.client()
    number = int(stream(0, "letters of", kind, by).integers(20, 400))
    fault = Fault(kind, "any", "letter", number, seconds=LONG_SECONDS if kind == "freeze" else 0.0)
    method = db.Downpour(
        n_replicas=2, n_shards=2, shard_copies=1, rule=db.SGD(0.01), batch_size=50, lease_rows=100, epochs=EPOCHS
    )
    with planted(client, [fault], tmp_path / "faults") as faults:
        result = db.train(plan(by), store, method, client=client, progress=False, limits=LIMITS)
        faults.await_helpers()
        assert faults.happened() is not None
    if kind == "retire":
        clusters.spoil()
    *_, last = (event for event in result.history.events if isinstance(event, DownpourProgressed))
    assert result.stop.reason is db.StopReason.EPOCHS_DONE and result.passes == EPOCHS
    assert [shard.n_lost for shard in last.shards] == [0, 0]
    assert last.steps == EPOCHS * 6000 / 50
    assert np.isfinite(result.parameters).all()
    assert_clean(client)
