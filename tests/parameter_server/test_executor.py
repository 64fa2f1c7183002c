"""Sandblaster's plain executor: fetch, compute, add in the tree's order, push, with vectors used again and again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from dask_belief.backend import Backend, get_backend
from dask_belief.binary_tree import Node
from dask_belief.cluster.actors import Caller
from dask_belief.errors import StaleError
from dask_belief.optim.rules import SGD
from dask_belief.parameter_server.client import ParameterServer
from dask_belief.parameter_server.executor import PlainBatchExecutor, blocks
from dask_belief.parameter_server.messages import BeginSum, EndSum
from dask_belief.parameter_server.updates import UpdateSpec
from dask_belief.seeds import stream
from tests.parameter_server.local_actors import LocalActors, deploy

SEED = 35
N_FEATURES = 3
N_UNITS = 5


class SquaredDistance:
    """Loss ``|w - row|^2 / 2``; its gradient is ``w - row``."""

    n_parameters = N_FEATURES

    def initial_parameters(self, seed: int) -> np.ndarray:
        return np.zeros(N_FEATURES, np.float32)

    def loss_and_gradient(self, parameters: Any, inputs: Any, targets: Any) -> tuple[float, Any]:
        difference = parameters - inputs
        return 0.5 * float((difference * difference).sum()), difference.sum(axis=0)


class Bound(SquaredDistance):
    """The same, which notes the backend that it is bound to."""

    backend: Backend | None = None

    def on(self, backend: Backend) -> Bound:
        bound = Bound()
        bound.backend = backend
        return bound

    def loss_and_gradient(self, parameters: Any, inputs: Any, targets: Any) -> tuple[float, Any]:
        assert self.backend is not None
        return super().loss_and_gradient(parameters, inputs, targets)


def rows(unit: int, n: int = 4) -> np.ndarray:
    return stream(SEED, unit).standard_normal((n, N_FEATURES)).astype(np.float32)


@pytest.fixture(params=[True, False], ids=["copied", "handed over"])
def actors(request: pytest.FixtureRequest) -> Iterator[LocalActors]:
    """Carriers that copy messages, as TCP does, and that hand over the very arrays, as ``inproc://`` does."""
    with LocalActors(copies=request.param) as carrier:
        yield carrier


@pytest.fixture
def server(actors: LocalActors) -> ParameterServer:
    """One shard with an evaluation open at ``x``."""
    server = deploy(actors, [range(N_FEATURES)], updates=UpdateSpec(SGD(1.0)))
    actors.caller.run(server.write("x", np.array([1.0, 2.0, 3.0], np.float32)))
    actors.caller.run(server.execute(BeginSum(1, "x", N_UNITS)))
    return server


def executor(
    server: ParameterServer, actors: LocalActors, objective: Any = None, n_units: int = 1
) -> PlainBatchExecutor:
    chosen = SquaredDistance() if objective is None else objective
    return PlainBatchExecutor(chosen, server.directory, actors.caller, get_backend("numpy"), n_units)


@pytest.mark.parametrize(("n_rows", "sizes"), [(1, [1]), (4, [4]), (5, [4, 1]), (12, [4, 4, 4])])
def test_blocks_cover_the_rows(n_rows: int, sizes: list[int]) -> None:
    """Blocks follow one another, all of the stated size but the last."""
    cut = list(blocks(n_rows, 4))
    assert [block.stop - block.start for block in cut] == sizes
    assert [row for block in cut for row in range(block.start, block.stop)] == list(range(n_rows))


def test_compute_adds_the_blocks_of_a_unit(server: ParameterServer, actors: LocalActors) -> None:
    """Loss sums are given block by block, gradients are added, and taking them begins a new sum."""
    plain = executor(server, actors)
    plain.fetch(1)
    x = np.array([1.0, 2.0, 3.0], np.float32)
    for data in (rows(0), rows(1)):
        losses = [plain.compute(data[block], None) for block in blocks(len(data), 3)]
        assert losses == pytest.approx([0.5 * float(((x - part) ** 2).sum()) for part in (data[:3], data[3:])])
        expected = (x - data[:3]).sum(axis=0) + (x - data[3:]).sum(axis=0)
        np.testing.assert_array_equal(plain.take_gradient(), expected)


def test_objective_is_bound_to_the_backend(server: ParameterServer, actors: LocalActors) -> None:
    """An objective that offers ``on(backend)`` computes there."""
    plain = executor(server, actors, Bound())
    plain.fetch(1)
    assert plain.compute(rows(0), None) > 0


