"""Whether a layer keeps the contract of `dask_belief.models.layers.base`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dask_belief.backend import Backend, get_backend
from dask_belief.backend.numpy import NumpyBackend
from dask_belief.checks import check_count
from dask_belief.errors import ArgumentError, DaskBeliefError, LayerContractError
from dask_belief.models.layers import Layer, layer_from_config
from dask_belief.models.layers.registry import LAYERS
from dask_belief.models.layout import check_shape
from dask_belief.seeds import stream
from dask_belief.testing.case import Case, Pass, Values, said
from dask_belief.testing.parts import check_parts
from dask_belief.testing.strict_arrays import StrictBackend

STEP = 1e-5
"""Of central differences, for numbers of about one: their error is some 1e-10."""

GRADIENT_TOLERANCE = 1e-6
"""Of the largest derivative."""

FLOAT32_TOLERANCE = 1e-3
"""Of the largest value, to tell a wrong float32 from a rounded one."""

ELEMENTS_TRIED = 48
"""Elements of one array whose derivatives are tried one by one; beyond that a choice of them, and all at once."""


def check_layer(
    layer: Layer, input_shape: Sequence[int], *, seed: int = 0, backend: Backend | None = None, n_rows: int = 3
) -> None:
    """Try all that a network asks of a layer, on numbers that are drawn for it.

    Shapes and dtypes; outputs of each row from that row alone; gradients against central differences in float64; what
    is to be left as it is, and what to be written; no rows and one; inputs with gaps; the same bits twice; the way
    through a configuration; that no function of NumPy's is called on arrays of another library; and every part, along
    each of the layer's `cut_axes`: parts add up to the whole, and say rightly which inputs and parameters they need.

    Parameters
    ----------
    layer
        Any `Layer`.
    input_shape
        Of one row; so small that thousands of calls take no time, and odd where a layer has strides or windows.
    seed
        Of the numbers that are drawn.
    backend
        What computes; None for NumPy. Whether a layer keeps to its arrays' own library is tried with a stand-in on the
        host in any case.
    n_rows
        In a mini-batch, two or more.

    Raises
    ------
    LayerContractError
        The layer does something else: what is asked, what it did, and what to look at.
    ArgumentError
        `layer` is none, or an argument is wrong.

    Examples
    --------
    >>> check_layer(db.Dense(3, "tanh"), (4,))  # doctest: +SKIP
    """
    if not isinstance(layer, Layer):
        raise ArgumentError(f"layer: expected a dask_belief.Layer, got {layer!r}.")
    check_count("n_rows", n_rows, low=2)
    check_count("seed", seed, low=0)
    case = Case(layer, check_shape("input_shape", tuple(input_shape)), seed, backend or get_backend("numpy"), n_rows)
    for check in (
        _check_description,
        _check_shapes,
        _check_first_values,
        _check_arrays_left_alone,
        _check_what_is_written,
        _check_no_rows,
        _check_what_is_read,
        _check_float32,
        _check_rows,
        _check_gaps,
        _check_bits,
        _check_gradients,
        _check_namespace,
        check_parts,
    ):
        with case.backend.computing():
            try:
                check(case)
            except LayerContractError:
                raise
            except Exception as error:
                raise case.fault(
                    "each method takes what a network gives it", said(error), "The original error is this one's cause."
                ) from error


def _check_description(case: Case) -> None:
    """A frozen dataclass, whose fields go through JSON and come back as an equal layer."""
    layer = case.layer
    kind = getattr(layer, "kind", None)
    if not isinstance(kind, str) or not kind:
        raise case.fault("a layer has a name, kind", repr(kind), "Give the class a line such as: kind = 'scale'.")
    try:
        config = json.loads(json.dumps(layer.to_config()))
    except (TypeError, ValueError) as error:
        raise case.fault(
            "a layer's fields are plain JSON", said(error), "Store numbers, strings, lists or tuples of them."
        ) from error
    try:
        if kind in LAYERS:
            again = layer_from_config(config)
        else:
            fields = {name: value for name, value in config.items() if name != "layer"}
            again = type(layer)(**fields)
    except (DaskBeliefError, TypeError, ValueError) as error:
        raise case.fault(
            "a layer can be made of its configuration", said(error), "Its fields are the arguments of its class."
        ) from error
    if again != layer:
        raise case.fault(
            "a layer made of its configuration equals the layer",
            f"{again!r} for {layer!r}",
            "Make it a dataclass, and turn lists into tuples in __post_init__; JSON knows lists only.",
        )
    parameters = getattr(type(layer), "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        raise case.fault(
            "a layer is a frozen dataclass, which nobody changes",
            "that it is none",
            "Decorate the class with @dataclass(frozen=True).",
        )


def _check_shapes(case: Case) -> None:
    """What is said of shapes is what comes out, with several rows, with one and with none."""
    layer = case.layer
    shape = layer.output_shape(case.input_shape)
    if not _is_shape(shape):
        raise case.fault("output_shape gives a tuple of whole numbers", repr(shape), "Give ints of 1 or more.")
    for name, of_array in layer.parameter_shapes(case.input_shape).items():
        if not (isinstance(name, str) and name and _is_shape(of_array)):
            raise case.fault(
                "parameter_shapes gives names and tuples of whole numbers",
                f"{name!r}: {of_array!r}",
                "Correct that one.",
            )
    n_operations = layer.operations(case.input_shape)
    if not (math.isfinite(n_operations) and n_operations >= 0):
        raise case.fault("operations gives a number of 0 or more", repr(n_operations), "Estimate those of one row.")
    for n_rows in (case.n_rows, 1, 0):
        try:
            outputs = case.forward(case.inputs[:n_rows], case.parameters, case.workspace())
        except Exception as error:
            raise case.fault(
                f"forward takes {n_rows} rows", said(error), "There may be any number, and none."
            ) from error
        if outputs.shape != (n_rows, *shape):
            raise case.fault(
                f"outputs of {n_rows} rows have shape {(n_rows, *shape)}, as output_shape says",
                str(outputs.shape),
                "Look at output_shape and forward.",
            )
        if not np.isfinite(outputs).all():
            raise case.fault(
                "outputs of numbers of about one are finite", "others", "Look for memory that forward does not write."
            )
        try:
            below = case.run(case.inputs[:n_rows], delta=case.delta[:n_rows]).input_delta
        except Exception as error:
            raise case.fault(
                f"backward takes {n_rows} rows", said(error), "There may be any number, and none."
            ) from error
        if case.has_input_delta and below is None:
            raise case.fault("backward gives the derivative by the inputs when asked", "None", "Return it.")
        if below is not None and below.shape != (n_rows, *case.input_shape):
            raise case.fault(
                f"the derivative by {n_rows} rows of inputs has their shape, {(n_rows, *case.input_shape)}",
                str(below.shape),
                "Look at backward.",
            )


def _is_shape(shape: object) -> bool:
    return isinstance(shape, tuple) and all(isinstance(size, int) and size > 0 for size in shape)


def _check_first_values(case: Case) -> None:
    """Each parameter array has first values, which follow from the generator."""
    for name, shape in case.layer.parameter_shapes(case.input_shape).items():
        first, again = (case.layer.initial(name, case.input_shape, stream(case.seed, "first", name)) for _ in range(2))
        if np.shape(first) != shape or not np.isfinite(first).all():
            raise case.fault(
                f"initial gives {name!r} finite numbers of shape {shape}",
                f"shape {np.shape(first)}",
                "Look at initial.",
            )
        if not np.array_equal(first, again):
            raise case.fault(
                f"initial draws {name!r} from the generator that it is given",
                "other numbers the second time",
                "Use no other source of random numbers.",
            )
        if not isinstance(case.layer.is_penalised(name), bool):
            raise case.fault(f"is_penalised({name!r}) gives a bool", repr(case.layer.is_penalised(name)), "Give one.")


def _check_arrays_left_alone(case: Case) -> None:
    """Inputs and parameters are read only."""
    backend, workspace = case.backend, case.workspace()
    inputs = backend.asarray(case.inputs.copy())
    parameters = {name: backend.asarray(array.copy()) for name, array in case.parameters.items()}
    gradients = {name: backend.asarray(np.zeros_like(array)) for name, array in case.parameters.items()}
    outputs = case.layer.forward(backend, parameters, inputs, workspace)
    is_own = backend.name == "numpy" and np.may_share_memory(outputs, inputs)
    if is_own and not case.layer.is_view and np.shares_memory(outputs, inputs):
        raise case.fault(
            "outputs are memory of the workspace, since the loss may write them",
            "the inputs' own memory",
            "Take an array from the workspace, or let is_view be True.",
        )
    if any(np.may_share_memory(outputs, array) for array in parameters.values() if backend.name == "numpy"):
        raise case.fault("outputs are memory of the workspace", "a parameter's memory", "Take an array from it.")
    for way in ("forward", "backward"):
        if way == "backward":
            case.layer.backward(
                backend,
                parameters,
                gradients,
                inputs,
                outputs,
                backend.asarray(case.delta.copy()),
                workspace,
                needs_input_delta=case.has_input_delta,
            )
        if not np.array_equal(backend.to_host(inputs), case.inputs):
            raise case.fault(f"{way} leaves the inputs as they are", "others", "Write to arrays of the workspace.")
        for name, array in parameters.items():
            if not np.array_equal(backend.to_host(array), case.parameters[name]):
                raise case.fault(f"{way} leaves parameters as they are", f"another {name}", "Only a rule changes them.")


def _check_what_is_written(case: Case) -> None:
    """Gradients are written, wherever they begin."""
    unwritten = case.run(fill=math.nan)
    for name, gradient in unwritten.gradients.items():
        if np.isnan(gradient).any():
            raise case.fault(
                f"all of the gradient of {name} is written, not added to",
                f"{int(np.isnan(gradient).sum())} of {gradient.size} elements that are not, or not a number",
                "What gradients hold before does not count: use out=, not +=.",
            )
    case.compare(
        case.run(fill=3.0),
        unwritten,
        0.0,
        "gradients are written, not added to",
        "What they hold before does not count.",
    )


def _check_no_rows(case: Case) -> None:
    """A sum over no rows is zero."""
    for name, gradient in case.run(case.inputs[:0], delta=case.delta[:0]).gradients.items():
        if not np.array_equal(gradient, np.zeros_like(gradient)):
            raise case.fault(
                f"the gradient of {name} by no rows is zero", "another one", "It has to be written then, too."
            )


def _check_what_is_read(case: Case) -> None:
    """Without `needs_outputs` they are not read; without the derivative by the inputs the gradients are the same."""
    expected = case.run()
    if not case.layer.needs_outputs:
        case.compare(
            case.run(are_outputs_lost=True),
            expected,
            0.0,
            "where needs_outputs is False, backward does not read outputs, which the loss may have overwritten",
            "Let needs_outputs be True, or keep what is needed in the workspace.",
        )
    found = case.run(needs_input_delta=False)
    if found.input_delta is not None:
        raise case.fault("backward gives None where needs_input_delta is False", "an array", "Return None then.")
    case.compare(
        found, expected, 0.0, "gradients do not depend on needs_input_delta", "Write gradients before you return."
    )


def _check_float32(case: Case) -> None:
    """All arrays of a pass share the dtype of the parameters, and float32 is float64 rounded."""
    found = case.in_float32().run()
    if found.outputs.dtype != np.float32:
        raise case.fault(
            "outputs of float32 are float32",
            str(found.outputs.dtype),
            "Take arrays of the inputs' dtype from workspace.",
        )
    if found.input_delta is not None and found.input_delta.dtype != np.float32:
        raise case.fault(
            "the derivative by inputs of float32 is float32", str(found.input_delta.dtype), "Look at backward."
        )
    case.compare(
        found,
        case.run(),
        FLOAT32_TOLERANCE,
        "float32 gives what float64 gives, rounded",
        "Look for numbers out of range.",
    )


def _check_rows(case: Case) -> None:
    """Outputs of a row follow from that row; gradients are sums over rows."""
    whole = case.run()
    n_rows = len(case.inputs)
    parts = [
        case.run(case.inputs[row : row + 1], delta=case.delta[row : row + 1], workspace=case.workspace(first_row=row))
        for row in range(n_rows)
    ]
    added = Pass(
        np.concatenate([part.outputs for part in parts]),
        {name: np.sum([part.gradients[name] for part in parts], axis=0) for name in case.parameters},
        None if whole.input_delta is None else np.concatenate([part.input_delta for part in parts]),
    )
    case.compare(
        added,
        whole,
        1e-10,
        "rows do not depend on one another, and gradients are sums over rows",
        "Form no mean over rows; draw by workspace.first_row plus the row's number.",
    )


def _check_gaps(case: Case) -> None:
    """Inputs may be a view with gaps; the derivative by them is none."""
    case.check_no_gaps(case.run(), "backward")
    backend = case.backend
    wide = np.zeros((2 * len(case.inputs), *case.inputs.shape[1:-1], 3 * case.inputs.shape[-1]), case.inputs.dtype)
    wide[::2, ..., 1::3] = case.inputs
    rows = backend.asarray(wide)[::2, ..., 1::3]
    own = {name: backend.asarray(array) for name, array in case.parameters.items()}
    gradients = {name: backend.asarray(np.zeros_like(array)) for name, array in case.parameters.items()}
    workspace = case.workspace()
    asked, advice = "inputs may have gaps between rows and elements", "Copy to the workspace what has to have none."
    try:
        outputs = case.layer.forward(backend, own, rows, workspace)
        kept = np.array(backend.to_host(outputs))
        below = case.layer.backward(
            backend,
            own,
            gradients,
            rows,
            outputs,
            backend.asarray(case.delta.copy()),
            workspace,
            needs_input_delta=case.has_input_delta,
        )
    except Exception as error:
        raise case.fault(asked, said(error), advice) from error
    found = Pass(
        kept,
        {name: np.array(backend.to_host(array)) for name, array in gradients.items()},
        None if below is None else np.array(backend.to_host(below)),
    )
    case.compare(found, case.run(), 1e-10, asked, advice)


def _check_bits(case: Case) -> None:
    """The same arguments give the same bits, whatever the workspace was used for in between."""
    workspace = case.workspace()
    first = case.run(workspace=workspace)
    case.run(
        np.concatenate([case.inputs[::-1], case.inputs]),
        delta=np.concatenate([case.delta, case.delta]),
        workspace=workspace,
    )
    case.run(case.inputs[:1], delta=case.delta[:1], workspace=workspace)
    advice = "Keep no state but the workspace's arrays, write all of each, and draw from workspace.drawn_from alone."
    asked = "the same arguments give the same bits"
    case.compare(case.run(workspace=workspace), first, 0.0, asked, advice)
    case.compare(case.run(), first, 0.0, asked, advice)


def _check_gradients(case: Case) -> None:
    """What backward gives agrees with central differences of ``sum(delta * outputs)``, in float64."""
    found = case.run()
    workspace = case.workspace()

    def value(inputs: Values, parameters: Mapping[str, Values]) -> float:
        return float((case.forward(inputs, parameters, workspace) * case.delta).sum())

    for name in case.parameters:

        def of_parameter(array: Values, name: str = name) -> float:
            return value(case.inputs, {**case.parameters, name: array})

        _compare_differences(
            case, of_parameter, case.parameters[name], found.gradients[name], f"the gradient of {name}"
        )
    if found.input_delta is not None:
        _compare_differences(
            case,
            lambda inputs: value(inputs, case.parameters),
            case.inputs,
            found.input_delta,
            "the derivative by the inputs",
        )


def _compare_differences(case: Case, function: Any, at: Values, found: Values, what: str) -> None:
    generator = stream(case.seed, "directions", what)
    scale = max(float(np.abs(found).max(initial=0.0)), 1.0)
    n_tried = min(ELEMENTS_TRIED, at.size)
    for number in generator.choice(at.size, n_tried, replace=False):
        direction = np.zeros(at.size)
        direction[number] = 1.0
        expected = _central_difference(function, at, direction.reshape(at.shape))
        given = float(found.reshape(-1)[number])
        if not abs(given - expected) <= GRADIENT_TOLERANCE * scale:
            place = tuple(int(index) for index in np.unravel_index(number, at.shape))
            raise case.fault(
                f"{what} agrees with central differences",
                f"{given:.9g} at {place}, where the difference is {expected:.9g}",
                "Look at backward, or at a kink of forward near random numbers.",
            )
    direction = generator.standard_normal(at.shape) / math.sqrt(max(1, at.size))
    expected, given = _central_difference(function, at, direction), float((found * direction).sum())
    if not abs(given - expected) <= 10 * GRADIENT_TOLERANCE * scale:
        raise case.fault(
            f"{what} agrees with central differences",
            f"{given:.9g} along a random direction, where the difference is {expected:.9g}",
            "Look at backward, or at a kink of forward near random numbers.",
        )


def _central_difference(function: Any, at: Values, direction: Values) -> float:
    return float((function(at + STEP * direction) - function(at - STEP * direction)) / (2 * STEP))


def _check_namespace(case: Case) -> None:
    """A layer calls the functions of its arrays' own library, and no others."""
    strict = StrictBackend()
    asked = "a layer computes with backend.xp and the backend's operations only, on any library's arrays"
    advice = "Call backend.xp.f for numpy.f, take arrays from workspace, and ask for no values."
    single = case.in_float32()
    try:
        found = single.run(backend=strict)
    except Exception as error:
        raise case.fault(asked, said(error), advice) from error
    expected = single.run(backend=NumpyBackend())
    case.compare(found, expected, FLOAT32_TOLERANCE, asked, advice)
