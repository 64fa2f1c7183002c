"""All shards as one vector: what is sent where, and scalars that do not depend on the number of shards."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from dask_belief.binary_tree import Node
from dask_belief.cluster.actors import Caller, Message
from dask_belief.errors import ActorLostError, StaleError
from dask_belief.optim.rules import SGD, Adagrad
from dask_belief.parameter_server import ranges as ranges_module
from dask_belief.parameter_server.client import Exchange, ParameterServer
from dask_belief.parameter_server.messages import (
    Absolutes,
    Align,
    BeginSum,
    Combine,
    Dot,
    EndSum,
    Finished,
    FirstHessian,
    LeaseKey,
    MaxNorm,
    ProjectedStep,
    PseudoGradient,
    PushKey,
    SquaredPenalty,
    StepKey,
    Swap,
)
from dask_belief.parameter_server.ranges import BLOCK, shard_ranges
from dask_belief.parameter_server.selection import Selection
from dask_belief.parameter_server.updates import VALUES, UpdateSpec
from dask_belief.seeds import stream
from tests.parameter_server.local_actors import LocalActors, deploy

SEED = 34
N_PARAMETERS = 3 * BLOCK + 77
LEASE = LeaseKey(0, 2)


def random_vector(name: str, dtype: str = "float32") -> np.ndarray:
    return stream(SEED, name).standard_normal(N_PARAMETERS).astype(dtype)


@pytest.fixture
def actors() -> Iterator[LocalActors]:
    with LocalActors() as carrier:
        yield carrier


@pytest.fixture(params=[1, 2, 4])
def n_shards(request: pytest.FixtureRequest) -> int:
    n: int = request.param
    return n


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of one float32 block, so that shards have several."""
    monkeypatch.setattr(ranges_module, "PIECE_BYTES", 4 * BLOCK)


def asked(step: int | None = None, gradient: np.ndarray | None = None, **more: Any) -> Exchange:
    """What a replica asks for: the push of one mini-batch, a fetch, or both."""
    key = None if step is None else PushKey(LEASE, step, step)
    return Exchange("a", StepKey(LEASE, 0 if step is None else step + 1), key, gradient, **more)


def begin_updates(actors: LocalActors, n_shards: int, initial: np.ndarray) -> ParameterServer:
    server = deploy(actors, shard_ranges(N_PARAMETERS, n_shards), updates=UpdateSpec(SGD(1.0)))
    actors.caller.run(server.write(VALUES, initial))
    actors.caller.run(server.begin_updates())
    return server


@pytest.mark.usefixtures("small_pieces")
def test_vector_goes_out_and_comes_back(actors: LocalActors, n_shards: int) -> None:
    """A vector is cut into pieces, each sent once, and read back into the place where it is wanted."""
    server = deploy(actors, shard_ranges(N_PARAMETERS, n_shards))
    vector, into = random_vector("a"), np.empty(N_PARAMETERS, np.float32)
    actors.caller.run(server.write("a", vector))
    actors.caller.run(server.read("a", into))
    np.testing.assert_array_equal(into, vector)
    assert actors.calls == {"write": 4, "read": 4}


def test_few_pieces_of_a_shard_are_in_flight(actors: LocalActors, monkeypatch: pytest.MonkeyPatch) -> None:
    """Since nothing else limits what lies in a shard's queue, at most two pieces are under way to each."""
    monkeypatch.setattr(ranges_module, "PIECE_BYTES", 4 * BLOCK)
    server = deploy(actors, [range(0, 8 * BLOCK), range(8 * BLOCK, 16 * BLOCK)])
    in_flight, most = dict.fromkeys(("shard 0", "shard 1"), 0), 0
    serve = actors.send

    async def count(worker: str, message: Message) -> dict[str, Any]:
        nonlocal most
        actor = message.actor
        in_flight[actor] += 1
        most = max(most, *in_flight.values())
        await asyncio.sleep(0)
        try:
            return await serve(worker, message)
        finally:
            in_flight[actor] -= 1

    monkeypatch.setattr(server, "_caller", Caller(actors.loop, count))
    actors.caller.run(server.write("a", np.zeros(16 * BLOCK, np.float32)))
    assert most == 2


