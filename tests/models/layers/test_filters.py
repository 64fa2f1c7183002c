"""Convolution and locally connected layers, against sums place by place."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from dask_belief.backend import get_backend
from dask_belief.errors import ArgumentError
from dask_belief.models import Dense, Network
from dask_belief.models.layers import (
    AveragePool2D,
    Conv2D,
    L2Pool2D,
    Layer,
    LocallyConnected2D,
    MaxPool2D,
    Workspace,
    filters,
    layer_from_config,
)
from dask_belief.models.layers.filters import Filters
from dask_belief.seeds import stream
from dask_belief.testing import check_layer
from tests.backend.usable import USABLE
from tests.models.cases import central_differences

SHAPES: list[tuple[tuple[int, int, int], Any, Any, Any]] = [
    ((7, 8, 2), 3, 1, "valid"),
    ((7, 8, 2), (3, 2), 2, "same"),
    ((5, 5, 1), 5, 1, "valid"),
    ((9, 7, 3), 2, 3, "valid"),
    ((6, 9, 2), 4, (1, 3), ((1, 2), (0, 3))),
    ((4, 4, 2), 3, 4, "same"),
    ((1, 6, 2), (1, 3), 1, "same"),
]
KINDS: list[type[Filters]] = [Conv2D, LocallyConnected2D]


def formula(layer: Filters, parameters: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """The outputs, one number after the other."""
    windows = layer.windows(images.shape[1:])
    (height, width), (down, across) = layer.kernel, layer.stride  # type: ignore[misc]
    rows, columns = windows.rows, windows.columns
    around = np.zeros((len(images), rows.padded, columns.padded, images.shape[3]))
    around[:, rows.before : rows.before + rows.size, columns.before : columns.before + columns.size] = images
    outputs = np.empty((len(images), *layer.output_shape(images.shape[1:])))
    for number, i, j, which in np.ndindex(*outputs.shape):
        patch = around[number, i * down : i * down + height, j * across : j * across + width]
        if isinstance(layer, Conv2D):
            weights, bias = parameters["weights"][..., which], parameters["bias"][which]
        else:
            weights = parameters["weights"][i, j, :, which].reshape(patch.shape)
            bias = parameters["bias"][i, j, which]
        outputs[number, i, j, which] = (patch * weights).sum() + bias
    return np.tanh(outputs) if layer.activation == "tanh" else outputs


@pytest.mark.parametrize("backend_name", USABLE)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "kernel", "stride", "padding"), SHAPES)
def test_outputs_are_those_of_the_formula(
    kind: type[Filters], shape: tuple[int, int, int], kernel: Any, stride: Any, padding: Any, backend_name: str
) -> None:
    """For odd shapes, strides and paddings."""
    backend, random = get_backend(backend_name), stream(0, "images")
    layer = kind(3, kernel, stride, padding, "tanh")
    parameters = {name: random.normal(size=size) for name, size in layer.parameter_shapes(shape).items()}
    images = random.normal(size=(4, *shape))
    on_device = {name: backend.asarray(values) for name, values in parameters.items()}
    with backend.computing():
        outputs = backend.to_host(layer.forward(backend, on_device, backend.asarray(images), Workspace(backend)))
    assert np.allclose(outputs, formula(layer, parameters, images), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "kernel", "stride", "padding"), SHAPES)
def test_it_keeps_the_contract_of_a_layer(
    kind: type[Filters], shape: tuple[int, int, int], kernel: Any, stride: Any, padding: Any
) -> None:
    """Gradients, shapes, parts and all."""
    check_layer(kind(3, kernel, stride, padding, "sigmoid"), shape)
    check_layer(kind(2, kernel, stride, padding), shape)


PADDED = [
    Conv2D(2, 3, padding="same", activation="tanh"),
    LocallyConnected2D(2, 3, padding=((1, 0), (0, 2)), activation="sigmoid"),
    MaxPool2D(3, 1, "same"),
    L2Pool2D(3, 1, "same"),
    AveragePool2D(3, 1, "same"),
]


@pytest.mark.parametrize("above", PADDED, ids=lambda layer: layer.kind)
@pytest.mark.parametrize("kind", KINDS)
def test_its_activation_counts_below_a_layer_that_pads(kind: type[Filters], above: Layer) -> None:
    """The derivative that such a layer gives was a view of the padded one, and its change was a copy's."""
    network = Network([kind(2, 2, activation="tanh"), above, Dense(3)], loss="softmax", input_shape=(5, 4, 2))
    random = stream(0, "padded")
    images, targets = random.normal(size=(3, 5, 4, 2)), random.integers(0, 3, 3)
    parameters = network.initial_parameters(0, np.float64)

    def loss(at: np.ndarray) -> float:
        return network.loss_and_gradient(at, images, targets)[0]

    _, gradient = network.loss_and_gradient(parameters, images, targets)
    np.testing.assert_allclose(gradient, central_differences(loss, parameters), rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_do_not_change_what_is_found(kind: type[Filters], monkeypatch: pytest.MonkeyPatch) -> None:
    """However few patches are gathered at once."""
    network = Network([kind(4, 3, 1, "same", "tanh"), Dense(3)], loss="softmax", input_shape=(6, 5, 2))
    random = stream(0, "blocks")
    images, targets = random.normal(size=(7, 6, 5, 2)), random.integers(0, 3, 7)
    parameters = network.initial_parameters(0, np.float64)
    whole = network.loss_and_gradient(parameters, images, targets)
    monkeypatch.setattr(filters, "_HOST_BLOCK_BYTES", 1)
    loss, gradient = network.loss_and_gradient(parameters, images, targets)
    assert loss == pytest.approx(whole[0], rel=1e-12)
    assert np.allclose(gradient, whole[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_described_in_json(kind: type[Filters]) -> None:
    """And made again from that."""
    layer = kind(3, (2, 3), 2, ((0, 1), (1, 1)), "relu", penalised=False)
    assert layer_from_config(json.loads(json.dumps(layer.to_config()))) == layer
    assert not layer.is_penalised("weights") and kind(3, 2).is_penalised("weights")
    assert not kind(3, 2).is_penalised("bias")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"filters": 0, "kernel": 3}, "filters"),
        ({"filters": 1, "kernel": 0}, "kernel"),
        ({"filters": 1, "kernel": 3, "stride": 0}, "stride"),
        ({"filters": 1, "kernel": 3, "padding": "full"}, "padding"),
        ({"filters": 1, "kernel": 3, "padding": ((1.5, 0), (0, 0))}, "padding"),
        ({"filters": 1, "kernel": 3, "padding": ((True, 0), (0, 0))}, "padding"),
        ({"filters": 1, "kernel": 3, "padding": ((0, 0), (0, 3))}, "padding"),
        ({"filters": 1, "kernel": 3, "activation": "swish"}, "activation"),
        ({"filters": 1, "kernel": 3, "initialiser": "ones"}, "initialiser"),
        ({"filters": 1, "kernel": 3, "penalised": 1}, "penalised"),
    ],
)
def test_wrong_fields_are_refused(kind: type[Filters], arguments: dict[str, Any], name: str) -> None:
    """By name."""
    with pytest.raises(ArgumentError, match=f"^{name}:"):
        kind(**arguments)


def test_unshared_filters_have_parameters_for_each_place() -> None:
    """And shared ones do not."""
    assert LocallyConnected2D(8, 10).parameter_shapes((20, 20, 3))["weights"] == (11, 11, 300, 8)
    assert Conv2D(8, 10).parameter_shapes((20, 20, 3))["weights"] == (10, 10, 3, 8)
    assert Conv2D(8, 10).operations((20, 20, 3)) == LocallyConnected2D(8, 10).operations((20, 20, 3)) == 2 * 121 * 2400
