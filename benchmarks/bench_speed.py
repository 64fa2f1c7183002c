r"""What an evaluation of Sandblaster costs on two single-thread workers, beside other programs on the same two cores.

1. Multinomial logistic regression on Fashion-MNIST (60,000 x 784 float32): seconds for each evaluation of L-BFGS,
   against scikit-learn's ``LogisticRegression``, SciPy's L-BFGS-B on an objective in NumPy, and PyTorch's ``LBFGS``
   with ``strong_wolfe``, each in one process with one thread and with two. The fastest of all counts.
2. A network 784-1024-1024-10: seconds for each gradient over all rows, against PyTorch's on two threads.
3. What of these evaluations is not computing: their seconds less those that the busiest replica computed. It covers
   messages, scheduling and the work on the parameters' vectors.

All data are in memory in all: the first evaluations, which read them, are not counted. Everything is measured in
turns, and the least of each counts, for what disturbs only ever adds. The others are run by a Python of their own,
``--torch-python``, which needs PyTorch, scikit-learn, SciPy and threadpoolctl; what it lacks is left out, and said.
From the root of the repository, with the environment's OPENBLAS_* settings out of the way::

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python -m benchmarks.bench_speed \
        --torch-python PATH --json benchmarks/results/speed.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client, LocalCluster

import dask_belief as db
from benchmarks import speed_competitors
from benchmarks.fashion_mnist import N_FEATURES, Rows, load, write_store
from benchmarks.record import Record
from dask_belief.monitoring.events import IterationEnded

MODELS = {
    "regression": db.Network([db.Dense(speed_competitors.N_CLASSES)], "softmax", (N_FEATURES,)),
    "network": db.Network(
        [*(db.Dense(units, "relu") for units in speed_competitors.WIDTHS[1:-1]), db.Dense(speed_competitors.N_CLASSES)],
        "softmax",
        (N_FEATURES,),
    ),
}
THREADS = (1, 2)
ITERATIONS = {"regression": 60, "network": 10}
"""Of ours, and evaluations of the others' regression; PyTorch's gradient is taken three times for each batch size."""

N_WARM_UP = 3
"""Iterations that are not counted."""

MOST_REGRESSION, MOST_NETWORK = 0.8, 1.0
"""What is asked for: our seconds over those of the fastest."""

MOST_OVERHEAD_SECONDS, MOST_OVERHEAD_SHARE = 0.015, 0.05
"""What is asked for: at most so many seconds, and this share of the computing besides."""


@dataclass(frozen=True)
class Evaluation:
    """Seconds of one evaluation, on average over a run."""

    seconds: float
    """From its predecessor's end to its own, by the wall clock."""

    busiest_seconds: float
    """Computing of the busiest replica."""

    vector_seconds: float
    """The driver's rounds of messages to the shards."""

    waiting_seconds: float
    """Of both replicas, without work."""

    reading_seconds: float
    """Of both replicas, without data."""

    @property
    def overhead_seconds(self) -> float:
        """What is not computing."""
        return self.seconds - self.busiest_seconds

    @property
    def allowed_overhead_seconds(self) -> float:
        """What it may be."""
        return MOST_OVERHEAD_SECONDS + MOST_OVERHEAD_SHARE * self.busiest_seconds

    def figures(self) -> dict[str, float]:
        """Give what is kept."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        overhead = {
            "overhead_seconds": self.overhead_seconds,
            "allowed_overhead_seconds": self.allowed_overhead_seconds,
        }
        return own | overhead


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures, with commit and machine, to this file")
    parser.add_argument("--quick", action="store_true", help="6,000 rows, one turn: to see that it runs")
    parser.add_argument("--turns", type=int, default=3, help="how often each is measured (default: 3)")
    parser.add_argument("--torch-python", default=sys.executable, help="the Python of the others (default: this one)")
    arguments = parser.parse_args()
    n_rows, turns = (6000, 1) if arguments.quick else (None, arguments.turns)

    record = Record(__doc__.splitlines()[0])
    rows = load("train", n_rows)
    ours: dict[str, list[Evaluation]] = {what: [] for what in MODELS}
    others: dict[str, dict[str, dict[str, Any]]] = {what: {} for what in MODELS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = write_store(rows, folder / "train.zarr")
        write_arrays(rows, folder)
        for turn in range(turns):
            for what, model in MODELS.items():
                ours[what].append(evaluation(model, dataset, ITERATIONS[what]))
                print(f"turn {turn + 1}, {what}: {line(ours[what][-1])}", flush=True)
                for n_threads in THREADS:
                    found = competitors(arguments.torch_python, folder, what, n_threads)
                    keep_least(others[what], found, n_threads)
    figures = {
        "quick": arguments.quick,
        "rows": len(rows.targets),
        "turns": turns,
        **{what: compare(what, ours[what], others[what]) for what in MODELS},
    }
    if arguments.json:
        record.write(arguments.json, figures)


# Ours.


def evaluation(model: db.Network, dataset: db.ZarrDataset, n_iterations: int) -> Evaluation:
    """Train on two workers and average over the iterations after the first ones."""
    method = db.Sandblaster(max_iter=n_iterations, history_size=10, l2=speed_competitors.L2, gtol=0.0, ftol=0.0)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        result = db.train(model, dataset, method, client=client, progress=False)
    events = [event for event in result.history if isinstance(event, IterationEnded)]
    last_left_out, counted = events[N_WARM_UP - 1], events[N_WARM_UP:]
    n_evaluations = counted[-1].evaluations - last_left_out.evaluations
    sums = {
        name: sum(getattr(event, name) for event in counted)
        for name in ("busiest_seconds", "vector_seconds", "waiting_seconds", "reading_seconds")
    }
    sums["seconds"] = counted[-1].seconds - last_left_out.seconds
    return Evaluation(**{name: seconds / n_evaluations for name, seconds in sums.items()})


def line(one: Evaluation) -> str:
    return (
        f"{1e3 * one.seconds:.1f} ms an evaluation, of which {1e3 * one.overhead_seconds:.1f} are not computing "
        f"(at most {1e3 * one.allowed_overhead_seconds:.1f} are asked for)"
    )


# Theirs.


def write_arrays(rows: Rows, folder: Path) -> None:
    """Write what the others read."""
    np.save(folder / "inputs.npy", rows.scaled())
    np.save(folder / "targets.npy", rows.targets)


def competitors(python: str, folder: Path, what: str, n_threads: int) -> dict[str, Any]:
    """Measure the others in a process of their own."""
    n_evaluations = {"regression": ITERATIONS["regression"], "network": 3}[what]
    program = str(Path(speed_competitors.__file__))
    done = subprocess.run(
        [python, program, str(folder), what, str(n_threads), str(n_evaluations)], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"NOTHING WAS MEASURED: {python} ended with an error.\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def keep_least(least: dict[str, dict[str, Any]], found: Mapping[str, Any], n_threads: int) -> None:
    """Keep the least seconds of each competitor, with the threads that gave it, and what was not installed."""
    for name, figures in found.items():
        if figures is None:
            least.setdefault(name, {"seconds": None, "version": None, "threads": None})
        elif name not in least or figures["seconds"] < least[name]["seconds"]:
            least[name] = {**figures, "threads": n_threads}


# Both.


def compare(what: str, ours: list[Evaluation], others: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Print and give the least of each, and whether it is what was asked for."""
    best = min(ours, key=lambda one: one.seconds)
    most = {"regression": MOST_REGRESSION, "network": MOST_NETWORK}[what]
    print(f"\n{what}: ours {line(best)}")
    for name, figures in others.items():
        if figures["seconds"] is None:
            print(f"  {name} is not installed there, and left out")
        else:
            print(
                f"  {name} {figures['version']}, {figures['threads']} threads: {1e3 * figures['seconds']:.1f} ms, "
                f"ours takes {best.seconds / figures['seconds']:.3f} of that"
            )
    seconds = [figures["seconds"] for figures in others.values() if figures["seconds"] is not None]
    ratio = best.seconds / min(seconds) if seconds else None
    if ratio is not None:
        print(f"  {ratio:.3f} of the fastest; at most {most} is asked for")
    least_overhead = min(ours, key=lambda one: one.overhead_seconds - one.allowed_overhead_seconds)
    return {
        "ours": best.figures(),
        "ours_of_all_turns": [one.figures() for one in ours],
        "others": others,
        "ratio": ratio,
        "ratio_allowed": most,
        "overhead": least_overhead.figures(),
    }


if __name__ == "__main__":
    main()
