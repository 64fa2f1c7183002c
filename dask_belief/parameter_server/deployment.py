"""A run on a cluster: its shards, its hub, its replicas, and what becomes of them.

The hub is the method's coordinator or ledger. The driver alone uses this: it places and makes the actors, starts the
replicas, hears who comes and goes, and gives a lost replica's work back to the hub::

    lost                what is done here                            what the driver does
    replica             its leases go to others                      nothing
    hub                 made anew from what the driver knows of it,  nothing
                        and all replicas with it
    shard with a copy   the copy takes its place                     nothing
    shard               `ActorLostError`                             `replace`, from what was saved
    (a worker leaves)   replicas and hub move off                    `hand_over` of its shards, and of keepers,
                                                                     when it can
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distributed import Client

from dask_belief.cluster.actors import ActorAddress, ActorHost, Caller
from dask_belief.cluster.futures import is_loss
from dask_belief.cluster.hub import RUN_IS_OVER
from dask_belief.cluster.limits import NEWS_SECONDS, limits
from dask_belief.cluster.membership import Joined, Leaving, Lost, Membership, wait_for_a_worker
from dask_belief.cluster.placement import place, place_one, replicas_to_start, teams_to_start
from dask_belief.cluster.replicas import InPieces, ReplicaPool
from dask_belief.errors import (
    ActorLostError,
    CallTimeoutError,
    ClusterError,
    DaskBeliefError,
    NoWorkersError,
    ReplicaError,
)
from dask_belief.parameter_server.carrying import Errand
from dask_belief.parameter_server.client import ParameterServer
from dask_belief.parameter_server.directory import Directory
from dask_belief.parameter_server.messages import Command
from dask_belief.parameter_server.shards import Carry, Settle, Shards, ShardsSpec

logger = logging.getLogger(__name__)

# A replica that ends while the run goes on, although its worker lives, is started again; but not for ever.
_RESTARTS_PER_WORKER = 3

# So many times in a row actors may be lost, without any work finished in between, before the run gives up.
_IDLE_LOSSES = 5

_LOOK_SECONDS = 0.01


@dataclass(frozen=True)
class DeploymentSpec:
    """What a run is made of.

    Attributes
    ----------
    run, method
        The name of the run, unique on the cluster, and of its method.
    shards
        What the shards are made from.
    n_replicas
        Replicas; None for one on every thread.
    hub
        The class of the coordinator or ledger; made with its generation first, then `hub_arguments`.
    hub_arguments
        See `hub`.
    hub_state
        Gives what a hub that is made anew is told by its method ``restore``; None for nothing.
    hub_cost
        What it costs to make a hub anew.
    replica
        What a replica runs: ``replica(spec, dataset, name)``.
    replica_spec
        Makes that spec from the directory of the shards and the hub's address.
    dataset
        The data set, sent to each replica's worker.
    in_pieces
        How replicas in pieces are made; None for those of one task.
    """

    run: str
    method: str
    shards: ShardsSpec
    n_replicas: int | None
    hub: type
    hub_arguments: tuple[object, ...]
    hub_state: Callable[[Deployment], tuple[object, ...] | None]
    hub_cost: str
    replica: Callable[[Any, Any, str], str]
    replica_spec: Callable[[Directory, ActorAddress], object]
    dataset: object
    in_pieces: InPieces | None = None


class Deployment:
    """A run, open on the cluster; made by `deployed`.

    Attributes
    ----------
    server
        All shards as one vector.
    shards
        The shard actors.
    changes
        Workers that joined or were lost since the driver last took them.
    rebuilt
        What else was lost and made anew since then, and what that cost.
    n_hubs
        How many hubs were made.
    is_urgent
        Whether to end at once, without waiting for replicas to end by themselves.
    """

    def __init__(self, client: Client, spec: DeploymentSpec, membership: Membership, attempt: int = 0) -> None:
        self.changes: list[Joined | Lost] = []
        self.rebuilt: list[tuple[str, str]] = []
        self.n_hubs = 1
        self.is_urgent = False
        self._client = client
        self._spec = spec
        self._membership = membership
        self._n_restarts = 0
        self._n_losses = 0
        self._n_evaluations = 0
        self._n_hubs_begun = 0
        self._is_over = False
        # Why the hub is to be made anew; None while it lives.
        self._hub_lost: object = None
        # Workers that were asked to be left, and are not yet.
        self._leaving: set[str] = set()
        # Replicas whose loss the hub has not been told of.
        self._to_leave: list[str] = []
        workers = list(membership.workers)
        if not workers:
            raise NoWorkersError("the cluster has no worker left. Start workers and train again from the kept point.")
        # The keys of an attempt that came to nothing are not used again.
        self._host = ActorHost(client, f"{spec.run}-{attempt}" if attempt else spec.run)
        self._host.present = self._present
        try:
            placement = place(workers, len(spec.shards.ranges))
            self.shards = Shards(client, self._host, spec.run, spec.shards, placement.shards, self.there)
            self._hub = self._spawn_hub(placement.hub, 0)
            replica_spec = spec.replica_spec(self.directory, self._hub)
            self._pool = ReplicaPool(
                client, spec.run, spec.replica, replica_spec, spec.dataset, spec.in_pieces, self._host
            )
            self._host.ready([*self.directory.shards, self._hub])
            self._caller = Caller.of_client(client, {actor.worker for actor in self._actors})
        except BaseException:
            self._host.close()
            raise
        membership.on_change = self._hear
        self.server = ParameterServer(self.directory, self._caller)

    @property
    def directory(self) -> Directory:
        """Where the shards are."""
        return self.shards.directory

    @property
    def workers(self) -> Mapping[str, int]:
        """The workers that are there and stay, with their threads."""
        return self._membership.workers

    @property
    def leaving(self) -> Collection[str]:
        """The workers that are there, and are to be left."""
        return self._leaving

    @property
    def caller(self) -> Caller:
        """The driver's way to actors."""
        return self._caller

    @property
    def client(self) -> Client:
        """The run's client."""
        return self._client

    @property
    def host(self) -> ActorHost:
        """What makes the run's actors."""
        return self._host

    @property
    def _actors(self) -> tuple[ActorAddress, ...]:
        return (*self.directory.actors, self._hub)

    def _spawn_hub(self, worker: str, generation: int) -> ActorAddress:
        spec = self._spec
        name = spec.hub.__name__.lower()
        return self._host.spawn(spec.hub, name, worker, generation, *spec.hub_arguments, generation=generation)

    def _hear(self, change: Joined | Lost | Leaving) -> None:
        """On the client's event loop: calls to a worker that is lost are not waited for."""
        if isinstance(change, Lost):
            self._caller.lose(change.worker)
        elif isinstance(change, Joined):
            self._caller.found(change.worker)

    # Work.

    def next_evaluation(self) -> int:
        """Number an evaluation; no number is used twice."""
        self._n_evaluations += 1
        return self._n_evaluations

    def progressed(self) -> None:
        """Note that work was finished: replicas that ended and actors that were lost before count no more."""
        self._n_restarts = self._n_losses = 0

    def start_replicas(self) -> None:
        """Start the replicas that are missing."""
        if self._is_over:
            return
        for workers in self._missing_replicas():
            if self._pool.start(*workers) is None:
                # It left; the announcement is on its way.
                break

    def _missing_replicas(self) -> Iterable[tuple[str, ...]]:
        spec, counts = self._spec, self._pool.by_worker
        if spec.in_pieces is None:
            return ((worker,) for worker in replicas_to_start(self.workers, counts, spec.n_replicas))
        return teams_to_start(self.workers, counts, len(self._pool), spec.n_replicas, spec.in_pieces.n_pieces)

    @property
    def n_replicas(self) -> int:
        """Replicas that are running, or being started."""
        return len(self._pool)

    def run(self, coroutine: Any, timeout_seconds: float | None = None) -> Any:
        """Run a coroutine of `server` and wait for it."""
        return self._caller.run(coroutine, timeout_seconds)

    def execute(self, *commands: Command) -> list[list[float]]:
        """Run commands on all shards, in one round of messages; gives the scalars of those that have any."""
        return self._caller.run(self.server.execute(*commands))

    def ask(self, method: str, *arguments: object) -> Any:
        """Call the hub; when it is lost, one that is made anew."""
        while True:
            try:
                if self._hub_lost is not None:
                    self._restore_hub(self._hub_lost)
                return self._call_hub(method, *arguments)
            except ActorLostError as error:
                self._count_loss(error)
                if self._hub_lost is None:
                    self._await_loss(self._hub.worker)
                    self._hub_lost = error
                else:
                    # The new one was lost while it was made: the word of its worker is on its way.
                    time.sleep(_LOOK_SECONDS)
                    self._take_changes()

    def _call_hub(self, method: str, *arguments: object) -> Any:
        return self._caller.run(self._caller.call(self._hub, method, self._hub.generation, *arguments))

    # Who comes and goes.

    def watch(self) -> None:
        """Take note of losses, of new workers, and of replicas that ended.

        Raises
        ------
        ActorLostError
            When shards were lost: they are to be replaced.
        ReplicaError, NonFiniteError
            What the objective or the data did in a replica.
        ClusterError
            When the scheduler is gone, or replicas end again and again.
        """
        self.take_news()
        self._look_at_replicas()
        self.start_replicas()
        lost = self.lost_shards()
        if lost:
            names = ", ".join(f"shard {index} on {self.directory.shards[index].worker}" for index in lost)
            raise ActorLostError(f"{names} was lost with its worker.")
        self._move_off()

    def there(self) -> Mapping[str, int]:
        """The workers that are there, by the newest word; for those who wait for something else."""
        self.take_news()
        return self.workers

    def _present(self) -> Collection[str]:
        """The workers that are there, those among them that are to be left; for those who wait for actors."""
        self._take_changes()
        return {*self.workers, *self._leaving}

    def take_news(self) -> None:
        """Take note of who came and went, and of nothing else: for those who wait for something."""
        self._take_changes()
        while self._to_leave:
            # A hub that is made anew knows of no replica, and there is nothing to tell any more.
            self.ask("leave", self._to_leave.pop())
        if self.directory.copies:
            lost = {actor.worker for actor in self.directory.actors if not self._is_there(actor.worker)}
            try:
                for name in self.shards.promote_copies(self._caller, lost, self._publish):
                    self.rebuilt.append((f"{name} was lost.", "nothing: the other one goes on alone"))
            except ActorLostError as error:
                # Another one is lost; the next look knows which.
                logger.info("a copy could not take a shard's place yet: %s", error)

    def _take_changes(self) -> None:
        if self._client.status != "running":
            raise ClusterError("the connection to Dask's scheduler is gone. Connect again; the kept point is safe.")
        for change in self._membership.poll():
            if isinstance(change, Leaving):
                logger.info("worker %s is to be left", change.worker)
                self._leaving.add(change.worker)
                continue
            self.changes.append(change)
            if isinstance(change, Lost):
                self._lose(change.worker)
            else:
                logger.info("worker %s joined", change.worker)
                # Also one that was to be left, and is to stay after all.
                self._leaving.discard(change.worker)

    def _lose(self, worker: str) -> None:
        logger.warning("worker %s was lost", worker)
        self._leaving.discard(worker)
        self._to_leave.extend(self._pool.lose(worker))

    def _is_there(self, worker: str) -> bool:
        return worker in self.workers or worker in self._leaving

    def lost_shards(self) -> list[int]:
        """The shards whose workers are gone."""
        gone = {actor.worker for actor in self.directory.actors if not self._is_there(actor.worker)}
        return self.shards.on(gone)

    def leaving_shards(self) -> list[int]:
        """The shards on workers that are to be left."""
        return [index for index, shard in enumerate(self.directory.shards) if shard.worker in self._leaving]

    def find_losses(self, error: ClusterError) -> None:
        """After a call to a shard failed: find out which worker is gone, by the scheduler's word or by asking."""
        self._count_loss(error)
        until, generation = time.monotonic() + NEWS_SECONDS, self.directory.generation
        self.take_news()
        while not self.lost_shards() and self.directory.generation == generation:
            if time.monotonic() > until:
                self._ask_shards()
                return
            time.sleep(_LOOK_SECONDS)
            self.take_news()

    def _ask_shards(self) -> None:
        directory = self.directory
        for shard in directory.shards:
            try:
                self._caller.run(self._caller.call(shard, "adopt", directory.generation))
            except (ActorLostError, CallTimeoutError):
                self._membership.give_up(shard.worker)
        self.take_news()

    def _await_loss(self, worker: str) -> None:
        """Wait for the word that a worker which does not answer is lost; without it, take it for lost all the same."""
        until = time.monotonic() + NEWS_SECONDS
        while self._is_there(worker) and time.monotonic() < until:
            self._take_changes()
            time.sleep(_LOOK_SECONDS)
        if self._is_there(worker):
            self._membership.give_up(worker)
            self._take_changes()

    def _count_loss(self, reason: object) -> None:
        self._n_losses += 1
        if self._n_losses > _IDLE_LOSSES:
            raise ClusterError(
                f"actors of the run were lost {self._n_losses} times without any work finished in between; the last "
                f"time: {reason} Look at the workers' logs."
            )
        wait_for_a_worker(self._client, self._membership)

    # The hub.

    def renew_hub(self, reason: str) -> None:
        """Make the hub anew, as if it had been lost: for when it is to go back to an earlier state."""
        self._hub_lost = reason
        self.ask("publish", self.directory.generation, self.directory)

    def _restore_hub(self, reason: object) -> None:
        """Make the hub anew on another worker; replicas end by themselves, and others are started."""
        if not self.workers:
            # The last of them left since a worker was waited for; the next try waits again.
            raise ActorLostError("no worker is there on which the coordinator or ledger could be made anew.")
        taken = [shard.worker for shard in self.directory.shards]
        old = self._hub
        # One that comes to nothing has a number, too: a key is never used again.
        self._n_hubs_begun += 1
        hub = self._spawn_hub(place_one(self.workers, taken), self._n_hubs_begun)
        try:
            self._host.ready([hub])
            state = self._spec.hub_state(self)
            if state is not None:
                self._caller.run(self._caller.call(hub, "restore", hub.generation, *state))
        except BaseException:
            self._host.drop(hub)
            raise
        self._host.drop(old)
        self.rebuilt.append((f"{old.name} was made anew: {reason}", self._spec.hub_cost))
        self._hub, self._hub_lost = hub, None
        self.n_hubs += 1
        self._pool.drop()
        self._to_leave.clear()
        self._publish(self.directory)
        self.start_replicas()

    def _publish(self, directory: Directory) -> None:
        """Let driver and replicas know of a directory."""
        self.server.directory = directory
        self.ask("publish", directory.generation, directory)
        self._pool.renew(self._spec.replica_spec(directory, self._hub))

    # Shards.

    def replace(
        self, indices: Collection[int], carry: Carry, avoid: Mapping[int, str], settle: Settle | None = None
    ) -> None:
        """Make lost shards anew; see `Shards.replace`.

        Raises
        ------
        ActorLostError
            When another worker was lost meanwhile.
        """
        if indices:
            self.shards.replace(indices, self._caller, self._publish, carry, avoid, settle)
        else:
            self.shards.open_again(self._caller, self._publish)

    def fill(self, errands: Sequence[tuple[str, Errand]]) -> None:
        """Run errands that fill the shards, and wait for them."""
        self.shards.run(errands)

    def hand_over(self, vectors: tuple[str, ...] | None) -> None:
        """Move shards off the workers that are to be left; see `Shards.hand_over`."""
        self.shards.hand_over(self.leaving_shards(), self._caller, self._publish, vectors)
        self._move_off()

    def copy_shards(self) -> None:
        """Make the copies of shards that are missing."""
        self.shards.copy(self._caller, self._publish)

    def _move_off(self) -> None:
        """Leave the workers that are to be left, once nobody has an actor there that the driver is to hand over."""
        if not self._leaving:
            return
        if not self.workers:
            raise NoWorkersError("all workers are to leave, and the run has nowhere to go. Start others first.")
        for worker in sorted(self._leaving):
            for replica in self._pool.lose(worker):
                self.ask("leave", replica)
        if self._hub.worker in self._leaving:
            self.renew_hub(f"worker {self._hub.worker} leaves.")
        copies = {copy.worker for copy in self.directory.copies if copy is not None}
        if copies & self._leaving:
            self.shards.promote_copies(self._caller, copies & self._leaving, self._publish)
        with_actors = set(self._host.workers)
        for worker in sorted(self._leaving - with_actors):
            self._membership.left(worker)
        self._leaving &= with_actors

    # Replicas.

    def _look_at_replicas(self) -> None:
        for ended in self._pool.ended():
            if isinstance(ended.error, DaskBeliefError):
                raise ended.error
            if ended.said == RUN_IS_OVER:
                self._is_over = True
                continue
            if ended.worker not in self.workers:
                continue
            self.ask("leave", ended.replica)
            if isinstance(ended.error, Exception) and not is_loss(ended.error):
                raise ReplicaError(
                    f"{ended.replica} on {ended.worker} raised {type(ended.error).__name__}: {ended.error}."
                ) from ended.error
            self._n_restarts += 1
            if self._n_restarts > _RESTARTS_PER_WORKER * max(1, len(self.workers)):
                raise ClusterError(
                    f"replicas ended {self._n_restarts} times without any work finished in between, although their "
                    f"workers live; the last on {ended.worker}: {ended.said or ended.error}. Look at the workers' logs."
                )

    # The end.

    def close(self) -> None:
        """End the replicas and let the actors go; nothing of the run stays on the cluster."""
        self._membership.is_urgent = self.is_urgent
        stop_seconds = limits().urgent_seconds if self.is_urgent else limits().stop_seconds
        if self._client.status == "running" and self._hub.worker in self.workers:
            with contextlib.suppress(ActorLostError, CallTimeoutError):
                finish = self._caller.call(self._hub, "finish", self._hub.generation, timeout_seconds=stop_seconds)
                self._caller.run(finish, stop_seconds)
        self._pool.stop(stop_seconds)
        self._host.close()


@contextlib.contextmanager
def deployed(client: Client, spec: DeploymentSpec, membership: Membership) -> Iterator[Deployment]:
    """Open a run on the cluster, and close it whatever happens."""
    deployment = _opened(client, spec, membership)
    try:
        yield deployment
    except BaseException:
        deployment.is_urgent = True
        raise
    finally:
        deployment.close()


def _opened(client: Client, spec: DeploymentSpec, membership: Membership) -> Deployment:
    """Make the actors of a run, again when a worker is lost meanwhile."""
    attempt = 0
    while True:
        wait_for_a_worker(client, membership)
        try:
            return Deployment(client, spec, membership, attempt)
        except ActorLostError as error:
            attempt += 1
            if attempt > _IDLE_LOSSES:
                raise ClusterError(
                    f"workers were lost {attempt} times while the actors of the run were made; the last time: {error} "
                    "Look at the workers' logs."
                ) from error
            logger.warning("the run's actors are made once more: %s", error)
