"""A network in pieces computes what the network computes, and sends what the plan says."""

from __future__ import annotations

import numpy as np
import pytest

from dask_belief.backend import get_backend
from dask_belief.model_parallel.letters import DOWN, FOUND, LENT, UP
from dask_belief.model_parallel.piece import Batch, run_together
from dask_belief.model_parallel.plan import Plan, partition
from dask_belief.models.layers import Dense
from dask_belief.models.network import Network
from tests.model_parallel.cases import Together, parameters_for, rows_for

TOLERANCES = {"float32": 1e-5, "float64": 1e-12}


def dense(loss: str = "softmax") -> Network:
    return Network([Dense(13, "sigmoid"), Dense(9, "tanh"), Dense(11, "relu"), Dense(5)], loss, (7,))


def assert_same(plan: Plan, n_rows: int, dtype: str, n_micro_batches: int = 1) -> Together:
    """Loss, gradient and prediction are those of the whole network, to rounding."""
    network, backend = plan.network, get_backend("numpy")
    inputs, targets = rows_for(network, n_rows, dtype)
    parameters = parameters_for(network, dtype)
    together = Together(plan, backend, dtype)
    loss, gradient = together.loss_and_gradient(parameters, inputs, targets, Batch(3, n_rows, n_micro_batches))
    expected, of_whole = network.loss_and_gradient(parameters, inputs, targets)
    scale = max(1.0, float(np.abs(of_whole).max()))
    assert loss == pytest.approx(expected, rel=TOLERANCES[dtype], abs=TOLERANCES[dtype])
    assert np.abs(gradient - of_whole).max() <= TOLERANCES[dtype] * scale
    predicted = Together(plan, backend, dtype).predict(
        parameters, inputs, Batch(4, n_rows, n_micro_batches, is_training=False)
    )
    assert np.allclose(predicted, network.predict(parameters, inputs), rtol=0, atol=10 * TOLERANCES[dtype])
    return together


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_pieces", [1, 2, 3, 4])
@pytest.mark.parametrize("by", ["auto", "units", "layers"])
def test_pieces_compute_what_the_network_computes(by: str, n_pieces: int, dtype: str) -> None:
    """However it is cut."""
    assert_same(partition(dense(), n_pieces, by), 10, dtype)


@pytest.mark.parametrize("loss", ["softmax", "logistic", "squared"])
@pytest.mark.parametrize("n_micro_batches", [1, 2, 3, 10, 50])
@pytest.mark.parametrize("by", ["units", "layers"])
def test_micro_batches_add_up(by: str, n_micro_batches: int, loss: str) -> None:
    """As many as there are rows at most."""
    assert_same(partition(dense(loss), 3, by), 10, "float64", n_micro_batches)


@pytest.mark.parametrize("n_rows", [0, 1, 2])
def test_few_rows(n_rows: int) -> None:
    """None, or fewer than micro-batches."""
    assert_same(partition(dense(), 3, "units"), n_rows, "float64", 4)


def test_more_pieces_than_units() -> None:
    """Some have no node of a layer, or of any."""
    assert_same(partition(Network([Dense(2, "tanh"), Dense(3)], "softmax", (4,)), 5, "units"), 6, "float64")


def test_mini_batches_one_after_another_do_not_mix() -> None:
    """Buffers are used again, for more rows and for fewer."""
    network = dense()
    plan, backend = partition(network, 3, "units"), get_backend("numpy")
    together, parameters = Together(plan, backend, "float64"), parameters_for(network, "float64")
    for step, n_rows in enumerate((10, 4, 17)):
        inputs, targets = rows_for(network, n_rows, "float64", seed=step)
        found = together.loss_and_gradient(parameters, inputs, targets, Batch(step, n_rows, 2))
        expected = network.loss_and_gradient(parameters, inputs, targets)
        assert found[0] == pytest.approx(expected[0], rel=1e-12)
        assert np.allclose(found[1], expected[1], rtol=0, atol=1e-11)


@pytest.mark.parametrize("n_micro_batches", [1, 3])
@pytest.mark.parametrize("by", ["units", "layers", "auto"])
def test_as_much_is_sent_as_the_plan_says(by: str, n_micro_batches: int) -> None:
    """Value for value, in each direction and from each piece; a node goes to a piece once."""
    plan, n_rows = partition(dense(), 3, by), 10
    together = assert_same(plan, n_rows, "float32", n_micro_batches)
    of_rows = [(letter, size) for letter, size in together.sent if letter.way in (UP, DOWN)]
    for piece in range(plan.n_pieces):
        assert sum(size for letter, size in of_rows if letter.source == piece) == n_rows * plan.sent_values(piece)
    shared = sum(size for letter, size in together.sent if letter.way in (LENT, FOUND))
    assert shared == plan.shared_values()
    assert 4 * (sum(size for _, size in of_rows) + shared) == plan.sent_bytes(n_rows)


def test_pieces_of_different_plans_do_not_wait_for_ever() -> None:
    """Each would wait for what the other never sends."""
    network, backend = dense(), get_backend("numpy")
    one, other = (Together(partition(network, 2, by), backend, "float64") for by in ("units", "layers"))
    pieces = [one.pieces[0], other.pieces[1]]
    inputs, targets = rows_for(network, 4, "float64")
    parameters = parameters_for(network, "float64")
    steps = []
    for piece in pieces:
        vector = piece.plan.cut_vector(parameters)[piece.number]
        rows = inputs if piece.number == 0 else None
        steps.append(piece.steps(Batch(0, 4), vector, vector.copy(), rows, targets))
    with pytest.raises(RuntimeError, match="nobody sends"):
        run_together(pieces, steps, {})
