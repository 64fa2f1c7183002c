"""Powell's damping of a pair with too little curvature, in scalars (Nocedal and Wright, procedure 18.2).

With ``B`` the inverse of the ``H`` that gave the direction, a change ``y`` with ``s.y < 0.2 s.Bs`` is replaced by::

    theta y + (1 - theta) B s,    theta = 0.8 s.Bs / (s.Bs - s.y)      so that  s.y = 0.2 s.Bs

``B`` is not known, but ``B s`` is: the step was ``s = step * d`` with ``d = -H g_old``, hence ``B s = -step * g_old``,
and ``g_old = g - y``. So the new change is a combination of ``y`` and ``g``, and its products follow from theirs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product as choices_of

from dask_belief.optim.direction import Product, exact_sum, product_key

# The least s.y, as a share of s.Bs.
_LEAST_CURVATURE = 0.2


def damp(step_by_change: float, step_by_gradient: float, step: float) -> tuple[float, float] | None:
    """Decide what the change of a pair must become.

    Parameters
    ----------
    step_by_change, step_by_gradient
        ``s.y`` and ``s.g``, with the gradient at the end of the step.
    step
        What the line search gave.

    Returns
    -------
    (float, float) or None
        The coefficients of ``y`` and ``g``; None where there is curvature enough, or where ``s`` was no descent.

    Examples
    --------
    A unit step along ``-g_old = 1`` after which the gradient is -2 (``y = -1``, so ``s.y = -1`` and ``s.Bs = 1``):

    >>> damp(step_by_change=-1.0, step_by_gradient=-2.0, step=1.0)      # 1.0 * (-1) - 0.6 * (-2) = 0.2
    (1.0, -0.6)
    """
    expected = -step * (step_by_gradient - step_by_change)
    if not 0 < expected < math.inf or not -math.inf < step_by_change < _LEAST_CURVATURE * expected:
        return None
    theta = (1 - _LEAST_CURVATURE) * expected / (expected - step_by_change)
    return theta + (1 - theta) * step, -(1 - theta) * step


def substitute(dots: Mapping[Product, float], name: str, terms: Mapping[str, float]) -> dict[Product, float]:
    """Give the same products with the vector `name` replaced by a combination, by multiplying out.

    Parameters
    ----------
    dots
        Under names in sorted order. Whatever the expansion needs is among them.
    name
        The vector that is replaced.
    terms
        Coefficients of the vectors that replace it, which may be `name` itself.

    Examples
    --------
    >>> substitute({("g", "g"): 1.0, ("g", "y0"): 2.0, ("y0", "y0"): 3.0}, "y0", {"y0": 10.0, "g": 1.0})
    {('g', 'g'): 1.0, ('g', 'y0'): 21.0, ('y0', 'y0'): 341.0}
    """

    def after(product: Product) -> float:
        choices = [list(terms.items()) if each == name else [(each, 1.0)] for each in product]
        return exact_sum(
            math.prod(coefficient for _, coefficient in chosen) * dots[product_key(each for each, _ in chosen)]
            for chosen in choices_of(*choices)
        )

    return {product: after(product) for product in dots}
