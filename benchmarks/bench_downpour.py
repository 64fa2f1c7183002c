"""Whether Downpour SGD learns as well, in as many passes, as plain mini-batch Adagrad in one process.

A network 784-256-10 on Fashion-MNIST: Downpour with two replicas and two shards, a fetch and a push each mini-batch,
against a plain loop with the same network, initial parameters, rule, rate, batch size and number of passes. What counts
is the test accuracy of the last parameters, the mean of three seeds; no validation set chooses among points. From the
root of the repository, with the environment's OPENBLAS_* settings out of the way::

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python -m benchmarks.bench_downpour \
        --json benchmarks/results/downpour.json
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

import numpy as np
from distributed import Client, LocalCluster

import dask_belief as db
from benchmarks.fashion_mnist import N_CLASSES, N_FEATURES, Rows, load, write_store
from benchmarks.record import Record

NETWORK = db.Network([db.Dense(256, "relu"), db.Dense(N_CLASSES)], "softmax", (N_FEATURES,))
RULE = db.Adagrad(0.02)
BATCH_ROWS = 100
N_REPLICAS = N_SHARDS = 2
MOST_BELOW = 0.005
"""What is asked for: our mean accuracy is lower than plain Adagrad's by at most this."""


@dataclass(frozen=True)
class Trained:
    """One training run."""

    seed: int
    accuracy: float
    """Over the test rows, at the last parameters."""
    seconds: float
    rows_per_second: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures, with commit and machine, to this file")
    parser.add_argument("--quick", action="store_true", help="6,000 rows, two passes, one seed: to see that it runs")
    arguments = parser.parse_args()
    n_rows, epochs, seeds = (6000, 2, [0]) if arguments.quick else (None, 5, [0, 1, 2])

    record = Record(__doc__.splitlines()[0])
    train, test = load("train", n_rows), load("test")
    plain = [by_plain_adagrad(train, test, epochs, seed) for seed in seeds]
    tell("plain Adagrad, one thread", plain)
    ours = by_downpour(train, test, epochs, seeds)
    tell(f"Downpour, {N_REPLICAS} replicas", ours)
    difference = mean(run.accuracy for run in ours) - mean(run.accuracy for run in plain)
    print(f"ours is {100 * difference:+.2f} points above plain; at least {-100 * MOST_BELOW:+.2f} is asked for")
    if arguments.json:
        figures = {
            "quick": arguments.quick,
            "rows": len(train.targets),
            "epochs": epochs,
            "batch_rows": BATCH_ROWS,
            "rule": RULE.to_config(),
            "plain": [asdict(run) for run in plain],
            "downpour": [asdict(run) for run in ours],
            "accuracy_difference": difference,
            "accuracy_difference_allowed": -MOST_BELOW,
        }
        record.write(arguments.json, figures)


def by_plain_adagrad(train: Rows, test: Rows, epochs: int, seed: int) -> Trained:
    """Train by the loop that everyone would write, on one thread: all rows shuffled, one step a mini-batch."""
    db.get_backend("numpy").single_thread()
    parameters = NETWORK.initial_parameters(seed)
    gradient, state = np.empty_like(parameters), RULE.init(parameters)
    inputs, generator = train.scaled(), np.random.default_rng(seed)
    start = time.perf_counter()
    for _ in range(epochs):
        order = generator.permutation(len(inputs))
        for first in range(0, len(order), BATCH_ROWS):
            rows = order[first : first + BATCH_ROWS]
            NETWORK.loss_and_gradient(parameters, inputs[rows], train.targets[rows], out=gradient)
            gradient /= len(rows)
            RULE.apply(parameters, gradient, state)
    return outcome(seed, parameters, test, epochs * len(inputs), time.perf_counter() - start)


def by_downpour(train: Rows, test: Rows, epochs: int, seeds: Sequence[int]) -> list[Trained]:
    """Downpour on two processes, one thread each, that hold both shards and both replicas."""
    method = db.Downpour(
        n_replicas=N_REPLICAS, n_shards=N_SHARDS, rule=RULE, batch_size=BATCH_ROWS, n_fetch=1, n_push=1, epochs=epochs
    )
    trained = []
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(n_workers=N_REPLICAS, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        dataset = write_store(train, Path(folder) / "train.zarr")
        for seed in seeds:
            result = db.train(NETWORK, dataset, method, client=client, seed=seed, progress=False)
            n_rows = round(result.passes * dataset.n_rows)
            trained.append(outcome(seed, result.parameters, test, n_rows, result.seconds))
    return trained


def outcome(seed: int, parameters: np.ndarray, test: Rows, n_rows: int, seconds: float) -> Trained:
    predictions = NETWORK.predict(parameters, test.scaled())
    accuracy = float(np.mean(predictions.argmax(axis=1) == test.targets))
    return Trained(seed, accuracy, seconds, n_rows / seconds)


def tell(name: str, runs: Sequence[Trained]) -> None:
    each = ", ".join(f"{run.accuracy:.4f}" for run in runs)
    print(
        f"{name:26}accuracy {mean(run.accuracy for run in runs):.4f} ({each}), "
        f"{mean(run.seconds for run in runs):.1f} s, {mean(run.rows_per_second for run in runs):,.0f} rows a second",
        flush=True,
    )


if __name__ == "__main__":
    main()
