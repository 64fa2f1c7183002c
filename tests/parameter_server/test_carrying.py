"""What errands carry, with shards in this process: to a keeper or a checkpoint and back, over other borders."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client

from dask_belief.checkpoint import CheckpointStore, Part, SavedState
from dask_belief.cluster.actors import ActorAddress, ActorHost, Caller
from dask_belief.cluster.limits import Limits
from dask_belief.errors import ActorLostError, CallTimeoutError, CheckpointError, StaleError
from dask_belief.optim.rules import SGD, Adagrad
from dask_belief.parameter_server.carrying import (
    Carried,
    End,
    Errands,
    Fill,
    FillUpdates,
    HandOver,
    InCheckpoint,
    Keepers,
    PlaceSpec,
    Save,
)
from dask_belief.parameter_server.client import ParameterServer
from dask_belief.parameter_server.directory import Directory
from dask_belief.parameter_server.exchange import Exchange
from dask_belief.parameter_server.keeper import Keeper
from dask_belief.parameter_server.messages import Finished, LeaseKey, PushKey, StepKey
from dask_belief.parameter_server.ranges import BLOCK, pieces, shard_ranges
from dask_belief.parameter_server.shard import Shard, ShardSpec
from dask_belief.parameter_server.updates import VALUES, UpdateSpec
from dask_belief.seeds import stream
from tests.parameter_server.local_actors import LocalActors, deploy

SEED = 72
N_PARAMETERS = 5 * BLOCK + 31
LEASE = LeaseKey(0, 4)
DTYPES = ["float32", "float64"]


def vector(name: str, dtype: str = "float32") -> np.ndarray:
    return stream(SEED, name).standard_normal(N_PARAMETERS).astype(dtype)


@pytest.fixture
def actors() -> Iterator[LocalActors]:
    with LocalActors() as carrier:
        yield carrier


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    store = CheckpointStore(tmp_path / "run")
    store.prepare()
    return store


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks of float32, or one of float64."""
    monkeypatch.setattr("dask_belief.parameter_server.ranges.PIECE_BYTES", 8 * BLOCK)


def ends(server: ParameterServer) -> list[End]:
    directory = server.directory
    return [
        End(shard, directory.generation, directory.ranges[index].start, directory.pieces(index))
        for index, shard in enumerate(directory.shards)
    ]


def keepers(actors: LocalActors, server: ParameterServer) -> Keepers:
    """One for each shard."""
    of_piece: dict[int, ActorAddress] = {}
    for index, end in enumerate(ends(server)):
        keeper = actors.register(f"keeper {index}", Keeper())
        of_piece |= {piece.start: keeper for piece in end.pieces}
    return Keepers(of_piece)


def tied(carried: Sequence[Carried], number: int = 3, state: Mapping[str, Any] | None = None) -> SavedState:
    names = sorted({name for each in carried for name in each.vectors})
    vectors = {name: tuple(part for each in carried for part in each.vectors[name]) for name in names}
    return SavedState(number, vectors, state or {})


def read(server: ParameterServer, actors: LocalActors, name: str) -> np.ndarray:
    into = np.empty(N_PARAMETERS, server.directory.dtype)
    actors.caller.run(server.read(name, into))
    return into


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_kept", [True, False], ids=["keepers", "checkpoint"])
def test_vectors_come_back_to_the_bit(actors: LocalActors, store: CheckpointStore, dtype: str, is_kept: bool) -> None:
    """NaN and infinity too, each under the name that it gets; what is not asked for is not carried."""
    server = deploy(actors, shard_ranges(N_PARAMETERS, 2), dtype=dtype)
    x, g = vector("x", dtype), vector("g", dtype)
    x[[0, BLOCK, -1]] = np.nan, np.inf, -0.0
    for name, values in (("held:x", x), ("g", g), ("other", g)):
        actors.caller.run(server.write(name, values))
    place: PlaceSpec = keepers(actors, server) if is_kept else InCheckpoint(store)
    names = (("held:x", "x@3"), ("g", "g@3"))
    carried = [Save(end, place, Limits(), names).run(actors.caller) for end in ends(server)]
    saved = tied(carried)
    assert set(saved.vectors) == {"x@3", "g@3"}
    assert sum(each.n_bytes for each in carried) == x.nbytes + g.nbytes
    # What becomes of the shards later does not matter.
    actors.caller.run(server.write("held:x", g))
    filled = deploy(actors, shard_ranges(N_PARAMETERS, 2), dtype=dtype)
    for end in ends(filled):
        Fill(end, place, Limits(), saved, (("x@3", "x"), ("g@3", "g"))).run(actors.caller)
    assert read(filled, actors, "x").tobytes() == x.tobytes()
    assert read(filled, actors, "g").tobytes() == g.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (2, 3), (3, 2), (5, 4)])
