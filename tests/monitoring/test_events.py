"""Events as records, and their way through JSON."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from dask_belief.errors import ArgumentError
from dask_belief.monitoring.events import (
    EVENT_KINDS,
    DownpourProgressed,
    Event,
    IterationEnded,
    Rebuilt,
    ReplicaProgress,
    Resumed,
    RunStarted,
    Saved,
    ShardProgress,
    Stopped,
    Validated,
    WorkerJoined,
    WorkerLost,
    event_from_config,
    event_to_config,
    moved_on,
)
from dask_belief.monitoring.staleness import N_BINS, bin_of
from dask_belief.optim.stopping import Stop, StopReason


def counted(*staleness: int) -> tuple[int, ...]:
    """So many pushes of such a staleness each, in bins."""
    counts = [0] * N_BINS
    for each in staleness:
        counts[bin_of(each)] += 1
    return tuple(counts)


REPLICAS = tuple(
    ReplicaProgress(
        replica=f"replica-{number}",
        worker=f"tcp://127.0.0.1:{number}",
        steps=5,
        rows=125,
        n_pushes=3,
        n_fetches=4,
        pushed_bytes=600,
        fetched_bytes=800,
        computing_seconds=0.1,
        reading_seconds=0.02,
        fetch_waiting_seconds=0.03,
        push_waiting_seconds=0.04,
        lease_waiting_seconds=0.05,
        pace_waiting_seconds=0.06,
        staleness_mean=1.5,
    )
    for number in (1, 2)
)
SHARDS = (
    ShardProgress(0, 6, 1, 600, 800, 0.25, 0.05, counted(0, 0, 1, 1, 2, 40)),
    ShardProgress(1, 5, 0, 600, 800, 0.125, math.inf, counted(0, 0, 0, 0, 3)),
)

EVENTS: list[Event] = [
    RunStarted("Sandblaster", n_rows=1000, n_parameters=50, n_workers=3, planned=100.0),
    RunStarted("Downpour", n_rows=1000, n_parameters=50, n_workers=3, planned_unit="epochs", seconds=0.1),
    IterationEnded(
        1,
        2,
        loss=0.5,
        gradient_norm=0.1,
        step=1.0,
        seconds=0.2,
        passes=2.0,
        curvature=1.5,
        decrease_ratio=0.5,
        slope_ratio=0.25,
        waiting_seconds=0.01,
        reading_seconds=0.02,
        computing_seconds=0.3,
        sending_seconds=0.04,
        busiest_seconds=0.15,
        vector_seconds=0.05,
        fetched_bytes=400,
        pushed_bytes=800,
        cache_hits=7,
        cache_misses=3,
        backups_started=2,
        backups_won=1,
        backups_wasted_seconds=0.06,
    ),
    DownpourProgressed(
        steps=10,
        epochs=0.25,
        rows=250,
        loss=0.7,
        seconds=0.3,
        rows_per_second=900.0,
        rate=0.05,
        n_pushes=6,
        n_dropped=1,
        pushed_bytes=1200,
        fetched_bytes=1600,
        computing_seconds=0.2,
        reading_seconds=0.04,
        fetch_waiting_seconds=0.06,
        push_waiting_seconds=0.08,
        lease_waiting_seconds=0.1,
        pace_waiting_seconds=0.12,
        server_seconds=0.375,
        staleness_mean=1.5,
        staleness_p95=63.0,
        staleness_max=63.0,
        staleness=counted(0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 40),
        replicas=REPLICAS,
        shards=SHARDS,
        passes_before=2.0,
    ),
    Validated(loss=0.6, metrics={"accuracy": 0.8}, passes=2.0, seconds=0.4),
    WorkerLost("tcp://127.0.0.1:1", seconds=0.5),
    WorkerJoined("tcp://127.0.0.1:2", seconds=0.6),
    Rebuilt("shard 0 was lost", "back to iteration 3", seconds=0.7, iteration=3, updates_lost=2, seconds_lost=0.1),
    Saved(4, seconds=0.72, took_seconds=0.01, n_bytes=400),
    Resumed(4, seconds=0.75, iteration=3),
    Stopped(Stop(StopReason.MAX_ITERATIONS, {"iteration": 100}), seconds=0.8, passes=120.0),
]


def test_the_examples_cover_every_kind():
    """What is tested below is tested of all kinds."""
    assert {type(event).__name__ for event in EVENTS} == set(EVENT_KINDS)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_comes_back_equal_from_json(event):
    """Through strict JSON and back nothing is lost."""
    assert event_from_config(json.loads(json.dumps(event_to_config(event), allow_nan=False))) == event


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_cannot_be_changed(event):
    """Whoever gets an event may keep it."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.seconds = 1.0


def test_numbers_that_are_not_finite_come_back():
    """A diverged loss is told as it is, in strict JSON too."""
    event = Validated(loss=math.inf, metrics={"log": -math.inf}, passes=1.0, seconds=2.0)
    assert event_from_config(json.loads(json.dumps(event_to_config(event), allow_nan=False))) == event
    lost = event_from_config(event_to_config(DownpourProgressed(1, epochs=0.1, rows=10, loss=math.nan, seconds=1.0)))
    assert isinstance(lost, DownpourProgressed) and math.isnan(lost.loss)


