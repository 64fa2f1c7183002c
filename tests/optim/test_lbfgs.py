"""CurvatureMemory against the recursion on explicit vectors, and whole runs against SciPy."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import scipy.optimize

from dask_belief.errors import ArgumentError, NonFiniteError
from dask_belief.optim.direction import Direction
from dask_belief.optim.lbfgs import CurvatureMemory
from tests.optim.minimise import Vectors, minimise, problems


def two_loop_recursion(gradient, pairs, diagonal=1.0):
    """The direction by Nocedal and Wright's algorithm 7.4 on vectors; `pairs` from the oldest."""
    q = gradient.copy()
    alphas = []
    for s, y in reversed(pairs):
        alphas.append((s @ q) / (s @ y))
        q -= alphas[-1] * y
    if pairs:
        s, y = pairs[-1]
        q *= (s @ y) / (y @ (diagonal * y))
    q *= diagonal
    for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
        q += (alpha - (y @ q) / (s @ y)) * s
    return -q


def inverse_hessian(n, pairs, diagonal=1.0):
    """The product form of the inverse Hessian (equation 7.16 there) as a full matrix."""
    inverse = np.eye(n) * diagonal
    if pairs:
        s, y = pairs[-1]
        inverse *= (s @ y) / (y @ (diagonal * y))
    for s, y in pairs:
        rho = 1 / (s @ y)
        left = np.eye(n) - rho * np.outer(s, y)
        inverse = left @ inverse @ left.T + rho * np.outer(s, s)
    return inverse


def dense_bfgs(gradient, pairs, diagonal=1.0):
    """The direction by the inverse Hessian as a full matrix."""
    return -inverse_hessian(len(gradient), pairs, diagonal) @ gradient


def random_walk(seed, n=40, iterations=30, refused=()):
    """Pairs and gradients of 30 moves on a fixed parabola; the moves of `refused` see negative curvature."""
    generator = np.random.default_rng(seed)
    root = generator.standard_normal((n, n)) / np.sqrt(n)
    hessian = root @ root.T + np.eye(n)
    for iteration in range(iterations):
        s = generator.standard_normal(n)
        y = -s if iteration in refused else hessian @ s
        yield s, y, generator.standard_normal(n)


@pytest.mark.parametrize("oracle", [two_loop_recursion, dense_bfgs])
@pytest.mark.parametrize("history_size", [1, 3, 10])
@pytest.mark.parametrize("refused", [(), (0, 5, 6, 7, 19, 29)], ids=["all-kept", "some-refused"])
@pytest.mark.parametrize("has_diagonal", [False, True], ids=["scalar", "diagonal"])
def test_direction_is_that_of_the_recursion_on_vectors(history_size, refused, oracle, has_diagonal):
    """Over 30 iterations, past the wrap-around of the slots and with refused pairs, d = -H g to 1e-10 (seed 11).

    With a first Hessian that is a multiple of the identity as well as with a diagonal one, of condition 1000.
    """
    memory = CurvatureMemory(history_size, has_diagonal=has_diagonal)
    diagonal = np.random.default_rng(11).permutation(np.geomspace(0.03, 30, 40)) if has_diagonal else np.ones(40)
    vectors = Vectors(g=np.ones(40), h0=diagonal)
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    vectors.update(memory, None)
    for iteration, (s, y, gradient) in enumerate(random_walk(seed=11, refused=refused)):
        slot = memory.free_slot()
        vectors.named |= {f"s{slot}": s, f"y{slot}": y, "g": gradient}
        update = vectors.update(memory, slot)
        accepted = update.is_kept
        assert accepted == (iteration not in refused)
        assert update.curvature == pytest.approx((s @ y) / (s @ s))
        kept = [*kept, (s, y)][-history_size:] if accepted else kept
        expected = oracle(gradient, kept, diagonal)
        direction = vectors.along(memory.direction())
        assert memory.n_pairs == len(kept)
        np.testing.assert_allclose(direction, expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())
        assert memory.slope() == pytest.approx(expected @ gradient, rel=1e-10)


@pytest.mark.parametrize("history_size", [1, 3, 10])
def test_a_round_never_asks_for_a_product_that_is_known(history_size):
    """A full memory asks 5m + 3 products with a new pair, each once; the oldest pair meets only g (seed 12)."""
    memory = CurvatureMemory(history_size)
    vectors = Vectors(g=np.ones(40))
    vectors.update(memory, None)
    for s, y, gradient in random_walk(seed=12):
        slot = memory.free_slot()
        vectors.named |= {f"s{slot}": s, f"y{slot}": y, "g": gradient}
        pairs = memory.products(slot)
        memory.update(slot, vectors.dots(pairs))
    assert len(pairs) == len({frozenset(pair) for pair in pairs})
    assert len(pairs) == 1 + 2 * history_size + 2 + 3 + 3 * (history_size - 1)


