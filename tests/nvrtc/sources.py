"""The texts to compile: what CuPy wrote for the kernels that ran on the emulated device, and each body of the table."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dask_belief.backend.cuda import Elementwise, RowByRow
from dask_belief.backend.operations import OPERATIONS

FOLDER_VARIABLE = "EMULATED_GPU_RECORD"
"""Names the folder where the emulated device leaves the texts, while rung R2 runs with the same variable."""

REALS = ("float", "double")

INTEGERS = "typedef unsigned long long uint64;\ntypedef long long int64;\n"
"""CuPy's names of types, which it replaces itself."""
_C_TYPES = {"float32": "float", "uint16": "unsigned short"}
"""What CuPy makes of the names of dtypes."""

_KERNEL = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\s*\(")
# CuPy puts this header before kernels for AMD's compiler, which the emulated device pretends to be.
_OF_AMD = "#include <cupy/hip_workaround.cuh>\n"


@dataclass(frozen=True)
class Source:
    """One text."""

    kernel: str
    """The name of its first kernel."""

    text: str


def recorded(folder: Path) -> list[Source]:
    """Give the texts that were left in a folder, each once, as it would write them for NVIDIA's compiler."""
    texts = {path.read_text(encoding="utf-8").replace(_OF_AMD, "") for path in folder.glob("*.cu")}
    found = [(_KERNEL.search(text), text) for text in sorted(texts)]
    # One whose name is not found is compiled, too: none is left out.
    named = [Source(kernel[1] if kernel else "unnamed", text) for kernel, text in found]
    return sorted(named, key=lambda source: source.kernel)


def operation_of(source: Source) -> str | None:
    """Name the operation that a recorded kernel is of; None for one of CuPy's own."""
    # CuPy adds the dtypes to the name of a kernel on elements, after two underscores.
    name = source.kernel.partition("__")[0].removeprefix("dask_belief_")
    return name if source.kernel.startswith("dask_belief_") and name in OPERATIONS else None


def of_table(operation: str, real: str) -> Source:
    """Give a text for the body of an operation, with ``real`` as the type of its numbers."""
    body = OPERATIONS[operation].cuda
    if isinstance(body, RowByRow):
        return Source(body.function, body.source(real))
    return Source(f"dask_belief_{operation}", _whole(body, operation, real))


def reals_of(operation: str) -> tuple[str, ...]:
    """Name the types of numbers that an operation is compiled for: one, where it names the dtype itself."""
    body = OPERATIONS[operation].cuda
    is_of_one = isinstance(body, Elementwise) and "T" not in {
        type for type, _ in (*_declared(body.inputs), *_declared(body.outputs))
    }
    return REALS[:1] if is_of_one else REALS


def _declared(parameters: str) -> list[tuple[str, str]]:
    """Give type and name of each parameter of a body on elements."""
    parts = [part.split() for part in parameters.split(",") if part.strip()]
    return [(_C_TYPES.get(type, type), name) for type, name in parts]


def _whole(body: Elementwise, operation: str, real: str) -> str:
    """Make a kernel of a body on elements, which CuPy does only where there is a device."""
    inputs, outputs = _declared(body.inputs), _declared(body.outputs)
    parameters = ", ".join(
        [*(f"const {type}* all_{name}" for type, name in inputs), *(f"{type}* all_{name}" for type, name in outputs)]
    )
    elements = [f"const {type} {name} = all_{name}[i];" for type, name in inputs]
    elements += [f"{type}& {name} = all_{name}[i];" for type, name in outputs]
    return (
        f"typedef {real} T;\n{INTEGERS}"
        f'extern "C" __global__ void dask_belief_{operation}({parameters}, const size_t size) {{\n'
        f"  const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;\n  if (i >= size) return;\n"
        f"  {' '.join(elements)}\n  {body.body};\n}}\n"
    )
