"""A batch method on the shards: the main loop of Algorithm 1.2, of which only scalars are seen here.

An evaluation costs two rounds of messages to the shards, and an iteration nothing beside its evaluations, whatever the
history size::

    begin       the last trial accepted, the direction combined, its slope, the next trial point
                                                                        -> evaluated by the replicas
    end         the trial's gradient and slope, and s, y and their dot products with all that is kept
                                                                        -> the coefficients of the next direction

The pair s, y goes to a slot that holds nothing, so a trial that the search refuses costs its dot products only.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from dask_belief.evaluation import SNAPSHOT
from dask_belief.monitoring.events import IterationEnded
from dask_belief.optim.direction import DirectionRule, Product
from dask_belief.optim.line_search import Outcome as SearchOutcome
from dask_belief.optim.stopping import Criteria, Stop, StopReason, check_iteration
from dask_belief.parameter_server.deployment import Deployment
from dask_belief.parameter_server.messages import Combine, Dot, MaxNorm
from dask_belief.run import Run
from dask_belief.sandblaster.bookmark import Bookmark
from dask_belief.sandblaster.full_batch import Evaluated, FullBatch, TimeIsUp
from dask_belief.sandblaster.progress import Costs, Progress
from dask_belief.sandblaster.round import Round
from dask_belief.sandblaster.steps import (
    DIRECTION,
    GRADIENT,
    MOVE,
    POINT,
    SLOPE,
    TRIAL,
    TRIAL_GRADIENT,
    TRIAL_PSEUDO_GRADIENT,
    Search,
    Steps,
)

logger = logging.getLogger(__name__)


class Minimiser:
    """One batch method on the shards, from its beginning or from a bookmark.

    Parameters
    ----------
    run, deployment, batch
        The run, its actors, and the evaluations on them.
    rule, steps
        What decides directions, and how a search goes along one.
    criteria
        When to stop.
    progress
        Where the run is; kept up to date.
    state
        What is saved with each bookmark.
    """

    def __init__(
        self,
        run: Run,
        deployment: Deployment,
        batch: FullBatch,
        rule: DirectionRule,
        steps: Steps,
        criteria: Criteria,
        progress: Progress,
        state: Mapping[str, Any],
    ) -> None:
        self._state = state
        self._run = run
        self._deployment = deployment
        self._batch = batch
        self._rule = rule
        self._steps = steps
        self._criteria = criteria
        self._progress = progress
        self._costs = Costs()
        # Commands that go with the next round: what makes the last trial the present point.
        self._pending = Round()
        # The slots that hold a pair, each with the iteration that made it.
        self._pairs: dict[int, int] = {}
        # The last evaluation whose value was not finite.
        self._fault: Evaluated | None = None
        self._validated_iteration = -1

    def minimise(self, begin_at: Bookmark | None = None) -> Stop:
        """Iterate until there is a reason to stop.

        Parameters
        ----------
        begin_at
            Where to go on: the shards hold its vectors, and the rule is as it was then. None to begin at the vector
            `POINT` of the shards.
        """
        try:
            stop = self._iterate(begin_at)
        except TimeIsUp:
            logger.info("the time allowed was used up within an evaluation, which is given up")
            limit = float(self._criteria.max_seconds or 0.0)
            stop = Stop(StopReason.MAX_SECONDS, {"seconds": self._run.seconds, "max_seconds": limit})
        self._settle()
        return stop

    def validate(self) -> dict[str, float]:
        """Give the validation means at the last point; empty without a validation set."""
        means = self._run.finish_validation()
        if self._run.facts.validation is None or self._validated_iteration == self._progress.iteration:
            return means
        self._start_validation()
        return self._run.finish_validation()

    # Iterations.

    def _iterate(self, begin_at: Bookmark | None) -> Stop:
        progress = self._progress
        value, norm, previous = (*self._first_point(), None) if begin_at is None else self._go_on(begin_at)
        while (stop := self._after_iteration(value, norm, previous)) is None:
            found = self._search(value, norm)
            if isinstance(found, Stop):
                return found
            search, trial = found
            curvature = self._accept(trial, search.best_step)
            previous, value, norm = value, trial.value, _norm(trial)
            progress.iteration += 1
            progress.value = value
            self._emit(search, trial, curvature)
            if self._run.is_keeping_due:
                self._keep()
        if self._run.is_checkpointed:
            self._save_last(value, norm, previous)
        return stop

    def _go_on(self, begin_at: Bookmark) -> tuple[float, float, float | None]:
        """Take over where a bookmark is; what the steps hold besides follows from its vectors."""
        self._pairs = dict(begin_at.pairs)
        self._steps.at_start(self._pending)
        return begin_at.value, begin_at.norm, begin_at.previous

    def _first_point(self) -> tuple[float, float]:
        products = self._rule.products(None)

        def ask(to_shards: Round) -> None:
            self._steps.at_start(to_shards)
            to_shards.ask("norm", MaxNorm(self._steps.steepest))
            to_shards.ask("dots", Dot(self._named(products, self._steps.steepest)))

        self._batch.begin(Round(), POINT)
        point = self._finish(POINT, GRADIENT, ask)
        self._rule.update(None, dict(zip(products, point.answers["dots"], strict=True)))
        self._progress.value = point.value
        if self._progress.kept_iteration == self._progress.iteration:
            # Else the run began anew, and the driver has a copy of a better point.
            self._progress.keep()
        return point.value, _norm(point)

    def _after_iteration(self, value: float, norm: float, previous: float | None) -> Stop | None:
        self._run.poll_validation()
        if self._run.is_validation_due:
            self._start_validation()
        progress = self._progress
        asked = self._run.asked_to_stop(iteration=progress.iteration, loss=value)
        stop = asked or check_iteration(
            self._criteria,
            iteration=progress.iteration,
            evaluations=progress.evaluations,
            seconds=self._run.seconds,
            loss=value,
            previous_loss=previous,
            gradient_norm=norm,
        )
        if stop is None:
            self._look_after_shards(value, norm, previous)
        return stop

    def _accept(self, trial: Evaluated, step: float) -> float:
        """Move to the trial point, with the next round; gives the curvature of the step."""
        slot = self._rule.free_slot()
        products = self._rule.products(slot)
        update = self._rule.update(slot, dict(zip(products, trial.answers["dots"], strict=True)), step)
        self._pairs[slot] = self._progress.iteration + 1
        self._steps.accept(self._pending)
        if update.change is not None:
            terms = tuple((coefficient, name) for name, coefficient in update.change.items())
            self._pending.do(Combine(f"y{slot}", terms))
        if not update.is_kept:
            logger.info("iteration %d: the next direction makes no use of this step", self._progress.iteration + 1)
        return update.curvature

    # Between iterations: what is saved, and shards that have to move.

    def _look_after_shards(self, value: float, norm: float, previous: float | None) -> None:
        run, deployment = self._run, self._deployment
        if deployment.leaving_shards():
            self._settle()
            deployment.hand_over(self._lasting_vectors())
        if run.look_after_saves(deployment):
            self._begin_save(value, norm, previous)

    def _begin_save(self, value: float, norm: float, previous: float | None) -> None:
        self._settle()
        bookmark = self._bookmark(value, norm, previous)
        self._run.begin_save(self._deployment, {**self._state, **bookmark.to_state()}, bookmark.vectors(POINT))

    def _save_last(self, value: float, norm: float, previous: float | None) -> None:
        """Save the point at which the run ends, for one that goes on from there."""
        self._run.finish_save(self._deployment)
        self._begin_save(value, norm, previous)
        self._run.finish_save(self._deployment)

    def _bookmark(self, value: float, norm: float, previous: float | None) -> Bookmark:
        progress = self._progress
        rule = copy.deepcopy(self._rule)
        return Bookmark(progress.iteration, progress.evaluations, value, norm, previous, rule, dict(self._pairs))

    def _lasting_vectors(self) -> tuple[str, ...]:
        """What shards hold between iterations: all but what each trial makes anew, and second names."""
        names = self._deployment.run(self._deployment.server.names())
        passing = {TRIAL, TRIAL_GRADIENT, TRIAL_PSEUDO_GRADIENT, DIRECTION, MOVE}
        return tuple(name for name in names if name not in passing and ":" not in name)

    def _settle(self) -> None:
        """Carry out what waits for the next round, so that `POINT` is the last point."""
        if not self._pending.is_empty:
            self._next_round().send(self._deployment)

    def _next_round(self) -> Round:
        pending, self._pending = self._pending, Round()
        return pending

    # Searches.

    def _search(self, value: float, norm: float) -> tuple[Search, Evaluated] | Stop:
        """Find the next point along the direction, with steepest descent as the second try."""
        search, trial = self._along_direction(value)
        # A search that shrank for long before it ended by rounding speaks against the direction, not against the point.
        is_at_noise = search.outcome is SearchOutcome.ROUNDING and search.evaluations <= 1
        is_worth_another = not is_at_noise or self._steps.tries_again_after_rounding
        if not search.succeeded and self._rule.has_memory and is_worth_another:
            logger.info("no step along the direction (%s): steepest descent", search.outcome.value)
            self._rule.reset()
            search, trial = self._along_direction(value)
        if not search.succeeded or trial is None:
            return self._no_step(search, value, norm)
        if search.step != search.best_step:
            # The last trial was not the best one: go back to it for its gradient.
            trial = self._try(Round(), search.best_step)
        return search, trial

    def _along_direction(self, value: float) -> tuple[Search, Evaluated | None]:
        to_shards = self._next_round()
        self._steps.aim(to_shards, self._rule.direction())
        first_step = self._steps.first_step(self._rule.first_step())
        # The first trial point is made in the message that brings the slope.
        self._steps.move(to_shards, first_step)
        [slope] = self._batch.begin(to_shards, TRIAL)[SLOPE]
        search = self._steps.search(value, slope, first_step)
        trial = None
        if not search.done:
            trial = self._evaluate()
            search.tell(trial.value, trial.answers[SLOPE][0])
        while not search.done:
            trial = self._try(Round(), search.step)
            search.tell(trial.value, trial.answers[SLOPE][0])
        return search, trial

    def _try(self, to_shards: Round, step: float) -> Evaluated:
        self._steps.move(to_shards, step)
        self._batch.begin(to_shards, TRIAL)
        return self._evaluate()

    def _evaluate(self) -> Evaluated:
        """Evaluate at the trial point, and find all that is needed should it be accepted."""
        steps, slot = self._steps, self._rule.free_slot()

        def ask(to_shards: Round) -> None:
            steps.measure(to_shards)
            to_shards.do(
                Combine(f"s{slot}", ((1.0, TRIAL), (-1.0, POINT))),
                Combine(f"y{slot}", ((1.0, TRIAL_GRADIENT), (-1.0, GRADIENT))),
            )
            to_shards.ask("norm", MaxNorm(steps.trial_steepest))
            to_shards.ask("dots", Dot(self._named(self._rule.products(slot), steps.trial_steepest)))

        return self._finish(TRIAL, TRIAL_GRADIENT, ask)

    def _finish(self, at: str, gradient: str, ask: Callable[[Round], None]) -> Evaluated:
        evaluated = self._batch.finish(at, gradient, ask)
        self._progress.evaluations += 1
        self._costs.add(evaluated)
        if not math.isfinite(evaluated.value):
            self._fault = evaluated
        return evaluated

    @staticmethod
    def _named(products: list[Product], steepest: str) -> tuple[Product, ...]:
        """The products that a rule asks for, with the vector that its gradient stands for."""
        return tuple(tuple(steepest if name == GRADIENT else name for name in product) for product in products)

    def _no_step(self, search: Search, value: float, norm: float) -> Stop:
        """Say why no direction gave a step."""
        reasons = {
            SearchOutcome.ROUNDING: StopReason.LINE_SEARCH_ROUNDING,
            SearchOutcome.NOT_FINITE: StopReason.NOT_FINITE,
            SearchOutcome.NO_DESCENT: StopReason.NO_DESCENT,
        }
        reason = reasons.get(search.outcome, StopReason.LINE_SEARCH_FAILED)
        numbers = {"loss": value, "gradient_norm": norm, "evaluations": float(search.evaluations)}
        if reason is StopReason.LINE_SEARCH_ROUNDING:
            numbers["noise"] = search.noise
        if reason is StopReason.NOT_FINITE and self._fault is not None and self._fault.fault is not None:
            unit = self._fault.fault
            numbers |= {"unit": float(unit.number), "first_row": float(unit.start), "last_row": float(unit.stop - 1)}
        return Stop(reason, numbers)

    # What others are told, and what is kept.

    def _emit(self, search: Search, trial: Evaluated, curvature: float) -> None:
        progress = self._progress
        costs: Mapping[str, float] = self._costs.take()
        event = IterationEnded(
            iteration=progress.iteration,
            evaluations=progress.evaluations,
            loss=trial.value,
            gradient_norm=_norm(trial),
            step=search.best_step,
            seconds=self._run.seconds,
            passes=float(progress.evaluations),
            curvature=curvature,
            decrease_ratio=search.decrease_ratio,
            slope_ratio=search.slope_ratio,
            **costs,  # type: ignore[arg-type]
        )
        logger.info(
            "iteration %d: f %.8g, |g| %.3g, step %.3g, curvature %.3g, %d evaluations, %.1f s (replicas computed "
            "%.2f s, waited %.2f s, read %.2f s, sent %.2f s; vectors %.3f s), %.1f MB, cache %d of %d, backups %d",
            *(event.iteration, event.loss, event.gradient_norm, event.step, event.curvature, event.evaluations),
            *(event.seconds, event.computing_seconds, event.waiting_seconds, event.reading_seconds),
            *(event.sending_seconds, event.vector_seconds, (event.fetched_bytes + event.pushed_bytes) / 1e6),
            *(event.cache_hits, event.cache_hits + event.cache_misses, event.backups_started),
        )
        self._run.emit(event)

    def _keep(self) -> None:
        """Copy the last point to the driver."""
        self._settle()
        self._run.keep(self._deployment, POINT)
        self._costs.copied_bytes += self._run.best.nbytes
        self._progress.keep()

    def _start_validation(self) -> None:
        self._settle()
        self._deployment.execute(Combine(SNAPSHOT, ((1.0, POINT),)))
        self._run.start_validation(self._deployment, float(self._progress.evaluations))
        self._validated_iteration = self._progress.iteration


def _norm(evaluated: Evaluated) -> float:
    [norm] = evaluated.answers["norm"]
    return norm
