"""CuPy's functions: NumPy's of the same name, held to what CuPy's take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.strict_fake.array import check_keywords, check_out, ndarray, new, plain, run
from tests.strict_fake.counters import count, count_wait

ABOUT_ARRAYS = {
    "broadcast_shapes",
    "can_cast",
    "iscomplexobj",
    "isfortran",
    "isrealobj",
    "isscalar",
    "issubdtype",
    "may_share_memory",
    "min_scalar_type",
    "ndim",
    "promote_types",
    "result_type",
    "shape",
    "shares_memory",
    "size",
}
"""These look at shapes and dtypes, and ask nothing of the device."""

OF_LISTS = {
    "atleast_1d",
    "atleast_2d",
    "atleast_3d",
    "broadcast_arrays",
    "column_stack",
    "concatenate",
    "dstack",
    "empty",
    "full",
    "hstack",
    "ix_",
    "meshgrid",
    "ones",
    "stack",
    "vstack",
    "zeros",
}
"""These take a list or a tuple, of arrays or of sizes, as their first argument; others take arrays alone."""

WAITING = {"argwhere", "bincount", "choose", "flatnonzero", "nonzero", "sliding_window_view", "unique"}
"""These ask the device for a size or a number, and wait for the answer."""

FIRST_WRITTEN = {"copyto", "fill_diagonal", "place", "put", "put_along_axis", "putmask"}
"""These write their first argument."""


class Function:
    """One of CuPy's functions."""

    def __init__(
        self, name: str, numpy_function: Callable[..., object], parameters: frozenset[str] | None = None
    ) -> None:
        self.__name__ = name
        self._compute = numpy_function
        self._parameters = parameters

    def __call__(self, *arguments: object, **keywords: object) -> object:
        name = self.__name__
        self._check(arguments, keywords)
        if name in ABOUT_ARRAYS:
            met: list[ndarray] = []
            return self._compute(*plain(arguments, met), **plain(keywords, met))
        if name in WAITING or (name == "where" and len(arguments) + len(keywords) == 1):
            count_wait()
        if name in FIRST_WRITTEN:
            return run(self._compute, *arguments, written=check_out(arguments[0]), **keywords)
        written = check_out(self._out(arguments, keywords))
        result = run(self._compute, *arguments, written=written, **self._of_numpy(keywords))
        return written[0] if written else result

    def _of_numpy(self, keywords: dict[str, object]) -> dict[str, object]:
        return keywords

    def _check(self, arguments: Sequence[object], keywords: dict[str, object]) -> None:
        check_keywords(self.__name__, keywords, self._parameters)
        if self.__name__ == "einsum" and "out" in keywords:
            raise TypeError("einsum() got an unexpected keyword argument 'out'")
        if self.__name__ in FIRST_WRITTEN and arguments and isinstance(arguments[0], np.ndarray):
            raise AttributeError(f"'numpy.ndarray' object is none of CuPy's: {self.__name__} writes arrays alone")
        if self.__name__ == "copyto" and any(isinstance(each, np.ndarray) for each in arguments):
            raise ValueError("cannot copy from a NumPy array")
        if self.__name__ not in OF_LISTS | ABOUT_ARRAYS and arguments and isinstance(arguments[0], (list, tuple)):
            raise AttributeError(f"'{type(arguments[0]).__name__}' object has no attribute '{self.__name__}'")

    def _out(self, arguments: Sequence[object], keywords: dict[str, object]) -> object:
        return keywords.get("out")


