"""How far a run is, and what its iterations cost."""

from __future__ import annotations

import math
from dataclasses import fields

from dask_belief.monitoring.events import IterationEnded
from dask_belief.sandblaster.backups import BackupCounts
from dask_belief.sandblaster.effort import Effort
from dask_belief.sandblaster.full_batch import Evaluated
from dask_belief.sandblaster.progress import Costs, Progress
from tests.sandblaster.local_run import status


def evaluated(
    effort: Effort, busiest_seconds: float = 0.0, vector_seconds: float = 0.0, backups: BackupCounts | None = None
) -> Evaluated:
    made = status(effort=effort, busiest_seconds=busiest_seconds, backups=backups or BackupCounts())
    return Evaluated(1.0, {}, made, vector_seconds, None)


# How far.


def test_progress_goes_back_to_what_was_kept() -> None:
    """Iteration and value; evaluations were made, whatever became of them."""
    progress = Progress()
    progress.iteration, progress.evaluations, progress.value = 3, 5, 0.5
    progress.keep()
    progress.iteration, progress.evaluations, progress.value = 7, 11, 0.25
    progress.go_back()
    assert (progress.iteration, progress.evaluations, progress.value) == (3, 11, 0.5)


def test_progress_goes_back_to_the_start_when_nothing_was_kept() -> None:
    """No iteration, and no value that anyone knows."""
    progress = Progress()
    progress.iteration, progress.value = 2, 0.25
    progress.go_back()
    assert progress.iteration == 0
    assert math.isnan(progress.value)


# What it cost.


def test_costs_are_told_by_the_names_of_the_event() -> None:
    """Each of them is a field of it."""
    assert Costs().take().keys() <= {field.name for field in fields(IterationEnded)}


def test_costs_are_those_of_all_evaluations_of_an_iteration() -> None:
    """Seconds and bytes add up; the busiest replica may be another one each time."""
    costs = Costs()
    costs.add(evaluated(Effort(1.0, 2.0, 3.0, 4.0, 10, 20, 5, 1), busiest_seconds=2.0, vector_seconds=0.25))
    costs.add(evaluated(Effort(0.5, 0.5, 0.5, 0.5, 10, 30, 6, 0), busiest_seconds=0.5, vector_seconds=0.25))
    taken = costs.take()
    assert taken == {
        "waiting_seconds": 1.5,
        "reading_seconds": 2.5,
        "computing_seconds": 3.5,
        "sending_seconds": 4.5,
        "busiest_seconds": 2.5,
        "vector_seconds": 0.5,
        "fetched_bytes": 20,
        "pushed_bytes": 50,
        "cache_hits": 11,
        "cache_misses": 1,
        "backups_started": 0,
        "backups_won": 0,
        "backups_wasted_seconds": 0.0,
    }


def test_costs_begin_anew_with_each_iteration() -> None:
    """What was taken is not told again."""
    costs = Costs()
    nothing = costs.take()
    costs.add(evaluated(Effort(1.0, 2.0, 3.0, 4.0, 10, 20, 5, 1), 2.0, 0.25))
    costs.copied_bytes += 80
    assert costs.take() != nothing
    assert costs.take() == nothing


def test_what_the_driver_copied_counts_as_fetched() -> None:
    """Beside what replicas fetched."""
    costs = Costs()
    costs.add(evaluated(Effort(fetched_bytes=10)))
    costs.copied_bytes += 80
    assert costs.take()["fetched_bytes"] == 90


def test_backups_of_an_iteration_are_a_difference() -> None:
    """The coordinator counts them over all evaluations; without an evaluation there are none."""
    costs = Costs()
    costs.add(evaluated(Effort(), backups=BackupCounts(3, 1, 0.5)))
    costs.add(evaluated(Effort(), backups=BackupCounts(5, 2, 0.75)))
    names = ("backups_started", "backups_won", "backups_wasted_seconds")
    told = []
    for _ in range(2):
        taken = costs.take()
        told.append([taken[name] for name in names])
    costs.add(evaluated(Effort(), backups=BackupCounts(6, 2, 1.0)))
    taken = costs.take()
    told.append([taken[name] for name in names])
    assert told == [[5, 2, 0.75], [0, 0, 0.0], [1, 0, 0.25]]
