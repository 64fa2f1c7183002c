"""The array class: NumPy underneath, and none of NumPy's leniency.

An array keeps its values in a NumPy array that nobody outside this package sees. Whatever is done with arrays passes
through `run`: there NumPy arrays among the arguments are refused, the device and the order between streams are checked,
and launches and allocations are counted.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.strict_fake import names
from tests.strict_fake.counters import count, count_wait
from tests.strict_fake.device import Device, Stream, current_device, progress_of, tell_host
from tests.strict_fake.host_memory import deliver_when_done, is_pinned, poison, require_unchanged_until_done
from tests.strict_fake.memory import Memory

IMPLICIT = (
    "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array explicitly."
)


class ndarray:
    """A stand-in for ``cupy.ndarray``."""

    __slots__ = ("__weakref__", "_device", "_memory", "_values")
    __module__ = "cupy"
    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    _values: npt.NDArray[Any]
    """What the array holds."""
    _memory: Memory
    """Where, shared with its views."""
    _device: int
    """On which device."""

    def __init__(
        self,
        shape: int | Sequence[int],
        dtype: npt.DTypeLike = float,
        memptr: object = None,
        strides: object = None,
        order: str = "C",
    ) -> None:
        """Make an array of what nobody wrote: not a number, or a number that is no index."""
        if memptr is not None or strides is not None:
            raise NotImplementedError("cupy.ndarray of given memory has no stand-in")
        n_elements = math.prod(shape) if isinstance(shape, Sequence) else shape
        self._memory, self._device = Memory(n_elements * np.dtype(dtype).itemsize), current_device()
        self._values = poisoned(shape, dtype, order)
        count(allocations=1)

    # What it is

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._values.dtype

    @property
    def ndim(self) -> int:
        return self._values.ndim

    @property
    def size(self) -> int:
        return self._values.size

    @property
    def nbytes(self) -> int:
        return self._values.nbytes

    @property
    def itemsize(self) -> int:
        return self._values.itemsize

    @property
    def strides(self) -> tuple[int, ...]:
        return self._values.strides

    @property
    def flags(self) -> Any:
        return self._values.flags

    @property
    def device(self) -> Device:
        return Device(self._device)

    @property
    def T(self) -> ndarray:
        return _view(self._values.T, self)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._values.shape

    @shape.setter
    def shape(self, shape: int | tuple[int, ...]) -> None:
        self._values = self._values.reshape(shape, copy=False)

    # To the host and back, never unasked

    def __array__(self, *arguments: object, **keywords: object) -> npt.NDArray[Any]:
        raise TypeError(IMPLICIT)

    def __dlpack__(self, **keywords: object) -> object:
        raise RuntimeError("a NumPy array cannot be made of device memory")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self._device

    def get(
        self,
        stream: Stream | None = None,
        order: str = "C",
        out: npt.NDArray[Any] | None = None,
        blocking: bool = True,
    ) -> npt.NDArray[Any]:
        """Copy to the host; waits unless it is told not to."""
        if out is None:
            out = np.empty(self.shape, self.dtype, order)  # type: ignore[call-overload]
        elif not isinstance(out, np.ndarray):
            raise TypeError("Only numpy.ndarray can be obtained from cupy.ndarray")
        elif out.dtype != self.dtype:
            raise TypeError(f"{out.dtype} array cannot be obtained from {self.dtype} array")
        elif out.shape != self.shape:
            raise ValueError(f"Shape mismatch. Expected shape: {self.shape}, actual shape: {out.shape}")
        elif not (out.flags.c_contiguous or out.flags.f_contiguous):
            raise RuntimeError("`out` cannot be specified when copying to non-contiguous ndarray")
        progress = progress_of(stream)
        self._check_device()
        self._memory.read_by(progress)
        count(copies_to_host=1, bytes_to_host=self.nbytes)
        if blocking:
            count_wait()
            tell_host(progress.knows())
            np.copyto(out, self._values)
        else:
            deliver_when_done(self._values, out, progress)
        return out

    def set(self, arr: npt.NDArray[Any], stream: Stream | None = None) -> None:
        """Copy from the host."""
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if arr.shape != self.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not (self.flags.c_contiguous or self.flags.f_contiguous):
            raise RuntimeError("Cannot set to non-contiguous array")
        self._check_device()
        progress = progress_of(stream)
        self._memory.written_by(progress)
        count(copies_to_device=1, bytes_to_device=self.nbytes)
        np.copyto(self._values, arr)
        if is_pinned(arr):
            require_unchanged_until_done(arr, progress)

    def item(self) -> Any:
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def __float__(self) -> float:
        return float(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __complex__(self) -> complex:
        return complex(self.get())

    def __bool__(self) -> bool:
        return bool(self.get())

    def __format__(self, specification: str) -> str:
        return format(self.get()[()], specification)

    def __repr__(self) -> str:
        return repr(self.get())

    def __reduce__(self) -> tuple[object, tuple[npt.NDArray[Any]]]:
        return _from_host, (self.get(),)

    # NumPy's functions come back to CuPy's

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *arguments: object, **keywords: Any) -> object:
        function = getattr(sys.modules["cupy"], ufunc.__name__)
        if method != "__call__":
            function = getattr(function, method)
        out = keywords.pop("out", ())
        return function(*arguments, **keywords, **({"out": out[0]} if out else {}))

    def __array_function__(
        self,
        function: Callable[..., object],
        types: object,
        arguments: tuple[object, ...],
        keywords: dict[str, object],
    ) -> object:
        found: object = sys.modules["cupy"]
        for part in (function.__module__ or "").split(".")[1:]:
            found = getattr(found, part, found)
        return getattr(found, function.__name__)(*arguments, **keywords)

    # Elements

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[ndarray]:
        return (self[number] for number in range(len(self)))

    def __contains__(self, value: object) -> bool:
        return value in self.get()

    def __getitem__(self, key: object) -> ndarray:
        if _holds_mask(key):
            # The device must say how many elements there are.
            count_wait()
        result: ndarray = run(lambda values, index: values[index], self, key)
        return result

    def __setitem__(self, key: object, value: object) -> None:
        if isinstance(value, np.ndarray) and value.ndim == 0:
            value = value[()]
        if isinstance(value, (list, tuple, np.ndarray)):
            raise ValueError(f"non-scalar {type(value).__name__} cannot be used for fill")
        if _holds_mask(key):
            count_wait()
        run(lambda values, index, new: values.__setitem__(index, new), self, key, value, written=(self,))

    def astype(
        self,
        dtype: npt.DTypeLike,
        order: str = "K",
        casting: str | None = None,
        subok: object = None,
        copy: bool = True,
    ) -> ndarray:
        if not copy and self.dtype == np.dtype(dtype):
            return self
        result: ndarray = run(lambda values: values.astype(dtype, order=order), self)
        return result

    def __copy__(self) -> ndarray:
        copy: ndarray = self.copy()
        return copy

    def __deepcopy__(self, memo: object) -> ndarray:
        return self.__copy__()

    def _check_device(self) -> None:
        if self._device != current_device():
            raise ValueError(
                "Array device must be same as the current device: "
                f"array device = {self._device} while current = {current_device()}"
            )


def poisoned(shape: int | Sequence[int], dtype: npt.DTypeLike, order: str = "C") -> npt.NDArray[Any]:
    """Give memory that shows when it is read unwritten."""
    values: npt.NDArray[Any] = np.empty(shape, dtype, order)  # type: ignore[call-overload]
    poison(values)
    return values


def new(values: npt.NDArray[Any]) -> ndarray:
    """Give an array of these values in memory of its own, written by this thread's stream."""
    array = object.__new__(ndarray)
    array._values, array._memory, array._device = values, Memory(values.nbytes), current_device()
    array._memory.written_by(progress_of())
    count(allocations=1)
    return array


