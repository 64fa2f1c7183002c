"""Pooling, against the formula window by window."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dask_belief.backend import get_backend
from dask_belief.errors import ArgumentError
from dask_belief.models.layers import AveragePool2D, L2Pool2D, MaxPool2D, Workspace, layer_from_config
from dask_belief.models.layers.pooling import Pool2D
from dask_belief.seeds import stream
from dask_belief.testing import check_layer
from tests.backend.usable import USABLE
from tests.models.layers.test_filters import SHAPES

FORMULAS: dict[type[Pool2D], Callable[[np.ndarray], float]] = {
    MaxPool2D: np.max,
    L2Pool2D: lambda values: np.sqrt((values**2).sum()),
    AveragePool2D: np.mean,
}
KINDS: list[type[Pool2D]] = list(FORMULAS)


def formula(layer: Pool2D, images: np.ndarray) -> np.ndarray:
    """Each output from what its window covers of the image."""
    windows = layer.windows(images.shape[1:])
    outputs = np.empty((len(images), *layer.output_shape(images.shape[1:])))
    for number, i, j, channel in np.ndindex(*outputs.shape):
        (top, bottom, *_), (left, right, *_) = windows.rows.needed(i, i + 1), windows.columns.needed(j, j + 1)
        outputs[number, i, j, channel] = FORMULAS[type(layer)](images[number, top:bottom, left:right, channel])
    return outputs


@pytest.mark.parametrize("backend_name", USABLE)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "kernel", "stride", "padding"), SHAPES)
def test_outputs_are_those_of_the_formula(
    kind: type[Pool2D], shape: tuple[int, int, int], kernel: Any, stride: Any, padding: Any, backend_name: str
) -> None:
    """What lies outside of the image does not count."""
    backend = get_backend(backend_name)
    images = stream(0, "images").normal(size=(3, *shape)) - 2.0
    layer = kind(kernel, stride, padding)
    with backend.computing():
        outputs = backend.to_host(layer.forward(backend, {}, backend.asarray(images), Workspace(backend)))
    assert np.allclose(outputs, formula(layer, images), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "kernel", "stride", "padding"), SHAPES)
def test_it_keeps_the_contract_of_a_layer(
    kind: type[Pool2D], shape: tuple[int, int, int], kernel: Any, stride: Any, padding: Any
) -> None:
    """Gradients, shapes, parts and all."""
    check_layer(kind(kernel, stride, padding), shape)


@pytest.mark.parametrize("backend_name", USABLE)
def test_of_equal_values_the_first_has_the_derivative(backend_name: str) -> None:
    """Row by row, as one reads."""
    backend, layer = get_backend(backend_name), MaxPool2D(2)
    workspace = Workspace(backend)
    images = backend.asarray(np.array([[[[1.0], [2.0]], [[2.0], [2.0]]]]))
    with backend.computing():
        outputs = layer.forward(backend, {}, images, workspace)
        delta = backend.asarray(np.full((1, 1, 1, 1), 3.0))
        found = layer.backward(backend, {}, {}, images, outputs, delta, workspace, needs_input_delta=True)
        assert backend.to_host(found).ravel().tolist() == [0.0, 3.0, 0.0, 0.0]


@pytest.mark.parametrize("backend_name", USABLE)
def test_a_root_of_zeros_has_no_derivative(backend_name: str) -> None:
    """Rather than one that is not finite."""
    backend, layer = get_backend(backend_name), L2Pool2D(2)
    workspace, images = Workspace(backend), backend.asarray(np.zeros((1, 2, 2, 1)))
    with backend.computing():
        outputs = layer.forward(backend, {}, images, workspace)
        delta = backend.asarray(np.ones((1, 1, 1, 1)))
        found = layer.backward(backend, {}, {}, images, outputs, delta, workspace, needs_input_delta=True)
        assert not backend.to_host(found).any()


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_described_in_json(kind: type[Pool2D]) -> None:
    """And made again from that; windows lie side by side unless a stride is given."""
    layer = kind((2, 3), padding="same")
    assert layer.stride == (2, 3)
    assert layer_from_config(json.loads(json.dumps(layer.to_config()))) == layer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"kernel": 0}, "kernel"), ({"kernel": 2, "stride": -1}, "stride"), ({"kernel": 2, "padding": 1}, "padding")],
)
def test_wrong_fields_are_refused(kind: type[Pool2D], arguments: dict[str, Any], name: str) -> None:
    """By name."""
    with pytest.raises(ArgumentError, match=f"^{name}:"):
        kind(**arguments)
