"""Rounds of synchronous training: decided once, the same on all shards, whoever is slow or lost."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from dask_belief.downpour.lease_book import LeaseBook
from dask_belief.downpour.rounds import Rounds
from dask_belief.optim.rules import SGD
from dask_belief.parameter_server.consistency import Synchronous
from dask_belief.parameter_server.messages import LeaseKey, PushKey, Round, StepKey
from dask_belief.parameter_server.updates import VALUES, Push, Updates, UpdateSpec
from dask_belief.parameter_server.vectors import Vectors

SEED = 52


def key(lease: int, step: int = 0) -> PushKey:
    return PushKey(LeaseKey(0, lease), step, step)


def test_round_closes_when_all_have_arrived() -> None:
    """Those at work; its members are in the order of their leases, and the next round is open then."""
    rounds = Rounds(0)
    assert (rounds.number, rounds.last) == (0, None)
    assert rounds.arrive("a", 0, key(2))
    assert not rounds.close({"a", "b"})
    assert rounds.arrive("b", 0, key(1))
    assert rounds.close({"a", "b"})
    assert rounds.last == Round(0, (key(1), key(2)), ())
    assert rounds.number == 1
    assert not rounds.close({"a", "b"})


def test_backup_replicas_are_not_waited_for() -> None:
    """The late one is told so, and the next round tells the shards; nobody is told twice."""
    rounds = Rounds(1)
    rounds.arrive("a", 0, key(0))
    assert not rounds.close({"a", "b", "c"})
    rounds.arrive("b", 0, key(1))
    assert rounds.close({"a", "b", "c"})
    assert not rounds.arrive("c", 0, key(2))
    assert not rounds.close({"a", "b", "c"})
    for number in (1, 2):
        for replica, lease in (("a", 0), ("b", 1)):
            rounds.arrive(replica, number, key(lease, number))
        assert rounds.close({"a", "b", "c"})
        assert rounds.last is not None
        assert rounds.last.late == ((key(2),) if number == 1 else ())


@pytest.mark.parametrize("backup_replicas", [0, 1, 5])
def test_one_is_waited_for_at_least(backup_replicas: int) -> None:
    """However many backups there are for those that have work."""
    rounds = Rounds(backup_replicas)
    assert not rounds.close(set())
    assert not rounds.close({"a"})
    rounds.arrive("a", 0, key(0))
    assert rounds.close({"a"})


def test_one_that_is_lost_is_not_waited_for() -> None:
    """And if it had arrived its push counts: every shard holds it."""
    rounds = Rounds(0)
    rounds.arrive("a", 0, key(0))
    assert not rounds.close({"b"})
    rounds.arrive("b", 0, key(1))
    assert rounds.close({"b"})
    assert rounds.last == Round(0, (key(0), key(1)), ())


def test_work_of_a_lost_one_done_again_in_the_same_round_counts_once() -> None:
    """The successor cannot know yet that the push of the one before will be a member."""
    rounds = Rounds(0)
    for replica in ("lost", "its successor"):
        rounds.arrive(replica, 0, key(0))
    rounds.arrive("b", 0, key(1))
    assert rounds.close({"its successor", "b"})
    assert rounds.last == Round(0, (key(0), key(1)), ())


def test_rounds_begin_where_the_shards_are() -> None:
    """In place of a ledger that was lost: what it knew of pushes is gone, and old numbers are late."""
    rounds = Rounds(0)
    rounds.begin_at(0)
    assert (rounds.number, rounds.last) == (0, None)
    rounds.begin_at(5)
    assert (rounds.number, rounds.last) == (5, Round(4, (), ()))
    assert not rounds.arrive("a", 4, key(0))
    assert rounds.arrive("b", 5, key(1))
    assert rounds.close({"b"})
    assert rounds.last == Round(5, (key(1),), (key(0),))
    assert rounds.number == 6


# The whole of it, message by message, with losses at any moment.

N_LEASES, N_STEPS, N_PIECES = 4, 3, 3
N_IDS = N_LEASES * N_STEPS


def place_of(key: PushKey) -> int:
    return key.lease.lease * N_STEPS + key.first


class World:
    """Pieces on shards, the ledger's decisions, and replicas that are told what to do one message at a time.

    A mini-batch's gradient is one where its own parameter is, so that the values tell what was counted.
    """

    def __init__(self, backup_replicas: int) -> None:
        spec = UpdateSpec(SGD(1.0), staleness=Synchronous(backup_replicas))
        self.vectors = [Vectors(range(N_IDS), N_IDS, "float64") for _ in range(N_PIECES)]
        self.pieces = []
        for vectors in self.vectors:
            vectors.make(VALUES)[:] = 0
            self.pieces.append(Updates(vectors, spec))
            self.pieces[-1].begin()
        self.book = LeaseBook(N_LEASES, 1, SEED)
        self.rounds = Rounds(backup_replicas)
        self.closed: list[Round] = []
        self.lost: set[str] = set()

    def look(self) -> None:
        if self.rounds.close(self.book.at_work):
            assert self.rounds.last is not None
            self.closed.append(self.rounds.last)

    def leave(self, replica: str) -> None:
        self.lost.add(replica)
        self.book.leave(replica)
        self.look()

    def exchange(self, piece: int, at: StepKey, push: Push | None, closed: Round | None) -> None:
        self.pieces[piece].exchange("", at, slice(0, N_IDS), push, push is None, closed)

    def replica(self, name: str, order: random.Random) -> Iterator[bool]:
        """What a replica does, with a pause before each message; gives False while it waits."""
        yield True
        closed = None
        while not self.book.is_over and name not in self.lost:
            lease = self.book.next_lease(name, 0.0)
            if lease is None:
                yield False
                continue
            yield True
            step = min(piece.applied(lease.key, 1) for piece in self.pieces) + 1 if lease.is_taken_over else 0
            closed = self.rounds.last
            yield from self._on_all_pieces(order, StepKey(lease.key, step), None, closed)
            while step < N_STEPS:
                made = PushKey(lease.key, step, step)
                number = 0 if closed is None else closed.number + 1
                gradient = np.zeros(N_IDS)
                gradient[place_of(made)] = 1.0
                yield from self._on_all_pieces(order, StepKey(lease.key, step + 1), Push(made, number, gradient), None)
                yield True
                if self.rounds.arrive(name, number, made):
                    self.look()
                while self.rounds.number <= number:
                    yield False
                closed = self.rounds.last
                yield from self._on_all_pieces(order, StepKey(lease.key, step + 1), None, closed)
                step += 1
            yield True
            self.book.finish(lease.key, N_STEPS, 1)
            self.look()

    def _on_all_pieces(self, order: random.Random, at: StepKey, push: Push | None, closed: Any) -> Iterator[bool]:
        for piece in order.sample(range(N_PIECES), N_PIECES):
            yield True
            self.exchange(piece, at, push, closed)


@pytest.mark.parametrize("backup_replicas", [0, 1, 2])
@pytest.mark.parametrize("is_silent", [True, False], ids=["the lost are silent", "the lost go on for a while"])
def test_shards_agree_whatever_is_lost(backup_replicas: int, is_silent: bool) -> None:
    """Any order of messages and any losses that leave one: the run ends, and no mini-batch counts twice anywhere."""
    for seed in range(120):
        chance = random.Random(f"{SEED} {seed}")
        world = World(backup_replicas)
        names = (f"replica-{number}" for number in itertools.count())
        living = {name: world.replica(name, chance) for name in itertools.islice(names, 4)}
        ghosts: dict[str, Iterator[bool]] = {}
        n_losses = chance.randrange(6)
        idle = 0
        while not world.book.is_over:
            if n_losses and chance.random() < 0.02:
                n_losses -= 1
                lost = chance.choice(list(living))
                ghost = living.pop(lost)
                if not is_silent:
                    ghosts[lost] = ghost
                if chance.random() < 0.5 or not living:
                    name = next(names)
                    living[name] = world.replica(name, chance)
                world.leave(lost)
            everyone = living | ghosts
            name = chance.choice(list(everyone))
            moved = next(everyone[name], None)
            if name in ghosts and chance.random() < 0.05:
                del ghosts[name]
            idle = 0 if moved else idle + 1
            assert idle < 2000, f"nobody goes on, seed {seed}"
        # What is decided is told to all: a last fetch of each piece.
        for piece in range(N_PIECES):
            world.exchange(piece, StepKey(LeaseKey(0, 0), 0), None, world.rounds.last)
        values = [vectors[VALUES] for vectors in world.vectors]
        for other in values[1:]:
            np.testing.assert_array_equal(other, values[0])
        sizes: dict[int, list[int]] = {}
        late = {place_of(each) for closed in world.closed for each in closed.late}
        for closed in world.closed:
            assert len(set(closed.members)) == len(closed.members)
            for each in closed.members:
                sizes.setdefault(place_of(each), []).append(len(closed.members))
        for number, value in enumerate(values[0]):
            # Once, by the mean of the members that counted; or it came too late.
            assert value < 0 or number in late or is_done_unseen(world, number), f"seed {seed}, mini-batch {number}"
            if value < 0:
                assert any(-1 / value <= size + 1e-9 for size in sizes[number])
            assert value >= -1.0


def is_done_unseen(world: World, number: int) -> bool:
    """Whether a mini-batch came too late for the last round, so that no later one tells of it."""
    return any(place_of(each) == number for each in world.rounds._late)
