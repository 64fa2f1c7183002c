"""Runs that go on without learning anything, or not at all: each ends, says why, and keeps the best point."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from distributed import Client

import dask_belief as db
from dask_belief.cluster.actors import ActorAddress, Caller
from dask_belief.cluster.replicas import ReplicaPool
from dask_belief.parameter_server.ranges import BLOCK

from .timetable import first_then_long  # noqa: TID252

N_ROWS = 1000
DATA = db.ArrayDataset(np.arange(N_ROWS)[:, None], np.ones(N_ROWS), chunk_rows=100)


class Steady:
    """A loss of one a row, and a gradient of the same entries; begins at one."""

    def __init__(self, gradient: float, n_parameters: int = 3) -> None:
        self.gradient = gradient
        self.n_parameters = n_parameters

    def initial_parameters(self, seed):
        return np.ones(self.n_parameters)

    def loss_and_gradient(self, parameters, inputs, targets):
        return float(len(inputs)), np.full(self.n_parameters, len(inputs) * self.gradient)


def train(client: Client, objective, dtype: str = "float32", callbacks=(), **options) -> db.TrainingResult:
    method = db.Downpour(**({"rule": db.SGD(0.1), "batch_size": 20} | options))
    return db.train(objective, DATA, method, client=client, callbacks=callbacks, dtype=dtype, progress=False)


WAYS = [None, db.MaxStaleness(1), db.ScaleByStaleness(), db.Synchronous(), db.ElasticAveraging(0.9)]
by_way = pytest.mark.parametrize("way", WAYS, ids=str)


# What is learned is nothing.


@by_way
def test_a_gradient_that_is_zero_is_told(two_workers: Client, way) -> None:
    """The updates that were made changed nothing: that is said, with what to look at."""
    with pytest.raises(db.NoProgressError, match=r"did not change in \d+ updates.*gradient") as caught:
        train(two_workers, Steady(0.0), n_replicas=2, staleness=way, epochs=100_000)
    assert (caught.value.kept_parameters == 1.0).all()


def test_a_gradient_that_rounding_swallows_is_told(two_workers: Client) -> None:
    """In float32 such steps are lost; in float64, which the message names, they are not."""
    with pytest.raises(db.NoProgressError, match="dtype='float64'") as caught:
        train(two_workers, Steady(1e-9), epochs=100_000)
    assert (caught.value.kept_parameters == 1.0).all()
    result = train(two_workers, Steady(1e-9), "float64", epochs=2)
    assert result.stop.reason is db.StopReason.EPOCHS_DONE
    assert (result.parameters < 1.0).all()


def test_a_loss_of_zero_is_a_run_that_is_done(two_workers: Client) -> None:
    """Where there is nothing left to learn, that nothing changes is no failure."""
    result = train(two_workers, Done(0.0), epochs=20)
    assert result.stop.reason is db.StopReason.EPOCHS_DONE
    assert result.loss == 0.0


class Done(Steady):
    """Fits its rows."""

    def loss_and_gradient(self, parameters, inputs, targets):
        return 0.0, np.zeros(self.n_parameters)


# Nothing happens any more.


class Blocking(Steady):
    """Waits for ever, from a mini-batch on: in all replicas, or in one."""

    def __init__(self, first: int, is_one: bool) -> None:
        super().__init__(1.0)
        self.first = first
        self.is_one = is_one

    def loss_and_gradient(self, parameters, inputs, targets):
        number = next(COUNT)
        if number == self.first or (number > self.first and not self.is_one):
            RELEASED.wait(60.0)
        return super().loss_and_gradient(parameters, inputs, targets)


COUNT = itertools.count()
RELEASED = threading.Event()
"""Of the test under way, whose workers are threads of this process."""


@pytest.fixture
def released_at_the_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What blocks does so until the run stops its replicas."""
    stop = ReplicaPool.stop

    def release(pool: ReplicaPool, *limits: float) -> None:
        RELEASED.set()
        stop(pool, *limits)

    globals()["COUNT"] = itertools.count()
    RELEASED.clear()
    monkeypatch.setattr(ReplicaPool, "stop", release)
    yield
    RELEASED.set()


