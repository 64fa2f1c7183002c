r"""What 1 to 1,000 replicas of Downpour gain: samples a second, staleness, and the time to a fixed accuracy.

The ledger's book of leases, its clocks and its rounds, the shards and their rules are the real ones, and so are problem
and gradients: a network 784-32-10 on Fashion-MNIST, in mini-batches of 5 rows. Replicas, messages and clock are
simulated. A replica works as `dask_belief.downpour.trainer` has it, in the base form: after each mini-batch one
exchange with all shards pushes the gradient and fetches the parameters for the next. An exchange is a message to each
shard: it leaves on the replica's line after those to other shards, travels, waits until the shard has served what came
before it, is served, and is answered.

How long a mini-batch, a message and an update take are options. What stands there is made up, but of a usual kind: a
network of 250,000 parameters whose mini-batch computes for 0.1 s, on machines with lines of 10 Gbit/s, and 5 shards,
however many replicas there are. Replicas differ in speed, one in fifty is five times slower, and now and then one
pauses.

The question is that of the paper's figure 5: how long until a fixed accuracy on rows held out, with how many machines?
Every way to train is run with three learning rates and each number of replicas, and ends when it has the accuracy, or
after three passes. Told are the best of the three for each number, and the one that is best for all: that gets there
with the most numbers of replicas, and in the least time, by the geometric mean. From the root of the repository (about
ten minutes on two cores)::

    python -m benchmarks.simulate_downpour --json benchmarks/results/simulation_downpour.json \
        --plot docs/simulation_downpour.png
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import dask_belief as db
from benchmarks.record import Record
from benchmarks.virtual_downpour import (
    BATCH_ROWS,
    N_SHARDS,
    PASSES,
    TARGET,
    Outcome,
    Point,
    Simulation,
    Times,
    Way,
    problem,
)
from dask_belief.optim.rules import SGD, Adagrad
from dask_belief.parameter_server.consistency import MaxStaleness, ScaleByStaleness, Synchronous

REPLICAS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
TOGETHER = (10, 50, 200)
"""Numbers of replicas with which the ways to keep them together are compared."""


@dataclass(frozen=True)
class Plan:
    """A way to train, with the learning rates and the numbers of replicas to try."""

    way: Way
    rates: tuple[float, ...]
    replicas: tuple[int, ...]


_RATES = (0.002, 0.006, 0.02)
PLANS = (
    Plan(Way("fixed rate", SGD(1.0)), (0.001, 0.004, 0.016), REPLICAS),
    Plan(Way("Adagrad", Adagrad(1.0)), _RATES, REPLICAS),
    Plan(Way("Adagrad, warm start", Adagrad(1.0), warm_start_steps=100), _RATES, REPLICAS),
    Plan(Way("fetch_lag=1", Adagrad(1.0), fetch_lag=1), _RATES, TOGETHER),
    Plan(Way("MaxStaleness(3)", Adagrad(1.0), staleness=MaxStaleness(3)), _RATES, TOGETHER),
    Plan(Way("ScaleByStaleness", Adagrad(1.0), staleness=ScaleByStaleness()), (0.02, 0.1, 0.5), TOGETHER),
    Plan(Way("Synchronous", Adagrad(1.0), staleness=Synchronous()), (0.02, 0.06, 0.2), TOGETHER),
    Plan(Way("Synchronous, 5 % backups", Adagrad(1.0), backup_share=0.05), (0.02, 0.06, 0.2), TOGETHER),
)
BASE = "Adagrad"
"""The way whose curves, staleness and samples a second are shown."""


def simulate(case: tuple[Way, int], times: Times, passes: float, seed: int) -> Outcome:
    """Simulate one run; for a pool of processes."""
    way, n_replicas = case
    return Simulation(way, n_replicas, times, passes, seed).run()


def single_thread() -> None:
    """Keep the linear algebra of each process to one thread."""
    db.get_backend("numpy").single_thread()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures, with commit and machine, to this file")
    parser.add_argument("--plot", type=Path, help="draw them to this file: .png, .svg")
    parser.add_argument("--processes", type=int, default=2, help="simulations that run side by side")
    parser.add_argument("--passes", type=float, default=PASSES, help="over the data, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="up to 50 replicas, a rate each: to see that it runs")
    simulated = parser.add_argument_group("the simulated cluster")
    for entry in fields(Times):
        simulated.add_argument(f"--{entry.name.replace('_', '-')}", type=float, default=entry.default)
    arguments = parser.parse_args()
    times = Times(**{entry.name: getattr(arguments, entry.name) for entry in fields(Times)})

    record = Record(__doc__.splitlines()[0])
    plans = [quick(plan) for plan in PLANS] if arguments.quick else list(PLANS)
    passes = 0.2 if arguments.quick else arguments.passes
    cases = [(plan.way.at(rate), n) for plan in plans for rate in plan.rates for n in plan.replicas]
    # The long ones first, so that the processes end together.
    cases.sort(key=lambda case: -case[1])
    problem()
    with ProcessPoolExecutor(arguments.processes, initializer=single_thread) as pool:
        run = partial(simulate, times=times, passes=passes, seed=arguments.seed)
        outcomes = list(pool.map(run, cases))
    findings = [Findings.of(plan, outcomes) for plan in plans]
    print_tables(findings)
    if arguments.plot:
        draw(findings, arguments.plot)
    if arguments.json:
        figures = {
            "quick": arguments.quick,
            "times": asdict(times),
            "shards": N_SHARDS,
            "batch_rows": BATCH_ROWS,
            "target_accuracy": TARGET,
            "passes": passes,
            "seed": arguments.seed,
            "rates_for_all": {each.plan.way.name: each.rate for each in findings},
            "outcomes": [without_curve(one) for each in findings for one in each.outcomes],
            "curves": {one.n_replicas: thinned(one.curve) for one in base(findings).at_best},
        }
        record.write(arguments.json, figures)


def quick(plan: Plan) -> Plan:
    """Leave little of a plan."""
    return replace(plan, rates=plan.rates[1:2], replicas=tuple(n for n in plan.replicas if n in (1, 10, 50)))


def without_curve(outcome: Outcome) -> dict[str, Any]:
    return {name: value for name, value in asdict(outcome).items() if name != "curve"}


def thinned(curve: list[Point], n_points: int = 30) -> dict[str, list[float]]:
    """Give some of the points, evenly from first to last."""
    numbers = np.unique(np.linspace(0, len(curve) - 1, n_points).round().astype(int))
    seconds, _, accuracies = zip(*(curve[number] for number in numbers), strict=True)
    return {"seconds": [round(value, 3) for value in seconds], "accuracy": list(accuracies)}


@dataclass(frozen=True)
class Findings:
    """What came of one plan: all outcomes, the rate that is best for all numbers of replicas, and by number."""

    plan: Plan
    outcomes: list[Outcome]
    rate: float

    @classmethod
    def of(cls, plan: Plan, outcomes: Sequence[Outcome]) -> Findings:
        """Take a plan's own from all outcomes."""
        ours = sorted((one for one in outcomes if one.way == plan.way.name), key=lambda one: (one.rate, one.n_replicas))

        def goodness(rate: float) -> tuple[int, float]:
            found = [one.seconds_to_target for one in ours if one.rate == rate]
            reached = [seconds for seconds in found if seconds is not None]
            return len(reached), -sum(map(math.log, reached))

        return cls(plan, ours, max(plan.rates, key=goodness))

    @property
    def at_one_rate(self) -> list[Outcome]:
        """With the rate that is best for all, by number of replicas."""
        return [one for one in self.outcomes if one.rate == self.rate]

    @property
    def at_best(self) -> list[Outcome]:
        """With the best rate for each number of replicas."""
        return [min((one for one in self.outcomes if one.n_replicas == n), key=_order) for n in self.plan.replicas]


