"""What happens in a run, as frozen records.

``seconds`` is the time since the run began and ``passes`` how many times, in parts, the training rows have been gone
over; both methods use the same measure, so their curves can be drawn in one picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from dask_belief.errors import ArgumentError
from dask_belief.optim.stopping import Stop, number_from_json, number_to_json

Json: TypeAlias = "str | int | float | bool | Mapping[str, Json] | None"
"""What a field of an event becomes in JSON."""


@dataclass(frozen=True)
class RunStarted:
    """The cluster is ready and the method begins.

    `planned` is how many iterations or epochs are to come at most, counted in `planned_unit` (``"iterations"`` or
    ``"epochs"``); None if there is no limit.
    """

    method: str
    n_rows: int
    n_parameters: int
    n_workers: int
    planned: float | None = None
    planned_unit: str = "iterations"
    seconds: float = 0.0


@dataclass(frozen=True)
class IterationEnded:
    """An iteration of a batch method is done.

    Attributes
    ----------
    iteration, evaluations
        Counted from the start of the run.
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
class DownpourProgressed:
    """Replicas have come further.

    `steps` and `rows` count mini-batches and rows from the start, over all replicas; `epochs` is how often all rows
    were gone over, in parts; `loss` is the mean over the rows since the last such event, each at the parameters of its
    moment, plus the penalty.
    """

    steps: int
    epochs: float
    rows: int
    loss: float
    seconds: float

    @property
    def passes(self) -> float:
        """The same as `epochs`, under the name that all events share."""
        return self.epochs


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
    """Lost parts of the run were made anew; `lost` says what that cost."""

    reason: str
    lost: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Stopped:
    """The run has ended."""

    stop: Stop
    seconds: float = 0.0
    passes: float | None = None


Event: TypeAlias = (
    RunStarted | IterationEnded | DownpourProgressed | Validated | WorkerLost | WorkerJoined | Rebuilt | Stopped
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
        Stopped,
    )
}
"""All kinds by their names."""


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
    annotations = {entry.name: str(entry.type) for entry in fields(kind)}
    given = {name: value for name, value in config.items() if name != "kind"}
    unknown = given.keys() - annotations.keys()
    if unknown:
        raise ArgumentError(f"config: {kind.__name__} has no field {sorted(unknown)}; it has {sorted(annotations)}")
    try:
        return kind(**{name: _from_json(value, annotations[name]) for name, value in given.items()})
    except TypeError as error:
        raise ArgumentError(f"config: {kind.__name__} cannot be made of {sorted(given)}: {error}") from error


def _to_json(value: object) -> Json:
    if isinstance(value, Stop):
        return _to_json(dict(value.to_config()))
    if isinstance(value, Mapping):
        return {name: _to_json(item) for name, item in value.items()}
    if isinstance(value, float):
        return number_to_json(value)
    if value is None or isinstance(value, str | int):
        return value
    raise ArgumentError(f"event: fields are numbers, strings, mappings or a Stop, got {type(value).__name__}")


def _from_json(value: Any, annotation: str) -> Any:
    if annotation == "Stop":
        return Stop.from_config(value)
    if isinstance(value, Mapping):
        return {name: number_from_json(item) for name, item in value.items()}
    return number_from_json(value) if isinstance(value, str) and "float" in annotation else value
