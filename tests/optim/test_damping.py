"""Powell's damping in scalars: what it makes of a pair, and what that makes of the products."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dask_belief.optim.damping import damp, substitute
from dask_belief.optim.direction import Product


@pytest.mark.parametrize("curvature", [-5.0, -0.1, 0.0, 0.1, 0.19])
@pytest.mark.parametrize("step", [0.01, 1.0, 30.0])
def test_a_damped_pair_has_a_fifth_of_the_expected_curvature(curvature, step):
    """With s.B s = step, whatever the measured s.y below a fifth of it, the new s.y is a fifth of it."""
    step_by_change = curvature * step
    # s.g_old = -1 makes s.B s = step; g = g_old + y.
    step_by_gradient = -1.0 + step_by_change
    coefficients = damp(step_by_change, step_by_gradient, step)
    assert coefficients is not None
    of_change, of_gradient = coefficients
    assert of_change * step_by_change + of_gradient * step_by_gradient == pytest.approx(0.2 * step)


@pytest.mark.parametrize(
    ("step_by_change", "step_by_gradient"),
    [(0.2, -0.8), (0.5, -0.5), (3.0, 2.0), (1.0, 1.0), (-1.0, 1.0), (math.nan, -1.0), (-1.0, math.nan), (-math.inf, 0)],
    ids=["a-fifth", "half", "beyond", "no-descent", "ascent", "nan", "nan-gradient", "infinite"],
)
def test_other_pairs_are_left_as_they_are(step_by_change, step_by_gradient):
    """Enough curvature, a step that was no descent, and numbers that are not finite change nothing."""
    assert damp(step_by_change, step_by_gradient, 1.0) is None


def test_products_after_are_those_of_the_new_vector():
    """Products of two and of three vectors follow as if the vector had been replaced first (seed 31)."""
    generator = np.random.default_rng(31)
    vectors = {name: generator.standard_normal(20) for name in ("g", "h0", "s1", "y0", "y1")}
    products: list[Product] = [("g", "g"), ("g", "s1"), ("g", "y0"), ("g", "y1"), ("s1", "y1"), ("y0", "y1")]
    products += [("y1", "y1"), ("g", "g", "h0"), ("g", "h0", "y1"), ("h0", "y1", "y1"), ("s1", "s1")]

    def dots():
        return {names: float(np.prod([vectors[name] for name in names], axis=0).sum()) for names in products}

    after = substitute(dots(), "y1", {"y1": 0.7, "g": -0.4})
    vectors["y1"] = 0.7 * vectors["y1"] - 0.4 * vectors["g"]
    assert after == pytest.approx(dots(), rel=1e-12, abs=1e-12)
