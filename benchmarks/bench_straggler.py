r"""What a straggler costs: four workers, one of them ten times slower, with and without small units and backups.

A unit is a timed wait beside a small real gradient, so that four workers fit on two cores and nothing but the wait
decides; the slow worker waits ten times as long. The ideal is the work over the summed speeds, 3.1 of a quick worker.
Seconds per evaluation are taken from the run's history; they have messages, vector work and waiting in them. The first
iteration, in which no speed is known yet and replicas are started, is told apart. From the root of the repository::

    python -m benchmarks.bench_straggler --json benchmarks/results/straggler.json
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client, LocalCluster, get_worker

import dask_belief as db
from benchmarks.record import Record
from dask_belief.monitoring.events import IterationEnded

N_WORKERS = 4
SLOW_WORKER, SLOWNESS = N_WORKERS - 1, 10.0
N_ROWS, N_FEATURES, N_CLASSES = 6400, 20, 10
CHUNK_ROWS = 50
ROW_SECONDS = 0.001
IDEAL_SECONDS = N_ROWS * ROW_SECONDS / (N_WORKERS - 1 + 1 / SLOWNESS)

UNTIMED = db.Network([db.Dense(N_CLASSES)], "softmax", (N_FEATURES,))

MOST_OVER_IDEAL = 1.35
"""What is asked for, of small units with backups."""


@dataclass(frozen=True)
class Way:
    """How the work is cut, and when leases are copied."""

    name: str
    unit_rows: int
    backup_after: float | None


WAYS = (
    Way("small units, backups", CHUNK_ROWS, 1.5),
    Way("small units, no backups", CHUNK_ROWS, None),
    Way("one unit a worker, backups", N_ROWS // N_WORKERS, 1.5),
    Way("one unit a worker, no backups", N_ROWS // N_WORKERS, None),
)


class TimedRegression:
    """Softmax regression that waits a millisecond a row, and ten on the slow worker."""

    def __init__(self) -> None:
        self._network = UNTIMED

    @property
    def n_parameters(self) -> int:
        """The length of the parameter vector."""
        return self._network.n_parameters

    def initial_parameters(self, seed: int) -> np.ndarray:
        """Where training begins."""
        return self._network.initial_parameters(seed)

    def loss_and_gradient(self, parameters: np.ndarray, inputs: np.ndarray, targets: np.ndarray) -> tuple[float, Any]:
        """Wait, the time of the computing included, and give the network's loss and gradient."""
        until = time.perf_counter() + len(inputs) * ROW_SECONDS * slowness()
        found = self._network.loss_and_gradient(parameters, inputs, targets)
        time.sleep(max(0.0, until - time.perf_counter()))
        return found


def slowness() -> float:
    """How much slower than the others the worker is that this is called on."""
    return SLOWNESS if get_worker().name == SLOW_WORKER else 1.0


@dataclass(frozen=True)
class Outcome:
    """What one way took; counts of copies and wasted seconds are an evaluation."""

    way: str
    units: int
    evaluations: int
    seconds: float
    over_ideal: float
    worst_over_ideal: float
    first_over_ideal: float
    copies: float
    copies_won: float
    wasted_seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures, with commit and machine, to this file")
    parser.add_argument("--quick", action="store_true", help="three iterations of the first way: to see that it runs")
    arguments = parser.parse_args()
    ways, n_iterations = (WAYS[:1], 3) if arguments.quick else (WAYS, 8)

    record = Record(__doc__.splitlines()[0])
    print(f"ideal: {IDEAL_SECONDS:.2f} seconds an evaluation", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_rows(Path(folder) / "rows.zarr")
        outcomes = []
        for way in ways:
            outcomes.append(measure(way, dataset, n_iterations))
            print(line(outcomes[-1]), flush=True)
    print(f"asked for, of {WAYS[0].name}: at most {MOST_OVER_IDEAL} times the ideal")
    if arguments.json:
        figures = {
            "quick": arguments.quick,
            "workers": N_WORKERS,
            "slowness": SLOWNESS,
            "ideal_seconds": IDEAL_SECONDS,
            "over_ideal_allowed": MOST_OVER_IDEAL,
            "ways": [asdict(outcome) for outcome in outcomes],
        }
        record.write(arguments.json, figures)


def write_rows(path: Path) -> db.ZarrDataset:
    """Rows with a class that depends on them, so that there is something to fit."""
    random = np.random.default_rng(0)
    inputs = random.standard_normal((N_ROWS, N_FEATURES)).astype(np.float32)
    scores = inputs @ random.standard_normal((N_FEATURES, N_CLASSES)) + random.gumbel(size=(N_ROWS, N_CLASSES))
    db.write_dataset(path, inputs, scores.argmax(axis=1), chunk_rows=CHUNK_ROWS)
    return db.ZarrDataset(path)


def measure(way: Way, dataset: db.ZarrDataset, n_iterations: int) -> Outcome:
    """Train on four single-thread processes, and see what an evaluation took."""
    method = db.Sandblaster(
        max_iter=n_iterations, l2=1e-3, gtol=0.0, ftol=0.0, unit_rows=way.unit_rows, backup_after=way.backup_after
    )
    with (
        LocalCluster(n_workers=N_WORKERS, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(N_WORKERS)
        # So that processes that import the package for the first time are not measured.
        db.train(UNTIMED, dataset, db.Sandblaster(max_iter=1), client=client, progress=False)
        result = db.train(TimedRegression(), dataset, method, client=client, progress=False)
    iterations = [event for event in result.history if isinstance(event, IterationEnded)]
    first, last, rest = iterations[0], iterations[-1], iterations[1:]
    n_evaluations = last.evaluations - first.evaluations
    seconds = (last.seconds - first.seconds) / n_evaluations
    each = [
        (after.seconds - before.seconds) / (after.evaluations - before.evaluations)
        for before, after in zip(iterations, rest, strict=False)
    ]
    return Outcome(
        way=way.name,
        units=N_ROWS // way.unit_rows,
        evaluations=n_evaluations,
        seconds=seconds,
        over_ideal=seconds / IDEAL_SECONDS,
        worst_over_ideal=max(each) / IDEAL_SECONDS,
        first_over_ideal=first.seconds / first.evaluations / IDEAL_SECONDS,
        copies=sum(event.backups_started for event in rest) / n_evaluations,
        copies_won=sum(event.backups_won for event in rest) / n_evaluations,
        wasted_seconds=sum(event.backups_wasted_seconds for event in rest) / n_evaluations,
    )


def line(outcome: Outcome) -> str:
    return (
        f"{outcome.way:30}{outcome.seconds:6.2f} s an evaluation, {outcome.over_ideal:.3f} times the ideal (worst "
        f"iteration {outcome.worst_over_ideal:.3f}, first {outcome.first_over_ideal:.3f}); of {outcome.evaluations} "
        f"evaluations each {outcome.copies:.1f} copies, {outcome.copies_won:.1f} won, {outcome.wasted_seconds:.2f} s "
        "wasted"
    )


if __name__ == "__main__":
    main()
