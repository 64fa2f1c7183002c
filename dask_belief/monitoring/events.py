"""What happens in a run, as frozen records.

``seconds`` is the time since the run began and ``passes`` how many times, in parts, the training rows have been gone
over; both methods use the same measure, so their curves can be drawn in one picture. Where one call runs several
methods one after another, both run on, and each method has a `RunStarted` and a `Stopped` of its own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeAlias, get_args, get_origin, get_type_hints

from dask_belief.errors import ArgumentError
from dask_belief.monitoring.staleness import StalenessCounts
from dask_belief.optim.stopping import Stop, number_from_json, number_to_json

Json: TypeAlias = "str | int | float | bool | Mapping[str, Json] | Sequence[Json] | None"
"""What a field of an event becomes in JSON."""


@dataclass(frozen=True)
class RunStarted:
    """The cluster is ready and a method begins.

    `planned` is how many iterations or epochs are to come at most, counted in `planned_unit` (``"iterations"`` or
    ``"epochs"``); None if there is no limit. `memory` says in words what is planned for the workers.
    """

    method: str
    n_rows: int
    n_parameters: int
    n_workers: int
    planned: float | None = None
    planned_unit: str = "iterations"
    seconds: float = 0.0
    memory: str = ""


@dataclass(frozen=True)
class IterationEnded:
    """An iteration of a batch method is done.

    Attributes
    ----------
    iteration, evaluations
        Counted from the start of the method.
    loss
        The objective at the new point.
    gradient_norm
        The largest absolute entry of its gradient; with an L1 penalty, of its pseudo-gradient.
    step
        What the line search gave.
    seconds, passes
        See above.
    curvature
        ``s.y / s.s`` of the step s and the change y of the gradient: the objective's second derivative along the step.
    decrease_ratio, slope_ratio
        What the search went by: the decrease over ``step * slope``, at least c1; and the slope that is left over the
        slope that was, at most c2 where both Wolfe conditions hold.
    waiting_seconds, reading_seconds, computing_seconds, sending_seconds
        Of all replicas together, in this iteration's evaluations: without work, waiting for data, in the objective,
        fetching parameters and pushing gradients (which goes on beside computing).
    busiest_seconds
        Computing of the busiest replica of each evaluation; what else an evaluation takes is overhead.
    vector_seconds
        The driver's rounds of messages to the shards, with the shards' work in them.
    fetched_bytes, pushed_bytes
        Bytes of vectors that replicas fetched and pushed, and that the driver copied.
    cache_hits, cache_misses
        Units whose data were in a replica's cache, and units that were read.
    backups_started, backups_won
        Leases that were copied to idle replicas, and copies that were done first.
    backups_wasted_seconds
        Spent on what another had done before.
    """

    iteration: int
    evaluations: int
    loss: float
    gradient_norm: float
    step: float
    seconds: float
    passes: float
    curvature: float = math.nan
    decrease_ratio: float = math.nan
    slope_ratio: float = math.nan
    waiting_seconds: float = 0.0
    reading_seconds: float = 0.0
    computing_seconds: float = 0.0
    sending_seconds: float = 0.0
    busiest_seconds: float = 0.0
    vector_seconds: float = 0.0
    fetched_bytes: int = 0
    pushed_bytes: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    backups_started: int = 0
    backups_won: int = 0
    backups_wasted_seconds: float = 0.0


@dataclass(frozen=True)
class ReplicaProgress:
    """What a replica of Downpour has done so far; all counts and seconds are from its start.

    Attributes
    ----------
    replica, worker
        Its name, and the address of its worker.
    steps, rows
        Mini-batches and rows that it computed.
    n_pushes, n_fetches
        Exchanges that carried a gradient to the shards, and parameters back; one may do both.
    pushed_bytes, fetched_bytes
        Of the vectors in them.
    computing_seconds
        In the objective and in the local step.
    reading_seconds, fetch_waiting_seconds, push_waiting_seconds, lease_waiting_seconds
        Without work because data, parameters, the sending of a gradient, or the next lease were not there.
    pace_waiting_seconds
        Held back because others were too far behind.
    pieces_waiting_seconds
        Of computing, what the lead of a network in pieces waited for the others.
    staleness_mean
        Of its pushes, each by its stalest piece; NaN before the first.
    """

    replica: str
    worker: str
    steps: int
    rows: int
    n_pushes: int
    n_fetches: int
    pushed_bytes: int
    fetched_bytes: int
    computing_seconds: float
    reading_seconds: float
    fetch_waiting_seconds: float
    push_waiting_seconds: float
    lease_waiting_seconds: float
    pace_waiting_seconds: float
    staleness_mean: float = math.nan
    pieces_waiting_seconds: float = 0.0


@dataclass(frozen=True)
class ShardProgress:
    """What a parameter shard has done for Downpour so far; all counts and seconds are from its start.

    Attributes
    ----------
    shard
        Its number.
    n_updates, n_dropped
        Pushes that it applied, and pushes that it had applied before or that came too late.
    received_bytes, sent_bytes
        Of gradients that came and of parameters that went.
    busy_seconds
        Processor time of its exchanges.
    rate
        The learning rate of its next update.
    staleness
        Pushes by how stale they were, see `dask_belief.monitoring.staleness`.
    n_lost
        Mini-batches that it had had when it was lost, and that its replacement found missing.
    """

    shard: int
    n_updates: int
    n_dropped: int
    received_bytes: int
    sent_bytes: int
    busy_seconds: float
    rate: float
    staleness: StalenessCounts
    n_lost: int = 0


@dataclass(frozen=True)
class DownpourProgressed:
    """Replicas have come further.

    Attributes
    ----------
    steps, epochs, rows
        Mini-batches, how often all rows were gone over, in parts, and rows: from the start of the method, over all
        replicas.
    loss
        The mean over the rows since the last such event, each at the parameters of its moment, plus the penalty.
    seconds
        See above.
    rows_per_second
        Since the last such event; NaN where it is not known.
    rate
        The learning rate of the next update, a mean over shards; NaN where it is not known.
    n_pushes, n_dropped
        Exchanges of replicas that carried a gradient, and pushes that shards had had before or that came too late.
    pushed_bytes, fetched_bytes
        Of gradients and of parameters, over all replicas.
    computing_seconds, reading_seconds
    fetch_waiting_seconds, push_waiting_seconds, lease_waiting_seconds, pace_waiting_seconds
    pieces_waiting_seconds
        Sums over replicas, see `ReplicaProgress`.
    server_seconds
        Work of all shards together.
    staleness_mean, staleness_p95, staleness_max
        Of all pushes so far: the mean, what 95 of 100 do not go beyond, the largest; NaN where it was not measured.
    staleness
        Pushes by how stale they were, over all shards, see `dask_belief.monitoring.staleness`.
    replicas, shards
        Each of them, as far as it has told. A `History` keeps those of the last event only.
    passes_before
        Passes over the data by the methods that ran before this one in the same call.
    """

    steps: int
    epochs: float
    rows: int
    loss: float
    seconds: float
    rows_per_second: float = math.nan
    rate: float = math.nan
    n_pushes: int = 0
    n_dropped: int = 0
    pushed_bytes: int = 0
    fetched_bytes: int = 0
    computing_seconds: float = 0.0
    reading_seconds: float = 0.0
    fetch_waiting_seconds: float = 0.0
    push_waiting_seconds: float = 0.0
    lease_waiting_seconds: float = 0.0
    pace_waiting_seconds: float = 0.0
    pieces_waiting_seconds: float = 0.0
    server_seconds: float = 0.0
    staleness_mean: float = math.nan
    staleness_p95: float = math.nan
    staleness_max: float = math.nan
    staleness: StalenessCounts = ()
    replicas: tuple[ReplicaProgress, ...] = ()
    shards: tuple[ShardProgress, ...] = ()
    passes_before: float = 0.0

    @property
    def passes(self) -> float:
        """Passes over the data, in the measure that all events share."""
        return self.passes_before + self.epochs


@dataclass(frozen=True)
class Validated:
    """The validation set was evaluated: the mean loss, and further means by their names, such as ``accuracy``."""

    loss: float
    metrics: Mapping[str, float]
    passes: float
    seconds: float


@dataclass(frozen=True)
class WorkerLost:
    """A worker of the cluster is gone."""

    address: str
    seconds: float = 0.0


@dataclass(frozen=True)
class WorkerJoined:
    """A worker came to the cluster."""

    address: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Rebuilt:
    """Lost parts of the run were made anew; `lost` says what that cost.

    Attributes
    ----------
    reason, lost
        What happened, and what it cost, in words.
    iteration
        The iteration of Sandblaster whose end the run went back to; None where it did not go back.
    updates_lost
        By how many updates shards of Downpour went back, as far as they had told of them.
    seconds_lost
        From what was gone back to until the loss.
    """

    reason: str
    lost: str
    seconds: float = 0.0
    iteration: int | None = None
    updates_lost: int = 0
    seconds_lost: float = 0.0


@dataclass(frozen=True)
class Saved:
    """A state of the run was saved, to its checkpoint or in the memory of workers.

    Attributes
    ----------
    number
        Of the state.
    took_seconds, n_bytes
        How long it took, beside the work, and the bytes of vectors that were carried for it.
    """

    number: int
    seconds: float = 0.0
    took_seconds: float = 0.0
    n_bytes: int = 0


@dataclass(frozen=True)
class Resumed:
    """The run goes on from a checkpoint, from the state of that number; of Sandblaster with the iteration it is at."""

    number: int
    seconds: float = 0.0
    iteration: int | None = None


@dataclass(frozen=True)
class Stopped:
    """A method has ended, and with the last one the run."""

    stop: Stop
    seconds: float = 0.0
    passes: float | None = None


Event: TypeAlias = (
    RunStarted
    | IterationEnded
    | DownpourProgressed
    | Validated
    | WorkerLost
    | WorkerJoined
    | Rebuilt
    | Saved
    | Resumed
    | Stopped
)

EVENT_KINDS: Mapping[str, type[Event]] = {
    kind.__name__: kind
    for kind in (
        RunStarted,
        IterationEnded,
        DownpourProgressed,
        Validated,
        WorkerLost,
        WorkerJoined,
        Rebuilt,
        Saved,
        Resumed,
        Stopped,
    )
}
"""All kinds by their names."""


def moved_on(event: Event, seconds: float, passes: float) -> Event:
    """Give an event of a method as of a run that had lasted so long, and made so many passes, when the method began.

    Examples
    --------
    >>> moved_on(Validated(loss=0.5, metrics={}, passes=2.0, seconds=1.0), seconds=60.0, passes=5.0)
    Validated(loss=0.5, metrics={}, passes=7.0, seconds=61.0)
    """
    changes: dict[str, Any] = {"seconds": event.seconds + seconds}
    if isinstance(event, DownpourProgressed):
        changes["passes_before"] = event.passes_before + passes
    elif isinstance(event, IterationEnded | Validated | Stopped) and event.passes is not None:
        changes["passes"] = event.passes + passes
    return replace(event, **changes)


def event_to_config(event: Event) -> dict[str, Json]:
    """Describe an event by plain JSON: its ``kind`` and its fields."""
    config: dict[str, Json] = {"kind": type(event).__name__}
    for entry in fields(event):
        config[entry.name] = _to_json(getattr(event, entry.name))
    return config


def event_from_config(config: Mapping[str, Any]) -> Event:
    """Rebuild an event from `event_to_config`.

    Raises
    ------
    ArgumentError
        The kind is unknown, or the fields are not those of the kind.
    """
    kind = EVENT_KINDS.get(config.get("kind", ""))
    if kind is None:
        raise ArgumentError(f"kind: one of {', '.join(EVENT_KINDS)} is needed, got {config.get('kind')!r}")
    event: Event = _record_from_json({name: value for name, value in config.items() if name != "kind"}, kind)
    return event


def _to_json(value: object) -> Json:
    if isinstance(value, Stop):
        return _to_json(dict(value.to_config()))
    if isinstance(value, Mapping):
        return {name: _to_json(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return [_to_json(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {entry.name: _to_json(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, float):
        return number_to_json(value)
    if value is None or isinstance(value, str | int):
        return value
    raise ArgumentError(
        f"event: fields are numbers, strings, tuples, mappings, records or a Stop, got {type(value).__name__}"
    )


# What the fields of a record are declared as, by name.
_declared = functools.cache(get_type_hints)


def _record_from_json(given: Mapping[str, Any], kind: type) -> Any:
    """Make a record of its fields in JSON."""
    declared = _declared(kind)
    unknown = given.keys() - declared.keys()
    if unknown:
        raise ArgumentError(f"config: {kind.__name__} has no field {sorted(unknown)}; it has {sorted(declared)}")
    try:
        return kind(**{name: _from_json(value, declared[name]) for name, value in given.items()})
    except (TypeError, AttributeError) as error:
        raise ArgumentError(f"config: {kind.__name__} cannot be made of {sorted(given)}: {error}") from error


def _from_json(value: Any, declared: Any) -> Any:
    """Make what a field holds, by what it is declared as."""
    if declared is Stop:
        return Stop.from_config(value)
    if get_origin(declared) is tuple:
        return tuple(_from_json(item, get_args(declared)[0]) for item in value)
    if isinstance(declared, type) and is_dataclass(declared):
        return _record_from_json(value, declared)
    if get_origin(declared) is Mapping:
        return {name: number_from_json(item) for name, item in value.items()}
    kinds = (declared, *get_args(declared))
    if value is None and type(None) in kinds:
        return None
    if int in kinds and (isinstance(value, bool) or not isinstance(value, int)):
        raise TypeError(f"a whole number is needed, got {value!r}")
    return number_from_json(value) if float in kinds else value
