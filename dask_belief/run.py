"""What both methods' drivers share: the facts of a run, its clock, its events, the best point kept, validation."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from dask_belief.cluster.membership import Lost, Membership, wait_for_a_worker
from dask_belief.data.dataset import Dataset
from dask_belief.errors import ActorLostError, ClusterError, DaskBeliefError
from dask_belief.evaluation import Evaluation
from dask_belief.monitoring.events import Event, Rebuilt, RunStarted, Validated, WorkerJoined, WorkerLost
from dask_belief.monitoring.metrics import MetricSums
from dask_belief.objective import Objective
from dask_belief.optim.stopping import Stop, StopReason
from dask_belief.parameter_server.client import Directory
from dask_belief.parameter_server.deployment import Deployment, DeploymentSpec, deployed

logger = logging.getLogger(__name__)

Vector = NDArray[np.floating]

# Copying the parameters to the driver, and validating, may take this part of a run's time each.
_KEEPING_SHARE = 0.05
_VALIDATING_SHARE = 0.2

# What is lost with a generation is seldom worth less than this.
_KEEPING_LEAST_SECONDS = 1.0

# So many generations may be lost in a row, without any work finished, before the run gives up.
_IDLE_GENERATIONS = 5


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


class Share:
    """Keeps something that is done now and then within a part of the run's time; pure.

    Parameters
    ----------
    share
        The part, between 0 and 1.
    least_seconds
        Between two of them, however little they cost.
    """

    def __init__(self, share: float, least_seconds: float = 0.0) -> None:
        self._share = share
        self._least_seconds = least_seconds
        self._ready_at = 0.0

    def is_due(self, now: float) -> bool:
        """Whether enough time has passed since the last one."""
        return now >= self._ready_at

    def took(self, began: float, ended: float) -> None:
        """Note what the last one cost."""
        self._ready_at = ended + max((ended - began) * (1 - self._share) / self._share, self._least_seconds)


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
    was_rebuilt
        Whether a generation of actors was lost, and so what it had done since it was last kept.
    """

    def __init__(self, facts: Facts, callbacks: Callable[[Event], bool]) -> None:
        self.facts = facts
        self.best = facts.initial.copy()
        self.kinds: set[str] = set()
        self.was_rebuilt = False
        self._callbacks = callbacks
        self._began = time.monotonic()
        self._should_stop = False
        self._keeping = Share(_KEEPING_SHARE, _KEEPING_LEAST_SECONDS)
        self._validating = Share(_VALIDATING_SHARE)
        self._validation: Evaluation | None = None
        if facts.validation is not None:
            self._validation = self.evaluation(facts.validation, "validation")
        self._validated_at = (0.0, 0.0)
        self._means: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self._began

    def through_generations(
        self,
        spec: DeploymentSpec,
        planned: tuple[float, str],
        live: Callable[[Deployment], Outcome],
        lost: Callable[[], str],
    ) -> Outcome:
        """Open one generation of actors after another until one lives to the end of the run.

        Parameters
        ----------
        spec
            What a generation is made of.
        planned
            How much is to come, and in what it is counted, for those who show progress.
        live
            Trains on an open generation; ends with `ActorLostError` when it is lost.
        lost
            Says what the loss of a generation cost.

        Raises
        ------
        ClusterError
            When several generations in a row were lost before any work was finished, or no worker comes back.
        """
        facts, idle = self.facts, 0
        with self._while_connected(), self._members() as membership:
            n_workers, n_parameters = len(membership.workers), facts.objective.n_parameters
            self.emit(RunStarted(spec.method, facts.dataset.n_rows, n_parameters, n_workers, *planned))
            for generation in itertools.count():
                idle += 1
                try:
                    with deployed(facts.client, spec, generation, membership) as deployment:
                        try:
                            return live(deployment)
                        finally:
                            self.note_changes(deployment)
                            idle = 0 if deployment.has_progressed else idle
                except ActorLostError as error:
                    if idle > _IDLE_GENERATIONS:
                        raise ClusterError(
                            f"{idle} generations of the run were lost one after another without any work finished; the "
                            f"last one: {error} Look at the workers' logs."
                        ) from error
                    self._note_rebuild(str(error), lost())
                wait_for_a_worker(facts.client, membership)
        raise AssertionError("itertools.count() has no end")

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
        """Whether nothing has happened that a repetition would not have: mixed kinds, a lost generation."""
        return len(self.kinds) <= 1 and not self.was_rebuilt

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
        deployment.changes.clear()

    def _note_rebuild(self, reason: str, lost: str) -> None:
        """Tell that a generation was lost and another is made; what it was validating is forgotten."""
        logger.warning("%s Going on with new actors: %s.", reason, lost)
        if self._validation is not None:
            self._validation.drop()
        self.was_rebuilt = True
        self.emit(Rebuilt(reason, lost, self.seconds))

    def note_kinds(self, kinds: tuple[str, ...]) -> None:
        """Take note of the replicas' kinds; a mixed set is warned of once."""
        was_one = len(self.kinds) <= 1
        self.kinds.update(kinds)
        if was_one and len(self.kinds) > 1:
            logger.warning("replicas of different kinds: the run cannot be repeated to the bit. %s", sorted(self.kinds))

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

    def start_validation(self, directory: Directory, passes: float) -> None:
        """Begin to validate at the shards' snapshot."""
        if self._validation is not None:
            self._validated_at = (self.seconds, passes)
            self._validation.start(directory)

    def poll_validation(self) -> dict[str, float] | None:
        """Tell of a validation that has come to its end, and give its means."""
        if self._validation is None or not self._validation.is_running:
            return None
        sums = self._validation.poll()
        return None if sums is None else self._tell(sums)

    def finish_validation(self) -> dict[str, float]:
        """Wait for a validation under way, and give the newest means; empty without a validation set."""
        if self._validation is not None and self._validation.is_running:
            self._tell(self._validation.finish())
        return self._means

    def _tell(self, sums: MetricSums) -> dict[str, float]:
        began, passes = self._validated_at
        self._validating.took(began, self.seconds)
        means = sums.means()
        metrics = {name: mean for name, mean in means.items() if name != "loss"}
        self.emit(Validated(loss=sums.mean_loss, metrics=metrics, passes=passes, seconds=began))
        self._means = means
        return means
