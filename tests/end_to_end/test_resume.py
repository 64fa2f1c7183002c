"""Runs that were broken off go on from their checkpoint, with other numbers of everything, as if nothing had been."""

from __future__ import annotations

import dataclasses
import math
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

import dask_belief as db
from dask_belief.checkpoint import CheckpointStore
from dask_belief.monitoring.events import Event, IterationEnded, Resumed, RunStarted, Saved, Validated
from dask_belief.optim.direction import Direction, Update
from tests.end_to_end.conftest import Connect, blobs
from tests.row_counts import OPTIONS, RowCounts, SparseRowCounts

OFTEN: dict[str, Any] = {"every_seconds": 0}
ITERATIONS = 8


class BrokenOffError(Exception):
    """What ends a run from within, as an error of a user's callback does."""


class BreakOff:
    """A callback that fails at an event of a kind, of one of the methods, after so many states of it were saved."""

    def __init__(self, n_saved: int = 1, kind: type[Event] = IterationEnded, stage: int = 1) -> None:
        self.events: list[Event] = []
        self._n_saved = n_saved
        self._kind = kind
        self._stage = stage

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        starts = [at for at, each in enumerate(self.events) if isinstance(each, RunStarted)]
        if len(starts) != self._stage:
            return
        n_saved = sum(isinstance(each, Saved) for each in self.events[starts[-1] :])
        if isinstance(event, self._kind) and n_saved >= self._n_saved:
            raise BrokenOffError


def broken_off(
    client: Client, path: Path, objective: Any, data: Any, method: Any, at: BreakOff | None = None, **options: Any
) -> None:
    """Train until a callback fails, saving as often as can be."""
    with pytest.raises(BrokenOffError):
        db.train(
            objective,
            data,
            method,
            client=client,
            callbacks=[at or BreakOff(2)],
            checkpoint=db.Checkpoint(path, keep=500, **OFTEN),
            progress=False,
            **options,
        )


@pytest.fixture(scope="module")
def three_workers(connect: Connect) -> Iterator[Client]:
    """Another cluster than the one on which runs begin."""
    with connect(3) as client:
        yield client


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 rows in chunks of 50, which a wide network goes over in a moment."""
    path = tmp_path_factory.mktemp("rows") / "rows.zarr"
    db.write_dataset(path, *blobs(300, seed=0), chunk_rows=50)
    return path


class HeavyBall:
    """A direction rule of the user's own, which describes what it knows."""

    c2 = 0.9

    def __init__(self) -> None:
        self.terms: dict[str, float] = {"g": -1.0}
        self.dots: dict[str, float] = {}

    @property
    def has_memory(self) -> bool:
        return "s0" in self.terms

    def reset(self) -> None:
        self.terms = {"g": -1.0}

    def free_slot(self) -> int:
        return 0

    def products(self, slot: int | None) -> list[tuple[str, ...]]:
        return [("g", "g")] if slot is None else [("g", "g"), ("g", "s0")]

    def update(self, slot: int | None, dots: Mapping[tuple[str, ...], float], step: float = math.nan) -> Update:
        self.dots = {"g": dots["g", "g"], "s0": dots.get(("g", "s0"), 0.0)}
        self.reset()
        if slot is not None and 0.5 / step * self.dots["s0"] < self.dots["g"]:
            self.terms["s0"] = 0.5 / step
        return Update(is_kept=self.has_memory)

    def direction(self) -> Direction:
        return Direction(self.terms)

    def slope(self) -> float:
        return sum(coefficient * self.dots[name] for name, coefficient in self.terms.items())

    def first_step(self) -> float:
        return float(self.dots["g"] ** -0.5)

    def to_config(self) -> dict[str, Any]:
        return {"terms": self.terms, "dots": self.dots}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> HeavyBall:
        rule = cls()
        rule.terms, rule.dots = dict(config["terms"]), dict(config["dots"])
        return rule


def sandblaster(**options: Any) -> db.Sandblaster:
    """A batch method that goes on until its iterations are done, on two shards."""
    return db.Sandblaster(**{"max_iter": ITERATIONS, "n_shards": 2, "l2": 1e-4, "ftol": 0.0, "gtol": 0.0} | options)


