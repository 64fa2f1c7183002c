"""The layers of a network, one a module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dask_belief.errors import ArgumentError
from dask_belief.models.layers.base import Layer, Workspace
from dask_belief.models.layers.dense import Dense
from dask_belief.models.layers.embedding import Embedding

__all__ = ["LAYERS", "Dense", "Embedding", "Layer", "Workspace", "layer_from_config"]

LAYERS: dict[str, type[Layer]] = {layer.kind: layer for layer in (Dense, Embedding)}
"""Kind to class: what a configuration may name."""


def layer_from_config(config: Mapping[str, Any]) -> Layer:
    """Make the layer that `Layer.to_config` described.

    Raises
    ------
    ArgumentError
        The kind is unknown, or a field is unknown, missing or wrong.
    """
    fields = dict(config)
    kind = fields.pop("layer", None)
    if kind not in LAYERS:
        raise ArgumentError(f"layer: expected one of {', '.join(LAYERS)}, got {kind!r}.")
    try:
        return LAYERS[kind](**fields)
    except TypeError as error:
        raise ArgumentError(f"layer: cannot make a {kind!r} layer from the fields {sorted(fields)}: {error}.") from None
