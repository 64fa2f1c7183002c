"""What a shard does with pushes: each mini-batch once, by the rule, and what is done about old gradients."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_belief.errors import StaleError
from dask_belief.monitoring.staleness import N_BINS, bin_of
from dask_belief.optim.rules import SGD, Adagrad, Momentum, Rule
from dask_belief.parameter_server.consistency import ElasticAveraging, ScaleByStaleness, Staleness, Synchronous
from dask_belief.parameter_server.messages import Finished, LeaseKey, Logged, PushKey, Round, StepKey
from dask_belief.parameter_server.selection import Selection
from dask_belief.parameter_server.updates import STATE, VALUES, Push, SavedPiece, Updates, UpdateSpec
from dask_belief.parameter_server.vectors import Vectors
from dask_belief.seeds import stream

EXAMPLES = settings(derandomize=True, deadline=None, max_examples=100)
SEED = 51
LENGTH = 8
WHOLE = slice(0, LENGTH)
LEASE, OTHER = LeaseKey(0, 3), LeaseKey(1, 3)
PENALISED = np.array([True, False, True, True, False, True, True, False])


@dataclass(frozen=True)
class Falling:
    """Plain descent at the rate ``1 / (1 + n_updates)``."""

    name: ClassVar[str] = "falling"
    learning_rate: float = 1.0

    def rate(self, n_updates: int) -> float:
        return 1.0 / (1 + n_updates)

    def init(self, values: Any) -> dict[str, Any]:
        return {}

    def apply(
        self,
        values: Any,
        gradient: Any,
        state: dict[str, Any],
        n_updates: int = 0,
        *,
        rate_factor: float = 1.0,
        backend: Any = None,
    ) -> None:
        values -= self.rate(n_updates) * rate_factor * gradient

    def to_config(self) -> dict[str, Any]:
        return {"rule": self.name}


class Held:
    """Updates with the vectors that they change."""

    def __init__(self, rule: Rule, initial: Any = 0.0, dtype: str = "float64", **options: Any) -> None:
        self.vectors = Vectors(range(LENGTH), LENGTH, dtype, PENALISED)
        self.vectors.make(VALUES)[:] = initial
        self.updates = Updates(self.vectors, UpdateSpec(rule, **options))
        self.updates.begin()

    @property
    def values(self) -> np.ndarray:
        return self.vectors[VALUES].copy()

    def push(
        self,
        gradient: np.ndarray,
        first: int,
        last: int | None = None,
        *,
        lease: LeaseKey = LEASE,
        base: int = 0,
        place: slice = WHOLE,
        runs: Any = None,
        fetch: Any = False,
        closed: Round | None = None,
        replica: str = "replica-0",
    ) -> tuple[int, np.ndarray | None]:
        key = PushKey(lease, first, first if last is None else last)
        push = Push(key, base, gradient, runs)
        return self.updates.exchange(replica, StepKey(lease, key.last + 1), place, push, fetch, closed)

    def fetch(self, fetch: Any = True, closed: Round | None = None, replica: str = "replica-0") -> Any:
        return self.updates.exchange(replica, StepKey(LEASE, 0), WHOLE, None, fetch, closed)


def gradients(n: int) -> list[np.ndarray]:
    rng = stream(SEED, "gradients")
    return [rng.standard_normal(LENGTH) for _ in range(n)]


# Each mini-batch once.

PIECES = (slice(0, 3), slice(3, 8))
BORDERS = {LEASE: [(0, 1), (2, 3), (4, 4)], OTHER: [(0, 0), (1, 4)]}
RUNS = {0: np.array([[0, 1], [2, 3]]), 3: np.array([[1, 4]])}


def number(lease: LeaseKey, index: int) -> float:
    """What a push adds: another power of two each, so that sums are exact and tell what is in them."""
    return 2.0 ** (10 * lease.epoch + index)


@pytest.mark.parametrize("is_sparse", [False, True], ids=["dense", "sparse"])
@EXAMPLES
@given(data=st.data())
def test_each_mini_batch_counts_once(is_sparse: bool, data: st.DataObject) -> None:
    """Repeated, reordered, or reaching one piece only: a push is applied, dropped or refused, piece by piece."""
    held = Held(SGD(1.0))
    marks = {(piece.start, lease): -1 for piece in PIECES for lease in BORDERS}
    applied: Counter[int] = Counter()
    n_dropped = 0

    def send(piece: slice, lease: LeaseKey, index: int) -> None:
        nonlocal n_dropped
        runs = RUNS[piece.start] if is_sparse else None
        length = Selection(runs).n_elements if runs is not None else piece.stop - piece.start
        gradient, (first, last) = np.full(length, number(lease, index)), BORDERS[lease][index]
        mark = marks[piece.start, lease]
        if index > mark + 1:
            before = held.values
            with pytest.raises(StaleError, match="there is a gap"):
                held.push(gradient, first, last, lease=lease, place=piece, runs=runs)
            np.testing.assert_array_equal(held.values, before)
            return
        n_dropped += index <= mark
        if index > mark:
            marks[piece.start, lease] = index
            applied[piece.start] += 1
        assert held.push(gradient, first, last, lease=lease, place=piece, runs=runs)[0] == applied[piece.start]

    pushes = [(piece, lease, index) for piece in PIECES for lease in BORDERS for index in range(len(BORDERS[lease]))]
    for piece, lease, index in data.draw(st.lists(st.sampled_from(pushes), max_size=40)):
        send(piece, lease, index)
        assert held.updates.applied(lease, 2) == min(
            -1 if (mark := marks[each.start, lease]) < 0 else BORDERS[lease][mark][1] for each in PIECES
        )
    # A successor begins with what some piece lacks, and repeats it to those that have it.
    for piece, lease, index in pushes:
        send(piece, lease, index)
    expected = np.zeros(LENGTH)
    for piece in PIECES:
        touched = np.ones(piece.stop - piece.start)
        if is_sparse:
            touched[:] = 0
            Selection(RUNS[piece.start]).fill(touched, 1.0)
        expected[piece] = -sum(number(lease, index) for _, lease, index in pushes) / 2 * touched
    np.testing.assert_array_equal(held.values, expected)
    assert held.updates.n_dropped == n_dropped
    assert held.updates.n_updates == 5


def test_saved_pieces_go_on_exactly() -> None:
    """Values, state, marks and counts; what was pushed before the save is dropped by the successor."""
    first, second = gradients(2)
    old = Held(Adagrad(0.1), 1.0)
    old.push(first, 0)
    saved = old.updates.save(WHOLE)
    assert (saved.n_updates, saved.marks, saved.n_bytes) == (1, {LEASE: 0}, 2 * 8 * LENGTH)
    new = Held(Adagrad(0.1))
    new.updates.restore(0, saved)
    for held in (old, new):
        held.push(first, 0)
        held.push(second, 1)
    np.testing.assert_array_equal(new.values, old.values)
    np.testing.assert_array_equal(new.vectors[STATE + "accumulator"], old.vectors[STATE + "accumulator"])


@pytest.mark.parametrize("finished", [Finished(1, frozenset()), Finished(0, frozenset([LEASE]))])
def test_finished_leases_need_no_marks(finished: Finished) -> None:
    """Whole epochs or single leases: their marks go, others stay, and what is pushed for them later is dropped."""
    held = Held(SGD(1.0))
    held.push(np.ones(LENGTH), 0)
    held.push(np.ones(LENGTH), 0, lease=OTHER)
    held.updates.forget_marks(finished)
    assert held.updates.save(WHOLE).marks == {OTHER: 0}
    held.push(np.ones(LENGTH), 5)
    np.testing.assert_array_equal(held.values, np.full(LENGTH, -2.0))
    assert held.updates.n_dropped == 1


# The step.


def test_rate_goes_by_the_updates_of_the_piece() -> None:
    """Each piece counts its own; the shard tells of the one that has had the most."""
    held = Held(Falling())
    held.push(np.ones(3), 0, place=PIECES[0])
    held.push(np.ones(3), 1, place=PIECES[0])
    held.push(np.ones(5), 0, place=PIECES[1])
    np.testing.assert_array_equal(held.values, [-1.5] * 3 + [-1.0] * 5)
    assert held.updates.rate == 1 / 3


@pytest.mark.parametrize("rule", [SGD(0.1), Adagrad(0.1), Momentum(0.1, 0.5)])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_weights_decay_before_the_step(rule: Rule, decay: float) -> None:
    """By ``1 - rate * weight_decay`` where parameters are penalised, past the rule's state."""
    held = Held(rule, np.arange(LENGTH), weight_decay=decay)
    expected = np.arange(LENGTH, dtype=np.float64)
    state = rule.init(expected)
    for step, gradient in enumerate(gradients(4)):
        held.push(gradient, step)
        expected *= np.where(PENALISED, 1 - rule.rate(step) * decay, 1.0)
        rule.apply(expected, gradient, state, step)
    np.testing.assert_allclose(held.values, expected, rtol=1e-12)
    for name, vector in state.items():
        np.testing.assert_allclose(held.vectors[STATE + name], vector, rtol=1e-12)


