"""Filters that every place of an image shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from dask_belief.backend import Array, Backend
from dask_belief.models.box import Box
from dask_belief.models.layers import windows as over
from dask_belief.models.layers.base import Part, Workspace
from dask_belief.models.layers.filters import Filters, gathered
from dask_belief.models.layout import Shape


@dataclass(frozen=True)
class Conv2D(Filters):
    """The same filters at every place: ``outputs[i, j] = activation(patch(i, j) @ weights + bias)``.

    Inputs are ``(height, width, channels)``. Parameters are ``weights`` ``(kernel height, kernel width, channels,
    filters)`` and ``bias`` ``(filters,)``. Cut in space, all pieces compute with the same parameters; cut by filters,
    each has its own.

    Raises
    ------
    ArgumentError
        A field is wrong, or the inputs are no images or smaller than the kernel.

    Examples
    --------
    >>> layer = Conv2D(8, kernel=3, padding="same", activation="relu")
    >>> layer.output_shape((28, 28, 1)), layer.parameter_shapes((28, 28, 1))["weights"]
    ((28, 28, 8), (3, 3, 1, 8))
    """

    kind: ClassVar[str] = "conv_2d"

    def parameter_shapes(self, input_shape: Shape) -> dict[str, Shape]:
        """Give the shapes of weights and bias."""
        self.windows(input_shape)
        return {"weights": (*self.kernel, input_shape[2], self.filters), "bias": (self.filters,)}  # type: ignore[misc]

    def part(self, outputs: Box, input_shape: Shape) -> Part:
        """Give the layer of some filters at some places."""
        inputs, padding = self.windows(input_shape).needed(outputs, input_shape[2])
        first, last = outputs.starts[2], outputs.stops[2]
        weights = Box.whole(self.parameter_shapes(input_shape)["weights"]).along(3, first, last)
        layer = replace(self, filters=last - first, padding=padding)
        return Part(layer, outputs, inputs, {"weights": weights, "bias": Box((first,), (last,))})

    def forward(self, backend: Backend, parameters: Mapping[str, Array], inputs: Array, workspace: Workspace) -> Array:
        """Give the activated maps, ``(n_rows, rows, columns, filters)``."""
        n_rows, windows = len(inputs), self.windows(inputs.shape[1:])
        images = over.padded(inputs, windows, 0.0, workspace)
        outputs = workspace.array("outputs", (n_rows, *windows.shape, self.filters), inputs.dtype)
        weights = parameters["weights"].reshape(-1, self.filters)
        for first, last in self._blocks(backend, images, windows):
            patches = self._patches(backend, images[first:last], windows, workspace)
            backend.by_weights_(patches, weights, outputs[first:last].reshape(len(patches), self.filters))
        flat = outputs.reshape(n_rows * windows.shape[0] * windows.shape[1], self.filters)
        backend.bias_activation_(flat, parameters["bias"], self.activation)
        return outputs

    def _blocks(self, backend: Backend, images: Array, windows: over.Windows) -> list[tuple[int, int]]:
        """Cut the images into runs."""
        size = windows.rows.kernel * windows.columns.kernel * images.shape[3] * images.dtype.itemsize
        each = self.block(backend, windows.shape[0] * windows.shape[1] * size)
        return list(over.runs(len(images), each))

    def _patches(self, backend: Backend, images: Array, windows: over.Windows, workspace: Workspace) -> Array:
        """Gather what places see, ``(n_rows * places, kernel values)``."""
        size = windows.rows.kernel * windows.columns.kernel * images.shape[3]
        view = over.patches(backend, images, windows, 0, windows.rows.n_outputs)
        patches = gathered(backend, view, workspace, "patches", size)
        return patches.reshape(patches.size // size, size)

    def _back(
        self,
        backend: Backend,
        parameters: Mapping[str, Array],
        gradients: Mapping[str, Array],
        images: Array,
        delta: Array,
        windows: over.Windows,
        around: Array | None,
        workspace: Workspace,
    ) -> None:
        xp, weights = backend.xp, parameters["weights"].reshape(-1, self.filters)
        gradient = gradients["weights"].reshape(weights.shape)
        of_places = delta.reshape(delta.size // self.filters, self.filters)
        backend.column_sums_(of_places, gradients["bias"])
        blocks = self._blocks(backend, images, windows)
        if not blocks:
            gradient[...] = 0
        n_places = windows.shape[0] * windows.shape[1]
        for number, (first, last) in enumerate(blocks):
            patches = self._patches(backend, images[first:last], windows, workspace)
            here = of_places[first * n_places : last * n_places]
            if number == 0:
                backend.weight_gradient_(patches, here, gradient)
            else:
                more = workspace.array("more", gradient.shape, gradient.dtype)
                backend.weight_gradient_(patches, here, more)
                backend.add_(more, gradient)
            if around is not None:
                # The patches are not needed any more: what was found for them takes their place.
                xp.matmul(here, weights.T, out=patches)
                kernel = windows.rows.kernel, windows.columns.kernel
                found = patches.reshape(last - first, *windows.shape, *kernel, images.shape[3])
                over.add_patches(backend, found, around[first:last], windows, 0, workspace)
