"""Every unit counts once, with the same bits, whoever computed it and however often; see `dask_belief.binary_tree`."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from distributed import Client, get_worker

import dask_belief as db
from dask_belief.backend import Scalar
from dask_belief.cluster.actors import ActorAddress, Caller
from dask_belief.data.units import WorkUnit, plan_units
from dask_belief.monitoring.events import IterationEnded, WorkerJoined
from dask_belief.parameter_server.gradient_sum import GradientSum
from dask_belief.sandblaster import pace
from dask_belief.sandblaster.replica import Evaluator
from dask_belief.sandblaster.unit_scheduler import Lease, UnitScheduler
from tests.small_cluster import small_cluster

from .conftest import blobs  # noqa: TID252

LIMIT_SECONDS = 30.0
"""After so long a test that holds something back gives up, and fails."""

PENALTIES = {"l2": {"l2": 1e-3}, "l1": {"l1": 1e-3}}
by_penalty = pytest.mark.parametrize("penalty", PENALTIES)


class Trajectory(NamedTuple):
    """What must not depend on who computes."""

    losses: list[float]
    gradient_norms: list[float]
    steps: list[float]
    parameters: bytes


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 rows in chunks of 25, each of which is a unit."""
    path = tmp_path_factory.mktemp("data") / "train.zarr"
    db.write_dataset(path, *blobs(1000, seed=0), chunk_rows=25)
    return path


def trained(client: Client, store: Path, penalty: str, callbacks=(), **options) -> tuple[Trajectory, db.TrainingResult]:
    # Three blocks of parameters, so that three shards hold one each.
    network = db.Network([db.Dense(9000, "relu"), db.Dense(4)], loss="softmax", input_shape=(10,))
    method = db.Sandblaster(**({"max_iter": 4} | PENALTIES[penalty] | options))
    result = db.train(network, store, method, client=client, callbacks=callbacks, progress=False)
    losses, norms, steps = (result.history[name] for name in ("loss", "gradient_norm", "step"))
    assert result.repeatable
    return Trajectory(losses, norms, steps, result.parameters.tobytes()), result


@pytest.fixture(scope="module")
def alone(store: Path) -> Callable[..., Trajectory]:
    """Trains on one worker that holds one shard and is never disturbed; each problem once."""
    found: dict[object, Trajectory] = {}

    def train(penalty: str, **options: Any) -> Trajectory:
        key = (penalty, tuple(sorted(options.items())))
        if key not in found:
            with small_cluster(n_workers=1) as cluster, Client(cluster, set_as_default=False) as client:
                found[key], _ = trained(client, store, penalty, n_shards=1, backup_after=None, **options)
        return found[key]

    return train


@by_penalty
@pytest.mark.parametrize(
    ("n_workers", "n_threads", "n_shards", "backup_after"),
    [(2, 1, 2, None), (3, 1, 3, 1.5), (3, 1, 1, 0.0), (8, 1, 3, 0.0), (1, 3, 1, 0.0), (2, 2, 3, 1.5)],
)
def test_bits_do_not_depend_on_the_cluster(
    alone, store: Path, penalty: str, n_workers: int, n_threads: int, n_shards: int, backup_after: float | None
) -> None:
    """The whole trajectory is the same on workers, threads, shards and copies of any number."""
    expected = alone(penalty)
    with small_cluster(n_workers, n_threads) as cluster, Client(cluster, set_as_default=False) as client:
        found, _ = trained(client, store, penalty, n_shards=n_shards, backup_after=backup_after)
    assert found == expected


