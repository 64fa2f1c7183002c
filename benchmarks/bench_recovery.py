r"""How soon a run notices a loss, has made good what was lost, and is as fast as before, for each kind of loss.

Four single-threaded worker processes, each started again by its nanny when it dies; a network of 79,510 parameters on
4,096 images of Fashion-MNIST, two shards. The objective waits half a millisecond a row, so that four workers fit
on two cores and each of them is a quarter of the speed. Seconds from the fault on:

- noticed: the run says that the worker is lost. Of a whole cluster: `train` has raised, once Dask's client has given
  its scheduler up, 30 s by default. Of a detached driver: the run is resumed on another worker.
- made good: what was lost has been made anew, or, where nothing had to be, the run comes further for the first time.
  Of a worker that is retired: `dask_belief.retire_workers` has returned. Of a whole cluster, from the call of `resume`
  on a cluster that stands ready.
- back: the run begins to be as fast as 90 % of what it was before, over three seconds. The worker that comes back is
  needed for that; a frozen one is let go on eight seconds after it froze.

A frozen worker is noticed after `Limits.frozen_seconds`, here 5 and by default 20. Several losses of a kind happen to
one run, and medians are told. Progress is told by Sandblaster after each iteration, by Downpour each half second; that
is how exactly moments are known. From the root of the repository::

    python -m benchmarks.bench_recovery --json benchmarks/results/recovery.json
"""

from __future__ import annotations

import argparse
import re
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import dask_belief as db
from benchmarks.faulty_cluster import FaultyCluster
from benchmarks.record import Record
from benchmarks.recovery_cases import (
    FROZEN_SECONDS,
    LIMITS,
    N_ROWS,
    N_WORKERS,
    ROW_SECONDS,
    STOPPED_SECONDS,
    Case,
    TimedNetwork,
    cases,
    endless,
    retire,
    stop,
    write_rows,
)
from benchmarks.recovery_of_all import lose_cluster, lose_driver
from benchmarks.timeline import WINDOW_SECONDS, Timeline
from dask_belief.monitoring.events import Rebuilt, WorkerLost

METHODS = ("Sandblaster", "Downpour")
SHARE_OF_SPEED = 0.9
STEADY_SECONDS = 6.0
LONGEST_SECONDS = 60.0
_MOST_RUNS = 4
_LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Recovery:
    """How one loss was got over; seconds since it happened, None for what did not happen within a minute.

    Attributes
    ----------
    noticed, rebuilt, back
        See the module.
    speed
        Before the loss: evaluations, or rows, a second.
    lost
        Iterations of Sandblaster that were computed again, mini-batches of Downpour that are missing.
    said
        What the run said of it.
    """

    noticed: float | None
    rebuilt: float | None
    back: float | None
    speed: float
    lost: int = 0
    said: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures, with commit and machine, to this file")
    parser.add_argument("--times", type=int, default=5, help="losses of each kind")
    parser.add_argument("--only", action="append", help="measure the losses in whose name this is; may be given again")
    arguments = parser.parse_args()

    record = Record(__doc__.splitlines()[0])
    found: dict[str, list[Recovery]] = {}
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory() as folder, FaultyCluster(N_WORKERS) as cluster:
        dataset = write_rows(Path(folder) / "rows.zarr")
        for method in METHODS:
            for name, measure in measures(cluster, dataset, method, arguments.times, Path(folder)).items():
                if any(part in name for part in arguments.only or [""]):
                    found[name] = measure()
                    print(line(name, found[name]), flush=True)
    if arguments.json:
        figures = {
            "workers": N_WORKERS,
            "rows": N_ROWS,
            "row_seconds": ROW_SECONDS,
            "frozen_seconds": FROZEN_SECONDS,
            "stopped_seconds": STOPPED_SECONDS,
            "window_seconds": WINDOW_SECONDS,
            "share_of_speed": SHARE_OF_SPEED,
            "medians": {name: medians(recoveries) for name, recoveries in found.items()},
            "recoveries": {name: [asdict(recovery) for recovery in recoveries] for name, recoveries in found.items()},
        }
        record.write(arguments.json, figures)


def measures(
    cluster: FaultyCluster, dataset: db.ZarrDataset, method: str, n_times: int, folder: Path
) -> dict[str, Callable[[], list[Recovery]]]:
    """What is measured of a method, by name."""

    def of_case(case: Case) -> Callable[[], list[Recovery]]:
        return lambda: measure(cluster, dataset, case, n_times)

    found = {f"{method}: {case.name}": of_case(case) for case in cases(method)}
    apart = {"the whole cluster killed, resumed": lose_cluster, "a detached driver's worker killed": lose_driver}
    for name, lose in apart.items():

        def of_all(lose: Any = lose, name: str = name) -> list[Recovery]:
            return [
                Recovery(**lose(cluster, dataset, method, folder / f"{method}-{name}-{number}"))
                for number in range(n_times)
            ]

        found[f"{method}: {name}"] = of_all
    return found


