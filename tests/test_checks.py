"""Counts and numbers are checked where they enter."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from dask_belief.checks import check_count, check_number
from dask_belief.errors import ArgumentError


@pytest.mark.parametrize("value", [1, 5, np.int64(3), np.uint8(2)])
def test_whole_numbers_are_counts(value: Any) -> None:
    """Python's and NumPy's."""
    check_count("n", value)


@pytest.mark.parametrize("value", [0, -3, 2.0, np.float32(2), "2", True, np.bool_(True), None, [1], math.nan])
def test_what_is_no_count_is_refused(value: Any) -> None:
    """The message begins with the name, and says what was found and what is asked for."""
    with pytest.raises(ArgumentError, match=r"^n: expected a whole number of 1 or more, got ") as raised:
        check_count("n", value)
    assert repr(value) in str(raised.value)


def test_lowest_count_can_be_chosen() -> None:
    """Also zero, or more than one."""
    check_count("n", 0, low=0)
    with pytest.raises(ArgumentError, match="of 2 or more, got 1"):
        check_count("n", 1, low=2)


@pytest.mark.parametrize("value", [0, 1.5, -2, np.float32(0.5), np.int16(3)])
def test_finite_numbers_are_numbers(value: Any) -> None:
    """Whole or broken, Python's and NumPy's."""
    check_number("x", value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "1", True, None, 1j])
def test_what_is_no_finite_number_is_refused(value: Any) -> None:
    """The message begins with the name, and says what was found."""
    with pytest.raises(ArgumentError, match=r"^x: expected a finite number") as raised:
        check_number("x", value)
    assert repr(value) in str(raised.value)


def test_lower_bound_may_be_open() -> None:
    """The bound itself counts when it is closed, and not when it is open."""
    check_number("x", 0, low=0)
    with pytest.raises(ArgumentError, match="of at least 0, got -1"):
        check_number("x", -1, low=0)
    check_number("x", 1e-300, low=0, is_open=True)
    with pytest.raises(ArgumentError, match=r"of more than 0, got 0\.0"):
        check_number("x", 0.0, low=0, is_open=True)


def test_none_where_it_is_allowed() -> None:
    """And the message says so where something else is given."""
    check_count("n", None, may_be_none=True)
    check_number("x", None, may_be_none=True)
    with pytest.raises(ArgumentError, match="1 or more or None, got 0"):
        check_count("n", 0, may_be_none=True)
    with pytest.raises(ArgumentError, match="at least 0 or None, got -1"):
        check_number("x", -1, low=0, may_be_none=True)
