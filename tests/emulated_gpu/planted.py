"""Small programs with a bug that a GPU would show, or not: ``python -m tests.emulated_gpu.planted NAME right|wrong``.

Each is right or wrong by one word. It ends with status 0 when its result is right, with `FAULT` when it is not; the
emulated device may end it sooner.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

import cupy
import cupyx
import numpy as np

FAULT = 3

SHARED = r"""extern "C" __global__ void reverse(const float* x, float* y) {
  extern __shared__ float kept[];
  kept[threadIdx.x] = x[threadIdx.x];
  BARRIER
  y[threadIdx.x] = kept[blockDim.x - 1 - threadIdx.x];
}"""

DIVERGENT = r"""extern "C" __global__ void some(float* x) {
  if (CONDITION) __syncthreads();
  else __syncwarp();
  x[threadIdx.x] += 1;
}"""

SHARED_BY_A_WARP = SHARED.replace("reverse", "reverse_of_a_warp")

TOO_LITTLE = r"""extern "C" __global__ void keep(float* x) {
  extern __shared__ float kept[];
  kept[threadIdx.x] = 1;
  x[threadIdx.x] = kept[threadIdx.x];
}"""

COUNT = r"""extern "C" __global__ void count(int* total) {
  OPERATION;
}"""

LAST = r"""extern "C" __global__ void fill(float* x, int n) {
  if (threadIdx.x COMPARISON n) x[threadIdx.x] = 1;
}"""

FROM = r"""extern "C" __global__ void fill_from(float* x, int first) {
  x[first + (int)threadIdx.x] = 1;
}"""

READ = r"""extern "C" __global__ void read_one(const float* x, float* y, int n) {
  *y = x[n];
}"""


def missing_event(is_right: bool) -> bool:
    """Another stream reads what a first one writes."""
    first, second = cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream(non_blocking=True)
    x, written = cupy.zeros(100, "float32"), cupy.cuda.Event()
    cupy.cuda.Device().synchronize()
    with first:
        x += 1
        written.record(first)
    with second:
        if is_right:
            second.wait_event(written)
        return bool((x.get() == 1).all())


def unordered_null_stream(is_right: bool) -> bool:
    """A stream that keeps no order with the null stream reads what that one writes."""
    x = cupy.ones(100, "float32")
    if is_right:
        cupy.cuda.Stream.null.synchronize()
    with cupy.cuda.Stream(non_blocking=True):
        return bool((x.get() == 1).all())


def refilled_buffer(is_right: bool) -> bool:
    """The host fills a pinned buffer again whose copy may not have been made."""
    stream, total = cupy.cuda.Stream(non_blocking=True), 0.0
    buffers = [cupyx.empty_pinned((1000,), "float32") for _ in range(2)]
    copied = [cupy.cuda.Event() for _ in range(2)]
    with stream:
        device = [cupy.empty(1000, "float32") for _ in range(2)]
        sums = cupy.zeros(1, "float32")
        for number in range(8):
            which = number % 2
            if is_right and number >= 2:
                copied[which].synchronize()
            buffers[which][:] = number
            device[which].set(buffers[which])
            copied[which].record(stream)
            sums += device[which].sum()
        total = float(sums.get()[0])
    return total == 1000 * sum(range(8))


def freed_buffer(is_right: bool) -> bool:
    """A pinned buffer goes back to CuPy's pool, and from there to another user, before it was copied from."""
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        x, buffer = cupy.empty(100, "float32"), cupyx.empty_pinned((100,), "float32")
        buffer[:] = 5
        x.set(buffer)
        if is_right:
            stream.synchronize()
        del buffer
        other = cupyx.empty_pinned((100,), "float32")
        other[:] = 6
        return bool((x.get() == 5).all())


def early_read(is_right: bool) -> bool:
    """The host reads a pinned buffer before what was to be copied there has come."""
    stream, host = cupy.cuda.Stream(non_blocking=True), cupyx.empty_pinned((100,), "float32")
    host[:] = 0
    with stream:
        x = cupy.full(100, 3, "float32")
        x.get(out=host, blocking=False)
    if is_right:
        stream.synchronize()
    return bool((host == 3).all())


def race_between_blocks(is_right: bool) -> bool:
    """Blocks write to one place; which is last differs."""
    body = "atomicAdd(total, (int)blockIdx.x)" if is_right else "total[0] = blockIdx.x"
    total = cupy.zeros(1, "int32")
    cupy.RawKernel(COUNT.replace("OPERATION", body), "count")((64,), (1,), (total,))
    return int(total.get()[0]) == (sum(range(64)) if is_right else 63)


def race_within_a_block(is_right: bool) -> bool:
    """A thread reads what another one writes, with no barrier between."""
    source = SHARED.replace("BARRIER", "__syncthreads();" if is_right else "")
    x, y = cupy.arange(64, dtype="float32"), cupy.empty(64, "float32")
    cupy.RawKernel(source, "reverse")((1,), (64,), (x, y), shared_mem=256)
    return bool((y.get() == np.arange(64)[::-1]).all())


def race_within_a_warp(is_right: bool) -> bool:
    """As above, in one warp: its threads do not go in step by themselves."""
    source = SHARED_BY_A_WARP.replace("BARRIER", "__syncwarp();" if is_right else "")
    x, y = cupy.arange(32, dtype="float32"), cupy.empty(32, "float32")
    cupy.RawKernel(source, "reverse_of_a_warp")((1,), (32,), (x, y), shared_mem=128)
    return bool((y.get() == np.arange(32)[::-1]).all())


