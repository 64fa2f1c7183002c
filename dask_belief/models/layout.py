"""Names for the parts of one flat parameter vector."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dask_belief.backend import Array
from dask_belief.checks import check_count
from dask_belief.errors import ArgumentError

Shape = tuple[int, ...]


class ParameterLayout:
    """Where each named array lies in one flat vector; nothing copies.

    Parameters
    ----------
    shapes
        Name to shape, in the order in which the arrays lie.

    Attributes
    ----------
    n_parameters
        The length of the vector.
    shapes
        Name to shape.
    slices
        Name to where the array lies; without gaps, in order.

    Examples
    --------
    >>> import numpy as np
    >>> layout = ParameterLayout({"weights": (2, 3), "bias": (3,)})
    >>> layout.slices["bias"]
    slice(6, 9, None)
    >>> vector = np.zeros(layout.n_parameters)
    >>> layout.views(vector)["bias"][:] = 1
    >>> vector
    array([0., 0., 0., 0., 0., 0., 1., 1., 1.])
    """

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self.shapes = dict(shapes)
        self.slices: dict[str, slice] = {}
        self.n_parameters = 0
        for name, shape in self.shapes.items():
            start, self.n_parameters = self.n_parameters, self.n_parameters + math.prod(shape)
            self.slices[name] = slice(start, self.n_parameters)

    def views(self, vector: Array) -> dict[str, Array]:
        """Give each array as a view into `vector`, by name.

        Parameters
        ----------
        vector
            Contiguous, of shape ``(n_parameters,)``; on the host or a device.

        Raises
        ------
        ArgumentError
            As in `check`.
        """
        self.check(vector, "vector")
        return {name: vector[where].reshape(self.shapes[name]) for name, where in self.slices.items()}

    def check(self, vector: Array, name: str) -> None:
        """Refuse, under the argument's `name`, what is no vector of these parameters.

        Raises
        ------
        ArgumentError
            It is of another shape, neither float32 nor float64, or has gaps, so that no view of it can be reshaped.
        """
        if vector.shape != (self.n_parameters,):
            raise ArgumentError(f"{name}: expected shape ({self.n_parameters},), got {vector.shape}.")
        check_real(vector.dtype, name)
        if not vector.flags.c_contiguous:
            raise ArgumentError(f"{name}: expected contiguous memory, got strides {vector.strides}. Pass a copy of it.")


def check_real(dtype: npt.DTypeLike, name: str) -> np.dtype[Any]:
    """Give `dtype` as NumPy's if it is float32 or float64; raises `ArgumentError` otherwise."""
    found = np.dtype(dtype)
    if found not in (np.float32, np.float64):
        raise ArgumentError(f"{name}: expected dtype float32 or float64, got {found}.")
    return found


def check_shape(name: str, shape: object) -> Shape:
    """Give `shape` as a tuple of whole numbers of at least 1; raises `ArgumentError` otherwise."""
    if not isinstance(shape, Sequence) or isinstance(shape, str) or not shape:
        raise ArgumentError(f"{name}: expected a tuple of whole numbers such as (784,), got {shape!r}.")
    for size in shape:
        check_count(name, size)
    return tuple(int(size) for size in shape)