def run(compute: Callable[..., object], *arguments: object, written: Sequence[ndarray] = (), **keywords: object) -> Any:
    """Do with the values of arrays what a kernel would, and give arrays for its results.

    Parameters
    ----------
    compute
        Takes the arguments with NumPy arrays in place of arrays.
    written
        Arrays among the arguments whose memory is written.

    Raises
    ------
    TypeError
        One of the arguments is a NumPy array.
    """
    met: list[ndarray] = []
    values, named = plain(arguments, met), plain(keywords, met)

    def computed() -> object:
        # A device does not warn.
        with np.errstate(all="ignore"):
            return compute(*values, **named)

    if not written:
        result = computed()
        if _is_view(result, met):
            return _wrapped(result, met)
    # What reads alone changes nothing, so only then may the order be checked after the fact.
    progress = progress_of()
    for array in met:
        if all(array is not other for other in written):
            array._memory.read_by(progress)
    for array in written:
        array._memory.written_by(progress)
    count(launches=1)
    return _wrapped(computed() if written else result, met)


def plain(argument: Any, met: list[ndarray]) -> Any:
    """Give the argument with NumPy arrays in place of arrays, which are added to those met; refuse NumPy's own."""
    if isinstance(argument, ndarray):
        argument._check_device()
        met.append(argument)
        return argument._values
    if isinstance(argument, np.ndarray):
        raise TypeError(f"Unsupported type {type(argument)}")
    if isinstance(argument, (tuple, list)):
        return type(argument)(plain(each, met) for each in argument)
    if isinstance(argument, dict):
        return {name: plain(each, met) for name, each in argument.items()}
    return argument