def test_scalars_do_not_depend_on_the_number_of_shards(actors: LocalActors) -> None:
    """Dot products, norm and penalty have the same bits over one, two and four shards, and arrive in order."""
    a, b = random_vector("a"), random_vector("b")
    answers = []
    for n_shards in (1, 2, 4):
        server = deploy(actors, shard_ranges(N_PARAMETERS, n_shards))
        for name, vector in (("a", a), ("b", b)):
            actors.caller.run(server.write(name, vector))
        answers.append(
            actors.caller.run(
                server.execute(
                    Combine("c", ((1.0, "a"), (0.1, "b"))),
                    Dot((("a", "b"), ("c", "c"))),
                    MaxNorm("c"),
                    SquaredPenalty("a"),
                )
            )
        )
    assert answers[0] == answers[1] == answers[2]
    c = a + np.float32(0.1) * b
    dots, norm, squares = answers[0]
    wide_a, wide_b, wide_c = (vector.astype(np.float64) for vector in (a, b, c))
    assert dots == pytest.approx([wide_a @ wide_b, wide_c @ wide_c], rel=1e-9)
    assert norm == [np.abs(c).max()]
    assert squares == pytest.approx([wide_a @ wide_a])


def test_step_of_owl_qn_does_not_depend_on_the_number_of_shards(actors: LocalActors) -> None:
    """Scalars and the trial point have the same bits over one, two and four shards, in one round of messages."""
    penalised = np.arange(N_PARAMETERS) % 1000 > 200
    run, answers, points = actors.caller.run, [], set()
    for n_shards in (1, 2, 4):
        server = deploy(actors, shard_ranges(N_PARAMETERS, n_shards), penalised=penalised)
        for name in ("x", "g", "squares"):
            run(server.write(name, np.square(random_vector(name)) if name == "squares" else random_vector(name)))
        actors.calls.clear()
        answers.append(
            run(
                server.execute(
                    FirstHessian("h0", "squares"),
                    PseudoGradient("v", "x", "g", 0.2),
                    Combine("d", ((-1.0, "g"),)),
                    Align("d", "v", "x"),
                    Dot((("d", "v"), ("d", "v", "h0"))),
                    ProjectedStep("trial", "x", "d", "v", 0.7),
                    Swap("x", "trial"),
                    Absolutes("x"),
                    MaxNorm("v"),
                )
            )
        )
        assert actors.calls == {"execute": n_shards}
        into = np.empty(N_PARAMETERS, np.float32)
        run(server.read("x", into))
        points.add(into.tobytes())
    assert answers[0] == answers[1] == answers[2]
    assert len(points) == 1
    [slopes, [magnitudes], _] = answers[0]
    assert slopes[0] < 0
    assert slopes[1] < 0
    point = np.frombuffer(points.pop(), np.float32)
    assert magnitudes == pytest.approx(np.abs(point[penalised]).sum(dtype=np.float64), rel=1e-9)


@pytest.mark.usefixtures("small_pieces")
def test_bytes_of_vectors_are_counted(actors: LocalActors, n_shards: int) -> None:
    """By direction, whatever the pieces; scalars and commands are not."""
    server = deploy(actors, shard_ranges(N_PARAMETERS, n_shards))
    vector, run = random_vector("x"), actors.caller.run
    n_bytes = vector.nbytes
    run(server.write("x", vector))
    assert (server.sent_bytes, server.received_bytes) == (n_bytes, 0)
    run(server.execute(BeginSum(1, "x", 2), Dot((("x", "x"),))))
    assert (server.sent_bytes, server.received_bytes) == (n_bytes, 0)
    run(server.read("x", np.empty_like(vector)))
    run(server.fetch(1, np.empty_like(vector)))
    assert (server.sent_bytes, server.received_bytes) == (n_bytes, 2 * n_bytes)
    run(server.add(1, Node(0, 1), vector))
    assert (server.sent_bytes, server.received_bytes) == (2 * n_bytes, 2 * n_bytes)


@pytest.mark.usefixtures("small_pieces")
def test_bytes_of_exchanges_are_counted(actors: LocalActors, n_shards: int) -> None:
    """Of a push, a fetch, and both in one message."""
    gradient, into = random_vector("g"), np.empty(N_PARAMETERS, np.float32)
    server = begin_updates(actors, n_shards, random_vector("x"))
    run, n_bytes, sent = actors.caller.run, gradient.nbytes, server.sent_bytes
    run(server.exchange(asked(0, gradient)))
    assert (server.sent_bytes - sent, server.received_bytes) == (n_bytes, 0)
    run(server.exchange(asked(into=into)))
    assert (server.sent_bytes - sent, server.received_bytes) == (n_bytes, n_bytes)
    run(server.exchange(asked(1, gradient, into=into)))
    assert (server.sent_bytes - sent, server.received_bytes) == (2 * n_bytes, 2 * n_bytes)


def test_what_was_refused_is_not_counted(actors: LocalActors) -> None:
    """A push into an evaluation that is over."""
    server, vector = deploy(actors, shard_ranges(N_PARAMETERS, 1)), random_vector("x")
    with pytest.raises(StaleError):
        actors.caller.run(server.add(1, Node(0, 0), vector))
    with pytest.raises(StaleError):
        actors.caller.run(server.fetch(1, vector))
    assert (server.sent_bytes, server.received_bytes) == (0, 0)


