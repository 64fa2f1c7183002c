r"""Whether our L-BFGS needs as few evaluations as SciPy's, on published problems and on logistic regression.

The problems are those of Moré, Garbow and Hillstrom from their standard starts, and multinomial logistic regression on
Fashion-MNIST from zeros, L2 1e-4 on weights and not on biases. SciPy's L-BFGS-B goes first, with ten pairs of history,
until nothing more is gained. Ours trains through `dask_belief.train` in float64, with ten pairs too, until an iterate
is as low as SciPy's last: within 1e-8 of it, or within 1e-12 absolutely where the minimum is 0. Counted are the
evaluations up to the first such iterate, SciPy's likewise. From the root of the repository, with the environment's
OPENBLAS_* settings out of the way::

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python -m benchmarks.bench_iterations \
        --json benchmarks/results/iterations.json
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from distributed import Client, LocalCluster
from scipy.optimize import minimize

import dask_belief as db
from benchmarks.bench_sandblaster import L2, REGRESSION, Reference
from benchmarks.fashion_mnist import load, write_store
from benchmarks.problems import PROBLEMS
from benchmarks.record import Record
from dask_belief.monitoring.events import IterationEnded

HISTORY_SIZE = 10
MOST_TIMES = 1.15
"""What is asked for: our evaluations on all problems together, over SciPy's."""

RELATIVE, ABSOLUTE = 1e-8, 1e-12
"""How near SciPy's last value ours has to come; the absolute figure holds where the minimum is 0."""

MOST_ITERATIONS = 5000

Evaluate = Callable[[np.ndarray], tuple[float, np.ndarray]]


@dataclass(frozen=True)
class Descent:
    """How one method went down: the objective at each iterate, and the evaluations up to there."""

    values: list[float]
    evaluations: list[int]
    stop: str

    @property
    def lowest(self) -> float:
        """The lowest objective of an iterate."""
        return min(self.values)

    def reaches(self, goal: float) -> int | None:
        """Give the evaluations up to the first iterate that is as low as that; None for never."""
        pairs = zip(self.values, self.evaluations, strict=True)
        return next((used for value, used in pairs if value <= goal), None)


@dataclass(frozen=True)
class Compared:
    """One problem, solved by both; evaluations up to the first iterate that was near enough, or else in all."""

    problem: str
    parameters: int
    goal: float
    scipy_evaluations: int
    our_evaluations: int
    solved: bool
    scipy_value: float
    our_value: float
    our_stop: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures, with commit and machine, to this file")
    parser.add_argument("--quick", action="store_true", help="1,000 images: to see that it runs")
    arguments = parser.parse_args()

    record = Record(__doc__.splitlines()[0])
    print(f"{'problem':28}{'n':>6}{'SciPy':>8}{'ours':>8}{'times':>8}", flush=True)
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, protocol="tcp://", dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        compared = [*published(client), logistic_regression(client, 1000 if arguments.quick else None)]
    figures = {
        "quick": arguments.quick,
        "scipy": scipy.__version__,
        "history_size": HISTORY_SIZE,
        "problems": [asdict(one) for one in compared],
        **totals(compared),
    }
    if arguments.json:
        record.write(arguments.json, figures)


def published(client: Client) -> list[Compared]:
    """Solve the published problems: objectives as a user writes them, whose data are one row that says nothing."""
    row = np.zeros((1, 1)), np.zeros(1)
    compared = []
    for problem in PROBLEMS:
        theirs = by_scipy(problem, problem.initial_parameters(0))
        is_zero = problem.minima[0] == 0.0 and theirs.lowest < min(problem.minima[1:], default=1.0) / 2
        ours = by_sandblaster(client, problem, row, goal_of(theirs, is_zero), theirs, l2=0.0)
        compared.append(compare(problem.name, problem.n_parameters, theirs, ours, is_zero))
    return compared


def logistic_regression(client: Client, n_rows: int | None) -> Compared:
    """Solve the regression."""
    rows = load("train", n_rows)
    theirs = by_scipy(Reference(rows), np.zeros(REGRESSION.n_parameters))
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_store(rows, Path(folder) / "train.zarr")
        initial = np.zeros(REGRESSION.n_parameters)
        ours = by_sandblaster(client, REGRESSION, dataset, goal_of(theirs), theirs, l2=L2, initial=initial)
    name = f"softmax, {len(rows.targets):,} images"
    return compare(name, REGRESSION.n_parameters, theirs, ours)


