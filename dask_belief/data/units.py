"""How the data are cut into work units: by the chunk grid and the objective's size, and by nothing else.

A unit is a run of whole chunks, or, where a chunk is too large, one of its equal parts::

    chunks      |     0     |     1     |     2     |  3  |
    small ones  |        unit 0         |     unit 1      |      runs of 2 chunks
    large ones  | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9 |10|     3 parts a chunk, fewer for a short one

Units are what sums are made of, so their borders decide the last bits of every loss and gradient. That is why
neither time, nor the seed, nor the number of workers has a say here, and why a checkpoint stores the plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, SupportsIndex, overload

from dask_belief.data.checks import row_count
from dask_belief.errors import ArgumentError, EmptyDataError

# A unit is about as much work as hides what a lease costs (an actor call of 2 ms, a share of a push) and is still
# short enough to be given to another replica when its own is lost: 1e10 operations are 50 ms on one thread with AVX-512
# (2e11 a second, measured for logistic regression and for a network of 1.9 million parameters), 500 ms on a slow one.
UNIT_OPERATIONS = 1e10

# Forward, gradient of the weights and gradient of the inputs: a multiplication and an addition each.
OPERATIONS_PER_PARAMETER = 6

# Reading, decoding and moving a row costs about as much as this many operations a byte.
OPERATIONS_PER_BYTE = 10

# Every unit adds its gradient once, every row computes one. An addition moves 12 bytes a parameter, about 1 ns; 512
# rows are 3072 operations a parameter, 15 ns.
FEWEST_ROWS = 512

# The fewest units that 8 to 16 replicas can share evenly.
FEWEST_UNITS = 32

UNIT_BYTES = 64 * 2**20

# Rows computed at once: enough that a block hides the fifty calls that compute it (40 to 60 microseconds; 1000 rows of
# logistic regression take 380), few enough that inputs and activations stay in the last cache between the passes over
# them. From 1000 to 3000 rows the speed is the same; 500 rows cost a fifth more, 10,000 a tenth.
BLOCK_BYTES = 16 * 2**20
BLOCK_ROWS = 1024


@dataclass(frozen=True)
class WorkUnit:
    """A run of rows that is computed, summed and counted as one.

    Attributes
    ----------
    number
        From 0, in the order of the rows; the leaf of the sum tree.
    start, stop
        The rows ``start`` up to, not including, ``stop``.
    """

    number: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many rows it covers."""
        return self.stop - self.start


