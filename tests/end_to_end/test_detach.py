"""Runs that go on without their client: refused by name, found again, stopped; and on other workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, LocalCluster

import dask_belief as db
from dask_belief.optim.descent import GradientDescent
from tests.end_to_end.conftest import blobs
from tests.small_cluster import eventually

LIMIT_SECONDS = 60.0
METHOD = db.Sandblaster(max_iter=12, n_shards=2, l2=1e-4, ftol=0.0, gtol=0.0)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 rows in chunks of 50."""
    path = tmp_path_factory.mktemp("rows") / "rows.zarr"
    db.write_dataset(path, *blobs(300, seed=0), chunk_rows=50)
    return path


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"detach": True}, "name"),
        ({"detach": True, "name": ""}, "name"),
        ({"detach": True, "name": 3}, "name"),
        ({"name": "nightly"}, "name"),
        ({"detach": "yes", "name": "nightly"}, "detach"),
        ({"checkpoint": 3}, "checkpoint"),
        ({"checkpoint": ""}, "path"),
    ],
    ids=str,
)
def test_options_are_refused_by_name(
    two_workers: Client, network: db.Network, rows: Path, options: dict[str, Any], name: str
) -> None:
    """Before anything begins."""
    with pytest.raises(db.ArgumentError, match=f"^{name}: "):
        db.train(network, rows, METHOD, client=two_workers, progress=False, **options)
    assert two_workers.list_datasets() == ()


def test_what_stays_here_cannot_be_detached(
    two_workers: Client, network: db.Network, rows: Path, tmp_path: Path
) -> None:
    """Rows in memory, a record, and a cluster that would end with this process."""
    away: dict[str, Any] = {"detach": True, "name": "nightly", "progress": False}
    held = blobs(50, seed=1)
    downpour = db.Downpour(epochs=1)
    with pytest.raises(db.ArgumentError, match=r"^validation: .*detached"):
        db.train(network, rows, METHOD, client=two_workers, validation=held, **away)
    with pytest.raises(db.ArgumentError, match=r"^dataset: .*detached"):
        db.train(network, held, METHOD, client=two_workers, **away)
    with pytest.raises(db.ArgumentError, match=r"^record: "):
        db.train(network, rows, downpour, client=two_workers, record=tmp_path / "record", **away)
    with pytest.raises(db.ArgumentError, match=r"^client: "):
        db.train(network, rows, METHOD, **away)


def test_a_rule_that_cannot_be_saved_is_refused_with_a_checkpoint(
    two_workers: Client, network: db.Network, rows: Path, tmp_path: Path
) -> None:
    """It says what the rule lacks; and a record does not go with a checkpoint."""

    class Rule(GradientDescent):
        to_config = property()

    method = db.Sandblaster(direction=Rule)
    with pytest.raises(db.ArgumentError, match=r"^checkpoint: Rule has no to_config"):
        db.train(network, rows, method, client=two_workers, checkpoint=tmp_path / "run", progress=False)
    with pytest.raises(db.ArgumentError, match=r"^checkpoint: .*record"):
        db.train(network, rows, db.Downpour(), client=two_workers, checkpoint=tmp_path / "a", record=tmp_path / "b")


def test_a_detached_run_gives_what_another_gives(
    two_workers: Client, network: db.Network, rows: Path, tmp_path: Path
) -> None:
    """From a result it takes Adagrad's sums, too; and no other run goes on from its checkpoint unasked."""
    first = db.train(network, rows, db.Downpour(n_replicas=1, epochs=1), client=two_workers, progress=False)
    method = db.Sandblaster(max_iter=4, n_shards=1, first_hessian="adagrad", ftol=0.0, gtol=0.0)
    here = db.train(network, rows, method, client=two_workers, initial=first, progress=False)
    away: dict[str, Any] = {"client": two_workers, "initial": first, "detach": True, "checkpoint": tmp_path / "run"}
    run = db.train(network, rows, method, name="nightly", **away)
    result = run.result(LIMIT_SECONDS)
    assert result.parameters.tobytes() == here.parameters.tobytes() and result.loss == here.loss
    with pytest.raises(db.ArgumentError, match=r"^checkpoint: .*resume"):
        db.train(network, rows, method, name="nightly", **away)


def test_a_detached_run_is_stopped(two_workers: Client, network: db.Network, rows: Path) -> None:
    """By whoever is attached; the result says so."""
    endless = db.Downpour(epochs=100_000, n_replicas=1)
    db.train(network, rows, endless, client=two_workers, detach=True, name="endless")
    run = db.attach("endless", two_workers)
    eventually(lambda: any(event["kind"] == "DownpourProgressed" for event in run.events()), LIMIT_SECONDS)
    run.stop()
    assert run.result(LIMIT_SECONDS).stop.reason.value == "callback"


@pytest.fixture
def processes() -> Iterator[Client]:
    """Three workers that are processes, and can be killed."""
    with (
        LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.mark.long
def test_a_driver_that_is_killed_goes_on_elsewhere(
    processes: Client, wide_network: db.Network, rows: Path, tmp_path: Path
) -> None:
    """From its checkpoint, with the same bits; and the shards and replicas of the first are let go."""
    unbroken = db.train(wide_network, rows, METHOD, client=processes, progress=False)
    saving = db.Checkpoint(tmp_path / "run", every_seconds=0)
    run = db.train(wide_network, rows, METHOD, client=processes, detach=True, name="nightly", checkpoint=saving)

    def saved_enough() -> bool:
        return sum(event["kind"] == "Saved" for event in run.events()) >= 2

    eventually(saved_enough, LIMIT_SECONDS)
    of_tasks = processes.run(lambda dask_worker: [str(key) for key in dask_worker.state.tasks])
    [worker] = [worker for worker, keys in of_tasks.items() if any("belief-run" in key for key in keys)]
    os.kill(processes.run(os.getpid, workers=[worker])[worker], signal.SIGKILL)
    result = run.result(LIMIT_SECONDS)
    assert any(event["kind"] == "Resumed" for event in result.history.to_config())
    assert result.parameters.tobytes() == unbroken.parameters.tobytes()
    assert np.isfinite(result.loss) and result.loss == unbroken.loss
