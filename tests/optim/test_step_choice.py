"""The four cases of Moré and Thuente's step choice, each on a function where the answer is known."""

from __future__ import annotations

import pytest

from dask_belief.optim.step_choice import Trial, choose_step


def trial_of(polynomial, step):
    """Value and slope of a polynomial, given by its coefficients from the constant."""
    value = sum(c * step**power for power, c in enumerate(polynomial))
    return Trial(step, value, sum(power * c * step ** (power - 1) for power, c in enumerate(polynomial) if power))


PARABOLA = (1.0, -2.0, 1.0)  # (t - 1)**2
CUBIC = (0.0, -3.0, 0.0, 1.0)  # t**3 - 3 t, least at 1
BENT = (2.0, -9.0, 6.0, -1.0)  # -(t - 2)**3 + 3 (t - 2), least at 1, which the secant does not reach


@pytest.mark.parametrize(
    ("polynomial", "steps"),
    [(PARABOLA, (0.0, 3.0)), (PARABOLA, (0.0, 1.7)), (PARABOLA, (0.0, 0.4)), (BENT, (0.0, 1.5))],
    ids=["higher", "beyond", "before", "cubic-beyond"],
)
def test_the_minimum_is_found_where_the_model_is_exact(polynomial, steps):
    """Parabola and cubic are interpolated without error, in the cases 1 to 3."""
    low, trial = (trial_of(polynomial, step) for step in steps)
    choice = choose_step(low, low, trial, False, (0.0, 10.0))
    assert choice.step == pytest.approx(1.0)


def test_a_higher_trial_becomes_the_far_end():
    """Case 1 brackets and keeps the low end."""
    low, trial = trial_of(PARABOLA, 0.0), trial_of(PARABOLA, 3.0)
    choice = choose_step(low, low, trial, False, (0.0, 10.0))
    assert (choice.low, choice.far, choice.bracketed) == (low, trial, True)


def test_a_lower_trial_that_rises_becomes_the_low_end():
    """Case 2 brackets with the old low end as the far one."""
    low, trial = trial_of(PARABOLA, 0.0), trial_of(PARABOLA, 1.7)
    choice = choose_step(low, low, trial, False, (0.0, 10.0))
    assert (choice.low, choice.far, choice.bracketed) == (trial, low, True)


def test_a_lower_trial_that_falls_brackets_nothing():
    """Cases 3 and 4 move the low end on and find no bracket."""
    low, trial = trial_of(PARABOLA, 0.0), trial_of(PARABOLA, 0.4)
    choice = choose_step(low, low, trial, False, (0.0, 10.0))
    assert (choice.low, choice.bracketed) == (trial, False)


def test_without_a_minimum_ahead_the_window_limits_the_step():
    """Case 4 goes to the end of the window, and case 3 stays within it."""
    falling = Trial(0.0, 0.0, -1.0), Trial(1.0, -2.0, -3.0)
    assert choose_step(falling[0], falling[0], falling[1], False, (2.1, 5.0)).step == 5.0
    flatter = trial_of(PARABOLA, 0.0), trial_of(PARABOLA, 0.4)
    assert choose_step(flatter[0], flatter[0], flatter[1], False, (0.84, 0.9)).step == 0.9


def test_within_a_bracket_case_three_is_cautious():
    """In a bracket the step goes at most 0.66 of the way to the far end."""
    low, far = Trial(0.0, 0.0, -1.0), Trial(1.0, 5.0, 1.0)
    trial = Trial(0.1, -0.0999, -0.9999)
    choice = choose_step(low, far, trial, True, (0.0, 1.0))
    assert choice.step == pytest.approx(0.1 + 0.66 * 0.9)


def test_within_a_bracket_case_four_looks_towards_the_far_end():
    """A trial as steep as before gives the minimum of the cubic through it and the far end."""
    low, far, trial = trial_of(CUBIC, -0.2), trial_of(CUBIC, 2.0), trial_of(CUBIC, 0.0)
    choice = choose_step(low, far, trial, True, (-0.2, 2.0))
    assert choice.step == pytest.approx(1.0)


def test_tilting_takes_a_line_off_and_puts_it_back():
    """A tilt and its opposite give the first trial again, and the tilt itself changes value and slope."""
    trial = Trial(2.0, 3.0, -1.0)
    assert trial.tilted(0.5) == Trial(2.0, 2.0, -1.5)
    assert trial.tilted(0.5).tilted(-0.5) == trial
