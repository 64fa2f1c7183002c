"""What may be trained: anything with a loss and a gradient, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dask_belief.errors import ArgumentError
from dask_belief.models.layers.dense import Dense
from dask_belief.models.layers.embedding import Embedding
from dask_belief.models.network import Network
from dask_belief.objective import (
    Gradients,
    Objective,
    check_objective,
    evaluation_sums,
    penalised_of,
    penalty,
    touched_of,
)
from dask_belief.seeds import stream

SEED = 51
N_FEATURES = 4


class LeastSquares:
    """A user's few lines: ``|X w - t|^2 / 2``."""

    n_parameters = N_FEATURES

    def initial_parameters(self, seed: int) -> np.ndarray:
        return np.zeros(N_FEATURES)

    def loss_and_gradient(self, parameters: Any, inputs: Any, targets: Any) -> tuple[Any, Any]:
        residual = inputs @ parameters - targets
        return 0.5 * residual @ residual, inputs.T @ residual


class WritesInPlace(LeastSquares):
    """The same, with the gradient written where it is wanted."""

    def loss_and_gradient(self, parameters: Any, inputs: Any, targets: Any, out: Any = None) -> tuple[Any, Any]:
        loss, gradient = super().loss_and_gradient(parameters, inputs, targets)
        if out is None:
            return loss, gradient
        out[:] = gradient
        return loss, out


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = stream(SEED, "rows")
    return rng.standard_normal(N_FEATURES), rng.standard_normal((7, N_FEATURES)), rng.standard_normal(7)


@pytest.mark.parametrize(
    "objective", [LeastSquares(), WritesInPlace(), Network([Dense(1)], loss="squared", input_shape=(N_FEATURES,))]
)
def test_objectives_are_taken(objective: Objective) -> None:
    """A user's class needs no base, and a network is one of them."""
    check_objective(objective)
    assert isinstance(objective, Objective)


@pytest.mark.parametrize("missing", ["n_parameters", "initial_parameters", "loss_and_gradient"])
def test_missing_member_is_named(missing: str) -> None:
    """An object that lacks one of the three is refused, with the name of its type and of what is missing."""
    members = {name: None for name in ("n_parameters", "initial_parameters", "loss_and_gradient") if name != missing}
    thing = type("Thing", (), members)()
    with pytest.raises(ArgumentError, match=f"^objective: Thing lacks {missing}"):
        check_objective(thing)


def test_what_is_no_objective_lacks_everything() -> None:
    """All that is missing is named at once."""
    with pytest.raises(ArgumentError, match="int lacks n_parameters, initial_parameters, loss_and_gradient"):
        check_objective(3)


def test_mask_of_a_network_leaves_out_biases() -> None:
    """A network says itself which parameters a penalty covers; others are covered whole."""
    network = Network([Dense(2)], loss="squared", input_shape=(3,))
    mask = penalised_of(network)
    assert mask is not None
    assert mask.sum() == 6
    assert penalised_of(LeastSquares()) is None


@pytest.mark.parametrize(
    "mask", [np.ones(N_FEATURES), np.ones(N_FEATURES + 1, bool), np.ones((1, N_FEATURES), bool), [1, 0, 1, 0]]
)
def test_mask_of_wrong_kind_is_refused(mask: Any) -> None:
    """Numbers for booleans, a wrong length and a wrong shape are refused by name."""
    objective: Any = LeastSquares()
    objective.penalised = mask
    with pytest.raises(ArgumentError, match=r"^objective\.penalised: expected booleans of shape \(4,\), got "):
        penalised_of(objective)


def test_mask_may_be_a_list() -> None:
    """Of truth values."""
    objective: Any = LeastSquares()
    objective.penalised = [True, False, True, False]
    np.testing.assert_array_equal(penalised_of(objective), [True, False, True, False])


def test_penalty_is_half_the_weighted_square() -> None:
    """Over the penalised parameters, in float64 also for float32."""
    objective: Any = LeastSquares()
    parameters = np.array([1, 2, 3, 1e-4], np.float32)
    assert penalty(objective, parameters, 0.5) == pytest.approx(0.25 * (14 + 1e-8), rel=1e-12)
    objective.penalised = np.array([True, False, True, False])
    assert penalty(objective, parameters, 0.5) == 0.25 * 10
    assert penalty(objective, parameters, 0.0) == 0


@pytest.mark.parametrize("objective", [LeastSquares(), WritesInPlace()])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradient_lands_where_it_is_wanted(objective: Objective, dtype: str) -> None:
    """Whether the objective knows `out` or not; what the vector held before does not count."""
    parameters, inputs, targets = data()
    out = np.full(N_FEATURES, np.nan, dtype)
    loss = Gradients(objective)(parameters, inputs, targets, out)
    expected_loss, expected = LeastSquares().loss_and_gradient(parameters, inputs, targets)
    np.testing.assert_array_equal(out, expected.astype(dtype))
    assert type(loss) is float
    assert loss == float(expected_loss)


