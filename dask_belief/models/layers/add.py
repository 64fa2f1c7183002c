"""Layers whose outputs are added to their inputs: a residual connection.

He, Zhang, Ren and Sun, "Deep residual learning for image recognition", CVPR 2016, equation 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from dask_belief.backend import Array, Backend
from dask_belief.errors import ArgumentError
from dask_belief.models.box import Box
from dask_belief.models.layers.base import Layer, Part, Workspace
from dask_belief.models.layers.embedding import Embedding
from dask_belief.models.layers.registry import layer_from_config
from dask_belief.models.layout import Shape


@dataclass(frozen=True)
class Add(Layer):
    """``inputs + layers(inputs)``, the layers one after the other.

    A parameter is named by the number of its layer: ``"0.weights"`` is of the first.

    Raises
    ------
    ArgumentError
        There is no layer, one is an `Embedding`, or the last one's outputs have another shape than the inputs.

    Examples
    --------
    >>> from dask_belief.models.layers import Dense
    >>> Add([Dense(8, "relu"), Dense(4)]).parameter_shapes((4,))
    {'0.weights': (4, 8), '0.bias': (8,), '1.weights': (8, 4), '1.bias': (4,)}
    """

    kind: ClassVar[str] = "add"

    layers: Sequence[Layer]
    """From the inputs up; in a configuration, theirs."""

    def __post_init__(self) -> None:
        """Check the layers."""
        given = self.layers
        if not isinstance(given, Sequence) or isinstance(given, str) or not given:
            raise ArgumentError(f"layers: expected one layer or more, got {given!r}.")
        layers = tuple(layer_from_config(layer) if isinstance(layer, Mapping) else layer for layer in given)
        for layer in layers:
            if not isinstance(layer, Layer) or isinstance(layer, Embedding):
                raise ArgumentError(f"layers: expected layers that take numbers, no ids, got {layer!r}.")
        object.__setattr__(self, "layers", layers)

    @property
    def needs_outputs(self) -> bool:
        """False: a sum passes on what comes from above."""
        return False

    @property
    def draws(self) -> bool:
        """Whether one of the layers does."""
        return any(layer.draws for layer in self.layers)

    def output_shape(self, input_shape: Shape) -> Shape:
        """Give the shape of the inputs."""
        last = self._shapes(input_shape)[-1]
        if last != tuple(input_shape):
            raise ArgumentError(
                f"layers: what they give is added to the inputs of shape {input_shape}, so it needs that shape, got "
                f"{last}."
            )
        return last

    def parameter_shapes(self, input_shape: Shape) -> dict[str, Shape]:
        """Give those of the layers, with the layer's number in front."""
        shapes = self._shapes(input_shape)
        return {
            f"{number}.{name}": shape
            for number, layer in enumerate(self.layers)
            for name, shape in layer.parameter_shapes(shapes[number]).items()
        }

    def initial(self, name: str, input_shape: Shape, generator: np.random.Generator) -> npt.NDArray[np.float64]:
        """Give what the layer gives."""
        number, own_name = _owner(name)
        return self.layers[number].initial(own_name, self._shapes(input_shape)[number], generator)

    def is_penalised(self, name: str) -> bool:
        """Tell what the layer tells."""
        number, own_name = _owner(name)
        return self.layers[number].is_penalised(own_name)

    def forward(self, backend: Backend, parameters: Mapping[str, Array], inputs: Array, workspace: Workspace) -> Array:
        """Give inputs and outputs of the layers, added."""
        arrays = [inputs]
        for number, layer in enumerate(self.layers):
            own = _of_layer(number, parameters)
            arrays.append(layer.forward(backend, own, arrays[-1], workspace.inner(number)))
        workspace.left["arrays"] = arrays
        outputs = workspace.array("outputs", inputs.shape, inputs.dtype)
        backend.xp.add(inputs, arrays[-1], out=outputs)
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
        """Write the gradients of the layers, and give the derivative by the inputs; see `Layer.backward`."""
        arrays: list[Array] = workspace.left.pop("arrays")
        input_delta = None
        if needs_input_delta:
            # Before the layers write what comes from above.
            input_delta = workspace.array("input_delta", inputs.shape, delta.dtype)
            input_delta[...] = delta
        above: Array | None = delta
        for number in reversed(range(len(self.layers))):
            assert above is not None
            above = self.layers[number].backward(
                backend,
                _of_layer(number, parameters),
                _of_layer(number, gradients),
                arrays[number],
                arrays[number + 1],
                above,
                workspace.inner(number),
                needs_input_delta=needs_input_delta or number > 0,
            )
        if input_delta is not None:
            assert above is not None
            backend.xp.add(input_delta, above, out=input_delta)
        return input_delta

    def cut_axes(self, input_shape: Shape) -> frozenset[int]:
        """Give those of the last layer; what the others cannot cut is computed in every part."""
        return self.layers[-1].cut_axes(self._shapes(input_shape)[-2])

    def part(self, outputs: Box, input_shape: Shape) -> Part:
        """Give what computes some nodes, and what the layers below need for them, itself.

        Nodes of the lower layers that two parts need are computed in both. The last layer's parameters are cut as it
        cuts them; of the lower ones each part has all arrays, and uses some.
        """
        if outputs == Box.whole(input_shape):
            return super().part(outputs, input_shape)
        shapes = self._shapes(input_shape)
        axes = self.cut_axes(input_shape)
        if any(outputs.shape[axis] != length for axis, length in enumerate(shapes[-1]) if axis not in axes):
            return super().part(outputs, input_shape)
        steps: list[_Step] = []
        boxes: dict[str, Box] = {}
        wanted = outputs
        for number in reversed(range(len(self.layers))):
            layer, shape = self.layers[number], shapes[number]
            cut = layer.cut_axes(shape)
            given = wanted
            for axis, length in enumerate(shapes[number + 1]):
                if axis not in cut:
                    given = given.along(axis, 0, length)
            part = layer.part(given, shape)
            is_last = number == len(self.layers) - 1
            used = {}
            for name, whole in layer.parameter_shapes(shape).items():
                box = part.parameters[name]
                boxes[f"{number}.{name}"] = box if is_last else Box.whole(whole)
                if not is_last and box != Box.whole(whole):
                    used[name] = box
            steps.append(_Step(part.layer, wanted, given, tuple(used.items()), tuple(part.parameters)))
            wanted = part.inputs
        steps.reverse()
        # The shortcut needs the outputs' own place.
        inputs = Box(
            tuple(map(min, wanted.starts, outputs.starts)),
            tuple(map(max, wanted.stops, outputs.stops)),
        )
        shapes_held = tuple((name, boxes[name].shape) for name in self.parameter_shapes(input_shape))
        ordered = {name: boxes[name] for name, _ in shapes_held}
        return Part(_AddPart(tuple(steps), wanted, outputs, inputs, shapes_held), outputs, inputs, ordered)

    def operations(self, input_shape: Shape) -> float:
        """Give the sum of those of the layers."""
        shapes = self._shapes(input_shape)
        return float(sum(layer.operations(shape) for layer, shape in zip(self.layers, shapes[:-1], strict=True)))

    def workspace_numbers(self, input_shape: Shape) -> int:
        """Count those of the layers besides."""
        shapes = self._shapes(input_shape)
        inner = sum(layer.workspace_numbers(shape) for layer, shape in zip(self.layers, shapes[:-1], strict=True))
        return super().workspace_numbers(input_shape) + inner

    def to_config(self) -> dict[str, Any]:
        """Describe it with its layers."""
        return {"layer": self.kind, "layers": [layer.to_config() for layer in self.layers]}

    def _shapes(self, input_shape: Shape) -> list[Shape]:
        """Give the shape of a row before the first layer, and after each."""
        shapes = [tuple(input_shape)]
        for layer in self.layers:
            shapes.append(tuple(layer.output_shape(shapes[-1])))
        return shapes


