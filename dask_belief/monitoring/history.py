"""The events of a run as a table: one row an event, one column a field."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dask_belief.errors import ArgumentError
from dask_belief.monitoring.events import (
    EVENT_KINDS,
    DownpourProgressed,
    Event,
    Json,
    Stopped,
    Validated,
    event_from_config,
    event_to_config,
)

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

Row: TypeAlias = dict[str, float | int | str | None]
"""An event as columns and values; ``event`` is the kind."""


class History:
    """Keeps what happened, in order; a callback like any other.

    Columns are named as the fields of the events, except that a validation's loss and metrics begin with
    ``validation_`` (``validation_loss``, ``validation_accuracy``) and the reason to stop is in ``stop``. A row has the
    columns of its event only.

    Parameters
    ----------
    events
        What happened before, when a run is resumed.

    Examples
    --------
    >>> from dask_belief.monitoring.events import IterationEnded, Validated
    >>> history = History()
    >>> history(IterationEnded(1, 2, loss=0.5, gradient_norm=0.1, step=1.0, seconds=0.1, passes=2.0))
    >>> history(Validated(loss=0.6, metrics={"accuracy": 0.8}, passes=2.0, seconds=0.2))
    >>> history["loss"], history["validation_loss"], history["passes"]
    ([0.5], [0.6], [2.0, 2.0])
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self._events = list(events)

    def __call__(self, event: Event) -> None:
        """Append an event."""
        self._events.append(event)

    def __len__(self) -> int:
        """Count the events."""
        return len(self._events)

    def __iter__(self) -> Iterator[Event]:
        """Go through the events, in order."""
        return iter(self.events)

    def __getitem__(self, column: str) -> list[Any]:
        """Give the values of one column, over the rows that have it; empty if no row has it yet.

        Raises
        ------
        ArgumentError
            No kind of event has such a column.
        """
        values = [row[column] for row in self.rows() if column in row]
        if not values and column not in _known_columns() and not column.startswith("validation_"):
            raise ArgumentError(f"column: there is no {column!r}; there are {', '.join(sorted(_known_columns()))}")
        return values

    @property
    def events(self) -> tuple[Event, ...]:
        """The events themselves, in order."""
        return tuple(self._events)

    def rows(self, kind: type[Event] | str | None = None) -> list[Row]:
        """Give the table, or the rows of one kind of event.

        Raises
        ------
        ArgumentError
            There is no such kind.
        """
        name = kind.__name__ if isinstance(kind, type) else kind
        if name is not None and name not in EVENT_KINDS:
            raise ArgumentError(f"kind: one of {', '.join(EVENT_KINDS)} is needed, got {name!r}")
        return [_row(event) for event in self._events if name in (None, type(event).__name__)]

    def to_frame(self) -> pandas.DataFrame:
        """Give the table as a pandas data frame; what a row lacks is NaN.

        Raises
        ------
        ImportError
            pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_frame: needs pandas, which is not installed; pip install pandas") from error
        return pandas.DataFrame(self.rows())

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the training loss and the validation loss against passes over the data.

        Parameters
        ----------
        ax
            Where to draw; None: the current axes of pyplot.

        Returns
        -------
        matplotlib.axes.Axes
            The axes drawn on, for titles and for more curves.

        Raises
        ------
        ImportError
            matplotlib is not installed.
        """
        if ax is None:
            try:
                from matplotlib import pyplot
            except ImportError as error:
                raise ImportError("plot: needs matplotlib, which is not installed; pip install matplotlib") from error
            ax = pyplot.gca()
        for column, label in (("loss", "training loss"), ("validation_loss", "validation loss")):
            points = [(row["passes"], row[column]) for row in self.rows() if column in row]
            if points:
                ax.plot(*np.asarray(points, dtype=np.float64).T, label=label)
        ax.set_xlabel("passes over the training rows")
        ax.set_ylabel("loss")
        if ax.get_legend_handles_labels()[1]:
            ax.legend()
        return ax

    def to_config(self) -> list[dict[str, Json]]:
        """Describe all events by plain JSON."""
        return [event_to_config(event) for event in self._events]

    @classmethod
    def from_config(cls, config: Iterable[Mapping[str, Any]]) -> History:
        """Rebuild a history from `to_config`; an unknown event is refused with an `ArgumentError`."""
        return cls(event_from_config(event) for event in config)


def _row(event: Event) -> Row:
    row: Row = {"event": type(event).__name__}
    if isinstance(event, Validated):
        # The metrics may hold the loss again: then both have the same value.
        row |= {f"validation_{name}": number for name, number in event.metrics.items()}
        return row | {"validation_loss": event.loss, "passes": event.passes, "seconds": event.seconds}
    if isinstance(event, Stopped):
        row |= {"stop": event.stop.reason.value, "seconds": event.seconds}
        return row if event.passes is None else row | {"passes": event.passes}
    row |= {entry.name: getattr(event, entry.name) for entry in fields(event)}
    return row | {"passes": event.passes} if isinstance(event, DownpourProgressed) else row


def _known_columns() -> set[str]:
    """Every column that a history can have, validation metrics of any name aside."""
    names = {entry.name for kind in EVENT_KINDS.values() for entry in fields(kind)}
    return (names - {"metrics"}) | {"event", "validation_loss"}