@pytest.mark.parametrize("rule", [SGD(0.1), Adagrad(0.1)])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_sparse_push_is_a_step_of_what_it_covers(rule: Rule, decay: float) -> None:
    """There as the dense one, which is zero elsewhere; what lies beside it, and its state, are left to the bit."""
    runs = np.array([[1, 3], [4, 5], [6, 8]])
    chosen, covered = Selection(runs), np.zeros(LENGTH, bool)
    covered[[1, 2, 4, 6, 7]] = True
    dense, sparse = (Held(rule, np.arange(LENGTH), weight_decay=decay) for _ in range(2))
    before = {name: sparse.vectors[name].copy() for name in (VALUES, *(STATE + name for name in rule.init(np.ones(1))))}
    for step, gradient in enumerate(gradients(3)):
        dense.push(np.where(covered, gradient, 0.0), step)
        sparse.push(chosen.take(gradient), step, runs=runs)
    for name, vector in before.items():
        np.testing.assert_allclose(sparse.vectors[name][covered], dense.vectors[name][covered], rtol=1e-12)
        np.testing.assert_array_equal(sparse.vectors[name][~covered], vector[~covered])


def test_memory_rests_where_a_sparse_push_covers_nothing() -> None:
    """Momentum moves on only what a push covers; an empty push counts as an update."""
    held, runs = Held(Momentum(1.0, 0.5)), np.array([[0, 2]])
    held.push(np.ones(2), 0, runs=runs)
    assert held.push(np.ones(0), 1, runs=np.empty((0, 2), np.int64)) == (2, None)
    np.testing.assert_array_equal(held.values, [-1.0, -1.0] + [0.0] * 6)


