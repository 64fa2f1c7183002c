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
from dask_belief.downpour.lease_book import BookState
from dask_belief.downpour.ledger import Ledger, LedgerStatus
from dask_belief.downpour.replica import ReplicaSpec, downpour_replica
from dask_belief.errors import NonFiniteError, NoProgressError
from dask_belief.evaluation import SNAPSHOT
from dask_belief.monitoring.events import DownpourProgressed
from dask_belief.objective import penalised_of, penalty
from dask_belief.optim.stopping import Stop, StopReason
from dask_belief.parameter_server.client import Directory
from dask_belief.parameter_server.deployment import Deployment, DeploymentSpec
from dask_belief.parameter_server.messages import Combine, SquaredPenalty
from dask_belief.parameter_server.shard import STATE, VALUES, SavedPiece
from dask_belief.run import Outcome, Run, Share, Vector

logger = logging.getLogger(__name__)

# A lease is long enough that asking for it is nothing beside it, and short enough that replicas end together.
_LEASE_BATCHES = 50
_LEASES_AN_EPOCH = 32

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


def plan_leases(
    n_rows: int, chunk_rows: int, row_bytes: int, n_parameters: int, batch_size: int, lease_rows: int | None
) -> UnitPlan:
    """Cut the rows into leases: of about 50 mini-batches, and 32 or more an epoch where there are so many chunks."""
    if lease_rows is None:
        lease_rows = max(1, min(_LEASE_BATCHES * batch_size, -(-n_rows // _LEASES_AN_EPOCH)))
        lease_rows = max(lease_rows, min(chunk_rows, 4 * lease_rows))
        # A replica holds the lease that it trains on and the next.
        lease_rows = min(lease_rows, UNIT_BYTES // row_bytes)
        lease_rows = max(lease_rows, batch_size)
    plan = plan_units(n_rows, chunk_rows, row_bytes, n_parameters, unit_rows=min(lease_rows, n_rows))
    if plan.largest_rows < min(batch_size, n_rows):
        logger.warning(
            "mini-batches of %d rows, not %d: they do not cross the border of a lease, which is made of whole chunks "
            "of %d rows. Write the data in larger chunks, or set lease_rows.",
            *(plan.largest_rows, batch_size, chunk_rows),
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
            facts.dataset.n_rows,
            facts.dataset.chunk_rows,
            facts.dataset.row_bytes(facts.dtype),
            facts.objective.n_parameters,
            method.batch_size,
            method.lease_rows,
        )
        self._saved: Saved | None = None
        self._stop: Stop | None = None
        self._last: Vector | None = None
        self._rule_state: dict[str, Vector] = {}
        self._was_taken_over = False
        self._saving = Share(_SAVING_SHARE)
        self._rows = 0
        # The best point, its means over the validation set, and the snapshot whose validation is under way.
        self._best: Vector | None = None
        self._best_validation: dict[str, float] = {}
        self._candidate: Vector | None = None
        self._validated_epoch = 0

    def drive(self) -> Outcome:
        """Train to the end.

        Raises
        ------
        NonFiniteError
            When a loss is NaN or infinite in the first epoch; later the run stops with the best point.
        """
        planned = (float(self._method.epochs), "epochs")
        return self._run.through_generations(self._deployment_spec(), planned, self._generation, self._lost)

    def _lost(self) -> str:
        kept = self._saved.book.rows if self._saved else 0
        return f"the updates of {self._rows - kept} rows or a few more"

    def _deployment_spec(self) -> DeploymentSpec:
        facts, method = self._run.facts, self._method

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
            rule=method.rule,
            hub=Ledger,
            hub_arguments=(len(self._plan), method.epochs, facts.seed, method.warm_start_steps),
            replica=downpour_replica,
            replica_spec=replica_spec,
            dataset=facts.dataset,
        )

    def _generation(self, deployment: Deployment) -> Outcome:
        if self._stop is None:
            stop = self._train(deployment)
            self._last = self._read_last(deployment, stop)
            self._rule_state = self._read_rule_state(deployment)
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
            deployment.run(deployment.server.forget_marks(list(self._saved.book.finished)))
            deployment.ask("restore", self._saved.book)
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
        run, n_finished = self._run, -1
        last_progress = last_event = time.monotonic()
        told: LedgerStatus | None = None
        while True:
            status: LedgerStatus = deployment.ask("wait", n_finished, LIMITS.watch_seconds)
            if not status.is_over:
                deployment.watch()
            run.note_changes(deployment)
            run.note_kinds(status.kinds)
            now = time.monotonic()
            if status.n_finished != n_finished:
                if status.n_finished > max(n_finished, 0):
                    deployment.progressed()
                n_finished, last_progress = status.n_finished, now
            if status.is_over or now - last_event > _PROGRESS_SECONDS:
                self._tell(deployment, status, told)
                told, last_event = status, now
            self._rows = status.rows
            self._was_taken_over = self._was_taken_over or status.n_taken_over > 0
            self._look_after(deployment, status)
            stop = self._reason(status)
            if stop is not None:
                return stop
            if now - last_progress > LIMITS.no_progress_seconds:
                raise NoProgressError(
                    f"no lease was finished for {LIMITS.no_progress_seconds:g} seconds, with {status.n_finished} "
                    f"finished and {status.n_replicas} replicas. Look at the workers' logs."
                )

    def _reason(self, status: LedgerStatus) -> Stop | None:
        limit = self._method.max_seconds
        if status.is_over:
            return Stop(StopReason.EPOCHS_DONE, {"epochs": self._method.epochs})
        if limit is not None and self._run.seconds >= limit:
            return Stop(StopReason.MAX_SECONDS, {"seconds": self._run.seconds, "max_seconds": limit})
        return self._run.asked_to_stop(rows=status.rows)

    def _tell(self, deployment: Deployment, status: LedgerStatus, before: LedgerStatus | None) -> None:
        """Tell how far it is, with the mean loss over the rows since the last time, and the penalty as it is now."""
        loss_sum = status.loss_sum - (before.loss_sum if before else 0.0)
        n_rows = status.loss_rows - (before.loss_rows if before else 0)
        if n_rows <= 0:
            return
        epochs = status.rows / self._run.facts.dataset.n_rows
        loss = loss_sum / n_rows
        if self._method.l2:
            [[squares]] = deployment.execute(SquaredPenalty(VALUES))
            loss += 0.5 * self._method.l2 * squares
        event = DownpourProgressed(status.steps, epochs, status.rows, loss, self._run.seconds)
        logger.info("%d steps, %.2f epochs, loss %.6g, %.1f s", event.steps, epochs, event.loss, event.seconds)
        self._run.emit(event)

    def _look_after(self, deployment: Deployment, status: LedgerStatus) -> None:
        """Validate once an epoch, and save, both within their share of time."""
        self._take_validation(self._run.poll_validation())
        epoch = status.n_finished // len(self._plan)
        if self._validated_epoch < epoch < self._method.epochs and self._run.is_validation_due:
            self._validated_epoch = epoch
            self._start_validation(deployment)
        began = self._run.seconds
        if status.n_finished and self._saving.is_due(began):
            self._save(deployment)
            self._saving.took(began, self._run.seconds)

    def _save(self, deployment: Deployment) -> None:
        """Copy the ledger's state, then the shards', and let marks go that this covers."""
        book: BookState = deployment.ask("state")
        self._saved = Saved(book, deployment.run(deployment.server.save()))
        deployment.run(deployment.server.forget_marks(list(book.finished)))

    def _start_validation(self, deployment: Deployment) -> None:
        """Take a snapshot on the shards and on the host, and begin to validate it."""
        deployment.execute(Combine(SNAPSHOT, ((1.0, VALUES),)))
        self._candidate = self._run.read(deployment, SNAPSHOT)
        self._run.start_validation(deployment.directory, self._rows / self._run.facts.dataset.n_rows)

    def _take_validation(self, means: dict[str, float] | None) -> None:
        if means and means["loss"] < self._best_validation.get("loss", math.inf):
            self._best_validation, self._best = means, self._candidate

    # At the end.

    def _read_last(self, deployment: Deployment, stop: Stop) -> Vector:
        """The last parameters; those last saved, when the run diverged."""
        last = self._run.read(deployment, VALUES)
        diverged = stop.reason is StopReason.NOT_FINITE or not np.isfinite(last).all()
        return self._last_saved() if diverged else last

    def _read_rule_state(self, deployment: Deployment) -> dict[str, Vector]:
        """The rule's vectors as the run ended, for a method that goes on from them; none where they are not finite."""
        names = self._method.rule.init(np.zeros(0, self._run.facts.dtype))
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
            validation=self._best_validation,
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
        is_timed = method.max_seconds is not None or self._run.facts.validation is not None
        return method.n_replicas == 1 and not is_timed and not self._was_taken_over
