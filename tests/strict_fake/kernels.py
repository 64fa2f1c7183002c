"""Kernels of our own, which run the NumPy body of the operation that they are named after.

A kernel ``dask_belief_<operation>`` takes the arguments of that operation; any other needs a body in `BODIES`. The CUDA
text is not run here. What is checked is all that lies around it: number, type and device of the arguments, which of
them are written, sizes, number of blocks and threads, and shared memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dask_belief.backend.cuda import RowByRow
from dask_belief.backend.operations import OPERATIONS
from tests.strict_fake.array import ndarray, run

PREFIX = "dask_belief_"

BODIES: dict[str, Callable[..., None]] = {}
"""Bodies of other kernels: name to a function of the same arguments, in NumPy, that writes in place."""

MOST_THREADS = 1024
MOST_SHARED_BYTES = 48 * 1024
"""What a block may have on every device, unless it asks for more."""

_C_TYPES = {
    "float": np.dtype(np.float32),
    "double": np.dtype(np.float64),
    "long long": np.dtype(np.int64),
    "size_t": np.dtype(np.uint64),
    "int": np.dtype(np.int32),
    "unsigned": np.dtype(np.uint32),
}


@dataclass(frozen=True)
class _Parameter:
    """One parameter of a kernel, as it is declared."""

    name: str
    type: str
    is_read_only: bool
    is_array: bool = True


class ElementwiseKernel:
    """A stand-in for ``cupy.ElementwiseKernel``; every argument must be given."""

    def __init__(
        self, in_params: str, out_params: str, operation: str, name: str = "kernel", **options: object
    ) -> None:
        self.name = name
        self._body = _body(name)
        self._parameters = [*_declared(in_params, is_read_only=True), *_declared(out_params, is_read_only=False)]

    def __call__(self, *arguments: Any) -> object:
        if len(arguments) != len(self._parameters):
            raise TypeError(f"{self.name} takes {len(self._parameters)} arguments, found {len(arguments)}")
        types: dict[str, np.dtype[Any]] = {}
        for parameter, argument in zip(self._parameters, arguments, strict=True):
            self._check(parameter, argument, types)
        given = list(zip(self._parameters, arguments, strict=True))
        shape = np.broadcast_shapes(*(argument.shape for _, argument in given))
        written = [argument for parameter, argument in given if not parameter.is_read_only]
        for array in written:
            if array.shape != shape:
                raise ValueError(f"Out shape is mismatched: {array.shape} where {shape} is written")
        run(_guarded(self._body, self._parameters), *arguments, written=written)
        return written[0] if len(written) == 1 else tuple(written)

    def _check(self, parameter: _Parameter, argument: object, types: dict[str, np.dtype[Any]]) -> None:
        if not isinstance(argument, ndarray) and not (parameter.is_read_only and isinstance(argument, np.generic)):
            raise TypeError(f"Unsupported type {type(argument)} for {parameter.name} of {self.name}")
        is_placeholder = len(parameter.type) == 1 and parameter.type.isupper()
        wanted = types.setdefault(parameter.type, argument.dtype if is_placeholder else np.dtype(parameter.type))
        if argument.dtype != wanted:
            raise TypeError(f"Type is mismatched. {parameter.name} {argument.dtype} {wanted}")


class RawKernel:
    """A stand-in for ``cupy.RawKernel``."""

    def __init__(
        self, code: str, name: str, options: tuple[str, ...] = (), backend: str = "nvrtc", **more: object
    ) -> None:
        self.name, self.code = name, code
        self._body = _body(name)
        self._parameters = _signature(code, name)

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], *, shared_mem: int = 0
    ) -> None:
        self._check_launch(grid, block, shared_mem)
        if len(args) != len(self._parameters):
            raise TypeError(f"{self.name} takes {len(self._parameters)} arguments, found {len(args)}")
        for parameter, argument in zip(self._parameters, args, strict=True):
            self._check(parameter, argument)
        arrays = [each for each in args if isinstance(each, ndarray)]
        self._check_operation(grid, block, shared_mem, arrays, args[len(arrays) :])
        of_arrays = [parameter for parameter in self._parameters if parameter.is_array]
        written = [array for parameter, array in zip(of_arrays, arrays, strict=True) if not parameter.is_read_only]
        run(_guarded(self._body, of_arrays), *arrays, written=written)

    def _check_launch(self, grid: tuple[int, ...], block: tuple[int, ...], shared_mem: int) -> None:
        for sizes in (grid, block):
            if not 1 <= len(sizes) <= 3 or min(sizes) < 1:
                raise ValueError(f"{self.name}: a grid and a block have 1 to 3 positive sizes, found {sizes}")
        if np.prod(block) > MOST_THREADS or shared_mem > MOST_SHARED_BYTES:
            raise ValueError(f"{self.name}: no device takes {np.prod(block)} threads with {shared_mem} shared bytes")

    def _check(self, parameter: _Parameter, argument: object) -> None:
        what = f"{parameter.name} of {self.name}"
        if isinstance(argument, ndarray) != parameter.is_array or not isinstance(argument, (ndarray, np.generic)):
            raise TypeError(f"{what} is declared {parameter.type}, found {type(argument)}")
        if argument.dtype != _C_TYPES[parameter.type]:
            raise TypeError(f"{what} is declared {parameter.type}, found {argument.dtype}: other bytes would be read")
        if isinstance(argument, ndarray) and not argument.flags.c_contiguous:
            raise ValueError(f"{what} is passed as a bare pointer and has gaps")

    def _check_operation(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        shared_mem: int,
        arrays: Sequence[ndarray],
        sizes: Sequence[Any],
    ) -> None:
        """Compare a launch with what the table says of the operation."""
        operation = OPERATIONS.get(self.name.removeprefix(PREFIX))
        if operation is None or not isinstance(operation.cuda, RowByRow):
            return
        row_by_row = operation.cuda
        shapes = [arrays[argument].shape[axis] for _, argument, axis in row_by_row.sizes]
        if [int(size) for size in sizes] != shapes:
            raise ValueError(f"{self.name} is told sizes {sizes}, and the arrays have {shapes}")
        if (grid, block) != ((shapes[0],), (row_by_row.threads,)):
            raise ValueError(f"{self.name} needs {shapes[0]} blocks of {row_by_row.threads}, found {grid} of {block}")
        if shared_mem < row_by_row.threads * arrays[-1].dtype.itemsize:
            raise ValueError(f"{self.name}: {shared_mem} shared bytes are too few for one sum a thread")


def _body(name: str) -> Callable[..., None]:
    operation = OPERATIONS.get(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
    if operation is not None:
        return operation.numpy
    if name not in BODIES:
        raise NotImplementedError(f"kernel {name!r} has no body in NumPy: register one in BODIES")
    return BODIES[name]


def _declared(parameters: str, is_read_only: bool) -> list[_Parameter]:
    words = [part.split() for part in parameters.split(",") if part.strip()]
    return [_Parameter(name, type, is_read_only) for type, name in words]


def _signature(code: str, name: str) -> list[_Parameter]:
    """Read the parameters of a kernel from its text."""
    found = re.search(rf"__global__\s+void\s+{re.escape(name)}\s*\(([^)]*)\)", code)
    if found is None:
        raise ValueError(f"the code has no kernel {name}")
    aliases = dict((new, old) for old, new in re.findall(r"typedef\s+([\w ]+?)\s+(\w+)\s*;", code))
    parameters = []
    for declaration in found[1].split(","):
        type, name = declaration.rsplit(maxsplit=1)
        plain = type.replace("const ", "").replace("*", "").strip()
        parameters.append(_Parameter(name, aliases.get(plain, plain), "const " in type, "*" in type))
    return parameters


def _guarded(body: Callable[..., None], parameters: Sequence[_Parameter]) -> Callable[..., None]:
    """Give the body with views that cannot be written for what it only reads."""

    def guarded(*values: npt.NDArray[Any]) -> None:
        given = zip(values, parameters, strict=True)
        body(*(_read_only(each) if parameter.is_read_only else each for each, parameter in given))

    return guarded


def _read_only(values: Any) -> Any:
    if not isinstance(values, np.ndarray):
        return values
    view = values.view()
    view.flags.writeable = False
    return view
