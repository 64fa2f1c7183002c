"""The arithmetic of a network: gradients against central differences, sums, and buffers that leave no trace."""

from __future__ import annotations

import copy
import threading
import warnings

import numpy as np
import pytest

from dask_belief.backend import get_backend
from dask_belief.models import Dense, Network
from dask_belief.models.activations import ACTIVATIONS
from tests.backend.usable import USABLE
from tests.models.cases import (
    LOSSES,
    ROWS,
    SEED,
    SMALL,
    central_differences,
    classes,
    network_for,
    rows,
    targets_for,
)


@pytest.mark.parametrize("last", [None, "tanh"])
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_agrees_with_central_differences(loss: str, activation: str | None, last: str | None) -> None:
    """In float64, to 1e-6, for each activation and each loss, also with an activation below the loss."""
    network = network_for(loss, activation, last)
    parameters = network.initial_parameters(SEED, np.float64) + 0.1 * rows(network.n_parameters)
    inputs, targets = rows(ROWS, 4), targets_for(loss, ROWS)
    _, gradient = network.loss_and_gradient(parameters, inputs, targets)
    expected = central_differences(lambda p: network.loss_and_gradient(p, inputs, targets)[0], parameters)
    assert np.abs(gradient).max() > 0.1
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_gradient_of_one_output(loss: str) -> None:
    """With one output, targets of one axis and of two mean the same, and the gradient is right."""
    network = network_for(loss, "sigmoid", n_outputs=1)
    parameters = network.initial_parameters(SEED, np.float64)
    inputs, targets = rows(ROWS, 4), targets_for(loss, ROWS, 1)
    value, gradient = network.loss_and_gradient(parameters, inputs, targets[:, 0])
    again, same = network.loss_and_gradient(parameters, inputs, targets)
    assert value == again
    np.testing.assert_array_equal(gradient, same)
    expected = central_differences(lambda p: network.loss_and_gradient(p, inputs, targets)[0], parameters)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-6)


