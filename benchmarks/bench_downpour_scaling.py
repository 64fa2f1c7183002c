r"""How much faster two replicas of Downpour train than one, and what the parameter server costs.

A network 784-1024-1024-10 on Fashion-MNIST, in memory; mini-batches of 100 rows, a fetch and a push every 10, Adagrad.
Rows a second, from the first mini-batch's beginning to the last one's, of

- one replica on one worker, which holds the shard as well;
- one replica on one worker, whose shard is on a second worker;
- two replicas and two shards on two workers.

Each worker is a process with one thread for a replica; the machine has two cores. So the messages of one replica have a
core to themselves: to judge by, one replica that is held to one core, messages and all, is measured too. Asked for: two
replicas do at least 1.7 times the rows a second of one on one worker. All in turns, the median of each counts. From the
root of the repository, with the environment's OPENBLAS_* settings out of the way::

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python -m benchmarks.bench_downpour_scaling \
        --json benchmarks/results/downpour_scaling.json
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
from distributed import Client, LocalCluster

import dask_belief as db
from benchmarks.fashion_mnist import N_CLASSES, N_FEATURES, load
from benchmarks.noted_network import noted, rows_per_second, shards_on_the_last_worker
from benchmarks.record import Record
from dask_belief.monitoring.events import DownpourProgressed

NETWORK = db.Network([db.Dense(1024, "relu"), db.Dense(1024, "relu"), db.Dense(N_CLASSES)], "softmax", (N_FEATURES,))
BATCH_ROWS = 100
N_EXCHANGE = 10
RATE = 0.01
LEAST_SPEEDUP = 1.7
"""What is asked for: rows a second of two replicas over those of one on one worker."""


@dataclass(frozen=True)
class Setting:
    """Who computes, and where the shards are."""

    name: str
    n_workers: int
    n_replicas: int
    shards_apart: bool = False
    """Whether the worker of the replica holds no shard."""

    one_core: bool = False
    """Whether all threads of the worker are held to one core."""


ONE = Setting("one replica on one worker", 1, 1)
BESIDE = Setting("one replica, its shard on a second worker", 2, 1, shards_apart=True)
ONE_CORE = Setting("one replica on one worker on one core", 1, 1, one_core=True)
TWO = Setting("two replicas on two workers", 2, 2)
SETTINGS = (ONE, BESIDE, ONE_CORE, TWO)


@dataclass(frozen=True)
class Speed:
    """One run."""

    rows_per_second: float
    computing_seconds: float
    """Of all replicas."""

    server_seconds: float
    """Of all shards."""

    server_share: float
    """The shards' part of what replicas and shards worked."""

    server_share_of_cores: float
    """The shards' seconds over those of all cores of the machine."""

    n_pushes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures, with commit and machine, to this file")
    parser.add_argument("--quick", action="store_true", help="6,000 rows, one turn: to see that it runs")
    parser.add_argument("--turns", type=int, default=5, help="how often each is measured (default: 5)")
    arguments = parser.parse_args()
    n_rows, turns = (6000, 1) if arguments.quick else (None, arguments.turns)

    record = Record(__doc__.splitlines()[0])
    rows = load("train", n_rows)
    data = (rows.scaled(), rows.targets)
    speeds: dict[Setting, list[Speed]] = {setting: [] for setting in SETTINGS}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(turns):
            for setting in SETTINGS:
                speeds[setting].append(measure(setting, data, Path(folder), turn))
                print(f"turn {turn + 1}, {setting.name}: {line(speeds[setting][-1])}", flush=True)
    figures = {
        "quick": arguments.quick,
        "rows": len(rows.targets),
        "batch_rows": BATCH_ROWS,
        "n_exchange": N_EXCHANGE,
        "settings": {setting.name: [asdict(speed) for speed in found] for setting, found in speeds.items()},
        **compare(speeds),
    }
    if arguments.json:
        record.write(arguments.json, figures)


def measure(setting: Setting, data: tuple[np.ndarray, np.ndarray], folder: Path, seed: int) -> Speed:
    """Train for one pass, after a short run that brings memory, caches and threads."""
    method = db.Downpour(
        n_replicas=setting.n_replicas,
        n_shards=1 if setting.shards_apart else setting.n_workers,
        rule=db.Adagrad(RATE),
        batch_size=BATCH_ROWS,
        n_fetch=N_EXCHANGE,
        n_push=N_EXCHANGE,
        epochs=1,
    )
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(
            LocalCluster(n_workers=setting.n_workers, threads_per_worker=1, dashboard_address=":0")
        )
        client = stack.enter_context(Client(cluster))
        if setting.shards_apart:
            stack.enter_context(shards_on_the_last_worker())
        inputs, targets = data
        few = inputs[:4000], targets[:4000]
        db.train(NETWORK, few, method, client=client, seed=seed, progress=False)
        if setting.one_core:
            client.run(hold_to_one_core)
        network = noted(NETWORK, folder)
        result = db.train(network, data, method, client=client, seed=seed, progress=False)
    last = [event for event in result.history if isinstance(event, DownpourProgressed)][-1]
    starts = np.concatenate(network.starts())
    cores_seconds = (os.cpu_count() or 1) * float(starts.max() - starts.min())
    return Speed(
        rows_per_second=rows_per_second(network, BATCH_ROWS),
        computing_seconds=last.computing_seconds,
        server_seconds=last.server_seconds,
        server_share=last.server_seconds / (last.server_seconds + last.computing_seconds),
        server_share_of_cores=last.server_seconds / cores_seconds,
        n_pushes=last.n_pushes,
    )


def hold_to_one_core() -> None:
    """Hold every thread of this process to the first core it may use; new threads inherit that."""
    [core, *_] = sorted(os.sched_getaffinity(0))
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread), {core})


def line(speed: Speed) -> str:
    return (
        f"{speed.rows_per_second:,.0f} rows a second; the shards: {100 * speed.server_share:.1f} % of the work of "
        f"replicas and shards, {100 * speed.server_share_of_cores:.1f} % of the cores' time"
    )


def compare(speeds: dict[Setting, list[Speed]]) -> dict[str, object]:
    """Print and give the ratios of medians."""
    middle = {setting: median(speed.rows_per_second for speed in found) for setting, found in speeds.items()}
    speedups = {setting.name: middle[TWO] / middle[setting] for setting in SETTINGS if setting is not TWO}
    print()
    for name, speedup in speedups.items():
        print(f"two replicas over {name}: {speedup:.3f}")
    print(f"asked for, over {ONE.name}: at least {LEAST_SPEEDUP}")
    return {
        "median_rows_per_second": {setting.name: speed for setting, speed in middle.items()},
        "speedups": speedups,
        "speedup_asked": LEAST_SPEEDUP,
    }


if __name__ == "__main__":
    main()
