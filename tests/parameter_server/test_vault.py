"""What is saved of a run and where, with shards, keepers and tasks in this process."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from dask_belief.checkpoint import CheckpointStore, SavedState
from dask_belief.cluster.actors import ActorAddress
from dask_belief.cluster.limits import Limits, limited_by
from dask_belief.errors import ActorLostError
from dask_belief.optim.rules import SGD
from dask_belief.parameter_server.carrying import End, Errand, Save
from dask_belief.parameter_server.client import ParameterServer
from dask_belief.parameter_server.deployment import Deployment
from dask_belief.parameter_server.directory import Directory
from dask_belief.parameter_server.exchange import Exchange
from dask_belief.parameter_server.messages import Combine, Command, LeaseKey, PushKey, StepKey
from dask_belief.parameter_server.ranges import BLOCK, shard_ranges
from dask_belief.parameter_server.shard import Shard, ShardSpec
from dask_belief.parameter_server.updates import VALUES, UpdateSpec
from dask_belief.parameter_server.vault import HELD, LEAST_SECONDS, SavedNow, Vault, cuts_of
from dask_belief.seeds import stream
from tests.parameter_server.local_actors import LocalActors

SEED = 73
N_PARAMETERS = 2 * BLOCK + 9
WORKERS = ["tcp://a:1", "tcp://b:1", "tcp://c:1"]
LEASE = LeaseKey(0, 1)


class Done:
    """A task that has ended, or one that is held back."""

    def __init__(self, client: Tasks, key: str, errand: Errand) -> None:
        self.client, self.key, self.errand = client, key, errand
        self.status = "pending"
        self._result: Any = None
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            self._result = self.errand.run(self.client.actors.caller)
            self.status = "finished"
        except Exception as error:
            self._error, self.status = error, "error"

    def done(self) -> bool:
        return self.status != "pending"

    def cancelled(self) -> bool:
        return self.status == "cancelled"

    def exception(self, timeout: float) -> Exception | None:
        return self._error

    def result(self, timeout: float) -> Any:
        return self._result

    def release(self) -> None:
        pass


class Tasks:
    """A client whose tasks run at once, or when the test says so."""

    status = "running"

    def __init__(self, actors: LocalActors) -> None:
        self.actors = actors
        self.sent: list[tuple[str, Done]] = []
        self.is_held = False

    def submit(self, carry: Any, errand: Errand, key: str, workers: list[str], **options: Any) -> Done:
        done = Done(self, key, errand)
        self.sent.append((workers[0], done))
        if not self.is_held:
            done.run()
        return done

    def cancel(self, futures: Iterable[Done], force: bool) -> None:
        for future in futures:
            future.status = "cancelled"


class Prompt:
    """A caller that has done what is begun by the time it returns."""

    def __init__(self, caller: Any) -> None:
        self._caller = caller

    def __getattr__(self, name: str) -> Any:
        return getattr(self._caller, name)

    def start(self, coroutine: Any) -> Any:
        started = self._caller.start(coroutine)
        started.exception(10.0)
        return started


class Place:
    """The parts of a deployment that a vault uses."""

    def __init__(self, actors: LocalActors, n_shards: int, updates: UpdateSpec | None = None) -> None:
        self.actors, self.client = actors, Tasks(actors)
        self.caller: Any = Prompt(actors.caller)
        self.host = self.shards = self
        self.workers = dict.fromkeys(WORKERS, 1)
        self.leaving: set[str] = set()
        self.dropped: list[str] = []
        self.fails_to_make = self.fails_to_fill = False
        self._updates = updates
        ranges = shard_ranges(N_PARAMETERS, n_shards)
        addresses = tuple(self._shard(index, 0, ranges) for index in range(len(ranges)))
        self.directory = Directory(0, N_PARAMETERS, "float32", addresses, ranges)
        self.server = ParameterServer(self.directory, self.caller)

    def _shard(self, index: int, generation: int, ranges: tuple[range, ...]) -> ActorAddress:
        spec = ShardSpec(generation, index, ranges[index], N_PARAMETERS, "float32", updates=self._updates)
        key = f"shard {index} of {generation}"
        self.actors.register(key, Shard(spec))
        return ActorAddress(f"shard {index}", WORKERS[(index + generation) % len(WORKERS)], key, generation)

    def execute(self, *commands: Command) -> list[list[float]]:
        return self.caller.run(self.server.execute(*commands))

    def spawn(self, kind: type, name: str, worker: str, *arguments: object, generation: int) -> ActorAddress:
        key = f"{name} of {generation}"
        assert key not in self.actors.actors
        self.actors.register(key, kind(*arguments))
        return ActorAddress(name, worker, key, generation)

    def ready(self, actors: Iterable[ActorAddress]) -> None:
        if self.fails_to_make and list(actors):
            raise ActorLostError("lost while they were made")

    def drop(self, actor: ActorAddress) -> None:
        self.dropped.append(actor.name)
        self.actors.actors.pop(actor.key)

    def end(self, index: int, actor: ActorAddress, generation: int) -> End:
        return End(actor, generation, self.directory.ranges[index].start, self.directory.pieces(index))

    def take_news(self) -> None:
        pass

    def make_anew(self, lost: int) -> Directory:
        """An empty shard in place of another."""
        generation = self.directory.generation + 1
        del self.actors.actors[self.directory.shards[lost].key]
        shards = list(self.directory.shards)
        shards[lost] = self._shard(lost, generation, self.directory.ranges)
        self.server.directory = self.directory = replace(self.directory, generation=generation, shards=tuple(shards))
        for shard in shards:
            self.actors.actors[shard.key].adopt(generation)
        return self.directory

    def leave(self, worker: str) -> None:
        """It is there still, and is to be left."""
        del self.workers[worker]
        self.leaving.add(worker)

    def fill(self, errands: list[tuple[str, Errand]]) -> None:
        if self.fails_to_fill:
            raise ActorLostError("lost on the way")
        self.run(errands)

    def run(self, errands: list[tuple[str, Errand]]) -> None:
        for _, errand in errands:
            errand.run(self.caller)

    def write(self, name: str, vector: np.ndarray) -> None:
        self.caller.run(self.server.write(name, vector))

    def read(self, name: str) -> np.ndarray:
        into = np.empty(N_PARAMETERS, np.float32)
        self.caller.run(self.server.read(name, into))
        return into

    def names(self) -> set[str]:
        return set(self.caller.run(self.server.names()))

    def kept(self) -> list[set[str]]:
        """The names in each keeper."""
        keepers = [actor for key, actor in self.actors.actors.items() if key.startswith("keeper")]
        return [{name for name, _ in keeper._parts} for keeper in keepers]


def of(place: Place) -> Deployment:
    return cast("Deployment", place)


def vector(name: str) -> np.ndarray:
    return stream(SEED, name).standard_normal(N_PARAMETERS).astype(np.float32)


@pytest.fixture
def actors() -> Iterator[LocalActors]:
    with LocalActors() as carrier:
        yield carrier


@pytest.fixture
def place(actors: LocalActors) -> Place:
    return Place(actors, 2)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    store = CheckpointStore(tmp_path / "run")
    store.prepare()
    return store


COMMITTED: list[SavedState] = []


@pytest.fixture(autouse=True)
def fresh() -> None:
    COMMITTED.clear()


def vault_of(store: CheckpointStore | None = None, resumed: SavedState | None = None) -> Vault:
    def commit(saved: SavedState) -> None:
        COMMITTED.append(saved)
        if store is not None:
            store.commit(saved, {}, [])

    return Vault("test", store, 0.0, resumed, commit)


def save(vault: Vault, place: Place, vectors: Mapping[str, str | None] | None, **options: Any) -> SavedNow:
    assert vault.begin(of(place), {"note": 1}, vectors, 0.0, **options)
    saved = vault.poll(of(place), 0.0)
    assert saved is not None
    return saved


def pairs(*iterations: int) -> dict[str, str | None]:
    """The point, and pairs in slots by turns, each with the iteration that it is of."""
    return {"x": None, **{f"s{iteration % 2}": f"s{iteration}" for iteration in iterations}}


def iterate(place: Place, iteration: int) -> None:
    """A new point, and a new step in its slot."""
    place.write("x", vector(f"x of {iteration}"))
    place.write(f"s{iteration % 2}", vector(f"s of {iteration}"))


def test_only_what_is_new_is_carried(place: Place) -> None:
    """A pair is written once and shared by later states; what no state names any more is let go everywhere."""
    vault, n_bytes = vault_of(), vector("x").nbytes
    iterate(place, 0)
    assert save(vault, place, pairs(0)).n_bytes == 2 * n_bytes
    iterate(place, 1)
    second = save(vault, place, pairs(0, 1))
    assert second.n_bytes == 2 * n_bytes
    assert set(second.state.vectors) == {"x@2", "s0@1", "s1@2"}
    assert second.state.state["vectors"] == {"x": "x@2", "s0": "s0@1", "s1": "s1@2"}
    iterate(place, 2)
    third = save(vault, place, pairs(1, 2))
    assert third.n_bytes == 2 * n_bytes
    assert set(third.state.vectors) == {"x@3", "s1@2", "s2@3"}
    assert place.kept() == [set(third.state.vectors)] * 2
    assert place.names() == {"x", "s0", "s1"} | {HELD + name for name in third.state.vectors}
    assert (vault.n_saved, vault.newest, COMMITTED[-1]) == (3, third.state, third.state)
    written = [name for _, task in place.client.sent for _, name in cast("Save", task.errand).vectors]
    assert max(Counter(written).values()) == 2, "once by each shard"


def test_keys_of_tasks_are_never_used_again(place: Place) -> None:
    """One that was given up may still run somewhere, and its result must not be taken for that of the next."""
    vault = vault_of()
    iterate(place, 0)
    save(vault, place, pairs(0))
    place.client.is_held = True
    assert vault.begin(of(place), {}, pairs(0), 0.0)
    vault.give_up()
    place.client.is_held = False
    save(vault, place, pairs(0))
    keys = [task.key for _, task in place.client.sent]
    assert len(keys) == len(set(keys)) == 6


def test_lost_shard_is_filled_and_all_go_back(place: Place) -> None:
    """To the bit, whatever commands have run since; those that live on are not filled."""
    vault = vault_of()
    iterate(place, 0)
    iterate(place, 1)
    save(vault, place, pairs(0, 1))
    place.execute(Combine("x", ((2.0, "x"), (1.0, "s0"))), Combine("s0", ((3.0, "x"),)))
    vault.look(of(place))
    assert vault.can_fill([1])
    directory = place.make_anew(1)
    fills = vault.fills(of(place), directory, [1])
    assert [worker for worker, _ in fills] == [directory.shards[1].worker]
    place.run(fills)
    vault.go_back(of(place))
    for name, expected in (("x", "x of 1"), ("s0", "s of 0"), ("s1", "s of 1")):
        assert place.read(name).tobytes() == vector(expected).tobytes()
    # And from there again.
    place.execute(Combine("x", ((2.0, "x"),)))
    place.run(vault.fills(of(place), place.make_anew(0), [0]))
    vault.go_back(of(place))
    assert place.read("x").tobytes() == vector("x of 1").tobytes()


def test_shard_that_holds_no_state_is_filled_besides(place: Place) -> None:
    """It was made anew from something else, or handed over without second names, before another one is lost."""
    vault = vault_of()
    iterate(place, 0)
    save(vault, place, pairs(0))
    place.make_anew(0)
    iterate(place, 2)
    vault.look(of(place))
    assert vault.can_fill([1])
    directory = place.make_anew(1)
    fills = vault.fills(of(place), directory, [1])
    assert len(fills) == 2
    place.run(fills)
    vault.go_back(of(place))
    assert place.read("x").tobytes() == vector("x of 0").tobytes()
    # Once the next state is complete, all hold it.
    save(vault, place, pairs(0))
    assert len(vault.fills(of(place), directory, [1])) == 1


def test_state_is_not_at_hand_when_shard_and_keeper_are_lost(place: Place) -> None:
    """Nor where a shard that lacks the state has lost its keeper."""
    vault = vault_of()
    iterate(place, 0)
    assert not vault.can_fill([0])
    save(vault, place, pairs(0))
    del place.workers[vault.keeper_workers()[0]]
    vault.look(of(place))
    assert not vault.can_fill([0])
    assert vault.can_fill([1]) == (1 in vault.keeper_workers())
    place.make_anew(0)
    vault.look(of(place))
    assert not vault.can_fill([1])


def test_lost_keeper_is_made_anew_and_gets_all_of_its_shard(place: Place) -> None:
    """Of what lasts too, from the shard; the other keeper gets only what is new."""
    vault, n_bytes = vault_of(), vector("x").nbytes
    iterate(place, 0)
    save(vault, place, pairs(0))
    before = vault.keeper_workers()
    [lost] = [shard for shard, worker in before.items() if worker == before[0]][:1]
    others = [shard for shard, worker in before.items() if worker == before[0]]
    del place.workers[before[lost]]
    vault.look(of(place))
    assert sorted(place.dropped) == [f"keeper {shard}" for shard in others]
    assert vault.newest is not None
    iterate(place, 1)
    saved = save(vault, place, pairs(0, 1))
    assert saved.n_bytes > 2 * n_bytes
    assert vault.can_fill([0])
    assert vault.can_fill([1])
    assert all(worker in place.workers for worker in vault.keeper_workers().values())
    place.run(vault.fills(of(place), place.make_anew(lost), [lost]))
    vault.go_back(of(place))
    assert place.read("s0").tobytes() == vector("s of 0").tobytes()


def test_keeper_that_has_to_go_is_handed_over(place: Place) -> None:
    """So the shard can be lost before anything is saved again."""
    vault = vault_of()
    iterate(place, 0)
    save(vault, place, pairs(0))
    place.client.is_held = True
    vault.begin(of(place), {}, pairs(0), 60.0)
    before = vault.keeper_workers()
    place.leave(before[0])
    vault.look(of(place))
    place.client.is_held = False
    assert not vault.is_saving
    assert all(worker in place.workers for worker in vault.keeper_workers().values())
    assert sorted(place.dropped) == [f"keeper {shard}" for shard, worker in before.items() if worker == before[0]]
    assert all(vault.can_fill([shard]) for shard in range(2))
    place.run(vault.fills(of(place), place.make_anew(0), [0]))
    vault.go_back(of(place))
    assert place.read("x").tobytes() == vector("x of 0").tobytes()
    assert place.read("s0").tobytes() == vector("s of 0").tobytes()
    assert save(vault, place, pairs(0)).n_bytes < vector("x").nbytes * len(pairs(0))


@pytest.mark.parametrize("how", ["nobody to take it", "not made", "lost on the way"])
def test_keeper_that_cannot_be_handed_over_is_lost(place: Place, how: str) -> None:
    """Its shard is saved anew, wholly, as when its worker had died."""
    vault = vault_of()
    iterate(place, 0)
    save(vault, place, pairs(0))
    gone = vault.keeper_workers()[0]
    place.leave(gone)
    if how == "nobody to take it":
        del place.workers[min(place.workers)]
    place.fails_to_make, place.fails_to_fill = how == "not made", how == "lost on the way"
    vault.look(of(place))
    place.fails_to_make = place.fails_to_fill = False
    assert not vault.can_fill([0])
    assert gone not in vault.keeper_workers().values()
    assert not any(actor.worker == gone for actor in vault._keepers._of_shard.values())


def test_keeper_is_never_where_its_shard_is(place: Place) -> None:
    """Also when the shard has moved to it."""
    vault = vault_of()
    iterate(place, 0)
    save(vault, place, pairs(0))
    keeper = vault.keeper_workers()[0]
    shards = list(place.directory.shards)
    shards[0] = replace(shards[0], worker=keeper)
    place.server.directory = place.directory = replace(place.directory, shards=tuple(shards))
    save(vault, place, pairs(0))
    for index, shard in enumerate(place.directory.shards):
        assert vault.keeper_workers()[index] != shard.worker
    assert all(vault.can_fill([index]) for index in range(2))


def test_one_worker_has_no_place_to_save_to(place: Place) -> None:
    """Nothing is begun; nor where keepers cannot be made, of which then nothing stays."""
    vault = vault_of()
    iterate(place, 0)
    place.workers = {WORKERS[0]: 1}
    assert not vault.begin(of(place), {}, pairs(0), 0.0)
    place.workers = dict.fromkeys(WORKERS, 1)
    place.fails_to_make = True
    assert not vault.begin(of(place), {}, pairs(0), 0.0)
    assert place.kept() == []
    assert (vault.is_saving, vault.newest) == (False, None)
    place.fails_to_make = False
    assert save(vault, place, pairs(0)).state.vectors


@pytest.mark.parametrize("how", ["worker", "shard", "time"])
def test_save_that_cannot_be_completed_is_given_up(place: Place, how: str) -> None:
    """The state before stays, in the place and on the shards; what was carried of the other is let go with the next."""
    vault = vault_of()
    iterate(place, 0)
    before = save(vault, place, pairs(0)).state
    iterate(place, 1)
    place.client.is_held = True
    assert vault.begin(of(place), {}, pairs(0, 1), 0.0)
    first, second = (task for _, task in place.client.sent[-2:])
    assert vault.poll(of(place), 0.0) is None
    first.run()
    limits = Limits()
    if how == "worker":
        del place.workers[place.client.sent[-1][0]]
    elif how == "shard":
        place.actors.actors[place.directory.shards[1].key].adopt(1)
        second.run()
        assert second.status == "error"
        place.server.directory = place.directory = replace(place.directory, generation=1)
        place.actors.actors[place.directory.shards[0].key].adopt(1)
    else:
        limits = Limits(no_progress_seconds=1e-9)
    with limited_by(limits):
        assert vault.poll(of(place), 0.0) is None
    assert (vault.is_saving, vault.newest, vault.n_saved) == (False, before, 1)
    assert "x@2" in set().union(*place.kept())
    place.client.is_held = False
    place.workers = dict.fromkeys(WORKERS, 1)
    saved = save(vault, place, pairs(0, 1)).state
    assert "x@2" not in saved.vectors
    assert set().union(*place.kept()) == set(saved.vectors)
    assert place.names() == {"x", "s0", "s1"} | {HELD + name for name in saved.vectors}


def test_half_a_state_is_none(place: Place) -> None:
    """Nothing is committed before all parts have arrived."""
    vault = vault_of()
    iterate(place, 0)
    place.client.is_held = True
    assert vault.begin(of(place), {}, pairs(0), 0.0)
    assert not vault.is_due(1e9)
    first, second = (task for _, task in place.client.sent)
    first.run()
    assert vault.poll(of(place), 0.0) is None
    assert (COMMITTED, vault.newest) == ([], None)
    # What is saved is what was there as it began.
    iterate(place, 0)
    place.write("x", vector("later"))
    second.run()
    assert vault.poll(of(place), 0.0) is not None
    place.run(vault.fills(of(place), place.make_anew(0), [0]))
    vault.go_back(of(place))
    assert place.read("x").tobytes() == vector("x of 0").tobytes()


def test_checkpoint_is_gone_on_from_on_other_shards(actors: LocalActors, place: Place, store: CheckpointStore) -> None:
    """All are filled; pairs of the run before are not written again, and numbers go on."""
    vault, best = vault_of(store), vector("best")
    iterate(place, 0)
    save(vault, place, pairs(0), own={"best0": best})
    loaded = store.newest()
    store.verify(loaded)
    later = CheckpointStore(store.path)
    later.prepare(loaded.number)
    other = Place(actors, 3)
    resumed = vault_of(later, loaded.saved)
    fills = resumed.fills(of(other), other.directory, ())
    assert len(fills) == 3
    other.run(fills)
    resumed.go_back(of(other))
    assert other.read("x").tobytes() == vector("x of 0").tobytes()
    own = resumed.own("best0")
    assert own is not None
    assert own.tobytes() == best.tobytes()
    assert resumed.own("best1") is None
    # Lost before the first save of its own.
    resumed.look(of(other))
    assert resumed.can_fill([2])
    other.run(resumed.fills(of(other), other.make_anew(2), [2]))
    resumed.go_back(of(other))
    assert other.read("s0").tobytes() == vector("s of 0").tobytes()
    iterate(other, 1)
    saved = save(resumed, other, pairs(0, 1), own={"best0": best})
    assert saved.n_bytes == 2 * best.nbytes
    assert saved.state.number == loaded.number + 1
    assert {"s0@1", "best0@1", "x@2", "s1@2"} == set(saved.state.vectors)
    later.verify(later.newest())


def test_updates_are_saved_and_filled(actors: LocalActors, store: CheckpointStore) -> None:
    """With marks, by pieces, over other shards; cuts say where the pieces of the next run begin."""
    place = Place(actors, 2, UpdateSpec(SGD(1.0)))
    place.write(VALUES, vector("x"))
    place.caller.run(place.server.begin_updates())
    push = Exchange("a", StepKey(LEASE, 1), PushKey(LEASE, 0, 0), vector("g"))
    place.caller.run(place.server.exchange(push))
    vault = vault_of(store)
    saved = save(vault, place, None).state
    assert cuts_of(saved) == (0, place.directory.ranges[1].start)
    expected = place.read(VALUES)
    loaded = store.newest().saved
    other = Place(actors, 3, UpdateSpec(SGD(1.0)))
    other.directory = replace(other.directory, cuts=cuts_of(loaded))
    other.server = ParameterServer(other.directory, other.caller)
    resumed = vault_of(store, loaded)
    other.run(resumed.update_fills(of(other), other.directory, range(3), is_behind=False))
    assert other.read(VALUES).tobytes() == expected.tobytes()
    other.caller.run(other.server.exchange(push))
    assert other.read(VALUES).tobytes() == expected.tobytes()
    # One of them alone, later.
    assert resumed.can_fill([1])
    other.run(resumed.update_fills(of(other), other.make_anew(1), [1], is_behind=True))
    assert other.read(VALUES).tobytes() == expected.tobytes()


def test_save_is_due_by_its_interval_or_by_its_cost() -> None:
    """Never while one is under way, nor where there is no place for it."""
    always, often, seldom = (
        vault_of(),
        Vault("a", None, None, None, COMMITTED.append),
        Vault("a", None, 10.0, None, COMMITTED.append),
    )
    assert always.is_due(0.0)
    always.is_able = False
    assert not always.is_due(9.0)
    assert [often.is_due(now) for now in (0.0, LEAST_SECONDS)] == [False, True]
    assert [seldom.is_due(now) for now in (9.9, 10.0)] == [False, True]


def test_numbers_of_states_grow(place: Place) -> None:
    """Also over those that were given up."""
    vault, numbers = vault_of(), []
    iterate(place, 0)
    for is_given_up in (False, True, False, True, True, False):
        assert vault.begin(of(place), {}, pairs(0), 0.0)
        if is_given_up:
            vault.give_up()
            continue
        saved = vault.finish(of(place), lambda: 0.0)
        assert saved is not None
        numbers.append(saved.state.number)
    assert all(before < after for before, after in itertools.pairwise(numbers))
