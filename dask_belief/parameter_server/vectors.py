"""Named vectors over one shard's range, and their algebra: dot, combine, multiply, norms.

Element-wise work goes in blocks that stay in the processor's cache. A dot product is formed in float64 per block of
65,536 parameters, and blocks are joined in a fixed tree over block numbers: see `ranges`.
"""

from __future__ import annotations

import bisect
import itertools
import operator
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dask_belief.binary_tree import Node, TreeSum
from dask_belief.parameter_server.ranges import BLOCK, n_blocks
from dask_belief.parameter_server.selection import Selection

Vector = NDArray[np.floating]
Wide = NDArray[np.float64]
Value = TypeVar("Value")

# Elements that are worked on at once: of a few vectors they stay in the processor's cache.
_CHUNK = 32_768

# Added to the roots of Adagrad's sums, so that a parameter which never had a gradient does not get all of a step.
_LEAST_ROOT = 1e-6

# Of sums of products of two factors, and of three.
_SUBSCRIPTS = {2: "i,i->", 3: "i,i,i->"}


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
        self._mask: NDArray[np.bool_] | None = None
        self._wide = np.empty(_CHUNK, np.float64)
        self._sum = np.empty(_CHUNK, self.dtype)
        self._term = np.empty(_CHUNK, self.dtype)

    def __getitem__(self, name: str) -> Vector:
        """The vector itself, not a copy; a `KeyError` when there is none of that name."""
        return self._named[name]

    def __contains__(self, name: str) -> bool:
        """Whether there is a vector of that name."""
        return name in self._named

    def make(self, name: str) -> Vector:
        """Give the vector `name` to be overwritten.

        Its values are undefined where it was not there, or had another name as well: see `alias`.
        """
        found = self._named.get(name)
        if found is None or sum(vector is found for vector in self._named.values()) > 1:
            found = self._named[name] = np.empty(len(self.shard), self.dtype)
        return found

    def _own(self, name: str) -> Vector:
        """Give the vector `name` to be changed in place; one of several names is copied for this one."""
        found = self._named[name]
        own = self.make(name)
        if own is not found:
            own[:] = found
        return own

    def drop(self, name: str) -> None:
        """Forget a vector; nothing happens when it is not there."""
        self._named.pop(name, None)

    @property
    def names(self) -> list[str]:
        """The names of all vectors."""
        return list(self._named)

    @property
    def n_bytes(self) -> int:
        """Bytes of all named vectors; one of several names counts once."""
        return sum(vector.nbytes for vector in {id(vector): vector for vector in self._named.values()}.values())

    def alias(self, into: str, name: str) -> None:
        """Let a vector have a second name, under which it stays as it is now.

        Nothing is copied: whoever overwrites either name from now on gets new memory for it.
        """
        self._named[into] = self._named[name]

    def combine(self, into: str, terms: tuple[tuple[float, str], ...]) -> None:
        """``into = sum of coefficient * vector``, in the order of the terms, rounded in the vectors' dtype."""
        sources = [(np.asarray(coefficient, self.dtype), self._named[name]) for coefficient, name in terms]
        target = self.make(into)
        for chunk in self._chunks():
            total, term = self._sum[: chunk.stop - chunk.start], self._term[: chunk.stop - chunk.start]
            total[:] = 0
            for coefficient, source in sources:
                np.multiply(source[chunk], coefficient, out=term)
                total += term
            target[chunk] = total

    def multiply(self, into: str, left: str, right: str) -> None:
        """``into = left * right``, element by element."""
        a, b = self._named[left], self._named[right]
        np.multiply(a, b, out=self.make(into))

    def swap(self, left: str, right: str) -> None:
        """Let two vectors exchange their names."""
        self._named[left], self._named[right] = self._named[right], self._named[left]

    def dots(self, products: tuple[tuple[str, ...], ...]) -> list[dict[Node, float]]:
        """Sums of products of two or three vectors, each as the tree nodes that cover this shard's blocks.

        One sweep serves all: a chunk of each vector is widened once, however many products it is in, and the scratch
        is 256 KiB for each vector named.
        """
        names = list(dict.fromkeys(itertools.chain.from_iterable(products)))
        sources = [self._named[name] for name in names]
        factors = [[names.index(name) for name in product] for product in products]
        scratch = np.empty((len(names), min(_CHUNK, len(self.shard))), np.float64)

        def of_block(block: slice) -> Wide:
            totals = np.zeros(len(products))
            for chunk in self._chunks(block.start, block.stop):
                wide = [_widen(source[chunk], row) for source, row in zip(sources, scratch, strict=True)]
                totals += [_sum_of_products(*(wide[number] for number in product)) for product in factors]
            return totals

        # One tree of all the sums: to add to it costs as much as to add to a tree of one.
        nodes = self._nodes(of_block)
        return [{node: float(totals[number]) for node, totals in nodes.items()} for number in range(len(products))]

    def squared_penalty(self, name: str) -> dict[Node, float]:
        """The sum of squares of the penalised elements, as the tree nodes that cover this shard's blocks."""
        return self._penalised_sum(name, lambda wide: _sum_of_products(wide, wide))

    def absolutes(self, name: str) -> dict[Node, float]:
        """The sum of magnitudes of the penalised elements, as the tree nodes that cover this shard's blocks."""
        return self._penalised_sum(name, lambda wide: float(np.add.reduce(np.abs(wide))))

    def _penalised_sum(self, name: str, of_chunk: Callable[[Wide], float]) -> dict[Node, float]:
        vector = self._named[name]

        def of_block(block: slice) -> float:
            # One by one from zero: a penalty that covers nothing of a block adds nothing.
            total = 0.0
            for chunk in self._penalised_chunks(block.start, block.stop):
                total += of_chunk(_widen(vector[chunk], self._wide))
            return total

        return self._nodes(of_block)

    def _nodes(self, of_block: Callable[[slice], Value]) -> dict[Node, Value]:
        """Join what is found for each block of this shard into the fewest nodes of the whole vector's tree."""
        tree: TreeSum[Value] = TreeSum(self._n_blocks, operator.add)
        for start in range(0, len(self.shard), BLOCK):
            block = slice(start, min(start + BLOCK, len(self.shard)))
            tree.add(Node(0, (self.shard.start + start) // BLOCK), of_block(block))
        return tree.waiting

    # OWL-QN: see the commands. NaN stays NaN, wherever it comes from.

    def pseudo_gradient(self, into: str, point: str, gradient: str, l1: float) -> None:
        """Write the pseudo-gradient of the smooth part plus ``l1 * ||w||_1``."""
        x, g, target = self._named[point], self._named[gradient], self.make(into)
        weight = np.asarray(l1, self.dtype)
        for chunk in self._chunks():
            value = self._sum[: chunk.stop - chunk.start]
            value[:] = g[chunk]
            for run in self._penalised_chunks(chunk.start, chunk.stop):
                at, slope = x[run], g[run]
                # At zero the derivatives to either side are slope + l1 and slope - l1: the one that goes down, or none.
                at_zero = np.sign(slope) * np.maximum(np.abs(slope) - weight, 0)
                value[_within(run, chunk)] = np.where(at == 0, at_zero, slope + np.sign(at) * weight)
            target[chunk] = value

    def align(self, direction: str, steepest: str, point: str) -> None:
        """Set to zero, where penalised and at zero, what of a direction does not go down along the pseudo-gradient."""
        v, x = self._named[steepest], self._named[point]
        d = self._own(direction)
        for run in self._penalised_chunks(0, len(d)):
            np.copyto(d[run], 0, where=(x[run] == 0) & _is_along(d[run], v[run]))

    def projected_step(self, into: str, point: str, direction: str, steepest: str, step: float) -> None:
        """Step, and hold at zero, where penalised, what would leave the orthant."""
        x, d, v = self._named[point], self._named[direction], self._named[steepest]
        target, factor = self.make(into), np.asarray(step, self.dtype)
        for chunk in self._chunks():
            value = np.multiply(d[chunk], factor, out=self._sum[: chunk.stop - chunk.start])
            value += x[chunk]
            for run in self._penalised_chunks(chunk.start, chunk.stop):
                outwards = np.where(x[run] == 0, v[run], -x[run])
                moved = value[_within(run, chunk)]
                moved[:] = np.where(_is_along(moved, outwards), 0, moved)
            target[chunk] = value

    def first_hessian(self, into: str, sums: str) -> None:
        """Write ``1 / (sqrt(sums) + 1e-6)``."""
        source, target = self._named[sums], self.make(into)
        np.sqrt(source, out=target)
        target += np.asarray(_LEAST_ROOT, self.dtype)
        np.reciprocal(target, out=target)

    def max_norm(self, name: str) -> float:
        """The largest magnitude; NaN when there is one."""
        vector = self._named[name]
        return float(np.maximum(vector.max(), -vector.min()))

    def add_penalty_gradient(self, into: Vector, name: str, l2: float) -> None:
        """``into += l2 * vector`` where parameters are penalised."""
        if l2 == 0.0:
            return
        factor, source = np.asarray(l2, self.dtype), self._named[name]
        for chunk in self._penalised_chunks(0, len(into)):
            term = self._term[: chunk.stop - chunk.start]
            np.multiply(source[chunk], factor, out=term)
            into[chunk] += term

    def shrink(self, name: str, place: slice, share: float, chosen: Selection | None = None) -> None:
        """``vector *= 1 - share`` where parameters are penalised, in a part of the range or what of it is chosen."""
        if share == 0.0:
            return
        factor, vector = np.asarray(1.0 - share, self.dtype), self._named[name][place]
        if chosen is None:
            for run in self._penalised_chunks(place.start, place.stop):
                vector[_within(run, place)] *= factor
            return
        if self._mask is None:
            self._mask = np.zeros(len(self.shard), np.bool_)
            for run in self._penalised:
                self._mask[run] = True
        kept = np.where(chosen.take(self._mask[place]), factor, np.asarray(1, self.dtype))
        chosen.put(chosen.take(vector) * kept, vector)

    def _chunks(self, start: int = 0, stop: int | None = None) -> Iterator[slice]:
        """What lies from `start` to `stop`, cut into chunks."""
        end = len(self.shard) if stop is None else stop
        return (slice(low, min(low + _CHUNK, end)) for low in range(start, end, _CHUNK))

    def _penalised_chunks(self, start: int, stop: int) -> Iterator[slice]:
        """The penalised elements from `start` to `stop`, in runs of a chunk at most."""
        first = bisect.bisect_right(self._penalised, start, key=lambda run: run.stop)
        last = bisect.bisect_left(self._penalised, stop, key=lambda run: run.start)
        for run in self._penalised[first:last]:
            yield from self._chunks(max(run.start, start), min(run.stop, stop))


def _widen(values: Vector, scratch: Wide) -> Wide:
    """The values in float64: they themselves where that is their dtype, else in the scratch."""
    if values.dtype == np.float64:
        return values.astype(np.float64, copy=False)
    wide = scratch[: len(values)]
    wide[:] = values
    return wide


def _within(run: slice, chunk: slice) -> slice:
    """A run of a chunk, counted from where the chunk begins."""
    return slice(run.start - chunk.start, run.stop - chunk.start)


def _is_along(a: Vector, b: Vector) -> NDArray[np.bool_]:
    """Where ``a * b >= 0``, found without the product, since that of two small numbers may vanish."""
    along: NDArray[np.bool_] = ((a >= 0) & (b >= 0)) | ((a <= 0) & (b <= 0))
    return along


def _sum_of_products(*factors: Wide) -> float:
    """Without the linear algebra library, whose bits depend on its number of threads."""
    return float(np.einsum(_SUBSCRIPTS[len(factors)], *factors, optimize=False))


def join_nodes(parts: list[dict[Node, float]], n_parameters: int) -> float:
    """The scalar whose tree nodes the shards sent; does not depend on how many shards there are."""
    total: TreeSum[float] = TreeSum(n_blocks(n_parameters), operator.add)
    for part in parts:
        for node, value in part.items():
            total.add(node, value)
    return total.total


def _runs(mask: NDArray[np.bool_]) -> list[slice]:
    """The runs of True in a mask."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return [slice(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True)]
