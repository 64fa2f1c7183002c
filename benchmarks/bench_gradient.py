r"""Compare the rate of `Network.loss_and_gradient` with that of its own matrix products alone, on one thread.

Both run in turns in one process, float32, so that the ratio of their medians stands still where times do not. Beside
it stands PyTorch's ratio, its gradient against its own products, where PyTorch is installed. From the root of the
repository, with the environment's OPENBLAS_* settings out of the way::

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python -m benchmarks.bench_gradient \
        --json benchmarks/results/gradient.json
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.record import Record
from dask_belief.backend import get_backend
from dask_belief.models import Dense, Network

WIDTHS = (784, 1024, 1024, 10)
CASES = [("relu", 1000), ("tanh", 1000), ("sigmoid", 1000), ("relu", 100)]
TARGET = 0.85
"""What the first case has to reach."""

Step = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures, with commit and machine, to this file")
    parser.add_argument("--repeats", type=int, default=41, help="turns of each (default: 41)")
    arguments = parser.parse_args()

    backend = get_backend("numpy")
    backend.single_thread()
    record = Record(__doc__.splitlines()[0])
    print(f"{backend.kind()}; one thread; {'-'.join(map(str, WIDTHS))}, softmax, float32")
    figures = [measure(activation, n_rows, arguments.repeats) for activation, n_rows in CASES]
    print(f"{figures[0]['ratio']:.3f} in the first case; at least {TARGET} is asked for")
    if arguments.json:
        record.write(arguments.json, {"kind": backend.kind(), "widths": WIDTHS, "target": TARGET, "cases": figures})


def measure(activation: str, n_rows: int, repeats: int) -> dict[str, Any]:
    """Time one case and print its line."""
    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((n_rows, WIDTHS[0]), dtype=np.float32)
    targets = generator.integers(0, WIDTHS[-1], n_rows)
    network = Network([*(Dense(units, activation) for units in WIDTHS[1:-1]), Dense(WIDTHS[-1])], "softmax", WIDTHS[:1])
    parameters = network.initial_parameters(seed=0)
    gradient = np.empty_like(parameters)

    figures: dict[str, Any] = {"activation": activation, "rows": n_rows, "repeats": repeats}
    figures |= ratio(
        numpy_products(inputs, parameters, network),
        lambda: network.loss_and_gradient(parameters, inputs, targets, out=gradient),
        n_rows,
        repeats,
    )
    line = (
        f"{activation:8}{n_rows:5} rows: {figures['ratio']:.3f} of {figures['products_gflops']:.0f} GFLOP/s "
        f"({1e3 * figures['gradient_seconds']:.1f} ms)"
    )
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        line += "; PyTorch is not installed"
    else:
        torch.set_num_threads(1)
        theirs = ratio(*torch_steps(torch, activation, inputs, targets), n_rows, repeats)
        figures["pytorch"] = {"version": torch.__version__, **theirs}
        line += (
            f"; PyTorch {torch.__version__}: {theirs['ratio']:.3f} of {theirs['products_gflops']:.0f} GFLOP/s "
            f"({1e3 * theirs['gradient_seconds']:.1f} ms)"
        )
    print(line, flush=True)
    return figures


def ratio(products: Step, gradient: Step, n_rows: int, repeats: int) -> dict[str, float]:
    """Time both in turns; the ratio of rates is the inverse ratio of the median times."""
    seconds: dict[Step, list[float]] = {products: [], gradient: []}
    for turn in range(repeats + 2):
        for step, times in seconds.items():
            start = time.perf_counter()
            step()
            if turn >= 2:  # the first turns bring memory and caches
                times.append(time.perf_counter() - start)
    of_products, of_gradient = (median(times) for times in seconds.values())
    return {
        "products_seconds": of_products,
        "gradient_seconds": of_gradient,
        "products_gflops": operations(n_rows) / of_products / 1e9,
        "ratio": of_products / of_gradient,
    }


def operations(n_rows: int) -> int:
    """Count the floating-point operations of the products: forward, by the weights, and by all inputs but the data."""
    sizes = [n_in * n_out for n_in, n_out in itertools.pairwise(WIDTHS)]
    return 2 * n_rows * (3 * sum(sizes) - sizes[0])


def numpy_products(inputs: np.ndarray, parameters: np.ndarray, network: Network) -> Step:
    """Give the products alone: the same shapes, transposes and views as the network's, into kept arrays."""
    n_layers = len(WIDTHS) - 1
    weights = [network.layout.views(parameters)[f"{number}.weights"] for number in range(n_layers)]
    gradient = np.empty_like(parameters)
    by_weights = [network.layout.views(gradient)[f"{number}.weights"] for number in range(n_layers)]
    arrays = [inputs, *(np.empty((len(inputs), units), np.float32) for units in WIDTHS[1:])]
    deltas = [np.empty_like(array) for array in arrays]

    def step() -> None:
        for number in range(n_layers):
            np.matmul(arrays[number], weights[number], out=arrays[number + 1])
        deltas[-1][...] = 0.01
        for number in reversed(range(n_layers)):
            np.matmul(arrays[number].T, deltas[number + 1], out=by_weights[number])
            if number:
                np.matmul(deltas[number + 1], weights[number].T, out=deltas[number])

    return step


def torch_steps(torch: Any, activation: str, inputs: np.ndarray, targets: np.ndarray) -> tuple[Step, Step]:
    """Give PyTorch's products alone, and its gradient."""
    rows, classes = torch.from_numpy(inputs), torch.from_numpy(targets)
    activations = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh, "sigmoid": torch.nn.Sigmoid}
    parts: list[Any] = []
    for n_in, n_out in itertools.pairwise(WIDTHS):
        parts += [torch.nn.Linear(n_in, n_out), activations[activation]()]
    model = torch.nn.Sequential(*parts[:-1])
    weights = [part.weight.detach() for part in parts[::2]]
    by_weights = [torch.empty_like(weight) for weight in weights]
    arrays = [rows, *(torch.empty(len(rows), units) for units in WIDTHS[1:])]
    deltas = [torch.full_like(array, 0.01) for array in arrays]

    def products() -> None:
        for number, weight in enumerate(weights):
            torch.mm(arrays[number], weight.T, out=arrays[number + 1])
        for number in reversed(range(len(weights))):
            torch.mm(deltas[number + 1].T, arrays[number], out=by_weights[number])
            if number:
                torch.mm(deltas[number + 1], weights[number], out=deltas[number])

    def gradient() -> None:
        model.zero_grad(set_to_none=False)
        torch.nn.functional.cross_entropy(model(rows), classes, reduction="sum").backward()

    return products, gradient


if __name__ == "__main__":
    main()