@pytest.mark.parametrize("wrong", [np.zeros(N_FEATURES + 1), np.zeros((N_FEATURES, 1)), 3.0])
def test_gradient_of_wrong_shape_is_refused(wrong: Any) -> None:
    """Not even a number, which would be written everywhere, passes."""
    objective: Any = LeastSquares()
    objective.loss_and_gradient = lambda parameters, inputs, targets: (1.0, wrong)
    with pytest.raises(ArgumentError, match=r"^objective: loss_and_gradient gave a gradient of shape .*, not \(4,\)"):
        Gradients(objective)(*data(), np.zeros(N_FEATURES))


class KnowsWhatIsTouched(WritesInPlace):
    """The same for rows of zeros but for their first feature; another gradient than the first is never written."""

    def touched(self, inputs: Any, targets: Any) -> np.ndarray:
        return np.array([[0, 1]])

    def loss_and_gradient(
        self, parameters: Any, inputs: Any, targets: Any, out: Any = None, only_touched: bool = False
    ) -> tuple[Any, Any]:
        if not only_touched:
            return super().loss_and_gradient(parameters, inputs, targets, out)
        loss, gradient = LeastSquares.loss_and_gradient(self, parameters, inputs, targets)
        out[0] = gradient[0]
        return loss, out


@pytest.mark.parametrize("objective", [LeastSquares(), WritesInPlace(), KnowsWhatIsTouched()])
def test_only_touched_is_passed_on_to_who_knows_it(objective: Objective) -> None:
    """Another objective writes all of the gradient; what is touched is the same."""
    parameters, inputs, targets = data()
    inputs[:, 1:] = 0
    _, expected = LeastSquares().loss_and_gradient(parameters, inputs, targets)
    out = np.full(N_FEATURES, 7.0)
    Gradients(objective)(parameters, inputs, targets, out, only_touched=True)
    assert out[0] == expected[0]
    assert (out[1:] == (7 if isinstance(objective, KnowsWhatIsTouched) else 0)).all()
    Gradients(objective)(parameters, inputs, targets, out)
    np.testing.assert_array_equal(out, expected)


def test_what_is_touched_is_asked_of_who_offers_it() -> None:
    """A network with an embedding and a user's class do; other networks and classes may touch everything."""
    dense = Network([Dense(1)], loss="squared", input_shape=(N_FEATURES,))
    sparse = Network([Embedding(9, 2), Dense(1)], loss="squared", input_shape=(2,))
    assert touched_of(dense) is None
    assert touched_of(LeastSquares()) is None
    mine, its = touched_of(KnowsWhatIsTouched()), touched_of(sparse)
    assert mine is not None
    assert its is not None
    assert mine(*data()[1:]).tolist() == [[0, 1]]
    runs = its(np.array([[3, 4]]), np.zeros(1))
    assert runs.tolist() == [[6, 10], [18, 23]]
    assert runs.dtype == np.int64


@pytest.mark.parametrize(
    "runs",
    [[0, 1], [[0.0, 1.0]], [[0, 1, 2]], [[1, 1]], [[2, 1]], [[-1, 1]], [[0, 5]], [[0, 2], [1, 3]], [[2, 3], [0, 1]]],
)
def test_wrong_ranges_are_refused(runs: Any) -> None:
    """Another shape, fractions; ranges that are empty, outside the vector, overlapping or unsorted."""
    objective: Any = LeastSquares()
    objective.touched = lambda inputs, targets: np.array(runs)
    touched = touched_of(objective)
    assert touched is not None
    with pytest.raises(ArgumentError, match=r"^objective\.touched: expected "):
        touched(*data()[1:])


def test_no_ranges_are_ranges() -> None:
    """Rows may touch nothing."""
    objective: Any = LeastSquares()
    objective.touched = lambda inputs, targets: np.empty((0, 2), int)
    touched = touched_of(objective)
    assert touched is not None
    assert touched(*data()[1:]).shape == (0, 2)


def test_touched_that_cannot_be_called_is_refused() -> None:
    """Ranges themselves, for one: they depend on the rows."""
    objective: Any = LeastSquares()
    objective.touched = np.array([[0, 1]])
    with pytest.raises(ArgumentError, match=r"^objective\.touched: expected a function"):
        touched_of(objective)


def test_validation_needs_no_more_than_the_loss() -> None:
    """Without ``evaluate`` the sums are loss and rows."""
    parameters, inputs, targets = data()
    loss, _ = LeastSquares().loss_and_gradient(parameters, inputs, targets)
    assert evaluation_sums(LeastSquares(), parameters, inputs, targets) == {"loss": float(loss), "rows": 7.0}


def test_validation_takes_what_the_objective_offers() -> None:
    """With ``evaluate``, its sums."""
    objective: Any = LeastSquares()
    sums = {"loss": 1.0, "rows": 7.0, "correct": 3.0}
    objective.evaluate = lambda parameters, inputs, targets: sums
    assert evaluation_sums(objective, *data()) == sums
