"""Checks that all data sets share."""

from __future__ import annotations

import numpy as np
import pytest

from dask_belief.data import checks
from dask_belief.errors import ArgumentError, DataError, NonFiniteDataError


@pytest.mark.parametrize("dtype", ["float32", np.float64, np.dtype("f4"), float])
def test_run_dtype_takes_two_floats(dtype):
    """float32 and float64 are taken however they are spelt."""
    assert checks.run_dtype(dtype) == np.dtype(dtype)


@pytest.mark.parametrize("dtype", ["float16", np.int64, "complex64", ">f4"])
def test_run_dtype_refuses_others(dtype):
    """Any other dtype is refused as an argument."""
    with pytest.raises(ArgumentError, match=r"^dtype"):
        checks.run_dtype(dtype)


@pytest.mark.parametrize("dtype", ["O", "U3", "S3", "complex64", "datetime64[s]", np.longdouble])
def test_stored_dtype_refuses_what_is_no_number(dtype):
    """Objects, strings, dates and numbers of more than 8 bytes cannot be trained on."""
    with pytest.raises(DataError, match=r"^inputs"):
        checks.stored_dtype("inputs", dtype)


def test_the_first_bad_row_is_named():
    """The row is counted from the beginning of the data, not of the block."""
    values = np.zeros((6, 2, 2), np.float32)
    values[4, 1, 0] = np.inf
    values[5, 0, 0] = np.nan
    with pytest.raises(NonFiniteDataError, match=r"^targets: row 104 "):
        checks.require_finite("targets", values, 100)


def test_whole_numbers_are_finite():
    """Integers are not searched."""
    assert checks.first_non_finite_row(np.arange(3)) is None


def test_ranges_widen():
    """The range over blocks is the range of all; blocks without values say nothing."""
    assert checks.widened(None, np.empty((3, 0)), 0) is None
    found = checks.widened(None, np.array([3, 5]), 0)
    found = checks.widened(found, np.array([True, False]), 2)
    assert found == (0.0, 5.0)
    with pytest.raises(NonFiniteDataError, match="row 5 "):
        checks.widened(found, np.array([1.0, np.nan]), 4)


def test_row_bytes_follow_the_decoded_dtypes():
    """Whole targets take 8 bytes in any run, floats those of the run."""
    assert checks.decoded_row_bytes((2, 3), (), np.dtype("uint8"), np.float32) == 6 * 4 + 8
    assert checks.decoded_row_bytes((2, 3), (4,), np.dtype("float16"), np.float64) == 6 * 8 + 4 * 8
