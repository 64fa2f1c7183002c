"""What one shard does: commands once, each mini-batch once, and nothing of its own handed out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_belief.binary_tree import Node
from dask_belief.errors import ArgumentError, OldDirectoryError, StaleError
from dask_belief.optim.rules import SGD, Adagrad, Momentum, Rule
from dask_belief.parameter_server.consistency import Synchronous
from dask_belief.parameter_server.messages import (
    Absolutes,
    Alias,
    Align,
    BeginSum,
    Combine,
    Dot,
    Drop,
    EndSum,
    Finished,
    FirstHessian,
    LeaseKey,
    MaxNorm,
    Multiply,
    ProjectedStep,
    PseudoGradient,
    PushKey,
    SquaredPenalty,
    StepKey,
    Swap,
)
from dask_belief.parameter_server.shard import Shard, ShardSpec
from dask_belief.parameter_server.updates import STATE, VALUES, UpdateSpec
from dask_belief.parameter_server.vectors import join_nodes
from dask_belief.seeds import stream

EXAMPLES = settings(derandomize=True, deadline=None, max_examples=100)
SEED = 33
GENERATION = 4
LENGTH = 6
LEASE = LeaseKey(epoch=0, lease=7)


def batch_shard(penalised: np.ndarray | None = None, **named: Any) -> Shard:
    """A Sandblaster shard over the whole of a short float64 vector, with named vectors."""
    shard = Shard(ShardSpec(GENERATION, 0, range(LENGTH), LENGTH, "float64", penalised))
    for name, vector in named.items():
        shard.write(GENERATION, name, 0, np.array(vector, np.float64))
    return shard


def update_shard(rule: Rule, initial: np.ndarray | None = None) -> Shard:
    """A Downpour shard that is ready for updates."""
    shard = Shard(ShardSpec(GENERATION, 0, range(LENGTH), LENGTH, "float64", updates=UpdateSpec(rule)))
    shard.write(GENERATION, VALUES, 0, np.arange(LENGTH, dtype=np.float64) if initial is None else initial)
    shard.begin_updates(GENERATION)
    return shard


def exchange(
    shard: Shard, key: PushKey | None, gradient: np.ndarray | None, fetch: Any = False, offset: int = 0
) -> tuple[int, np.ndarray | None]:
    """What replica "a" asks of the piece that begins at `offset`."""
    at = StepKey(LEASE if key is None else key.lease, 0 if key is None else key.last + 1)
    length = LENGTH if gradient is None else len(gradient)
    return shard.exchange(GENERATION, "a", at, key, 0, offset, length, gradient, None, fetch)


def push(shard: Shard, first: int, last: int, gradient: np.ndarray, lease: LeaseKey = LEASE, offset: int = 0) -> int:
    n_updates, values = exchange(shard, PushKey(lease, first, last), gradient, offset=offset)
    assert values is None
    return n_updates


def everything(shard: Shard) -> np.ndarray:
    return shard.read(GENERATION, VALUES, 0, LENGTH)


def gradients(n: int) -> list[np.ndarray]:
    rng = stream(SEED, "gradients")
    return [rng.standard_normal(LENGTH) for _ in range(n)]


# Vectors in and out.


def test_vector_is_written_and_read_in_pieces() -> None:
    """A piece lands at its offset, and any part can be read."""
    shard = batch_shard(a=np.zeros(LENGTH))
    shard.write(GENERATION, "a", 2, np.array([1.0, 2.0]))
    np.testing.assert_array_equal(shard.read(GENERATION, "a", 1, 4), [0, 1, 2, 0])


def test_replies_are_copies() -> None:
    """Nothing that a shard gives changes with its vectors, and nothing that is given or taken changes them."""
    initial = np.ones(LENGTH)
    shard = update_shard(Adagrad(0.1), initial)
    initial[:] = 99
    _, exchanged = exchange(shard, None, None, fetch=True)
    saved = shard.save(GENERATION, 0, LENGTH)
    shard.execute(GENERATION, 0, (BeginSum(1, VALUES, 1),))
    taken = [
        everything(shard),
        shard.fetch(GENERATION, 1, 0, LENGTH),
        exchanged,
        saved.values,
        *saved.state.values(),
    ]
    before = [vector.copy() for vector in taken]
    np.testing.assert_array_equal(before[0], np.ones(LENGTH))
    push(shard, 0, 0, np.ones(LENGTH))
    for vector, former in zip(taken, before, strict=True):
        np.testing.assert_array_equal(vector, former)
    now = everything(shard)
    for vector in taken:
        assert vector is not None
        vector[:] = np.nan
    np.testing.assert_array_equal(everything(shard), now)


@pytest.mark.parametrize(
    "call",
    [
        lambda shard, generation: shard.write(generation, "a", 0, np.zeros(1)),
        lambda shard, generation: shard.read(generation, "a", 0, 1),
        lambda shard, generation: shard.execute(generation, 0, ()),
        lambda shard, generation: shard.memory(generation),
        lambda shard, generation: shard.fetch(generation, 0, 0, 1),
        lambda shard, generation: shard.add(generation, 0, Node(0, 0), 0, np.zeros(1)),
        lambda shard, generation: shard.begin_updates(generation),
        lambda shard, generation: shard.exchange(generation, "a", (LEASE, 0), None, 0, 0, 1, None, None, True),
        lambda shard, generation: shard.applied(generation, LEASE, 1),
        lambda shard, generation: shard.save(generation, 0, 1),
        lambda shard, generation: shard.restore(generation, 0, shard.save(GENERATION, 0, 1)),
        lambda shard, generation: shard.forget_marks(generation, Finished(0, frozenset())),
        lambda shard, generation: shard.counts(generation),
        lambda shard, generation: shard.take_log(generation, 0),
        lambda shard, generation: shard.state_names(generation),
        lambda shard, generation: shard.names(generation),
        lambda shard, generation: shard.n_rounds(generation),
        lambda shard, generation: shard.freeze(generation),
        lambda shard, generation: shard.marks(generation),
        lambda shard, generation: shard.advance(generation, {}, {}),
        lambda shard, generation: shard.finished(generation),
    ],
)
@pytest.mark.parametrize("generation", [GENERATION - 1, GENERATION + 1])
def test_another_generation_is_refused(call: Callable[[Shard, int], object], generation: int) -> None:
    """Whatever is asked, an older or a newer generation is refused, and both are named; an older one by its kind."""
    with pytest.raises(StaleError, match=f"generation {generation} was named, this is {GENERATION}") as raised:
        call(update_shard(SGD(0.1)), generation)
    assert isinstance(raised.value, OldDirectoryError) == (generation < GENERATION)


# Sandblaster: commands.


def test_commands_are_run_in_order() -> None:
    """One batch may use what its earlier commands made, and answers command by command."""
    shard = batch_shard(a=[1, 2, 3, 4, 5, -6], b=[1, 1, 1, 1, 1, 1])
    replies = shard.execute(
        GENERATION,
        0,
        (
            Combine("c", ((2.0, "a"), (-1.0, "b"))),
            Multiply("c", "c", "b"),
            Dot((("c", "b"), ("a", "a"))),
            MaxNorm("c"),
            SquaredPenalty("a"),
            Drop("b"),
        ),
    )
    assert replies[:2] == (None, None)
    dots, norm, squares = replies[2], replies[3], replies[4]
    assert isinstance(dots, list)
    assert [join_nodes([nodes], LENGTH) for nodes in dots] == [2 * 9 - 6, 91]
    assert norm == 13
    assert isinstance(squares, list)
    assert join_nodes(squares, LENGTH) == 91
    with pytest.raises(KeyError):
        shard.read(GENERATION, "b", 0, LENGTH)


def test_vectors_exchange_their_names_between_commands() -> None:
    """What follows in the same batch finds them under the new ones."""
    shard = batch_shard(a=np.ones(LENGTH), b=np.full(LENGTH, 5.0))
    assert shard.execute(GENERATION, 0, (Swap("a", "b"), MaxNorm("a"), MaxNorm("b"))) == (None, 5.0, 1.0)


def scalars(reply: Any) -> list[float]:
    return [join_nodes([nodes], LENGTH) for nodes in reply]


def test_products_may_be_of_three_vectors() -> None:
    """Beside those of two, in the order in which they were asked for."""
    shard = batch_shard(a=[1, 2, 3, 4, 5, -6], b=np.full(LENGTH, 2.0), c=[1, 0, 0, 0, 0, 1])
    [dots] = shard.execute(GENERATION, 0, (Dot((("a", "b", "c"), ("a", "c"), ("a", "a", "b"))),))
    assert scalars(dots) == [-10, -5, 2 * 91]


@pytest.mark.parametrize("names", [(), ("a",), ("a", "a", "a", "a")])
def test_products_of_other_numbers_are_refused(names: tuple[str, ...]) -> None:
    """Where the command is made, not on every shard."""
    with pytest.raises(ArgumentError, match=r"^products: each is of two vectors or of three"):
        Dot((("a", "a"), names))


def test_orthant_wise_commands_are_run() -> None:
    """Magnitudes, pseudo-gradient, alignment and projected step, where the last two elements are not penalised."""
    penalised = np.array([True, True, True, True, False, False])
    shard = batch_shard(penalised, x=[1, 0, 0, -2, 0, -1], g=[1, -3, 0.5, 1, 2, 2], d=[-4, 1, 1, 5, 1, 3])
    commands = (
        Absolutes("x"),
        PseudoGradient("v", "x", "g", 1.0),
        Align("d", "v", "x"),
        Dot((("v", "d"),)),
        ProjectedStep("trial", "x", "d", "v", 0.5),
    )
    replies = shard.execute(GENERATION, 0, commands)
    assert scalars(replies[0]) == [3]
    np.testing.assert_array_equal(shard.read(GENERATION, "v", 0, LENGTH), [2, -2, 0, 0, 2, 2])
    np.testing.assert_array_equal(shard.read(GENERATION, "d", 0, LENGTH), [-4, 1, 0, 5, 1, 3])
    assert scalars(replies[3]) == [-2]
    np.testing.assert_array_equal(shard.read(GENERATION, "trial", 0, LENGTH), [0, 0.5, 0, 0, 0.5, 0.5])


def test_pseudo_gradient_of_a_negative_weight_is_refused() -> None:
    """Where the command is made."""
    with pytest.raises(ArgumentError, match=r"^l1: "):
        PseudoGradient("v", "x", "g", -1.0)


def test_first_hessian_is_made_of_sums() -> None:
    """Which may then be dropped."""
    shard = batch_shard(sums=np.full(LENGTH, 4.0))
    shard.execute(GENERATION, 0, (FirstHessian("h0", "sums"), Drop("sums")))
    np.testing.assert_allclose(shard.read(GENERATION, "h0", 0, LENGTH), np.full(LENGTH, 1 / (2 + 1e-6)), rtol=1e-12)
    with pytest.raises(KeyError):
        shard.read(GENERATION, "sums", 0, LENGTH)


def test_repeated_command_is_not_run_again() -> None:
    """A repeated number gets the reply of the first time, whatever happened to the vectors since."""
    shard = batch_shard(a=np.ones(LENGTH))
    double_it = (Combine("a", ((2.0, "a"),)), MaxNorm("a"))
    assert shard.execute(GENERATION, 0, double_it) == (None, 2.0)
    shard.write(GENERATION, "a", 0, np.full(LENGTH, 7.0))
    assert shard.execute(GENERATION, 0, double_it) == (None, 2.0)
    np.testing.assert_array_equal(shard.read(GENERATION, "a", 0, LENGTH), np.full(LENGTH, 7.0))
    assert shard.execute(GENERATION, 1, double_it) == (None, 14.0)


def test_older_command_is_refused() -> None:
    """A message that was overtaken is not run."""
    shard = batch_shard(a=np.ones(LENGTH))
    shard.execute(GENERATION, 5, ())
    with pytest.raises(StaleError, match="commands 4 came after 5"):
        shard.execute(GENERATION, 4, (Combine("a", ((2.0, "a"),)),))
    np.testing.assert_array_equal(shard.read(GENERATION, "a", 0, LENGTH), np.ones(LENGTH))


# Sandblaster: one evaluation.


@pytest.mark.parametrize("penalised", [None, np.array([True, True, False, False, True, False])])
def test_evaluation_gives_the_mean_gradient_and_the_penalty(penalised: np.ndarray | None) -> None:
    """Replicas fetch the named parameters; the sum is divided by the rows, and l2 w is added where it is due."""
    parameters = np.array([1.0, -2.0, 3.0, -4.0, 5.0, -6.0])
    shard = batch_shard(penalised, x=parameters)
    shard.execute(GENERATION, 0, (BeginSum(1, "x", 3),))
    np.testing.assert_array_equal(shard.fetch(GENERATION, 1, 2, 3), [3, -4, 5])
    units = gradients(3)
    for unit in (2, 0, 1):
        for offset in (3, 0):
            assert shard.add(GENERATION, 1, Node(0, unit), offset, units[unit][offset : offset + 3].copy())
    shard.execute(GENERATION, 1, (EndSum(1, "g", 10, 0.5),))
    covered = np.ones(LENGTH, bool) if penalised is None else penalised
    expected = ((units[0] + units[1]) + units[2]) / 10 + 0.5 * parameters * covered
    np.testing.assert_array_equal(shard.read(GENERATION, "g", 0, LENGTH), expected)


def test_node_may_arrive_as_a_plain_tuple() -> None:
    """Named tuples are plain ones after some serialisers."""
    shard = batch_shard(x=np.zeros(LENGTH))
    shard.execute(GENERATION, 0, (BeginSum(1, "x", 1),))
    plain: Any = (0, 0)
    assert shard.add(GENERATION, 1, plain, 0, np.ones(LENGTH))
    assert not shard.add(GENERATION, 1, Node(0, 0), 0, np.ones(LENGTH))


def test_evaluation_that_is_not_under_way_is_refused() -> None:
    """Before the first, for another, and for one that was overtaken."""
    shard = batch_shard(x=np.zeros(LENGTH))
    with pytest.raises(StaleError, match="no evaluation is under way, but 1 was named"):
        shard.fetch(GENERATION, 1, 0, LENGTH)
    shard.execute(GENERATION, 0, (BeginSum(1, "x", 1),))
    shard.add(GENERATION, 1, Node(0, 0), 0, np.ones(LENGTH))
    shard.execute(GENERATION, 1, (EndSum(1, "g", 1, 0.0), BeginSum(2, "x", 1)))
    for call in (
        lambda: shard.fetch(GENERATION, 1, 0, LENGTH),
        lambda: shard.add(GENERATION, 1, Node(0, 0), 0, np.ones(LENGTH)),
        lambda: shard.execute(GENERATION, 2, (EndSum(1, "g", 1, 0.0),)),
    ):
        with pytest.raises(StaleError, match="evaluation 1 was named, but 2 is under way"):
            call()


def test_copy_that_comes_after_the_end_changes_nothing() -> None:
    """Once the sum is closed a push is covered, and the parameters, which may have gone on, are not given."""
    shard = batch_shard(x=np.zeros(LENGTH))
    shard.execute(GENERATION, 0, (BeginSum(1, "x", 1),))
    assert shard.add(GENERATION, 1, Node(0, 0), 0, np.ones(LENGTH))
    shard.execute(GENERATION, 1, (EndSum(1, "g", 1, 0.0),))
    assert not shard.add(GENERATION, 1, Node(0, 0), 0, np.full(LENGTH, 9.0))
    with pytest.raises(StaleError, match="evaluation 1 is over"):
        shard.fetch(GENERATION, 1, 0, LENGTH)
    assert shard.memory(GENERATION)["waiting"] == 0
    np.testing.assert_array_equal(shard.read(GENERATION, "g", 0, LENGTH), np.ones(LENGTH))


def test_memory_is_that_of_vectors_and_of_waiting_nodes() -> None:
    """Named vectors and nodes are told apart; what is joined or collected is held no more."""
    shard = batch_shard(x=np.zeros(LENGTH))
    one = 8 * LENGTH
    assert shard.memory(GENERATION) == {"vectors": one, "waiting": 0}
    shard.execute(GENERATION, 0, (BeginSum(1, "x", 4),))
    for unit, waiting in ((0, 1), (2, 2), (1, 2), (3, 1)):
        shard.add(GENERATION, 1, Node(0, unit), 0, np.ones(LENGTH))
        assert shard.memory(GENERATION) == {"vectors": one, "waiting": waiting * one}
    shard.execute(GENERATION, 1, (EndSum(1, "g", 1, 0.0), Drop("x")))
    assert shard.memory(GENERATION) == {"vectors": one, "waiting": 0}


def test_overflow_is_told_by_scalars() -> None:
    """A run that blows up gets infinite numbers from its shards, and no warning or error."""
    huge = np.full(LENGTH, 1e308)
    shard = batch_shard(x=huge)
    shard.execute(GENERATION, 0, (Combine("x", ((10.0, "x"),)), Combine("d", ((1.0, "x"), (-1.0, "x")))))
    infinite, undefined = shard.execute(GENERATION, 1, (MaxNorm("x"), MaxNorm("d")))
    assert infinite == np.inf
    assert isinstance(undefined, float)
    assert np.isnan(undefined)
    shard.execute(GENERATION, 2, (BeginSum(1, "x", 2),))
    for unit in range(2):
        shard.add(GENERATION, 1, Node(0, unit), 0, huge.copy())
    assert shard.execute(GENERATION, 3, (EndSum(1, "g", 1, 0.0), MaxNorm("g"))) == (None, np.inf)


# Downpour: updates.


@pytest.mark.parametrize("rule", [SGD(0.1), Momentum(0.1, 0.5), Adagrad(0.1)])
def test_pushes_apply_the_rule(rule: Rule) -> None:
    """Values and state go the way of the rule applied by hand, and the count of pushes is told."""
    shard = update_shard(rule)
    expected = np.arange(LENGTH, dtype=np.float64)
    state = rule.init(expected)
    for step, gradient in enumerate(gradients(4)):
        assert push(shard, step, step, gradient) == step + 1
        rule.apply(expected, gradient, state, step)
    np.testing.assert_array_equal(everything(shard), expected)
    for name, vector in state.items():
        np.testing.assert_array_equal(shard.read(GENERATION, STATE + name, 0, LENGTH), vector)


def test_push_twice_counts_once() -> None:
    """A repeated push, also one that ends before the mark, is dropped and gets the values as they are."""
    shard = update_shard(SGD(1.0), np.zeros(LENGTH))
    one = np.ones(LENGTH)
    assert push(shard, 0, 1, one) == 1
    assert push(shard, 2, 2, one) == 2
    assert push(shard, 0, 1, one) == 2
    n_updates, values = exchange(shard, PushKey(LEASE, 2, 2), one, fetch=True)
    assert n_updates == 2
    np.testing.assert_array_equal(values, -2 * one)


def test_push_that_leaves_a_gap_is_refused() -> None:
    """Mini-batches that nobody pushed are an error that names them, and nothing is applied."""
    shard = update_shard(SGD(1.0), np.zeros(LENGTH))
    push(shard, 0, 2, np.ones(LENGTH))
    with pytest.raises(StaleError, match=r"mini-batches 4 to 5 of lease 7 came when 2 was the last"):
        push(shard, 4, 5, np.ones(LENGTH))
    np.testing.assert_array_equal(everything(shard), -np.ones(LENGTH))
    assert shard.applied(GENERATION, LEASE, 1) == 2


def test_push_that_overlaps_the_mark_is_refused() -> None:
    """A push whose first part was applied cannot be applied in part."""
    shard = update_shard(SGD(1.0), np.zeros(LENGTH))
    push(shard, 0, 2, np.ones(LENGTH))
    with pytest.raises(StaleError):
        push(shard, 2, 4, np.ones(LENGTH))
    np.testing.assert_array_equal(everything(shard), -np.ones(LENGTH))


@EXAMPLES
@given(st.data())
def test_each_mini_batch_counts_once(data: st.DataObject) -> None:
    """Two leases' pushes in any interleaving, each repeated at will, apply every gradient once to every piece."""
    steps = {LEASE: 4, LeaseKey(1, 7): 3}
    pieces = ((0, 2), (2, 4))
    sent = {
        (lease, offset): [step for step in range(n) for _ in range(data.draw(st.integers(1, 2)))]
        for lease, n in steps.items()
        for offset, _ in pieces
    }
    shard = update_shard(SGD(1.0), np.zeros(LENGTH))
    turns = data.draw(st.permutations([key for key, queue in sent.items() for _ in queue]))
    for lease, offset in turns:
        step = sent[lease, offset].pop(0)
        length = dict(pieces)[offset]
        push(shard, step, step, np.full(length, 10.0**step), lease, offset)
        repeated = data.draw(st.integers(0, step))
        push(shard, repeated, repeated, np.full(length, 1e9), lease, offset)
    np.testing.assert_array_equal(everything(shard), np.full(LENGTH, -(1111.0 + 111.0)))


