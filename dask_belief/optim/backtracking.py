"""Backtracking along the projected path, the search of OWL-QN, as a state machine: the caller evaluates.

With an L1 penalty no point has a slope that holds beyond a zero of some parameter, so trial points are kept within the
orthant of the present point, and no slope is asked for at them (Andrew and Gao, "Scalable training of L1-regularized
log-linear models", ICML 2007). With ``v`` the pseudo-gradient at ``x``, a trial ``x(t) = project(x + t d)`` is taken
when::

    f(x(t)) <= f(x) + c1 * v.(x(t) - x)

The product on the right is what the move *promises*, less than zero for descent. While it does not hold, the step
shrinks to the minimum of the parabola through both values with the promise as slope, but to no less than a tenth and to
no more than a half of what it was::

    search = Backtracking(ProjectedSearch(), value, slope, first_step)
    while not search.done:
        search.tell(*evaluate(search.step))          # the value there, and the promise of the move
    search.best_step

Where promise and change are both below rounding, values can no longer tell a decrease, and there are no slopes to ask.
A trial whose value is lower is taken all the same, since it meets the condition. Any other ends the search at once as
`Outcome.ROUNDING`, without a step: shorter moves promise still less. So the last digits cost one pass, and a run cannot
go on for ever on steps that change nothing: each that it takes has lowered the value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dask_belief.checks import check_count, check_number
from dask_belief.errors import ArgumentError
from dask_belief.optim.line_search import Outcome


@dataclass(frozen=True)
class ProjectedSearch:
    """Options of the search along the projected path.

    Parameters
    ----------
    c1
        Share of the promised decrease that a step must bring.
    shrink_least, shrink_most
        The smallest and the largest share of a step that the next one may be.
    max_evaluations
        The search ends after so many values, one or more.
    relative_noise
        Differences of values at or below this share of the value may be rounding; as in `StrongWolfe`.

    Raises
    ------
    ArgumentError
        A number is out of its range; the message names it.
    """

    c1: float = 1e-4
    shrink_least: float = 0.1
    shrink_most: float = 0.5
    max_evaluations: int = 20
    relative_noise: float = 1e-15

    def __post_init__(self) -> None:
        if not 0 < self.c1 < 1:
            raise ArgumentError(f"c1: a number between 0 and 1 is needed, got {self.c1}; 1e-4 is usual")
        if not 0 < self.shrink_least < 1:
            raise ArgumentError(f"shrink_least: a share between 0 and 1 is needed, got {self.shrink_least}")
        if not self.shrink_least <= self.shrink_most < 1:
            raise ArgumentError(
                f"shrink_most: a share from shrink_least={self.shrink_least} to less than 1 is needed, "
                f"got {self.shrink_most}"
            )
        check_count("max_evaluations", self.max_evaluations)
        check_number("relative_noise", self.relative_noise, low=0.0)


class Backtracking:
    """One search along one projected path; to its caller the same as a `LineSearch`, but for what `tell` takes.

    Parameters
    ----------
    options
        What counts as a good step, and when to give up.
    value, slope
        Objective with its penalty, and the product of pseudo-gradient and direction, at step 0.
    first_step
        The step to try first, positive.

    Attributes
    ----------
    step : float
        The step to evaluate next; once `done`, the last one that was evaluated.
    best_step, best_value : float
        The step that was taken, and its value; step 0 and the value there if there is none.
    evaluations : int
        How many values were told.
    outcome : Outcome
        How the search ended: `DECREASE` with a step; without one any other but `WOLFE` and `STEP_LIMIT`.

    Raises
    ------
    ArgumentError
        `first_step` is not positive and finite.

    Examples
    --------
    On ``(w - 1)**2 + |w|`` from 2, where the pseudo-gradient is 3; a long step is held at zero:

    >>> search = Backtracking(ProjectedSearch(), value=3.0, slope=-9.0, first_step=1.0)
    >>> while not search.done:
    ...     w = max(2 - 3 * search.step, 0.0)
    ...     search.tell((w - 1) ** 2 + abs(w), 3 * (w - 2))
    >>> search.outcome, search.best_step, search.best_value
    (<Outcome.DECREASE: 'decrease'>, 1.0, 1.0)
    """

    def __init__(self, options: ProjectedSearch, value: float, slope: float, first_step: float = 1.0) -> None:
        if not 0 < first_step < math.inf:
            raise ArgumentError(f"first_step: a positive finite step is needed, got {first_step}; 1.0 is usual")
        self.options = options
        self.step = first_step
        self.best_step = 0.0
        self.best_value = value
        self.evaluations = 0
        self.outcome = Outcome.RUNNING
        self._start_value = value
        self._decrease_ratio = math.nan
        # What the trials were, to say why none was taken.
        self._n_finite = 0
        self._n_descents = 0
        self._all_noise = True
        # The largest change of the value where rounding alone should be left.
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
        """Whether the search has ended with a step that has sufficient decrease."""
        return self.done and self.best_step > 0

    @property
    def noise(self) -> float:
        """An estimate of the rounding in the objective.

        The largest change of the value over trials whose promise was within the noise allowed; so it may be too large
        by as much as was allowed. Where there was no such trial it is not measured, but what the options allow.
        """
        allowed = self.options.relative_noise * abs(self._start_value)
        return allowed if self._noise_seen is None else self._noise_seen

    @property
    def decrease_ratio(self) -> float:
        """The decrease at the best step over the promised one; NaN if there is none."""
        return self._decrease_ratio

    @property
    def slope_ratio(self) -> float:
        """NaN: no slope is known at a trial."""
        return math.nan

    def tell(self, value: float, promised: float) -> None:
        """Take the objective at `step`, and either end or choose the next, shorter `step`.

        Parameters
        ----------
        value
            The objective with its penalty at the projected trial point; NaN or infinite values count as too long.
        promised
            The pseudo-gradient at the start times the move to the trial point. Of zero nothing moved, which ends the
            search. More than zero is too long: what the projection held back was the descent.

        Raises
        ------
        ArgumentError
            The search is done.
        """
        if self.done:
            raise ArgumentError(f"value: the search has ended ({self.outcome.value}) and takes no more; make a new one")
        self.evaluations += 1
        if not (math.isfinite(value) and math.isfinite(promised)):
            self._shorten(self.options.shrink_least)
            return
        self._n_finite += 1
        if promised >= 0:
            self._without_descent(promised)
            return
        self._n_descents += 1
        change = value - self._start_value
        noise = self.options.relative_noise * max(abs(self._start_value), abs(value))
        is_promise_noise, is_change_noise = -promised <= noise, abs(change) <= noise
        self._all_noise = self._all_noise and is_change_noise
        if is_promise_noise:
            self._noise_seen = max(self._noise_seen or 0.0, abs(change))
        # The promise may vanish beside the value, and then an equal value would meet the condition.
        if change < 0 and value <= self._start_value + self.options.c1 * promised:
            self.best_step, self.best_value = self.step, value
            self._decrease_ratio = change / promised
            self._end(Outcome.DECREASE)
        elif is_promise_noise and is_change_noise:
            self._end(Outcome.ROUNDING)
        else:
            # The minimum of the parabola with the promise as slope.
            self._shorten(promised / (2 * (promised - change)))

    def _without_descent(self, promised: float) -> None:
        """Go back from a move that promises nothing, or end if there was no move."""
        if promised > 0:
            self._shorten(self.options.shrink_least)
        else:
            self._end(Outcome.INTERVAL_SMALL)

    def _shorten(self, share: float) -> None:
        options = self.options
        step = self.step * min(max(share, options.shrink_least), options.shrink_most)
        if self.evaluations >= options.max_evaluations:
            self._end(Outcome.MAX_EVALUATIONS)
        elif step == 0:
            self._end(Outcome.INTERVAL_SMALL)
        else:
            self.step = step

    def _end(self, outcome: Outcome) -> None:
        """End the search, and say why it has no step when it has none."""
        if self.evaluations and self.best_step == 0:
            if self._n_finite == 0:
                outcome = Outcome.NOT_FINITE
            elif self._n_descents == 0:
                outcome = Outcome.NO_DESCENT
            elif self._all_noise:
                outcome = Outcome.ROUNDING
        self.outcome = outcome
