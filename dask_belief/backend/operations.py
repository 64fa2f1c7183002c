"""The operations of a backend, in one table: each with its NumPy body and its CUDA body side by side.

Every operation works in place, and its last argument is an array that it writes. The NumPy bodies run over blocks of
rows that stay in the processor's cache while several passes go over them, with scratch memory that each thread keeps.
The CUDA bodies are one launch each. In them ``T`` (element by element) and ``Real`` (row by row) stand for the dtype of
the arrays.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from dask_belief.backend import cuda
from dask_belief.backend.base import Array
from dask_belief.backend.cuda import Elementwise, RowByRow

BLOCK_ELEMENTS = 32_768
"""Elements in a block: 128 KiB of float32, so that two operands and the scratch stay in a second-level cache."""

RULE_BLOCK_BYTES = 262_144
"""Bytes of a vector in a block of a rule. A rule makes many short passes over few vectors: twice the block of the other
operations halves what the calls themselves take (Adagrad: 0.70 for 0.74 ns an element of float32)."""

FEW_COLUMNS = 32
"""Up to here NumPy goes faster over whole columns, in a transposed copy, than over so many short rows (softmax of 1000
rows of 10, with its loss: 24 for 45 microseconds; of 64: 74 for 64)."""


_BFLOAT16_INFINITY = 0x7F80
_UPPER_HALF = 1 if sys.byteorder == "little" else 0


@dataclass(frozen=True)
class Operation:
    """One operation: the same arguments, in the same order, for both bodies."""

    numpy: Callable[..., None]
    """Runs on the host."""

    cuda: Elementwise | RowByRow
    """What the device compiles, once per process."""


class _Scratch(threading.local):
    """Memory that a thread writes intermediate blocks to, kept between calls."""

    def __init__(self) -> None:
        self._buffers: dict[np.dtype[Any], Array] = {}

    def like(self, block: Array, dtype: type[np.generic] | None = None) -> Array:
        """Uninitialised memory of the shape of `block`, and of its dtype unless another is named."""
        wanted = np.dtype(dtype or block.dtype)
        buffer = self._buffers.get(wanted)
        if buffer is None or buffer.size < block.size:
            buffer = self._buffers[wanted] = _aligned_empty(max(block.size, BLOCK_ELEMENTS), wanted)
        return buffer[: block.size].reshape(block.shape)


def _aligned_empty(n_elements: int, dtype: np.dtype[Any]) -> Array:
    """Give uninitialised memory that begins on a cache line, as NumPy's does not: rules are faster by 2.5 %."""
    n_bytes = n_elements * dtype.itemsize
    memory = np.empty(n_bytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + n_bytes].view(dtype)


_scratch = _Scratch()
_second_scratch = _Scratch()


