r"""Whether runs of both methods end, and end right, while a fault happens to their cluster every few seconds.

Four single-threaded worker processes; runs of both methods in turn, each in a process of its own, on images of
Fashion-MNIST. Meanwhile workers are killed, frozen for 1 to 8 seconds (3 are taken for a loss), slowed down by pauses
of 50 ms, retired with another in their place, or added, now and then two at once; and the process that drives a run is
killed or interrupted, and the run is resumed from its checkpoint where it has one. What happens, and to whom, is drawn
from the seed; when it happens within a run is the clock's.

- Sandblaster must end with the bits of a run to which nothing happened. Where it has no checkpoint, all that was saved
  of it can be lost at once; then it must say that it cannot be repeated. Such runs are counted.
- Downpour trains a network that counts its rows, on each shard. No row may count twice, and what is missing must be
  what the run says was lost.
- A run that says nothing for two minutes hangs. Nothing of a run may stay on the cluster. What a run has on the
  scheduler stays for a minute when its client was killed: that is looked at when all runs are over.

The stacks of a run that hangs, and of all workers, are in the folder of the logs. The exit status is not zero when
anything was wrong. From the root of the repository::

    python -m benchmarks.chaos --minutes 20 --seed 0 --json benchmarks/results/chaos.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chaos_faults import Faults, moments
from benchmarks.chaos_life import LONGEST_SECONDS, Life, Outcome, Trainer
from benchmarks.chaos_run import CHUNK_ROWS, N_ROWS, Order, write_data
from benchmarks.fashion_mnist import load
from benchmarks.faulty_cluster import DumpStacks, FaultyCluster
from benchmarks.record import Record
from dask_belief.checkpoint import CheckpointStore
from dask_belief.data.folder import PARTIAL
from dask_belief.seeds import stream

N_WORKERS = 4
N_ITERATIONS, N_EPOCHS = 200, 16
"""So that a run to which nothing happens takes about 20 seconds."""

SOON_SECONDS, CLEAN_SECONDS, FORGOTTEN_SECONDS = 5.0, 20.0, 90.0
"""How long the cluster is given to forget a run: but for its plugin, wholly, and wholly when its client was killed."""

TOGETHER_SHARE = 0.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures, with commit and machine, to this file")
    parser.add_argument("--minutes", type=float, default=20.0, help="no run begins after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first run: to repeat one")
    parser.add_argument("--every", type=float, default=4.0, help="seconds from one fault to the next, in the mean")
    parser.add_argument("--logs", type=Path, help="a folder for the logs; else they stay only where a run failed")
    arguments = parser.parse_args()

    record = Record(__doc__.splitlines()[0])
    logs = Path(tempfile.mkdtemp(prefix="chaos-")) if arguments.logs is None else arguments.logs
    logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, FaultyCluster(N_WORKERS) as cluster:
        cluster.client.register_plugin(DumpStacks(logs.resolve()))
        write_data(load("train", N_ROWS), Path(folder))
        chaos = Chaos(cluster, Path(folder), logs, arguments.seed, arguments.every)
        outcomes = chaos.go_on_for(60 * arguments.minutes, arguments.first)
    figures = figures_of(outcomes, arguments.minutes, arguments.seed)
    print(json.dumps({name: value for name, value in figures.items() if name != "outcomes"}, indent=2))
    has_failed = any(outcome.failures for outcome in outcomes)
    if has_failed or arguments.logs is not None:
        print(f"the logs are in {logs}")
    else:
        shutil.rmtree(logs)
    if arguments.json:
        record.write(arguments.json, figures)
    sys.exit(1 if has_failed else 0)


class Chaos:
    """Run after run on one cluster.

    Parameters
    ----------
    cluster, folder, logs
        Where runs train, what they read and write, and what they say.
    seed, every_seconds
        What decides, and how often something happens.
    """

    def __init__(self, cluster: FaultyCluster, folder: Path, logs: Path, seed: int, every_seconds: float) -> None:
        self._cluster = cluster
        self._folder = folder
        self._logs = logs
        self._seed = seed
        self._every_seconds = every_seconds
        # What Sandblaster gives when nothing happens, by its options.
        self._unbroken: dict[str, dict[str, Any]] = {}
        # What clients that were killed have left, for a while.
        self._deserted: set[str] = set()

    def go_on_for(self, seconds: float, first: int) -> list[Outcome]:
        """Run until the time is up; runs to which nothing happens, for comparison, do not count."""
        outcomes: list[Outcome] = []
        left = seconds
        while left > 0:
            random = stream(self._seed, "chaos", str(first + len(outcomes)))
            outcome, order = self._plan(first + len(outcomes), random)
            if outcome.method == "Sandblaster":
                self._compare_with(order)
            began = time.monotonic()
            self._live_through(outcome, order, random)
            left -= time.monotonic() - began
            outcomes.append(outcome)
            print(line(outcome), flush=True)
        outcomes[-1].failures += [f"left at the end: {what}" for what in self._cluster.what_stays(FORGOTTEN_SECONDS)]
        return outcomes

    def _plan(self, number: int, random: np.random.Generator) -> tuple[Outcome, Order]:
        """Draw what is trained next."""
        method = ("Sandblaster", "Downpour")[number % 2]
        checkpoint = ("none", "none", "by default", "always")[int(random.integers(4))]
        options: dict[str, Any] = {"n_shards": int(random.integers(1, 3))}
        if method == "Sandblaster":
            options |= {"max_iter": N_ITERATIONS} | ({"l2": 1e-4}, {"l2": 1e-4}, {"l1": 1e-4})[int(random.integers(3))]
        else:
            options |= {"epochs": N_EPOCHS, "shard_copies": int(random.integers(2))}
        outcome = Outcome(number, method, options, checkpoint)
        own = self._folder / f"run{number}"
        own.mkdir()
        order = Order(self._cluster.address, method, options, str(self._folder), str(own / "result.json"))
        if checkpoint != "none":
            order = replace(
                order, checkpoint=str(own / "checkpoint"), every_seconds=None if checkpoint == "by default" else 0.0
            )
        return outcome, order

    def _compare_with(self, order: Order) -> None:
        """Find what the same gives when nothing happens; the bits do not depend on the number of shards."""
        key = self._key(order)
        if key in self._unbroken:
            return
        self._cluster.make_whole()
        result = self._folder / f"unbroken{len(self._unbroken)}.json"
        own = replace(order, checkpoint=None, result=str(result))
        trainer = Trainer(own, self._logs / f"{result.stem}.log")
        trainer.process.wait(LONGEST_SECONDS)
        self._unbroken[key] = json.loads(result.read_text())
        seconds = self._unbroken[key]["seconds"]
        print(f"unbroken {order.method} {key}: {seconds:.1f} s", flush=True)

    @staticmethod
    def _key(order: Order) -> str:
        return json.dumps({name: value for name, value in order.options.items() if name != "n_shards"}, sort_keys=True)

    def _live_through(self, outcome: Outcome, order: Order, random: np.random.Generator) -> None:
        """Train while faults happen, and judge what came of it."""
        if not self._cluster.make_whole():
            outcome.failures.append("the cluster was not whole again before the run")
        faults, began = Faults(self._cluster, random), time.monotonic()
        life = Life(order, self._logs / f"run{outcome.number}", outcome, faults, random)
        try:
            life.live(moments(random, self._every_seconds, TOGETHER_SHARE))
        finally:
            faults.close()
            life.end(self._cluster)
        outcome.seconds = time.monotonic() - began
        outcome.faults = [asdict(fault) for fault in faults.happened]
        outcome.failures += faults.failures
        outcome.failures += self._left(was_killed=any(fault.kind == "kill client" for fault in faults.happened))
        outcome.memory = self._cluster.memory()
        result = Path(order.result)
        if result.exists():
            self._judge(outcome, order, json.loads(result.read_text()))
        elif outcome.verdict != "interrupted" and not outcome.failures:
            outcome.failures.append("there is no result")
        outcome.failures += half_written(order)
        outcome.verdict = outcome.verdict or "wrong"
        shutil.rmtree(result.parent)

    def _left(self, was_killed: bool) -> list[str]:
        """Say what the run has left on the cluster."""
        found = self._cluster.what_stays(SOON_SECONDS if was_killed else CLEAN_SECONDS)
        if was_killed:
            # They go by themselves in time, which may be during the runs that come next.
            self._deserted.update(what for what in found if what.startswith("plugin"))
        return [f"left: {what}" for what in found if what not in self._deserted]

    def _judge(self, outcome: Outcome, order: Order, told: dict[str, Any]) -> None:
        """Say whether a result is right."""
        outcome.rebuilt = told["rebuilt"]
        if not told["is_finite"]:
            outcome.failures.append("parameters are not finite")
        if told["reason"] == "INTERRUPTED":
            outcome.verdict = "interrupted"
            outcome.failures += self._unlike_a_beginning(order, told)
        elif order.method == "Sandblaster":
            unbroken = self._unbroken[self._key(order)]
            if told["digest"] == unbroken["digest"] and told["losses"] == unbroken["losses"]:
                outcome.verdict = "same bits"
            elif not told["is_repeatable"] and order.checkpoint is None:
                outcome.verdict = "all that was saved was lost"
            else:
                outcome.failures.append(f"other bits, and is_repeatable {told['is_repeatable']}")
        else:
            outcome.missing = sum(told["missing"])
            if told["most"] > N_EPOCHS:
                outcome.failures.append(f"rows count twice: {told['most']:g} times in {N_EPOCHS} epochs")
            elif outcome.missing and told["missing"] != told["n_told_lost"]:
                outcome.failures.append(f"{told['missing']} mini-batches missing, {told['n_told_lost']} told")
            else:
                outcome.verdict = "some lost, and told" if outcome.missing else "each mini-batch once"

    def _unlike_a_beginning(self, order: Order, told: dict[str, Any]) -> list[str]:
        """Say what an interrupted run has that an unbroken one does not have by then."""
        if order.method == "Sandblaster":
            losses = self._unbroken[self._key(order)]["losses"][: len(told["losses"])]
            is_beginning = told["losses"] == losses
            return [] if is_beginning or not told["is_repeatable"] else ["other losses until the interrupt"]
        if told["most"] > N_EPOCHS:
            return [f"rows count twice until the interrupt: {told['most']:g} times in {N_EPOCHS} epochs"]
        return []


def half_written(order: Order) -> list[str]:
    """Say what a run has left half written, and whether its newest checkpoint can be read."""
    if order.checkpoint is None or not Path(order.checkpoint).exists():
        return []
    found = [f"half written: {path.name}" for path in Path(order.checkpoint).rglob("*") if PARTIAL in path.name]
    store = CheckpointStore(order.checkpoint)
    with contextlib.suppress(StopIteration):
        if store.numbers():
            try:
                store.verify(store.newest())
            except Exception as error:
                found.append(f"the checkpoint cannot be read: {error}")
    return found


def line(outcome: Outcome) -> str:
    """Tell of a run in a line."""
    kinds = Counter(fault["kind"] for fault in outcome.faults)
    happened = ", ".join(f"{kind} {count}" for kind, count in kinds.items())
    said = f"{outcome.verdict}; {'; '.join(outcome.failures)}" if outcome.failures else outcome.verdict
    options = ", ".join(f"{name}={value}" for name, value in outcome.options.items())
    return (
        f"run {outcome.number:3} {outcome.method:11} {outcome.seconds:5.1f} s ({options}, checkpoint "
        f"{outcome.checkpoint}): {happened or 'nothing happened'}: {said}"
    )


def recovery_of(rebuilt: dict[str, Any]) -> str:
    """Name the way in which something lost was made anew, from what the run said of it."""
    for words in ("saved state", "beginning", "copy of", "goes on alone", "begun again"):
        if words in rebuilt["lost"]:
            return words
    return str(rebuilt["lost"])


def again_of(rebuilt: dict[str, Any]) -> int:
    """The iterations that were computed again."""
    words = rebuilt["lost"].rpartition(", ")[2].split()
    return int(words[0]) if words[1:] == ["are", "computed", "again"] else 0


def figures_of(outcomes: Sequence[Outcome], minutes: float, seed: int) -> dict[str, Any]:
    """Sum up."""
    faults = [fault for outcome in outcomes for fault in outcome.faults]
    rebuilt = [each for outcome in outcomes for each in outcome.rebuilt]
    interrupts = [seconds for outcome in outcomes for seconds in outcome.interrupted_seconds]
    return {
        "minutes": minutes,
        "seed": seed,
        "workers": N_WORKERS,
        "rows": N_ROWS,
        "lease_rows": CHUNK_ROWS,
        "runs": dict(Counter(outcome.method for outcome in outcomes)),
        "verdicts": dict(Counter(f"{outcome.method}: {outcome.verdict}" for outcome in outcomes)),
        "faults": dict(Counter(fault["kind"] for fault in faults)),
        "faults_by_role": dict(Counter(f"{each['kind']}: {', '.join(each['roles'])}" for each in faults)),
        "recoveries": dict(Counter(recovery_of(each) for each in rebuilt)),
        "iterations_computed_again": sum(again_of(each) for each in rebuilt),
        "mini_batches_lost": sum(outcome.missing for outcome in outcomes),
        "resumed": sum(max(0, outcome.attempts - 1) for outcome in outcomes),
        "interrupted_seconds_most": max(interrupts, default=math.nan) if interrupts else None,
        "memory_mb_first": outcomes[0].memory,
        "memory_mb_last": outcomes[-1].memory,
        "memory_mb_most": max(outcome.memory["largest_worker"] for outcome in outcomes),
        "failures": [f"run {outcome.number}: {failure}" for outcome in outcomes for failure in outcome.failures],
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }


if __name__ == "__main__":
    main()
