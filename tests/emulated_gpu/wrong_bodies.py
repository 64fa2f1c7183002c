"""CUDA bodies that are wrong on purpose, and a pytest plugin that puts one of them in the place of the right one.

``WRONG_BODY=NAME python -m pytest -p tests.emulated_gpu.wrong_bodies ...`` runs tests with it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

from dask_belief.backend import cuda
from dask_belief.backend.operations import OPERATIONS

ENVIRONMENT_VARIABLE = "WRONG_BODY"
"""Names the body to put in place."""

OPERATIONS_OF_BACKENDS = "tests/backend/test_operations.py"
LARGE_ARRAYS = "tests/emulated_gpu/large_arrays.py"
TEXT = "tests/backend/test_cuda.py"
COMPILED = "tests/nvrtc/test_kernels.py"

IN_ORDER: dict[str, str] = {}
"""Rung R2 as it is: threads and blocks in order, each thing done at once."""

SHUFFLED = {"EMULATED_GPU_ORDER": "shuffle", "EMULATED_GPU_SEED": "1"}
"""Rung R2 with blocks and threads in another order."""

LARGE = {"EMULATED_GPU_POISON": "0", "EMULATED_GPU_MEMORY_MB": "20000"}
"""Rung R2 with more memory than there is, of which little is used."""

OF_COMPILER = {"NVRTC_ENVIRONMENT": os.environ.get("NVRTC_ENVIRONMENT", ".venv-nvrtc")}
"""Rung R3."""


@dataclass(frozen=True)
class WrongBody:
    """One fault, and what is to find it."""

    operation: str | None
    """Whose body; None for the functions that bodies share."""

    right: str
    wrong: str
    """What stands there, and what stands in its place."""

    check: str
    """The test that fails, as pytest names it."""

    rung: str = "R2"
    environment: dict[str, str] = field(default_factory=dict)
    """How the rung runs it."""


def _of_operations(test: str) -> str:
    return f"{OPERATIONS_OF_BACKENDS}::{test}"


_SUM_IS_READY = """  partial[threadIdx.x] = value;
  __syncthreads();
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) partial[threadIdx.x] +="""

_IN_ORDER_OF_ROWS = """  Real seen = 0;
  for (size_t i = threadIdx.x; i < row; i += blockDim.x) if (indices[i] == index) seen = 1;
  if (largest_of_block(seen, partial) > (Real)0) return;
  for (size_t j = threadIdx.x; j < columns; j += blockDim.x) {
    Real sum = destination[(size_t)index * columns + j];
    for (size_t i = row; i < rows; ++i) if (indices[i] == index) sum += source[i * columns + j];
    destination[(size_t)index * columns + j] = sum;
  }
"""

_IN_ORDER_OF_ARRIVAL = """  for (size_t j = threadIdx.x; j < columns; j += blockDim.x)
    atomicAdd(&destination[(size_t)index * columns + j], source[row * columns + j]);
