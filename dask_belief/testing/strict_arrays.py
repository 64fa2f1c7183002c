"""Arrays of a library that is not NumPy: a stand-in on the host, which refuses NumPy's own functions and arrays."""

from __future__ import annotations

import types
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt

from dask_belief.backend import Array
from dask_belief.backend.numpy import NumpyBackend


class _Refused(TypeError):
    """Arrays of two libraries met, or the host asked for values."""


class _StrictArray(np.ndarray):
    """An array that only its own library may touch: NumPy's memory, and none of its functions."""

    _is_open = False
    """Whether one of the library's functions is at work; the check runs in one thread."""

    def __array_ufunc__(self, ufunc: np.ufunc, method: Any, *inputs: Any, **keywords: Any) -> Any:
        if not _StrictArray._is_open:
            raise _Refused(f"numpy.{ufunc.__name__} was called on an array of another library")
        written = keywords.pop("out", None)
        if written is not None:
            keywords["out"] = tuple(_as_plain(each) for each in written)
        result = getattr(ufunc, method)(*map(_as_plain, inputs), **keywords)
        if written is not None:
            return written[0] if len(written) == 1 else written
        return result.view(_StrictArray) if isinstance(result, np.ndarray) else result

    def __array_function__(self, function: Any, types: Any, arguments: Any, keywords: Any) -> Any:
        if not _StrictArray._is_open:
            raise _Refused(f"numpy.{function.__name__} was called on an array of another library")
        return super().__array_function__(function, types, arguments, keywords)


def _opened(function: Any, *arguments: Any, **keywords: Any) -> Any:
    """Call what belongs to the library of strict arrays, with none but these, and give arrays of it."""
    for argument in (*arguments, *keywords.values()):
        inner = argument if isinstance(argument, (list, tuple)) else (argument,)
        if any(type(each) is np.ndarray for each in inner):
            raise _Refused(f"{getattr(function, '__name__', function)} was given a NumPy array among others")
    before, _StrictArray._is_open = _StrictArray._is_open, True
    try:
        result = function(*arguments, **keywords)
    finally:
        _StrictArray._is_open = before
    if type(result) is np.ndarray or isinstance(result, np.generic):
        # One value is an array as well: on a device it need not be known yet.
        return np.asarray(result).view(_StrictArray)
    return result


def _make_method(name: str) -> Any:
    own = getattr(np.ndarray, name)

    def method(self: _StrictArray, *arguments: Any, **keywords: Any) -> Any:
        return _opened(own, self, *arguments, **keywords)

    return method


def _make_refusal(name: str) -> Any:
    def method(self: _StrictArray, *arguments: Any, **keywords: Any) -> Any:
        if _StrictArray._is_open:
            return getattr(np.ndarray, name)(self, *arguments, **keywords)
        raise _Refused(f"{name} waits for an array's values")

    return method


_OPERATORS = (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
)
for _name in (
    *(f"__{prefix}{operator}__" for operator in _OPERATORS for prefix in ("", "r", "i")),
    *(f"__{operator}__" for operator in ("neg", "pos", "abs", "invert", "lt", "le", "eq", "ne", "gt", "ge")),
    *("__getitem__", "__setitem__", "sum", "mean", "max", "min", "prod", "argmax", "argmin", "cumsum", "clip", "dot"),
    *("astype", "copy", "take", "fill", "round", "any", "all", "var", "std", "reshape", "transpose"),
):
    if hasattr(np.ndarray, _name):
        setattr(_StrictArray, _name, _make_method(_name))
for _name in ("__float__", "__int__", "__bool__", "__index__", "item", "tolist", "tobytes", "__iter__", "__contains__"):
    setattr(_StrictArray, _name, _make_refusal(_name))


class _StrictModule(types.ModuleType):
    """NumPy's functions for strict arrays."""

    def __init__(self, module: types.ModuleType) -> None:
        super().__init__(module.__name__)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        if isinstance(found, types.ModuleType):
            return _StrictModule(found)
        if isinstance(found, type) or not callable(found):
            return found
        return _StrictFunction(found)


class _StrictFunction:
    """One of them."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return _opened(self._function, *arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._function, name)
        return _StrictFunction(found) if callable(found) else found


class StrictBackend(NumpyBackend):
    """A backend whose arrays are strict; it goes by the name of a device's, so that a layer takes that way."""

    name = "cupy"

    def __init__(self) -> None:
        super().__init__()
        self.xp = _StrictModule(np)

    def asarray(self, host: npt.ArrayLike, dtype: npt.DTypeLike | None = None) -> Array:
        """Give a strict copy."""
        return np.array(host, dtype).view(_StrictArray)

    def to_host(self, x: Array, out: Array | None = None) -> Array:
        """Give a copy as NumPy's."""
        if type(x) is np.ndarray:
            raise _Refused("an array of NumPy's was given where one of the backend's is asked for")
        return super().to_host(np.array(x.view(np.ndarray)), out)

    def item(self, x: Array) -> float:
        """Refuse: a layer waits for nothing."""
        raise _Refused("item waits for an array's value")

    def empty(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Give a strict array that nobody has written."""
        empty = np.empty(shape, dtype)
        empty.fill(np.nan if empty.dtype.kind == "f" else 0)
        return empty.view(_StrictArray)

    def zeros(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Give a strict array of zeros."""
        return np.zeros(shape, dtype).view(_StrictArray)

    def computing(self) -> AbstractContextManager[object]:
        """Compute without floating-point warnings."""
        return np.errstate(all="ignore")

    def by_weights_(self, rows: Array, weights: Array, outputs: Array) -> None:
        """As the host's."""
        super().by_weights_(*_plain(rows, weights, outputs))

    def weight_gradient_(self, rows: Array, delta: Array, gradient: Array) -> None:
        """As the host's."""
        super().weight_gradient_(*_plain(rows, delta, gradient))

    def column_sums_(self, rows: Array, sums: Array) -> None:
        """As the host's."""
        super().column_sums_(*_plain(rows, sums))

    def _run(self, operation: str, *arguments: Array | float | np.uint64) -> None:
        super()._run(operation, *_plain(*arguments))


def _plain(*arguments: Any) -> list[Any]:
    """Give strict arrays as NumPy's, and refuse those that are NumPy's already."""
    for argument in arguments:
        if type(argument) is np.ndarray:
            raise _Refused("an operation of the backend was given a NumPy array")
    return [_as_plain(each) for each in arguments]


def _as_plain(argument: Any) -> Any:
    return argument.view(np.ndarray) if isinstance(argument, _StrictArray) else argument
