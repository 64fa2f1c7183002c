"""A line search for the strong Wolfe conditions, as a state machine: the caller evaluates, since that is a pass.

Along a direction of descent from a point with value ``f(0)`` and slope ``f'(0) < 0``, a step ``t`` is sought with::

    f(t) <= f(0) + c1 * t * f'(0)      sufficient decrease
    |f'(t)| <= c2 * |f'(0)|            the slope has flattened, so that s.y > 0 for L-BFGS

by the algorithm of Moré and Thuente ("Line search algorithms with guaranteed sufficient decrease", ACM TOMS 20, 1994;
numbers of sections and equations below are theirs). It keeps ``low``, the best step so far, and ``far``, the other end
of an interval that holds an acceptable step once one is known (``bracketed``)::

    search = LineSearch(StrongWolfe(), value, slope, first_step)
    while not search.done:
        search.tell(*evaluate(search.step))
    search.best_step

Two things are added to the paper. A value or slope that is not finite puts up a wall that no later step may reach. And
where a difference of values drowns in rounding, the slopes tell the change instead (the approximate Wolfe conditions of
Hager and Zhang, SIAM J. Optim. 16, 2005), so the last digits of a run do not cost twenty passes over the data.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, replace

from dask_belief.checks import check_count, check_number
from dask_belief.errors import ArgumentError
from dask_belief.optim.step_choice import Trial, choose_step

# How far a step without a bracket may go beyond the last one, in multiples of the last move (section 4).
_LEAST_GROWTH, _MOST_GROWTH = 1.1, 4.0
# The interval must shrink by this factor in two trials, or it is halved (section 4).
_SHRINKAGE = 0.66


class Outcome(enum.Enum):
    """How a line search ended, or that it has not."""

    RUNNING = "running"
    """A value is awaited for `LineSearch.step`."""
    WOLFE = "wolfe"
    """Both conditions hold at the best step."""
    DECREASE = "decrease"
    """The best step has sufficient decrease, in a search that asks for no more (`Backtracking`)."""
    INTERVAL_SMALL = "interval_small"
    """The interval is too short to be worth another evaluation; the best step has sufficient decrease, or is 0."""
    STEP_LIMIT = "step_limit"
    """The largest step allowed still has sufficient decrease and goes down: the loss may have no lower bound."""
    MAX_EVALUATIONS = "max_evaluations"
    """The evaluations are used up; the best step has sufficient decrease, or is 0."""
    ROUNDING = "rounding"
    """No decrease was found, and no value differed from the first by more than noise."""
    NOT_FINITE = "not_finite"
    """The value or slope at the start, or at every step tried, was not finite."""
    NO_DESCENT = "no_descent"
    """The slope at the start is not negative; there is no step to try."""


@dataclass(frozen=True)
class StrongWolfe:
    """Options of the line search.

    Parameters
    ----------
    c1
        Share of the decrease that the slope promises which a step must bring.
    c2
        Share of the slope that may be left. Larger than `c1`; 0.9 suits L-BFGS, whose steps are well scaled, and 0.1
        conjugate gradients (`DirectionRule.c2`).
    max_evaluations
        The search ends after so many values, one or more.
    interval_tolerance
        The search ends when the interval is shorter than this share of its upper end.
    max_step
        The largest step tried.
    relative_noise
        Differences of values at or below this share of the value may be rounding. The default suits float64. Where
        parameters or losses of rows are float32, 1e-7 (its unit of rounding): on softmax regression in float32, 1e-8
        finds no more step at a gradient of 1e-6; 1e-7 goes on to 1e-9, with 1.1 evaluations an iteration.

    Raises
    ------
    ArgumentError
        A number is out of its range; the message names it.
    """

    c1: float = 1e-4
    c2: float = 0.9
    max_evaluations: int = 20
    interval_tolerance: float = 0.1
    max_step: float = 1e10
    relative_noise: float = 1e-15

    def __post_init__(self) -> None:
        if not 0 < self.c1 < 0.5:
            raise ArgumentError(f"c1: a number between 0 and 0.5 is needed, got {self.c1}; 1e-4 is usual")
        if not self.c1 < self.c2 < 1:
            raise ArgumentError(f"c2: a number between c1={self.c1} and 1 is needed, got {self.c2}; 0.9 is usual")
        check_count("max_evaluations", self.max_evaluations)
        check_number("interval_tolerance", self.interval_tolerance, low=0.0)
        check_number("max_step", self.max_step, low=0.0, is_open=True)
        check_number("relative_noise", self.relative_noise, low=0.0)


class LineSearch:
    """One search along one direction.

    Parameters
    ----------
    options
        What counts as a good step, and when to give up.
    value, slope
        Objective, and its derivative along the direction, at step 0.
    first_step
        The step to try first, positive; cut to ``options.max_step``.

    Attributes
    ----------
    step : float
        The step to evaluate next; once `done`, the last one that was evaluated. When it differs from `best_step`, the
        gradient that the caller holds is not the one at the best step.
    best_step, best_value : float
        The lowest value that has sufficient decrease, and its step; step 0 and the value there if there is none.
    evaluations : int
        How many values were told.
    outcome : Outcome
        How the search ended, `Outcome.RUNNING` while it has not.

    Raises
    ------
    ArgumentError
        `first_step` is not positive and finite.

    Examples
    --------
    >>> search = LineSearch(StrongWolfe(), value=1.0, slope=-2.0, first_step=0.1)   # f(t) = (t - 1)**2
    >>> while not search.done:
    ...     search.tell((search.step - 1) ** 2, 2 * (search.step - 1))
    >>> search.outcome, search.evaluations
    (<Outcome.WOLFE: 'wolfe'>, 1)
    """

    def __init__(self, options: StrongWolfe, value: float, slope: float, first_step: float = 1.0) -> None:
        if not 0 < first_step < math.inf:
            raise ArgumentError(f"first_step: a positive finite step is needed, got {first_step}; 1.0 is usual")
        self.options = options
        self.step = min(first_step, options.max_step)
        self.best_step = 0.0
        self.best_value = value
        self.evaluations = 0
        self.outcome = Outcome.RUNNING
        # The interval of section 2, and the window (smallest, largest) that the next step must keep to.
        self._start = Trial(0.0, value, slope)
        self._low = self._start
        self._far = self._start
        self._bracketed = False
        self._window = (0.0, self.step + _MOST_GROWTH * self.step)
        # Lengths of the interval one and two trials ago.
        self._widths = (options.max_step, 2 * options.max_step)
        # Stage 1 works on the auxiliary function of equation (2.1) until a step has met the conditions (3.1).
        self._is_first_stage = True
        # The nearest step that was not finite; no step may reach it.
        self._wall: float | None = None
        self._best_slope = math.nan
        self._n_finite = 0
        # Whether no value differed from the first by more than noise, and the most that rounding has been seen to do.
        self._all_noise = True
        self._noise_seen: float | None = None
        if not (math.isfinite(value) and math.isfinite(slope)):
            self._end(Outcome.NOT_FINITE)
        elif slope >= 0:
            self._end(Outcome.NO_DESCENT)
        if self.done:
            self.step = 0.0

    @property
    def done(self) -> bool:
        """Whether the search has ended, and awaits no value."""
        return self.outcome is not Outcome.RUNNING

    @property
    def succeeded(self) -> bool:
        """Whether the search has ended with a step that has sufficient decrease, be it a Wolfe step or not."""
        return self.done and self.best_step > 0

    @property
    def noise(self) -> float:
        """An estimate of the rounding in the objective, from what this search has seen.

        Along a step so short that the promised change ``t |f'(0)|`` is within the noise allowed, the change should be
        that of the trapezoid rule, ``t (f'(0) + f'(t)) / 2``. The estimate is the largest difference from it. A few
        samples of rounding, and mostly one: good for the order of magnitude. Slopes that do not belong to the values
        count as noise in it, too. Where no step was so short it is not measured, but what the options allow.
        """
        allowed = self.options.relative_noise * abs(self._start.value)
        return allowed if self._noise_seen is None else self._noise_seen

    @property
    def decrease_ratio(self) -> float:
        """The decrease at the best step over the promised one, ``t |f'(0)|``; NaN if there is no step.

        At least `c1`, unless slopes stood in for values that are the same but for rounding.
        """
        if self.best_step == 0:
            return math.nan
        return (self.best_value - self._start.value) / (self.best_step * self._start.slope)

    @property
    def slope_ratio(self) -> float:
        """What is left of the slope at the best step, ``|f'(t)| / |f'(0)|``; NaN if there is no step."""
        return abs(self._best_slope / self._start.slope) if self.best_step > 0 else math.nan

    def tell(self, value: float, slope: float) -> None:
        """Take the objective and its slope at `step`, and either end or choose the next `step`.

        A value or slope that is NaN or infinite counts as an evaluation; later steps keep this side of it.

        Raises
        ------
        ArgumentError
            The search is done.
        """
        if self.done:
            raise ArgumentError(f"value: the search has ended ({self.outcome.value}) and takes no more; make a new one")
        self.evaluations += 1
        if not (math.isfinite(value) and math.isfinite(slope)):
            self._hit_wall()
            return
        self._n_finite += 1
        trial = self._denoise(Trial(self.step, value, slope))
        outcome = self._judge(trial)
        # A Wolfe step is the result even when an earlier one, too steep to end at, has a lower value. Where the slopes
        # stand in for the values, nothing less will do: a wrong gradient would vouch for itself.
        is_better = self._has_decrease(trial) and value < self.best_value and trial.value == value
        if outcome is Outcome.WOLFE or is_better:
            self.best_step, self.best_value, self._best_slope = trial.step, value, slope
        if outcome is not Outcome.RUNNING:
            self._end(outcome)
            return
        self._refine(trial)

    def _has_decrease(self, trial: Trial) -> bool:
        return trial.value <= self._start.value + self.options.c1 * trial.step * self._start.slope

    def _denoise(self, trial: Trial) -> Trial:
        """Replace a value that differs from the first by noise alone by what the slopes say (trapezoid rule).

        For a parabola, sufficient decrease of the replaced value is Hager and Zhang's condition (4.1) on the slope.
        """
        noise = self.options.relative_noise * max(abs(self._start.value), abs(trial.value))
        is_noise = abs(trial.value - self._start.value) <= noise
        self._all_noise = self._all_noise and is_noise
        if trial.step * abs(self._start.slope) > noise:
            return trial
        change = trial.step * (self._start.slope + trial.slope) / 2
        self._noise_seen = max(self._noise_seen or 0.0, abs(trial.value - self._start.value - change))
        return replace(trial, value=self._start.value + change) if is_noise else trial

    def _judge(self, trial: Trial) -> Outcome:
        """Whether this trial ends the search."""
        options, start = self.options, self._start
        if self._has_decrease(trial) and abs(trial.slope) <= options.c2 * -start.slope:
            return Outcome.WOLFE
        if trial.step == options.max_step and self._has_decrease(trial) and trial.slope <= options.c1 * start.slope:
            return Outcome.STEP_LIMIT
        if self.evaluations >= options.max_evaluations:
            return Outcome.MAX_EVALUATIONS
        return Outcome.RUNNING

    def _refine(self, trial: Trial) -> None:
        """Narrow the interval by the trial and choose the next step (section 2, then section 4)."""
        self._is_first_stage = self._is_first_stage and not (self._has_decrease(trial) and trial.slope >= 0)
        # Stage 1: the auxiliary function is used while the trial is lower than `low` and lacks sufficient decrease.
        use_auxiliary = self._is_first_stage and trial.value <= self._low.value and not self._has_decrease(trial)
        tilt = self.options.c1 * self._start.slope if use_auxiliary else 0.0
        low, far = self._low.tilted(tilt), self._far.tilted(tilt)
        choice = choose_step(low, far, trial.tilted(tilt), self._bracketed, self._window)
        self._low, self._far = choice.low.tilted(-tilt), choice.far.tilted(-tilt)
        self._bracketed = choice.bracketed
        self._propose(self._halved_if_slow(choice.step) if self._bracketed else choice.step, trial)

    def _halved_if_slow(self, step: float) -> float:
        """Halve the interval when two trials have not shrunk it enough."""
        length = abs(self._far.step - self._low.step)
        if length >= _SHRINKAGE * self._widths[1]:
            step = self._low.step + 0.5 * (self._far.step - self._low.step)
        self._widths = (length, self._widths[0])
        return step

    def _propose(self, step: float, trial: Trial) -> None:
        """Set the window for the next step, and the next step within it, or end where there is no room left."""
        low, far = self._low.step, self._far.step
        if self._bracketed:
            self._window = (min(low, far), max(low, far))
        else:
            self._window = (step + _LEAST_GROWTH * (step - low), step + _MOST_GROWTH * (step - low))
        smallest, largest = self._window
        step = self._before_wall(min(step, self.options.max_step))
        is_short = self._bracketed and largest - smallest <= self.options.interval_tolerance * largest
        no_room = step in (trial.step, low) or (self._bracketed and not smallest < step < largest)
        if is_short or no_room:
            self._end(Outcome.INTERVAL_SMALL)
        else:
            self.step = step

    def _before_wall(self, step: float) -> float:
        """Keep a step on this side of the nearest one that was not finite."""
        if self._wall is None:
            return step
        low = self._low.step
        return low + 0.5 * (self._wall - low) if (self._wall - low) * (step - self._wall) >= 0 else step

    def _hit_wall(self) -> None:
        """Remember a step that is not finite, and retreat: to a tenth when nothing finite is known, else half way."""
        self._wall = self.step
        if self.evaluations >= self.options.max_evaluations:
            self._end(Outcome.MAX_EVALUATIONS)
            return
        low = self._low.step
        self.step = low + (self.step - low) * (0.5 if low > 0 else 0.1)
        if self.step in (low, self._wall):
            self._end(Outcome.INTERVAL_SMALL)

    def _end(self, outcome: Outcome) -> None:
        """End the search, and say why it has no step when it has none."""
        if self.evaluations and self.best_step == 0:
            if self._n_finite == 0:
                outcome = Outcome.NOT_FINITE
            elif self._all_noise:
                outcome = Outcome.ROUNDING
        self.outcome = outcome
