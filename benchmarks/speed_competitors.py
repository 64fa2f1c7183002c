"""What `bench_speed` compares with: scikit-learn, SciPy and PyTorch, each in one process on the same data.

Run by a Python of its own, which needs NumPy and what is to be measured, and not this package::

    python benchmarks/speed_competitors.py FOLDER regression|network THREADS N_EVALUATIONS

FOLDER holds ``inputs.npy`` ``(n_rows, 784)`` float32 and ``targets.npy`` ``(n_rows,)`` int64. The last line of the
output is JSON: version and seconds by name, null for what is not installed.
"""

from __future__ import annotations

import importlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

N_CLASSES = 10
L2 = 1e-4
HISTORY_SIZE = 10
WIDTHS = (784, 1024, 1024, N_CLASSES)
N_WARM_UP = 3
"""Evaluations that are not counted: they bring memory, caches and threads."""

SCIPY_BLOCK_ROWS = 1000
NETWORK_BATCHES = (1000, 2000, 4000, 60_000)
"""PyTorch's gradient of all rows is summed over batches; the fastest size counts."""


class Clock:
    """Notes when each evaluation of an objective begins."""

    def __init__(self) -> None:
        self._starts: list[float] = []

    def note(self) -> None:
        """Note that one begins now."""
        self._starts.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """From one evaluation to the next, with all that the method does between them; the first ones left out."""
        counted = self._starts[N_WARM_UP:]
        return (counted[-1] - counted[0]) / (len(counted) - 1)


def regression(inputs: np.ndarray, targets: np.ndarray, n_threads: int, n_evaluations: int) -> dict[str, Any]:
    """Seconds for each evaluation of multinomial logistic regression by L-BFGS."""
    return {
        "scikit-learn": _if_installed("sklearn", lambda: by_sklearn(inputs, targets, n_threads, n_evaluations)),
        "SciPy, whole": _if_installed(
            "scipy", lambda: by_scipy(inputs, targets, n_threads, n_evaluations, len(inputs))
        ),
        "SciPy, blocks": _if_installed(
            "scipy", lambda: by_scipy(inputs, targets, n_threads, n_evaluations, SCIPY_BLOCK_ROWS)
        ),
        "PyTorch": _if_installed("torch", lambda: by_torch(inputs, targets, n_threads, n_evaluations)),
    }


def network(inputs: np.ndarray, targets: np.ndarray, n_threads: int, n_evaluations: int) -> dict[str, Any]:
    """Seconds for each gradient of a network with two hidden layers over all rows."""
    return {"PyTorch": _if_installed("torch", lambda: torch_gradient(inputs, targets, n_threads, n_evaluations))}


def by_sklearn(inputs: np.ndarray, targets: np.ndarray, n_threads: int, n_evaluations: int) -> float:
    """``LogisticRegression(solver="lbfgs")``; the evaluations are those of the loss class that it calls."""
    linear_loss = importlib.import_module("sklearn.linear_model._linear_loss").LinearModelLoss
    model = importlib.import_module("sklearn.linear_model").LogisticRegression(
        solver="lbfgs", C=1 / (L2 * len(inputs)), max_iter=n_evaluations, tol=0
    )
    clock, evaluate = Clock(), linear_loss.loss_gradient

    def noted(*arguments: Any, **options: Any) -> Any:
        clock.note()
        return evaluate(*arguments, **options)

    linear_loss.loss_gradient = noted
    try:
        with _threads(n_threads):
            model.fit(inputs, targets)
    finally:
        linear_loss.loss_gradient = evaluate
    return clock.seconds


