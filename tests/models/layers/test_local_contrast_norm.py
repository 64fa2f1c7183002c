"""Local contrast normalisation, against its formula place by place."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_belief.backend import get_backend
from dask_belief.errors import ArgumentError
from dask_belief.models import Dense, Network
from dask_belief.models.box import Box
from dask_belief.models.layers import LocalContrastNorm2D, Workspace, layer_from_config
from dask_belief.testing import check_layer
from tests.backend.usable import USABLE
from tests.models.cases import SEED, central_differences, classes, rows


def local_mean(image: np.ndarray, size: tuple[int, int], sigma: float | None) -> np.ndarray:
    """The mean over window and channels, with weights that add up to one over what is inside of the image."""
    height, width, channels = image.shape
    means = np.empty((height, width))
    sigmas = [sigma or length / 4 for length in size]
    for row in range(height):
        for column in range(width):
            total = weights = 0.0
            for i in range(row - size[0] // 2, row + size[0] // 2 + 1):
                for j in range(column - size[1] // 2, column + size[1] // 2 + 1):
                    if 0 <= i < height and 0 <= j < width:
                        away = ((i - row) / sigmas[0]) ** 2 + ((j - column) / sigmas[1]) ** 2
                        weight = math.exp(-away / 2) / channels
                        weights += weight * channels
                        total += weight * image[i, j].sum()
            means[row, column] = total / weights
    return means[:, :, np.newaxis]


def oracle(images: np.ndarray, layer: LocalContrastNorm2D) -> np.ndarray:
    outputs = np.empty_like(images)
    for number, image in enumerate(images):
        centred = image - local_mean(image, layer.size, layer.sigma)
        variance = local_mean(centred**2, layer.size, layer.sigma)
        outputs[number] = centred / np.sqrt(variance + layer.epsilon)
    return outputs


CASES = [
    (LocalContrastNorm2D(3), (5, 7, 3)),
    (LocalContrastNorm2D((5, 3), 1.5), (7, 6, 2)),
    (LocalContrastNorm2D(9), (4, 5, 2)),  # a window that is larger than the image
    (LocalContrastNorm2D(5, epsilon=0.5), (1, 8, 1)),
    (LocalContrastNorm2D(1), (3, 3, 3)),
]
each_case = pytest.mark.parametrize(("layer", "shape"), CASES)


@pytest.mark.parametrize("name", USABLE)
@each_case
def test_forward_is_the_formula(name: str, layer: LocalContrastNorm2D, shape: tuple[int, ...]) -> None:
    """At every place, borders included, on every backend."""
    backend, images = get_backend(name), rows(2, *shape)
    with backend.computing():
        found = layer.forward(backend, {}, backend.asarray(images), Workspace(backend))
    np.testing.assert_allclose(backend.to_host(found), oracle(images, layer), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", USABLE)
@each_case
def test_it_keeps_the_contract(name: str, layer: LocalContrastNorm2D, shape: tuple[int, ...]) -> None:
    """Gradients, parts along all three axes, dtypes and the rest."""
    check_layer(layer, shape, backend=get_backend(name))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_box_is_computed_as_in_the_whole(data: st.DataObject) -> None:
    """Also of one node, in a corner, or with a window beyond the other side; borders of a part are no image's."""
    shape = tuple(data.draw(st.integers(1, 9)) for _ in range(3))
    layer = LocalContrastNorm2D((data.draw(st.sampled_from([1, 3, 5])), data.draw(st.sampled_from([1, 3, 7]))))
    starts = [data.draw(st.integers(0, length - 1)) for length in shape]
    stops = [data.draw(st.integers(start + 1, length)) for start, length in zip(starts, shape, strict=True)]
    box, whole = Box(tuple(starts), tuple(stops)), Box.whole(shape)
    part, backend = layer.part(box, shape), get_backend("numpy")
    images = rows(2, *shape)
    inputs = images[(slice(None), *part.inputs.within(whole))]
    expected = layer.forward(backend, {}, images, Workspace(backend))[(slice(None), *box.within(whole))]
    found = part.layer.forward(backend, {}, inputs, Workspace(backend))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", USABLE)
