"""The algebra of named vectors, against NumPy, and its independence of the number of shards."""

from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from dask_belief.parameter_server.ranges import BLOCK, n_blocks, shard_ranges
from dask_belief.parameter_server.vectors import Vectors, join_nodes
from dask_belief.seeds import stream

SEED = 31
N_PARAMETERS = 5 * BLOCK + 1234
DTYPES = ["float32", "float64"]


def values(name: str, dtype: str = "float32", n: int = N_PARAMETERS) -> np.ndarray:
    """Numbers of very different size, so that almost every other order of addition gives other bits."""
    rng = stream(SEED, name)
    return (rng.standard_normal(n) * 10.0 ** rng.integers(-3, 4, n)).astype(dtype)


def sharded(
    n_shards: int, dtype: str = "float32", penalised: np.ndarray | None = None, **named: np.ndarray
) -> list[Vectors]:
    """The same named vectors over this many shards."""
    shards = []
    for span in shard_ranges(N_PARAMETERS, n_shards):
        mask = None if penalised is None else penalised[span.start : span.stop]
        vectors = Vectors(span, N_PARAMETERS, dtype, mask)
        for name, whole in named.items():
            vectors.make(name)[:] = whole[span.start : span.stop]
        shards.append(vectors)
    return shards


def whole(shards: list[Vectors], name: str) -> np.ndarray:
    return np.concatenate([vectors[name] for vectors in shards])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("left", "right"), [("a", "b"), ("a", "a")])
def test_dot_product_does_not_depend_on_the_number_of_shards(dtype: str, left: str, right: str) -> None:
    """One to six shards give the same bits, and NumPy's float64 product to rounding."""
    a, b = values("a", dtype), values("b", dtype)
    answers = {
        join_nodes([vectors.dot(left, right) for vectors in sharded(n, dtype, a=a, b=b)], N_PARAMETERS)
        for n in (1, 2, 3, 6)
    }
    assert len(answers) == 1
    exact = {"a": a.astype(np.float64), "b": b.astype(np.float64)}
    size = float(np.abs(exact[left]) @ np.abs(exact[right]))
    assert abs(answers.pop() - float(exact[left] @ exact[right])) <= 1e-13 * size


def test_dot_product_does_not_depend_on_the_threads_of_blas() -> None:
    """A shard's worker may have any number of BLAS threads: the bits of a scalar are the same."""
    a, b = values("a"), values("b")
    [vectors] = sharded(1, a=a, b=b)
    answers = set()
    for n_threads in (1, 2):
        with threadpool_limits(limits=n_threads, user_api="blas"):
            answers.add(join_nodes([vectors.dot("a", "b")], N_PARAMETERS))
    assert len(answers) == 1


def test_shard_sends_few_nodes() -> None:
    """A shard joins its blocks before it answers: at most two nodes a level, whatever it holds."""
    vectors = Vectors(range(BLOCK, 255 * BLOCK), 256 * BLOCK, "float32")
    vectors.make("a")[:] = 1
    assert len(vectors.dot("a", "a")) <= 14


@pytest.mark.parametrize("dtype", DTYPES)
def test_combine_is_the_plain_formula(dtype: str) -> None:
    """A combination is the sum in the order of the terms, in the run's dtype, to the bit."""
    a, b = values("a", dtype), values("b", dtype)
    shards = sharded(3, dtype, a=a, b=b)
    for vectors in shards:
        vectors.combine("c", ((0.5, "a"), (-1 / 3, "b"), (2.0, "a")))
    kind = np.dtype(dtype).type
    expected = (a * kind(0.5) + b * kind(-1 / 3)) + a * kind(2.0)
    np.testing.assert_array_equal(whole(shards, "c"), expected)
    assert whole(shards, "c").dtype == dtype


def test_combine_may_write_into_one_of_its_terms() -> None:
    """The target may be a source, more than once, and is read before it is written."""
    a, b = values("a"), values("b")
    [vectors] = sharded(1, a=a, b=b)
    vectors.combine("a", ((1.0, "b"), (2.0, "a"), (1.0, "a")))
    np.testing.assert_array_equal(vectors["a"], (b + np.float32(2) * a) + a)