class _Step(NamedTuple):
    """One of the layers, in a part of an `Add`."""

    layer: Layer
    wanted: Box
    """Of the whole layer's outputs: what the layer above needs, or what the part gives."""
    given: Box
    """What it computes, which holds `wanted`."""
    used: tuple[tuple[str, Box], ...]
    """Boxes of the arrays of which it uses but a part; `_AddPart` has them whole."""
    names: tuple[str, ...]
    """Of all of its arrays."""


@dataclass(frozen=True)
class _AddPart(Layer):
    """Some nodes of an `Add`."""

    kind: ClassVar[str] = "add part"

    steps: tuple[_Step, ...]
    lowest: Box
    """Of the whole inputs: what the first layer needs."""
    outputs: Box
    inputs: Box
    shapes: tuple[tuple[str, Shape], ...]
    """Of its parameter arrays."""

    @property
    def needs_outputs(self) -> bool:
        """False, as the whole's."""
        return False

    @property
    def draws(self) -> bool:
        """Whether one of the layers does."""
        return any(step.layer.draws for step in self.steps)

    def output_shape(self, input_shape: Shape) -> Shape:
        """Give the shape of its box."""
        return self.outputs.shape

    def parameter_shapes(self, input_shape: Shape) -> dict[str, Shape]:
        """Give the shapes of what it holds."""
        return dict(self.shapes)

    def initial(self, name: str, input_shape: Shape, generator: np.random.Generator) -> npt.NDArray[np.float64]:
        """Raise `ArgumentError`: first values are the whole layer's, of which a part gets some."""
        raise ArgumentError(f"{name}: a part has no first values of its own; take those of the whole layer.")

    def is_penalised(self, name: str) -> bool:
        """Tell what the layer tells."""
        number, own_name = _owner(name)
        return self.steps[number].layer.is_penalised(own_name)

    def forward(self, backend: Backend, parameters: Mapping[str, Array], inputs: Array, workspace: Workspace) -> Array:
        """Give inputs and outputs of the layers, added."""
        arrays, held = [inputs], self.inputs
        taken = []
        for number, step in enumerate(self.steps):
            below = self.lowest if number == 0 else self.steps[number - 1].wanted
            taken.append(_some(arrays[-1], held, below, workspace, f"taken {number}"))
            own = self._used(number, parameters, workspace, "parameter")
            arrays.append(step.layer.forward(backend, own, taken[-1], workspace.inner(number)))
            held = step.given
        workspace.left["arrays"] = taken, arrays[1:]
        outputs = workspace.array("outputs", (len(inputs), *self.outputs.shape), inputs.dtype)
        backend.xp.add(_view(inputs, self.inputs, self.outputs), _view(arrays[-1], held, self.outputs), out=outputs)
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
        """Write what these outputs contribute to the gradients, and give it for the inputs; see `Layer.backward`."""
        taken, given = workspace.left.pop("arrays")
        input_delta = None
        if needs_input_delta:
            input_delta = workspace.array("input_delta", inputs.shape, delta.dtype)
            input_delta[...] = 0
            _view(input_delta, self.inputs, self.outputs)[...] = delta
        above = delta
        for number in reversed(range(len(self.steps))):
            step = self.steps[number]
            if step.wanted != step.given:
                whole = workspace.array(f"above {number}", (len(inputs), *step.given.shape), delta.dtype)
                whole[...] = 0
                _view(whole, step.given, step.wanted)[...] = above
                above = whole
            own = self._used(number, gradients, workspace, "gradient", is_read=False)
            below = step.layer.backward(
                backend,
                self._used(number, parameters, workspace, "parameter"),
                own,
                taken[number],
                given[number],
                above,
                workspace.inner(number),
                needs_input_delta=needs_input_delta or number > 0,
            )
            for name, box in step.used:
                array = gradients[f"{number}.{name}"]
                array[...] = 0
                array[box.within(Box.whole(array.shape))] = own[name]
            if below is not None:
                above = below
        if input_delta is not None:
            direct = _view(input_delta, self.inputs, self.lowest)
            backend.xp.add(direct, above, out=direct)
        return input_delta

    def workspace_numbers(self, input_shape: Shape) -> int:
        """Count those of the layers, and copies of what goes in and comes down; those of parameters are of no row."""
        below = [self.lowest, *(step.wanted for step in self.steps)]
        inner = sum(
            step.layer.workspace_numbers(box.shape) + box.size + step.given.size
            for step, box in zip(self.steps, below[:-1], strict=True)
        )
        return super().workspace_numbers(input_shape) + inner

    def _used(
        self, number: int, arrays: Mapping[str, Array], workspace: Workspace, name: str, is_read: bool = True
    ) -> dict[str, Array]:
        """Give the arrays of one layer: views, and without gaps copies of those that it uses some of."""
        step = self.steps[number]
        own = {each: arrays[f"{number}.{each}"] for each in step.names}
        for each, box in step.used:
            copy = workspace.array(f"{name} {number}.{each}", box.shape, own[each].dtype)
            if is_read:
                copy[...] = own[each][box.within(Box.whole(own[each].shape))]
            own[each] = copy
        return own


def _owner(name: str) -> tuple[int, str]:
    """Give the number of the layer, and what it calls the array."""
    number, _, own_name = name.partition(".")
    return int(number), own_name


def _of_layer(number: int, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Give the arrays of one layer by its own names."""
    prefix = f"{number}."
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _view(array: Array, held: Box, wanted: Box) -> Array:
    """View some of what an array of the nodes of `held` holds."""
    return array[(slice(None), *wanted.within(held))]


def _some(array: Array, held: Box, wanted: Box, workspace: Workspace, name: str) -> Array:
    """Give some of what an array of the nodes of `held` holds, without gaps."""
    if wanted == held:
        return array
    copy = workspace.array(name, (len(array), *wanted.shape), array.dtype)
    copy[...] = _view(array, held, wanted)
    return copy
