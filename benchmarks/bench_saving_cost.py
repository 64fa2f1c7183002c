r"""What saving a run as it goes costs: its seconds with saving at the default interval over those without any.

A network 784-1024-1024-10 (1.9 million parameters, 7.4 MB) on images of Fashion-MNIST, two single-thread workers, two
shards; a fixed number of iterations of Sandblaster, and of passes of Downpour. Runs that save nothing, that save to the
memory of workers, and that save to a checkpoint on disk take turns, in another order each time, and each run that saves
is compared with the one of its turn that does not. Asked for: at most 5 %, by the median. From the root of the
repository::

    python -m benchmarks.bench_saving_cost --json benchmarks/results/saving_cost.json
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

from distributed import Client, LocalCluster

import dask_belief as db
from benchmarks.fashion_mnist import N_CLASSES, N_FEATURES, load, write_store
from benchmarks.record import Record
from dask_belief.monitoring.events import Saved
from dask_belief.parameter_server.vault import Vault

NETWORK = db.Network([db.Dense(1024, "relu"), db.Dense(1024, "relu"), db.Dense(N_CLASSES)], "softmax", (N_FEATURES,))
N_ROWS, N_WORKERS, N_SHARDS = 12_000, 2, 2
NOTHING, MEMORY, CHECKPOINT = "nothing", "memory of workers", "checkpoint on disk"
WAYS = (NOTHING, MEMORY, CHECKPOINT)

MOST_COST = 1.05
"""What is asked for."""


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes
    ----------
    method, way, turn
        What was trained, where it was saved, and in which turn.
    seconds
        Of the whole run.
    n_saves, saved_bytes, saving_seconds
        How often it was saved, the bytes of vectors that were carried for it, and how long that took beside the work.
    """

    method: str
    way: str
    turn: int
    seconds: float
    n_saves: int
    saved_bytes: int
    saving_seconds: float


def methods(n_iterations: int, n_epochs: int) -> dict[str, db.Sandblaster | db.Downpour]:
    """What is trained, by name."""
    return {
        "Sandblaster": db.Sandblaster(max_iter=n_iterations, l2=1e-4, gtol=0.0, ftol=0.0, n_shards=N_SHARDS),
        "Downpour": db.Downpour(n_shards=N_SHARDS, n_fetch=5, n_push=5, epochs=n_epochs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures, with commit and machine, to this file")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--iterations", type=int, default=40, help="of Sandblaster")
    parser.add_argument("--epochs", type=int, default=20, help="of Downpour")
    parser.add_argument("--quick", action="store_true", help="a turn of short runs: to see that it runs")
    arguments = parser.parse_args()
    n_turns, n_iterations, n_epochs = arguments.turns, arguments.iterations, arguments.epochs
    if arguments.quick:
        n_turns, n_iterations, n_epochs = 1, 5, 2

    record = Record(__doc__.splitlines()[0])
    runs: list[Run] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(n_workers=N_WORKERS, threads_per_worker=1, memory_limit=0, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        dataset = write_store(load("train", N_ROWS), Path(folder) / "rows.zarr")
        for name, method in methods(n_iterations, n_epochs).items():
            # So that the first import and the first read are not measured.
            db.train(NETWORK, dataset, methods(2, 1)[name], client=client, progress=False)
            for turn in range(n_turns):
                for way in (*WAYS[turn % 3 :], *WAYS[: turn % 3]):
                    runs.append(measure(name, method, dataset, client, way, turn, Path(folder)))
                    print(line(runs[-1]), flush=True)
    costs = {f"{name}, {way}": costs_of(runs, name, way) for name in methods(1, 1) for way in WAYS[1:]}
    for name, found in costs.items():
        print(f"{name:34} {median(found):.3f} times ({min(found):.3f} to {max(found):.3f}); asked for {MOST_COST}")
    if arguments.json:
        figures = {
            "quick": arguments.quick,
            "workers": N_WORKERS,
            "shards": N_SHARDS,
            "rows": N_ROWS,
            "parameters": NETWORK.n_parameters,
            "cost_allowed": MOST_COST,
            "cost": {name: median(found) for name, found in costs.items()},
            "costs": costs,
            "runs": [asdict(run) for run in runs],
        }
        record.write(arguments.json, figures)


def measure(name: str, method: Any, dataset: db.ZarrDataset, client: Client, way: str, turn: int, folder: Path) -> Run:
    """Train in one of the ways."""
    checkpoint = folder / f"{name}-{turn}" if way == CHECKPOINT else None
    with saving_nothing() if way == NOTHING else contextlib.nullcontext():
        result = db.train(NETWORK, dataset, method, client=client, progress=False, checkpoint=checkpoint)
    saves = [event for event in result.history.events if isinstance(event, Saved)]
    return Run(
        name,
        way,
        turn,
        result.seconds,
        len(saves),
        sum(event.n_bytes for event in saves),
        sum(event.took_seconds for event in saves),
    )


def saving_nothing() -> contextlib.AbstractContextManager[object]:
    """Let no save be due; the driver keeps its own copy of the parameters as ever."""
    return mock.patch.object(Vault, "is_due", lambda vault, now: False)


def costs_of(runs: Sequence[Run], method: str, way: str) -> list[float]:
    """The seconds of each run of a way over those of the same turn's run that saves nothing."""
    seconds = {(run.way, run.turn): run.seconds for run in runs if run.method == method}
    return [seconds[way, turn] / without for (name, turn), without in sorted(seconds.items()) if name == NOTHING]


def line(run: Run) -> str:
    return (
        f"{run.method:12} {run.way:20} turn {run.turn}: {run.seconds:7.2f} s, {run.n_saves} saves, "
        f"{run.saved_bytes / 1e6:.0f} MB, in {run.saving_seconds:.2f} s beside the work"
    )


if __name__ == "__main__":
    main()
