"""The sum of an evaluation's gradients: each unit once, the same bits whoever sends what, in any order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_belief.binary_tree import Node, cover, root
from dask_belief.errors import StaleError
from dask_belief.parameter_server.gradient_sum import GradientSum
from dask_belief.seeds import stream

EXAMPLES = settings(derandomize=True, deadline=None, max_examples=200)
SEED = 32
LENGTH = 5
PIECES = (slice(0, 2), slice(2, 5))


def unit_gradients(n_units: int) -> np.ndarray:
    """``(n_units, LENGTH)`` float32 of very different size, so that the order of addition shows in the bits."""
    rng = stream(SEED, n_units)
    return (rng.standard_normal((n_units, LENGTH)) * 10.0 ** rng.integers(-4, 5, (n_units, 1))).astype(np.float32)


def value_of(node: Node, gradients: np.ndarray) -> np.ndarray:
    """The definition: left child plus right child, and a child behind the end adds nothing."""
    if node.level == 0:
        return gradients[node.number].copy()
    left, right = node.children()
    if not right.leaves(len(gradients)):
        return value_of(left, gradients)
    return value_of(left, gradients) + value_of(right, gradients)


@st.composite
def pushes(draw: st.DrawFn) -> tuple[int, list[tuple[Node, slice]]]:
    """Per piece a cover of all units, and repetitions, copies of parts and of wholes, in any order."""
    n_units = draw(st.integers(1, 20))
    sent: list[tuple[Node, slice]] = []
    for piece in PIECES:
        cuts = sorted({0, n_units, *draw(st.lists(st.integers(0, n_units), max_size=6))})
        sent += [(node, piece) for a, b in itertools.pairwise(cuts) for node in cover(a, b, n_units)]
        levels = st.integers(0, root(n_units).level)
        more = draw(st.lists(st.tuples(levels, st.integers(0, n_units - 1)), max_size=6))
        sent += [(Node(level, unit >> level), piece) for level, unit in more]
    return n_units, draw(st.permutations(sent))


@EXAMPLES
@given(pushes())
def test_sum_has_the_same_bits_however_it_is_pushed(case: tuple[int, list[tuple[Node, slice]]]) -> None:
    """Any order, repetition and cover, other for every piece, gives the tree's sum over the rows, to the bit."""
    n_units, sent = case
    gradients = unit_gradients(n_units)
    total = GradientSum(3, "x", n_units)
    for node, piece in sent:
        total.add(node, piece.start, value_of(node, gradients)[piece])
    into = np.empty(LENGTH, np.float32)
    total.collect(into, n_rows=7)
    np.testing.assert_array_equal(into, value_of(root(n_units), gradients) / np.float32(7))


def test_repeated_push_is_dropped() -> None:
    """A node that is in, by itself or by one above it, is refused and changes nothing."""
    total = GradientSum(0, "x", 2)
    assert total.add(Node(0, 0), 0, np.ones(2, np.float32))
    assert not total.add(Node(0, 0), 0, np.full(2, 9, np.float32))
    assert total.add(Node(1, 0), 0, np.full(2, 5, np.float32))
    assert not total.add(Node(0, 1), 0, np.full(2, 9, np.float32))
    into = np.empty(2, np.float32)
    total.collect(into, n_rows=1)
    np.testing.assert_array_equal(into, [5, 5])


def test_read_only_piece_is_accepted() -> None:
    """What arrives may be read-only, and is then copied before anything is added to it."""
    first = np.ones(2, np.float32)
    first.flags.writeable = False
    total = GradientSum(0, "x", 2)
    total.add(Node(0, 0), 0, first)
    total.add(Node(0, 1), 0, first)
    into = np.empty(2, np.float32)
    total.collect(into, n_rows=1)
    np.testing.assert_array_equal(into, [2, 2])
    np.testing.assert_array_equal(first, [1, 1])


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param([], id="nothing"),
        pytest.param([(Node(1, 0), 0, 2)], id="second piece missing"),
        pytest.param([(Node(1, 0), 2, 3)], id="first piece missing"),
        pytest.param([(Node(1, 0), 0, 2), (Node(0, 0), 2, 3)], id="a unit missing"),
    ],
)
def test_sum_that_is_closed_too_early_is_refused(sent: list[tuple[Node, int, int]]) -> None:
    """A missing unit or piece is an error, not a smaller gradient."""
    total = GradientSum(4, "x", 2)
    for node, offset, length in sent:
        total.add(node, offset, np.ones(length, np.float32))
    with pytest.raises(StaleError, match="evaluation 4 was closed before"):
        total.collect(np.empty(LENGTH, np.float32), n_rows=1)


def test_collected_sum_is_closed() -> None:
    """A copy that comes late is dropped, whatever it covers, and the sum is not given twice."""
    total = GradientSum(4, "x", 2)
    total.add(Node(1, 0), 0, np.ones(LENGTH, np.float32))
    into = np.empty(LENGTH, np.float32)
    total.collect(into, n_rows=1)
    assert total.is_closed
    for node in (Node(0, 0), Node(1, 0)):
        assert not total.add(node, 0, np.full(LENGTH, 9, np.float32))
    assert total.n_bytes == 0
    with pytest.raises(StaleError, match="evaluation 4 was closed before; its sum"):
        total.collect(into, n_rows=1)
    np.testing.assert_array_equal(into, 1)


def test_bytes_are_those_of_nodes_that_wait() -> None:
    """Joined nodes take the place of one, copies take none, and a collected sum is let go of."""
    total = GradientSum(0, "x", 3)
    held = []
    for node, piece in [
        (Node(0, 0), PIECES[0]),
        (Node(0, 2), PIECES[0]),
        (Node(0, 2), PIECES[0]),
        (Node(0, 1), PIECES[0]),
        (Node(2, 0), PIECES[1]),
    ]:
        total.add(node, piece.start, np.ones(piece.stop - piece.start, np.float32))
        held.append(total.n_bytes)
    assert held == [8, 16, 16, 8, 20]
    total.collect(np.empty(LENGTH, np.float32), n_rows=1)
    assert total.n_bytes == 0


def test_another_evaluation_is_refused() -> None:
    """Both numbers are named."""
    total = GradientSum(4, "x", 2)
    total.check(4)
    with pytest.raises(StaleError, match="evaluation 3 was named, but 4"):
        total.check(3)
