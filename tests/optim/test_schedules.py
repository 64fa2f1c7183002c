"""Schedules of the learning rate against their formulas."""

from __future__ import annotations

import json
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_belief.errors import ArgumentError
from dask_belief.optim.schedules import (
    Cosine,
    ExponentialDecay,
    InverseTimeDecay,
    Schedule,
    StepDecay,
    Warmup,
    rate_at,
    rate_from_config,
    rate_to_config,
)

SCHEDULES = [
    ExponentialDecay(0.1, factor=0.5, every=100),
    StepDecay(0.1, factor=0.1, every=30),
    InverseTimeDecay(0.2, half_after=50),
    Cosine(0.3, n_updates=200, final=0.01),
    Warmup(20, then=0.4),
    Warmup(20, then=Cosine(0.3, n_updates=200)),
]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)

rates = st.floats(1e-6, 10.0)
factors = st.floats(0.0, 1.0, exclude_min=True)
counts = st.integers(1, 10**6)
updates = st.integers(0, 10**7)


@given(initial=rates, factor=factors, every=counts, n=updates)
def test_exponential_decay(initial, factor, every, n):
    """It falls by the factor from any update to the one `every` later, and begins at the first rate."""
    schedule = ExponentialDecay(initial, factor, every)
    assert schedule(0) == initial
    assert schedule(n) == pytest.approx(initial * math.exp(n / every * math.log(factor)), rel=1e-9, abs=1e-300)
    assert schedule(n + every) == pytest.approx(factor * schedule(n), rel=1e-9, abs=1e-300)


@given(initial=rates, factor=factors, every=counts, n=updates)
def test_step_decay(initial, factor, every, n):
    """It stays for `every` updates, and where it changes it is the exponential decay."""
    schedule = StepDecay(initial, factor, every)
    begin = n // every * every
    assert schedule(n) == schedule(begin) == schedule(begin + every - 1)
    assert schedule(begin) == ExponentialDecay(initial, factor, every)(begin)


@given(initial=rates, half_after=counts, n=updates)
def test_inverse_time_decay(initial, half_after, n):
    """One over the rate grows by the same in each update, and doubles in the first `half_after`."""
    schedule = InverseTimeDecay(initial, half_after)
    assert schedule(0) == initial
    assert schedule(half_after) == initial / 2
    assert 1 / schedule(n) == pytest.approx(1 / initial + n / (initial * half_after))


@given(initial=rates, share=st.floats(0.0, 1.0), length=counts, n=updates)
def test_cosine(initial, share, length, n):
    """From the first rate to the last along half a wave, after which it stays."""
    final = share * initial
    schedule = Cosine(initial, n_updates=length, final=final)
    assert schedule(0) == pytest.approx(initial)
    assert schedule(length) == schedule(length + n) == pytest.approx(final, abs=1e-15)
    # By the half-angle, where the formula has the whole one.
    expected = final + (initial - final) * math.cos(math.pi / 2 * min(n, length) / length) ** 2
    assert schedule(n) == pytest.approx(expected, abs=1e-12)
    assert final <= schedule(n) <= initial * (1 + 1e-15)


@given(length=counts, then=rates, n=updates)
def test_warmup_grows_in_equal_steps(length, then, n):
    """It is the rate itself from the last of its updates on, and grows by the same share of it until then."""
    schedule = Warmup(length, then=then)
    assert schedule(n) == pytest.approx(then * min(n + 1, length) / length)
    assert schedule(length - 1) == schedule(length) == then


def test_warmup_goes_on_as_the_schedule_after_it():
    """The schedule after it counts from the first update, as if there had been no warm-up."""
    then = StepDecay(0.8, factor=0.5, every=4)
    schedule = Warmup(5, then=then)
    assert [schedule(n) for n in range(5, 50)] == [then(n) for n in range(5, 50)]
    assert [schedule(n) for n in range(5)] == pytest.approx([0.8 / 5, 1.6 / 5, 2.4 / 5, 3.2 / 5, 0.4])


@each_schedule
def test_rates_stay_numbers_after_very_many_updates(schedule):
    """However long a run, the rate is a Python float, finite and not negative, and nothing overflows."""
    for n in (0, 1, 10**6, 10**12, 10**300):
        rate = schedule(n)
        assert type(rate) is float and math.isfinite(rate) and rate >= 0


@each_schedule
def test_schedules_go_through_json_and_pickle(schedule):
    """A schedule, and one within another, come back equal and are told apart from a rate that stays."""
    assert isinstance(schedule, Schedule)
    assert rate_from_config(json.loads(json.dumps(schedule.to_config(), allow_nan=False))) == schedule
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert rate_to_config(schedule) == schedule.to_config()
    assert rate_at(schedule, 7) == schedule(7)


def test_a_rate_that_stays_is_a_number_in_json():
    """It goes both ways unchanged, and is the rate at any count."""
    assert rate_from_config(rate_to_config(0.25)) == 0.25
    assert rate_at(0.25, 0) == rate_at(0.25, 10**9) == 0.25


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExponentialDecay(0.0, 0.5, 10), "initial"),
        (lambda: ExponentialDecay(math.inf, 0.5, 10), "initial"),
        (lambda: ExponentialDecay(0.1, 0.0, 10), "factor"),
        (lambda: ExponentialDecay(0.1, 1.01, 10), "factor"),
        (lambda: ExponentialDecay(0.1, math.nan, 10), "factor"),
        (lambda: ExponentialDecay(0.1, 0.5, 0), "every"),
        (lambda: StepDecay(-0.1, 0.5, 10), "initial"),
        (lambda: StepDecay(0.1, -0.5, 10), "factor"),
        (lambda: StepDecay(0.1, 0.5, 2.5), "every"),
        (lambda: InverseTimeDecay(0.0, 10), "initial"),
        (lambda: InverseTimeDecay(0.1, 0), "half_after"),
        (lambda: Cosine(0.0, 10), "initial"),
        (lambda: Cosine(0.1, 0), "n_updates"),
        (lambda: Cosine(0.1, 10, final=-0.01), "final"),
        (lambda: Cosine(0.1, 10, final=0.2), "final"),
        (lambda: Warmup(0, then=0.1), "n_updates"),
        (lambda: Warmup(10, then=0.0), "then"),
        (lambda: Warmup(10, then="cosine"), "then"),
        (lambda: Warmup(10, then=Cosine), "then"),
        (lambda: rate_from_config({"schedule": "sine"}), "schedule: .*'sine'"),
        (lambda: rate_from_config({"initial": 0.1}), "schedule: .*None"),
        (lambda: rate_from_config({"schedule": "cosine", "initial": 0.1}), "schedule: cosine"),
        (lambda: rate_from_config({"schedule": "cosine", "initial": 0.1, "n_updates": 0}), "n_updates"),
        (lambda: rate_from_config({"schedule": "warmup", "n_updates": 5, "then": {"schedule": "up"}}), "schedule"),
    ],
)
def test_bad_schedules_are_refused_by_name(make, message):
    """Each field out of its range, and each unknown schedule or field, is named in the error."""
    with pytest.raises(ArgumentError, match=f"^{message}"):
        make()
