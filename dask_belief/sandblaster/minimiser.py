"""L-BFGS on the shards: the main loop of Algorithm 1.2, of which only scalars are seen here.

One iteration costs two rounds of messages to the shards, whatever the history size, and one or two for each value of
the line search::

    accept      s, y, and their dot products with all that is kept   -> the coefficients of the direction
    direction   combined, its slope, and the first trial point       -> evaluated by the replicas
    trial       its gradient and slope                               -> another trial, or accept
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from dask_belief.evaluation import SNAPSHOT
from dask_belief.monitoring.events import IterationEnded
from dask_belief.optim.lbfgs import GRADIENT, CurvatureMemory
from dask_belief.optim.line_search import LineSearch, StrongWolfe
from dask_belief.optim.line_search import Outcome as SearchOutcome
from dask_belief.optim.stopping import Criteria, Stop, StopReason, check_iteration
from dask_belief.parameter_server.deployment import Deployment
from dask_belief.parameter_server.messages import Combine, Dot
from dask_belief.run import Run
from dask_belief.sandblaster.full_batch import FullBatch, Point

logger = logging.getLogger(__name__)

POINT, TRIAL, DIRECTION, TRIAL_GRADIENT = "x", "trial", "d", "trial_g"

# The relative rounding of a sum of losses. Below it the line search trusts slopes instead of values; with 1e-8 for
# float32 it gave up on a softmax regression at a gradient of 1e-6, with 1e-7 it went on to 2e-9.
_NOISE = {"float32": 1e-7, "float64": 1e-15}


@dataclass
class Progress:
    """How far a run is; it outlasts a generation of actors.

    Attributes
    ----------
    iteration, evaluations
        Done so far.
    value
        The objective at the last point; NaN before the first evaluation.
    kept_iteration, kept_value
        Of the point that was last copied to the driver.
    """

    iteration: int = 0
    evaluations: int = 0
    value: float = math.nan
    kept_iteration: int = 0
    kept_value: float = math.nan

    def keep(self) -> None:
        """Note that the last point was copied to the driver."""
        self.kept_iteration, self.kept_value = self.iteration, self.value

    def go_back(self) -> None:
        """Go back to the kept point: what came after it was lost."""
        self.iteration, self.value = self.kept_iteration, self.kept_value


class Minimiser:
    """L-BFGS on one generation of actors.

    Parameters
    ----------
    run, deployment, batch
        The run, its present generation, and the evaluations on it.
    criteria, history_size
        When to stop, and how many pairs to keep.
    progress
        Where the run is; kept up to date.
    """

    def __init__(
        self,
        run: Run,
        deployment: Deployment,
        batch: FullBatch,
        criteria: Criteria,
        history_size: int,
        progress: Progress,
    ) -> None:
        self._run = run
        self._deployment = deployment
        self._batch = batch
        self._criteria = criteria
        self._progress = progress
        self._memory = CurvatureMemory(history_size)
        self._options = StrongWolfe(c1=1e-4, relative_noise=_NOISE[run.facts.dtype])
        self._validated_iteration = -1

    def minimise(self) -> Stop:
        """Iterate from the vector `POINT` of the shards until there is a reason to stop."""
        progress = self._progress
        point, previous = self._first_point(), None
        while (stop := self._after_iteration(point, previous)) is None:
            found = self._search(point)
            if isinstance(found, Stop):
                return found
            previous, (step, point) = point.value, found
            self._accept()
            progress.iteration += 1
            progress.value = point.value
            self._emit(point, step)
            if self._run.keep(self._deployment, POINT):
                progress.keep()
        return stop

    def validate(self) -> dict[str, float]:
        """Give the validation means at the last point; empty without a validation set."""
        means = self._run.finish_validation()
        if self._run.facts.validation is None or self._validated_iteration == self._progress.iteration:
            return means
        self._start_validation()
        return self._run.finish_validation()

    def _first_point(self) -> Point:
        self._batch.begin(POINT)
        point = self._finish(POINT, GRADIENT)
        pairs = self._memory.pairs_to_dot(None)
        [dots] = self._deployment.execute(Dot(tuple(pairs)))
        self._memory.update(None, dict(zip(pairs, dots, strict=True)))
        self._progress.value = point.value
        self._progress.keep()
        return point

    def _after_iteration(self, point: Point, previous: float | None) -> Stop | None:
        self._run.poll_validation()
        if self._run.is_validation_due:
            self._start_validation()
        progress = self._progress
        asked = self._run.asked_to_stop(iteration=progress.iteration, loss=point.value)
        return asked or check_iteration(
            self._criteria,
            iteration=progress.iteration,
            evaluations=progress.evaluations,
            seconds=self._run.seconds,
            loss=point.value,
            previous_loss=previous,
            gradient_norm=point.gradient_norm,
        )

    def _search(self, point: Point) -> tuple[float, Point] | Stop:
        """Find the next point along the direction, with steepest descent as the second try."""
        search, trial = self._line_search(point)
        if not search.succeeded and self._memory.n_pairs:
            logger.info("no step along the L-BFGS direction (%s): steepest descent", search.outcome.value)
            self._memory.reset()
            search, trial = self._line_search(point)
        if not search.succeeded or trial is None:
            return _no_step(search, point)
        if search.step != search.best_step:
            # The last trial was not the best one: go back to it for its gradient.
            trial = self._try(search.best_step)
        return search.best_step, trial

    def _line_search(self, point: Point) -> tuple[LineSearch, Point | None]:
        direction = tuple((coefficient, name) for name, coefficient in self._memory.direction().items())
        first_step = min(self._memory.first_step(), self._options.max_step)
        # The first trial point is made in the message that brings the slope.
        [[slope]] = self._batch.begin(
            TRIAL, Combine(DIRECTION, direction), Dot(((DIRECTION, GRADIENT),)), self._move(first_step)
        )
        search = LineSearch(self._options, point.value, slope, first_step)
        trial = None
        if not search.done:
            trial = self._finish(TRIAL, TRIAL_GRADIENT, DIRECTION)
            search.tell(trial.value, trial.slope)
        while not search.done:
            trial = self._try(search.step)
            search.tell(trial.value, trial.slope)
        return search, trial

    def _try(self, step: float) -> Point:
        self._batch.begin(TRIAL, self._move(step))
        return self._finish(TRIAL, TRIAL_GRADIENT, DIRECTION)

    def _move(self, step: float) -> Combine:
        return Combine(TRIAL, ((1.0, POINT), (step, DIRECTION)))

    def _finish(self, at: str, gradient: str, direction: str | None = None) -> Point:
        point = self._batch.finish(at, gradient, direction)
        self._progress.evaluations = self._batch.n_done
        return point

    def _accept(self) -> None:
        """Move to the trial point: new pair, new gradient, and the dot products for the next direction."""
        slot = self._memory.free_slot()
        pairs = self._memory.pairs_to_dot(slot)
        [dots] = self._deployment.execute(
            Combine(f"s{slot}", ((1.0, TRIAL), (-1.0, POINT))),
            Combine(f"y{slot}", ((1.0, TRIAL_GRADIENT), (-1.0, GRADIENT))),
            Combine(POINT, ((1.0, TRIAL),)),
            Combine(GRADIENT, ((1.0, TRIAL_GRADIENT),)),
            Dot(tuple(pairs)),
        )
        if not self._memory.update(slot, dict(zip(pairs, dots, strict=True))):
            logger.info("iteration %d: the pair has no positive curvature, left out", self._progress.iteration + 1)

    def _emit(self, point: Point, step: float) -> None:
        progress = self._progress
        event = IterationEnded(
            iteration=progress.iteration,
            evaluations=progress.evaluations,
            loss=point.value,
            gradient_norm=point.gradient_norm,
            step=step,
            seconds=self._run.seconds,
            passes=float(progress.evaluations),
        )
        logger.info(
            "iteration %d: f %.8g, |g| %.3g, step %.3g, %d evaluations, %.1f s",
            *(event.iteration, event.loss, event.gradient_norm, event.step, event.evaluations, event.seconds),
        )
        self._run.emit(event)

    def _start_validation(self) -> None:
        self._deployment.execute(Combine(SNAPSHOT, ((1.0, POINT),)))
        self._run.start_validation(self._deployment.directory, float(self._progress.evaluations))
        self._validated_iteration = self._progress.iteration


def _no_step(search: LineSearch, point: Point) -> Stop:
    """Say why no direction gave a step."""
    reasons = {
        SearchOutcome.ROUNDING: StopReason.LINE_SEARCH_ROUNDING,
        SearchOutcome.NOT_FINITE: StopReason.NOT_FINITE,
        SearchOutcome.NO_DESCENT: StopReason.NO_DESCENT,
    }
    reason = reasons.get(search.outcome, StopReason.LINE_SEARCH_FAILED)
    numbers = {"loss": point.value, "gradient_norm": point.gradient_norm, "evaluations": float(search.evaluations)}
    return Stop(reason, numbers)