def test_lease_is_applied_as_far_as_every_piece_is() -> None:
    """The mark of a lease is the lowest of its pieces, and none while one has had nothing."""
    shard = update_shard(SGD(1.0))
    assert shard.applied(GENERATION, LEASE, 2) == -1
    push(shard, 0, 3, np.ones(2), offset=0)
    assert shard.applied(GENERATION, LEASE, 2) == -1
    push(shard, 0, 1, np.ones(4), offset=2)
    push(shard, 0, 5, np.ones(2), lease=LeaseKey(0, 8))
    assert shard.applied(GENERATION, LEASE, 2) == 1
    plain: Any = tuple(LEASE)
    assert shard.applied(GENERATION, plain, 2) == 1


@pytest.mark.parametrize("rule", [SGD(0.1), Momentum(0.1, 0.5), Adagrad(0.1)])
def test_saved_shard_goes_on_exactly(rule: Rule) -> None:
    """A new shard with the saved pieces has values, state, marks and counts, and the same future."""
    old = update_shard(rule)
    first, second, third = gradients(3)
    pieces = ((0, 2), (2, 4))

    def push_to(shard: Shard, step: int, gradient: np.ndarray) -> None:
        for offset, length in pieces:
            push(shard, step, step, gradient[offset : offset + length], offset=offset)

    push_to(old, 0, first)
    push_to(old, 1, second)
    new = Shard(ShardSpec(GENERATION, 0, range(LENGTH), LENGTH, "float64", updates=UpdateSpec(rule)))
    for offset, length in pieces:
        new.restore(GENERATION, offset, old.save(GENERATION, offset, length))
    assert new.applied(GENERATION, LEASE, 2) == 1
    # A push that was applied before the save is dropped by the new shard too; the next one is taken.
    push_to(new, 1, second)
    np.testing.assert_array_equal(everything(new), everything(old))
    for shard in (old, new):
        push_to(shard, 2, third)
    np.testing.assert_array_equal(everything(new), everything(old))
    for offset, length in pieces:
        saved, again = old.save(GENERATION, offset, length), new.save(GENERATION, offset, length)
        assert (saved.marks, saved.n_updates) == (again.marks, again.n_updates) == ({LEASE: 2}, 3)
        for name in saved.state:
            np.testing.assert_array_equal(saved.state[name], again.state[name])


