"""Every batch method on vectors in memory, and problems with a known answer, for the tests of this folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dask_belief.optim.backtracking import Backtracking, ProjectedSearch
from dask_belief.optim.direction import DIAGONAL, Direction, DirectionRule, Product, Update
from dask_belief.optim.lbfgs import CurvatureMemory
from dask_belief.optim.line_search import LineSearch, Outcome, StrongWolfe

Objective = Callable[[np.ndarray], tuple[float, np.ndarray]]


class Vectors:
    """What the shards would hold: the named vectors, and what is asked of them."""

    def __init__(self, **named: np.ndarray) -> None:
        self.named = named

    def dots(self, products: list[Product]) -> dict[Product, float]:
        """One round of dot products."""
        return {
            names: float(math.prod(self.named[name] for name in names[:-1]) @ self.named[names[-1]])
            for names in products
        }

    def combine(self, coefficients: Mapping[str, float]) -> np.ndarray:
        """A combination of vectors."""
        return sum((c * self.named[name] for name, c in coefficients.items()), np.zeros_like(self.named["g"]))

    def along(self, direction: Direction) -> np.ndarray:
        """The direction that its coefficients stand for."""
        scaled = self.combine(direction.scaled_terms)
        return self.combine(direction.terms) + (self.named[DIAGONAL] * scaled if direction.scaled_terms else 0.0)

    def update(self, rule: DirectionRule, slot: int | None, step: float = math.nan) -> Update:
        """Bring a rule what it asks for, and do what it asks for."""
        update = rule.update(slot, self.dots(rule.products(slot)), step)
        if update.change is not None:
            self.named[f"y{slot}"] = self.combine(update.change)
        return update


@dataclass
class Minimum:
    """Where an in-memory run ended, and what it cost."""

    point: np.ndarray
    value: float
    gradient: np.ndarray
    evaluations: int
    iterations: int
    outcome: Outcome | None = None
    """Of the last search, when it gave no step."""


def minimise(
    objective: Objective,
    start: np.ndarray,
    *,
    rule: DirectionRule | None = None,
    gtol: float = 1e-5,
    max_iter: int = 1000,
    options: StrongWolfe | None = None,
    diagonal: np.ndarray | None = None,
) -> Minimum:
    """Drive a rule and `LineSearch` as Sandblaster does, on one NumPy vector."""
    rule = rule or CurvatureMemory()
    options = options or StrongWolfe(c2=rule.c2)
    value, gradient = objective(start)
    point, evaluations = start.copy(), 1
    vectors = Vectors(g=gradient, **({} if diagonal is None else {DIAGONAL: diagonal}))
    vectors.update(rule, None)
    iteration = 0
    while iteration < max_iter and np.max(np.abs(vectors.named["g"])) > gtol:
        direction = vectors.along(rule.direction())
        search = LineSearch(options, value, float(vectors.named["g"] @ direction), rule.first_step())
        while not search.done:
            new_value, new_gradient = objective(point + search.step * direction)
            evaluations += 1
            search.tell(new_value, float(new_gradient @ direction))
        if not search.succeeded:
            if not rule.has_memory:
                return Minimum(point, value, vectors.named["g"], evaluations, iteration, search.outcome)
            rule.reset()
            continue
        if search.step != search.best_step:
            new_value, new_gradient = objective(point + search.best_step * direction)
            evaluations += 1
        slot = rule.free_slot()
        vectors.named[f"s{slot}"] = search.best_step * direction
        vectors.named[f"y{slot}"] = new_gradient - vectors.named["g"]
        vectors.named["g"] = new_gradient
        vectors.update(rule, slot, search.best_step)
        point, value = point + search.best_step * direction, new_value
        iteration += 1
    return Minimum(point, value, vectors.named["g"], evaluations, iteration)


def minimise_l1(
    objective: Objective,
    start: np.ndarray,
    l1: np.ndarray,
    *,
    rule: DirectionRule | None = None,
    gtol: float = 1e-5,
    max_iter: int = 1000,
    options: ProjectedSearch | None = None,
    aligned: Literal["everywhere", "at zero"] = "at zero",
) -> Minimum:
    """Drive a rule and `Backtracking` on an objective with an L1 penalty, which has a weight for each parameter.

    Andrew and Gao align all of the direction with the pseudo-gradient. For descent it is enough to do so at zeros.
    """
    rule = rule or CurvatureMemory()
    options = options or ProjectedSearch()
    point, evaluations = start.copy(), 1
    smooth, gradient = objective(point)
    value = smooth + float(l1 @ np.abs(point))
    vectors = Vectors(g=pseudo_gradient(point, gradient, l1))
    vectors.update(rule, None)
    iteration = 0
    while iteration < max_iter and np.max(np.abs(vectors.named["g"])) > gtol:
        steepest = vectors.named["g"]
        direction = vectors.along(rule.direction())
        direction[(direction * steepest >= 0) & (l1 > 0) & ((point == 0) | (aligned == "everywhere"))] = 0.0
        orthant = np.where(point != 0, np.sign(point), -np.sign(steepest))
        search = Backtracking(options, value, float(steepest @ direction), rule.first_step())
        while not search.done:
            trial = point + search.step * direction
            trial[(trial * orthant <= 0) & (l1 > 0)] = 0.0
            smooth, new_gradient = objective(trial)
            evaluations += 1
            search.tell(smooth + float(l1 @ np.abs(trial)), float(steepest @ (trial - point)))
        if not search.succeeded:
            if not rule.has_memory:
                return Minimum(point, value, steepest, evaluations, iteration, search.outcome)
            rule.reset()
            continue
        slot = rule.free_slot()
        vectors.named[f"s{slot}"] = trial - point
        vectors.named[f"y{slot}"] = new_gradient - gradient
        vectors.named["g"] = pseudo_gradient(trial, new_gradient, l1)
        vectors.update(rule, slot, search.best_step)
        point, value, gradient = trial, search.best_value, new_gradient
        iteration += 1
    return Minimum(point, value, vectors.named["g"], evaluations, iteration)


def pseudo_gradient(point: np.ndarray, gradient: np.ndarray, l1: np.ndarray) -> np.ndarray:
    """Equation 4 of Andrew and Gao: minus the direction of steepest descent of the penalised objective."""
    at_zero = np.sign(gradient) * np.maximum(np.abs(gradient) - l1, 0.0)
    return np.where(point != 0, gradient + l1 * np.sign(point), at_zero)


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


def correlated_regression(rows: int, columns: int, correlation: float, seed: int) -> Objective:
    """Mean logistic loss on inputs that resemble their neighbours, a fifth of which matter."""
    generator = np.random.default_rng(seed)
    columns_apart = np.abs(np.subtract.outer(np.arange(columns), np.arange(columns)))
    inputs = generator.standard_normal((rows, columns)) @ np.linalg.cholesky(correlation**columns_apart).T
    weights = np.where(generator.uniform(size=columns) < 0.2, generator.standard_normal(columns), 0.0)
    signs = np.where(inputs @ weights + 0.5 * generator.standard_normal(rows) > 0, 1.0, -1.0)

    def objective(w):
        margins = signs * (inputs @ w)
        return float(np.logaddexp(0, -margins).mean()), inputs.T @ (-signs * np.exp(-np.logaddexp(0, margins)) / rows)

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
