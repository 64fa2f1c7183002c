"""Replicas as long-running Dask futures: one per worker thread, pinned, started again by us and never by Dask."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from dask.typing import Key
from distributed import Client, Future, Worker, get_worker, secede

from dask_belief.backend import get_backend
from dask_belief.cluster import memory
from dask_belief.cluster.futures import let_go, wait_for
from dask_belief.cluster.limits import Limits, limited_by, limits
from dask_belief.errors import ActorLostError, CallTimeoutError, StaleError

logger = logging.getLogger(__name__)

NO_WORKER_SECONDS = 0.5
"""How long the scheduler waits for a worker that it is to send data to, and that may have left this moment."""


@dataclass(frozen=True)
class Ended:
    """A replica whose future has ended while the run goes on.

    Attributes
    ----------
    replica
        Its name.
    worker
        Where it ran.
    error
        What it raised; None when it returned.
    said
        Why it ended, in its own words, when it returned.
    """

    replica: str
    worker: str
    error: BaseException | None
    said: str | None


@dataclass
class _Running:
    worker: str
    future: Future[object]


class ReplicaPool:
    """The replicas of a run.

    Parameters
    ----------
    client
        The run's client.
    prefix
        Names the run; part of each replica's key.
    function
        What a replica runs: ``function(spec, dataset, replica_name)``; it calls `stand_aside` first.
    spec
        Small and picklable: addresses, objective, options.
    dataset
        Sent to each worker once, beside the task graph, since it may be arrays in memory.
    """

    def __init__(
        self, client: Client, prefix: str, function: Callable[[Any, Any, str], object], spec: object, dataset: object
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._function = function
        self._spec = spec
        self._dataset = dataset
        self._running: dict[str, _Running] = {}
        self._datasets: dict[str, Future[object]] = {}
        self._n_started = 0

    def __len__(self) -> int:
        """How many replicas are running."""
        return len(self._running)

    @property
    def by_worker(self) -> Counter[str]:
        """How many run on each worker."""
        return Counter(running.worker for running in self._running.values())

    @property
    def n_started(self) -> int:
        """How many were ever started; names are never used twice."""
        return self._n_started

    def start(self, worker: str) -> str | None:
        """Start one replica on `worker` and give its name; None when the worker has left, or takes no data."""
        try:
            dataset = self._sent_to(worker)
        except (KeyError, OSError) as error:
            logger.warning("no replica was started on %s: %r", worker, error)
            return None
        replica = f"replica-{self._n_started}"
        self._n_started += 1
        future = self._client.submit(
            self._function,
            self._spec,
            dataset,
            replica,
            key=f"{self._function.__name__}-{self._prefix}-{replica}",
            workers=[worker],
            allow_other_workers=False,
            pure=False,
            retries=0,
        )
        self._running[replica] = _Running(worker, future)
        return replica

    def _sent_to(self, worker: str) -> Future[object]:
        """The data set on a worker: sent once, however many replicas it has."""
        if worker not in self._datasets:
            [self._datasets[worker]] = self._client.scatter(
                [self._dataset], workers=[worker], hash=False, timeout=NO_WORKER_SECONDS
            )
        return self._datasets[worker]

    def lose(self, worker: str) -> list[str]:
        """Forget the replicas of a worker that is gone, and give their names.

        Their futures are cancelled: a task that is pinned to a worker that left waits for ever.
        """
        names = [name for name, running in self._running.items() if running.worker == worker]
        for name in names:
            running = self._running.pop(name)
            let_go(self._client, [running.future])
        if worker in self._datasets:
            let_go(self._client, [self._datasets.pop(worker)])
        return names

    def renew(self, spec: object) -> None:
        """Start replicas with another spec from now on; those that run keep theirs."""
        self._spec = spec

    def drop(self) -> None:
        """Cancel and forget all replicas; others can be started."""
        let_go(self._client, [running.future for running in self._running.values()])
        self._running.clear()

    def ended(self) -> list[Ended]:
        """The replicas that ended since the last time, which are forgotten."""
        ended = []
        for name, running in list(self._running.items()):
            if not running.future.done():
                continue
            del self._running[name]
            future, limit_seconds = running.future, limits().call_seconds
            if future.status == "finished":
                ended.append(Ended(name, running.worker, None, str(future.result(timeout=limit_seconds))))
            else:
                ended.append(Ended(name, running.worker, future.exception(timeout=limit_seconds), None))
        return ended

    def stop(self, timeout_seconds: float | None = None) -> None:
        """Give the replicas a moment to end by themselves, `Limits.stop_seconds` if none is given, then cancel them."""
        limit_seconds = limits().stop_seconds if timeout_seconds is None else timeout_seconds
        futures: list[Future[object]] = [running.future for running in self._running.values()]
        if futures and self._client.status == "running":
            try:
                wait_for(futures, limit_seconds)
            except TimeoutError:
                logger.info("%d replicas did not end within %g s and are cancelled", len(futures), limit_seconds)
        let_go(self._client, [*futures, *self._datasets.values()])
        self._running.clear()
        self._datasets.clear()


class Standing:
    """What a running replica knows of its own task: whether it should go on."""

    def __init__(self, worker: Worker, key: Key) -> None:
        self.worker = worker
        self._key = key
        self._asked_at: float | None = None

    def listen(self) -> None:
        """Note that the hub was asked something; until it answers, it is silent."""
        self._asked_at = time.monotonic()

    def heard(self) -> None:
        """Note that the hub answered."""
        self._asked_at = None

    @property
    def memory_bytes(self) -> float:
        """The replica's part of its worker's memory limit; 2.5 GiB where there is no limit."""
        limit = self.worker.memory_manager.memory_limit or 0
        return memory.WorkerMemory(limit, self.worker.state.nthreads).replica_bytes

    @property
    def is_wanted(self) -> bool:
        """Whether the task was not cancelled."""
        task = self.worker.state.tasks.get(self._key)
        return task is not None and task.state in ("executing", "long-running")

    @property
    def is_cancelled(self) -> bool:
        """Whether the task was cancelled, or the worker is closing."""
        return not self.is_wanted or self.worker.status.name not in ("running", "paused")

    @property
    def should_end(self) -> bool:
        """Whether it is cancelled, or the hub has been silent for too long; asked between two leases."""
        asked_at = self._asked_at
        is_silent = asked_at is not None and time.monotonic() - asked_at > limits().silence_seconds
        return is_silent or self.is_cancelled


def stand_aside() -> Standing:
    """Called first by a replica: leaves the worker's task slot, so that actors and other tasks can still be run."""
    worker = get_worker()
    standing = Standing(worker, worker.get_current_task())
    secede()
    memory.keep_freed_memory(standing.memory_bytes)
    return standing


