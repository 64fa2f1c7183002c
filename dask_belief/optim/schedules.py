"""Learning rates that change with the number of updates.

A schedule is called with how many updates a parameter has had, and gives the rate of the next one::

    rule = Adagrad(Warmup(1000, then=Cosine(0.02, n_updates=50_000)))

So it needs no clock and nobody's consent: each shard counts its own updates, and all follow the same curve. An update
is a push of any replica: with four replicas and ``n_push=1`` there are as many updates as mini-batches of all four.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

from dask_belief.checks import check_count, check_number
from dask_belief.errors import ArgumentError


@runtime_checkable
class Schedule(Protocol):
    """What a rule asks of a schedule."""

    name: ClassVar[str]
    """What it is called in JSON."""

    def __call__(self, n_updates: int) -> float:
        """Give the rate of the update after `n_updates`."""

    def to_config(self) -> dict[str, Any]:
        """Describe it by plain JSON."""


Rate: TypeAlias = float | Schedule
"""A rate that stays, or one that changes."""


class _Described:
    """Schedules that are described by their fields."""

    name: ClassVar[str]

    def to_config(self) -> dict[str, Any]:
        """Describe it by plain JSON."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}  # type: ignore[arg-type]
        return {"schedule": self.name, **{name: rate_to_config(value) for name, value in values.items()}}


@dataclass(frozen=True)
class ExponentialDecay(_Described):
    """Falls smoothly, by `factor` in each `every` updates: ``initial * factor ** (n_updates / every)``.

    Parameters
    ----------
    initial
        The first rate, positive.
    factor
        More than 0, at most 1.
    every
        Updates.

    Raises
    ------
    ArgumentError
        A number is out of its range; the message names it.
    """

    name: ClassVar[str] = "exponential_decay"
    initial: float
    factor: float
    every: int

    def __post_init__(self) -> None:
        _check_decay(self.initial, self.factor, self.every)

    def __call__(self, n_updates: int) -> float:
        """Give the rate of the update after `n_updates`."""
        return float(self.initial * self.factor ** (n_updates / self.every))


