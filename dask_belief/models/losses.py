"""What a network is measured by, from the outputs z of its last layer and the targets of the same rows.

========== ================================== ======================== =================== ====================
name       loss of a row                      targets                  of shape            prediction
========== ================================== ======================== =================== ====================
"softmax"  log(sum(exp(z))) - z[target]       classes from 0           (n,)                softmax(z)
"logistic" sum(log(1 + exp(z)) - t z)         0 or 1                   (n, k), k = 1: (n,) 1 / (1 + exp(-z))
"squared"  sum((z - t) ** 2) / 2              any numbers              (n, k), k = 1: (n,) z
========== ================================== ======================== =================== ====================

"logistic" is one-vs-all: each output answers a question of its own. The arithmetic is the backend's.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np

from dask_belief.backend import Array, Backend
from dask_belief.errors import ArgumentError, DataError
from dask_belief.models.layout import Shape


class Loss(ABC):
    """One loss; without state. ``z`` is of shape ``(n_rows, n_outputs)`` and of the run's dtype."""

    name: ClassVar[str]

    def check_outputs(self, n_outputs: int) -> None:
        """Refuse a number of outputs that the loss makes no sense for; raises `ArgumentError`."""
        return

    @abstractmethod
    def target_size(self, n_outputs: int) -> int:
        """Give how many numbers the targets of one row are."""

    @abstractmethod
    def fault(self, dtype: np.dtype[Any], target_range: tuple[float, float] | None, n_outputs: int) -> str | None:
        """Say what is wrong with targets of that dtype, from the lowest to the highest value; None when nothing is."""

    @abstractmethod
    def arranged(self, backend: Backend, targets: Array, z: Array) -> Array:
        """Give the targets in the shape and dtype that the other methods take, copied only where they differ."""

    @abstractmethod
    def gradient_(self, backend: Backend, z: Array, targets: Array, losses: Array) -> None:
        """Write the loss of each row, and in z's place its derivative by z."""

    @abstractmethod
    def prediction_(self, backend: Backend, z: Array) -> None:
        """Write in z's place what the network predicts."""

    def is_correct(self, backend: Backend, z: Array, targets: Array) -> Array | None:
        """Tell for each row whether the likeliest answer is the right one; None where there is no such thing."""
        return None

    def check_targets(
        self, shape: Shape, dtype: np.dtype[Any], target_range: tuple[float, float] | None, n_outputs: int
    ) -> None:
        """Refuse targets that the loss cannot take.

        Parameters
        ----------
        shape, dtype
            Of the targets of one row.
        target_range
            The lowest and the highest value; None where it is not known.
        n_outputs
            Of the network.

        Raises
        ------
        DataError
            Shape, dtype or range do not fit.
        """
        if math.prod(shape) != self.target_size(n_outputs):
            raise DataError(
                f"targets: expected {self.target_size(n_outputs)} a row, for loss {self.name!r} and {n_outputs} "
                f"outputs, got rows of shape {shape}. Change the number of outputs or the loss."
            )
        fault = self.fault(dtype, target_range, n_outputs)
        if fault is not None:
            raise DataError(f"targets: {fault}")

    def prepare(self, backend: Backend, targets: Any, z: Array) -> Array:
        """Give the targets of a batch as the other methods take them.

        Host arrays are checked in full; what is on a device already is checked by shape and dtype, without waiting.

        Raises
        ------
        ArgumentError
            Shape, dtype or values do not fit.
        """
        n_rows, n_outputs = z.shape
        given = backend.asarray(targets)
        size = n_rows * self.target_size(n_outputs)
        if given.shape[:1] != (n_rows,) or given.size != size:
            raise ArgumentError(
                f"targets: expected {n_rows} rows of {self.target_size(n_outputs)}, for loss {self.name!r}, got shape "
                f"{given.shape}."
            )
        target_range = None
        if isinstance(targets, np.ndarray) and targets.size:
            target_range = (float(targets.min()), float(targets.max()))
        fault = self.fault(given.dtype, target_range, n_outputs)
        if fault is not None:
            raise ArgumentError(f"targets: {fault}")
        return self.arranged(backend, given, z)