def test_nan_on_one_shard_is_not_hidden(actors: LocalActors) -> None:
    """The norm over all shards is NaN when one of them holds a NaN."""
    server = deploy(actors, shard_ranges(N_PARAMETERS, 2))
    vector = random_vector("a")
    vector[-1] = np.nan
    actors.caller.run(server.write("a", vector))
    [[norm]] = actors.caller.run(server.execute(MaxNorm("a")))
    assert math.isnan(norm)


def test_batch_of_commands_is_one_message_a_shard(actors: LocalActors) -> None:
    """However many commands, and batches are numbered so that the next one is run."""
    server = deploy(actors, shard_ranges(N_PARAMETERS, 2))
    actors.caller.run(server.write("a", np.ones(N_PARAMETERS, np.float32)))
    for factor in (2.0, 3.0):
        [[norm]] = actors.caller.run(server.execute(Combine("a", ((factor, "a"),)), MaxNorm("a")))
    assert norm == 6
    assert actors.calls["execute"] == 4


@pytest.mark.usefixtures("small_pieces")
def test_evaluation_over_shards(actors: LocalActors, n_shards: int) -> None:
    """Replicas fetch the parameters and push nodes; the gradient is the mean over rows, on any number of shards."""
    server = deploy(actors, shard_ranges(N_PARAMETERS, n_shards))
    x, into = random_vector("x"), np.empty(N_PARAMETERS, np.float32)
    units = [random_vector(f"unit {unit}") for unit in range(3)]
    run = actors.caller.run
    run(server.write("x", x))
    run(server.execute(BeginSum(1, "x", 3)))
    run(server.fetch(1, into))
    np.testing.assert_array_equal(into, x)
    run(server.add(1, Node(0, 2), units[2]))
    run(server.add(1, Node(1, 0), units[0] + units[1]))
    run(server.add(1, Node(0, 1), units[1]))
    run(server.execute(EndSum(1, "g", 30, 0.0)))
    run(server.read("g", into))
    np.testing.assert_array_equal(into, ((units[0] + units[1]) + units[2]) / np.float32(30))


@pytest.mark.usefixtures("small_pieces")
def test_exchange_pushes_and_fetches_in_one_message(actors: LocalActors, n_shards: int) -> None:
    """A push with a fetch is one message a piece, and gives the values after the push and the count of pushes."""
    x, gradient, into = random_vector("x"), random_vector("g"), np.empty(N_PARAMETERS, np.float32)
    server = begin_updates(actors, n_shards, x)
    run = actors.caller.run
    actors.calls.clear()
    assert run(server.exchange(asked(0, gradient, into=into))).versions == (1,) * 4
    assert actors.calls == {"exchange": 4}
    np.testing.assert_array_equal(into, x - gradient)
    assert run(server.exchange(asked(1, gradient))).versions == (2,) * 4
    assert run(server.exchange(asked(into=into))).versions == (2,) * 4
    np.testing.assert_array_equal(into, (x - gradient) - gradient)


@pytest.mark.usefixtures("small_pieces")
def test_lease_is_applied_as_far_as_every_shard_is(actors: LocalActors, n_shards: int) -> None:
    """A push that reached some shards only does not count; repeated, it brings the others up to it."""
    x, gradient = random_vector("x"), random_vector("g")
    server = begin_updates(actors, n_shards, x)
    run = actors.caller.run
    assert run(server.applied(LEASE)) == -1
    run(server.exchange(asked(0, gradient)))
    first = server.directory.shards[0]
    arguments = (0, "a", StepKey(LEASE, 2), PushKey(LEASE, 1, 1), 0, 0, BLOCK, gradient[:BLOCK], None, False)
    run(actors.caller.call(first, "exchange", *arguments))
    assert run(server.applied(LEASE)) == 0
    run(server.exchange(asked(1, gradient)))
    assert run(server.applied(LEASE)) == 1
    into = np.empty_like(x)
    run(server.read(VALUES, into))
    np.testing.assert_array_equal(into, (x - gradient) - gradient)


