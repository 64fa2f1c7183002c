"""Layers one upon the other, and where the parameters of each lie in one flat vector."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from dask_belief.backend import Array
from dask_belief.errors import ArgumentError
from dask_belief.models.layers import Embedding, Layer
from dask_belief.models.layout import ParameterLayout, Shape
from dask_belief.seeds import stream

OfLayers = Sequence[Mapping[str, Array]]
"""Views into one flat vector: for each layer, its own names to arrays."""


class Stack:
    """The layers of a network with the shapes between them.

    Parameters
    ----------
    layers
        From the inputs to the outputs.
    input_shape
        Of one row.

    Attributes
    ----------
    shapes
        Of one row: before the first layer, and after each.
    n_outputs
        How many numbers the last layer gives for a row.
    embedding
        The first layer where it takes ids; None where inputs are numbers.
    layout
        Where each parameter array lies; ``"1.weights"`` are the weights of the second layer.

    Raises
    ------
    ArgumentError
        A layer cannot take what the one before gives, as an `Embedding`, which takes ids, can take no layer's.
    """

    def __init__(self, layers: Sequence[Layer], input_shape: Shape) -> None:
        self.layers = layers
        first = layers[0]
        self.embedding = first if isinstance(first, Embedding) else None
        for number, layer in enumerate(layers[1:], 1):
            if isinstance(layer, Embedding):
                raise ArgumentError(
                    f"layers: an Embedding takes ids, so it has to be the first layer, got one as layer {number}."
                )
        self.shapes = [input_shape]
        for layer in layers:
            self.shapes.append(layer.output_shape(self.shapes[-1]))
        self.n_outputs = math.prod(self.shapes[-1])
        # Which layer an array belongs to, and what that layer calls it.
        self._owners: dict[str, tuple[int, str]] = {}
        shapes = {}
        for number, layer in enumerate(layers):
            for own_name, shape in layer.parameter_shapes(self.shapes[number]).items():
                name = f"{number}.{own_name}"
                self._owners[name] = (number, own_name)
                shapes[name] = shape
        self.layout = ParameterLayout(shapes)

    def views(self, vector: Array) -> OfLayers:
        """Give the views by layer into a vector that ``layout.check`` has passed."""
        of_layers: list[dict[str, Array]] = [{} for _ in self.layers]
        for name, (number, own_name) in self._owners.items():
            of_layers[number][own_name] = vector[self.layout.slices[name]].reshape(self.layout.shapes[name])
        return of_layers

    def touched(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Give the ranges of the flat vector on which rows of these ids depend: of the table, and all behind it."""
        assert self.embedding is not None
        rows = self.embedding.touched(ids)
        table, end = self.layout.slices["0.weights"].stop, self.layout.n_parameters
        if end == table:
            return rows
        if len(rows) and rows[-1, 1] == table:
            rows[-1, 1] = end
            return rows
        return np.concatenate([rows, np.array([[table, end]])])

    def penalised(self) -> npt.NDArray[np.bool_]:
        """Tell for each parameter whether a penalty on the weights covers it."""
        mask = np.zeros(self.layout.n_parameters, bool)
        for name, (number, own_name) in self._owners.items():
            mask[self.layout.slices[name]] = self.layers[number].is_penalised(own_name)
        return mask

    def draw(self, seed: int, vector: Array) -> None:
        """Write the first parameters into a host vector; each array has a stream of its own."""
        arrays = self.layout.views(vector)
        for name, (number, own_name) in self._owners.items():
            generator = stream(seed, "initial", number, own_name)
            arrays[name][...] = self.layers[number].initial(own_name, self.shapes[number], generator)
