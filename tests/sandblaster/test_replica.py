"""A replica against a real coordinator and real shards, without a cluster: sums, costs, faults, leases broken off."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dask_belief.backend.device_memory import DeviceMemory
from dask_belief.backend.numpy import NumpyBackend
from dask_belief.binary_tree import Node
from dask_belief.cluster.actors import Caller
from dask_belief.cluster.hub import RUN_IS_OVER
from dask_belief.cluster.limits import Limits
from dask_belief.data.dataset import ArrayDataset
from dask_belief.data.units import UnitPlan
from dask_belief.errors import ReplicaError
from dask_belief.parameter_server.messages import BeginSum, EndSum
from dask_belief.sandblaster import replica as replica_module
from dask_belief.sandblaster.coordinator import Coordinator, Report, Status
from dask_belief.sandblaster.replica import Evaluator, ReplicaSpec
from dask_belief.sandblaster.unit_scheduler import Lease
from dask_belief.seeds import stream
from tests.parameter_server.local_actors import LocalActors, deploy
from tests.small_cluster import eventually

SEED = 73
N_FEATURES = 3
N_ROWS, UNIT_ROWS = 40, 4
N_UNITS = N_ROWS // UNIT_ROWS
PLAN = UnitPlan(n_rows=N_ROWS, chunk_rows=1, unit_rows=UNIT_ROWS, block_rows=2)
VECTOR_BYTES = 8 * N_FEATURES
LIMIT = 20.0
NUMBERS = itertools.count()
X = np.array([1.0, -2.0, 0.5])


class SquaredDistance:
    """Loss ``|w - row|^2 / 2``; what a test wants beside is done before each block of rows."""

    n_parameters = N_FEATURES

    def __init__(self, before: Callable[[np.ndarray], None] = lambda inputs: None) -> None:
        self._before = before

    def initial_parameters(self, seed: int) -> np.ndarray:
        return np.zeros(N_FEATURES)

    def loss_and_gradient(self, parameters: Any, inputs: Any, targets: Any) -> tuple[float, Any]:
        self._before(inputs)
        difference = parameters - inputs
        return 0.5 * float((difference * difference).sum()), difference.sum(axis=0)


def rows() -> np.ndarray:
    return stream(SEED, "rows").standard_normal((N_ROWS, N_FEATURES))


class Scene:
    """Shards, a coordinator, and replicas in threads of this process."""

    def __init__(self, actors: LocalActors) -> None:
        self.actors = actors
        self.run = actors.caller.run
        self.server = deploy(actors, [range(N_FEATURES)], dtype="float64")
        self.run(self.server.write("x", X))
        self.coordinator = actors.register("coordinator", Coordinator(0, N_UNITS, 6, None))
        self._standings: list[Any] = []
        self._threads: list[threading.Thread] = []
        self.ends: dict[str, object] = {}

    def start_replica(
        self, name: str = "a", objective: Any = None, inputs: np.ndarray | None = None, **options: Any
    ) -> Any:
        """Begin a replica; gives its standing."""
        dataset = ArrayDataset(rows() if inputs is None else inputs, np.zeros(N_ROWS, np.int64), chunk_rows=1)
        spec = ReplicaSpec(
            objective=objective or SquaredDistance(),
            plan=PLAN,
            directory=self.server.directory,
            coordinator=self.coordinator,
            backend="numpy",
            host_cache_bytes=2**20,
            limits=Limits(),
            **({"cache_bytes": 2**20} | options),
        )
        standing = SimpleNamespace(
            worker=SimpleNamespace(address="tcp://worker"),
            memory_bytes=2.0**30,
            should_end=False,
            is_cancelled=False,
            listen=lambda: None,
            heard=lambda: None,
        )
        self._standings.append(standing)

        def live() -> None:
            evaluator = Evaluator(spec, dataset, name, standing)
            try:
                self.ends[name] = evaluator.run()
            except Exception as error:
                self.ends[name] = error
            finally:
                evaluator.close()

        thread = threading.Thread(target=live, daemon=True)
        self._threads.append(thread)
        thread.start()
        return standing

    def begin(self, evaluation: int) -> None:
        self.run(self.server.execute(BeginSum(evaluation, "x", N_UNITS)))
        self.ask("evaluate", evaluation, 0.0)

    def finish(self, evaluation: int) -> tuple[Status, np.ndarray]:
        """Wait for the evaluation, and give its status and mean gradient."""
        status = self.ask("evaluate", evaluation, LIMIT)
        self.run(self.server.execute(EndSum(evaluation, "g", N_ROWS, 0.0)))
        gradient = np.empty(N_FEATURES)
        self.run(self.server.read("g", gradient))
        return status, gradient

    def evaluate(self, evaluation: int) -> tuple[Status, np.ndarray]:
        self.begin(evaluation)
        return self.finish(evaluation)

    def ask(self, method: str, *arguments: Any) -> Any:
        return self.run(self.actors.caller.call(self.coordinator, method, 0, *arguments))

    def wait_for_ends(self) -> None:
        for thread in self._threads:
            thread.join(LIMIT)
            assert not thread.is_alive()

    def end(self) -> None:
        """Tell every replica that the run is over."""
        self.ask("finish")
        for standing in self._standings:
            standing.should_end = standing.is_cancelled = True
        self.wait_for_ends()


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    with LocalActors() as actors:
        # Replicas of one worker share what they fetch: each test has a worker of its own.
        own = Caller(actors.loop, actors.send, own_address=f"tcp://worker-{next(NUMBERS)}")
        monkeypatch.setattr(Caller, "of_worker", lambda worker: own)
        made = Scene(actors)
        yield made
        made.end()


def tree_sum(values: np.ndarray) -> Any:
    """The fixed sum of the units' values."""
    parts = list(values)
    while len(parts) > 1:
        joined = [left + right for left, right in zip(parts[::2], parts[1::2], strict=False)]
        parts = joined + parts[2 * len(joined) :]
    return parts[0]