def test_other_shards_are_filled_from_the_same_parts(
    actors: LocalActors, store: CheckpointStore, dtype: str, before: int, after: int
) -> None:
    """Borders of shards and pieces need not meet."""
    server = deploy(actors, shard_ranges(N_PARAMETERS, before), dtype=dtype)
    x, place = vector("x", dtype), InCheckpoint(store)
    actors.caller.run(server.write("x", x))
    saved = tied([Save(end, place, Limits(), (("x", "x@3"),)).run(actors.caller) for end in ends(server)])
    filled = deploy(actors, shard_ranges(N_PARAMETERS, after), dtype=dtype)
    for end in ends(filled):
        Fill(end, place, Limits(), saved, (("x@3", "held:x@3"),)).run(actors.caller)
    assert read(filled, actors, "held:x@3").tobytes() == x.tobytes()


def exchange(server: ParameterServer, actors: LocalActors, step: int, gradient: np.ndarray) -> np.ndarray:
    into = np.empty(N_PARAMETERS, server.directory.dtype)
    push = PushKey(LEASE, step, step)
    actors.caller.run(server.exchange(Exchange("a", StepKey(LEASE, step + 1), push, gradient, into=into)))
    return into


def of_updates(actors: LocalActors, n_shards: int, dtype: str, cuts: tuple[int, ...] = ()) -> ParameterServer:
    server = deploy(actors, shard_ranges(N_PARAMETERS, n_shards), dtype=dtype, updates=UpdateSpec(Adagrad(0.1)))
    return ParameterServer(dataclasses.replace(server.directory, cuts=cuts), actors.caller)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (1, 3), (3, 1), (2, 3), (5, 2)])
def test_updates_go_on_exactly_on_other_shards(
    actors: LocalActors, store: CheckpointStore, dtype: str, before: int, after: int
) -> None:
    """Values, state of the rule, numbers of updates and marks: what was pushed is dropped, what comes is the same."""
    server, run = of_updates(actors, before, dtype), actors.caller.run
    gradient = vector("g", dtype)
    run(server.write(VALUES, vector("x", dtype)))
    run(server.begin_updates())
    exchange(server, actors, 0, gradient)
    place = InCheckpoint(store)
    carried = [Save(end, place, Limits(), number=7).run(actors.caller) for end in ends(server)]
    saved = tied(carried, 7)
    notes = {start: note for each in carried for start, note in each.notes.items()}
    expected = exchange(server, actors, 1, gradient)
    successor = of_updates(actors, after, dtype, tuple(sorted(notes)))
    for end in ends(successor):
        FillUpdates(end, place, Limits(), saved, 7, notes, is_behind=False).run(actors.caller)
    assert run(successor.applied(LEASE)) == 0
    # Sent once more: dropped, on every piece.
    exchange(successor, actors, 0, gradient)
    assert exchange(successor, actors, 1, gradient).tobytes() == expected.tobytes()
    counts = run(successor.counts())
    assert {each.n_updates for each in counts} == {2}
    assert sum(each.n_lost for each in counts) == 0


@pytest.mark.parametrize("is_behind", [True, False])
def test_shard_that_is_filled_alone_is_behind_the_others(actors: LocalActors, is_behind: bool) -> None:
    """What it lacks is lost, where it is told that it is behind; else a gap is refused."""
    server, run = of_updates(actors, 2, "float32"), actors.caller.run
    run(server.write(VALUES, vector("x")))
    run(server.begin_updates())
    place = keepers(actors, server)
    carried = [Save(end, place, Limits(), number=1).run(actors.caller) for end in ends(server)]
    exchange(server, actors, 0, vector("g"))
    lost = server.directory.ranges[1]
    spec = ShardSpec(0, 1, lost, N_PARAMETERS, "float32", updates=UpdateSpec(Adagrad(0.1)))
    actors.register("shard 1", Shard(spec))
    notes = {start: note for each in carried for start, note in each.notes.items()}
    FillUpdates(ends(server)[1], place, Limits(), tied(carried, 1), 1, notes, is_behind).run(actors.caller)
    if not is_behind:
        with pytest.raises(StaleError, match="there is a gap"):
            exchange(server, actors, 1, vector("g"))
        return
    exchange(server, actors, 1, vector("g"))
    assert [each.n_lost for each in run(server.counts())] == [0, 1]
    assert run(server.applied(LEASE)) == 1


