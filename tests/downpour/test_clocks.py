"""Stale-synchronous clocks: nobody goes further ahead than allowed, and somebody may always go on."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dask_belief.downpour.clocks import Clocks

SEED = 55
REPLICAS = st.sampled_from("abcd")


class ClocksMachine(RuleBasedStateMachine):
    """Replicas that take work, make mini-batches when they may, rest, and are lost; beside a plain model of times."""

    @initialize(max_staleness=st.integers(0, 3))
    def begin(self, max_staleness: int) -> None:
        self.max_staleness = max_staleness
        self.clocks = Clocks(max_staleness)
        self.done: dict[str, int] = {}
        self.times: dict[str, int] = {}
        self.at_work: set[str] = set()
        self.names = dict.fromkeys("abcd", 0)

    def name(self, replica: str) -> str:
        """A replica that was lost comes back under another name."""
        return f"{replica}{self.names[replica]}"

    def slowest(self) -> int:
        return min(self.times[name] for name in self.at_work)

    @rule(replica=REPLICAS)
    def work(self, replica: str) -> None:
        name = self.name(replica)
        self.done.setdefault(name, 0)
        if name not in self.at_work:
            own = self.times.get(name, 0)
            self.times[name] = max(own, self.slowest()) if self.at_work else own
            self.at_work.add(name)
        self.clocks.work(name)

    @rule(replica=REPLICAS)
    def step(self, replica: str) -> None:
        name = self.name(replica)
        if name not in self.at_work:
            return
        may_begin = self.clocks.allowed(name) > self.done[name]
        assert may_begin == (self.times[name] - self.slowest() <= self.max_staleness)
        if may_begin:
            self.done[name] += 1
            self.times[name] += 1
            self.clocks.note(name, self.done[name])

    @rule(replica=REPLICAS)
    def hear_old_news(self, replica: str) -> None:
        name = self.name(replica)
        if name in self.at_work:
            self.clocks.note(name, self.done[name] // 2)

    @rule(replica=REPLICAS)
    def rest(self, replica: str) -> None:
        self.at_work.discard(self.name(replica))
        self.clocks.rest(self.name(replica))

    @rule(replica=REPLICAS)
    def leave(self, replica: str) -> None:
        name = self.name(replica)
        self.at_work.discard(name)
        self.clocks.leave(name)
        self.names[replica] += 1

    @invariant()
    def somebody_may_go_on(self) -> None:
        """Whoever is slowest: so there is never a deadlock."""
        if getattr(self, "at_work", None):
            slowest = [name for name in self.at_work if self.times[name] == self.slowest()]
            assert all(self.clocks.allowed(name) > self.done[name] for name in slowest)


TestClocks = ClocksMachine.TestCase
TestClocks.settings = settings(derandomize=True, deadline=None, max_examples=100, stateful_step_count=40)


def test_zero_keeps_all_in_step() -> None:
    """A replica may begin a mini-batch once all others have made as many as it has."""
    clocks = Clocks(0)
    for replica in "ab":
        clocks.work(replica)
    assert (clocks.allowed("a"), clocks.allowed("b")) == (1, 1)
    clocks.note("a", 1)
    assert (clocks.allowed("a"), clocks.allowed("b")) == (1, 1)
    clocks.note("b", 1)
    assert (clocks.allowed("a"), clocks.allowed("b")) == (2, 2)


def test_one_that_joins_begins_beside_the_slowest() -> None:
    """Its own count is from nothing; it neither waits for nor holds up the others by what it did not do."""
    clocks = Clocks(1)
    for replica in "ab":
        clocks.work(replica)
    clocks.note("a", 7)
    clocks.note("b", 8)
    clocks.work("c")
    assert clocks.allowed("b") == 7 + 2
    assert clocks.allowed("c") == 0 + 2
    clocks.note("a", 9)
    assert clocks.allowed("b") == 7 + 2
    clocks.note("c", 1)
    assert clocks.allowed("b") == 8 + 2


@pytest.mark.parametrize("how", ["rest", "leave"])
def test_nobody_waits_for_one_without_work(how: str) -> None:
    """Whether it has none or is gone."""
    clocks = Clocks(0)
    for replica in "ab":
        clocks.work(replica)
    clocks.note("a", 1)
    assert clocks.allowed("a") == 1
    getattr(clocks, how)("b")
    assert clocks.allowed("a") == 2


def test_one_that_rested_goes_on_where_it_was_when_that_is_further() -> None:
    """A pause does not let a replica that was ahead go further ahead."""
    clocks = Clocks(1)
    for replica in "ab":
        clocks.work(replica)
    clocks.note("a", 2)
    clocks.rest("a")
    clocks.work("a")
    assert clocks.allowed("a") == 2
    clocks.rest("a")
    clocks.note("b", 5)
    clocks.work("a")
    assert clocks.allowed("a") == 2 + 2


def test_unknown_replica_may_begin() -> None:
    """One that was counted out and woke is not held up: its work is dropped elsewhere."""
    clocks = Clocks(0)
    assert clocks.allowed("zombie") == 1
    clocks.rest("zombie")
    clocks.leave("zombie")


class Story:
    """Replicas that fetch and push each mini-batch, in leases, with two exchanges under way; one shard; any order.

    Attributes
    ----------
    worst
        The most updates of others between the fetch from which a gradient came and its push.
    """

    def __init__(self, n_replicas: int, max_staleness: int, lag: int, chance: random.Random) -> None:
        self.clocks = Clocks(max_staleness)
        self.lag = lag
        self.worst = 0
        self._updates: list[int] = []
        self._under_way: list[deque[tuple[int | None, int | None]]] = [deque() for _ in range(n_replicas)]
        self._fetched: list[deque[tuple[int, int]]] = [deque() for _ in range(n_replicas)]
        for number in range(n_replicas):
            self.clocks.work(str(number))
        running = {number: self._replica(number, chance) for number in range(n_replicas)}
        while running:
            number, speed = chance.choice(list(running)), chance.choice([0.2, 0.5, 0.9])
            if self._under_way[number] and chance.random() < speed:
                self._serve(number)
            elif next(running[number], "ended") == "ended":
                del running[number]

    def _serve(self, number: int) -> None:
        base, effective = self._under_way[number].popleft()
        if base is not None:
            self.worst = max(self.worst, sum(other != number for other in self._updates[base:]))
            self._updates.append(number)
        if effective is not None:
            self._fetched[number].append((effective, len(self._updates)))

    def _replica(self, number: int, chance: random.Random) -> Iterator[None]:
        """`Trainer` with `Pace`, on leases of a few mini-batches."""
        under_way, fetched, name, done = self._under_way[number], self._fetched[number], str(number), 0
        base: int | None = None
        fetched_at = -1
        for _ in range(8):
            push: int | None = None
            for is_end in [*[False] * chance.randint(1, 5), True]:
                if not is_end and done:
                    self.clocks.note(name, done)
                    while self.clocks.allowed(name) <= done:
                        yield
                effective = None if fetched_at == done else done + (self.lag if done else 0)
                fetched_at = done
                if push is not None or effective is not None:
                    while len(under_way) >= 2:
                        yield
                    under_way.append((push, effective))
                if is_end:
                    break
                while any(each is not None and each <= done for _, each in under_way):
                    yield
                while fetched and fetched[0][0] <= done:
                    base = fetched.popleft()[1]
                yield
                done, push = done + 1, base
        while under_way:
            yield
        # Its report goes out when its last push is through.
        self.clocks.rest(name)


@pytest.mark.parametrize("n_replicas", [2, 3])
@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_pushes_are_no_staler_than_promised(n_replicas: int, lag: int, max_staleness: int) -> None:
    """`MaxStaleness` says how stale a push can be, whatever the order of messages; and that is not far from it."""
    promised = (2 * max_staleness + 3 * lag + 4) * (n_replicas - 1)
    stories = (Story(n_replicas, max_staleness, lag, random.Random(f"{SEED} {seed}")) for seed in range(100))
    worst = max(story.worst for story in stories)
    assert promised / 3 <= worst <= promised
