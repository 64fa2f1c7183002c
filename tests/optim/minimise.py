"""The whole of L-BFGS on vectors in memory, and problems with a known answer, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dask_belief.optim.lbfgs import CurvatureMemory
from dask_belief.optim.line_search import LineSearch, StrongWolfe

Objective = Callable[[np.ndarray], tuple[float, np.ndarray]]


@dataclass
class Minimum:
    """Where an in-memory run ended, and what it cost."""

    point: np.ndarray
    value: float
    gradient: np.ndarray
    evaluations: int
    iterations: int


def minimise(
    objective: Objective,
    start: np.ndarray,
    *,
    history_size: int = 10,
    gtol: float = 1e-5,
    max_iter: int = 1000,
    options: StrongWolfe | None = None,
) -> Minimum:
    """Drive `CurvatureMemory` and `LineSearch` as Sandblaster does, on one NumPy vector."""
    options = options or StrongWolfe()
    memory = CurvatureMemory(history_size)
    vectors: dict[str, np.ndarray] = {}

    def dots(slot):
        return {(a, b): float(vectors[a] @ vectors[b]) for a, b in memory.pairs_to_dot(slot)}

    point = start.copy()
    value, vectors["g"] = objective(point)
    evaluations, slot = 1, None
    for iteration in range(max_iter):
        memory.update(slot, dots(slot))
        if np.max(np.abs(vectors["g"])) <= gtol:
            return Minimum(point, value, vectors["g"], evaluations, iteration)
        if memory.slope() >= 0:
            memory.reset()
        direction = np.sum([c * vectors[name] for name, c in memory.direction().items()], axis=0)
        search = LineSearch(options, value, float(vectors["g"] @ direction), memory.first_step())
        while not search.done:
            new_value, new_gradient = objective(point + search.step * direction)
            evaluations += 1
            search.tell(new_value, float(new_gradient @ direction))
        if not search.succeeded:
            if memory.n_pairs == 0:
                return Minimum(point, value, vectors["g"], evaluations, iteration)
            memory.reset()
            slot = None
            continue
        if search.step != search.best_step:
            new_value, new_gradient = objective(point + search.best_step * direction)
            evaluations += 1
        slot = memory.free_slot()
        vectors[f"s{slot}"] = search.best_step * direction
        vectors[f"y{slot}"] = new_gradient - vectors["g"]
        point, value, vectors["g"] = point + search.best_step * direction, new_value, new_gradient
    return Minimum(point, value, vectors["g"], evaluations, max_iter)


def rosenbrock(x: np.ndarray) -> tuple[float, np.ndarray]:
    """The chained Rosenbrock function of any dimension, and its gradient."""
    a, b = x[1:] - x[:-1] ** 2, 1 - x[:-1]
    gradient = np.zeros_like(x)
    gradient[:-1] = -400 * a * x[:-1] - 2 * b
    gradient[1:] += 200 * a
    return float(100 * a @ a + b @ b), gradient


def quadratic(n: int, condition: float, seed: int) -> Objective:
    """A convex parabola in random axes, whose Hessian's eigenvalues run from 1 to `condition`."""
    generator = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(generator.standard_normal((n, n)))
    hessian = axes * np.geomspace(1, condition, n) @ axes.T
    centre = generator.standard_normal(n)

    def objective(x):
        gradient = hessian @ (x - centre)
        return float((x - centre) @ gradient / 2), gradient

    return objective


def logistic_regression(rows: int, columns: int, l2: float, seed: int) -> Objective:
    """Mean logistic loss plus l2/2 |w|^2 on random rows of unequal scale."""
    generator = np.random.default_rng(seed)
    inputs = generator.standard_normal((rows, columns)) * np.geomspace(0.1, 3, columns)
    signs = np.where(inputs @ generator.standard_normal(columns) + generator.standard_normal(rows) > 0, 1.0, -1.0)

    def objective(w):
        margins = signs * (inputs @ w)
        pull = -signs * np.exp(-np.logaddexp(0, margins)) / rows
        return float(np.logaddexp(0, -margins).mean() + l2 / 2 * w @ w), inputs.T @ pull + l2 * w

    return objective


def problems() -> dict[str, tuple[Objective, np.ndarray]]:
    """Every problem with its starting point."""
    return {
        "rosenbrock-2": (rosenbrock, np.array([-1.2, 1.0])),
        "rosenbrock-10": (rosenbrock, np.tile([-1.2, 1.0], 5)),
        "quadratic-30": (quadratic(30, 1e3, seed=1), np.zeros(30)),
        "quadratic-100": (quadratic(100, 1e5, seed=2), np.zeros(100)),
        "logistic-20": (logistic_regression(500, 20, 1e-4, seed=3), np.zeros(20)),
        "logistic-100": (logistic_regression(2000, 100, 1e-6, seed=4), np.zeros(100)),
    }
