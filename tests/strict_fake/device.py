"""Devices, streams and events, and the order that they give to what is done.

Everything is done at once. What a device would do later, or at the same time, shows all the same: each stream numbers
what is asked of it, each piece of memory keeps who wrote and who read it last, and who comes to it from another stream
must have waited, on the host or by an event. Without that the device might read what is not written yet::

    stream A:   write x (A, 1)   record event: it knows {A: 1}
    stream B:                         wait for the event: B now knows {A: 1}   read x: A's 1 is known, fine

What the host gets or gives without waiting is settled when it has waited: see `Progress.when_done`.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import ClassVar

from tests.strict_fake.counters import count_wait


class CUDARuntimeError(RuntimeError):
    """What CuPy raises for a call that the driver refuses."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")


class _OfThread(threading.local):
    """What CUDA and CuPy keep for each thread."""

    def __init__(self) -> None:
        self.device = 0
        self.streams: dict[int, list[Stream]] = {}


_of_thread = _OfThread()
_lock = threading.RLock()
_n_devices = 1


def set_device_count(n_devices: int) -> None:
    """Say how many devices there are from now on."""
    global _n_devices
    _n_devices = n_devices


def device_count() -> int:
    """Give the number of devices."""
    return _n_devices


def current_device() -> int:
    """Give the number of this thread's device."""
    return _of_thread.device


class Device:
    """A device by its number; as a context, the one that this thread works on."""

    def __init__(self, device: int | None = None) -> None:
        self.id = current_device() if device is None else int(device)
        self._before: list[int] = []

    def use(self) -> Device:
        """Make it this thread's device."""
        if not 0 <= self.id < _n_devices:
            raise CUDARuntimeError("cudaErrorInvalidDevice", "invalid device ordinal")
        _of_thread.device = self.id
        return self

    def synchronize(self) -> None:
        """Wait for every stream of the device."""
        count_wait()
        for stream in list(_streams):
            if stream.device_id in (-1, self.id):
                tell_host(progress_of(stream).knows())

    def __enter__(self) -> Device:
        before = current_device()
        self.use()
        self._before.append(before)
        return self

    def __exit__(self, *error: object) -> None:
        _of_thread.device = self._before.pop()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __int__(self) -> int:
        return self.id

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"


class Progress:
    """How far a stream is: what was asked of it, and what it and the host know to be done."""

    def __init__(self) -> None:
        self._asked = 0
        self._known_to_host = 0
        self._known: Known = {}
        self._when_done: list[tuple[int, Callable[[], None]]] = []

    def next(self) -> int:
        """Number what is asked now."""
        self._asked += 1
        return self._asked

    def knows(self) -> Known:
        """Give how far each stream certainly is when this one has done what was asked."""
        return {**self._known, self: self._asked}

    def learn(self, known: Known) -> None:
        """Do what is asked from now on only after that."""
        for other, number in known.items():
            self._known[other] = max(number, self._known.get(other, 0))

    def is_after(self, other: Progress, number: int) -> bool:
        """Tell whether what is asked now is certainly done after that of another stream."""
        return other is self or number <= max(other._known_to_host, self._known.get(other, 0))

    def when_done(self, settle: Callable[[], None]) -> None:
        """Call that once the host has waited for all that was asked up to now."""
        with _lock:
            self._when_done.append((self._asked, settle))

    def tell_host(self, number: int) -> None:
        """Note that the host knows what was asked up to that number to be done."""
        self._known_to_host = max(number, self._known_to_host)
        settled = [settle for asked, settle in self._when_done if asked <= self._known_to_host]
        self._when_done = [(asked, settle) for asked, settle in self._when_done if asked > self._known_to_host]
        for settle in settled:
            settle()


Known = dict[Progress, int]
"""Up to which number what was asked of each stream is done."""


def tell_host(known: Known) -> None:
    """Note that the host knows that to be done."""
    with _lock:
        for progress, number in known.items():
            progress.tell_host(number)


class Stream:
    """Work of a device in order; as a context, the one that this thread gives its work to.

    A stream that is not the null stream is taken for a non-blocking one: nothing orders it but waiting and events.
    """

    null: ClassVar[Stream]

    def __init__(
        self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: int | None = None
    ) -> None:
        self.device_id = -1 if null else current_device()
        self.ptr = 0 if null else id(self)
        self._progress = Progress()
        with _lock:
            _streams.add(self)

    def use(self) -> Stream:
        """Make it this thread's stream, of its device."""
        self._check_device()
        _stack()[-1] = self
        return self

    def synchronize(self) -> None:
        """Wait until everything that was asked of it is done."""
        count_wait()
        tell_host(self._progress.knows())

    def record(self, event: Event | None = None) -> Event:
        """Note in an event what has been asked so far."""
        return (event or Event()).record(self)

    def wait_event(self, event: Event) -> None:
        """Do what is asked from now on only after what the event has noted; the host goes on."""
        if not isinstance(event, Event):
            raise TypeError(f"expected an Event, got {type(event)}")
        self._progress.learn(event._known)

    @property
    def done(self) -> bool:
        """True: all is done at once here, and who asked now knows."""
        tell_host(self._progress.knows())
        return True

    def __enter__(self) -> Stream:
        self._check_device()
        _stack().append(self)
        return self

    def __exit__(self, *error: object) -> None:
        _stack().pop()

    def _check_device(self) -> None:
        if self.device_id not in (-1, current_device()):
            raise RuntimeError(f"This stream is of device {self.device_id}, the current one is {current_device()}")


_streams: weakref.WeakSet[Stream] = weakref.WeakSet()
Stream.null = Stream(null=True)


def _stack() -> list[Stream]:
    return _of_thread.streams.setdefault(current_device(), [Stream.null])


def current_stream(device: int | None = None) -> Stream:
    """Give this thread's stream; ``cupy.cuda.get_current_stream``."""
    return _stack()[-1]


def progress_of(stream: Stream | None = None) -> Progress:
    """Give how far a stream is, this thread's unless one is given."""
    return (stream or current_stream())._progress


class Event:
    """A mark in a stream that others can wait for."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self._known: Known = {}

    def record(self, stream: Stream | None = None) -> Event:
        """Note what has been asked of the stream, this thread's unless one is given."""
        self._known = progress_of(stream).knows()
        return self

    def synchronize(self) -> None:
        """Wait until that is done."""
        count_wait()
        tell_host(self._known)

    @property
    def done(self) -> bool:
        """True: all is done at once here, and who asked now knows."""
        tell_host(self._known)
        return True
