"""The plain executors of Downpour: mean gradients, local steps, fetches that take effect later, elastic averaging."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from dask_belief.backend import get_backend
from dask_belief.downpour.config import Downpour
from dask_belief.downpour.executor import ElasticStepExecutor, PlainStepExecutor, StepSpec, update_spec
from dask_belief.optim.rules import SGD, Adagrad, Momentum, Rule
from dask_belief.optim.schedules import InverseTimeDecay
from dask_belief.parameter_server.client import ParameterServer
from dask_belief.parameter_server.consistency import ElasticAveraging
from dask_belief.parameter_server.exchange import Exchange, Exchanged
from dask_belief.parameter_server.messages import LeaseKey, PushKey, StepKey
from dask_belief.parameter_server.updates import VALUES, UpdateSpec
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
    server = deploy(actors, [range(3)], updates=UpdateSpec(SGD(0.5)))
    actors.caller.run(server.write(VALUES, START))
    actors.caller.run(server.begin_updates())
    return server


def spec(server: ParameterServer, actors: LocalActors, **options: Any) -> StepSpec:
    method = Downpour(**{"rule": SGD(0.5), **options})
    return StepSpec("a", SquaredDistance(), server.directory, actors.caller, get_backend("numpy"), method)


def executor(server: ParameterServer, actors: LocalActors, **options: Any) -> PlainStepExecutor:
    plain = PlainStepExecutor(spec(server, actors, **options))
    exchange(plain, None, 0)
    plain.take_effect(0)
    return plain


def exchange(plain: PlainStepExecutor, push: PushKey | None, effective_step: float | None) -> Any:
    at = StepKey(LEASE, 0 if push is None else push.last + 1)
    return plain.exchange(at, push, effective_step, lambda: (np.empty((0, 3)), np.empty(0)))


def push(step: int, first: int | None = None) -> PushKey:
    return PushKey(LEASE, step if first is None else first, step)


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
    sent = exchange(plain, push(1, 0), None)
    assert sent is not None
    sent.result(10)
    np.testing.assert_allclose(values(server, actors), START - 0.5 * expected, rtol=1e-5)


def test_what_was_pushed_does_not_accrue_again(server: ParameterServer, actors: LocalActors) -> None:
    """After a push the accrued gradient begins at nothing."""
    plain = executor(server, actors)
    plain.compute(rows(0), None)
    plain.accrue(4)
    exchange(plain, push(0), None)
    plain.compute(rows(1), None)
    plain.accrue(4)
    second = exchange(plain, push(1), 2)
    assert second is not None
    second.result(10)
    expected = START - 0.5 * ((START - rows(0)).mean(axis=0) + (START - rows(1)).mean(axis=0))
    np.testing.assert_allclose(values(server, actors), expected, rtol=1e-6)


def test_a_fetch_holds_the_pushes_before_it_and_takes_effect_at_its_step(
    server: ParameterServer, actors: LocalActors
) -> None:
    """Not a step earlier, although it has arrived."""
    plain = executor(server, actors)
    plain.compute(rows(0), None)
    plain.accrue(4)
    sent = exchange(plain, push(0), 2)
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
            exchange(plain, push(step - 1), step)
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
    actors.caller.run(server.exchange(Exchange("b", StepKey(LEASE, 4), push(3, 0), np.zeros(3, np.float32))))
    assert plain.applied(LEASE) == 3


def take_steps(plain: PlainStepExecutor, n_steps: int) -> list[np.ndarray]:
    """Compute and accrue mini-batches; gives the mean gradients, penalty left out."""
    gradients = []
    for number in range(n_steps):
        w = plain.parameters.copy()
        plain.compute(rows(number), None)
        plain.accrue(4)
        gradients.append((w - rows(number)).mean(axis=0))
    return gradients


@pytest.mark.parametrize("l2", [0.0, 0.2])
@pytest.mark.parametrize("clip_norm", [0.5, 1e6])
def test_each_mini_batch_is_clipped(server: ParameterServer, actors: LocalActors, l2: float, clip_norm: float) -> None:
    """Its mean gradient, penalty included, to the norm, before it accrues and before the local step."""
    plain = executor(server, actors, n_push=2, n_fetch=2, l2=l2, clip_norm=clip_norm)
    w, total = START.astype(np.float64), np.zeros(3)
    for number in range(2):
        plain.compute(rows(number), None)
        plain.accrue(4)
        gradient = (w - rows(number)).mean(axis=0) + l2 * w * SquaredDistance.penalised
        gradient *= min(1.0, clip_norm / np.linalg.norm(gradient))
        total += gradient
        w = w - 0.5 * gradient
        np.testing.assert_allclose(plain.parameters, w, rtol=1e-5)
    exchange(plain, push(1, 0), None).result(10)
    np.testing.assert_allclose(values(server, actors), START - 0.5 * total, rtol=1e-5)


def test_clipping_leaves_what_is_not_finite_to_be_found(server: ParameterServer, actors: LocalActors) -> None:
    """A gradient without a norm is not made zero."""
    plain = executor(server, actors, clip_norm=1.0)
    data = rows(0)
    data[0, 0] = np.inf
    with np.errstate(all="ignore"):
        plain.compute(data, None)
        plain.accrue(4)
        assert not plain.accrued_is_finite()


@pytest.mark.parametrize("rule", [SGD(0.1), Adagrad(0.1), Momentum(0.1, 0.5)], ids=str)
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_local_step_is_that_of_the_rule(server: ParameterServer, actors: LocalActors, rule: Rule, decay: float) -> None:
    """With state of the replica's own, after the decay of what is penalised."""
    plain = executor(server, actors, rule=rule, n_fetch=5, n_push=5, weight_decay=decay)
    w = START.astype(np.float64)
    state = rule.init(w)
    for number, gradient in enumerate(take_steps(plain, 4)):
        w *= np.where(SquaredDistance.penalised, 1 - 0.1 * decay, 1.0)
        rule.apply(w, gradient.astype(np.float64), state, number)
    np.testing.assert_allclose(plain.parameters, w, rtol=1e-5)


