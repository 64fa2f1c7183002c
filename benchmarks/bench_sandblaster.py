r"""Whether Sandblaster L-BFGS goes down as SciPy's L-BFGS-B does, and gives the same bits with any number of workers.

Multinomial logistic regression on Fashion-MNIST from zeros, L2 1e-4 on weights and not on biases, ten pairs of history.
SciPy minimises a float64 objective written in NumPy; ours runs on two single-thread workers and is judged by the same
float64 objective at the parameters that it ends with.

- In float64 both methods do the same, so ours must be as low after as many iterations.
- In float32 the path leaves that of float64 after some forty iterations, as SciPy's own does when its start is moved by
  1e-7: the rounding grows by a factor of about ten every dozen iterations, and what is lower after exactly a hundred is
  chance. So what counts there is how many evaluations ours takes to come as low as SciPy did.

Then a few iterations with 1, 2 and 3 workers, of this model and of a network large enough for three shards, compared
bit by bit. From the root of the repository, with the environment's OPENBLAS_* settings out of the way::

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python -m benchmarks.bench_sandblaster \
        --json benchmarks/results/sandblaster.json
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from distributed import Client, LocalCluster
from scipy.optimize import minimize

import dask_belief as db
from benchmarks.fashion_mnist import N_CLASSES, N_FEATURES, Rows, load, write_store
from benchmarks.record import Record
from dask_belief.monitoring.events import IterationEnded

L2 = 1e-4
HISTORY_SIZE = 10
BLOCK_ROWS = 1000
REGRESSION = db.Network([db.Dense(N_CLASSES)], "softmax", (N_FEATURES,))
MODELS = {
    "784-10": REGRESSION,
    "784-256-10": db.Network([db.Dense(256, "relu"), db.Dense(N_CLASSES)], "softmax", (N_FEATURES,)),
}
WORKERS = (1, 2, 3)

MOST_ABOVE, MOST_EVALUATIONS = 1e-5, 1.3
"""What is asked for: the relative excess of our objective over SciPy's, and our evaluations over SciPy's."""


@dataclass(frozen=True)
class Descent:
    """How one method went down: the objective after so many evaluations, iterate by iterate, and the last of all."""

    evaluations: list[int]
    objectives: list[float]
    last: float
    seconds: float

    def after(self, evaluations: int) -> float:
        """Give the objective of the last iterate that took at most so many evaluations."""
        return [value for used, value in zip(self.evaluations, self.objectives, strict=True) if used <= evaluations][-1]

    def reaches(self, goal: float) -> int | None:
        """Give the evaluations after which the objective was first as low as that; None for never."""
        pairs = zip(self.evaluations, self.objectives, strict=True)
        return next((used for used, value in pairs if value <= goal), None)

    def figures(self) -> dict[str, Any]:
        """Give what is worth keeping."""
        return {
            "iterations": len(self.evaluations),
            "evaluations": self.evaluations[-1],
            "objective": self.last,
            "seconds": self.seconds,
        }


class Reference:
    """The objective and its gradient in float64: the definition, in NumPy, independent of the package."""

    def __init__(self, rows: Rows) -> None:
        self._inputs = rows.scaled(np.float64)
        self._targets = rows.targets
        self.evaluations = 0

    def __call__(self, parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """Give the objective and its gradient."""
        self.evaluations += 1
        weights, bias = parameters[:-N_CLASSES].reshape(N_FEATURES, N_CLASSES), parameters[-N_CLASSES:]
        n_rows, loss = len(self._targets), 0.0
        by_weights, by_bias = np.zeros_like(weights), np.zeros_like(bias)
        for start in range(0, n_rows, BLOCK_ROWS):
            inputs, targets = (array[start : start + BLOCK_ROWS] for array in (self._inputs, self._targets))
            each = np.arange(len(targets))
            z = inputs @ weights + bias
            z -= z.max(axis=1, keepdims=True)
            loss -= float(z[each, targets].sum())
            np.exp(z, out=z)
            sums = z.sum(axis=1, keepdims=True)
            loss += float(np.log(sums).sum())
            z /= sums
            z[each, targets] -= 1
            by_weights += inputs.T @ z
            by_bias += z.sum(axis=0)
        objective = loss / n_rows + 0.5 * L2 * float(np.vdot(weights, weights))
        return objective, np.concatenate([(by_weights / n_rows + L2 * weights).ravel(), by_bias / n_rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures, with commit and machine, to this file")
    parser.add_argument("--quick", action="store_true", help="6,000 rows and 20 iterations: to see that it runs")
    arguments = parser.parse_args()
    n_rows, n_iterations = (6000, 20) if arguments.quick else (None, 100)

    record = Record(__doc__.splitlines()[0])
    rows = load("train", n_rows)
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_store(rows, Path(folder) / "train.zarr")
        figures = {
            "quick": arguments.quick,
            "rows": len(rows.targets),
            "scipy": scipy.__version__,
            "minimum": compare(rows, dataset, n_iterations),
            "workers": [bits(name, network, dataset) for name, network in MODELS.items()],
        }
    if arguments.json:
        record.write(arguments.json, figures)


# Against SciPy.


def compare(rows: Rows, dataset: db.ZarrDataset, n_iterations: int) -> dict[str, Any]:
    """Let all minimise, and print how they compare."""
    reference = Reference(rows)
    theirs = by_scipy(reference, n_iterations)
    print(line("SciPy, float64", theirs), flush=True)
    moved = [by_scipy(reference, n_iterations, moved_by=1e-7, seed=seed).last / theirs.last - 1 for seed in range(3)]
    print(f"{'the same, start moved by 1e-7':32}{', '.join(f'{excess:+.1e}' for excess in moved)} above it", flush=True)
    wide = by_sandblaster(reference, dataset, "float64", n_iterations)
    print(line("ours, float64", wide), flush=True)
    goal, most = theirs.last * (1 + MOST_ABOVE), int(MOST_EVALUATIONS * theirs.evaluations[-1])
    narrow = by_sandblaster(reference, dataset, "float32", n_iterations, goal, most)
    print(line("ours, float32", narrow), flush=True)

    above, evaluations = wide.last / theirs.last - 1, wide.evaluations[-1] / theirs.evaluations[-1]
    print(f"float64: after {n_iterations} iterations {above:+.1e} above SciPy's, at most {MOST_ABOVE:g} is asked for;")
    print(f"         {evaluations:.3f} times its evaluations, at most {MOST_EVALUATIONS} is asked for")
    narrow_above, reached = narrow.objectives[n_iterations - 1] / theirs.last - 1, narrow.reaches(goal)
    times = None if reached is None else reached / theirs.evaluations[-1]
    print(f"float32: after {n_iterations} iterations {narrow_above:+.1e} above SciPy's;")
    words = f"{times:.3f} times" if times else f"MORE THAN {MOST_EVALUATIONS} times"
    print(f"         as low as SciPy's after {words} its evaluations, at most {MOST_EVALUATIONS} is asked for")
    return {
        "scipy": theirs.figures(),
        "scipy_start_moved": {"by": 1e-7, "relative_excess": moved},
        "float64": {**wide.figures(), "relative_excess": above, "evaluations_ratio": evaluations},
        "float32": {
            **narrow.figures(),
            "relative_excess_after_as_many_iterations": narrow_above,
            "evaluations_to_reach": reached,
            "evaluations_ratio": times,
        },
        "relative_excess_allowed": MOST_ABOVE,
        "evaluations_ratio_allowed": MOST_EVALUATIONS,
        "at_equal_evaluations": curve({"scipy": theirs, "float64": wide, "float32": narrow}),
    }


def curve(descents: dict[str, Descent]) -> list[dict[str, float]]:
    """Print and give the objectives after equal numbers of evaluations."""
    common = min(descent.evaluations[-1] for descent in descents.values())
    rows: list[dict[str, float]] = []
    for used in sorted({common * part // 8 for part in range(1, 9)} - {0, 1}):
        values = {name: descent.after(used) for name, descent in descents.items()}
        ratios = ", ".join(f"{name} {value / values['scipy']:.7f}" for name, value in values.items() if name != "scipy")
        print(f"after {used:3} evaluations: SciPy {values['scipy']:.8f}; times that: {ratios}", flush=True)
        rows.append({"evaluations": used, **values})
    return rows


def by_scipy(reference: Reference, n_iterations: int, moved_by: float = 0.0, seed: int = 0) -> Descent:
    """SciPy's, in float64, with as many threads as its libraries take."""
    evaluations: list[int] = []
    objectives: list[float] = []

    def note(intermediate_result: Any) -> None:
        evaluations.append(reference.evaluations)
        objectives.append(float(intermediate_result.fun))

    reference.evaluations = 0
    start = time.perf_counter()
    found = minimize(
        reference,
        moved_by * np.random.default_rng(seed).standard_normal(REGRESSION.n_parameters),
        jac=True,
        method="L-BFGS-B",
        callback=note,
        options={"maxcor": HISTORY_SIZE, "maxiter": n_iterations, "maxfun": 10**6, "ftol": 0.0, "gtol": 0.0},
    )
    return Descent(evaluations, objectives, float(found.fun), time.perf_counter() - start)