def iterations(result: db.TrainingResult) -> list[tuple[Any, ...]]:
    """What the history says of each iteration, but for what depends on the clock or on the cluster."""
    events = [event for event in result.history if isinstance(event, IterationEnded)]
    return [
        (each.iteration, each.evaluations, each.loss, each.gradient_norm, each.step, each.passes) for each in events
    ]


def assert_same(resumed: db.TrainingResult, unbroken: db.TrainingResult) -> None:
    """The same run, to the bit."""
    assert resumed.parameters.dtype == unbroken.parameters.dtype
    assert resumed.parameters.tobytes() == unbroken.parameters.tobytes()
    assert resumed.loss == unbroken.loss
    assert resumed.passes == unbroken.passes
    assert resumed.method == unbroken.method
    assert resumed.stop.reason is unbroken.stop.reason
    assert resumed.validation == unbroken.validation
    assert resumed.repeatable == unbroken.repeatable
    assert iterations(resumed) == iterations(unbroken)


def assert_runs_on(result: db.TrainingResult) -> None:
    """Seconds never go back, but by what was told between the state that was gone on from and the end."""
    at = max(number for number, event in enumerate(result.history) if isinstance(event, Resumed))
    later = [event.seconds for event in result.history.events[at:] if not isinstance(event, RunStarted)]
    assert later == sorted(later)
    assert later[0] > 0
    assert result.seconds >= later[-1] - 1e-9


# Sandblaster: the same bits.


@pytest.mark.parametrize(
    ("options", "run_options", "is_given_again"),
    [
        ({}, {}, False),
        ({"history_size": 2, "damping": True}, {"dtype": "float64"}, False),
        ({"l1": 1e-4}, {}, False),
        pytest.param({"direction": "conjugate_gradient"}, {}, False, marks=pytest.mark.long),
        pytest.param({"direction": "gradient_descent"}, {"dtype": "float64"}, False, marks=pytest.mark.long),
        pytest.param({"direction": HeavyBall}, {}, True, marks=pytest.mark.long),
    ],
    ids=["lbfgs", "damped-float64", "owl-qn", "conjugate", "descent-float64", "own-rule"],
)
def test_a_batch_method_gives_the_same_bits(
    two_workers: Client,
    three_workers: Client,
    wide_network: db.Network,
    rows: Path,
    tmp_path: Path,
    options: dict[str, Any],
    run_options: dict[str, Any],
    is_given_again: bool,
) -> None:
    """On another cluster, with another number of shards."""
    method = sandblaster(**options)
    unbroken = db.train(wide_network, rows, method, client=two_workers, progress=False, **run_options)
    broken_off(two_workers, tmp_path / "run", wide_network, rows, method, **run_options)
    given = dataclasses.replace(method, n_shards=3) if is_given_again or options == {} else None
    resumed = db.resume(tmp_path / "run", client=three_workers, method=given, progress=False)
    assert_same(resumed, unbroken)
    assert_runs_on(resumed)


def test_a_validated_run_goes_on(
    two_workers: Client, three_workers: Client, network: db.Network, rows: Path, tmp_path: Path
) -> None:
    """The validation set, which was of arrays, is given again; without it the run says which one is missing."""
    held_out = blobs(100, seed=1)
    method = sandblaster(n_shards=1)
    unbroken = db.train(network, rows, method, client=two_workers, validation=held_out, progress=False)
    broken_off(two_workers, tmp_path / "run", network, rows, method, validation=held_out)
    with pytest.raises(db.ArgumentError, match=r"^validation: "):
        db.resume(tmp_path / "run", client=three_workers, progress=False)
    resumed = db.resume(tmp_path / "run", client=three_workers, validation=held_out, progress=False)
    assert_same(resumed, unbroken)
    assert resumed.validation["loss"] > 0


