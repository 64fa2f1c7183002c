"""Actors on Dask workers: made on a stated worker, known by an address, called with a limit.

Dask's own actor proxy waits for ever once the actor's worker is dead, when it is used from another worker. So nobody
here is given a proxy: an `ActorAddress` says where the actor lives, and a `Caller` sends it one message with a limit.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from distributed import Client, Future, Worker, get_worker
from distributed.core import ConnectionPool
from distributed.protocol.serialize import Serialize, to_serialize

from dask_belief.cluster.futures import is_loss, let_go, wait_for
from dask_belief.cluster.limits import GRACE_SECONDS, limits
from dask_belief.cluster.memory import keep_freed_memory
from dask_belief.errors import ActorLostError, CallTimeoutError

logger = logging.getLogger(__name__)

# What a worker without a limit may use, as far as memory that is kept goes.
_PLENTY_BYTES = 8 * 2**30

# How often whoever waits for actors looks whether their workers are there.
_LOOK_SECONDS = 0.1

Result = TypeVar("Result")


@dataclass(frozen=True)
class ActorAddress:
    """Where an actor lives; small, picklable, and of use from any worker or client.

    Attributes
    ----------
    name
        What it is, for messages: ``"shard 0"``.
    worker
        The address of its Dask worker.
    key
        The key under which the worker knows it; another for each that is made.
    generation
        How many were made in its place before.
    """

    name: str
    worker: str
    key: str
    generation: int = 0


@dataclass(frozen=True)
class Message:
    """A call of one method of an actor."""

    actor: str
    function: str
    arguments: tuple[object, ...]

    def packed(self) -> dict[str, object]:
        """The keyword arguments of Dask's handler for it; what is small and plain is not serialised on its own."""
        arguments = [each if _is_plain(each) else to_serialize(each) for each in self.arguments]
        return {"actor": self.actor, "function": self.function, "args": arguments, "kwargs": {}}


def _is_plain(argument: object) -> bool:
    """Whether a message can hold the argument as it is; a named tuple then arrives as a plain one."""
    if isinstance(argument, tuple):
        return all(_is_plain(part) for part in argument)
    return argument is None or type(argument) in (bool, int, float, str)


class Line(Protocol):
    """A way to an actor's worker; whatever goes wrong on it is an `OSError`."""

    async def __call__(self, worker: str, message: Message) -> dict[str, Any]:
        """Send a message to a worker and give its reply."""
        ...


class DirectLine:
    """Straight to the worker, over connections that are kept open.

    Parameters
    ----------
    pool
        The connections of a worker or of a client.
    own
        The worker whose own actors are called without a message; None for a client.
    """

    def __init__(self, pool: ConnectionPool, own: Worker | None = None) -> None:
        self._pool = pool
        self._own = own

    async def __call__(self, worker: str, message: Message) -> dict[str, Any]:
        """Send a message; the worker must take the connection within `Limits.connect_seconds`."""
        if self._own is not None and self._own.address == worker:
            return await self._call_own(self._own, message)
        # Distributed tries a refused connection again for 30 seconds, within which nobody hears of the loss.
        try:
            comm = await self._pool.connect(worker, timeout=limits().connect_seconds)
        except RuntimeError as error:
            # So says a pool that was closed with its own worker.
            raise OSError(str(error)) from error
        self._pool.reuse(worker, comm)
        try:
            reply: dict[str, Any] = await self._pool(worker).actor_execute(**message.packed())
        except KeyError as error:
            raise OSError(f"the worker does not know the actor: {error}") from error
        return reply

    @staticmethod
    async def _call_own(worker: Worker, message: Message) -> dict[str, Any]:
        """Call an actor of the same process: the arguments are handed over as they are."""
        if message.actor not in worker.state.actors:
            raise OSError(f"the worker does not know the actor {message.actor}")
        reply = await worker.actor_execute(message.actor, message.function, message.arguments, {})
        return {name: part.data if isinstance(part, Serialize) else part for name, part in reply.items()}


class LineThroughScheduler:
    """By way of the scheduler: a second hop and half of the speed, but it works where only its port is open.

    Parameters
    ----------
    scheduler
        The client's connection to the scheduler.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    async def __call__(self, worker: str, message: Message) -> dict[str, Any]:
        """Send a message; what the method raises is in the reply, so all that is raised here is the line's."""
        packed = {"op": "actor_execute", **message.packed()}
        try:
            reply: dict[str, Any] = await self._scheduler.proxy(worker=worker, msg=packed)
        except Exception as error:
            raise OSError(f"through the scheduler: {error}") from error
        return reply