def by_sandblaster(
    reference: Reference,
    dataset: db.ZarrDataset,
    dtype: str,
    n_iterations: int,
    goal: float | None = None,
    max_evaluations: int | None = None,
) -> Descent:
    """Ours on two workers: so many iterations, and on until the goal is reached where there is one."""

    def is_low_enough(event: object) -> bool:
        return (
            goal is not None
            and isinstance(event, IterationEnded)
            and event.iteration >= n_iterations
            and event.loss <= goal
        )

    method = db.Sandblaster(
        max_iter=n_iterations if goal is None else 2 * n_iterations,
        max_evaluations=max_evaluations,
        history_size=HISTORY_SIZE,
        l2=L2,
        gtol=0.0,
        ftol=0.0,
    )
    initial = np.zeros(REGRESSION.n_parameters)
    result = train_with(2, REGRESSION, initial, dataset, method, dtype=dtype, callbacks=[is_low_enough])
    print(f"{dtype}: {result.stop}")
    last, _ = reference(result.parameters.astype(np.float64))
    iterations = [event for event in result.history if isinstance(event, IterationEnded)]
    return Descent(
        [event.evaluations for event in iterations], [event.loss for event in iterations], last, result.seconds
    )


def line(name: str, descent: Descent) -> str:
    return (
        f"{name:16}{descent.last:.10f} after {len(descent.evaluations)} iterations, {descent.evaluations[-1]} "
        f"evaluations, {descent.seconds:.1f} s"
    )