def test_a_run_is_resumed_twice_and_from_an_older_state(
    two_workers: Client, three_workers: Client, wide_network: db.Network, rows: Path, tmp_path: Path
) -> None:
    """A run that was resumed is broken off again; and goes on once more from a state of its choice."""
    path, method = tmp_path / "run", sandblaster()
    unbroken = db.train(wide_network, rows, method, client=two_workers, progress=False)
    broken_off(two_workers, path, wide_network, rows, method)
    with pytest.raises(BrokenOffError):
        db.resume(db.Checkpoint(path, keep=500, **OFTEN), client=three_workers, callbacks=[BreakOff(1)], progress=False)
    numbers = CheckpointStore(path).numbers()
    assert len(numbers) >= 3
    resumed = db.resume(path, client=two_workers, progress=False)
    assert_same(resumed, unbroken)
    assert_runs_on(resumed)
    assert sum(isinstance(event, Resumed) for event in resumed.history) == 2


@pytest.mark.long
def test_a_run_goes_on_from_every_state(two_workers: Client, network: db.Network, rows: Path, tmp_path: Path) -> None:
    """Whichever is chosen, the oldest last: what came after it is written anew."""
    path, method = tmp_path / "run", sandblaster(n_shards=1, max_iter=60)
    unbroken = db.train(network, rows, method, client=two_workers, progress=False)
    broken_off(two_workers, path, network, rows, method, BreakOff(3))
    numbers = CheckpointStore(path).numbers()
    assert len(numbers) >= 3
    for number in (numbers[1], numbers[0]):
        saving = db.Checkpoint(path, keep=500, **OFTEN)
        resumed = db.resume(saving, client=two_workers, number=number, progress=False)
        assert_same(resumed, unbroken)
    with pytest.raises((db.CheckpointError, db.ArgumentError, db.MissingStoreError), match="12345"):
        db.resume(path, client=two_workers, number=12345, progress=False)


def test_a_run_that_had_ended_goes_on(two_workers: Client, network: db.Network, rows: Path, tmp_path: Path) -> None:
    """With nothing changed it gives the same result; with more iterations, that of a longer run."""
    path, method = tmp_path / "run", sandblaster(n_shards=1)
    longer = dataclasses.replace(method, max_iter=2 * ITERATIONS)
    short = db.train(network, rows, method, client=two_workers, checkpoint=path, progress=False)
    again = db.resume(path, client=two_workers, progress=False)
    assert again.parameters.tobytes() == short.parameters.tobytes()
    assert (again.loss, again.passes, again.stop.reason) == (short.loss, short.passes, short.stop.reason)
    unbroken = db.train(network, rows, longer, client=two_workers, progress=False)
    resumed = db.resume(path, client=two_workers, method=longer, progress=False)
    assert_same(resumed, unbroken)


# Several methods.

FIRST = db.Downpour(n_replicas=1, epochs=1, batch_size=10, n_shards=2)
LIST = [FIRST, sandblaster(first_hessian="adagrad")]


def test_a_second_method_goes_on(
    two_workers: Client, three_workers: Client, wide_network: db.Network, rows: Path, tmp_path: Path
) -> None:
    """With Adagrad's sums of the first, which is not run again, as L-BFGS's first Hessian."""
    unbroken = db.train(wide_network, rows, LIST, client=two_workers, progress=False)
    broken_off(two_workers, tmp_path / "run", wide_network, rows, LIST, BreakOff(2, stage=2))
    resumed = db.resume(tmp_path / "run", client=three_workers, progress=False)
    assert_same(resumed, unbroken)
    assert_runs_on(resumed)
    kinds = [event.method for event in resumed.history if isinstance(event, RunStarted)]
    assert len(kinds) == 3 and kinds[1] == kinds[2]


def test_a_first_method_goes_on_and_the_second_follows(
    two_workers: Client, three_workers: Client, wide_network: db.Network, rows: Path, tmp_path: Path
) -> None:
    """Each row is trained on once by the first, and the second makes all of its iterations."""
    methods = [dataclasses.replace(FIRST, epochs=4), LIST[1]]
    broken_off(two_workers, tmp_path / "run", wide_network, rows, methods, BreakOff(1, Saved))
    resumed = db.resume(tmp_path / "run", client=three_workers, progress=False)
    assert resumed.method == "Downpour SGD, then Sandblaster L-BFGS"
    done = iterations(resumed)
    assert [each[0] for each in done] == list(range(1, ITERATIONS + 1))
    assert resumed.passes == pytest.approx(4 + done[-1][1])
    assert_runs_on(resumed)


