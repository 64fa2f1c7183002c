"""One run of Downpour by a virtual clock: shards, rules, leases and gradients are real, replicas and messages are not.

See `benchmarks.simulate_downpour`. Most methods of `Simulation` are events: each happens at one moment of the clock and
sets off others for later ones.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import dask_belief as db
from benchmarks.fashion_mnist import N_CLASSES, N_FEATURES, load
from dask_belief.data.batches import MiniBatches
from dask_belief.downpour.clocks import Clocks
from dask_belief.downpour.lease_book import LeaseBook, RowLease
from dask_belief.downpour.rounds import Rounds
from dask_belief.optim.rules import SGD, Adagrad
from dask_belief.parameter_server.consistency import MaxStaleness, Staleness, Synchronous
from dask_belief.parameter_server.messages import PushKey, Round, StepKey
from dask_belief.parameter_server.shard import Shard, ShardSpec
from dask_belief.parameter_server.updates import VALUES, UpdateSpec
from dask_belief.seeds import stream

NETWORK = db.Network([db.Dense(32, "tanh"), db.Dense(N_CLASSES)], "softmax", (N_FEATURES,))
BATCH_ROWS = 5
LEASE_BATCHES = 10
N_SHARDS = 5
PASSES = 3.0
"""Where a run ends that has not reached the accuracy."""

TARGET = 0.8
N_IN_A_ROW = 3
"""The accuracy counts as reached at the first of so many evaluations in a row that have it."""
EVALUATE_EVERY = 100
"""Mini-batches, of all replicas together."""

_GENERATION = 0
_NO_END = 10**6


@dataclass(frozen=True)
class Times:
    """What takes how long on the simulated cluster; a jitter or spread is the standard deviation of a logarithm."""

    compute_seconds: float = 0.1
    """A mini-batch at speed 1."""
    compute_jitter: float = 0.1
    vector_bytes: float = 1e6
    """All parameters, or a gradient."""
    bytes_per_second: float = 1.25e9
    """Of each machine's line."""
    latency_seconds: float = 0.002
    """A message one way, beside its bytes."""
    latency_jitter: float = 0.3
    update_seconds: float = 5e-4
    """The rule over all parameters, if one machine did it."""
    speed_spread: float = 0.2
    slow_share: float = 0.02
    """Of the replicas, so much slower:"""
    slowness: float = 5.0
    pause_share: float = 0.002
    """Of the mini-batches, interrupted for up to:"""
    pause_seconds: float = 2.0

    def speeds(self, n_replicas: int, seed: int) -> list[float]:
        """Draw the replicas' speeds; their mean is 1 before some become slow, so that a single one has speed 1."""
        drawn = stream(seed, "simulated speeds").lognormal(0.0, self.speed_spread, n_replicas)
        drawn /= drawn.mean()
        # Not the first: it makes the warm start.
        drawn[n_replicas - int(self.slow_share * n_replicas) :] /= self.slowness
        return drawn.tolist()


@dataclass(frozen=True)
class Way:
    """A way to train; `backup_share` of the replicas are backups, and at least one is."""

    name: str
    rule: SGD | Adagrad
    warm_start_steps: int = 0
    staleness: Staleness | None = None
    backup_share: float = 0.0
    fetch_lag: int = 0

    def method(self, n_replicas: int) -> db.Downpour:
        """Give the options of a run."""
        staleness = self.staleness
        if self.backup_share:
            staleness = Synchronous(max(1, round(self.backup_share * n_replicas)))
        return db.Downpour(
            n_replicas=n_replicas,
            n_shards=N_SHARDS,
            rule=self.rule,
            batch_size=BATCH_ROWS,
            warm_start_steps=self.warm_start_steps,
            staleness=staleness,
            fetch_lag=self.fetch_lag,
            lease_rows=LEASE_BATCHES * BATCH_ROWS,
        )

    def at(self, rate: float) -> Way:
        """Give the same way with another learning rate."""
        return replace(self, rule=replace(self.rule, learning_rate=rate))


class Point(NamedTuple):
    """One evaluation on the rows held out."""

    seconds: float
    mini_batches: int
    accuracy: float


@dataclass(frozen=True)
class Outcome:
    """What came of one run; times are those of the simulated clock.

    `released` is when the warm start ended. `rows_per_second` is of rows whose gradient changed something, from then
    on, and `ideal_rows_per_second` what the replicas compute if nothing is in their way. `shard_use` is the share of
    the same time in which shards were serving. Staleness is of pushes to single shards, None where all step together.
    """

    way: str
    rate: float
    n_replicas: int
    ended: str
    released: float
    seconds: float
    mini_batches: int
    dropped: int
    rows_per_second: float
    ideal_rows_per_second: float
    shard_use: float
    staleness_mean: float | None
    staleness_p95: float | None
    staleness_max: float | None
    seconds_to_target: float | None
    mini_batches_to_target: int | None
    best_accuracy: float
    curve: list[Point]


