"""Why a run ends: a closed set of reasons, each with its numbers and with advice."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypedDict

from dask_belief.checks import check_count, check_number
from dask_belief.errors import ArgumentError


class StopReason(enum.StrEnum):
    """Everything that can end a run."""

    GRADIENT_SMALL = "gradient_small"
    DECREASE_SMALL = "decrease_small"
    MAX_ITERATIONS = "max_iterations"
    MAX_SECONDS = "max_seconds"
    MAX_EVALUATIONS = "max_evaluations"
    LINE_SEARCH_ROUNDING = "line_search_rounding"
    LINE_SEARCH_FAILED = "line_search_failed"
    NOT_FINITE = "not_finite"
    NO_DESCENT = "no_descent"
    EPOCHS_DONE = "epochs_done"
    NO_IMPROVEMENT = "no_improvement"
    CALLBACK = "callback"
    INTERRUPTED = "interrupted"


_CONVERGED = frozenset({StopReason.GRADIENT_SMALL, StopReason.DECREASE_SMALL, StopReason.LINE_SEARCH_ROUNDING})

_MEANING: Mapping[StopReason, str] = {
    StopReason.GRADIENT_SMALL: "converged: no entry of the gradient is larger than gtol",
    StopReason.DECREASE_SMALL: "converged: the last iteration lowered the loss by no more than ftol of it",
    StopReason.MAX_ITERATIONS: "the iterations allowed are used up",
    StopReason.MAX_SECONDS: "the time allowed is used up",
    StopReason.MAX_EVALUATIONS: "the evaluations allowed are used up",
    StopReason.LINE_SEARCH_ROUNDING: "converged: what the loss could still lose is below rounding",
    StopReason.LINE_SEARCH_FAILED: "the line search found no lower loss along the direction",
    StopReason.NOT_FINITE: "the loss or its gradient is NaN or infinite wherever it was tried",
    StopReason.NO_DESCENT: "not even steepest descent goes down",
    StopReason.EPOCHS_DONE: "all epochs are done",
    StopReason.NO_IMPROVEMENT: "the validation loss fell no more for as many validations as patience allows",
    StopReason.CALLBACK: "a callback asked to stop",
    StopReason.INTERRUPTED: "the run was interrupted",
}

_ADVICE: Mapping[StopReason, str] = {
    StopReason.GRADIENT_SMALL: "Nothing to do; for a closer answer lower gtol.",
    StopReason.DECREASE_SMALL: "Nothing to do; for a closer answer lower ftol.",
    StopReason.MAX_ITERATIONS: "If the loss was still falling, go on with initial=result.",
    StopReason.MAX_SECONDS: "If the loss was still falling, go on with initial=result.",
    StopReason.MAX_EVALUATIONS: "If the loss was still falling, go on with initial=result.",
    StopReason.LINE_SEARCH_ROUNDING: "Nothing to do in this dtype; in float32, a closer answer takes dtype='float64'.",
    StopReason.LINE_SEARCH_FAILED: "Compare the objective's gradient with finite differences; if it is right, use "
    "dtype='float64' or scale the inputs to a similar range.",
    StopReason.NOT_FINITE: "Look for huge values in {place}, scale the inputs, or start from smaller parameters or a "
    "smaller rate.",
    StopReason.NO_DESCENT: "The gradient is zero, not finite or wrong: compare it with finite differences.",
    StopReason.EPOCHS_DONE: "If the validation loss was still falling, allow more epochs.",
    StopReason.NO_IMPROVEMENT: "The best point by validation is in the result; if the loss was only noisy, allow more "
    "patience, or try a smaller rate.",
    StopReason.CALLBACK: "Nothing to do, unless the callback asked too early.",
    StopReason.INTERRUPTED: "The best point found is in the result; go on with initial=result.",
}


class StopConfig(TypedDict):
    """A `Stop` as plain JSON."""

    reason: str
    numbers: dict[str, float | str]


@dataclass(frozen=True)
class Stop:
    """Why a run ended.

    Parameters
    ----------
    reason
        One of the closed set.
    numbers
        The figures that led to it, by the names of the options and events that they belong to. With `NOT_FINITE`, a
        ``unit`` and its ``first_row`` and ``last_row`` say where it arose; with `LINE_SEARCH_ROUNDING`, ``noise`` is an
        estimate of the rounding in the loss.

    Examples
    --------
    >>> print(Stop(StopReason.GRADIENT_SMALL, {"gradient_norm": 3.2e-6, "gtol": 1e-5}))
    converged: no entry of the gradient is larger than gtol (gradient_norm=3.2e-06, gtol=1e-05)
    """

    reason: StopReason
    numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def advice(self) -> str:
        """What to do about it, in one sentence; names the unit and its rows where numbers that are not finite arose."""
        place = "the data"
        if {"unit", "first_row", "last_row"} <= self.numbers.keys():
            unit, first, last = (f"{self.numbers[name]:.0f}" for name in ("unit", "first_row", "last_row"))
            place = f"rows {first} to {last} (unit {unit})"
        return _ADVICE[self.reason].format(place=place)

    @property
    def converged(self) -> bool:
        """Whether the run ended because the answer is as good as was asked for, or as the arithmetic allows."""
        return self.reason in _CONVERGED

    def __str__(self) -> str:
        """One line: the reason, then the numbers."""
        numbers = ", ".join(f"{name}={_written(number)}" for name, number in self.numbers.items())
        return f"{_MEANING[self.reason]} ({numbers})" if numbers else _MEANING[self.reason]

    def to_config(self) -> StopConfig:
        """Describe it by plain JSON."""
        numbers = {name: number_to_json(number) for name, number in self.numbers.items()}
        return {"reason": self.reason.value, "numbers": numbers}

    @classmethod
    def from_config(cls, config: StopConfig) -> Stop:
        """Rebuild it from `to_config`.

        Raises
        ------
        ArgumentError
            The reason is not one of the closed set.
        """
        try:
            reason = StopReason(config["reason"])
        except ValueError:
            known = ", ".join(each.value for each in StopReason)
            raise ArgumentError(f"reason: one of {known} is needed, got {config['reason']!r}") from None
        return cls(reason, {name: number_from_json(number) for name, number in config["numbers"].items()})


@dataclass(frozen=True)
class Criteria:
    """When an iterative method has done enough; None means no limit.

    Parameters
    ----------
    gtol
        Stop when no entry of the gradient is larger than this in absolute value.
    ftol
        Stop when an iteration lowers the loss by no more than this share of ``max(|before|, |after|, 1)``.
    max_iter
        Stop after so many iterations.
    max_evaluations
        Stop after so many passes over the data; an iteration is not broken off, so a few more may be made.
    max_seconds
        Stop when the run has lasted so long; looked at after each iteration.

    Raises
    ------
    ArgumentError
        A number is negative or not finite, or a count not whole; the message names it.
    """

    gtol: float = 1e-5
    ftol: float = 1e-9
    max_iter: int | None = 100
    max_evaluations: int | None = None
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        check_number("gtol", self.gtol, low=0.0)
        check_number("ftol", self.ftol, low=0.0)
        check_count("max_iter", self.max_iter, low=0, may_be_none=True)
        check_count("max_evaluations", self.max_evaluations, low=0, may_be_none=True)
        check_number("max_seconds", self.max_seconds, low=0.0, may_be_none=True)


def check_iteration(
    criteria: Criteria,
    *,
    iteration: int,
    evaluations: int,
    seconds: float,
    loss: float,
    previous_loss: float | None,
    gradient_norm: float,
) -> Stop | None:
    """Decide after an iteration whether to stop, from facts alone.

    Parameters
    ----------
    criteria
        The limits.
    iteration, evaluations, seconds
        What the run has used so far: iterations done, passes over the data, time since its start.
    loss, previous_loss
        The objective now and one iteration ago; None before the first iteration.
    gradient_norm
        The largest absolute entry of the gradient now.

    Returns
    -------
    Stop or None
        The first reason that holds, in the order: not finite, gradient, decrease, iterations, evaluations, seconds.
        The good reasons come before the limits, so that a run which converges at its last iteration says so.
    """
    if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
        numbers = {"loss": loss, "gradient_norm": gradient_norm, "iteration": iteration}
        return Stop(StopReason.NOT_FINITE, numbers)
    if gradient_norm <= criteria.gtol:
        return Stop(StopReason.GRADIENT_SMALL, {"gradient_norm": gradient_norm, "gtol": criteria.gtol})
    if previous_loss is not None:
        decrease = (previous_loss - loss) / max(abs(previous_loss), abs(loss), 1.0)
        if decrease <= criteria.ftol:
            return Stop(StopReason.DECREASE_SMALL, {"relative_decrease": decrease, "ftol": criteria.ftol})
    limits: tuple[tuple[StopReason, str, float, str, float | None], ...] = (
        (StopReason.MAX_ITERATIONS, "iteration", iteration, "max_iter", criteria.max_iter),
        (StopReason.MAX_EVALUATIONS, "evaluations", evaluations, "max_evaluations", criteria.max_evaluations),
        (StopReason.MAX_SECONDS, "seconds", seconds, "max_seconds", criteria.max_seconds),
    )
    for reason, name, used, option, limit in limits:
        if limit is not None and used >= limit:
            return Stop(reason, {name: used, option: limit, "gradient_norm": gradient_norm})
    return None


def _written(number: float) -> str:
    """Six digits, but whole numbers whole: a row is found by all of its digits."""
    return f"{number:.0f}" if float(number).is_integer() and abs(number) < 1e15 else f"{number:.6g}"


def number_to_json(number: float) -> float | str:
    """Write a number as strict JSON, which knows neither NaN nor infinity: they become words, as in Zarr's metadata."""
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def number_from_json(number: float | str) -> float:
    """Read what `number_to_json` wrote; raises `TypeError` or `ValueError` for what is no number."""
    if not isinstance(number, str | int | float):
        raise TypeError(f"a number is needed, got {number!r}")
    return float(number) if isinstance(number, str) else number