def test_all_methods_are_given_again(two_workers: Client, network: db.Network, rows: Path, tmp_path: Path) -> None:
    """As a list, where others than the one that was broken off are by a rule of the user's own."""
    own = sandblaster(n_shards=1, direction=HeavyBall)
    methods = [own, dataclasses.replace(own, direction="lbfgs")]
    unbroken = db.train(network, rows, methods, client=two_workers, progress=False)
    broken_off(two_workers, tmp_path / "run", network, rows, methods, BreakOff(2, stage=2))
    with pytest.raises(db.ArgumentError, match=r"^method: .*all methods"):
        db.resume(tmp_path / "run", client=two_workers, progress=False)
    with pytest.raises(db.ArgumentError, match=r"^method: the run is of Sandblaster, Sandblaster, got Sandblaster"):
        db.resume(tmp_path / "run", client=two_workers, method=[own], progress=False)
    resumed = db.resume(tmp_path / "run", client=two_workers, method=methods, progress=False)
    assert_same(resumed, unbroken)


# Downpour: no row twice, none left out.


def counted(client: Client, path: Path, method: db.Downpour, counts: RowCounts, *further: tuple[Any, int]) -> None:
    """Break a run off, and go on with it on other clusters; each row must be counted once an epoch."""
    data = counts.data()
    broken_off(client, path, counts, data, method, BreakOff(1, Saved))
    for number, (other, n_shards) in enumerate(further):
        given = dataclasses.replace(method, n_shards=n_shards)
        is_last = number == len(further) - 1
        options: dict[str, Any] = {"objective": counts, "dataset": data, "method": given, "client": other}
        saving = db.Checkpoint(path, keep=500, **OFTEN)
        if is_last:
            result = db.resume(saving, progress=False, **options)
        else:
            with pytest.raises(BrokenOffError):
                db.resume(saving, callbacks=[BreakOff(1, Saved)], progress=False, **options)
    # Of a round that two made together, each row counts one half.
    least = 0.5 if isinstance(method.staleness, db.Synchronous) else 1.0
    found = counts.counts(result.parameters)
    assert found.min() >= least * method.epochs and found.max() <= method.epochs
    assert result.passes == method.epochs


@pytest.mark.parametrize("kind", [RowCounts, SparseRowCounts], ids=["dense", "sparse"])
def test_rows_are_counted_once_on_other_numbers_of_shards(
    two_workers: Client, three_workers: Client, tmp_path: Path, kind: type[RowCounts]
) -> None:
    """One shard, then three, then two, each cut otherwise."""
    counts = kind(1024, n_shards=3)
    method = db.Downpour(n_replicas=2, epochs=3, n_shards=1, **OPTIONS)
    counted(two_workers, tmp_path / "run", method, counts, (three_workers, 3), (two_workers, 2))


@pytest.mark.parametrize(
    "options",
    [
        {"staleness": db.Synchronous(), "n_replicas": 2},
        {"staleness": db.MaxStaleness(1000), "n_replicas": 2},
        {"n_fetch": 3, "n_push": 2, "n_replicas": 2},
        {"n_replicas": None, "fetch_lag": 0},
    ],
    ids=["synchronous", "max-staleness", "lazy", "without-lag"],
)
def test_rows_are_counted_once_in_every_way(
    two_workers: Client, three_workers: Client, tmp_path: Path, options: dict[str, Any]
) -> None:
    """However replicas keep together."""
    method = db.Downpour(epochs=3, n_shards=1, **OPTIONS, **options)
    counted(two_workers, tmp_path / "run", method, RowCounts(1024), (three_workers, 1))


