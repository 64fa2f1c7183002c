"""The algebra of named vectors, against NumPy, and its independence of the number of shards."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable, Sequence

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


PRODUCTS = [("a", "b"), ("a", "a"), ("b", "c"), ("a", "b", "c"), ("a", "a", "c"), ("c", "c", "c")]


def joined(shards: list[Vectors], products: Sequence[tuple[str, ...]]) -> list[float]:
    """The scalars of some products, as the client joins them."""
    parts = [vectors.dots(tuple(products)) for vectors in shards]
    return [join_nodes([part[number] for part in parts], N_PARAMETERS) for number in range(len(products))]


@pytest.mark.parametrize("dtype", DTYPES)
def test_dot_products_do_not_depend_on_the_number_of_shards(dtype: str) -> None:
    """Of two vectors and of three: one to six shards give the same bits, and NumPy's float64 sum to rounding."""
    named = {name: values(name, dtype) for name in "abc"}
    answers = [joined(sharded(n, dtype, **named), PRODUCTS) for n in (1, 2, 3, 6)]
    assert answers[0] == answers[1] == answers[2] == answers[3]
    wide = {name: vector.astype(np.float64) for name, vector in named.items()}
    for product, answer in zip(PRODUCTS, answers[0], strict=True):
        terms = np.prod([wide[name] for name in product], axis=0)
        assert abs(answer - math.fsum(terms)) <= 1e-13 * np.abs(terms).sum()


@pytest.mark.parametrize("dtype", DTYPES)
def test_dot_product_has_the_same_bits_alone_and_among_others(dtype: str) -> None:
    """In whatever company and order it is asked for; the order of its factors does not matter for two."""
    shards = sharded(2, dtype, **{name: values(name, dtype) for name in "abc"})
    together = joined(shards, PRODUCTS)
    assert [joined(shards, [product])[0] for product in PRODUCTS] == together
    assert joined(shards, PRODUCTS[::-1])[::-1] == together
    assert joined(shards, [("b", "a")]) == together[:1]


def test_dot_products_do_not_depend_on_the_threads_of_blas() -> None:
    """A shard's worker may have any number of BLAS threads: the bits of a scalar are the same."""
    shards = sharded(1, **{name: values(name) for name in "abc"})
    answers = []
    for n_threads in (1, 2):
        with threadpool_limits(limits=n_threads, user_api="blas"):
            answers.append(joined(shards, PRODUCTS))
    assert answers[0] == answers[1]


def test_scratch_of_products_is_bounded() -> None:
    """Products of many vectors take a fixed number of bytes for each, however long the vectors are."""
    vectors = Vectors(range(40 * BLOCK), 40 * BLOCK, "float32")
    names = [f"s{slot}" for slot in range(8)]
    for name in names:
        vectors.make(name)[:] = 1
    tracemalloc.start()
    try:
        vectors.dots(tuple((names[0], name) for name in names))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < (len(names) + 1) * 2**18


@pytest.mark.parametrize("dtype", DTYPES)
def test_scalars_leave_the_vectors_alone(dtype: str) -> None:
    """In float64 the vectors themselves are worked on, and only read."""
    a, b = values("a", dtype), values("b", dtype)
    [vectors] = sharded(1, dtype, a=a, b=b)
    vectors.dots((("a", "b"), ("a", "a", "b")))
    vectors.squared_penalty("a")
    vectors.absolutes("a")
    np.testing.assert_array_equal(vectors["a"], a)
    np.testing.assert_array_equal(vectors["b"], b)


def test_no_products_are_no_answers() -> None:
    """A rule may ask for nothing."""
    [vectors] = sharded(1, a=values("a"))
    assert vectors.dots(()) == []


def test_dot_product_does_not_hide_what_is_not_finite() -> None:
    """An infinity gives an infinity, and a NaN a NaN, in the products that hold it only."""
    a, b = values("a"), values("b")
    a[3], b[BLOCK + 1] = np.inf, np.nan
    of_a, of_b = joined(sharded(2, a=a, b=b), [("a", "a"), ("b", "b")])
    assert of_a == math.inf
    assert math.isnan(of_b)