def test_forgotten_marks_are_gone_and_others_stay() -> None:
    """Marks of leases that are saved as finished cost nothing any more."""
    shard = update_shard(SGD(1.0))
    other = LeaseKey(1, 7)
    push(shard, 0, 2, np.ones(LENGTH))
    push(shard, 0, 2, np.ones(LENGTH), lease=other)
    plain: Any = tuple(LEASE)
    shard.forget_marks(GENERATION, Finished(0, frozenset([plain])))
    assert shard.save(GENERATION, 0, LENGTH).marks == {other: 2}


def test_push_of_a_forgotten_lease_is_dropped() -> None:
    """A replica that froze before its first push, and woke after others did its work, changes nothing."""
    shard = update_shard(SGD(1.0), np.zeros(LENGTH))
    push(shard, 0, 2, np.ones(LENGTH))
    shard.forget_marks(GENERATION, Finished(0, frozenset([LEASE])))
    push(shard, 0, 0, np.ones(LENGTH))
    push(shard, 3, 3, np.ones(LENGTH))
    np.testing.assert_array_equal(everything(shard), -np.ones(LENGTH))


def test_updates_need_a_rule() -> None:
    """A Sandblaster shard takes no updates."""
    shard = batch_shard(**{VALUES: np.zeros(LENGTH)})
    with pytest.raises(StaleError, match="has no rule"):
        shard.begin_updates(GENERATION)