def read_ahead_bytes(standing: Standing) -> int:
    """Bytes of data that a replica may have read ahead, see `cluster.memory`."""
    return memory.read_ahead_bytes(standing.memory_bytes)


class Life(Protocol):
    """What a replica does between its start and its end."""

    def run(self) -> str:
        """Work until there is no more, and say why it ended."""

    def close(self) -> None:
        """Let go of threads."""


def live(replica: str, backend: str, limits: Limits, make: Callable[[Standing], Life]) -> str:
    """Live as a replica within a Dask task: stand aside, compute with one thread, end quietly when the server is lost.

    Parameters
    ----------
    replica
        Its name.
    backend
        The name of the backend that it computes with.
    limits
        Those of the run, in force as long as it lives.
    make
        Makes what it does from its standing.

    Returns
    -------
    str
        Why it ended.
    """
    standing = stand_aside()
    chosen = get_backend(backend)
    chosen.single_thread()
    with contextlib.ExitStack() as at_end:
        at_end.enter_context(limited_by(limits))
        at_end.callback(memory.give_back_memory)
        life = at_end.enter_context(contextlib.closing(make(standing)))
        try:
            with chosen.computing():
                return life.run()
        except StaleError as error:
            # This one is of another generation, or of a run that is over.
            logger.info("%s ends: %s", replica, error)
            return str(error)
        except (ActorLostError, CallTimeoutError) as error:
            # The driver sees the same loss, and starts new replicas with new addresses.
            logger.warning("%s ends: %s", replica, error)
            return f"the server was lost: {error}"
