"""Puts the stand-in where ``import cupy`` finds it."""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.strict_fake import counters, device, functions, host_memory, kernels, names
from tests.strict_fake.array import ndarray, poisoned
from tests.strict_fake.memory import DEVICE_BYTES, MemoryPool, OutOfMemoryError

VERSION = "14.2.0"
"""The CuPy whose names are kept."""


class StandIn(ModuleType):
    """A module of CuPy's: what it offers itself, what NumPy has under a name of CuPy's, and nothing else."""

    def __init__(
        self, name: str, source: ModuleType | None = None, of_its_own: Mapping[str, object] | None = None
    ) -> None:
        super().__init__(name, __doc__)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        self.__path__: list[str] = []
        self._names = names.load().get(name, {})
        self._source = source
        self.__dict__.update(of_its_own or {})

    def __getattr__(self, name: str) -> object:
        if name.startswith("_") or name not in self._names:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        try:
            found = functions.stand_in(name, getattr(self._source, name), self._names[name])
        except (AttributeError, NotImplementedError):
            raise NotImplementedError(f"{self.__name__}.{name} is CuPy's, and has no stand-in") from None
        setattr(self, name, found)
        return found


class _PinnedPool:
    """Pinned memory is given back at once."""

    def free_all_blocks(self) -> None:
        """Give back what is kept."""

    def n_free_blocks(self) -> int:
        """What is kept: nothing."""
        return 0


class CUDADriverError(RuntimeError):
    """What CuPy raises for a refusal of the driver; nothing here does."""


class CUBLASError(RuntimeError):
    """What CuPy raises for a refusal of cuBLAS; nothing here does."""


def _empty_pinned(shape: Any, dtype: npt.DTypeLike = float, order: str = "C") -> npt.NDArray[Any]:
    values = poisoned(shape, dtype, order)
    host_memory.pin(values)
    return values


def _zeros_pinned(shape: Any, dtype: npt.DTypeLike = float, order: str = "C") -> npt.NDArray[Any]:
    values = _empty_pinned(shape, dtype, order)
    values.fill(0)
    return values


def _is_available() -> bool:
    return device.device_count() > 0


def _pointer_attributes(pointer: int) -> SimpleNamespace:
    is_pinned = host_memory.is_pinned_pointer(pointer)
    return SimpleNamespace(hostPointer=pointer if is_pinned else 0, devicePointer=pointer if is_pinned else 0)


def _wait_for_device() -> None:
    device.Device().synchronize()


def _runtime() -> StandIn:
    """Give what is offered of the driver's calls."""
    return StandIn(
        "cupy.cuda.runtime",
        of_its_own={
            "CUDARuntimeError": device.CUDARuntimeError,
            "getDeviceCount": device.device_count,
            "getDevice": device.current_device,
            "setDevice": lambda number: device.Device(number).use(),
            "deviceSynchronize": _wait_for_device,
            "getDeviceProperties": lambda number: {"name": b"strict stand-in"},
            "pointerGetAttributes": _pointer_attributes,
            "memGetInfo": lambda: (DEVICE_BYTES - MemoryPool().used_bytes(), DEVICE_BYTES),
            "runtimeGetVersion": lambda: 13020,
            "driverGetVersion": lambda: 13020,
            "is_hip": False,
        },
    )


def install(n_devices: int = 1) -> ModuleType:
    """Make ``import cupy`` and ``import cupyx`` give the stand-in, with so many devices; gives ``cupy``."""
    if "cupy" in sys.modules:
        raise RuntimeError("cupy has been imported already: install the stand-in before anything that uses it")
    modules = stand_ins(n_devices)
    sys.modules.update(modules)
    return modules["cupy"]


def stand_ins(n_devices: int = 1) -> dict[str, ModuleType]:
    """Give all modules of the stand-in by their names; an array finds ``cupy`` among the modules of the process."""
    device.set_device_count(n_devices)
    runtime = _runtime()
    driver = StandIn("cupy.cuda.driver", of_its_own={"CUDADriverError": CUDADriverError})
    cublas = StandIn("cupy.cuda.cublas", of_its_own={"CUBLASError": CUBLASError})
    memory = StandIn("cupy.cuda.memory", of_its_own={"OutOfMemoryError": OutOfMemoryError})
    of_cuda = {
        "Device": device.Device,
        "Stream": device.Stream,
        "Event": device.Event,
        "runtime": runtime,
        "driver": driver,
        "cublas": cublas,
        "memory": memory,
        "get_current_stream": device.current_stream,
        "is_available": _is_available,
    }
    cuda = StandIn("cupy.cuda", of_its_own=of_cuda)
    linalg = StandIn("cupy.linalg", np.linalg)
    random = StandIn("cupy.random")
    stride_tricks = StandIn("cupy.lib.stride_tricks", np.lib.stride_tricks)
    lib = StandIn("cupy.lib", of_its_own={"stride_tricks": stride_tricks})
    of_cupy: dict[str, object] = {
        "__version__": VERSION,
        "ndarray": ndarray,
        "ufunc": functions.Ufunc,
        "ElementwiseKernel": kernels.ElementwiseKernel,
        "RawKernel": kernels.RawKernel,
        "array": functions.array,
        "asarray": functions.asarray,
        "asanyarray": functions.asarray,
        "asnumpy": functions.asnumpy,
        "empty": functions.empty,
        "empty_like": functions.empty_like,
        "is_available": _is_available,
        "get_default_memory_pool": MemoryPool,
        "get_default_pinned_memory_pool": _PinnedPool,
        "cuda": cuda,
        "lib": lib,
        "linalg": linalg,
        "random": random,
    }
    cupy = StandIn("cupy", np, of_cupy)
    cupy.__dict__["get_array_module"] = lambda *arrays: (
        cupy if any(isinstance(each, ndarray) for each in arrays) else np
    )
    of_cupyx = {
        "scatter_add": functions.scatter_add,
        "empty_pinned": _empty_pinned,
        "zeros_pinned": _zeros_pinned,
        "allow_synchronize": counters.allow_synchronize,
        "DeviceSynchronized": counters.DeviceSynchronized,
    }
    cupyx = StandIn("cupyx", of_its_own=of_cupyx)
    return {
        module.__name__: module
        for module in (cupy, cupyx, cuda, runtime, driver, cublas, memory, lib, stride_tricks, linalg, random)
    }
