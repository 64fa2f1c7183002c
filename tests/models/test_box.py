"""Boxes against sets of indices."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dask_belief.errors import ArgumentError
from dask_belief.models.box import Box
from dask_belief.seeds import stream


def boxes(n: int) -> list[Box]:
    """Draw boxes of two axes, some of them empty."""
    random = stream(0, "boxes")
    ends = np.sort(random.integers(0, 6, (n, 2, 2)), axis=2)
    return [Box(tuple(end[:, 0]), tuple(end[:, 1])) for end in ends]


def elements(box: Box) -> set[tuple[int, ...]]:
    return set(itertools.product(*(range(start, stop) for start, stop in zip(box.starts, box.stops, strict=True))))


def test_what_both_have_is_what_both_sets_have() -> None:
    """And size, emptiness and holding go by the sets, too."""
    for one, other in itertools.product(boxes(20), repeat=2):
        both = one & other
        assert elements(both) == elements(one) & elements(other)
        assert both.size == len(elements(both)) and both.is_empty == (not elements(both))
        assert one.holds(other) == (elements(other) <= elements(one))


def test_elements_lie_where_within_says() -> None:
    """A box is found again in an array that holds only another's elements."""
    numbers = np.arange(6 * 6).reshape(6, 6)
    for one, other in itertools.product(boxes(20), repeat=2):
        held = numbers[one.within(Box.whole(numbers.shape))]
        both = one & other
        if not both.is_empty:
            assert np.array_equal(held[both.within(one)], numbers[both.within(Box.whole(numbers.shape))])


def test_other_borders_along_an_axis() -> None:
    """The other axes stay."""
    assert Box.whole((4, 5)).along(1, 2, 3) == Box((0, 2), (4, 3))


@pytest.mark.parametrize(("starts", "stops"), [((0,), (1, 2)), ((2,), (1,)), ((-1,), (1,))])
def test_what_is_no_box_is_refused(starts: tuple[int, ...], stops: tuple[int, ...]) -> None:
    """Borders have to be in order."""
    with pytest.raises(ArgumentError, match="box"):
        Box(starts, stops)
