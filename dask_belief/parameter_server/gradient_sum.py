"""The sum of one evaluation's gradients on one shard: a tree of fixed shape over the work units."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dask_belief.binary_tree import Node, TreeSum
from dask_belief.errors import StaleError

Vector = NDArray[np.floating]


class GradientSum:
    """Joins the nodes that replicas push, piece by piece, in whatever order and however often they come.

    Parameters
    ----------
    evaluation
        The number of the evaluation; the nodes of another are refused.
    parameters
        The name of the vector at which gradients are wanted.
    n_units
        The leaves of the tree.

    Attributes
    ----------
    evaluation, parameters
        See above.
    is_closed
        Whether the sum was collected: what comes later is covered.
    """

    def __init__(self, evaluation: int, parameters: str, n_units: int) -> None:
        self.evaluation = evaluation
        self.parameters = parameters
        self._n_units = n_units
        self.is_closed = False
        self._pieces: dict[int, TreeSum[Vector]] = {}

    def check(self, evaluation: int) -> None:
        """Refuse what belongs to another evaluation; raises `StaleError`."""
        if evaluation != self.evaluation:
            raise StaleError(f"evaluation {evaluation} was named, but {self.evaluation} is under way.")

    def add(self, node: Node, offset: int, piece: Vector) -> bool:
        """Take one node's sum over the piece that begins at `offset`; False when it was covered already."""
        if self.is_closed:
            return False
        tree = self._pieces.setdefault(offset, TreeSum(self._n_units, _add_into))
        if tree.is_covered(node):
            return False
        return tree.add(node, piece if piece.flags.writeable else piece.copy())

    def collect(self, into: Vector, n_rows: int) -> None:
        """Write the sum over all units, divided by `n_rows`, into a vector over the shard's range.

        Raises
        ------
        StaleError
            When a node is missing: the evaluation was closed too early. Or when it was closed before.
        """
        if self.is_closed:
            raise StaleError(f"evaluation {self.evaluation} was closed before; its sum was given then.")
        position = 0
        for offset, tree in sorted(self._pieces.items()):
            if offset != position or not tree.is_complete:
                break
            np.divide(tree.total, into.dtype.type(n_rows), out=into[offset : offset + len(tree.total)])
            position += len(tree.total)
        if position != len(into):
            raise StaleError(f"evaluation {self.evaluation} was closed before all of its gradients were in.")
        self._pieces.clear()
        self.is_closed = True

    @property
    def n_bytes(self) -> int:
        """Bytes of the nodes that wait for a sibling, or to be collected."""
        return sum(piece.nbytes for tree in self._pieces.values() for piece in tree.waiting.values())


def _add_into(left: Vector, right: Vector) -> Vector:
    left += right
    return left