def _order(outcome: Outcome) -> tuple[float, float]:
    """The first to reach the accuracy is the best, then the one that came nearest to it."""
    seconds = outcome.seconds_to_target
    return (math.inf if seconds is None else seconds, -outcome.best_accuracy)


def base(findings: list[Findings]) -> Findings:
    """Those of the way that is shown in full."""
    return next(each for each in findings if each.plan.way.name == BASE)


def print_tables(findings: list[Findings]) -> None:
    print(
        f"seconds to an accuracy of {TARGET} with the best rate for each number of replicas (mini-batches), or the best"
    )
    print(
        "accuracy where it was not reached; the same with the rate that is best for all; and with the first of these:"
    )
    for each in findings:
        print(f"{each.plan.way.name}: {each.rate:g} for all")
        for best, one in zip(each.at_best, each.at_one_rate, strict=True):
            print(f"{best.n_replicas:8} {best.rate:6g} {_told(best):>24}{_told(one):>24}   ", end="")
            print(f"{best.rows_per_second:8,.0f} rows/s of {best.ideal_rows_per_second:8,.0f}", end="")
            print(f"{100 * best.shard_use:5.0f} % of shards" + f"{best.dropped:6} dropped" * bool(best.dropped), end="")
            if best.staleness_mean is not None:
                stale = (best.staleness_mean, best.staleness_p95, best.staleness_max)
                print("   stale " + " / ".join(f"{value:.0f}" for value in stale if value is not None), end="")
            print()