def test_a_refused_pair_leaves_the_older_ones_and_its_slot_free():
    """After a refusal the same slot is free, and the direction uses the old pairs with the new gradient (seed 13)."""
    memory = CurvatureMemory(2)
    vectors = Vectors(g=np.ones(40))
    vectors.update(memory, None)
    for s, y, gradient in random_walk(seed=13, iterations=3):
        slot = memory.free_slot()
        vectors.named |= {f"s{slot}": s, f"y{slot}": y, "g": gradient}
        vectors.update(memory, slot)
    names, slot = list(memory.direction().terms), memory.free_slot()
    vectors.named |= {f"s{slot}": np.ones(40), f"y{slot}": -np.ones(40), "g": np.arange(40.0)}
    assert not vectors.update(memory, slot).is_kept
    assert (list(memory.direction().terms), memory.free_slot()) == (names, slot)
    assert not {f"s{slot}", f"y{slot}"} & memory.direction().terms.keys()
    kept = [(vectors.named[s], vectors.named[y]) for s, y in zip(names[1::2], names[2::2], strict=True)]
    np.testing.assert_allclose(
        vectors.along(memory.direction()), two_loop_recursion(vectors.named["g"], kept), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("scale", [1e-150, 1e-20, 1.0, 1e20, 1e150])
def test_the_curvature_guard_does_not_depend_on_scale(scale):
    """Pairs of cosine 0.1 are kept and those of cosine 1e-17 or 0 refused, at every scale of the loss."""
    for cosine, expected in ((0.1, True), (1e-17, False), (0.0, False), (-0.1, False)):
        memory = CurvatureMemory(3)
        memory.update(None, {("g", "g"): 1.0})
        dots = dict.fromkeys(memory.products(0), 0.0)
        dots |= {("g", "g"): 1.0, ("s0", "s0"): 1.0, ("y0", "y0"): scale**2, ("s0", "y0"): cosine * scale}
        assert memory.update(0, dots).is_kept is expected


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("pair", [("s0", "y0"), ("y0", "y0"), ("g", "y0")])
def test_a_pair_that_is_not_finite_is_refused(broken, pair):
    """Overflow in a new pair refuses it, and the direction stays steepest descent."""
    memory = CurvatureMemory()
    memory.update(None, {("g", "g"): 1.0})
    dots = dict.fromkeys(memory.products(0), 1.0) | {pair: broken}
    assert not memory.update(0, dots).is_kept
    assert memory.direction() == Direction({"g": -1.0})


def test_a_gradient_that_is_not_finite_is_an_error_and_changes_nothing():
    """The memory of the last point survives a NaN gradient."""
    memory = CurvatureMemory()
    memory.update(None, {("g", "g"): 4.0})
    with pytest.raises(NonFiniteError, match="g and g is nan"):
        memory.update(None, {("g", "g"): math.nan})
    assert memory.slope() == -4.0


def test_zero_vectors_make_no_pair():
    """A step of length zero is refused also where the guard is set to zero."""
    memory = CurvatureMemory(curvature_tolerance=0.0)
    memory.update(None, {("g", "g"): 1.0})
    update = memory.update(0, dict.fromkeys(memory.products(0), 0.0))
    assert not update.is_kept and math.isnan(update.curvature)


def test_reset_gives_steepest_descent_and_frees_the_slots():
    """After reset the direction is -g, the slope -g.g, and the first step has length one."""
    memory = CurvatureMemory(3)
    vectors = Vectors(g=np.ones(40))
    vectors.update(memory, None)
    for s, y, gradient in random_walk(seed=14, iterations=5):
        slot = memory.free_slot()
        vectors.named |= {f"s{slot}": s, f"y{slot}": y, "g": gradient}
        vectors.update(memory, slot)
    assert memory.first_step() == 1.0
    memory.reset()
    squared = float(gradient @ gradient)
    assert (memory.n_pairs, memory.free_slot(), memory.direction()) == (0, 0, Direction({"g": -1.0}))
    assert memory.slope() == pytest.approx(-squared)
    assert memory.first_step() == pytest.approx(1 / math.sqrt(squared))
    assert memory.products(None) == [("g", "g")]


def test_dots_are_taken_under_names_in_either_order():
    """Whoever brings the products may name a pair from either end (seed 15)."""
    vectors = Vectors(g=np.ones(40))
    memories = CurvatureMemory(2), CurvatureMemory(2)
    for memory in memories:
        vectors.update(memory, None)
    for s, y, gradient in random_walk(seed=15, iterations=4):
        slot = memories[0].free_slot()
        vectors.named |= {f"s{slot}": s, f"y{slot}": y, "g": gradient}
        dots = vectors.dots(memories[0].products(slot))
        memories[0].update(slot, dots)
        memories[1].update(slot, {(b, a): dot for (a, b), dot in dots.items()})
    assert memories[0].direction() == memories[1].direction()


@pytest.mark.parametrize("options", [{}, {"has_diagonal": True, "is_damped": True}], ids=["plain", "with-all"])
def test_config_goes_through_json_and_goes_on_with_the_same_bits(options):
    """A memory rebuilt from JSON in the middle of a run gives bit for bit the same directions (seed 16)."""
    memory = CurvatureMemory(3, curvature_tolerance=1e-12, **options)
    vectors = Vectors(g=np.ones(40), h0=np.linspace(0.5, 2, 40))
    vectors.update(memory, None)
    for iteration, (s, y, gradient) in enumerate(random_walk(seed=16, iterations=9)):
        slot = memory.free_slot()
        vectors.named |= {f"s{slot}": s, f"y{slot}": y, "g": gradient}
        dots = vectors.dots(memory.products(slot))
        if iteration in (0, 2, 5):
            memory_again = CurvatureMemory.from_config(json.loads(json.dumps(memory.to_config(), allow_nan=False)))
        memory.update(slot, dots, 1.0)
        memory_again.update(slot, dots, 1.0)
        assert memory_again.direction() == memory.direction()
        assert memory_again.to_config() == memory.to_config()


def test_a_damaged_config_is_refused():
    """Slots beyond the history, twice the same, or without products, each is an error that says so."""
    memory = CurvatureMemory(2)
    memory.update(None, {("g", "g"): 1.0})
    memory.update(0, dict.fromkeys(memory.products(0), 1.0))
    config: Any = memory.to_config()
    damages: list[Any] = [{"slots": [0, 1, 2]}, {"slots": [0, 0]}, {"slots": [5]}, {"dots": []}, {"slots": [0, 1]}]
    for damage in damages:
        with pytest.raises(ArgumentError, match=r"slots|missing"):
            CurvatureMemory.from_config(config | damage)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"history_size": 0}, "history_size"),
        ({"history_size": 2.5}, "history_size"),
        ({"curvature_tolerance": -1e-3}, "curvature_tolerance"),
        ({"curvature_tolerance": 1.0}, "curvature_tolerance"),
        ({"curvature_tolerance": math.nan}, "curvature_tolerance"),
    ],
)
def test_bad_options_are_refused_by_name(arguments, message):
    """Each option out of its range is named in the error."""
    with pytest.raises(ArgumentError, match=f"^{message}"):
        CurvatureMemory(**arguments)


