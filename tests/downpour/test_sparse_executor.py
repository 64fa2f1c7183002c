"""The sparse executor: what a mini-batch touches, and there the very steps of the plain one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from dask_belief.backend import get_backend
from dask_belief.data.units import WorkUnit
from dask_belief.downpour.config import Downpour
from dask_belief.downpour.executor import PlainStepExecutor, StepSpec, update_spec
from dask_belief.downpour.sparse_executor import SparseStepExecutor, is_sparse
from dask_belief.downpour.trainer import Trainer, Work
from dask_belief.optim.rules import SGD, Adagrad, Momentum, Rule
from dask_belief.parameter_server.client import ParameterServer
from dask_belief.parameter_server.consistency import (
    ElasticAveraging,
    MaxStaleness,
    ScaleByStaleness,
    Staleness,
    Synchronous,
)
from dask_belief.parameter_server.messages import LeaseKey
from dask_belief.parameter_server.updates import VALUES
from dask_belief.seeds import stream
from tests.parameter_server.local_actors import LocalActors, deploy

SEED = 54
N_ENTRIES, N_COLUMNS = 12, 3
N_TABLE = N_ENTRIES * N_COLUMNS
BATCH, N_ROWS = 2, 11


class Vectors:
    """A table of vectors, each pulled to its row's target, and a shift that all rows share."""

    n_parameters = N_TABLE + N_COLUMNS
    penalised = np.arange(n_parameters) < N_TABLE

    def initial_parameters(self, seed: int) -> np.ndarray:
        return stream(SEED, "initial").standard_normal(self.n_parameters).astype(np.float32)

    def loss_and_gradient(
        self, parameters: Any, inputs: Any, targets: Any, out: Any, only_touched: bool = False
    ) -> tuple[float, Any]:
        table, shift = parameters[:N_TABLE].reshape(N_ENTRIES, N_COLUMNS), parameters[N_TABLE:]
        ids = inputs[:, 0].astype(int)
        difference = table[ids] + shift - targets
        if only_touched:
            for start, stop in self.touched(inputs, targets):
                out[start:stop] = 0
        else:
            out[:] = 0
        np.add.at(out[:N_TABLE].reshape(N_ENTRIES, N_COLUMNS), ids, difference)
        out[N_TABLE:] += difference.sum(axis=0)
        return 0.5 * float((difference**2).sum()), out

    def touched(self, inputs: Any, targets: Any) -> np.ndarray:
        ids = np.unique(inputs[:, 0].astype(int))
        runs = [[N_COLUMNS * number, N_COLUMNS * (number + 1)] for number in ids.tolist()]
        return np.array([*runs, [N_TABLE, self.n_parameters]], np.int64).reshape(-1, 2)


class Dense(Vectors):
    """The same, which says nothing of what it touches."""

    touched = None  # type: ignore[assignment]


@pytest.fixture
def actors() -> Iterator[LocalActors]:
    with LocalActors() as carrier:
        yield carrier


def rows_of(lease: int, n_entries: int = N_ENTRIES) -> tuple[np.ndarray, np.ndarray]:
    draw = stream(SEED, "rows", lease)
    ids = draw.integers(0, n_entries, (N_ROWS, 1)).astype(np.float32)
    return ids, draw.standard_normal((N_ROWS, N_COLUMNS)).astype(np.float32)


def train(
    actors: LocalActors, kind: type[PlainStepExecutor], method: Downpour, n_entries: int = N_ENTRIES, n_leases: int = 4
) -> tuple[np.ndarray, ParameterServer]:
    """Train on a few leases with one replica; gives the shards' values."""
    objective: Any = Vectors()
    initial = objective.initial_parameters(0)
    server = deploy(
        actors,
        [range(20), range(20, objective.n_parameters)],
        penalised=objective.penalised,
        updates=update_spec(method, is_recorded=False),
    )
    actors.caller.run(server.write(VALUES, initial))
    actors.caller.run(server.begin_updates())
    executor = kind(StepSpec("a", objective, server.directory, actors.caller, get_backend("numpy"), method))
    # What was not fetched is never used: it may hold anything.
    executor.parameters[:] = np.nan
    trainer = Trainer(executor, method, SEED)
    for lease in range(n_leases):
        work = Work(LeaseKey(0, lease), WorkUnit(lease, 0, N_ROWS), *rows_of(lease, n_entries))
        trained = trainer.train(work, 0, lambda: True)
        assert trained is not None
        assert trained.sent is not None
        trained.sent.result(10)
    into = np.empty_like(initial)
    actors.caller.run(server.read(VALUES, into))
    return into, executor.server


ORDERS = [(1, 1, 0), (1, 1, 1), (2, 3, 0), (3, 2, 1), (4, 4, 2), (2, 2, 2), (3, 1, 3), (20, 20, 5)]


