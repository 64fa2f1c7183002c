"""All shards as one vector: what is sent where, and scalars that do not depend on the number of shards."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from dask_belief.binary_tree import Node
from dask_belief.cluster.actors import ActorAddress, Caller, Message
from dask_belief.cluster.limits import Limits, limited_by
from dask_belief.errors import ActorLostError, OldDirectoryError, StaleError
from dask_belief.optim.rules import SGD
from dask_belief.parameter_server import client as client_module
from dask_belief.parameter_server import ranges as ranges_module
from dask_belief.parameter_server.client import ParameterServer
from dask_belief.parameter_server.consistency import Staleness, Synchronous
from dask_belief.parameter_server.directory import Directory
from dask_belief.parameter_server.exchange import Exchange
from dask_belief.parameter_server.messages import (
    Absolutes,
    Align,
    BeginSum,
    Combine,
    Dot,
    EndSum,
    FirstHessian,
    LeaseKey,
    MaxNorm,
    ProjectedStep,
    PseudoGradient,
    PushKey,
    Round,
    SquaredPenalty,
    StepKey,
    Swap,
)
from dask_belief.parameter_server.ranges import BLOCK, shard_ranges
from dask_belief.parameter_server.selection import Selection
from dask_belief.parameter_server.shard import Shard, ShardSpec
from dask_belief.parameter_server.updates import VALUES, UpdateSpec
from dask_belief.seeds import stream
from tests.parameter_server.local_actors import LocalActors, deploy, replaced

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


def asked(
    step: int | None = None, gradient: np.ndarray | None = None, lease: LeaseKey = LEASE, **more: Any
) -> Exchange:
    """What a replica asks for: the push of one mini-batch, a fetch, or both."""
    key = None if step is None else PushKey(lease, step, step)
    return Exchange("a", StepKey(lease, 0 if step is None else step + 1), key, gradient, **more)


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


# A newer directory.

LIMIT_SECONDS = 20.0


class Hub:
    """Knows the newest directory, and tells it to whoever asks for a newer one; notes how often it was asked."""

    def __init__(self) -> None:
        self.newest: Directory | None = None
        self.asked: list[int] = []
        self.most_at_once = 0
        self.error: Exception | None = None
        self._at_once = 0
        self.is_asked = threading.Event()

    async def renew(self, known: int) -> Directory | None:
        self.asked.append(known)
        self.is_asked.set()
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            # As long as a question is held open: a moment.
            await asyncio.sleep(0.002)
        finally:
            self._at_once -= 1
        if self.error is not None:
            raise self.error
        return self.newest if self.newest is not None and self.newest.generation > known else None


@pytest.fixture
def hub() -> Hub:
    return Hub()


def replica_of(server: ParameterServer, actors: LocalActors, hub: Hub) -> ParameterServer:
    return ParameterServer(server.directory, actors.caller, hub.renew)


def values_of(server: ParameterServer, actors: LocalActors) -> np.ndarray:
    into = np.empty(server.directory.n_parameters, np.float32)
    actors.caller.run(server.read(VALUES, into))
    return into


def make_anew(actors: LocalActors, hub: Hub, server: ParameterServer, lost: int, values: np.ndarray) -> None:
    """What the driver does: another shard, filled, and a newer directory."""
    directory = server.directory
    server.directory = replaced(actors, directory, lost, UpdateSpec(SGD(1.0)))
    actors.caller.run(server.write(VALUES, values, [lost]))
    actors.caller.run(server.begin_updates([lost], is_behind=True))
    hub.newest = server.directory


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("lost", [0, 1])
def test_exchange_is_sent_again_to_the_shard_that_was_made_anew(actors: LocalActors, hub: Hub, lost: int) -> None:
    """The others had it already, or get it twice, and apply it once."""
    x, gradient, into = random_vector("x"), random_vector("g"), np.empty(N_PARAMETERS, np.float32)
    server = begin_updates(actors, 2, x)
    replica = replica_of(server, actors, hub)
    # Known as lost by a connection that breaks.
    del actors.actors[server.directory.shards[lost].key]
    sent = actors.caller.start(replica.exchange(asked(0, gradient, into=into)))
    assert hub.is_asked.wait(LIMIT_SECONDS)
    make_anew(actors, hub, server, lost, x)
    assert sent.result(LIMIT_SECONDS).versions == (1,) * 4
    np.testing.assert_array_equal(into, x - gradient)
    np.testing.assert_array_equal(values_of(server, actors), x - gradient)
    assert replica.directory == server.directory
    # Asked by the newer directory, nobody is asked for one.
    hub.asked.clear()
    actors.caller.run(replica.exchange(asked(1, gradient)))
    assert hub.asked == []


@pytest.mark.usefixtures("small_pieces")
def test_replica_that_has_not_heard_is_told_by_any_shard(actors: LocalActors, hub: Hub) -> None:
    """One that lives on refuses the older directory: nothing is applied by way of it, and then all of it, once."""
    x, gradient = random_vector("x"), random_vector("g")
    server = begin_updates(actors, 2, x)
    replica = replica_of(server, actors, hub)
    lost = server.directory.shards[1].key
    late = actors.actors[lost]
    make_anew(actors, hub, server, 1, x)
    # The old one answers still: its worker was cut off from the scheduler only.
    actors.actors[lost] = late
    actors.caller.run(replica.exchange(asked(0, gradient)))
    actors.caller.run(replica.exchange(asked(0, gradient)))
    assert server.directory.generation == replica.directory.generation == 1
    actors.caller.run(replica.exchange(asked(1, gradient)))
    np.testing.assert_array_equal(values_of(server, actors)[:BLOCK], ((x - gradient) - gradient)[:BLOCK])


@pytest.mark.usefixtures("small_pieces")
def test_calls_that_fail_together_ask_once(actors: LocalActors, hub: Hub) -> None:
    """One question is under way at a time, and what it brings serves all."""
    x, gradient = random_vector("x"), random_vector("g")
    server = begin_updates(actors, 2, x)
    replica = replica_of(server, actors, hub)
    make_anew(actors, hub, server, 0, x)

    async def together() -> None:
        await asyncio.gather(*(replica.exchange(asked(0, gradient, lease=LeaseKey(0, n))) for n in range(5)))

    actors.caller.run(together())
    assert (hub.asked, hub.most_at_once) == ([0], 1)
    assert actors.caller.run(server.counts())[0].n_updates == 5


@pytest.mark.parametrize("is_renewed", [True, False], ids=["renewed", "slow only"])
def test_call_that_hangs_is_given_up_for_a_newer_directory(
    actors: LocalActors, hub: Hub, monkeypatch: pytest.MonkeyPatch, is_renewed: bool
) -> None:
    """And for nothing else: without one it is waited for, and made once."""
    monkeypatch.setattr(client_module, "NEWS_SECONDS", 0.001)
    x, into = random_vector("x"), np.empty(N_PARAMETERS, np.float32)
    server = begin_updates(actors, 2, x)
    replica, caller, goes_on = replica_of(server, actors, hub), actors.caller, asyncio.Event()
    frozen = server.directory.shards[0].key
    given_up = threading.Event()
    n_sent = 0

    async def send(worker: str, message: Message) -> dict[str, Any]:
        nonlocal n_sent
        if message.actor == frozen and message.function == "exchange":
            n_sent += 1
            try:
                await goes_on.wait()
            except asyncio.CancelledError:
                given_up.set()
                raise
        return await actors.send(worker, message)

    monkeypatch.setattr(replica, "_caller", Caller(actors.loop, send))
    sent = caller.start(replica.exchange(asked(0, random_vector("g"), into=into)))
    assert hub.is_asked.wait(LIMIT_SECONDS)
    if is_renewed:
        make_anew(actors, hub, server, 0, x)
    else:
        while len(hub.asked) < 3:
            assert not sent.done()
            hub.is_asked.clear()
            assert hub.is_asked.wait(LIMIT_SECONDS)
        actors.loop.call_soon_threadsafe(goes_on.set)
    assert sent.result(LIMIT_SECONDS).versions == (1,) * server.n_pieces
    np.testing.assert_array_equal(into, x - random_vector("g"))
    assert given_up.is_set() == is_renewed
    assert n_sent == 1


def test_loss_is_raised_when_no_newer_directory_comes(actors: LocalActors, hub: Hub) -> None:
    """Within the limit of a call: what was lost is named, and nothing is left under way."""
    server = begin_updates(actors, 2, random_vector("x"))
    replica = replica_of(server, actors, hub)
    del actors.actors["shard 1"]
    with limited_by(Limits(call_seconds=0.02)), pytest.raises(ActorLostError, match="shard 1 on tcp://local"):
        actors.caller.run(replica.exchange(asked(0, random_vector("g"))))
    assert len(hub.asked) >= 1
    assert set(hub.asked) == {0}


@pytest.mark.parametrize("error", [StaleError("counted out"), ActorLostError("the hub is lost")])
def test_error_of_the_hub_ends_the_wait(actors: LocalActors, hub: Hub, error: Exception) -> None:
    """A replica that is counted out, or whose hub is lost, is told of no shards."""
    server = begin_updates(actors, 2, random_vector("x"))
    replica = replica_of(server, actors, hub)
    del actors.actors["shard 1"]
    hub.error = error
    with pytest.raises(type(error), match=str(error)):
        actors.caller.run(replica.exchange(asked(0, random_vector("g"))))


def test_what_a_shard_refuses_is_not_sent_again(actors: LocalActors, hub: Hub) -> None:
    """A gap stays a gap by any directory."""
    server = begin_updates(actors, 2, random_vector("x"))
    replica = replica_of(server, actors, hub)
    with pytest.raises(StaleError, match="there is a gap"):
        actors.caller.run(replica.exchange(asked(4, random_vector("g"))))
    assert hub.asked == []
    assert actors.calls["exchange"] == 2


def test_driver_is_told_of_a_loss_at_once(actors: LocalActors) -> None:
    """It makes newer directories, and waits for none."""
    server = begin_updates(actors, 2, random_vector("x"))
    actors.actors["shard 1"].adopt(1)
    with pytest.raises(OldDirectoryError):
        actors.caller.run(server.counts())
    server = begin_updates(actors, 2, random_vector("x"))
    del actors.actors["shard 0"]
    with pytest.raises(ActorLostError, match="shard 0"):
        actors.caller.run(server.counts())


@pytest.mark.usefixtures("small_pieces")
def test_gradient_of_an_evaluation_is_added_once_by_either_directory(actors: LocalActors, hub: Hub) -> None:
    """A shard that moved while its sum was open has none: the push into it is refused, and the others count it once."""
    server = deploy(actors, shard_ranges(N_PARAMETERS, 2))
    replica, x, run = replica_of(server, actors, hub), random_vector("x"), actors.caller.run
    run(server.write("x", x))
    run(server.execute(BeginSum(1, "x", 1)))
    hub.newest = server.directory = replaced(actors, server.directory, 1)
    with pytest.raises(StaleError, match="no evaluation is under way"):
        run(replica.add(1, Node(0, 0), x))
    # All begin anew, and go on by the newer directory.
    run(server.write("x", x))
    run(server.execute(BeginSum(2, "x", 1)))
    run(replica.add(2, Node(0, 0), x))
    run(replica.add(2, Node(0, 0), x))
    run(server.execute(EndSum(2, "g", 1, 0.0)))
    into = np.empty_like(x)
    run(server.read("g", into))
    np.testing.assert_array_equal(into, x)


def test_gradient_is_copied_for_a_shard_that_moved_into_this_process(hub: Hub) -> None:
    """The replica uses its memory again, and the shard keeps what it is given."""
    with LocalActors(copies=False) as actors:
        server = deploy(actors, [range(0, N_PARAMETERS)])
        elsewhere = dataclasses.replace(server.directory.shards[0], worker="tcp://elsewhere", key="lost")
        older = dataclasses.replace(server.directory, shards=(elsewhere,))
        run, vector = actors.caller.run, random_vector("g")
        server.directory = hub.newest = dataclasses.replace(server.directory, generation=1)
        actors.actors["shard 0"].adopt(1)
        caller = Caller(actors.loop, actors.send, own_address="inproc://local")
        replica, gradient = ParameterServer(older, caller, hub.renew), vector.copy()
        run(server.write("x", vector))
        run(server.execute(BeginSum(1, "x", 1)))
        run(replica.add(1, Node(0, 0), gradient))
        gradient[:] = np.nan
        run(server.execute(EndSum(1, "g", 1, 0.0)))
        into = np.empty_like(vector)
        run(server.read("g", into))
    np.testing.assert_array_equal(into, vector)


# Copies.


def with_copies(
    actors: LocalActors, n_shards: int, x: np.ndarray, staleness: Staleness | None = None
) -> ParameterServer:
    """Shards and a copy of each, with the same values."""
    updates = UpdateSpec(SGD(1.0), staleness=staleness)
    server = deploy(actors, shard_ranges(N_PARAMETERS, n_shards), updates=updates)
    directory, copies = server.directory, []
    for index, span in enumerate(directory.ranges):
        spec = ShardSpec(0, index, span, N_PARAMETERS, "float32", updates=updates)
        copies.append(actors.register(f"copy of shard {index}", Shard(spec)))
    for shards in (tuple(copies), directory.shards):
        server.directory = dataclasses.replace(directory, shards=shards)
        actors.caller.run(server.write(VALUES, x))
        actors.caller.run(server.begin_updates())
    server.directory = dataclasses.replace(directory, copies=tuple(copies))
    return server


def of_copies(server: ParameterServer) -> Directory:
    """As if all copies had taken the place of their shards."""
    copies = tuple(copy for copy in server.directory.copies if copy is not None)
    return dataclasses.replace(server.directory, shards=copies, copies=())


@pytest.mark.usefixtures("small_pieces")
def test_push_goes_to_shard_and_copy_and_fetch_to_the_shard(actors: LocalActors, n_shards: int) -> None:
    """Values are the shard's, and so are the numbers of updates, by which staleness is told."""
    x, gradient, into = random_vector("x"), random_vector("g"), np.empty(N_PARAMETERS, np.float32)
    server, run = with_copies(actors, n_shards, x), actors.caller.run
    # The copies have had one update more.
    run(ParameterServer(of_copies(server), actors.caller).exchange(asked(0, gradient, lease=LeaseKey(0, 9))))
    actors.calls.clear()
    assert run(server.exchange(asked(0, gradient, into=into))).versions == (1,) * 4
    assert actors.calls == {"exchange": 8}
    np.testing.assert_array_equal(into, x - gradient)
    assert run(server.exchange(asked(into=into))).versions == (1,) * 4
    assert actors.calls == {"exchange": 12}
    server.directory = of_copies(server)
    np.testing.assert_array_equal(values_of(server, actors), (x - gradient) - gradient)


