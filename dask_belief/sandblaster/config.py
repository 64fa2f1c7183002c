"""The options of Sandblaster L-BFGS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dask_belief.checks import check_count, check_number


@dataclass(frozen=True)
class Sandblaster:
    """Batch L-BFGS whose every value and gradient is a pass over all rows, shared by all workers (section 4.2).

    The objective is the mean over rows of the loss plus ``l2 / 2 * ||w||^2``.

    Parameters
    ----------
    max_iter
        Iterations at most.
    history_size
        Curvature pairs kept on the shards (the ``m`` of L-BFGS).
    l2
        Weight of the penalty, zero or more; a Network's biases are left out of it.
    gtol
        Ends when the largest magnitude in the gradient of the objective is at most this.
    ftol
        Ends when an iteration lowers the objective by at most this, relative to ``max(|f|, 1)``.
    max_evaluations, max_seconds
        Further limits, looked at after each iteration; None for none.
    n_shards
        Parameter shards; None for one a worker. A shard holds at least 65,536 parameters.
    unit_rows
        Rows of a work unit; None to derive them from the chunk grid and the objective's size.
    cache_bytes
        Decoded data that a replica keeps between passes; None for four tenths of its worker's memory limit, divided by
        the worker's threads (1 GiB where there is no limit).

    Raises
    ------
    ArgumentError
        For a value out of range, with its name.
    """

    name: ClassVar[str] = "Sandblaster L-BFGS"

    max_iter: int = 100
    history_size: int = 10
    l2: float = 0.0
    gtol: float = 1e-5
    ftol: float = 1e-9
    max_evaluations: int | None = None
    max_seconds: float | None = None
    n_shards: int | None = None
    unit_rows: int | None = None
    cache_bytes: int | None = None

    def __post_init__(self) -> None:
        check_count("max_iter", self.max_iter)
        check_count("history_size", self.history_size)
        for name in ("l2", "gtol", "ftol"):
            check_number(name, getattr(self, name), low=0.0)
        for name in ("max_evaluations", "n_shards", "unit_rows"):
            check_count(name, getattr(self, name), may_be_none=True)
        check_count("cache_bytes", self.cache_bytes, low=0, may_be_none=True)
        check_number("max_seconds", self.max_seconds, low=0.0, may_be_none=True)
