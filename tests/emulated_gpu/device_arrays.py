"""Notices arrays of a device on their way out of where they belong. Its functions run in a worker process.

They may leave by being serialised, for a future or a message; and within a worker as they are, as an argument or a
reply of an actor there.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import pickle
from collections.abc import Mapping
from typing import Any, NoReturn

from distributed.protocol import serialize
from distributed.protocol.serialize import register_serialization

from dask_belief.cluster.actors import ActorAddress, Caller

WAYS_OUT = ("pickled", "serialized", "argument", "reply")


class Watch:
    """What was noticed in this process."""

    def __init__(self) -> None:
        self.n_calls = 0
        self.found: list[str] = []
        self.is_on = False


_watch = Watch()


def watch() -> None:
    """Begin to notice, from nothing."""
    _watch.n_calls, _watch.found = 0, []
    if _watch.is_on:
        return
    _watch.is_on = True
    # Imported here: what collects these tests may have no CuPy.
    import cupy

    def refuse(way: str, *_: object, **options: object) -> NoReturn:
        _watch.found.append(way)
        raise TypeError(f"an array of a device was {way}")

    cupy.ndarray.__reduce__ = functools.partialmethod(lambda _, way: refuse(way), "pickled")
    register_serialization(cupy.ndarray, functools.partial(refuse, "serialized"), functools.partial(refuse, "read"))
    Caller.call = _watched(Caller.call)  # type: ignore[method-assign]


def seen() -> tuple[int, list[str]]:
    """Tell how many calls of actors were looked at, and what was noticed."""
    return _watch.n_calls, _watch.found


def _watched(call: Any) -> Any:
    @functools.wraps(call)
    async def watched(self: Caller, actor: ActorAddress, method: str, *arguments: object, **options: float) -> Any:
        _watch.n_calls += 1
        if _holds_device_array(arguments):
            _watch.found.append(f"argument of {method}")
        reply = await call(self, actor, method, *arguments, **options)
        if _holds_device_array(reply):
            _watch.found.append(f"reply of {method}")
        return reply

    return watched


def _holds_device_array(thing: object) -> bool:
    import cupy

    if isinstance(thing, cupy.ndarray):
        return True
    if isinstance(thing, Mapping):
        return any(map(_holds_device_array, [*thing.keys(), *thing.values()]))
    if isinstance(thing, list | tuple | set | frozenset):
        return any(map(_holds_device_array, thing))
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return any(_holds_device_array(getattr(thing, field.name)) for field in dataclasses.fields(thing))
    return False


def plant(way: str) -> None:
    """Let an array out by one way, to see that it is noticed."""
    import cupy

    array = cupy.ones(3)
    if way == "pickled":
        pickle.dumps([array])
    elif way == "serialized":
        serialize(array)
    else:
        asyncio.run(_call([array] if way == "argument" else None, {"a": array} if way == "reply" else None))


async def _call(argument: object, result: object) -> None:
    """Call an actor that is not there, whose reply is known."""

    async def line(worker: str, message: object) -> dict[str, Any]:
        return {"status": "OK", "result": result}

    caller = Caller(asyncio.get_running_loop(), line)
    await caller.call(ActorAddress(name="planted", worker="tcp://nowhere", key="planted", generation=0), "m", argument)