def test_leases_give_the_sum_of_the_tree(server: ParameterServer, actors: LocalActors) -> None:
    """Pushed lease by lease, while vectors are used again, the gradient has the bits of the units' tree."""
    plain = executor(server, actors, n_units=N_UNITS)
    plain.fetch(1)
    for node in (Node(1, 1), Node(2, 1), Node(1, 0)):
        for unit in node.leaves(N_UNITS):
            plain.compute(rows(unit), None)
            plain.add(unit)
        plain.push_sum(1, node).result(10)
    actors.caller.run(server.execute(EndSum(1, "g", 20, 0.0)))
    found = np.empty(N_FEATURES, np.float32)
    actors.caller.run(server.read("g", found))
    x = np.array([1.0, 2.0, 3.0], np.float32)
    of_unit = [(x - rows(unit)).sum(axis=0) for unit in range(N_UNITS)]
    expected = ((of_unit[0] + of_unit[1]) + (of_unit[2] + of_unit[3])) + of_unit[4]
    np.testing.assert_array_equal(found, expected / np.float32(20))


def test_vectors_are_used_again(server: ParameterServer, actors: LocalActors) -> None:
    """However many leases, a lease of one level needs no more than a few vectors."""
    plain = executor(server, actors, n_units=64)
    made = 0
    empty = plain._backend.empty

    def count(shape: Any, dtype: Any) -> Any:
        nonlocal made
        made += 1
        return empty(shape, dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(plain._backend), "empty", lambda self, shape, dtype: count(shape, dtype))
        actors.caller.run(server.execute(BeginSum(2, "x", 64)))
        plain.fetch(2)
        for number in range(32):
            for unit in (2 * number, 2 * number + 1):
                plain.compute(rows(unit), None)
                plain.add(unit)
            plain.push_sum(2, Node(1, number)).result(10)
    assert made <= 4


def test_dropped_sum_leaves_nothing_behind(server: ParameterServer, actors: LocalActors) -> None:
    """After a drop in the middle of a lease and of a unit, the next lease has its own units only."""
    plain = executor(server, actors, n_units=N_UNITS)
    plain.fetch(1)
    plain.compute(rows(0), None)
    plain.add(0)
    plain.compute(rows(1), None)
    plain.drop_sum()
    for unit in (2, 3):
        plain.compute(rows(unit), None)
        plain.add(unit)
    plain.push_sum(1, Node(1, 1)).result(10)
    x = np.array([1.0, 2.0, 3.0], np.float32)
    [total] = [tree.waiting[Node(1, 1)] for tree in actors.actors["shard 0"]._sum._pieces.values()]
    np.testing.assert_array_equal(total, (x - rows(2)).sum(axis=0) + (x - rows(3)).sum(axis=0))


def test_push_into_an_evaluation_that_is_over_is_refused(server: ParameterServer, actors: LocalActors) -> None:
    """The future of the push tells it; the executor goes on."""
    plain = executor(server, actors, n_units=N_UNITS)
    plain.fetch(1)
    plain.compute(rows(0), None)
    plain.add(0)
    actors.caller.run(server.execute(BeginSum(2, "x", N_UNITS)))
    with pytest.raises(StaleError):
        plain.push_sum(1, Node(0, 0)).result(10)
    plain.fetch(2)
    with pytest.raises(StaleError):
        plain.fetch(1)
    plain.fetch(2)
    plain.compute(rows(0), None)
    plain.add(0)
    plain.push_sum(2, Node(0, 0)).result(10)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_gradient_that_is_not_finite_is_seen(server: ParameterServer, actors: LocalActors, bad: float) -> None:
    """One bad element in one row is enough, and the next unit starts clean."""
    plain = executor(server, actors)
    plain.fetch(1)
    data = rows(0)
    plain.compute(data, None)
    assert plain.gradient_is_finite()
    data[2, 1] = bad
    plain.compute(data, None)
    assert not plain.gradient_is_finite()
    plain.take_gradient()
    plain.compute(rows(0), None)
    assert plain.gradient_is_finite()


# What is told of a lease.


def add_lease(plain: PlainBatchExecutor, node: Node, data: dict[int, np.ndarray] | None = None) -> None:
    for unit in node.leaves(N_UNITS):
        plain.compute((data or {}).get(unit, rows(unit)), None)
        plain.add(unit)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("unit", [0, 3])
def test_sum_that_is_not_finite_is_seen(server: ParameterServer, actors: LocalActors, bad: float, unit: int) -> None:
    """One bad element in one unit of the lease is enough, and the next lease starts clean."""
    plain = executor(server, actors, n_units=N_UNITS)
    plain.fetch(1)
    node, data = Node(2, 0), rows(unit)
    add_lease(plain, node)
    assert plain.sum_is_finite()
    plain.push_sum(1, node).result(10)
    data[1, 2] = bad
    add_lease(plain, node, {unit: data})
    assert not plain.sum_is_finite()
    plain.drop_sum()
    add_lease(plain, node)
    assert plain.sum_is_finite()


