"""Predictions on a cluster are those of one process: whole, in pieces, and with workers that are lost meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import dask.array
import numpy as np
import pytest
from distributed import Client

import dask_belief as db
from dask_belief.cluster import membership
from dask_belief.door import as_objective
from dask_belief.monitoring.progress import RowBar
from dask_belief.predicting import _Job
from dask_belief.seeds import stream
from tests.faults.clusters import assert_clean
from tests.small_cluster import close_worker, eventually, kill_worker

N_ROWS, BATCH_ROWS = 230, 10

DENSE = db.Network([db.Dense(13, "tanh"), db.Dropout(0.3), db.Dense(9, "relu"), db.Dense(4)], "softmax", (7,))
IMAGES = db.Network(
    [db.LocallyConnected2D(3, 3), db.L2Pool2D(2), db.LocalContrastNorm2D(3), db.Conv2D(2, 2), db.Dense(3)],
    "softmax",
    (9, 8, 2),
)
CUTS = [
    (DENSE, 2, "units", 1),
    (DENSE, 3, "units", 2),
    (DENSE, 2, "layers", 3),
    (DENSE, 3, "auto", 1),
    (IMAGES, 2, "rows", 1),
    (IMAGES, 3, "channels", 2),
    (IMAGES, 2, "layers", 2),
]


def rows_of(network: db.Network) -> np.ndarray:
    return stream(3, "rows").normal(size=(N_ROWS, *network.input_shape)).astype(np.float32)


def parameters_of(network: db.Network, dtype: str = "float32") -> np.ndarray:
    # Larger than at the start of a run, so that the outputs differ.
    return (3 * network.initial_parameters(1, dtype)).astype(dtype)


def predict(client: Client, model: Any, parameters: Any, inputs: Any, **options: Any) -> np.ndarray:
    return db.predict(model, parameters, inputs, client=client, batch_rows=BATCH_ROWS, progress=False, **options)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("network", "n_pieces", "by", "micro_batches"), CUTS, ids=lambda each: "" if isinstance(each, db.Network) else each
)
def test_pieces_predict_what_the_whole_does(
    client: Client, network: db.Network, n_pieces: int, by: str, micro_batches: int, dtype: str
) -> None:
    """Each piece on a worker, or two of three on one; dropout is out; a row at a time is a mini-batch, too."""
    parameters, rows = parameters_of(network, dtype), rows_of(network)
    plan = db.partition(network, n_pieces, by, micro_batches=micro_batches)
    found = predict(client, plan, parameters, rows)
    expected = network.predict(parameters, rows)
    assert found.dtype == dtype and np.ptp(expected) > 0.5
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    assert_clean(client)


def test_each_piece_is_sent_its_own_parameters_only() -> None:
    """Together they are all."""
    plan = db.partition(DENSE, 3, "units")
    rows = db.ArrayDataset(rows_of(DENSE), np.zeros(N_ROWS))
    job = _Job(as_objective(plan), parameters_of(DENSE), rows, "numpy", BATCH_ROWS)
    lengths = [len(job.parameters_of(piece)) for piece in range(3)]
    assert lengths == [layout.n_parameters for layout in plan.layouts]
    assert sum(lengths) == DENSE.n_parameters and max(lengths) < 0.5 * DENSE.n_parameters


def test_a_whole_network_predicts_on_all_workers(client: Client, tmp_path: Path) -> None:
    """From arrays of all kinds, with targets or without, from a store; by parameters, or by the result of a run."""
    parameters, rows = parameters_of(DENSE), rows_of(DENSE)
    expected = DENSE.predict(parameters, rows)
    targets = np.zeros(N_ROWS, np.int64)
    db.write_dataset(tmp_path / "rows.zarr", rows, targets, chunk_rows=30)
    store = tmp_path / "rows.zarr"
    for inputs in (rows, dask.array.from_array(rows, chunks=(50, 7)), (rows, targets), store, str(store)):
        np.testing.assert_allclose(predict(client, DENSE, parameters, inputs), expected, rtol=1e-5, atol=1e-6)
    result = db.train(DENSE, (rows, targets), db.Downpour(), client=client, progress=False)
    found = predict(client, DENSE, result, rows)
    np.testing.assert_allclose(found, result.predict(rows), rtol=1e-5, atol=1e-6)
    assert_clean(client)


class Lines:
    """An objective of a user's own."""

    n_parameters = 2

    def initial_parameters(self, seed: int) -> np.ndarray:
        return np.zeros(2)

    def loss_and_gradient(self, parameters, inputs, targets) -> tuple[float, np.ndarray]:
        raise AssertionError("nothing is trained")

    def predict(self, parameters: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        if (inputs > 200).any():
            raise ValueError("planted")
        return parameters[0] * inputs + parameters[1]


def test_any_objective_that_predicts_will_do(client: Client) -> None:
    """In the order of the rows; what it raises comes with the rows in which it did."""
    rows = np.arange(100.0)
    found = predict(client, Lines(), np.array([2.0, 1.0]), rows)
    np.testing.assert_array_equal(found, 2 * rows + 1)
    with pytest.raises(db.ReplicaError, match=r"predicting rows \d+ to \d+ raised ValueError: planted"):
        predict(client, Lines(), np.array([2.0, 1.0]), np.arange(230.0))
    assert_clean(client)


class Closing(Lines):
    """It is told once that its worker is closing, as a piece that waits for a letter is."""

    to_tell: ClassVar[list[db.StaleError]] = []

    def predict(self, parameters: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        if self.to_tell:
            raise self.to_tell.pop()
        return super().predict(parameters, inputs)


def test_a_task_that_ends_as_its_worker_closes_is_a_loss(client: Client) -> None:
    """Its error may be heard before the scheduler tells that the worker left: the caller is not to see it."""
    Closing.to_tell.append(db.StaleError("cancelled while it waited."))
    found = predict(client, Closing(), np.array([2.0, 1.0]), np.arange(100.0))
    assert not Closing.to_tell
    np.testing.assert_array_equal(found, 2 * np.arange(100.0) + 1)
    assert_clean(client)


@pytest.mark.parametrize("model", [DENSE, db.partition(DENSE, 2, "units")], ids=["whole", "in pieces"])
def test_rows_of_a_lost_worker_are_predicted_again(own_client: Client, monkeypatch: pytest.MonkeyPatch, model) -> None:
    """It is lost once something is done; nobody sees it in the predictions."""
    parameters, rows, add = parameters_of(DENSE), rows_of(DENSE), RowBar.add
    victims = sorted(own_client.nthreads())[:1]

    def lose(bar: RowBar, n_rows: int) -> None:
        while victims:
            kill_worker(own_client, victims.pop())
        add(bar, n_rows)

    monkeypatch.setattr(RowBar, "add", lose)
    found = predict(own_client, model, parameters, rows)
    assert not victims
    np.testing.assert_allclose(found, DENSE.predict(parameters, rows), rtol=1e-5, atol=1e-6)
    assert_clean(own_client)


@pytest.mark.parametrize("model", [DENSE, db.partition(DENSE, 2, "units")], ids=["whole", "in pieces"])
def test_rows_that_are_not_finite_are_refused_wherever_they_come_from(client: Client, model: Any) -> None:
    """A data set is not read twice for it: whoever reads the rows looks. Its targets are nobody's business."""
    rows, targets = rows_of(DENSE), np.full(N_ROWS, np.nan, np.float32)
    assert np.isfinite(predict(client, model, parameters_of(DENSE), (rows, targets))).all()
    rows[101, 3] = np.nan
    with pytest.raises(db.NonFiniteDataError, match="inputs: row 101 holds NaN"):
        predict(client, model, parameters_of(DENSE), (rows, targets))
    assert_clean(client)


def test_the_scheduler_is_not_asked_while_workers_are_there(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """It announces who comes and goes; looks at it a hundred times a second would slow it down for others."""
    asked, ask = [], membership.threads_of_workers

    def count(client: Client) -> dict[str, int]:
        asked.append(client)
        return ask(client)

    monkeypatch.setattr(membership, "threads_of_workers", count)
    predict(client, db.partition(DENSE, 2, "units"), parameters_of(DENSE), rows_of(DENSE))
    assert len(asked) <= 3


def test_a_worker_that_becomes_another_piece_lets_its_former_range_go(
    own_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A team of the first two of three workers loses the first: the second leads now, and has one range as before."""
    parameters, rows, add = parameters_of(DENSE), rows_of(DENSE), RowBar.add
    victims = sorted(own_client.nthreads())[:1]
    plan = db.partition(DENSE, 2, "units")

    def has_one_range() -> bool:
        held = own_client.run(lambda dask_worker: [each for each in dask_worker.data.values() if np.ndim(each) == 1])
        return all(len(ranges) <= 1 for ranges in held.values())

    def lose(bar: RowBar, n_rows: int) -> None:
        if victims:
            kill_worker(own_client, victims.pop())
        else:
            eventually(has_one_range)
        add(bar, n_rows)

    monkeypatch.setattr(RowBar, "add", lose)
    found = predict(own_client, plan, parameters, rows)
    np.testing.assert_allclose(found, DENSE.predict(parameters, rows), rtol=1e-5, atol=1e-6)


def test_without_workers_it_is_refused(own_client: Client) -> None:
    """At once."""
    for worker in list(own_client.nthreads()):
        close_worker(own_client, worker)
    with pytest.raises(db.NoWorkersError):
        predict(own_client, DENSE, parameters_of(DENSE), rows_of(DENSE))


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"parameters": np.zeros(3, np.float32)}, db.ArgumentError, r"parameters: expected shape \(\d+,\), got \(3,\)"),
        ({"parameters": np.zeros(3, int)}, db.ArgumentError, "parameters: expected float32 or float64, got int64"),
        ({"parameters": np.full(DENSE.n_parameters, np.nan)}, db.ArgumentError, "parameters: they hold NaN"),
        ({"inputs": np.zeros((5, 8))}, db.ArgumentError, r"inputs: expected rows of shape \(7,\), got \(8,\)"),
        ({"inputs": np.zeros((0, 7))}, db.EmptyDataError, "inputs: there are no rows"),
        ({"inputs": np.full((5, 7), np.nan)}, db.NonFiniteDataError, "inputs"),
        ({"inputs": "/nowhere/rows.zarr"}, db.MissingStoreError, "rows.zarr"),
        ({"batch_rows": 0}, db.ArgumentError, "batch_rows"),
        ({"backend": "abacus"}, db.ArgumentError, "backend"),
        ({"limits": 3}, db.ArgumentError, "limits"),
        ({"network": object()}, db.ArgumentError, "objective"),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_what_does_not_fit_is_refused_by_its_name(changes: dict[str, Any], error: type, said: str) -> None:
    """Before a cluster is asked for."""
    given = {"network": DENSE, "parameters": parameters_of(DENSE), "inputs": rows_of(DENSE), **changes}
    with pytest.raises(error, match=said):
        db.predict(**given)


def test_an_objective_that_predicts_nothing_is_refused() -> None:
    """By its name."""

    class Mute:
        n_parameters = 1

        def initial_parameters(self, seed: int) -> np.ndarray:
            return np.zeros(1)

        def loss_and_gradient(self, parameters, inputs, targets) -> tuple[float, np.ndarray]:
            return 0.0, parameters

    with pytest.raises(db.ArgumentError, match=r"network: Mute has no predict"):
        db.predict(Mute(), np.zeros(1), np.zeros((3, 1)))
