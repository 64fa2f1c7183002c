"""Counts of staleness by bin, against the values themselves."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from dask_belief.errors import ArgumentError
from dask_belief.monitoring import staleness
from dask_belief.monitoring.staleness import N_BINS, N_EXACT, StalenessCounts, bin_of


def counts_of(values) -> StalenessCounts:
    counts = [0] * N_BINS
    for value in values:
        counts[bin_of(value)] += 1
    return tuple(counts)


def test_up_to_31_each_staleness_has_a_bin():
    """Bin and staleness are the same number."""
    assert [bin_of(value) for value in range(32)] == list(range(32))


@pytest.mark.parametrize("number", range(N_BINS))
def test_a_bin_holds_what_lies_between_its_ends(number: int):
    """Both ends are in it, what lies beyond them is not; bins follow one another without a gap."""
    low, high = staleness.lower_end(number), staleness.upper_end(number)
    assert bin_of(low) == bin_of(high) == number
    if number:
        assert bin_of(low - 1) == number - 1 and staleness.upper_end(number - 1) == low - 1
    if number >= N_EXACT and number < N_BINS - 1:
        assert high == 2 * low - 1


def test_the_last_bin_is_open():
    """However stale a push is, it has a bin."""
    assert bin_of(2**20) == bin_of(2**62) == N_BINS - 1 == 47
    assert bin_of(np.int64(2**40)) == N_BINS - 1


def test_a_negative_staleness_is_refused():
    """No push is older than the update that it follows."""
    with pytest.raises(ArgumentError, match=r"^staleness: .*-1"):
        bin_of(-1)


def test_labels_tell_the_borders():
    """One number, two, or one with no end."""
    assert [staleness.label(number) for number in (0, 31, 32, 33, 47)] == ["0", "31", "32-63", "64-127", "1048576+"]


def test_counts_add_up_over_shards():
    """What two shards counted is what one would have counted of both (seed 5)."""
    random = np.random.default_rng(5)
    one, other = (random.geometric(0.05, size=n) for n in (100, 50))
    together = counts_of(itertools.chain(one, other))
    assert staleness.merged(counts_of(one), (), counts_of(other)) == together
    assert staleness.merged() == staleness.merged(()) == (0,) * N_BINS


def test_up_to_31_all_measures_are_exact():
    """Mean, quantiles and the largest are those of NumPy (seed 6)."""
    values = np.random.default_rng(6).integers(0, N_EXACT, size=501)
    counts = counts_of(values)
    assert staleness.mean(counts) == pytest.approx(values.mean(), rel=1e-14)
    assert staleness.largest(counts) == values.max()
    for share in (0.0, 0.05, 0.5, 0.95, 0.999, 1.0):
        assert staleness.quantile(counts, share) == np.quantile(values, share, method="inverted_cdf")


def test_past_31_measures_are_of_the_bin():
    """A mean takes its middle; quantiles and the largest take its upper end, and so are never too small (seed 7)."""
    values = np.random.default_rng(7).integers(0, 5000, size=2000)
    counts = counts_of(values)
    middles = [(staleness.lower_end(bin_of(value)) + staleness.upper_end(bin_of(value))) / 2 for value in values]
    assert staleness.mean(counts) == pytest.approx(np.mean(middles), rel=1e-12)
    assert values.max() <= staleness.largest(counts) == 8191 < 2 * values.max()
    for share in (0.5, 0.95):
        exact = np.quantile(values, share, method="inverted_cdf")
        assert exact <= staleness.quantile(counts, share) < 2 * exact


def test_of_the_open_bin_the_lower_end_is_known():
    """That is what all measures give."""
    counts = counts_of([2**30])
    assert staleness.mean(counts) == staleness.largest(counts) == staleness.quantile(counts, 0.5) == 2**20


@pytest.mark.parametrize("counts", [(), (0,) * N_BINS], ids=["empty", "zeros"])
def test_without_pushes_nothing_is_known(counts: StalenessCounts):
    """NaN, not zero: nothing was measured."""
    measures = (staleness.mean(counts), staleness.quantile(counts, 0.95), staleness.largest(counts))
    assert all(math.isnan(measure) for measure in measures)


def test_what_makes_no_sense_is_refused():
    """Shares beyond one, and counts of other bins."""
    with pytest.raises(ArgumentError, match=r"^share: "):
        staleness.quantile((0,) * N_BINS, 1.5)
    for measure in (staleness.mean, staleness.largest, staleness.merged):
        with pytest.raises(ArgumentError, match=rf"^counts: expected {N_BINS} counts.*got 3"):
            measure((1, 2, 3))
