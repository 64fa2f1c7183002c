"""Dropout: what it draws follows from the pass, the layer, the row and the node alone, on every backend."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_belief import seeds
from dask_belief.backend import Backend, get_backend
from dask_belief.errors import ArgumentError
from dask_belief.models import Dense, Network
from dask_belief.models.box import Box
from dask_belief.models.layers import Dropout, Workspace, layer_from_config
from dask_belief.testing import check_layer
from tests.backend.usable import USABLE
from tests.models.cases import SEED, central_differences, classes, rows

KEY = 77
FULL = 2**64
numpy = get_backend("numpy")


def oracle(seed: int, row: int, node: int, width: int) -> int:
    """SplitMix64 as it is published: a state that grows by a constant, and the mixing of it; in whole numbers."""
    z = (seed + (row * width + node + 1) * 0x9E3779B97F4A7C15) % FULL
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % FULL
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % FULL
    return z ^ (z >> 31)


def drawn(layer: Dropout, shape: tuple[int, ...], key: int = KEY, place: int = 0, first_row: int = 0) -> np.ndarray:
    """Which nodes are kept, and by what they are multiplied."""
    workspace = Workspace(numpy, (place,))
    workspace.key, workspace.first_row = key, first_row
    return np.array(layer.forward(numpy, {}, np.ones(shape), workspace))


@pytest.mark.parametrize("name", USABLE)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_mask_is_the_hash_in_whole_numbers(name: str, dtype: type[np.floating]) -> None:
    """Each element is 0 or 1 / (1 - rate) as the published algorithm says, also for large numbers of rows and nodes."""
    backend: Backend = get_backend(name)
    numbers, seed, width, first_row, rate = np.array([[0, 3, 10**9, 2**40]]), FULL - 5, 2**41, 2**33, 0.3
    row_numbers = np.array([[0], [1], [70_000]])
    mask = backend.empty((3, 4), dtype)
    backend.dropout_mask_(
        mask,
        backend.asarray(row_numbers),
        backend.asarray(numbers),
        seed=seed,
        first_row=first_row,
        width=width,
        rate=rate,
    )
    expected = [
        [
            0 if oracle(seed, first_row + int(row), int(node), width) < round(rate * FULL) else dtype(1 / (1 - rate))
            for node in numbers[0]
        ]
        for row in row_numbers[:, 0]
    ]
    np.testing.assert_array_equal(backend.to_host(mask), np.array(expected, dtype))


@pytest.mark.parametrize("name", USABLE)
def test_a_mask_of_many_blocks(name: str) -> None:
    """Blocks of rows make no difference, nor does a row that is longer than a block."""
    backend = get_backend(name)
    for n_rows, n_nodes in ((5, 40_000), (3000, 37)):
        mask = backend.empty((n_rows, n_nodes), np.float32)
        row_numbers, nodes = np.arange(n_rows)[:, np.newaxis], np.arange(n_nodes)[np.newaxis]
        backend.dropout_mask_(
            mask, backend.asarray(row_numbers), backend.asarray(nodes), seed=9, first_row=2, width=n_nodes, rate=0.25
        )
        found = backend.to_host(mask)
        for row, node in ((0, 0), (n_rows - 1, n_nodes - 1), (n_rows // 2, n_nodes // 3), (1, 36)):
            assert (found[row, node] == 0) == (oracle(9, row + 2, node, n_nodes) < FULL // 4)
        assert abs(float((found == 0).mean()) - 0.25) < 0.01


def test_what_it_draws_is_what_the_rate_says() -> None:
    """Zero with the rate's frequency, over rows and over nodes; else one over what is left: the mean stays."""
    found = drawn(Dropout(0.2), (400, 300))
    assert set(np.unique(found)) == {0.0, 1.25}
    assert abs((found == 0).mean() - 0.2) < 0.006
    for axis in (0, 1):
        assert np.abs((found == 0).mean(axis=axis) - 0.2).max() < 0.1
    # Neighbours along rows and nodes are no more alike than chance has it.
    zeros = (found == 0) - 0.2
    assert abs((zeros[:, 1:] * zeros[:, :-1]).mean()) < 0.004
    assert abs((zeros[1:] * zeros[:-1]).mean()) < 0.004


def test_another_key_place_or_row_draws_otherwise() -> None:
    """Each of them changes about as many nodes as chance has it; the same ones give the same bits."""
    first = drawn(Dropout(0.5), (50, 40))
    np.testing.assert_array_equal(drawn(Dropout(0.5), (50, 40)), first)
    for other in (
        drawn(Dropout(0.5), (50, 40), key=KEY + 1),
        drawn(Dropout(0.5), (50, 40), place=1),
        drawn(Dropout(0.5), (50, 40), first_row=50),
    ):
        assert abs((other != first).mean() - 0.5) < 0.05