"""

WRONG_BODIES = {
    "a step up the gradient": WrongBody(
        "sgd", "values -= rate", "values += rate", _of_operations("test_rules[cupy-1000-float32]")
    ),
    "no epsilon": WrongBody("adagrad", " + epsilon)", ")", _of_operations("test_rules[cupy-1000-float64]")),
    "the velocity read before it is written": WrongBody(
        "momentum",
        "velocity = momentum * velocity + gradient; values -= rate * velocity",
        "values -= rate * velocity; velocity = momentum * velocity + gradient",
        _of_operations("test_rules[cupy-1000-float32]"),
    ),
    "the gradient read after it is written": WrongBody(
        "sigmoid_gradient",
        "delta *= a * ((T)1 - a)",
        "delta *= a; delta -= delta * a * delta",
        _of_operations("test_activation_gradient[cupy-sigmoid-shape2-float32]"),
    ),
    "a column too many": WrongBody(
        "squared_error", "j < columns", "j <= columns", _of_operations("test_squared_error[cupy-shape2-float32]")
    ),
    "an exponential that overflows": WrongBody(
        "logistic",
        "(v > (Real)0 ? v : (Real)0) - t * v + log1p(exp(v > (Real)0 ? -v : v))",
        "log1p(exp(v)) - t * v",
        _of_operations("test_losses_are_stable_at_large_logits[cupy-float32]"),
    ),
    "no largest subtracted": WrongBody(
        "softmax_cross_entropy",
        "largest = largest_of_block(largest, partial);",
        "largest = 0;",
        _of_operations("test_losses_are_stable_at_large_logits[cupy-float32]"),
    ),
    "no barrier before the sum": WrongBody(
        None,
        _SUM_IS_READY,
        _SUM_IS_READY.replace("  __syncthreads();\n", ""),
        _of_operations("test_logistic[cupy-shape4-float32]"),
    ),
    "no barrier before shared memory is used again": WrongBody(
        None,
        "sum_of_block(Real value, Real* partial) {\n  __syncthreads();",
        "sum_of_block(Real value, Real* partial) {",
        _of_operations("test_softmax_and_its_cross_entropy[cupy-shape2-float32]"),
    ),
    "shared memory that nobody has set": WrongBody(
        None,
        _SUM_IS_READY,
        _SUM_IS_READY.replace("= value", "+= value"),
        _of_operations("test_logistic[cupy-shape2-float32]"),
    ),
    "threads that leave before a barrier": WrongBody(
        "squared_error",
        "  Real loss = 0;",
        "  if (threadIdx.x >= columns) return;\n  Real loss = 0;",
        _of_operations("test_squared_error[cupy-shape2-float32]"),
    ),
    "additions in the order of arrival": WrongBody(
        "scatter_add",
        _IN_ORDER_OF_ROWS,
        _IN_ORDER_OF_ARRIVAL,
        _of_operations("test_scatter_add_counts_repeated_indices[cupy]"),
        "R2, shuffled",
        SHUFFLED,
    ),
    "an index of 32 bits": WrongBody(
        "scatter_add",
        "(size_t)index * columns + j",
        "(int)index * (int)columns + (int)j",
        f"{LARGE_ARRAYS}::test_indices_have_64_bits",
        "R2, large",
        LARGE,
    ),
    "digits cut off in place of rounded": WrongBody(
        "to_bfloat16",
        "(number.word + 0x7fffu + (upper & 1u)) >> 16",
        "upper",
        _of_operations("test_bfloat16_is_the_nearest_and_even_of_two[cupy]"),
    ),
    "ties that always go up": WrongBody(
        "to_bfloat16",
        "0x7fffu + (upper & 1u)",
        "0x8000u",
        _of_operations("test_bfloat16_is_the_nearest_and_even_of_two[cupy]"),
    ),
    "a NaN that is rounded": WrongBody(
        "to_bfloat16",
        "is_nan ? (upper | 0x40u) : ",
        "",
        _of_operations("test_bfloat16_is_the_nearest_and_even_of_two[cupy]"),
    ),
    "infinity that leaves a remainder": WrongBody(
        "take_bfloat16",
        "(rounded & 0x7f80u) == 0x7f80u ? 0.f : ",
        "",
        _of_operations("test_what_bfloat16_leaves_out_stays_behind[cupy]"),
    ),
    "atomic additions": WrongBody(
        "scatter_add",
        _IN_ORDER_OF_ROWS,
        _IN_ORDER_OF_ARRIVAL,
        f"{TEXT}::test_bodies_keep_the_rules_of_the_device[scatter_add]",
        "R0",
    ),
    "a macro of the C library": WrongBody(
        "softmax",
        "Real largest = p[0];",
        "Real largest = -INFINITY;",
        f"{COMPILED}::test_bodies_of_the_table_compile[softmax-float-sm_90]",
        "R3",
        OF_COMPILER,
    ),
    "a header of the C library": WrongBody(
        None,
        "\n__device__ Real sum_of_block",
        "#include <math.h>\n__device__ Real sum_of_block",
        f"{COMPILED}::test_bodies_of_the_table_compile[logistic-double-sm_80]",
        "R3",
        OF_COMPILER,
    ),
}
"""Each fault by its name."""


def plant(name: str) -> None:
    """Put a wrong body in the place of the right one, for the rest of this process."""
    fault = WRONG_BODIES[name]
    if fault.operation is None:
        cuda._PROLOGUE = _changed(cuda._PROLOGUE, fault)
        return
    operation = OPERATIONS[fault.operation]
    wrong = replace(operation.cuda, body=_changed(operation.cuda.body, fault))
    OPERATIONS[fault.operation] = replace(operation, cuda=wrong)


def _changed(text: str, fault: WrongBody) -> str:
    if fault.right not in text:
        raise ValueError(f"the body has changed: {fault.right!r} is not in it")
    return text.replace(fault.right, fault.wrong)


if os.environ.get(ENVIRONMENT_VARIABLE):
    plant(os.environ[ENVIRONMENT_VARIABLE])
