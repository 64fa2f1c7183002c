"""When a snapshot is validated, which is the best, and when that is the last."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from dask_belief.downpour.config import Downpour
from dask_belief.downpour.validation import Validations
from dask_belief.optim.stopping import StopReason

N_LEASES = 4


def validations(**options: Any) -> Validations:
    return Validations(Downpour(**{"epochs": 3, **options}), N_LEASES)


def due(schedule: Validations, moments: list[tuple[int, int, float]], is_cheap: bool = True) -> list[int]:
    """At which of the moments, each of leases, steps and seconds, a validation is begun."""
    begun = []
    for number, moment in enumerate(moments):
        if schedule.is_due(*moment, is_cheap):
            schedule.begin(*moment)
            begun.append(number)
    return begun


def test_once_an_epoch_by_itself() -> None:
    """After each but the last, whose end is validated anyway."""
    moments = [(leases, 10 * leases, 1.0 * leases) for leases in range(13)]
    assert due(validations(), moments) == [4, 8]


def test_seldom_enough_to_be_cheap_by_itself() -> None:
    """An epoch whose end comes too soon is left out."""
    schedule = validations()
    assert due(schedule, [(4, 0, 1.0), (5, 0, 2.0)], is_cheap=False) == []
    assert due(schedule, [(6, 0, 3.0), (7, 0, 4.0)]) == [0]


def test_every_so_many_steps() -> None:
    """As soon as the leases that were finished pass one more multiple, cheap or not; also within the last epoch."""
    moments = [(0, steps, 0.0) for steps in (0, 60, 99, 100, 130, 199, 350, 399, 400)]
    assert due(validations(validate_every_steps=100), moments, is_cheap=False) == [3, 6, 8]


def test_every_so_many_seconds() -> None:
    """From the beginning of one to the beginning of the next."""
    moments = [(0, 0, seconds) for seconds in (0.0, 1.9, 2.5, 4.0, 4.5, 9.0, 10.0)]
    assert due(validations(validate_every_seconds=2.0), moments, is_cheap=False) == [2, 4, 5]


def test_steps_or_seconds_whichever_comes_first() -> None:
    """Where both are given."""
    moments = [(0, 10, 0.0), (0, 100, 1.0), (0, 110, 2.9), (0, 120, 3.0), (0, 199, 4.0), (0, 200, 5.0)]
    assert due(validations(validate_every_steps=100, validate_every_seconds=2.0), moments) == [1, 3, 5]


def test_steps_that_a_loss_took_back_are_not_validated_again() -> None:
    """Shards that were lost go on from what was saved."""
    schedule = validations(validate_every_steps=100)
    assert due(schedule, [(0, 300, 0.0), (0, 120, 0.0), (0, 300, 0.0), (0, 400, 0.0)]) == [0, 3]


def test_lowest_loss_is_the_best() -> None:
    """A tie and NaN are none."""
    schedule = validations()
    losses = [2.0, 3.0, math.nan, 1.0, 1.0]
    assert [schedule.take({"loss": loss, "accuracy": 0.5}) for loss in losses] == [True, False, False, True, False]
    assert schedule.best == {"loss": 1.0, "accuracy": 0.5}
    assert schedule.stop() is None


def test_patience_counts_validations_in_a_row() -> None:
    """One that is better begins the count anew; the reason tells how many there were and the best."""
    schedule = validations(patience=2)
    for loss in (2.0, 3.0, 1.5, 1.6):
        schedule.take({"loss": loss})
        assert schedule.stop() is None
    schedule.take({"loss": 1.5})
    stop = schedule.stop()
    assert stop is not None
    assert stop.reason is StopReason.NO_IMPROVEMENT
    assert stop.numbers == {"patience": 2, "validations": 5, "validation_loss": 1.5}


@pytest.mark.parametrize("patience", [1, 3])
def test_losses_that_are_never_finite_use_up_the_patience(patience: int) -> None:
    """There is no best then."""
    schedule = validations(patience=patience)
    for _ in range(patience):
        assert schedule.stop() is None
        schedule.take({"loss": math.nan})
    stop = schedule.stop()
    assert stop is not None
    assert math.isnan(stop.numbers["validation_loss"])
    assert schedule.best == {}


def resumed(schedule: Validations, **options: Any) -> Validations:
    """Another, which goes on from what a checkpoint keeps of this one."""
    again = validations(**options)
    again.take_config(json.loads(json.dumps(schedule.to_config(), allow_nan=False)))
    return again


@pytest.mark.parametrize("losses", [[], [2.0, 3.0, 1.5], [math.nan, math.inf], [-math.inf, 1.0], [0.1 + 0.2, 0.3]])
def test_resumed_run_knows_what_was_found(losses: list[float]) -> None:
    """The best, bit for bit, and how many were worse: the next ones have the same outcome."""
    schedule = validations(patience=3)
    for loss in losses:
        schedule.take({"loss": loss, "accuracy": math.nan})
    again = resumed(schedule, patience=3)
    assert repr(again.best) == repr(schedule.best)
    for loss in (1.5, 0.3, 5.0, math.nan, 0.2, 7.0, 8.0, 9.0):
        assert again.take({"loss": loss, "accuracy": 1.0}) == schedule.take({"loss": loss, "accuracy": 1.0})
        assert repr(again.best) == repr(schedule.best)
        assert repr(again.stop()) == repr(schedule.stop())
    assert again.stop() is not None


def test_resumed_run_validates_when_the_other_would_have() -> None:
    """Not again what was validated already."""
    for options in ({}, {"validate_every_steps": 100}):
        schedule = validations(**options)
        moments = [(leases, 40 * leases, 1.0 * leases) for leases in range(13)]
        whole = due(validations(**options), moments)
        for at in range(13):
            schedule = validations(**options)
            first = due(schedule, moments[:at])
            assert first + [at + each for each in due(resumed(schedule, **options), moments[at:])] == whole


def test_state_that_is_damaged_is_refused() -> None:
    """By an error of one of three kinds, which the driver turns into a word of what to do."""
    state = validations().to_config()
    for name in state:
        with pytest.raises(KeyError):
            validations().take_config({key: value for key, value in state.items() if key != name})
    for damage in ({"best": 3}, {"best": {"loss": None}}, {"best": {"loss": "x"}}, {"n_worse": None}, {"epoch": "x"}):
        with pytest.raises((TypeError, ValueError)):
            validations().take_config(state | damage)
