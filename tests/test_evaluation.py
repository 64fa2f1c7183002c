"""Sums over a data set at the parameters of the shards, beside whatever else the cluster does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from distributed import Client

from dask_belief.cluster.actors import ActorHost, Caller
from dask_belief.cluster.limits import Limits, limited_by
from dask_belief.data.dataset import ArrayDataset
from dask_belief.errors import CallTimeoutError, ClusterError, NoWorkersError, ReplicaError
from dask_belief.evaluation import SNAPSHOT, Evaluation
from dask_belief.monitoring.metrics import MetricSums
from dask_belief.parameter_server.client import ParameterServer
from dask_belief.parameter_server.directory import Directory
from dask_belief.parameter_server.shard import Shard, ShardSpec
from dask_belief.seeds import stream
from tests.small_cluster import eventually, kill_worker

SEED = 52
N_FEATURES = 3
GO_ON = threading.Event()
RUNNING: list[int] = []
"""The cluster's workers are threads of this process: parts of an evaluation wait and tell here."""


class Distance:
    """Loss ``|w - row|^2`` and a second sum; waits when it is told to, fails on a target of -1."""

    n_parameters = N_FEATURES

    def __init__(self, is_slow: bool = False) -> None:
        self.is_slow = is_slow

    def initial_parameters(self, seed: int) -> np.ndarray:
        return np.zeros(N_FEATURES)

    def loss_and_gradient(self, parameters: Any, inputs: Any, targets: Any) -> tuple[float, Any]:
        raise AssertionError("evaluate is what is asked")

    def evaluate(self, parameters: Any, inputs: Any, targets: Any) -> dict[str, float]:
        RUNNING.append(len(inputs))
        if self.is_slow:
            GO_ON.wait(20)
        if (targets == -1).any():
            raise ValueError("bad row")
        return {
            "loss": float(((parameters - inputs) ** 2).sum()),
            "correct": float((targets == 1).sum()),
            "rows": float(len(inputs)),
        }


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    GO_ON.clear()
    RUNNING.clear()
    yield
    GO_ON.set()


def serve(client: Client, parameters: np.ndarray, run: str) -> tuple[ActorHost, Directory]:
    """One shard that holds the snapshot."""
    worker = max(client.nthreads())
    host = ActorHost(client, run)
    shard = host.spawn(Shard, "shard 0", worker, ShardSpec(0, 0, range(N_FEATURES), N_FEATURES, "float32"))
    host.ready([shard])
    directory = Directory(0, N_FEATURES, "float32", (shard,), (range(N_FEATURES),))
    caller = Caller.of_client(client, [worker])
    caller.run(ParameterServer(directory, caller).write(SNAPSHOT, parameters))
    return host, directory


@pytest.fixture
def served(client: Client, request: pytest.FixtureRequest) -> Iterator[Callable[[np.ndarray], Directory]]:
    hosts: list[ActorHost] = []

    def start(parameters: np.ndarray) -> Directory:
        host, directory = serve(client, parameters, f"{request.node.name}-{len(hosts)}")
        hosts.append(host)
        return directory

    yield start
    for host in hosts:
        host.close()


def rows_of(n_rows: int, chunk_rows: int) -> ArrayDataset:
    rng = stream(SEED, n_rows)
    inputs = rng.standard_normal((n_rows, N_FEATURES)).astype(np.float32)
    return ArrayDataset(inputs, np.arange(n_rows) % 2, chunk_rows=chunk_rows)


def evaluation_of(client: Client, dataset: ArrayDataset, run: str, is_slow: bool = False) -> Evaluation:
    return Evaluation(client, Distance(is_slow), dataset, "numpy", run, "validation")


@pytest.mark.parametrize(("n_rows", "chunk_rows", "n_parts"), [(1, 1, 1), (100, 7, 8), (60, 20, 3), (33, 100, 1)])
def test_sums_cover_every_row_once(
    client: Client, served: Callable[[np.ndarray], Directory], n_rows: int, chunk_rows: int, n_parts: int
) -> None:
    """Over parts of whole chunks, at the shards' snapshot, with every sum that the objective offers."""
    parameters = np.array([1, 2, 3], np.float32)
    dataset = rows_of(n_rows, chunk_rows)
    evaluation = evaluation_of(client, dataset, f"cover-{n_rows}")
    evaluation.start(served(parameters), sorted(client.nthreads()))
    sums = evaluation.finish()
    inputs, _ = dataset.read(0, n_rows)
    assert sums.rows == n_rows
    assert sums.sums["loss"] == pytest.approx(float(((parameters - inputs) ** 2).sum()), rel=1e-5)
    assert sums.sums["correct"] == n_rows // 2
    assert len(RUNNING) == n_parts
    assert not evaluation.is_running


def test_evaluation_does_not_hold_up(client: Client, served: Callable[[np.ndarray], Directory]) -> None:
    """It is begun and asked about; until it is done there is no answer, and afterwards there is one, once."""
    directory = served(np.zeros(N_FEATURES, np.float32))
    evaluation = evaluation_of(client, rows_of(8, 4), "slow", is_slow=True)
    assert evaluation.poll() is None
    assert not evaluation.is_running
    evaluation.start(directory, sorted(client.nthreads()))
    assert evaluation.is_running
    assert evaluation.poll() is None
    GO_ON.set()
    answers: list[MetricSums] = []
    eventually(lambda: bool(answers.extend(filter(None, [evaluation.poll()])) or answers))
    assert answers[0].rows == 8
    assert not evaluation.is_running
    assert evaluation.poll() is None


