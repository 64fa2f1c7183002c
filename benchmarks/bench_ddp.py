r"""How soon Downpour learns what PyTorch's DistributedDataParallel learns, on the same two cores.

A network 784-512-512-10 with ReLU on Fashion-MNIST, mini-batches of 100 rows a process, Adagrad without an initial
accumulator (PyTorch's default, and the better one here). Three programs:

- Downpour SGD with two replicas and two shards on two processes with one thread each, as in the paper, and with
  `ElasticAveraging` besides (which exchanges once in 5 or 20 mini-batches);
- PyTorch's DistributedDataParallel over gloo, two processes with one thread each (the gradients of 200 rows a step);
- PyTorch in one process with two threads, for comparison.

Asked for: the median, over five seeds, of our seconds to 88 % of the test rows right is at most 0.85 times DDP's; and
our rows a second are at least DDP's. What is the same for all:

- all rows are in memory as float32; PyTorch gathers each mini-batch by one ``index_select``, without loaders;
- the initial parameters of each seed; another seed is for choosing, for each program, one of five rates, and for ours,
  besides, how many mini-batches lie between fetches and between pushes: 1, 5 or 20;
- the clock begins at the first mini-batch: no start of processes and no sending of data counts. It goes on while the
  10,000 test rows are evaluated, each 15,000 rows: by both processes and between steps in DDP, beside the training in
  ours, on the same two cores. The end of the first evaluation that finds 88 % counts;
- every program trains a little before, which is not counted;
- rows a second come from runs of one pass without evaluations.

For DDP we take what was fastest here: the fused Adagrad, gradients as views of the buckets, buckets as they are by
default, loopback named to gloo. See `ddp_competitor` for all of it. The others are run by a Python of their own,
``--torch-python``, which needs NumPy and PyTorch. From the root of the repository, with the environment's OPENBLAS_*
settings out of the way::

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python -m benchmarks.bench_ddp \
        --torch-python PATH --json benchmarks/results/ddp.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from distributed import Client, LocalCluster

import dask_belief as db
from benchmarks import ddp_competitor
from benchmarks.fashion_mnist import N_CLASSES, N_FEATURES, Rows, load
from benchmarks.noted_network import Watch, noted, rows_per_second, seconds_until
from benchmarks.record import Record

WIDTHS = (N_FEATURES, 512, 512, N_CLASSES)
NETWORK = db.Network(
    [*(db.Dense(units, "relu") for units in WIDTHS[1:-1]), db.Dense(N_CLASSES)], "softmax", (N_FEATURES,)
)
BATCH_ROWS = 100
N_PROCESSES = 2
RATES = (0.0025, 0.005, 0.01, 0.02, 0.04)
INITIAL_ACCUMULATOR = 0.0
EXCHANGES = (1, 5, 20)
"""Mini-batches from one fetch to the next, and from one push to the next."""

ACCURACY = 0.88
VALIDATE_EVERY_STEPS = 150
"""Mini-batches of all processes: a quarter of a pass."""

MOST_EPOCHS = 10
"""A run that has not learned as much by then has not learned it."""

TUNING_SEED = 100
MOST_SECONDS, LEAST_SPEED = 0.85, 1.0
"""What is asked for: ours over DDP's."""


@dataclass(frozen=True)
class Program:
    """What is measured: one of the three, with ours at one of `EXCHANGES`."""

    name: str
    run: Callable[[Work, float, int, float | None], dict[str, Any]]
    """Of the work, the rate, the seed and the accuracy to train to, or None for one pass without evaluations. Gives
    ``"curve"`` and ``"rows_per_second"``."""


@dataclass(frozen=True)
class Work:
    """What all runs share."""

    folder: Path
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    torch_python: str
    epochs: int
    client: Client
    """Of two processes with one thread each, for ours; they sleep while others run."""


