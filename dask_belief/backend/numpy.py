"""The backend of the host: NumPy and the BLAS that it was built with."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt

from dask_belief.backend import products
from dask_belief.backend.base import Array, Backend
from dask_belief.backend.operations import OPERATIONS


class NumpyBackend(Backend):
    """Arrays in host memory; the operations run block by block in the calling thread."""

    name = "numpy"

    def __init__(self) -> None:
        self.device = 0
        self.xp = np

    def asarray(self, host: npt.ArrayLike, dtype: npt.DTypeLike | None = None) -> Array:
        """Give `host` as a NumPy array, itself where it is one of that dtype."""
        return np.asarray(host, dtype)

    def to_host(self, x: Array, out: Array | None = None) -> Array:
        """Give `x` itself, or copy it into `out`."""
        if out is None:
            return x
        np.copyto(out, x)
        return out

    def item(self, x: Array) -> float:
        """Give the one value of `x` as a Python float."""
        return float(x)

    def is_finite(self, x: Array) -> bool:
        """Tell whether `x` holds neither NaN nor infinity."""
        # One pass in place of two. A sum of squares that is finite is proof; one that is not may have overflowed.
        flat = x.reshape(-1)
        with self.computing():
            return math.isfinite(np.dot(flat, flat)) or super().is_finite(flat)

    def sync(self) -> None:
        """Do nothing: on the host every call is complete on return."""

    def host_empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Give uninitialised memory."""
        return np.empty(shape, dtype)

    def empty(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Give an uninitialised array."""
        return np.empty(shape, dtype)

    def zeros(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Give an array of zeros."""
        return np.zeros(shape, dtype)

    def kind(self) -> str:
        """Name NumPy's version and instruction set, and the library and kernels of its matrix products."""
        # NumPy chooses its own loops (exp, tanh, sums) by the instruction set, the BLAS its kernels.
        extensions = np.show_config(mode="dicts")["SIMD Extensions"]
        widest = (extensions.get("found") or extensions["baseline"])[-1]
        return f"numpy {np.__version__} {widest}, {'; '.join(_blas()) or 'unknown BLAS'}"

    def single_thread(self) -> AbstractContextManager[object]:
        """Limit every BLAS of this process to one thread, at once; needs `threadpoolctl`."""
        from threadpoolctl import threadpool_limits

        limits: AbstractContextManager[object] = threadpool_limits(limits=1, user_api="blas")
        return limits

    def computing(self) -> AbstractContextManager[object]:
        """Compute without floating-point warnings."""
        return np.errstate(all="ignore")

    def by_weights_(self, rows: Array, weights: Array, outputs: Array) -> None:
        """``outputs = rows @ weights``, in parts where `dask_belief.backend.products` says so."""
        products.by_weights(rows, weights, outputs)

    def weight_gradient_(self, rows: Array, delta: Array, gradient: Array) -> None:
        """``gradient = rows.T @ delta``, in parts as well."""
        products.weight_gradient(rows, delta, gradient)

    def column_sums_(self, rows: Array, sums: Array) -> None:
        """``sums = rows.sum(axis=0)``, as a product with a row of ones."""
        products.column_sums(rows, sums)

    def _run(self, operation: str, *arguments: Array | float | np.uint64) -> None:
        with np.errstate(all="ignore"):
            OPERATIONS[operation].numpy(*arguments)


def _blas() -> list[str]:
    """Each BLAS that this process has loaded, by library, kernels and version; none when nobody can tell."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return []
    # Only NumPy's own: SciPy brings a second copy, which computes nothing here.
    libraries: list[dict[str, Any]] = [library for library in threadpool_info() if library["user_api"] == "blas"]
    numpys = [library for library in libraries if "numpy" in library["filepath"]] or libraries
    return sorted(
        f"{library['internal_api']} {library.get('architecture', 'any')} {library['version']}" for library in numpys
    )
