"""check_layer: right layers pass, and each kind of wrong one is refused with a message that says what is wrong."""

from __future__ import annotations

import doctest
import math
import re
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pytest

import dask_belief as db
from dask_belief.backend import get_backend
from dask_belief.models.box import Box
from dask_belief.models.layers import base
from dask_belief.models.layers.registry import LAYERS
from tests.backend.usable import USABLE


@dataclass(frozen=True)
class Right(db.Layer):
    """Factors along the last axis and a parabola: ``outputs = factors * inputs ** 2 + inputs``."""

    kind = "right"

    power: float = 1.0

    @property
    def needs_outputs(self):
        return False

    def output_shape(self, input_shape):
        return input_shape

    def parameter_shapes(self, input_shape):
        return {"factors": input_shape[-1:]}

    def initial(self, name, input_shape, generator):
        return generator.standard_normal(input_shape[-1:])

    def forward(self, backend, parameters, inputs, workspace):
        outputs = workspace.array("outputs", inputs.shape, inputs.dtype)
        backend.xp.multiply(inputs, inputs, out=outputs)
        backend.xp.multiply(outputs, parameters["factors"], out=outputs)
        backend.xp.add(outputs, inputs, out=outputs)
        return outputs

    def backward(self, backend, parameters, gradients, inputs, outputs, delta, workspace, *, needs_input_delta):
        products = workspace.array("products", inputs.shape, inputs.dtype)
        backend.xp.multiply(inputs, inputs, out=products)
        backend.xp.multiply(products, delta, out=products)
        n_factors = inputs.shape[-1]
        backend.column_sums_(products.reshape(math.prod(products.shape[:-1]), n_factors), gradients["factors"])
        if not needs_input_delta:
            return None
        backend.xp.multiply(inputs, parameters["factors"], out=products)
        backend.xp.multiply(products, 2, out=products)
        backend.xp.add(products, 1, out=products)
        backend.xp.multiply(delta, products, out=products)
        return products

    def cut_axes(self, input_shape):
        return frozenset(range(len(input_shape)))

    def part(self, outputs, input_shape):
        return db.Part(self, outputs, outputs, {"factors": Box(outputs.starts[-1:], outputs.stops[-1:])})


class OtherShape(Right):
    def output_shape(self, input_shape):
        return (*input_shape[:-1], input_shape[-1] + 1)


class WrongInputDelta(Right):
    def backward(self, *arguments, **keywords):
        below = super().backward(*arguments, **keywords)
        if below is not None:
            below *= 1.001
        return below


class WrongGradient(Right):
    def backward(self, backend, parameters, gradients, *others, **keywords):
        below = super().backward(backend, parameters, gradients, *others, **keywords)
        gradients["factors"][...] *= 2
        return below


class AddsToGradients(Right):
    def backward(self, backend, parameters, gradients, *others, **keywords):
        before = gradients["factors"].copy()
        below = super().backward(backend, parameters, gradients, *others, **keywords)
        gradients["factors"][...] += before
        return below


class LeavesGradientsOut(Right):
    def backward(self, backend, parameters, gradients, *others, needs_input_delta):
        own = gradients if needs_input_delta else {"factors": gradients["factors"].copy()}
        return super().backward(backend, parameters, own, *others, needs_input_delta=needs_input_delta)


class WritesInputs(Right):
    def forward(self, backend, parameters, inputs, workspace):
        outputs = super().forward(backend, parameters, inputs, workspace)
        inputs[...] = 0
        return outputs


class WritesParameters(Right):
    def backward(self, backend, parameters, *others, **keywords):
        below = super().backward(backend, parameters, *others, **keywords)
        parameters["factors"][...] -= 0.1
        return below


class GivesInputs(Right):
    def forward(self, backend, parameters, inputs, workspace):
        return inputs


class ReadsOutputs(Right):
    def backward(self, backend, parameters, gradients, inputs, outputs, *others, **keywords):
        below = super().backward(backend, parameters, gradients, inputs, outputs, *others, **keywords)
        if below is not None:
            below += 0 * outputs
        return below


class AlwaysGivesInputDelta(Right):
    def backward(self, *arguments, needs_input_delta):
        return super().backward(*arguments, needs_input_delta=True)


class NeverGivesInputDelta(Right):
    def backward(self, *arguments, needs_input_delta):
        super().backward(*arguments, needs_input_delta=True)


