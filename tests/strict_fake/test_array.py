"""Each strictness of the arrays and functions."""

from __future__ import annotations

import threading
from types import ModuleType

import numpy as np
import pytest

from tests.strict_fake import names
from tests.strict_fake.counters import DeviceSynchronized, counted
from tests.strict_fake.device import CUDARuntimeError
from tests.strict_fake.memory import UnorderedAccessError


def test_only_names_that_cupy_has(cupy: ModuleType, cupyx: ModuleType) -> None:
    """A name of NumPy's alone is no attribute; one of CuPy's that nobody stands in for says so."""
    for module, name in ((cupy, "nditer"), (cupy, "block"), (cupy.linalg, "multi_dot"), (cupyx, "sum")):
        with pytest.raises(AttributeError, match=name):
            getattr(module, name)
    with pytest.raises(NotImplementedError, match=r"cupy\.fft is CuPy's, and has no stand-in"):
        _ = cupy.fft
    with pytest.raises(NotImplementedError, match="data"):
        _ = cupy.ones(3).data


def test_only_parameters_that_cupy_has(cupy: ModuleType) -> None:
    """What only NumPy's function takes is refused, as a function and as a method."""
    x = cupy.ones(3)
    for call in (
        lambda: cupy.sum(x, initial=1.0),
        lambda: cupy.add(x, x, where=x > 0),
        lambda: x.max(initial=0.0),
        lambda: cupy.concatenate([x, x], wrong=1),
    ):
        with pytest.raises(TypeError):
            call()


def test_a_numpy_array_is_refused_wherever_it_stands(cupy: ModuleType) -> None:
    """As an operand, an argument, a keyword, an index, inside a list, and as what is written."""
    x, host = cupy.ones(3), np.ones(3)
    for call in (
        lambda: x + host,
        lambda: host - x,
        lambda: cupy.multiply(x, host),
        lambda: cupy.sum(host),
        lambda: x.dot(host),
        lambda: cupy.clip(x, host, 2.0),
        lambda: cupy.take(x, indices=np.array([0])),
        lambda: x[np.array([0])],
        lambda: cupy.stack([x, host]),
        lambda: cupy.add(x, x, out=host),
        lambda: cupy.sum(x, out=np.array(0.0)),
    ):
        with pytest.raises(TypeError):
            call()


def test_nothing_becomes_a_numpy_array_unasked(cupy: ModuleType) -> None:
    """By conversion, assignment, or one of NumPy's functions."""
    x = cupy.ones(3)
    with pytest.raises(TypeError, match="Implicit conversion to a NumPy array is not allowed"):
        np.asarray(x)
    with pytest.raises(TypeError, match="Implicit"):
        np.ones(3)[:] = x
    assert type(np.sum(x)) is type(np.exp(x)) is cupy.ndarray


def test_results_of_no_axes_stay_on_the_device(cupy: ModuleType) -> None:
    """A sum, an element and a comparison are 0-d arrays, and tell their value only when asked, which waits."""
    x = cupy.ones(3, "f4")
    with counted() as asked:
        results = [x.sum(), x[0], cupy.any(x > 0), cupy.dot(x, x)]
    assert all(type(each) is cupy.ndarray and each.shape == () for each in results)
    assert (asked.waits, asked.copies_to_host) == (0, 0)
    with counted() as asked:
        assert [float(each) for each in results] == [3.0, 1.0, 1.0, 3.0]
    assert (asked.waits, asked.copies_to_host, asked.bytes_to_host) == (4, 4, 13)


def test_memory_nobody_wrote_shows(cupy: ModuleType, cupyx: ModuleType) -> None:
    """On the device and pinned: not a number, or no index."""
    assert np.isnan(cupy.empty(3).get()).all()
    assert np.isnan(cupy.empty_like(cupy.ones(3)).get()).all()
    assert np.isnan(cupyx.empty_pinned((3,), "f4")).all()
    assert (cupy.empty(3, np.int64).get() > 2**60).all()
    assert not cupyx.zeros_pinned((3,), "f4").any()


def test_set_and_get_take_what_lies_alike(cupy: ModuleType) -> None:
    """The same dtype and shape, without gaps, from and to the host."""
    x = cupy.zeros((2, 3), "f4")
    x.set(np.ones((2, 3), "f4"))
    assert x.get().tolist() == [[1, 1, 1], [1, 1, 1]]
    for values, error in (
        (np.ones((2, 3)), TypeError),
        (np.ones((3, 2), "f4"), ValueError),
        (x, TypeError),
        ([[1.0] * 3] * 2, TypeError),
    ):
        with pytest.raises(error):
            x.set(values)
    with pytest.raises(RuntimeError, match="non-contiguous"):
        x[:, ::2].set(np.ones((2, 2), "f4"))
    with pytest.raises(TypeError):
        x.get(out=np.empty((2, 3)))
    with pytest.raises(ValueError, match="Shape"):
        x.get(out=np.empty((3, 2), "f4"))
    with pytest.raises(RuntimeError, match="non-contiguous"):
        x.get(out=np.empty((2, 6), "f4")[:, ::2])


