"""The order of fetch, compute and push is that of Algorithm 1.1, on leases that follow one another."""

from __future__ import annotations

import concurrent.futures
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_belief.backend import Scalar
from dask_belief.data.batches import MiniBatches
from dask_belief.data.units import WorkUnit
from dask_belief.downpour.config import Downpour
from dask_belief.downpour.trainer import Trained, Trainer, Work
from dask_belief.errors import NonFiniteError, ReplicaError, StaleError
from dask_belief.parameter_server.consistency import ElasticAveraging, Synchronous
from dask_belief.parameter_server.exchange import Exchanged, Traffic
from dask_belief.parameter_server.executor import Ahead
from dask_belief.parameter_server.messages import LeaseKey, PushKey, StepKey
from dask_belief.seeds import stream

EXAMPLES = settings(derandomize=True, deadline=None, max_examples=150)
SEED = 53
BATCH = 2
Rows = tuple[int, ...]


@dataclass
class Script:
    """A fake executor that writes down what it is told.

    Attributes
    ----------
    is_sparse
        Whether a fetch asks for the rows ahead of it.
    said
        ``("exchange", at, push, effective_step, rows ahead)``, ``("compute", rows, version)``: the number of the fetch
        that is in use, and ``("number",)``.
    is_on_device
        Whether losses are known only once they are asked for.
    """

    is_sparse: bool = False
    is_on_device: bool = False
    said: list[tuple[Any, ...]] = field(default_factory=list)
    loss: float = 1.0
    is_finite: bool = True
    error: Exception | None = None
    traffic: Traffic = field(default_factory=Traffic)
    _fetches: list[tuple[float, int]] = field(default_factory=list)
    _n_fetches: int = 0
    _in_use: int | None = None

    def exchange(
        self, at: StepKey, push: PushKey | None, effective_step: float | None, ahead: Ahead
    ) -> concurrent.futures.Future[Exchanged] | None:
        if push is None and effective_step is None:
            return None
        rows = rows_of(ahead()[1]) if self.is_sparse and effective_step is not None else None
        self.said.append(("exchange", at, push, effective_step, rows))
        if effective_step is not None:
            self._fetches.append((effective_step, self._n_fetches))
            self._n_fetches += 1
        sent: concurrent.futures.Future[Exchanged] = concurrent.futures.Future()
        sent.set_result(Exchanged((0,), 0, 0))
        return sent

    def take_effect(self, step: float) -> None:
        while self._fetches and self._fetches[0][0] <= step:
            self._in_use = self._fetches.pop(0)[1]

    def compute(self, inputs: Any, targets: Any, key: int | None = None) -> Scalar:
        if self.error is not None:
            raise self.error
        self.said.append(("compute", rows_of(targets), self._in_use))
        loss = self.loss * len(inputs)
        return np.array(loss) if self.is_on_device else loss

    def number(self, loss: Scalar) -> float:
        if self.is_on_device:
            self.said.append(("number",))
        return float(loss)

    def accrue(self, n_rows: int) -> None:
        self.said.append(("accrue", n_rows))

    def gradient_is_finite(self) -> bool:
        return self.is_finite

    def accrued_is_finite(self) -> bool:
        return self.is_finite

    def applied(self, lease: LeaseKey) -> int:
        return -1


def rows_of(targets: np.ndarray) -> Rows:
    return tuple(targets.tolist())


def work_of(key: LeaseKey, n_rows: int) -> Work:
    targets = 100 * key.lease + np.arange(n_rows)
    return Work(key, WorkUnit(key.lease, 100 * key.lease, 100 * key.lease + n_rows), targets[:, None] / 2, targets)


def batches_of(work: Work) -> list[Rows]:
    drawn = MiniBatches(work.inputs, work.targets, BATCH, stream(SEED, "rows", *work.key))
    return [rows_of(targets) for _, _, targets in drawn]


def train(method: Downpour, leases: list[tuple[LeaseKey, int, int]], executor: Script) -> list[Trained | None]:
    trainer = Trainer(executor, method, SEED)
    return [trainer.train(work_of(key, n_rows), first, lambda: True) for key, n_rows, first in leases]


