"""Long runs: worker processes do not grow, the scheduler does not gather tasks, and nothing is left on either."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster

import dask_belief as db
from dask_belief.cluster.memory import give_back_memory
from dask_belief.monitoring.events import DownpourProgressed, Event, IterationEnded, Validated
from tests.end_to_end.conftest import blobs, threaded
from tests.small_cluster import eventually

MIB = 2**20

# A vector is 84 kB: one that stays from each evaluation, or each exchange, makes 8 MiB and more.
NETWORK = db.Network([db.Dense(1400, "tanh"), db.Dense(4)], loss="softmax", input_shape=(10,))
SLACK = 6 * MIB


@pytest.fixture(scope="module")
def processes() -> Iterator[Client]:
    """Two worker processes that do nothing else."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def resident_bytes() -> int:
    """What is resident of this process when all that can be given back is."""
    gc.collect()
    give_back_memory()
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return 1024 * int(line.split()[1])


def our_threads() -> list[str]:
    """Names of the threads that this package has in this process."""
    return [thread.name for thread in threading.enumerate() if "dask-belief" in thread.name]


@dataclass(frozen=True)
class Sample:
    """What was there at one moment of a run; by worker, and on the scheduler."""

    at: float
    resident: dict[str, int]
    n_tasks: int


@dataclass
class Watch:
    """A callback that takes a sample whenever a run has come `every` further."""

    client: Client
    every: float
    samples: list[Sample] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        if isinstance(event, IterationEnded):
            self._look(event.evaluations)
        elif isinstance(event, DownpourProgressed):
            self._look(event.epochs)
        elif isinstance(event, Validated):
            self._look(event.passes)

    def _look(self, at: float) -> None:
        if not self.samples or at >= self.samples[-1].at + self.every:
            n_tasks = self.client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
            self.samples.append(Sample(at, self.client.run(resident_bytes), n_tasks))

    def between(self, low: float, high: float) -> list[Sample]:
        """The samples of a part of the run."""
        return [sample for sample in self.samples if low <= sample.at <= high]


def check_no_growth(early: list[Sample], late: list[Sample]) -> None:
    """Compare the least of each part: what is under way comes and goes."""
    assert early and late, "too few samples"
    assert min(sample.n_tasks for sample in late) <= max(sample.n_tasks for sample in early)
    for worker in early[0].resident:
        before, after = (min(sample.resident[worker] for sample in part) for part in (early, late))
        assert after - before < SLACK, f"{worker} grew from {before / MIB:.4g} to {after / MIB:.4g} MiB"


def left_over(client: Client) -> list[str]:
    """Tasks, actors and plugins of runs on the scheduler; data, actors and threads of theirs in workers, and here."""

    def of_scheduler(dask_scheduler) -> list[str]:
        plugins = [name for name in dask_scheduler.plugins if "dask-belief" in name]
        return [*map(str, dask_scheduler.tasks), *plugins]

    def of_worker(dask_worker) -> list[str]:
        return [str(key) for held in (dask_worker.data, dask_worker.state.actors) for key in held] + our_threads()

    of_workers = [found for each in client.run(of_worker).values() for found in each]
    return [*client.run_on_scheduler(of_scheduler), *of_workers, *our_threads()]


def test_sandblaster_does_not_grow(processes: Client) -> None:
    """Over 200 evaluations, with the history full before the first sample that counts."""
    watch = Watch(processes, every=10)
    method = db.Sandblaster(max_iter=1000, max_evaluations=200, gtol=0.0, ftol=0.0, l2=1e-4, unit_rows=100)
    result = db.train(
        NETWORK, blobs(600, seed=0), method, client=processes, dtype="float64", callbacks=[watch], progress=False
    )
    assert result.passes >= 200
    check_no_growth(watch.between(50, 100), watch.between(150, 220))
    # Dask forgets what was let go a moment later.
    eventually(lambda: left_over(processes) == [])


def test_downpour_does_not_grow(processes: Client) -> None:
    """Over 20 epochs, with validation beside it."""
    watch = Watch(processes, every=1)
    method = db.Downpour(rule=db.SGD(0.01), batch_size=10, epochs=20, validate_every_steps=100)
    db.train(
        *(NETWORK, blobs(1000, seed=0), method),
        client=processes,
        validation=blobs(100, seed=1),
        callbacks=[watch],
        progress=False,
    )
    check_no_growth(watch.between(3, 9), watch.between(14, 20))
    # Dask forgets what was let go a moment later.
    eventually(lambda: left_over(processes) == [])


def _kept_by_scheduler(dask_scheduler: Any) -> dict[str, set[str]]:
    return {
        "topics": {str(topic) for topic in dask_scheduler._broker._topics},
        "plugins": {str(name) for name in dask_scheduler.plugins},
        "prefixes": {str(name) for name in dask_scheduler.task_prefixes},
        "tasks": {str(key) for key in dask_scheduler.tasks},
        "clients": {str(name) for name in dask_scheduler.clients},
        "extensions": {str(name) for name in dask_scheduler.extensions},
    }


@pytest.mark.parametrize("method", [db.Sandblaster(max_iter=3), db.Downpour(epochs=1)])
def test_the_scheduler_keeps_no_more_of_a_run_than_its_topic(store: Path, method: Any) -> None:
    """However many there were: no plugin, no task, no kind of task by the run's own name."""
    network = db.Network([db.Dense(4, "tanh"), db.Dense(4)], loss="softmax", input_shape=(10,))
    with threaded(2) as client:

        def after_a_run() -> dict[str, set[str]]:
            db.train(network, store, method, client=client, progress=False)
            eventually(lambda: not client.cluster.scheduler.tasks)
            found: dict[str, set[str]] = client.run_on_scheduler(_kept_by_scheduler)
            return found

        # What is made once for all runs is there after the first.
        before = after_a_run()
        for _ in range(3):
            now = after_a_run()
            new = {what: now[what] - before[what] for what in now}
            assert len(new.pop("topics")) == 1
            assert not any(new.values()), new
            before = now