def test_loss_is_that_of_the_formula() -> None:
    """One softmax layer written out by hand."""
    network = Network([Dense(3)], "softmax", (4,))
    parameters, inputs, targets = rows(15), rows(ROWS, 4), classes(ROWS, 3)
    z = inputs @ parameters[:12].reshape(4, 3) + parameters[12:]
    expected = (np.log(np.exp(z).sum(axis=1)) - z[np.arange(ROWS), targets]).sum()
    assert network.loss_and_gradient(parameters, inputs, targets)[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("loss", LOSSES)
def test_float32_agrees_with_float64(loss: str, activation: str | None) -> None:
    """The run's dtype changes rounding only."""
    network = network_for(loss, activation)
    parameters, inputs, targets = network.initial_parameters(SEED), rows(ROWS, 4), targets_for(loss, ROWS)
    value, gradient = network.loss_and_gradient(parameters, inputs.astype(np.float32), targets)
    exact_value, exact = network.loss_and_gradient(parameters.astype(np.float64), inputs, targets)
    assert gradient.dtype == np.float32
    assert exact.dtype == np.float64
    assert value == pytest.approx(exact_value, rel=1e-5)
    np.testing.assert_allclose(gradient, exact, rtol=1e-4, atol=1e-5)


def test_sums_over_rows_add_up() -> None:
    """Loss and gradient of all rows are the sums of those of any cut; nothing is divided by the rows."""
    parameters = SMALL.initial_parameters(SEED, np.float64)
    inputs, targets = rows(200, 4), classes(200, 3)
    whole_loss, whole = SMALL.loss_and_gradient(parameters, inputs, targets)
    parts = [
        SMALL.loss_and_gradient(parameters, inputs[cut], targets[cut]) for cut in np.split(np.arange(200), [1, 77])
    ]
    assert sum(loss for loss, _ in parts) == pytest.approx(whole_loss, rel=1e-12)
    np.testing.assert_allclose(sum(gradient for _, gradient in parts), whole, rtol=1e-9, atol=1e-9)


def test_no_rows_give_zero() -> None:
    """An empty batch has no loss and a gradient of zeros, whatever the vector held."""
    out = np.full(SMALL.n_parameters, np.nan)
    loss, gradient = SMALL.loss_and_gradient(
        SMALL.initial_parameters(SEED, np.float64), rows(0, 4), classes(0, 3), out=out
    )
    assert loss == 0
    assert not gradient.any()
    assert SMALL.predict(SMALL.initial_parameters(SEED), rows(0, 4)).shape == (0, 3)
    assert SMALL.evaluate(SMALL.initial_parameters(SEED), rows(0, 4), classes(0, 3)) == {
        "loss": 0,
        "rows": 0,
        "correct": 0,
    }


def test_out_is_overwritten_and_returned() -> None:
    """The gradient lands in the vector given, every element; without one it is fresh each time."""
    parameters, inputs, targets = SMALL.initial_parameters(SEED), rows(ROWS, 4), classes(ROWS, 3)
    _, fresh = SMALL.loss_and_gradient(parameters, inputs, targets)
    out = np.full(SMALL.n_parameters, np.nan, np.float32)
    _, returned = SMALL.loss_and_gradient(parameters, inputs, targets, out=out)
    assert returned is out
    np.testing.assert_array_equal(out, fresh)
    _, other = SMALL.loss_and_gradient(parameters, inputs, targets)
    assert not np.shares_memory(other, fresh)


def test_arguments_are_not_written() -> None:
    """Parameters, inputs and targets may be shared between replicas: they are read-only to a network."""
    arguments = [SMALL.initial_parameters(SEED), rows(ROWS, 4).astype(np.float32), classes(ROWS, 3)]
    for argument in arguments:
        argument.flags.writeable = False
    SMALL.loss_and_gradient(*arguments)
    SMALL.evaluate(*arguments)
    SMALL.predict(*arguments[:2])


def test_buffers_of_other_batch_sizes_change_nothing() -> None:
    """A small batch after a large one gives the bits that it gave before."""
    parameters, inputs, targets = SMALL.initial_parameters(SEED), rows(300, 4), classes(300, 3)
    network = copy.copy(SMALL)
    first = network.loss_and_gradient(parameters, inputs[:5], targets[:5])
    network.loss_and_gradient(parameters, inputs, targets)
    network.predict(parameters, inputs)
    again = network.loss_and_gradient(parameters, inputs[:5], targets[:5])
    assert again[0] == first[0]
    np.testing.assert_array_equal(again[1], first[1])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("n_outputs", [1, 10])
def test_bits_do_not_depend_on_where_arrays_lie(activation: str, n_outputs: int) -> None:
    """At any alignment in memory the same rows give the same bits, be they read just now or found in a cache."""
    network = Network([Dense(67, activation), Dense(n_outputs)], "logistic", (45,))
    parameters, inputs = network.initial_parameters(SEED), rows(101, 45).astype(np.float32)
    targets = targets_for("logistic", 101, n_outputs)

    def moved(array: np.ndarray, n_elements: int) -> np.ndarray:
        memory = np.empty(array.size + 16, array.dtype)
        there = memory[n_elements : n_elements + array.size].reshape(array.shape)
        there[...] = array
        return there

    expected = network.loss_and_gradient(parameters, inputs, targets)
    for n_elements in range(1, 16):
        loss, gradient = network.loss_and_gradient(
            moved(parameters, n_elements), moved(inputs, 16 - n_elements), targets, out=moved(parameters, n_elements)
        )
        assert loss == expected[0]
        np.testing.assert_array_equal(gradient, expected[1])


def test_threads_share_a_network() -> None:
    """Four threads with batches of their own get what each would get alone."""
    network = Network([Dense(64, "relu"), Dense(3)], "softmax", (4,))
    parameters = network.initial_parameters(SEED)
    batches = [(rows(100 + number, 4, seed=number), classes(100 + number, 3)) for number in range(4)]
    alone = [network.loss_and_gradient(parameters, *batch)[1] for batch in batches]
    wrong: list[int] = []
    start = threading.Barrier(4)

    def work(number: int) -> None:
        start.wait(timeout=30)
        for _ in range(50):
            _, gradient = network.loss_and_gradient(parameters, *batches[number])
            if not np.array_equal(gradient, alone[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not wrong


def test_a_loss_that_is_not_finite_is_returned_in_silence() -> None:
    """NaN or infinity in the data reach the loss, and nothing warns: the caller judges."""
    inputs, targets = rows(ROWS, 4), classes(ROWS, 3)
    parameters = SMALL.initial_parameters(SEED)
    inputs[2, 1] = np.nan
    assert np.isnan(SMALL.loss_and_gradient(parameters, inputs, targets)[0])
    assert np.isnan(SMALL.evaluate(parameters, inputs, targets)["loss"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss, _ = network_for("squared", "relu").loss_and_gradient(
            np.full(SMALL.n_parameters, 1e30, np.float32), rows(ROWS, 4), targets_for("squared", ROWS)
        )
    assert not np.isfinite(loss)


def test_large_logits_stay_exact() -> None:
    """Weights of 1e4 give a finite loss and gradient in float32."""
    network = Network([Dense(3)], "softmax", (4,))
    loss, gradient = network.loss_and_gradient(1e4 * rows(15).astype(np.float32), rows(ROWS, 4), classes(ROWS, 3))
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", USABLE)
def test_every_backend_gives_what_the_host_gives(name: str, loss: str, activation: str) -> None:
    """Host arrays in: loss, gradient, predictions and sums agree to rounding, and the gradient stays on the device."""
    host = network_for(loss, activation)
    network = host.on(get_backend(name))
    parameters, inputs, targets = host.initial_parameters(SEED, np.float64), rows(70, 4), targets_for(loss, 70)
    expected_loss, expected = host.loss_and_gradient(parameters, inputs, targets)

    out = network.backend.empty(host.n_parameters, np.float64)
    value, gradient = network.loss_and_gradient(network.backend.asarray(parameters), inputs, targets, out=out)
    assert gradient is out
    assert value == pytest.approx(expected_loss, rel=1e-12)
    np.testing.assert_allclose(network.backend.to_host(gradient), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(network.predict(parameters, inputs), host.predict(parameters, inputs), rtol=1e-12)
    assert network.evaluate(parameters, inputs, targets) == pytest.approx(host.evaluate(parameters, inputs, targets))
