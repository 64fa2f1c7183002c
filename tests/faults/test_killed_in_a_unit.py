"""A worker is killed in the middle of an evaluation, while it computes a unit that was settled beforehand."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from distributed import Client

import dask_belief as db
from dask_belief.cluster.placement import place
from dask_belief.monitoring.events import Event, IterationEnded, Rebuilt, WorkerLost

LIMIT_SECONDS = 60.0


class Doomed:
    """A network; once it is armed, one process dies at its n-th unit, and no other computes before that.

    Parameters
    ----------
    folder
        Where a file says that it is armed, and another that the process dies now.
    pid
        The process.
    n_units
        The unit at which it dies, counted from the arming; half of its rows are computed then.
    """

    def __init__(self, folder: Path, pid: int, n_units: int) -> None:
        self.network = db.Network([db.Dense(8, "sigmoid"), db.Dense(1)], loss="logistic", input_shape=(20,))
        self.n_parameters = self.network.n_parameters
        self.penalised = self.network.penalised
        self.armed, self.dying = folder / "armed", folder / "dying"
        self.pid = pid
        self.n_units = n_units

    def initial_parameters(self, seed: int) -> np.ndarray:
        return self.network.initial_parameters(seed)

    def loss_and_gradient(self, parameters, inputs, targets):
        if self.armed.exists() and not self.dying.exists():
            if os.getpid() == self.pid:
                self._die_soon(parameters, inputs, targets)
            else:
                self._wait()
        return self.network.loss_and_gradient(parameters, inputs, targets)

    def _die_soon(self, parameters, inputs, targets) -> None:
        self.n_units -= 1
        if self.n_units == 0:
            half = len(inputs) // 2
            self.network.loss_and_gradient(parameters, inputs[:half], targets[:half])
            self.dying.touch()
            os.kill(self.pid, signal.SIGKILL)

    def _wait(self) -> None:
        until = time.monotonic() + LIMIT_SECONDS
        while not self.dying.exists():
            assert time.monotonic() < until, "nobody died"
            threading.Event().wait(0.01)


def placed(client: Client, role: str) -> int:
    """The process that will hold the one shard, or replicas only."""
    pids = client.run(os.getpid)
    placement = place(list(pids), 1)
    [idle] = set(pids) - {placement.hub, *placement.shards}
    return pids[{"shard": placement.shards[0], "replica": idle}[role]]


def train(client: Client, store: Path, objective: Doomed, method: db.Sandblaster) -> db.TrainingResult:
    """Train; the objective is armed after the third iteration."""

    def arm(event: Event) -> None:
        if isinstance(event, IterationEnded) and event.iteration == 3:
            objective.armed.touch()

    return db.train(objective, store, method, client=client, callbacks=[arm], progress=False)


@pytest.mark.parametrize(
    ("options", "n_units"), [({"l2": 1e-3}, 3), ({"l1": 1e-3}, 12)], ids=["in its first lease", "after some, with l1"]
)
def test_the_trajectory_keeps_its_bits(client: Client, store: Path, tmp_path: Path, options, n_units: int) -> None:
    """What the killed replica had pushed counts once, the rest is computed by others: no bit is another."""
    method = db.Sandblaster(max_iter=8, **options)
    objective = Doomed(tmp_path, placed(client, "replica"), n_units)
    unbroken = db.train(objective.network, store, method, client=client, progress=False)
    result = train(client, store, objective, method)
    assert objective.dying.exists()
    kinds = [type(event) for event in result.history.events]
    assert WorkerLost in kinds and Rebuilt not in kinds
    assert result.history["loss"] == unbroken.history["loss"]
    assert result.history["step"] == unbroken.history["step"]
    assert result.parameters.tobytes() == unbroken.parameters.tobytes()
    assert result.repeatable


def test_the_run_goes_on_when_the_shard_dies_in_a_unit(client: Client, store: Path, tmp_path: Path) -> None:
    """All shards go back to what was saved, or to the beginning, and the trajectory keeps its bits."""
    method = db.Sandblaster(max_iter=60, l2=1e-2, gtol=1e-3, ftol=0.0)
    objective = Doomed(tmp_path, placed(client, "shard"), 3)
    unbroken = db.train(objective.network, store, method, client=client, progress=False)
    result = train(client, store, objective, method)
    assert objective.dying.exists()
    assert Rebuilt in [type(event) for event in result.history.events]
    assert result.repeatable
    assert result.stop.converged
    assert result.history["loss"] == unbroken.history["loss"]
    assert result.parameters.tobytes() == unbroken.parameters.tobytes()
