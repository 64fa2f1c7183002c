"""The backend of a CUDA device, on CuPy; imported only once CuPy is known to work."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import cupy
import cupyx
import numpy as np
import numpy.typing as npt

from dask_belief.backend.base import Array, Backend
from dask_belief.backend.cuda import Elementwise, RowByRow
from dask_belief.backend.device_memory import DeviceMemory
from dask_belief.backend.operations import OPERATIONS
from dask_belief.backend.staging import Staging, is_pinned
from dask_belief.errors import ArgumentError

# The driver's, the runtime's (which has two names for it) and cuBLAS's.
_OUT_OF_MEMORY = ("OUT_OF_MEMORY", "OutOfMemory", "MemoryAllocation", "ALLOC_FAILED")

_C_TYPES = {"float32": "float", "float64": "double", "int64": "long long"}


class CupyBackend(Backend):
    """Arrays in the memory of one device; each thread works on a stream of its own.

    Everything a thread does here goes to its own non-blocking stream, in order. What one thread wrote another may read
    after the first has called `sync`.

    Parameters
    ----------
    device
        The number of the device, as CUDA counts them in this process.
    """

    name = "cupy"

    def __init__(self, device: int = 0) -> None:
        self.device = device
        self.xp = cupy
        self._of_thread = _OfThread()

    def asarray(self, host: npt.ArrayLike, dtype: npt.DTypeLike | None = None) -> Array:
        """Copy `host` to the device, or cast what is there already."""
        with self.computing():
            if isinstance(host, cupy.ndarray):
                return _array(host.astype(dtype or host.dtype, copy=False))
            values = np.asarray(host, dtype, order="C")
            copy = cupy.empty(values.shape, values.dtype)
            if not values.size:
                pass
            elif is_pinned(values):
                # cupy.asarray would copy a pinned buffer into a second one (CuPy issue 7532); set does not.
                copy.set(values)
            else:
                self._of_thread.staging.copy(values, copy)
            return _array(copy)

    def to_host(self, x: Array, out: Array | None = None) -> Array:
        """Copy `x` to the host, into `out` if it is given; waits for it."""
        with self.computing():
            return _array(cupy.asnumpy(x, out=out))

    def item(self, x: Array) -> float:
        """Wait for the one value of `x`."""
        with self.computing():
            return float(x.item())

    def sync(self) -> None:
        """Wait for this thread's stream."""
        with self.computing():
            cupy.cuda.get_current_stream().synchronize()

    def host_empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Give pinned memory."""
        with self.computing():
            return _array(cupyx.empty_pinned(shape, dtype))

    def empty(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Give an uninitialised array on the device."""
        with self.computing():
            return _array(cupy.empty(shape, dtype))

    def zeros(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Give an array of zeros on the device."""
        with self.computing():
            return _array(cupy.zeros(shape, dtype))

    def device_memory(self) -> DeviceMemory:
        """Ask the driver, and CuPy, which keeps what was freed and may be limited to a part."""
        with self.computing():
            free_bytes, total_bytes = cupy.cuda.runtime.memGetInfo()
            pool = cupy.get_default_memory_pool()
            used_bytes, limit_bytes = pool.used_bytes(), pool.get_limit() or total_bytes
            usable_bytes = min(free_bytes + pool.free_bytes(), limit_bytes - used_bytes)
            return DeviceMemory(min(total_bytes, limit_bytes), used_bytes, max(0, usable_bytes))

    def lacking_bytes(self, error: BaseException) -> int | None:
        """Know CuPy's own error, which says how much, and those of the driver, the runtime and cuBLAS, which do not."""
        if isinstance(error, cupy.cuda.memory.OutOfMemoryError):
            # Out of memory allocating 1,024 bytes (allocated so far: ...).
            said = re.search(r"allocating ([\d,]+) bytes", str(error))
            return int(said[1].replace(",", "")) if said else 0
        of_cuda = (cupy.cuda.driver.CUDADriverError, cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.cublas.CUBLASError)
        if isinstance(error, of_cuda) and any(words in str(error) for words in _OUT_OF_MEMORY):
            return 0
        return None

    def give_back_memory(self) -> None:
        """Empty CuPy's pools, which never give anything back by themselves."""
        with self.computing():
            cupy.get_default_memory_pool().free_all_blocks()
            cupy.get_default_pinned_memory_pool().free_all_blocks()

    def kind(self) -> str:
        """Name CuPy's version, the device's model and the CUDA runtime."""
        runtime = cupy.cuda.runtime
        model = runtime.getDeviceProperties(self.device)["name"].decode()
        return f"cupy {cupy.__version__}, {model}, CUDA {runtime.runtimeGetVersion()}"

    def single_thread(self) -> AbstractContextManager[object]:
        """Do nothing: the device computes, not the threads of this process."""
        return nullcontext()

    def computing(self) -> AbstractContextManager[object]:
        """Compute on this thread's stream of this device."""
        return nullcontext() if self._of_thread.is_inside else self._entered()

    @contextmanager
    def _entered(self) -> Iterator[None]:
        of_thread = self._of_thread
        with cupy.cuda.Device(self.device):
            if of_thread.stream is None:
                of_thread.stream = cupy.cuda.Stream(non_blocking=True)
            with of_thread.stream:
                of_thread.is_inside = True
                try:
                    yield
                finally:
                    of_thread.is_inside = False

    def _run(self, operation: str, *arguments: Array | float | np.uint64) -> None:
        *_, written = arguments
        assert not isinstance(written, float)
        if written.size == 0:
            return
        # A bare Python float would be passed as a double; numbers are rounded to the dtype of the arrays.
        typed = [written.dtype.type(value) if isinstance(value, float) else value for value in arguments]
        body = OPERATIONS[operation].cuda
        with self.computing():
            if isinstance(body, Elementwise):
                _elementwise(operation)(*typed)
            else:
                _launch(body, typed)


class _OfThread(threading.local):
    """What a thread keeps of a backend."""

    stream: Any = None
    is_inside: bool = False

    def __init__(self) -> None:
        self.staging = Staging()


@functools.cache
def _elementwise(operation: str) -> Any:
    """Give the kernel of an operation on elements; CuPy keeps one per dtype."""
    body = OPERATIONS[operation].cuda
    assert isinstance(body, Elementwise)
    return cupy.ElementwiseKernel(body.inputs, body.outputs, body.body, f"dask_belief_{operation}")


@functools.cache
def _row_by_row(body: RowByRow, real: str) -> Any:
    """Give the kernel of an operation on rows, for one dtype."""
    return cupy.RawKernel(body.source(real), body.function)


def _launch(body: RowByRow, arrays: list[Any]) -> None:
    """Run an operation on rows, having checked what the device would not: it reads whatever bytes are there."""
    real = _C_TYPES[arrays[-1].dtype.name]
    for declaration, array in zip(body.parameters, arrays, strict=True):
        wanted = declaration.removeprefix("const ").split("*")[0].replace("Real", real)
        if _C_TYPES.get(array.dtype.name) != wanted or not array.flags.c_contiguous:
            raise ArgumentError(
                f"{declaration.split()[-1]}: a C-contiguous array of C type {wanted} is needed by {body.name}, found "
                f"dtype {array.dtype} with strides {array.strides}; make a contiguous copy of that dtype first"
            )
    sizes = [np.uint64(arrays[argument].shape[axis]) for _, argument, axis in body.sizes]
    n_blocks = int(sizes[0])
    if n_blocks:
        shared_bytes = body.threads * arrays[-1].dtype.itemsize
        _row_by_row(body, real)((n_blocks,), (body.threads,), (*arrays, *sizes), shared_mem=shared_bytes)


def _array(x: Any) -> Array:
    """Give a CuPy array the type that the seam states; see `dask_belief.backend.base.Array`."""
    array: Array = x
    return array