# The same bits.


def bits(name: str, network: db.Network, dataset: db.ZarrDataset) -> dict[str, Any]:
    """Run a few iterations with each number of workers, and compare every bit of what they found."""
    method = db.Sandblaster(max_iter=3, history_size=HISTORY_SIZE, l2=L2)
    results = [train_with(n, network, network.initial_parameters(0), dataset, method) for n in WORKERS]
    traces = [(result.history["loss"], result.history["gradient_norm"]) for result in results]
    is_same = all(
        result.parameters.tobytes() == results[0].parameters.tobytes() and trace == traces[0]
        for result, trace in zip(results, traces, strict=True)
    )
    print(f"{name} with {WORKERS} workers: {'the same bits' if is_same else 'NOT THE SAME BITS'}", flush=True)
    return {
        "network": name,
        "workers": WORKERS,
        "is_same": is_same,
        "parameters_sha256": [hashlib.sha256(result.parameters.tobytes()).hexdigest()[:16] for result in results],
        "losses": [losses for losses, _ in traces],
        "seconds": [result.seconds for result in results],
    }


def train_with(
    n_workers: int,
    network: db.Network,
    initial: np.ndarray,
    dataset: db.ZarrDataset,
    method: db.Sandblaster,
    **options: Any,
) -> db.TrainingResult:
    """Train on a cluster of so many processes, one thread each."""
    with (
        LocalCluster(n_workers=n_workers, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        return db.train(network, dataset, method, client=client, initial=initial, progress=False, **options)


if __name__ == "__main__":
    main()