def test_shard_sends_few_nodes() -> None:
    """A shard joins its blocks before it answers: at most two nodes a level, whatever it holds."""
    vectors = Vectors(range(BLOCK, 255 * BLOCK), 256 * BLOCK, "float32")
    vectors.make("a")[:] = 1
    [nodes] = vectors.dots((("a", "a"),))
    assert len(nodes) <= 14


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


MASKS = [
    pytest.param(np.arange(N_PARAMETERS) % 71 < 40, id="many runs"),
    pytest.param((np.arange(N_PARAMETERS) > 100) & (np.arange(N_PARAMETERS) < 4 * BLOCK + 5), id="one run"),
    pytest.param(np.zeros(N_PARAMETERS, bool), id="none"),
    pytest.param(np.ones(N_PARAMETERS, bool), id="all"),
    pytest.param(None, id="no mask"),
]


@pytest.mark.parametrize("mask", MASKS)
def test_penalty_covers_the_penalised_only(mask: np.ndarray | None) -> None:
    """Sums of squares and of magnitudes, and the gradient, leave out what the mask does; same bits on any shards."""
    w, g = values("w"), values("g")
    covered = np.ones(N_PARAMETERS, bool) if mask is None else mask
    sums, magnitudes, gradients = set(), set(), set()
    for n_shards in (1, 2, 3):
        shards = sharded(n_shards, penalised=mask, w=w, g=g)
        sums.add(join_nodes([vectors.squared_penalty("w") for vectors in shards], N_PARAMETERS))
        magnitudes.add(join_nodes([vectors.absolutes("w") for vectors in shards], N_PARAMETERS))
        for vectors in shards:
            vectors.add_penalty_gradient(vectors["g"], "w", 0.1)
        gradients.add(whole(shards, "g").tobytes())
    assert gradients == {np.where(covered, g + np.float32(0.1) * w, g).tobytes()}
    assert len(sums) == len(magnitudes) == 1
    wide = w[covered].astype(np.float64)
    assert sums.pop() == pytest.approx(math.fsum(wide**2), rel=1e-13)
    assert magnitudes.pop() == pytest.approx(math.fsum(np.abs(wide)), rel=1e-13)


def test_no_penalty_leaves_a_gradient_as_it_is() -> None:
    """With l2 = 0 not even an infinite parameter touches the gradient."""
    w, g = values("w"), values("g")
    w[0] = np.inf
    [vectors] = sharded(1, w=w, g=g)
    vectors.add_penalty_gradient(vectors["g"], "w", 0.0)
    np.testing.assert_array_equal(vectors["g"], g)


# OWL-QN, against the formulas of the paper on whole vectors.

L1 = 0.25


def with_zeros(name: str, dtype: str = "float32") -> np.ndarray:
    """Numbers of either sign, of which every third is a zero of either sign."""
    vector = stream(SEED, name).standard_normal(N_PARAMETERS).astype(dtype)
    vector[::3] = 0.0
    vector[::6] *= -1
    return vector


def covered_by(mask: np.ndarray | None) -> np.ndarray:
    return np.ones(N_PARAMETERS, bool) if mask is None else mask


def one_sided(w: np.ndarray, gradient: np.ndarray, weight: float) -> tuple[np.ndarray, np.ndarray]:
    """The derivatives of ``g.w + weight * |w|`` to the left and to the right, by their definition."""
    # A step to the left of a zero adds to the penalty, as one to the right does.
    left = gradient + np.where(w > 0, weight, -weight)
    right = gradient + np.where(w < 0, -weight, weight)
    return left, right


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", MASKS)
def test_pseudo_gradient_is_the_one_sided_derivative_that_goes_down(dtype: str, mask: np.ndarray | None) -> None:
    """To the left if that rises from left to right, else to the right if that falls, else zero (their equation 4)."""
    x, g = with_zeros("x", dtype), with_zeros("g", dtype) * np.asarray(0.5, dtype)
    left, right = one_sided(x, g, np.asarray(L1, dtype))
    expected = np.where(left > 0, left, np.where(right < 0, right, 0))
    for n_shards in (1, 3):
        shards = sharded(n_shards, dtype, mask, x=x, g=g)
        for vectors in shards:
            vectors.pseudo_gradient("v", "x", "g", L1)
        np.testing.assert_array_equal(whole(shards, "v"), np.where(covered_by(mask), expected, g))
        assert whole(shards, "v").dtype == dtype


