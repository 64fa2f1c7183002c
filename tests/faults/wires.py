"""A cluster whose every message passes a program of the tests, which can cut a worker off.

::

    worker ──▶ its wire to the scheduler ──▶ scheduler          client, scheduler, peers ──▶ its wire ──▶ worker

A wire that is cut closes no connection, refuses none, and passes nothing on: what was sent waits in it, and arrives
when the wire is mended. So it is for a worker behind a broken switch; its process runs on.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
from distributed import Client, LocalCluster

from tests.small_cluster import eventually

LIMIT_SECONDS = 60.0
_BYTES = 65536
_LOOPBACK = "127.0.0.1"

Result = TypeVar("Result")
Ends = frozenset[str]
"""The names of the workers at the ends of a connection; the scheduler and the client have none."""


class Exchange:
    """All wires of a cluster, on an event loop in a thread of its own.

    Attributes
    ----------
    n_held
        Pieces that were stopped on their way since the exchange was made.
    """

    def __init__(self) -> None:
        self.n_held = 0
        self._cut: set[str] = set()
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        self._open: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="wires", daemon=True)
        self._thread.start()

    def _run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(LIMIT_SECONDS)

    def wire(self, ends: Callable[[int], Ends], port: int) -> int:
        """Open a wire.

        Parameters
        ----------
        ends
            Gives the ends of a connection by the port that it comes from.
        port
            Where it leads to.

        Returns
        -------
        int
            The port at which it takes connections.
        """

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._open.add(task)
            try:
                # Whoever closes a connection in the middle of something is none of our business.
                with contextlib.suppress(OSError, asyncio.CancelledError):
                    await self._connect(reader, writer, ends(writer.get_extra_info("peername")[1]), port)
            finally:
                self._open.discard(task)

        async def serve() -> int:
            server = await asyncio.start_server(take, _LOOPBACK, 0)
            self._servers.append(server)
            return int(server.sockets[0].getsockname()[1])

        return self._run(serve())

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ends: Ends, port: int) -> None:
        try:
            await self._may_pass(ends)
            there, back = await asyncio.open_connection(_LOOPBACK, port)
            try:
                await asyncio.gather(self._pass(reader, back, ends), self._pass(there, writer, ends))
            finally:
                back.close()
        finally:
            writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ends: Ends) -> None:
        try:
            while piece := await reader.read(_BYTES):
                await self._may_pass(ends)
                writer.write(piece)
                await writer.drain()
            await self._may_pass(ends)
        finally:
            # The end of a connection passes as everything else does.
            writer.close()

    async def _may_pass(self, ends: Ends) -> None:
        is_held = False
        while ends & self._cut:
            self.n_held += not is_held
            is_held = True
            await self._changed.wait()

    def cut(self, worker: str) -> None:
        """Let nothing of a worker's pass any more."""
        self._run(self._change(self._cut.add, worker))

    def mend(self, worker: str) -> None:
        """Let everything pass again, what was held first."""
        self._run(self._change(self._cut.discard, worker))

    async def _change(self, change: Callable[[str], None], worker: str) -> None:
        change(worker)
        self._changed.set()
        self._changed = asyncio.Event()

    def close(self) -> None:
        """End all connections."""

        async def end() -> None:
            for server in self._servers:
                server.close()
            open_now = list(self._open)
            for task in open_now:
                task.cancel()
            ended: Awaitable[Any] = asyncio.gather(*open_now, return_exceptions=True)
            await ended

        self._run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT_SECONDS)
        self._loop.close()


# Ports that the system gives nobody who asks for any; each is tried once.
_PORTS = itertools.count(20_000 + os.getpid() % 10_000)


def free_port() -> int:
    """A port that nobody has."""
    for port in _PORTS:
        with socket.socket() as listening, contextlib.suppress(OSError):
            listening.bind((_LOOPBACK, port))
            return port
    raise AssertionError("no port is free")


class _Wired:
    """A worker process between its two wires."""

    def __init__(self, exchange: Exchange, name: str, scheduler_port: int, who: Callable[[int], Ends], folder: Path):
        to_scheduler = exchange.wire(lambda _: frozenset({name}), scheduler_port)
        own_port = free_port()
        from_others = exchange.wire(lambda port: frozenset({name}) | who(port), own_port)
        self.address = f"tcp://{_LOOPBACK}:{from_others}"
        options = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--memory-limit", "0", "--name", name]
        self.process = subprocess.Popen(
            [
                *[sys.executable, "-m", "distributed.cli.dask_worker", f"tcp://{_LOOPBACK}:{to_scheduler}", *options],
                *["--listen-address", f"tcp://{_LOOPBACK}:{own_port}", "--contact-address", self.address],
                *["--local-directory", str(folder / name)],
            ],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def has(self, port: int) -> bool:
        """Whether the process has an end of a connection at this port."""
        return any(port == each.laddr.port for each in psutil.Process(self.process.pid).net_connections(kind="tcp"))


class WiredCluster:
    """Worker processes of one thread each, and the wires between them and all others.

    Attributes
    ----------
    client
        Of the cluster; it is not cut off.
    exchange
        The wires.
    """

    def __init__(self, client: Client, exchange: Exchange, n_workers: int, folder: Path) -> None:
        self.client = client
        self.exchange = exchange
        self._workers: dict[str, _Wired] = {}
        scheduler_port = int(client.scheduler.address.rsplit(":", 1)[1])
        for number in range(n_workers):
            name = f"wired-{number}"
            self._workers[name] = _Wired(exchange, name, scheduler_port, self._who, folder)

    def _who(self, port: int) -> Ends:
        return frozenset(name for name, worker in self._workers.items() if worker.has(port))

    def _name(self, address: str) -> str:
        [name] = [name for name, worker in self._workers.items() if worker.address == address]
        return name

    def pid(self, address: str) -> int:
        """The process of a worker."""
        return self._workers[self._name(address)].process.pid

    def cut(self, address: str) -> None:
        """Cut a worker off from scheduler, client and all other workers."""
        self.exchange.cut(self._name(address))

    def mend(self, address: str) -> None:
        """Let it speak and hear again."""
        self.exchange.mend(self._name(address))

    def await_word_of(self, address: str) -> None:
        """Wait until the scheduler has heard of a worker again."""

        def heard(dask_scheduler: Any) -> float:
            return float(dask_scheduler.workers[address].last_seen)

        before = self.client.run_on_scheduler(heard)
        eventually(lambda: self.client.run_on_scheduler(heard) != before, LIMIT_SECONDS)

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers.values():
            worker.process.kill()
            worker.process.wait(LIMIT_SECONDS)


@contextlib.contextmanager
def wired(n_workers: int, folder: Path) -> Iterator[WiredCluster]:
    """A cluster whose workers can be cut off."""
    with contextlib.ExitStack() as stack:
        options: dict[str, Any] = {"processes": False, "protocol": "tcp://", "dashboard_address": f"{_LOOPBACK}:0"}
        scheduler = stack.enter_context(LocalCluster(n_workers=0, silence_logs=50, **options))
        client = stack.enter_context(Client(scheduler, set_as_default=False))
        exchange = stack.enter_context(contextlib.closing(Exchange()))
        cluster = stack.enter_context(contextlib.closing(WiredCluster(client, exchange, n_workers, folder)))
        client.wait_for_workers(n_workers, timeout=LIMIT_SECONDS)
        yield cluster
