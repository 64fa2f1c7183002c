"""Where to look next along a line, from values and slopes at two or three steps.

This is section 4 of Moré and Thuente, "Line search algorithms with guaranteed sufficient decrease" (ACM TOMS 20,
1994). Four cases tell how far the interpolating cubic can be trusted::

    1  the trial is higher than low               a minimum lies between; the cubic's, or half way to the parabola's
    2  lower, and the slope has changed its sign   a minimum lies between; the cubic's or the secant's
    3  lower, same sign, and flatter              the minimum lies ahead; the cubic may have none, the secant has
    4  lower, same sign, and as steep             nothing is known of what lies ahead: go far
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

# Within a bracket, case 3 goes at most this share of the way to the other end (section 4, delta).
_LARGEST_SHARE = 0.66


@dataclass(frozen=True)
class Trial:
    """Value and slope at one step along the line."""

    step: float
    value: float
    slope: float

    def tilted(self, slope: float) -> Trial:
        """Give the same step on the function less a line of that slope; with ``c1 * f'(0)`` it is equation (2.1)."""
        return Trial(self.step, self.value - slope * self.step, self.slope - slope)


class Choice(NamedTuple):
    """The next step, and the interval that it was chosen from."""

    step: float
    low: Trial
    """The end with the lower value, whose slope points to `far`."""
    far: Trial
    """The other end; without a bracket, one that was left behind."""
    bracketed: bool
    """Whether a minimum lies between the two."""


def choose_step(low: Trial, far: Trial, trial: Trial, bracketed: bool, window: tuple[float, float]) -> Choice:
    """Update the interval by a trial, and choose the next step by safeguarded cubic interpolation.

    Parameters
    ----------
    low, far
        The interval so far. `low` has the lowest value of all and a slope that goes down towards `trial`.
    trial
        The step that was just evaluated; not that of `low`.
    bracketed
        Whether a minimum is known to lie between `low` and `far`; then `trial` lies between them too.
    window
        The smallest and the largest step that may be chosen where there is no bracket.

    Returns
    -------
    Choice
        The step is finite, and within the window or the bracket.
    """
    smallest, largest = window
    falls_on = (trial.slope < 0) == (low.slope < 0)
    if trial.value > low.value:
        step = _below_higher(low, trial)
        return Choice(step, low, trial, True)
    if not falls_on:
        step = _between_slopes(low, trial)
        return Choice(step, trial, low, True)
    if abs(trial.slope) < abs(low.slope):
        step = _ahead_of_flatter(low, far, trial, bracketed, window)
    elif bracketed:
        step = _clipped(_cubic(trial, far, (trial.step + far.step) / 2), trial.step, far.step)
    else:
        step = largest if trial.step > low.step else smallest
    return Choice(step, trial, far, bracketed)


def _below_higher(low: Trial, trial: Trial) -> float:
    """Case 1: take the cubic's minimum when it is the nearer to `low`, else the mean of both."""
    length = trial.step - low.step
    parabola = low.step + length * 0.5 * low.slope / ((low.value - trial.value) / length + low.slope)
    if parabola == low.step:
        # The trial is so high that nothing is left of the parabola: it tells only that the step was much too long.
        return low.step + 0.1 * length
    cubic = _cubic(low, trial, parabola)
    if abs(cubic - low.step) < abs(parabola - low.step):
        return cubic
    return cubic + 0.5 * (parabola - cubic)


def _between_slopes(low: Trial, trial: Trial) -> float:
    """Case 2: the one of cubic and secant that is farther from the trial."""
    secant = _secant(low, trial)
    cubic = _cubic(trial, low, secant)
    return cubic if abs(cubic - trial.step) > abs(secant - trial.step) else secant


def _ahead_of_flatter(low: Trial, far: Trial, trial: Trial, bracketed: bool, window: tuple[float, float]) -> float:
    """Case 3: the nearer of cubic and secant within a bracket, where caution pays, and the farther one without."""
    smallest, largest = window
    secant = _secant(low, trial)
    ahead = largest if trial.step > low.step else smallest
    cubic = _cubic(trial, low, ahead)
    if (cubic - trial.step) * (trial.step - low.step) <= 0:
        # The cubic goes down without end in this direction, or its minimum lies behind the trial.
        cubic = ahead
    is_cubic_nearer = abs(cubic - trial.step) < abs(secant - trial.step)
    if not bracketed:
        return min(max(secant if is_cubic_nearer else cubic, smallest), largest)
    return _clipped(
        cubic if is_cubic_nearer else secant, trial.step, trial.step + _LARGEST_SHARE * (far.step - trial.step)
    )


def _secant(low: Trial, trial: Trial) -> float:
    """Where the line through both slopes is zero."""
    return trial.step + trial.slope / (trial.slope - low.slope) * (low.step - trial.step)


def _cubic(start: Trial, end: Trial, otherwise: float) -> float:
    """Minimise the cubic through both values and slopes, reckoned from `start`; `otherwise` if it has no minimum."""
    length = end.step - start.step
    theta = 3 * (start.value - end.value) / length + start.slope + end.slope
    scale = max(abs(theta), abs(start.slope), abs(end.slope))
    if not 0 < scale < math.inf:
        return otherwise
    discriminant = (theta / scale) ** 2 - (start.slope / scale) * (end.slope / scale)
    if discriminant <= 0:
        return otherwise
    root = math.copysign(scale * math.sqrt(discriminant), length)
    denominator = 2 * root - start.slope + end.slope
    if denominator == 0:
        return otherwise
    step = start.step + (root - start.slope + theta) / denominator * length
    return step if math.isfinite(step) else otherwise


def _clipped(step: float, near: float, limit: float) -> float:
    """Keep a step between `near` and `limit`, whichever is the larger."""
    return min(max(step, min(near, limit)), max(near, limit))
