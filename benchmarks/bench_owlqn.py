r"""Whether OWL-QN finds the minimum of an L1 penalty, and its zeros, where scikit-learn's SAGA finds them.

Logistic regression of 20,000 flights, late or not, on the columns of the demo in float64, each scaled to mean 0 and
standard deviation 1 (SAGA does not converge within 20,000 passes where their scales differ), with the intercept left
out of the penalty. SAGA takes steps of single rows with their average and a soft threshold: another method by other
people. Both run until they have converged. From the root of the repository, with the environment's OPENBLAS_* settings
out of the way::

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python -m benchmarks.bench_owlqn --json benchmarks/results/owlqn.json
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from distributed import Client, LocalCluster
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

import dask_belief as db
from benchmarks.record import Record
from pipelines.tabular.model import logistic_regression
from pipelines.tabular.prepare import prepare

N_ROWS = 20_000
PENALTIES = (1e-2, 3e-3, 1e-3)
TOLERANCE = 1e-10
MOST_PASSES = 20_000

MOST_ABOVE, MOST_OTHER_ZEROS = 1e-6, 0.01
"""What is asked for: the relative difference of the objectives, and the part of the weights of which one is zero."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures, with commit and machine, to this file")
    parser.add_argument("--quick", action="store_true", help="2,000 rows and the largest penalty: to see that it runs")
    parser.add_argument("--l1", type=float, nargs="+", default=PENALTIES, help="penalties; SAGA takes minutes for each")
    arguments = parser.parse_args()
    n_rows, penalties = (2000, PENALTIES[:1]) if arguments.quick else (N_ROWS, arguments.l1)

    record = Record(__doc__.splitlines()[0])
    inputs, targets = flights(n_rows)
    print(f"{len(targets)} flights, {inputs.shape[1]} columns, {targets.mean():.1%} late; scikit-learn", end=" ")
    print(sklearn.__version__, flush=True)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        cases = [compare(inputs, targets, l1, client) for l1 in penalties]
    if arguments.json:
        figures = {
            "quick": arguments.quick,
            "rows": len(targets),
            "columns": inputs.shape[1],
            "sklearn": sklearn.__version__,
            "cases": cases,
            "relative_difference_allowed": MOST_ABOVE,
            "other_zeros_allowed": MOST_OTHER_ZEROS,
        }
        record.write(arguments.json, figures)


def flights(n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Give the first training flights of the demo, which are in a random order, and whether they were late."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = db.ZarrDataset(prepare(Path(folder)).train)
        inputs, targets = dataset.read(0, n_rows, dtype=np.float64)
    varies = inputs.std(axis=0) > 0
    inputs = inputs[:, varies] - inputs[:, varies].mean(axis=0)
    return inputs / inputs.std(axis=0), targets


def objective(inputs: np.ndarray, targets: np.ndarray, parameters: np.ndarray, l1: float) -> float:
    """The definition, in NumPy: mean loss and penalty, at the weights and the intercept that comes last."""
    z = inputs @ parameters[:-1] + parameters[-1]
    return float(np.mean(np.logaddexp(0.0, z) - targets * z) + l1 * np.abs(parameters[:-1]).sum())


def compare(inputs: np.ndarray, targets: np.ndarray, l1: float, client: Client) -> dict[str, Any]:
    """Let both find the minimum, and print how they compare."""
    began = time.perf_counter()
    theirs, passes, has_converged = by_saga(inputs, targets, l1)
    their_seconds = time.perf_counter() - began
    method = db.Sandblaster(l1=l1, gtol=TOLERANCE, ftol=0.0, max_iter=5000)
    network = logistic_regression(inputs.shape[1])
    result = db.train(network, (inputs, targets), method, client=client, dtype="float64", progress=False)
    ours = result.parameters

    values = [objective(inputs, targets, parameters, l1) for parameters in (ours, theirs)]
    difference = values[0] / values[1] - 1
    zeros = [parameters[:-1] == 0 for parameters in (ours, theirs)]
    other_zeros = float(np.mean(zeros[0] != zeros[1]))
    print(f"l1 {l1:g}: objective {values[0]:.12f}, SAGA's {values[1]:.12f}, relative difference {difference:+.1e}")
    print(f"    zeros {zeros[0].sum()} and {zeros[1].sum()} of {len(zeros[0])}, {other_zeros:.2%} not the same")
    print(f"    ours: {result.passes:.0f} passes, {result.seconds:.1f} s, {result.stop}")
    words = "converged" if has_converged else "NOT CONVERGED"
    print(f"    SAGA: {passes} passes, {their_seconds:.1f} s, {words}", flush=True)
    return {
        "l1": l1,
        "objective": values[0],
        "saga_objective": values[1],
        "relative_difference": difference,
        "zeros": int(zeros[0].sum()),
        "saga_zeros": int(zeros[1].sum()),
        "other_zeros": other_zeros,
        "passes": result.passes,
        "seconds": result.seconds,
        "stop": result.stop.to_config(),
        "saga_passes": passes,
        "saga_seconds": their_seconds,
        "saga_converged": has_converged,
    }


def by_saga(inputs: np.ndarray, targets: np.ndarray, l1: float) -> tuple[np.ndarray, int, bool]:
    """Give weights and intercept, the passes over the rows, and whether it says that it has converged."""
    model = LogisticRegression(
        penalty="l1",
        C=1 / (l1 * len(targets)),
        solver="saga",
        tol=TOLERANCE,
        max_iter=MOST_PASSES,
        random_state=0,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(inputs, targets)
    has_converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    return np.append(model.coef_.ravel(), model.intercept_), int(model.n_iter_[0]), has_converged


if __name__ == "__main__":
    main()