@pytest.mark.parametrize(("n_fetch", "n_push", "lag"), [each for each in ORDERS if each[2] == 0])
@pytest.mark.parametrize("rule", [SGD(0.1), Adagrad(0.1)], ids=str)
@pytest.mark.parametrize("more", [{}, {"clip_norm": 0.4}, {"staleness": ScaleByStaleness()}], ids=str)
def test_parameters_are_those_of_the_plain_one(
    actors: LocalActors, n_fetch: int, n_push: int, lag: int, rule: Rule, more: dict[str, Any]
) -> None:
    """With one replica, for rules that let rest what has no gradient, and what is not touched is never read."""
    method = Downpour(rule=rule, batch_size=BATCH, n_fetch=n_fetch, n_push=n_push, fetch_lag=lag, **more)
    plain, _ = train(actors, PlainStepExecutor, method)
    sparse, _ = train(actors, SparseStepExecutor, method)
    np.testing.assert_allclose(sparse, plain, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(("n_fetch", "n_push", "lag"), ORDERS)
@pytest.mark.parametrize("rule", [SGD(0.1), Adagrad(0.1), Momentum(0.05)], ids=str)
def test_only_what_was_fetched_is_used(actors: LocalActors, n_fetch: int, n_push: int, lag: int, rule: Rule) -> None:
    """Whatever is fetched when, and over the ends of leases; and entries that no row names stay to the bit."""
    method = Downpour(
        rule=rule, batch_size=BATCH, n_fetch=n_fetch, n_push=n_push, fetch_lag=lag, weight_decay=0.1, epochs=1
    )
    values, _ = train(actors, SparseStepExecutor, method, n_entries=5)
    initial = Vectors().initial_parameters(0)
    assert np.isfinite(values).all()
    np.testing.assert_array_equal(values[5 * N_COLUMNS : N_TABLE], initial[5 * N_COLUMNS : N_TABLE])
    assert not np.any(values[N_TABLE:] == initial[N_TABLE:])


def test_untouched_parameters_do_not_travel(actors: LocalActors) -> None:
    """Neither way: a mini-batch's entries and the shift are all that does."""
    method = Downpour(rule=SGD(0.1), batch_size=BATCH, fetch_lag=0)
    _, server = train(actors, SparseStepExecutor, method, n_leases=1)
    most = 4 * 6 * (BATCH + 1) * N_COLUMNS
    assert 0 < server.sent_bytes <= most
    assert 0 < server.received_bytes <= most


def test_weights_decay_where_they_are_touched(actors: LocalActors) -> None:
    """Once a push, on the shard; the shift is not penalised."""
    method = Downpour(rule=SGD(0.1), batch_size=N_ROWS, fetch_lag=0, weight_decay=0.5)
    values, _ = train(actors, SparseStepExecutor, method, n_leases=1, n_entries=1)
    objective = Vectors()
    initial = objective.initial_parameters(0)
    gradient = np.empty_like(initial)
    objective.loss_and_gradient(initial, *rows_of(0, n_entries=1), gradient)
    expected = initial.copy()
    expected[:N_COLUMNS] *= 1 - 0.1 * 0.5
    expected -= 0.1 * gradient / N_ROWS
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_gradient_that_is_not_finite_is_seen(actors: LocalActors) -> None:
    """In what was touched since the last push; a total of nothing is finite."""
    method = Downpour(batch_size=BATCH)
    server = deploy(actors, [range(Vectors.n_parameters)], updates=update_spec(method, is_recorded=False))
    objective: Any = Vectors()
    executor = SparseStepExecutor(
        StepSpec("a", objective, server.directory, actors.caller, get_backend("numpy"), method)
    )
    executor.parameters[:] = 1
    assert executor.accrued_is_finite()
    inputs, targets = rows_of(0)
    executor.compute(inputs[:2], targets[:2])
    executor.accrue(2)
    assert executor.accrued_is_finite()
    with np.errstate(all="ignore"):
        executor.compute(inputs[:2], targets[:2] * np.inf)
        executor.accrue(2)
        assert not executor.accrued_is_finite()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"staleness": MaxStaleness(1)}, True),
        ({"staleness": ScaleByStaleness(), "weight_decay": 0.1, "clip_norm": 1.0}, True),
        ({"l2": 0.1}, False),
        ({"staleness": Synchronous()}, False),
        ({"staleness": ElasticAveraging(), "n_replicas": 2}, False),
    ],
    ids=str,
)
def test_who_may_leave_out_what_is_not_touched(
    options: dict[str, Staleness | float], expected: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """An objective that tells what it touches, unless an option draws on all parameters: then the log says why."""
    method, objective, dense = Downpour(**options), Vectors(), Dense()
    with caplog.at_level("INFO", "dask_belief"):
        assert is_sparse(objective, method, "numpy") == expected
        assert not is_sparse(dense, method, "numpy")
    assert len(caplog.records) == (not expected)
    assert not is_sparse(objective, method, "cupy")