@dataclass(frozen=True)
class StepDecay(_Described):
    """Falls in steps, by `factor` after each `every` updates: ``initial * factor ** (n_updates // every)``.

    Parameters
    ----------
    initial
        The first rate, positive.
    factor
        More than 0, at most 1.
    every
        Updates.

    Raises
    ------
    ArgumentError
        A number is out of its range; the message names it.
    """

    name: ClassVar[str] = "step_decay"
    initial: float
    factor: float
    every: int

    def __post_init__(self) -> None:
        _check_decay(self.initial, self.factor, self.every)

    def __call__(self, n_updates: int) -> float:
        """Give the rate of the update after `n_updates`."""
        return float(self.initial * self.factor ** (n_updates // self.every))


@dataclass(frozen=True)
class InverseTimeDecay(_Described):
    """Falls as one over time (Robbins and Monro 1951): ``initial / (1 + n_updates / half_after)``.

    Parameters
    ----------
    initial
        The first rate, positive.
    half_after
        After so many updates it is half of the first.

    Raises
    ------
    ArgumentError
        A number is out of its range; the message names it.
    """

    name: ClassVar[str] = "inverse_time_decay"
    initial: float
    half_after: int

    def __post_init__(self) -> None:
        check_number("initial", self.initial, low=0.0, is_open=True)
        check_count("half_after", self.half_after)

    def __call__(self, n_updates: int) -> float:
        """Give the rate of the update after `n_updates`."""
        return self.initial / (1.0 + n_updates / self.half_after)


@dataclass(frozen=True)
class Cosine(_Described):
    """Falls from `initial` to `final` along half a cosine wave, then stays (Loshchilov and Hutter 2017, equation 5).

    With ``s = min(1, updates / n_updates)`` the rate is ``final + (initial - final) * (1 + cos(pi * s)) / 2``.

    Parameters
    ----------
    initial
        The first rate, positive.
    n_updates
        How long it falls.
    final
        The last rate, from zero to `initial`.

    Raises
    ------
    ArgumentError
        A number is out of its range; the message names it.
    """

    name: ClassVar[str] = "cosine"
    initial: float
    n_updates: int
    final: float = 0.0

    def __post_init__(self) -> None:
        check_number("initial", self.initial, low=0.0, is_open=True)
        check_count("n_updates", self.n_updates)
        check_number("final", self.final, low=0.0)
        if self.final > self.initial:
            raise ArgumentError(f"final: at most initial={self.initial} is needed, got {self.final}.")

    def __call__(self, n_updates: int) -> float:
        """Give the rate of the update after `n_updates`."""
        share = min(1.0, n_updates / self.n_updates)
        return self.final + 0.5 * (self.initial - self.final) * (1.0 + math.cos(math.pi * share))


@dataclass(frozen=True)
class Warmup(_Described):
    """Grows in equal steps to a rate or to a schedule (Goyal et al. 2017, section 2.2).

    The rate is ``then(updates) * min(1, (updates + 1) / n_updates)``.

    Parameters
    ----------
    n_updates
        How long it grows.
    then
        The rate, or the schedule, whose count goes on meanwhile.

    Raises
    ------
    ArgumentError
        A number is out of its range; the message names it.

    Examples
    --------
    >>> rate = Warmup(4, then=StepDecay(0.1, factor=0.5, every=6))
    >>> [round(rate(n), 4) for n in range(8)]
    [0.025, 0.05, 0.075, 0.1, 0.1, 0.1, 0.05, 0.05]
    """

    name: ClassVar[str] = "warmup"
    n_updates: int
    then: Rate

    def __post_init__(self) -> None:
        check_count("n_updates", self.n_updates)
        check_rate("then", self.then)

    def __call__(self, n_updates: int) -> float:
        """Give the rate of the update after `n_updates`."""
        return rate_at(self.then, n_updates) * min(1.0, (n_updates + 1) / self.n_updates)


def _check_decay(initial: float, factor: float, every: int) -> None:
    check_number("initial", initial, low=0.0, is_open=True)
    check_number("factor", factor, low=0.0, is_open=True)
    if factor > 1.0:
        raise ArgumentError(f"factor: a number of at most 1 is needed, got {factor}.")
    check_count("every", every)


def check_rate(name: str, rate: object) -> None:
    """Refuse what is neither a positive number nor a schedule; raises `ArgumentError`."""
    if isinstance(rate, type) or not isinstance(rate, Schedule):
        check_number(name, rate, low=0.0, is_open=True)


def rate_at(rate: Rate, n_updates: int) -> float:
    """Give the rate of the update after `n_updates`."""
    # An isinstance of a protocol takes microseconds, which each update would pay.
    return rate(n_updates) if callable(rate) else float(rate)


_SCHEDULES: Mapping[str, Any] = {
    schedule.name: schedule for schedule in (ExponentialDecay, StepDecay, InverseTimeDecay, Cosine, Warmup)
}


def rate_to_config(rate: Any) -> Any:
    """Describe a rate by plain JSON: a number, or a schedule's name and fields."""
    return rate.to_config() if isinstance(rate, Schedule) else rate


def rate_from_config(config: Any) -> Any:
    """Rebuild a rate from `rate_to_config`.

    Raises
    ------
    ArgumentError
        The schedule or one of its fields is unknown.
    """
    if not isinstance(config, Mapping):
        return config
    options = {name: rate_from_config(value) for name, value in config.items()}
    name = options.pop("schedule", None)
    if name not in _SCHEDULES:
        raise ArgumentError(f"schedule: one of {', '.join(_SCHEDULES)} is needed, got {name!r}.")
    try:
        return _SCHEDULES[name](**options)
    except TypeError as error:
        raise ArgumentError(f"schedule: {name} cannot be made with {sorted(options)}: {error}") from error