def test_pseudo_gradient_is_the_limit_of_difference_quotients() -> None:
    """On ``f(w) = (w - c)^2 / 2 + l1 |w|``: its value from the side to which it falls, and zero where neither falls."""
    c, x = np.array([-2.0, -0.2, 0.0, 0.2, 2.0, 1.0, -1.0]), np.array([0.0, 0.0, 0.0, -0.0, 0.0, 0.4, -3.0])

    def f(w: np.ndarray) -> np.ndarray:
        value: np.ndarray = (w - c) ** 2 / 2 + L1 * np.abs(w)
        return value

    h = 1e-7
    left, right = (f(x) - f(x - h)) / h, (f(x + h) - f(x)) / h
    vectors = Vectors(range(len(x)), len(x), "float64")
    vectors.make("x")[:], vectors.make("g")[:] = x, x - c
    vectors.pseudo_gradient("v", "x", "g", L1)
    np.testing.assert_allclose(vectors["v"], np.where(left > 0, left, np.where(right < 0, right, 0)), atol=1e-6)


def test_pseudo_gradient_may_be_written_over_the_gradient() -> None:
    """A chunk is read before it is written."""
    x, g = with_zeros("x"), with_zeros("g")
    [vectors] = sharded(1, x=x, g=g)
    vectors.pseudo_gradient("v", "x", "g", L1)
    vectors.pseudo_gradient("g", "x", "g", L1)
    np.testing.assert_array_equal(vectors["g"], vectors["v"])


def test_without_a_weight_the_pseudo_gradient_is_the_gradient() -> None:
    """Whatever the point."""
    g = with_zeros("g")
    [vectors] = sharded(1, x=with_zeros("x"), g=g)
    vectors.pseudo_gradient("v", "x", "g", 0.0)
    np.testing.assert_array_equal(vectors["v"], g)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", MASKS)
def test_aligned_direction_goes_down_along_the_pseudo_gradient(dtype: str, mask: np.ndarray | None) -> None:
    """Where x is zero and penalised, what has the sign of minus v stays and the rest is zero; elsewhere all stays."""
    d, v = with_zeros("d", dtype), with_zeros("v", dtype)[::-1].copy()
    x = np.roll(with_zeros("x", dtype), 1)
    for n_shards in (1, 3):
        shards = sharded(n_shards, dtype, mask, d=d, v=v, x=x)
        for vectors in shards:
            vectors.align("d", "v", "x")
        stays = ~covered_by(mask) | (x != 0) | ((d > 0) & (v < 0)) | ((d < 0) & (v > 0))
        np.testing.assert_array_equal(whole(shards, "d"), np.where(stays, d, 0))


def test_alignment_is_of_signs_and_not_of_products() -> None:
    """The product of two numbers that are small enough is zero."""
    vectors = Vectors(range(4), 4, "float32")
    vectors.make("d")[:] = [1e-30, -1e-30, 1e-30, 0]
    vectors.make("v")[:] = [-1e-30, 1e-30, 1e-30, -1]
    vectors.make("x")[:] = 0
    vectors.align("d", "v", "x")
    np.testing.assert_array_equal(vectors["d"], np.array([1e-30, -1e-30, 0, 0], np.float32))


