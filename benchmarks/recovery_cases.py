"""Losses whose recovery is measured: runs whose speed depends on the workers at work, and what happens to them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import dask_belief as db
from benchmarks.fashion_mnist import N_CLASSES, N_FEATURES, load
from benchmarks.faulty_cluster import FaultyCluster

N_WORKERS = 4
N_ROWS, CHUNK_ROWS, BATCH_ROWS = 4096, 128, 128
ROW_SECONDS = 0.0005

FROZEN_SECONDS = 5.0
"""The limit of the runs that are measured, a quarter of the default of 20, so that the measurement takes less time."""

STOPPED_SECONDS = FROZEN_SECONDS + 3.0
"""How long a frozen worker is stopped."""

LIMITS = db.Limits(frozen_seconds=FROZEN_SECONDS)
NETWORK = db.Network([db.Dense(100, "sigmoid"), db.Dense(N_CLASSES)], "softmax", (N_FEATURES,))


class TimedNetwork:
    """A network that waits half a millisecond a row, so that four workers fit on two cores."""

    n_parameters = NETWORK.n_parameters

    def initial_parameters(self, seed: int) -> np.ndarray:
        """Where training begins."""
        return NETWORK.initial_parameters(seed)

    def loss_and_gradient(self, parameters: np.ndarray, inputs: np.ndarray, targets: np.ndarray) -> tuple[float, Any]:
        """Wait, the time of the computing included, and give the network's loss and gradient."""
        until = time.perf_counter() + len(inputs) * ROW_SECONDS
        found = NETWORK.loss_and_gradient(parameters, inputs, targets)
        time.sleep(max(0.0, until - time.perf_counter()))
        return found


def write_rows(path: Path) -> db.ZarrDataset:
    """Write the first images of Fashion-MNIST."""
    rows = load("train", N_ROWS)
    return db.write_dataset(path, rows.inputs, rows.targets, chunk_rows=CHUNK_ROWS, scale=1 / 255)


def endless(method: str, **options: Any) -> db.Sandblaster | db.Downpour:
    """Give a method that does not come to its end by itself."""
    if method == "Sandblaster":
        given = {"max_iter": 100_000, "l2": 1e-4, "gtol": 0.0, "ftol": 0.0, "unit_rows": CHUNK_ROWS, "n_shards": 2}
        return db.Sandblaster(**(given | options))
    given = {"epochs": 100_000, "batch_size": BATCH_ROWS, "lease_rows": 2 * BATCH_ROWS, "n_shards": 2}
    return db.Downpour(**(given | options))


Act = Callable[[FaultyCluster, str], None]
"""Does something to a worker, and returns when it is done, or, where it lasts, when it has begun."""


def kill(cluster: FaultyCluster, worker: str) -> None:
    cluster.kill(worker)


def stop(cluster: FaultyCluster, worker: str) -> None:
    cluster.stop(worker)


def retire(cluster: FaultyCluster, worker: str) -> None:
    cluster.retire(worker)


@dataclass(frozen=True)
class Case:
    """A kind of loss.

    Attributes
    ----------
    name, method
        What is lost, and what trains.
    act
        What happens.
    role
        To whom: what the run has on that worker, and what it does not.
    options
        Of the method.
    """

    name: str
    method: str
    act: Act
    role: str
    options: dict[str, Any] = field(default_factory=dict)

    def victim(self, roles: dict[str, set[str]], workers: list[str]) -> str | None:
        """Choose the worker: one that is nothing else, or else one that is this at least."""
        if self.role == "replica":
            return next((worker for worker in workers if not roles.get(worker)), None)
        fitting = [worker for worker in workers if self.role in roles.get(worker, ())]
        # A keeper beside a shard is lost with every shard.
        return min(fitting, key=lambda worker: len(roles[worker] - {"keeper"}), default=None)


def cases(method: str) -> list[Case]:
    """What is measured on one cluster, for one method."""
    found = [
        Case("a replica's worker killed", method, kill, "replica"),
        Case("a shard's worker killed", method, kill, "shard"),
        Case("the hub's worker killed", method, kill, "hub"),
        Case("a keeper's worker killed", method, kill, "keeper", {"n_shards": 1}),
        Case("a replica's worker frozen", method, stop, "replica"),
        Case("a shard's worker frozen", method, stop, "shard"),
        Case("the hub's worker frozen", method, stop, "hub"),
        Case("a shard's worker retired", method, retire, "shard"),
        Case("the hub's worker retired", method, retire, "hub"),
        Case("a keeper's worker retired", method, retire, "keeper", {"n_shards": 1}),
    ]
    if method == "Downpour":
        found.insert(2, Case("a shard's worker killed, shard_copies=1", method, kill, "shard", {"shard_copies": 1}))
    return found
