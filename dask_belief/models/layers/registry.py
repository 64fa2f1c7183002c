"""Which kinds of layer a configuration may name: ours, and what a user has registered."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from dask_belief.errors import ArgumentError, UnknownLayerError
from dask_belief.models.layers.base import Layer

LAYERS: dict[str, type[Layer]] = {}
"""Kind to class: what a configuration may name."""

LayerClass = TypeVar("LayerClass", bound=type[Layer])


def register_layer(layer: LayerClass) -> LayerClass:
    """Make a layer of your own known by its kind, so that what was saved with it can be loaded; gives the class itself.

    A saved result, a checkpoint or a record holds the layer's kind and fields only. Nothing is imported because a file
    says so: call this, or use it as a decorator, in the module that has the class, and import that module before you
    load.

    Parameters
    ----------
    layer
        A subclass of `Layer`, whose ``kind`` is a name of its own.

    Raises
    ------
    ArgumentError
        It is no such class, has no kind, or another class has that kind. A class that is made anew in the same place,
        as when a cell of a notebook is run again, takes the place of the former one.

    Examples
    --------
    >>> @db.register_layer          # doctest: +SKIP
    ... @dataclass(frozen=True)
    ... class Scale(db.Layer):
    ...     kind = "scale"
    """
    if not (inspect.isclass(layer) and issubclass(layer, Layer)):
        raise ArgumentError(f"layer: expected a subclass of dask_belief.Layer, got {layer!r}.")
    kind = getattr(layer, "kind", None)
    if not isinstance(kind, str) or not kind:
        raise ArgumentError(f"layer: {layer.__name__}.kind: expected a name such as 'scale', got {kind!r}.")
    known = LAYERS.get(kind)
    if known is not None and (known.__module__, known.__qualname__) != (layer.__module__, layer.__qualname__):
        raise ArgumentError(
            f"layer: the kind {kind!r} of {layer.__qualname__} is that of {known.__module__}.{known.__qualname__}. "
            "Give it another."
        )
    LAYERS[kind] = layer
    return layer


def layer_from_config(config: Mapping[str, Any]) -> Layer:
    """Make the layer that `Layer.to_config` described.

    Raises
    ------
    UnknownLayerError
        No layer of that kind is registered.
    ArgumentError
        A field is unknown, missing or wrong.
    """
    fields = dict(config)
    kind = fields.pop("layer", None)
    if not isinstance(kind, str) or kind not in LAYERS:
        raise UnknownLayerError(
            f"layer: expected one of {', '.join(sorted(LAYERS))}, got {kind!r}. If it is a layer of your own, import "
            "the module that has it, and register the class there by dask_belief.register_layer."
        )
    try:
        return LAYERS[kind](**fields)
    except TypeError as error:
        raise ArgumentError(f"layer: cannot make a {kind!r} layer from the fields {sorted(fields)}: {error}.") from None