def test_push_is_done_when_both_have_it(actors: LocalActors, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before the copy has answered."""
    server, goes_on, is_sent = with_copies(actors, 1, random_vector("x")), asyncio.Event(), threading.Event()

    async def send(worker: str, message: Message) -> dict[str, Any]:
        if message.actor.startswith("copy"):
            is_sent.set()
            await goes_on.wait()
        return await actors.send(worker, message)

    monkeypatch.setattr(server, "_caller", Caller(actors.loop, send))
    sent = actors.caller.start(server.exchange(asked(0, random_vector("g"))))
    assert is_sent.wait(LIMIT_SECONDS)
    # Others come through meanwhile, and this one does not.
    for _ in range(5):
        actors.caller.run(server.counts())
    assert not sent.done()
    actors.loop.call_soon_threadsafe(goes_on.set)
    assert sent.result(LIMIT_SECONDS).versions == (1,)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("lost", ["shard", "copy"])
def test_nothing_is_lost_or_doubled_when_one_of_two_goes(actors: LocalActors, hub: Hub, lost: str) -> None:
    """The push that was under way is sent again to the one that is left."""
    x, gradient, into = random_vector("x"), random_vector("g"), np.empty(N_PARAMETERS, np.float32)
    server, run = with_copies(actors, 2, x), actors.caller.run
    replica, directory = replica_of(server, actors, hub), server.directory
    run(replica.exchange(asked(0, gradient)))
    first, copy = directory.shards[0], directory.copies[0]
    assert copy is not None
    gone, stays = (first, copy) if lost == "shard" else (copy, first)
    del actors.actors[gone.key]
    sent = actors.caller.start(replica.exchange(asked(1, gradient, into=into)))
    assert hub.is_asked.wait(LIMIT_SECONDS)
    newer = dataclasses.replace(
        directory, generation=1, shards=(stays, directory.shards[1]), copies=(None, directory.copies[1])
    )
    for actor in newer.actors:
        actors.actors[actor.key].adopt(1)
    hub.newest = server.directory = newer
    assert sent.result(LIMIT_SECONDS).versions == (2,) * 4
    np.testing.assert_array_equal(into, (x - gradient) - gradient)
    np.testing.assert_array_equal(values_of(server, actors), into)


def test_round_is_closed_on_shard_and_copy(actors: LocalActors) -> None:
    """By whoever names it, a fetch without a push too."""
    x, gradient, into = random_vector("x"), random_vector("g"), np.empty(N_PARAMETERS, np.float32)
    server, run = with_copies(actors, 2, x, Synchronous()), actors.caller.run
    run(server.exchange(asked(0, gradient)))
    closed = Round(0, (PushKey(LEASE, 0, 0),), ())
    run(server.exchange(dataclasses.replace(asked(into=into), closed=closed)))
    np.testing.assert_array_equal(into, x - gradient)
    server.directory = of_copies(server)
    np.testing.assert_array_equal(values_of(server, actors), into)


# The directory itself.


def test_directory_tells_of_its_actors_and_pieces() -> None:
    """Copies among them where there are any, and pieces that begin at cuts."""
    shards = tuple(ActorAddress(f"shard {index}", "tcp://w", f"s{index}") for index in range(2))
    copy = ActorAddress("copy of shard 1", "tcp://v", "c1")
    ranges = (range(0, BLOCK), range(BLOCK, 3 * BLOCK))
    plain = Directory(0, 3 * BLOCK, "float32", shards, ranges)
    assert (plain.actors, plain.copy_of(1), plain.pieces(1)) == (shards, None, (ranges[1],))
    directory = dataclasses.replace(plain, copies=(None, copy), cuts=(0, 2 * BLOCK))
    assert directory.actors == (*shards, copy)
    assert (directory.copy_of(0), directory.copy_of(1)) == (None, copy)
    assert directory.pieces(0) == (ranges[0],)
    assert directory.pieces(1) == (range(BLOCK, 2 * BLOCK), range(2 * BLOCK, 3 * BLOCK))
