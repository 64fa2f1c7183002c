"""L-BFGS without vectors: a table of dot products goes in, coefficients of the next direction come out.

The two-loop recursion (Nocedal 1980; Nocedal and Wright, Numerical Optimization, algorithm 7.4) only ever adds
multiples of the gradient and of the kept pairs to one another. So its result is a combination of those vectors, and
its coefficients follow from their dot products alone (Chen, Wang and Zhou, "Large-scale L-BFGS using MapReduce", NIPS
2014)::

    round of dot products ──▶ CurvatureMemory.update ──▶ direction() = {"g": -0.3, "s0": 1.7, "y0": -0.2, ...}
        (on the shards)            (scalars only)              d = -0.3 g + 1.7 s0 - 0.2 y0 ...  (on the shards)

One iteration costs one round of dot products and one combination, however long the history, where the recursion on
vectors costs a round for every step of its two loops. The vectors are known by name and stay where they were made:

- ``"g"``: the gradient at the present point;
- ``"s{slot}"``: a step, the present point minus the one before it;
- ``"y{slot}"``: what that step changed in the gradient.

There is one slot more than pairs are kept: a new pair goes to the free one, and only if it is accepted the oldest
pair's slot becomes free. A refused pair destroys nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from dask_belief.checks import check_count
from dask_belief.errors import ArgumentError, NonFiniteError

Pair: TypeAlias = tuple[str, str]
"""The names of the two vectors of one dot product."""

GRADIENT = "g"
"""Name of the gradient at the present point."""


class MemoryConfig(TypedDict):
    """A `CurvatureMemory` as plain JSON."""

    history_size: int
    curvature_tolerance: float
    slots: list[int]
    dots: list[tuple[str, str, float]]


class CurvatureMemory:
    """Which pairs are kept, and the dot products between everything that is kept.

    Parameters
    ----------
    history_size
        The number of pairs kept at most, one or more (the paper's ``m``).
    curvature_tolerance
        A pair is kept when ``s.y > curvature_tolerance * |s| * |y|``: the cosine between the two must be positive by
        more than rounding. It is relative to both lengths, so it does not depend on the scale of the loss or of the
        parameters.

    Raises
    ------
    ArgumentError
        `history_size` is less than one, or `curvature_tolerance` is not in ``[0, 1)``.

    Examples
    --------
    On ``f(x) = x[0]**2 + 2 * x[1]**2``, from (1, 1) to (0, 0.5):

    >>> memory = CurvatureMemory(history_size=5)
    >>> memory.pairs_to_dot(None)
    [('g', 'g')]
    >>> memory.update(None, {("g", "g"): 20.0})
    False
    >>> memory.direction()
    {'g': -1.0}
    >>> vectors = {"g": (0.0, 2.0), "s0": (-1.0, -0.5), "y0": (-2.0, -2.0)}
    >>> dots = {(a, b): sum(p * q for p, q in zip(vectors[a], vectors[b])) for a, b in memory.pairs_to_dot(0)}
    >>> memory.update(0, dots)
    True
    >>> sorted(memory.direction())
    ['g', 's0', 'y0']
    """

    def __init__(self, history_size: int = 10, curvature_tolerance: float = float(np.finfo(np.float64).eps)) -> None:
        check_count("history_size", history_size)
        if not 0 <= curvature_tolerance < 1:
            raise ArgumentError(
                f"curvature_tolerance: a cosine in [0, 1) is needed, got {curvature_tolerance}; leave it out if unsure"
            )
        self.history_size = history_size
        self.curvature_tolerance = curvature_tolerance
        self._slots: list[int] = []
        """Slots of the kept pairs, oldest first."""
        self._dots: dict[Pair, float] = {}
        """Dot products between all kept vectors and the gradient, under names in sorted order."""
        self._direction: dict[str, float] | None = None
        """The direction from the present table, once it has been asked for."""

    @property
    def n_pairs(self) -> int:
        """The number of pairs kept now."""
        return len(self._slots)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all vectors that a direction may combine, the gradient first, then the pairs from the oldest."""
        return (GRADIENT, *_names_of(self._slots))

    def free_slot(self) -> int:
        """Name the slot to write the next pair to: the lowest that holds no kept pair."""
        return min(set(range(self.history_size + 1)) - set(self._slots))

    def pairs_to_dot(self, slot: int | None) -> list[Pair]:
        """Which dot products one round must bring, each once.

        Parameters
        ----------
        slot
            The free slot that a new pair was written to; None when there is no new pair, as at the start.

        Returns
        -------
        list of (str, str)
            The gradient with itself and everything kept; the new vectors with one another, with the gradient, and with
            every pair that stays if the new one is accepted.
        """
        others = _names_of(self._slots)
        pairs = [(GRADIENT, GRADIENT), *((GRADIENT, name) for name in others)]
        if slot is not None:
            self._check_free(slot)
            new = _names_of([slot])
            pairs += [(GRADIENT, name) for name in new]
            pairs += [(name, name) for name in new] + list(combinations(new, 2))
            # The oldest pair of a full memory goes when the new one is accepted: these products are never needed.
            pairs += [(name, other) for name in new for other in _names_of(self._staying())]
        return pairs

    def update(self, slot: int | None, dots: Mapping[Pair, float]) -> bool:
        """Take one round of dot products, and keep the new pair if its curvature is positive.

        Parameters
        ----------
        slot
            As in `pairs_to_dot`.
        dots
            What was asked for, under the names in either order.

        Returns
        -------
        bool
            Whether there was a new pair and it is kept. If not, its slot stays free, and the older pairs stay.

        Raises
        ------
        ArgumentError
            A dot product is missing, or `slot` is in use or does not exist.
        NonFiniteError
            A product of the gradient with itself or with a kept vector is not finite. The memory is unchanged.
        """
        asked = {_key(pair): _look_up(dots, pair) for pair in self.pairs_to_dot(slot)}
        kept = set(self.names)
        broken = [pair for pair, dot in asked.items() if kept.issuperset(pair) and not math.isfinite(dot)]
        if broken:
            raise NonFiniteError(
                f"dots: finite numbers are needed, the product of {broken[0][0]} and {broken[0][1]} is "
                f"{asked[broken[0]]}; the gradient overflowed or holds NaN, go back to the last point"
            )
        accepted = slot is not None and self._has_curvature(slot, asked)
        if slot is not None and accepted:
            self._slots = [*self._staying(), slot]
        kept = set(self.names)
        self._dots = {pair: dot for pair, dot in (self._dots | asked).items() if kept.issuperset(pair)}
        self._direction = None
        return accepted

    def direction(self) -> dict[str, float]:
        """Give the coefficients of the next direction, one for each of `names`: ``d = sum(c[name] * vector[name])``.

        Without a pair this is minus the gradient. With pairs it is ``-H g``, where ``H`` is the L-BFGS approximation
        of the inverse Hessian that starts from ``(s.y / y.y) I`` of the newest pair.

        Raises
        ------
        ArgumentError
            There was no `update` yet.
        """
        if self._direction is None:
            self._direction = dict(zip(self.names, self._two_loops().tolist(), strict=True))
        return dict(self._direction)

    def slope(self) -> float:
        """Give the product of direction and gradient, from the table; negative unless rounding has spoilt it."""
        return math.fsum(c * self._dots[_key((GRADIENT, name))] for name, c in self.direction().items())

    def first_step(self) -> float:
        """Give the step to try first along the direction: 1 once there is a pair.

        Before that nothing is known of the scale, and the move has length 1, as in L-BFGS-B (Zhu et al. 1997).
        """
        norm = math.sqrt(_look_up(self._dots, (GRADIENT, GRADIENT)))
        return 1.0 if self._slots or norm == 0 else 1.0 / norm

    def reset(self) -> None:
        """Forget all pairs, and keep the gradient: the next direction is steepest descent."""
        self._slots, self._direction = [], None
        self._dots = {pair: dot for pair, dot in self._dots.items() if pair == (GRADIENT, GRADIENT)}

    def to_config(self) -> MemoryConfig:
        """Describe the memory by plain JSON; the floats come back bit for bit."""
        return {
            "history_size": self.history_size,
            "curvature_tolerance": self.curvature_tolerance,
            "slots": list(self._slots),
            "dots": sorted((first, second, dot) for (first, second), dot in self._dots.items()),
        }

    @classmethod
    def from_config(cls, config: MemoryConfig) -> CurvatureMemory:
        """Rebuild a memory from `to_config`, and refuse a description that lacks a dot product.

        Raises
        ------
        ArgumentError
            The slots do not fit the history size, or the table is incomplete.
        """
        memory = cls(config["history_size"], config["curvature_tolerance"])
        slots = [int(slot) for slot in config["slots"]]
        is_valid = len(set(slots)) == len(slots) and set(slots) <= set(range(memory.history_size + 1))
        if not is_valid or len(slots) > memory.history_size:
            raise ArgumentError(f"config: slots {slots} do not fit history_size={memory.history_size}; it is damaged")
        memory._slots = slots
        dots = {_key((first, second)): float(dot) for first, second, dot in config["dots"]}
        if dots:
            needed = [*combinations(memory.names, 2), *((name, name) for name in memory.names)]
            memory._dots = {_key(pair): _look_up(dots, pair) for pair in needed}
        elif slots:
            raise ArgumentError(f"config: slots {slots} have no dot products; the description is damaged")
        return memory

    def _staying(self) -> list[int]:
        """Slots of the pairs that remain when one more is accepted."""
        return self._slots[-(self.history_size - 1) :] if self.history_size > 1 else []

    def _check_free(self, slot: int) -> None:
        if slot in self._slots or not 0 <= slot <= self.history_size:
            raise ArgumentError(
                f"slot: a free one of 0 to {self.history_size} is needed, got {slot}, in use are {self._slots}; "
                "ask free_slot() before the pair is written"
            )

    def _has_curvature(self, slot: int, dots: Mapping[Pair, float]) -> bool:
        if not all(math.isfinite(dot) for dot in dots.values()):
            return False
        step, change = _names_of([slot])
        lengths = math.sqrt(dots[step, step]) * math.sqrt(dots[change, change])
        return dots[step, change] > max(self.curvature_tolerance * lengths, 0.0)

    def _two_loops(self) -> NDArray[np.float64]:
        """Nocedal and Wright's algorithm 7.4 on coefficients; row 0 is the gradient, then s, y, s, y from the oldest.

        ``gram @ coefficients`` holds the dot products of all vectors with the one that the coefficients stand for.
        """
        names = self.names
        gram = np.array([[_look_up(self._dots, _key((row, column))) for column in names] for row in names])
        coefficients = np.zeros(len(names))
        coefficients[0] = -1.0
        steps = range(1, len(names), 2)
        alphas = {}
        for s in reversed(steps):
            alphas[s] = float(gram[s] @ coefficients) / gram[s, s + 1]
            coefficients[s + 1] -= alphas[s]
        if len(steps):
            newest = steps[-1]
            coefficients *= gram[newest, newest + 1] / gram[newest + 1, newest + 1]
        for s in steps:
            beta = float(gram[s + 1] @ coefficients) / gram[s, s + 1]
            coefficients[s] += alphas[s] - beta
        return coefficients


def _names_of(slots: Iterable[int]) -> list[str]:
    """Name the step and the change of each slot."""
    return [name for slot in slots for name in (f"s{slot}", f"y{slot}")]


def _key(pair: Pair) -> Pair:
    """One order for both orders of a pair."""
    first, second = pair
    return (first, second) if first <= second else (second, first)


def _look_up(dots: Mapping[Pair, float], pair: Pair) -> float:
    for names in (pair, pair[::-1]):
        if names in dots:
            return float(dots[names])
    raise ArgumentError(f"dots: the product of {pair[0]} and {pair[1]} is missing; bring all that pairs_to_dot() names")
