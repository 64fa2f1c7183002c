"""The published problems of the benchmarks: their derivatives, and the minima that the paper gives."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from scipy.optimize import minimize

from benchmarks.problems import PROBLEMS, Problem

every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: f"{problem.number}")


@every_problem
def test_gradient_is_that_of_the_value(problem: Problem) -> None:
    """The Jacobian agrees with central differences of the residuals, and the gradient with the Jacobian."""
    generator = np.random.default_rng(problem.number)
    x = np.array(problem.start) + 0.01 * generator.standard_normal(problem.n_parameters)
    residuals, jacobian = problem.residuals(x)
    for number in range(min(problem.n_parameters, 12)):
        step = np.zeros_like(x)
        step[number] = 1e-6 * max(1.0, abs(x[number]))
        difference = problem.residuals(x + step)[0] - problem.residuals(x - step)[0]
        np.testing.assert_allclose(
            difference / (2 * step[number]), jacobian[:, number], rtol=1e-5, atol=1e-5 * np.abs(jacobian).max()
        )
    value, gradient = problem(x)
    assert value == pytest.approx(np.sum(residuals**2), rel=1e-14)
    np.testing.assert_allclose(gradient, 2 * jacobian.T @ residuals, rtol=1e-12)


@every_problem
def test_minimum_is_the_published_one(problem: Problem) -> None:
    """From the standard start SciPy finds a minimum that the paper gives, to the six digits of the paper."""
    if problem.name == "Powell badly scaled":
        x = np.array([1.098159329699e-05, 9.106146739865])
        assert problem(x)[0] < 1e-18
        return
    found = minimize(problem, problem.start, jac=True, method="L-BFGS-B", options={"ftol": 0.0, "gtol": 1e-10})
    assert any(found.fun == pytest.approx(minimum, rel=1e-5, abs=1e-10) for minimum in problem.minima)


@every_problem
def test_problem_is_an_objective_of_rows(problem: Problem) -> None:
    """Loss and gradient are summed over rows, each of which counts f once; the problem travels to workers."""
    sent: Problem = pickle.loads(pickle.dumps(problem))
    x = sent.initial_parameters(seed=3)
    loss, gradient = sent.loss_and_gradient(x, np.zeros((2, 1)), np.zeros(2))
    value, of_one = problem(x)
    assert loss == 2 * value
    np.testing.assert_array_equal(gradient, 2 * of_one)
