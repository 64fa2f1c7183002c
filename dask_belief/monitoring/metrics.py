"""Sums over rows that can be added from anywhere, and the means that people read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dask_belief.errors import ArgumentError


@dataclass
class MetricSums:
    """Sums over the rows evaluated so far, in float64.

    Means of parts cannot be joined, sums can: a loss over the whole set is the sum over its units, in any grouping.

    Attributes
    ----------
    rows : float
        How many rows are in.
    sums : dict of str to float
        Every other sum by its name, such as ``loss``, and ``correct`` for classifiers.

    Examples
    --------
    >>> sums = MetricSums()
    >>> sums.add({"rows": 8, "loss": 4.0, "correct": 6})
    >>> sums.add({"rows": 2, "loss": 1.0, "correct": 2})
    >>> sums.mean_loss, sums.accuracy
    (0.5, 0.8)
    """

    rows: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, sums: Mapping[str, float]) -> None:
        """Add the sums of some rows.

        Parameters
        ----------
        sums
            What `Network.evaluate` returns: ``rows``, ``loss``, ``correct`` where there are classes; further sums are
            welcome.

        Raises
        ------
        ArgumentError
            ``rows`` is missing, or the names differ from those added before.
        """
        if "rows" not in sums:
            raise ArgumentError(f"sums: the number of rows is needed under 'rows', got {sorted(sums)}")
        others = {name: float(number) for name, number in sums.items() if name != "rows"}
        if self.sums and others.keys() != self.sums.keys():
            raise ArgumentError(
                f"sums: every part must bring the same names, got {sorted(others)} after {sorted(self.sums)}"
            )
        self.rows += float(sums["rows"])
        self.sums = {name: self.sums.get(name, 0.0) + number for name, number in others.items()}

    def merge(self, other: MetricSums) -> None:
        """Add what another one has gathered; one without rows changes nothing."""
        if other.rows or other.sums:
            self.add({"rows": other.rows, **other.sums})

    @property
    def mean_loss(self) -> float:
        """The loss per row; NaN without rows."""
        return self._mean("loss")

    @property
    def accuracy(self) -> float | None:
        """The share of rows classified correctly, NaN without rows; None where there are no classes."""
        return self._mean("correct") if "correct" in self.sums else None

    def means(self) -> dict[str, float]:
        """Every sum per row by its name, ``correct`` under the name ``accuracy``."""
        return {"accuracy" if name == "correct" else name: self._mean(name) for name in self.sums}

    def _mean(self, name: str) -> float:
        return self.sums.get(name, 0.0) / self.rows if self.rows else float("nan")