class Float64(Right):
    def forward(self, backend, parameters, inputs, workspace):
        return super().forward(backend, parameters, inputs, workspace).astype(np.float64)


class MeanOverRows(Right):
    def forward(self, backend, parameters, inputs, workspace):
        outputs = super().forward(backend, parameters, inputs, workspace)
        if len(inputs):
            outputs -= outputs.mean(axis=0)
        return outputs


class FailsWithoutRows(Right):
    def forward(self, backend, parameters, inputs, workspace):
        outputs = super().forward(backend, parameters, inputs, workspace)
        outputs -= 0 * inputs.max()
        return outputs


class NeedsNoGaps(Right):
    def forward(self, backend, parameters, inputs, workspace):
        assert inputs.flags.c_contiguous
        return super().forward(backend, parameters, inputs, workspace)


class HasState(Right):
    calls: ClassVar[list[int]] = []

    def forward(self, backend, parameters, inputs, workspace):
        outputs = super().forward(backend, parameters, inputs, workspace)
        self.calls.append(1)
        outputs += 1e-3 * len(self.calls)
        return outputs


class KeepsWhatWasThere(Right):
    def forward(self, backend, parameters, inputs, workspace):
        outputs = super().forward(backend, parameters, inputs, workspace)
        seen = workspace.left.setdefault("seen", 0)
        workspace.left["seen"] = seen + len(inputs)
        outputs += 1e-9 * seen
        return outputs


class CallsNumPy(Right):
    def forward(self, backend, parameters, inputs, workspace):
        outputs = super().forward(backend, parameters, inputs, workspace)
        np.add(outputs, 0, out=outputs)
        return outputs


class MakesNumPyArrays(Right):
    def forward(self, backend, parameters, inputs, workspace):
        outputs = super().forward(backend, parameters, inputs, workspace)
        backend.xp.add(outputs, np.zeros(inputs.shape[-1], inputs.dtype), out=outputs)
        return outputs


class GivesNumPyArrays(Right):
    def forward(self, backend, parameters, inputs, workspace):
        return np.array(super().forward(backend, parameters, inputs, workspace))


class Waits(Right):
    def forward(self, backend, parameters, inputs, workspace):
        outputs = super().forward(backend, parameters, inputs, workspace)
        if len(outputs) and float(outputs.max()) > 1e9:
            outputs[...] = 0
        return outputs


class DrawsByItself(Right):
    def initial(self, name, input_shape, generator):
        return np.random.default_rng().standard_normal(input_shape[-1:])


class Unnamed(Right):
    kind = ""


@dataclass(frozen=True)
class NotPlain(Right):
    weights: Any = field(default_factory=lambda: np.zeros(3))


@dataclass(frozen=True)
class TupleField(Right):
    sizes: tuple[int, ...] = (1, 2)


@dataclass
class Changeable(db.Layer):
    kind = "changeable"

    output_shape = Right.output_shape
    parameter_shapes = Right.parameter_shapes
    initial = Right.initial
    forward = Right.forward
    backward = Right.backward


class UnknownAxis(Right):
    def cut_axes(self, input_shape):
        return frozenset({len(input_shape)})


class CannotBeCutAfterAll(Right):
    def part(self, outputs, input_shape):
        return db.Layer.part(self, outputs, input_shape)


class InputsTooSmall(Right):
    def forward(self, backend, parameters, inputs, workspace):
        outputs = super().forward(backend, parameters, inputs, workspace)
        # Each node depends on its neighbour, of which its part is not told.
        outputs[:, 1:] += inputs[:, :-1]
        return outputs


class InputsTooLarge(Right):
    def part(self, outputs, input_shape):
        factors = {"factors": Box(outputs.starts[-1:], outputs.stops[-1:])}
        if outputs.shape == input_shape:
            return db.Part(self, outputs, outputs, factors)
        return db.Part(Some(box=outputs), outputs, Box.whole(input_shape), factors)