@pytest.mark.parametrize("way", first_then_long(WAYS), ids=str)
@pytest.mark.parametrize("is_one", [False, True], ids=["all block", "one blocks"])
def test_an_objective_that_blocks_ends_the_run(two_workers, released_at_the_end, way, is_one: bool) -> None:
    """No update within the limit: by all, or because the others wait for one or have nothing left to do."""
    options = {"n_replicas": 2, "staleness": way, "epochs": 2, "stalled_after_seconds": 1.0}
    with pytest.raises(db.NoProgressError, match="no update was made for 1 seconds") as caught:
        train(two_workers, Blocking(30, is_one), **options)
    assert np.isfinite(caught.value.kept_parameters).all()


def test_an_objective_that_blocks_at_the_start(two_workers, released_at_the_end) -> None:
    """Before the first lease is finished, too; what is kept is where it began."""
    with pytest.raises(db.NoProgressError, match="with 0 leases finished by 2 replicas") as caught:
        train(two_workers, Blocking(0, False), n_replicas=2, stalled_after_seconds=1.0)
    assert (caught.value.kept_parameters == 1.0).all()


def test_a_shard_that_is_passed_over_is_named(two_workers: Client, monkeypatch) -> None:
    """Its pushes are answered by something that does not apply them, and the others go on."""
    call = Caller.call

    async def pass_over(caller: Caller, to: ActorAddress, name: str, *arguments: Any, **options: float) -> Any:
        if name == "exchange" and to.name == "shard 1":
            length = arguments[6]
            return 0, np.ones(length, np.float32)
        return await call(caller, to, name, *arguments, **options)

    monkeypatch.setattr(Caller, "call", pass_over)
    with pytest.raises(db.NoProgressError, match="shard 1 had no update for 1 seconds, while others had"):
        train(two_workers, Steady(1.0, BLOCK + 1), n_shards=2, epochs=100_000, stalled_after_seconds=1.0)


# What is not finite.


class Spoilt(Steady):
    """Loss and gradient of some mini-batches have something added."""

    def __init__(self, first: int, to_loss: float, to_gradient: float) -> None:
        super().__init__(1e-3)
        self.first, self.last = first, first + 10
        self.to_loss, self.to_gradient = to_loss, to_gradient

    def loss_and_gradient(self, parameters, inputs, targets):
        loss, gradient = super().loss_and_gradient(parameters, inputs, targets)
        if next(COUNT) in range(self.first, self.last):
            return loss + self.to_loss, gradient + self.to_gradient
        return loss, gradient


SPOILT = [(np.nan, 0.0), (np.inf, 0.0), (0.0, np.nan), (0.0, -np.inf), (0.0, 1e30)]


@by_way
@pytest.mark.parametrize(("to_loss", "to_gradient"), SPOILT[::2])
def test_what_is_not_finite_in_the_first_epoch(two_workers, released_at_the_end, way, to_loss, to_gradient) -> None:
    """An error that names the rows; what is kept is finite."""
    with pytest.raises(db.NonFiniteError, match=r"unit \d+ \(rows \d+ to \d+") as caught:
        train(two_workers, Spoilt(20, to_loss, to_gradient), n_replicas=2, staleness=way)
    assert np.isfinite(caught.value.kept_parameters).all()


@by_way
@pytest.mark.parametrize(("to_loss", "to_gradient"), SPOILT[1:4:2])
def test_what_is_not_finite_later(two_workers, released_at_the_end, way, to_loss, to_gradient) -> None:
    """The run ends with NOT_FINITE, at the last point that was saved."""
    result = train(two_workers, Spoilt(120, to_loss, to_gradient), n_replicas=2, staleness=way, epochs=100_000)
    assert result.stop.reason is db.StopReason.NOT_FINITE
    assert np.isfinite(result.parameters).all()
    assert 1.0 <= result.passes < 100_000


@by_way
def test_what_raises_ends_the_run_with_the_rows(two_workers: Client, released_at_the_end, way) -> None:
    """An exception of the objective is told at once, whatever other replicas wait for; the best point comes with it."""
    with pytest.raises(db.ReplicaError, match=r"ZeroDivisionError.* mini-batch \d+ of unit \d+ \(rows") as caught:
        train(two_workers, Raising(30), n_replicas=2, staleness=way, epochs=100_000)
    assert np.isfinite(caught.value.kept_parameters).all()


class Raising(Steady):
    """Raises at a mini-batch."""

    def __init__(self, at: int) -> None:
        super().__init__(1e-3)
        self.at = at

    def loss_and_gradient(self, parameters, inputs, targets):
        if next(COUNT) == self.at:
            raise ZeroDivisionError("planted")
        return super().loss_and_gradient(parameters, inputs, targets)
