"""CUDA bodies of the operations: text only, compiled by the backend of the device and nowhere else.

Rules they keep, so that NVRTC compiles them and two runs agree: no C library header, no ``INFINITY`` or ``NAN``,
64-bit indices, no atomic additions, arguments of stated types.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Elementwise:
    """An operation that treats every element alike; the body of a CuPy ``ElementwiseKernel``."""

    inputs: str
    """Declarations of what is read only, numbers included; ``T`` is the dtype of the arrays, where it may differ."""

    outputs: str
    """Declarations of what is read and written."""

    body: str
    """Statements for one element."""


@dataclass(frozen=True)
class RowByRow:
    """An operation on whole rows: one block of threads a row, with sums in shared memory."""

    name: str
    """The name of the operation in the table."""

    parameters: tuple[str, ...]
    """Declarations of the arrays, in the order of the operation's arguments; all of them C-contiguous."""

    sizes: tuple[tuple[str, int, int], ...]
    """What the function is told of the shapes: name, which argument, which axis. The first is the number of blocks."""

    body: str
    """The function's body; ``row`` is the block's number."""

    threads: ClassVar[int] = 128
    """In a block; a power of two, since sums are formed by halving."""

    @property
    def function(self) -> str:
        """The function's name in C, which must not be one of the C library's."""
        return f"dask_belief_{self.name}"

    def source(self, real: str) -> str:
        """Give the whole text to compile, for ``real`` either ``"float"`` or ``"double"``."""
        sizes = [f"const size_t {name}" for name, _, _ in self.sizes]
        signature = ", ".join((*self.parameters, *sizes))
        return (
            f"typedef {real} Real;\n{_PROLOGUE}\n"
            f'extern "C" __global__ void {self.function}({signature}) {{\n'
            f"  extern __shared__ Real partial[];\n  const size_t row = blockIdx.x;\n{self.body}}}\n"
        )


# Sums have one shape whatever the timing: thread t takes columns t, t + 128 ..., then halves are added pairwise.
_PROLOGUE = """
__device__ Real sum_of_block(Real value, Real* partial) {
  __syncthreads();
  partial[threadIdx.x] = value;
  __syncthreads();
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    __syncthreads();
  }
  return partial[0];
}

__device__ Real largest_of_block(Real value, Real* partial) {
  __syncthreads();
  partial[threadIdx.x] = value;
  __syncthreads();
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half && partial[threadIdx.x + half] > partial[threadIdx.x])
      partial[threadIdx.x] = partial[threadIdx.x + half];
    __syncthreads();
  }
  return partial[0];
}
"""

# The upper half of a float32, to nearest and ties to even, by its bits alone: nothing here depends on how the compiler
# treats numbers too small to be normal. NaN is told first, which the addition could carry to infinity or past it.
_ROUND = """
  union { float value; unsigned word; } number;
  number.value = values;
  const bool is_nan = (number.word & 0x7fffffffu) > 0x7f800000u;
  const unsigned upper = number.word >> 16;
  const unsigned rounded = is_nan ? (upper | 0x40u) : ((number.word + 0x7fffu + (upper & 1u)) >> 16);
  bits = (unsigned short)rounded;
"""

TO_BFLOAT16 = Elementwise("float32 values", "uint16 bits", _ROUND)

TAKE_BFLOAT16 = Elementwise(
    "",
    "float32 values, uint16 bits",
    f"""{_ROUND}
  number.word = rounded << 16;
  values = (rounded & 0x7f80u) == 0x7f80u ? 0.f : values - number.value;
""",
)

FROM_BFLOAT16 = Elementwise(
    "uint16 bits",
    "float32 values",
    """
  union { float value; unsigned word; } number;
  number.word = (unsigned)bits << 16;
  values = number.value;
""",
)

_OF_Z = (("rows", -1, 0), ("columns", -1, 1))

_LARGEST = """
  Real* const p = z + row * columns;
  Real largest = p[0];
  for (size_t j = threadIdx.x; j < columns; j += blockDim.x) if (p[j] > largest) largest = p[j];
  largest = largest_of_block(largest, partial);
"""

_EXPONENTIALS = """
  Real total = 0;
  for (size_t j = threadIdx.x; j < columns; j += blockDim.x) {
    p[j] = exp(p[j] - largest);
    total += p[j];
  }
  total = sum_of_block(total, partial);
"""

SOFTMAX = RowByRow(
    "softmax",
    ("Real* z",),
    _OF_Z,
    f"""{_LARGEST}{_EXPONENTIALS}
  for (size_t j = threadIdx.x; j < columns; j += blockDim.x) p[j] /= total;
""",
)

# A class outside the columns must not be read; its loss is the logarithm of -1, not a number, and the caller sees it.
SOFTMAX_CROSS_ENTROPY = RowByRow(
    "softmax_cross_entropy",
    ("const long long* targets", "Real* losses", "Real* z"),
    _OF_Z,
    f"""{_LARGEST}
  const long long target = targets[row];
  const bool is_known = target >= 0 && (size_t)target < columns;
  const Real of_target = is_known ? p[target] - largest : (Real)0;
  __syncthreads();
{_EXPONENTIALS}
  for (size_t j = threadIdx.x; j < columns; j += blockDim.x)
    p[j] = p[j] / total - ((long long)j == target ? (Real)1 : (Real)0);
  if (threadIdx.x == 0) losses[row] = is_known ? log(total) - of_target : log((Real)-1);
""",
)

LOGISTIC = RowByRow(
    "logistic",
    ("const Real* targets", "Real* losses", "Real* z"),
    _OF_Z,
    """
  Real loss = 0;
  for (size_t j = threadIdx.x; j < columns; j += blockDim.x) {
    const Real v = z[row * columns + j], t = targets[row * columns + j];
    loss += (v > (Real)0 ? v : (Real)0) - t * v + log1p(exp(v > (Real)0 ? -v : v));
    z[row * columns + j] = (Real)1 / ((Real)1 + exp(-v)) - t;
  }
  loss = sum_of_block(loss, partial);
  if (threadIdx.x == 0) losses[row] = loss;
""",
)

SQUARED_ERROR = RowByRow(
    "squared_error",
    ("const Real* targets", "Real* losses", "Real* z"),
    _OF_Z,
    """
  Real loss = 0;
  for (size_t j = threadIdx.x; j < columns; j += blockDim.x) {
    const Real difference = z[row * columns + j] - targets[row * columns + j];
    z[row * columns + j] = difference;
    loss += difference * difference;
  }
  loss = sum_of_block(loss, partial);
  if (threadIdx.x == 0) losses[row] = loss / (Real)2;
""",
)

# Atomic additions would come in another order each time. Instead the first of equal indices adds all of them, in
# order; the blocks of the others have nothing to do. An index outside the destination is left out.
SCATTER_ADD = RowByRow(
    "scatter_add",
    ("const long long* indices", "const Real* source", "Real* destination"),
    (("rows", 0, 0), ("columns", 1, 1), ("n_destination", 2, 0)),
    """
  const long long index = indices[row];
  if (index < 0 || (size_t)index >= n_destination) return;
  Real seen = 0;
  for (size_t i = threadIdx.x; i < row; i += blockDim.x) if (indices[i] == index) seen = 1;
  if (largest_of_block(seen, partial) > (Real)0) return;
  for (size_t j = threadIdx.x; j < columns; j += blockDim.x) {
    Real sum = destination[(size_t)index * columns + j];
    for (size_t i = row; i < rows; ++i) if (indices[i] == index) sum += source[i * columns + j];
    destination[(size_t)index * columns + j] = sum;
  }
""",
)