@dataclass(frozen=True)
class Some(Right):
    """A box of the outputs of all inputs."""

    box: Box = Box((), ())  # noqa: RUF009

    @property
    def _chosen(self):
        return (slice(None), *(slice(a, b) for a, b in zip(self.box.starts, self.box.stops, strict=True)))

    def output_shape(self, input_shape):
        return self.box.shape

    def parameter_shapes(self, input_shape):
        return {"factors": self.box.shape[-1:]}

    def forward(self, backend, parameters, inputs, workspace):
        return super().forward(backend, parameters, inputs[self._chosen].copy(), workspace)

    def backward(self, backend, parameters, gradients, inputs, *others, **keywords):
        below = super().backward(backend, parameters, gradients, inputs[self._chosen].copy(), *others, **keywords)
        whole = np.zeros_like(inputs)
        if below is not None:
            whole[self._chosen] = below
        return whole


class OverlappingParameters(Right):
    """Each part asks for a factor more than it needs, and its layer leaves it out."""

    def part(self, outputs, input_shape):
        start, stop = outputs.starts[-1], outputs.stops[-1]
        more = min(stop + 1, input_shape[-1])
        layer = WithMore(n_more=more - stop)
        return db.Part(layer, outputs, outputs, {"factors": Box((start,), (more,))})


@dataclass(frozen=True)
class WithMore(Right):
    n_more: int = 0

    def parameter_shapes(self, input_shape):
        return {"factors": (input_shape[-1] + self.n_more,)}

    def forward(self, backend, parameters, inputs, workspace):
        own = {"factors": parameters["factors"][: inputs.shape[-1]]}
        return super().forward(backend, own, inputs, workspace)

    def backward(self, backend, parameters, gradients, inputs, *others, **keywords):
        gradients["factors"][...] = 0
        own, its = ({"factors": arrays["factors"][: inputs.shape[-1]]} for arrays in (parameters, gradients))
        return super().backward(backend, own, its, inputs, *others, **keywords)


class PartsGiveTheWholeGradient(Right):
    def part(self, outputs, input_shape):
        part = super().part(outputs, input_shape)
        return replace(part, layer=WrongGradient()) if outputs.shape != input_shape else part


@dataclass(frozen=True)
class GivesAView(Right):
    def backward(self, backend, parameters, gradients, inputs, *others, **keywords):
        found = super().backward(backend, parameters, gradients, inputs, *others, **keywords)
        if found is None:
            return None
        view = others[-1].array("wide", (*inputs.shape[:-1], inputs.shape[-1] + 1), inputs.dtype)[..., 1:]
        view[...] = found
        return view


class PartsGiveViews(Right):
    def part(self, outputs, input_shape):
        part = super().part(outputs, input_shape)
        return replace(part, layer=GivesAView()) if outputs.shape != input_shape else part


class ForgetsAParameter(Right):
    def part(self, outputs, input_shape):
        return replace(super().part(outputs, input_shape), parameters={})


class AnotherBox(Right):
    def part(self, outputs, input_shape):
        return replace(super().part(outputs, input_shape), outputs=Box.whole(input_shape))


WRONG = [
    (OtherShape(), r"outputs of 3 rows have shape \(3, 6\)", r"\(3, 5\)"),
    (WrongInputDelta(), "the derivative by the inputs agrees with central differences", "where the difference is"),
    (WrongGradient(), "the gradient of factors agrees with central differences", "where the difference is"),
    (AddsToGradients(), "written, not added to", "5 of 5 elements"),
    (LeavesGradientsOut(), "gradients do not depend on needs_input_delta", "gradient of factors"),
    (WritesInputs(), "forward leaves the inputs as they are", "workspace"),
    (WritesParameters(), "backward leaves parameters as they are", "factors"),
    (GivesInputs(), "memory of the workspace", "is_view"),
    (ReadsOutputs(), "needs_outputs is False", "derivative by the inputs"),
    (AlwaysGivesInputDelta(), "None where needs_input_delta is False", "an array"),
    (NeverGivesInputDelta(), "derivative by the inputs when asked", "None"),
    (Float64(), "outputs of float32 are float32", "float64"),
    (MeanOverRows(), "rows do not depend on one another", "off by"),
    (FailsWithoutRows(), "takes 0 rows", "ValueError"),
    (NeedsNoGaps(), "inputs may have gaps", "AssertionError"),
    (GivesAView(), "derivative by the inputs without gaps", "a view"),
    (PartsGiveViews(), "the part .* gives a derivative by the inputs without gaps", "a view"),
    (HasState(), "", "off by"),
    (KeepsWhatWasThere(), "the same bits", "off by"),
    (CallsNumPy(), "backend.xp", "numpy.add was called on an array of another library"),
    (MakesNumPyArrays(), "backend.xp", "was given a NumPy array"),
    (GivesNumPyArrays(), "backend.xp", "NumPy"),
    (Waits(), "backend.xp", "__float__ waits"),
    (DrawsByItself(), "initial draws 'factors' from the generator", "second time"),
    (Unnamed(), "a layer has a name, kind", "''"),
    (NotPlain(), "plain JSON", "ndarray"),
    (TupleField(), "equals the layer", r"\[1, 2\]"),
    (Changeable(), "frozen dataclass", "frozen=True"),
    (UnknownAxis(), "some of the axes", "1"),
    (CannotBeCutAfterAll(), "part can cut along every axis", "ArgumentError"),
    (InputsTooSmall(), "gives the whole's outputs there|central differences", ""),
    (InputsTooLarge(), "no larger than it needs", "nothing depends on number"),
    (OverlappingParameters(), "are the same or have nothing in common", "Box"),
    (PartsGiveTheWholeGradient(), "add up to the whole", "gradient of factors"),
    (ForgetsAParameter(), "tells the box of each parameter array", r"\[\]"),
    (AnotherBox(), "outputs are the box asked for", "Part"),
]


