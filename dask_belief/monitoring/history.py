"""The events of a run as a table: one row an event, one column a field."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dask_belief.errors import ArgumentError
from dask_belief.monitoring import staleness
from dask_belief.monitoring.events import (
    EVENT_KINDS,
    DownpourProgressed,
    Event,
    IterationEnded,
    Json,
    Rebuilt,
    Resumed,
    RunStarted,
    Stopped,
    Validated,
    event_from_config,
    event_to_config,
)

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

Row: TypeAlias = dict[str, Any]
"""An event as columns and values; ``event`` is the kind."""

# What an event of Downpour's holds besides single numbers: it stands in tables of its own.
_TABLES = ("staleness", "replicas", "shards")


class History:
    """Keeps what happened, in order; a callback like any other.

    Columns are named as the fields of the events, except that a validation's loss and metrics begin with
    ``validation_`` (``validation_loss``, ``validation_accuracy``) and the reason to stop is in ``stop``. A row has the
    columns of its event only.

    What Downpour tells of each replica and shard is a count from the start, so it is kept of the last event only: the
    history of a long run on many workers stays small. A callback gets all of it.

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
        self._events: list[Event] = []
        # Where the last event of Downpour's is; -1 for nowhere.
        self._last_place = -1
        for event in events:
            self(event)

    def __call__(self, event: Event) -> None:
        """Append an event; iterations that a run went back over come again, and those before are dropped."""
        if isinstance(event, Rebuilt | Resumed) and event.iteration is not None:
            self._go_back(event.iteration)
        if isinstance(event, DownpourProgressed):
            last = self._last_of_downpour()
            if last is not None:
                self._events[self._last_place] = replace(last, replicas=(), shards=())
            self._last_place = len(self._events)
        self._events.append(event)

    def _go_back(self, iteration: int) -> None:
        """Drop the iterations after one, of the method that runs."""
        begun = max((at for at, event in enumerate(self._events) if isinstance(event, RunStarted)), default=0)
        kept = [
            event
            for event in self._events[begun:]
            if not (isinstance(event, IterationEnded) and event.iteration > iteration)
        ]
        self._events[begun:] = kept

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

    def staleness(self) -> dict[int, int]:
        """Give how stale Downpour's pushes were: how many there were of each staleness; empty if not measured.

        Up to 31 each staleness has an entry of its own. Past that an entry holds those from its key up to twice the
        key, see `dask_belief.monitoring.staleness`. Those without pushes are left out.

        Examples
        --------
        >>> counts = (5, 0, 2) + (0,) * (staleness.N_BINS - 3)
        >>> History([DownpourProgressed(7, 1.0, 70, loss=0.5, seconds=1.0, staleness=counts)]).staleness()
        {0: 5, 2: 2}
        """
        last = self._last_of_downpour()
        counts = () if last is None else last.staleness
        return {staleness.lower_end(number): count for number, count in enumerate(counts) if count}

    def replicas(self) -> list[Row]:
        """Give what each replica of Downpour had done at the last event, a row each: see `ReplicaProgress`."""
        last = self._last_of_downpour()
        return [] if last is None else [asdict(replica) for replica in last.replicas]

    def shards(self) -> list[Row]:
        """Give what each shard had done for Downpour at the last event, a row each: see `ShardProgress`.

        Of its staleness there are ``staleness_mean``, ``staleness_p95`` and ``staleness_max``.
        """
        last = self._last_of_downpour()
        rows = []
        for shard in () if last is None else last.shards:
            row = asdict(shard)
            counts = row.pop("staleness")
            measures = (staleness.mean(counts), staleness.quantile(counts, 0.95), staleness.largest(counts))
            rows.append(row | dict(zip(("staleness_mean", "staleness_p95", "staleness_max"), measures, strict=True)))
        return rows

    def _last_of_downpour(self) -> DownpourProgressed | None:
        event = self._events[self._last_place] if self._last_place >= 0 else None
        return event if isinstance(event, DownpourProgressed) else None

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
        ax = _axes("plot") if ax is None else ax
        for column, label in (("loss", "training loss"), ("validation_loss", "validation loss")):
            points = [(row["passes"], row[column]) for row in self.rows() if column in row]
            if points:
                ax.plot(*np.asarray(points, dtype=np.float64).T, label=label)
        ax.set_xlabel("passes over the training rows")
        ax.set_ylabel("loss")
        if ax.get_legend_handles_labels()[1]:
            ax.legend()
        return ax

    def plot_staleness(self, ax: Axes | None = None) -> Axes:
        """Draw how many of Downpour's pushes were how stale; past 31 the bars are of bins, each twice the one before.

        Parameters
        ----------
        ax
            Where to draw; None: the current axes of pyplot.

        Returns
        -------
        matplotlib.axes.Axes
            The axes drawn on; without bars where nothing was measured.

        Raises
        ------
        ImportError
            matplotlib is not installed.
        """
        ax = _axes("plot_staleness") if ax is None else ax
        last = self._last_of_downpour()
        counts = np.trim_zeros(() if last is None else last.staleness, "b")
        if len(counts):
            bins = range(len(counts))
            ax.bar(bins, counts)
            step = -(-len(counts) // 16)
            ax.set_xticks(bins[::step], [staleness.label(number) for number in bins[::step]])
        ax.set_xlabel("staleness of a push, in updates")
        ax.set_ylabel("pushes")
        return ax

    def to_config(self) -> list[dict[str, Json]]:
        """Describe all events by plain JSON."""
        return [event_to_config(event) for event in self._events]

    @classmethod
    def from_config(cls, config: Iterable[Mapping[str, Any]]) -> History:
        """Rebuild a history from `to_config`; an unknown event is refused with an `ArgumentError`."""
        return cls(event_from_config(event) for event in config)


def _axes(method: str) -> Axes:
    """The current axes of pyplot, for a method that is named in the error."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(f"{method}: needs matplotlib, which is not installed; pip install matplotlib") from error
    return pyplot.gca()


def _row(event: Event) -> Row:
    row: Row = {"event": type(event).__name__}
    if isinstance(event, Validated):
        # The metrics may hold the loss again: then both have the same value.
        row |= {f"validation_{name}": number for name, number in event.metrics.items()}
        return row | {"validation_loss": event.loss, "passes": event.passes, "seconds": event.seconds}
    if isinstance(event, Stopped):
        row |= {"stop": event.stop.reason.value, "seconds": event.seconds}
        return row if event.passes is None else row | {"passes": event.passes}
    row |= {entry.name: getattr(event, entry.name) for entry in fields(event) if entry.name not in _TABLES}
    return row | {"passes": event.passes} if isinstance(event, DownpourProgressed) else row


def _known_columns() -> set[str]:
    """Every column that a history can have, validation metrics of any name aside."""
    names = {entry.name for kind in EVENT_KINDS.values() for entry in fields(kind)}
    return (names - {"metrics", *_TABLES}) | {"event", "validation_loss"}