def test_evaluation_can_be_repeated(client: Client, served: Callable[[np.ndarray], Directory]) -> None:
    """At other parameters, with the same data set, which is sent once; to the same bits at the same parameters."""
    dataset = rows_of(40, 5)
    evaluation = evaluation_of(client, dataset, "again")
    answers = []
    for parameters in (np.zeros(N_FEATURES, np.float32), np.ones(N_FEATURES, np.float32), np.zeros(N_FEATURES)):
        evaluation.start(served(parameters.astype(np.float32)), sorted(client.nthreads()))
        answers.append(evaluation.finish().sums)
    assert answers[0] == answers[2] != answers[1]


def test_error_of_a_part_is_raised_and_the_rest_dropped(
    client: Client, served: Callable[[np.ndarray], Directory]
) -> None:
    """What the objective raised, with the rows, once; the next evaluation is not hurt by it."""
    directory = served(np.zeros(N_FEATURES, np.float32))
    inputs, targets = rows_of(10, 2).read(0, 10)
    targets[5] = -1
    evaluation = evaluation_of(client, ArrayDataset(inputs, targets, chunk_rows=2), "fails")
    evaluation.start(directory, sorted(client.nthreads()))
    with pytest.raises(ReplicaError, match=r"ValueError: bad row, in rows 4 to 5"):
        evaluation.finish()
    assert not evaluation.is_running
    assert evaluation.poll() is None
    good = evaluation_of(client, rows_of(10, 2), "works")
    good.start(directory, sorted(client.nthreads()))
    assert good.finish().rows == 10


def test_shard_that_does_not_answer_is_told(client: Client, served: Callable[[np.ndarray], Directory]) -> None:
    """A part whose own limit passed has ended, and is not waited for as if its worker had frozen."""
    directory = served(np.zeros(N_FEATURES, np.float32))
    evaluation = evaluation_of(client, rows_of(8, 4), "limit")
    with limited_by(Limits(call_seconds=1e-9)):
        evaluation.start(directory, sorted(client.nthreads()))
    with pytest.raises(CallTimeoutError, match=r"shard 0 on .* did not answer"):
        evaluation.finish()
    assert not evaluation.is_running
    evaluation.close()


def test_dropped_evaluation_leaves_nothing(client: Client, served: Callable[[np.ndarray], Directory]) -> None:
    """No task of it stays on the scheduler, and it can be dropped twice."""
    evaluation = evaluation_of(client, rows_of(20, 2), "dropped", is_slow=True)
    evaluation.start(served(np.zeros(N_FEATURES, np.float32)), sorted(client.nthreads()))
    eventually(lambda: bool(RUNNING))
    evaluation.drop()
    evaluation.drop()
    assert not evaluation.is_running
    GO_ON.set()
    eventually(lambda: not [key for key in client.cluster.scheduler.tasks if "validation-dropped" in str(key)])


@pytest.mark.parametrize("is_told", [True, False])
def test_lost_worker_does_not_cost_the_evaluation(own_client: Client, is_told: bool) -> None:
    """Its parts go to others, in the middle, when it is told of the loss or asks who is there; no row counts twice."""
    gone, *stay = sorted(own_client.nthreads())
    host, directory = serve(own_client, np.zeros(N_FEATURES, np.float32), "lost")
    dataset = rows_of(20, 5)
    evaluation = evaluation_of(own_client, dataset, "lost", is_slow=True)
    evaluation.start(directory, [gone, *stay])
    eventually(lambda: bool(RUNNING))
    kill_worker(own_client, gone)
    if is_told:
        evaluation.lose(gone)
    GO_ON.set()
    sums = evaluation.finish(None if is_told else lambda: stay)
    inputs, _ = dataset.read(0, 20)
    assert sums.rows == 20
    assert sums.sums["loss"] == pytest.approx(float((inputs**2).sum()), rel=1e-5)
    evaluation.close()
    host.close()


def test_parts_go_to_the_workers_in_turn(own_client: Client) -> None:
    """To those that are named and no other, which get the data set once each, and hold it until the end."""
    first, second, _ = sorted(own_client.nthreads())
    host, directory = serve(own_client, np.zeros(N_FEATURES, np.float32), "turns")
    evaluation = evaluation_of(own_client, rows_of(20, 5), "turns")
    for _ in range(2):
        evaluation.start(directory, [first, second])
        assert sorted(part.worker for part in evaluation._parts) == 2 * [first] + 2 * [second]
        assert evaluation.finish().rows == 20
    assert sorted(evaluation._sent) == [first, second]
    evaluation.close()
    assert not evaluation._sent
    host.close()


def test_evaluation_is_forgotten_with_its_last_worker(own_client: Client) -> None:
    """Nothing of it is left, and one that waits for it is told."""
    first, second, _ = sorted(own_client.nthreads())
    host, directory = serve(own_client, np.zeros(N_FEATURES, np.float32), "forgotten")
    evaluation = evaluation_of(own_client, rows_of(20, 5), "forgotten", is_slow=True)
    evaluation.start(directory, [first, second])
    evaluation.lose(first)
    assert evaluation.is_running
    evaluation.lose(second)
    assert not evaluation.is_running
    assert evaluation.poll() is None
    evaluation.start(directory, [first])
    with pytest.raises(ClusterError, match=r"validation-forgotten was lost with its workers"):
        evaluation.finish(lambda: [])
    with pytest.raises(NoWorkersError, match=r"no worker is left to evaluate on"):
        evaluation.start(directory, [])
    # The workers' threads, which the cluster waits for as it closes.
    GO_ON.set()
    evaluation.close()
    host.close()
