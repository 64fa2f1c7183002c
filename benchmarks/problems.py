"""Problems of Moré, Garbow and Hillstrom (1981), whose answers are known, as objectives that can be trained.

Each is a sum of squares, ``f(x) = sum_i r_i(x)^2``, with its standard start; the functions below give the residuals r
and their Jacobian, and each is named and numbered as in "Testing unconstrained optimization software", ACM
Transactions on Mathematical Software 7 (1981) 17-41, where the minima are given too. All eighteen that the authors
propose for unconstrained minimisation are here, and some of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Residuals = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""From x ``(n,)`` to r ``(m,)`` and its Jacobian ``(m, n)``."""


@dataclass(frozen=True)
class Problem:
    """One problem, of a fixed number of parameters; an objective for `dask_belief.train`.

    Attributes
    ----------
    name, number
        As in the paper.
    residuals
        Of the problem.
    start
        The standard start.
    minima
        Values of f at its minimisers, six digits, as the paper gives them; 0 stands first where f can be 0.
    """

    name: str
    number: int
    residuals: Residuals
    start: tuple[float, ...]
    minima: tuple[float, ...] = (0.0,)

    @property
    def n_parameters(self) -> int:
        """The length of x."""
        return len(self.start)

    def initial_parameters(self, seed: int) -> np.ndarray:
        """Give the standard start; the seed changes nothing."""
        return np.array(self.start)

    def __call__(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Give f and its gradient."""
        # Trial points far out overflow: infinite values are for the line search to judge.
        with np.errstate(over="ignore", invalid="ignore"):
            residuals, jacobian = self.residuals(np.asarray(x, np.float64))
            return float(residuals @ residuals), 2.0 * (residuals @ jacobian)

    def loss_and_gradient(self, parameters: np.ndarray, inputs: Any, targets: Any) -> tuple[float, np.ndarray]:
        """Give f and its gradient for each row of data, whatever the row holds."""
        value, gradient = self(parameters)
        return len(inputs) * value, len(inputs) * gradient


def rosenbrock(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """1, and 21 for more than two parameters: a valley for each pair."""
    odd, even = x[0::2], x[1::2]
    pairs = np.arange(len(odd))
    residuals, jacobian = np.empty(len(x)), np.zeros((len(x), len(x)))
    residuals[0::2], residuals[1::2] = 10 * (even - odd**2), 1 - odd
    jacobian[2 * pairs, 2 * pairs], jacobian[2 * pairs, 2 * pairs + 1] = -20 * odd, 10
    jacobian[2 * pairs + 1, 2 * pairs] = -1
    return residuals, jacobian


def freudenstein_roth(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """2: a local minimum beside the global one."""
    a, b = x
    residuals = np.array([-13 + a + ((5 - b) * b - 2) * b, -29 + a + ((b + 1) * b - 14) * b])
    return residuals, np.array([[1, (10 - 3 * b) * b - 2], [1, (3 * b + 2) * b - 14]])


def powell_badly_scaled(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """3: the minimiser is near (1e-5, 9.1)."""
    exponentials = np.exp(-x)
    residuals = np.array([1e4 * x[0] * x[1] - 1, exponentials.sum() - 1.0001])
    return residuals, np.array([1e4 * x[::-1], -exponentials])


def brown_badly_scaled(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """4: the minimiser is (1e6, 2e-6)."""
    residuals = np.array([x[0] - 1e6, x[1] - 2e-6, x[0] * x[1] - 2])
    return residuals, np.array([[1, 0], [0, 1], [x[1], x[0]]])


def beale(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """5."""
    a, b = x
    i, y = np.arange(1, 4), np.array([1.5, 2.25, 2.625])
    return y - a * (1 - b**i), np.column_stack([b**i - 1, a * i * b ** (i - 1)])


def helical_valley(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """7."""
    a, b, c = x
    # The paper's angle runs from -1/4 to 3/4 of a turn, so that it jumps on the negative half of the second axis.
    turn = np.arctan2(b, a) / (2 * np.pi)
    turn = turn + 1 if turn < -0.25 else turn
    radius = np.hypot(a, b)
    by_turn = np.array([-b, a, 0]) / (2 * np.pi * radius**2)
    jacobian = np.array([[0, 0, 10] - 100 * by_turn, [10 * a / radius, 10 * b / radius, 0], [0, 0, 1]])
    return np.array([10 * (c - 10 * turn), 10 * (radius - 1), c]), jacobian


def bard(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """8."""
    y = np.array([0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.10, 4.39])
    u = np.arange(1, 16)
    v = 16 - u
    w = np.minimum(u, v)
    below = v * x[1] + w * x[2]
    return y - (x[0] + u / below), np.column_stack([-np.ones(15), u * v / below**2, u * w / below**2])


def gaussian(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """9."""
    half = [0.0009, 0.0044, 0.0175, 0.0540, 0.1295, 0.2420, 0.3521]
    y = np.array([*half, 0.3989, *reversed(half)])
    off = (8 - np.arange(1, 16)) / 2 - x[2]
    bell = np.exp(-x[1] * off**2 / 2)
    return x[0] * bell - y, np.column_stack([bell, -x[0] * bell * off**2 / 2, x[0] * bell * x[1] * off])


def gulf(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """11, 99 residuals: the Gulf research and development problem, read as ``|y_i - x_2|``."""
    t = np.arange(1, 100) / 100
    off = 25 + (-50 * np.log(t)) ** (2 / 3) - x[1]
    size = np.abs(off)
    power = size ** x[2] / x[0]
    fall = np.exp(-power)
    by_exponent = power * np.log(np.where(size > 0, size, 1.0))
    jacobian = np.column_stack([fall * power / x[0], fall * power * x[2] / off, -fall * by_exponent])
    return fall - t, jacobian


def box(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """12, ten residuals: Box's problem in three dimensions."""
    t = np.arange(1, 11) / 10
    first, second, third = np.exp(-t * x[0]), np.exp(-t * x[1]), np.exp(-t) - np.exp(-10 * t)
    return first - second - x[2] * third, np.column_stack([-t * first, t * second, -third])


def powell_singular(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """13, and 22 for more than four parameters: the Hessian at the minimiser is singular."""
    a, b, c, d = (x[start::4] for start in range(4))
    fours = 4 * np.arange(len(a))
    residuals, jacobian = np.empty(len(x)), np.zeros((len(x), len(x)))
    residuals[0::4], residuals[1::4] = a + 10 * b, np.sqrt(5) * (c - d)
    residuals[2::4], residuals[3::4] = (b - 2 * c) ** 2, np.sqrt(10) * (a - d) ** 2
    jacobian[fours, fours], jacobian[fours, fours + 1] = 1, 10
    jacobian[fours + 1, fours + 2], jacobian[fours + 1, fours + 3] = np.sqrt(5), -np.sqrt(5)
    jacobian[fours + 2, fours + 1], jacobian[fours + 2, fours + 2] = 2 * (b - 2 * c), -4 * (b - 2 * c)
    jacobian[fours + 3, fours] = 2 * np.sqrt(10) * (a - d)
    jacobian[fours + 3, fours + 3] = -2 * np.sqrt(10) * (a - d)
    return residuals, jacobian


def wood(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """14."""
    a, b, c, d = x
    nine, ten = np.sqrt(90), np.sqrt(10)
    residuals = np.array([10 * (b - a**2), 1 - a, nine * (d - c**2), 1 - c, ten * (b + d - 2), (b - d) / ten])
    jacobian = [
        [-20 * a, 10, 0, 0],
        [-1, 0, 0, 0],
        [0, 0, -2 * nine * c, nine],
        [0, 0, -1, 0],
        [0, ten, 0, ten],
        [0, 1 / ten, 0, -1 / ten],
    ]
    return residuals, np.array(jacobian)


def kowalik_osborne(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """15."""
    y = np.array([0.1957, 0.1947, 0.1735, 0.1600, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246])
    u = np.array([4, 2, 1, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625])
    above, below = u**2 + u * x[1], u**2 + u * x[2] + x[3]
    by_below = x[0] * above / below**2
    return y - x[0] * above / below, np.column_stack([-above / below, -x[0] * u / below, by_below * u, by_below])


def brown_dennis(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """16, twenty residuals."""
    t = np.arange(1, 21) / 5
    first, second = x[0] + t * x[1] - np.exp(t), x[2] + x[3] * np.sin(t) - np.cos(t)
    jacobian = np.column_stack([2 * first, 2 * first * t, 2 * second, 2 * second * np.sin(t)])
    return first**2 + second**2, jacobian


def biggs(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """18, thirteen residuals: the Biggs EXP6 function; a local minimum beside the global one."""
    t = np.arange(1, 14) / 10
    y = np.exp(-t) - 5 * np.exp(-10 * t) + 3 * np.exp(-4 * t)
    first, second, third = np.exp(-t * x[0]), np.exp(-t * x[1]), np.exp(-t * x[4])
    residuals = x[2] * first - x[3] * second + x[5] * third - y
    return residuals, np.column_stack([-t * x[2] * first, t * x[3] * second, first, -second, -t * x[5] * third, third])


def watson(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """20, 31 residuals: a differential equation by a polynomial."""
    t = np.arange(1, 30)[:, None] / 29
    j = np.arange(len(x))
    powers = t**j
    derivatives = np.zeros_like(powers)
    derivatives[:, 1:] = j[1:] * powers[:, :-1]
    value = powers @ x
    residuals = np.concatenate([derivatives @ x - value**2 - 1, [x[0], x[1] - x[0] ** 2 - 1]])
    jacobian = np.zeros((31, len(x)))
    jacobian[:29] = derivatives - 2 * value[:, None] * powers
    jacobian[29, 0], jacobian[30, 0], jacobian[30, 1] = 1, -2 * x[0], 1
    return residuals, jacobian


def first_penalty(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """23: penalty function I."""
    small = np.sqrt(1e-5)
    residuals = np.append(small * (x - 1), x @ x - 0.25)
    return residuals, np.vstack([small * np.eye(len(x)), 2 * x])


def second_penalty(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """24: penalty function II."""
    n, small = len(x), np.sqrt(1e-5)
    i = np.arange(2, n + 1)
    exponentials, weights = np.exp(x / 10), np.arange(n, 0, -1)
    y = np.exp(i / 10) + np.exp((i - 1) / 10)
    pairs = small * (exponentials[1:] + exponentials[:-1] - y)
    singles = small * (exponentials[1:] - np.exp(-0.1))
    residuals = np.concatenate([[x[0] - 0.2], pairs, singles, [weights @ x**2 - 1]])
    jacobian = np.zeros((2 * n, n))
    jacobian[0, 0] = 1
    jacobian[i - 1, i - 1], jacobian[i - 1, i - 2] = small * exponentials[1:] / 10, small * exponentials[:-1] / 10
    jacobian[n + i - 2, i - 1] = small * exponentials[1:] / 10
    jacobian[-1] = 2 * weights * x
    return residuals, jacobian


def variably_dimensioned(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """25."""
    j = np.arange(1, len(x) + 1)
    total = j @ (x - 1)
    return np.concatenate([x - 1, [total, total**2]]), np.vstack([np.eye(len(x)), j, 2 * total * j])


def trigonometric(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """26: a local minimum beside the global one."""
    n, i = len(x), np.arange(1, len(x) + 1)
    residuals = n - np.cos(x).sum() + i * (1 - np.cos(x)) - np.sin(x)
    return residuals, np.tile(np.sin(x), (n, 1)) + np.diag(i * np.sin(x) - np.cos(x))


def brown_almost_linear(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """27."""
    n = len(x)
    residuals = np.append(x[:-1] + x.sum() - (n + 1), x.prod() - 1)
    others = np.array([np.delete(x, number).prod() for number in range(n)])
    return residuals, np.vstack([np.eye(n)[:-1] + 1, others])


def discrete_boundary_value(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """28."""
    n = len(x)
    step = 1 / (n + 1)
    cube = x + np.arange(1, n + 1) * step + 1
    around = np.pad(x, 1)
    residuals = 2 * x - around[:-2] - around[2:] + step**2 * cube**3 / 2
    return residuals, np.diag(2 + 1.5 * step**2 * cube**2) - np.eye(n, k=1) - np.eye(n, k=-1)


def broyden_tridiagonal(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """30."""
    n = len(x)
    around = np.pad(x, 1)
    residuals = (3 - 2 * x) * x - around[:-2] - 2 * around[2:] + 1
    return residuals, np.diag(3 - 4 * x) - np.eye(n, k=-1) - 2 * np.eye(n, k=1)


def chebyquad(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """35: the nodes of Chebyshev's quadrature."""
    n = len(x)
    # Polynomials of degree 0 to n on [0, 1] by their recursion, and their derivatives.
    values, slopes = np.ones((n + 1, n)), np.zeros((n + 1, n))
    values[1], slopes[1] = 2 * x - 1, 2
    for degree in range(2, n + 1):
        values[degree] = 2 * values[1] * values[degree - 1] - values[degree - 2]
        slopes[degree] = 4 * values[degree - 1] + 2 * values[1] * slopes[degree - 1] - slopes[degree - 2]
    degrees = np.arange(1, n + 1)
    integrals = np.where(degrees % 2 == 0, -1 / np.maximum(degrees**2 - 1, 1), 0.0)
    return values[1:].mean(axis=1) - integrals, slopes[1:] / n


def _even(n: int, *values: float) -> tuple[float, ...]:
    """Repeat the values up to a length."""
    return values * (n // len(values))


def _steps(numbers: Sequence[int] | np.ndarray) -> tuple[float, ...]:
    return tuple(float(number) for number in numbers)


PROBLEMS: tuple[Problem, ...] = (
    Problem("Rosenbrock", 1, rosenbrock, (-1.2, 1.0)),
    Problem("Freudenstein and Roth", 2, freudenstein_roth, (0.5, -2.0), (0.0, 48.9843)),
    Problem("Powell badly scaled", 3, powell_badly_scaled, (0.0, 1.0)),
    Problem("Brown badly scaled", 4, brown_badly_scaled, (1.0, 1.0)),
    Problem("Beale", 5, beale, (1.0, 1.0)),
    Problem("helical valley", 7, helical_valley, (-1.0, 0.0, 0.0)),
    Problem("Bard", 8, bard, (1.0, 1.0, 1.0), (8.21488e-3, 17.4287)),
    Problem("Gaussian", 9, gaussian, (0.4, 1.0, 0.0), (1.12793e-8,)),
    Problem("Gulf", 11, gulf, (5.0, 2.5, 0.15)),
    Problem("Box", 12, box, (0.0, 10.0, 20.0)),
    Problem("Powell singular", 13, powell_singular, (3.0, -1.0, 0.0, 1.0)),
    Problem("Wood", 14, wood, (-3.0, -1.0, -3.0, -1.0)),
    Problem("Kowalik and Osborne", 15, kowalik_osborne, (0.25, 0.39, 0.415, 0.39), (3.07506e-4, 1.02734e-3)),
    Problem("Brown and Dennis", 16, brown_dennis, (25.0, 5.0, -5.0, -1.0), (85822.2,)),
    Problem("Biggs EXP6", 18, biggs, (1.0, 2.0, 1.0, 1.0, 1.0, 1.0), (0.0, 5.65565e-3)),
    Problem("Watson", 20, watson, _even(9, 0.0), (1.39976e-6,)),
    Problem("extended Rosenbrock", 21, rosenbrock, _even(100, -1.2, 1.0)),
    Problem("extended Powell singular", 22, powell_singular, _even(100, 3.0, -1.0, 0.0, 1.0)),
    Problem("penalty I", 23, first_penalty, _steps(range(1, 11)), (7.08765e-5,)),
    Problem("penalty II", 24, second_penalty, _even(10, 0.5), (2.93660e-4,)),
    Problem("variably dimensioned", 25, variably_dimensioned, _steps(1 - np.arange(1, 11) / 10)),
    Problem("trigonometric", 26, trigonometric, _even(10, 0.1), (0.0, 2.79506e-5)),
    Problem("Brown almost linear", 27, brown_almost_linear, _even(10, 0.5), (0.0, 1.0)),
    Problem("discrete boundary value", 28, discrete_boundary_value,
            _steps(np.arange(1, 11) / 11 * (np.arange(1, 11) / 11 - 1))),
    Problem("Broyden tridiagonal", 30, broyden_tridiagonal, _even(10, -1.0)),
    Problem("Chebyquad", 35, chebyquad, _steps(np.arange(1, 9) / 9), (3.51687e-3,)),
)  # fmt: skip
"""In the order of the paper's numbers."""