@pytest.mark.parametrize(
    ("fetch", "expected"),
    [(True, range(LENGTH)), (np.array([[0, 2], [7, 8]]), [0, 1, 7]), (np.empty((0, 2), np.int64), [])],
    ids=["all", "ranges", "none"],
)
def test_fetch_gives_a_copy_of_what_is_wanted(fetch: Any, expected: Any) -> None:
    """All values, or ranges of them one after another."""
    held = Held(SGD(1.0), np.arange(LENGTH))
    n_updates, values = held.fetch(fetch)
    assert n_updates == 0
    assert values is not None
    np.testing.assert_array_equal(values, list(expected))
    values[:] = 99
    np.testing.assert_array_equal(held.values, np.arange(LENGTH))


# Old gradients.


@st.composite
def traffic(draw: st.DrawFn) -> list[tuple[int, bool]]:
    """Which of three replicas fetches or pushes."""
    return draw(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=80))


@EXAMPLES
@given(traffic(), st.sampled_from([None, ScaleByStaleness()]))
def test_staleness_is_counted_and_scales_the_rate(events: list[tuple[int, bool]], staleness: Staleness | None) -> None:
    """The updates of the piece since the fetch, in bins; each push is divided by it, or by one, where that is asked."""
    held = Held(Falling(), staleness=staleness)
    log: list[int] = []
    fetched_at, bases, steps = [0] * 3, [0] * 3, [0] * 3
    counts, expected = [0] * N_BINS, 0.0
    for replica, is_push in events:
        if not is_push:
            bases[replica], _ = held.fetch()
            fetched_at[replica] = len(log)
            continue
        age = len(log) - fetched_at[replica]
        counts[bin_of(age)] += 1
        expected -= 1.0 / (1 + len(log)) / (max(1, age) if staleness else 1)
        held.push(np.ones(LENGTH), steps[replica], lease=LeaseKey(0, replica), base=bases[replica])
        log.append(replica)
        steps[replica] += 1
        np.testing.assert_allclose(held.values, np.full(LENGTH, expected), rtol=1e-12)
    assert list(held.updates.staleness) == counts


def test_dropped_pushes_are_not_counted_as_stale() -> None:
    """Only what was applied has a staleness."""
    held = Held(SGD(1.0))
    held.push(np.ones(LENGTH), 0)
    held.push(np.ones(LENGTH), 0)
    assert sum(held.updates.staleness) == 1