def by_scipy(objective: Evaluate, start: np.ndarray) -> Descent:
    """SciPy's, until it stops by itself: no decrease, or an all but vanishing gradient."""
    values, evaluations, used = [], [], 0

    def count(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal used
        used += 1
        return objective(parameters)

    def note(intermediate_result: Any) -> None:
        values.append(float(intermediate_result.fun))
        evaluations.append(used)

    limits = {"maxiter": MOST_ITERATIONS, "maxfun": 10**6, "ftol": 0.0, "gtol": 1e-8}
    options = {"maxcor": HISTORY_SIZE, **limits}
    found = minimize(count, start, jac=True, method="L-BFGS-B", callback=note, options=options)
    return Descent(values, evaluations, str(found.message))


def by_sandblaster(
    client: Client, objective: db.Objective, data: Any, goal: float, theirs: Descent, *, l2: float, **options: Any
) -> Descent:
    """Ours, until an iterate is as low as the goal; no limit on decrease or gradient ends it before."""

    def is_low_enough(event: object) -> bool:
        return isinstance(event, IterationEnded) and event.loss <= goal

    method = db.Sandblaster(
        max_iter=10 * MOST_ITERATIONS,
        max_evaluations=3 * theirs.evaluations[-1] + 100,
        history_size=HISTORY_SIZE,
        l2=l2,
        gtol=0.0,
        ftol=0.0,
    )
    result = db.train(
        objective, data, method, client=client, dtype="float64", callbacks=[is_low_enough], progress=False, **options
    )
    events = [event for event in result.history if isinstance(event, IterationEnded)]
    return Descent([event.loss for event in events], [event.evaluations for event in events], result.stop.reason.value)


def goal_of(theirs: Descent, is_zero: bool = False) -> float:
    """Give the value that solves a problem, whose minimum may be 0."""
    return max(theirs.lowest * (1 + RELATIVE), ABSOLUTE if is_zero else 0.0)


def compare(name: str, n_parameters: int, theirs: Descent, ours: Descent, is_zero: bool = False) -> Compared:
    """Set the two side by side, and print it."""
    goal = goal_of(theirs, is_zero)
    of_scipy, of_ours = theirs.reaches(goal), ours.reaches(goal)
    compared = Compared(
        problem=name,
        parameters=n_parameters,
        goal=goal,
        scipy_evaluations=of_scipy or theirs.evaluations[-1],
        our_evaluations=of_ours or ours.evaluations[-1],
        solved=of_ours is not None,
        scipy_value=theirs.lowest,
        our_value=ours.lowest,
        our_stop=ours.stop,
    )
    times = compared.our_evaluations / compared.scipy_evaluations
    note = "" if compared.solved else f"  NOT SOLVED: {ours.lowest:.10g} for {goal:.10g} ({ours.stop})"
    print(
        f"{name:28}{n_parameters:6}{compared.scipy_evaluations:8}{compared.our_evaluations:8}{times:8.3f}{note}",
        flush=True,
    )
    return compared


def totals(compared: Sequence[Compared]) -> dict[str, float]:
    """Print and give what counts."""
    theirs = sum(one.scipy_evaluations for one in compared)
    ours = sum(one.our_evaluations for one in compared)
    ratios = [one.our_evaluations / one.scipy_evaluations for one in compared]
    mean = float(np.exp(np.mean(np.log(ratios))))
    n_solved = sum(one.solved for one in compared)
    print(f"{'all':34}{theirs:8}{ours:8}{ours / theirs:8.3f}, at most {MOST_TIMES} is asked for")
    print(f"{n_solved} of {len(compared)} are solved; the geometric mean of the ratios is {mean:.3f}")
    return {
        "solved": n_solved,
        "scipy_evaluations": theirs,
        "our_evaluations": ours,
        "times": ours / theirs,
        "times_allowed": MOST_TIMES,
        "geometric_mean": mean,
    }


if __name__ == "__main__":
    main()