def test_what_is_not_known_of_an_iteration_comes_back_as_not_known():
    """A method without pairs has no curvature, and a search without slopes no ratio of them: NaN."""
    event = IterationEnded(1, 2, loss=0.5, gradient_norm=0.1, step=1.0, seconds=0.2, passes=2.0)
    again = event_from_config(json.loads(json.dumps(event_to_config(event), allow_nan=False)))
    assert isinstance(again, IterationEnded)
    unknown = [name for name, value in vars(again).items() if value != value]
    assert unknown == ["curvature", "decrease_ratio", "slope_ratio"]
    known = dict.fromkeys(unknown, 0.0)
    assert dataclasses.replace(again, **known) == dataclasses.replace(event, **known)


def test_what_was_not_measured_of_downpour_comes_back_as_not_known():
    """Speed, rate and staleness are NaN, counts are zero, and there are no replicas and no shards to tell of."""
    event = DownpourProgressed(steps=10, epochs=0.25, rows=250, loss=0.7, seconds=0.3)
    again = event_from_config(json.loads(json.dumps(event_to_config(event), allow_nan=False)))
    assert isinstance(again, DownpourProgressed)
    unknown = [name for name, value in vars(again).items() if value != value]
    assert unknown == ["rows_per_second", "rate", "staleness_mean", "staleness_p95", "staleness_max"]
    known = dict.fromkeys(unknown, 0.0)
    assert dataclasses.replace(again, **known) == dataclasses.replace(event, **known)
    assert (again.n_pushes, again.staleness, again.replicas, again.shards) == (0, (), (), ())


def test_records_within_an_event_come_back_as_records():
    """With their own fields and types, infinity and tuples of counts among them."""
    [event] = [event for event in EVENTS if isinstance(event, DownpourProgressed)]
    again = event_from_config(json.loads(json.dumps(event_to_config(event), allow_nan=False)))
    assert isinstance(again, DownpourProgressed)
    assert again.replicas == REPLICAS and again.shards == SHARDS
    assert isinstance(again.shards[0].staleness, tuple) and again.shards[1].rate == math.inf


def test_words_for_numbers_stay_words_in_texts():
    """An address is never taken for a number."""
    assert event_from_config(event_to_config(WorkerLost("NaN"))) == WorkerLost("NaN")


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
@pytest.mark.parametrize("other", ["nonsense", [], {}, True, 2.5], ids=repr)
def test_what_is_no_whole_number_is_refused(event, other):
    """A table of a damaged file is never compared by words, or by what is not there."""
    names = [entry.name for entry in dataclasses.fields(event) if entry.type in ("int", "int | None")]
    for name in names:
        with pytest.raises(ArgumentError, match="a whole number is needed"):
            event_from_config(event_to_config(event) | {name: other})


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
@pytest.mark.parametrize("other", ["nonsense", [], {}], ids=repr)
def test_what_is_no_number_is_refused(event, other):
    """Seconds of a damaged file are not added to."""
    with pytest.raises((ArgumentError, ValueError)):
        event_from_config(event_to_config(event) | {"seconds": other})


def test_passes_are_epochs_and_what_was_before():
    """Both methods' events tell passes over the data under one name."""
    event = DownpourProgressed(steps=1, epochs=0.5, rows=5, loss=0.1, seconds=1.0)
    assert event.passes == 0.5
    assert dataclasses.replace(event, passes_before=3.0).passes == 3.5


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_moves_on_with_the_run(event):
    """A method that began after so many seconds and passes: those are later, all else is as it was."""
    moved = moved_on(event, seconds=60.0, passes=5.0)
    assert moved.seconds == event.seconds + 60.0
    assert getattr(moved, "passes", None) == (event.passes + 5.0 if hasattr(event, "passes") else None)
    changed = {name for name, value in vars(moved).items() if value != vars(event)[name]}
    assert changed <= {"seconds", "passes", "passes_before"}
    assert moved_on(event, seconds=0.0, passes=0.0) == event


def test_a_stop_without_passes_has_none_later():
    """What is not known stays not known."""
    assert moved_on(Stopped(Stop(StopReason.CALLBACK), 1.0), seconds=1.0, passes=1.0).passes is None


@pytest.mark.parametrize(
    "config",
    [
        {"kind": "Unknown"},
        {},
        {"kind": "WorkerLost"},
        {"kind": "WorkerLost", "address": "a", "colour": "red"},
        {"kind": "Stopped", "stop": {"reason": "bored", "numbers": {}}},
        {"kind": "DownpourProgressed", "steps": 1, "epochs": 1, "rows": 1, "loss": 1, "seconds": 1, "shards": [{}]},
        {"kind": "DownpourProgressed", "steps": 1, "epochs": 1, "rows": 1, "loss": 1, "seconds": 1, "replicas": ["a"]},
        {"kind": "DownpourProgressed", "steps": 1, "epochs": 1, "rows": 1, "loss": 1, "seconds": 1, "staleness": 3},
    ],
)
def test_what_is_no_event_is_refused(config):
    """Unknown kinds, missing and unknown fields are errors, in the records within an event too."""
    with pytest.raises(ArgumentError):
        event_from_config(config)


def test_an_event_of_foreign_things_is_refused():
    """A field that JSON cannot hold is an error, not a pickle."""
    with pytest.raises(ArgumentError, match="got object"):
        event_to_config(WorkerLost(object()))