def test_alignment_leaves_a_direction_of_descent() -> None:
    """Any part of ``d = -H v`` may go whose product with v is positive: what is left goes down all the more."""
    generator = stream(SEED, "hessian")
    root = generator.standard_normal((20, 20))
    v, x = generator.standard_normal(20), np.where(generator.uniform(size=20) < 0.5, 0.0, 1.0)
    d = -root @ root.T @ v
    vectors = Vectors(range(20), 20, "float64")
    for name, vector in (("d", d), ("v", v), ("x", x)):
        vectors.make(name)[:] = vector
    vectors.align("d", "v", "x")
    uphill = vectors["d"] * v > 0
    assert vectors["d"] @ v < d @ v < 0
    assert not uphill[x == 0].any()
    assert uphill[x != 0].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", MASKS)
def test_projected_step_stays_within_the_orthant(dtype: str, mask: np.ndarray | None) -> None:
    """Of x, or of -v where x is zero; what would leave it is zero, and all else is the plain step to the bit."""
    x, d, v = with_zeros("x", dtype), values("d", dtype), with_zeros("v", dtype)[::-1].copy()
    step = 0.3
    moved = x + np.asarray(step, dtype) * d
    orthant = np.where(x != 0, np.sign(x), -np.sign(v))
    expected = np.where(covered_by(mask) & (np.sign(moved) != orthant), 0, moved)
    for n_shards in (1, 3):
        shards = sharded(n_shards, dtype, mask, x=x, d=d, v=v)
        for vectors in shards:
            vectors.projected_step("trial", "x", "d", "v", step)
        np.testing.assert_array_equal(whole(shards, "trial"), expected)
        assert whole(shards, "trial").dtype == dtype


@pytest.mark.parametrize("name", ["x", "d"])
def test_projected_step_does_not_hide_nan(name: str) -> None:
    """Of point or direction: a line search must see it."""
    vectors = Vectors(range(3), 3, "float64")
    vectors.make("x")[:], vectors.make("d")[:], vectors.make("v")[:] = 1.0, -0.5, 1.0
    vectors[name][1] = np.nan
    vectors.projected_step("trial", "x", "d", "v", 1.0)
    assert np.isnan(vectors["trial"]).tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", DTYPES)
def test_first_hessian_is_the_inverse_root_of_the_sums(dtype: str) -> None:
    """The same element by element on any number of shards, positive and finite; a sum of zero has a bound."""
    sums = np.abs(values("sums", dtype))
    sums[::5] = 0
    found = []
    for n_shards in (1, 3):
        shards = sharded(n_shards, dtype, sums=sums)
        for vectors in shards:
            vectors.first_hessian("h0", "sums")
        found.append(whole(shards, "h0"))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_allclose(found[0], 1 / (np.sqrt(sums.astype(np.float64)) + 1e-6), rtol=1e-6)
    assert (found[0] > 0).all()
    assert found[0].max() <= 1.001e6


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


def test_swap_exchanges_names_and_moves_nothing() -> None:
    """The very arrays go by the other's name; twice is as it was."""
    a, b = values("a"), values("b")
    [vectors] = sharded(1, a=a, b=b)
    first, second = vectors["a"], vectors["b"]
    vectors.swap("a", "b")
    assert vectors["a"] is second
    assert vectors["b"] is first
    np.testing.assert_array_equal(vectors["a"], b)
    vectors.swap("b", "a")
    assert vectors["a"] is first


def test_swap_with_an_unknown_vector_changes_nothing() -> None:
    """The other keeps its name."""
    [vectors] = sharded(1, a=values("a"))
    kept = vectors["a"]
    for pair in (("a", "missing"), ("missing", "a")):
        with pytest.raises(KeyError, match="missing"):
            vectors.swap(*pair)
    assert vectors["a"] is kept
    assert "missing" not in vectors


def test_bytes_are_those_of_all_named_vectors() -> None:
    """Made, dropped, exchanged."""
    vectors = Vectors(range(100), 1000, "float64")
    for name in "abc":
        vectors.make(name)
    assert vectors.n_bytes == 3 * 800
    vectors.swap("a", "b")
    vectors.drop("c")
    assert vectors.n_bytes == 2 * 800


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
        joined(shards[:2], [("a", "a")])


# Second names.

