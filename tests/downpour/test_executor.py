"""The plain executor of Downpour: mean gradients with the penalty, local steps, fetches that take effect later."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from dask_belief.backend import get_backend
from dask_belief.downpour.config import Downpour
from dask_belief.downpour.executor import PlainStepExecutor
from dask_belief.optim.rules import SGD, Adagrad
from dask_belief.parameter_server.client import ParameterServer
from dask_belief.parameter_server.messages import LeaseKey, PushKey
from dask_belief.parameter_server.shard import VALUES
from dask_belief.seeds import stream
from tests.parameter_server.local_actors import LocalActors, deploy

SEED = 41
START = np.array([1.0, -2.0, 3.0], np.float32)
LEASE = LeaseKey(0, 0)


class SquaredDistance:
    """Loss ``|w - row|^2 / 2``, with a penalty on the first two parameters only."""

    n_parameters = 3
    penalised = np.array([True, True, False])

    def initial_parameters(self, seed: int) -> np.ndarray:
        return START

    def loss_and_gradient(self, parameters: Any, inputs: Any, targets: Any) -> tuple[float, Any]:
        difference = parameters - inputs
        return 0.5 * float((difference * difference).sum()), difference.sum(axis=0)


@pytest.fixture(params=[True, False], ids=["copied", "handed over"])
def actors(request: pytest.FixtureRequest) -> Iterator[LocalActors]:
    """Carriers that copy messages, as TCP does, and that hand over the very arrays, as ``inproc://`` does."""
    with LocalActors(copies=request.param) as carrier:
        yield carrier


@pytest.fixture
def server(actors: LocalActors) -> ParameterServer:
    """One shard that holds `START` and steps by plain descent."""
    server = deploy(actors, [range(3)], rule=SGD(0.5))
    actors.caller.run(server.write(VALUES, START))
    actors.caller.run(server.begin_updates())
    return server


def executor(server: ParameterServer, actors: LocalActors, **options: Any) -> PlainStepExecutor:
    method = Downpour(**{"rule": SGD(0.5), **options})
    plain = PlainStepExecutor(SquaredDistance(), server.directory, actors.caller, get_backend("numpy"), method)
    plain.exchange(None, effective_step=0)
    plain.take_effect(0)
    return plain


def values(server: ParameterServer, actors: LocalActors) -> np.ndarray:
    into = np.empty(3, np.float32)
    actors.caller.run(server.read(VALUES, into))
    return into


def rows(number: int, n: int = 4) -> np.ndarray:
    return stream(SEED, number).standard_normal((n, 3)).astype(np.float32)


def test_a_push_is_the_sum_of_mean_gradients_with_the_penalty(server: ParameterServer, actors: LocalActors) -> None:
    """Each mini-batch's gradient is divided by its rows, whatever their number; biases are not drawn."""
    plain = executor(server, actors, l2=0.1, n_push=2, n_fetch=2)
    w, expected = START.copy(), np.zeros(3)
    for number, n_rows in ((0, 4), (1, 2)):
        x = rows(number, n_rows)
        plain.compute(x, None)
        gradient = (w - x).mean(axis=0) + 0.1 * w * SquaredDistance.penalised
        plain.accrue(n_rows)
        expected += gradient
        w = w - 0.5 * gradient
        np.testing.assert_allclose(plain.parameters, w, rtol=1e-5)
    sent = plain.exchange(PushKey(LEASE, 0, 1), None)
    assert sent is not None
    sent.result(10)
    np.testing.assert_allclose(values(server, actors), START - 0.5 * expected, rtol=1e-5)


def test_what_was_pushed_does_not_accrue_again(server: ParameterServer, actors: LocalActors) -> None:
    """After a push the accrued gradient begins at nothing."""
    plain = executor(server, actors)
    plain.compute(rows(0), None)
    plain.accrue(4)
    plain.exchange(PushKey(LEASE, 0, 0), None)
    before_second = plain.exchange(PushKey(LEASE, 1, 1), 2)
    assert before_second is not None
    before_second.result(10)
    expected = START - 0.5 * (START - rows(0)).mean(axis=0)
    np.testing.assert_allclose(values(server, actors), expected, rtol=1e-6)


def test_a_fetch_holds_the_pushes_before_it_and_takes_effect_at_its_step(
    server: ParameterServer, actors: LocalActors
) -> None:
    """Not a step earlier, although it has arrived."""
    plain = executor(server, actors)
    plain.compute(rows(0), None)
    plain.accrue(4)
    sent = plain.exchange(PushKey(LEASE, 0, 0), 2)
    assert sent is not None
    sent.result(10)
    plain.take_effect(1)
    np.testing.assert_array_equal(plain.parameters, START)
    plain.take_effect(2)
    np.testing.assert_array_equal(plain.parameters, values(server, actors))


def test_host_vectors_are_used_in_turns(server: ParameterServer, actors: LocalActors) -> None:
    """However many fetches and pushes: what was computed with before is filled by a later fetch."""
    plain = executor(server, actors)
    made = 0
    host_empty = type(get_backend("numpy")).host_empty

    def count(self: Any, shape: Any, dtype: Any) -> Any:
        nonlocal made
        made += 1
        return host_empty(self, shape, dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(get_backend("numpy")), "host_empty", count)
        for step in range(1, 30):
            plain.compute(rows(0), None)
            plain.accrue(4)
            plain.exchange(PushKey(LEASE, step - 1, step - 1), step)
            plain.take_effect(step)
    np.testing.assert_array_equal(plain.parameters, values(server, actors))
    assert made <= 3


@pytest.mark.parametrize(
    ("options", "is_made"), [({}, False), ({"fetch_lag": 0}, False), ({"n_fetch": 2}, True)], ids=str
)
def test_a_local_step_is_made_where_it_is_seen(
    server: ParameterServer, actors: LocalActors, options: dict[str, int], is_made: bool
) -> None:
    """With a fetch every mini-batch it would be overwritten before it is used."""
    plain = executor(server, actors, rule=Adagrad(0.1), **options)
    plain.compute(rows(0), None)
    plain.accrue(4)
    assert bool(np.any(plain.parameters != START)) == is_made


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_accrued_gradients_that_would_spoil_the_shards_are_told(
    server: ParameterServer, actors: LocalActors, bad: float
) -> None:
    """NaN, infinity, and numbers whose square is infinite in float32."""
    plain = executor(server, actors)
    plain.compute(rows(0), None)
    plain.accrue(4)
    assert plain.accrued_is_finite()
    data = rows(1)
    data[2, 1] = bad
    with np.errstate(all="ignore"):
        plain.compute(data, None)
        plain.accrue(4)
        assert not plain.accrued_is_finite()


def test_a_successor_learns_how_far_a_lease_is(server: ParameterServer, actors: LocalActors) -> None:
    """From the shards themselves."""
    plain = executor(server, actors)
    assert plain.applied(LEASE) == -1
    actors.caller.run(server.exchange(PushKey(LEASE, 0, 3), np.zeros(3, np.float32), None))
    assert plain.applied(LEASE) == 3