@dataclass(frozen=True)
class UnitPlan(Sequence[WorkUnit]):
    """All work units of one data set: a sequence of `WorkUnit`, each computed from its number when asked for.

    Attributes
    ----------
    n_rows
        Rows of the data set, all of which are covered once.
    chunk_rows
        Rows of a chunk.
    unit_rows
        The most rows of a unit. From `chunk_rows` on a unit is as many whole chunks as fit; below, a chunk is cut
        into as few equal parts as fit.
    block_rows
        Rows to be computed at once within a unit.

    Raises
    ------
    ArgumentError
        If a number is less than 1.
    """

    n_rows: int
    chunk_rows: int
    unit_rows: int
    block_rows: int

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, row_count(field.name, getattr(self, field.name)))

    @property
    def units(self) -> Sequence[WorkUnit]:
        """The units in the order of their numbers."""
        return self

    @property
    def largest_rows(self) -> int:
        """The rows of the largest unit."""
        if self.unit_rows >= self.chunk_rows:
            return min(self._run_rows, self.n_rows)
        fewest_parts = -(-self.chunk_rows // self.unit_rows)
        return -(-self.chunk_rows // fewest_parts)

    def __len__(self) -> int:
        if self.unit_rows >= self.chunk_rows:
            return -(-self.n_rows // self._run_rows)
        whole, rest = divmod(self.n_rows, self.chunk_rows)
        return whole * self._parts(self.chunk_rows) + self._parts(rest)

    @overload
    def __getitem__(self, number: SupportsIndex) -> WorkUnit: ...

    @overload
    def __getitem__(self, number: slice) -> list[WorkUnit]: ...

    def __getitem__(self, number: SupportsIndex | slice) -> WorkUnit | list[WorkUnit]:
        if isinstance(number, slice):
            return [self._unit(one) for one in range(*number.indices(len(self)))]
        one = number.__index__()
        if not -len(self) <= one < len(self):
            raise IndexError(f"unit {one} was asked for, the plan has {len(self)}")
        return self._unit(one % len(self))

    def to_config(self) -> dict[str, int]:
        """Describe the plan by plain JSON; the borders follow from it."""
        return asdict(self)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> UnitPlan:
        """Rebuild what `to_config` described.

        Raises
        ------
        ArgumentError
            If names are missing or unknown, or a number is less than 1.
        """
        names = {field.name for field in fields(cls)}
        if set(config) != names:
            raise ArgumentError(f"unit plan: found {sorted(config)}, needed are {sorted(names)}")
        return cls(**config)

    @property
    def _run_rows(self) -> int:
        return self.unit_rows // self.chunk_rows * self.chunk_rows

    def _parts(self, rows: int) -> int:
        """Into how many parts a chunk of `rows` rows is cut; those of a short one are no larger than the others."""
        return -(-rows // self.largest_rows)

    def _unit(self, number: int) -> WorkUnit:
        if self.unit_rows >= self.chunk_rows:
            start = number * self._run_rows
            return WorkUnit(number, start, min(start + self._run_rows, self.n_rows))
        chunk, part = divmod(number, self._parts(self.chunk_rows))
        first = chunk * self.chunk_rows
        rows = min(self.chunk_rows, self.n_rows - first)
        parts = self._parts(rows)
        return WorkUnit(number, first + rows * part // parts, first + rows * (part + 1) // parts)


def plan_units(
    n_rows: int, chunk_rows: int, row_bytes: int, n_parameters: int, *, unit_rows: int | None = None
) -> UnitPlan:
    """Cut a data set into work units.

    The rows of a unit, before it is fitted to the chunks, are ::

        1e10 operations / (6 * n_parameters + 10 * row_bytes)    about this much work,
        at least 512                                             so that adding a gradient costs little,
        at most a 32nd of the rows, at most 64 MiB decoded       so that replicas can share, and memory holds it,
        at least 1

    a later line before an earlier one.

    Parameters
    ----------
    n_rows, chunk_rows
        Rows of the data set, and of one of its chunks.
    row_bytes
        Bytes of one decoded row, inputs and targets.
    n_parameters
        The size of the objective's vector.
    unit_rows
        The most rows of a unit, in place of the rule; still fitted to the chunks.

    Returns
    -------
    UnitPlan
        A pure function of the arguments.

    Raises
    ------
    EmptyDataError
        If there are no rows.
    ArgumentError
        If another argument is less than 1.

    Examples
    --------
    >>> plan = plan_units(60_000, 2_000, 3_144, 407_050)
    >>> len(plan), plan[0], plan.block_rows
    (60, WorkUnit(number=0, start=0, stop=1000), 1000)
    """
    if n_rows == 0:
        raise EmptyDataError("n_rows: the data set has no rows")
    n_rows = row_count("n_rows", n_rows)
    chunk_rows = min(row_count("chunk_rows", chunk_rows), n_rows)
    if row_bytes < 1 or n_parameters < 1:
        raise ArgumentError(f"row_bytes, n_parameters: at least 1 is needed, found {row_bytes} and {n_parameters}")
    if unit_rows is None:
        operations = OPERATIONS_PER_PARAMETER * n_parameters + OPERATIONS_PER_BYTE * row_bytes
        unit_rows = max(-(-int(UNIT_OPERATIONS) // operations), FEWEST_ROWS)
        unit_rows = max(1, min(unit_rows, -(-n_rows // FEWEST_UNITS), UNIT_BYTES // row_bytes))
    plan = UnitPlan(n_rows, chunk_rows, row_count("unit_rows", unit_rows), 1)
    # Blocks of nearly equal size: a unit of 1,100 rows is two of 550, not one of 1,024 and a slow one of 76.
    fewest_blocks = -(-plan.largest_rows // max(1, min(BLOCK_ROWS, BLOCK_BYTES // row_bytes)))
    return replace(plan, block_rows=-(-plan.largest_rows // fewest_blocks))