@pytest.mark.parametrize(
    "rule", [db.Adam(0.01), db.Momentum(0.01), db.Adagrad(0.05)], ids=["adam", "momentum", "adagrad"]
)
def test_a_rules_state_goes_on(
    two_workers: Client, three_workers: Client, network: db.Network, rows: Path, tmp_path: Path, rule: Any
) -> None:
    """With the vectors of a rule on the shards a run of one replica ends about where an unbroken one does."""
    method = db.Downpour(n_replicas=1, rule=rule, epochs=6, batch_size=10)
    unbroken = db.train(network, rows, method, client=two_workers, progress=False)
    broken_off(two_workers, tmp_path / "run", network, rows, method, BreakOff(1, Saved))
    resumed = db.resume(tmp_path / "run", client=three_workers, progress=False)
    assert resumed.passes == 6 and not math.isnan(resumed.loss)
    assert sorted(resumed.rule_state) == sorted(unbroken.rule_state)
    assert resumed.loss == pytest.approx(unbroken.loss, rel=0.2)


def test_the_best_point_by_validation_survives(
    two_workers: Client, three_workers: Client, network: db.Network, rows: Path, tmp_path: Path
) -> None:
    """What was found before is the result where nothing better is found after."""
    held_out = blobs(200, seed=1)
    method = db.Downpour(n_replicas=1, epochs=30, batch_size=10, validate_every_steps=30)
    events: list[Event] = []

    class AfterABest(BreakOff):
        """Fails when two states were saved after a validation: the second was begun after it."""

        def __call__(self, event: Event) -> None:
            validated = [isinstance(each, Validated) for each in self.events]
            if True in validated:
                self._n_saved = 2 + sum(isinstance(each, Saved) for each in self.events[: validated.index(True)])
            super().__call__(event)

    broken_off(
        two_workers,
        tmp_path / "run",
        network,
        rows,
        method,
        AfterABest(1_000_000, Saved),
        validation=held_out,
    )
    # From here on the rate is so large that hardly a point is better.
    wild = dataclasses.replace(method, rule=db.Adagrad(100.0))
    resumed = db.resume(
        tmp_path / "run",
        client=three_workers,
        method=wild,
        validation=held_out,
        callbacks=[events.append],
        progress=False,
    )
    at = [isinstance(event, Resumed) for event in resumed.history].index(True)
    before = [event.loss for event in resumed.history.events[:at] if isinstance(event, Validated)]
    after = [event.loss for event in events if isinstance(event, Validated)]
    assert before and after
    assert resumed.validation["loss"] == min(before + after)
    assert resumed.loss < max(after)


def test_a_downpour_that_had_ended_gets_more_epochs(two_workers: Client, tmp_path: Path) -> None:
    """Each row is counted once an epoch, those of before too."""
    counts, path = RowCounts(1024), tmp_path / "run"
    data = counts.data()
    method = db.Downpour(n_replicas=2, epochs=1, **OPTIONS)
    db.train(counts, data, method, client=two_workers, checkpoint=path, progress=False)
    result = db.resume(
        path,
        client=two_workers,
        objective=counts,
        dataset=data,
        method=dataclasses.replace(method, epochs=3),
        progress=False,
    )
    assert counts.found(result.parameters) == [[3]]
    assert result.passes == 3


# A process that is killed.

KILLED = """
import os, signal, sys
import dask_belief as db
from distributed import Client, LocalCluster
from dask_belief.monitoring.events import Saved

if __name__ == "__main__":
    n_saved = 0

    def kill(event):
        global n_saved
        n_saved += isinstance(event, Saved)
        if n_saved == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    network = db.Network([db.Dense(16, "tanh"), db.Dense(4)], loss="softmax", input_shape=(10,))
    method = db.Sandblaster(max_iter=8, n_shards=1, l2=1e-4, ftol=0.0, gtol=0.0)
    with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster, Client(cluster) as client:
        saving = db.Checkpoint(sys.argv[2], every_seconds=0)
        db.train(network, sys.argv[1], method, client=client, checkpoint=saving, callbacks=[kill], progress=False)
"""


def test_a_process_that_was_killed(two_workers: Client, network: db.Network, rows: Path, tmp_path: Path) -> None:
    """Client, scheduler and worker at once, by SIGKILL; all that is left is the checkpoint."""
    command = [sys.executable, "-c", KILLED, str(rows), str(tmp_path / "run")]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, timeout=100, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()[-2000:]
    unbroken = db.train(network, rows, sandblaster(n_shards=1), client=two_workers, progress=False)
    assert_same(db.resume(tmp_path / "run", client=two_workers, progress=False), unbroken)