OVERWRITES: list[Callable[[Vectors, str], None]] = [
    lambda vectors, name: vectors.combine(name, ((2.0, name), (0.5, "b"))),
    lambda vectors, name: vectors.combine(name, ((1.0, "b"),)),
    lambda vectors, name: vectors.multiply(name, name, "b"),
    lambda vectors, name: vectors.multiply(name, name, name),
    lambda vectors, name: vectors.pseudo_gradient(name, name, "b", 0.1),
    lambda vectors, name: vectors.pseudo_gradient(name, "b", name, 0.1),
    lambda vectors, name: vectors.projected_step(name, name, "b", "c", 0.3),
    lambda vectors, name: vectors.projected_step(name, "b", name, "c", 0.3),
    lambda vectors, name: vectors.projected_step(name, "b", "c", name, 0.3),
    lambda vectors, name: vectors.first_hessian(name, name),
    lambda vectors, name: vectors.align(name, "b", "zero"),
    lambda vectors, name: np.copyto(vectors.make(name), 7.0),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("overwrite", range(len(OVERWRITES)))
def test_vector_of_two_names_is_overwritten_for_one(dtype: str, overwrite: int) -> None:
    """Whatever writes, in place or not: the other name keeps its bits, and the result is that of a vector alone."""
    named = {name: np.abs(values(name, dtype)) if name == "a" else values(name, dtype) for name in "abc"}
    named["zero"] = np.zeros(N_PARAMETERS, dtype)
    [alone], [vectors], [other] = (sharded(1, dtype, **named) for _ in range(3))
    vectors.alias("held", "a")
    other.alias("second", "a")
    OVERWRITES[overwrite](alone, "a")
    OVERWRITES[overwrite](vectors, "a")
    OVERWRITES[overwrite](other, "second") if overwrite < len(OVERWRITES) - 1 else other.combine("second", ((1, "b"),))
    assert vectors["held"].tobytes() == other["a"].tobytes() == named["a"].tobytes()
    assert vectors["a"].tobytes() == alone["a"].tobytes()


def test_held_vector_outlives_exchanges_of_names() -> None:
    """A name that was exchanged for another one no longer reaches what is held; the other one does not either."""
    [vectors] = sharded(1, a=values("a"), b=values("b"))
    vectors.alias("held", "a")
    vectors.swap("a", "b")
    vectors.combine("b", ((2.0, "b"),))
    vectors.combine("a", ((3.0, "a"),))
    np.testing.assert_array_equal(vectors["held"], values("a"))
    np.testing.assert_array_equal(vectors["b"], np.float32(2) * values("a"))
    np.testing.assert_array_equal(vectors["a"], np.float32(3) * values("b"))


def test_name_that_is_dropped_takes_nothing_along() -> None:
    """Neither what has another name, nor memory that is used; the last name frees it, and what is alone is reused."""
    [vectors] = sharded(1, a=values("a"))
    n_bytes = vectors["a"].nbytes
    vectors.alias("held", "a")
    vectors.alias("held too", "held")
    assert vectors.n_bytes == n_bytes
    vectors.drop("a")
    vectors.drop("held")
    np.testing.assert_array_equal(vectors["held too"], values("a"))
    assert vectors.n_bytes == n_bytes
    memory = vectors["held too"]
    # Its only name by now: overwritten where it is.
    assert vectors.make("held too") is memory
    vectors.drop("held too")
    assert (vectors.n_bytes, vectors.names) == (0, [])


def test_memory_of_a_vector_that_was_overwritten_is_counted_besides() -> None:
    """Once both names mean different vectors."""
    [vectors] = sharded(1, a=values("a"))
    n_bytes = vectors["a"].nbytes
    vectors.alias("held", "a")
    vectors.combine("a", ((2.0, "a"),))
    assert vectors.n_bytes == 2 * n_bytes
    # Taken again, the older one is let go.
    vectors.alias("held", "a")
    assert vectors.n_bytes == n_bytes


def test_second_name_of_nothing_is_refused() -> None:
    """And makes no vector."""
    [vectors] = sharded(1, a=values("a"))
    with pytest.raises(KeyError):
        vectors.alias("held", "b")
    assert vectors.names == ["a"]
