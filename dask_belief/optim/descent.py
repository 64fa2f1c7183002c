"""Gradient descent: the direction is minus the gradient, and the last pair says how far.

The search starts from the first step of Barzilai and Borwein ("Two-point step size gradient methods", IMA J. Numer.
Anal. 8, 1988, equation 5), ``t = s.s / s.y``: the inverse of the curvature along the last step. On a long valley it
costs far fewer passes than a step of fixed length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from dask_belief.errors import ArgumentError, NonFiniteError
from dask_belief.optim.direction import GRADIENT, Direction, Product, Update, curvature_of, find_product
from dask_belief.optim.stopping import number_from_json, number_to_json


class GradientDescent:
    """The rule of gradient descent; see the module for the first step, and `DirectionRule` for what calls it.

    Without a pair the first move has length 1; after a step without positive curvature, that of the step before.

    Examples
    --------
    >>> rule = GradientDescent()
    >>> rule.update(None, {("g", "g"): 4.0})
    Update(is_kept=False, curvature=nan, change=None)
    >>> rule.direction().terms, rule.slope(), rule.first_step()
    ({'g': -1.0}, -4.0, 0.5)
    >>> rule.update(0, {("g", "g"): 1.0, ("s0", "s0"): 1.0, ("s0", "y0"): 8.0}).curvature, rule.first_step()
    (8.0, 0.125)
    """

    c2: ClassVar[float] = 0.9

    def __init__(self) -> None:
        self._squared: float | None = None
        """The gradient's square; None before the first `update`."""
        self._length: float | None = None
        """The length of the last step; None when there is none."""
        self._curvature = math.nan

    @property
    def has_memory(self) -> bool:
        """False: the pair changes the first step only."""
        return False

    def free_slot(self) -> int:
        """Slot 0, since no direction needs a pair."""
        return 0

    def products(self, slot: int | None) -> list[Product]:
        """The gradient's square, and what tells the curvature along the step."""
        return [(GRADIENT, GRADIENT), *([] if slot is None else [("s0", "s0"), ("s0", "y0")])]

    def update(self, slot: int | None, dots: Mapping[Product, float], step: float = math.nan) -> Update:
        """Take the gradient's square and the curvature along the step.

        Raises
        ------
        ArgumentError
            A dot product is missing.
        NonFiniteError
            The gradient's square is not finite. The rule is unchanged.
        """
        squared = squared_gradient(dots)
        length, curvature = None, math.nan
        if slot is not None:
            step_squared = find_product(dots, "s0", "s0")
            curvature = curvature_of(step_squared, find_product(dots, "s0", "y0"))
            length = math.sqrt(step_squared) if 0 < step_squared < math.inf else None
        self._squared, self._length, self._curvature = squared, length, curvature
        return Update(0 < curvature < math.inf, curvature)

    def direction(self) -> Direction:
        """Minus the gradient."""
        return Direction({GRADIENT: -1.0})

    def slope(self) -> float:
        """Give the product of direction and gradient.

        Raises
        ------
        ArgumentError
            There was no `update` yet.
        """
        if self._squared is None:
            raise ArgumentError("dots: there is no gradient yet; call update() with the products first")
        return -self._squared

    def first_step(self) -> float:
        """Give the step to try first: Barzilai and Borwein's, where it is positive."""
        if 0 < self._curvature < math.inf and 1 / self._curvature < math.inf:
            return 1 / self._curvature
        return unit_step(-self.slope(), self._length or 1.0)

    def reset(self) -> None:
        """Forget the last pair: the next move has length 1."""
        self._length, self._curvature = None, math.nan

    def to_config(self) -> dict[str, Any]:
        """Describe what is known by plain JSON; the floats come back bit for bit."""
        return {
            "squared": None if self._squared is None else number_to_json(self._squared),
            "length": None if self._length is None else number_to_json(self._length),
            "curvature": number_to_json(self._curvature),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> GradientDescent:
        """Rebuild it from `to_config`; raises `KeyError`, `TypeError` or `ValueError` for what is not one."""
        rule = cls()
        rule._squared = None if config["squared"] is None else float(number_from_json(config["squared"]))
        rule._length = None if config["length"] is None else float(number_from_json(config["length"]))
        rule._curvature = float(number_from_json(config["curvature"]))
        return rule


def squared_gradient(dots: Mapping[Product, float]) -> float:
    """Give the gradient's square; raises `NonFiniteError` when it is not finite."""
    squared = find_product(dots, GRADIENT, GRADIENT)
    if not math.isfinite(squared):
        raise NonFiniteError(
            f"dots: finite numbers are needed, the product of g and g is {squared}; the gradient overflowed or holds "
            "NaN, go back to the last point"
        )
    return squared


def unit_step(squared: float, length: float = 1.0) -> float:
    """Give the step along minus the gradient that moves by `length`; 1 where the gradient is zero."""
    step = length / math.sqrt(squared) if squared > 0 else 1.0
    return step if 0 < step < math.inf else 1.0
