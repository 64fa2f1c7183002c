"""Ranges chosen from a vector: what a sparse push or fetch covers, and the copies in and out.

::

    vector    |  aa    bbb  c       dddddddddddd   |        runs     [[2, 4], [8, 11], [13, 14], [21, 33]]
    compact   |aabbbcdddddddddddd|                          the same numbers without the gaps

What travels is the compact vector and the runs. A mini-batch of an embedding touches thousands of short runs, so that a
loop over them would cost more than the gradient: neighbouring short runs are copied by one array of indices, long ones
by slices. The short runs of an embedding are whole rows of its table. Their borders have a common divisor, the grain,
and the indices count grains instead of elements: of 200,000 numbers in rows of 64 a copy takes 0.02 ms, by the element
0.13, by slices 0.65.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_belief.errors import ArgumentError

Runs = NDArray[np.int64]
"""Half-open ranges of a vector, int64 ``(n_runs, 2)``: each holds something, sorted, none overlaps the next."""

LONG = 4096
"""From so many elements a run is copied by a slice, which costs about 0.3 microseconds more than its bytes."""

_ADDED_ELEMENTS = 65_536
"""How many elements `Selection.add` gathers at once, so that its temporary memory stays in the cache."""


class Selection:
    """Ranges of a vector, and how they are copied to and from a compact one; never changed.

    Vectors are NumPy's, of one axis and C-contiguous, of any dtype; a compact one has `n_elements`, in the order of the
    runs.

    Parameters
    ----------
    runs
        Int64 ``(n_runs, 2)``: half-open ranges, sorted, none empty, without overlap.

    Raises
    ------
    ArgumentError
        When `runs` are not such ranges.

    Examples
    --------
    >>> chosen = Selection(np.array([[1, 3], [5, 6]]))
    >>> compact = chosen.take(np.arange(8) * 10)
    >>> compact.tolist()
    [10, 20, 50]
    >>> vector = np.zeros(8, int)
    >>> chosen.put(compact, vector)
    >>> vector.tolist()
    [0, 10, 20, 0, 0, 50, 0, 0]
    >>> chosen.within(2, 8).runs.tolist()
    [[0, 1], [3, 4]]
    """

    __slots__ = ("_n_elements", "_parts", "_runs", "_starts", "_stops")

    def __init__(self, runs: Runs) -> None:
        given = np.asarray(runs)
        if given.ndim != 2 or given.shape[1] != 2 or given.dtype.kind not in "iu":
            raise ArgumentError(
                f"runs: expected whole numbers of shape (n_runs, 2), got {given.dtype} of shape {given.shape}."
            )
        flat = np.array(given, np.int64).reshape(-1)
        gaps = np.diff(flat)
        if flat.size and (flat[0] < 0 or gaps.min() < 0 or gaps[::2].min() < 1):
            raise ArgumentError("runs: expected sorted ranges from 0, none empty and none overlapping the next.")
        self._set(flat.reshape(-1, 2))

    def _set(self, runs: Runs) -> None:
        runs.flags.writeable = False
        self._runs = runs
        self._starts, self._stops = np.ascontiguousarray(runs.T)
        self._n_elements = int((self._stops - self._starts).sum())
        self._parts: tuple[_Part, ...] | None = None

    @classmethod
    def _of(cls, runs: Runs) -> Selection:
        """Make it of an array of its own that is known to be right."""
        made = cls.__new__(cls)
        made._set(runs)
        return made

    @classmethod
    def union(cls, *selections: Selection) -> Selection:
        """Choose what any of them chooses; ranges that meet become one."""
        runs = np.concatenate([np.empty((0, 2), np.int64), *(selection.runs for selection in selections)])
        # A stable sort joins what is sorted already.
        runs = runs[np.argsort(runs[:, 0], kind="stable")]
        reached = np.maximum.accumulate(runs[:, 1])
        is_last = np.ones(len(runs), np.bool_)
        np.greater(runs[1:, 0], reached[:-1], out=is_last[:-1])
        is_first = np.roll(is_last, 1)
        return cls._of(np.stack([runs[is_first, 0], reached[is_last]], axis=1))

    @property
    def runs(self) -> Runs:
        """The ranges, read-only; what is sent, and what a selection is made from again."""
        return self._runs

    @property
    def n_elements(self) -> int:
        """How many elements are chosen: the length of the compact vector."""
        return self._n_elements

    def __len__(self) -> int:
        """Count the runs."""
        return len(self._runs)

    def __eq__(self, other: object) -> bool:
        """Whether the runs are the same."""
        return isinstance(other, Selection) and np.array_equal(self._runs, other._runs)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Selection({len(self)} runs, {self.n_elements} elements)"

    def __reduce__(self) -> tuple[type[Selection], tuple[Runs]]:
        """Pickle as its runs."""
        return Selection, (self._runs,)

    def within(self, start: int, stop: int) -> Selection:
        """Choose the same from ``vector[start:stop]``: clipped to it, and counted from its beginning."""
        first = int(np.searchsorted(self._stops, start, side="right"))
        last = int(np.searchsorted(self._starts, stop, side="left")) if stop > start else first
        runs = self._runs[first:last] - start
        if len(runs):
            runs[0, 0] = max(runs[0, 0], 0)
            runs[-1, 1] = min(runs[-1, 1], stop - start)
        return self._of(runs)

    def take(self, vector: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Copy what is chosen.

        Parameters
        ----------
        vector
            Holds every run.
        out
            Where to, ``(n_elements,)`` and of the dtype of `vector`; without it the array is new.

        Returns
        -------
        numpy.ndarray
            `out`, or the new array.

        Raises
        ------
        ArgumentError
            An array is too short, or not contiguous.
        """
        compact = np.empty(self._n_elements, vector.dtype) if out is None else out
        self._check(vector, compact, "out")
        for part, chosen, kept in self._places(vector, compact):
            if part.grains is None:
                kept[...] = chosen
            else:
                # All are inside, by the check above; "raise" would copy through a buffer.
                np.take(chosen, part.grains, axis=0, out=kept, mode="clip")
        return compact

    def put(self, compact: NDArray[Any], vector: NDArray[Any]) -> None:
        """Write a compact vector to what is chosen, and nothing beside it.

        Raises
        ------
        ArgumentError
            An array is too short, or not contiguous.
        """
        self._check(vector, compact, "compact")
        for part, chosen, kept in self._places(vector, compact):
            chosen[... if part.grains is None else part.grains] = kept

    def add(self, compact: NDArray[Any], vector: NDArray[Any]) -> None:
        """Add a compact vector to what is chosen.

        Raises
        ------
        ArgumentError
            An array is too short, or not contiguous.
        """
        self._check(vector, compact, "compact")
        for part, chosen, kept in self._places(vector, compact):
            if part.grains is None:
                np.add(chosen, kept, out=chosen)
                continue
            step = max(1, _ADDED_ELEMENTS // part.grain)
            for start in range(0, len(part.grains), step):
                block = slice(start, start + step)
                chosen[part.grains[block]] += kept[block]

    def fill(self, vector: NDArray[Any], value: float) -> None:
        """Write one value to all that is chosen.

        Raises
        ------
        ArgumentError
            `vector` is too short, or not contiguous.
        """
        self._check(vector)
        for part in self._copied():
            part.view(vector)[... if part.grains is None else part.grains] = value

    def _check(self, vector: NDArray[Any], compact: NDArray[Any] | None = None, name: str = "") -> None:
        end = int(self._stops[-1]) if len(self) else 0
        if vector.ndim != 1 or len(vector) < end or not vector.flags.c_contiguous:
            raise ArgumentError(
                f"vector: expected one axis of {end} or more, contiguous, got shape {vector.shape} with strides "
                f"{vector.strides}."
            )
        if compact is not None and (compact.shape != (self._n_elements,) or not compact.flags.c_contiguous):
            raise ArgumentError(
                f"{name}: expected shape ({self._n_elements},), contiguous, got {compact.shape} with strides "
                f"{compact.strides}."
            )

    def _places(
        self, vector: NDArray[Any], compact: NDArray[Any]
    ) -> Iterator[tuple[_Part, NDArray[Any], NDArray[Any]]]:
        """Give each part with its views of both vectors."""
        start = 0
        for part in self._copied():
            stop = start + part.n_elements
            yield part, part.view(vector), part.rows(compact[start:stop])
            start = stop

    def _copied(self) -> tuple[_Part, ...]:
        """How the runs are copied; found at the first copy, since many selections are only sent."""
        if self._parts is None:
            self._parts = tuple(_parts(self._runs))
        return self._parts


class _Part(NamedTuple):
    """Neighbouring runs that are copied at once.

    Attributes
    ----------
    start, stop
        The part of the vector in which they lie.
    n_elements
        How many are chosen.
    grain
        How many elements an index stands for.
    grains
        Which grains, counted from `start`, are chosen, ``(n_elements // grain,)``; None for all of the part.
    """

    start: int
    stop: int
    n_elements: int
    grain: int = 1
    grains: NDArray[np.intp] | None = None

    def view(self, vector: NDArray[Any]) -> NDArray[Any]:
        """The part of a vector, as rows of a grain each."""
        return self.rows(vector[self.start : self.stop])

    def rows(self, elements: NDArray[Any]) -> NDArray[Any]:
        """View elements as rows of a grain each."""
        return elements if self.grain == 1 else elements.reshape(-1, self.grain)


def _parts(runs: Runs) -> Iterator[_Part]:
    """Cut runs into parts, in their order."""
    group = 0
    for number in np.flatnonzero(runs[:, 1] - runs[:, 0] >= LONG).tolist():
        yield from _short_parts(runs[group:number])
        yield _whole(runs[number])
        group = number + 1
    yield from _short_parts(runs[group:])


def _short_parts(runs: Runs) -> Iterator[_Part]:
    """Give the parts of neighbouring short runs: first and last by themselves, what lies between by an index.

    Where a vector is cut into pieces, the run at the border may be part of a row. It alone would spoil the grain.
    """
    if len(runs):
        yield _whole(runs[0])
    if len(runs) > 2:
        yield _indexed(runs[1:-1])
    if len(runs) > 1:
        yield _whole(runs[-1])


def _whole(run: Runs) -> _Part:
    start, stop = run.tolist()
    return _Part(start, stop, stop - start)


def _indexed(runs: Runs) -> _Part:
    start, stop = int(runs[0, 0]), int(runs[-1, 1])
    grain = int(np.gcd.reduce(runs.reshape(-1) - start))
    firsts, counts = (runs[:, 0] - start) // grain, (runs[:, 1] - runs[:, 0]) // grain
    n_grains = int(counts.sum())
    if n_grains == len(runs):
        index = firsts
    else:
        # Each run's indices go up by one from its first: what comes before it is taken off the count.
        index = np.repeat(firsts - (np.cumsum(counts) - counts), counts)
        index += np.arange(n_grains)
    return _Part(start, stop, n_grains * grain, grain, index.astype(np.intp, copy=False))
