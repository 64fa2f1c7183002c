"""Whether Sandblaster L-BFGS goes down as SciPy's L-BFGS-B does, and gives the same bits with any number of workers.

The first: multinomial logistic regression on Fashion-MNIST from zeros, L2 1e-4 on weights and not on biases. SciPy
minimises a float64 objective written in NumPy; ours is float32 on two single-thread workers. Both are judged by the
float64 objective at the parameters that they end with. The second: a few iterations with 1, 2 and 3 workers, of this
model and of a network large enough for three shards. From the root of the repository, with the environment's OPENBLAS_*
settings out of the way::

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python -m benchmarks.bench_sandblaster \
        --json benchmarks/results/sandblaster.json
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections.abc import Sequence
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

L2 = 1e-4
HISTORY_SIZE = 10
REGRESSION = db.Network([db.Dense(N_CLASSES)], "softmax", (N_FEATURES,))
NETWORK = db.Network([db.Dense(256, "relu"), db.Dense(N_CLASSES)], "softmax", (N_FEATURES,))

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
        self._rows = np.arange(len(rows.targets))
        self._targets = rows.targets
        self.evaluations = 0

    def __call__(self, parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """Give the objective and its gradient."""
        self.evaluations += 1
        weights = parameters[:-N_CLASSES].reshape(N_FEATURES, N_CLASSES)
        z = self._inputs @ weights + parameters[-N_CLASSES:]
        z -= z.max(axis=1, keepdims=True)
        true = z[self._rows, self._targets]
        np.exp(z, out=z)
        sums = z.sum(axis=1, keepdims=True)
        loss = float(np.mean(np.log(sums[:, 0]) - true)) + 0.5 * L2 * float(np.vdot(weights, weights))
        z /= sums
        z[self._rows, self._targets] -= 1
        z /= len(z)
        return loss, np.concatenate([(self._inputs.T @ z + L2 * weights).ravel(), z.sum(axis=0)])


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
    """Let both minimise, and print how they compare."""
    reference = Reference(rows)
    theirs = by_scipy(reference, n_iterations)
    print(line("SciPy L-BFGS-B", theirs), flush=True)
    ours = by_sandblaster(reference, dataset, n_iterations)
    print(line("Sandblaster", ours), flush=True)

    above = ours.last / theirs.last - 1
    evaluations = ours.evaluations[-1] / theirs.evaluations[-1]
    print(f"after {n_iterations} iterations ours is {above:+.2e} above SciPy's; at most {MOST_ABOVE:g} is asked for")
    print(f"evaluations: {evaluations:.3f} times SciPy's; at most {MOST_EVALUATIONS} is asked for")
    common = min(ours.evaluations[-1], theirs.evaluations[-1])
    curve = []
    for used in sorted({common * part // 8 for part in range(1, 9)} - {0, 1}):
        pair = theirs.after(used), ours.after(used)
        curve.append({"evaluations": used, "scipy": pair[0], "sandblaster": pair[1]})
        print(f"after {used:4} evaluations: SciPy {pair[0]:.8f}, ours {pair[1]:.8f}, ratio {pair[1] / pair[0]:.7f}")
    return {
        "scipy": theirs.figures(),
        "sandblaster": ours.figures(),
        "relative_excess": above,
        "relative_excess_allowed": MOST_ABOVE,
        "evaluations_ratio": evaluations,
        "evaluations_ratio_allowed": MOST_EVALUATIONS,
        "at_equal_evaluations": curve,
    }


def by_scipy(reference: Reference, n_iterations: int) -> Descent:
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
        np.zeros(REGRESSION.n_parameters),
        jac=True,
        method="L-BFGS-B",
        callback=note,
        options={"maxcor": HISTORY_SIZE, "maxiter": n_iterations, "maxfun": 10**6, "ftol": 0.0, "gtol": 0.0},
    )
    return Descent(evaluations, objectives, float(found.fun), time.perf_counter() - start)


def by_sandblaster(reference: Reference, dataset: db.ZarrDataset, n_iterations: int) -> Descent:
    """Ours, in float32 on two workers; its result judged by the float64 reference."""
    method = db.Sandblaster(max_iter=n_iterations, history_size=HISTORY_SIZE, l2=L2, gtol=0.0, ftol=0.0)
    [result] = train_with(2, [(REGRESSION, np.zeros(REGRESSION.n_parameters))], dataset, method)
    print(result.stop)
    last, _ = reference(result.parameters.astype(np.float64))
    iterations = result.history.rows("IterationEnded")
    return Descent(
        [int(row["evaluations"] or 0) for row in iterations],
        [float(row["loss"] or 0) for row in iterations],
        last,
        result.seconds,
    )


def line(name: str, descent: Descent) -> str:
    return (
        f"{name:16}{descent.last:.10f} after {len(descent.evaluations)} iterations, {descent.evaluations[-1]} "
        f"evaluations, {descent.seconds:.1f} s"
    )


# The same bits.


MODELS = {"784-10": REGRESSION, "784-256-10": NETWORK}
WORKERS = (1, 2, 3)


def bits(name: str, network: db.Network, dataset: db.ZarrDataset) -> dict[str, Any]:
    """Run a few iterations with each number of workers, and compare every bit of what they found."""
    method = db.Sandblaster(max_iter=3, history_size=HISTORY_SIZE, l2=L2)
    results = [train_with(n, [(network, network.initial_parameters(0))], dataset, method)[0] for n in WORKERS]
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
    n_workers: int, jobs: Sequence[tuple[db.Network, np.ndarray]], dataset: db.ZarrDataset, method: db.Sandblaster
) -> list[db.TrainingResult]:
    """Train on a cluster of so many processes, one thread each."""
    with (
        LocalCluster(n_workers=n_workers, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        return [
            db.train(network, dataset, method, client=client, initial=initial, progress=False)
            for network, initial in jobs
        ]


if __name__ == "__main__":
    main()