@dataclass(eq=False)
class Exchange:
    """One exchange of a replica with all shards; the fetched values are used before its mini-batch `effective`."""

    at: StepKey
    effective: int
    push: PushKey | None = None
    gradient: np.ndarray | None = None
    lease: RowLease | None = None
    """The lease that ends with this push."""
    bases: list[int] = field(default_factory=list)
    values: np.ndarray | None = None
    versions: list[int] = field(default_factory=list)
    n_missing: int = 0
    ends: float = 0.0
    is_done: bool = False


@dataclass(eq=False)
class Replica:
    """One replica: what it computes with, what it has under way, and what it waits for."""

    number: int
    name: str
    speed: float
    chance: np.random.Generator
    values: np.ndarray | None = None
    versions: list[int] = field(default_factory=list)
    done: int = 0
    lease: RowLease | None = None
    batches: Iterator[tuple[int, np.ndarray, np.ndarray]] = field(default_factory=lambda: iter(()))
    waiting: RowLease | None = None
    """The next lease, asked for ahead."""
    needs_lease: bool = True
    needs_values: bool = False
    line: deque[Exchange] = field(default_factory=deque)
    allowed: int = 0
    """Mini-batches that it may begin, where others are not to be left behind."""
    held: Callable[[], None] | None = None
    """What it goes on with when it may."""
    closed: Round | None = None


class Message(NamedTuple):
    """What a replica says to all shards: the push of an exchange, its fetch, or both; and what follows the answers."""

    replica: Replica
    exchange: Exchange
    has_push: bool
    has_fetch: bool
    then: Callable[[Replica, Exchange], None]


class Problem(NamedTuple):
    """Rows to learn from and rows held out."""

    inputs: np.ndarray
    targets: np.ndarray
    test_inputs: np.ndarray
    test_targets: np.ndarray


@functools.cache
def problem() -> Problem:
    """Read the data once a process."""
    train, test = load("train"), load("test")
    mean, spread = train.scaled().mean(), train.scaled().std()
    inputs, test_inputs = ((rows.scaled() - mean) / spread for rows in (train, test))
    return Problem(inputs, train.targets, test_inputs, test.targets)


