"""What every layer offers a network, and the memory that a network lends it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from dask_belief.backend import Array, Backend
from dask_belief.models.layout import Shape


class Workspace:
    """Arrays of one layer in one thread, kept from call to call, so that a step allocates nothing.

    Parameters
    ----------
    backend
        Where the arrays live.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._buffers: dict[tuple[str, np.dtype[Any]], Array] = {}

    def array(self, name: str, shape: Shape, dtype: np.dtype[Any]) -> Array:
        """Give the array of that name, uninitialised; the next call with the name gives the same memory.

        Memory grows to the largest shape asked for; a smaller one takes its beginning.
        """
        size = math.prod(shape)
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.size < size:
            buffer = self._buffers[name, dtype] = self._backend.empty(size, dtype)
        return buffer[:size].reshape(shape)


class Layer(ABC):
    """One layer: a description without parameters or state, which a network gives both.

    Conventions
    -----------
    Shapes are those of one row; arrays have the rows in front: ``(n_rows, *shape)``. All arrays of a call share one
    dtype, but for ids, which are int64. Gradients are sums over rows. `parameters` and `gradients` hold views into flat
    vectors by the names of `parameter_shapes`. Arrays that come from `workspace` are valid until the layer's next call
    in this thread.

    A layer is a frozen dataclass whose fields are plain JSON, and `kind` names it in a configuration.
    """

    kind: ClassVar[str]

    @property
    def needs_outputs(self) -> bool:
        """Whether `backward` reads `outputs`; where it does not, the loss may write its derivative in their place."""
        return True

    @abstractmethod
    def output_shape(self, input_shape: Shape) -> Shape:
        """Give the shape of the outputs; raises `ArgumentError` where the layer cannot take that input."""

    @abstractmethod
    def parameter_shapes(self, input_shape: Shape) -> dict[str, Shape]:
        """Give the name and shape of each parameter array, in the order in which they lie in the vector."""

    @abstractmethod
    def initial(self, name: str, input_shape: Shape, generator: np.random.Generator) -> npt.NDArray[np.float64]:
        """Give the first values of one parameter array, in its shape."""

    def is_penalised(self, name: str) -> bool:
        """Tell whether a penalty on the weights covers that array: all but biases."""
        return name != "bias"

    @abstractmethod
    def forward(self, backend: Backend, parameters: Mapping[str, Array], inputs: Array, workspace: Workspace) -> Array:
        """Give the outputs, ``(n_rows, *output_shape)``; leaves `inputs` as they are."""

    @abstractmethod
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
        """Write the gradients and give the derivative by the inputs.

        Parameters
        ----------
        backend
            What to compute with.
        parameters
            As in `forward`.
        gradients
            Written, not added to; by an `Embedding` only in the rows that the inputs choose.
        inputs, outputs
            What `forward` took and gave; the last layer's outputs only where `needs_outputs`.
        delta
            The derivative of the loss by the outputs, of their shape. May be overwritten.
        workspace
            As in `forward`.
        needs_input_delta
            False for the first layer, whose inputs are data.

        Returns
        -------
        array or None
            Of the shape of `inputs`; None when it was not asked for.
        """

    def to_config(self) -> dict[str, Any]:
        """Describe the layer in plain JSON."""
        return {"layer": self.kind, **vars(self)}
