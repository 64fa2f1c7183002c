"""Checks of options where they enter: each names the argument, what was found, and what is asked for."""

from __future__ import annotations

import math
import numbers

from dask_belief.errors import ArgumentError


def check_count(name: str, value: object, low: int = 1, may_be_none: bool = False) -> None:
    """Refuse what is not a whole number of at least `low`; raises `ArgumentError`."""
    if value is None and may_be_none:
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < low:
        allowed = " or None" if may_be_none else ""
        raise ArgumentError(f"{name}: expected a whole number of {low} or more{allowed}, got {value!r}.")


def check_number(
    name: str, value: object, low: float = -math.inf, is_open: bool = False, may_be_none: bool = False
) -> None:
    """Refuse what is not a finite number of at least `low` (more than `low` when `is_open`); raises `ArgumentError`."""
    if value is None and may_be_none:
        return
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(float(value))
    if not is_number or float(value) < low or (is_open and float(value) == low):  # type: ignore[arg-type]
        relation = "more than" if is_open else "at least"
        allowed = " or None" if may_be_none else ""
        raise ArgumentError(f"{name}: expected a finite number of {relation} {low:g}{allowed}, got {value!r}.")