def test_counts_tell_of_updates_and_bytes() -> None:
    """How many updates and dropped pushes there were, the bytes both ways, and the rate of the next update."""
    shard = update_shard(SGD(0.5))
    push(shard, 0, 0, np.ones(LENGTH))
    push(shard, 0, 0, np.ones(LENGTH))
    exchange(shard, None, None, fetch=True)
    counts = shard.counts(GENERATION)
    assert (counts.shard, counts.n_updates, counts.n_dropped, counts.rate) == (0, 1, 1, 0.5)
    assert (counts.received_bytes, counts.sent_bytes) == (2 * 8 * LENGTH, 8 * LENGTH)
    assert sum(counts.staleness) == 1
    assert counts.busy_seconds >= 0


def test_sparse_exchange_moves_what_is_named() -> None:
    """Compact both ways: ranges of a push, and ranges of a fetch."""
    shard = update_shard(SGD(1.0), np.zeros(LENGTH))
    runs, wanted = np.array([[0, 2], [5, 6]]), np.array([[1, 3]])
    at, key = StepKey(LEASE, 1), PushKey(LEASE, 0, 0)
    n_updates, values = shard.exchange(GENERATION, "a", at, key, 0, 0, LENGTH, np.array([1.0, 2.0, 3.0]), runs, wanted)
    assert n_updates == 1
    np.testing.assert_array_equal(values, [-2, 0])
    np.testing.assert_array_equal(everything(shard), [-1, -2, 0, 0, 0, -3])


