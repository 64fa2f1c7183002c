"""Boxes of nodes: which part of an array of nodes, or of parameters, somebody has or needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dask_belief.errors import ArgumentError
from dask_belief.models.layout import Shape


@dataclass(frozen=True)
class Box:
    """The elements of an array from `starts` up to, not including, `stops`, along each of its axes.

    Raises
    ------
    ArgumentError
        The two have not the same length, or a start is below zero or above its stop.

    Examples
    --------
    >>> upper, lower = Box((0, 0), (5, 8)), Box((3, 0), (9, 8))
    >>> upper & lower
    Box(starts=(3, 0), stops=(5, 8))
    >>> (upper & lower).shape, upper.size
    ((2, 8), 40)
    """

    starts: Shape
    stops: Shape

    def __post_init__(self) -> None:
        """Check that it is one."""
        object.__setattr__(self, "starts", tuple(int(start) for start in self.starts))
        object.__setattr__(self, "stops", tuple(int(stop) for stop in self.stops))
        is_one = len(self.starts) == len(self.stops)
        if not is_one or any(not 0 <= start <= stop for start, stop in zip(self.starts, self.stops, strict=True)):
            raise ArgumentError(f"box: expected as many starts as stops, none below its start, got {self!r}.")

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Box:
        """Give the box of all elements of an array."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def shape(self) -> Shape:
        """How long it is along each axis."""
        return tuple(stop - start for start, stop in zip(self.starts, self.stops, strict=True))

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def is_empty(self) -> bool:
        """Whether it has none."""
        return self.size == 0

    def __and__(self, other: Box) -> Box:
        """Give what both have; a box of no elements where that is nothing."""
        starts = tuple(max(own, others) for own, others in zip(self.starts, other.starts, strict=True))
        stops = tuple(min(own, others) for own, others in zip(self.stops, other.stops, strict=True))
        return Box(starts, tuple(max(start, stop) for start, stop in zip(starts, stops, strict=True)))

    def holds(self, other: Box) -> bool:
        """Whether all of the other's elements are among these."""
        return other.is_empty or self & other == other

    def within(self, outer: Box) -> tuple[slice, ...]:
        """Give where these elements lie in an array that holds the elements of `outer`, which holds them all."""
        return tuple(
            slice(start - offset, stop - offset)
            for start, stop, offset in zip(self.starts, self.stops, outer.starts, strict=True)
        )

    def along(self, axis: int, start: int, stop: int) -> Box:
        """Give the same box with other borders along one axis."""
        starts, stops = list(self.starts), list(self.stops)
        starts[axis], stops[axis] = start, stop
        return Box(tuple(starts), tuple(stops))
