"""Nodes of several axes as one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_belief.backend import get_backend
from dask_belief.models import Dense, Network
from dask_belief.models.box import Box
from dask_belief.models.layers import Flatten, Workspace, layer_from_config
from dask_belief.testing import check_layer
from tests.backend.usable import USABLE
from tests.models.cases import SEED, classes, rows

numpy = get_backend("numpy")


@pytest.mark.parametrize("name", USABLE)
@pytest.mark.parametrize("shape", [(5,), (3, 4), (3, 2, 5), (1, 1, 1)])
def test_it_keeps_the_contract(name: str, shape: tuple[int, ...]) -> None:
    """Gradients, parts, dtypes and the rest."""
    check_layer(Flatten(), shape, backend=get_backend(name))


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_any_run_of_flat_nodes_comes_from_its_box(data: st.DataObject) -> None:
    """The smallest box that holds the run, whatever the shape."""
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    size = int(np.prod(shape))
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    part = Flatten().part(Box((start,), (stop,)), shape)
    nodes = np.arange(2.0 * size).reshape(2, *shape)
    inputs = nodes[(slice(None), *part.inputs.within(Box.whole(shape)))]
    found = part.layer.forward(numpy, {}, inputs, Workspace(numpy))
    np.testing.assert_array_equal(found, nodes.reshape(2, size)[:, start:stop])


def test_nothing_is_copied() -> None:
    """Up and down, a network with one computes what it computes without."""
    inputs = rows(4, 2, 3)
    assert np.shares_memory(Flatten().forward(numpy, {}, inputs, Workspace(numpy)), inputs)
    plain, flat = (Network(layers, "softmax", (2, 3)) for layers in ([Dense(3)], [Flatten(), Dense(3), Flatten()]))
    parameters = plain.initial_parameters(SEED)
    before = inputs.copy()
    (loss, gradient), (expected_loss, expected) = (
        net.loss_and_gradient(parameters, inputs, classes(4, 3)) for net in (flat, plain)
    )
    assert loss == expected_loss
    np.testing.assert_array_equal(gradient, expected)
    np.testing.assert_array_equal(flat.predict(parameters, inputs), plain.predict(parameters, inputs))
    np.testing.assert_array_equal(inputs, before)


def test_the_loss_writes_no_outputs_that_are_read() -> None:
    """Below a Flatten at the end lie the outputs of an activation, which its derivative needs."""
    plain, flat = (Network(layers, "squared", (4,)) for layers in ([Dense(3, "tanh")], [Dense(3, "tanh"), Flatten()]))
    parameters, inputs, targets = plain.initial_parameters(SEED), rows(4, 4), rows(4, 3, seed=2)
    np.testing.assert_array_equal(
        flat.loss_and_gradient(parameters, inputs, targets)[1], plain.loss_and_gradient(parameters, inputs, targets)[1]
    )


def test_data_are_not_written() -> None:
    """Also where there is no other layer."""
    net, inputs = Network([Flatten()], "softmax", (2, 2)), rows(4, 2, 2)
    before = inputs.copy()
    parameters = net.initial_parameters(SEED, np.float64)
    net.predict(parameters, inputs)
    net.evaluate(parameters, inputs, classes(4, 4))
    net.loss_and_gradient(parameters, inputs, classes(4, 4))
    np.testing.assert_array_equal(inputs, before)


def test_configuration_round_trip() -> None:
    """It has no fields."""
    assert layer_from_config(Flatten().to_config()) == Flatten()
