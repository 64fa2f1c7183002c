"""Actors without a cluster: plain objects behind the real `Caller`, on an event loop of their own."""

from __future__ import annotations

import asyncio
import dataclasses
import pickle
import threading
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np

from dask_belief.cluster.actors import ActorAddress, Caller, Message
from dask_belief.parameter_server.client import ParameterServer
from dask_belief.parameter_server.directory import Directory
from dask_belief.parameter_server.shard import Shard, ShardSpec
from dask_belief.parameter_server.updates import UpdateSpec


class LocalActors:
    """Carries calls to objects in this process.

    Parameters
    ----------
    copies
        Whether messages are copied on their way, as a network does; else both sides see the very same arrays, as on a
        cluster of threads with ``inproc://`` addresses.

    Attributes
    ----------
    actors
        The objects, by name.
    loop, caller
        The event loop, and the caller on it.
    calls
        How often each method was called.
    """

    def __init__(self, copies: bool = True) -> None:
        self._copies = copies
        self.actors: dict[str, Any] = {}
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.caller = Caller(self.loop, self.send)
        self.calls: Counter[str] = Counter()

    def __enter__(self) -> LocalActors:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._cancel_all(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    async def _cancel_all(self) -> None:
        """End what a test left under way."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def register(self, name: str, actor: object) -> ActorAddress:
        """Make an object known as an actor."""
        self.actors[name] = actor
        worker = "tcp://local" if self._copies else "inproc://local"
        return ActorAddress(name=name, worker=worker, key=name)

    async def send(self, worker: str, message: Message) -> dict[str, Any]:
        """What a Dask worker does for a message to one of its actors."""
        self.calls[message.function] += 1
        arguments = [self._carry(argument) for argument in message.arguments]
        # Others may be served before: messages on a network arrive in no particular order.
        await asyncio.sleep(0)
        if message.actor not in self.actors:
            raise OSError("the worker does not know the actor")
        try:
            result = getattr(self.actors[message.actor], message.function)(*arguments)
            if asyncio.iscoroutine(result):
                result = await result
        except Exception as error:
            return {"status": "error", "exception": error}
        return {"status": "OK", "result": self._carry(result)}

    def _carry(self, message: Any) -> Any:
        return pickle.loads(pickle.dumps(message)) if self._copies else message


def deploy(
    actors: LocalActors,
    ranges: Sequence[range],
    *,
    generation: int = 0,
    dtype: str = "float32",
    penalised: np.ndarray | None = None,
    updates: UpdateSpec | None = None,
) -> ParameterServer:
    """Make shards over these ranges and give the client of all of them."""
    n_parameters = ranges[-1].stop
    shards = tuple(
        actors.register(
            f"shard {index}",
            Shard(
                ShardSpec(
                    generation=generation,
                    index=index,
                    shard=span,
                    n_parameters=n_parameters,
                    dtype=dtype,
                    penalised=None if penalised is None else penalised[span.start : span.stop],
                    updates=updates,
                )
            ),
        )
        for index, span in enumerate(ranges)
    )
    return ParameterServer(Directory(generation, n_parameters, dtype, shards, tuple(ranges)), actors.caller)


def replaced(actors: LocalActors, directory: Directory, index: int, updates: UpdateSpec | None = None) -> Directory:
    """Make a shard anew, empty, in place of one that is gone; the others adopt the newer directory, which is given."""
    generation, span = directory.generation + 1, directory.ranges[index]
    spec = ShardSpec(generation, index, span, directory.n_parameters, directory.dtype, updates=updates)
    shards = list(directory.shards)
    actors.actors.pop(shards[index].key, None)
    shards[index] = actors.register(f"shard {index} of {generation}", Shard(spec))
    newer = dataclasses.replace(directory, generation=generation, shards=tuple(shards))
    for actor in newer.actors:
        actors.actors[actor.key].adopt(generation)
    return newer
