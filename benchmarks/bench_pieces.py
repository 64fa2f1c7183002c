r"""How much faster a network is trained in pieces on two workers than in one piece on one.

Two networks: the paper's dense speech network (440-2560-2560-2560-2560-8192, 41.8 million parameters), and one in the
shape of its image model, three stages of unshared filters, L2 pooling and local contrast normalisation, scaled to this
machine. Rows are drawn at random: no frames of speech are at hand, and the arithmetic is the same. Each worker is a
process with one thread for a replica; the machine has two cores. One replica of Downpour by plain SGD, which fetches
once and pushes at the end of its only lease, so that what is timed is the mini-batch alone: the lead's computing, with
what it waits for the other piece. Inference is `db.predict` of ten times the rows, timed as a whole. The median of the
turns counts. Asked for: 1.4 of the first, 1.6 of the second, trained and predicting. From
the root of the repository, with the environment's OPENBLAS_* settings out of the way::

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python -m benchmarks.bench_pieces \
        --json benchmarks/results/pieces.json
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from distributed import Client, LocalCluster

import dask_belief as db
from benchmarks.record import Record
from dask_belief.monitoring.events import DownpourProgressed
from dask_belief.seeds import stream


@dataclass(frozen=True)
class Subject:
    """A network that is timed, and the ways in which it is cut in two."""

    network: db.Network
    batch_rows: int
    cuts: tuple[tuple[str, int], ...]
    """By what, and into how many micro-batches."""

    asked: float


SPEECH = Subject(
    db.Network([*(db.Dense(2560, "sigmoid") for _ in range(4)), db.Dense(8192)], "softmax", (440,)),
    200,
    (("units", 1), ("units", 2), ("layers", 8)),
    1.4,
)
IMAGES = Subject(
    db.Network(
        [
            db.LocallyConnected2D(8, 10),
            db.L2Pool2D(5, 2),
            db.LocalContrastNorm2D(5),
            db.LocallyConnected2D(8, 8),
            db.L2Pool2D(3, 2),
            db.LocalContrastNorm2D(3),
            db.LocallyConnected2D(8, 5),
            db.L2Pool2D(2),
            db.LocalContrastNorm2D(3),
            db.Dense(100),
        ],
        "softmax",
        (64, 64, 3),
    ),
    64,
    (("rows", 1), ("rows", 2)),
    1.6,
)
SUBJECTS = {"speech": SPEECH, "images": IMAGES}


@dataclass(frozen=True)
class Timed:
    """One run."""

    seconds_per_batch: float
    waiting_share: float
    """Of that, what the lead waited for the other pieces."""


def run(subject: Subject, cut: tuple[str, int] | None, n_batches: int) -> Timed:
    """Train on as many workers as there are pieces."""
    random, network = stream(0, "rows of pieces"), subject.network
    n_rows, n_pieces = n_batches * subject.batch_rows, 1 if cut is None else 2
    inputs = random.normal(size=(n_rows, *network.input_shape)).astype(np.float32)
    targets = random.integers(0, network.n_outputs, n_rows)
    method = db.Downpour(
        n_replicas=1,
        n_shards=n_pieces,
        rule=db.SGD(1e-4),
        batch_size=subject.batch_rows,
        lease_rows=n_rows,
        n_fetch=n_batches,
        n_push=n_batches,
        epochs=1,
    )
    objective = network if cut is None else db.partition(network, 2, cut[0], micro_batches=cut[1])
    with (
        LocalCluster(n_workers=n_pieces, threads_per_worker=1, dashboard_address=None, memory_limit=0) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        data = db.ArrayDataset(inputs, targets, chunk_rows=n_rows)
        result = db.train(objective, data, method, client=client, progress=False)
    *_, last = (event for event in result.history.events if isinstance(event, DownpourProgressed) and event.replicas)
    [replica] = last.replicas
    return Timed(replica.computing_seconds / replica.steps, replica.pieces_waiting_seconds / replica.computing_seconds)


def predicted(subject: Subject, cut: tuple[str, int] | None, n_batches: int) -> float:
    """Predict on as many workers as there are pieces; gives seconds for a mini-batch."""
    network = subject.network
    n_rows, n_pieces = n_batches * subject.batch_rows, 1 if cut is None else 2
    inputs = stream(1, "rows of pieces").normal(size=(n_rows, *network.input_shape)).astype(np.float32)
    parameters = network.initial_parameters(0)
    model = network if cut is None else db.partition(network, 2, cut[0], micro_batches=cut[1])
    options: dict[str, Any] = {"batch_rows": subject.batch_rows, "progress": False}
    with (
        LocalCluster(n_workers=n_pieces, threads_per_worker=1, dashboard_address=None, memory_limit=0) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        db.predict(model, parameters, inputs[: subject.batch_rows], client=client, **options)
        began = time.perf_counter()
        db.predict(model, parameters, inputs, client=client, **options)
        return (time.perf_counter() - began) / n_batches


def measured(subject: Subject, turns: int, n_batches: int) -> dict[str, Any]:
    """Time a network whole and in two pieces, in turns."""
    runs: dict[str, list[Timed]] = {}
    predictions: dict[str, list[float]] = {}
    for turn in range(turns):
        for cut in (None, *subject.cuts):
            name = "whole" if cut is None else f"by {cut[0]}, micro-batches {cut[1]}"
            timed = run(subject, cut, n_batches)
            runs.setdefault(name, []).append(timed)
            waited = f"{timed.waiting_share:.0%} waiting"
            predictions.setdefault(name, []).append(seconds_predicting := predicted(subject, cut, 10 * n_batches))
            print(
                f"  turn {turn}: {name}: {timed.seconds_per_batch:.3f} s a mini-batch, {waited}; predicting "
                f"{seconds_predicting:.3f} s",
                flush=True,
            )
    of_predictions = {name: median(each) for name, each in predictions.items()}
    seconds = {name: median(each.seconds_per_batch for each in timed) for name, timed in runs.items()}
    return {
        "runs": {name: [asdict(each) for each in timed] for name, timed in runs.items()},
        "median_seconds_per_batch": seconds,
        "speedups": {name: seconds["whole"] / each for name, each in seconds.items()},
        "waiting_shares": {name: median(each.waiting_share for each in timed) for name, timed in runs.items()},
        "predicting_seconds_per_batch": predictions,
        "predicting_speedups": {name: of_predictions["whole"] / each for name, each in of_predictions.items()},
        "asked_speedup": subject.asked,
        "batch_rows": subject.batch_rows,
        "n_parameters": subject.network.n_parameters,
        "sent_bytes_per_batch": {
            by: db.partition(subject.network, 2, by).sent_bytes(subject.batch_rows) for by, _ in subject.cuts
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures, with commit and machine, to this file")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--batches", type=int, default=8, help="mini-batches of a run")
    parser.add_argument("--only", choices=list(SUBJECTS), help="time one of the networks")
    options = parser.parse_args()
    record = Record("How much faster is a network trained in two pieces than in one?")
    figures = {}
    for name, subject in SUBJECTS.items():
        if options.only in (None, name):
            print(name)
            figures[name] = found = measured(subject, options.turns, options.batches)
            for cut, speedup in found["speedups"].items():
                predicting = found["predicting_speedups"][cut]
                print(
                    f"{name}, {cut}: {speedup:.2f} times the speed of the whole, predicting {predicting:.2f} (asked: "
                    f"{subject.asked})"
                )
    if options.json:
        record.write(options.json, figures)


if __name__ == "__main__":
    main()
