"""A fully connected layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from dask_belief.backend import Array, Backend
from dask_belief.checks import check_count
from dask_belief.errors import ArgumentError
from dask_belief.models.activations import check_activation
from dask_belief.models.box import Box
from dask_belief.models.initialisers import INITIALISERS, check_initialiser, default_initialiser
from dask_belief.models.layers.base import Layer, Part, Workspace
from dask_belief.models.layout import Shape


@dataclass(frozen=True)
class Dense(Layer):
    """Fully connected: ``activation(inputs @ weights + bias)``.

    Inputs of any shape are taken as flat rows. Parameters are ``weights`` ``(n_inputs, units)`` and ``bias``
    ``(units,)``; the bias begins at zero and no penalty covers it, nor the weights where `penalised` is False.

    Raises
    ------
    ArgumentError
        `units` is no positive whole number, there is no such activation or initialiser, or `penalised` is no bool.

    Examples
    --------
    >>> Dense(512, "relu").parameter_shapes((28, 28))
    {'weights': (784, 512), 'bias': (512,)}
    """

    kind: ClassVar[str] = "dense"

    units: int
    """The number of outputs."""

    activation: str | None = None
    """``"relu"``, ``"sigmoid"``, ``"tanh"`` or None; see `dask_belief.models.activations`."""

    initialiser: str | None = None
    """``"glorot_uniform"``, ``"he_normal"``, ``"zeros"``, or None for what suits the activation."""

    penalised: bool = True
    """Whether penalties (l1, l2) cover the weights; never the bias."""

    def __post_init__(self) -> None:
        """Check the fields."""
        check_count("units", self.units)
        object.__setattr__(self, "units", int(self.units))
        check_activation(self.activation)
        check_initialiser(self.initialiser)
        if not isinstance(self.penalised, bool):
            raise ArgumentError(f"penalised: expected True or False, got {self.penalised!r}.")

    @property
    def needs_outputs(self) -> bool:
        """Whether there is an activation, whose derivative comes from its value."""
        return self.activation is not None

    def output_shape(self, input_shape: Shape) -> Shape:
        """Give ``(units,)``."""
        return (self.units,)

    def parameter_shapes(self, input_shape: Shape) -> dict[str, Shape]:
        """Give the shapes of weights and bias."""
        return {"weights": (math.prod(input_shape), self.units), "bias": (self.units,)}

    def initial(self, name: str, input_shape: Shape, generator: np.random.Generator) -> npt.NDArray[np.float64]:
        """Give weights by the initialiser, and a bias of zeros."""
        shape = self.parameter_shapes(input_shape)[name]
        if name == "bias":
            return np.zeros(shape)
        draw = INITIALISERS[self.initialiser or default_initialiser(self.activation)]
        return draw(generator, shape, shape[0], shape[1])

    def is_penalised(self, name: str) -> bool:
        """Tell whether penalties cover that array: the weights, unless `penalised` is False."""
        return self.penalised and super().is_penalised(name)

    def forward(self, backend: Backend, parameters: Mapping[str, Array], inputs: Array, workspace: Workspace) -> Array:
        """Give the activated outputs, ``(n_rows, units)``."""
        n_rows = len(inputs)
        outputs = workspace.array("outputs", (n_rows, self.units), inputs.dtype)
        backend.by_weights_(_flat(inputs), parameters["weights"], outputs)
        backend.bias_activation_(outputs, parameters["bias"], self.activation)
        return outputs

    def backward(
        self,
        backend: Backend,
        parameters: Mapping[str, Array],
        gradients: Mapping[str, Array],
        inputs: Array,
        outputs: Array,
        delta: Array,
        workspace: Workspace,
        *,
        needs_input_delta: bool,
    ) -> Array | None:
        """Write the gradients of weights and bias, and give the derivative by the inputs; see `Layer.backward`."""
        backend.activation_gradient_(delta, outputs, self.activation)
        backend.weight_gradient_(_flat(inputs), delta, gradients["weights"])
        backend.column_sums_(delta, gradients["bias"])
        if not needs_input_delta:
            return None
        input_delta = workspace.array("input_delta", inputs.shape, inputs.dtype)
        if self.units == 1:
            # An outer product, which NumPy's matmul gives to no BLAS: 0.2 for 1.0 ms (1000 rows, 1024 inputs).
            backend.xp.multiply(delta, parameters["weights"].T, out=_flat(input_delta))
        else:
            backend.xp.matmul(delta, parameters["weights"].T, out=_flat(input_delta))
        return input_delta

    def cut_axes(self, input_shape: Shape) -> frozenset[int]:
        """Give the only axis: units can be anywhere."""
        return frozenset({0})

    def part(self, outputs: Box, input_shape: Shape) -> Part:
        """Give the layer of some units: all inputs, and their columns of the weights."""
        (start,), (stop,) = outputs.starts, outputs.stops
        parameters = {
            "weights": Box((0, start), (math.prod(input_shape), stop)),
            "bias": outputs,
        }
        return Part(replace(self, units=stop - start), outputs, Box.whole(input_shape), parameters)


def _flat(rows: Array) -> Array:
    """View each row as flat; the row's size is named, since it cannot be guessed for no rows."""
    return rows.reshape(len(rows), math.prod(rows.shape[1:]))
