"""How stale pushes were, counted in bins of fixed borders, so that the counts of shards can be added.

The staleness of a push is the number of updates that its shard made between the fetch from which the gradient came and
the push. Bins 0 to 31 hold one staleness each, then each is twice as wide as the one before, and the last is open::

    bin          0   1   ...  31     32      33      ...        47
    staleness    0   1   ...  31   32-63   64-127    ...   from 1048576 on

What is found from the counts is exact up to 31. Past that a mean takes the middle of a bin, and quantiles and the
largest take its upper end, so they are never too small; of the last bin only the lower end is known.
"""

from __future__ import annotations

import math
from typing import TypeAlias

from dask_belief.errors import ArgumentError

StalenessCounts: TypeAlias = tuple[int, ...]
"""Pushes by bin, of length `N_BINS`; empty where nothing was measured."""

N_EXACT = 32
"""Bins of one staleness each; a power of two."""

N_BINS = N_EXACT + 16
"""Bins in all."""


def bin_of(staleness: int) -> int:
    """Give the bin of a staleness.

    Raises
    ------
    ArgumentError
        It is negative.

    Examples
    --------
    >>> bin_of(3), bin_of(32), bin_of(63), bin_of(64), bin_of(10**9)
    (3, 32, 32, 33, 47)
    """
    if staleness < 0:
        raise ArgumentError(f"staleness: expected zero or more, got {staleness}.")
    if staleness < N_EXACT:
        return int(staleness)
    return min(N_EXACT + int(staleness).bit_length() - N_EXACT.bit_length(), N_BINS - 1)


def lower_end(number: int) -> int:
    """Give the smallest staleness of a bin."""
    return number if number < N_EXACT else N_EXACT << (number - N_EXACT)


def upper_end(number: int) -> int:
    """Give the largest staleness of a bin; of the last, which has none, the smallest."""
    return lower_end(number) if number == N_BINS - 1 else lower_end(number + 1) - 1


def label(number: int) -> str:
    """Write the border of a bin: ``"3"``, ``"32-63"``, ``"1048576+"``."""
    low, high = lower_end(number), upper_end(number)
    if number == N_BINS - 1:
        return f"{low}+"
    return str(low) if low == high else f"{low}-{high}"


def merged(*counts: StalenessCounts) -> StalenessCounts:
    """Add counts, of several shards for one; those that are empty add nothing, and nothing alone gives zeros.

    Examples
    --------
    >>> sum(merged((1,) * N_BINS, (), (2,) * N_BINS)) == 3 * N_BINS
    True
    """
    rows = [_checked(each) for each in counts if each]
    return tuple(map(sum, zip(*rows, strict=True))) if rows else (0,) * N_BINS


def mean(counts: StalenessCounts) -> float:
    """Give the mean staleness, with the middle of a bin for what is past 31; NaN without pushes."""
    n_pushes = sum(_checked(counts))
    if not n_pushes:
        return math.nan
    total = sum(count * 0.5 * (lower_end(number) + upper_end(number)) for number, count in enumerate(counts))
    return total / n_pushes


def quantile(counts: StalenessCounts, share: float) -> float:
    """Give the smallest staleness that at least `share` of the pushes do not go beyond; NaN without pushes.

    Past 31 it is the upper end of the bin.

    Raises
    ------
    ArgumentError
        `share` does not lie between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ArgumentError(f"share: expected a number between 0 and 1, got {share!r}.")
    needed, reached = share * sum(_checked(counts)), 0
    for number, count in enumerate(counts):
        reached += count
        # A share of zero asks for the first bin that holds a push.
        if count and reached >= needed:
            return float(upper_end(number))
    return math.nan


def largest(counts: StalenessCounts) -> float:
    """Give the largest staleness, past 31 the upper end of its bin; NaN without pushes."""
    return quantile(counts, 1.0)


def _checked(counts: StalenessCounts) -> StalenessCounts:
    if len(counts) not in (0, N_BINS):
        raise ArgumentError(f"counts: expected {N_BINS} counts, one a bin, got {len(counts)}.")
    return counts
