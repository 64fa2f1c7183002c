"""A callback raises: the error comes through at once with the best point, and nothing of the run is left anywhere."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from distributed import Client

import dask_belief as db
from dask_belief.checkpoint import CheckpointStore
from dask_belief.data.folder import PARTIAL
from dask_belief.monitoring.events import DownpourProgressed, Event, IterationEnded, RunStarted, Saved
from tests.faults.clusters import assert_clean
from tests.faults.wide import few_rows, wide_network
from tests.small_cluster import eventually

ENDED_SECONDS, LIMIT_SECONDS = 5.0, 60.0
METHODS = [
    db.Sandblaster(max_iter=100_000, gtol=0.0, ftol=0.0, n_shards=2),
    db.Downpour(epochs=100_000, n_shards=2),
]


class Planted(Exception):
    """What a callback raises."""


class Breaking:
    """A callback that raises at the n-th event of some kinds."""

    def __init__(self, after: int, *kinds: type) -> None:
        self.raised_at = 0.0
        self._after, self._kinds = after, kinds

    def __call__(self, event: Event) -> None:
        if isinstance(event, self._kinds):
            self._after -= 1
            if self._after == 0:
                self.raised_at = time.monotonic()
                raise Planted("planted")


def ours() -> list[str]:
    """Threads that are not Dask's own, which it keeps."""
    theirs = ("Dask", "IO loop", "Profile", "asyncio", "ThreadPoolExecutor")
    return sorted(each.name for each in threading.enumerate() if not any(name in each.name for name in theirs))


def run_into(client: Client, method, breaking: Breaking | HeldWriting, checkpoint: db.Checkpoint | None = None) -> None:
    """Run into the error; it comes soon, with a point, and leaves no task, actor or thread."""
    network, before = wide_network(2), ours()
    with pytest.raises(Planted, match="planted") as caught:
        db.train(
            network,
            few_rows(),
            method,
            client=client,
            callbacks=[breaking],
            progress=False,
            checkpoint=checkpoint,
        )
    assert time.monotonic() - breaking.raised_at < ENDED_SECONDS
    kept = caught.value.kept_parameters
    assert kept.shape == (network.n_parameters,) and kept.dtype == np.float32
    assert np.isfinite(kept).all()
    if checkpoint is None:
        assert_clean(client)
        eventually(lambda: ours() == before)


@pytest.mark.parametrize("method", METHODS, ids=type)
@pytest.mark.parametrize("kinds", [(RunStarted,), (IterationEnded, DownpourProgressed)], ids=["begins", "goes on"])
def test_error_of_a_callback_leaves_nothing(own_client: Client, method, kinds) -> None:
    """As the run begins, or in its midst."""
    run_into(own_client, method, Breaking(1 if kinds == (RunStarted,) else 2, *kinds))


class HeldWriting:
    """Once a run has saved, the next file that a worker writes is held when it has another name yet."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.has_saved, self.is_held, self.may_end = threading.Event(), threading.Event(), threading.Event()
        self.raised_at = 0.0
        self._replace = os.replace
        monkeypatch.setattr(os, "replace", self._held)

    def _held(self, unfinished: str, path: str) -> None:
        # The driver's own, of the manifest, is not held.
        is_a_worker = threading.current_thread() is not threading.main_thread()
        if PARTIAL in str(unfinished) and is_a_worker and self.has_saved.is_set():
            self.is_held.set()
            assert self.may_end.wait(LIMIT_SECONDS)
        self._replace(unfinished, path)

    def __call__(self, event: Event) -> None:
        """Raise while a file is held."""
        if isinstance(event, Saved):
            self.has_saved.set()
        elif self.is_held.is_set():
            self.raised_at = time.monotonic()
            raise Planted("planted")


@pytest.mark.parametrize("method", METHODS, ids=type)
def test_error_of_a_callback_during_a_save_leaves_the_checkpoint_whole(
    own_client: Client, tmp_path: Path, monkeypatch, method
) -> None:
    """It does not wait for the disk; what was saved before is complete, no file is half written, the run can go on."""
    held = HeldWriting(monkeypatch)
    path = tmp_path / "run"
    try:
        run_into(own_client, method, held, db.Checkpoint(path, every_seconds=0))
        assert list(path.rglob(f"*{PARTIAL}"))
    finally:
        held.may_end.set()
    assert_clean(own_client)
    eventually(lambda: not list(path.rglob(f"*{PARTIAL}")))
    kept = CheckpointStore(path)
    kept.verify(kept.newest())
    again = db.resume(path, dataset=few_rows(), client=own_client, callbacks=[stop_soon], progress=False)
    assert again.stop.reason is db.StopReason.CALLBACK
    assert_clean(own_client)


def stop_soon(event: Event) -> bool:
    """Stop at the first progress."""
    return isinstance(event, IterationEnded | DownpourProgressed)
