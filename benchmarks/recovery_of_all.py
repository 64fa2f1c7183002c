"""Losses after which another driver goes on: of the whole cluster, and of a detached driver's worker."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distributed import Client

import dask_belief as db
from benchmarks.faulty_cluster import FaultyCluster
from benchmarks.recovery_cases import BATCH_ROWS, LIMITS, N_WORKERS, TimedNetwork, endless
from benchmarks.timeline import Timeline
from dask_belief.checkpoint import CheckpointStore
from dask_belief.downpour.ledger import LedgerState
from dask_belief.monitoring.events import (
    DownpourProgressed,
    IterationEnded,
    Resumed,
    Saved,
    event_from_config,
)

SPEED_SECONDS = 6.0
SHARE_OF_SPEED = 0.9
LONGEST_SECONDS = 90.0
_LOOK_SECONDS = 0.05

# What the key of a detached run's driver begins with.
_DRIVER = "dask-belief-run-{}"


def lose_cluster(cluster: FaultyCluster, dataset: db.ZarrDataset, method: str, checkpoint: Path) -> dict[str, Any]:
    """Kill a scheduler and its workers in the middle of a run, and resume the run on `cluster`, which stands ready.

    Seconds to notice are from the loss on, the others from the call of `dask_belief.resume`.
    """
    before, after = Timeline(), Timeline()
    lost_at: list[float] = []
    with processes() as (client, groups):

        def lose() -> None:
            while not is_under_way(before):
                time.sleep(_LOOK_SECONDS)
            lost_at.append(time.monotonic())
            for group in groups:
                os.killpg(group, signal.SIGKILL)

        helper = threading.Thread(target=lose, daemon=True)
        helper.start()
        with contextlib.suppress(db.ClusterError):
            db.train(
                TimedNetwork(),
                dataset,
                endless(method),
                client=client,
                callbacks=[before],
                progress=False,
                limits=LIMITS,
                checkpoint=checkpoint,
            )
        raised_at = time.monotonic()
        helper.join()
    [at] = lost_at
    speed = before.speed(at - SPEED_SECONDS, at)
    resumed_at = time.monotonic()
    watcher = threading.Thread(target=stop_when_back, args=(after, resumed_at, speed), daemon=True)
    watcher.start()
    lost = n_lost(before, checkpoint, method, at)
    db.resume(
        checkpoint, client=cluster.client, objective=TimedNetwork(), callbacks=[after], progress=False, limits=LIMITS
    )
    watcher.join()
    first, back = after.progress(resumed_at), after.is_back(resumed_at, SHARE_OF_SPEED * speed)
    return {
        "noticed": round(raised_at - at, 3),
        "rebuilt": None if first is None else round(first - resumed_at, 3),
        "back": None if back is None else round(back - resumed_at, 3),
        "speed": speed,
        "lost": lost,
    }


def lose_driver(cluster: FaultyCluster, dataset: db.ZarrDataset, method: str, checkpoint: Path) -> dict[str, Any]:
    """Kill the worker that drives a detached run."""
    cluster.make_whole()
    timeline, name = Timeline(), checkpoint.name
    run = db.train(
        TimedNetwork(),
        dataset,
        endless(method),
        client=cluster.client,
        progress=False,
        limits=LIMITS,
        checkpoint=checkpoint,
        detach=True,
        name=name,
    )
    reader = threading.Thread(target=read_events, args=(run, timeline), daemon=True)
    reader.start()
    try:
        while not is_under_way(timeline) and not run.is_done:
            time.sleep(_LOOK_SECONDS)
        lost = n_lost(timeline, checkpoint, method, time.monotonic())
        worker = cluster.client.run_on_scheduler(_worker_of, prefix=_DRIVER.format(name))
        at = time.monotonic()
        speed = timeline.speed(at - SPEED_SECONDS, at)
        cluster.kill(worker)
        stop_when_back(timeline, at, speed)
    finally:
        timeline.should_stop = True
        reader.join()
        run.stop()
        run.result(LONGEST_SECONDS)
    resumed = timeline.first(Resumed, at)
    first = None if resumed is None else timeline.progress(resumed[0])
    back = None if resumed is None else timeline.is_back(resumed[0], SHARE_OF_SPEED * speed)
    return {
        "noticed": None if resumed is None else round(resumed[0] - at, 3),
        "rebuilt": None if first is None else round(first - at, 3),
        "back": None if back is None else round(back - at, 3),
        "speed": speed,
        "lost": lost,
    }


@contextlib.contextmanager
def processes() -> Iterator[tuple[Client, list[int]]]:
    """A scheduler and workers as processes apart, with a client, and the groups of processes that they are."""
    scheduler = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "distributed.cli.dask_scheduler",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--no-dashboard",
        ],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert scheduler.stderr is not None
    address = next(line.split()[-1] for line in scheduler.stderr if "Scheduler at:" in line)
    threading.Thread(target=scheduler.stderr.read, daemon=True).start()
    workers = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nworkers", str(N_WORKERS), "--nthreads", "1"],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    groups = [scheduler.pid, workers.pid]
    try:
        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(N_WORKERS, timeout=LONGEST_SECONDS)
            yield client, groups
    finally:
        for group in groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        for process in (workers, scheduler):
            process.wait()


def is_under_way(timeline: Timeline) -> bool:
    """Whether a run has come further for a while, and has saved itself since then."""
    begun, saves = timeline.progress(0.0), [at for at, event in timeline.entries() if isinstance(event, Saved)]
    return begun is not None and bool(saves) and time.monotonic() - begun > SPEED_SECONDS + 1.0


def stop_when_back(timeline: Timeline, since: float, speed: float) -> None:
    """Wait until a run is as fast as before, for a limited time, and ask it to end."""
    until = time.monotonic() + LONGEST_SECONDS
    while time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)
        resumed = timeline.first(Resumed, since)
        if resumed is not None and timeline.is_back(resumed[0], SHARE_OF_SPEED * speed) is not None:
            break
    timeline.should_stop = True


def read_events(run: db.DetachedRun[Any], timeline: Timeline) -> None:
    """Take note of a detached run's events as they arrive."""
    n_seen = 0
    while not timeline.should_stop:
        events = run.events()
        now = time.monotonic()
        for event in events[n_seen:]:
            timeline.note(event_from_config(event), now)
        n_seen = len(events)
        time.sleep(_LOOK_SECONDS)


def n_lost(timeline: Timeline, checkpoint: Path, method: str, at: float) -> int:
    """The iterations, or mini-batches, that the newest checkpoint does not have."""
    state = CheckpointStore(checkpoint).newest().saved.state
    progressed = [
        event
        for moment, event in timeline.entries()
        if moment <= at and isinstance(event, IterationEnded | DownpourProgressed)
    ]
    match progressed[-1]:
        case IterationEnded(iteration=iteration):
            return int(iteration) - int(state["iteration"])
        case DownpourProgressed(rows=rows):
            return max(0, rows - LedgerState.from_config(state["ledger"]).book.rows) // BATCH_ROWS


def _worker_of(prefix: str, dask_scheduler: Any) -> str:
    [task] = [task for key, task in dask_scheduler.tasks.items() if str(key).startswith(prefix)]
    return str(task.processing_on.address)