def test_misuse_is_refused():
    """A direction before any gradient, a slot in use or unknown, and a missing product are errors."""
    memory = CurvatureMemory(2)
    with pytest.raises(ArgumentError, match="g and g is missing"):
        memory.direction()
    memory.update(None, {("g", "g"): 1.0})
    with pytest.raises(ArgumentError, match="y0 is missing"):
        memory.update(0, {("g", "g"): 1.0, ("g", "s0"): 1.0})
    memory.update(0, dict.fromkeys(memory.products(0), 1.0))
    for slot in (0, 3, -1):
        with pytest.raises(ArgumentError, match=r"^slot"):
            memory.products(slot)


@pytest.mark.parametrize("has_diagonal", [False, True], ids=["scalar", "diagonal"])
def test_damping_is_that_of_procedure_18_2(has_diagonal):
    """Against the dense matrix: each pair has y, or what makes s.y a fifth of s.B s, from the same round (seed 17)."""
    generator = np.random.default_rng(17)
    memory = CurvatureMemory(4, is_damped=True, has_diagonal=has_diagonal)
    diagonal = generator.permutation(np.geomspace(0.1, 10, 40)) if has_diagonal else np.ones(40)
    gradient = generator.standard_normal(40)
    vectors = Vectors(g=gradient, h0=diagonal)
    vectors.update(memory, None)
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    n_damped = 0
    for iteration in range(25):
        step = float(generator.uniform(0.3, 3))
        s = step * vectors.along(memory.direction())
        # Some of the changes see negative curvature, some too little.
        y = float(generator.choice([-1.0, 0.01, 1.0]) if iteration else 1.0) * s + 0.05 * generator.standard_normal(40)
        slot, gradient = memory.free_slot(), gradient + y
        vectors.named |= {f"s{slot}": s, f"y{slot}": y, "g": gradient}
        update = vectors.update(memory, slot, step)
        expected = y
        if kept:
            bs = np.linalg.solve(inverse_hessian(40, kept, diagonal), s)
            theta = 0.8 * (s @ bs) / (s @ bs - s @ y) if s @ y < 0.2 * (s @ bs) else 1.0
            expected = theta * y + (1 - theta) * bs
        assert update.is_kept
        assert (update.change is not None) == (expected is not y and not np.array_equal(expected, y))
        n_damped += update.change is not None
        assert update.curvature == pytest.approx((s @ y) / (s @ s))
        np.testing.assert_allclose(vectors.named[f"y{slot}"], expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())
        kept = [*kept, (s, expected)][-4:]
        direction = dense_bfgs(gradient, kept, diagonal)
        np.testing.assert_allclose(
            vectors.along(memory.direction()), direction, rtol=1e-7, atol=1e-7 * np.abs(direction).max()
        )
        assert memory.slope() == pytest.approx(direction @ gradient, rel=1e-7)
    assert 5 <= n_damped <= 20