def test_keys_may_arrive_as_plain_tuples() -> None:
    """Those of pushes, places and rounds."""
    shard = Shard(
        ShardSpec(GENERATION, 0, range(2), 2, "float64", updates=UpdateSpec(SGD(1.0), staleness=Synchronous()))
    )
    shard.write(GENERATION, VALUES, 0, np.zeros(2))
    shard.begin_updates(GENERATION)
    key: Any = ((0, 7), 0, 0)
    at: Any = ((0, 7), 1)
    shard.exchange(GENERATION, "a", at, key, 0, 0, 2, np.ones(2), None, False)
    closed: Any = (0, (key,), ())
    n_updates, values = shard.exchange(GENERATION, "a", at, None, 0, 0, 2, None, None, True, closed)
    assert n_updates == 1
    np.testing.assert_array_equal(values, [-1, -1])
    assert shard.applied(GENERATION, LEASE, 1) == 0


def test_refused_push_names_the_shard() -> None:
    """Context for whoever reads the replica's log."""
    with pytest.raises(StaleError, match=r"^shard 0: a push of mini-batches 3 to 3"):
        push(update_shard(SGD(1.0)), 3, 3, np.ones(LENGTH))


def test_frozen_shard_takes_no_more_exchanges() -> None:
    """The training is over: its values, state and marks may still be read, and stay as they are."""
    shard = update_shard(SGD(1.0), np.zeros(LENGTH))
    push(shard, 0, 0, np.ones(LENGTH))
    with pytest.raises(StaleError, match=f"generation {GENERATION + 1} was named"):
        shard.freeze(GENERATION + 1)
    shard.freeze(GENERATION)
    for key, gradient in ((PushKey(LEASE, 1, 1), np.ones(LENGTH)), (None, None)):
        with pytest.raises(StaleError, match="the training is over; a came too late"):
            exchange(shard, key, gradient, fetch=True)
    np.testing.assert_array_equal(everything(shard), -np.ones(LENGTH))
    assert shard.save(GENERATION, 0, LENGTH).marks == {LEASE: 0}


