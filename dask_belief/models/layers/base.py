"""What every layer offers a network, and the memory that a network lends it.

A layer of your own
-------------------
A layer is a frozen dataclass that derives from `Layer`: its fields are its options, plain JSON, and ``kind`` is the
name by which a saved network knows it. It computes two messages and holds neither parameters nor state:

- **up**, `forward`: from inputs to outputs;
- **down**, `backward`: from the derivative by the outputs to the derivative by the inputs; on the way it writes the
  gradients of its parameters.

What it may rely on, and what it has to keep:

- Arrays have the rows in front, and share the dtype of the parameters, float32 or float64. There may be no rows.
  Nothing of one row may depend on another.
- Arrays live where ``backend`` computes. Use ``backend.xp`` and the operations of `dask_belief.backend.Backend`, never
  ``numpy`` itself, on arrays; take memory from ``workspace``; wait for nothing.
- ``inputs`` and ``parameters`` stay as they are. Gradients are written, not added to. ``delta`` may be overwritten.
- What `forward` gives is memory of the workspace. Where it is the inputs' own memory, `is_view` says so.
- What `backward` needs of `forward` it finds in the workspace, under the same name and shape, or in ``workspace.left``.
- A layer that draws random numbers says so by `draws`; what it draws follows from `Workspace.drawn_from`.
- What is the same in every call is made once, by ``workspace.constant``. A layer that keeps more than its outputs says
  so by `workspace_numbers`, from which a run reckons its memory.
- A layer that can be cut over several machines says along which axes by `cut_axes`, and gives each part by `part`. Both
  may be left out: then it is not cut.

>>> from dataclasses import dataclass
>>> import numpy as np
>>> import dask_belief as db
>>> @db.register_layer
... @dataclass(frozen=True)
... class Scale(db.Layer):
...     '''Each feature times a factor that is learned: ``outputs = inputs * factors``.'''
...
...     kind = "scale"
...     first: float = 1.0
...
...     @property
...     def needs_outputs(self):
...         return False
...
...     def output_shape(self, input_shape):
...         return input_shape
...
...     def parameter_shapes(self, input_shape):
...         return {"factors": input_shape[-1:]}
...
...     def initial(self, name, input_shape, generator):
...         return np.full(input_shape[-1:], self.first)
...
...     def is_penalised(self, name):
...         return False
...
...     def forward(self, backend, parameters, inputs, workspace):
...         outputs = workspace.array("outputs", inputs.shape, inputs.dtype)
...         backend.xp.multiply(inputs, parameters["factors"], out=outputs)
...         return outputs
...
...     def backward(
...         self, backend, parameters, gradients, inputs, outputs, delta, workspace, *, needs_input_delta
...     ):
...         by_factors = workspace.array("by_factors", inputs.shape, inputs.dtype)
...         backend.xp.multiply(inputs, delta, out=by_factors)
...         backend.column_sums_(by_factors.reshape(-1, inputs.shape[-1]), gradients["factors"])
...         if not needs_input_delta:
...             return None
...         backend.xp.multiply(delta, parameters["factors"], out=delta)
...         return delta
...
...     def cut_axes(self, input_shape):
...         return frozenset(range(len(input_shape)))
...
...     def part(self, outputs, input_shape):
...         factors = db.Box(outputs.starts[-1:], outputs.stops[-1:])
...         return db.Part(self, outputs, inputs=outputs, parameters={"factors": factors})

`dask_belief.testing.check_layer` tries all of this, gradients and parts included, and says what is wrong:

>>> db.testing.check_layer(Scale(), (5, 4))

A network with such a layer is sent to the workers of a cluster as any object is: its class has to be in a module that
they can import, or in the program that runs. In a file there is only its kind and its fields. Nothing is imported or
unpickled by a name that stands in a file: whoever loads a saved result or a checkpoint imports the layer's module
first, which registers it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from dask_belief.backend import Array, Backend
from dask_belief.errors import ArgumentError
from dask_belief.models.box import Box
from dask_belief.models.layout import Shape
from dask_belief.seeds import key as key_of


class Workspace:
    """Arrays of one layer in one thread, kept from call to call, so that a step allocates nothing.

    Parameters
    ----------
    backend
        Where the arrays live.
    place
        The number of the layer in its network; for a layer inside of another one, the numbers that lead to it. The
        parts of a layer have the place of the whole.

    Attributes
    ----------
    key
        What this pass draws its random numbers from, zero or more; None where nothing is drawn, as in predictions.
    first_row
        The place in the mini-batch of the first of the rows that are given: where a mini-batch is computed in several
        runs of rows, each draws what the whole would have drawn.
    left
        What `Layer.forward` leaves for `Layer.backward` beside arrays of the workspace.
    """

    def __init__(self, backend: Backend, place: Sequence[int] = ()) -> None:
        self.key: int | None = None
        self.first_row = 0
        self.left: dict[str, Any] = {}
        self._backend = backend
        self._place = tuple(place)
        self._buffers: dict[tuple[str, np.dtype[Any]], Array] = {}
        self._constants: dict[tuple[object, ...], Array] = {}
        self._inner: dict[int, Workspace] = {}

    def array(self, name: str, shape: Shape, dtype: np.dtype[Any]) -> Array:
        """Give the array of that name, uninitialised; the next call with the name gives the same memory.

        Memory grows to the largest shape asked for; a smaller one takes its beginning.
        """
        size = math.prod(shape)
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.size < size:
            buffer = self._buffers[name, dtype] = self._backend.empty(size, dtype)
        return buffer[:size].reshape(shape)

    def constant(self, make: Callable[[], npt.NDArray[Any]], *name: object) -> Array:
        """Give what `make` gave on the host at the first call with that name, where the arrays live; not to be written.

        The name has all that the values follow from, but for the layer itself.
        """
        found = self._constants.get(name)
        if found is None:
            found = self._constants[name] = self._backend.asarray(make())
        return found

    @property
    def drawn_from(self) -> int | None:
        """A number of 64 bits that follows from `key` and the layer's place, for a layer's own draws; None for none."""
        return None if self.key is None else key_of(self.key, *self._place)

    def inner(self, number: int) -> Workspace:
        """Give the workspace of a layer inside of this one, for this pass."""
        if number not in self._inner:
            self._inner[number] = Workspace(self._backend, (*self._place, number))
        inner = self._inner[number]
        inner.key, inner.first_row = self.key, self.first_row
        return inner


@dataclass(frozen=True)
class Part:
    """The part of a layer that computes some of its nodes: a layer of its own, on some of the inputs.

    It computes ``whole_outputs[outputs]`` from ``whole_inputs[inputs]`` alone. Going back it gives what *these* outputs
    contribute to the derivative by those inputs, and to the gradients of its parameters: the contributions of the parts
    of a layer add up to the whole's.
    """

    layer: Layer
    """Computes ``(n_rows, *outputs.shape)`` from ``(n_rows, *inputs.shape)``."""

    outputs: Box
    """Of the whole layer's outputs: the nodes that it computes."""

    inputs: Box
    """Of the whole layer's inputs: those with an edge to one of these nodes."""

    parameters: Mapping[str, Box]
    """For each of its parameter arrays the box of the whole layer's array of the same name that it is. Boxes of two
    parts are the same where they share an array, as filters that see every place, else they have nothing in common."""


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

    @property
    def is_view(self) -> bool:
        """Whether `forward` may give its inputs' own memory, maybe in another shape; then nobody writes there."""
        return False

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers while it is trained."""
        return False

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
            The derivative of the loss by the outputs, of their shape, without gaps. May be overwritten.
        workspace
            As in `forward`.
        needs_input_delta
            False for the first layer, whose inputs are data.

        Returns
        -------
        array or None
            Of the shape of `inputs`, and without gaps (C-contiguous): the layer below may write to it in another shape,
            which would be a copy's else. None when it was not asked for.
        """

    def cut_axes(self, input_shape: Shape) -> frozenset[int]:
        """Give the axes of the outputs along which `part` can cut; none unless the layer says otherwise."""
        return frozenset()

    def part(self, outputs: Box, input_shape: Shape) -> Part:
        """Give the part of the layer that computes some of its nodes; of all of them that is the layer itself.

        Parameters
        ----------
        outputs
            Not empty; as long as the whole along every axis but those of `cut_axes`.
        input_shape
            Of the whole layer's inputs.

        Raises
        ------
        ArgumentError
            The layer cannot be cut so.
        """
        whole = Box.whole(self.output_shape(input_shape))
        if outputs != whole:
            raise ArgumentError(f"outputs: a layer of kind {self.kind!r} computes all of {whole}, got {outputs}.")
        shapes = self.parameter_shapes(input_shape)
        parameters = {name: Box.whole(shape) for name, shape in shapes.items()}
        return Part(self, whole, Box.whole(input_shape), parameters)

    def operations(self, input_shape: Shape) -> float:
        """Estimate the floating-point operations of one row, forward: two for each weight and node that it serves."""
        return 2.0 * sum(math.prod(shape) for shape in self.parameter_shapes(input_shape).values())

    def workspace_numbers(self, input_shape: Shape) -> int:
        """Estimate how many numbers of a row lie in its workspace: twice the outputs, unless the layer knows better.

        From this a run reckons its memory: outputs and the derivative by them, which lies in the workspace of the layer
        above, and what else there is. The derivative by a layer's inputs is not counted.
        """
        return 2 * math.prod(self.output_shape(input_shape))

    def to_config(self) -> dict[str, Any]:
        """Describe the layer in plain JSON."""
        return {"layer": self.kind, **vars(self)}
