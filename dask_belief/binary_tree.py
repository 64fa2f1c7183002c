r"""The fixed shape of every sum: a binary tree over numbered leaves.

Rounding depends on the order of additions, so a sum that is to have the same bits whoever forms its parts must have
one shape. Node ``(level, number)`` covers the leaves from ``number * 2**level`` up to, not including,
``(number + 1) * 2**level``, cut at the end; its value is its left child's plus its right child's, and a right child
that lies behind the end adds nothing::

    level 2            (2,0)           (2,1)
                      /     \             |
    level 1       (1,0)     (1,1)       (1,2)
                  /   \     /   \         |
    leaves       0     1   2     3       4

A node's value depends on its leaves alone. So parts may be repeated, copied, reordered or sent by the dead: of two
that cover the same leaves either will do. Work units and the blocks of a dot product are summed in this shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from dask_belief.errors import ArgumentError

Value = TypeVar("Value")


class Node(NamedTuple):
    """One node of the tree; ``level`` 0 is a leaf."""

    level: int
    number: int

    def parent(self) -> Node:
        """The node above."""
        return Node(self.level + 1, self.number // 2)

    def sibling(self) -> Node:
        """The other child of the node above."""
        return Node(self.level, self.number ^ 1)

    def children(self) -> tuple[Node, Node]:
        """Left and right child, of which the right one may lie behind the end; a leaf has none to ask for."""
        return Node(self.level - 1, 2 * self.number), Node(self.level - 1, 2 * self.number + 1)

    def leaves(self, n_leaves: int) -> range:
        """The leaves that the node covers, in a tree of ``n_leaves``; empty behind the end."""
        start = self.number << self.level
        return range(min(start, n_leaves), min(start + (1 << self.level), n_leaves))

    def covers(self, other: Node) -> bool:
        """Whether `other` is this node or lies below it."""
        return other.level <= self.level and other.number >> (self.level - other.level) == self.number


def root(n_leaves: int) -> Node:
    """The lowest node that covers all of ``n_leaves`` leaves (one or more)."""
    return Node((n_leaves - 1).bit_length(), 0)


def cover(start: int, stop: int, n_leaves: int) -> list[Node]:
    """The fewest nodes, in order, that together cover the leaves ``start`` up to, not including, ``stop``.

    A node that is cut by the end of the tree counts as covered when its existing leaves are.
    """
    nodes = []
    while start < stop:
        node = Node(0, start)
        while node.number % 2 == 0 and node.level < root(n_leaves).level:
            wider = node.parent()
            if wider.leaves(n_leaves).stop > stop:
                break
            node = wider
        nodes.append(node)
        start = node.leaves(n_leaves).stop
    return nodes


class TreeSum(Generic[Value]):
    """Forms one sum from the values of nodes that may come in any order and more than once.

    Parameters
    ----------
    n_leaves
        The number of leaves of the tree, one or more.
    join
        Adds two values, ``join(left, right)``, and may write into the left one, which the sum owns.

    Attributes
    ----------
    waiting
        The nodes that are not yet joined to a sibling, with their values.
    """

    def __init__(self, n_leaves: int, join: Callable[[Value, Value], Value]) -> None:
        self.n_leaves = n_leaves
        self.waiting: dict[Node, Value] = {}
        self._join = join
        self._root = root(n_leaves)

    def is_covered(self, node: Node) -> bool:
        """Whether the sum has the leaves of `node` already, by it or by a node above it."""
        return any(Node(level, node.number >> (level - node.level)) in self.waiting for level in self._levels(node))

    def add(self, node: Node, value: Value) -> bool:
        """Take the value of one node.

        Returns
        -------
        bool
            False when the node was covered already and its value is dropped. A node that covers others replaces them:
            both have the same bits.

        Raises
        ------
        ArgumentError
            The node lies above the root.
        """
        if node.level > self._root.level:
            raise ArgumentError(f"node: level {self._root.level} is the root's of {self.n_leaves} leaves, got {node}.")
        if self.is_covered(node):
            return False
        for below in [other for other in self.waiting if node.covers(other)]:
            del self.waiting[below]
        while node != self._root:
            sibling = node.sibling()
            if not sibling.leaves(self.n_leaves):
                pass
            elif sibling not in self.waiting:
                break
            elif node.number % 2 == 0:
                value = self._join(value, self.waiting.pop(sibling))
            else:
                value = self._join(self.waiting.pop(sibling), value)
            node = node.parent()
        self.waiting[node] = value
        return True

    @property
    def is_complete(self) -> bool:
        """Whether every leaf is in."""
        return self._root in self.waiting

    @property
    def total(self) -> Value:
        """The sum over all leaves; a `KeyError` while some are missing."""
        return self.waiting[self._root]

    def _levels(self, node: Node) -> range:
        return range(node.level, self._root.level + 1)


def tree_total(leaves: NDArray[np.float64]) -> float:
    """The sum of one number a leaf (one or more), in the shape in which `TreeSum` adds them: level by level."""
    while len(leaves) > 1:
        pairs = leaves[: len(leaves) // 2 * 2]
        leaves = np.concatenate((pairs[0::2] + pairs[1::2], leaves[len(pairs) :]))
    return float(leaves[0])