class Ufunc(Function):
    """One of CuPy's universal functions."""

    _compute: np.ufunc

    def __init__(self, name: str, numpy_function: np.ufunc) -> None:
        super().__init__(name, numpy_function, frozenset({"out", "dtype", "casting"}))
        self.name = f"cupy_{name}"
        self.nin, self.nout, self.nargs = numpy_function.nin, numpy_function.nout, numpy_function.nargs

    def at(self, a: ndarray, indices: object, b: object = None) -> None:
        """Write the elements at the indices, each as often as it is named."""
        (values,) = check_out(a)
        run(self._compute.at, values, indices, *(() if b is None else (b,)), written=(values,))

    def reduce(self, array: ndarray, axis: Any = 0, dtype: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        """Reduce along axes."""
        keywords = {"axis": axis, "dtype": dtype, "out": out, "keepdims": keepdims}
        result = run(self._compute.reduce, array, written=check_out(out), **keywords)
        return result if out is None else out

    def _of_numpy(self, keywords: dict[str, object]) -> dict[str, object]:
        # CuPy's results are in C order, NumPy's in that of the operands.
        return {"order": "C", **keywords}

    def _check(self, arguments: Sequence[object], keywords: dict[str, object]) -> None:
        if len(arguments) < self.nin:
            raise TypeError(f"Wrong number of arguments for {self.__name__}")
        for argument in arguments:
            if isinstance(argument, (list, tuple, np.ndarray)):
                raise TypeError(f"Unsupported type {type(argument)}")
        check_keywords(self.__name__, keywords, self._parameters)

    def _out(self, arguments: Sequence[object], keywords: dict[str, object]) -> object:
        return arguments[self.nin] if len(arguments) > self.nin else keywords.get("out")


def asarray(a: Any, dtype: npt.DTypeLike | None = None, order: str | None = None, *, blocking: bool = False) -> ndarray:
    """Give an array as it is, or cast, or copied from the host."""
    return array(a, dtype, copy=False, order=order or "K", blocking=blocking)


def array(
    obj: Any,
    dtype: npt.DTypeLike | None = None,
    copy: bool = True,
    order: str = "K",
    subok: bool = False,
    ndmin: int = 0,
    *,
    blocking: bool = False,
) -> ndarray:
    """Give an array of these values: an array, a list of arrays, or what NumPy makes one of."""
    if isinstance(obj, ndarray):
        if not copy and obj.ndim >= ndmin and dtype in (None, obj.dtype):
            return obj
        copied: ndarray = run(lambda values: np.array(values, dtype, copy=True, ndmin=ndmin), obj)
        return copied
    if isinstance(obj, (list, tuple)) and any(isinstance(each, ndarray) for each in obj):
        stacked: ndarray = run(lambda values: np.array(values, dtype, ndmin=ndmin), obj)
        return stacked
    return _uploaded(np.array(obj, dtype, order=order, ndmin=ndmin), blocking)  # type: ignore[call-overload]


def _uploaded(values: npt.NDArray[Any], is_blocking: bool) -> ndarray:
    if values.dtype.kind not in "biufc":
        raise ValueError(f"Unsupported dtype {values.dtype}")
    count(copies_to_device=1, bytes_to_device=values.nbytes)
    if is_blocking:
        count_wait()
    return new(values)


def asnumpy(
    a: Any, stream: Any = None, order: str = "C", out: npt.NDArray[Any] | None = None, *, blocking: bool = True
) -> npt.NDArray[Any]:
    """Copy to the host, into `out` if it is given; waits."""
    if isinstance(a, ndarray):
        return a.get(stream=stream, order=order, out=out, blocking=blocking)
    values = np.asarray(a, order=order)  # type: ignore[call-overload]
    if out is None:
        result: npt.NDArray[Any] = values
        return result
    np.copyto(out, values)
    return out


def empty(shape: Any, dtype: npt.DTypeLike = float, order: str = "C") -> ndarray:
    """Give an array that nobody has written."""
    return ndarray(plain(shape, []), dtype, order=order)


def empty_like(
    prototype: ndarray, dtype: npt.DTypeLike | None = None, order: str = "K", subok: object = None, shape: Any = None
) -> ndarray:
    """Give an array like another one, that nobody has written."""
    if shape is None and order == "K" and prototype.flags.f_contiguous:
        order = "F"
    return ndarray(prototype.shape if shape is None else shape, dtype or prototype.dtype, order=order.replace("K", "C"))


def scatter_add(a: ndarray, slices: object, value: object) -> None:
    """Add to the elements at the indices, each as often as it is named; ``cupyx.scatter_add``."""
    (values,) = check_out(a)
    run(np.add.at, values, slices, value, written=(values,))


def stand_in(name: str, numpy_value: object, parameters: frozenset[str] | None) -> object:
    """Give what stands in for NumPy's value of that name; raises `NotImplementedError` where nothing does."""
    if isinstance(numpy_value, np.ufunc):
        return Ufunc(name, numpy_value)
    if isinstance(numpy_value, type):
        if issubclass(numpy_value, (np.generic, np.dtype, np.finfo, np.iinfo, Exception)):
            return numpy_value
    elif callable(numpy_value):
        return Function(name, numpy_value, parameters)
    elif numpy_value is None or isinstance(numpy_value, (int, float)):
        return numpy_value
    raise NotImplementedError
