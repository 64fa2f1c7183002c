r"""How near to the ideal the unit scheduler comes with 10 to 10,000 workers, with and without backups and small units.

The scheduler and the backup policy are the real ones; workers and clock are simulated. A worker computes unit after
unit, asks for its next lease when it begins the last unit of one, pushes while it goes on, and looks twice a second
whether its lease is still wanted. The ideal is the work over the summed speeds of all workers, as if nothing stalled,
died or had to travel. What happens to workers is what the papers describe:

- even: all of one speed, every unit varies by a tenth.
- mixed: speeds vary (DistBelief, section 4.2: "each machine processes at its own pace").
- stragglers: of mixed workers, one in fifty is 10 to 30 times slower, others in every evaluation. MapReduce (OSDI 2004,
  section 3.6) tells of a disk that reads 1 MB/s in place of 30.
- stalls: of mixed workers, one unit in five hundred takes up to twenty seconds more: competition for the machine.
- killed: 200 of 1746 mixed workers are killed in the middle of an evaluation and started anew, as in section 5.5 there.
- frozen: one in a hundred mixed workers says nothing any more, and is counted out after a minute only.

Four ways are compared: 40 small units a worker or one unit a worker, with backups and without. From the root of the
repository (about ten minutes on two cores)::

    python -m benchmarks.simulate_sandblaster --json benchmarks/results/simulation.json --plot docs/simulation.svg
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import random
import statistics
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import Record
from dask_belief.sandblaster.unit_scheduler import Lease, UnitScheduler

WORKERS = (10, 100, 1000, 10_000)
N_EVALUATIONS = 4
SHARE_SECONDS = 10.0
"""What a worker of speed 1 has to do in an evaluation."""

SMALL_UNITS = 40
MAX_LEVEL = 6

# A message one way, a fetch of the parameters, a push, and what passes before a worker's death is noticed or a new
# process is there: all as measured on real clusters of this package.
MESSAGE_SECONDS = 0.002
FETCH_SECONDS = 0.03
PUSH_SECONDS = 0.03
NOTICE_SECONDS = 0.04
RESTART_SECONDS = 2.5
# How often an idle worker's question is looked at again, how often a worker looks whether its lease is wanted, and
# when a silent worker is counted out.
LOOK_SECONDS = 0.25
WATCH_SECONDS = 0.5
SILENCE_SECONDS = 60.0

JITTER = 0.1
SPEED_SPREAD = 0.3


@dataclass(frozen=True)
class Way:
    """How the work is cut and whether leases are copied."""

    name: str
    units_per_worker: int
    backup_after: float | None


@dataclass(frozen=True)
class Scenario:
    """What happens to workers; shares are of workers, or of units for stalls."""

    name: str
    speed_spread: float = SPEED_SPREAD
    straggling: float = 0.0
    stalling: float = 0.0
    killed: float = 0.0
    frozen: float = 0.0


WAYS = (
    Way("small units, backups", SMALL_UNITS, 1.5),
    Way("small units, no backups", SMALL_UNITS, None),
    Way("one unit a worker, backups", 1, 1.5),
    Way("one unit a worker, no backups", 1, None),
)
SCENARIOS = (
    Scenario("even", speed_spread=0.0),
    Scenario("mixed"),
    Scenario("stragglers", straggling=0.02),
    Scenario("stalls", stalling=0.002),
    Scenario("killed", killed=200 / 1746),
    Scenario("frozen", frozen=0.01),
)


@dataclass(frozen=True)
class Outcome:
    """What came of one scenario with one way and one number of workers.

    `first` and `later` are batch times over the ideal: of the first evaluation, in which no speed is known, and the
    mean and largest of the others. `leases` and `copies` are a worker and evaluation; `wasted` is of all work.
    """

    scenario: str
    way: str
    n_workers: int
    n_units: int
    first: float
    later: float
    worst: float
    leases: float
    copies: float
    wasted: float
    scheduler_microseconds: float


@dataclass(eq=False)
class Worker:
    """One worker; `lease` is what it computes, `waiting` what it has asked for ahead."""

    name: str
    machine: int
    fetched: int = -1
    lease: Lease | None = None
    n_left: int = 0
    waiting: Lease | None = None
    has_asked: bool = False
    is_alive: bool = True


class Simulation:
    """Evaluations by a virtual clock."""

    def __init__(self, scenario: Scenario, way: Way, n_workers: int, seed: int) -> None:
        self.n_units = way.units_per_worker * n_workers
        self.scheduler = UnitScheduler(self.n_units, MAX_LEVEL, way.backup_after)
        self.n_questions = self.n_leases = 0
        self.scheduler_seconds = 0.0
        self._scenario = scenario
        self._random = random.Random(seed)
        self._unit_seconds = SHARE_SECONDS / way.units_per_worker
        self._n_workers = n_workers
        self._speeds = [self._random.lognormvariate(0.0, scenario.speed_spread) for _ in range(n_workers)]
        self._slowness = [1.0] * n_workers
        self._now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._names = itertools.count()
        self._workers: dict[int, Worker] = {}
        # Workers whose question is kept, in the order in which they are looked at.
        self._idle: deque[Worker] = deque()
        self._is_looking = False
        for machine in range(n_workers):
            self._start(machine)

    def evaluate(self, evaluation: int) -> float:
        """Run one evaluation; gives its time over the ideal."""
        self._slowness = [
            self._random.uniform(10.0, 30.0) if self._random.random() < self._scenario.straggling else 1.0
            for _ in range(self._n_workers)
        ]
        began = self._now
        speeds = [speed / slow for speed, slow in zip(self._speeds, self._slowness, strict=True)]
        ideal = self.n_units * self._unit_seconds / sum(speeds)
        self._plan_losses(ideal)
        self._call(lambda: self.scheduler.begin(evaluation, self._now))
        self._serve()
        while not self.scheduler.is_complete:
            self._now, _, event = heapq.heappop(self._events)
            event()
        return (self._now - began) / ideal

    def _plan_losses(self, ideal: float) -> None:
        for machine in range(self._n_workers):
            if self._random.random() < self._scenario.killed:
                self._after(self._random.uniform(0.0, ideal), partial(self._kill, machine))
            elif self._random.random() < self._scenario.frozen:
                self._after(self._random.uniform(0.0, ideal), partial(self._freeze, machine))

    # Workers.

    def _start(self, machine: int) -> None:
        worker = self._workers[machine] = Worker(f"{next(self._names)}", machine)
        self._call(lambda: self.scheduler.join(worker.name))
        self._ask(worker)

    def _kill(self, machine: int) -> None:
        self._lose(machine, NOTICE_SECONDS)

    def _freeze(self, machine: int) -> None:
        self._lose(machine, SILENCE_SECONDS)

    def _lose(self, machine: int, notice_seconds: float) -> None:
        worker = self._workers[machine]
        worker.is_alive = False
        self._after(notice_seconds, lambda: self._leave(worker))
        self._after(notice_seconds + RESTART_SECONDS, lambda: self._start(machine))

    def _leave(self, worker: Worker) -> None:
        self._call(lambda: self.scheduler.leave(worker.name))
        self._serve()

    def _ask(self, worker: Worker) -> None:
        worker.has_asked = True
        self._after(MESSAGE_SECONDS, lambda: self._question(worker))

    def _question(self, worker: Worker) -> None:
        if worker.is_alive:
            # Before the others: they were looked at when it was their turn.
            self._idle.appendleft(worker)
            self._serve()

    def _arrive(self, worker: Worker, lease: Lease) -> None:
        worker.has_asked = False
        worker.waiting = lease
        if worker.is_alive and worker.lease is None:
            self._go_on(worker)

    def _go_on(self, worker: Worker) -> None:
        """Begin the lease that waits, if there is one."""
        lease = worker.lease = worker.waiting
        worker.waiting = None
        if lease is None:
            if not worker.has_asked:
                self._ask(worker)
            return
        worker.n_left = len(lease.node.leaves(self.n_units))
        delay = FETCH_SECONDS if worker.fetched != lease.evaluation else 0.0
        worker.fetched = lease.evaluation
        self._compute(worker, delay)

    def _compute(self, worker: Worker, delay: float = 0.0) -> None:
        if worker.n_left == 1 and not worker.has_asked:
            self._ask(worker)
        chance, machine = self._random, worker.machine
        seconds = self._unit_seconds * self._slowness[machine] / self._speeds[machine]
        seconds *= chance.lognormvariate(-0.5 * JITTER**2, JITTER)
        # A unit that is as long as forty meets as many stalls, here as one.
        if chance.random() < self._scenario.stalling * self._unit_seconds * SMALL_UNITS / SHARE_SECONDS:
            seconds += chance.uniform(0.0, 20.0)
        self._pass_time(worker, delay + seconds)

    def _pass_time(self, worker: Worker, seconds: float) -> None:
        """Compute for so long what is left of a unit, and look in between."""
        first = min(seconds, WATCH_SECONDS)
        self._after(first, lambda: self._computed(worker, seconds - first))

    def _computed(self, worker: Worker, rest: float) -> None:
        lease = worker.lease
        if not worker.is_alive or lease is None:
            return
        if not self.scheduler.is_wanted(lease):
            self._after(MESSAGE_SECONDS, lambda: self._give_up(worker, lease))
            self._go_on(worker)
        elif rest:
            self._pass_time(worker, rest)
        elif worker.n_left > 1:
            worker.n_left -= 1
            self._compute(worker)
        else:
            self._after(PUSH_SECONDS + MESSAGE_SECONDS, lambda: self._report(worker, lease))
            self._go_on(worker)

    def _report(self, worker: Worker, lease: Lease) -> None:
        losses = np.zeros(len(lease.node.leaves(self.n_units)))
        self._call(lambda: self.scheduler.finish(worker.name, lease, losses, self._now))
        self._serve()

    def _give_up(self, worker: Worker, lease: Lease) -> None:
        self._call(lambda: self.scheduler.give_up(worker.name, lease, self._now))
        self._serve()

    # The hub.

    def _serve(self) -> None:
        """Look at the questions that are kept, until a few in a row find nothing."""
        n_without = 0
        while self._idle and n_without < min(3, len(self._idle)):
            worker = self._idle.popleft()
            if not worker.is_alive:
                continue
            lease = self._call(partial(self.scheduler.next_lease, worker.name, self._now))
            self.n_questions += 1
            if lease is None:
                self._idle.append(worker)
                n_without += 1
            else:
                self.n_leases += 1
                self._after(MESSAGE_SECONDS, partial(self._arrive, worker, lease))
        if self._idle and not self._is_looking and not self.scheduler.is_complete:
            self._is_looking = True
            self._after(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._is_looking = False
        self._serve()

    def _after(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self._now + seconds, next(self._order), event))

    def _call(self, call: Callable[[], Any]) -> Any:
        """Call the scheduler, and see how long that takes."""
        began = time.perf_counter()
        answer = call()
        self.scheduler_seconds += time.perf_counter() - began
        return answer


def simulate(
    scenario: Scenario, way: Way, n_workers: int, n_evaluations: int = N_EVALUATIONS, seed: int = 0
) -> Outcome:
    """Run the evaluations of one scenario."""
    simulation = Simulation(scenario, way, n_workers, seed)
    times = [simulation.evaluate(evaluation) for evaluation in range(1, n_evaluations + 1)]
    backups, each = simulation.scheduler.backups, n_workers * n_evaluations
    return Outcome(
        scenario=scenario.name,
        way=way.name,
        n_workers=n_workers,
        n_units=simulation.n_units,
        first=times[0],
        later=statistics.fmean(times[1:]),
        worst=max(times[1:]),
        leases=simulation.n_leases / each,
        copies=backups.started / each,
        wasted=backups.wasted_seconds / (SHARE_SECONDS * each),
        scheduler_microseconds=1e6 * simulation.scheduler_seconds / simulation.n_leases,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures, with commit and machine, to this file")
    parser.add_argument("--plot", type=Path, help="draw them to this file: .png, .svg")
    parser.add_argument("--processes", type=int, default=2, help="simulations that run side by side")
    parser.add_argument("--quick", action="store_true", help="up to 100 workers: to see that it runs")
    arguments = parser.parse_args()

    record = Record(__doc__.splitlines()[0])
    workers = WORKERS[:2] if arguments.quick else WORKERS
    cases = list(itertools.product(SCENARIOS, WAYS, sorted(workers, reverse=True)))
    with ProcessPoolExecutor(arguments.processes) as pool:
        # The long ones first, so that the processes end together.
        by_length = sorted(cases, key=lambda case: -case[1].units_per_worker * case[2])
        found = dict(zip(by_length, pool.map(simulate, *zip(*by_length, strict=True)), strict=True))
    outcomes = [found[case] for case in sorted(cases, key=lambda case: (SCENARIOS.index(case[0]), case[2]))]
    print_table(outcomes)
    if arguments.plot:
        draw(outcomes, arguments.plot)
    if arguments.json:
        figures = {
            "quick": arguments.quick,
            "evaluations": N_EVALUATIONS,
            "outcomes": [asdict(one) for one in outcomes],
        }
        record.write(arguments.json, figures)


def print_table(outcomes: list[Outcome]) -> None:
    print("batch time over ideal: first evaluation / mean of the others / worst of the others;")
    print("with small units and backups also leases and copies a worker and evaluation, what of all work was wasted,")
    print("and microseconds of the scheduler a lease")
    print(f"{'':12}{'workers':>8}" + "".join(f"{way.name:>31}" for way in WAYS))
    for (scenario, n_workers), group in itertools.groupby(outcomes, lambda one: (one.scenario, one.n_workers)):
        by_way = {one.way: one for one in group}
        times = "".join(f"{f'{one.first:.2f} / {one.later:.2f} / {one.worst:.2f}':>31}" for one in by_way.values())
        full = by_way[WAYS[0].name]
        print(
            f"{scenario:12}{n_workers:8}{times}   {full.leases:5.1f} {full.copies:5.2f} {100 * full.wasted:5.1f} % "
            f"{full.scheduler_microseconds:5.0f}"
        )


def draw(outcomes: list[Outcome], path: Path) -> None:
    """One picture a scenario: the mean of the later evaluations against the number of workers."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    figure, axes = pyplot.subplots(2, math.ceil(len(SCENARIOS) / 2), figsize=(11, 6.5), sharex=True, sharey=True)
    for axis, scenario in zip(axes.flat, SCENARIOS, strict=False):
        for way, style in zip(WAYS, ("C0o-", "C1s--", "C2^-", "C3v--"), strict=True):
            ours = [one for one in outcomes if (one.scenario, one.way) == (scenario.name, way.name)]
            axis.plot([one.n_workers for one in ours], [one.later for one in ours], style, label=way.name, ms=5)
        axis.set(title=scenario.name, xscale="log", yscale="log")
        axis.yaxis.set_major_locator(FixedLocator([1, 1.2, 1.5, 2, 3, 5, 10, 20, 50]))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
    figure.supxlabel("workers")
    figure.supylabel("batch time over ideal")
    axes.flat[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
