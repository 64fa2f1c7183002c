r"""Compare the rate of locally connected layers with that of their own matrix products alone, on one thread.

The shapes are those of the paper's image model, scaled down. The products run on patches that lie ready, and write to
arrays that are kept; the layer gathers its patches, adds biases, and puts outputs and derivatives in their places. Both
run in turns in one process, float32, so that the ratio of their medians stands still where times do not. From the root
of the repository, with the environment's OPENBLAS_* settings out of the way::

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python -m benchmarks.bench_layers \
        --json benchmarks/results/layers.json
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.record import Record
from dask_belief.backend import Backend, get_backend
from dask_belief.models.layers import LocallyConnected2D, Workspace

CASES = [
    ("first stage, stride 1", LocallyConnected2D(8, 10), (50, 50, 3), False),
    ("first stage, stride 2", LocallyConnected2D(8, 10, 2), (50, 50, 3), False),
    ("second stage, stride 1", LocallyConnected2D(16, 10), (20, 20, 8), True),
    ("second stage, stride 2", LocallyConnected2D(16, 10, 2), (20, 20, 8), True),
]
"""Name, layer, shape of a row, and whether a derivative by the inputs is asked for: the first stage's are data."""

TARGET = 0.7
"""What each ought to reach."""

Step = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures, with commit and machine, to this file")
    parser.add_argument("--repeats", type=int, default=21, help="turns of each (default: 21)")
    parser.add_argument("--rows", type=int, default=64, help="rows at once (default: 64)")
    arguments = parser.parse_args()

    backend = get_backend("numpy")
    backend.single_thread()
    record = Record(__doc__.splitlines()[0])
    print(f"{backend.kind()}; one thread; {arguments.rows} rows, float32")
    figures = [measure(backend, *case, arguments.rows, arguments.repeats) for case in CASES]
    if arguments.json:
        written = {"kind": backend.kind(), "rows": arguments.rows, "target": TARGET, "cases": figures}
        record.write(arguments.json, written)


def measure(
    backend: Backend,
    name: str,
    layer: LocallyConnected2D,
    shape: tuple[int, int, int],
    needs_input_delta: bool,
    n_rows: int,
    repeats: int,
) -> dict[str, Any]:
    """Time one case and print its line."""
    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((n_rows, *shape), dtype=np.float32)
    shapes = layer.parameter_shapes(shape)
    parameters = {key: generator.standard_normal(size, dtype=np.float32) for key, size in shapes.items()}
    gradients = {key: np.empty_like(values) for key, values in parameters.items()}
    delta = generator.standard_normal((n_rows, *layer.output_shape(shape)), dtype=np.float32)
    workspace = Workspace(backend)

    def forward() -> None:
        layer.forward(backend, parameters, inputs, workspace)

    def both() -> None:
        outputs = layer.forward(backend, parameters, inputs, workspace)
        layer.backward(
            backend, parameters, gradients, inputs, outputs, delta, workspace, needs_input_delta=needs_input_delta
        )

    products, all_products = products_of(parameters["weights"], n_rows, needs_input_delta)
    steps = {"products": products, "forward": forward, "all products": all_products, "gradient": both}
    seconds = in_turns(steps, repeats)
    operations = layer.operations(shape) * n_rows
    n_products = 3 if needs_input_delta else 2
    found: dict[str, Any] = {
        "case": name,
        "rows": n_rows,
        "repeats": repeats,
        "seconds": seconds,
        "forward_gflops": operations / seconds["forward"] / 1e9,
        "forward_ratio": seconds["products"] / seconds["forward"],
        "gradient_gflops": n_products * operations / seconds["gradient"] / 1e9,
        "gradient_ratio": seconds["all products"] / seconds["gradient"],
    }
    print(
        f"{name:24} forward {found['forward_gflops']:5.1f} GFLOP/s, {found['forward_ratio']:.2f} of the products "
        f"({1e3 * seconds['forward']:.1f} ms); forward and backward {found['gradient_gflops']:5.1f} GFLOP/s, "
        f"{found['gradient_ratio']:.2f} ({1e3 * seconds['gradient']:.1f} ms)",
        flush=True,
    )
    return found


def products_of(weights: np.ndarray, n_rows: int, needs_input_delta: bool) -> tuple[Step, Step]:
    """Give the products alone, forward, and forward and backward: on patches that lie ready for each place."""
    rows, columns, size, filters = weights.shape
    patches = np.random.default_rng(1).standard_normal((rows, columns, n_rows, size), dtype=np.float32)
    outputs = np.empty((rows, columns, n_rows, filters), np.float32)
    delta = np.ones_like(outputs)
    gradient = np.empty_like(weights)
    below = np.empty_like(patches) if needs_input_delta else None

    def forward() -> None:
        np.matmul(patches, weights, out=outputs)

    def both() -> None:
        forward()
        np.matmul(patches.transpose(0, 1, 3, 2), delta, out=gradient)
        if below is not None:
            np.matmul(delta, weights.transpose(0, 1, 3, 2), out=below)

    return forward, both


def in_turns(steps: dict[str, Step], repeats: int) -> dict[str, float]:
    """Time each in turns, and give the medians, in seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn >= 2:  # the first turns bring memory and caches
                seconds[name].append(time.perf_counter() - start)
    return {name: median(times) for name, times in seconds.items()}


if __name__ == "__main__":
    main()
