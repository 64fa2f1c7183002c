"""Nonlinear conjugate gradients, Polak-Ribiere+: a direction that remembers the one before it, and no more.

With the gradient ``g`` at the present point, ``g_old`` at the one before, and ``d_old`` the direction between them
(Polak and Ribiere 1969; Gilbert and Nocedal, SIAM J. Optim. 2, 1992; Nocedal and Wright, Numerical Optimization, 5.2)::

    d = -g + beta d_old,    beta = max(0, g.(g - g_old) / g_old.g_old)          (5.44, 5.45)

``g - g_old`` is the change ``y0`` of the last pair, and ``d_old = s0 / step``, so the direction is one of ``g`` and
``s0`` only. It starts again from ``-g``

- when two gradients in a row are far from orthogonal, ``|g.g_old| >= 0.2 g.g`` (Powell, "Restart procedures for the
  conjugate gradient method", Math. Prog. 12, 1977; equation 5.52);
- when it would not descend, as the search before it allows where rounding spoils its conditions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from dask_belief.errors import ArgumentError
from dask_belief.optim.descent import squared_gradient, unit_step
from dask_belief.optim.direction import GRADIENT, Direction, Product, Update, curvature_of, find_product
from dask_belief.optim.stopping import number_from_json, number_to_json

# Powell's measure of how far from orthogonal two gradients may be.
_RESTART = 0.2
# A first move is at most so many times longer than the last one. The formula takes it that each step brings the same
# decrease, which proposes ever longer moves as a run converges; the search extends by as much when it is wrong.
_MOST_GROWTH = 4.0


class ConjugateGradient:
    """The rule of nonlinear conjugate gradients; see the module for formulas, and `DirectionRule` for what calls it.

    It needs a sharper search than L-BFGS (``c2`` is 0.1), and no more memory than one pair. Not for steps that were
    projected, as with an L1 penalty: the formulas rely on the step being a multiple of the last direction.

    Examples
    --------
    On ``f(x) = x[0]**2 + 2 * x[1]**2``, from (2, 1) by an exact search along ``-g_old = (-4, -4)`` to (2/3, -1/3):

    >>> rule = ConjugateGradient()
    >>> rule.update(None, {("g", "g"): 32.0}).is_kept
    False
    >>> vectors = {"g": (4 / 3, -4 / 3), "s0": (-4 / 3, -4 / 3), "y0": (-8 / 3, -16 / 3)}
    >>> dots = {(a, b): sum(p * q for p, q in zip(vectors[a], vectors[b])) for a, b in rule.products(0)}
    >>> rule.update(0, dots, step=1 / 3).is_kept
    True
    >>> {name: round(coefficient, 9) for name, coefficient in rule.direction().terms.items()}     # to the minimum
    {'g': -1.0, 's0': 0.333333333}
    """

    c2: ClassVar[float] = 0.1

    def __init__(self) -> None:
        self._squared: float | None = None
        """The gradient's square; None before the first `update`."""
        self._of_step = 0.0
        """The coefficient of ``s0`` in the direction: ``beta / step``."""
        self._slope = math.nan
        self._first_step = 1.0

    @property
    def has_memory(self) -> bool:
        """Whether the direction is another one than minus the gradient."""
        return self._of_step != 0.0

    def free_slot(self) -> int:
        """Slot 0: once a direction is formed, the pair that it came from may go."""
        return 0

    def products(self, slot: int | None) -> list[Product]:
        """The gradient's square, its products with the pair, and those of the step."""
        of_pair = [(GRADIENT, "s0"), (GRADIENT, "y0"), ("s0", "s0"), ("s0", "y0")]
        return [(GRADIENT, GRADIENT), *([] if slot is None else of_pair)]

    def update(self, slot: int | None, dots: Mapping[Product, float], step: float = math.nan) -> Update:
        """Take one round of dot products, and decide whether to go on from the last direction or to start again.

        Raises
        ------
        ArgumentError
            A dot product is missing, or there is a pair and no step.
        NonFiniteError
            The gradient's square is not finite. The rule is unchanged.
        """
        squared = squared_gradient(dots)
        if slot is None:
            self._squared = squared
            self.reset()
            return Update(False)
        if not 0 < step < math.inf:
            raise ArgumentError(f"step: the positive step of the line search is needed, got {step}; pass it")
        by_step, by_change, step_squared, step_by_change = (find_product(dots, *each) for each in self.products(0)[1:])
        beta = _beta(squared, by_change, self._squared or 0.0)
        of_step = beta / step
        if not -squared + of_step * by_step < 0 or not of_step < math.inf:
            of_step = 0.0
        last_slope = self._slope
        self._squared, self._of_step = squared, of_step
        self._slope = -squared + of_step * by_step if of_step else -squared
        # |d|, of which the step to try first needs no more than the size.
        length = math.sqrt(max(squared - 2 * of_step * by_step + of_step * of_step * step_squared, 0.0))
        self._first_step = _first_step(step * last_slope / self._slope if squared else 1.0, length, step_squared)
        return Update(self.has_memory, curvature_of(step_squared, step_by_change))

    def direction(self) -> Direction:
        """Minus the gradient, and a multiple of the last step where the rule goes on from it."""
        return Direction({GRADIENT: -1.0} | ({"s0": self._of_step} if self.has_memory else {}))

    def slope(self) -> float:
        """Give the product of direction and gradient.

        Raises
        ------
        ArgumentError
            There was no `update` yet.
        """
        if self._squared is None:
            raise ArgumentError("dots: there is no gradient yet; call update() with the products first")
        return self._slope

    def first_step(self) -> float:
        """Give the step to try first: the one whose decrease, to first order, is that of the last step.

        It is ``step * slope_old / slope`` (equation 3.60), but no move several times longer than the last. Without a
        last step, the move has length 1.
        """
        return self._first_step

    def reset(self) -> None:
        """Forget the last direction: the next one is minus the gradient, and its first move has length 1."""
        squared = self._squared if self._squared is not None else math.nan
        self._of_step, self._slope, self._first_step = 0.0, -squared, unit_step(squared)

    def to_config(self) -> dict[str, Any]:
        """Describe what is known by plain JSON; the floats come back bit for bit."""
        return {
            "squared": None if self._squared is None else number_to_json(self._squared),
            "of_step": number_to_json(self._of_step),
            "slope": number_to_json(self._slope),
            "first_step": number_to_json(self._first_step),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ConjugateGradient:
        """Rebuild it from `to_config`; raises `KeyError`, `TypeError` or `ValueError` for what is not one."""
        rule = cls()
        rule._squared = None if config["squared"] is None else float(number_from_json(config["squared"]))
        rule._of_step, rule._slope = (
            float(number_from_json(config["of_step"])),
            float(number_from_json(config["slope"])),
        )
        rule._first_step = float(number_from_json(config["first_step"]))
        return rule


def _beta(squared: float, by_change: float, last_squared: float) -> float:
    """Polak-Ribiere+, from ``g.g``, ``g.y`` and ``g_old.g_old``; 0 where Powell's test says to start again."""
    is_far_from_orthogonal = not abs(squared - by_change) < _RESTART * squared
    if is_far_from_orthogonal or not 0 < last_squared < math.inf:
        return 0.0
    return max(by_change / last_squared, 0.0)


def _first_step(proposed: float, length: float, step_squared: float) -> float:
    """Keep the move that is proposed along a direction of that length to a few times that of the last step."""
    longest = _MOST_GROWTH * math.sqrt(step_squared) / length if length > 0 and step_squared > 0 else math.inf
    step = min(proposed, longest)
    return step if 0 < step < math.inf else 1.0