def test_part_that_is_not_as_it_was_is_refused(actors: LocalActors, store: CheckpointStore) -> None:
    """A shard is never filled with other values than those that were saved."""
    server, place = deploy(actors, shard_ranges(N_PARAMETERS, 1)), InCheckpoint(store)
    actors.caller.run(server.write("x", vector("x")))
    [end] = ends(server)
    saved = tied([Save(end, place, Limits(), (("x", "x@3"),)).run(actors.caller)])
    first, second, *more = saved.vectors["x@3"]
    wrong = Part(first.start, first.stop, second.digest)
    with pytest.raises(CheckpointError):
        Fill(end, place, Limits(), SavedState(3, {"x@3": (wrong, second, *more)}, {}), (("x@3", "y"),)).run(
            actors.caller
        )


def test_part_that_a_keeper_lacks_is_an_error(actors: LocalActors) -> None:
    """It was dropped, or the keeper is another one by now."""
    server = deploy(actors, shard_ranges(N_PARAMETERS, 1))
    place = keepers(actors, server)
    actors.caller.run(server.write("x", vector("x")))
    [end] = ends(server)
    saved = tied([Save(end, place, Limits(), (("x", "x@3"),)).run(actors.caller)])
    actors.actors["keeper 0"].keep([])
    with pytest.raises(StaleError, match="no part of 'x@3'"):
        Fill(end, place, Limits(), saved, (("x@3", "y"),)).run(actors.caller)


def twin(actors: LocalActors, end: End, server: ParameterServer, updates: UpdateSpec | None) -> End:
    """An empty shard of the same range."""
    directory = server.directory
    spec = ShardSpec(1, 0, directory.ranges[0], N_PARAMETERS, directory.dtype, updates=updates)
    return End(actors.register("twin", Shard(spec)), 1, end.start, end.pieces)


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_are_handed_over(actors: LocalActors, dtype: str) -> None:
    """Those that are named."""
    server = deploy(actors, shard_ranges(N_PARAMETERS, 2), dtype=dtype)
    for name in ("x", "g", "trial"):
        actors.caller.run(server.write(name, vector(name, dtype)))
    end = ends(server)[0]
    target = twin(actors, end, server, None)
    HandOver(end, target, Limits(), ("x", "g")).run(actors.caller)
    new, span = actors.actors["twin"], server.directory.ranges[0]
    assert new.names(1) == ["x", "g"]
    for name in ("x", "g"):
        expected = vector(name, dtype)[span.start : span.stop]
        assert new.read(1, name, 0, len(span)).tobytes() == expected.tobytes()


def test_updates_are_handed_over(actors: LocalActors) -> None:
    """With marks, and with the leases whose marks are forgotten: nothing is applied twice by the new shard."""
    updates = UpdateSpec(SGD(1.0))
    server = deploy(actors, shard_ranges(N_PARAMETERS, 1), updates=updates)
    actors.caller.run(server.write(VALUES, vector("x")))
    actors.caller.run(server.begin_updates())
    exchange(server, actors, 0, vector("g"))
    done = LeaseKey(0, 0)
    gradient = vector("g")
    push = Exchange("a", StepKey(done, 1), PushKey(done, 0, 0), gradient)
    actors.caller.run(server.exchange(push))
    actors.caller.run(server.forget_marks(Finished(0, frozenset([done]))))
    [end] = ends(server)
    target = twin(actors, end, server, updates)
    HandOver(end, target, Limits()).run(actors.caller)
    directory = server.directory
    moved = ParameterServer(Directory(1, N_PARAMETERS, "float32", (target.actor,), directory.ranges), actors.caller)
    before = read(moved, actors, VALUES)
    assert before.tobytes() == read(server, actors, VALUES).tobytes()
    exchange(moved, actors, 0, gradient)
    actors.caller.run(moved.exchange(push))
    assert read(moved, actors, VALUES).tobytes() == before.tobytes()