def by_scipy(inputs: np.ndarray, targets: np.ndarray, n_threads: int, n_evaluations: int, block_rows: int) -> float:
    """L-BFGS-B on float32 products in place, loss sums and parameters in float64."""
    n_rows, n_features = inputs.shape
    n_weights = n_features * N_CLASSES
    each = np.arange(block_rows)
    clock = Clock()

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        clock.note()
        narrow = parameters.astype(np.float32)
        weights, bias = narrow[:n_weights].reshape(n_features, N_CLASSES), narrow[n_weights:]
        loss, gradient = 0.0, np.zeros_like(narrow)
        by_weights, by_bias = gradient[:n_weights].reshape(n_features, N_CLASSES), gradient[n_weights:]
        for start in range(0, n_rows, block_rows):
            rows, classes = inputs[start : start + block_rows], targets[start : start + block_rows]
            z = rows @ weights
            z += bias
            z -= z.max(axis=1, keepdims=True)
            loss -= float(z[each[: len(z)], classes].sum(dtype=np.float64))
            np.exp(z, out=z)
            sums = z.sum(axis=1, keepdims=True)
            loss += float(np.log(sums).sum(dtype=np.float64))
            z /= sums
            z[each[: len(z)], classes] -= 1
            by_weights += rows.T @ z
            by_bias += z.sum(axis=0)
        gradient /= n_rows
        by_weights += np.float32(L2) * weights
        return loss / n_rows + 0.5 * L2 * float(np.vdot(weights, weights)), gradient.astype(np.float64)

    with _threads(n_threads):
        importlib.import_module("scipy.optimize").minimize(
            objective,
            np.zeros(n_weights + N_CLASSES),
            jac=True,
            method="L-BFGS-B",
            options={"maxcor": HISTORY_SIZE, "maxiter": n_evaluations, "ftol": 0.0, "gtol": 0.0},
        )
    return clock.seconds


def by_torch(inputs: np.ndarray, targets: np.ndarray, n_threads: int, n_evaluations: int) -> float:
    """``LBFGS(line_search_fn="strong_wolfe")`` on a linear layer."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(n_threads)
    rows, classes = torch.from_numpy(inputs), torch.from_numpy(targets)
    layer = torch.nn.Linear(inputs.shape[1], N_CLASSES)
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)
    optimizer = torch.optim.LBFGS(
        layer.parameters(),
        max_iter=n_evaluations,
        history_size=HISTORY_SIZE,
        tolerance_grad=0,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )
    clock = Clock()

    def objective() -> Any:
        clock.note()
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(layer(rows), classes) + L2 / 2 * (layer.weight**2).sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    return clock.seconds


def torch_gradient(inputs: np.ndarray, targets: np.ndarray, n_threads: int, n_gradients: int) -> float:
    """The gradient of all rows, summed over batches of the fastest size."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(n_threads)
    rows, classes = torch.from_numpy(inputs), torch.from_numpy(targets)
    parts: list[Any] = []
    for n_in, n_out in itertools.pairwise(WIDTHS):
        parts += [torch.nn.Linear(n_in, n_out), torch.nn.ReLU()]
    model = torch.nn.Sequential(*parts[:-1])

    def gradient(batch: int) -> float:
        start = time.perf_counter()
        model.zero_grad(set_to_none=False)
        for first in range(0, len(rows), batch):
            outputs = model(rows[first : first + batch])
            torch.nn.functional.cross_entropy(outputs, classes[first : first + batch], reduction="sum").backward()
        return time.perf_counter() - start

    gradient(NETWORK_BATCHES[0])
    return min(gradient(batch) for _ in range(n_gradients) for batch in NETWORK_BATCHES)


def _if_installed(module: str, measure: Callable[[], float]) -> dict[str, Any] | None:
    try:
        version = importlib.import_module(module).__version__
    except ImportError:
        return None
    return {"version": version, "seconds": measure()}


@contextmanager
def _threads(n_threads: int) -> Iterator[None]:
    """Limit the threads of every library that is loaded."""
    with importlib.import_module("threadpoolctl").threadpool_limits(n_threads):
        yield


def main() -> None:
    folder, what, n_threads, n_evaluations = sys.argv[1:]
    inputs, targets = (np.load(Path(folder) / f"{name}.npy") for name in ("inputs", "targets"))
    measure = {"regression": regression, "network": network}[what]
    print(json.dumps(measure(inputs, targets, int(n_threads), int(n_evaluations))))


if __name__ == "__main__":
    main()