class Softmax(Loss):
    """Softmax cross-entropy: each row belongs to one of the classes."""

    name = "softmax"

    def check_outputs(self, n_outputs: int) -> None:
        """Refuse a single output, whose softmax is always 1."""
        if n_outputs < 2:
            raise ArgumentError("loss: 'softmax' needs two or more outputs, got 1. Use 'logistic' for one output.")

    def target_size(self, n_outputs: int) -> int:
        """Give 1: the class."""
        return 1

    def fault(self, dtype: np.dtype[Any], target_range: tuple[float, float] | None, n_outputs: int) -> str | None:
        """Ask for whole numbers among the classes."""
        if dtype.kind not in "iub":
            return f"expected whole numbers, the classes, for loss 'softmax', got dtype {dtype}. Cast them."
        if target_range is not None and (target_range[0] < 0 or target_range[1] >= n_outputs):
            return (
                f"expected classes from 0 to {n_outputs - 1}, got {target_range[0]:g} to {target_range[1]:g}. Number "
                "the classes from 0, or give the last layer more units."
            )
        return None

    def arranged(self, backend: Backend, targets: Array, z: Array) -> Array:
        """Give int64 ``(n_rows,)``."""
        return backend.asarray(targets, np.int64).reshape(len(z))

    def gradient_(self, backend: Backend, z: Array, targets: Array, losses: Array) -> None:
        """Write the loss of each row, and softmax less one-hot in z's place."""
        backend.softmax_cross_entropy_(z, targets, losses)

    def prediction_(self, backend: Backend, z: Array) -> None:
        """Write the probability of each class."""
        backend.softmax_(z)

    def is_correct(self, backend: Backend, z: Array, targets: Array) -> Array:
        """Tell whether the likeliest class is the target."""
        correct: Array = backend.xp.argmax(z, axis=1) == targets
        return correct


class _Numeric(Loss):
    """What losses whose targets are numbers, one an output, have in common."""

    def target_size(self, n_outputs: int) -> int:
        """Give one a output."""
        return n_outputs

    def arranged(self, backend: Backend, targets: Array, z: Array) -> Array:
        """Give the shape and dtype of z, C-contiguous."""
        return backend.asarray(targets, z.dtype).reshape(z.shape)


class Logistic(_Numeric):
    """One-vs-all logistic loss: each output is a probability of its own."""

    name = "logistic"

    def fault(self, dtype: np.dtype[Any], target_range: tuple[float, float] | None, n_outputs: int) -> str | None:
        """Ask for numbers from 0 to 1."""
        if dtype.kind not in "iubf":
            return f"expected numbers, 0 or 1, for loss 'logistic', got dtype {dtype}."
        if target_range is not None and (target_range[0] < 0 or target_range[1] > 1):
            return (
                f"expected 0 or 1 for loss 'logistic', got {target_range[0]:g} to {target_range[1]:g}. Use 'softmax' "
                "for classes, 'squared' for other numbers."
            )
        return None

    def gradient_(self, backend: Backend, z: Array, targets: Array, losses: Array) -> None:
        """Write the loss of each row, and probability less target in z's place."""
        backend.logistic_(z, targets, losses)

    def prediction_(self, backend: Backend, z: Array) -> None:
        """Write the probability of each output."""
        backend.sigmoid_(z)

    def is_correct(self, backend: Backend, z: Array, targets: Array) -> Array:
        """Tell whether the probability is on the right side of a half; of several outputs, whether the largest is."""
        correct: Array
        if z.shape[1] == 1:
            correct = (z[:, 0] > 0) == (targets[:, 0] > 0.5)
        else:
            correct = backend.xp.argmax(z, axis=1) == backend.xp.argmax(targets, axis=1)
        return correct


class Squared(_Numeric):
    """Half the squared error, for regression."""

    name = "squared"

    def fault(self, dtype: np.dtype[Any], target_range: tuple[float, float] | None, n_outputs: int) -> str | None:
        """Ask for real numbers."""
        return None if dtype.kind in "iubf" else f"expected real numbers for loss 'squared', got dtype {dtype}."

    def gradient_(self, backend: Backend, z: Array, targets: Array, losses: Array) -> None:
        """Write the loss of each row, and the difference in z's place."""
        backend.squared_error_(z, targets, losses)

    def prediction_(self, backend: Backend, z: Array) -> None:
        """Leave z, which is the prediction."""
        return


LOSSES: dict[str, Loss] = {loss.name: loss for loss in (Softmax(), Logistic(), Squared())}
"""Name to loss."""


def get_loss(name: object) -> Loss:
    """Give the loss of that name; raises `ArgumentError` where there is none."""
    if not isinstance(name, str) or name not in LOSSES:
        raise ArgumentError(f"loss: expected one of {', '.join(LOSSES)}, got {name!r}.")
    return LOSSES[name]
