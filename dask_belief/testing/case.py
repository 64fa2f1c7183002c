"""A layer with numbers to try it on, and what one pass of it gives."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from dask_belief.backend import Backend
from dask_belief.errors import LayerContractError
from dask_belief.models.layers import Embedding, Layer, Workspace
from dask_belief.models.layout import Shape
from dask_belief.seeds import stream

KEY = 12_345
"""From which a layer that draws does so here."""

Values = npt.NDArray[Any]


@dataclass(frozen=True)
class Pass:
    """What one way up and down gave, on the host."""

    outputs: Values
    gradients: dict[str, Values]
    input_delta: Values | None
    has_gaps: bool = False
    """Whether the derivative by the inputs had some, where it was computed."""


@dataclass(frozen=True)
class Case:
    """A layer with numbers to try it on, float64 on the host."""

    layer: Layer
    input_shape: Shape
    seed: int
    backend: Backend
    n_rows: int
    inputs: Values = field(init=False)
    parameters: dict[str, Values] = field(init=False)
    delta: Values = field(init=False)

    def __post_init__(self) -> None:
        generator = stream(self.seed, "check_layer")
        shape = self.n_rows, *self.input_shape
        inputs: Values
        if isinstance(self.layer, Embedding):
            inputs = generator.integers(0, self.layer.n_entries, shape)
        else:
            inputs = generator.standard_normal(shape)
        shapes = self.layer.parameter_shapes(self.input_shape)
        parameters = {name: 0.5 * generator.standard_normal(shape) for name, shape in shapes.items()}
        delta = generator.standard_normal((self.n_rows, *self.layer.output_shape(self.input_shape)))
        for name, value in (("inputs", inputs), ("parameters", parameters), ("delta", delta)):
            object.__setattr__(self, name, value)

    @property
    def name(self) -> str:
        """What messages call the layer."""
        return type(self.layer).__name__

    def in_float32(self) -> Case:
        """Give the same case, its numbers rounded."""
        single = copy.copy(self)
        if self.has_input_delta:
            object.__setattr__(single, "inputs", self.inputs.astype(np.float32))
        rounded = {name: array.astype(np.float32) for name, array in self.parameters.items()}
        object.__setattr__(single, "parameters", rounded)
        object.__setattr__(single, "delta", self.delta.astype(np.float32))
        return single

    @property
    def has_input_delta(self) -> bool:
        """Whether inputs are numbers, by which there is a derivative."""
        return not isinstance(self.layer, Embedding)

    def fault(self, asked: str, found: str, advice: str) -> LayerContractError:
        """Make the error: what is asked of a layer, what was found, what to look at."""
        return LayerContractError(f"{self.name} of inputs {self.input_shape}: {asked}; found {found}. {advice}")

    def workspace(self, backend: Backend | None = None, first_row: int = 0) -> Workspace:
        """Give an empty one."""
        workspace = Workspace(backend or self.backend, (0,))
        workspace.key = KEY if self.layer.draws else None
        workspace.first_row = first_row
        return workspace

    def forward(self, inputs: Values, parameters: Mapping[str, Values], workspace: Workspace) -> Values:
        """Give the outputs."""
        on_backend = {name: self.backend.asarray(array.copy()) for name, array in parameters.items()}
        outputs = self.layer.forward(self.backend, on_backend, self.backend.asarray(inputs.copy()), workspace)
        return np.array(self.backend.to_host(outputs))

    def run(
        self,
        inputs: Values | None = None,
        parameters: Mapping[str, Values] | None = None,
        delta: Values | None = None,
        *,
        layer: Layer | None = None,
        workspace: Workspace | None = None,
        backend: Backend | None = None,
        fill: float = math.nan,
        needs_input_delta: bool = True,
        are_outputs_lost: bool = False,
    ) -> Pass:
        """Go up and down once, in fresh arrays; gradients hold `fill` before."""
        layer, backend = layer or self.layer, backend or self.backend
        workspace = workspace or self.workspace(backend)
        given = self.inputs if inputs is None else inputs
        parameters = self.parameters if parameters is None else parameters
        delta = self.delta if delta is None else delta
        rows = backend.asarray(given.copy())
        own = {name: backend.asarray(array.copy()) for name, array in parameters.items()}
        if isinstance(layer, Embedding):
            # It writes the rows that were chosen and no other.
            fill = 0.0
        gradients = {name: backend.asarray(np.full_like(array, fill)) for name, array in parameters.items()}
        outputs = layer.forward(backend, own, rows, workspace)
        kept = np.array(backend.to_host(outputs))
        if are_outputs_lost:
            outputs = backend.asarray(np.full(kept.shape, np.nan, kept.dtype))
        below = layer.backward(
            backend,
            own,
            gradients,
            rows,
            outputs,
            backend.asarray(delta.copy()),
            workspace,
            needs_input_delta=needs_input_delta and self.has_input_delta,
        )
        return Pass(
            kept,
            {name: np.array(backend.to_host(array)) for name, array in gradients.items()},
            None if below is None else np.array(backend.to_host(below)),
            below is not None and not below.flags.c_contiguous,
        )

    def check_no_gaps(self, found: Pass, where: str) -> None:
        """Refuse a derivative by the inputs that the layer below could not write to in another shape."""
        if found.has_gaps:
            raise self.fault(
                f"{where} gives a derivative by the inputs without gaps",
                "a view of some of a larger array, or one in another order",
                "Copy it to an array of the workspace: the layer below may write to it in another shape.",
            )

    def compare(self, found: Pass, expected: Pass, tolerance: float, asked: str, advice: str) -> None:
        """Refuse a pass that gave something else than another one."""
        pairs: list[tuple[str, Values | None, Values | None]] = [("outputs", found.outputs, expected.outputs)]
        pairs += [
            (f"the gradient of {name}", found.gradients[name], expected.gradients[name]) for name in self.parameters
        ]
        pairs.append(("the derivative by the inputs", found.input_delta, expected.input_delta))
        for what, some, other in pairs:
            if some is None or other is None:
                continue
            error = difference(some, other)
            if error > tolerance:
                raise self.fault(asked, f"{what} {told(error)}", advice)


def difference(found: Values, expected: Values) -> float:
    """Give the largest difference as a share of the largest value; infinite where shapes or what is finite differ."""
    if found.shape != expected.shape:
        return math.inf
    if found.size == 0 or np.array_equal(found, expected, equal_nan=found.dtype.kind == "f"):
        return 0.0
    away = float(np.abs(np.asarray(found, np.float64) - expected).max())
    scale = max(float(np.abs(expected).max()), 1e-3)
    return away / scale if math.isfinite(away) else math.inf


def told(error: float) -> str:
    """Put a difference in words."""
    return "of another shape or not finite" if math.isinf(error) else f"off by {error:.1e} of the largest value"


def said(error: Exception) -> str:
    """Give the beginning of what an error says: some hold whole arrays."""
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return said if len(said) <= 300 else f"{said[:300]}..."