@pytest.mark.usefixtures("small_pieces")
def test_saved_server_goes_on_exactly(actors: LocalActors, n_shards: int) -> None:
    """Values, state and marks of all pieces go to new shards, which drop what was pushed before the save."""
    spans, run = shard_ranges(N_PARAMETERS, n_shards), actors.caller.run
    updates = UpdateSpec(Adagrad(0.1))
    server = deploy(actors, spans, updates=updates)
    gradient, into = random_vector("g"), np.empty(N_PARAMETERS, np.float32)
    run(server.write(VALUES, random_vector("x")))
    run(server.begin_updates())
    run(server.exchange(asked(0, gradient)))
    received = server.received_bytes
    saved = run(server.save())
    # Values and one vector of state.
    assert server.received_bytes - received == 2 * gradient.nbytes
    assert sorted(saved) == [0, BLOCK, 2 * BLOCK, 3 * BLOCK]
    run(server.exchange(asked(1, gradient, into=into)))
    successor = deploy(actors, spans, generation=1, updates=updates)
    run(successor.restore(saved))
    assert successor.sent_bytes == 2 * gradient.nbytes
    assert run(successor.applied(LEASE)) == 0
    run(successor.exchange(asked(0, gradient)))
    again = np.empty_like(into)
    run(successor.exchange(asked(1, gradient, into=again)))
    np.testing.assert_array_equal(again, into)
    run(successor.forget_marks(Finished(0, frozenset([LEASE]))))
    assert run(successor.applied(LEASE)) == -1


def test_error_of_one_shard_goes_through(actors: LocalActors) -> None:
    """What a shard refuses reaches whoever asked, and one that is unknown counts as lost."""
    directory = deploy(actors, shard_ranges(N_PARAMETERS, 2)).directory
    stale = ParameterServer(dataclasses.replace(directory, generation=9), actors.caller)
    with pytest.raises(StaleError, match="generation 9"):
        actors.caller.run(stale.execute(MaxNorm("a")))
    del actors.actors["shard 1"]
    server = ParameterServer(directory, actors.caller)
    with pytest.raises(ActorLostError, match="shard 1 on tcp://local"):
        actors.caller.run(server.write("a", random_vector("a")))


@pytest.mark.usefixtures("small_pieces")
def test_sparse_exchange_over_shards(actors: LocalActors, n_shards: int) -> None:
    """Compact vectors both ways, cut at the borders of pieces; only their bytes travel."""
    x, run = random_vector("x"), actors.caller.run
    server = begin_updates(actors, n_shards, x)
    pushed = Selection(np.array([[5, 9], [BLOCK - 2, BLOCK + 3], [3 * BLOCK, 3 * BLOCK + 77]]))
    wanted = Selection(np.array([[0, 7], [BLOCK + 2, 2 * BLOCK + 1]]))
    compact, into = pushed.take(random_vector("g")), np.empty(wanted.n_elements, np.float32)
    sent = server.sent_bytes
    done = run(server.exchange(asked(0, compact, push_selection=pushed, into=into, fetch_selection=wanted)))
    expected = x.copy()
    pushed.put(pushed.take(x) - compact, expected)
    np.testing.assert_array_equal(into, wanted.take(expected))
    everything = np.empty_like(x)
    run(server.read(VALUES, everything))
    np.testing.assert_array_equal(everything, expected)
    assert (done.pushed_bytes, done.fetched_bytes) == (compact.nbytes, into.nbytes)
    assert server.sent_bytes - sent == compact.nbytes
    # A piece of which nothing was pushed has had an update all the same.
    assert done.versions == (1,) * server.n_pieces


@pytest.mark.usefixtures("small_pieces")
def test_bases_go_to_their_pieces(actors: LocalActors, n_shards: int) -> None:
    """Each piece counts by its own number of updates; shards tell of theirs, in order."""
    server, run = begin_updates(actors, n_shards, random_vector("x")), actors.caller.run
    gradient = random_vector("g")
    for step in range(3):
        run(server.exchange(asked(step, gradient, bases=(step,) * 4)))
    run(server.exchange(asked(3, gradient, bases=(0, 1, 2, 3))))
    counts = run(server.counts())
    assert [each.shard for each in counts] == list(range(n_shards))
    assert sum(sum(each.staleness[age] for each in counts) for age in (1, 2, 3)) == 3
    assert sum(each.staleness[0] for each in counts) == 3 * 4 + 1


def test_logs_come_by_piece(actors: LocalActors) -> None:
    """In the order of the whole vector, each exchange told once."""
    updates = UpdateSpec(SGD(1.0), is_recorded=True)
    server, run = deploy(actors, shard_ranges(N_PARAMETERS, 2), updates=updates), actors.caller.run
    run(server.write(VALUES, random_vector("x")))
    run(server.begin_updates())
    run(server.exchange(asked(0, random_vector("g"))))
    logs = run(server.take_logs())
    assert [[(each.replica, each.first, each.last, each.is_taken) for each in log] for log in logs] == [
        [("a", 0, 0, True)]
    ] * 2
    assert run(server.take_logs()) == [[], []]