def test_rows_of_a_mini_batch_draw_what_they_would_together() -> None:
    """With `first_row` a run of rows draws what these rows of the whole draw."""
    whole = drawn(Dropout(0.5), (10, 6))
    np.testing.assert_array_equal(drawn(Dropout(0.5), (7, 6), first_row=3), whole[3:])


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_part_draws_what_the_whole_draws_there(data: st.DataObject) -> None:
    """For any box of any shape."""
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    starts = [data.draw(st.integers(0, length - 1)) for length in shape]
    stops = [data.draw(st.integers(start + 1, length)) for start, length in zip(starts, shape, strict=True)]
    box = Box(tuple(starts), tuple(stops))
    whole = drawn(Dropout(0.5), (4, *shape))
    part = Dropout(0.5).part(box, shape)
    assert part.inputs == part.outputs == box
    assert isinstance(part.layer, Dropout)
    np.testing.assert_array_equal(
        drawn(part.layer, (4, *box.shape)), whole[(slice(None), *box.within(Box.whole(shape)))]
    )


@pytest.mark.parametrize("name", USABLE)
@pytest.mark.parametrize("shape", [(7,), (3, 4, 2)])
@pytest.mark.parametrize("rate", [0, 0.4, 0.99])
def test_it_keeps_the_contract(name: str, rate: float, shape: tuple[int, ...]) -> None:
    """Gradients, parts, dtypes and the rest."""
    check_layer(Dropout(rate), shape, backend=get_backend(name))


def network() -> Network:
    return Network([Dense(8, "tanh"), Dropout(0.5), Dense(3)], "softmax", (4,))


@pytest.mark.parametrize("name", USABLE)
def test_a_network_that_draws(name: str) -> None:
    """The gradient is that of the loss with the same key; a key gives the same bits; another one another loss."""
    net = network().on(get_backend(name))
    parameters, inputs, targets = net.initial_parameters(SEED, np.float64), rows(9, 4), classes(9, 3)
    loss, gradient = net.loss_and_gradient(parameters, inputs, targets, key=KEY)
    expected = central_differences(lambda p: net.loss_and_gradient(p, inputs, targets, key=KEY)[0], parameters)
    np.testing.assert_allclose(net.backend.to_host(gradient), expected, rtol=1e-6, atol=1e-6)
    assert net.loss_and_gradient(parameters, inputs, targets, key=KEY)[0] == loss
    assert net.loss_and_gradient(parameters, inputs, targets, key=KEY + 1)[0] != loss
    host = network().loss_and_gradient(parameters, inputs, targets, key=KEY)[0]
    assert loss == pytest.approx(host, rel=1e-12)


def test_predictions_draw_nothing() -> None:
    """Predict and evaluate are those of the network without the layer, also after a pass that drew."""
    net, plain = network(), Network([Dense(8, "tanh"), Dense(3)], "softmax", (4,))
    parameters, inputs, targets = net.initial_parameters(SEED), rows(9, 4), classes(9, 3)
    net.loss_and_gradient(parameters, inputs, targets, key=KEY)
    np.testing.assert_array_equal(net.predict(parameters, inputs), plain.predict(parameters, inputs))
    assert net.evaluate(parameters, inputs, targets) == plain.evaluate(parameters, inputs, targets)


def test_a_network_that_draws_needs_a_key() -> None:
    """Without one it is refused; a network that draws nothing takes one and makes nothing of it."""
    parameters, inputs, targets = network().initial_parameters(SEED), rows(9, 4), classes(9, 3)
    assert network().draws
    with pytest.raises(ArgumentError, match=r"^key: .*Dropout"):
        network().loss_and_gradient(parameters, inputs, targets)
    for wrong in (-1, 0.5, True):
        with pytest.raises(ArgumentError, match=r"^key: "):
            network().loss_and_gradient(parameters, inputs, targets, key=wrong)
    idle = Network([Dense(8, "tanh"), Dropout(0), Dense(3)], "softmax", (4,))
    assert not idle.draws
    assert (
        idle.loss_and_gradient(parameters, inputs, targets)[0]
        == idle.loss_and_gradient(parameters, inputs, targets, key=KEY)[0]
    )


def test_rows_that_are_given_are_not_written() -> None:
    """Where no layer copies, what the loss writes is a copy: data are read only."""
    for layer in (Dropout(0.5), Dropout(0)):
        net = Network([layer], "softmax", (4,))
        inputs = rows(9, 4)
        before = inputs.copy()
        parameters = net.initial_parameters(SEED, np.float64)
        net.loss_and_gradient(parameters, inputs, classes(9, 4), key=KEY)
        net.predict(parameters, inputs)
        net.evaluate(parameters, inputs, classes(9, 4))
        np.testing.assert_array_equal(inputs, before)


def test_keys_of_mini_batches_differ() -> None:
    """A pure function of seed, epoch, lease and mini-batch, of 64 bits."""
    keys = {seeds.key(0, "pass", epoch, lease, batch) for epoch in range(5) for lease in range(7) for batch in range(9)}
    assert len(keys) == 5 * 7 * 9
    assert all(0 <= key < FULL for key in keys)


@pytest.mark.parametrize("rate", [1, -0.1, 1.5, "much", None, float("nan")])
def test_wrong_rates_are_refused(rate: object) -> None:
    """A share below one."""
    with pytest.raises(ArgumentError, match=r"^rate: "):
        Dropout(rate)


def test_configuration_round_trip() -> None:
    """Through JSON text and back."""
    assert layer_from_config(json.loads(json.dumps(Dropout(0.25).to_config()))) == Dropout(0.25)