def test_the_gradient_of_a_network_with_one(name: str) -> None:
    """Below a dense layer, which takes images flat, against central differences; by the parameters below it."""
    layers = [Dense(60, "tanh"), Dense(3)]
    net = Network([layers[0], Shaped(), layers[1]], "softmax", (4,), backend=get_backend(name))
    parameters = net.initial_parameters(SEED, np.float64)
    inputs, targets = rows(5, 4), classes(5, 3)
    _, gradient = net.loss_and_gradient(parameters, inputs, targets)
    expected = central_differences(lambda p: net.loss_and_gradient(p, inputs, targets)[0], parameters)
    np.testing.assert_allclose(net.backend.to_host(gradient), expected, rtol=1e-5, atol=1e-5)


class Shaped(LocalContrastNorm2D):
    """Takes flat nodes as images of (5, 6, 2)."""

    def output_shape(self, input_shape):
        return (5, 6, 2)

    def forward(self, backend, parameters, inputs, workspace):
        return super().forward(backend, parameters, inputs.reshape(len(inputs), 5, 6, 2), workspace)

    def backward(self, backend, parameters, gradients, inputs, outputs, delta, workspace, *, needs_input_delta):
        images = inputs.reshape(len(inputs), 5, 6, 2)
        below = super().backward(
            backend,
            parameters,
            gradients,
            images,
            outputs,
            delta.reshape(images.shape),
            workspace,
            needs_input_delta=True,
        )
        return below.reshape(inputs.shape)


def test_a_constant_image_gives_zeros() -> None:
    """Also at the borders, since weights add up to one there as well; nothing is divided by zero."""
    backend = get_backend("numpy")
    found = LocalContrastNorm2D(5).forward(backend, {}, np.full((1, 6, 7, 2), 3.0), Workspace(backend))
    np.testing.assert_allclose(found, np.zeros((1, 6, 7, 2)), atol=1e-12)


def test_the_divisor_lies_between_the_papers_and_1_42_times_it() -> None:
    """sqrt(sigma**2 + c**2) for max(c, sigma)."""
    layer, image = LocalContrastNorm2D(3, epsilon=0.25), rows(6, 6, 2)
    centred = image - local_mean(image, (3, 3), None)
    sigma = np.sqrt(local_mean(centred**2, (3, 3), None))
    backend = get_backend("numpy")
    divisor = centred / layer.forward(backend, {}, image[np.newaxis], Workspace(backend))[0]
    of_paper = np.broadcast_to(np.maximum(0.5, sigma), divisor.shape)
    assert (divisor >= of_paper * (1 - 1e-9)).all()
    assert (divisor <= of_paper * math.sqrt(2) * (1 + 1e-9)).all()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"size": 4}, "size"),
        ({"size": 0}, "size"),
        ({"size": (3, 2)}, "size"),
        ({"size": (3, 3, 3)}, "size"),
        ({"size": "3"}, "size"),
        ({"sigma": 0}, "sigma"),
        ({"epsilon": 0}, "epsilon"),
        ({"epsilon": None}, "epsilon"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, object], name: str) -> None:
    """Windows have a centre; numbers are above zero."""
    with pytest.raises(ArgumentError, match=rf"^{name}: "):
        LocalContrastNorm2D(**arguments)


def test_inputs_are_images() -> None:
    """Of three axes."""
    with pytest.raises(ArgumentError, match=r"^layers: .*\(height, width, channels\)"):
        Network([LocalContrastNorm2D(3), Dense(2)], "softmax", (12,))


@each_case
def test_configuration_round_trip(layer: LocalContrastNorm2D, shape: tuple[int, ...]) -> None:
    """Through JSON text and back, which makes lists of tuples."""
    assert layer_from_config(json.loads(json.dumps(layer.to_config()))) == layer
