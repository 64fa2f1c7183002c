"""What a checkpoint is written to does not answer any more: the run ends within a limit, and loses nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client

import dask_belief as db
from dask_belief.checkpoint import CheckpointStore
from dask_belief.cluster.limits import limited_by
from tests.faults.clusters import assert_clean
from tests.small_cluster import small_cluster

LIMITS = db.Limits(no_progress_seconds=1.0)


@pytest.fixture
def client() -> Iterator[Client]:
    with small_cluster(n_workers=2) as cluster, Client(cluster, set_as_default=False) as client:
        yield client


@pytest.fixture
def hung(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Lets a call to the store hang until the test is over."""
    may_go_on = threading.Event()

    def hang(name: str) -> None:
        def wait(*_: object, **__: object) -> None:
            may_go_on.wait(60)

        monkeypatch.setattr(CheckpointStore, name, wait)

    yield hang
    may_go_on.set()


NETWORK = db.Network([db.Dense(8, "sigmoid"), db.Dense(1)], loss="logistic", input_shape=(20,))


@pytest.mark.parametrize("method", [db.Sandblaster(max_iter=1000, ftol=0.0, gtol=0.0), db.Downpour(epochs=1000)])
def test_a_commit_that_hangs_ends_the_run(client: Client, store: Path, tmp_path: Path, hung: Any, method: Any) -> None:
    """With an error that names what hangs, and the best point; nothing stays on the cluster."""
    hung("commit")
    saving = db.Checkpoint(tmp_path / "run", every_seconds=0)
    with pytest.raises(db.CheckpointError, match=r"committing state 1 to .* did not end within 1 seconds") as caught:
        db.train(NETWORK, store, method, client=client, checkpoint=saving, limits=LIMITS, progress=False)
    assert caught.value.kept_parameters is not None
    assert np.isfinite(caught.value.kept_parameters).all()
    assert_clean(client)
    assert CheckpointStore(tmp_path / "run").numbers() == []


def test_a_commit_that_comes_after_its_run_was_given_up_is_whole(
    client: Client, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for it any more; what it wrote can be gone on from all the same, to the same bits."""
    method = db.Sandblaster(max_iter=6, ftol=0.0, gtol=0.0)
    may_go_on, is_done, commit = threading.Event(), threading.Event(), CheckpointStore.commit

    def late(*given: Any, **options: Any) -> Any:
        may_go_on.wait(60)
        try:
            return commit(*given, **options)
        finally:
            is_done.set()

    monkeypatch.setattr(CheckpointStore, "commit", late)
    saving = db.Checkpoint(tmp_path / "run", every_seconds=0)
    with pytest.raises(db.CheckpointError, match=r"committing state 1 to .* did not end"):
        db.train(NETWORK, store, method, client=client, checkpoint=saving, limits=LIMITS, progress=False)
    monkeypatch.undo()
    assert CheckpointStore(tmp_path / "run").numbers() == []
    may_go_on.set()
    assert is_done.wait(30)
    assert CheckpointStore(tmp_path / "run").numbers() == [1]
    result = db.resume(tmp_path / "run", client=client, progress=False)
    unbroken = db.train(NETWORK, store, method, client=client, progress=False)
    assert result.parameters.tobytes() == unbroken.parameters.tobytes()


def test_a_worker_that_hangs_as_it_writes_does_not_end_the_run(
    client: Client, store: Path, tmp_path: Path, hung: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be that worker alone: the save is given up with a warning, and the run goes on."""
    hung("write_part")
    saving = db.Checkpoint(tmp_path / "run", every_seconds=0)
    result = db.train(
        NETWORK, store, db.Sandblaster(max_iter=3), client=client, checkpoint=saving, limits=LIMITS, progress=False
    )
    assert result.stop.reason is db.StopReason.MAX_ITERATIONS
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("is given up: saved state 1 was not carried within 1 seconds by tasks on tcp:" in each for each in told)


@pytest.mark.parametrize("name", ["prepare", "newest"])
def test_a_store_that_hangs_at_the_door_is_refused(tmp_path: Path, hung: Any, store: Path, name: str) -> None:
    """Before anything is started."""
    hung(name)
    network = db.Network([db.Dense(1)], loss="logistic", input_shape=(20,))
    path = str(tmp_path / "run")
    with limited_by(LIMITS), pytest.raises(db.CheckpointError, match=rf"{path} did not end within 1 seconds"):
        if name == "prepare":
            db.train(network, store, db.Sandblaster(), checkpoint=path, progress=False)
        else:
            db.resume(path, progress=False)