class Caller:
    """Calls actors from a thread of a client or of a worker; the messages themselves run on its event loop.

    Parameters
    ----------
    loop
        The running event loop that carries the messages.
    line
        The way to the actors' workers.
    own_address
        Of the worker that this runs on; None for a client.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, line: Line, own_address: str | None = None) -> None:
        self._loop = loop
        self._line = line
        self.own_address = own_address
        self._lost: set[str] = set()
        # The messages that are under way, by worker; touched on the event loop alone.
        self._under_way: dict[str, set[asyncio.Future[dict[str, Any]]]] = {}

    def hands_over(self, actor: ActorAddress) -> bool:
        """Whether the actor gets the caller's arrays themselves instead of copies that travelled."""
        return actor.worker == self.own_address or actor.worker.startswith("inproc://")

    @classmethod
    def of_worker(cls, worker: Worker) -> Caller:
        """The caller of a task that runs on `worker`."""
        return cls(_asyncio_loop(worker.loop), DirectLine(worker.rpc, own=worker), own_address=worker.address)

    @classmethod
    def of_client(cls, client: Client, workers: Iterable[str]) -> Caller:
        """The caller of a client: straight to the workers when all can be reached, else through the scheduler."""
        loop = _asyncio_loop(client.loop)

        async def reachable() -> None:
            await asyncio.gather(*(client.rpc(address).identity() for address in workers))

        try:
            seconds = limits().connect_seconds
            reaching = asyncio.run_coroutine_threadsafe(asyncio.wait_for(reachable(), seconds), loop)
            reaching.result(seconds + GRACE_SECONDS)
        except OSError:
            logger.info("the workers cannot be reached from the client: calling them through the scheduler")
            return cls(loop, LineThroughScheduler(client.scheduler))
        return cls(loop, DirectLine(client.rpc))

    async def call(
        self, actor: ActorAddress, method: str, *arguments: object, timeout_seconds: float | None = None
    ) -> Any:
        """Call one method of an actor and wait for its reply.

        Parameters
        ----------
        actor, method, arguments
            What is called, and with what.
        timeout_seconds
            How long to wait for the reply; None for `Limits.call_seconds`.

        Raises
        ------
        CallTimeoutError
            When there is no reply within the limit.
        ActorLostError
            When the worker cannot be reached, closed the connection, does not know the actor, or is taken for lost.
        Exception
            Whatever the method raised.
        """
        message = Message(actor.key, method, arguments)
        limit_seconds = limits().call_seconds if timeout_seconds is None else timeout_seconds
        try:
            reply = await self._reply(actor.worker, message, limit_seconds)
        except TimeoutError as error:
            raise CallTimeoutError(
                f"{actor.name} on {actor.worker} did not answer {method!r} within {limit_seconds:g} seconds. The "
                "worker may be frozen or overloaded: look at it in the dashboard."
            ) from error
        except OSError as error:
            raise ActorLostError(
                f"{actor.name} on {actor.worker} cannot be reached for {method!r}: {error!r}. Its worker is gone."
            ) from error
        if reply["status"] == "OK":
            return reply["result"]
        raised: BaseException = reply["exception"]
        if isinstance(raised, RuntimeError) and "after shutdown" in str(raised):
            # A worker that closes answers for a while yet, but its threads take no more work.
            raise ActorLostError(f"{actor.name} on {actor.worker} took no {method!r}: its worker closes.") from raised
        raise raised

    async def _reply(self, worker: str, message: Message, limit_seconds: float) -> dict[str, Any]:
        """Send a message and wait for its reply, unless the worker is taken for lost before or meanwhile."""
        if worker in self._lost:
            raise OSError("the worker was lost")
        sent = asyncio.ensure_future(self._line(worker, message))
        under_way = self._under_way.setdefault(worker, set())
        under_way.add(sent)
        try:
            return await asyncio.wait_for(sent, limit_seconds)
        except asyncio.CancelledError as error:
            # Whoever waits here may have been cancelled instead, and then it stays so.
            waiting = asyncio.current_task()
            if sent in under_way or (waiting is not None and waiting.cancelling()):
                raise
            raise OSError("the worker was lost meanwhile") from error
        finally:
            under_way.discard(sent)

    def lose(self, worker: str) -> None:
        """Fail the calls to a worker that are under way, and all later ones, at once; from any thread."""
        self._lost.add(worker)
        self._loop.call_soon_threadsafe(self._cut, worker)

    def found(self, worker: str) -> None:
        """Take back that a worker is lost; from any thread."""
        self._lost.discard(worker)

    def _cut(self, worker: str) -> None:
        under_way = self._under_way.pop(worker, set())
        calls = list(under_way)
        under_way.clear()
        for call in calls:
            call.cancel()

    def start(self, coroutine: Coroutine[Any, Any, Result]) -> concurrent.futures.Future[Result]:
        """Run a coroutine, such as `call`, on the event loop; the caller's thread goes on."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, Result], timeout_seconds: float | None = None) -> Result:
        """Run a coroutine on the event loop and wait for it, at most a little longer than its own calls may take."""
        limit_seconds = limits().call_seconds if timeout_seconds is None else timeout_seconds
        running = self.start(coroutine)
        try:
            return running.result(limit_seconds + GRACE_SECONDS)
        except concurrent.futures.TimeoutError as error:
            if running.done():
                raise
            running.cancel()
            raise CallTimeoutError(
                f"calls to actors did not end within {limit_seconds:g} seconds, made by "
                f"{self.own_address or 'the client'}, whose event loop is held up. Look there for work that keeps "
                "Python's lock, or for a lack of memory."
            ) from error
        except BaseException:
            running.cancel()
            raise


def _asyncio_loop(loop: Any) -> asyncio.AbstractEventLoop:
    """The running event loop behind the one that Dask gives, whose type does not tell of it."""
    found: asyncio.AbstractEventLoop = loop.asyncio_loop
    return found


async def all_of(calls: Iterable[Awaitable[Result]]) -> list[Result]:
    """Wait for several calls at once; the first error ends the wait and cancels the others."""
    first, *more = calls
    if not more:
        # Most often there is one, and a task costs more than what it is for.
        return [await first]
    calls = (first, *more)
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def made(kind: type[Result], *arguments: object) -> Result:
    """Make an actor in its worker, which from then on keeps the memory of messages that it frees."""
    worker = get_worker()
    keep_freed_memory(worker.memory_manager.memory_limit or _PLENTY_BYTES)
    return kind(*arguments)


class ActorHost:
    """Makes the actors of a run and holds their futures: dropped, they are gone.

    An actor is made with a strict ``workers=[address]``: one that Dask may move is stolen while it is made, and then
    no longer where its address says.
    """

    def __init__(self, client: Client, prefix: str) -> None:
        # Tells the workers that are there, by the newest word; None for nobody who does.
        self.present: Callable[[], Collection[str]] | None = None
        self._client = client
        self._prefix = prefix
        self._futures: dict[str, Future[object]] = {}
        self._workers: dict[str, str] = {}

    @property
    def workers(self) -> Collection[str]:
        """The workers on which actors are, or are being made."""
        return set(self._workers.values())

    def spawn(self, kind: type, name: str, worker: str, *arguments: object, generation: int = 0) -> ActorAddress:
        """Begin to make an actor of class `kind` on `worker`; `ready` waits for it."""
        key = f"{kind.__name__.lower()}-{self._prefix}-{name.replace(' ', '-')}-{generation}"
        future = self._client.submit(
            made, kind, *arguments, actor=True, key=key, workers=[worker], allow_other_workers=False, pure=False
        )
        self._futures[key], self._workers[key] = future, worker
        return ActorAddress(name=name, worker=worker, key=key, generation=generation)

    def ready(self, actors: Iterable[ActorAddress], timeout_seconds: float | None = None) -> None:
        """Wait until actors are there.

        Raises
        ------
        ActorLostError
            When a worker of theirs is gone, or the limit passes.
        Exception
            What a constructor raised.
        """
        limit_seconds = limits().start_seconds if timeout_seconds is None else timeout_seconds
        until, waiting = time.monotonic() + limit_seconds, list(actors)
        futures = [self._futures[actor.key] for actor in waiting]
        while not all(future.done() for future in futures):
            # Dask keeps what is pinned to a worker that is gone, and never says so.
            present = None if self.present is None else self.present()
            gone = [actor for actor in waiting if present is not None and actor.worker not in present]
            if gone or time.monotonic() > until:
                missing = [actor.name for actor in gone or waiting]
                on = ", ".join(sorted({actor.worker for actor in gone or waiting}))
                why = "their worker is gone" if gone else "their workers are gone or busy"
                raise ActorLostError(
                    f"actors {missing} were not made within {limit_seconds:g} seconds on {on}: {why}. Look at "
                    "them in the dashboard; where they only take long, give a larger Limits(start_seconds=...)."
                )
            with contextlib.suppress(TimeoutError):
                wait_for(futures, _LOOK_SECONDS)
        for future in futures:
            if future.status != "finished":
                found = future.exception(timeout=limit_seconds)
                if found is None or is_loss(found):
                    raise ActorLostError(f"{future.key} was lost while the actors were made.") from found
                raise found

    def drop(self, actor: ActorAddress) -> None:
        """Let one actor go."""
        if actor.key in self._futures:
            del self._workers[actor.key]
            let_go(self._client, [self._futures.pop(actor.key)])

    def close(self) -> None:
        """Let the actors go."""
        let_go(self._client, self._futures.values())
        self._futures.clear()
        self._workers.clear()
