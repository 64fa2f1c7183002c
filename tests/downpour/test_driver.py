"""The driver of Downpour without a cluster: its leases, what it goes on from, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dask_belief.checkpoint import Loaded, SavedState
from dask_belief.data.dataset import ArrayDataset
from dask_belief.data.units import UnitPlan
from dask_belief.downpour.config import Downpour
from dask_belief.downpour.driver import DownpourDriver
from dask_belief.downpour.lease_book import BookState
from dask_belief.downpour.ledger import LedgerState
from dask_belief.downpour.validation import Validations
from dask_belief.errors import CheckpointError
from dask_belief.monitoring.callbacks import CallbackList
from dask_belief.parameter_server.messages import Finished, LeaseKey
from dask_belief.recovery import Source
from dask_belief.run import Facts, Run

N_FEATURES = 3
METHOD = Downpour(batch_size=4, epochs=2)
LEDGER = LedgerState(BookState(Finished(0, frozenset([LeaseKey(0, 1)])), 3, 30, is_released=True), 1.5, 30)


class Distance:
    """Loss ``|w - row|^2``."""

    n_parameters = N_FEATURES

    def initial_parameters(self, seed: int) -> np.ndarray:
        return np.zeros(N_FEATURES)

    def loss_and_gradient(self, parameters: Any, inputs: Any, targets: Any) -> tuple[float, Any]:
        difference = parameters - inputs
        return float((difference**2).sum()), 2 * difference.sum(axis=0)


def saved_of(plan: UnitPlan, notes: dict[str, Any] | None = None, **changes: Any) -> SavedState:
    """What a run in these leases saved, as a checkpoint keeps it."""
    validations = Validations(METHOD, len(plan))
    validations.take({"loss": 0.25})
    state = {
        "plan": plan.to_config(),
        "ledger": LEDGER.to_config(),
        "validations": validations.to_config(),
        "n_best": 0,
        "notes": notes or {},
    }
    return SavedState(3, {}, json.loads(json.dumps(state | changes, allow_nan=False)))


def driver_of(resumed: SavedState | None = None, method: Downpour = METHOD) -> DownpourDriver:
    client: Any = None
    facts = Facts(
        name="local",
        client=client,
        objective=Distance(),
        dataset=ArrayDataset(np.ones((120, N_FEATURES), np.float32), np.zeros(120, np.int64), chunk_rows=2),
        validation=None,
        initial=np.zeros(N_FEATURES, np.float32),
        seed=0,
        dtype="float32",
        backend="numpy",
    )
    if resumed is not None:
        facts = replace(facts, resumed=Loaded(resumed, {}, (), resumed.number, "1970-01-01T00:00:00+00:00"))
    return DownpourDriver(Run(facts, CallbackList([])), method)


def test_leases_are_those_of_the_run_that_is_resumed() -> None:
    """Its ledger counts in them, whatever the options would give on these workers."""
    plan = driver_of(method=replace(METHOD, lease_rows=30))._plan
    assert len(plan) == 4
    other = driver_of(saved_of(plan), replace(METHOD, lease_rows=6))
    assert other._plan == plan
    assert driver_of(method=replace(METHOD, lease_rows=6))._plan != plan


def test_resumed_run_takes_up_ledger_and_validations() -> None:
    """The leases that are finished are told to the shards; the best is known."""
    driver = driver_of(saved_of(driver_of()._plan))
    driver._resume()
    assert driver._saved_ledger() == LEDGER
    assert driver._validations.best == {"loss": 0.25}
    told: list[Finished] = []
    deployment: Any = SimpleNamespace(run=told.append, server=SimpleNamespace(forget_marks=lambda finished: finished))
    driver._take_ledger(deployment)
    assert told == [LEDGER.book.finished]
    assert driver._hub_state(deployment) == (LEDGER, 0)


def test_ledger_that_nothing_is_known_of_begins_anew() -> None:
    """There is nothing to tell to it."""
    deployment: Any = None
    assert driver_of()._hub_state(deployment) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"validations": {}},
        {"validations": None},
        {"validations": {"best": {"loss": None}, "n_worse": 0, "n_taken": 0, "epoch": 0, "steps": 0}},
        {"n_best": "x"},
        {"n_best": None},
    ],
    ids=str,
)
def test_damaged_validations_are_refused(changes: dict[str, Any]) -> None:
    """With a word of what to do."""
    driver = driver_of(saved_of(driver_of()._plan, **changes))
    with pytest.raises(CheckpointError, match=r"what it says of validations.*resume from the one before"):
        driver._resume()


@pytest.mark.parametrize("ledger", [{}, None, [], {"book": {}, "loss_sum": 0.0, "loss_rows": 0}, 3], ids=str)
def test_damaged_ledger_is_refused(ledger: Any) -> None:
    """With a word of what to do."""
    driver = driver_of(saved_of(driver_of()._plan, ledger=ledger))
    with pytest.raises(CheckpointError, match=r"what it says of leases.*resume from the one before"):
        driver._saved_ledger()


class Server:
    """Shards that know how far they are in each lease; the lost ones are advanced."""

    def __init__(self, marks: dict[int, dict[LeaseKey, int]]) -> None:
        self._marks = marks
        self.forgotten: list[tuple[Finished, list[int]]] = []
        self.advanced: tuple[list[int], dict[LeaseKey, int]] = ([], {})
        self.held: dict[LeaseKey, int] = {}

    def forget_marks(self, finished: Finished, shards: list[int]) -> None:
        self.forgotten.append((finished, shards))

    def marks(self, shards: list[int]) -> list[dict[LeaseKey, int]]:
        return [self._marks[shard] for shard in shards]

    def advance(self, lost: list[int], marks: dict[LeaseKey, int], held: dict[LeaseKey, int]) -> int:
        self.advanced, self.held = (lost, marks), held
        return 17


@pytest.mark.parametrize("source", list(Source))
def test_what_a_shard_lost_and_nobody_sends_again_counts_as_applied(source: Source) -> None:
    """Leases that are finished since, and of those under way what all other shards have."""
    method = replace(METHOD, lease_rows=30)
    plan = driver_of(method=method)._plan
    driver = driver_of(saved_of(plan), method)
    finished = Finished(0, frozenset(LeaseKey(0, lease) for lease in (1, 2)))
    under_way = {0: {LeaseKey(0, 0): 4, LeaseKey(0, 3): 2}, 1: {}, 2: {LeaseKey(0, 0): 3}}
    server, new = Server(under_way), Server({})
    deployment: Any = SimpleNamespace(
        run=lambda answer: answer,
        server=server,
        directory=SimpleNamespace(shards=(0, 1, 2)),
        ask=lambda asked: LedgerState(BookState(finished, 6, 60)),
    )
    driver._kept_finished = Finished(0, frozenset([LeaseKey(0, 1)]))
    driver._kept_held = {LeaseKey(0, 0): 1}
    counted: Any = new
    assert driver._count_lost(deployment, counted, [1], source) == 17
    lost, marks = new.advanced
    assert lost == [1]
    # Thirty rows are eight mini-batches of four; the saved state has one of the two finished leases.
    whole = {LeaseKey(0, 2): 7} if source is Source.SAVED else {LeaseKey(0, 1): 7, LeaseKey(0, 2): 7}
    assert {key: step for key, step in marks.items() if step >= 0} == whole | {LeaseKey(0, 0): 3}
    # What the driver's copy holds is not lost to a shard that is filled from it.
    assert new.held == ({LeaseKey(0, 1): 7, LeaseKey(0, 0): 1} if source is Source.KEPT else {})
    assert new.forgotten == ([(LEDGER.book.finished, [1])] if source is Source.SAVED else [])


def test_leases_that_were_finished_since_are_found_over_epochs() -> None:
    """Whole epochs are told by their number."""
    method = replace(METHOD, lease_rows=30, epochs=4)
    driver = driver_of(method=method)

    def since(before: Finished, now: Finished) -> list[tuple[int, int]]:
        return sorted((key.epoch, key.lease) for key in driver._finished_since(before, now))

    nothing, some = Finished(0, frozenset()), Finished(1, frozenset([LeaseKey(1, 2), LeaseKey(2, 0)]))
    assert since(nothing, nothing) == []
    assert since(nothing, some) == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 2), (2, 0)]
    assert since(some, some) == []
    assert since(some, Finished(3, frozenset([LeaseKey(3, 3)]))) == [
        *((1, lease) for lease in (0, 1, 3)),
        *((2, lease) for lease in (1, 2, 3)),
        (3, 3),
    ]
    assert since(some, Finished(4, frozenset()))[-4:] == [(3, lease) for lease in range(4)]