def _blocks(*arrays: Array, elements: int = BLOCK_ELEMENTS) -> Iterator[tuple[Array, ...]]:
    """Cut arrays of the same length into the same runs of rows, of so many elements of the last one at most."""
    n_rows = len(arrays[-1])
    step = max(1, elements // max(1, math.prod(arrays[-1].shape[1:])))
    if n_rows <= step:
        yield arrays
        return
    for start in range(0, n_rows, step):
        yield tuple(array[start : start + step] for array in arrays)


# Activations


def _bias_identity(bias: Array, z: Array) -> None:
    np.add(z, bias, out=z)


def _bias_relu(bias: Array, z: Array) -> None:
    for (block,) in _blocks(z):
        np.add(block, bias, out=block)
        np.maximum(block, 0, out=block)


def _bias_sigmoid(bias: Array, z: Array) -> None:
    for (block,) in _blocks(z):
        np.add(block, bias, out=block)
        _sigmoid_block(block)


def _bias_tanh(bias: Array, z: Array) -> None:
    for (block,) in _blocks(z):
        np.add(block, bias, out=block)
        np.tanh(block, out=block)


def _relu_gradient(activated: Array, delta: Array) -> None:
    for above, below in _blocks(activated, delta):
        is_active = _scratch.like(above, np.bool)
        np.greater(above, 0, out=is_active)
        np.multiply(below, is_active, out=below)


def _sigmoid_gradient(activated: Array, delta: Array) -> None:
    for above, below in _blocks(activated, delta):
        slope = _scratch.like(above)
        np.multiply(above, above, out=slope)
        np.subtract(above, slope, out=slope)
        np.multiply(below, slope, out=below)


def _tanh_gradient(activated: Array, delta: Array) -> None:
    for above, below in _blocks(activated, delta):
        slope = _scratch.like(above)
        np.multiply(above, above, out=slope)
        np.subtract(1, slope, out=slope)
        np.multiply(below, slope, out=below)


# Losses


def _softmax_cross_entropy(targets: Array, losses: Array, z: Array) -> None:
    for classes, loss, block in _blocks(targets, losses, z):
        columns = _columns(block)
        rows = np.arange(len(block))
        np.subtract(columns, columns.max(axis=0), out=columns)
        of_target = columns[classes, rows]
        np.exp(columns, out=columns)
        totals = columns.sum(axis=0)
        np.subtract(np.log(totals), of_target, out=loss)
        np.divide(columns, totals, out=columns)
        columns[classes, rows] -= 1
        np.copyto(block, columns.T)


def _softmax(z: Array) -> None:
    for (block,) in _blocks(z):
        columns = _columns(block)
        np.subtract(columns, columns.max(axis=0), out=columns)
        np.exp(columns, out=columns)
        np.divide(columns, columns.sum(axis=0), out=columns)
        np.copyto(block, columns.T)


def _logistic(targets: Array, losses: Array, z: Array) -> None:
    # log(1 + exp(z)) = max(z, 0) + log(1 + exp(-|z|)), which neither overflows nor cancels.
    for target, loss, block in _blocks(targets, losses, z):
        terms = _scratch.like(block)
        np.abs(block, out=terms)
        np.negative(terms, out=terms)
        np.exp(terms, out=terms)
        np.log1p(terms, out=terms)
        np.sum(terms, axis=1, out=loss)
        np.maximum(block, 0, out=terms)
        loss += terms.sum(axis=1)
        np.multiply(block, target, out=terms)
        loss -= terms.sum(axis=1)
        _sigmoid_block(block)
        np.subtract(block, target, out=block)


def _squared_error(targets: Array, losses: Array, z: Array) -> None:
    for target, loss, block in _blocks(targets, losses, z):
        np.subtract(block, target, out=block)
        np.einsum("ij,ij->i", block, block, out=loss)
        np.multiply(loss, 0.5, out=loss)


def _sigmoid(z: Array) -> None:
    for (block,) in _blocks(z):
        _sigmoid_block(block)


def _sigmoid_block(block: Array) -> None:
    # exp(-z) is infinite at worst, and its reciprocal then the right zero.
    np.negative(block, out=block)
    np.exp(block, out=block)
    np.add(block, 1, out=block)
    np.reciprocal(block, out=block)


def _columns(block: Array) -> Array:
    """Give the columns of a block, ``(n_columns, n_rows)``: a copy in scratch where they are few, else a view."""
    columns = block.T
    if len(columns) > FEW_COLUMNS:
        return columns
    copy = _scratch.like(block).reshape(columns.shape)
    np.copyto(copy, columns)
    return copy


# Vectors and rules


def _axpy(a: float, x: Array, y: Array) -> None:
    for added, total in _blocks(x, y):
        scaled = _scratch.like(added)
        np.multiply(added, a, out=scaled)
        np.add(total, scaled, out=total)


def _scale(a: float, x: Array) -> None:
    np.multiply(x, a, out=x)


def _add(x: Array, y: Array) -> None:
    np.add(y, x, out=y)


def _scatter_add(indices: Array, source: Array, destination: Array) -> None:
    if not destination.flags.c_contiguous:
        np.add.at(destination, indices, source)
        return
    # By elements instead of rows, for which NumPy has a loop of its own, in the same order: 0.1 for 0.4 ms (2600 rows
    # of 16 into 100,000). Sorted rows and sums of equal ones are slower than either.
    flat, columns = destination.reshape(-1), np.arange(source.shape[1])
    for numbers, added in _blocks(indices, source):
        np.add.at(flat, (numbers[:, np.newaxis] * len(columns) + columns).reshape(-1), added.reshape(-1))


# Numbers of 16 bits for the wire


def _to_bfloat16(values: Array, bits: Array) -> None:
    for value, bit in _blocks(values, bits):
        _round_block(value, bit)


def _take_bfloat16(values: Array, bits: Array) -> None:
    for value, bit in _blocks(values, bits):
        rounded = _round_block(value, bit)
        np.subtract(value, rounded.view(np.float32), out=value)
        # What is sent as infinity or NaN leaves nothing that could be made up for.
        if not math.isfinite(np.dot(value, value)):
            value[(bit & _BFLOAT16_INFINITY) == _BFLOAT16_INFINITY] = 0.0


def _round_block(values: Array, bits: Array) -> Array:
    """Write the upper halves of float32 words, rounded, and give them as words: uint32 whose lower half is zero."""
    words, rounded = values.view(np.uint32), _scratch.like(values, np.uint32)
    # Half a unit of what stays, less one where that is even: then a tie goes to the even neighbour.
    np.right_shift(words, 16, out=rounded)
    np.bitwise_and(rounded, 1, out=rounded)
    np.add(rounded, 0x7FFF, out=rounded)
    np.add(rounded, words, out=rounded)
    if not math.isfinite(np.dot(values, values)):
        # NaN whose lower half is all ones would be rounded to infinity, or past it.
        is_nan = np.isnan(values)
        rounded[is_nan] = words[is_nan] | 0x40_0000
    np.bitwise_and(rounded, 0xFFFF_0000, out=rounded)
    # On a machine of either byte order: the halves of the words that are kept.
    np.copyto(bits, rounded.view(np.uint16)[_UPPER_HALF::2])
    return rounded


def _from_bfloat16(bits: Array, values: Array) -> None:
    for bit, value in _blocks(bits, values):
        words = value.view(np.uint32)
        np.copyto(words, bit)
        np.left_shift(words, 16, out=words)


def _rule_blocks(*vectors: Array) -> Iterator[tuple[Array, ...]]:
    return _blocks(*vectors, elements=RULE_BLOCK_BYTES // vectors[-1].itemsize)


def _sgd(gradient: Array, rate: float, values: Array) -> None:
    for slope, value in _rule_blocks(gradient, values):
        step = _scratch.like(slope)
        np.multiply(slope, rate, out=step)
        np.subtract(value, step, out=value)


def _momentum(gradient: Array, rate: float, momentum: float, velocity: Array, values: Array) -> None:
    for slope, speed, value in _rule_blocks(gradient, velocity, values):
        np.multiply(speed, momentum, out=speed)
        np.add(speed, slope, out=speed)
        step = _scratch.like(slope)
        np.multiply(speed, rate, out=step)
        np.subtract(value, step, out=value)


def _nesterov(gradient: Array, rate: float, momentum: float, velocity: Array, values: Array) -> None:
    for slope, speed, value in _rule_blocks(gradient, velocity, values):
        np.multiply(speed, momentum, out=speed)
        np.add(speed, slope, out=speed)
        step = _scratch.like(slope)
        np.multiply(speed, momentum, out=step)
        np.add(step, slope, out=step)
        np.multiply(step, rate, out=step)
        np.subtract(value, step, out=value)


def _adagrad(gradient: Array, rate: float, epsilon: float, accumulator: Array, values: Array) -> None:
    # Seven passes in cache take 0.65 ns an element of float32, of which the root takes 0.29: NumPy has no loop for it
    # that is wider than 128 bits. A power of -1/2 takes 1.03, exp and log as much as root and quotient.
    for slope, total, value in _rule_blocks(gradient, accumulator, values):
        step = _scratch.like(slope)
        np.multiply(slope, slope, out=step)
        np.add(total, step, out=total)
        _scaled_step(slope, total, rate, epsilon, step)
        np.subtract(value, step, out=value)


def _rmsprop(gradient: Array, rate: float, share: float, epsilon: float, mean_square: Array, values: Array) -> None:
    for slope, square, value in _rule_blocks(gradient, mean_square, values):
        step = _scratch.like(slope)
        _average_square(slope, share, square, step)
        _scaled_step(slope, square, rate, epsilon, step)
        np.subtract(value, step, out=value)


def _adam(
    gradient: Array,
    rate: float,
    mean_share: float,
    square_share: float,
    epsilon: float,
    mean: Array,
    mean_square: Array,
    values: Array,
) -> None:
    for slope, average, square, value in _rule_blocks(gradient, mean, mean_square, values):
        step = _scratch.like(slope)
        np.subtract(slope, average, out=step)
        np.multiply(step, mean_share, out=step)
        np.add(average, step, out=average)
        _average_square(slope, square_share, square, step)
        _scaled_step(average, square, rate, epsilon, step)
        np.subtract(value, step, out=value)


def _average_square(slope: Array, share: float, square: Array, scratch: Array) -> None:
    """``square += share * (slope**2 - square)``."""
    np.multiply(slope, slope, out=scratch)
    np.subtract(scratch, square, out=scratch)
    np.multiply(scratch, share, out=scratch)
    np.add(square, scratch, out=square)


def _scaled_step(slope: Array, square: Array, rate: float, epsilon: float, step: Array) -> None:
    """``step = rate * slope / (sqrt(square) + epsilon)``."""
    np.sqrt(square, out=step)
    np.add(step, epsilon, out=step)
    np.divide(slope, step, out=step)
    np.multiply(step, rate, out=step)


# Random numbers


def _dropout_mask(
    seed: np.uint64,
    first_row: np.uint64,
    width: np.uint64,
    threshold: np.uint64,
    kept: float,
    rows: Array,
    nodes: Array,
    mask: Array,
) -> None:
    # SplitMix64 (Steele, Lea and Flood, OOPSLA 2014, figure 17), asked for its number `counter + 1` at once.
    numbers = nodes.view(np.uint64)
    for some_rows, block in _blocks(rows, mask):
        hashed, shifted = _scratch.like(block, np.uint64), _second_scratch.like(block, np.uint64)
        np.multiply(some_rows.view(np.uint64) + first_row, width, out=hashed)
        np.add(hashed, numbers, out=hashed)
        np.add(hashed, np.uint64(1), out=hashed)
        np.multiply(hashed, np.uint64(0x9E3779B97F4A7C15), out=hashed)
        np.add(hashed, seed, out=hashed)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            np.right_shift(hashed, np.uint64(shift), out=shifted)
            np.bitwise_xor(hashed, shifted, out=hashed)
            np.multiply(hashed, np.uint64(factor), out=hashed)
        np.right_shift(hashed, np.uint64(31), out=shifted)
        np.bitwise_xor(hashed, shifted, out=hashed)
        np.multiply(np.greater_equal(hashed, threshold), mask.dtype.type(kept), out=block)


OPERATIONS: dict[str, Operation] = {
    "bias_identity": Operation(_bias_identity, Elementwise("T bias", "T z", "z += bias")),
    "bias_relu": Operation(_bias_relu, Elementwise("T bias", "T z", "T t = z + bias; z = t < (T)0 ? (T)0 : t")),
    "bias_sigmoid": Operation(_bias_sigmoid, Elementwise("T bias", "T z", "z = (T)1 / ((T)1 + exp(-(z + bias)))")),
    "bias_tanh": Operation(_bias_tanh, Elementwise("T bias", "T z", "z = tanh(z + bias)")),
    "relu_gradient": Operation(_relu_gradient, Elementwise("T a", "T delta", "delta *= a > (T)0 ? (T)1 : (T)0")),
    "sigmoid_gradient": Operation(_sigmoid_gradient, Elementwise("T a", "T delta", "delta *= a * ((T)1 - a)")),
    "tanh_gradient": Operation(_tanh_gradient, Elementwise("T a", "T delta", "delta *= (T)1 - a * a")),
    "softmax_cross_entropy": Operation(_softmax_cross_entropy, cuda.SOFTMAX_CROSS_ENTROPY),
    "softmax": Operation(_softmax, cuda.SOFTMAX),
    "logistic": Operation(_logistic, cuda.LOGISTIC),
    "squared_error": Operation(_squared_error, cuda.SQUARED_ERROR),
    "sigmoid": Operation(_sigmoid, Elementwise("", "T z", "z = (T)1 / ((T)1 + exp(-z))")),
    "axpy": Operation(_axpy, Elementwise("T a, T x", "T y", "y += a * x")),
    "scale": Operation(_scale, Elementwise("T a", "T x", "x *= a")),
    "add": Operation(_add, Elementwise("T x", "T y", "y += x")),
    "scatter_add": Operation(_scatter_add, cuda.SCATTER_ADD),
    "to_bfloat16": Operation(_to_bfloat16, cuda.TO_BFLOAT16),
    "take_bfloat16": Operation(_take_bfloat16, cuda.TAKE_BFLOAT16),
    "from_bfloat16": Operation(_from_bfloat16, cuda.FROM_BFLOAT16),
    "sgd": Operation(_sgd, Elementwise("T gradient, T rate", "T values", "values -= rate * gradient")),
    "momentum": Operation(
        _momentum,
        Elementwise(
            "T gradient, T rate, T momentum",
            "T velocity, T values",
            "velocity = momentum * velocity + gradient; values -= rate * velocity",
        ),
    ),
    "nesterov": Operation(
        _nesterov,
        Elementwise(
            "T gradient, T rate, T momentum",
            "T velocity, T values",
            "velocity = momentum * velocity + gradient; values -= rate * (gradient + momentum * velocity)",
        ),
    ),
    "adagrad": Operation(
        _adagrad,
        Elementwise(
            "T gradient, T rate, T epsilon",
            "T accumulator, T values",
            "accumulator += gradient * gradient; values -= rate * gradient / (sqrt(accumulator) + epsilon)",
        ),
    ),
    "rmsprop": Operation(
        _rmsprop,
        Elementwise(
            "T gradient, T rate, T share, T epsilon",
            "T mean_square, T values",
            "mean_square += share * (gradient * gradient - mean_square); "
            "values -= rate * gradient / (sqrt(mean_square) + epsilon)",
        ),
    ),
    "adam": Operation(
        _adam,
        Elementwise(
            "T gradient, T rate, T mean_share, T square_share, T epsilon",
            "T mean, T mean_square, T values",
            "mean += mean_share * (gradient - mean); "
            "mean_square += square_share * (gradient * gradient - mean_square); "
            "values -= rate * mean / (sqrt(mean_square) + epsilon)",
        ),
    ),
    "dropout_mask": Operation(
        _dropout_mask,
        Elementwise(
            "uint64 seed, uint64 first_row, uint64 width, uint64 threshold, T kept, int64 rows, int64 nodes",
            "T mask",
            "unsigned long long hashed = first_row + (unsigned long long)rows; "
            "hashed = hashed * width + (unsigned long long)nodes + 1; "
            "hashed = hashed * 0x9E3779B97F4A7C15ull + seed; "
            "hashed = (hashed ^ (hashed >> 30)) * 0xBF58476D1CE4E5B9ull; "
            "hashed = (hashed ^ (hashed >> 27)) * 0x94D049BB133111EBull; "
            "hashed = hashed ^ (hashed >> 31); "
            "mask = hashed < threshold ? (T)0 : kept",
        ),
    ),
}
"""Name to operation; the methods of `dask_belief.backend.base.Backend` give the formulas."""
