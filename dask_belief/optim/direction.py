"""The seam between a batch method and the vectors: what a rule asks of them, and what it answers.

A rule sees no vector. It names the dot products that it needs, takes them in one round, and answers with the
coefficients of the next direction; whoever holds the vectors multiplies, adds, and evaluates::

    products(slot) ──▶ one round of dot products ──▶ update(slot, dots, step) ──▶ direction() = {"g": -1.0, "s0": 0.4}
                          (on the shards)                  (scalars only)            d = -g + 0.4 s0   (on the shards)

The vectors are known by name and stay where they were made:

- ``"g"``: the gradient at the present point; with an L1 penalty the pseudo-gradient, from which directions come there;
- ``"s{slot}"``: a step, the present point minus the one before it;
- ``"y{slot}"``: what that step changed in the gradient (of the smooth part, with an L1 penalty);
- ``"h0"``: the diagonal of a first inverse Hessian, positive in each element, in runs that have one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

from dask_belief.errors import ArgumentError

Product: TypeAlias = tuple[str, ...]
"""Names of two vectors, ``sum(a * b)``, or of three, ``sum(a * b * c)``; the order does not matter."""

GRADIENT = "g"
"""Name of the gradient at the present point."""

DIAGONAL = "h0"
"""Name of the diagonal of the first inverse Hessian."""


@dataclass(frozen=True)
class Direction:
    """A direction as coefficients of named vectors: ``d = sum(terms) + h0 * sum(scaled_terms)``, element by element.

    Parameters
    ----------
    terms
        The coefficient of each vector that enters as it is.
    scaled_terms
        The coefficient of each vector whose sum is multiplied by the diagonal ``h0``; empty in runs without one.

    Raises
    ------
    ArgumentError
        There is no term at all, or ``h0`` is among them.

    Examples
    --------
    >>> Direction({"s0": 0.4}, {"g": -1.0})        # d = 0.4 s0 - h0 * g
    Direction(terms={'s0': 0.4}, scaled_terms={'g': -1.0})
    """

    terms: Mapping[str, float]
    scaled_terms: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [*self.terms, *self.scaled_terms]
        if not names or DIAGONAL in names:
            raise ArgumentError(
                f"terms: a direction needs at least one vector other than {DIAGONAL}, got {names}; "
                "steepest descent is Direction({'g': -1.0})"
            )


@dataclass(frozen=True)
class Update:
    """What a rule made of one round of dot products.

    Parameters
    ----------
    is_kept
        Whether there was a new pair and the next direction makes use of it.
    curvature
        ``s.y / s.s`` of the new pair as it was measured: the mean second derivative along the step. NaN where there was
        no pair, or a step of length zero.
    change
        What ``y{slot}`` must become before the direction is formed, as coefficients of ``y{slot}`` and ``g`` as they
        are now; None to leave it.

    Raises
    ------
    ArgumentError
        A pair that is not kept is to be changed.
    """

    is_kept: bool
    curvature: float = math.nan
    change: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.change is not None and not self.is_kept:
            raise ArgumentError(f"change: None is needed for a pair that is not kept, got {dict(self.change)}")


@runtime_checkable
class DirectionRule(Protocol):
    """A batch method: where to go next from a point, its gradient, and what was learned on the way.

    Everything else of a run is the same for each method: evaluations, line search, penalties, reasons to stop. So a
    new method is one class in one file, named to `Sandblaster` as ``direction=``. What the caller does::

        d = rule.direction()                          # at a point, searched with rule.c2 from rule.first_step()
        slot = rule.free_slot()
        s{slot}, y{slot} = ...                        # for the trial that is taken; g is the gradient there from now on
        update = rule.update(slot, <products(slot)>, step)
        y{slot} = update.change                       # where the rule asks for it

    At the start there is no pair, and `slot` is None. When no step is found along a direction and `has_memory` is true,
    the caller calls `reset` and tries once more.

    Between two iterations the caller takes a copy of the rule (`copy.deepcopy`), to which a run that loses workers may
    go back. For a run with a checkpoint a rule has, besides, ``to_config()``, which describes what it knows by plain
    JSON, and a class method ``from_config(config)``.

    Examples
    --------
    The heavy ball method (Polak, 1964), whole:

    >>> class HeavyBall:
    ...     c2 = 0.9
    ...
    ...     def __init__(self, inertia=0.9):
    ...         self.inertia = inertia
    ...         self.reset()
    ...
    ...     has_memory = property(lambda self: "s0" in self.terms)
    ...
    ...     def reset(self):
    ...         self.terms = {"g": -1.0}
    ...
    ...     def free_slot(self):
    ...         return 0
    ...
    ...     def products(self, slot):
    ...         return [("g", "g")] if slot is None else [("g", "g"), ("g", "s0")]
    ...
    ...     def update(self, slot, dots, step=float("nan")):
    ...         self.dots = {"g": dots["g", "g"], "s0": dots.get(("g", "s0"), 0.0)}
    ...         self.reset()
    ...         if slot is not None and self.inertia / step * self.dots["s0"] < self.dots["g"]:
    ...             self.terms["s0"] = self.inertia / step       # else the ball would roll uphill
    ...         return Update(is_kept=self.has_memory)
    ...
    ...     def direction(self):
    ...         return Direction(self.terms)
    ...
    ...     def slope(self):
    ...         return sum(coefficient * self.dots[name] for name, coefficient in self.terms.items())
    ...
    ...     def first_step(self):
    ...         return self.dots["g"] ** -0.5
    >>> rule = HeavyBall()
    >>> rule.update(None, {("g", "g"): 4.0}).is_kept, rule.direction().terms, rule.slope()
    (False, {'g': -1.0}, -4.0)
    >>> rule.update(0, {("g", "g"): 1.0, ("g", "s0"): -0.5}, step=0.5).is_kept, rule.direction().terms, rule.slope()
    (True, {'g': -1.0, 's0': 1.8}, -1.9)
    """

    @property
    def c2(self) -> float:
        """The share of the slope that a line search may leave, a plain class attribute as a rule.

        0.9 for quasi-Newton methods, whose first step is good; 0.1 where a direction relies on the search before it.
        """

    @property
    def has_memory(self) -> bool:
        """Whether `reset` would change the next direction."""

    def free_slot(self) -> int:
        """Name the slot that the next pair may be written to, from zero.

        It is written while a line is searched, so none is free whose pair the direction after a failed search needs.
        """

    def products(self, slot: int | None) -> list[Product]:
        """Which dot products one round must bring, each once.

        Parameters
        ----------
        slot
            The free slot that a new pair was written to; None when there is no new pair.
        """

    def update(self, slot: int | None, dots: Mapping[Product, float], step: float = math.nan) -> Update:
        """Take one round of dot products.

        Parameters
        ----------
        slot
            As in `products`.
        dots
            What was asked for, by the names in any order.
        step
            What the line search gave for the pair of `slot`: ``s = step * d`` for the last direction ``d``, unless the
            step was projected. NaN without a pair.

        Raises
        ------
        NonFiniteError
            A product that no direction can do without is not finite. The rule is unchanged.
        """

    def direction(self) -> Direction:
        """Give the next direction; of the gradient and of pairs that are kept only."""

    def slope(self) -> float:
        """Give the product of direction and gradient, from the products; negative unless rounding has spoilt it."""

    def first_step(self) -> float:
        """Give the step to try first along the direction, positive and finite."""

    def reset(self) -> None:
        """Forget all pairs, and keep the gradient: the next direction is steepest descent."""


def product_key(names: Iterable[str]) -> Product:
    """Give one order for all orders of a product."""
    return tuple(sorted(names))


def find_product(dots: Mapping[Product, float], *names: str) -> float:
    """Look up one product by the names of its vectors, in whatever order it was brought.

    Raises
    ------
    ArgumentError
        It is missing.
    """
    if names in dots:
        return float(dots[names])
    wanted = product_key(names)
    for product, dot in dots.items():
        if product_key(product) == wanted:
            return float(dot)
    raise ArgumentError(f"dots: the product of {' and '.join(names)} is missing; bring all that products() names")


def curvature_of(step_squared: float, step_by_change: float) -> float:
    """Give ``s.y / s.s``; NaN for a step of length zero."""
    return step_by_change / step_squared if step_squared > 0 else math.nan


def exact_sum(terms: Iterable[float]) -> float:
    """Add scalars without rounding in between, so that no order of terms matters; NaN where they overflow."""
    try:
        return math.fsum(terms)
    except (OverflowError, ValueError):
        return math.nan
