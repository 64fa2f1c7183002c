"""A table of vectors: shapes, first values, what it takes for an id, and which rows of the gradient it writes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_belief.backend import Backend, get_backend
from dask_belief.errors import ArgumentError
from dask_belief.models.layers import Embedding, Workspace, layer_from_config
from dask_belief.seeds import stream
from tests.backend.usable import USABLE

SEED = 6
LAYER = Embedding(10, 3)
IDS = np.array([[0, 9], [4, 4], [9, 5]])
"""An id twice in a row, another in two rows, and neighbours."""


@pytest.fixture(params=USABLE)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Layers compute where the network has entered the backend's stream."""
    backend = get_backend(request.param)
    with backend.computing():
        yield backend


def table(*shape: int) -> np.ndarray:
    return np.random.default_rng(SEED).standard_normal(shape)


def test_shapes() -> None:
    """A vector for each position, whatever the shape of a row; the table's size is no matter of the inputs."""
    assert LAYER.output_shape((2,)) == (6,)
    assert LAYER.output_shape((2, 2)) == (12,)
    assert LAYER.parameter_shapes((2,)) == LAYER.parameter_shapes((7,)) == {"weights": (10, 3)}
    assert not LAYER.needs_outputs


def test_forward_chooses_rows(backend: Backend) -> None:
    """The vectors of a row's ids, one after the other; the table and the ids stay as they are."""
    weights, ids = backend.asarray(table(10, 3)), backend.asarray(IDS)
    outputs = LAYER.forward(backend, {"weights": weights}, ids, Workspace(backend))
    np.testing.assert_array_equal(backend.to_host(outputs), table(10, 3)[IDS].reshape(3, 6))
    np.testing.assert_array_equal(backend.to_host(weights), table(10, 3))
    np.testing.assert_array_equal(backend.to_host(ids), IDS)


def test_backward_writes_the_rows_chosen_and_no_other(backend: Backend) -> None:
    """What comes from above is summed over every time that an id comes; rows of other ids keep what they held."""
    gradient, delta = backend.asarray(np.full((10, 3), 7.0)), table(3, 6)
    below = LAYER.backward(
        backend,
        {"weights": backend.asarray(table(10, 3))},
        {"weights": gradient},
        backend.asarray(IDS),
        backend.empty((0, 0), np.float64),
        backend.asarray(delta),
        Workspace(backend),
        needs_input_delta=False,
    )
    assert below is None
    expected = np.full((10, 3), 7.0)
    expected[IDS.reshape(-1)] = 0
    for chosen, added in zip(IDS.reshape(-1), delta.reshape(-1, 3), strict=True):
        expected[chosen] += added
    np.testing.assert_array_equal(backend.to_host(gradient), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint64, np.float16, np.float32, np.float64])
def test_ids_of_any_dtype(backend: Backend, dtype: type) -> None:
    """Whole numbers of any dtype become int64, also as floats; int64 is not copied."""
    given = backend.asarray(IDS.astype(dtype))
    ids = LAYER.ids(backend, given)
    assert ids.dtype == np.int64
    np.testing.assert_array_equal(backend.to_host(ids), IDS)
    assert (ids is given) == (dtype is np.int64)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (10, "10"),
        (-1, "-1"),
        (2.5, "2.5"),
        (np.nan, "nan"),
        (np.inf, "inf"),
        (-np.inf, "-inf"),
        (2.0**70, "1.18059162071741e+21"),
    ],
)
def test_what_is_no_entry_is_refused_by_name(backend: Backend, wrong: float, said: str) -> None:
    """Too large, negative, a fraction or no number: the first such id and its row are named, and what is expected."""
    message = (
        "inputs: expected ids, whole numbers from 0 to 9, for an Embedding of 10 entries, "
        f"got {said} in row 1 of the 3 given."
    )
    for dtype in (np.int64, np.float32, np.float64):
        if dtype is np.int64 and wrong not in (10, -1):
            continue
        ids = IDS.astype(dtype)
        ids[1, 0] = wrong
        with pytest.raises(ArgumentError, match="^" + re.escape(message)), backend.computing():
            LAYER.ids(backend, backend.asarray(ids))


