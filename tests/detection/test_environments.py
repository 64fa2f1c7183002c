"""CuPy is used where it works; elsewhere a run goes on with NumPy, or is told in one line why there is no GPU."""

from __future__ import annotations

import ctypes
import re

import pytest

from tests.detection.environments import Found, look


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def check_fallback(found: Found, reason: str) -> None:
    """Automatic choice falls back with one logged reason, an explicit one raises with it, and it is one line."""
    assert not found.is_imported_early
    assert not found.is_usable
    assert re.search(reason, found.reason), found.reason
    assert "\n" not in found.reason
    assert found.chosen == ["numpy"] * 3
    assert found.logged == [f"Computing on the host with NumPy: {found.reason}."]
    assert found.explicit.startswith(f"backend 'cupy' was asked for: {found.reason}")


def test_without_cupy() -> None:
    """CuPy is not installed."""
    check_fallback(look("DETECT_WITHOUT_CUPY"), r"^CuPy is not installed$")


@pytest.mark.skipif(has_driver(), reason="this machine has a driver: a CUDA wheel without one is NOT TESTED")
def test_cuda_without_a_driver() -> None:
    """CuPy for CUDA imports, and finds no driver."""
    check_fallback(look("DETECT_CUDA_WHEEL"), r"^CuPy finds no CUDA device: .*(driver|device)")


def test_rocm_without_its_libraries() -> None:
    """CuPy for ROCm does not import, and of its banner the missing library is told."""
    check_fallback(look("DETECT_ROCM_WHEEL"), r"^CuPy does not import: lib\w+\.so\S*: cannot open shared object file")


def test_on_the_emulated_device() -> None:
    """A device that computes is used, by choice and by name, in silence; CuPy is imported when it is asked for."""
    assert look("DETECT_EMULATED") == Found(False, True, "usable", ["cupy"] * 3, [], "cupy")


def test_numpy_by_name_of_the_environment() -> None:
    """Where DASK_BELIEF_BACKEND names NumPy, automatic choice does not look for a device."""
    found = look("DETECT_EMULATED", DASK_BELIEF_BACKEND="numpy")
    assert (found.chosen, found.logged, found.explicit) == (["numpy"] * 3, [], "cupy")


def test_each_of_several_devices_is_used() -> None:
    """The last of two devices is as good as the first."""
    assert look("DETECT_EMULATED", device=1, EMULATED_GPU_DEVICES="2").chosen == ["cupy"] * 3


def test_a_device_beyond_the_count() -> None:
    """The devices are counted from 0."""
    found = look("DETECT_EMULATED", device=2, EMULATED_GPU_DEVICES="2")
    check_fallback(found, r"^device 2 was asked for, and there are 2$")


def test_a_device_that_is_hidden() -> None:
    """Of two devices one is left, which is number 0."""
    hidden = {"EMULATED_GPU_DEVICES": "2", "CUDA_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "1"}
    assert look("DETECT_EMULATED", **hidden).chosen == ["cupy"] * 3
    check_fallback(look("DETECT_EMULATED", device=1, **hidden), r"^device 1 was asked for, and there are 1$")


def test_all_devices_are_hidden() -> None:
    """None is left."""
    found = look("DETECT_EMULATED", CUDA_VISIBLE_DEVICES="", HIP_VISIBLE_DEVICES="")
    check_fallback(found, r"^CuPy finds no CUDA device")


def test_a_device_without_memory() -> None:
    """A device that is there and cannot hold four numbers is none."""
    found = look("DETECT_EMULATED", EMULATED_GPU_MEMORY_MB="0")
    check_fallback(found, r"^the CUDA device cannot compute: OutOfMemoryError: ")


def test_a_device_that_raises() -> None:
    """The first line of what it says is told."""
    check_fallback(
        look("DETECT_EMULATED", fault="raises"),
        r"^the CUDA device cannot compute: RuntimeError: an illegal memory access was encountered$",
    )


def test_a_device_that_computes_wrongly() -> None:
    """A wrong product is worse than none."""
    check_fallback(
        look("DETECT_EMULATED", fault="wrong"), r"^the CUDA device computes wrongly: a 2 x 2 product is off$"
    )