class Copies:
    """Holds every unit back until it is leased to a second replica, and counts what shards refused as known already."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.holders: defaultdict[tuple[int, int], set[str]] = defaultdict(set)
        self.n_dropped = 0
        self._leased = threading.Condition()
        self._next_lease, self._compute, self._add = UnitScheduler.next_lease, Evaluator._compute, GradientSum.add
        monkeypatch.setattr(UnitScheduler, "next_lease", lambda scheduler, *asked: self._note(scheduler, *asked))
        monkeypatch.setattr(Evaluator, "_compute", lambda evaluator, *given: self._hold(evaluator, *given))
        monkeypatch.setattr(GradientSum, "add", lambda gradients, *given: self._count(gradients, *given))

    def _note(self, scheduler: UnitScheduler, replica: str, now: float) -> Lease | None:
        lease = self._next_lease(scheduler, replica, now)
        if lease is not None:
            with self._leased:
                for unit in lease.node.leaves(scheduler.n_units):
                    self.holders[lease.evaluation, unit].add(replica)
                self._leased.notify_all()
        return lease

    def _hold(self, evaluator: Evaluator, unit: WorkUnit, work) -> Scalar:
        holders = self.holders[work.lease.evaluation, unit.number]
        with self._leased:
            assert self._leased.wait_for(lambda: len(holders) > 1, LIMIT_SECONDS)
        return self._compute(evaluator, unit, work)

    def _count(self, gradients: GradientSum, *given: Any) -> bool:
        is_new = self._add(gradients, *given)
        self.n_dropped += not is_new
        return is_new


@by_penalty
def test_bits_are_the_same_when_every_unit_is_copied(alone, store: Path, penalty: str, monkeypatch) -> None:
    """Each unit of each evaluation is computed by two replicas at least, pushed by both, and counted once."""
    expected = alone(penalty, unit_rows=175)
    copies = Copies(monkeypatch)
    with small_cluster(n_workers=8) as cluster, Client(cluster, set_as_default=False) as client:
        found, result = trained(client, store, penalty, n_shards=3, unit_rows=175, backup_after=0.0)
    assert found == expected
    assert len(copies.holders) == 6 * result.passes
    assert all(len(holders) > 1 for holders in copies.holders.values())
    assert sum(result.history["backups_started"]) >= len(copies.holders)
    assert copies.n_dropped > 0


class Joining:
    """From an iteration on no unit is computed before a worker has joined and begun one, in the same evaluation."""

    def __init__(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        self.evaluations: set[int] = set()
        self._client = client
        self._own = set(client.nthreads())
        self._is_held = False
        self._begun = threading.Event()
        self._compute = Evaluator._compute
        monkeypatch.setattr(Evaluator, "_compute", lambda evaluator, *given: self._hold(evaluator, *given))

    def __call__(self, event: object) -> None:
        if isinstance(event, IterationEnded) and event.iteration == 2:
            self._is_held = True
            self._client.cluster.scale(len(self._own) + 1)

    def _hold(self, evaluator: Evaluator, unit: WorkUnit, work) -> Scalar:
        if self._is_held and get_worker().address not in self._own:
            self.evaluations.add(work.lease.evaluation)
            self._begun.set()
        if self._is_held:
            assert self._begun.wait(LIMIT_SECONDS)
        return self._compute(evaluator, unit, work)


@by_penalty
def test_bits_are_the_same_when_a_worker_joins(alone, store: Path, penalty: str, monkeypatch) -> None:
    """A worker that joins in the middle of an evaluation computes part of it."""
    expected = alone(penalty)
    with small_cluster(n_workers=1) as cluster, Client(cluster, set_as_default=False) as client:
        joining = Joining(client, monkeypatch)
        found, result = trained(client, store, penalty, callbacks=[joining])
    assert found == expected
    assert any(isinstance(event, WorkerJoined) for event in result.history.events)
    # The iterations before cost so many evaluations: it began within the next.
    assert min(joining.evaluations) == result.history["evaluations"][1] + 1


@by_penalty
def test_bits_are_the_same_when_half_a_push_is_lost(alone, store: Path, penalty: str, monkeypatch) -> None:
    """A sum that one shard has and another has not is computed and pushed once more, and counted once by both."""
    expected = alone(penalty)
    call, seen = Caller.call, []

    async def fail_once(self: Caller, actor: ActorAddress, method: str, *arguments: Any, **options: float) -> Any:
        if method == "add" and actor.name == "shard 1":
            seen.append(arguments)
            if len(seen) == 40:
                raise db.CallTimeoutError("planted")
        return await call(self, actor, method, *arguments, **options)

    monkeypatch.setattr(Caller, "call", fail_once)
    with small_cluster(n_workers=3) as cluster, Client(cluster, set_as_default=False) as client:
        found, _ = trained(client, store, penalty, n_shards=3)
    assert len(seen) > 40
    assert found == expected


class Straggler:
    """The first replica to begin a unit of an evaluation stops in the middle, until others are in the next one.

    Afterwards it takes its time for every block of rows.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, evaluation: int) -> None:
        self.name = ""
        self.n_blocks_after = 0
        self.given_up: list[str] = []
        self._evaluation = evaluation
        self._choosing = threading.Lock()
        self._executor: object = None
        self._released = threading.Event()
        self._compute, self._give_up = Evaluator._compute, UnitScheduler.give_up
        monkeypatch.setattr(Evaluator, "_compute", lambda evaluator, *given: self._hold(evaluator, *given))
        monkeypatch.setattr(UnitScheduler, "give_up", lambda scheduler, *given: self._note(scheduler, *given))

    def _hold(self, evaluator: Evaluator, unit: WorkUnit, work) -> Scalar:
        if work.lease.evaluation > self._evaluation:
            self._released.set()
        with self._choosing:
            if work.lease.evaluation == self._evaluation and not self.name:
                self.name = evaluator._replica
                self._slow_down(evaluator._executor)
        return self._compute(evaluator, unit, work)

    def _slow_down(self, executor: Any) -> None:
        compute = executor.compute

        def slowly(inputs: np.ndarray, targets: np.ndarray) -> float:
            assert self._released.wait(LIMIT_SECONDS)
            self.n_blocks_after += 1
            threading.Event().wait(0.02)
            return compute(inputs, targets)

        executor.compute = slowly

    def _note(self, scheduler: UnitScheduler, replica: str, lease: Lease, now: float) -> None:
        if replica == self.name and lease.evaluation == self._evaluation:
            self.given_up.append(replica)
        self._give_up(scheduler, replica, lease, now)


