"""What rows may look like, and what is said when they do not: shared by every kind of data set."""

from __future__ import annotations

import math
import operator
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from dask_belief.errors import ArgumentError, DataError, NonFiniteDataError

Range = tuple[float, float]


def row_count(name: str, value: SupportsIndex) -> int:
    """Take an argument that counts rows.

    Raises
    ------
    ArgumentError
        If it is no whole number, or less than 1; the message begins with `name`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise ArgumentError(f"{name}: a whole number of rows is needed, found {value!r}") from None
    if number < 1:
        raise ArgumentError(f"{name}: at least 1 row is needed, found {number}")
    return number


def run_dtype(dtype: npt.DTypeLike) -> np.dtype[np.floating]:
    """Take the floating-point type of a run: float32 or float64.

    Raises
    ------
    ArgumentError
        If it is another one.
    """
    for known in (np.dtype(np.float32), np.dtype(np.float64)):
        if known == dtype:
            return known
    raise ArgumentError(f"dtype: float32 or float64 is needed, found {dtype}")


def row_range(start: int, stop: int, n_rows: int) -> None:
    """Check that the rows `start` up to, not including, `stop` exist.

    Raises
    ------
    ArgumentError
        If they do not.
    """
    if not 0 <= start <= stop <= n_rows:
        raise ArgumentError(f"start, stop: rows {start} to {stop} were asked for, the data have rows 0 to {n_rows}")


def stored_dtype(name: str, dtype: npt.DTypeLike) -> np.dtype[Any]:
    """Take the dtype of a stored array: booleans, integers and floats of up to 8 bytes.

    Raises
    ------
    DataError
        If it is another one (complex, strings, objects, dates ...).
    """
    found = np.dtype(dtype)
    if found.kind not in "biuf" or found.itemsize > 8:
        raise DataError(
            f"{name}: the dtype is {found}; store booleans, integers or floats of at most 8 bytes "
            "(code strings and categories as integers, or as one column each)"
        )
    return found


def decoded_dtype(stored: np.dtype[Any], run: np.dtype[np.floating]) -> np.dtype[Any]:
    """The dtype in which targets reach the objective: whole numbers stay int64, floats take the run's dtype."""
    return run if stored.kind == "f" else np.dtype(np.int64)


def decoded_row_bytes(
    input_shape: tuple[int, ...], target_shape: tuple[int, ...], target_dtype: np.dtype[Any], dtype: npt.DTypeLike
) -> int:
    """Bytes of one row of inputs and targets as `read` gives them in `dtype`."""
    run = run_dtype(dtype)
    targets = math.prod(target_shape) * decoded_dtype(target_dtype, run).itemsize
    return math.prod(input_shape) * run.itemsize + targets


def first_non_finite_row(values: npt.NDArray[Any]) -> int | None:
    """The first row of `values` that holds NaN or infinity, or None."""
    if values.dtype.kind != "f":
        return None
    finite = np.isfinite(values)
    if finite.all():
        return None
    return int(np.argmin(finite.reshape(len(values), -1).all(axis=1)))


def require_finite(name: str, values: npt.NDArray[Any], first_row: int) -> None:
    """Check that a block of rows, of which the first is row `first_row` of the data, is finite.

    Raises
    ------
    NonFiniteDataError
        Naming the array and the first bad row.
    """
    bad = first_non_finite_row(values)
    if bad is not None:
        raise NonFiniteDataError(
            f"{name}: row {first_row + bad} holds NaN or infinity; drop such rows or fill them before training"
        )


def widened(known: Range | None, targets: npt.NDArray[Any], first_row: int) -> Range | None:
    """The range of the targets seen so far, `known` and those of one more block; None while there are none.

    Raises
    ------
    NonFiniteDataError
        If the block holds NaN or infinity, of which no range can be told.
    """
    if not targets.size:
        return known
    low, high = float(targets.min()), float(targets.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        require_finite("targets", targets, first_row)
    return (low, high) if known is None else (min(low, known[0]), max(high, known[1]))
