"""The driver of a Downpour run: it starts replicas, watches, saves, validates; it does not stand in their way."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from dataclasses import dataclass

import numpy as np

from dask_belief.cluster.actors import ActorAddress
from dask_belief.cluster.limits import LIMITS
from dask_belief.data.units import UNIT_BYTES, UnitPlan, plan_units
from dask_belief.downpour.config import Downpour
from dask_belief.downpour.executor import update_spec
from dask_belief.downpour.lease_book import BookState
from dask_belief.downpour.ledger import Ledger, LedgerSpec, LedgerStatus
from dask_belief.downpour.progress import Progress
from dask_belief.downpour.record import Recorder
from dask_belief.downpour.replica import ReplicaSpec, downpour_replica
from dask_belief.downpour.stall import Stall
from dask_belief.downpour.validation import Validations
from dask_belief.errors import NonFiniteError
from dask_belief.evaluation import SNAPSHOT
from dask_belief.objective import penalised_of, penalty
from dask_belief.optim.stopping import Stop, StopReason
from dask_belief.parameter_server.client import Directory
from dask_belief.parameter_server.deployment import Deployment, DeploymentSpec
from dask_belief.parameter_server.messages import Combine, Dot, SquaredPenalty
from dask_belief.parameter_server.updates import STATE, VALUES, SavedPiece
from dask_belief.run import Outcome, Run, Share, Vector

logger = logging.getLogger(__name__)

# A lease is long enough that asking for it is nothing beside it, and short enough that replicas end together.
_LEASE_BATCHES = 50
_LEASES_AN_EPOCH = 32
_EXCHANGES_A_LEASE = 5
_LEASES_A_REPLICA = 4

_SAVING_SHARE = 0.05
_PROGRESS_SECONDS = 0.5


@dataclass(frozen=True)
class Saved:
    """What a new generation goes on from.

    Attributes
    ----------
    book
        The ledger's state, taken first.
    pieces
        The shards', by where each piece begins.
    """

    book: BookState
    pieces: dict[int, SavedPiece]


def plan_leases(method: Downpour, n_rows: int, chunk_rows: int, row_bytes: int, n_parameters: int) -> UnitPlan:
    """Cut the rows into leases: of about 50 mini-batches, and 32 or more an epoch where there are so many chunks.

    A lease is as long as several exchanges take, and ends where one is due, as far as the chunks allow: at its end what
    has accrued is pushed anyhow.
    """
    batch, lease_rows = method.batch_size, method.lease_rows
    if lease_rows is None:
        period = batch * math.lcm(method.n_fetch, method.n_push)
        lease_rows = max(batch, min(_LEASE_BATCHES * batch, -(-n_rows // _LEASES_AN_EPOCH)))
        lease_rows = max(lease_rows, min(chunk_rows, 4 * lease_rows))
        each = n_rows // (_LEASES_A_REPLICA * (method.n_replicas or 1))
        lease_rows = max(lease_rows, min(_EXCHANGES_A_LEASE * period, each))
        fitting = math.lcm(period, chunk_rows)
        lease_rows = -(-lease_rows // fitting) * fitting if fitting <= lease_rows else lease_rows
        # A replica holds the lease that it trains on and the next.
        most_rows = max(batch, UNIT_BYTES // row_bytes)
        lease_rows = lease_rows if lease_rows <= most_rows else (most_rows // fitting * fitting or most_rows)
    plan = plan_units(n_rows, chunk_rows, row_bytes, n_parameters, unit_rows=min(lease_rows, n_rows))
    if plan.largest_rows < min(batch, n_rows):
        logger.warning(
            "mini-batches of %d rows, not %d: they do not cross the border of a lease, which is made of whole chunks "
            "of %d rows. Write the data in larger chunks, or set lease_rows.",
            *(plan.largest_rows, batch, chunk_rows),
        )
    return plan


class DownpourDriver:
    """Runs Downpour SGD over the generations of a run.

    Parameters
    ----------
    run
        The run.
    method
        Its options.
    """

    def __init__(self, run: Run, method: Downpour) -> None:
        facts = run.facts
        self._run = run
        self._method = method
        self._plan = plan_leases(
            method,
            facts.dataset.n_rows,
            facts.dataset.chunk_rows,
            facts.dataset.row_bytes(facts.dtype),
            facts.objective.n_parameters,
        )
        self._recorder = None if facts.record is None else Recorder(facts.record, facts, method, self._plan)
        self._saved: Saved | None = None
        self._stop: Stop | None = None
        self._last: Vector | None = None
        self._rule_state: dict[str, Vector] = {}
        self._was_taken_over = False
        self._saving = Share(_SAVING_SHARE)
        self._rows = 0
        # The best point, and the snapshot whose validation is under way.
        self._validations = Validations(method, len(self._plan))
        self._best: Vector | None = None
        self._candidate: Vector | None = None

    def drive(self) -> Outcome:
        """Train to the end.

        Raises
        ------
        NonFiniteError
            When a loss is NaN or infinite in the first epoch; later the run stops with the best point.
        NoProgressError
            When nothing was learned for a stated time; says in which of the ways.
        """
        planned = (float(self._method.epochs), "epochs")
        return self._run.through_generations(self._deployment_spec(), planned, self._generation, self._lost)

    def _lost(self) -> str:
        kept = self._saved.book.rows if self._saved else 0
        return f"the updates of {self._rows - kept} rows or a few more"

    def _deployment_spec(self) -> DeploymentSpec:
        facts, method = self._run.facts, self._method
        ledger = LedgerSpec(
            len(self._plan),
            method.epochs,
            facts.seed,
            method.warm_start_steps,
            method.warm_start_seconds,
            method.staleness,
        )

        def replica_spec(directory: Directory, ledger: ActorAddress) -> ReplicaSpec:
            return ReplicaSpec(facts.objective, self._plan, method, directory, ledger, facts.backend, facts.seed)

        return DeploymentSpec(
            run=facts.name,
            method=method.name,
            n_parameters=facts.objective.n_parameters,
            dtype=facts.dtype,
            penalised=penalised_of(facts.objective),
            n_shards=method.n_shards,
            n_replicas=method.n_replicas,
            updates=update_spec(method, is_recorded=facts.record is not None),
            hub=Ledger,
            hub_arguments=(ledger,),
            replica=downpour_replica,
            replica_spec=replica_spec,
            dataset=facts.dataset,
        )

    def _generation(self, deployment: Deployment) -> Outcome:
        if self._stop is None:
            stop = self._train(deployment)
            # Replicas may be in the middle of a lease; what is read from here on is of one moment.
            deployment.run(deployment.server.freeze())
            self._last = self._read_last(deployment, stop)
            self._rule_state = self._read_rule_state(deployment)
            if self._recorder is not None:
                self._recorder.close(deployment, self._last, sorted(self._run.kinds))
            # From here on a lost generation costs the evaluations at the end only.
            self._stop = stop
            deployment.ask("finish")
        return self._outcome(deployment, self._stop)

    def _train(self, deployment: Deployment) -> Stop:
        if self._saved is None:
            deployment.run(deployment.server.write(VALUES, self._run.facts.initial))
            deployment.run(deployment.server.begin_updates())
        else:
            deployment.run(deployment.server.restore(self._saved.pieces))
            deployment.run(deployment.server.forget_marks(self._saved.book.finished))
            deployment.ask("restore", self._saved.book)
        if self._recorder is not None:
            self._recorder.begin(deployment.directory)
        deployment.start_replicas()
        try:
            return self._watch(deployment)
        except KeyboardInterrupt:
            logger.warning("interrupted: the best point is kept")
            return Stop(StopReason.INTERRUPTED, {"rows": self._rows})
        except NonFiniteError as error:
            if self._rows < self._run.facts.dataset.n_rows:
                # Not all rows were seen: it is the data or the rate, and there is hardly a point to keep.
                raise
            logger.warning("%s", error)
            return Stop(StopReason.NOT_FINITE, {"rows": self._rows})

    # While it runs.

    def _watch(self, deployment: Deployment) -> Stop:
        run, n_finished, told_at = self._run, -1, time.monotonic()
        progress = Progress(run.facts.dataset.n_rows, run.seconds)
        stall = Stall(self._method.stalled_after_seconds)
        while True:
            status: LedgerStatus = deployment.ask("wait", n_finished, LIMITS.watch_seconds)
            if not status.is_over:
                deployment.watch()
            run.note_changes(deployment)
            run.note_kinds(status.kinds)
            if status.n_finished > max(n_finished, 0):
                deployment.progressed()
            n_finished = status.n_finished
            self._rows = status.rows
            self._was_taken_over = self._was_taken_over or status.n_taken_over > 0
            now = time.monotonic()
            if status.is_over or now - told_at > _PROGRESS_SECONDS:
                shards = deployment.run(deployment.server.counts())
                stall.look(status, shards, now)
                event = progress.event(status, shards, self._penalty(deployment), run.seconds)
                if event is not None:
                    logger.info("%s", progress.line(event))
                    run.emit(event)
                told_at = now
            self._look_after(deployment, status, stall)
            stop = self._reason(status)
            if stop is not None:
                return stop

    def _reason(self, status: LedgerStatus) -> Stop | None:
        limit = self._method.max_seconds
        if status.is_over:
            return Stop(StopReason.EPOCHS_DONE, {"epochs": self._method.epochs})
        if limit is not None and self._run.seconds >= limit:
            return Stop(StopReason.MAX_SECONDS, {"seconds": self._run.seconds, "max_seconds": limit})
        return self._validations.stop() or self._run.asked_to_stop(rows=status.rows)

    def _penalty(self, deployment: Deployment) -> float:
        """The penalty as it is now."""
        if not self._method.l2:
            return 0.0
        [[squares]] = deployment.execute(SquaredPenalty(VALUES))
        return 0.5 * self._method.l2 * squares

    def _look_after(self, deployment: Deployment, status: LedgerStatus, stall: Stall) -> None:
        """Validate, save, and see whether anything is learned, each within its share of time."""
        run, validations = self._run, self._validations
        self._take_validation(run.poll_validation())
        if run.may_validate and validations.is_due(status.n_finished, status.steps, run.seconds, run.is_validation_due):
            validations.begin(status.n_finished, status.steps, run.seconds)
            self._start_validation(deployment)
        if stall.should_compare(status, len(self._plan)):
            [[squares]] = deployment.execute(Dot(((VALUES, VALUES),)))
            stall.compare(status, squares)
        began = run.seconds
        if status.n_finished and self._saving.is_due(began):
            self._save(deployment)
            self._saving.took(began, run.seconds)

    def _save(self, deployment: Deployment) -> None:
        """Copy the ledger's state, then the shards', and let marks go that this covers."""
        book: BookState = deployment.ask("state")
        self._saved = Saved(book, deployment.run(deployment.server.save()))
        deployment.run(deployment.server.forget_marks(book.finished))
        if self._recorder is not None:
            self._recorder.collect(deployment)

    def _start_validation(self, deployment: Deployment) -> None:
        """Take a snapshot on the shards and on the host, and begin to validate it."""
        deployment.execute(Combine(SNAPSHOT, ((1.0, VALUES),)))
        self._candidate = self._run.read(deployment, SNAPSHOT)
        self._run.start_validation(deployment.directory, self._rows / self._run.facts.dataset.n_rows)

    def _take_validation(self, means: dict[str, float] | None) -> None:
        if means and self._validations.take(means):
            self._best = self._candidate

    # At the end.

    def _read_last(self, deployment: Deployment, stop: Stop) -> Vector:
        """The last parameters; those last saved, when the run diverged."""
        last = self._run.read(deployment, VALUES)
        diverged = stop.reason is StopReason.NOT_FINITE or not np.isfinite(last).all()
        return self._last_saved() if diverged else last

    def _read_rule_state(self, deployment: Deployment) -> dict[str, Vector]:
        """The rule's vectors as the run ended, for a method that goes on from them; none where they are not finite."""
        names = deployment.run(deployment.server.state_names())
        state = {name: self._run.read(deployment, STATE + name) for name in names}
        return state if all(np.isfinite(vector).all() for vector in state.values()) else {}

    def _outcome(self, deployment: Deployment, stop: Stop) -> Outcome:
        """Settle on the best point: the lowest validation loss where there is a validation set, else the last."""
        run, facts = self._run, self._run.facts
        assert self._last is not None
        if facts.validation is not None:
            self._take_validation(run.finish_validation())
            self._candidate = self._last
            deployment.run(deployment.server.write(SNAPSHOT, self._last))
            run.start_validation(deployment.directory, self._rows / facts.dataset.n_rows)
            self._take_validation(run.finish_validation())
        best = self.kept()
        deployment.run(deployment.server.write(SNAPSHOT, best))
        with contextlib.closing(run.evaluation(facts.dataset, "training-loss")) as training:
            training.start(deployment.directory)
            mean_loss = training.finish().mean_loss
        return Outcome(
            parameters=best,
            loss=mean_loss + penalty(facts.objective, best, self._method.l2),
            stop=stop,
            passes=self._rows / facts.dataset.n_rows,
            repeatable=run.is_repeatable and self._is_sequential,
            validation=self._validations.best,
            rule_state=self._rule_state,
        )

    def kept(self) -> Vector:
        """The best parameters that are on the host: by validation, else the last, else those last saved."""
        if self._best is not None:
            return self._best
        return self._last_saved() if self._last is None else self._last

    def _last_saved(self) -> Vector:
        """The parameters last saved, or the initial ones when there are none or they are not finite."""
        last = self._run.facts.initial.copy()
        if self._saved is not None:
            for start, piece in self._saved.pieces.items():
                last[start : start + len(piece.values)] = piece.values
        return last if np.isfinite(last).all() else self._run.facts.initial

    @property
    def _is_sequential(self) -> bool:
        """Whether nothing was decided by timing: one replica, never replaced, no limit in seconds, no snapshots."""
        method = self._method
        is_timed = (
            method.max_seconds is not None or method.warm_start_seconds > 0.0 or self._run.facts.validation is not None
        )
        return method.n_replicas == 1 and not is_timed and not self._was_taken_over