# A newer list of shards.


def test_shard_goes_on_in_the_generation_that_it_adopts() -> None:
    """With all that it holds; what was sent by an older one is refused for good, and changes nothing."""
    shard = update_shard(SGD(1.0))
    before = shard.read(GENERATION, VALUES, 0, LENGTH)
    for adopted in (GENERATION + 2, GENERATION + 2, GENERATION + 1):
        # Told twice, or late of one in between.
        shard.adopt(adopted)
    for old in (GENERATION, GENERATION + 1):
        with pytest.raises(OldDirectoryError):
            shard.write(old, VALUES, 0, np.full(LENGTH, 9.0))
        with pytest.raises(OldDirectoryError):
            push = PushKey(LEASE, 0, 0)
            shard.exchange(old, "a", StepKey(LEASE, 0), push, 0, 0, LENGTH, np.ones(LENGTH), None, False)
    np.testing.assert_array_equal(shard.read(GENERATION + 2, VALUES, 0, LENGTH), before)
    assert shard.counts(GENERATION + 2).n_updates == 0


def test_number_of_the_last_commands_outlives_the_generation() -> None:
    """So a batch that was run and is sent again by the newer list of shards is not run twice."""
    shard = batch_shard(a=np.ones(LENGTH))
    double = (Combine("a", ((2.0, "a"),)), MaxNorm("a"))
    assert shard.execute(GENERATION, 3, double) == (None, 2.0)
    shard.adopt(GENERATION + 1)
    assert shard.execute(GENERATION + 1, 3, double) == (None, 2.0)
    np.testing.assert_array_equal(shard.read(GENERATION + 1, "a", 0, LENGTH), np.full(LENGTH, 2.0))