def measure(cluster: FaultyCluster, dataset: db.ZarrDataset, case: Case, n_times: int) -> list[Recovery]:
    """Let a loss happen to a run again and again; one that ends is followed by another."""
    recoveries: list[Recovery] = []
    for _ in range(_MOST_RUNS):
        cluster.make_whole()
        timeline = Timeline()

        def lose(timeline: Timeline = timeline) -> None:
            while len(recoveries) < n_times:
                recovery = lose_once(cluster, case, timeline)
                if recovery is None:
                    break
                recoveries.append(recovery)
            timeline.should_stop = True

        helper = threading.Thread(target=lose, daemon=True)
        helper.start()
        try:
            db.train(
                TimedNetwork(),
                dataset,
                endless(case.method, **case.options),
                client=cluster.client,
                callbacks=[timeline],
                progress=False,
                limits=LIMITS,
            )
        except db.DaskBeliefError as error:
            print(f"  a run of {case.method} ended, {case.name}: {type(error).__name__}: {error}", flush=True)
        timeline.should_stop = True
        cluster.go_on()
        helper.join(2 * LONGEST_SECONDS)
        if len(recoveries) >= n_times:
            break
    return recoveries


def lose_once(cluster: FaultyCluster, case: Case, timeline: Timeline) -> Recovery | None:
    """Let the loss happen, and wait until it is got over; None when the run ends, or nobody is fit for it."""
    if not await_steady(cluster, timeline):
        return None
    victim = case.victim(cluster.roles(), list(cluster.processes()))
    if victim is None:
        return None
    at = time.monotonic()
    speed = timeline.speed(at - STEADY_SECONDS, at)
    until = at
    if case.act is stop:
        threading.Timer(STOPPED_SECONDS, cluster.go_on).start()
        until = at + STOPPED_SECONDS
    case.act(cluster, victim)
    done_at = time.monotonic()
    if case.act is retire:
        cluster.add()
    back: float | None = None
    while back is None and time.monotonic() < at + LONGEST_SECONDS and not timeline.should_stop:
        time.sleep(_LOOK_SECONDS)
        if time.monotonic() > until:
            back = timeline.is_back(at, SHARE_OF_SPEED * speed)
    noticed = moment_of_notice(timeline, victim, at)
    rebuilt = timeline.first(Rebuilt, at)
    if case.act is retire:
        made_good: float | None = done_at
    else:
        made_good = rebuilt[0] if rebuilt is not None else timeline.progress(noticed or at)
    said = rebuilt[1] if rebuilt is not None and isinstance(rebuilt[1], Rebuilt) else None

    def since(moment: float | None) -> float | None:
        return None if moment is None else round(moment - at, 3)

    return Recovery(
        since(noticed),
        since(made_good),
        since(back),
        speed,
        0 if said is None else lost_of(said),
        "" if said is None else said.lost,
    )


def await_steady(cluster: FaultyCluster, timeline: Timeline) -> bool:
    """Wait until all workers have been there for a while; False when the run ends meanwhile."""
    steady_since: float | None = None
    while not timeline.should_stop:
        time.sleep(10 * _LOOK_SECONDS)
        now = time.monotonic()
        if len(cluster.processes()) != N_WORKERS or timeline.progress(0.0) is None:
            steady_since = None
            continue
        steady_since = steady_since or now
        if now - steady_since > STEADY_SECONDS + 1.0:
            return True
    return False


def moment_of_notice(timeline: Timeline, worker: str, since: float) -> float | None:
    """When the run said that a worker is lost."""
    for at, event in timeline.entries():
        if at > since and isinstance(event, WorkerLost) and event.address == worker:
            return at
    return None


def lost_of(rebuilt: Rebuilt) -> int:
    """The iterations that are computed again, or the mini-batches that are lost."""
    again = re.search(r"(\d+) are computed again", rebuilt.lost)
    return rebuilt.updates_lost if again is None else int(again[1])


HEAD = f"{'':60}{'noticed':>9}{'made good':>11}{'back':>8}{'lost':>7}   (medians; seconds)"


def medians(recoveries: Sequence[Recovery]) -> dict[str, float | None]:
    """Give the middle of each figure; what was not seen counts as longer than all others."""
    found: dict[str, float | None] = {"times": len(recoveries)}
    for name in ("noticed", "rebuilt", "back", "lost"):
        values = [getattr(recovery, name) for recovery in recoveries]
        middle = median(float("inf") if value is None else value for value in values) if values else float("inf")
        found[name] = None if middle == float("inf") else middle
    return found


def line(name: str, recoveries: Sequence[Recovery]) -> str:
    """Tell of a kind of loss in a line."""
    middle = medians(recoveries)
    figures = [middle[each] for each in ("noticed", "rebuilt", "back")]
    told = ["-" if figure is None else f"{figure:.2f}" for figure in figures]
    lost = "-" if middle["lost"] is None else f"{middle['lost']:.0f}"
    return f"{name:60}{told[0]:>9}{told[1]:>11}{told[2]:>8}{lost:>7}   {len(recoveries)} times"


if __name__ == "__main__":
    main()