def test_combine_without_terms_is_zero() -> None:
    """An empty sum is zero, whatever the target held."""
    [vectors] = sharded(1, a=values("a"))
    vectors.combine("a", ())
    assert not vectors["a"].any()


def test_combine_with_an_unknown_vector_changes_nothing() -> None:
    """A missing term is an error before anything is written or made."""
    [vectors] = sharded(1, a=values("a"))
    with pytest.raises(KeyError, match="missing"):
        vectors.combine("new", ((1.0, "a"), (1.0, "missing")))
    assert "new" not in vectors


def test_multiply_is_element_by_element() -> None:
    """A product of vectors, also into one of them."""
    a, b = values("a"), values("b")
    shards = sharded(2, a=a, b=b)
    for vectors in shards:
        vectors.multiply("a", "a", "b")
    np.testing.assert_array_equal(whole(shards, "a"), a * b)


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(np.arange(N_PARAMETERS) % 7 < 4, id="many runs"),
        pytest.param((np.arange(N_PARAMETERS) > 100) & (np.arange(N_PARAMETERS) < 4 * BLOCK + 5), id="one run"),
        pytest.param(np.zeros(N_PARAMETERS, bool), id="none"),
        pytest.param(np.ones(N_PARAMETERS, bool), id="all"),
        pytest.param(None, id="no mask"),
    ],
)
def test_penalty_covers_the_penalised_only(mask: np.ndarray | None) -> None:
    """Sum of squares and penalty gradient leave out what the mask leaves out, with the same bits on any shards."""
    w, g = values("w"), values("g")
    covered = np.ones(N_PARAMETERS, bool) if mask is None else mask
    sums, gradients = set(), set()
    for n_shards in (1, 2, 3):
        shards = sharded(n_shards, penalised=mask, w=w, g=g)
        sums.add(join_nodes([vectors.squared_penalty("w") for vectors in shards], N_PARAMETERS))
        for vectors in shards:
            vectors.add_penalty_gradient(vectors["g"], "w", 0.1)
        gradients.add(whole(shards, "g").tobytes())
    assert gradients == {np.where(covered, g + np.float32(0.1) * w, g).tobytes()}
    assert len(sums) == 1
    assert sums.pop() == pytest.approx(float(np.sum(w[covered].astype(np.float64) ** 2)), rel=1e-13)


def test_no_penalty_leaves_a_gradient_as_it_is() -> None:
    """With l2 = 0 not even an infinite parameter touches the gradient."""
    w, g = values("w"), values("g")
    w[0] = np.inf
    [vectors] = sharded(1, w=w, g=g)
    vectors.add_penalty_gradient(vectors["g"], "w", 0.0)
    np.testing.assert_array_equal(vectors["g"], g)


@pytest.mark.parametrize("worst", [-7e20, 7e20])
def test_max_norm_is_the_largest_magnitude(worst: float) -> None:
    """Of either sign."""
    a = values("a")
    a[17] = worst
    [vectors] = sharded(1, a=a)
    assert vectors.max_norm("a") == np.float32(abs(worst))


@pytest.mark.parametrize("place", [0, BLOCK + 3, N_PARAMETERS - 1])
def test_max_norm_does_not_hide_nan(place: int) -> None:
    """A NaN anywhere makes the norm NaN."""
    a = values("a")
    a[place] = np.nan
    [vectors] = sharded(1, a=a)
    assert np.isnan(vectors.max_norm("a"))


def test_vectors_are_made_once_and_dropped() -> None:
    """`make` gives the vector that is there; a dropped one is gone, and dropping it twice does no harm."""
    vectors = Vectors(range(0, 10), 10, "float64")
    made = vectors.make("a")
    assert made.shape == (10,)
    assert made.dtype == np.float64
    assert vectors.make("a") is made is vectors["a"]
    vectors.drop("a")
    vectors.drop("a")
    assert "a" not in vectors
    with pytest.raises(KeyError):
        vectors["a"]


def test_join_waits_for_every_block() -> None:
    """A scalar of which a shard's part is missing is an error, not a partial sum."""
    shards = sharded(3, a=values("a"))
    assert n_blocks(N_PARAMETERS) == 6
    with pytest.raises(KeyError):
        join_nodes([vectors.dot("a", "a") for vectors in shards[:2]], N_PARAMETERS)
