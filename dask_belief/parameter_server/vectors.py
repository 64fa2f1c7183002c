"""Named vectors over one shard's range, and their algebra: dot, combine, multiply, norms.

Element-wise work goes in blocks that stay in the processor's cache. A dot product is formed in float64 per block of
65,536 parameters, and blocks are joined in a fixed tree over block numbers: see `ranges`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dask_belief.binary_tree import Node, TreeSum
from dask_belief.parameter_server.ranges import BLOCK, n_blocks

Vector = NDArray[np.floating]

_CHUNK = 32_768


class Vectors:
    """The vectors that one shard holds, all over the same range.

    Parameters
    ----------
    shard
        The range of the whole vector that is held.
    n_parameters
        Length of the whole vector.
    dtype
        The run's dtype, of every vector.
    penalised
        Boolean, ``(len(shard),)``: which parameters a penalty covers; None for all.
    """

    def __init__(
        self, shard: range, n_parameters: int, dtype: DTypeLike, penalised: NDArray[np.bool_] | None = None
    ) -> None:
        self.shard = shard
        self.dtype = np.dtype(dtype)
        self._n_blocks = n_blocks(n_parameters)
        self._named: dict[str, Vector] = {}
        self._penalised = _runs(penalised) if penalised is not None else [slice(0, len(shard))]
        self._left = np.empty(BLOCK, np.float64)
        self._right = np.empty(BLOCK, np.float64)
        self._products = np.empty(BLOCK, np.float64)
        self._sum = np.empty(_CHUNK, self.dtype)
        self._term = np.empty(_CHUNK, self.dtype)

    def __getitem__(self, name: str) -> Vector:
        """The vector itself, not a copy; a `KeyError` when there is none of that name."""
        return self._named[name]

    def __contains__(self, name: str) -> bool:
        """Whether there is a vector of that name."""
        return name in self._named

    def make(self, name: str) -> Vector:
        """Give the vector `name`, made when it is not there; its values are then undefined."""
        if name not in self._named:
            self._named[name] = np.empty(len(self.shard), self.dtype)
        return self._named[name]

    def drop(self, name: str) -> None:
        """Forget a vector; nothing happens when it is not there."""
        self._named.pop(name, None)

    def combine(self, into: str, terms: tuple[tuple[float, str], ...]) -> None:
        """``into = sum of coefficient * vector``, in the order of the terms, rounded in the vectors' dtype."""
        sources = [(np.asarray(coefficient, self.dtype), self._named[name]) for coefficient, name in terms]
        target = self.make(into)
        for start in range(0, len(target), _CHUNK):
            piece = slice(start, min(start + _CHUNK, len(target)))
            total, term = self._sum[: piece.stop - start], self._term[: piece.stop - start]
            total[:] = 0
            for coefficient, source in sources:
                np.multiply(source[piece], coefficient, out=term)
                total += term
            target[piece] = total

    def multiply(self, into: str, left: str, right: str) -> None:
        """``into = left * right``, element by element."""
        a, b = self._named[left], self._named[right]
        np.multiply(a, b, out=self.make(into))

    def dot(self, left: str, right: str) -> dict[Node, float]:
        """The dot product as the tree nodes that cover this shard's blocks."""
        a, b = self._named[left], self._named[right]
        nodes = self._tree()
        for start in range(0, len(a), BLOCK):
            piece = slice(start, min(start + BLOCK, len(a)))
            wide_a = self._widen(a[piece], self._left)
            wide_b = wide_a if a is b else self._widen(b[piece], self._right)
            nodes.add(self._block(start), self._product(wide_a, wide_b))
        return nodes.waiting

    def squared_penalty(self, name: str) -> dict[Node, float]:
        """The sum of squares of the penalised elements, as the tree nodes that cover this shard's blocks."""
        vector = self._named[name]
        nodes = self._tree()
        for start in range(0, len(vector), BLOCK):
            stop = min(start + BLOCK, len(vector))
            total = 0.0
            for run in self._penalised:
                low, high = max(run.start, start), min(run.stop, stop)
                if low < high:
                    wide = self._widen(vector[low:high], self._left)
                    total += self._product(wide, wide)
            nodes.add(self._block(start), total)
        return nodes.waiting

    def max_norm(self, name: str) -> float:
        """The largest magnitude; NaN when there is one."""
        vector = self._named[name]
        return float(np.maximum(vector.max(), -vector.min()))

    def add_penalty_gradient(self, into: Vector, name: str, l2: float) -> None:
        """``into += l2 * vector`` where parameters are penalised."""
        if l2 == 0.0:
            return
        factor, source = np.asarray(l2, self.dtype), self._named[name]
        for run in self._penalised:
            for start in range(run.start, run.stop, _CHUNK):
                piece = slice(start, min(start + _CHUNK, run.stop))
                term = self._term[: piece.stop - start]
                np.multiply(source[piece], factor, out=term)
                into[piece] += term

    def _tree(self) -> TreeSum[float]:
        return TreeSum(self._n_blocks, _plus)

    def _block(self, offset: int) -> Node:
        return Node(0, (self.shard.start + offset) // BLOCK)

    def _product(self, a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        """One dot product without the linear algebra library, whose bits depend on its number of threads."""
        products = np.multiply(a, b, out=self._products[: len(a)])
        return float(np.add.reduce(products))

    @staticmethod
    def _widen(values: Vector, scratch: NDArray[np.float64]) -> NDArray[np.float64]:
        wide = scratch[: len(values)]
        wide[:] = values
        return wide


def _plus(left: float, right: float) -> float:
    return left + right


def join_nodes(parts: list[dict[Node, float]], n_parameters: int) -> float:
    """The scalar whose tree nodes the shards sent; does not depend on how many shards there are."""
    total: TreeSum[float] = TreeSum(n_blocks(n_parameters), _plus)
    for part in parts:
        for node, value in part.items():
            total.add(node, value)
    return total.total


def _runs(mask: NDArray[np.bool_]) -> list[slice]:
    """The runs of True in a mask."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return [slice(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True)]