def test_elastic_averaging_by_its_formulas() -> None:
    """``c += alpha (x - c)`` with ``alpha = beta / p``, and the replica is told what to take off its own x."""
    beta, n_replicas = 0.9, 3
    alpha = beta / n_replicas
    held = Held(Momentum(0.1), np.arange(LENGTH), staleness=ElasticAveraging(beta), n_replicas=n_replicas)
    assert held.updates.state_names == ()
    centre = np.arange(LENGTH, dtype=np.float64)
    for step, own in enumerate(gradients(4)):
        n_updates, pull = held.push(own, step)
        assert n_updates == step + 1
        np.testing.assert_allclose(pull, alpha * (own - centre), rtol=1e-12)
        centre += alpha * (own - centre)
        np.testing.assert_allclose(held.values, centre, rtol=1e-12)


def test_repeated_elastic_push_moves_nobody() -> None:
    """Neither the shard nor the replica that repeats it."""
    held = Held(SGD(0.1), staleness=ElasticAveraging(0.5), n_replicas=1)
    held.push(np.ones(LENGTH), 0)
    before = held.values
    n_updates, pull = held.push(np.full(LENGTH, 9.0), 0)
    assert n_updates == 1
    np.testing.assert_array_equal(pull, np.zeros(LENGTH))
    np.testing.assert_array_equal(held.values, before)


# The wire.


def bfloat16(values: Any) -> np.ndarray:
    """The upper halves of numbers that need no rounding."""
    words = np.asarray(values, np.float32).view(np.uint32)
    assert not (words & 0xFFFF).any()
    return (words >> 16).astype(np.uint16)


