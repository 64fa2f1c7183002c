"""How a search goes from the present point, in commands to the shards: along a line, or within an orthant.

The main loop is the same for both. What differs is what "steepest" means, how a trial point is made, and what the
search is told about it::

                    smooth (L2 or no penalty)            orthant-wise (L1; Andrew and Gao, ICML 2007)
    steepest        the gradient g                       the pseudo-gradient v
    direction       d, as the rule combines it           d, where x = 0 without what does not go down along v
    trial           x + t d                              x + t d, held within the orthant of x and -v
    search          strong Wolfe, told the slope         backtracking, told v . (trial - x)
"""

from __future__ import annotations

from typing import Protocol

from dask_belief.optim.backtracking import Backtracking, ProjectedSearch
from dask_belief.optim.direction import Direction
from dask_belief.optim.line_search import LineSearch, Outcome, StrongWolfe
from dask_belief.parameter_server.messages import (
    Align,
    Combine,
    Dot,
    Multiply,
    ProjectedStep,
    PseudoGradient,
    Swap,
)
from dask_belief.sandblaster.round import Round

POINT, TRIAL = "x", "trial"
GRADIENT, TRIAL_GRADIENT = "g", "trial_g"
PSEUDO_GRADIENT, TRIAL_PSEUDO_GRADIENT = "v", "trial_v"
DIRECTION, MOVE, DIAGONAL = "d", "move", "h0"

SLOPE = "slope"
"""The answer that tells a search about its trial."""


class Search(Protocol):
    """A search for a step, as a state machine; `LineSearch` and `Backtracking` are two."""

    step: float
    best_step: float
    best_value: float
    evaluations: int
    outcome: Outcome

    @property
    def done(self) -> bool:
        """Whether no value is awaited any more."""

    @property
    def succeeded(self) -> bool:
        """Whether a step was found."""

    @property
    def noise(self) -> float:
        """An estimate of the rounding in the objective."""

    @property
    def decrease_ratio(self) -> float:
        """What the objective fell by at the best step, over what was promised."""

    @property
    def slope_ratio(self) -> float:
        """What is left of the slope at the best step."""

    def tell(self, value: float, slope: float) -> None:
        """Take the objective at `step`, and its slope or the promised change."""


class Steps(Protocol):
    """The way of stepping of one run."""

    steepest: str
    """The vector against which descent is steepest, at the present point."""
    trial_steepest: str
    """The same at the trial point."""
    tries_again_after_rounding: bool
    """Whether steepest descent may gain something where a search along another direction ended by rounding."""

    def at_start(self, to_shards: Round) -> None:
        """Make `steepest` from the gradient of the first point."""

    def aim(self, to_shards: Round, direction: Direction) -> None:
        """Make the direction, and ask for its `SLOPE`."""

    def move(self, to_shards: Round, step: float) -> None:
        """Make the trial point."""

    def measure(self, to_shards: Round) -> None:
        """Make `trial_steepest` from the trial's gradient, and ask for what the search is told, under `SLOPE`."""

    def accept(self, to_shards: Round) -> None:
        """Let the present point be the trial, with all that belongs to it."""

    def first_step(self, proposed: float) -> float:
        """The first step of a search, where the rule proposes one."""

    def search(self, value: float, slope: float, first_step: float) -> Search:
        """Begin a search along the direction."""


