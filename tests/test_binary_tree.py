"""Sums of a fixed shape: the same bits in float32 whoever formed which part, in any order, and more than once."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_belief.binary_tree import Node, TreeSum, cover, root, tree_total
from dask_belief.errors import ArgumentError

# The examples come from a fixed seed; the time limit is pytest's.
EXAMPLES = settings(derandomize=True, deadline=None, max_examples=200)
SEED = 5


def leaf_values(n_leaves: int) -> np.ndarray:
    """Float32 values of very different size, so that almost every other order of addition gives other bits."""
    rng = np.random.Generator(np.random.Philox(SEED))
    return (rng.standard_normal(n_leaves) * 10.0 ** rng.integers(-4, 5, n_leaves)).astype(np.float32)


def value_of(node: Node, leaves: np.ndarray) -> np.float32:
    """The definition: left child plus right child, and a child behind the end adds nothing."""
    if node.level == 0:
        return leaves[node.number]
    left, right = node.children()
    if not right.leaves(len(leaves)):
        return value_of(left, leaves)
    return value_of(left, leaves) + value_of(right, leaves)


def add_float32(left: np.float32, right: np.float32) -> np.float32:
    return np.float32(left + right)


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[int, list[Node]]:
    """A number of leaves, and nodes that cover all of them in some order, with repetitions and overlaps."""
    n_leaves = draw(st.integers(1, 40))
    cuts = sorted({0, n_leaves, *draw(st.lists(st.integers(0, n_leaves), max_size=12))})
    needed = [node for a, b in itertools.pairwise(cuts) for node in cover(a, b, n_leaves)]
    levels = st.integers(0, root(n_leaves).level)
    extra = draw(st.lists(st.tuples(levels, st.integers(0, n_leaves - 1)), max_size=15))
    more = [Node(level, leaf >> level) for level, leaf in extra]
    return n_leaves, draw(st.permutations([*needed, *more]))


@EXAMPLES
@given(deliveries())
def test_sum_has_the_same_bits_however_it_is_delivered(delivery: tuple[int, list[Node]]) -> None:
    """Any order, repetition and grouping by covering nodes gives the bits of the tree's definition."""
    n_leaves, nodes = delivery
    leaves = leaf_values(n_leaves)
    total = TreeSum(n_leaves, add_float32)
    for node in nodes:
        total.add(node, value_of(node, leaves))
    assert total.is_complete
    assert set(total.waiting) == {root(n_leaves)}
    assert np.float32(total.total).tobytes() == value_of(root(n_leaves), leaves).tobytes()


@EXAMPLES
@given(deliveries())
def test_each_leaf_counts_once(delivery: tuple[int, list[Node]]) -> None:
    """Counting leaves instead of adding values: after every delivery the sum holds each delivered leaf once."""
    n_leaves, nodes = delivery
    count: TreeSum[int] = TreeSum(n_leaves, int.__add__)
    seen: set[int] = set()
    for node in nodes:
        was_new = not set(node.leaves(n_leaves)) <= seen
        taken = count.add(node, len(node.leaves(n_leaves)))
        seen |= set(node.leaves(n_leaves))
        assert sum(count.waiting.values()) == len(seen)
        assert taken or not was_new
    assert count.is_covered(root(n_leaves)) == count.is_complete


def test_join_may_write_into_the_left_value() -> None:
    """Vectors are joined in place: the sum owns what it was given, and the left value is always the left child's."""
    leaves = leaf_values(12).reshape(4, 3)

    def join(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        left += right
        return left

    total = TreeSum(4, join)
    for leaf in (3, 0, 2, 1):
        total.add(Node(0, leaf), leaves[leaf].copy())
    np.testing.assert_array_equal(total.total, (leaves[0] + leaves[1]) + (leaves[2] + leaves[3]))


def test_covered_node_is_dropped() -> None:
    """A node whose leaves are in is refused, at its own level and below; its value changes nothing."""
    total = TreeSum(4, int.__add__)
    assert total.add(Node(1, 0), 3)
    assert not total.add(Node(1, 0), 100)
    assert not total.add(Node(0, 1), 100)
    assert total.waiting == {Node(1, 0): 3}


def test_incomplete_sum_has_no_total() -> None:
    """The total of a sum that still waits for leaves is an error, not a partial sum."""
    total = TreeSum(3, int.__add__)
    total.add(Node(1, 0), 3)
    assert not total.is_complete
    with pytest.raises(KeyError):
        _ = total.total


@EXAMPLES
@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n))))
def test_cover_is_exact_ordered_and_fewest(case: tuple[int, int, int]) -> None:
    """The nodes cover the range, in order and without overlap, and no two of them could be one."""
    n_leaves, start, stop = case
    nodes = cover(start, stop, n_leaves)
    assert [leaf for node in nodes for leaf in node.leaves(n_leaves)] == list(range(start, stop))
    for node in nodes:
        # Fewest: nodes nest, so a cover is the smallest when no node's parent would still fit into the range.
        parent = node.parent().leaves(n_leaves)
        fits = start <= parent.start and parent.stop <= stop
        assert not fits or node == root(n_leaves)


@pytest.mark.parametrize(("n_leaves", "level"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (1024, 10), (1025, 11)])
def test_root_is_the_lowest_node_over_all(n_leaves: int, level: int) -> None:
    """The root covers every leaf, and the node below it does not."""
    assert root(n_leaves) == Node(level, 0)
    assert list(root(n_leaves).leaves(n_leaves)) == list(range(n_leaves))
    assert n_leaves == 1 or len(Node(level - 1, 0).leaves(n_leaves)) < n_leaves


def test_family_of_a_node() -> None:
    """Parent, sibling, children and cover agree with the drawing in the module's docstring."""
    node = Node(1, 1)
    assert (node.parent(), node.sibling(), node.children()) == (Node(2, 0), Node(1, 0), (Node(0, 2), Node(0, 3)))
    assert list(Node(1, 2).leaves(5)) == [4]
    assert list(Node(0, 5).leaves(5)) == []
    assert node.covers(Node(0, 3))
    assert node.covers(node)
    assert not node.covers(Node(0, 4))
    assert not node.covers(Node(2, 0))


@pytest.mark.parametrize("n_leaves", [1, 2, 3, 5, 8, 13, 100])
def test_total_of_numbers_has_the_bits_of_the_tree(n_leaves: int) -> None:
    """Level by level is the same shape, and needs no nodes."""
    rng = np.random.Generator(np.random.Philox(SEED))
    leaves = rng.standard_normal(n_leaves) * 10.0 ** rng.integers(-8, 9, n_leaves)
    total: TreeSum[float] = TreeSum(n_leaves, lambda left, right: left + right)
    for leaf, value in enumerate(leaves):
        total.add(Node(0, leaf), float(value))
    assert tree_total(leaves) == total.total


def test_node_above_the_root_is_refused() -> None:
    """It covers all leaves, but no sum has it: joining upwards from there would never end."""
    total: TreeSum[float] = TreeSum(4, lambda left, right: left + right)
    with pytest.raises(ArgumentError, match=r"^node: level 2 is the root's of 4 leaves"):
        total.add(Node(3, 0), 1.0)