def test_before_there_is_a_pair_nothing_is_damped():
    """The first pair with negative curvature is left out, since steepest descent says nothing of the scale."""
    memory = CurvatureMemory(is_damped=True)
    vectors = Vectors(g=np.ones(3), s0=-np.ones(3), y0=np.ones(3))
    vectors.update(memory, None)
    update = vectors.update(memory, 0, 1.0)
    assert (update.is_kept, update.change, update.curvature) == (False, None, -1.0)


def test_damping_needs_the_step():
    """Without the step of the line search, B s is not known: an error, not a pair that is wrong."""
    memory = CurvatureMemory(is_damped=True)
    memory.update(None, {("g", "g"): 1.0})
    memory.update(0, dict.fromkeys(memory.products(0), 1.0), 1.0)
    with pytest.raises(ArgumentError, match=r"^step"):
        memory.update(1, dict.fromkeys(memory.products(1), 1.0))


def test_with_a_diagonal_the_first_direction_is_multiplied_by_it():
    """Without a pair d = -h0 g, and the first step moves by length 1 along the gradient (seed 18)."""
    generator = np.random.default_rng(18)
    vectors = Vectors(g=generator.standard_normal(40), h0=generator.uniform(0.1, 3, 40))
    memory = CurvatureMemory(has_diagonal=True)
    vectors.update(memory, None)
    gradient, direction = vectors.named["g"], vectors.along(memory.direction())
    np.testing.assert_array_equal(direction, -vectors.named["h0"] * gradient)
    assert memory.slope() == pytest.approx(direction @ gradient)
    assert memory.first_step() * (direction @ gradient) == pytest.approx(-np.linalg.norm(gradient))


def test_the_right_diagonal_makes_a_badly_scaled_problem_easy():
    """On a separable parabola of condition 10,000 the true inverse costs a tenth of the evaluations (seed 19)."""
    scales = np.random.default_rng(19).permutation(np.geomspace(1, 1e4, 50))

    def parabola(x):
        return float(scales @ (x - 1) ** 2 / 2), scales * (x - 1)

    plain = minimise(parabola, np.zeros(50), max_iter=2000)
    scaled = minimise(parabola, np.zeros(50), rule=CurvatureMemory(has_diagonal=True), diagonal=1 / scales)
    assert np.abs(scaled.gradient).max() <= 1e-5
    assert scaled.evaluations <= plain.evaluations / 10


@pytest.mark.parametrize("name", problems())
def test_whole_runs_end_where_scipy_ends(name):
    """On every problem the gradient is as small as was asked of both, and the loss as low as that tells them apart.

    On the flattest, "logistic-100", such a gradient leaves six parts in a million of the loss open; where in between a
    run ends differs with the rounding of the matrix products, and so with the processor.
    """
    objective, start = problems()[name]
    found = minimise(objective, start, gtol=1e-6, max_iter=5000)
    options = {"maxcor": 10, "gtol": 1e-6, "ftol": 0.0, "maxiter": 5000, "maxfun": 100_000}
    scipys = scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    assert np.abs(found.gradient).max() <= 1e-6
    assert found.value <= scipys.fun * (1 + 1e-5) + 1e-10


@pytest.mark.parametrize("history_size", [5, 10])
def test_whole_runs_cost_no_more_evaluations_than_scipys(history_size):
    """Over all problems the evaluations are at most 1.15 times those of SciPy with the same history."""
    ours = scipys = 0
    for objective, start in problems().values():
        ours += minimise(objective, start, rule=CurvatureMemory(history_size), max_iter=5000).evaluations
        options = {"maxcor": history_size, "gtol": 1e-5, "ftol": 0.0, "maxiter": 5000, "maxfun": 100_000}
        scipys += scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options).nfev
    assert ours <= 1.15 * scipys


@pytest.mark.parametrize(("name", "allowed"), [("rosenbrock-2", 50), ("rosenbrock-10", 103), ("logistic-20", 100)])
def test_a_short_run_costs_about_as_much_as_scipys(name, allowed):
    """Where no rounding has accumulated yet, each problem by itself stays within a tenth of SciPy's evaluations."""
    objective, start = problems()[name]
    assert minimise(objective, start, gtol=1e-6).evaluations <= allowed
