"""Networks over images, cut in every way, compute what they compute whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_belief.model_parallel.cuts import possible
from dask_belief.model_parallel.plan import partition, plan_of
from dask_belief.models.layers import (
    Add,
    AveragePool2D,
    Conv2D,
    Dense,
    Embedding,
    Flatten,
    L2Pool2D,
    Layer,
    LayerNorm,
    LocalContrastNorm2D,
    LocallyConnected2D,
    MaxPool2D,
)
from dask_belief.models.network import Network
from tests.model_parallel.test_piece import assert_same


def stages() -> list[Layer]:
    """Filtering, pooling and normalisation twice, as in the paper's image model; one classifier on top."""
    return [
        LocallyConnected2D(4, 3, activation="tanh"),
        L2Pool2D(2),
        LocalContrastNorm2D(3),
        LocallyConnected2D(5, 2, activation="tanh"),
        MaxPool2D(2, 1),
        Dense(4),
    ]


IMAGES = Network(stages(), "softmax", (13, 11, 2))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_pieces", [2, 3, 4])
@pytest.mark.parametrize("by", ["auto", "rows", "channels", "units", "layers"])
def test_the_image_model_in_pieces(by: str, n_pieces: int, dtype: str) -> None:
    """However it is cut, with halos of odd sizes."""
    assert_same(partition(IMAGES, n_pieces, by), 5, dtype, 2)


def test_rows_send_halos_only() -> None:
    """Of a stage of unshared filters what others see across the cut, and of no parameter anything."""
    network = Network([LocallyConnected2D(4, 3), LocallyConnected2D(4, 3), Dense(2)], "softmax", (20, 10, 3))
    plan = partition(network, 2, "rows")
    assert not plan.shares
    [up, down] = [each.box.shape for each in plan.crossings if each.array == 1]
    assert up[0] + down[0] == 2 and up[1:] == (8, 4)


def test_shared_filters_are_lent() -> None:
    """Cut in space both pieces compute with all of them; one owns them. Cut by channels each has its own."""
    network = Network([Conv2D(4, 3, padding="same"), Dense(2)], "softmax", (8, 8, 3))
    in_space, by_channels = partition(network, 2, "rows"), partition(network, 2, "channels")
    assert {share.name for share in in_space.shares} == {"0.weights", "0.bias"} and not by_channels.shares
    assert in_space.shared_values() == 2 * (3 * 3 * 3 * 4 + 4)


LAYERS = st.sampled_from(
    [
        LocallyConnected2D(3, (2, 3), (1, 2), "same", "tanh"),
        Conv2D(3, 3, 2, "same", "sigmoid"),
        Conv2D(2, 2),
        MaxPool2D(2, 1),
        L2Pool2D(3, 2, "same"),
        AveragePool2D(2, 2, "same"),
        LocalContrastNorm2D(3),
        LayerNorm(),
        Add([Conv2D(2, 3, padding="same", activation="tanh")]),
    ]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(LAYERS, min_size=1, max_size=3), st.integers(2, 4), st.integers(0, 3), st.data())
def test_any_layers_cut_in_any_way(layers: list[Layer], n_pieces: int, n_rows: int, data: st.DataObject) -> None:
    """Each layer by a cut of its own."""
    # A layer that adds to its inputs needs as many channels as it has.
    chain = [Conv2D(2, 1), *(layer for each in layers for layer in (each, Conv2D(2, 1))), Flatten(), Dense(3)]
    network = Network(chain, "softmax", (9, 8, 2))
    cuts = [
        data.draw(st.sampled_from(possible(layer, shape, n_pieces)))
        for layer, shape in zip(network.layers, network.shapes, strict=False)
    ]
    assert_same(plan_of(network, n_pieces, "auto", cuts, data.draw(st.integers(1, 2))), n_rows, "float64")


def test_ids_in_pieces() -> None:
    """The first layer's rows are whole numbers, and travel as such."""
    network = Network([Embedding(20, 3), Dense(8, "tanh"), Dense(3)], "softmax", (4,))
    from tests.model_parallel import test_piece

    def ids(given: Network, n_rows: int, dtype: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng(seed)
        return random.integers(0, 20, (n_rows, 4)), random.integers(0, 3, n_rows)

    before, test_piece.rows_for = test_piece.rows_for, ids  # type: ignore[assignment]
    try:
        for by in ("units", "layers"):
            assert_same(partition(network, 2, by), 6, "float64", 2)
    finally:
        test_piece.rows_for = before