def test_a_straggler_is_not_waited_for_and_told_to_stop(tmp_path: Path, monkeypatch) -> None:
    """What a replica holds that stops in the middle is done by others; it gives the lease up as soon as it looks."""
    random = np.random.default_rng(3)
    inputs = random.normal(size=(240_000, 4)).astype(np.float32)
    store = db.write_dataset(tmp_path / "train.zarr", inputs, (inputs.sum(1) > 0).astype(np.int64), chunk_rows=10_000)
    network = db.Network([db.Dense(2)], loss="softmax", input_shape=(4,))
    # Two units of many blocks, so that each replica has one, and can look between blocks.
    method = db.Sandblaster(max_iter=4, unit_rows=120_000)
    plan = plan_units(240_000, 10_000, store.row_bytes("float32"), network.n_parameters, unit_rows=method.unit_rows)
    straggler = Straggler(monkeypatch, evaluation=3)
    with small_cluster(n_workers=2) as cluster, Client(cluster, set_as_default=False) as client:
        result = db.train(network, store, method, client=client, progress=False)
    assert result.stop.reason is db.StopReason.MAX_ITERATIONS
    assert straggler.given_up == [straggler.name]
    assert straggler.n_blocks_after < plan[0].rows // plan.block_rows
    assert sum(result.history["backups_won"]) >= 1
    assert sum(result.history["backups_wasted_seconds"]) > 0


class PartlyCopied:
    """One lease of several units is held back until part of it was done by a copy, and then ends before the rest is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, evaluation: int) -> None:
        self.n_units = 0
        self.n_fresh = 0
        self._evaluation = evaluation
        self._choosing = threading.Lock()
        self._chosen: tuple[str, Lease] | None = None
        self._has_part, self._has_ended = threading.Event(), threading.Event()
        self._compute, self._finish = Evaluator._compute, UnitScheduler.finish
        monkeypatch.setattr(Evaluator, "_compute", lambda evaluator, *given: self._hold(evaluator, *given))
        monkeypatch.setattr(UnitScheduler, "finish", lambda scheduler, *given: self._note(scheduler, *given))

    def _hold(self, evaluator: Evaluator, unit: WorkUnit, work) -> Scalar:
        with self._choosing:
            is_several = work.lease.node.level >= 2 and work.lease.evaluation == self._evaluation
            if self._chosen is None and is_several:
                self._chosen = evaluator._replica, work.lease
        if self._chosen is not None and work.lease.evaluation == self._evaluation:
            replica, lease = self._chosen
            if evaluator._replica == replica and work.lease == lease:
                assert self._has_part.wait(LIMIT_SECONDS)
            elif lease.node.covers(work.lease.node) and self._has_part.is_set():
                assert self._has_ended.wait(LIMIT_SECONDS)
        return self._compute(evaluator, unit, work)

    def _note(self, scheduler: UnitScheduler, replica: str, lease: Lease, *given: Any) -> bool:
        before = scheduler.n_done
        is_taken = self._finish(scheduler, replica, lease, *given)
        if self._chosen is None or lease.evaluation != self._evaluation:
            return is_taken
        if (replica, lease) == self._chosen:
            self.n_units, self.n_fresh = len(given[0]), scheduler.n_done - before
            self._has_ended.set()
        elif self._chosen[1].node.covers(lease.node):
            self._has_part.set()
        return is_taken


@by_penalty
def test_bits_are_the_same_when_part_of_a_lease_was_copied(alone, store: Path, penalty: str, monkeypatch) -> None:
    """A lease that ends when some of its units are done counts for the others."""
    expected = alone(penalty)
    # Units of a moment are else leased and copied as a whole.
    monkeypatch.setattr(pace, "_LEASE_SECONDS", 0.0)
    monkeypatch.setattr(pace, "_LEAST_LEASE_SECONDS", 0.0)
    partly = PartlyCopied(monkeypatch, evaluation=3)
    with small_cluster(n_workers=2) as cluster, Client(cluster, set_as_default=False) as client:
        found, _ = trained(client, store, penalty, n_shards=3, backup_after=0.0)
    assert 0 < partly.n_fresh < partly.n_units
    assert found == expected
