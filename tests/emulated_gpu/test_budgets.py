"""What a replica's step may ask of a device once it is warm: launches as on paper, and neither waits nor new memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict

import numpy as np
import pytest

from benchmarks.gpu_networks import Case, cases
from benchmarks.gpu_steps import DownpourStep, SandblasterStep, Step
from benchmarks.roofline import step_launches
from dask_belief.backend import Backend, Scalar, get_backend
from dask_belief.downpour.config import Downpour
from dask_belief.downpour.executor import PlainStepExecutor, StepSpec
from dask_belief.models import Dense, Network
from dask_belief.optim.rules import Adagrad
from dask_belief.parameter_server.executor import PlainBatchExecutor
from dask_belief.parameter_server.updates import UpdateSpec
from tests.emulated_gpu.counters import Counters, counted
from tests.parameter_server.local_actors import LocalActors, deploy

pytestmark = pytest.mark.skipif(
    os.environ.get("EMULATED_GPU") != "1", reason="needs the emulated device: scripts/emulated_gpu python -m pytest"
)

CASES = cases()
STEPS: dict[str, Callable[[Network, Backend], Step]] = {"downpour": DownpourStep, "sandblaster": SandblasterStep}
MOST_LAUNCHES = 40
"""Of any step here."""

N_WARM_UP = 3
"""The first step compiles and makes buffers, the second fills what the pools keep, the third is a spare."""

N_COUNTED = 4


@pytest.fixture
def backend() -> Backend:
    return get_backend("cupy")


def counts_of(step: Callable[..., object], inputs: np.ndarray, targets: np.ndarray, backend: Backend) -> Counters:
    """What each of several warm steps asked for, which has to be the same.

    The device has caught up before each: a host that is far ahead waits, as it should, for a pinned buffer.
    """
    for _ in range(N_WARM_UP):
        step(inputs, targets)
    found = []
    for _ in range(N_COUNTED):
        backend.sync()
        with counted() as counters:
            step(inputs, targets)
        found.append(counters)
    backend.sync()
    assert all(asdict(counters) == asdict(found[0]) for counters in found)
    return found[0]


@pytest.mark.parametrize("method", STEPS)
@pytest.mark.parametrize("name", CASES)
def test_rows_on_the_host_are_brought_without_a_wait(name: str, method: str, backend: Backend) -> None:
    """A mini-batch from the host costs two copies of its bytes; nothing comes back, waits or allocates."""
    case = CASES[name].narrowed()
    inputs, targets = case.rows()
    found = counts_of(STEPS[method](case.network, backend), inputs, targets, backend)
    assert (found.waits, found.copies_to_host, found.allocations) == (0, 0, 0)
    assert (found.copies_to_device, found.bytes_to_device) == (2, inputs.nbytes + targets.nbytes)


@pytest.mark.parametrize("method", STEPS)
@pytest.mark.parametrize("name", [name for name in CASES if name != "embedding"])
def test_launches_are_those_on_paper(name: str, method: str, backend: Backend) -> None:
    """With rows on the device a step is so many launches and nothing else."""
    case = CASES[name].narrowed()
    inputs, targets = (backend.asarray(rows) for rows in case.rows())
    found = counts_of(STEPS[method](case.network, backend), inputs, targets, backend)
    assert found.launches == step_launches(case.network, method, casts_targets=case.casts_targets) <= MOST_LAUNCHES
    others = {name: number for name, number in asdict(found).items() if name != "launches"}
    assert not any(others.values()), others


@pytest.mark.parametrize("last", [None, "tanh"])
@pytest.mark.parametrize("activation", [None, "relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("loss", ["softmax", "logistic", "squared"])
def test_formula_of_the_launches(loss: str, activation: str | None, last: str | None, backend: Backend) -> None:
    """It counts every kind of layer and loss; where the last layer has an activation, its outputs are copied, too."""
    network = Network([Dense(6, activation), Dense(5, activation), Dense(3, last)], loss, (4,))
    case = Case("any", network, 8, "int64" if loss == "softmax" else "float32")
    inputs, targets = (backend.asarray(rows) for rows in case.rows())
    found = counts_of(DownpourStep(network, backend), inputs, targets, backend)
    assert found.launches == step_launches(network, "downpour")
    assert found.copies_within == (last is not None)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_speech_network_at_full_size(backend: Backend) -> None:
    """42 million parameters ask for no more than narrow layers do."""
    case = CASES["speech"]
    small = Case(case.name, case.network, batch_rows=2)
    step, (inputs, targets) = DownpourStep(small.network, backend), small.rows()
    step(inputs, targets)
    step(inputs, targets)
    backend.sync()
    with counted() as found:
        step(inputs, targets)
    assert found.launches <= MOST_LAUNCHES
    assert (found.waits, found.copies_to_host, found.allocations) == (0, 0, 0)
    assert np.isfinite(backend.item(step.loss_sum))


@pytest.fixture
def actors() -> Iterator[LocalActors]:
    with LocalActors() as carrier:
        yield carrier


class Replica:
    """A replica's executor of Downpour between two exchanges, with the options of a method."""

    def __init__(self, case: Case, actors: LocalActors, backend: Backend, **options: float) -> None:
        server = deploy(actors, [range(case.network.n_parameters)], updates=UpdateSpec(Adagrad(0.01)))
        method = Downpour(rule=Adagrad(0.01), n_fetch=100, n_push=100, **options)
        spec = StepSpec("replica", case.network, server.directory, actors.caller, backend, method)
        self.executor = PlainStepExecutor(spec)
        self.executor.parameters[...] = backend.asarray(case.network.initial_parameters(seed=0))
        self.loss_sum: Scalar = 0.0

    def __call__(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """One mini-batch."""
        self.loss_sum = self.loss_sum + self.executor.compute(inputs, targets)
        self.executor.accrue(len(inputs))


def test_downpours_executor_asks_for_no_more(actors: LocalActors, backend: Backend) -> None:
    """The step that is counted above is the executor's own."""
    case = CASES["speech"].narrowed()
    with backend.computing():
        found = counts_of(Replica(case, actors, backend), *case.rows(), backend)
        counted_step = counts_of(DownpourStep(case.network, backend), *case.rows(), backend)
    assert asdict(found) == asdict(counted_step)


@pytest.mark.parametrize(
    ("options", "n_launches", "n_numbers"),
    [({"l2": 0.1}, 2, 0), ({"weight_decay": 0.1}, 3, 0), ({"clip_norm": 1e9}, 1, 1)],
    ids=["l2", "weight_decay", "clip_norm"],
)
def test_what_options_cost(
    options: dict[str, float], n_launches: int, n_numbers: int, actors: LocalActors, backend: Backend
) -> None:
    """More launches, and with one option a wait: a norm has to be known before what exceeds it is scaled down."""
    case = CASES["speech"].narrowed()
    with backend.computing():
        found = counts_of(Replica(case, actors, backend, **options), *case.rows(), backend)
    assert found.launches == step_launches(case.network, "downpour") + n_launches
    assert (found.copies_to_host, found.waits > 0, found.allocations) == (n_numbers, n_numbers > 0, 0)


def test_what_a_push_looks_at(actors: LocalActors, backend: Backend) -> None:
    """Before a push two numbers are waited for: the loss, and the square of what has accrued."""
    case = CASES["speech"].narrowed()
    with backend.computing():
        replica = Replica(case, actors, backend)
        for _ in range(N_WARM_UP):
            replica(*case.rows())
        assert replica.executor.accrued_is_finite()
        backend.sync()
        with counted() as found:
            loss_sum = replica.executor.number(replica.loss_sum)
            is_finite = replica.executor.accrued_is_finite()
    assert np.isfinite(loss_sum) and is_finite
    assert found.copies_to_host == 2
    assert found.waits > 0


def test_sandblasters_executor_asks_for_no_more(actors: LocalActors, backend: Backend) -> None:
    """A unit is counted with one join of the tree, of which a lease of n units makes n - 1."""
    case, n_units = CASES["speech"].narrowed(), 64
    server = deploy(actors, [range(case.network.n_parameters)])
    inputs, targets = (backend.asarray(rows) for rows in case.rows())
    with backend.computing():
        executor = PlainBatchExecutor(case.network, server.directory, actors.caller, backend, n_units)
        executor.parameters = backend.asarray(case.network.initial_parameters(seed=0))
        loss_sum: Scalar = 0.0

        def lease(first: int) -> None:
            nonlocal loss_sum
            for unit in range(first, first + 8):
                loss_sum = loss_sum + executor.compute(inputs, targets)
                executor.add(unit)

        for first in range(0, 32, 8):
            lease(first)
            executor.drop_sum()
        backend.sync()
        with counted() as found:
            lease(32)
        step = counts_of(SandblasterStep(case.network, backend), inputs, targets, backend)
    assert found.launches == 8 * step.launches - 1
    assert (found.waits, found.copies_to_host, found.allocations) == (0, 0, 0)
