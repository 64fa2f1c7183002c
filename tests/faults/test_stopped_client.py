"""The process that trains is killed, or interrupted: the cluster is clean afterwards, and the checkpoint is whole."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from distributed import Client

import dask_belief as db
from dask_belief.checkpoint import CheckpointStore
from dask_belief.data.folder import PARTIAL
from dask_belief.seeds import stream
from tests.faults.clusters import Clusters, assert_clean
from tests.faults.trainer import COUNTING, METHODS, counting, method_of, network

LIMIT_SECONDS = 60.0
INTERRUPTED_SECONDS = 5.0
"""What a run may take to end after Ctrl-C, as the documentation promises."""

ENDED = (0, -signal.SIGINT)
"""How a program ends that caught its interrupt. Python kills itself by SIGINT, with its last part well done, where the
interrupt met something that `exec` ran, as it runs the making of a dataclass, whoever caught it then."""


@pytest.fixture(scope="module")
def clusters() -> Iterator[Clusters]:
    """A cluster of three worker processes, which outlive their client."""
    with Clusters(n_workers=3) as clusters:
        yield clusters


class Trainer:
    """`tests.faults.trainer` in a process of its own, and what it says."""

    def __init__(self, client: Client, method: str, store: Path, folder: Path) -> None:
        self.checkpoint, self.result = folder / "checkpoint", folder / "result.zarr"
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        arguments = [str(client.scheduler.address), method, str(store), str(self.checkpoint), str(self.result)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.trainer", *arguments],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.strip())

    def await_word(self, *words: str, times: int = 1, limit_seconds: float = LIMIT_SECONDS) -> str:
        """Wait until it has said one of these words so often; gives the word."""
        until = time.monotonic() + limit_seconds
        while True:
            try:
                said = self._lines.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"the program did not say {words} within {limit_seconds:g} seconds") from None
            times -= any(said.startswith(word) for word in words)
            if times == 0:
                return said

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(30)
        self._reader.join(10.0)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("method", list(METHODS))
def test_a_killed_client_leaves_a_checkpoint_to_go_on_from(
    clusters: Clusters, store: Path, tmp_path: Path, method: str, seed: int
) -> None:
    """The cluster forgets the run by itself; another process goes on from what was saved last."""
    client = clusters.client()
    with Trainer(client, method, store, tmp_path) as trainer:
        n_saves = int(stream(seed, "killed client", method).integers(2, 6))
        trainer.await_word("saved", times=n_saves)
        trainer.process.send_signal(signal.SIGKILL)
        trainer.process.wait(30)
    # The scheduler keeps the run's announcer for `deserted_seconds`, as its client might come back.
    assert_clean(client, limit_seconds=20.0)
    result = db.resume(trainer.checkpoint, client=client, progress=False)
    assert_clean(client)
    if method == "sandblaster":
        unbroken = db.train(network(), store, METHODS[method], client=client, progress=False)
        assert result.parameters.tobytes() == unbroken.parameters.tobytes()
        assert result.history["loss"] == unbroken.history["loss"]
    else:
        assert result.stop.reason is db.StopReason.EPOCHS_DONE
        assert result.passes == METHODS[method].epochs
    assert np.isfinite(result.loss)


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1])
def test_a_killed_client_leaves_each_mini_batch_to_be_counted_once(
    clusters: Clusters, tmp_path: Path, seed: int
) -> None:
    """Over kill and resume: what was pushed after the last save is in no shard that is filled from it."""
    client, counted = clusters.client(), counting()
    rows = np.arange(counted.n_rows, dtype=np.float32)
    db.write_dataset(tmp_path / "rows.zarr", rows[:, None], rows, chunk_rows=64)
    with Trainer(client, COUNTING, tmp_path / "rows.zarr", tmp_path) as trainer:
        trainer.await_word("saved", times=int(stream(seed, "killed client", COUNTING).integers(2, 6)))
        trainer.process.send_signal(signal.SIGKILL)
        trainer.process.wait(30)
    assert_clean(client, limit_seconds=20.0)
    result = db.resume(trainer.checkpoint, objective=counted, client=client, progress=False)
    assert_clean(client)
    epochs = method_of(COUNTING).epochs
    assert "Resumed" in result.history["event"]
    assert result.stop.reason is db.StopReason.EPOCHS_DONE
    assert result.passes == epochs
    assert counted.found(result.parameters) == [[epochs]] * counted.n_shards


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("method", list(METHODS))
def test_an_interrupted_client_ends_at_once_and_cleanly(
    clusters: Clusters, store: Path, tmp_path: Path, method: str, seed: int
) -> None:
    """Ctrl-C at moments that the seed draws: the program has a result, the cluster nothing, the checkpoint is whole."""
    client = clusters.client()
    random = stream(seed, "interrupted client", method)
    with Trainer(client, method, store, tmp_path) as trainer:
        # Between two words, as they come some hundredths of a second apart.
        trainer.await_word("progressed", times=int(random.integers(1, 8)))
        threading.Event().wait(float(random.uniform(0.0, 0.2)))
        assert interrupt(trainer) == "ended"
        assert trainer.await_word("result") == "result INTERRUPTED"
        assert trainer.process.wait(30) in ENDED
    assert_clean(client)
    result = db.load_result(trainer.result)
    assert np.isfinite(result.parameters).all()
    # Downpour knows its loss after a pass over all rows, which nobody who interrupts waits for.
    assert np.isfinite(result.loss) or method == "downpour"
    assert_whole(trainer.checkpoint)


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("method", list(METHODS))
def test_a_client_that_is_interrupted_as_it_begins_leaves_nothing(
    clusters: Clusters, store: Path, tmp_path: Path, method: str, seed: int
) -> None:
    """While actors are made and replicas started there may be no result yet, but nothing stays behind either."""
    client = clusters.client()
    with Trainer(client, method, store, tmp_path) as trainer:
        trainer.await_word("begins")
        threading.Event().wait(float(stream(seed, "interrupted early", method).uniform(0.0, 0.3)))
        interrupt(trainer)
        assert trainer.process.wait(30) in ENDED
    assert_clean(client)
    assert_whole(trainer.checkpoint)


def interrupt(trainer: Trainer) -> str:
    """Send SIGINT, and wait for what becomes of it within the limit."""
    began = time.monotonic()
    trainer.process.send_signal(signal.SIGINT)
    word = trainer.await_word("ended", "interrupted")
    assert time.monotonic() - began < INTERRUPTED_SECONDS
    return word


def assert_whole(checkpoint: Path) -> None:
    """All that the newest manifest names is there, and no file is half written."""
    if not checkpoint.exists():
        return
    assert not [path for path in checkpoint.rglob("*") if PARTIAL in path.name]
    kept = CheckpointStore(checkpoint)
    if kept.numbers():
        kept.verify(kept.newest())
