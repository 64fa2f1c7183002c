"""Names for the parts of one flat vector: views without gaps, never copies."""

from __future__ import annotations

import numpy as np
import pytest

from dask_belief.errors import ArgumentError
from dask_belief.models.layout import ParameterLayout, check_real, check_shape

LAYOUT = ParameterLayout({"weights": (2, 3), "bias": (3,), "scale": ()})


def test_arrays_lie_one_after_the_other() -> None:
    """Offsets follow the order of the names, without gaps; a shape of no axes is one number."""
    assert LAYOUT.n_parameters == 10
    assert LAYOUT.slices == {"weights": slice(0, 6), "bias": slice(6, 9), "scale": slice(9, 10)}


def test_views_share_the_memory_of_the_vector() -> None:
    """Writing a view writes the vector, in C order."""
    vector = np.zeros(10, np.float32)
    views = LAYOUT.views(vector)
    assert {name: view.shape for name, view in views.items()} == LAYOUT.shapes
    assert all(np.shares_memory(view, vector) for view in views.values())
    views["weights"][1, 0] = 5
    views["scale"][...] = 7
    assert vector.tolist() == [0, 0, 0, 5, 0, 0, 0, 0, 0, 7]


def test_read_only_vectors_give_read_only_views() -> None:
    """A vector shared between replicas stays unwritable through its views."""
    vector = np.zeros(10)
    vector.flags.writeable = False
    with pytest.raises(ValueError, match=r"read-only"):
        LAYOUT.views(vector)["bias"][0] = 1


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (np.zeros(9), r"expected shape \(10,\), got \(9,\)"),
        (np.zeros((10, 1)), r"got \(10, 1\)"),
        (np.zeros(10, np.int64), "float32 or float64, got int64"),
        (np.zeros(10, np.float16), "got float16"),
        (np.zeros(20)[::2], r"contiguous memory, got strides \(16,\)"),
    ],
)
def test_what_is_no_vector_of_these_parameters_is_refused(vector: np.ndarray, message: str) -> None:
    """Length, dtype and gaps are named, under the caller's name for the argument."""
    with pytest.raises(ArgumentError, match=rf"^vector: .*{message}"):
        LAYOUT.views(vector)
    with pytest.raises(ArgumentError, match=rf"^parameters: .*{message}"):
        LAYOUT.check(vector, "parameters")


@pytest.mark.parametrize("shape", [(), 784, "784", (784.0,), (0,), (-1,), (3, True), None])
def test_bad_shapes_are_refused(shape: object) -> None:
    """A shape is a tuple of whole numbers of at least one."""
    with pytest.raises(ArgumentError, match=r"^input_shape: "):
        check_shape("input_shape", shape)


def test_shapes_and_dtypes_come_back_plain() -> None:
    """NumPy's integers become Python's, so that a configuration is plain JSON."""
    shape = check_shape("input_shape", [np.int64(28), 28])
    assert shape == (28, 28)
    assert [type(size) for size in shape] == [int, int]
    assert check_real("float32", "dtype") == np.float32
