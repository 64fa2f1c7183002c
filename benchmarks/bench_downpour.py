r"""Whether Downpour SGD learns as well, in as many passes, as synchronous training and as plain mini-batch Adagrad.

A network 784-256-10 on Fashion-MNIST, mini-batches of 100 rows, five passes; Downpour with two shards. What counts is
the test accuracy of the last parameters, the mean of five seeds; no validation set chooses among points.

1. Four replicas with a fetch and a push each mini-batch, against four that step together (`db.Synchronous`). Asked
   for: at most 0.3 points below. Beside them the other ways: a fetch and a push every 5 and every 20 mini-batches, a
   limit on staleness, rates scaled by staleness, a backup replica, elastic averaging, with two seeds. Each has the
   best of three rates of its own, found with another seed and without the test rows: trained on the first 50,000
   rows, compared on the others.
2. Two replicas with a fetch and a push each mini-batch, against a plain loop in one process, with the same rate for
   both: 0.02. Asked for: at most 0.5 points below.

Rates of Adagrad, whose accumulator begins at 0.1. From the root of the repository, with the environment's OPENBLAS_*
settings out of the way::

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python -m benchmarks.bench_downpour \
        --json benchmarks/results/downpour.json
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from distributed import Client, LocalCluster

import dask_belief as db
from benchmarks.fashion_mnist import N_CLASSES, N_FEATURES, Rows, load, write_store
from benchmarks.record import Record
from dask_belief.monitoring.events import DownpourProgressed

NETWORK = db.Network([db.Dense(256, "relu"), db.Dense(N_CLASSES)], "softmax", (N_FEATURES,))
BATCH_ROWS = 100
N_REPLICAS = 4
N_SHARDS = 2
PLAIN_RULE = db.Adagrad(0.02)
RATES = (0.01, 0.02, 0.04)
TUNING_SEED = 100
N_SEEDS_BESIDE = 2
"""Of the ways that no figure is asked for."""

TUNING_PART = 5 / 6
"""Of the training rows, on which the runs that choose a rate are trained."""

MOST_BELOW_SYNCHRONOUS, MOST_BELOW_PLAIN = 0.003, 0.005
"""What is asked for: our mean accuracy is lower than the other's by at most this."""


def downpour(**options: Any) -> db.Downpour:
    """Four replicas, with what is named changed."""
    given = {"n_replicas": N_REPLICAS, "n_shards": N_SHARDS, "batch_size": BATCH_ROWS, "n_fetch": 1, "n_push": 1}
    return db.Downpour(**(given | options))


DOWNPOUR, SYNCHRONOUS = "n_fetch = n_push = 1", "Synchronous()"
WAYS = {
    DOWNPOUR: downpour(),
    "n_fetch = n_push = 5": downpour(n_fetch=5, n_push=5),
    "n_fetch = n_push = 20": downpour(n_fetch=20, n_push=20),
    "MaxStaleness(1)": downpour(staleness=db.MaxStaleness(1)),
    "ScaleByStaleness()": downpour(staleness=db.ScaleByStaleness()),
    SYNCHRONOUS: downpour(staleness=db.Synchronous()),
    "Synchronous(backup_replicas=1)": downpour(staleness=db.Synchronous(backup_replicas=1)),
    "ElasticAveraging(), every 5": downpour(staleness=db.ElasticAveraging(), n_fetch=5, n_push=5),
}


