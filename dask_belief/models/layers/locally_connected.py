"""Filters that are not shared: each place of an image has its own, as in the paper's image model."""

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
class LocallyConnected2D(Filters):
    """Each place has filters of its own: ``outputs[i, j] = activation(patch(i, j) @ weights[i, j] + bias[i, j])``.

    Inputs are ``(height, width, channels)``. Parameters are ``weights`` ``(rows, columns, kernel values, filters)`` and
    ``bias`` ``(rows, columns, filters)``, where rows and columns are places of the outputs. So a machine that has some
    places has their filters alone, and needs of the image below what these places see: such a layer is cheap to cut
    (Dean et al., section 3).

    Raises
    ------
    ArgumentError
        A field is wrong, or the inputs are no images or smaller than the kernel.

    Examples
    --------
    >>> layer = LocallyConnected2D(8, kernel=10)
    >>> layer.output_shape((32, 32, 3)), layer.parameter_shapes((32, 32, 3))["weights"]
    ((23, 23, 8), (23, 23, 300, 8))
    """

    kind: ClassVar[str] = "locally_connected_2d"

    def parameter_shapes(self, input_shape: Shape) -> dict[str, Shape]:
        """Give the shapes of weights and bias."""
        places = self.windows(input_shape).shape
        return {"weights": (*places, self.patch_size(input_shape), self.filters), "bias": (*places, self.filters)}

    def part(self, outputs: Box, input_shape: Shape) -> Part:
        """Give the layer of some filters at some places."""
        inputs, padding = self.windows(input_shape).needed(outputs, input_shape[2])
        (top, left, first), (bottom, right, last) = outputs.starts, outputs.stops
        weights = Box((top, left, 0, first), (bottom, right, self.patch_size(input_shape), last))
        layer = replace(self, filters=last - first, padding=padding)
        return Part(layer, outputs, inputs, {"weights": weights, "bias": outputs})

    def forward(self, backend: Backend, parameters: Mapping[str, Array], inputs: Array, workspace: Workspace) -> Array:
        """Give the activated maps, ``(n_rows, rows, columns, filters)``."""
        n_rows, windows = len(inputs), self.windows(inputs.shape[1:])
        images = over.padded(inputs, windows, 0.0, workspace)
        outputs = workspace.array("outputs", (n_rows, *windows.shape, self.filters), inputs.dtype)
        for first, last in self._blocks(backend, images, windows):
            patches = self._patches(backend, images, windows, first, last, workspace)
            found = workspace.array("found", (*patches.shape[:3], self.filters), images.dtype)
            backend.xp.matmul(patches, parameters["weights"][first:last], out=found)
            outputs[:, first:last] = found.transpose(2, 0, 1, 3)
        flat = outputs.reshape(n_rows, windows.shape[0] * windows.shape[1] * self.filters)
        backend.bias_activation_(flat, parameters["bias"].reshape(flat.shape[1]), self.activation)
        return outputs

    def _blocks(self, backend: Backend, images: Array, windows: over.Windows) -> list[tuple[int, int]]:
        size = windows.rows.kernel * windows.columns.kernel * images.shape[3] * images.dtype.itemsize
        each = self.block(backend, len(images) * windows.columns.n_outputs * size)
        return list(over.runs(windows.rows.n_outputs, each))

    def _patches(
        self, backend: Backend, images: Array, windows: over.Windows, first: int, last: int, workspace: Workspace
    ) -> Array:
        """Gather what places see, ``(places down, places across, n_rows, kernel values)``."""
        size = windows.rows.kernel * windows.columns.kernel * images.shape[3]
        view = over.patches(backend, images, windows, first, last)
        return gathered(backend, view, workspace, "patches", size, 1, 2)

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
        xp, weights = backend.xp, parameters["weights"]
        xp.sum(delta, axis=0, out=gradients["bias"])
        for first, last in self._blocks(backend, images, windows):
            patches = self._patches(backend, images, windows, first, last, workspace)
            by_place = workspace.array("by place", (*patches.shape[:3], self.filters), images.dtype)
            by_place[...] = delta[:, first:last].transpose(1, 2, 0, 3)
            xp.matmul(patches.transpose(0, 1, 3, 2), by_place, out=gradients["weights"][first:last])
            if around is not None:
                # The patches are not needed any more: what was found for them takes their place.
                xp.matmul(by_place, weights[first:last].transpose(0, 1, 3, 2), out=patches)
                kernel = windows.rows.kernel, windows.columns.kernel
                found = patches.reshape(*patches.shape[:3], *kernel, images.shape[3])
                over.add_patches(backend, found.transpose(2, 0, 1, 3, 4, 5), around, windows, first, workspace)
