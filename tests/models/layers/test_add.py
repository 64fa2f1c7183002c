"""Layers whose outputs are added to their inputs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dask_belief.backend import get_backend
from dask_belief.errors import ArgumentError
from dask_belief.models import Dense, Embedding, Network
from dask_belief.models.box import Box
from dask_belief.models.layers import Add, Dropout, Flatten, LayerNorm, LocalContrastNorm2D, layer_from_config
from dask_belief.testing import check_layer
from tests.backend.usable import USABLE
from tests.models.cases import SEED, central_differences, classes, rows

CASES = [
    (Add([Dense(8, "tanh"), Dense(4)]), (4,)),
    (Add([Dense(4, "relu")]), (4,)),
    (Add([Dropout(0.5), LayerNorm()]), (3, 4)),
    (Add([LocalContrastNorm2D(3), LocalContrastNorm2D(3)]), (9, 7, 2)),
    (Add([LocalContrastNorm2D(3), LayerNorm(), Dropout(0.5)]), (9, 7, 2)),
    (Add([LayerNorm(), LocalContrastNorm2D(3)]), (9, 7, 3)),
    (Add([Add([Dense(3, "tanh"), Dense(4)]), Dense(4)]), (4,)),
    (Add([Flatten()]), (5,)),
]


@pytest.mark.parametrize("name", USABLE)
@pytest.mark.parametrize(("layer", "shape"), CASES)
def test_it_keeps_the_contract(name: str, layer: Add, shape: tuple[int, ...]) -> None:
    """Gradients of inner parameters, parts with halos that inner layers need, dtypes and the rest."""
    check_layer(layer, shape, backend=get_backend(name))


@pytest.mark.parametrize("name", USABLE)
def test_a_network_gives_what_the_formula_gives(name: str) -> None:
    """Loss by hand; gradient against central differences; parameters by number and name."""
    net = Network([Add([Dense(5, "tanh"), Dense(4)]), Dense(3)], "softmax", (4,), backend=get_backend(name))
    assert list(net.layout.shapes) == [
        *("0.0.weights", "0.0.bias", "0.1.weights", "0.1.bias"),
        *("1.weights", "1.bias"),
    ]
    parameters, inputs, targets = net.initial_parameters(SEED, np.float64), rows(9, 4), classes(9, 3)
    own = net.layout.views(parameters)
    inner = np.tanh(inputs @ own["0.0.weights"] + own["0.0.bias"]) @ own["0.1.weights"] + own["0.1.bias"]
    z = (inputs + inner) @ own["1.weights"] + own["1.bias"]
    expected_loss = (np.log(np.exp(z).sum(axis=1)) - z[np.arange(9), targets]).sum()
    loss, gradient = net.loss_and_gradient(parameters, inputs, targets)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    expected = central_differences(lambda p: net.loss_and_gradient(p, inputs, targets)[0], parameters)
    np.testing.assert_allclose(net.backend.to_host(gradient), expected, rtol=1e-6, atol=1e-6)


def test_inner_layers_draw_by_their_own_place() -> None:
    """Two dropouts of one Add draw otherwise than one another, and otherwise than a layer of the network."""
    key, parameters = 5, np.zeros(0)
    losses = set()
    for layers in (
        [Add([Dropout(0.5)])],
        [Add([Flatten(), Dropout(0.5)])],
        [Flatten(), Add([Dropout(0.5)])],
    ):
        net = Network(layers, "squared", (50,))
        losses.add(net.loss_and_gradient(parameters, rows(3, 50), rows(3, 50, seed=2), key=key)[0])
    assert len(losses) == 3


def test_inner_parameters_are_cut_or_shared() -> None:
    """The last layer's are cut with its outputs; of the lower ones each part has all."""
    layer = Add([Dense(8, "tanh"), Dense(4)])
    part = layer.part(Box((1,), (3,)), (4,))
    assert part.inputs == Box((0,), (4,))
    assert part.parameters == {
        "0.weights": Box((0, 0), (4, 8)),
        "0.bias": Box((0,), (8,)),
        "1.weights": Box((0, 1), (8, 3)),
        "1.bias": Box((1,), (3,)),
    }


def test_a_part_of_images_reaches_as_far_as_its_layers() -> None:
    """Two windows for each of two normalisations of three by three: four places beyond its own."""
    part = Add([LocalContrastNorm2D(3), LocalContrastNorm2D(3)]).part(Box((10, 0, 0), (12, 5, 2)), (30, 5, 2))
    assert part.inputs == Box((6, 0, 0), (16, 5, 2))


def test_where_the_last_layer_cannot_be_cut_nothing_is() -> None:
    """Embedded in it, an axis that cannot be cut stays whole."""

    class Uncut(Flatten):
        def cut_axes(self, input_shape):
            return frozenset()

    assert Add([Uncut()]).cut_axes((4,)) == frozenset()
    with pytest.raises(ArgumentError, match=r"^outputs: "):
        Add([Uncut()]).part(Box((0,), (2,)), (4,))
    # Below another layer it is computed in every part.
    assert Add([Uncut(), LayerNorm()]).part(Box((0,), (2,)), (5,)).inputs == Box((0,), (5,))


@pytest.mark.parametrize("layers", [[], None, "dense", [Embedding(3, 1)], [3]])
def test_wrong_layers_are_refused(layers: object) -> None:
    """One layer or more, which take numbers."""
    with pytest.raises(ArgumentError, match=r"^layers: "):
        Add(layers)


def test_another_shape_is_refused() -> None:
    """What is added has the inputs' shape."""
    with pytest.raises(ArgumentError, match=r"^layers: .*\(4,\).*\(5,\)"):
        Network([Add([Dense(5)]), Dense(2)], "softmax", (4,))


@pytest.mark.parametrize(("layer", "shape"), CASES)
def test_configuration_round_trip(layer: Add, shape: tuple[int, ...]) -> None:
    """Nested, through JSON text and back; a network with one as well."""
    assert layer_from_config(json.loads(json.dumps(layer.to_config()))) == layer
    net = Network([layer], "squared", shape)
    assert Network.from_config(json.loads(json.dumps(net.to_config()))) == net


def test_penalties_ask_the_inner_layers() -> None:
    """Weights but not biases, unless a layer says otherwise."""
    layer = Add([Dense(3, penalised=False), LayerNorm(), Dense(4)])
    told = {name: layer.is_penalised(name) for name in layer.parameter_shapes((4,))}
    assert [name for name, is_penalised in told.items() if is_penalised] == ["2.weights"]