class Smooth:
    """Steps along a line.

    Parameters
    ----------
    options
        Of the line search.
    """

    steepest = GRADIENT
    trial_steepest = TRIAL_GRADIENT
    tries_again_after_rounding = True

    def __init__(self, options: StrongWolfe) -> None:
        self._options = options

    def at_start(self, to_shards: Round) -> None:
        """Nothing is to be made: the gradient is there."""

    def aim(self, to_shards: Round, direction: Direction) -> None:
        """Combine the direction."""
        combine_direction(to_shards, direction, GRADIENT)
        to_shards.ask(SLOPE, Dot(((DIRECTION, GRADIENT),)))

    def move(self, to_shards: Round, step: float) -> None:
        """``trial = x + step d``."""
        to_shards.do(Combine(TRIAL, ((1.0, POINT), (step, DIRECTION))))

    def measure(self, to_shards: Round) -> None:
        """Ask for the slope at the trial."""
        to_shards.ask(SLOPE, Dot(((TRIAL_GRADIENT, DIRECTION),)))

    def accept(self, to_shards: Round) -> None:
        """Exchange the names; no number is moved."""
        to_shards.do(Swap(POINT, TRIAL), Swap(GRADIENT, TRIAL_GRADIENT))

    def first_step(self, proposed: float) -> float:
        """Keep to the largest step allowed."""
        return min(proposed, self._options.max_step)

    def search(self, value: float, slope: float, first_step: float) -> Search:
        """Search for a step that meets the strong Wolfe conditions."""
        return LineSearch(self._options, value, slope, first_step)


class OrthantWise:
    """Steps of OWL-QN, for an objective with ``l1 * ||w||_1``.

    Parameters
    ----------
    options
        Of the search.
    l1
        Weight of the penalty, more than zero.
    """

    steepest = PSEUDO_GRADIENT
    trial_steepest = TRIAL_PSEUDO_GRADIENT
    tries_again_after_rounding = False

    def __init__(self, options: ProjectedSearch, l1: float) -> None:
        self._options = options
        self._l1 = l1

    def at_start(self, to_shards: Round) -> None:
        """Make the pseudo-gradient."""
        to_shards.do(PseudoGradient(PSEUDO_GRADIENT, POINT, GRADIENT, self._l1))

    def aim(self, to_shards: Round, direction: Direction) -> None:
        """Combine the direction; of parameters at zero, leave out what does not go down along the pseudo-gradient."""
        combine_direction(to_shards, direction, PSEUDO_GRADIENT)
        to_shards.do(Align(DIRECTION, PSEUDO_GRADIENT, POINT))
        to_shards.ask(SLOPE, Dot(((DIRECTION, PSEUDO_GRADIENT),)))

    def move(self, to_shards: Round, step: float) -> None:
        """Step, and hold what would leave the orthant at zero."""
        to_shards.do(ProjectedStep(TRIAL, POINT, DIRECTION, PSEUDO_GRADIENT, step))

    def measure(self, to_shards: Round) -> None:
        """Make the pseudo-gradient at the trial, and ask for what the move to it promised."""
        to_shards.do(
            PseudoGradient(TRIAL_PSEUDO_GRADIENT, TRIAL, TRIAL_GRADIENT, self._l1),
            Combine(MOVE, ((1.0, TRIAL), (-1.0, POINT))),
        )
        to_shards.ask(SLOPE, Dot(((PSEUDO_GRADIENT, MOVE),)))

    def accept(self, to_shards: Round) -> None:
        """Exchange the names; no number is moved."""
        to_shards.do(Swap(POINT, TRIAL), Swap(GRADIENT, TRIAL_GRADIENT), Swap(PSEUDO_GRADIENT, TRIAL_PSEUDO_GRADIENT))

    def first_step(self, proposed: float) -> float:
        """What the rule proposes."""
        return proposed

    def search(self, value: float, slope: float, first_step: float) -> Search:
        """Search along the projected path."""
        return Backtracking(self._options, value, slope, first_step)


def combine_direction(to_shards: Round, direction: Direction, steepest: str) -> None:
    """Make the direction from a rule's coefficients, in which the steepest vector goes by the name of the gradient."""

    def terms(coefficients: dict[str, float]) -> tuple[tuple[float, str], ...]:
        return tuple((value, steepest if name == GRADIENT else name) for name, value in coefficients.items())

    if not direction.scaled_terms:
        to_shards.do(Combine(DIRECTION, terms(dict(direction.terms))))
        return
    to_shards.do(
        Combine(DIRECTION, terms(dict(direction.scaled_terms))),
        Multiply(DIRECTION, DIRECTION, DIAGONAL),
        Combine(DIRECTION, ((1.0, DIRECTION), *terms(dict(direction.terms)))),
    )
