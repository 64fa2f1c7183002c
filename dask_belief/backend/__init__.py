"""Where arrays live and how they are computed with: NumPy on the host, CuPy on a device.

This package is the only one that names CuPy, and imports it at the first use.
"""

from __future__ import annotations

import functools
import logging
import os
import threading

from dask_belief.backend.base import Array, Backend, Scalar
from dask_belief.backend.numpy import NumpyBackend
from dask_belief.errors import ArgumentError, NoGPU

__all__ = ["Array", "Backend", "Scalar", "cupy_devices", "cupy_status", "get_backend"]

logger = logging.getLogger(__name__)

ENVIRONMENT_VARIABLE = "DASK_BELIEF_BACKEND"
"""Names the backend that ``"auto"`` stands for."""

_NAMES = ("auto", "numpy", "cupy")
_lock = threading.RLock()
_backends: dict[tuple[str, int], Backend] = {}


def get_backend(name: str = "auto", device: int = 0) -> Backend:
    """Give the backend of that name; the same one each time.

    Parameters
    ----------
    name
        ``"numpy"``, ``"cupy"``, or ``"auto"``: what the environment variable ``DASK_BELIEF_BACKEND`` names, else CuPy
        where it can be used, else NumPy with the reason logged, once per process.
    device
        The number of the device, as CUDA counts them in this process; no matter for NumPy.

    Raises
    ------
    NoGPU
        CuPy was asked for by name and cannot be used; the message says why.
    ArgumentError
        There is no backend of that name, or `device` is negative.
    """
    _check_name(name, "name")
    if device < 0:
        raise ArgumentError(f"device: found {device}; devices are counted from 0")
    if name == "auto":
        name = os.environ.get(ENVIRONMENT_VARIABLE) or "auto"
        _check_name(name, ENVIRONMENT_VARIABLE)
    with _lock:
        if name == "auto":
            usable, reason = cupy_status(device)
            name = "cupy" if usable else "numpy"
            if not usable:
                _log_fallback(reason)
        key = (name, device if name == "cupy" else 0)
        if key not in _backends:
            _backends[key] = _make(*key)
        return _backends[key]


def cupy_devices() -> tuple[int, str]:
    """Count the devices that CuPy finds, and where there is none, say why; nothing is computed on them, nor raised."""
    try:
        import cupy
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
            return 0, "CuPy is not installed"
        # CuPy wraps what went wrong in a banner of many lines; its cause is the line that matters.
        return 0, f"CuPy does not import: {_first_line(error.__cause__ or error)}"
    try:
        n_devices = int(cupy.cuda.runtime.getDeviceCount())
    except Exception as error:
        return 0, f"CuPy finds no CUDA device: {_first_line(error)}"
    return n_devices, "found" if n_devices else "CuPy finds no CUDA device"


@functools.cache
def cupy_status(device: int = 0) -> tuple[bool, str]:
    """Tell whether CuPy can be used on that device, and if not, why not.

    Never raises. A package without a device, or a device that cannot compute, counts as unusable: a small matrix
    product proves driver, memory, compiler and linear algebra at once.
    """
    n_devices, reason = cupy_devices()
    if not n_devices:
        return False, reason
    if device >= n_devices:
        return False, f"device {device} was asked for, and there are {n_devices}"
    import cupy

    try:
        with cupy.cuda.Device(device):
            ones = cupy.ones((2, 2), "float32")
            is_right = float((ones @ ones + 1).sum().get()) == 12.0
    except Exception as error:
        return False, f"the CUDA device cannot compute: {type(error).__name__}: {_first_line(error)}"
    return (True, "usable") if is_right else (False, "the CUDA device computes wrongly: a 2 x 2 product is off")


def _make(name: str, device: int) -> Backend:
    if name == "numpy":
        return NumpyBackend()
    usable, reason = cupy_status(device)
    if not usable:
        raise NoGPU(f"backend 'cupy' was asked for: {reason}; ask for 'numpy', or 'auto' to use CuPy where it works")
    from dask_belief.backend.cupy import CupyBackend

    return CupyBackend(device)


@functools.cache
def _log_fallback(reason: str) -> None:
    logger.info("Computing on the host with NumPy: %s.", reason)


def _check_name(name: str, argument: str) -> None:
    if name not in _NAMES:
        raise ArgumentError(f"{argument}: found {name!r}; choose one of {', '.join(_NAMES)}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