def of_units(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Loss and gradient of each unit, block by block."""
    losses, gradients = np.zeros(N_UNITS), np.zeros((N_UNITS, N_FEATURES))
    for unit in range(N_UNITS):
        for start in range(unit * UNIT_ROWS, (unit + 1) * UNIT_ROWS, 2):
            difference = X - inputs[start : start + 2]
            losses[unit] += 0.5 * float((difference * difference).sum())
            gradients[unit] += difference.sum(axis=0)
    return losses, gradients


# Sums.


@pytest.mark.parametrize("n_replicas", [1, 3])
def test_loss_and_gradient_have_the_bits_of_the_tree(scene: Scene, n_replicas: int) -> None:
    """Whoever did which units, and in each evaluation again."""
    for number in range(n_replicas):
        scene.start_replica(f"r{number}")
    losses, gradients = of_units(rows())
    for evaluation in (1, 2, 3):
        status, gradient = scene.evaluate(evaluation)
        assert (status.n_done, status.loss, status.faulty) == (N_UNITS, tree_sum(losses), ())
        np.testing.assert_array_equal(gradient, tree_sum(gradients) / N_ROWS)


def test_replica_ends_when_the_run_is_over(scene: Scene) -> None:
    """And says so."""
    scene.start_replica()
    scene.evaluate(1)
    scene.ask("finish")
    scene.wait_for_ends()
    assert scene.ends == {"a": RUN_IS_OVER}


# Costs.


def test_bytes_and_lookups_of_an_evaluation_are_told(scene: Scene) -> None:
    """Parameters travel once, sums once a lease; units are read in the first evaluation and found in the next."""
    scene.start_replica()
    for evaluation, n_misses in ((1, N_UNITS), (2, 0)):
        scene.actors.calls.clear()
        status, _ = scene.evaluate(evaluation)
        effort = status.effort
        assert effort.fetched_bytes == VECTOR_BYTES
        assert effort.pushed_bytes == VECTOR_BYTES * scene.actors.calls["add"]
        assert (effort.cache_misses, effort.cache_hits) == (n_misses, N_UNITS - n_misses)
        assert effort.computing_seconds > 0
        assert effort.sending_seconds > 0
        assert status.busiest_seconds == effort.computing_seconds


def test_nothing_is_found_where_nothing_is_kept(scene: Scene) -> None:
    """Each evaluation reads every unit."""
    scene.start_replica(cache_bytes=0)
    for evaluation in (1, 2):
        effort = scene.evaluate(evaluation)[0].effort
        assert (effort.cache_misses, effort.cache_hits) == (N_UNITS, 0)


def test_waiting_between_evaluations_is_told(scene: Scene) -> None:
    """Of a replica that is there before there is work."""
    scene.start_replica()
    eventually(lambda: scene.actors.calls["next_lease"] > 0)
    began = time.monotonic()
    eventually(lambda: time.monotonic() > began + 0.05)
    status, _ = scene.evaluate(1)
    assert 0.05 <= status.effort.waiting_seconds <= LIMIT


# Faults.


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_units_that_are_not_finite_are_named(scene: Scene, bad: float) -> None:
    """Each, and no other of its lease; the rest of the evaluation goes on, and so does the replica."""
    inputs = rows()
    inputs[[2 * UNIT_ROWS + 1, 7 * UNIT_ROWS], 1] = bad
    scene.start_replica(inputs=inputs)
    for evaluation in (1, 2):
        with np.errstate(invalid="ignore"):
            status, _ = scene.evaluate(evaluation)
        assert status.n_done == N_UNITS
        assert status.faulty == (2, 7)


def test_gradient_alone_may_be_at_fault(scene: Scene) -> None:
    """A loss that is a number does not hide it."""

    class Broken(SquaredDistance):
        def loss_and_gradient(self, parameters: Any, inputs: Any, targets: Any) -> tuple[float, Any]:
            loss, gradient = super().loss_and_gradient(parameters, inputs, targets)
            return loss, gradient * (math.nan if (inputs == rows()[3 * UNIT_ROWS]).all(axis=1).any() else 1.0)

    scene.start_replica(objective=Broken())
    status, _ = scene.evaluate(1)
    assert status.faulty == (3,)
    assert status.loss == tree_sum(of_units(rows())[0])


def test_error_of_the_objective_names_unit_rows_and_worker(scene: Scene) -> None:
    """It ends the replica, with what was raised as its cause."""

    def fail(inputs: np.ndarray) -> None:
        if (inputs == rows()[0]).all(axis=1).any():
            raise ZeroDivisionError("no rows like these")

    scene.start_replica(objective=SquaredDistance(fail))
    scene.begin(1)
    scene.wait_for_ends()
    error = scene.ends["a"]
    assert isinstance(error, ReplicaError)
    assert "ZeroDivisionError: no rows like these, in unit 0 (rows 0 to 3) on tcp://worker" in str(error)
    assert isinstance(error.__cause__, ZeroDivisionError)


# A device without enough memory, which is pretended.


class Full(Exception):
    """Stands for the error of a device whose memory ran out."""


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host is taken for a device that knows `Full`, and asks for as much as a unit."""

    def lacking(self: NumpyBackend, error: BaseException) -> int | None:
        return UNIT_ROWS * 8 * N_FEATURES if isinstance(error, Full) else None

    monkeypatch.setattr(NumpyBackend, "lacking_bytes", lacking)


class FullAt:
    """Runs out of memory at some blocks of rows, counted over all."""

    def __init__(self, *blocks: int) -> None:
        self.blocks = blocks
        self.n_blocks = 0

    def __call__(self, inputs: np.ndarray) -> None:
        self.n_blocks += 1
        if self.n_blocks in self.blocks:
            raise Full


@pytest.mark.usefixtures("device")
def test_cache_gives_way_where_memory_runs_out(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """The lease is computed again with less kept, twice if need be, and every unit counts once."""
    # In the middle of the second evaluation: 20 blocks of two rows each make one.
    scene.start_replica(objective=SquaredDistance(FullAt(27, 31)))
    losses, gradients = of_units(rows())
    hits = []
    for evaluation in (1, 2, 3):
        status, gradient = scene.evaluate(evaluation)
        assert status.loss == tree_sum(losses)
        np.testing.assert_array_equal(gradient, tree_sum(gradients) / N_ROWS)
        hits.append(status.effort.cache_hits)
    warnings = [record.getMessage() for record in caplog.records if "memory ran out" in record.getMessage()]
    assert len(warnings) == 2
    assert hits[0] == 0 < hits[2] < N_UNITS


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_replica_ends_where_the_cache_is_not_at_fault(scene: Scene, cache_bytes: int) -> None:
    """There is nothing to give, or not any more; the error comes of the device's and names the rows."""
    scene.start_replica(objective=SquaredDistance(FullAt(*range(3, 100))), cache_bytes=cache_bytes)
    scene.begin(1)
    scene.wait_for_ends()
    error = scene.ends["a"]
    assert isinstance(error, ReplicaError)
    assert "in unit " in str(error)
    assert isinstance(error.__cause__, Full)


def test_holdings_are_what_it_keeps(scene: Scene) -> None:
    """The decoded rows in the cache, and three vectors of the executor."""
    dataset = ArrayDataset(rows(), np.zeros(N_ROWS, np.int64), chunk_rows=1)
    spec = ReplicaSpec(SquaredDistance(), PLAN, scene.server.directory, scene.coordinator, "numpy", 400, 0, Limits())
    standing: Any = SimpleNamespace(worker=SimpleNamespace(address="tcp://worker"), memory_bytes=2.0**30)
    evaluator = Evaluator(spec, dataset, "a", standing)
    assert set(evaluator.holdings().values()) == {0, VECTOR_BYTES}
    unit_bytes = UNIT_ROWS * (8 * N_FEATURES + 8)
    list(evaluator._reader.blocks(PLAN[0], 2, LIMIT))
    assert evaluator.holdings() == {
        "parameters": 0,
        "gradients": VECTOR_BYTES,
        "sums": 0,
        "cache": unit_bytes,
        "rows read ahead": 0,
    }
    evaluator.close()


@pytest.mark.parametrize(("cache_bytes", "expected"), [(None, 100), (7, 7)])
def test_default_cache_is_each_threads_share_of_the_device(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, cache_bytes: int | None, expected: int
) -> None:
    """Four tenths of what is free, shared by the replicas of a worker's threads; a size that is given is taken."""
    memory = DeviceMemory(total_bytes=5000, used_bytes=4000, free_bytes=1000)
    monkeypatch.setattr(NumpyBackend, "device_memory", lambda self: memory)
    dataset = ArrayDataset(rows(), np.zeros(N_ROWS, np.int64), chunk_rows=1)
    directory, coordinator = scene.server.directory, scene.coordinator
    spec = ReplicaSpec(SquaredDistance(), PLAN, directory, coordinator, "numpy", cache_bytes, 50, Limits())
    standing: Any = SimpleNamespace(worker=SimpleNamespace(address="tcp://worker"), memory_bytes=2.0**30, n_threads=4)
    evaluator = Evaluator(spec, dataset, "a", standing)
    assert evaluator._cache.capacity_bytes == expected
    evaluator.close()


# Leases that are broken off.


class Gate:
    """Holds an objective until it is opened."""

    def __init__(self) -> None:
        self.is_reached = threading.Event()
        self.is_open = threading.Event()
        self.n_blocks = 0

    def __call__(self, inputs: np.ndarray) -> None:
        self.n_blocks += 1
        self.is_reached.set()
        assert self.is_open.wait(LIMIT)


def others_do(scene: Scene, evaluation: int) -> None:
    """Push and report every unit in another replica's name."""
    losses, gradients = of_units(rows())
    for unit in range(N_UNITS):
        scene.run(scene.server.add(evaluation, Node(0, unit), gradients[unit].copy()))
        scene.ask("report", "other", Report(Lease(evaluation, Node(0, unit)), losses[unit : unit + 1]))


def test_lease_that_others_did_is_broken_off(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two blocks of rows, since the hub says so; the replica tells it, and does the next evaluation."""
    monkeypatch.setattr(replica_module, "_WATCH_AFTER_SECONDS", 0.0)
    gate = Gate()
    scene.start_replica(objective=SquaredDistance(gate))
    scene.begin(1)
    assert gate.is_reached.wait(LIMIT)
    # It has begun to listen, since that is done before a block.
    eventually(lambda: scene.actors.calls["until_unwanted"] > 0)
    others_do(scene, 1)
    # Whoever asks now is answered after the replica was.
    assert scene.ask("until_unwanted", "other", Lease(1, Node(0, 0)), LIMIT)
    gate.is_open.set()
    eventually(lambda: scene.actors.calls["give_up"] > 0)
    losses, gradients = of_units(rows())
    status, gradient = scene.finish(1)
    assert status.loss == tree_sum(losses)
    np.testing.assert_array_equal(gradient, tree_sum(gradients) / N_ROWS)
    # Nothing of what was broken off is in the next sum.
    status, gradient = scene.evaluate(2)
    assert status.loss == tree_sum(losses)
    np.testing.assert_array_equal(gradient, tree_sum(gradients) / N_ROWS)


def test_short_lease_asks_nothing_beside_its_work(scene: Scene) -> None:
    """Whether it is still wanted is asked of those only that take long."""
    scene.start_replica()
    for evaluation in (1, 2, 3):
        scene.evaluate(evaluation)
    assert scene.actors.calls["until_unwanted"] == scene.actors.calls["give_up"] == 0


def test_lease_of_an_evaluation_that_was_given_up_ends_quietly(scene: Scene) -> None:
    """Its sum is refused by the shards, and it is not reported; the next evaluation is whole."""
    gate = Gate()
    scene.start_replica(objective=SquaredDistance(gate))
    scene.begin(1)
    assert gate.is_reached.wait(LIMIT)
    scene.begin(2)
    gate.is_open.set()
    status, gradient = scene.finish(2)
    losses, gradients = of_units(rows())
    assert (status.n_done, status.loss) == (N_UNITS, tree_sum(losses))
    np.testing.assert_array_equal(gradient, tree_sum(gradients) / N_ROWS)
    assert scene.actors.calls["give_up"] > 0


def test_cancelled_replica_does_not_end_its_lease(scene: Scene) -> None:
    """It stops before the next block, and what it had goes to another."""
    gate = Gate()
    standing = scene.start_replica("slow", objective=SquaredDistance(gate))
    scene.begin(1)
    assert gate.is_reached.wait(LIMIT)
    standing.is_cancelled = standing.should_end = True
    gate.is_open.set()
    eventually(lambda: "slow" in scene.ends)
    assert scene.ends["slow"] == "cancelled, or the coordinator was silent"
    assert gate.n_blocks == 1
    scene.ask("leave", "slow")
    scene.start_replica("quick")
    status, gradient = scene.finish(1)
    losses, gradients = of_units(rows())
    assert status.loss == tree_sum(losses)
    np.testing.assert_array_equal(gradient, tree_sum(gradients) / N_ROWS)
