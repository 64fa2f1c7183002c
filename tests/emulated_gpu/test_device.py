"""The emulated device counts exactly, and has as much memory and as many devices as it is told."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    os.environ.get("EMULATED_GPU") != "1", reason="needs the emulated device: scripts/emulated_gpu python -m pytest"
)

CHECKOUT = Path(__file__).parents[2]


def run(program: str, **variables: str) -> str:
    """What a program of a few lines says, run in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=CHECKOUT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_counts_are_exact() -> None:
    """Of launches, waits, copies with their bytes, and of what the driver was asked for, not CuPy's pool."""
    import cupy
    import cupyx

    from tests.emulated_gpu.counters import Counters, counted

    # Pinned: from and to other memory CuPy waits by itself.
    ones, product = cupyx.empty_pinned((8, 4), np.float32), cupyx.empty_pinned((8, 8), np.float32)
    ones[...] = 1
    with cupy.cuda.Stream(non_blocking=True) as stream:
        x, y, z = cupy.empty((8, 4), "float32"), cupy.empty((8, 4), "float32"), cupy.empty((8, 8), "float32")
        stream.synchronize()
        with counted() as found:
            x.set(ones)
            cupy.add(x, x, out=y)
            cupy.matmul(x, y.T, out=z)
            z.get(out=product, blocking=False)
            stream.synchronize()
    moved = {"copies_to_device": 1, "bytes_to_device": 128, "copies_to_host": 1, "bytes_to_host": 256}
    assert found == Counters(launches=2, waits=1, **moved)
    assert (product == 8).all()


def test_products_cannot_be_captured() -> None:
    """As on NVIDIA, where CuPy refuses them; the other kernels of a step can be."""
    import cupy

    x, product = cupy.ones((8, 8), "float32"), cupy.zeros((8, 8), "float32")
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        cupy.add(x, x, out=x)
        with pytest.raises((NotImplementedError, cupy.cuda.cublas.CUBLASError)):
            cupy.matmul(x, x, out=product)
        stream.end_capture().launch(stream)
        stream.synchronize()
    assert (x.get() == 2).all() and not product.get().any()


def test_memory_has_a_limit() -> None:
    """As CuPy tells it, and what is freed can be had again."""
    program = """
import cupy
try:
    cupy.zeros(20 * 2**20, "uint8")
except cupy.cuda.memory.OutOfMemoryError:
    x = cupy.zeros(6 * 2**20, "uint8")
    del x
    print(cupy.zeros(7 * 2**20, "uint8").nbytes)
"""
    assert run(program, EMULATED_GPU_MEMORY_MB="10") == str(7 * 2**20)


@pytest.mark.parametrize(
    ("visible", "expected"), [(None, "3 00 01 02"), ("2,0", "2 02 00"), ("", "0"), ("1,9,0", "1 01")]
)
@pytest.mark.parametrize("variable", ["CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"])
def test_devices_are_those_that_are_visible(variable: str, visible: str | None, expected: str) -> None:
    """In the order of the list, up to the first name that is none."""
    program = """
import cupy
try:
    n_devices = cupy.cuda.runtime.getDeviceCount()
except cupy.cuda.runtime.CUDARuntimeError:
    n_devices = 0
print(n_devices, *(cupy.cuda.Device(number).pci_bus_id[5:7] for number in range(n_devices)))
"""
    chosen = {} if visible is None else {variable: visible}
    assert run(program, EMULATED_GPU_DEVICES="3", **chosen) == expected


def test_devices_have_memory_of_their_own() -> None:
    """An array tells on which it is, and is copied from one to another."""
    program = """
import cupy
with cupy.cuda.Device(1):
    x = cupy.arange(5)
with cupy.cuda.Device(0):
    y = cupy.array(x)
print(x.device.id, y.device.id, y.get().tolist())
"""
    assert run(program, EMULATED_GPU_DEVICES="2") == "1 0 [0, 1, 2, 3, 4]"