def test_an_unsigned_number_beyond_int64_is_refused(backend: Backend) -> None:
    """It does not wrap into the table."""
    with pytest.raises(ArgumentError, match=r"^inputs: .*got 1\.84467440737096e\+19 in row 0"):
        LAYER.ids(backend, backend.asarray(np.array([[2**64 - 1]], np.uint64)))


def test_other_dtypes_are_refused() -> None:
    """Text and complex numbers are no ids."""
    with pytest.raises(ArgumentError, match=r"^inputs: expected ids, whole numbers, for an Embedding, got dtype compl"):
        LAYER.ids(get_backend("numpy"), np.zeros((1, 2), complex))


def test_a_table_too_large_for_float32_is_refused() -> None:
    """Where ids come as float32, which would round them; as integers or float64 they are taken."""
    largest, backend = Embedding(2**24 + 1, 1), get_backend("numpy")
    for dtype in (np.int64, np.float64):
        assert largest.ids(backend, np.array([[2**24]], dtype))[0, 0] == 2**24
    with pytest.raises(ArgumentError, match=r"^inputs: an Embedding of 16777217 entries got ids of dtype float32"):
        largest.ids(backend, np.array([[3]], np.float32))
    assert Embedding(2**24, 1).ids(backend, np.array([[2**24 - 1]], np.float32))[0, 0] == 2**24 - 1
    with pytest.raises(ArgumentError, match=r"dtype float16, which holds whole numbers up to 2048 only"):
        Embedding(2049, 1).ids(backend, np.array([[3]], np.float16))


@given(st.lists(st.integers(0, 9), max_size=20))
def test_touched_are_the_rows_of_the_ids(ids: list[int]) -> None:
    """Ranges of the flat table, sorted and apart, that cover the rows of the ids and nothing else."""
    runs = LAYER.touched(np.array(ids, np.int64).reshape(-1, 1))
    assert runs.dtype == np.int64
    assert runs.shape[1:] == (2,)
    assert (np.diff(runs.reshape(-1)) > 0).all()
    covered = {element for start, stop in runs for element in range(start, stop)}
    assert covered == {3 * number + column for number in ids for column in range(3)}


def test_first_values_follow_the_initialiser() -> None:
    """Glorot's with a fan-in of 1 unless another is named: each vector's scale depends on its length alone."""
    small, large = (Embedding(n, 5).initial("weights", (2,), stream(SEED, "test")) for n in (1000, 4000))
    limit = 1.0
    assert 0.99 * limit < np.abs(small).max() <= limit
    assert large.std() == pytest.approx(small.std(), rel=0.05)
    assert small.shape == (1000, 5)
    assert not Embedding(4, 2, "zeros").initial("weights", (2,), stream(SEED, "test")).any()


def test_penalty_covers_the_table_unless_it_is_left_out() -> None:
    """As with the weights of other layers."""
    assert LAYER.is_penalised("weights")
    assert not Embedding(10, 3, penalised=False).is_penalised("weights")


@pytest.mark.parametrize(
    "layer", [LAYER, Embedding(np.int64(7), np.int32(2), "zeros"), Embedding(3, 2, penalised=False)]
)
def test_configuration_round_trip(layer: Embedding) -> None:
    """Through JSON text and back gives an equal layer, also where sizes came from NumPy."""
    assert layer_from_config(json.loads(json.dumps(layer.to_config()))) == layer


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((0, 3), "n_entries"),
        ((2.5, 3), "n_entries"),
        ((10, 0), "n_columns"),
        ((10, True), "n_columns"),
        ((10, 3, "ones"), "initialiser"),
        ((10, 3, None, 1), "penalised"),
    ],
)
def test_bad_arguments_are_refused(arguments: tuple, name: str) -> None:
    """Sizes are positive whole numbers; the initialiser is known by name."""
    with pytest.raises(ArgumentError, match=rf"^{name}: "):
        Embedding(*arguments)
