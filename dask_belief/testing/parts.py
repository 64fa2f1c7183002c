"""Whether the parts of a layer are what they say, and add up to the whole."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from dask_belief.models.box import Box
from dask_belief.models.layers import Embedding, Part
from dask_belief.models.layout import Shape
from dask_belief.seeds import stream
from dask_belief.testing.case import Case, Pass, Values, difference, said, told

PART_TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
"""Of the largest value, by the dtype that is computed in."""


def check_parts(case: Case) -> None:
    """Every part computes its box from its inputs and parameters alone, and parts add up to the whole."""
    shape = case.layer.output_shape(case.input_shape)
    axes = case.layer.cut_axes(case.input_shape)
    if not isinstance(axes, (frozenset, set)) or not all(axis in range(len(shape)) for axis in axes):
        raise case.fault(
            f"cut_axes gives some of the axes {tuple(range(len(shape)))} of the outputs",
            repr(axes),
            "Give a frozenset.",
        )
    whole = case.run()
    cuts = [{}, *({axis: n_parts} for axis in sorted(axes) for n_parts in (2, 3))]
    if len(axes) > 1:
        cuts.append(dict.fromkeys(axes, 2))
    for cut in cuts:
        _check_cut(case, whole, shape, cut)
    single = case.in_float32()
    whole = single.run()
    for cut in cuts:
        _check_cut(single, whole, shape, cut)


def _boxes(shape: Shape, cut: Mapping[int, int]) -> list[Box]:
    """Cut an array into so many parts along some axes, as even as it goes; fewer where it is too short."""
    borders = []
    for axis, length in enumerate(shape):
        edges = [round(length * number / cut.get(axis, 1)) for number in range(cut.get(axis, 1) + 1)]
        borders.append([(start, stop) for start, stop in itertools.pairwise(edges) if start < stop])
    return [Box(tuple(a for a, _ in ranges), tuple(b for _, b in ranges)) for ranges in itertools.product(*borders)]


def _check_cut(case: Case, whole: Pass, shape: Shape, cut: Mapping[int, int]) -> None:
    outputs = np.full_like(whole.outputs, np.nan)
    gradients = {name: np.zeros_like(array) for name, array in case.parameters.items()}
    dtype = case.delta.dtype
    tolerance = PART_TOLERANCE[dtype.name]
    input_delta = np.zeros(case.inputs.shape, dtype)
    parts: list[tuple[str, Part]] = []
    for box in _boxes(shape, cut):
        where = f"the part {box.starts} to {box.stops}"
        try:
            part = case.layer.part(box, case.input_shape)
        except Exception as error:
            raise case.fault(
                "part can cut along every axis of cut_axes",
                f"{said(error)}, for {where}",
                "Leave that axis out of cut_axes.",
            ) from error
        _check_claims(case, part, box, where)
        parts.append((where, part))
        at_inputs = (slice(None), *part.inputs.within(Box.whole(case.input_shape)))
        at_outputs = (slice(None), *box.within(Box.whole(shape)))
        own = {
            name: np.ascontiguousarray(case.parameters[name][of.within(Box.whole(case.parameters[name].shape))])
            for name, of in part.parameters.items()
        }
        try:
            found = case.run(
                np.ascontiguousarray(case.inputs[at_inputs]),
                own,
                np.ascontiguousarray(case.delta[at_outputs]),
                layer=part.layer,
            )
        except Exception as error:
            raise case.fault(
                "a part computes its outputs from its inputs and parameters",
                f"{said(error)}, in {where}",
                "Look at part.",
            ) from error
        if found.outputs.shape != (case.n_rows, *box.shape):
            raise case.fault(
                f"{where} gives outputs of shape {box.shape}", f"shape {found.outputs.shape[1:]}", "Look at part."
            )
        case.check_no_gaps(found, where)
        away = difference(found.outputs, whole.outputs[at_outputs])
        if away > tolerance:
            raise case.fault(
                f"{where} gives the whole's outputs there",
                f"some {told(away)}",
                "Look at its inputs box, at borders that are none of the whole's, and at what it draws.",
            )
        outputs[at_outputs] = found.outputs
        for name, of in part.parameters.items():
            gradients[name][of.within(Box.whole(gradients[name].shape))] += found.gradients[name]
        if found.input_delta is not None:
            input_delta[at_inputs] += found.input_delta
        if dtype == np.float64:
            _check_inputs_box(case, whole, part, at_outputs, where)
    _check_parameter_boxes(case, parts)
    case.compare(
        Pass(outputs, gradients, None if whole.input_delta is None else input_delta),
        whole,
        tolerance,
        f"the {len(parts)} parts of a cut along {dict(cut)} add up to the whole, in {dtype}",
        "A part's backward gives what its own outputs contribute, and no more.",
    )


def _check_claims(case: Case, part: Part, box: Box, where: str) -> None:
    """What a part says of itself fits together."""
    if not isinstance(part, Part) or part.outputs != box:
        raise case.fault(f"part gives a Part whose outputs are the box asked for, {box}", repr(part), "Look at part.")
    if len(part.inputs.shape) != len(case.input_shape) or not Box.whole(case.input_shape).holds(part.inputs):
        raise case.fault(f"the inputs of {where} lie in {case.input_shape}", repr(part.inputs), "Look at part.")
    if set(part.parameters) != set(case.parameters):
        raise case.fault(
            f"{where} tells the box of each parameter array: {sorted(case.parameters)}",
            str(sorted(part.parameters)),
            "Give a box by each name of parameter_shapes.",
        )
    shapes = part.layer.parameter_shapes(part.inputs.shape)
    for name, of in part.parameters.items():
        if not Box.whole(case.parameters[name].shape).holds(of) or tuple(shapes.get(name, ())) != of.shape:
            raise case.fault(
                f"the layer of {where} has {name!r} of the shape of its box in {case.parameters[name].shape}",
                f"{shapes.get(name)} for {of}",
                "Look at part, and at the parameter_shapes of what it gives.",
            )
    if tuple(part.layer.output_shape(part.inputs.shape)) != box.shape:
        raise case.fault(
            f"the layer of {where} gives {box.shape} for inputs {part.inputs.shape}",
            str(part.layer.output_shape(part.inputs.shape)),
            "Look at part.",
        )


def _check_inputs_box(case: Case, whole: Pass, part: Part, at_outputs: tuple[slice, ...], where: str) -> None:
    """Outputs depend on no input outside of the box, and on some at each of its sides."""
    inside = np.zeros(case.input_shape, bool)
    inside[part.inputs.within(Box.whole(case.input_shape))] = True
    if not inside.all() and not np.array_equal(_disturbed(case, ~inside)[0][at_outputs], whole.outputs[at_outputs]):
        raise case.fault(
            f"the inputs box of {where} holds all inputs on which it depends",
            f"others than {part.inputs}",
            "Enlarge it.",
        )
    if case.layer.draws:
        # What it leaves out depends on nothing.
        return
    for axis, length in enumerate(part.inputs.shape):
        for side in (0, length - 1) if length > 1 else (0,):
            start = part.inputs.starts[axis] + side
            slab = np.zeros(case.input_shape, bool)
            slab[part.inputs.along(axis, start, start + 1).within(Box.whole(case.input_shape))] = True
            found = _disturbed(case, slab)
            # Where nothing changes anywhere, it is not the box that is wrong.
            is_seen = not all(np.array_equal(some, whole.outputs) for some in found)
            if is_seen and all(np.array_equal(some[at_outputs], whole.outputs[at_outputs]) for some in found):
                raise case.fault(
                    f"the inputs box of {where} is no larger than it needs",
                    f"{part.inputs}, where nothing depends on number {start} of axis {axis}",
                    "Make it smaller: what is in it travels between machines.",
                )


def _disturbed(case: Case, chosen: npt.NDArray[np.bool_]) -> list[Values]:
    """Give the outputs for some other values of the chosen inputs, far from theirs on either side."""
    found = []
    generator = stream(case.seed, "other")
    for _ in range(2):
        far = 30 * generator.standard_normal(case.inputs[:, chosen].shape)
        for sign in (1, -1):
            inputs = case.inputs.copy()
            if isinstance(case.layer, Embedding):
                inputs[:, chosen] = (inputs[:, chosen] + 1) % case.layer.n_entries
            else:
                inputs[:, chosen] += sign * far
            found.append(case.forward(inputs, case.parameters, case.workspace()))
    return found


def _check_parameter_boxes(case: Case, parts: Sequence[tuple[str, Part]]) -> None:
    for (one, some), (two, other) in itertools.combinations(parts, 2):
        for name in case.parameters:
            mine, its = some.parameters[name], other.parameters[name]
            if mine != its and not (mine & its).is_empty:
                raise case.fault(
                    f"the boxes of {name!r} of two parts are the same or have nothing in common",
                    f"{mine} of {one} and {its} of {two}",
                    "Give both the same larger box.",
                )
