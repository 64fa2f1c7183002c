"""The seam between the mathematics and the machine it runs on.

A backend offers three things: the short list of calls that are the same on NumPy and CuPy (`xp`), the few that cross
between host and device, and the fused operations of `dask_belief.backend.operations`, which work in place, allocate
nothing that matters and wait for nothing. Code above the seam names neither NumPy nor CuPy on the arrays it computes
with.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from dask_belief.backend.device_memory import DeviceMemory

Array: TypeAlias = npt.NDArray[Any]
"""A NumPy array, or CuPy's own on a device; of the latter only what both offer is used."""


Scalar: TypeAlias = float | Array
"""A number, or on a device an array of one value that need not be known yet: `Backend.item` waits for it."""


class Backend(ABC):
    """Where the arrays of a run live, and how they are computed with.

    An operation whose name ends in ``_`` works in place and returns nothing. Arrays of one call share one dtype,
    float32 or float64, unless stated; ``z`` is of shape ``(n_rows, n_columns)``. Numbers such as a rate are Python
    floats and are rounded to that dtype.

    A backend pickles as its name and device, and comes back as the one that `get_backend` keeps in that process.

    Attributes
    ----------
    name
        ``"numpy"`` or ``"cupy"``.
    device
        The number of the device; 0 on the host.
    xp
        The array module, for the calls that are the same on both: ``matmul(out=)``, ``sum(out=)``, ``argmax``, views.
    """

    name: ClassVar[str]
    device: int
    xp: ModuleType

    @abstractmethod
    def asarray(self, host: npt.ArrayLike, dtype: npt.DTypeLike | None = None) -> Array:
        """Give the values of `host` as an array of this backend; one of that dtype already comes back as it is.

        The copy to a device may still be under way on return: call `sync` before a pinned `host` is filled again.
        """

    @abstractmethod
    def to_host(self, x: Array, out: Array | None = None) -> Array:
        """Give the values of `x` in host memory, in `out` if it is given; complete on return."""

    @abstractmethod
    def item(self, x: Array) -> float:
        """Give the one value of `x` as a Python float; on a device the only way to wait for a scalar."""

    def is_finite(self, x: Array) -> bool:
        """Tell whether `x` holds neither NaN nor infinity; waits for it."""
        with self.computing():
            return x.size == 0 or all(math.isfinite(self.item(extreme)) for extreme in (x.max(), x.min()))

    @abstractmethod
    def sync(self) -> None:
        """Wait until everything that this thread has asked for is done."""

    @abstractmethod
    def host_empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Give uninitialised host memory that copies to the device fast (pinned)."""

    @abstractmethod
    def empty(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Give an uninitialised array."""

    @abstractmethod
    def zeros(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Give an array of zeros."""

    def device_memory(self) -> DeviceMemory | None:
        """Tell what memory the device has; None on the host, where a process has a limit of its own."""
        return None

    def lacking_bytes(self, error: BaseException) -> int | None:
        """Tell how much the device was asked for and could not give, if that is what `error` says.

        None for any other error; 0 where the device does not say how much it was. On the host always None.
        """
        return None

    def give_back_memory(self) -> None:  # noqa: B027  (the host's allocator is no business of a backend)
        """Let other processes have what this one has freed on the device, and keeps to use it again."""

    @abstractmethod
    def kind(self) -> str:
        """Describe everything on this side that decides the last bits of a result.

        Two backends of the same kind, each with one thread, give the same bits for the same arguments.
        """

    @abstractmethod
    def single_thread(self) -> AbstractContextManager[object]:
        """Limit the process's linear algebra to one thread, at once.

        Returns
        -------
        contextlib.AbstractContextManager
            Restores the former limit when used in a ``with`` statement; may be dropped to leave the limit in force.
        """

    @abstractmethod
    def computing(self) -> AbstractContextManager[object]:
        """Give the context to compute in: on a device its stream, on the host without floating-point warnings.

        A loss or a gradient that is not finite is for the caller to judge, alike on both.
        """

    @abstractmethod
    def _run(self, operation: str, *arguments: Array | float | np.uint64) -> None:
        """Carry out one operation of the table; the last argument is an array that it writes."""

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        """Pickle as name and device."""
        return _restore, (self.name, self.device)

    # Products: arrays of two axes, none of which overlap

    def by_weights_(self, rows: Array, weights: Array, outputs: Array) -> None:
        """``outputs = rows @ weights``."""
        with self.computing():
            self.xp.matmul(rows, weights, out=outputs)

    def weight_gradient_(self, rows: Array, delta: Array, gradient: Array) -> None:
        """``gradient = rows.T @ delta``: by the weights, where `delta` is the gradient by ``rows @ weights``."""
        with self.computing():
            self.xp.matmul(rows.T, delta, out=gradient)

    def column_sums_(self, rows: Array, sums: Array) -> None:
        """``sums = rows.sum(axis=0)``."""
        with self.computing():
            self.xp.sum(rows, axis=0, out=sums)

    # Layers

    def bias_activation_(self, z: Array, bias: Array, activation: str | None) -> None:
        """``z = activation(z + bias)``, `bias` of shape ``(n_columns,)``; None for the identity."""
        self._run(f"bias_{activation or 'identity'}", bias, z)

    def activation_gradient_(self, delta: Array, activated: Array, activation: str | None) -> None:
        """``delta *= activation'``, where the derivative is found from the activation's own value."""
        if activation is not None:
            self._run(f"{activation}_gradient", activated, delta)

    def scatter_add_(self, destination: Array, indices: Array, source: Array) -> None:
        """``destination[indices[i]] += source[i]``, in the order of i, so that repeated indices all count.

        `indices` is int64 of shape ``(n,)``, each in ``[0, len(destination))``; `source` ``(n, n_columns)``.
        """
        self._run("scatter_add", indices, source, destination)

    def dropout_mask_(
        self, mask: Array, rows: Array, nodes: Array, *, seed: int, first_row: int, width: int, rate: float
    ) -> None:
        """``mask[i, j]`` is 0 with probability `rate`, else ``1 / (1 - rate)``; the same bits on every backend.

        Which of the two is a pure function of `seed`, ``first_row + rows[i]`` and ``nodes[j]``: the hash of their place
        in a whole array of `width` nodes a row.

        Parameters
        ----------
        mask
            Written, ``(n_rows, n_nodes)``.
        rows
            Numbers of rows, int64 ``(n_rows, 1)``.
        nodes
            Numbers of nodes, int64 ``(1, n_nodes)``, each below `width`.
        seed
            Of 64 bits.
        first_row
            Added to each of `rows`.
        width
            How many nodes a whole row has.
        rate
            From 0 up to, not including, 1.
        """
        numbers = np.uint64(seed), np.uint64(first_row), np.uint64(width), np.uint64(round(rate * 2**64))
        self._run("dropout_mask", *numbers, 1 / (1 - rate), rows, nodes, mask)

    # Losses: the gradient with respect to z of the sum over rows takes z's place, and losses (n_rows,) are written

    def softmax_cross_entropy_(self, z: Array, targets: Array, losses: Array) -> None:
        """``losses = log(sum(exp(z))) - z[target]`` and ``z = softmax(z) - onehot(target)``.

        `targets` are classes, int64 of shape ``(n_rows,)``; on a device one outside the classes makes the loss NaN.
        """
        self._run("softmax_cross_entropy", targets, losses, z)

    def logistic_(self, z: Array, targets: Array, losses: Array) -> None:
        """``losses = sum(log(1 + exp(z)) - t * z)`` over the columns and ``z = sigmoid(z) - t``, stable at any z.

        `targets` are 0 or 1, of the shape and dtype of `z`.
        """
        self._run("logistic", targets, losses, z)

    def squared_error_(self, z: Array, targets: Array, losses: Array) -> None:
        """``losses = sum((z - t)**2) / 2`` over the columns and ``z = z - t``; `targets` like `z`."""
        self._run("squared_error", targets, losses, z)

    def softmax_(self, z: Array) -> None:
        """``z = exp(z) / sum(exp(z))`` over the columns, stable at any z."""
        self._run("softmax", z)

    def sigmoid_(self, z: Array) -> None:
        """``z = 1 / (1 + exp(-z))``, to full relative accuracy in the lower tail."""
        self._run("sigmoid", z)

    # Vectors

    def axpy_(self, a: float, x: Array, y: Array) -> None:
        """``y += a * x``."""
        self._run("axpy", float(a), x, y)

    def scale_(self, a: float, x: Array) -> None:
        """``x *= a``."""
        self._run("scale", float(a), x)

    def add_(self, x: Array, y: Array) -> None:
        """``y += x``: as in `axpy_`, the second array is written."""
        self._run("add", x, y)

    # The wire: bfloat16 is the upper half of a float32, kept as uint16, since NumPy has no such dtype

    def to_bfloat16_(self, values: Array, bits: Array) -> None:
        """``bits = bfloat16(values)``, float32 to uint16 of the same shape: to the nearest, ties to even.

        Infinity stays itself, and so does NaN, whatever its other bits; what is above the largest bfloat16 by half a
        unit or more becomes infinity, as IEEE 754 has it.
        """
        self._run("to_bfloat16", values, bits)

    def take_bfloat16_(self, values: Array, bits: Array) -> None:
        """``bits = bfloat16(values)`` and ``values -= bits``: what the rounding left out stays behind, exactly.

        Where infinity or NaN was taken nothing stays behind. A remainder too small to be normal may become zero on a
        device.
        """
        self._run("take_bfloat16", values, bits)

    def from_bfloat16_(self, bits: Array, values: Array) -> None:
        """``values = bits``: uint16 to float32, exactly."""
        self._run("from_bfloat16", bits, values)

    # Rules

    def sgd_(self, values: Array, gradient: Array, rate: float) -> None:
        """``values -= rate * gradient``."""
        self._run("sgd", gradient, float(rate), values)

    def momentum_(self, values: Array, gradient: Array, velocity: Array, rate: float, momentum: float) -> None:
        """``velocity = momentum * velocity + gradient`` and ``values -= rate * velocity``."""
        self._run("momentum", gradient, float(rate), float(momentum), velocity, values)

    def nesterov_(self, values: Array, gradient: Array, velocity: Array, rate: float, momentum: float) -> None:
        """``velocity = momentum * velocity + gradient`` and ``values -= rate * (gradient + momentum * velocity)``."""
        self._run("nesterov", gradient, float(rate), float(momentum), velocity, values)

    def adagrad_(self, values: Array, gradient: Array, accumulator: Array, rate: float, epsilon: float) -> None:
        """``accumulator += gradient**2`` and ``values -= rate * gradient / (sqrt(accumulator) + epsilon)``."""
        self._run("adagrad", gradient, float(rate), float(epsilon), accumulator, values)

    def rmsprop_(
        self, values: Array, gradient: Array, mean_square: Array, rate: float, share: float, epsilon: float
    ) -> None:
        """``mean_square += share * (gradient**2 - mean_square)``; ``values -= rate * gradient / divisor``.

        The divisor is ``sqrt(mean_square) + epsilon``. `share` is what the new square gets of a mean, one minus decay:
        rounded as one number it keeps its digits.
        """
        self._run("rmsprop", gradient, float(rate), float(share), float(epsilon), mean_square, values)

    def adam_(
        self,
        values: Array,
        gradient: Array,
        mean: Array,
        mean_square: Array,
        rate: float,
        mean_share: float,
        square_share: float,
        epsilon: float,
    ) -> None:
        """Move both means towards gradient and square by their shares, then ``values -= rate * mean / divisor``.

        As in `rmsprop_`, the divisor is ``sqrt(mean_square) + epsilon``. The means are not corrected for their start at
        zero: `rate` and `epsilon` may hold that.
        """
        numbers = float(rate), float(mean_share), float(square_share), float(epsilon)
        self._run("adam", gradient, *numbers, mean, mean_square, values)


def _restore(name: str, device: int) -> Backend:
    # Imported late: the package's own __init__ imports this module.
    from dask_belief.backend import get_backend

    return get_backend(name, device)
