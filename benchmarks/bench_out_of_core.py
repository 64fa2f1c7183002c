r"""Whether a pass over data that do not fit in memory takes longer than its reading, or its computing, has to.

Softmax regression 784-10 on float32 rows, two single-thread workers, data four times what both caches hold together.
The seconds of a pass are set against the larger of

- reading alone: both workers read, and do nothing else, the part of the data that the caches cannot hold;
- the processor seconds of that reading and of computing alone, added and divided by the number of cores. For the
  latter both workers compute a quarter of the rows from memory, and take four times as long for all.

This is done for a Zarr store in a local folder, whose files the system keeps in memory, and for a smaller one that
gives 200 MB/s to both workers together. Reading, computing and training are measured in turns, and medians compared.
From the root of the repository, with the environment's OPENBLAS_* settings out of the way::

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python -m benchmarks.bench_out_of_core \
        --json benchmarks/results/out_of_core.json
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from distributed import Client, LocalCluster, wait

import dask_belief as db
from benchmarks.record import Record
from benchmarks.slow_store import SlowStore
from dask_belief.backend import get_backend
from dask_belief.data.stream import Streamer
from dask_belief.data.units import UnitPlan, WorkUnit, plan_units
from dask_belief.monitoring.events import IterationEnded
from dask_belief.parameter_server.executor import blocks

N_WORKERS = 2
N_FEATURES, N_CLASSES = 784, 10
NETWORK = db.Network([db.Dense(N_CLASSES)], "softmax", (N_FEATURES,))
CHUNK_ROWS = 1000
SHARE_CACHED = 0.25
SAMPLED = 4
"""Every so many-th unit is computed where computing alone is measured: all of them need not fit in memory."""
MOST_TIMES = 1.1
"""What is asked for: the seconds of a pass over the least that it has to take."""

WARM_PASSES = 4
"""Passes that fill the caches and settle who has which rows, and are not measured."""


@dataclass(frozen=True)
class Spent:
    """What some work took: the seconds of the slower worker, and the processor seconds of both."""

    seconds: float
    processor_seconds: float


@dataclass(frozen=True)
class Figures:
    """One store; medians over the turns."""

    store: str
    data_bytes: int
    cache_bytes: int
    bytes_read_a_pass: int
    reading_seconds: float
    reading_processor_seconds: float
    computing_seconds: float
    computing_processor_seconds: float
    least_seconds: float
    """The larger of reading alone, and all processor seconds over the cores."""
    pass_seconds: float
    times: float
    hits_a_pass: float
    misses_a_pass: float
    waiting_seconds: float
    """Of all replicas, a pass: for work."""
    waiting_for_data_seconds: float
    """Of all replicas, a pass."""
    computing_in_training_seconds: float
    """Of all replicas, a pass."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures, with commit and machine, to this file")
    parser.add_argument("--quick", action="store_true", help="64,000 rows, one turn: to see that it runs")
    arguments = parser.parse_args()
    cases = [Case("local folder", 2048, None, 5, 8), Case("200 MB/s", 256, 200e6, 3, 6)]
    if arguments.quick:
        cases = [replace(case, n_chunks=64, turns=1, passes=4) for case in cases]

    record = Record(__doc__.splitlines()[0])
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(n_workers=N_WORKERS, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        measured = [measure(client, case, case.write(Path(folder) / f"{case.n_chunks}.zarr")) for case in cases]
    print(f"At most {MOST_TIMES} times is asked for.")
    if arguments.json:
        figures = {
            "quick": arguments.quick,
            "workers": N_WORKERS,
            "times_allowed": MOST_TIMES,
            "stores": [asdict(one) for one in measured],
        }
        record.write(arguments.json, figures)


@dataclass(frozen=True)
class Case:
    """One store, how often it is measured, and how many passes each time."""

    name: str
    n_chunks: int
    bytes_per_second: float | None
    turns: int
    passes: int

    def write(self, path: Path) -> db.ZarrDataset:
        """Write the store, and wait until the disk has it: what is still being written would slow down the reading."""
        dataset = db.write_dataset(path, made_up(self.n_chunks), chunk_rows=CHUNK_ROWS, overwrite=True)
        os.sync()
        return dataset if self.bytes_per_second is None else db.ZarrDataset(SlowStore(path, self.bytes_per_second))


def made_up(n_chunks: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Give rows of noise whose class depends on them a little."""
    generator = np.random.default_rng(0)
    weights = generator.standard_normal((N_FEATURES, N_CLASSES), np.float32)
    for _ in range(n_chunks):
        inputs = generator.standard_normal((CHUNK_ROWS, N_FEATURES), np.float32)
        noise = 30 * generator.standard_normal((CHUNK_ROWS, N_CLASSES), np.float32)
        yield inputs, (inputs @ weights + noise).argmax(axis=1)


def measure(client: Client, case: Case, dataset: db.ZarrDataset) -> Figures:
    """Measure one store and print what was found."""
    data_bytes = dataset.n_rows * dataset.row_bytes()
    cache_bytes = int(SHARE_CACHED * data_bytes)
    plan = plan_units(dataset.n_rows, dataset.chunk_rows, dataset.row_bytes(), NETWORK.n_parameters)
    n_cached = int(SHARE_CACHED * len(plan))
    shares = [plan[worker::N_WORKERS] for worker in range(N_WORKERS)]
    uncached = [share[n_cached // N_WORKERS :] for share in shares]
    sample = [share[::SAMPLED] for share in shares]
    of_sample = len(plan) / sum(len(share) for share in sample)
    reading, computing, training = [], [], []
    for _ in range(case.turns):
        reading.append(on_workers(client, read_alone, dataset, uncached))
        computing.append(on_workers(client, compute_alone, dataset, sample, plan))
        training.extend(train(client, dataset, cache_bytes // N_WORKERS, case.passes))
    reading_seconds = median(spent.seconds for spent in reading)
    of_reading = median(spent.processor_seconds for spent in reading)
    of_computing = of_sample * median(spent.processor_seconds for spent in computing)
    least = max(reading_seconds, (of_reading + of_computing) / N_WORKERS)
    pass_seconds = median(seconds for seconds, _ in training)
    figures = Figures(
        store=case.name,
        data_bytes=data_bytes,
        cache_bytes=cache_bytes,
        bytes_read_a_pass=sum(unit.rows for share in uncached for unit in share) * dataset.row_bytes(),
        reading_seconds=reading_seconds,
        reading_processor_seconds=of_reading,
        computing_seconds=of_sample * median(spent.seconds for spent in computing),
        computing_processor_seconds=of_computing,
        least_seconds=least,
        pass_seconds=pass_seconds,
        times=pass_seconds / least,
        hits_a_pass=median(event.cache_hits for _, event in training),
        misses_a_pass=median(event.cache_misses for _, event in training),
        waiting_seconds=median(event.waiting_seconds for _, event in training),
        waiting_for_data_seconds=median(event.reading_seconds for _, event in training),
        computing_in_training_seconds=median(event.computing_seconds for _, event in training),
    )
    print(
        f"{case.name}: {data_bytes / 1e6:.0f} MB, caches of {cache_bytes / 1e6:.0f} MB, {len(plan)} units\n"
        f"  reading alone {reading_seconds:.3f} s ({of_reading:.3f} s of the processor), "
        f"computing alone {figures.computing_seconds:.3f} s ({of_computing:.3f} s)\n"
        f"  a pass {pass_seconds:.3f} s, {figures.times:.3f} times {least:.3f} s; {figures.hits_a_pass:.0f} units from "
        f"caches, {figures.misses_a_pass:.0f} read; replicas waited {figures.waiting_for_data_seconds:.3f} s for data, "
        f"{figures.waiting_seconds:.3f} s for work, and computed {figures.computing_in_training_seconds:.3f} s",
        flush=True,
    )
    return figures


def on_workers(
    client: Client, work: Callable[..., Spent], dataset: db.ZarrDataset, shares: Sequence[list[WorkUnit]], *more: Any
) -> Spent:
    """Let every worker do its share at the same time."""
    workers = sorted(client.scheduler_info()["workers"])
    futures = [
        client.submit(work, dataset, share, *more, workers=[worker], pure=False)
        for worker, share in zip(workers, shares, strict=True)
    ]
    wait(futures)
    spent = [future.result() for future in futures]
    return Spent(max(one.seconds for one in spent), sum(one.processor_seconds for one in spent))


def read_alone(dataset: db.ZarrDataset, units: list[WorkUnit]) -> Spent:
    """Read and decode units as training does, in pieces where nothing has to be decoded, and forget them."""
    streamer = Streamer(dataset.read, dataset.advise, dataset.row_bytes())

    def read() -> None:
        if dataset.is_direct:
            streamer.schedule(units)
        for unit in units:
            if dataset.is_direct:
                for _ in streamer.blocks(unit, CHUNK_ROWS, timeout_seconds=60):
                    pass
            else:
                dataset.read(unit.start, unit.stop)

    return timed(read)


def compute_alone(dataset: db.ZarrDataset, units: list[WorkUnit], plan: UnitPlan) -> Spent:
    """Find loss and gradient over units that lie in memory, in the blocks that training computes."""
    backend = get_backend("numpy")
    backend.single_thread()
    batches = [dataset.read(unit.start, unit.stop) for unit in units]
    network = NETWORK.on(backend)
    parameters = NETWORK.initial_parameters(0)
    gradient, total = np.empty_like(parameters), np.zeros_like(parameters)

    def compute() -> None:
        for inputs, targets in batches:
            for rows in blocks(len(inputs), plan.block_rows):
                network.loss_and_gradient(parameters, inputs[rows], targets[rows], out=gradient)
                backend.add_(gradient, total)

    with backend.computing():
        compute()  # brings the buffers
        return timed(compute)


def timed(work: Callable[[], object]) -> Spent:
    seconds, processor_seconds = time.perf_counter(), time.process_time()
    work()
    return Spent(time.perf_counter() - seconds, time.process_time() - processor_seconds)


def train(
    client: Client, dataset: db.ZarrDataset, cache_bytes: int, n_passes: int
) -> list[tuple[float, IterationEnded]]:
    """Train for some passes; gives the seconds of each pass that is measured, and what the history says of it."""
    method = db.Sandblaster(max_iter=WARM_PASSES + n_passes, cache_bytes=cache_bytes, gtol=0.0, ftol=0.0)
    result = db.train(NETWORK, dataset, method, client=client, seed=0, progress=False)
    events = [event for event in result.history if isinstance(event, IterationEnded)]
    pairs = zip(events[WARM_PASSES - 1 :], events[WARM_PASSES:], strict=False)
    return [
        (event.seconds - before.seconds, event)
        for before, event in pairs
        if event.evaluations == before.evaluations + 1
    ]


if __name__ == "__main__":
    main()