@pytest.mark.parametrize("is_penalised", [False, True])
def test_held_vectors_outlive_every_command(is_penalised: bool) -> None:
    """Whatever commands overwrite, what has a second name stays under it, to the bit."""
    rng = stream(SEED, "held")
    named = {name: rng.standard_normal(LENGTH) for name in ("x", "g", "v", "d", "t")}
    mask = np.arange(LENGTH) % 2 == 0 if is_penalised else None
    shard = batch_shard(mask, **named)
    shard.execute(GENERATION, 0, tuple(Alias(f"held:{name}", name) for name in named))
    commands = (
        Combine("x", ((0.5, "x"), (1.0, "g"))),
        Multiply("g", "g", "x"),
        Swap("x", "t"),
        Combine("t", ((3.0, "t"),)),
        Combine("x", ((3.0, "x"),)),
        PseudoGradient("v", "x", "g", 0.1),
        Align("d", "v", "x"),
        ProjectedStep("t", "x", "d", "v", 0.7),
        FirstHessian("v", "v"),
        BeginSum(1, "x", 1),
    )
    shard.execute(GENERATION, 1, commands)
    shard.add(GENERATION, 1, Node(0, 0), 0, np.ones(LENGTH))
    shard.execute(GENERATION, 2, (Alias("second", "g"), EndSum(1, "g", 2, 0.5)))
    shard.write(GENERATION, "x", 0, np.zeros(LENGTH))
    for name, vector in named.items():
        assert shard.read(GENERATION, f"held:{name}", 0, LENGTH).tobytes() == vector.tobytes()
    assert shard.read(GENERATION, "second", 0, LENGTH).tobytes() != shard.read(GENERATION, "g", 0, LENGTH).tobytes()
    shard.execute(GENERATION, 3, tuple(Drop(name) for name in (*named, "second", *(f"held:{each}" for each in named))))
    assert (shard.names(GENERATION), shard.memory(GENERATION)["vectors"]) == ([], 0)


def test_vector_that_comes_in_pieces_gets_new_memory_once() -> None:
    """The first piece of one that is held takes other memory, and the next ones the same."""
    shard = batch_shard(a=np.arange(LENGTH))
    shard.execute(GENERATION, 0, (Alias("held", "a"),))
    shard.write(GENERATION, "a", 0, np.full(2, 8.0))
    shard.write(GENERATION, "a", 2, np.full(LENGTH - 2, 9.0))
    np.testing.assert_array_equal(shard.read(GENERATION, "a", 0, LENGTH), [8.0] * 2 + [9.0] * (LENGTH - 2))
    np.testing.assert_array_equal(shard.read(GENERATION, "held", 0, LENGTH), np.arange(LENGTH))