def _told(outcome: Outcome) -> str:
    if outcome.seconds_to_target is None:
        return f"{outcome.ended}, {outcome.best_accuracy:.3f}"
    return f"{outcome.seconds_to_target:.1f} s ({outcome.mini_batches_to_target})"


def draw(findings: list[Findings], path: Path) -> None:
    """Time to the accuracy, samples a second, staleness, accuracy by time, and the ways to keep together."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(14, 8))
    full = [each for each in findings if len(each.plan.replicas) > len(TOGETHER)] or findings[:3]
    others = [base(findings), *(each for each in findings if each not in full)]
    draw_times(axes[0, 0], full)
    axes[0, 0].set_title(f"seconds to {100 * TARGET:.0f} % (dashed: one rate for all)")
    draw_rows(axes[0, 1], base(findings))
    draw_staleness(axes[0, 2], base(findings))
    draw_curves(axes[1, 0], base(findings))
    keeping = [replace(each, plan=replace(each.plan, replicas=others[-1].plan.replicas)) for each in others]
    for axis, name in ((axes[1, 1], "seconds_to_target"), (axes[1, 2], "rows_per_second")):
        for number, each in enumerate(keeping):
            draw_line(axis, each.at_best, name, f"C{number}{'osv^Dx'[number]}-", label=each.plan.way.name)
        finish(axis, xlabel="replicas")
    axes[1, 1].set_title(f"keeping together: seconds to {100 * TARGET:.0f} %")
    axes[1, 2].set_title("keeping together: samples a second")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=100, metadata={"Date": None} if path.suffix == ".svg" else None)


def draw_line(axis: Any, outcomes: list[Outcome], name: str, style: str, **options: Any) -> None:
    found = [(one.n_replicas, getattr(one, name)) for one in outcomes if getattr(one, name) is not None]
    if found:
        axis.plot([n for n, _ in found], [value for _, value in found], style, ms=5, **options)


def finish(axis: Any, **options: Any) -> None:
    """Make both scales logarithmic where there is anything to see."""
    axis.set(**options)
    if axis.lines:
        axis.set(xscale="log", yscale="log")
        axis.legend(fontsize=8)


def draw_times(axis: Any, findings: list[Findings]) -> None:
    for number, each in enumerate(findings):
        style = f"C{number}{'os^'[number % 3]}"
        draw_line(axis, each.at_best, "seconds_to_target", style + "-", label=each.plan.way.name)
        draw_line(axis, each.at_one_rate, "seconds_to_target", style + "--", alpha=0.4)
    first = base(findings).at_best[0]
    if first.seconds_to_target is not None:
        numbers = base(findings).plan.replicas
        axis.plot(numbers, [first.seconds_to_target / n for n in numbers], "k:", label="Adagrad with one, divided")
    finish(axis, xlabel="replicas")


def draw_rows(axis: Any, findings: Findings) -> None:
    draw_line(axis, findings.at_best, "rows_per_second", "C1s-", label="simulated")
    draw_line(axis, findings.at_best, "ideal_rows_per_second", "k:", label="all speeds added")
    finish(axis, xlabel="replicas", title="samples a second")


def draw_staleness(axis: Any, findings: Findings) -> None:
    for name, style in (("mean", "C1s-"), ("p95", "C2^--"), ("max", "C3v:")):
        draw_line(axis, findings.at_best, f"staleness_{name}", style, label=name)
    axis.set(xscale="log", title="staleness, in updates", xlabel="replicas")
    axis.set_yscale("symlog")
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8)


def draw_curves(axis: Any, findings: Findings) -> None:
    for one in findings.at_best:
        if one.n_replicas in (1, 10, 50, 200, 1000):
            # The first point is of the start, at no seconds.
            seconds, _, accuracies = zip(*one.curve[1:], strict=True)
            axis.plot(seconds, accuracies, label=f"{one.n_replicas}")
    axis.axhline(TARGET, color="k", ls=":")
    axis.set(xscale="log", title="Adagrad: accuracy by seconds", xlabel="seconds", ylim=(0.5, 0.85))
    axis.legend(fontsize=8, title="replicas")


if __name__ == "__main__":
    main()