def algorithm_1_1(method: Downpour, leases: list[tuple[LeaseKey, int, int]]) -> list[tuple[Any, ...]]:
    """What is to be said by dense replicas, written down from the paper's algorithm, with steps counted in leases.

    ::

        loop  if step mod n_fetch == 0: fetch        (takes effect lag mini-batches later; the first at once)
              compute, accrue, local step
              if step mod n_push == 0: push           (and at the end of a lease)
    """
    said: list[tuple[Any, ...]] = []
    fetches: list[tuple[int, int]] = []
    total, in_use, has_fetched_now = 0, None, False
    for key, n_rows, first in leases:
        batches, accrued_from, push = batches_of(work_of(key, n_rows)), first, None
        for step in range(first, len(batches) + 1):
            is_end = step == len(batches)
            effective = None
            if (step % method.n_fetch == 0 or step == first or is_end) and not has_fetched_now:
                effective = total + (method.lag if fetches or in_use is not None else 0)
                fetches.append((effective, sum(entry[0] == "exchange" and entry[3] is not None for entry in said)))
                has_fetched_now = True
            if push is not None or effective is not None:
                said.append(("exchange", StepKey(key, step, first), push, effective, None))
            if is_end:
                break
            for due in [due for due in fetches if due[0] <= total]:
                in_use = due[1]
                fetches.remove(due)
            said += [("compute", batches[step], in_use), ("accrue", len(batches[step]))]
            total, push, has_fetched_now = total + 1, None, False
            if (step + 1) % method.n_push == 0 or step + 1 == len(batches):
                push, accrued_from = PushKey(key, accrued_from, step), step + 1
    return said