@pytest.mark.parametrize(("layer", "asked", "found"), WRONG, ids=[type(layer).__name__ for layer, *_ in WRONG])
def test_a_wrong_layer_is_refused(layer: db.Layer, asked: str, found: str) -> None:
    """The message names the layer, what is asked of it, and what was found."""
    with pytest.raises(db.LayerContractError) as caught:
        db.testing.check_layer(layer, (5,))
    message = str(caught.value)
    assert message.startswith(f"{type(layer).__name__} of inputs (5,): ")
    said, _, rest = message.partition("; found ")
    assert re.search(asked, said), message
    assert re.search(found, rest), message
    assert isinstance(caught.value, AssertionError)


@pytest.mark.parametrize("name", USABLE)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("shape", [(5,), (1,), (3, 4), (2, 3, 2)])
def test_a_right_layer_passes(shape: tuple[int, ...], seed: int, name: str) -> None:
    """Of any shape, with any numbers, on every backend."""
    db.testing.check_layer(Right(), shape, seed=seed, backend=get_backend(name))


def test_a_layer_that_cannot_be_cut_passes() -> None:
    """Parts may be left out."""

    class Whole(Right):
        def cut_axes(self, input_shape):
            return frozenset()

        part = db.Layer.part

    db.testing.check_layer(Whole(), (5,))


@pytest.mark.parametrize("name", USABLE)
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (db.Dense(5, "tanh"), (4,)),
        (db.Dense(5, "relu", penalised=False), (2, 3)),
        (db.Dense(1), (3,)),
        (db.Embedding(7, 3), (5,)),
        (db.Embedding(7, 3), (2, 2)),
        (db.Embedding(9, 1), (4,)),
    ],
)
def test_layers_of_other_modules_keep_it(layer: db.Layer, shape: tuple[int, ...], name: str) -> None:
    """Those whose own tests are older than this one."""
    db.testing.check_layer(layer, shape, backend=get_backend(name), n_rows=4)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((3, (4,)), "layer"),
        ((db.Dense, (4,)), "layer"),
        ((db.Dense(2), ()), "input_shape"),
        ((db.Dense(2), (0,)), "input_shape"),
    ],
)
def test_wrong_arguments_are_refused(arguments: tuple[object, ...], name: str) -> None:
    """By name."""
    with pytest.raises(db.ArgumentError, match=rf"^{name}: "):
        db.testing.check_layer(*arguments)
    with pytest.raises(db.ArgumentError, match=r"^n_rows: "):
        db.testing.check_layer(db.Dense(2), (4,), n_rows=1)


def test_the_example_of_the_contract_runs() -> None:
    """The layer in the documentation of `dask_belief.models.layers.base` is one, check_layer included."""
    known = dict(LAYERS)
    try:
        example = doctest.DocTestParser().get_doctest(base.__doc__ or "", {"__name__": "example"}, "contract", None, 0)
        runner = doctest.DocTestRunner(verbose=False)
        runner.run(example)
        assert runner.summarize(verbose=False).failed == 0
        assert len(example.examples) >= 5
        assert "scale" in LAYERS
    finally:
        LAYERS.clear()
        LAYERS.update(known)