class Simulation:
    """One run by a virtual clock.

    Parameters
    ----------
    way, n_replicas, times
        What is simulated.
    passes
        Over the data, until it ends.
    seed
        Of the run, and of all that is drawn.
    """

    def __init__(self, way: Way, n_replicas: int, times: Times, passes: float = PASSES, seed: int = 0) -> None:
        self.method = method = way.method(n_replicas)
        self._way, self._times, self._seed = way, times, seed
        self._data = problem()
        self._n_pushes = math.ceil(passes * len(self._data.inputs) / BATCH_ROWS)
        n_leases = len(self._data.inputs) // (LEASE_BATCHES * BATCH_ROWS)
        # The last leases would wait for the slowest replica: there is always another epoch.
        self._book = LeaseBook(n_leases, _NO_END, seed, way.warm_start_steps)
        self._clocks = Clocks(method.staleness.max_staleness) if isinstance(method.staleness, MaxStaleness) else None
        self._rounds = Rounds(method.staleness.backup_replicas) if isinstance(method.staleness, Synchronous) else None
        self.shards, self._places = make_shards(method, seed)
        self._free_at = [0.0] * N_SHARDS
        self._served_seconds = 0.0
        self._now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.ages: list[int] = []
        self.pushed = 0
        self.curve: list[Point] = []
        self._ended: str | None = None
        # Of replicas that wait: for a lease, for slower ones, for the end of a round.
        self._idle: deque[Replica] = deque()
        self._paced: list[tuple[Replica, int]] = []
        self._in_round: list[tuple[Exchange, Replica, int]] = []
        self._released: tuple[float, int, float] | None = None
        self.speeds = times.speeds(n_replicas, seed)
        for number, speed in enumerate(self.speeds):
            replica = Replica(number, f"{number:04}", speed, stream(seed, "simulated replica", number))
            self._book.join(replica.name)
            self._after(replica.chance.uniform(0.0, times.compute_seconds), partial(self._ask, replica))

    def run(self) -> Outcome:
        """Simulate until the accuracy is reached, the passes are over, or the parameters are not finite any more."""
        # What overflows is found in the loss.
        with np.errstate(over="ignore", invalid="ignore"):
            self._evaluate()
            while self._ended is None:
                self._now, _, event = heapq.heappop(self._events)
                event()
        return self._outcome(self._ended)

    # Leases.

    def _ask(self, replica: Replica) -> None:
        self._travel(replica, partial(self._question, replica))

    def _question(self, replica: Replica) -> None:
        lease = self._book.next_lease(replica.name, self._now)
        if lease is None:
            self._idle.append(replica)
            return
        if self._clocks is not None:
            self._clocks.work(replica.name)
        self._travel(replica, partial(self._arrive, replica, lease))

    def _arrive(self, replica: Replica, lease: RowLease) -> None:
        replica.waiting = lease
        if replica.needs_lease:
            self._begin_lease(replica)

    def _begin_lease(self, replica: Replica) -> None:
        """Begin the lease that waits, and ask for the next."""
        lease, replica.waiting = replica.waiting, None
        replica.needs_lease = lease is None
        if lease is None:
            return
        replica.lease = lease
        rows = slice(lease.key.lease * LEASE_BATCHES * BATCH_ROWS, (lease.key.lease + 1) * LEASE_BATCHES * BATCH_ROWS)
        order = stream(self._seed, "rows", *lease.key)
        replica.batches = iter(MiniBatches(self._data.inputs[rows], self._data.targets[rows], BATCH_ROWS, order))
        self._ask(replica)
        if replica.values is None:
            self._send(replica, Exchange(StepKey(lease.key, 0), replica.done))
        self._go_on(replica)

    def _report(self, lease: RowLease) -> None:
        self._book.finish(lease.key, LEASE_BATCHES, LEASE_BATCHES * BATCH_ROWS)
        waiting, self._idle = self._idle, deque()
        for replica in waiting:
            self._question(replica)
        if self._clocks is not None:
            for replica in self._idle:
                self._clocks.rest(replica.name)
            self._let_go()
        self._close_round()

    # Mini-batches.

    def _go_on(self, replica: Replica) -> None:
        """Compute the next mini-batch, once the parameters are there that take effect with it."""
        line = replica.line
        while line and line[0].is_done and line[0].effective <= replica.done:
            first = line.popleft()
            replica.values, replica.versions = first.values, first.versions
        replica.needs_values = any(exchange.effective <= replica.done for exchange in line)
        if replica.needs_values:
            return
        assert replica.values is not None
        step, inputs, targets = next(replica.batches)
        loss, gradient = NETWORK.loss_and_gradient(replica.values, inputs, targets)
        if not math.isfinite(loss):
            self._ended = "diverged"
            return
        gradient *= np.float32(1.0 / len(inputs))
        times, chance = self._times, replica.chance
        seconds = times.compute_seconds / replica.speed * _jitter(chance, times.compute_jitter)
        if chance.random() < times.pause_share:
            seconds += chance.uniform(0.0, times.pause_seconds)
        self._after(seconds, partial(self._computed, replica, step, gradient))

    def _computed(self, replica: Replica, step: int, gradient: np.ndarray) -> None:
        replica.done += 1
        assert replica.lease is not None
        key = replica.lease.key
        exchange = Exchange(StepKey(key, step + 1), replica.done + self.method.lag, PushKey(key, step, step), gradient)
        exchange.bases = replica.versions
        if step + 1 == LEASE_BATCHES:
            exchange.lease = replica.lease
            self._send(replica, exchange)
            self._keep_pace(replica, partial(self._begin_lease, replica))
        else:
            self._send(replica, exchange)
            self._keep_pace(replica, partial(self._go_on, replica))

    # Exchanges: one after another for each replica.

    def _send(self, replica: Replica, exchange: Exchange) -> None:
        replica.line.append(exchange)
        if all(other.is_done for other in replica.line if other is not exchange):
            self._carry(replica, exchange)

    def _carry(self, replica: Replica, exchange: Exchange) -> None:
        exchange.values = np.empty(NETWORK.n_parameters, np.float32)
        has_push = exchange.push is not None
        if self._rounds is None:
            self._tell_shards(Message(replica, exchange, has_push, True, self._exchanged))
        elif has_push:
            exchange.bases = [self._number(replica)] * N_SHARDS
            self._tell_shards(Message(replica, exchange, True, False, self._pushed_for_round))
        else:
            replica.closed = self._rounds.last
            self._tell_shards(Message(replica, exchange, False, True, self._exchanged))

    def _tell_shards(self, message: Message) -> None:
        """Send a message to each shard, beginning with another one than the next replica."""
        times, replica, exchange = self._times, message.replica, message.exchange
        exchange.n_missing, exchange.versions = N_SHARDS, [0] * N_SHARDS
        piece_seconds = message.has_push * times.vector_bytes / N_SHARDS / times.bytes_per_second
        latencies = times.latency_seconds * _jitter(replica.chance, times.latency_jitter, 2 * N_SHARDS)
        for place in range(N_SHARDS):
            index = (replica.number + place) % N_SHARDS
            arrives = (place + 1) * piece_seconds + latencies[place]
            self._after(arrives, partial(self._serve, message, index, latencies[N_SHARDS + place]))

    def _serve(self, message: Message, index: int, latency: float) -> None:
        """What a shard does with a message, in the order in which they come; the answer leaves when it has served."""
        exchange, has_push, place = message.exchange, message.has_push, self._places[index]
        seconds = self._service_seconds(message)
        self._free_at[index] = max(self._now, self._free_at[index]) + seconds
        self._served_seconds += seconds
        gradient = exchange.gradient if has_push else None
        # A push for a round is told of no other: the one before was closed with the fetch.
        closed = None if has_push and self._rounds is not None else message.replica.closed
        version, values = self.shards[index].exchange(
            _GENERATION,
            message.replica.name,
            exchange.at,
            exchange.push if has_push else None,
            exchange.bases[index] if has_push else 0,
            0,
            len(place),
            None if gradient is None else gradient[place.start : place.stop],
            None,
            message.has_fetch,
            closed,
        )
        exchange.versions[index] = version
        if values is not None and exchange.values is not None:
            exchange.values[place.start : place.stop] = values
        if has_push and self._rounds is None:
            self.ages.append(version - 1 - exchange.bases[index])
        exchange.ends = max(exchange.ends, self._free_at[index] + latency)
        exchange.n_missing -= 1
        if exchange.n_missing == 0:
            self._after(exchange.ends - self._now, partial(message.then, message.replica, exchange))
            if has_push:
                self._note_push()

    def _service_seconds(self, message: Message) -> float:
        times = self._times
        transfer = (message.has_push + message.has_fetch) * times.vector_bytes / times.bytes_per_second
        return (transfer + message.has_push * times.update_seconds) / N_SHARDS

    def _exchanged(self, replica: Replica, exchange: Exchange) -> None:
        exchange.is_done = True
        if exchange.lease is not None:
            self._travel(replica, partial(self._report, exchange.lease))
        following = next((other for other in replica.line if not other.is_done), None)
        if following is not None:
            self._carry(replica, following)
        if replica.needs_values:
            self._go_on(replica)

    # Keeping within a limit of the slowest.

    def _keep_pace(self, replica: Replica, then: Callable[[], None]) -> None:
        if self._clocks is None:
            then()
            return
        self._travel(replica, partial(self._tick, replica, replica.done))
        replica.held = then
        self._go_on_if_allowed(replica, replica.allowed)

    def _go_on_if_allowed(self, replica: Replica, allowed: int) -> None:
        replica.allowed = max(replica.allowed, allowed)
        if replica.held is not None and replica.allowed > replica.done:
            then, replica.held = replica.held, None
            then()

    def _tick(self, replica: Replica, done: int) -> None:
        assert self._clocks is not None
        self._clocks.note(replica.name, done)
        self._paced.append((replica, done))
        self._let_go()

    def _let_go(self) -> None:
        """Answer those who may go on."""
        assert self._clocks is not None
        still = []
        for replica, done in self._paced:
            allowed = self._clocks.allowed(replica.name)
            if allowed > done:
                self._travel(replica, partial(self._go_on_if_allowed, replica, allowed))
            else:
                still.append((replica, done))
        self._paced = still

    # Rounds of synchronous training.

    def _number(self, replica: Replica) -> int:
        return 0 if replica.closed is None else replica.closed.number + 1

    def _pushed_for_round(self, replica: Replica, exchange: Exchange) -> None:
        self._travel(replica, partial(self._arrive_for_round, replica, exchange))

    def _arrive_for_round(self, replica: Replica, exchange: Exchange) -> None:
        assert self._rounds is not None and exchange.push is not None
        self._in_round.append((exchange, replica, self._number(replica)))
        is_in_time = self._rounds.arrive(replica.name, self._number(replica), exchange.push)
        if not (is_in_time and self._close_round()):
            self._answer_rounds()

    def _close_round(self) -> bool:
        is_closed = self._rounds is not None and self._rounds.close(self._book.at_work)
        if is_closed:
            self._answer_rounds()
        return is_closed

    def _answer_rounds(self) -> None:
        """Tell those whose round is closed of the last one: they fetch what it has made."""
        assert self._rounds is not None
        still = []
        for exchange, replica, number in self._in_round:
            if self._rounds.number > number:
                replica.closed = self._rounds.last
                fetch = Message(replica, exchange, False, True, self._exchanged)
                self._travel(replica, partial(self._tell_shards, fetch))
            else:
                still.append((exchange, replica, number))
        self._in_round = still

    # The clock, and what is found.

    def _after(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self._now + seconds, next(self._order), event))

    def _travel(self, replica: Replica, event: Callable[[], None]) -> None:
        """A short message between a replica and the ledger."""
        self._after(self._times.latency_seconds * _jitter(replica.chance, self._times.latency_jitter), event)

    def _note_push(self) -> None:
        self.pushed += 1
        if self._released is None and self.pushed >= self._way.warm_start_steps:
            self._released = (self._now, self._n_applied, self._served)
        if self.pushed % EVALUATE_EVERY == 0:
            self._evaluate()
        if self._ended is None and self.pushed >= self._n_pushes:
            self._ended = "passes over"

    def _evaluate(self) -> None:
        pieces = [shard.read(_GENERATION, VALUES, 0, len(self._places[i])) for i, shard in enumerate(self.shards)]
        guesses = NETWORK.predict(np.concatenate(pieces), self._data.test_inputs).argmax(axis=1)
        self.curve.append(Point(self._now, self.pushed, float(np.mean(guesses == self._data.test_targets))))
        if self._reached() is not None:
            self._ended = "reached"

    def _reached(self) -> Point | None:
        last = self.curve[-N_IN_A_ROW:]
        is_reached = len(last) == N_IN_A_ROW and all(point.accuracy >= TARGET for point in last)
        return last[0] if is_reached else None

    @property
    def _served(self) -> float:
        """Seconds that shards have served until now."""
        return self._served_seconds - sum(max(0.0, free_at - self._now) for free_at in self._free_at)

    @property
    def _n_applied(self) -> int:
        """Gradients that made a step or a part of one, on the first shard."""
        return sum(self.shards[0].counts(_GENERATION).staleness)

    def _outcome(self, ended: str) -> Outcome:
        # Of no warm start the first moments count too.
        began, applied, served = (self._way.warm_start_steps and self._released) or (0.0, 0, 0.0)
        seconds = max(self._now - began, 1e-9)
        reached = self._reached()
        ages = np.array(self.ages)
        return Outcome(
            way=self._way.name,
            rate=self._way.rule.rate(0),
            n_replicas=len(self.speeds),
            ended=ended,
            released=began,
            seconds=self._now,
            mini_batches=self.pushed,
            dropped=self.shards[0].counts(_GENERATION).n_dropped,
            rows_per_second=(self._n_applied - applied) * BATCH_ROWS / seconds,
            ideal_rows_per_second=sum(self.speeds) * BATCH_ROWS / self._times.compute_seconds,
            shard_use=(self._served - served) / N_SHARDS / seconds,
            staleness_mean=float(ages.mean()) if len(ages) else None,
            staleness_p95=float(np.quantile(ages, 0.95)) if len(ages) else None,
            staleness_max=float(ages.max()) if len(ages) else None,
            seconds_to_target=None if reached is None else reached.seconds,
            mini_batches_to_target=None if reached is None else reached.mini_batches,
            best_accuracy=max(point.accuracy for point in self.curve),
            curve=self.curve,
        )


def make_shards(method: db.Downpour, seed: int) -> tuple[list[Shard], list[range]]:
    """Make the shards, each with its range of the first parameters; smaller ones than a run would make."""
    first = NETWORK.initial_parameters(seed)
    borders = [len(first) * index // N_SHARDS for index in range(N_SHARDS + 1)]
    places = [range(start, stop) for start, stop in itertools.pairwise(borders)]
    updates = UpdateSpec(method.rule, method.n_replicas, method.weight_decay, method.staleness)
    shards = []
    for index, place in enumerate(places):
        shard = Shard(ShardSpec(_GENERATION, index, place, len(first), "float32", updates=updates))
        shard.write(_GENERATION, VALUES, 0, first[place.start : place.stop])
        shard.begin_updates(_GENERATION)
        shards.append(shard)
    return shards, places


def _jitter(chance: np.random.Generator, spread: float, size: int | None = None) -> Any:
    """Draw factors whose mean is 1."""
    return chance.lognormal(-0.5 * spread**2, spread, size)