@st.composite
def stories(draw: st.DrawFn) -> tuple[Downpour, list[tuple[LeaseKey, int, int]]]:
    """Options, and leases of so many rows, each begun at some mini-batch: all of them done before, now and then."""
    n_fetch = draw(st.integers(1, 4))
    method = Downpour(
        batch_size=BATCH, n_fetch=n_fetch, n_push=draw(st.integers(1, 4)), fetch_lag=draw(st.integers(0, n_fetch))
    )
    leases = []
    for number in range(draw(st.integers(1, 4))):
        n_rows = draw(st.integers(1, 14))
        n_batches = -(-n_rows // BATCH)
        first = draw(st.one_of(st.just(0), st.integers(0, n_batches)))
        leases.append((LeaseKey(draw(st.integers(0, 2)), number), n_rows, first))
    return method, leases


@EXAMPLES
@given(stories())
def test_order_is_that_of_the_algorithm(story: tuple[Downpour, list[tuple[LeaseKey, int, int]]]) -> None:
    """Fetches, mini-batches, what they are computed with, and pushes, whatever the options and the leases."""
    executor = Script()
    train(*story, executor)
    assert executor.said == algorithm_1_1(*story)


@EXAMPLES
@given(stories())
def test_pushes_cover_a_lease_without_gap_or_overlap(story: tuple[Downpour, list[tuple[LeaseKey, int, int]]]) -> None:
    """From the first mini-batch to the last, each at most of n_push, with borders that do not depend on the first."""
    method, leases = story
    executor = Script()
    trained = train(method, leases, executor)
    pushes = [entry[2] for entry in executor.said if entry[0] == "exchange" and entry[2] is not None]
    for (key, n_rows, first), done in zip(leases, trained, strict=True):
        assert done is not None
        assert done.n_steps == -(-n_rows // BATCH)
        assert done.n_rows == done.loss_sum == max(0, n_rows - BATCH * first)
        covered = [(push.first, push.last) for push in pushes if push.lease == key]
        numbers = [number for begin, end in covered for number in range(begin, end + 1)]
        assert numbers == list(range(first, done.n_steps))
        assert all((end + 1) % method.n_push == 0 or end == done.n_steps - 1 for _, end in covered)


@EXAMPLES
@given(stories())
def test_sparse_fetch_brings_what_is_used_until_the_next(
    story: tuple[Downpour, list[tuple[LeaseKey, int, int]]],
) -> None:
    """Every mini-batch is among the rows of the fetch that is in use; they are of one lease and taken in order."""
    executor = Script(is_sparse=True)
    train(*story, executor)
    fetched = [set(entry[4]) for entry in executor.said if entry[0] == "exchange" and entry[3] is not None]
    effective = [entry[3] for entry in executor.said if entry[0] == "exchange" and entry[3] is not None]
    assert effective == sorted(effective)
    for entry in executor.said:
        if entry[0] == "compute":
            _, rows, in_use = entry
            assert set(rows) <= fetched[in_use]
    for rows in fetched:
        assert rows
        assert len({row // 100 for row in rows}) == 1


def test_elastic_replica_fetches_once_and_then_exchanges() -> None:
    """The pull of an exchange takes effect after the lag; there is no fetch between."""
    method = Downpour(n_replicas=2, batch_size=BATCH, n_fetch=2, n_push=2, staleness=ElasticAveraging(), fetch_lag=1)
    executor, first, second = Script(), LeaseKey(0, 0), LeaseKey(0, 1)
    train(method, [(first, 10, 0), (second, 4, 0)], executor)
    exchanges = [entry[1:4] for entry in executor.said if entry[0] == "exchange"]
    assert exchanges == [
        (StepKey(first, 0), None, 0),
        (StepKey(first, 2), PushKey(first, 0, 1), 3),
        (StepKey(first, 4), PushKey(first, 2, 3), 5),
        (StepKey(first, 5), PushKey(first, 4, 4), 6),
        (StepKey(second, 2), PushKey(second, 0, 1), 8),
    ]


def test_synchronous_replica_waits_for_each_exchange() -> None:
    """Push and fetch in one, which takes effect at once; a lease begins with a fetch of its own."""
    executor, first, second = Script(), LeaseKey(0, 0), LeaseKey(0, 1)
    train(Downpour(batch_size=BATCH, staleness=Synchronous()), [(first, 4, 0), (second, 2, 0)], executor)
    exchanges = [entry[2:4] for entry in executor.said if entry[0] == "exchange"]
    assert exchanges == [
        (None, 0),
        (PushKey(first, 0, 0), 1),
        (PushKey(first, 1, 1), None),
        (None, 2),
        (PushKey(second, 0, 0), None),
    ]


def test_lease_is_broken_off_between_mini_batches() -> None:
    """Asked before each is computed, when what is done is on its way; nothing more is exchanged."""
    executor, answers = Script(), iter([True, True, False])
    trainer = Trainer(executor, Downpour(batch_size=BATCH), SEED)
    assert trainer.train(work_of(LeaseKey(0, 0), 10), 0, lambda: next(answers)) is None
    assert trainer.n_steps == 2
    exchanges = [entry for entry in executor.said if entry[0] == "exchange"]
    assert [entry[2] for entry in exchanges] == [None, *(PushKey(LeaseKey(0, 0), step, step) for step in range(2))]


def test_counts_go_on_over_leases() -> None:
    """Mini-batches, rows and seconds of the replica, not of the lease."""
    trainer = Trainer(Script(), Downpour(batch_size=BATCH), SEED)
    for lease in range(3):
        trainer.train(work_of(LeaseKey(0, lease), 5), 0, lambda: True)
    assert (trainer.n_steps, trainer.n_rows) == (9, 15)
    assert trainer.computing_seconds > 0


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_loss_that_is_not_finite_is_told_with_its_rows(loss: float) -> None:
    """Before it accrues."""
    executor = Script(loss=loss)
    with pytest.raises(NonFiniteError, match=r"the loss is (nan|inf) in mini-batch 0 of unit 3 \(rows 300 to 304"):
        train(Downpour(batch_size=BATCH), [(LeaseKey(1, 3), 5, 0)], executor)
    assert not any(entry[0] == "accrue" for entry in executor.said)


def test_losses_on_a_device_are_asked_for_with_pushes_only() -> None:
    """Each question waits for the device; the sum is the same."""
    executor = Script(is_on_device=True)
    [trained] = train(Downpour(batch_size=BATCH, n_push=2), [(LeaseKey(0, 0), 5 * BATCH, 0)], executor)
    assert trained is not None
    assert (trained.n_steps, trained.loss_sum) == (5, 5.0 * BATCH)
    assert executor.said.count(("number",)) == 3 + 1


def test_loss_on_a_device_that_is_not_finite_is_not_pushed() -> None:
    """It is told where it would be pushed, like a gradient."""
    executor = Script(loss=math.nan, is_on_device=True)
    with pytest.raises(
        NonFiniteError, match=r"the loss is nan in mini-batch 1, or since the push before it, of unit 0"
    ):
        train(Downpour(batch_size=BATCH, n_push=2), [(LeaseKey(0, 0), 10, 0)], executor)
    assert not any(entry[0] == "exchange" and entry[2] for entry in executor.said)


def test_gradient_that_is_not_finite_is_not_pushed() -> None:
    """It is told where it would be pushed."""
    executor = Script(is_finite=False)
    with pytest.raises(NonFiniteError, match=r"gradient is NaN, infinite or huge in mini-batch 1, .* of unit 0"):
        train(Downpour(batch_size=BATCH, n_push=2), [(LeaseKey(0, 0), 10, 0)], executor)
    assert not any(entry[0] == "exchange" and entry[2] for entry in executor.said)


def test_error_of_the_objective_is_told_with_its_rows() -> None:
    """As one of the replica's; errors of the package go through as they are."""
    with pytest.raises(ReplicaError, match=r"raised ZeroDivisionError: oh, in mini-batch 0 of unit 0 \(rows 0 to 4\)"):
        train(Downpour(batch_size=BATCH), [(LeaseKey(0, 0), 5, 0)], Script(error=ZeroDivisionError("oh")))
    with pytest.raises(StaleError, match="of another run"):
        train(Downpour(batch_size=BATCH), [(LeaseKey(0, 0), 5, 0)], Script(error=StaleError("of another run")))