def _wrapped(result: Any, met: Sequence[ndarray]) -> Any:
    """Give arrays in place of NumPy arrays, of the memory of those met where they are views; scalars are 0-d arrays."""
    if isinstance(result, (tuple, list)):
        return [_wrapped(each, met) for each in result]
    if isinstance(result, np.generic):
        return new(np.asarray(result))
    if not isinstance(result, np.ndarray):
        return result
    for array in met:
        if np.may_share_memory(result, array._values):
            return _view(result, array)
    return new(result)


def _is_view(result: object, met: Sequence[ndarray]) -> bool:
    if isinstance(result, (tuple, list)):
        return bool(result) and all(_is_view(each, met) for each in result)
    return isinstance(result, np.ndarray) and any(np.may_share_memory(result, array._values) for array in met)


def _view(values: npt.NDArray[Any], of: ndarray) -> ndarray:
    array = object.__new__(ndarray)
    array._values, array._memory, array._device = values, of._memory, of._device
    return array


def _holds_mask(key: object) -> bool:
    keys = key if isinstance(key, tuple) else (key,)
    return any(isinstance(each, ndarray) and each.dtype == np.bool for each in keys)


def _from_host(values: npt.NDArray[Any]) -> ndarray:
    """Give back what was pickled, on the device that is current there."""
    return new(values.copy())


# The methods and operators that are NumPy's but for what `run` does

_WAITING_METHODS = {"nonzero", "choose"}
_WITHOUT_STAND_IN = {"tobytes", "tofile", "dump", "dumps"}
_WRITING_METHODS = {"fill", "sort", "partition", "put"}
_ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift")
_COMPARED = ("eq", "ne", "lt", "le", "gt", "ge")
_ONE = ("neg", "pos", "abs", "invert")


def check_keywords(name: str, keywords: dict[str, object], parameters: frozenset[str] | None) -> None:
    """Refuse keywords that NumPy's function has and CuPy's does not."""
    if parameters is None or names.ANY in parameters:
        return
    unknown = keywords.keys() - parameters
    if unknown:
        raise TypeError(f"{name}() got an unexpected keyword argument {min(unknown)!r}")


def check_out(out: object) -> tuple[ndarray, ...]:
    """Give the array to write, if there is one; refuse what is no array."""
    if out is None:
        return ()
    if not isinstance(out, ndarray):
        raise TypeError(f"return arrays must be of type cupy.ndarray, found {type(out)}")
    return (out,)


def _method(name: str, parameters: frozenset[str] | None) -> Callable[..., object]:
    of_numpy = getattr(np.ndarray, name)

    def method(self: ndarray, *arguments: object, **keywords: object) -> object:
        check_keywords(name, keywords, parameters)
        if name in _WAITING_METHODS:
            count_wait()
        if name in _WRITING_METHODS:
            return run(of_numpy, self, *arguments, **keywords, written=(self,))
        written = check_out(keywords.get("out"))
        result = run(of_numpy, self, *arguments, **keywords, written=written)
        return written[0] if written else result

    method.__name__ = name
    return method


def _operator(name: str, is_in_place: bool = False) -> Callable[..., object]:
    of_numpy = getattr(np.ndarray, name)

    def operate(self: ndarray, *other: object) -> object:
        if any(isinstance(each, (str, bytes, list, tuple)) for each in other):
            raise TypeError(f"Unsupported type {type(other[0])}")
        if is_in_place:
            run(of_numpy, self, *other, written=(self,))
            return self
        return run(lambda *values: _in_c_order(of_numpy(*values)), self, *other)

    operate.__name__ = name
    return operate


def _in_c_order(result: object) -> object:
    """CuPy's results are in C order, NumPy's in that of the operands."""
    return np.asarray(result, order="C") if isinstance(result, np.ndarray) else result


def _property(name: str) -> property:
    return property(lambda self: run(lambda values: getattr(values, name), self))


def _missing(name: str) -> property:
    def refuse(self: ndarray) -> object:
        raise NotImplementedError(f"cupy.ndarray.{name} is CuPy's, and has no stand-in")

    return property(refuse)


def _add_methods() -> None:
    for name, parameters in names.load()["cupy.ndarray"].items():
        if name in ndarray.__dict__:
            continue
        if name in ("real", "imag", "mT"):
            setattr(ndarray, name, _property(name))
        elif callable(getattr(np.ndarray, name, None)) and name not in _WITHOUT_STAND_IN:
            setattr(ndarray, name, _method(name, parameters))
        else:
            setattr(ndarray, name, _missing(name))
    two = (*_ARITHMETIC, "divmod", "matmul")
    for name in (*_COMPARED, *_ONE, *two, *(f"r{name}" for name in two)):
        setattr(ndarray, f"__{name}__", _operator(f"__{name}__"))
    for name in _ARITHMETIC:
        setattr(ndarray, f"__i{name}__", _operator(f"__i{name}__", is_in_place=True))


_add_methods()