def test_a_peer_may_be_given_access() -> None:
    """Guarded, a kernel of one device works on another's memory once it is allowed to, and no more after."""
    program = """
import cupy
with cupy.cuda.Device(1):
    x = cupy.zeros(4, "float32")
    cupy.cuda.Device().synchronize()
ones = cupy.RawKernel('extern "C" __global__ void ones(float* x) { x[threadIdx.x] += 1; }', "ones")
cupy.cuda.runtime.deviceEnablePeerAccess(1)
ones((1,), (4,), (x,))
cupy.cuda.Device().synchronize()
print(x.get().tolist(), flush=True)
cupy.cuda.runtime.deviceDisablePeerAccess(1)
ones((1,), (4,), (x,))
cupy.cuda.Device().synchronize()
print("not reached")
"""
    modes = {"EMULATED_GPU_GUARD": "1", "EMULATED_GPU_DEVICES": "2"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=os.environ | modes, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (-signal.SIGSEGV, "[1.0, 1.0, 1.0, 1.0]\n"), done.stderr


def test_sources_of_the_kernels_that_were_used_are_kept(tmp_path: Path) -> None:
    """Each once, whole, whether it was compiled or came from CuPy's cache; and none that others used."""
    program = """
import cupy
kernels = {name: cupy.ElementwiseKernel("T x", "T y", "y = x + 41", name) for name in ("first_of_two", "second_of_two")}
x = cupy.arange(3.0)
for name in %s:
    kernels[name](x); kernels[name](x)
"""
    cache = {"CUPY_CACHE_DIR": str(tmp_path / "cache")}
    for number, names in enumerate([("first_of_two", "second_of_two"), ("second_of_two",)]):
        folder = tmp_path / str(number)
        run(program % (names,), EMULATED_GPU_RECORD=str(folder), **cache)
        assert {path.suffix for path in folder.iterdir()} == {".cu"}
        # Others are CuPy's own, of arange.
        texts = [path.read_text() for path in folder.iterdir() if "of_two" in path.read_text()]
        assert [text.count("y = x + 41") for text in texts] == [1] * len(names)
        assert not any("\0" in text for text in texts)
        assert sorted(re.findall(r"\w+_of_two", "".join(texts))) == sorted(names)


def test_sources_are_kept_whole(tmp_path: Path) -> None:
    """To the last character, as they were given."""
    program = """
import cupy
text = 'extern "C" __global__ void seven(float* x) { x[threadIdx.x] = 7; }'
for _ in range(2):
    x = cupy.empty(4, "float32")
    cupy.RawKernel(text, "seven")((1,), (4,), (x,))
    assert (x.get() == 7).all()
print(text)
"""
    text = run(program, EMULATED_GPU_RECORD=str(tmp_path / "record"), CUPY_CACHE_DIR=str(tmp_path / "cache"))
    kept = [path.read_text() for path in (tmp_path / "record").iterdir()]
    assert [each for each in kept if "seven" in each] == [text]


def test_a_record_that_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    """A folder that is none."""
    (tmp_path / "file").touch()
    program = """
import cupy
try:
    cupy.arange(3.0) + 1
except cupy.cuda.driver.CUDADriverError:
    print("told")
"""
    assert run(program, EMULATED_GPU_RECORD=str(tmp_path / "file" / "folder")) == "told"


def test_processes_compile_side_by_side(tmp_path: Path) -> None:
    """With no kernel compiled before; nothing is left in the folder for what is in passing."""
    program = """
import cupy
kernel = cupy.ElementwiseKernel("T x", "T y", "y = x * x + (T)%d", "kernel_of_its_own_%d")
print(kernel(cupy.arange(3.0)).get().tolist())
"""
    environment = os.environ | {"CUPY_CACHE_DIR": str(tmp_path), "TMPDIR": str(tmp_path)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program % (number, number)],
            cwd=CHECKOUT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    said = [process.communicate(timeout=100)[0].strip() for process in processes]
    assert said == [
        str([number, 1.0 + number, 4.0 + number]).replace(f"[{number},", f"[{number}.0,") for number in range(4)
    ]
    assert not list(tmp_path.glob("emulated-gpu-*")), "a scratch folder was left behind"
