"""One generation of a run on a cluster: its shards, its hub, its replicas, and what becomes of them.

The hub is the method's coordinator or ledger. The driver alone uses this: it places and makes the actors, starts the
replicas, hears who is lost, and gives a lost replica's work back to the hub. When a worker is lost that holds an
actor, the state in it is gone: `ActorLostError` ends this generation, and the driver opens the next from what it kept.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from dask_belief.cluster.actors import ActorAddress, ActorHost, Caller
from dask_belief.cluster.futures import is_loss
from dask_belief.cluster.hub import RUN_IS_OVER
from dask_belief.cluster.limits import LIMITS
from dask_belief.cluster.membership import Joined, Lost, Membership
from dask_belief.cluster.placement import place, replicas_to_start
from dask_belief.cluster.replicas import ReplicaPool
from dask_belief.errors import (
    ActorLostError,
    CallTimeoutError,
    ClusterError,
    DaskBeliefError,
    NoWorkersError,
    ReplicaError,
)
from dask_belief.parameter_server.client import Directory, ParameterServer
from dask_belief.parameter_server.messages import Command
from dask_belief.parameter_server.ranges import shard_ranges
from dask_belief.parameter_server.shard import Shard, ShardSpec
from dask_belief.parameter_server.updates import UpdateSpec

logger = logging.getLogger(__name__)

# A replica that ends while the run goes on, although its worker lives, is started again; but not for ever.
_RESTARTS_PER_WORKER = 3


@dataclass(frozen=True)
class DeploymentSpec:
    """What a generation is made of.

    Attributes
    ----------
    run, method
        The name of the run, unique on the cluster, and of its method.
    n_parameters, dtype, penalised
        Of the parameter vector.
    n_shards
        Shards at most; None for one a worker.
    n_replicas
        Replicas; None for one on every thread.
    updates
        How Downpour's pushes are applied; None for Sandblaster.
    hub
        The class of the coordinator or ledger; made with the generation first, then `hub_arguments`.
    hub_arguments
        See `hub`.
    replica
        What a replica runs: ``replica(spec, dataset, name)``.
    replica_spec
        Makes that spec from the directory of the shards and the hub's address.
    dataset
        The data set, sent to each replica's worker.
    """

    run: str
    method: str
    n_parameters: int
    dtype: str
    penalised: NDArray[np.bool_] | None
    n_shards: int | None
    n_replicas: int | None
    updates: UpdateSpec | None
    hub: type
    hub_arguments: tuple[object, ...]
    replica: Callable[[Any, Any, str], str]
    replica_spec: Callable[[Directory, ActorAddress], object]
    dataset: object


class Deployment:
    """One generation, open on the cluster; made by `deployed`.

    Attributes
    ----------
    generation
        Its number.
    server
        All shards as one vector.
    changes
        Workers that joined or were lost since the driver last took them.
    has_progressed
        Whether any work was finished in this generation.
    """

    def __init__(self, client: Client, spec: DeploymentSpec, generation: int, membership: Membership) -> None:
        self.generation = generation
        self.changes: list[Joined | Lost] = []
        self._client = client
        self._spec = spec
        self._membership = membership
        self.has_progressed = False
        self._n_restarts = 0
        self._is_over = False
        workers = membership.workers
        if not workers:
            raise NoWorkersError("the cluster has no worker left. Start workers and train again from the kept point.")
        prefix = f"{spec.run}-{generation}"
        self._host = ActorHost(client, prefix)
        try:
            self.directory, self._hub = self._make_actors()
            self._caller = Caller.of_client(client, {actor.worker for actor in self._actors})
        except BaseException:
            self._host.close()
            raise
        self.server = ParameterServer(self.directory, self._caller)
        replica_spec = spec.replica_spec(self.directory, self._hub)
        self._pool = ReplicaPool(client, prefix, spec.replica, replica_spec, spec.dataset)

    @property
    def _actors(self) -> tuple[ActorAddress, ...]:
        return (*self.directory.shards, self._hub)

    def _make_actors(self) -> tuple[Directory, ActorAddress]:
        spec = self._spec
        workers = list(self._membership.workers)
        ranges = shard_ranges(spec.n_parameters, spec.n_shards or min(len(workers), spec.n_parameters))
        placement = place(workers, len(ranges))
        shards = tuple(
            self._host.spawn(Shard, f"shard {index}", worker, self._shard_spec(index, span))
            for index, (worker, span) in enumerate(zip(placement.shards, ranges, strict=True))
        )
        hub_name = spec.hub.__name__.lower()
        hub = self._host.spawn(spec.hub, hub_name, placement.hub, self.generation, *spec.hub_arguments)
        self._host.ready()
        return Directory(self.generation, spec.n_parameters, spec.dtype, shards, ranges), hub

    def _shard_spec(self, index: int, span: range) -> ShardSpec:
        spec = self._spec
        penalised = None if spec.penalised is None else spec.penalised[span.start : span.stop]
        return ShardSpec(self.generation, index, span, spec.n_parameters, spec.dtype, penalised, spec.updates)

    def progressed(self) -> None:
        """Note that work was finished: replicas that ended before count no more."""
        self.has_progressed = True
        self._n_restarts = 0

    def start_replicas(self) -> None:
        """Start the replicas that are missing."""
        if self._is_over:
            return
        counts = self._pool.by_worker
        for worker in replicas_to_start(self._membership.workers, counts, self._spec.n_replicas):
            if self._pool.start(worker) is None:
                # It left; the announcement is on its way.
                break

    @property
    def n_replicas(self) -> int:
        """Replicas that are running, or being started."""
        return len(self._pool)

    def run(self, coroutine: Any, timeout_seconds: float = LIMITS.call_seconds) -> Any:
        """Run a coroutine of `server` and wait for it."""
        return self._caller.run(coroutine, timeout_seconds)

    def execute(self, *commands: Command) -> list[list[float]]:
        """Run commands on all shards, in one round of messages; gives the scalars of those that have any."""
        return self._caller.run(self.server.execute(*commands))

    def ask(self, method: str, *arguments: object) -> Any:
        """Call the hub."""
        return self._caller.run(self._caller.call(self._hub, method, self.generation, *arguments))

    def watch(self) -> None:
        """Take note of losses, of new workers, and of replicas that ended.

        Raises
        ------
        ActorLostError
            When the worker of a shard or of the hub was lost.
        ReplicaError, NonFiniteError
            What the objective or the data did in a replica.
        ClusterError
            When the scheduler is gone, or replicas end again and again.
        """
        if self._client.status != "running":
            raise ClusterError("the connection to Dask's scheduler is gone. Connect again; the kept point is safe.")
        for change in self._membership.poll():
            self.changes.append(change)
            if isinstance(change, Lost):
                self._lose(change.worker)
            else:
                logger.info("worker %s joined", change.worker)
        self._look_at_replicas()
        self.start_replicas()

    def _lose(self, worker: str) -> None:
        logger.warning("worker %s was lost", worker)
        lost = [actor.name for actor in self._actors if actor.worker == worker]
        if lost:
            raise ActorLostError(f"worker {worker} was lost, and {', '.join(lost)} with it.")
        for replica in self._pool.lose(worker):
            self.ask("leave", replica)

    def _look_at_replicas(self) -> None:
        for ended in self._pool.ended():
            if isinstance(ended.error, DaskBeliefError):
                raise ended.error
            if ended.said == RUN_IS_OVER:
                self._is_over = True
                continue
            if ended.worker not in self._membership.workers:
                continue
            self.ask("leave", ended.replica)
            if isinstance(ended.error, Exception) and not is_loss(ended.error):
                raise ReplicaError(
                    f"{ended.replica} on {ended.worker} raised {type(ended.error).__name__}: {ended.error}."
                ) from ended.error
            self._n_restarts += 1
            if self._n_restarts > _RESTARTS_PER_WORKER * max(1, len(self._membership.workers)):
                raise ClusterError(
                    f"replicas ended {self._n_restarts} times without any work finished in between, although their "
                    f"workers live; the last on {ended.worker}: {ended.said or ended.error}. Look at the workers' logs."
                )

    def close(self) -> None:
        """End the replicas and let the actors go; nothing of the generation stays on the cluster."""
        if self._client.status == "running" and self._hub.worker in self._membership.workers:
            with contextlib.suppress(ActorLostError, CallTimeoutError):
                self._caller.run(
                    self._caller.call(self._hub, "finish", self.generation, timeout_seconds=LIMITS.stop_seconds)
                )
        self._pool.stop()
        self._host.close()


@contextlib.contextmanager
def deployed(client: Client, spec: DeploymentSpec, generation: int, membership: Membership) -> Iterator[Deployment]:
    """Open a generation, and close it whatever happens."""
    membership.refresh()
    deployment = Deployment(client, spec, generation, membership)
    try:
        yield deployment
    finally:
        deployment.close()
