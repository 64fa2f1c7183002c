"""An interrupt in the middle of a fault, of an end or of a save: the point that was kept is the result all the same."""

from __future__ import annotations

import contextlib
import math
import time

import numpy as np
import pytest
from distributed import Client

import dask_belief as db
from dask_belief.cluster.placement import place
from dask_belief.monitoring.events import DownpourProgressed, Event, IterationEnded
from dask_belief.parameter_server.deployment import Deployment
from dask_belief.run import Run
from dask_belief.share import Share
from tests.faults.clusters import assert_clean
from tests.faults.wide import few_rows
from tests.small_cluster import frozen, kill_worker

INTERRUPTED_SECONDS = 5.0
"""What a run may take to end after an interrupt, as the documentation promises."""

METHODS = [db.Sandblaster(max_iter=100_000, gtol=0.0, ftol=0.0, n_shards=1), db.Downpour(epochs=100_000, n_shards=1)]


@pytest.fixture(autouse=True)
def keep_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver copies the point as often as it can."""
    monkeypatch.setattr(Share, "is_due", lambda share, now: True)


def network() -> db.Network:
    return db.Network([db.Dense(8, "sigmoid"), db.Dense(1)], loss="logistic", input_shape=(20,))


class At:
    """A callback that does something at the second progress of a run, and knows when."""

    def __init__(self, do) -> None:
        self.at = math.nan
        self._do, self._n_told = do, 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, IterationEnded | DownpourProgressed):
            self._n_told += 1
            if self._n_told == 2:
                self.at = time.monotonic()
                self._do()


def assert_interrupted(result: db.TrainingResult, at: float) -> None:
    """It has a point, and came soon."""
    assert time.monotonic() - at < INTERRUPTED_SECONDS
    assert result.stop.reason is db.StopReason.INTERRUPTED
    assert np.isfinite(result.parameters).all()
    assert not np.array_equal(result.parameters, network().initial_parameters(0).astype(np.float32))


@pytest.mark.parametrize("method", METHODS, ids=type)
def test_workers_that_end_with_the_interrupt_are_not_waited_for(own_client: Client, method) -> None:
    """As those of a cluster that was made here: Ctrl-C reaches every process of the terminal's group."""

    def interrupt() -> None:
        for worker in list(own_client.nthreads()):
            kill_worker(own_client, worker)
        raise KeyboardInterrupt

    at = At(interrupt)
    result = db.train(network(), few_rows(), method, client=own_client, callbacks=[at], progress=False)
    assert_interrupted(result, at.at)
    assert_clean(own_client)


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS, ids=type)
def test_frozen_shard_is_not_waited_for(client: Client, method) -> None:
    """Its worker would be taken for lost after `Limits.frozen_seconds`, and until then it might answer."""
    with contextlib.ExitStack() as thawing:

        def interrupt() -> None:
            thawing.enter_context(frozen(client, place(list(client.nthreads()), 1).shards[0]))
            raise KeyboardInterrupt

        at = At(interrupt)
        result = db.train(network(), few_rows(), method, client=client, callbacks=[at], progress=False)
        assert_interrupted(result, at.at)
    assert_clean(client)


@pytest.mark.parametrize("method", METHODS, ids=type)
def test_interrupt_while_a_loss_is_mended_ends_the_run(own_client: Client, monkeypatch, method) -> None:
    """What the driver had a copy of is the result."""
    shard = place(list(own_client.nthreads()), 1).shards[0]
    mended_at = math.inf

    def interrupted(*_: object) -> None:
        nonlocal mended_at
        mended_at = time.monotonic()
        raise KeyboardInterrupt

    monkeypatch.setattr(Deployment, "find_losses", interrupted)
    at = At(lambda: kill_worker(own_client, shard))
    result = db.train(network(), few_rows(), method, client=own_client, callbacks=[at], progress=False)
    assert_interrupted(result, mended_at)
    assert_clean(own_client)


def test_interrupt_during_the_evaluation_at_the_end_leaves_the_loss_open(own_client: Client, monkeypatch) -> None:
    """Downpour has its last point by then, and whoever interrupts does not wait for a pass over all rows."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "evaluation", interrupted)
    method = db.Downpour(epochs=2, n_shards=1, n_replicas=1)
    result = db.train(network(), few_rows(), method, client=own_client, progress=False)
    assert result.stop.reason is db.StopReason.INTERRUPTED
    assert math.isnan(result.loss)
    assert result.passes == method.epochs
    monkeypatch.undo()
    unbroken = db.train(network(), few_rows(), method, client=own_client, progress=False)
    assert result.parameters.tobytes() == unbroken.parameters.tobytes()
    assert_clean(own_client)
