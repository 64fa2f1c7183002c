"""Replicas as long-running Dask futures: one per worker thread, pinned, started again by us and never by Dask.

A replica of a network in pieces is a team of such futures on several workers: the lead, which is the replica to
everyone else, and one a piece. Where one of them is lost or ends, all are, and another team is started.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from distributed import Client, Future, get_worker, secede

from dask_belief.backend import Backend, get_backend
from dask_belief.cluster import memory
from dask_belief.cluster.actors import ActorAddress, ActorHost
from dask_belief.cluster.asking import send
from dask_belief.cluster.full_device import refused_when_full
from dask_belief.cluster.futures import let_go, wait_for
from dask_belief.cluster.limits import Limits, limited_by, limits
from dask_belief.cluster.post_box import PostBox
from dask_belief.cluster.standing import Standing
from dask_belief.errors import ActorLostError, CallTimeoutError, NoGPU, StaleError

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Team:
    """The tasks of one replica that is in pieces, the lead first.

    Attributes
    ----------
    name
        Unique on the cluster.
    boxes
        Where each of them gets its letters, see `dask_belief.cluster.post_box`.
    """

    name: str
    boxes: tuple[ActorAddress, ...]

    def box_name(self, number: int) -> str:
        """Call the box of one of them."""
        return f"{self.name}-{number}"


@dataclass(frozen=True)
class InPieces:
    """How replicas in pieces are made.

    Attributes
    ----------
    n_pieces
        The lead is the first of them.
    function
        What each of the others runs: ``function(spec, number, replica_name)``. The spec of all is that of a replica,
        with its field ``team`` filled in.
    """

    n_pieces: int
    function: Callable[[Any, int, str], object]


@dataclass
class _Running:
    workers: tuple[str, ...]
    futures: list[Future[object]]
    boxes: tuple[ActorAddress, ...] = ()


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
    in_pieces
        How replicas in pieces are made; None for those of one task.
    host
        Makes the actors that they need.
    """

    def __init__(
        self,
        client: Client,
        prefix: str,
        function: Callable[[Any, Any, str], object],
        spec: object,
        dataset: object,
        in_pieces: InPieces | None = None,
        host: ActorHost | None = None,
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._function = function
        self._spec = spec
        self._dataset = dataset
        self._in_pieces = in_pieces
        self._host = host
        self._running: dict[str, _Running] = {}
        self._datasets: dict[str, Future[object]] = {}
        self._n_started = 0

    def __len__(self) -> int:
        """How many replicas are running."""
        return len(self._running)

    @property
    def by_worker(self) -> Counter[str]:
        """How many tasks of them run on each worker."""
        return Counter(worker for running in self._running.values() for worker in running.workers)

    @property
    def n_started(self) -> int:
        """How many were ever started; names are never used twice."""
        return self._n_started

    def start(self, *workers: str) -> str | None:
        """Start one replica and give its name; None when a worker has left, or takes no data.

        Parameters
        ----------
        workers
            Where: one worker, or one a piece, the lead's first.
        """
        lead, *_ = workers
        try:
            dataset = self._sent_to(lead)
        except (KeyError, OSError) as error:
            logger.warning("no replica was started on %s: %r", lead, error)
            return None
        replica = f"replica-{self._n_started}"
        self._n_started += 1
        spec = self._spec
        boxes: tuple[ActorAddress, ...] = ()
        if self._in_pieces is not None:
            try:
                team = self._team(replica, workers)
            except ActorLostError as error:
                logger.warning("no replica was started on %s: %s", ", ".join(workers), error)
                return None
            boxes = team.boxes
            spec = replace(spec, team=team)  # type: ignore[type-var]
        futures = [self._submit(self._function, spec, dataset, replica, replica, lead)]
        if self._in_pieces is not None:
            function = self._in_pieces.function
            futures += [
                self._submit(function, spec, number, replica, f"{replica}-{number}", worker)
                for number, worker in enumerate(workers)
                if number > 0
            ]
        self._running[replica] = _Running(workers, futures, boxes)
        return replica

    def _submit(
        self, function: Callable[..., object], spec: object, second: object, replica: str, task: str, worker: str
    ) -> Future[object]:
        future: Future[object] = self._client.submit(
            function,
            spec,
            second,
            replica,
            key=f"{function.__name__}-{self._prefix}-{task}",
            workers=[worker],
            allow_other_workers=False,
            pure=False,
            retries=0,
        )
        return future

    def _team(self, replica: str, workers: Sequence[str]) -> Team:
        """Make the boxes of a team, on the workers of its members."""
        assert self._host is not None
        team = Team(f"{self._prefix}-{replica}", ())
        boxes = tuple(
            self._host.spawn(PostBox, f"post box {number} of {replica}", worker, team.box_name(number))
            for number, worker in enumerate(workers)
        )
        try:
            self._host.ready(boxes)
        except BaseException:
            self._drop_boxes(boxes)
            raise
        return replace(team, boxes=boxes)

    def _drop_boxes(self, boxes: Iterable[ActorAddress]) -> None:
        for box in boxes:
            assert self._host is not None
            self._host.drop(box)

    def _let_go(self, running: _Running) -> None:
        let_go(self._client, running.futures)
        self._drop_boxes(running.boxes)

    def _sent_to(self, worker: str) -> Future[object]:
        """The data set on a worker: sent once, however many replicas it has."""
        if worker not in self._datasets:
            self._datasets[worker] = send(self._client, self._dataset, worker)
        return self._datasets[worker]

    def lose(self, worker: str) -> list[str]:
        """Forget the replicas of a worker that is gone, and give their names.

        Their futures are cancelled: a task that is pinned to a worker that left waits for ever.
        """
        names = [name for name, running in self._running.items() if worker in running.workers]
        for name in names:
            self._let_go(self._running.pop(name))
        if worker in self._datasets:
            let_go(self._client, [self._datasets.pop(worker)])
        return names

    def renew(self, spec: object) -> None:
        """Start replicas with another spec from now on; those that run keep theirs."""
        self._spec = spec

    def drop(self) -> None:
        """Cancel and forget all replicas; others can be started."""
        for running in self._running.values():
            self._let_go(running)
        self._running.clear()

    def ended(self) -> list[Ended]:
        """The replicas that ended since the last time, which are forgotten."""
        ended = []
        for name, running in list(self._running.items()):
            done = [future for future in running.futures if future.done()]
            if not done:
                continue
            del self._running[name]
            # What one of a team raised says more than how the others ended for it.
            first = next((future for future in done if future.status != "finished"), done[0])
            worker, limit_seconds = running.workers[running.futures.index(first)], limits().call_seconds
            if first.status == "finished":
                ended.append(Ended(name, worker, None, str(first.result(timeout=limit_seconds))))
            else:
                ended.append(Ended(name, worker, first.exception(timeout=limit_seconds), None))
            if running.boxes:
                self._let_go(running)
        return ended

    def stop(self, timeout_seconds: float | None = None) -> None:
        """Give the replicas a moment to end by themselves, `Limits.stop_seconds` if none is given, then cancel them."""
        limit_seconds = limits().stop_seconds if timeout_seconds is None else timeout_seconds
        futures = [future for running in self._running.values() for future in running.futures]
        if futures and self._client.status == "running":
            try:
                wait_for(futures, limit_seconds)
            except TimeoutError:
                logger.info("%d replicas did not end within %g s and are cancelled", len(futures), limit_seconds)
        let_go(self._client, [*futures, *self._datasets.values()])
        for running in self._running.values():
            self._drop_boxes(running.boxes)
        self._running.clear()
        self._datasets.clear()


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

    def holdings(self) -> Mapping[str, int]:
        """What it has in the memory of its device, in bytes by what they are for; asked when that runs out."""


def live(replica: str, backend: str, limits: Limits, make: Callable[[Standing], Life], device_advice: str) -> str:
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
    device_advice
        How it is made to need less memory on a device, as the rest of a sentence.

    Returns
    -------
    str
        Why it ended.
    """
    standing = stand_aside()
    where = f"{replica} on {standing.worker.address}"
    chosen = _backend(backend, where)
    chosen.single_thread()
    with contextlib.ExitStack() as at_end:
        at_end.enter_context(limited_by(limits))
        at_end.callback(memory.give_back_memory)
        at_end.callback(chosen.give_back_memory)
        # Also what is made before it runs is made on this thread's stream: no other waits for it.
        with refused_when_full(chosen, f"{where}, as it began", dict, device_advice), chosen.computing():
            life = at_end.enter_context(contextlib.closing(make(standing)))
        try:
            with refused_when_full(chosen, where, life.holdings, device_advice), chosen.computing():
                return life.run()
        except StaleError as error:
            # This one is of another generation, or of a run that is over.
            logger.info("%s ends: %s", replica, error)
            return str(error)
        except (ActorLostError, CallTimeoutError) as error:
            # The driver sees the same loss, and starts new replicas with new addresses.
            logger.warning("%s ends: %s", replica, error)
            return f"the server was lost: {error}"


def _backend(name: str, where: str) -> Backend:
    """Choose as `get_backend` does; of several workers one may have no GPU, so an error says which."""
    try:
        return get_backend(name)
    except NoGPU as error:
        raise NoGPU(f"{where}: {error}") from error
