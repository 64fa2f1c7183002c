"""What `bench_ddp` compares with: PyTorch's DistributedDataParallel, or one process of it, on the same data.

Run by a Python of its own, which needs NumPy and PyTorch, and not this package::

    python benchmarks/ddp_competitor.py FOLDER OPTIONS

FOLDER holds ``inputs.npy`` ``(n_rows, 784)`` float32 and ``targets.npy`` ``(n_rows,)`` int64, the same of the test
rows with ``test_`` before, and the initial parameters of each seed, ``initial_SEED.npy``, flat: of each layer its
weights ``(n_inputs, n_outputs)``, then its bias. OPTIONS is JSON, see `Options`. The last line of the output is JSON,
see `measure`; null where PyTorch is not installed.

Written as one would who wants speed: all rows in memory as float32, no loader and no worker processes, mini-batches
gathered by one ``index_select`` of a permutation that every process draws alike, gradients as views of the buckets, an
optimiser that works in one fused pass, and the test rows cut over the processes. What else was tried changed the rows a
second of two processes by less than runs differ (PyTorch 2.13, 18 to 21 thousand): gradients apart from the buckets, a
static graph, ``torch.compile``, memory that is kept when freed; the optimiser without ``fused`` was slower by a
twentieth, in one process by a quarter.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Options:
    """What is measured."""

    widths: tuple[int, ...]
    """From the inputs to the classes."""

    seed: int
    """Of the initial parameters and of the order of the rows."""

    rate: float
    epochs: int
    batch_rows: int
    """Of a mini-batch of one process."""

    validate_every_steps: int | None = None
    """Mini-batches, over all processes, from one evaluation of the test rows to the next; None for none."""

    n_processes: int = 2
    n_threads: int = 1
    """Of each process."""

    initial_accumulator: float = 0.0
    """Of Adagrad."""

    n_warm_up: int = 20
    """Mini-batches, of the first process's rows, on a copy of the model, before the clock begins."""

    until_accuracy: float | None = None
    """Ends the run at the first evaluation that finds so much."""


@dataclass(frozen=True)
class Data:
    """Training rows, and one process's part of the test rows, as tensors."""

    inputs: Any
    targets: Any
    test_inputs: Any
    test_targets: Any
    n_test_rows: int
    """Of all processes."""

    @classmethod
    def read(cls, torch: Any, folder: Path, rank: int, n_processes: int) -> Data:
        """Read all that the folder holds."""
        names = ("inputs", "targets", "test_inputs", "test_targets")
        inputs, targets, all_rows, all_classes = (torch.from_numpy(np.load(folder / f"{name}.npy")) for name in names)
        own, its_classes = (part[rank::n_processes].contiguous() for part in (all_rows, all_classes))
        return cls(inputs, targets, own, its_classes, len(all_rows))


def network(torch: Any, widths: tuple[int, ...], initial: np.ndarray) -> Any:
    """Dense layers with ReLU between them, that begin at `initial`."""
    parts: list[Any] = []
    start = 0
    for n_inputs, n_outputs in itertools.pairwise(widths):
        layer = torch.nn.Linear(n_inputs, n_outputs)
        middle, stop = start + n_inputs * n_outputs, start + (n_inputs + 1) * n_outputs
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(initial[start:middle].reshape(n_inputs, n_outputs).T))
            layer.bias.copy_(torch.from_numpy(initial[middle:stop]))
        start = stop
        parts += [layer, torch.nn.ReLU()]
    return torch.nn.Sequential(*parts[:-1])