@dataclass(frozen=True)
class Reached:
    """A training run until it is good enough."""

    seed: int
    rate: float
    seconds: float | None
    """To the end of the first evaluation that was good enough; None where none was."""
    passes: float
    accuracy: float
    """The best that was found."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures, with commit and machine, to this file")
    parser.add_argument(
        "--quick", action="store_true", help="6,000 rows, 60 %%, one seed, two rates: to see that it runs"
    )
    parser.add_argument("--torch-python", default=sys.executable, help="the Python of the others (default: this one)")
    arguments = parser.parse_args()
    n_rows, rates, n_seeds, accuracy = (6000, RATES[1:3], 1, 0.6) if arguments.quick else (None, RATES, 5, ACCURACY)

    record = Record(__doc__.splitlines()[0])
    require_torch(arguments.torch_python)
    with tempfile.TemporaryDirectory() as name, cluster() as client:
        train, test = load("train", n_rows), load("test")
        folder = Path(name)
        write(folder, train, test, [TUNING_SEED, *range(n_seeds)])
        rows, held_out = (train.scaled(), train.targets), (test.scaled(), test.targets)
        work = Work(folder, rows, held_out, arguments.torch_python, MOST_EPOCHS, client)
        chosen = {program: choose(program, work, rates, accuracy) for program in PROGRAMS}
        tried = {program: runs for program, (_, runs) in chosen.items()}
        # All seeds for what is compared, one for the rest of the table.
        compared = {DDP, ONE_PROCESS, fastest(OURS, tried), fastest((*OURS, *ELASTIC), tried)}
        measured = {
            program: measure(work, program, rate, n_seeds if program in compared else 1, accuracy)
            for program, (rate, _) in chosen.items()
        }
    figures = {
        "quick": arguments.quick,
        "rows": len(train.targets),
        "widths": WIDTHS,
        "batch_rows": BATCH_ROWS,
        "rates": rates,
        "exchanges": EXCHANGES,
        "accuracy": accuracy,
        "validate_every_steps": VALIDATE_EVERY_STEPS,
        "tuning": {program.name: [asdict(run) for run in runs] for program, runs in tried.items()},
        "programs": {program.name: found for program, found in measured.items()},
        **compare(measured, tried),
    }
    if arguments.json:
        record.write(arguments.json, figures)


def require_torch(python: str) -> None:
    """End the program where the others cannot be measured."""
    try:
        done = subprocess.run([python, "-c", "import torch, numpy"], capture_output=True, text=True)
        problem = done.stderr if done.returncode else ""
    except OSError as error:
        problem = str(error)
    if problem:
        raise SystemExit(
            f"NOTHING WAS MEASURED: this benchmark needs PyTorch and NumPy in --torch-python, {Path(python).name}.\n"
            f"{problem}"
        )


def write(folder: Path, train: Rows, test: Rows, seeds: Sequence[int]) -> None:
    """Write what the others read."""
    for before, rows in (("", train), ("test_", test)):
        np.save(folder / f"{before}inputs.npy", rows.scaled())
        np.save(folder / f"{before}targets.npy", rows.targets)
    for seed in seeds:
        np.save(folder / f"initial_{seed}.npy", NETWORK.initial_parameters(seed))


# Ours.


def by_downpour(
    n_exchange: int, staleness: db.ElasticAveraging | None = None
) -> Callable[[Work, float, int, float | None], dict[str, Any]]:
    """Give what trains with so many mini-batches between fetches and between pushes."""

    def method(rate: float, epochs: int, should_validate: bool) -> db.Downpour:
        return db.Downpour(
            n_replicas=N_PROCESSES,
            n_shards=N_PROCESSES,
            rule=db.Adagrad(rate, initial_accumulator=INITIAL_ACCUMULATOR),
            batch_size=BATCH_ROWS,
            n_fetch=n_exchange,
            n_push=n_exchange,
            epochs=epochs,
            staleness=staleness,
            validate_every_steps=VALIDATE_EVERY_STEPS if should_validate else None,
        )

    def run(work: Work, rate: float, seed: int, until: float | None) -> dict[str, Any]:
        inputs, targets = work.train
        few = inputs[:4000], targets[:4000]
        train(work.client, work.folder, few, None, method(rate, 1, False), seed, None)
        if until is None:
            return train(work.client, work.folder, work.train, None, method(rate, 1, False), seed, None)
        return train(work.client, work.folder, work.train, work.test, method(rate, work.epochs, True), seed, until)

    return run


@contextmanager
def cluster() -> Iterator[Client]:
    """Two processes with one thread each."""
    with (
        LocalCluster(n_workers=N_PROCESSES, threads_per_worker=1, dashboard_address=":0") as made,
        Client(made) as client,
    ):
        yield client


def train(
    client: Client,
    folder: Path,
    rows: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray] | None,
    method: db.Downpour,
    seed: int,
    until: float | None,
) -> dict[str, Any]:
    network, watch = noted(NETWORK, folder), Watch(until)
    db.train(network, rows, method, client=client, validation=test, callbacks=[watch], seed=seed, progress=False)
    return {"curve": watch.curve(network), "rows_per_second": rows_per_second(network, BATCH_ROWS)}


# Theirs.


def by_torch(n_processes: int) -> Callable[[Work, float, int, float | None], dict[str, Any]]:
    """Give what trains by PyTorch, on two threads in all."""

    def run(work: Work, rate: float, seed: int, until: float | None) -> dict[str, Any]:
        options = ddp_competitor.Options(
            widths=WIDTHS,
            seed=seed,
            rate=rate,
            epochs=1 if until is None else work.epochs,
            batch_rows=BATCH_ROWS,
            validate_every_steps=None if until is None else VALIDATE_EVERY_STEPS,
            n_processes=n_processes,
            n_threads=N_PROCESSES // n_processes,
            initial_accumulator=INITIAL_ACCUMULATOR,
            until_accuracy=until,
        )
        done = subprocess.run(
            [work.torch_python, str(Path(ddp_competitor.__file__)), str(work.folder), json.dumps(asdict(options))],
            capture_output=True,
            text=True,
            # Else gloo asks by which name others would find this machine.
            env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
        )
        if done.returncode:
            raise SystemExit(f"NOTHING WAS MEASURED: PyTorch's program ended with an error.\n{done.stderr}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    return run


DDP = Program("PyTorch DDP, two processes", by_torch(N_PROCESSES))
ONE_PROCESS = Program("PyTorch, one process, two threads", by_torch(1))
OURS = tuple(Program(f"Downpour, n_fetch = n_push = {n}", by_downpour(n)) for n in EXCHANGES)
ELASTIC = tuple(
    Program(f"Downpour, elastic, n_fetch = n_push = {n}", by_downpour(n, db.ElasticAveraging())) for n in EXCHANGES[1:]
)
PROGRAMS = (DDP, ONE_PROCESS, *OURS, *ELASTIC)


# Both.


def choose(program: Program, work: Work, rates: Sequence[float], accuracy: float) -> tuple[float, list[Reached]]:
    """Give the rate that learned enough first, on a seed of its own, and what all have done."""
    tried = []
    for rate in rates:
        tried.append(reached(program, work, rate, TUNING_SEED, accuracy))
        print(f"choosing, {program.name}: {line(tried[-1])}", flush=True)
    best = min(tried, key=order)
    return best.rate, tried


def fastest(ways: Sequence[Program], tried: dict[Program, list[Reached]]) -> Program:
    """Give what learned enough first on the seed for choosing."""
    return min(ways, key=lambda program: min(order(run) for run in tried[program]))


def order(run: Reached) -> tuple[float, float]:
    """Sort by seconds, and those that did not learn enough by how much they learned."""
    return (math.inf if run.seconds is None else run.seconds, -run.accuracy)


def reached(program: Program, work: Work, rate: float, seed: int, accuracy: float) -> Reached:
    curve = program.run(work, rate, seed, accuracy)["curve"]
    seconds = seconds_until(curve, accuracy)
    best = max((point["accuracy"] for point in curve), default=0.0)
    return Reached(seed, rate, seconds, curve[-1]["passes"] if curve else 0.0, best)


def measure(work: Work, program: Program, rate: float, n_seeds: int, accuracy: float) -> dict[str, Any]:
    """Train with each seed until it is good enough, and one pass at full speed."""
    runs, speeds = [], []
    for seed in range(n_seeds):
        runs.append(reached(program, work, rate, seed, accuracy))
        speeds.append(program.run(work, rate, seed, None)["rows_per_second"])
        print(f"{program.name}: {line(runs[-1])}, {speeds[-1]:,.0f} rows a second", flush=True)
    return outcome(rate, runs, speeds)


def outcome(rate: float, runs: list[Reached], speeds: list[float]) -> dict[str, Any]:
    seconds = median(order(run)[0] for run in runs)
    return {
        "rate": rate,
        "runs": [asdict(run) for run in runs],
        "median_seconds": seconds if math.isfinite(seconds) else None,
        "rows_per_second": speeds,
        "median_rows_per_second": median(speeds),
    }


def line(run: Reached) -> str:
    when = "never" if run.seconds is None else f"in {run.seconds:.2f} s"
    return f"rate {run.rate}, seed {run.seed}: good enough {when}, {run.passes:.2f} passes, at best {run.accuracy:.4f}"


def compare(measured: dict[Program, dict[str, Any]], tried: dict[Program, list[Reached]]) -> dict[str, Any]:
    """Print a table and the ratios; ours is what was fastest on the seed for choosing, of all and as in the paper."""
    print()
    for program, found in measured.items():
        seconds = found["median_seconds"]
        when = "never" if seconds is None else f"{seconds:.2f} s"
        speed = found["median_rows_per_second"]
        print(f"{program.name:36} rate {found['rate']:<7} {when:>8} {speed:10,.0f} rows a second")
    figures: dict[str, Any] = {}
    for key, ways, other in (
        ("ddp", (*OURS, *ELASTIC), DDP),
        ("ddp_as_in_the_paper", OURS, DDP),
        ("one_process", (*OURS, *ELASTIC), ONE_PROCESS),
    ):
        ours = fastest(ways, tried)
        own, their = measured[ours], measured[other]
        both = own["median_seconds"] is not None and their["median_seconds"] is not None
        seconds = own["median_seconds"] / their["median_seconds"] if both else None
        speed = own["median_rows_per_second"] / their["median_rows_per_second"]
        figures[key] = {"chosen": ours.name, "seconds_ratio": seconds, "speed_ratio": speed}
        told = "not known" if seconds is None else f"{seconds:.3f}"
        print(f"{ours.name} over {other.name}: seconds {told}, rows a second {speed:.3f}")
    print(f"asked for, over DDP: seconds at most {MOST_SECONDS}, rows a second at least {LEAST_SPEED}")
    return figures | {"seconds_ratio_allowed": MOST_SECONDS, "speed_ratio_asked": LEAST_SPEED}


if __name__ == "__main__":
    main()
