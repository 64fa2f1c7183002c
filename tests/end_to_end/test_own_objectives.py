"""Objectives of a user's own, a few lines each, are trained to the answer that SciPy finds."""

from __future__ import annotations

import numpy as np
import pytest
from distributed import Client
from scipy.optimize import minimize

import dask_belief as db
from dask_belief.door import check_backend
from dask_belief.seeds import stream


class PoissonRegression:
    """Counts whose logarithm of the mean is linear; the penalty leaves the intercept alone."""

    n_parameters = 5
    penalised = np.array([True, True, True, True, False])

    def initial_parameters(self, seed):
        return np.zeros(5)

    def loss_and_gradient(self, parameters, inputs, targets):
        log_mean = inputs @ parameters[:-1] + parameters[-1]
        residual = np.exp(log_mean) - targets
        loss = np.sum(np.exp(log_mean) - targets * log_mean, dtype=np.float64)
        return float(loss), np.append(inputs.T @ residual, residual.sum())


@pytest.fixture(scope="module")
def counts() -> tuple[np.ndarray, np.ndarray]:
    """2,000 counts, float64."""
    random = stream(5, "counts")
    inputs = random.normal(size=(2000, 4))
    return inputs, random.poisson(np.exp(inputs @ [0.5, -0.3, 0.0, 0.2] + 1.0)).astype(np.float64)


def scipy_minimum(counts: tuple[np.ndarray, np.ndarray], l2: float) -> np.ndarray:
    inputs, targets = counts

    def mean_and_penalty(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        loss, gradient = PoissonRegression().loss_and_gradient(parameters, inputs, targets)
        weights = parameters * PoissonRegression.penalised
        return loss / len(inputs) + 0.5 * l2 * (weights @ weights), gradient / len(inputs) + l2 * weights

    found = minimize(mean_and_penalty, np.zeros(5), jac=True, method="L-BFGS-B", options={"gtol": 1e-10, "ftol": 0.0})
    return found.x


@pytest.mark.parametrize("direction", ["lbfgs", "conjugate_gradient", "gradient_descent"])
@pytest.mark.parametrize("l2", [0.0, 0.5])
def test_poisson_regression_is_scipys(two_workers: Client, counts, direction: str, l2: float) -> None:
    """The minimum is SciPy's by each direction, with a penalty that its mask keeps from the intercept and without."""
    method = db.Sandblaster(direction=direction, l2=l2, gtol=1e-8, ftol=0.0, max_iter=200)
    result = db.train(PoissonRegression(), counts, method, client=two_workers, dtype="float64", progress=False)
    assert result.stop.reason is db.StopReason.GRADIENT_SMALL
    np.testing.assert_allclose(result.parameters, scipy_minimum(counts, l2), atol=1e-6)


def test_the_l1_penalty_leaves_alone_what_the_mask_leaves_out(two_workers: Client, counts) -> None:
    """Under a penalty that is heavy enough all that is left is the intercept, which is the logarithm of the mean."""
    method = db.Sandblaster(l1=100.0, gtol=1e-8, ftol=0.0)
    result = db.train(PoissonRegression(), counts, method, client=two_workers, dtype="float64", progress=False)
    assert result.stop.converged
    assert (result.parameters[:-1] == 0).all()
    assert result.parameters[-1] == pytest.approx(np.log(counts[1].mean()), rel=1e-8)


def test_objective_of_numpy_alone_is_computed_on_the_host(two_workers: Client, counts) -> None:
    """Whatever the workers could use; asking for another backend by name is refused at the door."""
    objective = PoissonRegression()
    with pytest.raises(db.ArgumentError, match=r"^backend: 'cupy' was asked for, and PoissonRegression offers no on"):
        db.train(objective, counts, db.Sandblaster(), client=two_workers, backend="cupy", progress=False)
    assert check_backend("auto", objective) == "numpy"
    network = db.Network([db.Dense(1)], "squared", (4,))
    assert [check_backend(name, network) for name in ("auto", "cupy")] == ["auto", "cupy"]