def test_fenced_shard_is_read_by_its_new_generation_only(actors: LocalActors) -> None:
    """An errand that was sent before the shard was fenced carries nothing."""
    server = deploy(actors, shard_ranges(N_PARAMETERS, 1))
    actors.caller.run(server.write("x", vector("x")))
    [end] = ends(server)
    target = twin(actors, end, server, None)
    actors.actors["shard 0"].adopt(1)
    with pytest.raises(StaleError):
        HandOver(end, target, Limits(), ("x",)).run(actors.caller)
    HandOver(End(end.actor, 1, end.start, end.pieces), target, Limits(), ("x",)).run(actors.caller)


# As tasks.


@pytest.fixture
def host(client: Client) -> Iterator[ActorHost]:
    host = ActorHost(client, "carrying")
    yield host
    host.close()


def span_end(host: ActorHost, worker: str, generation: int, name: str) -> End:
    span = range(0, BLOCK)
    spec = ShardSpec(generation, 0, span, BLOCK, "float32")
    actor = host.spawn(Shard, name, worker, spec, generation=generation)
    host.ready([actor])
    return End(actor, generation, 0, pieces(span, "float32"))


def test_errands_run_where_they_are_sent(client: Client, workers: list[str], host: ActorHost, tmp_path: Path) -> None:
    """Side by side, and bring what they found in the order in which they were sent; nothing stays behind."""
    store = CheckpointStore(tmp_path / "run")
    store.prepare()
    errands = Errands(client, "carrying")
    assert (errands.poll({}), errands.is_running) == ([], False)
    sources = [span_end(host, worker, 0, f"shard {index}") for index, worker in enumerate(workers)]
    caller = Caller.of_client(client, workers)
    for index, end in enumerate(sources):
        values = np.full(BLOCK, index, np.float32)
        caller.run(caller.call(end.actor, "write", 0, "x", 0, values))
    saves = [Save(end, InCheckpoint(store), Limits(), (("x", f"x@{n}"),)) for n, end in enumerate(sources)]
    errands.send(list(zip(workers, saves, strict=True)))
    brought = errands.finish(lambda: dict.fromkeys(workers, 1), 60.0)
    assert [list(each.vectors) for each in brought] == [["x@0"], ["x@1"]]
    assert not errands.is_running


def test_errand_on_a_lost_worker_or_shard_is_a_loss(client: Client, workers: list[str], host: ActorHost) -> None:
    """Whichever end of the way is gone; the others are forgotten, and their keys are not used again."""
    errands = Errands(client, "carrying")
    end = span_end(host, workers[0], 3, "shard a")
    errand = HandOver(end, End(end.actor, 2, 0, end.pieces), Limits(), ("x",))
    errands.send([(workers[0], errand)])
    with pytest.raises(ActorLostError, match=r"worker tcp.* was lost"):
        errands.poll({workers[1]: 1})
    assert not errands.is_running
    # The shard knows another generation: it was replaced.
    errands.send([(workers[0], HandOver(End(end.actor, 2, 0, end.pieces), end, Limits(), ("x",)))])
    with pytest.raises(ActorLostError, match="did not arrive"):
        errands.finish(lambda: dict.fromkeys(workers, 1), 60.0)
    # What is wrong otherwise is said as it is.
    errands.send([(workers[0], HandOver(end, end, Limits(), ("no such vector",)))])
    with pytest.raises(KeyError, match="no such vector"):
        errands.finish(lambda: dict.fromkeys(workers, 1), 60.0)
    assert errands._n_sent == 3


def test_wait_for_errands_has_a_limit(client: Client, workers: list[str], host: ActorHost) -> None:
    """It names the workers; and whatever watching raises ends it as well."""
    errands = Errands(client, "carrying")
    end = span_end(host, workers[0], 0, "shard b")

    def stop() -> Mapping[str, int]:
        raise KeyboardInterrupt

    # On a worker that is not there: it is not begun.
    nowhere = "tcp://127.0.0.1:1"
    errands.send([(nowhere, HandOver(end, end, Limits(), ("x",)))])
    with pytest.raises(CallTimeoutError, match=f"was not carried within 0.01 seconds, by \\['{nowhere}'\\]"):
        errands.finish(lambda: {nowhere: 1}, 0.01)
    assert not errands.is_running
    errands.send([(nowhere, HandOver(end, end, Limits(), ("x",)))])
    with pytest.raises(KeyboardInterrupt):
        errands.finish(stop, 60.0)
    assert not errands.is_running
