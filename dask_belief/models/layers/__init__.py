"""The layers of a network, one a module."""

from __future__ import annotations

from dask_belief.models.layers.add import Add
from dask_belief.models.layers.base import Layer, Part, Workspace
from dask_belief.models.layers.convolution import Conv2D
from dask_belief.models.layers.dense import Dense
from dask_belief.models.layers.dropout import Dropout
from dask_belief.models.layers.embedding import Embedding
from dask_belief.models.layers.flatten import Flatten
from dask_belief.models.layers.layer_norm import LayerNorm
from dask_belief.models.layers.local_contrast_norm import LocalContrastNorm2D
from dask_belief.models.layers.locally_connected import LocallyConnected2D
from dask_belief.models.layers.pooling import AveragePool2D, L2Pool2D, MaxPool2D
from dask_belief.models.layers.registry import LAYERS, layer_from_config, register_layer

__all__ = [
    "LAYERS",
    "OURS",
    "Add",
    "AveragePool2D",
    "Conv2D",
    "Dense",
    "Dropout",
    "Embedding",
    "Flatten",
    "L2Pool2D",
    "Layer",
    "LayerNorm",
    "LocalContrastNorm2D",
    "LocallyConnected2D",
    "MaxPool2D",
    "Part",
    "Workspace",
    "is_ours",
    "layer_from_config",
    "register_layer",
]

OURS: tuple[type[Layer], ...] = (
    Add,
    AveragePool2D,
    Conv2D,
    Dense,
    Dropout,
    Embedding,
    Flatten,
    L2Pool2D,
    LayerNorm,
    LocalContrastNorm2D,
    LocallyConnected2D,
    MaxPool2D,
)
"""The classes of this package, which every process knows; `LAYERS` holds a user's as well."""

for _layer in OURS:
    register_layer(_layer)


def is_ours(layer: Layer) -> bool:
    """Tell whether a layer, with those inside of it, is of this package."""
    return type(layer) in OURS and (not isinstance(layer, Add) or all(is_ours(inner) for inner in layer.layers))
