"""The driver of a Downpour run: it starts replicas, watches, saves, validates; it does not stand in their way."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from dask_belief.cluster.actors import ActorAddress
from dask_belief.cluster.limits import LAST_CALL_SECONDS, limited_by, limits
from dask_belief.data.units import UnitPlan
from dask_belief.downpour.config import Downpour
from dask_belief.downpour.executor import update_spec
from dask_belief.downpour.lease_plan import plan_leases
from dask_belief.downpour.ledger import Ledger, LedgerSpec, LedgerState, LedgerStatus
from dask_belief.downpour.memory_plan import downpour_needs
from dask_belief.downpour.progress import Progress
from dask_belief.downpour.record import Recorder
from dask_belief.downpour.replica import ReplicaSpec, downpour_piece, downpour_replica
from dask_belief.downpour.stall import Stall
from dask_belief.downpour.validation import Validations
from dask_belief.errors import ActorLostError, CallTimeoutError, CheckpointError, NonFiniteError, OldDirectoryError
from dask_belief.evaluation import SNAPSHOT
from dask_belief.memory_needs import Needs
from dask_belief.model_parallel.team import n_pieces_of, pieces_of, ranges_of
from dask_belief.objective import penalised_of, penalty
from dask_belief.optim.stopping import Stop, StopReason
from dask_belief.parameter_server.carrying import Errand
from dask_belief.parameter_server.client import ParameterServer
from dask_belief.parameter_server.consistency import Synchronous
from dask_belief.parameter_server.deployment import Deployment, DeploymentSpec
from dask_belief.parameter_server.directory import Directory
from dask_belief.parameter_server.messages import (
    NOTHING_FINISHED,
    Combine,
    Dot,
    Finished,
    LeaseKey,
    SquaredPenalty,
)
from dask_belief.parameter_server.shards import ShardsSpec
from dask_belief.parameter_server.updates import STATE, VALUES
from dask_belief.parameter_server.vault import LEAST_SECONDS, SAVING_SHARE, cuts_of
from dask_belief.recovery import Loss, Source, source_of
from dask_belief.run import Outcome, Run, Vector
from dask_belief.share import Share

logger = logging.getLogger(__name__)

_PROGRESS_SECONDS = 0.5


class DownpourDriver:
    """Runs Downpour SGD to its end, whatever is lost on the way.

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
        self._plan = self._resumed_plan() or plan_leases(
            method,
            facts.dataset.n_rows,
            facts.dataset.chunk_rows,
            facts.dataset.row_bytes(facts.dtype),
            facts.objective.n_parameters,
        )
        self._recorder = None if facts.record is None else Recorder(facts.record, facts, method, self._plan)
        # What a ledger that is made anew is told.
        self._ledger: LedgerState | None = None
        self._stop: Stop | None = None
        self._last: Vector | None = None
        self._rule_state: dict[str, Vector] = {}
        self._was_taken_over = False
        self._keeping = Share(SAVING_SHARE, LEAST_SECONDS)
        self._kept: Vector | None = None
        # Mini-batches that are in what was kept: leases that were finished, and of others the last that all shards
        # had; and those that may be, since they came to the shards by the time it was here: per lease the last.
        self._kept_finished: Finished = NOTHING_FINISHED
        self._kept_held: dict[LeaseKey, int] = {}
        self._kept_marks: dict[LeaseKey, int] = {}
        self._rows = 0
        self._n_finished = -1
        self._told = Progress(facts.dataset.n_rows, run.seconds)
        self._told_at = time.monotonic()
        self._stall = Stall(method.stalled_after_seconds)
        # The best point, and the snapshot whose validation is under way.
        self._validations = Validations(method, len(self._plan))
        self._best: Vector | None = None
        self._n_best = 0
        self._candidate: Vector | None = None

    def _resumed_plan(self) -> UnitPlan | None:
        """The leases of the run that this one goes on from: its ledger counts in them."""
        resumed = self._run.facts.resumed
        return None if resumed is None else UnitPlan.from_config(resumed.saved.state["plan"])

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
        with self._run.on_cluster(self._deployment_spec(), planned) as deployment:
            try:
                return self._drive(deployment)
            except KeyboardInterrupt:
                if self._kept is None:
                    # It had not begun.
                    raise
                logger.warning("interrupted: the best point that was kept is the result")
                deployment.is_urgent = True
                self._stop = self._interrupted()
                return self._outcome(deployment)

    def _drive(self, deployment: Deployment) -> Outcome:
        prepare = self._begin
        while True:
            try:
                prepare(deployment)
                if self._stop is None:
                    self._end(deployment, self._train(deployment))
                return self._outcome(deployment)
            except (ActorLostError, OldDirectoryError) as error:
                reason, prepare = error, self._heal
            deployment.find_losses(reason)

    def _interrupted(self) -> Stop:
        return Stop(StopReason.INTERRUPTED, {"rows": self._rows})

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

        ranges = ranges_of(facts.objective, method.n_shards)
        n_pieces = n_pieces_of(facts.objective)
        self._run.plan_memory(self._needs, ranges, method.n_replicas, n_pieces, method.shard_copies)

        def replica_spec(directory: Directory, ledger: ActorAddress) -> ReplicaSpec:
            return ReplicaSpec(
                facts.objective, self._plan, method, directory, ledger, facts.backend, facts.seed, limits()
            )

        return DeploymentSpec(
            run=facts.name,
            method=method.name,
            shards=ShardsSpec(
                n_parameters=facts.objective.n_parameters,
                dtype=facts.dtype,
                penalised=penalised_of(facts.objective),
                updates=update_spec(method, is_recorded=facts.record is not None),
                ranges=ranges,
                cuts=() if facts.resumed is None else cuts_of(facts.resumed.saved),
                n_copies=method.shard_copies,
            ),
            n_replicas=method.n_replicas,
            hub=Ledger,
            hub_arguments=(ledger,),
            hub_state=self._hub_state,
            hub_cost="leases under way are begun again where the shards have their last push",
            replica=downpour_replica,
            replica_spec=replica_spec,
            dataset=facts.dataset,
            in_pieces=pieces_of(facts.objective, downpour_piece),
        )

    def _needs(self, n_replicas: int) -> Needs:
        facts = self._run.facts
        return downpour_needs(
            self._method, facts.objective, facts.dataset, facts.validation, facts.dtype, self._plan, n_replicas
        )

    # Where the run begins, and where it goes on.

    def _begin(self, deployment: Deployment) -> None:
        """Bring shards and ledger to where the run begins: the initial point, or what it is resumed from."""
        vault, everything = self._run.vault, range(len(deployment.directory.shards))
        if vault.newest is None:
            deployment.run(deployment.server.write(VALUES, self._run.facts.initial))
            deployment.run(deployment.server.begin_updates())
        else:
            deployment.fill(vault.update_fills(deployment, deployment.directory, everything, is_behind=False))
            self._resume()
            self._take_ledger(deployment)
            deployment.ask("restore", *self._restored(deployment))
        if self._recorder is not None:
            self._recorder.begin(deployment.directory)
        deployment.copy_shards()
        self._keep(deployment)

    def _resume(self) -> None:
        """Take up what the run that is resumed had found."""
        vault = self._run.vault
        assert vault.newest is not None
        state = vault.newest.state
        try:
            self._validations.take_config(state["validations"])
            self._n_best = int(state["n_best"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"checkpoint: what it says of validations cannot be read: {error!r}. It is damaged, or of another "
                "method; resume from the one before."
            ) from error
        self._best = vault.own(_best_name(self._n_best)) if self._n_best else None

    def _take_ledger(self, deployment: Deployment) -> None:
        """Let the ledger go on from the newest saved state, which the shards hold."""
        self._ledger = self._saved_ledger()
        self._rows = self._ledger.book.rows
        deployment.run(deployment.server.forget_marks(self._ledger.book.finished))

    def _hub_state(self, deployment: Deployment) -> tuple[object, ...] | None:
        """What a ledger that is made anew is told."""
        self._n_finished = -1
        if self._recorder is not None:
            self._recorder.break_off()
        return None if self._ledger is None else self._restored(deployment)

    def _restored(self, deployment: Deployment) -> tuple[object, ...]:
        is_synchronous = isinstance(self._method.staleness, Synchronous)
        return self._ledger, deployment.run(deployment.server.n_rounds()) if is_synchronous else 0

    def _heal(self, deployment: Deployment) -> None:
        """Make lost shards anew and fill them; the others go on as they are, unless none is left."""
        run, lost = self._run, deployment.lost_shards()
        run.note_changes(deployment)
        run.vault.give_up()
        run.vault.look(deployment)
        if self._recorder is not None:
            self._recorder.break_off()
        if self._stop is not None:
            # Only what was found is evaluated yet.
            deployment.replace(lost, lambda _: [], {})
            return
        if not lost:
            # A copy has taken its place, or all answer again.
            deployment.replace((), lambda _: [], {})
            deployment.copy_shards()
            return
        are_all = len(lost) == len(deployment.directory.shards)
        source = self._source(deployment, lost)

        def carry(server: ParameterServer) -> list[tuple[str, Errand]]:
            if source is Source.SAVED:
                return run.vault.update_fills(deployment, server.directory, lost, is_behind=not are_all)
            kept = run.facts.initial if source is Source.BEGINNING or self._kept is None else self._kept
            deployment.run(server.write(VALUES, kept, lost))
            deployment.run(server.begin_updates(lost, is_behind=not (are_all and source is Source.BEGINNING)))
            return []

        n_lost = 0

        def settle(server: ParameterServer) -> None:
            nonlocal n_lost
            if not are_all or source is Source.KEPT:
                n_lost = self._count_lost(deployment, server, lost, source)

        deployment.replace(lost, carry, run.vault.keeper_workers(), settle)
        run.was_set_back = True
        names = ", ".join(f"shard {index}" for index in lost)
        if are_all and source is not Source.KEPT:
            n_rows = self._rows
            self._go_back(deployment, source)
            said = f"all shards back to {source.value}; {n_rows - self._rows} rows or a few more are gone over again"
            since = run.vault.saved_at if source is Source.SAVED else 0.0
            run.note_rebuild(f"{names} was lost.", said, since_seconds=since)
        else:
            more = " or a few more" if are_all else ""
            said = f"{names} back to {source.value}; {n_lost} mini-batches{more} are lost to it"
            run.note_rebuild(f"{names} was lost.", said, updates_lost=n_lost)
        deployment.copy_shards()

    def _go_back(self, deployment: Deployment, source: Source) -> None:
        """What all shards have lost is gone over again: the ledger goes back with them."""
        if source is Source.SAVED:
            self._take_ledger(deployment)
        else:
            self._ledger, self._rows = None, 0
        deployment.renew_hub("all shards went back.")

    def _count_lost(self, deployment: Deployment, server: ParameterServer, lost: list[int], source: Source) -> int:
        """Count as applied what new shards lack and nobody sends again; gives how many mini-batches that are.

        That is what all other shards have; where there are none, what is behind the leases that are finished. Before
        replicas know of the new shards: what they send again then is what some shard has not acknowledged.
        """
        before = NOTHING_FINISHED
        if source is Source.SAVED:
            before = self._saved_ledger().book.finished
            deployment.run(server.forget_marks(before, lost))
        now: LedgerState = deployment.ask("state")
        marks = {key: self._n_steps(key) - 1 for key in self._finished_since(before, now.book.finished)}
        others = [shard for shard in range(len(deployment.directory.shards)) if shard not in lost]
        if others:
            marks = _furthest([marks, _least(deployment.run(deployment.server.marks(others)))])
        held: dict[LeaseKey, int] = {}
        if source is Source.KEPT:
            marks = _furthest([marks, self._kept_marks])
            finished = self._finished_since(NOTHING_FINISHED, self._kept_finished)
            held = _furthest([{key: self._n_steps(key) - 1 for key in finished}, self._kept_held])
        return int(deployment.run(server.advance(lost, marks, held)))

    def _finished_since(self, before: Finished, now: Finished) -> Iterator[LeaseKey]:
        for epoch in range(before.epoch, self._method.epochs):
            for lease in range(len(self._plan)):
                key = LeaseKey(epoch, lease)
                if key in now and key not in before:
                    yield key
            if epoch > now.epoch and not now.more:
                return

    def _n_steps(self, key: LeaseKey) -> int:
        """The mini-batches of a lease."""
        return -(-self._plan[key.lease].rows // self._method.batch_size)

    def _source(self, deployment: Deployment, lost: list[int]) -> Source:
        vault = self._run.vault
        return source_of(
            Loss(
                has_saved=vault.can_fill(lost),
                n_saved=vault.n_saved,
                can_save=vault.is_able and vault.has_place(deployment),
                has_kept=self._kept is not None,
            )
        )

    # While it runs.

    def _train(self, deployment: Deployment) -> Stop:
        deployment.start_replicas()
        try:
            return self._watch(deployment)
        except KeyboardInterrupt:
            logger.warning("interrupted: the best point is kept")
            deployment.is_urgent = True
            return self._interrupted()
        except NonFiniteError as error:
            if self._rows < self._run.facts.dataset.n_rows:
                # Not all rows were seen: it is the data or the rate, and there is hardly a point to keep.
                raise
            logger.warning("%s", error)
            return Stop(StopReason.NOT_FINITE, {"rows": self._rows})

    def _watch(self, deployment: Deployment) -> Stop:
        run = self._run
        while True:
            status: LedgerStatus = deployment.ask("wait", self._n_finished, limits().watch_seconds)
            if not status.is_over:
                deployment.watch()
            run.note_changes(deployment)
            run.note_kinds(status.kinds)
            if status.n_finished > max(self._n_finished, 0):
                deployment.progressed()
            self._n_finished = status.n_finished
            self._rows = status.rows
            self._was_taken_over = self._was_taken_over or status.n_taken_over > 0 or deployment.n_hubs > 1
            self._tell(deployment, status)
            self._look_after(deployment, status)
            stop = self._reason(status)
            if stop is not None:
                return stop

    def _tell(self, deployment: Deployment, status: LedgerStatus) -> None:
        """Now and then: look whether anything moves, and tell of it."""
        now = time.monotonic()
        if not status.is_over and now - self._told_at <= _PROGRESS_SECONDS:
            return
        self._told_at = now
        shards = deployment.run(deployment.server.counts())
        self._ledger = deployment.ask("state")
        self._stall.look(status, shards, now)
        event = self._told.event(status, shards, self._penalty(deployment), self._run.seconds)
        if event is not None:
            logger.info("%s", Progress.line(event))
            self._run.emit(event)

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

    def _look_after(self, deployment: Deployment, status: LedgerStatus) -> None:
        """Validate, save, move shards, and see whether anything is learned, each within its share of time."""
        run, validations = self._run, self._validations
        self._take_validation(run.poll_validation())
        if run.may_validate and validations.is_due(status.n_finished, status.steps, run.seconds, run.is_validation_due):
            validations.begin(status.n_finished, status.steps, run.seconds)
            self._start_validation(deployment)
        if self._stall.should_compare(status, len(self._plan)):
            [[squares]] = deployment.execute(Dot(((VALUES, VALUES),)))
            self._stall.compare(status, squares)
        if deployment.leaving_shards():
            deployment.hand_over(None)
            if self._recorder is not None:
                self._recorder.break_off()
        deployment.copy_shards()
        self._look_after_saves(deployment)
        if status.n_finished and self._keeping.is_due(run.seconds):
            self._keep(deployment)

    def _look_after_saves(self, deployment: Deployment) -> None:
        run = self._run
        n_saved = run.vault.n_saved
        is_due = run.look_after_saves(deployment)
        if run.vault.n_saved > n_saved:
            deployment.run(deployment.server.forget_marks(self._saved_ledger().book.finished))
            if self._recorder is not None:
                self._recorder.collect(deployment)
        if is_due:
            self._begin_save(deployment)

    def _begin_save(self, deployment: Deployment) -> None:
        """Save the ledger first, then the shards: no lease counts as finished whose pushes are not saved."""
        self._ledger = ledger = deployment.ask("state")
        state = {
            "plan": self._plan.to_config(),
            "ledger": ledger.to_config(),
            "validations": self._validations.to_config(),
            "n_best": self._n_best,
        }
        own = {} if self._best is None else {_best_name(self._n_best): self._best}
        self._run.begin_save(deployment, state, None, own)

    def _saved_ledger(self) -> LedgerState:
        saved = self._run.vault.newest
        assert saved is not None
        try:
            return LedgerState.from_config(saved.state["ledger"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"checkpoint: what it says of leases cannot be read: {error!r}. It is damaged, or of another method; "
                "resume from the one before."
            ) from error

    def _keep(self, deployment: Deployment) -> None:
        """Copy the parameters to the driver, for whoever is told of an error."""
        began = self._run.seconds
        everything = range(len(deployment.directory.shards))
        # Before the values, for what is lost where a run goes on from them.
        finished = NOTHING_FINISHED if self._ledger is None else self._ledger.book.finished
        held = _least(deployment.run(deployment.server.marks(everything)))
        kept = self._run.read(deployment, VALUES)
        # After the values: what they hold must not be trained on again by whoever goes on from them.
        of_shards = deployment.run(deployment.server.marks(everything, of_any=True))
        self._kept, self._kept_marks = kept, _furthest(of_shards)
        self._kept_finished, self._kept_held = finished, held
        self._keeping.took(began, self._run.seconds)

    def _start_validation(self, deployment: Deployment) -> None:
        """Take a snapshot on the shards and on the host, and begin to validate it."""
        deployment.execute(Combine(SNAPSHOT, ((1.0, VALUES),)))
        self._candidate = self._run.read(deployment, SNAPSHOT)
        self._run.start_validation(deployment, self._rows / self._run.facts.dataset.n_rows)

    def _take_validation(self, means: dict[str, float] | None) -> None:
        if means and self._validations.take(means):
            self._best = self._candidate
            self._n_best += 1

    # At the end.

    def _end(self, deployment: Deployment, stop: Stop) -> None:
        """Take what the run ends with from the shards, all of one moment."""
        if stop.reason is not StopReason.INTERRUPTED:
            self._take_end(deployment, stop)
            return
        try:
            with limited_by(replace(limits(), call_seconds=min(limits().call_seconds, LAST_CALL_SECONDS))):
                self._take_end(deployment, stop)
        except (ActorLostError, OldDirectoryError, CallTimeoutError) as error:
            # An interrupt reaches all processes of a group, and workers that were made here end with it.
            logger.warning("the last point was lost with its worker, and the one kept before is the result: %s", error)
            self._stop = stop

    def _take_end(self, deployment: Deployment, stop: Stop) -> None:
        # Replicas may be in the middle of a lease.
        deployment.run(deployment.server.freeze())
        self._last = self._read_last(deployment, stop)
        self._rule_state = self._read_rule_state(deployment)
        if self._recorder is not None:
            self._recorder.close(deployment, self._last, sorted(self._run.kinds))
        if self._run.is_checkpointed and stop.reason not in (StopReason.INTERRUPTED, StopReason.NOT_FINITE):
            self._run.finish_save(deployment)
            self._begin_save(deployment)
            self._run.finish_save(deployment)
        # From here on a loss costs the evaluations at the end only.
        self._stop = stop
        deployment.ask("finish")

    def _read_last(self, deployment: Deployment, stop: Stop) -> Vector:
        """The last parameters; those last kept, when the run diverged."""
        last = self._run.read(deployment, VALUES)
        diverged = stop.reason is StopReason.NOT_FINITE or not np.isfinite(last).all()
        return self._last_kept() if diverged else last

    def _read_rule_state(self, deployment: Deployment) -> dict[str, Vector]:
        """The rule's vectors as the run ended, for a method that goes on from them; none where they are not finite."""
        names = deployment.run(deployment.server.state_names())
        state = {name: self._run.read(deployment, STATE + name) for name in names}
        return state if all(np.isfinite(vector).all() for vector in state.values()) else {}

    def _outcome(self, deployment: Deployment) -> Outcome:
        """Settle on the best point: the lowest validation loss where there is a validation set, else the last."""
        run, stop = self._run, self._stop
        assert stop is not None
        # Whoever interrupts does not wait for a pass over all rows.
        loss = math.nan if stop.reason is StopReason.INTERRUPTED else self._final_loss(deployment)
        return Outcome(
            parameters=self.kept(),
            loss=loss,
            stop=stop,
            passes=self._rows / run.facts.dataset.n_rows,
            repeatable=run.is_repeatable and self._is_sequential,
            validation=self._validations.best,
            rule_state=self._rule_state,
        )

    def _final_loss(self, deployment: Deployment) -> float:
        """The objective at the best point, which this settles."""
        run, facts = self._run, self._run.facts
        assert self._last is not None
        if facts.validation is not None:
            self._take_validation(run.finish_validation())
            self._candidate = self._last
            deployment.run(deployment.server.write(SNAPSHOT, self._last))
            run.start_validation(deployment, self._rows / facts.dataset.n_rows)
            self._take_validation(run.finish_validation())
        best = self.kept()
        deployment.run(deployment.server.write(SNAPSHOT, best))
        with contextlib.closing(run.evaluation(facts.dataset, "training-loss")) as training:
            training.start(deployment.directory, list(deployment.workers))
            mean_loss = training.finish(deployment.there).mean_loss
        return mean_loss + penalty(facts.objective, best, self._method.l2)

    def kept(self) -> Vector:
        """The best parameters that are on the host: by validation, else the last, else those last kept."""
        if self._best is not None:
            return self._best
        return self._last_kept() if self._last is None else self._last

    def _last_kept(self) -> Vector:
        """The parameters last kept, or the initial ones when there are none or they are not finite."""
        initial = self._run.facts.initial
        return self._kept if self._kept is not None and np.isfinite(self._kept).all() else initial

    @property
    def _is_sequential(self) -> bool:
        """Whether nothing was decided by timing: one replica, never replaced, no limit in seconds, no snapshots."""
        method = self._method
        is_timed = (
            method.max_seconds is not None or method.warm_start_seconds > 0.0 or self._run.facts.validation is not None
        )
        return method.n_replicas == 1 and not is_timed and not self._was_taken_over


def _furthest(marks: Iterable[dict[LeaseKey, int]]) -> dict[LeaseKey, int]:
    """Per lease the highest of some marks."""
    furthest: dict[LeaseKey, int] = {}
    for each in marks:
        for key, mark in each.items():
            furthest[key] = max(mark, furthest.get(key, -1))
    return furthest


def _least(marks: Sequence[dict[LeaseKey, int]]) -> dict[LeaseKey, int]:
    """Per lease the lowest of some marks; -1 where one of them has none."""
    return {key: min(each.get(key, -1) for each in marks) for key in set[LeaseKey]().union(*marks)}


def _best_name(number: int) -> str:
    """The name in a checkpoint of the best parameters by validation, which were found so often."""
    return f"best{number}"
