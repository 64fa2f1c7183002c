"""Validation on the way, the best point, and an early end: by patience, or by a callback."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from distributed import Client

import dask_belief as db
from dask_belief.monitoring.events import DownpourProgressed, Event, RunStarted, Validated

BATCH_SIZE, N_ROWS, RATE = 10, 400, 1e-2
ENDLESS = 1_000_000


class Drift:
    """One parameter that moves by a fixed way with each update; its validation loss falls as far as 1, then rises."""

    n_parameters = 1

    def initial_parameters(self, seed):
        return np.zeros(1)

    def loss_and_gradient(self, parameters, inputs, targets):
        return float(len(inputs) * (10.0 - parameters[0])), np.full(1, -float(len(inputs)))

    def evaluate(self, parameters, inputs, targets):
        return {"loss": len(inputs) * float(parameters[0] - 1.0) ** 2, "rows": len(inputs)}


DATA = db.ArrayDataset(np.zeros((N_ROWS, 1)), np.zeros(N_ROWS), chunk_rows=100)


def train(client: Client, callbacks=(), **options) -> db.TrainingResult:
    method = db.Downpour(**({"rule": db.SGD(RATE), "batch_size": BATCH_SIZE, "epochs": ENDLESS} | options))
    return db.train(
        Drift(), DATA, method, client=client, validation=DATA, callbacks=callbacks, dtype="float64", progress=False
    )


class Until:
    """Asks to stop at the n-th event of a kind."""

    def __init__(self, kind: type[Event], number: int) -> None:
        self.events: list[Event] = []
        self._kind, self._number = kind, number

    def __call__(self, event: Event) -> bool:
        if isinstance(event, self._kind):
            self.events.append(event)
        return len(self.events) >= self._number


@pytest.mark.parametrize("patience", [1, 3])
def test_patience_ends_the_run_at_the_best_point(two_workers: Client, patience: int) -> None:
    """The result is the lowest of all validations, and says that it was the last but so many."""
    result = train(two_workers, validate_every_steps=20, patience=patience)
    assert result.stop.reason is db.StopReason.NO_IMPROVEMENT
    assert not result.stop.converged
    losses = result.history["validation_loss"]
    assert result.validation["loss"] == min(losses) == pytest.approx((result.parameters[0] - 1.0) ** 2)
    best = int(np.argmin(losses))
    assert len(losses) - best - 1 >= patience
    assert result.stop.numbers["patience"] == patience
    assert result.stop.numbers["validation_loss"] == pytest.approx(min(losses))
    assert "patience" in result.stop.advice


def test_without_patience_the_best_point_counts_all_the_same(two_workers: Client) -> None:
    """The run goes on past the lowest validation loss to its last epoch, and gives the parameters of the lowest."""
    result = train(two_workers, validate_every_steps=40, epochs=10)
    assert result.stop.reason is db.StopReason.EPOCHS_DONE
    losses = result.history["validation_loss"]
    last = (10 * N_ROWS / BATCH_SIZE * RATE - 1.0) ** 2
    assert losses[-1] == pytest.approx(last)
    assert result.validation["loss"] == min(losses) < last
    assert (result.parameters[0] - 1.0) ** 2 == pytest.approx(min(losses))


def test_validation_by_steps(two_workers: Client) -> None:
    """No two validations lie within the same stretch of so many mini-batches."""
    until = Until(Validated, 4)
    result = train(two_workers, [until], validate_every_steps=50)
    assert result.stop.reason is db.StopReason.CALLBACK
    steps = [(event.passes or 0.0) * N_ROWS / BATCH_SIZE for event in until.events[:4]]
    stretches = [step // 50 for step in steps]
    assert all(before < after for before, after in itertools.pairwise(stretches))
    assert stretches[0] >= 1


def test_validation_by_seconds(two_workers: Client) -> None:
    """So many seconds lie between the beginnings of two; the event tells of an end, which comes after its beginning."""
    until = Until(Validated, 3)
    result = train(two_workers, [until], validate_every_seconds=0.2)
    assert result.stop.reason is db.StopReason.CALLBACK
    assert all(event.seconds >= 0.2 * number for number, event in enumerate(until.events[:3], 1))


def test_validation_once_an_epoch_at_most(two_workers: Client) -> None:
    """Where nothing else is asked for."""
    until = Until(Validated, 3)
    train(two_workers, [until])
    epochs = [int(event.passes) for event in until.events[:3]]
    assert epochs[0] >= 1 and all(before < after for before, after in itertools.pairwise(epochs))


@pytest.mark.parametrize("kind", [RunStarted, DownpourProgressed, Validated])
@pytest.mark.parametrize("way", [None, db.Synchronous(1), db.MaxStaleness(1)], ids=str)
def test_a_callback_ends_the_run_at_any_event(two_workers: Client, kind, way) -> None:
    """It ends soon, with CALLBACK and a point, whatever replicas wait for."""
    result = train(two_workers, [Until(kind, 1)], n_replicas=2, staleness=way)
    assert result.stop.reason is db.StopReason.CALLBACK
    assert np.isfinite(result.parameters).all()
    if kind is not RunStarted:
        assert result.passes > 0 and result.parameters[0] != 0.0


def test_what_a_callback_raises_carries_the_best_point(two_workers: Client) -> None:
    """An error of a callback ends the run as itself."""

    def fail(event: Event) -> None:
        if isinstance(event, Validated):
            raise ZeroDivisionError("planted")

    with pytest.raises(ZeroDivisionError, match="planted") as caught:
        train(two_workers, [fail], validate_every_steps=20)
    assert np.isfinite(caught.value.kept_parameters).all()
