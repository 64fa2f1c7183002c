"""Scale: stored numbers become those that are trained on."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dask_belief.data.transform import Scale
from dask_belief.errors import ArgumentError


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("stored", ["uint8", "int16", "float32", ">f8", "bool"])
def test_decode_is_the_plain_formula(stored, dtype):
    """Decoding casts first and scales in the dtype of the run, in place."""
    values = np.random.default_rng(1).integers(0, 200, (5, 3)).astype(stored)
    out = np.full((5, 3), np.nan, dtype)
    Scale(1 / 3, -0.25).decode(values, out)
    expected = values.astype(dtype) * dtype(1 / 3) + dtype(-0.25)
    np.testing.assert_array_equal(out, expected)


def test_identity_changes_nothing():
    """Without a factor and an offset values stay as they are."""
    values = np.array([-0.0, 1.5, 3e38], np.float32)
    Scale().apply_(values)
    assert values.tobytes() == np.array([-0.0, 1.5, 3e38], np.float32).tobytes()
    assert Scale().is_identity
    assert not Scale(2.0).is_identity
    assert not Scale(offset=1.0).is_identity


def test_it_survives_json():
    """A transform that went through JSON is equal, to the last bit of its numbers."""
    scale = Scale(1 / 255, -0.1)
    assert Scale.from_config(json.loads(json.dumps(scale.to_config()))) == scale


def test_unknown_settings_are_refused():
    """A setting of a newer version is not silently left out."""
    with pytest.raises(ArgumentError, match="gamma"):
        Scale.from_config({"scale": 1.0, "gamma": 2.0})


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((0.0,), "scale"), ((np.nan,), "scale"), ((1.0, np.inf), "offset"), (("wide",), "scale"), ((1.0, None), "offset")],
)
def test_bad_numbers_are_refused(arguments, name):
    """A factor of 0, and what is not finite or no number, is refused by name."""
    with pytest.raises(ArgumentError, match=f"^{name}"):
        Scale(*arguments)