def widened(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(initial: Any = 0.0, **options: Any) -> Held:
    return Held(SGD(0.5), initial, dtype="float32", wire_dtype="bfloat16", **options)


def test_bfloat16_is_widened_before_the_step_and_rounded_after_it() -> None:
    """The values keep their digits; what is given is the nearest, ties to even."""
    held = narrow(1.0)
    gradient = np.array([2.0**-9, -(2.0**-9), 3 * 2.0**-9, -1.0, 0.0, 1.0, 2.0, 2.0**-20], np.float32)
    n_updates, given = held.push(bfloat16(gradient), 0, fetch=True)
    assert n_updates == 1 and given is not None and given.dtype == np.uint16
    np.testing.assert_array_equal(held.values, np.float32(1) - np.float32(0.5) * gradient)
    # Numbers from 1/2 to 1 are 2**-8 apart, and those from 1 on 2**-7.
    np.testing.assert_array_equal(widened(given), [1.0, 1.0, 1 - 2.0**-8, 1.5, 1.0, 0.5, 0.0, 1.0])


def test_a_sparse_push_of_bfloat16() -> None:
    """Ranges are chosen as of whole numbers, at a push and at a fetch."""
    held = narrow()
    runs = np.array([[1, 3], [6, 7]])
    _, given = held.push(bfloat16([1.0, 2.0, 4.0]), 0, runs=runs, fetch=runs)
    np.testing.assert_array_equal(held.values, [0, -0.5, -1, 0, 0, 0, -2, 0])
    assert given is not None
    np.testing.assert_array_equal(widened(given), [-0.5, -1, -2])


def test_both_sides_of_a_spring_move_by_the_same_bfloat16() -> None:
    """What the shard gets is what the replica is told to give, bit for bit; a repeated push moves neither."""
    start = stream(SEED, "start").standard_normal(LENGTH).astype(np.float32)
    held = narrow(start, staleness=ElasticAveraging(0.9), n_replicas=3)
    own = bfloat16(np.arange(LENGTH))
    _, pull = held.push(own, 0)
    assert pull is not None and pull.dtype == np.uint16
    np.testing.assert_array_equal(held.values, start + widened(pull))
    np.testing.assert_allclose(widened(pull), 0.3 * (np.arange(LENGTH) - start), rtol=2.0**-8)
    before = held.values
    _, again = held.push(own, 0)
    assert again is not None
    np.testing.assert_array_equal(widened(again), np.zeros(LENGTH))
    np.testing.assert_array_equal(held.values, before)


def test_pushes_of_a_round_are_kept_apart() -> None:
    """What is widened for one is not the memory of the one before."""
    held = narrow(staleness=Synchronous())
    keys = [PushKey(LeaseKey(0, lease), 0, 0) for lease in range(2)]
    for key, value in zip(keys, (1.0, 3.0), strict=True):
        held.push(bfloat16(np.full(LENGTH, value)), 0, lease=key.lease)
    held.fetch(closed=Round(0, tuple(keys), ()))
    np.testing.assert_array_equal(held.values, np.full(LENGTH, -1.0))


# Rounds.


def key(lease: int, step: int = 0) -> PushKey:
    return PushKey(LeaseKey(0, lease), step, step)


def stage(held: Held, lease: int, gradient: np.ndarray, *, step: int = 0, number: int = 0) -> None:
    held.push(gradient, step, lease=LeaseKey(0, lease), base=number)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_round_is_one_step_by_the_mean(order: tuple[int, ...]) -> None:
    """Of its members, added in the order of their leases whatever the order in which they came: the same bits."""
    held = Held(SGD(1.0), staleness=Synchronous())
    given = gradients(3)
    for lease in order:
        stage(held, lease, given[lease])
    np.testing.assert_array_equal(held.values, np.zeros(LENGTH))
    n_updates, values = held.fetch(closed=Round(0, (key(0), key(1), key(2)), ()))
    assert n_updates == 1
    np.testing.assert_array_equal(values, -((given[0] + given[1]) + given[2]) * (1 / 3))
    assert held.updates.staleness[0] == 3
    # Whoever fetches after that names the same round.
    assert held.fetch(closed=Round(0, (key(0), key(1), key(2)), ()))[0] == 1
    np.testing.assert_array_equal(held.values, values)


def test_what_is_no_member_makes_no_step() -> None:
    """A push that reached this shard, and not all of them in time, is forgotten with its round and may come again."""
    held = Held(SGD(1.0), staleness=Synchronous())
    stage(held, 0, np.ones(LENGTH))
    stage(held, 1, np.full(LENGTH, 9.0))
    held.fetch(closed=Round(0, (key(0),), ()))
    np.testing.assert_array_equal(held.values, np.full(LENGTH, -1.0))
    stage(held, 1, np.full(LENGTH, 5.0), number=1)
    held.fetch(closed=Round(1, (key(1),), ()))
    np.testing.assert_array_equal(held.values, np.full(LENGTH, -6.0))
    assert held.updates.applied(LeaseKey(0, 1), 1) == 0


def test_push_for_a_closed_round_is_not_kept() -> None:
    """Its round has gone by; the next tells that its mini-batches count as done."""
    held = Held(SGD(1.0), staleness=Synchronous(1))
    stage(held, 0, np.ones(LENGTH))
    held.fetch(closed=Round(0, (key(0),), ()))
    stage(held, 1, np.full(LENGTH, 9.0), number=0)
    stage(held, 0, np.ones(LENGTH), step=1, number=1)
    held.fetch(closed=Round(1, (key(0, 1),), (key(1),)))
    np.testing.assert_array_equal(held.values, np.full(LENGTH, -2.0))
    assert held.updates.applied(LeaseKey(0, 1), 1) == 0
    assert held.updates.n_dropped == 1
    # So the lease goes on with the next one.
    stage(held, 1, np.ones(LENGTH), step=1, number=2)
    held.fetch(closed=Round(2, (key(1, 1),), ()))
    np.testing.assert_array_equal(held.values, np.full(LENGTH, -3.0))


def test_staged_gradient_is_a_copy() -> None:
    """The sender uses its vector again."""
    held, gradient = Held(SGD(1.0), staleness=Synchronous()), np.ones(LENGTH)
    stage(held, 0, gradient)
    gradient[:] = 9
    held.fetch(closed=Round(0, (key(0),), ()))
    np.testing.assert_array_equal(held.values, np.full(LENGTH, -1.0))


def restored(saved: SavedPiece, *, is_behind: bool = False, rule: Rule | None = None, **options: Any) -> Held:
    """Another shard with what was saved of one."""
    held = Held(rule or SGD(1.0), **options)
    held.updates.restore(0, saved, is_behind)
    return held


def test_round_goes_on_where_it_was_saved() -> None:
    """Its number is kept; what was staged meanwhile is not, and sent again it makes the step."""
    old = Held(SGD(1.0), staleness=Synchronous())
    stage(old, 0, np.ones(LENGTH))
    old.fetch(closed=Round(0, (key(0),), ()))
    stage(old, 0, np.full(LENGTH, 9.0), step=1, number=1)
    new = restored(old.updates.save(WHOLE), staleness=Synchronous())
    assert (new.updates.applied(LeaseKey(0, 0), 1), new.updates.n_rounds) == (0, 1)
    stage(new, 0, np.ones(LENGTH), step=1, number=1)
    new.fetch(closed=Round(1, (key(0, 1),), ()))
    np.testing.assert_array_equal(new.values, np.full(LENGTH, -2.0))
    assert new.updates.n_lost == 0


def test_round_is_handed_over_with_what_was_staged() -> None:
    """Nobody sends it again, and the sums have the same bits; the copies are independent of each other."""
    given = gradients(2)
    held = [Held(SGD(1.0), staleness=Synchronous()) for _ in range(2)]
    for each in held:
        stage(each, 0, given[0])
    saved = held[0].updates.save(WHOLE, with_staged=True)
    new = restored(saved, staleness=Synchronous())
    for each in (held[1], new):
        stage(each, 1, given[1])
        each.fetch(closed=Round(0, (key(0), key(1)), ()))
    np.testing.assert_array_equal(new.values, held[1].values)
    assert new.updates.n_lost == 0
    # The shard that it came from knows nothing of this.
    assert (held[0].updates.n_rounds, held[0].values.tolist()) == (0, [0.0] * LENGTH)


def test_rounds_closed_without_a_piece_are_passed_over() -> None:
    """A piece that was put back takes part again in the round under way, and what it had staged before is not used."""
    old = Held(SGD(1.0), staleness=Synchronous())
    saved = old.updates.save(WHOLE)
    new = restored(saved, is_behind=True, staleness=Synchronous())
    stage(new, 0, np.full(LENGTH, 9.0))
    # Rounds 0 to 2 were closed by others.
    stage(new, 0, np.ones(LENGTH), step=3, number=3)
    assert new.updates.n_rounds == 3
    new.fetch(closed=Round(3, (key(0, 3),), ()))
    np.testing.assert_array_equal(new.values, np.full(LENGTH, -1.0))
    assert (new.updates.n_rounds, new.updates.n_lost) == (4, 3)


@pytest.mark.parametrize("is_behind", [True, False], ids=["piece", "ledger"])
def test_round_whose_pushes_were_lost_is_no_step(is_behind: bool) -> None:
    """After the piece was put back, or the ledger: what a round names and the piece lacks counts as lost, once."""
    new = restored(Held(SGD(1.0)).updates.save(WHOLE), is_behind=is_behind, staleness=Synchronous())
    closed = Round(5, (key(0, 0), key(1, 0)), ())
    new.fetch(closed=closed)
    new.fetch(closed=closed)
    assert new.values.tolist() == [0.0] * LENGTH
    assert (new.updates.n_rounds, new.updates.n_lost, new.updates.n_updates) == (6, 2, 0)
    # A late repetition changes nothing.
    stage(new, 0, np.ones(LENGTH), number=6)
    new.fetch(closed=Round(6, (), ()))
    assert new.values.tolist() == [0.0] * LENGTH


def test_round_with_some_of_its_pushes_is_a_step_by_the_mean_of_those() -> None:
    """The others went with the piece that was lost."""
    new = restored(Held(SGD(1.0)).updates.save(WHOLE), is_behind=True, staleness=Synchronous())
    stage(new, 1, np.ones(LENGTH))
    new.fetch(closed=Round(0, (key(0), key(1)), ()))
    np.testing.assert_array_equal(new.values, np.full(LENGTH, -1.0))
    assert new.updates.n_lost == 1


# A piece that was put back to an older state.


def test_gap_is_lost_once_for_each_lease() -> None:
    """What a lease had pushed since the save is counted as lost; from then on it may leave no gap."""
    old = Held(SGD(1.0))
    old.push(np.ones(LENGTH), 0)
    new = restored(old.updates.save(WHOLE), is_behind=True)
    new.push(np.ones(LENGTH), 4)
    np.testing.assert_array_equal(new.values, np.full(LENGTH, -2.0))
    assert (new.updates.n_lost, new.updates.applied(LEASE, 1)) == (3, 4)
    with pytest.raises(StaleError, match="there is a gap"):
        new.push(np.ones(LENGTH), 6)
    # Another one has a gap of its own.
    new.push(np.ones(LENGTH), 2, lease=OTHER)
    with pytest.raises(StaleError, match="there is a gap"):
        new.push(np.ones(LENGTH), 5, lease=OTHER)
    assert new.updates.n_lost == 5
    np.testing.assert_array_equal(new.values, np.full(LENGTH, -3.0))


def test_lease_that_went_on_without_a_gap_may_leave_none_later() -> None:
    """Its first push after the piece was put back says that nothing of it was lost."""
    new = restored(Held(SGD(1.0)).updates.save(WHOLE), is_behind=True)
    new.push(np.ones(LENGTH), 0)
    with pytest.raises(StaleError, match="there is a gap"):
        new.push(np.ones(LENGTH), 2)
    assert new.updates.n_lost == 0


def test_overlap_is_no_loss() -> None:
    """A push of which the piece has a part already is refused, put back or not."""
    old = Held(SGD(1.0))
    old.push(np.ones(LENGTH), 0, 1)
    new = restored(old.updates.save(WHOLE), is_behind=True)
    with pytest.raises(StaleError, match="there is a gap"):
        new.push(np.ones(LENGTH), 1, 3)
    assert (new.updates.n_lost, new.values.tolist()) == (0, [-1.0] * LENGTH)


@pytest.mark.parametrize("is_behind", [False, True])
def test_gap_is_refused_where_nothing_was_put_back(is_behind: bool) -> None:
    """A shard that begins may be behind others, and one that is filled may be level with them."""
    held = Held(SGD(1.0))
    held.updates.begin(is_behind)
    if is_behind:
        held.push(np.ones(LENGTH), 3)
        assert held.updates.n_lost == 3
        return
    with pytest.raises(StaleError, match="there is a gap"):
        held.push(np.ones(LENGTH), 3)
    with pytest.raises(StaleError, match="there is a gap"):
        restored(held.updates.save(WHOLE)).push(np.ones(LENGTH), 3)


def test_what_is_behind_stays_so_when_it_is_handed_over() -> None:
    """To a copy, say: leases that have not been heard of since may still leave their gap, others may not."""
    behind = restored(Held(SGD(1.0)).updates.save(WHOLE), is_behind=True)
    behind.push(np.ones(LENGTH), 2)
    handed = restored(behind.updates.save(WHOLE, with_staged=True))
    handed.push(np.ones(LENGTH), 4, lease=OTHER)
    with pytest.raises(StaleError, match="there is a gap"):
        handed.push(np.ones(LENGTH), 4)
    # What is saved for later says nothing of it: it is filled as one that is behind, or that is not.
    with pytest.raises(StaleError, match="there is a gap"):
        restored(behind.updates.save(WHOLE)).push(np.ones(LENGTH), 4, lease=OTHER)


def test_saved_piece_is_a_copy() -> None:
    """Nothing of it changes with the shard, nor the shard with it."""
    held = Held(Adagrad(1.0))
    held.push(np.ones(LENGTH), 0)
    saved = held.updates.save(WHOLE, with_staged=True)
    values, state = saved.values.copy(), {name: vector.copy() for name, vector in saved.state.items()}
    new = restored(saved, rule=Adagrad(1.0))
    for each in (held, new):
        each.push(np.ones(LENGTH), 1)
    np.testing.assert_array_equal(saved.values, values)
    assert saved.marks == {LEASE: 0}
    for name, vector in state.items():
        np.testing.assert_array_equal(saved.state[name], vector)
    np.testing.assert_array_equal(new.values, held.values)
    assert saved.n_bytes == (1 + len(state)) * values.nbytes


def test_piece_is_filled_from_one_that_was_cut_otherwise() -> None:
    """Its part of values and state, with all marks: what was pushed before the save is dropped on either part."""
    old, gradient = Held(Adagrad(1.0)), gradients(1)[0]
    old.push(gradient, 0)
    saved = old.updates.save(WHOLE)
    new = Held(Adagrad(1.0))
    for cut in (slice(0, 3), slice(3, LENGTH)):
        state = {name: vector[cut] for name, vector in saved.state.items()}
        new.updates.restore(cut.start, dataclasses.replace(saved, values=saved.values[cut], state=state))
    for held, places in ((old, (WHOLE,)), (new, (slice(0, 3), slice(3, LENGTH)))):
        for place in places:
            held.push(gradient[place], 0, place=place)
            held.push(gradient[place], 1, place=place)
    assert new.values.tobytes() == old.values.tobytes()
    assert new.updates.applied(LEASE, 2) == 1
    assert (old.updates.n_dropped, new.updates.n_dropped) == (1, 2)


def test_finished_lease_stays_finished_after_it_was_put_back() -> None:
    """A repetition is dropped although its mark is forgotten, if the new shard is told as the old one was."""
    held = Held(SGD(1.0))
    held.push(np.ones(LENGTH), 0)
    held.updates.forget_marks(Finished(0, frozenset([LEASE])))
    new = restored(held.updates.save(WHOLE), is_behind=True)
    new.updates.forget_marks(held.updates.finished)
    new.push(np.ones(LENGTH), 0)
    new.push(np.ones(LENGTH), 1)
    np.testing.assert_array_equal(new.values, np.full(LENGTH, -1.0))
    assert (new.updates.n_dropped, new.updates.n_lost) == (2, 0)


def test_marks_tell_what_every_piece_has() -> None:
    """By lease; and a piece that is told of marks drops what others have had, and counts it as lost."""
    held = Held(SGD(1.0))
    for place in PIECES:
        held.push(np.ones(place.stop - place.start), 0, 2, place=place)
    held.push(np.ones(3), 0, place=PIECES[0], lease=OTHER)
    assert held.updates.marks() == {LEASE: 2, OTHER: -1}
    new = Held(SGD(1.0))
    for place in PIECES:
        saved = SavedPiece(np.zeros(place.stop - place.start), {}, {LEASE: 0}, 1)
        new.updates.restore(place.start, saved, is_behind=True)
    assert new.updates.advance({LEASE: 2, OTHER: -1}, {}) == 2
    assert new.updates.advance({LEASE: 2, OTHER: -1}, {}) == 0
    for place in PIECES:
        new.push(np.ones(place.stop - place.start), 1, 2, place=place)
    assert (new.updates.n_dropped, new.updates.n_lost, new.values.tolist()) == (2, 2, [0.0] * LENGTH)
    # Where it goes on from there, what was lost is still known.
    successor = Held(SGD(1.0))
    for place in PIECES:
        successor.updates.restore(place.start, new.updates.save(place))
    assert successor.updates.n_lost == 2


def test_what_the_values_hold_without_a_mark_is_not_lost() -> None:
    """As of a shard that is put back to a copy of its parameters, which has no marks; also where it is carried on."""
    new = Held(SGD(1.0))
    new.updates.begin(is_behind=True)
    assert new.updates.advance({LEASE: 4, OTHER: 1}, {LEASE: 2}) == 4
    for carried in (new.updates.save(PIECES[0], with_staged=True), new.updates.save(PIECES[1], with_staged=True)):
        assert (carried.marks, carried.n_lost, carried.caught_up) == ({LEASE: 4, OTHER: 1}, 4, frozenset())
    for place in PIECES:
        new.push(np.ones(place.stop - place.start), 3, 4, place=place)
        new.push(np.ones(place.stop - place.start), 5, place=place)
    assert (new.updates.n_dropped, new.updates.n_lost, new.values.tolist()) == (2, 4, [-1.0] * LENGTH)
    # What it has had since is known by its mark.
    assert new.updates.advance({LEASE: 6, OTHER: 1}, {LEASE: 2}) == 1
    assert new.updates.n_lost == 5


# The record.


def test_exchanges_are_logged_in_their_order() -> None:
    """Who, where in its work, what was pushed, whether it was taken, and whether values were given; told once."""
    held = Held(SGD(1.0), is_recorded=True)
    held.fetch(replica="replica-1")
    held.push(np.ones(LENGTH), 0, 1, fetch=True)
    held.push(np.ones(LENGTH), 0, 1)
    assert held.updates.take_log(0) == [
        Logged("replica-1", StepKey(LEASE, 0), -1, -1, False, True),
        Logged("replica-0", StepKey(LEASE, 2), 0, 1, True, True),
        Logged("replica-0", StepKey(LEASE, 2), 0, 1, False, False),
    ]
    assert held.updates.take_log(0) == []


def test_rounds_are_logged_before_the_exchange_that_closes_them() -> None:
    """Their members and what was late, from which the round can be made again."""
    held = Held(SGD(1.0), staleness=Synchronous(1), is_recorded=True)
    closed = Round(0, (key(0), key(1)), (key(2),))
    held.fetch(closed=closed)
    *pushes, last = held.updates.take_log(0)
    assert Logged.closed(pushes) == closed
    assert last == Logged("replica-0", StepKey(LEASE, 0), -1, -1, False, True)
    assert Logged.closed([]) is None


def test_nothing_is_logged_unless_it_is_asked() -> None:
    """A run without a record keeps no list."""
    held = Held(SGD(1.0))
    held.push(np.ones(LENGTH), 0)
    assert held.updates.take_log(0) == []
