"""How weights begin: random, at a scale that keeps signals alive from layer to layer.

Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010,
equation 16; He, Zhang, Ren and Sun, "Delving deep into rectifiers", ICCV 2015, equation 10.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from dask_belief.errors import ArgumentError

Values = npt.NDArray[np.float64]
Initialiser = Callable[[np.random.Generator, tuple[int, ...], int, int], Values]
"""Takes a generator, a shape, and how many inputs and outputs each weight's unit has (fan-in, fan-out)."""


def glorot_uniform(generator: np.random.Generator, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Values:
    """Draw uniformly from plus and minus ``sqrt(6 / (fan_in + fan_out))``."""
    limit = math.sqrt(6 / (fan_in + fan_out))
    return generator.uniform(-limit, limit, shape)


def he_normal(generator: np.random.Generator, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Values:
    """Draw normally with standard deviation ``sqrt(2 / fan_in)``; `fan_out` is no matter."""
    return generator.standard_normal(shape) * math.sqrt(2 / fan_in)


def zeros(generator: np.random.Generator, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Values:
    """Begin at zero: for a network of one layer, whose objective is convex. Deeper ones would never leave."""
    return np.zeros(shape)


INITIALISERS: dict[str, Initialiser] = {"glorot_uniform": glorot_uniform, "he_normal": he_normal, "zeros": zeros}
"""Name to function."""


def default_initialiser(activation: str | None) -> str:
    """Name what suits an activation: He's for ReLU, which stops half of the signal; Glorot's for the others."""
    return "he_normal" if activation == "relu" else "glorot_uniform"


def check_initialiser(initialiser: object) -> None:
    """Refuse what is neither None nor the name of an initialiser; raises `ArgumentError`."""
    if initialiser is not None and initialiser not in INITIALISERS:
        raise ArgumentError(f"initialiser: expected None or one of {', '.join(INITIALISERS)}, got {initialiser!r}.")