def test_sum_whose_addition_overflows_is_not_finite(server: ParameterServer, actors: LocalActors) -> None:
    """Each unit's gradient is a number, and their sum is none."""
    plain = executor(server, actors, n_units=N_UNITS)
    plain.fetch(1)
    huge = np.full((1, N_FEATURES), -3e38, np.float32)
    with np.errstate(over="ignore"):
        for unit in (0, 1):
            plain.compute(huge, None)
            assert plain.gradient_is_finite()
            plain.add(unit)
    assert not plain.sum_is_finite()


def test_dropped_gradient_leaves_nothing_behind(server: ParameterServer, actors: LocalActors) -> None:
    """What was computed in between, such as to find a fault, is in no sum; the sum so far stays."""
    plain = executor(server, actors, n_units=N_UNITS)
    plain.fetch(1)
    plain.compute(rows(0), None)
    plain.add(0)
    for unit in (3, 4):
        plain.compute(rows(unit), None)
    plain.drop_gradient()
    plain.compute(rows(1), None)
    plain.add(1)
    plain.push_sum(1, Node(1, 0)).result(10)
    x = np.array([1.0, 2.0, 3.0], np.float32)
    [total] = [tree.waiting[Node(1, 0)] for tree in actors.actors["shard 0"]._sum._pieces.values()]
    np.testing.assert_array_equal(total, (x - rows(0)).sum(axis=0) + (x - rows(1)).sum(axis=0))


# What travels.


def test_bytes_of_fetches_are_counted_once_an_evaluation(server: ParameterServer, actors: LocalActors) -> None:
    """A second lease of an evaluation finds the parameters there."""
    plain, n_bytes = executor(server, actors), 4 * N_FEATURES
    assert plain.received_bytes == 0
    for _ in range(2):
        plain.fetch(1)
        assert plain.received_bytes == n_bytes
    actors.caller.run(server.execute(BeginSum(2, "x", N_UNITS)))
    plain.fetch(2)
    assert plain.received_bytes == 2 * n_bytes


def test_bytes_are_those_of_the_replica_that_fetched(server: ParameterServer, actors: LocalActors) -> None:
    """Replicas of one worker share what one of them brought: it travels once, and both compute with it."""
    caller = Caller(actors.loop, actors.send, own_address="tcp://worker")
    backend = get_backend("numpy")
    first, second = (
        PlainBatchExecutor(SquaredDistance(), server.directory, caller, backend, N_UNITS) for _ in range(2)
    )
    for plain in (first, second):
        plain.fetch(1)
    assert (first.received_bytes, second.received_bytes) == (4 * N_FEATURES, 0)
    assert actors.calls["fetch"] == 1
    assert first.compute(rows(0), None) == second.compute(rows(0), None)


def test_push_tells_its_bytes(server: ParameterServer, actors: LocalActors) -> None:
    """Once all shards have it, whatever the lease's size."""
    plain = executor(server, actors, n_units=N_UNITS)
    plain.fetch(1)
    for node in (Node(2, 0), Node(0, 4)):
        add_lease(plain, node)
        assert plain.push_sum(1, node).result(10) == 4 * N_FEATURES
    assert plain.received_bytes == 4 * N_FEATURES


def test_objective_cannot_write_to_the_parameters(server: ParameterServer, actors: LocalActors) -> None:
    """Others compute with them."""

    class Careless(SquaredDistance):
        def loss_and_gradient(self, parameters: Any, inputs: Any, targets: Any) -> tuple[float, Any]:
            parameters -= inputs[0]
            return 0.0, parameters

    plain = executor(server, actors, Careless())
    plain.fetch(1)
    with pytest.raises(ValueError, match="read-only"):
        plain.compute(rows(0), None)


def test_holdings_count_every_vector_once(server: ParameterServer, actors: LocalActors) -> None:
    """Before the first fetch a gradient; then parameters, a second gradient for a further block, and partial sums."""
    vector_bytes = 4 * N_FEATURES
    plain = executor(server, actors, n_units=N_UNITS)
    assert plain.holdings() == {"parameters": 0, "gradients": vector_bytes, "sums": 0}
    plain.fetch(1)
    for unit in (0, 1, 2):
        plain.compute(rows(unit), None)
        plain.compute(rows(unit), None)
        plain.add(unit)
    # The sum of units 0 and 1, that of unit 2; unit 1's own vector is the next gradient, or waits to be.
    held = plain.holdings()
    assert (held["parameters"], held["gradients"]) == (vector_bytes, 2 * vector_bytes)
    assert held["sums"] >= 2 * vector_bytes
