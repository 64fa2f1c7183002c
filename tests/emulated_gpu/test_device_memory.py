"""The memory of a device as CuPy tells of it, and its errors when there is none left."""

from __future__ import annotations

import os

import numpy as np
import pytest

from dask_belief.backend import Backend, get_backend

IS_EMULATED = os.environ.get("EMULATED_GPU") == "1"
if IS_EMULATED:
    import cupy

pytestmark = pytest.mark.skipif(
    not IS_EMULATED, reason="needs the emulated device: scripts/emulated_gpu python -m pytest"
)

MIB = 2**20


@pytest.fixture
def device() -> Backend:
    backend = get_backend("cupy")
    backend.give_back_memory()
    return backend


def test_arrays_count_as_used_until_they_are_freed(device: Backend) -> None:
    """What was freed is free again although CuPy keeps it; given back, the driver has it, too."""
    before = device.device_memory()
    assert before is not None
    array = device.zeros(4 * MIB, np.uint8)
    during = device.device_memory()
    assert during is not None
    assert during.used_bytes - before.used_bytes == 4 * MIB
    # A device may take a little more than it gives.
    assert 4 * MIB <= before.free_bytes - during.free_bytes < 5 * MIB
    assert during.total_bytes == before.total_bytes
    del array
    after = device.device_memory()
    assert after is not None and after.used_bytes == before.used_bytes
    assert before.free_bytes - after.free_bytes < MIB

    def free_for_others() -> int:
        return int(cupy.cuda.runtime.memGetInfo()[0])

    kept = free_for_others()
    device.give_back_memory()
    assert free_for_others() - kept >= 4 * MIB


def test_limit_of_cupy_is_the_devices(device: Backend) -> None:
    """Where this process is allowed a part of the device, that part is what there is."""
    before = device.device_memory()
    assert before is not None
    pool = cupy.get_default_memory_pool()
    pool.set_limit(size=before.used_bytes + 8 * MIB)
    try:
        limited = device.device_memory()
        assert limited is not None
        assert (limited.total_bytes, limited.free_bytes) == (before.used_bytes + 8 * MIB, 8 * MIB)
        with pytest.raises(MemoryError) as caught:
            device.zeros(9 * MIB, np.uint8)
    finally:
        pool.set_limit(size=0)
    assert device.lacking_bytes(caught.value) == 9 * MIB


def test_array_larger_than_the_device_is_told_by_its_bytes(device: Backend) -> None:
    """CuPy's own error says how much was asked for."""
    memory = device.device_memory()
    assert memory is not None
    with pytest.raises(MemoryError) as caught:
        device.zeros(2 * memory.total_bytes, np.uint8)
    assert device.lacking_bytes(caught.value) == 2 * memory.total_bytes


def test_errors_of_the_libraries_are_known_by_their_names(device: Backend) -> None:
    """Out of memory they do not say how much; what else they raise, and what others do, is another error."""
    out_of_memory, not_ready = 2, 600
    assert device.lacking_bytes(cupy.cuda.runtime.CUDARuntimeError(out_of_memory)) == 0
    assert device.lacking_bytes(cupy.cuda.driver.CUDADriverError(out_of_memory)) == 0
    assert device.lacking_bytes(cupy.cuda.runtime.CUDARuntimeError(not_ready)) is None
    assert device.lacking_bytes(MemoryError("out_of_memory")) is None
    assert device.lacking_bytes(RuntimeError("cudaErrorMemoryAllocation")) is None
