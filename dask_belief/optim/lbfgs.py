"""L-BFGS without vectors: a table of dot products goes in, coefficients of the next direction come out.

The two-loop recursion (Nocedal 1980; Nocedal and Wright, Numerical Optimization, algorithm 7.4) only ever adds
multiples of the gradient and of the kept pairs to one another. So its result is a combination of those vectors, and
its coefficients follow from their dot products alone (Chen, Wang and Zhou, "Large-scale L-BFGS using MapReduce", NIPS
2014). One iteration costs one round of dot products and one combination, however long the history, where the recursion
on vectors costs a round for every step of its two loops.

Between the two loops the recursion multiplies by the first inverse Hessian ``H0``. With the scalar ``H0 = gamma I`` all
products are of two vectors. With a diagonal, ``H0 = gamma diag(h0)``, the gradient and the changes ``y`` enter the
direction multiplied by ``h0`` element by element, and products among them become ``sum(a * b * h0)``; those with steps
stay as they are::

                  direction                                              gamma
    scalar        d = c g + sum(a s + b y)                               s.y / y.y
    diagonal      d = sum(a s) + h0 * (c g + sum(b y))                   s.y / sum(y * y * h0)

There is one slot more than pairs are kept: a new pair goes to the free one, and only if it is accepted the oldest
pair's slot becomes free. A refused pair destroys nothing.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from typing import ClassVar, TypedDict

from dask_belief.checks import check_count
from dask_belief.errors import ArgumentError, NonFiniteError
from dask_belief.optim.damping import damp, substitute
from dask_belief.optim.direction import (
    DIAGONAL,
    GRADIENT,
    Direction,
    Product,
    Update,
    curvature_of,
    exact_sum,
    find_product,
    product_key,
)


class MemoryConfig(TypedDict):
    """A `CurvatureMemory` as plain JSON."""

    history_size: int
    is_damped: bool
    has_diagonal: bool
    curvature_tolerance: float
    slots: list[int]
    dots: list[tuple[list[str], float]]


class CurvatureMemory:
    """Which pairs are kept, and the dot products between everything that is kept; the rule of L-BFGS.

    Parameters
    ----------
    history_size
        The number of pairs kept at most, one or more (the paper's ``m``).
    is_damped
        Whether a pair with too little curvature is bent until it has some (`optim.damping`), rather than left out; at
        the cost of no further round. Before there is a pair nothing is bent, since nothing is known of the scale. Not
        for steps that were projected, as with an L1 penalty: damping relies on the step being a multiple of ``H g``.
    has_diagonal
        Whether the vector ``h0`` is the diagonal from which the inverse Hessian starts.
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
    >>> memory.products(None)
    [('g', 'g')]
    >>> memory.update(None, {("g", "g"): 20.0}).is_kept
    False
    >>> memory.direction()
    Direction(terms={'g': -1.0}, scaled_terms={})
    >>> vectors = {"g": (0.0, 2.0), "s0": (-1.0, -0.5), "y0": (-2.0, -2.0)}
    >>> dots = {(a, b): sum(p * q for p, q in zip(vectors[a], vectors[b])) for a, b in memory.products(0)}
    >>> memory.update(0, dots)
    Update(is_kept=True, curvature=2.4, change=None)
    >>> sorted(memory.direction().terms)
    ['g', 's0', 'y0']
    """

    c2: ClassVar[float] = 0.9

    def __init__(
        self,
        history_size: int = 10,
        *,
        is_damped: bool = False,
        has_diagonal: bool = False,
        curvature_tolerance: float = sys.float_info.epsilon,
    ) -> None:
        check_count("history_size", history_size)
        if not 0 <= curvature_tolerance < 1:
            raise ArgumentError(
                f"curvature_tolerance: a cosine in [0, 1) is needed, got {curvature_tolerance}; leave it out if unsure"
            )
        self.history_size = history_size
        self.is_damped = is_damped
        self.has_diagonal = has_diagonal
        self.curvature_tolerance = curvature_tolerance
        self._slots: list[int] = []
        """Slots of the kept pairs, oldest first."""
        self._dots: dict[Product, float] = {}
        """The products that directions from the kept vectors need, under names in sorted order."""
        self._direction: Direction | None = None
        """The direction from the present table, once it has been asked for."""

    @property
    def n_pairs(self) -> int:
        """The number of pairs kept now."""
        return len(self._slots)

    @property
    def has_memory(self) -> bool:
        """Whether there is a pair to forget."""
        return bool(self._slots)

    def free_slot(self) -> int:
        """Name the slot to write the next pair to: the lowest that holds no kept pair."""
        return min(set(range(self.history_size + 1)) - set(self._slots))

    def products(self, slot: int | None) -> list[Product]:
        """Which dot products one round must bring, each once.

        Parameters
        ----------
        slot
            The free slot that a new pair was written to; None when there is no new pair, as at the start.

        Returns
        -------
        list of tuple of str
            The gradient with itself and everything kept; the new vectors with one another, with the gradient, and with
            what they meet in the recursion of every pair that stays if the new one is accepted. Steps are never
            multiplied with other steps there.
        """
        if slot is None:
            return self._of_gradient(self._slots)
        self._check_free(slot)
        asked = self._of_gradient([*self._slots, slot])
        step, change = _names_of(slot)
        asked += [(step, step), (step, change), (change, change)]
        if self.has_diagonal:
            asked += [self._inner(change, change)] + ([(GRADIENT, change)] if self.is_damped else [])
        # The oldest pair of a full memory goes when the new one is accepted: these products are never needed.
        for other_step, other_change in map(_names_of, self._staying()):
            asked += [(step, other_change), (change, other_step), self._inner(change, other_change)]
        return asked

    def update(self, slot: int | None, dots: Mapping[Product, float], step: float = math.nan) -> Update:
        """Take one round of dot products, and keep the new pair if its curvature is positive, or can be made so.

        Parameters
        ----------
        slot
            As in `products`.
        dots
            What was asked for, by the names in any order.
        step
            What the line search gave for the pair of `slot`; needed for damping only.

        Returns
        -------
        Update
            If the new pair is not kept its slot stays free, and the older pairs stay.

        Raises
        ------
        ArgumentError
            A dot product is missing, or `slot` is in use or does not exist, or `step` is missing for damping.
        NonFiniteError
            A product of the gradient with itself or with a kept vector is not finite. The memory is unchanged.
        """
        asked = {product_key(product): find_product(dots, *product) for product in self.products(slot)}
        self._check_finite(asked)
        curvature, change = math.nan, None
        accepted = False
        if slot is not None:
            names = _names_of(slot)
            curvature = curvature_of(asked[names[0], names[0]], asked[names])
            change = self._damping(slot, asked, step)
            if change is not None:
                asked = substitute(asked, names[1], change)
            accepted = self._has_curvature(slot, asked)
        if slot is not None and accepted:
            self._slots = [*self._staying(), slot]
        known = self._dots | asked
        self._dots = {key: known[key] for key in map(product_key, self._needed())}
        self._direction = None
        return Update(accepted, curvature, change if accepted else None)

    def direction(self) -> Direction:
        """Give the next direction: minus the gradient without a pair, else ``-H g``.

        ``H`` is the L-BFGS approximation of the inverse Hessian. It starts from a multiple of the identity, or of the
        diagonal ``h0``; without a pair, the direction is multiplied by ``h0`` alone.

        Raises
        ------
        ArgumentError
            There was no `update` yet.
        """
        if self._direction is None:
            self._direction = self._two_loops()
        return self._direction

    def slope(self) -> float:
        """Give the product of direction and gradient, from the table; negative unless rounding has spoilt it."""
        direction = self.direction()
        plain = [c * self._dot(GRADIENT, name) for name, c in direction.terms.items()]
        scaled = [c * self._dot(GRADIENT, name, DIAGONAL) for name, c in direction.scaled_terms.items()]
        return exact_sum(plain + scaled)

    def first_step(self) -> float:
        """Give the step to try first along the direction: 1 once there is a pair.

        Before that nothing is known of the scale. The step is ``|g| / |slope|``, which promises a decrease of ``|g|``.
        Without a diagonal the move then has length 1, as in L-BFGS-B (Zhu et al. 1997); with one, the part of the move
        along the gradient has: the length of the whole, ``|h0 * g|``, is not among the products.
        """
        norm = math.sqrt(self._dot(GRADIENT, GRADIENT))
        step = 1.0 if self._slots or norm == 0 else -norm / self.slope()
        return step if 0 < step < math.inf else 1.0

    def reset(self) -> None:
        """Forget all pairs, and keep the gradient: the next direction is steepest descent."""
        self._slots, self._direction = [], None
        needed = set(map(product_key, self._needed()))
        self._dots = {product: dot for product, dot in self._dots.items() if product in needed}

    def to_config(self) -> MemoryConfig:
        """Describe the memory by plain JSON; the floats come back bit for bit."""
        return {
            "history_size": self.history_size,
            "is_damped": self.is_damped,
            "has_diagonal": self.has_diagonal,
            "curvature_tolerance": self.curvature_tolerance,
            "slots": list(self._slots),
            "dots": [(list(product), dot) for product, dot in sorted(self._dots.items())],
        }

    @classmethod
    def from_config(cls, config: MemoryConfig) -> CurvatureMemory:
        """Rebuild a memory from `to_config`, and refuse a description that lacks a dot product.

        Raises
        ------
        ArgumentError
            The slots do not fit the history size, or the table is incomplete.
        """
        memory = cls(
            config["history_size"],
            is_damped=config["is_damped"],
            has_diagonal=config["has_diagonal"],
            curvature_tolerance=config["curvature_tolerance"],
        )
        slots = [int(slot) for slot in config["slots"]]
        is_valid = len(set(slots)) == len(slots) and set(slots) <= set(range(memory.history_size + 1))
        if not is_valid or len(slots) > memory.history_size:
            raise ArgumentError(f"config: slots {slots} do not fit history_size={memory.history_size}; it is damaged")
        memory._slots = slots
        dots = {product_key(product): float(dot) for product, dot in config["dots"]}
        if dots:
            memory._dots = {product_key(product): find_product(dots, *product) for product in memory._needed()}
        elif slots:
            raise ArgumentError(f"config: slots {slots} have no dot products; the description is damaged")
        return memory

    # Which products.

    def _inner(self, first: str, second: str) -> Product:
        """The product of two vectors as it stands between the loops: through the diagonal where there is one."""
        return (first, second, DIAGONAL) if self.has_diagonal else (first, second)

    def _of_gradient(self, slots: Iterable[int]) -> list[Product]:
        """The products of the gradient, the first of them with itself, that a direction from these pairs takes."""
        # Without a diagonal the first two are one.
        own = dict.fromkeys([(GRADIENT, GRADIENT), self._inner(GRADIENT, GRADIENT)])
        others = [((GRADIENT, step), self._inner(GRADIENT, change)) for step, change in map(_names_of, slots)]
        return [*own, *(product for both in others for product in both)]

    def _needed(self) -> list[Product]:
        """All products that the direction from the kept vectors takes."""
        pairs = [_names_of(slot) for slot in self._slots]
        needed = self._of_gradient(self._slots)
        for number, (_, change) in enumerate(pairs):
            needed += [(step, change) for step, _ in pairs]
            needed += [self._inner(change, other) for _, other in pairs[number:]]
        return needed

    def _staying(self) -> list[int]:
        """Slots of the pairs that remain when one more is accepted."""
        return self._slots[-(self.history_size - 1) :] if self.history_size > 1 else []

    def _check_free(self, slot: int) -> None:
        if slot in self._slots or not 0 <= slot <= self.history_size:
            raise ArgumentError(
                f"slot: a free one of 0 to {self.history_size} is needed, got {slot}, in use are {self._slots}; "
                "ask free_slot() before the pair is written"
            )

    # What a new pair is worth.

    def _check_finite(self, asked: Mapping[Product, float]) -> None:
        """Refuse a round in which the gradient itself, or with what is kept, is not finite."""
        for product in self._of_gradient(self._slots):
            if not math.isfinite(asked[product_key(product)]):
                raise NonFiniteError(
                    f"dots: finite numbers are needed, the product of {' and '.join(product)} is "
                    f"{asked[product_key(product)]}; the gradient overflowed or holds NaN, go back to the last point"
                )

    def _has_curvature(self, slot: int, dots: Mapping[Product, float]) -> bool:
        if not all(math.isfinite(dot) for dot in dots.values()):
            return False
        step, change = _names_of(slot)
        lengths = math.sqrt(dots[step, step]) * math.sqrt(dots[change, change])
        # The recursion divides by this; it underflows before the others do.
        inner = dots[product_key(self._inner(change, change))]
        return inner > 0 and dots[step, change] > max(self.curvature_tolerance * lengths, 0.0)

    def _damping(self, slot: int, dots: Mapping[Product, float], step: float) -> dict[str, float] | None:
        """What the change of a new pair must become, as coefficients; None to leave it."""
        if not (self.is_damped and self._slots):
            return None
        if not 0 < step < math.inf:
            raise ArgumentError(f"step: damping needs the positive step of the line search, got {step}; pass it")
        name, change = _names_of(slot)
        coefficients = damp(dots[name, change], dots[GRADIENT, name], step)
        return None if coefficients is None else dict(zip((change, GRADIENT), coefficients, strict=True))

    # The recursion.

    def _two_loops(self) -> Direction:
        """Nocedal and Wright's algorithm 7.4 on coefficients: of the gradient and the changes first, then of steps."""
        pairs = [_names_of(slot) for slot in self._slots]
        inner: dict[str, float] = {GRADIENT: -1.0} | {change: 0.0 for _, change in pairs}
        steps = {step: 0.0 for step, _ in pairs}
        alphas = []
        for step, change in reversed(pairs):
            along = exact_sum(c * self._dot(step, name) for name, c in inner.items())
            alphas.append(along / self._dot(step, change))
            inner[change] -= alphas[-1]
        if pairs:
            newest = pairs[-1]
            gamma = self._dot(*newest) / self._dot(*self._inner(newest[1], newest[1]))
            inner = {name: gamma * c for name, c in inner.items()}
        for (step, change), alpha in zip(pairs, reversed(alphas), strict=True):
            terms = [c * self._dot(*self._inner(change, name)) for name, c in inner.items()]
            terms += [c * self._dot(change, other) for other, c in steps.items()]
            steps[step] += alpha - exact_sum(terms) / self._dot(step, change)
        if not pairs:
            self._dot(*self._inner(GRADIENT, GRADIENT))  # No direction before there is a gradient.
        if self.has_diagonal:
            return Direction(steps, inner)
        ordered = [GRADIENT, *(name for pair in pairs for name in pair)]
        return Direction({name: (inner | steps)[name] for name in ordered})

    def _dot(self, *names: str) -> float:
        return find_product(self._dots, *product_key(names))


def _names_of(slot: int) -> tuple[str, str]:
    """Name the step and the change of a slot."""
    return f"s{slot}", f"y{slot}"