def train(rank: int, folder: Path, options: Options, rendezvous: str) -> dict[str, Any]:
    """Train in one process of them all; what the first gives counts."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(options.n_threads)
    is_distributed = options.n_processes > 1
    if is_distributed:
        torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=options.n_processes)
    data = Data.read(torch, folder, rank, options.n_processes)
    initial = np.load(folder / f"initial_{options.seed}.npy")
    # Memory, caches and threads; and the connections of the processes.
    steps(torch, rank, model_of(torch, initial, options), data, options, options.n_warm_up)
    model = model_of(torch, initial, options)
    if is_distributed:
        torch.distributed.barrier()
    return steps(torch, rank, model, data, options, None)


def model_of(torch: Any, initial: np.ndarray, options: Options) -> Any:
    """A new model, as the options say."""
    model = network(torch, options.widths, initial)
    if options.n_processes > 1:
        model = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    return model


def steps(torch: Any, rank: int, model: Any, data: Data, options: Options, n_most: int | None) -> dict[str, Any]:
    """Train for all epochs, or for so many mini-batches at most; the clock begins at the first mini-batch."""
    optimizer = torch.optim.Adagrad(
        model.parameters(),
        lr=options.rate,
        initial_accumulator_value=options.initial_accumulator,
        eps=1e-8,
        fused=True,
    )
    n_rows, batch_rows = len(data.targets), options.batch_rows
    together = batch_rows * options.n_processes
    every = (options.validate_every_steps or 0) // options.n_processes
    inputs = torch.empty((batch_rows, data.inputs.shape[1]))
    targets = torch.empty(batch_rows, dtype=torch.int64)
    generator = torch.Generator().manual_seed(options.seed)
    curve: list[dict[str, float]] = []
    validating, step, n_done = 0.0, 0, 0
    start = time.perf_counter()
    for _ in range(options.epochs):
        order = torch.randperm(n_rows, generator=generator)
        for first in range(0, n_rows - together + 1, together):
            rows = order[first + rank * batch_rows : first + (rank + 1) * batch_rows]
            torch.index_select(data.inputs, 0, rows, out=inputs)
            torch.index_select(data.targets, 0, rows, out=targets)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            step += 1
            n_done += together
            if every and n_most is None and step % every == 0:
                began = time.perf_counter()
                accuracy = test_accuracy(torch, model, data, options)
                now = time.perf_counter()
                validating += now - began
                curve.append({"seconds": now - start, "passes": n_done / n_rows, "accuracy": accuracy})
                if options.until_accuracy is not None and accuracy >= options.until_accuracy:
                    break
            if step == n_most:
                break
        else:
            continue
        break
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "validating_seconds": validating,
        "rows": n_done,
        "rows_per_second": n_done / (seconds - validating),
        "accuracy": test_accuracy(torch, model, data, options),
        "curve": curve,
    }


def test_accuracy(torch: Any, model: Any, data: Data, options: Options) -> float:
    """The share of the test rows that are told right; each process takes its part of them."""
    plain = getattr(model, "module", model)
    with torch.inference_mode():
        n_right = (plain(data.test_inputs).argmax(dim=1) == data.test_targets).sum()
        if options.n_processes > 1:
            torch.distributed.all_reduce(n_right)
    return float(n_right) / data.n_test_rows


def _in_process(rank: int, folder: str, options: Options, rendezvous: str, answer: str) -> None:
    found = train(rank, Path(folder), options, rendezvous)
    if rank == 0:
        Path(answer).write_text(json.dumps(found))
    if options.n_processes > 1:
        torch = importlib.import_module("torch")
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        # Threads of gloo may still be there when the interpreter ends, which now and then aborts the process.
        os._exit(0)


def measure(folder: Path, options: Options) -> dict[str, Any] | None:
    """Train, and give version, options, speed and accuracy; None where PyTorch is not installed."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return None
    with tempfile.TemporaryDirectory() as name:
        answer = Path(name) / "answer.json"
        arguments = (str(folder), options, (Path(name) / "rendezvous").as_uri(), str(answer))
        if options.n_processes > 1:
            multiprocessing = importlib.import_module("torch.multiprocessing")
            multiprocessing.spawn(_in_process, arguments, nprocs=options.n_processes)
        else:
            _in_process(0, *arguments)
        found = json.loads(answer.read_text())
    return {"version": torch.__version__, "options": asdict(options), **found}


def main() -> None:
    folder, options = sys.argv[1:]
    given = json.loads(options)
    print(json.dumps(measure(Path(folder), Options(**(given | {"widths": tuple(given["widths"])})))))


if __name__ == "__main__":
    main()