def test_an_index_out_of_range_is_an_error(cupy: ModuleType) -> None:
    """CuPy wraps it in silence, which is worse."""
    with pytest.raises(IndexError):
        cupy.ones(3)[cupy.asarray([5])]


def test_what_is_counted(cupy: ModuleType, cupyx: ModuleType) -> None:
    """Kernels, new arrays, copies with their bytes; a view asks for nothing, and writing in place allocates nothing."""
    x, y = cupy.ones(100, "f4"), cupy.ones(100, "f4")
    with counted() as asked:
        x += 1
        cupy.multiply(x, y, out=y)
        x[:50] = 0
        cupyx.scatter_add(x, cupy.asarray(np.arange(3)), 1.0)
    assert (asked.launches, asked.allocations, asked.waits) == (4, 1, 0)
    assert (asked.copies_to_device, asked.bytes_to_device, asked.copies_to_host) == (1, 24, 0)
    with counted() as asked:
        _ = x.reshape(10, 10).T, x[1:], x.view(np.uint8), cupy.split(x, 4), x.ravel()
    assert (asked.launches, asked.allocations) == (0, 0)
    with counted() as asked:
        _ = x + y, x.sum()
        x.get()
    assert (asked.launches, asked.allocations, asked.waits, asked.bytes_to_host) == (2, 2, 1, 400)


def test_what_waits_is_known(cupy: ModuleType, cupyx: ModuleType) -> None:
    """Masks and what asks the device for a size wait; in `allow_synchronize(False)` that is an error."""
    x, out = cupy.ones(3, "f4"), np.empty(3, "f4")
    waiting = (
        lambda: x[x > 0],
        lambda: x.__setitem__(x > 0, 0),
        lambda: cupy.nonzero(x),
        lambda: cupy.where(x > 0),
        lambda: x.get(),
        lambda: float(x[0]),
        lambda: cupy.cuda.get_current_stream().synchronize(),
        lambda: cupy.cuda.Device().synchronize(),
        lambda: cupy.cuda.Event().record().synchronize(),
    )
    for call in waiting:
        with counted() as asked:
            call()
        assert asked.waits == 1
        with cupyx.allow_synchronize(False), pytest.raises(DeviceSynchronized):
            call()
    with cupyx.allow_synchronize(False):
        _ = cupy.where(x > 0, x, x), cupy.take(x, cupy.asarray([0])), x.sum(), x.get(out=out, blocking=False)


def test_an_array_of_another_device_is_refused(cupy: ModuleType) -> None:
    """What is on device 1 is not computed with on device 0, nor is there a device 2."""
    with cupy.cuda.Device(1):
        x = cupy.ones(3)
        assert x.device.id == 1
    for call in (lambda: x + 1, lambda: x.get(), lambda: x.set(np.ones(3)), lambda: cupy.sum(x)):
        with pytest.raises(ValueError, match="array device = 1 while current = 0"):
            call()
    with pytest.raises(CUDARuntimeError, match="InvalidDevice"):
        cupy.cuda.Device(2).use()


def test_a_stream_is_used_on_its_device(cupy: ModuleType) -> None:
    """A stream of device 0 is none of device 1's, and each thread has a current stream of its own."""
    stream = cupy.cuda.Stream(non_blocking=True)
    with cupy.cuda.Device(1), pytest.raises(RuntimeError, match="device 0"):
        stream.use()
    seen = []
    with stream:
        thread = threading.Thread(target=lambda: seen.append(cupy.cuda.get_current_stream()))
        thread.start()
        thread.join()
        assert cupy.cuda.get_current_stream() is stream
    assert seen == [cupy.cuda.Stream.null]


def test_streams_are_not_ordered_unless_something_orders_them(cupy: ModuleType) -> None:
    """Reading what another stream writes, or writing what it reads, needs a wait or an event between."""
    first, second = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    with first:
        x = cupy.ones(3)
    with second:
        with pytest.raises(UnorderedAccessError, match="reads what another one may still be writing"):
            x.sum()
        with pytest.raises(UnorderedAccessError, match="writes what another one may still be writing"):
            x.fill(0)
        second.wait_event(first.record())
        x.sum()
    with first, pytest.raises(UnorderedAccessError, match="may still be reading"):
        x[1:] += 1
    second.synchronize()
    with first:
        x[1:] += 1
    first.synchronize()
    assert x.sum().item() == 5


