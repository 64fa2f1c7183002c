"""How weights begin: the scales of the papers."""

from __future__ import annotations

import numpy as np
import pytest

from dask_belief.errors import ArgumentError
from dask_belief.models.activations import ACTIVATIONS, check_activation
from dask_belief.models.initialisers import INITIALISERS, check_initialiser, default_initialiser
from dask_belief.seeds import stream

SEED = 3
SHAPE = FAN_IN, FAN_OUT = (300, 200)


def draw(name: str) -> np.ndarray:
    return INITIALISERS[name](stream(SEED, "test"), SHAPE, FAN_IN, FAN_OUT)


def test_glorot_uniform() -> None:
    """Bounded by, and filling, plus and minus the root of 6 over the sum of the fans."""
    values, limit = draw("glorot_uniform"), np.sqrt(6 / (FAN_IN + FAN_OUT))
    assert np.abs(values).max() <= limit
    assert values.std() == pytest.approx(limit / np.sqrt(3), rel=0.01)
    assert abs(values.mean()) < 0.01 * limit


def test_he_normal() -> None:
    """Normal, with the variance 2 over the fan-in."""
    values = draw("he_normal")
    assert values.std() == pytest.approx(np.sqrt(2 / FAN_IN), rel=0.01)
    # Of a normal variable 4.55 % lie beyond two standard deviations, of a uniform one none.
    assert np.mean(np.abs(values) > 2 * np.sqrt(2 / FAN_IN)) == pytest.approx(0.0455, abs=0.005)


def test_zeros() -> None:
    """All zero."""
    assert not draw("zeros").any()


def test_he_keeps_the_size_of_the_signal_through_relu_layers() -> None:
    """Ten wide ReLU layers neither blow up nor stop a signal that begins as the default says."""
    signal = stream(SEED, "rows").standard_normal((50, 256))
    initialise = INITIALISERS[default_initialiser("relu")]
    before = (signal**2).mean()
    for number in range(10):
        signal = np.maximum(signal @ initialise(stream(SEED, number), (256, 256), 256, 256), 0)
    assert 0.3 < (signal**2).mean() / before < 3


def test_each_activation_has_a_default() -> None:
    """He for ReLU, Glorot for all others; each names an initialiser that exists."""
    defaults = {activation: default_initialiser(activation) for activation in (None, *ACTIVATIONS)}
    assert defaults == {
        None: "glorot_uniform",
        "relu": "he_normal",
        "sigmoid": "glorot_uniform",
        "tanh": "glorot_uniform",
    }
    assert set(defaults.values()) <= set(INITIALISERS)


def test_unknown_names_are_refused() -> None:
    """The message names the argument, what was found, and the choice."""
    with pytest.raises(ArgumentError, match=r"^initialiser: .*glorot_uniform, he_normal, zeros, got 'ones'"):
        check_initialiser("ones")
    with pytest.raises(ArgumentError, match=r"^activation: .*relu, sigmoid, tanh, got 'gelu'"):
        check_activation("gelu")
    check_initialiser(None)
    check_activation(None)