def last_of_several(is_right: bool) -> bool:
    """Several values are assigned to one element, of which NumPy would keep the last."""
    x, indices = cupy.zeros(4, "float32"), [1, 2, 3] if is_right else [1, 1, 1]
    x[cupy.array(indices)] = cupy.array([5, 6, 7], "float32")
    expected = np.zeros(4)
    expected[indices] = [5, 6, 7]
    return bool((x.get() == expected).all())


def repeated_indices(is_right: bool) -> bool:
    """Repeated indices, of which an assignment adds one only."""
    table, indices = cupy.zeros(4, "float32"), cupy.array([1, 1, 2])
    if is_right:
        cupyx.scatter_add(table, indices, cupy.ones(3, "float32"))
    else:
        table[indices] += 1
    return table.get().tolist() == [0, 2, 1, 0]


def past_the_end(is_right: bool) -> bool:
    """A kernel writes one element too many."""
    cupy.cuda.set_allocator(None)
    x = cupy.zeros(100, "float32")
    source = LAST.replace("COMPARISON", "<" if is_right else "<=")
    cupy.RawKernel(source, "fill")((1,), (128,), (x, np.int32(100)))
    del x
    return True


def before_the_start(is_right: bool) -> bool:
    """A kernel writes an element too early, where another array ends."""
    cupy.cuda.set_allocator(None)
    arrays = [cupy.zeros(100, "float32") for _ in range(2)]
    x = max(arrays, key=lambda array: int(array.data.ptr))
    cupy.RawKernel(FROM, "fill_from")((1,), (100,), (x, np.int32(0 if is_right else -1)))
    del x, arrays
    return True


def read_past_the_end(is_right: bool) -> bool:
    """A kernel reads one element too many."""
    cupy.cuda.set_allocator(None)
    x, y = cupy.ones(100, "float32"), cupy.zeros(1, "float32")
    cupy.RawKernel(READ, "read_one")((1,), (1,), (x, y, np.int32(99 if is_right else 100)))
    return float(y.get()[0]) == 1


def too_little_shared_memory(is_right: bool) -> bool:
    """A kernel writes past the end of the shared memory that its launch asks for."""
    x = cupy.zeros(64, "float32")
    cupy.RawKernel(TOO_LITTLE, "keep")((1,), (64,), (x,), shared_mem=4 * (64 if is_right else 63))
    return bool((x.get() == 1).all())


def unwritten_memory(is_right: bool) -> bool:
    """What was allocated is read before it is written."""
    x = (cupy.zeros if is_right else cupy.empty)(100, "float32")
    x[:50] = 1
    return bool(np.isfinite(x.get()).all())


def unwritten_buffer(is_right: bool) -> bool:
    """A pinned buffer is copied from before anything was written to it."""
    host, x = (cupyx.zeros_pinned if is_right else cupyx.empty_pinned)((100,), "float32"), cupy.empty(100, "float32")
    x.set(host)
    return bool((x.get() == 0).all())


def touch_of_the_host(is_right: bool) -> bool:
    """The host reads device memory by its address."""
    x = cupy.ones(4, "float32")
    if is_right:
        return float(x.get().sum()) == 4.0
    numbers = ctypes.cast(x.data.ptr, ctypes.POINTER(ctypes.c_float))
    return float(np.ctypeslib.as_array(numbers, (4,)).sum()) == 4.0


def memory_of_another_device(is_right: bool) -> bool:
    """A kernel of one device works on an array of another one."""
    with cupy.cuda.Device(0):
        x = cupy.zeros(100, "float32")
        cupy.cuda.Device().synchronize()
    with cupy.cuda.Device(0 if is_right else 1):
        cupy.RawKernel(LAST.replace("COMPARISON", "<"), "fill")((1,), (128,), (x, np.int32(100)))
        cupy.cuda.Device().synchronize()
    return bool((x.get() == 1).all())


def divergent_barrier(is_right: bool) -> bool:
    """Half of a warp waits for the block, the other half for the warp: none of them goes on."""
    source = DIVERGENT.replace("CONDITION", "true" if is_right else "threadIdx.x < 16")
    x = cupy.zeros(32, "float32")
    cupy.RawKernel(source, "some")((1,), (32,), (x,))
    return bool((x.get() == 1).all())


def wait_inside_a_graph(is_right: bool) -> bool:
    """A captured step waits for the device."""
    stream, x = cupy.cuda.Stream(non_blocking=True), cupy.zeros(10, "float32")
    x += 1
    cupy.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        x += 1
        if not is_right:
            stream.synchronize()
        stream.end_capture().launch(stream)
        stream.synchronize()
    return bool((x.get() == 2).all())


PLANTED: dict[str, Callable[[bool], bool]] = {
    function.__name__: function
    for function in (
        missing_event,
        unordered_null_stream,
        refilled_buffer,
        freed_buffer,
        early_read,
        race_between_blocks,
        race_within_a_block,
        race_within_a_warp,
        last_of_several,
        repeated_indices,
        past_the_end,
        before_the_start,
        read_past_the_end,
        too_little_shared_memory,
        unwritten_memory,
        unwritten_buffer,
        touch_of_the_host,
        memory_of_another_device,
        divergent_barrier,
        wait_inside_a_graph,
    )
}


def main() -> None:
    """Run the one that is named."""
    name, which = sys.argv[1:]
    sys.exit(0 if PLANTED[name](which == "right") else FAULT)


if __name__ == "__main__":
    main()