class Kept:
    """Stands before the shards, and keeps what is pushed."""

    def __init__(self, server: ParameterServer) -> None:
        self._server = server
        self.sent: list[np.ndarray] = []

    async def __call__(self, ask: Exchange) -> Exchanged:
        if ask.vector is not None:
            self.sent.append((ask.vector.astype(np.uint32) << 16).view(np.float32))
        return await self._server.exchange(ask)


@pytest.fixture
def narrow_server(actors: LocalActors) -> ParameterServer:
    """As `server`, for what travels as bfloat16."""
    server = deploy(actors, [range(3)], updates=UpdateSpec(SGD(0.5), wire_dtype="bfloat16"))
    actors.caller.run(server.write(VALUES, START))
    actors.caller.run(server.begin_updates())
    return server


@pytest.mark.parametrize("n_push", [1, 3])
def test_what_rounding_leaves_out_comes_with_the_next_push(
    narrow_server: ParameterServer, actors: LocalActors, n_push: int
) -> None:
    """Over leases, too: what was sent and what is left add up to what accrued, and little is left of one push."""
    kept = Kept(narrow_server)
    options = {"n_push": n_push, "n_fetch": n_push, "wire_dtype": "bfloat16"}
    plain = PlainStepExecutor(spec(narrow_server, actors, **options), kept)
    exchange(plain, None, 0)
    plain.take_effect(0)
    accrued, n_steps = np.zeros(3), 60
    for step in range(n_steps):
        w = plain.parameters.copy()
        plain.compute(rows(step), None)
        plain.accrue(4)
        accrued += (w - rows(step)).mean(axis=0)
        if (step + 1) % n_push == 0:
            lease = LeaseKey(0, step // 30)
            key = PushKey(lease, step % 30 - n_push + 1, step % 30)
            plain.exchange(StepKey(lease, key.last + 1), key, step + 1, lambda: (np.empty((0, 3)), np.empty(0)))
            plain.take_effect(step + 1)
    assert plain.traffic.pushed_bytes == 3 * 2 * (n_steps // n_push)
    assert plain._accrued is not None
    assert (np.abs(plain._accrued) <= 2.0**-8 * np.abs(kept.sent[-1])).all()
    np.testing.assert_allclose(np.sum(kept.sent, axis=0, dtype=np.float64) + plain._accrued, accrued, atol=1e-5)
    np.testing.assert_array_equal(values(narrow_server, actors) != START, [True] * 3)


def test_a_narrow_exchange_makes_no_new_memory(narrow_server: ParameterServer, actors: LocalActors) -> None:
    """However many: the buffers of the line are used in turns."""
    plain = executor(narrow_server, actors, wire_dtype="bfloat16")
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
            exchange(plain, push(step - 1), step)
            plain.take_effect(step)
    assert made <= 4


def test_elastic_parameters_are_sent_as_they_are_on_the_average(actors: LocalActors) -> None:
    """What rounding leaves out of the parameters is sent with them the next time; they themselves stay as they are."""
    updates = UpdateSpec(SGD(0.5), 1, staleness=ElasticAveraging(0.5), wire_dtype="bfloat16")
    server = deploy(actors, [range(3)], updates=updates)
    actors.caller.run(server.write(VALUES, START))
    actors.caller.run(server.begin_updates())
    kept, n_exchanges = Kept(server), 40
    options = {"n_replicas": 1, "staleness": ElasticAveraging(0.5), "fetch_lag": 0, "wire_dtype": "bfloat16"}
    plain = ElasticStepExecutor(spec(server, actors, **options), kept)
    exchange(plain, None, 0)
    plain.take_effect(0)
    own = np.zeros(3)
    for step in range(n_exchanges):
        plain.compute(rows(step), None)
        plain.accrue(4)
        own += plain.parameters
        both = plain.parameters.astype(np.float64) + values(server, actors)
        exchange(plain, push(step), step + 1)
        plain.take_effect(step + 1)
        # A spring moves both by the same.
        np.testing.assert_allclose(plain.parameters + values(server, actors), both, rtol=1e-5, atol=1e-6)
    left = 2.0**-8 * np.abs(kept.sent[-1])
    assert (np.abs(np.sum(kept.sent, axis=0, dtype=np.float64) - own) <= left + 1e-5).all()


class AheadOfItself:
    """Stands before the shards, and says that they have had many updates."""

    def __init__(self, server: ParameterServer, n_updates: int) -> None:
        self._server = server
        self._n_updates = n_updates

    async def __call__(self, ask: Exchange) -> Exchanged:
        done = await self._server.exchange(ask)
        return Exchanged((self._n_updates,), done.pushed_bytes, done.fetched_bytes)


@pytest.mark.parametrize("n_updates", [0, 2, 40])
def test_local_step_has_the_rate_of_the_shards(server: ParameterServer, actors: LocalActors, n_updates: int) -> None:
    """Of their next update as of the fetch; of the replica's own count where that is further."""
    rule = SGD(InverseTimeDecay(0.4, half_after=10))
    given = spec(server, actors, rule=rule, n_fetch=5, n_push=5)
    plain = PlainStepExecutor(given, AheadOfItself(server, n_updates))
    exchange(plain, None, 0)
    plain.take_effect(0)
    w = START.astype(np.float64)
    for number, gradient in enumerate(take_steps(plain, 4)):
        w -= rule.rate(max(n_updates, number)) * gradient
    np.testing.assert_allclose(plain.parameters, w, rtol=1e-5)


def test_push_tells_the_versions_that_it_was_computed_from(server: ParameterServer, actors: LocalActors) -> None:
    """Those of the fetch in use, not of the newest that is under way."""
    plain = executor(server, actors)
    for step in range(3):
        take_steps(plain, 1)
        exchange(plain, push(step), step + 2)
        plain.take_effect(step + 1)
    exchange(plain, None, 3)
    plain.take_effect(4)
    [counts] = actors.caller.run(server.counts())
    # The first two were computed from the first fetch, the third from that which held one push.
    assert counts.staleness[:3] == (1, 2, 0)
    assert plain.traffic.staleness_sum == 2


# Elastic averaging.


@pytest.mark.parametrize("rule", [SGD(0.3), Momentum(0.2, 0.5)], ids=str)
@pytest.mark.parametrize("n_replicas", [1, 3])
def test_elastic_replicas_by_the_formulas(actors: LocalActors, rule: Rule, n_replicas: int) -> None:
    """EASGD: ``x -= alpha (x - c)``, ``c += alpha (x - c)``, then steps of the replica's own; one after another."""
    options = {"rule": rule, "n_replicas": n_replicas, "n_fetch": 2, "n_push": 2, "fetch_lag": 0}
    method = Downpour(staleness=ElasticAveraging(0.9), **options)
    server = deploy(actors, [range(3)], updates=update_spec(method, is_recorded=False))
    actors.caller.run(server.write(VALUES, START))
    actors.caller.run(server.begin_updates())
    alpha, centre = 0.9 / n_replicas, START.astype(np.float64)
    own = [START.astype(np.float64) for _ in range(n_replicas)]
    states = [rule.init(x) for x in own]
    replicas = [
        ElasticStepExecutor(spec(server, actors, staleness=ElasticAveraging(0.9), **options)) for _ in range(n_replicas)
    ]
    for plain in replicas:
        exchange(plain, None, 0)
        plain.take_effect(0)
    for turn in range(3):
        for number, plain in enumerate(replicas):
            for step in range(2):
                data = rows(10 * number + 2 * turn + step)
                plain.compute(data, None)
                plain.accrue(4)
                gradient = (own[number] - data).mean(axis=0)
                rule.apply(own[number], gradient, states[number], 2 * turn + step)
            assert plain.accrued_is_finite()
            lease = LeaseKey(0, number)
            plain.exchange(StepKey(lease, 2 * turn + 2), PushKey(lease, 2 * turn, 2 * turn + 1), turn + 1, no_rows)
            plain.take_effect(turn + 1)
            pull = alpha * (own[number] - centre)
            own[number] -= pull
            centre += pull
            np.testing.assert_allclose(plain.parameters, own[number], rtol=1e-4)
            np.testing.assert_allclose(values(server, actors), centre, rtol=1e-4)


def no_rows() -> tuple[np.ndarray, np.ndarray]:
    raise AssertionError("a dense exchange does not look ahead")


def test_elastic_pull_that_comes_late_is_taken_off_later(actors: LocalActors) -> None:
    """With a lag the replica steps on meanwhile, and nothing of its steps is lost."""
    options = {"rule": SGD(0.5), "n_replicas": 1, "staleness": ElasticAveraging(0.5)}
    method = Downpour(**options)
    server = deploy(actors, [range(3)], updates=update_spec(method, is_recorded=False))
    actors.caller.run(server.write(VALUES, START))
    actors.caller.run(server.begin_updates())
    plain = ElasticStepExecutor(spec(server, actors, **options))
    exchange(plain, None, 0)
    plain.take_effect(0)
    x = START.astype(np.float64)
    gradients = take_steps(plain, 1)
    x -= 0.5 * gradients[0]
    pull = 0.5 * (x - START)
    exchange(plain, push(0), 2)
    plain.take_effect(1)
    np.testing.assert_allclose(plain.parameters, x, rtol=1e-5)
    x -= 0.5 * take_steps(plain, 1)[0]
    plain.take_effect(2)
    np.testing.assert_allclose(plain.parameters, x - pull, rtol=1e-5)


def test_elastic_parameters_that_run_away_are_told(server: ParameterServer, actors: LocalActors) -> None:
    """The replica's own are what would be pushed."""
    plain = ElasticStepExecutor(spec(server, actors, n_replicas=1, staleness=ElasticAveraging(0.5)))
    exchange(plain, None, 0)
    plain.take_effect(0)
    with np.errstate(all="ignore"):
        plain.compute(rows(0) * 1e30, None)
        plain.accrue(4)
        assert not plain.accrued_is_finite()


def test_holdings_name_what_each_vector_is_for(server: ParameterServer, actors: LocalActors) -> None:
    """Parameters, a gradient, what has accrued; the penalty's weights and the local rule's vectors."""
    plain = executor(server, actors, rule=Momentum(0.1), l2=0.1, n_push=2, n_fetch=2)
    one = START.nbytes
    assert plain.holdings() == {"parameters": one, "gradients": one, "accrued": 0, "rule": 2 * one}
    plain.compute(rows(0), None)
    plain.accrue(4)
    held = plain.holdings()
    assert held["accrued"] == one
    # With scratch for the penalty.
    assert held["gradients"] == 2 * one