def test_an_event_tells_what_the_stream_knew(cupy: ModuleType) -> None:
    """What a stream has waited for is passed on by its own events."""
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(3)]
    with streams[0]:
        x = cupy.ones(3)
    streams[1].wait_event(streams[0].record())
    streams[2].wait_event(streams[1].record())
    with streams[2]:
        x.sum()


def test_pinned_memory_is_left_alone_until_the_copy_is_done(cupy: ModuleType, cupyx: ModuleType) -> None:
    """Filled again too early it is found at the next wait; after an event, or from ordinary memory, it is fine."""
    stream, pinned, x = cupy.cuda.Stream(non_blocking=True), cupyx.zeros_pinned((3,), "f4"), cupy.empty(3, "f4")
    with stream:
        x = cupy.empty(3, "f4")
        x.set(pinned)
        pinned[:] = 1
        with pytest.raises(UnorderedAccessError, match="filled again"):
            stream.synchronize()
        x.set(pinned)
        copied = stream.record()
        copied.synchronize()
        pinned[:] = 2
        ordinary = np.zeros(3, "f4")
        x.set(ordinary)
        ordinary[:] = 1
        stream.synchronize()


def test_what_was_asked_for_without_waiting_is_there_after_a_wait(cupy: ModuleType, cupyx: ModuleType) -> None:
    """Until then the host sees nothing that it could use."""
    stream, out = cupy.cuda.Stream(non_blocking=True), cupyx.zeros_pinned((3,), "f4")
    with stream:
        x = cupy.ones(3, "f4")
        x.get(out=out, blocking=False)
        assert np.isnan(out).all()
        x += 1
        stream.synchronize()
    assert out.tolist() == [1, 1, 1]


def test_pinned_memory_is_known(cupy: ModuleType, cupyx: ModuleType) -> None:
    """Its parts are, too; ordinary memory is not, and what has been freed is no longer."""
    pinned = cupyx.empty_pinned((4, 4), "f4")
    attributes = cupy.cuda.runtime.pointerGetAttributes
    assert attributes(pinned.ctypes.data).hostPointer
    assert attributes(pinned[2:].ctypes.data).hostPointer
    assert not attributes(np.ones(3).ctypes.data).hostPointer
    pointer = pinned.ctypes.data
    del pinned
    assert not attributes(pointer).hostPointer


def test_memory_is_counted_and_may_run_out(cupy: ModuleType) -> None:
    """Arrays hold memory of their device until they are gone, views hold that of their array; a limit is kept."""
    pool, free = cupy.get_default_memory_pool(), cupy.cuda.runtime.memGetInfo
    before, free_before = pool.used_bytes(), free()[0]
    x = cupy.ones(1000, "f4")
    view = x[10:]
    assert (pool.used_bytes() - before, free_before - free()[0]) == (4000, 4000)
    with cupy.cuda.Device(1):
        assert pool.used_bytes() == 0
    del x
    assert pool.used_bytes() - before == 4000
    del view
    assert pool.used_bytes() == before
    pool.set_limit(size=before + 4000)
    try:
        kept = cupy.ones(500, "f4")
        with pytest.raises(cupy.cuda.memory.OutOfMemoryError, match=r"Out of memory allocating 4,000 bytes"):
            cupy.empty(500, "f8")
        del kept
        cupy.empty(500, "f8")
    finally:
        pool.set_limit(size=0)
    with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
        cupy.empty((2**20, 2**14), "f4")


def test_the_stand_in_offers_nothing_of_its_own(cupy: ModuleType, cupyx: ModuleType) -> None:
    """What its modules and classes offer without NumPy's help is CuPy's, too."""
    recorded = names.load()
    for source, holder in {
        "cupy": cupy,
        "cupyx": cupyx,
        "cupy.cuda": cupy.cuda,
        "cupy.cuda.runtime": cupy.cuda.runtime,
        "cupy.cuda.Device": cupy.cuda.Device,
        "cupy.cuda.Event": cupy.cuda.Event,
        "cupy.cuda.Stream": cupy.cuda.Stream,
        "cupy.ndarray": cupy.ndarray,
        "cupy.ufunc": cupy.ufunc,
    }.items():
        offered = {name for name, value in vars(holder).items() if not isinstance(value, (ModuleType, bool))}
        assert {name for name in offered - recorded[source].keys() if not name.startswith("_")} == set(), source
