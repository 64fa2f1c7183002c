"""What both methods' drivers share: the facts of a run, its clock, its events, the best point kept, validation."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from dask_belief.checkpoint import Checkpoint, CheckpointStore, Loaded, SavedState
from dask_belief.cluster.limits import Limits
from dask_belief.cluster.membership import Lost, Membership
from dask_belief.cluster.memory import memory_of_workers, memory_thresholds
from dask_belief.cluster.placement import place
from dask_belief.data.dataset import Dataset
from dask_belief.errors import ClusterError, DaskBeliefError
from dask_belief.evaluation import Evaluation
from dask_belief.memory_needs import Needs
from dask_belief.memory_plan import MemoryPlan, placed_elsewhere, plan_memory, workers_of_run
from dask_belief.monitoring.events import Event, Rebuilt, RunStarted, Saved, Validated, WorkerJoined, WorkerLost
from dask_belief.monitoring.metrics import MetricSums
from dask_belief.objective import Objective
from dask_belief.optim.stopping import Stop, StopReason
from dask_belief.parameter_server.deployment import Deployment, DeploymentSpec, deployed
from dask_belief.parameter_server.vault import SavedNow, Vault
from dask_belief.share import Share

logger = logging.getLogger(__name__)

Vector = NDArray[np.floating]

# Copying the parameters to the driver, and validating, may take this part of a run's time each.
_KEEPING_SHARE = 0.05
_VALIDATING_SHARE = 0.2

# What is lost with the driver's copy is seldom worth less than this.
_KEEPING_LEAST_SECONDS = 1.0


@dataclass(frozen=True)
class Facts:
    """What is to be trained, on what, and where.

    Attributes
    ----------
    name
        Of the run, unique on the cluster.
    client, objective, dataset, validation
        As given to `dask_belief.train`.
    initial
        Where training begins, ``(n_parameters,)``, of the run's dtype.
    seed, dtype, backend
        The root seed, the name of the dtype, the name of the backend.
    adagrad_sums
        The sums of squared gradients that the run's beginning was found with, ``(n_parameters,)``; None for none.
    record
        The folder in which a Downpour run is recorded; None for no record.
    checkpoint
        Where the run saves itself, and how often; None for nowhere but in the memory of workers.
    store
        The same place, made ready for this run.
    resumed
        What the run goes on from; None to begin.
    seconds_before
        How long the run had lasted when it saved what it is resumed from.
    description
        What a checkpoint says of the run beside its state, as plain JSON.
    carried
        Vectors that are saved with each state, though the method does not change them, by name.
    limits
        How long the run waits for what.
    history
        Gives the events until now, as plain JSON, for a checkpoint.
    """

    name: str
    client: Client
    objective: Objective
    dataset: Dataset
    validation: Dataset | None
    initial: Vector
    seed: int
    dtype: str
    backend: str
    adagrad_sums: Vector | None = None
    record: Path | None = None
    checkpoint: Checkpoint | None = None
    store: CheckpointStore | None = None
    resumed: Loaded | None = None
    seconds_before: float = 0.0
    description: Mapping[str, Any] = field(default_factory=dict)
    carried: Mapping[str, Vector] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    history: Callable[[], Sequence[Mapping[str, Any]]] = tuple


@dataclass(frozen=True)
class Outcome:
    """What a driver gives back.

    Attributes
    ----------
    parameters
        The best point, on the host.
    loss
        The objective there, over all training rows.
    stop
        Why the run ended.
    passes
        Over the data, the evaluation of validation sets not counted.
    repeatable
        Whether the same run again, on replicas of the same kind, gives the same bits.
    validation
        The means over the validation set at `parameters`; empty without one.
    rule_state
        The vectors that an update rule ended with, by name; empty for methods without one.
    """

    parameters: Vector
    loss: float
    stop: Stop
    passes: float
    repeatable: bool
    validation: dict[str, float]
    rule_state: dict[str, Vector] = field(default_factory=dict)


class Run:
    """One run as its driver lives it.

    Parameters
    ----------
    facts
        What is trained.
    callbacks
        Hears of it, such as a `CallbackList`; answers whether the run is to stop.

    Attributes
    ----------
    facts
        As given.
    best
        The best parameters on the host: the initial ones at first.
    kinds
        What decides the last bits of replicas' results, each that was seen.
    was_set_back
        Whether a loss took the run to where an unbroken one would not have been.
    vault
        What is saved of it.
    """

    def __init__(self, facts: Facts, callbacks: Callable[[Event], bool]) -> None:
        self.facts = facts
        self.best = facts.initial.copy()
        self.kinds: set[str] = set()
        self.was_set_back = False
        every_seconds = None if facts.checkpoint is None else facts.checkpoint.every_seconds
        resumed = None if facts.resumed is None else facts.resumed.saved
        self.vault = Vault(facts.name, facts.store, every_seconds, resumed, self._commit)
        self._callbacks = callbacks
        # The events until the save under way was begun.
        self._events_then: Sequence[Mapping[str, Any]] = ()
        self._began = time.monotonic()
        self._should_stop = False
        self._memory = ""
        self._keeping = Share(_KEEPING_SHARE, _KEEPING_LEAST_SECONDS)
        self._validating = Share(_VALIDATING_SHARE)
        self._validation: Evaluation | None = None
        if facts.validation is not None:
            self._validation = self.evaluation(facts.validation, "validation")
        self._validated_at = (0.0, 0.0)
        self._there: Callable[[], Collection[str]] | None = None
        self._means: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self._began

    @contextlib.contextmanager
    def on_cluster(self, spec: DeploymentSpec, planned: tuple[float, str]) -> Iterator[Deployment]:
        """Open the run's actors on the cluster, and close them whatever happens.

        Parameters
        ----------
        spec
            What they are.
        planned
            How much is to come, and in what it is counted, for those who show progress.

        Raises
        ------
        ClusterError
            When the scheduler is gone, or actors are lost again and again.
        """
        facts = self.facts
        with self._while_connected(), self._members() as membership:
            n_workers, n_parameters = len(membership.workers), facts.objective.n_parameters
            n_rows = facts.dataset.n_rows
            self.emit(RunStarted(spec.method, n_rows, n_parameters, n_workers, *planned, memory=self._memory))
            with deployed(facts.client, spec, membership) as deployment:
                try:
                    yield deployment
                finally:
                    self.vault.give_up()
                    self.note_changes(deployment)

    def plan_memory(
        self,
        needs: Callable[[int], Needs],
        ranges: Sequence[range],
        n_replicas: int | None,
        n_pieces: int,
        n_copies: int = 0,
    ) -> MemoryPlan:
        """Reckon what the run needs on each worker, say so, and refuse what cannot fit.

        Where it only fits without, nothing is saved in the memory of workers.

        Parameters
        ----------
        needs
            What the method needs with so many replicas.
        ranges, n_replicas, n_pieces, n_copies
            Of its shards, of replicas (None for one on every thread), of tasks of each replica, and of copies of a
            shard.

        Raises
        ------
        DoesNotFitError
            When it is more than a worker has; holds the numbers.
        """
        memory = memory_of_workers(self.facts.client)
        placement, lengths = place(list(memory), len(ranges)), [len(span) for span in ranges]
        shards = list(zip(placement.shards, lengths, strict=True))
        others = list(zip(placed_elsewhere(memory, placement.shards), lengths, strict=False))
        shards += others[: len(others) * n_copies]

        def planned(kept: Sequence[tuple[str, int]]) -> MemoryPlan:
            workers = workers_of_run(memory, n_replicas, n_pieces, shards, placement.hub, kept)
            return plan_memory(needs(sum(worker.n_replicas for worker in workers)), workers, memory_thresholds())

        plan = planned([] if self.is_checkpointed else others)
        if not plan.fits and not self.is_checkpointed and planned([]).fits:
            logger.warning(
                "saved states do not fit in the memory of the workers: a lost shard goes back to the driver's copy of "
                "the parameters. Give checkpoint=, or more memory."
            )
            self.vault.is_able = False
            plan = planned([])
        plan.check()
        self._memory = plan.short
        logger.info("%s", plan)
        if plan.warning:
            logger.warning("%s", plan.warning)
        return plan

    @contextlib.contextmanager
    def _members(self) -> Iterator[Membership]:
        """Listen to who comes and goes; at the end nothing of the run stays on the scheduler."""
        membership = Membership(self.facts.client, f"dask-belief-{self.facts.name}")
        try:
            yield membership
        finally:
            if self._validation is not None:
                self._validation.close()
            membership.close()

    @contextlib.contextmanager
    def _while_connected(self) -> Iterator[None]:
        """Turn whatever goes wrong because the scheduler is gone into an error that says so."""
        try:
            yield
        except (Exception, asyncio.CancelledError) as error:
            # Once Dask's client has given its scheduler up, it cancels what waits and its loop takes no more work: what
            # comes out of that may be of any kind. What replicas said of the objective and the data is not of it.
            is_of_the_run = isinstance(error, DaskBeliefError) and not isinstance(error, ClusterError)
            if self.facts.client.status == "running" or is_of_the_run:
                raise
            raise ClusterError(
                f"the connection to Dask's scheduler is gone: {error!r}. Connect a new client, and go on from "
                "this error's kept_parameters."
            ) from error

    def emit(self, event: Event) -> None:
        """Tell the callbacks."""
        if self._callbacks(event):
            self._should_stop = True

    @property
    def is_repeatable(self) -> bool:
        """Whether nothing has happened that a repetition would not have: mixed kinds, a loss that cost work."""
        return len(self.kinds) <= 1 and not self.was_set_back

    def asked_to_stop(self, **numbers: float) -> Stop | None:
        """The reason to stop when a callback asked for it."""
        return Stop(StopReason.CALLBACK, numbers) if self._should_stop else None

    def evaluation(self, dataset: Dataset, what: str) -> Evaluation:
        """Evaluate a data set on the run's cluster."""
        facts = self.facts
        return Evaluation(facts.client, facts.objective, dataset, facts.backend, facts.name, what)

    def note_changes(self, deployment: Deployment) -> None:
        """Tell of workers that came and went."""
        for change in deployment.changes:
            kind = WorkerLost if isinstance(change, Lost) else WorkerJoined
            self.emit(kind(change.worker, self.seconds))
            if isinstance(change, Lost) and self._validation is not None:
                self._validation.lose(change.worker)
        deployment.changes.clear()
        for reason, cost in deployment.rebuilt:
            self.note_rebuild(reason, cost)
        deployment.rebuilt.clear()

    def note_rebuild(
        self,
        reason: str,
        lost: str,
        iteration: int | None = None,
        updates_lost: int = 0,
        since_seconds: float | None = None,
    ) -> None:
        """Tell that lost actors were made anew; what was being validated is forgotten."""
        logger.warning("%s Going on: %s.", reason, lost)
        if self._validation is not None:
            self._validation.drop()
        seconds_lost = 0.0 if since_seconds is None else self.seconds - since_seconds
        self.emit(Rebuilt(reason, lost, self.seconds, iteration, updates_lost, seconds_lost))

    def note_kinds(self, kinds: tuple[str, ...]) -> None:
        """Take note of the replicas' kinds; a mixed set is warned of once."""
        was_one = len(self.kinds) <= 1
        self.kinds.update(kinds)
        if was_one and len(self.kinds) > 1:
            logger.warning("replicas of different kinds: the run cannot be repeated to the bit. %s", sorted(self.kinds))

    # Saving, beside the work.

    @property
    def is_checkpointed(self) -> bool:
        """Whether the run is saved to a checkpoint."""
        return self.facts.store is not None

    def look_after_saves(self, deployment: Deployment) -> bool:
        """Take note of a save that is complete; tells whether it is time to begin another."""
        self.vault.look(deployment)
        self._note_saved(self.vault.poll(deployment, self.seconds))
        return self.vault.is_due(self.seconds) and self.vault.has_place(deployment)

    def begin_save(
        self,
        deployment: Deployment,
        state: Mapping[str, Any],
        vectors: Mapping[str, str | None] | None,
        own: Mapping[str, Vector] | None = None,
    ) -> None:
        """Begin to save; see `Vault.begin`."""
        state = {**state, "seconds": self.facts.seconds_before + self.seconds}
        # What happens while it is saved is not of this state: a run that goes on from it may find another way.
        self._events_then = self.facts.history() if self.is_checkpointed else ()
        self.vault.begin(deployment, state, vectors, self.seconds, {**self.facts.carried, **(own or {})})

    def finish_save(self, deployment: Deployment) -> None:
        """Wait for the save that is under way."""
        self._note_saved(self.vault.finish(deployment, lambda: self.seconds))

    def _note_saved(self, saved: SavedNow | None) -> None:
        if saved is not None:
            logger.info("saved state %d: %.1f MB in %.2f s", saved.state.number, saved.n_bytes / 1e6, saved.seconds)
            self.emit(Saved(saved.state.number, self.seconds, saved.seconds, saved.n_bytes))

    def _commit(self, saved: SavedState) -> None:
        if self.facts.store is not None:
            self.facts.store.commit(saved, self.facts.description, self._events_then)

    def read(self, deployment: Deployment, name: str) -> Vector:
        """Copy a vector of the shards to the driver."""
        into = np.empty_like(self.facts.initial)
        deployment.run(deployment.server.read(name, into))
        return into

    @property
    def is_keeping_due(self) -> bool:
        """Whether a vector may be copied to the driver within the share of time that this may take."""
        return self._keeping.is_due(self.seconds)

    def keep(self, deployment: Deployment, name: str) -> None:
        """Copy a vector of the shards to `best`."""
        began = self.seconds
        self.best = self.read(deployment, name)
        self._keeping.took(began, self.seconds)

    # Validation runs beside the training, at a vector of the shards that is a copy.

    @property
    def may_validate(self) -> bool:
        """Whether a validation set is given, and no validation is under way."""
        return self._validation is not None and not self._validation.is_running

    @property
    def is_validation_due(self) -> bool:
        """Whether a validation may begin, and enough time has passed since the last."""
        return self.may_validate and self._validating.is_due(self.seconds)

    def start_validation(self, deployment: Deployment, passes: float) -> None:
        """Begin to validate at the shards' snapshot."""
        if self._validation is not None:
            self._validated_at = (self.seconds, passes)
            self._there = deployment.there
            self._validation.start(deployment.directory, list(deployment.workers))

    def poll_validation(self) -> dict[str, float] | None:
        """Tell of a validation that has come to its end, and give its means."""
        if self._validation is None or not self._validation.is_running:
            return None
        sums = self._validation.poll()
        return None if sums is None else self._tell(sums)

    def finish_validation(self) -> dict[str, float]:
        """Wait for a validation under way, and give the newest means; empty without a validation set."""
        if self._validation is not None and self._validation.is_running:
            self._tell(self._validation.finish(self._there))
        return self._means

    def _tell(self, sums: MetricSums) -> dict[str, float]:
        began, passes = self._validated_at
        self._validating.took(began, self.seconds)
        means = sums.means()
        metrics = {name: mean for name, mean in means.items() if name != "loss"}
        self.emit(Validated(loss=sums.mean_loss, metrics=metrics, passes=passes, seconds=began))
        self._means = means
        return means
