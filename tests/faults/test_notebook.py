"""A cell that trains is interrupted as a notebook does it: it has its result, and the next cell trains again."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client

from tests.faults.clusters import Clusters, assert_clean

LIMIT_SECONDS = 60.0
INTERRUPTED_SECONDS = 5.0
"""What a run may take to end after an interrupt, as the documentation promises."""

pytestmark = [pytest.mark.long, pytest.mark.timeout(100)]

PREPARED = """
import numpy as np
from distributed import Client, LocalCluster
import dask_belief as db
from dask_belief.monitoring.events import DownpourProgressed, IterationEnded

network = db.Network([db.Dense(8, "sigmoid"), db.Dense(1)], loss="logistic", input_shape=(20,))
methods = {
    "sandblaster": lambda n: db.Sandblaster(max_iter=n, l2=1e-3, gtol=0.0, ftol=0.0),
    "downpour": lambda n: db.Downpour(epochs=n),
}

def progressed(event):
    if isinstance(event, IterationEnded | DownpourProgressed):
        say("progressed")

def train(method, n):
    return db.train(network, STORE, methods[method](n), client=client, callbacks=[progressed], progress=False)
"""

CLUSTERS = {
    "elsewhere": "client = Client(ADDRESS, set_as_default=False)",
    "of an earlier cell": """
cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0")
client = Client(cluster, set_as_default=False)
""",
    "of the run": "client = None",
}
"""Where a notebook's workers are. All but the first are processes of its own group, and get its interrupts, too."""

ENDED = """
if client is not None:
    client.close()
    if client.cluster is not None:
        client.cluster.close()
"""


class Kernel:
    """`tests.faults.kernel` in a process, and what it says."""

    def __init__(self) -> None:
        self._said: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.kernel"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # A group of its own, as a notebook's server starts it.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._said.put(line.strip())

    def send(self, cell: str) -> None:
        """Let a cell run."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(cell) + "\n")
        self.process.stdin.flush()

    def await_word(self, *words: str, times: int = 1, limit_seconds: float = LIMIT_SECONDS) -> str:
        """Wait until it has said one of these words so often; gives the line."""
        until = time.monotonic() + limit_seconds
        while True:
            try:
                said = self._said.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"the kernel did not say {words} within {limit_seconds:g} seconds") from None
            times -= said.startswith(words)
            if times == 0:
                return said

    def run(self, cell: str) -> None:
        """Run a cell to its end."""
        self.send(cell)
        assert self.await_word("ran", "raised") == "ran"

    def interrupt(self) -> None:
        """As a notebook's server does it."""
        os.killpg(self.process.pid, signal.SIGINT)

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(10.0)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)
        self._reader.join(10.0)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def clusters() -> Iterator[Clusters]:
    """A cluster of two worker processes, which outlive their client."""
    with Clusters(n_workers=2) as clusters:
        yield clusters


@pytest.mark.parametrize(
    ("method", "where"),
    [
        ("sandblaster", "elsewhere"),
        ("downpour", "elsewhere"),
        ("downpour", "of an earlier cell"),
        ("sandblaster", "of the run"),
    ],
)
def test_interrupted_cell_has_its_result(clusters: Clusters, store: Path, method: str, where: str) -> None:
    """Within the time that is promised; nothing stays on the cluster, on which the next cell trains to its end."""
    client: Client = clusters.client()
    with Kernel() as kernel:
        kernel.run(PREPARED.replace("STORE", repr(str(store))))
        cluster = CLUSTERS[where].replace("ADDRESS", repr(str(client.scheduler.address)))
        kernel.run(cluster)
        kernel.send(f"result = train({method!r}, 100_000)")
        kernel.await_word("progressed", times=3)
        began = time.monotonic()
        kernel.interrupt()
        assert kernel.await_word("ran", "raised") == "ran"
        assert time.monotonic() - began < INTERRUPTED_SECONDS
        kernel.run("assert result.stop.reason is db.StopReason.INTERRUPTED")
        kernel.run("assert np.isfinite(result.parameters).all()")
        if where == "elsewhere":
            assert_clean(client)
        if where == "of an earlier cell":
            # Dask lets workers end by an interrupt, and makes no others unasked.
            kernel.run("cluster.close(); client.close()\n" + cluster)
        kernel.run(f"again = train({method!r}, 3)")
        kernel.run("assert again.stop.reason is not db.StopReason.INTERRUPTED and np.isfinite(again.loss)")
        kernel.run(ENDED)
    assert kernel.process.returncode == 0
    assert_clean(client)
