"""Sums that can be joined in any grouping."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from dask_belief.errors import ArgumentError
from dask_belief.monitoring.metrics import MetricSums


def test_parts_in_any_grouping_give_the_means_of_the_whole():
    """Ten parts of different size, added to two sums and merged, give the plain means over all rows (seed 41)."""
    generator = np.random.default_rng(41)
    losses = generator.exponential(size=100)
    correct = generator.integers(0, 2, 100)
    borders = [0, *np.sort(generator.choice(np.arange(1, 100), 9, replace=False)), 100]
    halves = MetricSums(), MetricSums()
    for number, (start, stop) in enumerate(itertools.pairwise(borders)):
        part = {"rows": stop - start, "loss": losses[start:stop].sum(), "correct": correct[start:stop].sum()}
        halves[number % 2].add(part)
    halves[0].merge(halves[1])
    assert halves[0].rows == 100
    assert halves[0].mean_loss == pytest.approx(losses.mean(), rel=1e-14)
    assert halves[0].accuracy == correct.mean()
    assert halves[0].means() == {"loss": halves[0].mean_loss, "accuracy": halves[0].accuracy}


def test_a_regression_has_no_accuracy():
    """Without classes the accuracy is None, and the means lack it."""
    sums = MetricSums()
    sums.add({"rows": 4, "loss": 2.0})
    assert (sums.accuracy, sums.means()) == (None, {"loss": 0.5})


def test_further_sums_become_means_under_their_names():
    """An objective may bring sums of its own."""
    sums = MetricSums()
    sums.add({"rows": 4, "loss": 2.0, "absolute_error": 6.0})
    assert sums.means() == {"loss": 0.5, "absolute_error": 1.5}


def test_without_rows_there_is_no_mean():
    """NaN, not a division by zero."""
    sums = MetricSums()
    assert math.isnan(sums.mean_loss)
    assert (sums.accuracy, sums.means()) == (None, {})
    sums.add({"rows": 0, "loss": 0.0, "correct": 0})
    assert math.isnan(sums.means()["accuracy"])


def test_merging_with_an_empty_one_changes_nothing():
    """From either side."""
    full = MetricSums()
    full.add({"rows": 2, "loss": 1.0})
    full.merge(MetricSums())
    other = MetricSums()
    other.merge(full)
    assert full == other == MetricSums(2.0, {"loss": 1.0})


def test_merging_does_not_share_what_was_merged():
    """A later addition to one is not seen in the other."""
    one, other = MetricSums(), MetricSums()
    one.add({"rows": 2, "loss": 1.0})
    other.merge(one)
    other.add({"rows": 2, "loss": 1.0})
    assert one == MetricSums(2.0, {"loss": 1.0})


def test_sums_are_float64():
    """A small part is not lost beside a large float32 one."""
    sums = MetricSums()
    for loss in np.array([2.0**24, 1.0], dtype=np.float32):
        sums.add({"rows": 1, "loss": loss})
    assert sums.sums["loss"] == 2.0**24 + 1


def test_parts_that_do_not_fit_together_are_refused():
    """Missing rows and other names are errors, and leave the sums as they were."""
    sums = MetricSums()
    sums.add({"rows": 2, "loss": 1.0, "correct": 1})
    with pytest.raises(ArgumentError, match="'rows'"):
        sums.add({"loss": 1.0})
    with pytest.raises(ArgumentError, match="same names"):
        sums.add({"rows": 2, "loss": 1.0})
    assert sums == MetricSums(2.0, {"loss": 1.0, "correct": 1.0})