@dataclass(frozen=True)
class Trained:
    """One training run."""

    seed: int
    rate: float
    accuracy: float
    """At the last parameters, over the test rows, or over those that are kept apart to choose a rate."""
    seconds: float
    rows_per_second: float
    staleness_mean: float | None = None
    """Of all pushes; None for a plain loop."""
    n_dropped: int = 0
    """Pushes that did not count."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures, with commit and machine, to this file")
    parser.add_argument(
        "--quick", action="store_true", help="6,000 rows, two passes, one seed, two rates: to see it run"
    )
    arguments = parser.parse_args()
    n_rows, epochs, n_seeds, rates = (6000, 2, 1, RATES[1:3]) if arguments.quick else (None, 5, 5, RATES)

    record = Record(__doc__.splitlines()[0])
    train, test = load("train", n_rows), load("test")
    with tempfile.TemporaryDirectory() as folder:
        tried, ways = compare_ways(train, test, epochs, n_seeds, rates, Path(folder))
        plain, ours = compare_with_plain(train, test, epochs, n_seeds, Path(folder))
    below_synchronous = tell_difference(
        "synchronous training", ways[DOWNPOUR], ways[SYNCHRONOUS], MOST_BELOW_SYNCHRONOUS
    )
    below_plain = tell_difference("plain Adagrad", ours, plain, MOST_BELOW_PLAIN)
    if arguments.json:
        figures = {
            "quick": arguments.quick,
            "rows": len(train.targets),
            "epochs": epochs,
            "batch_rows": BATCH_ROWS,
            "rates": rates,
            "tuning": {name: [asdict(run) for run in runs] for name, runs in tried.items()},
            "ways": {name: [asdict(run) for run in runs] for name, runs in ways.items()},
            "difference_from_synchronous": below_synchronous,
            "difference_from_synchronous_allowed": -MOST_BELOW_SYNCHRONOUS,
            "plain_rule": PLAIN_RULE.to_config(),
            "plain": [asdict(run) for run in plain],
            "downpour_as_plain": [asdict(run) for run in ours],
            "difference_from_plain": below_plain,
            "difference_from_plain_allowed": -MOST_BELOW_PLAIN,
        }
        record.write(arguments.json, figures)


# Ways to keep replicas together.


def compare_ways(
    train: Rows, test: Rows, epochs: int, n_seeds: int, rates: Sequence[float], folder: Path
) -> tuple[dict[str, list[Trained]], dict[str, list[Trained]]]:
    """Give, by way, the runs that chose the rate, and those with the rate of the best."""
    n_fitted = round(TUNING_PART * len(train.targets))
    fitted = Rows(train.inputs[:n_fitted], train.targets[:n_fitted])
    apart = Rows(train.inputs[n_fitted:], train.targets[n_fitted:])
    some, all_of_them = write_store(fitted, folder / "some.zarr"), write_store(train, folder / "train.zarr")
    tried: dict[str, list[Trained]] = {}
    found: dict[str, list[Trained]] = {}
    with cluster(N_REPLICAS) as client:
        for name, way in WAYS.items():
            method = replace(way, epochs=epochs)
            tried[name] = [by_downpour(client, some, apart, method, rate, TUNING_SEED) for rate in rates]
            best = max(tried[name], key=lambda run: run.accuracy).rate
            n_runs = n_seeds if name in (DOWNPOUR, SYNCHRONOUS) else min(n_seeds, N_SEEDS_BESIDE)
            found[name] = [by_downpour(client, all_of_them, test, method, best, seed) for seed in range(n_runs)]
            tell(name, found[name])
    return tried, found


def by_downpour(
    client: Client, dataset: db.ZarrDataset, test: Rows, method: db.Downpour, rate: float, seed: int
) -> Trained:
    method = replace(method, rule=db.Adagrad(rate))
    result = db.train(NETWORK, dataset, method, client=client, seed=seed, progress=False)
    last = [event for event in result.history if isinstance(event, DownpourProgressed)][-1]
    return Trained(
        seed=seed,
        rate=rate,
        accuracy=accuracy(result.parameters, test),
        seconds=result.seconds,
        rows_per_second=last.rows / last.seconds,
        # Not measured where replicas step together on their own.
        staleness_mean=last.staleness_mean if np.isfinite(last.staleness_mean) else None,
        n_dropped=last.n_dropped,
    )


@contextmanager
def cluster(n_workers: int) -> Iterator[Client]:
    """So many processes, one thread each."""
    with (
        LocalCluster(n_workers=n_workers, threads_per_worker=1, dashboard_address=":0") as made,
        Client(made) as client,
    ):
        yield client


# A plain loop.


def compare_with_plain(
    train: Rows, test: Rows, epochs: int, n_seeds: int, folder: Path
) -> tuple[list[Trained], list[Trained]]:
    """Give the runs of a plain loop, and those of two replicas."""
    plain = [by_plain_adagrad(train, test, epochs, seed) for seed in range(n_seeds)]
    tell("plain Adagrad, one thread", plain)
    method = downpour(n_replicas=2, epochs=epochs)
    with cluster(2) as client:
        dataset = write_store(train, folder / "plain.zarr")
        ours = [by_downpour(client, dataset, test, method, PLAIN_RULE.rate(0), seed) for seed in range(n_seeds)]
    tell("Downpour, two replicas", ours)
    return plain, ours


def by_plain_adagrad(train: Rows, test: Rows, epochs: int, seed: int) -> Trained:
    """Train by the loop that everyone would write, on one thread: all rows shuffled, one step a mini-batch."""
    db.get_backend("numpy").single_thread()
    parameters = NETWORK.initial_parameters(seed)
    gradient, state = np.empty_like(parameters), PLAIN_RULE.init(parameters)
    inputs, generator = train.scaled(), np.random.default_rng(seed)
    start, n_steps = time.perf_counter(), 0
    for _ in range(epochs):
        order = generator.permutation(len(inputs))
        for first in range(0, len(order), BATCH_ROWS):
            rows = order[first : first + BATCH_ROWS]
            NETWORK.loss_and_gradient(parameters, inputs[rows], train.targets[rows], out=gradient)
            gradient /= len(rows)
            PLAIN_RULE.apply(parameters, gradient, state, n_steps)
            n_steps += 1
    seconds = time.perf_counter() - start
    return Trained(seed, PLAIN_RULE.rate(0), accuracy(parameters, test), seconds, epochs * len(inputs) / seconds)


# Both.


def accuracy(parameters: np.ndarray, test: Rows) -> float:
    predictions = NETWORK.predict(parameters, test.scaled())
    return float(np.mean(predictions.argmax(axis=1) == test.targets))


def tell(name: str, runs: Sequence[Trained]) -> None:
    each = ", ".join(f"{run.accuracy:.4f}" for run in runs)
    staleness = [run.staleness_mean for run in runs if run.staleness_mean is not None]
    print(
        f"{name:31}rate {runs[0].rate}, accuracy {mean(run.accuracy for run in runs):.4f} ({each}), "
        f"{mean(run.rows_per_second for run in runs):,.0f} rows a second"
        + (f", staleness {mean(staleness):.1f}" if staleness else ""),
        flush=True,
    )


def tell_difference(other: str, ours: Sequence[Trained], theirs: Sequence[Trained], most_below: float) -> float:
    difference = mean(run.accuracy for run in ours) - mean(run.accuracy for run in theirs)
    print(
        f"Downpour is {100 * difference:+.2f} points above {other}; at least {-100 * most_below:+.2f} is asked for",
        flush=True,
    )
    return difference


if __name__ == "__main__":
    main()
