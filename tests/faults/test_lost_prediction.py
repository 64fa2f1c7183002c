"""A worker of a prediction is killed, frozen or retired: its rows are predicted again, and nobody sees it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import dask_belief as db
from dask_belief.monitoring.progress import RowBar
from dask_belief.seeds import stream
from tests.faults.cases import LONG_SECONDS
from tests.faults.clusters import Clusters, assert_clean
from tests.faults.conftest import kill
from tests.faults.injection import Fault, planted
from tests.small_cluster import frozen

LIMITS = db.Limits(frozen_seconds=2.0, call_seconds=15.0, connect_seconds=3.0, no_progress_seconds=60.0)
NETWORK = db.Network([db.Dense(8, "sigmoid"), db.Dense(6, "tanh"), db.Dense(3)], "softmax", (20,))

pytestmark = [pytest.mark.long, pytest.mark.timeout(100)]


@pytest.fixture(scope="module")
def clusters() -> Iterator[Clusters]:
    """A cluster of four worker processes."""
    with Clusters(n_workers=4) as clusters:
        yield clusters


@pytest.fixture
def parameters() -> np.ndarray:
    """Larger than at the start of a run, so that the outputs differ."""
    return (3 * NETWORK.initial_parameters(1, "float32")).astype(np.float32)


def expected(parameters: np.ndarray, store: Path) -> np.ndarray:
    inputs, _ = db.ZarrDataset(store).read(0, 6000, dtype=np.dtype("float32"))
    return NETWORK.predict(parameters, inputs)


@pytest.mark.parametrize("by", ["units", "layers"])
@pytest.mark.parametrize("kind", ["kill", "freeze", "retire"])
def test_a_team_that_loses_a_piece_gives_its_rows_to_another(
    clusters: Clusters, parameters: np.ndarray, store: Path, tmp_path: Path, kind: str, by: str
) -> None:
    """Whichever worker of the team it is, in the midst of its letters."""
    client = clusters.client()
    number = int(stream(0, "letters of predictions", kind, by).integers(10, 60))
    fault = Fault(kind, "any", "letter", number, seconds=LONG_SECONDS if kind == "freeze" else 0.0)
    plan = db.partition(NETWORK, 2, by)
    with planted(client, [fault], tmp_path / "faults") as faults:
        found = db.predict(plan, parameters, store, client=client, batch_rows=20, progress=False, limits=LIMITS)
        faults.await_helpers()
        assert faults.happened() is not None
    if kind == "retire":
        clusters.spoil()
    np.testing.assert_allclose(found, expected(parameters, store), rtol=1e-5, atol=1e-6)
    assert_clean(client)


@pytest.mark.parametrize("kind", ["kill", "freeze", "retire"])
def test_whole_networks_on_other_workers_take_the_rows_over(
    clusters: Clusters, parameters: np.ndarray, store: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """It happens to a worker as soon as the first rows are there."""
    client = clusters.client()
    victims, threads, add = sorted(client.nthreads())[:1], [], RowBar.add
    is_over = threading.Event()

    def harm(victim: str) -> None:
        if kind == "kill":
            kill(client, victim)
        elif kind == "retire":
            db.retire_workers(client, [victim])
        else:
            with frozen(client, victim):
                is_over.wait(LONG_SECONDS)

    def lose(bar: RowBar, n_rows: int) -> None:
        while victims:
            threads.append(threading.Thread(target=harm, args=(victims.pop(),)))
            threads[-1].start()
        add(bar, n_rows)

    monkeypatch.setattr(RowBar, "add", lose)
    try:
        found = db.predict(NETWORK, parameters, store, client=client, batch_rows=5, progress=False, limits=LIMITS)
    finally:
        is_over.set()
        for thread in threads:
            thread.join(30)
    assert threads
    if kind == "retire":
        clusters.spoil()
    np.testing.assert_allclose(found, expected(parameters, store), rtol=1e-5, atol=1e-6)
    assert_clean(client)
