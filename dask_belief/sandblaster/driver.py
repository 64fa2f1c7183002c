"""The main loop of Algorithm 1.2, in the driver: it commands, and only scalars come back.

One iteration of L-BFGS costs two rounds of messages to the shards, whatever the history size, and one for each value
of the line search::

    dots        s, y, g against all that is kept      -> the coefficients of the direction
    combine     direction, trial point, slope         -> the replicas evaluate there
    end         gradient of the trial, slope          -> the line search: another trial, or accept

When a generation of actors is lost, the next begins at the last point that was copied to the driver, with an empty
history.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from dask_belief.cluster.actors import ActorAddress
from dask_belief.cluster.limits import LIMITS
from dask_belief.cluster.membership import Membership
from dask_belief.data.units import UnitPlan, plan_units
from dask_belief.errors import ActorLostError, NonFiniteError, NoProgressError
from dask_belief.evaluation import SNAPSHOT
from dask_belief.monitoring.events import IterationEnded, RunStarted
from dask_belief.objective import penalised_of
from dask_belief.optim.lbfgs import CurvatureMemory
from dask_belief.optim.line_search import LineSearch, Outcome as SearchOutcome, StrongWolfe
from dask_belief.optim.stopping import Criteria, Stop, StopReason, check_iteration
from dask_belief.parameter_server.client import Directory
from dask_belief.parameter_server.deployment import Deployment, DeploymentSpec, deployed, generations
from dask_belief.parameter_server.messages import BeginSum, Combine, Command, Dot, EndSum, MaxNorm, SquaredPenalty
from dask_belief.run import Outcome, Run
from dask_belief.sandblaster.config import Sandblaster
from dask_belief.sandblaster.coordinator import Coordinator, Status
from dask_belief.sandblaster.replica import ReplicaSpec, sandblaster_replica

logger = logging.getLogger(__name__)

POINT, TRIAL, DIRECTION = "x", "trial", "d"
GRADIENT, TRIAL_GRADIENT = "g", "trial_g"

# Partial sums of a lease are kept within this many bytes; longer leases would save messages and cost memory.
_SUM_BYTES = 256 * 2**20
_MAX_LEVEL = 6

# The sum of float32 losses over many rows carries about this much relative rounding.
_NOISE = {"float32": 1e-8, "float64": 1e-15}


@dataclass(frozen=True)
class Point:
    """A value of the objective, with what the line search and the stopping rules ask about its gradient.

    Attributes
    ----------
    value
        The objective: mean loss and penalty.
    slope
        Along the direction; 0 where there is none.
    gradient_norm
        The largest magnitude in the gradient.
    """

    value: float
    slope: float
    gradient_norm: float


class SandblasterDriver:
    """Runs L-BFGS over the generations of a run.

    Parameters
    ----------
    run
        The run.
    method
        Its options.
    """

    def __init__(self, run: Run, method: Sandblaster) -> None:
        facts = run.facts
        self._run = run
        self._method = method
        self._plan: UnitPlan = plan_units(
            facts.dataset.n_rows,
            facts.dataset.chunk_rows,
            facts.dataset.row_bytes(facts.dtype),
            facts.objective.n_parameters,
            unit_rows=method.unit_rows,
        )
        self._criteria = Criteria(
            method.gtol, method.ftol, method.max_iter, method.max_evaluations, method.max_seconds
        )
        self._iteration = 0
        self._evaluations = 0
        self._best_value = math.nan

    def drive(self) -> Outcome:
        """Train to the end.

        Raises
        ------
        NonFiniteError
            When the loss or gradient at the initial parameters is NaN or infinite.
        """
        facts, method = self._run.facts, self._method
        membership = Membership(facts.client, f"dask-belief-{facts.name}")
        self._run.emit(
            RunStarted(
                method.name,
                facts.dataset.n_rows,
                facts.objective.n_parameters,
                len(membership.workers),
                planned=float(method.max_iter),
            )
        )
        spec = self._deployment_spec()
        try:
            for generation in generations(facts.client, spec, membership):
                try:
                    with deployed(facts.client, spec, generation, membership) as deployment:
                        return self._generation(deployment)
                except ActorLostError as error:
                    self._run.note_rebuild(str(error), f"back to iteration {self._iteration}, with an empty history")
        finally:
            self._run.close()
            membership.close()
        raise AssertionError("generations() never ends by itself")

    def _deployment_spec(self) -> DeploymentSpec:
        facts, method = self._run.facts, self._method
        vector_bytes = facts.initial.nbytes
        max_level = max(0, min(_MAX_LEVEL, _SUM_BYTES // vector_bytes - 1))

        def replica_spec(directory: Directory, coordinator: ActorAddress) -> ReplicaSpec:
            return ReplicaSpec(
                facts.objective, self._plan, directory, coordinator, facts.backend, method.cache_bytes
            )

        return DeploymentSpec(
            run=facts.name,
            n_parameters=facts.objective.n_parameters,
            dtype=facts.dtype,
            penalised=penalised_of(facts.objective),
            n_shards=method.n_shards,
            n_replicas=None,
            rule=None,
            hub=Coordinator,
            hub_arguments=(len(self._plan), max_level),
            replica=sandblaster_replica,
            replica_spec=replica_spec,
            dataset=facts.dataset,
        )

    def _generation(self, deployment: Deployment) -> Outcome:
        deployment.run(deployment.server.write(POINT, self._run.best))
        deployment.start_replicas()
        minimiser = _Minimiser(self, deployment)
        try:
            stop = minimiser.minimise()
        except KeyboardInterrupt:
            logger.warning("interrupted: the best point is kept")
            stop = Stop(StopReason.INTERRUPTED, {"iteration": self._iteration})
        self._run.keep(deployment, POINT, is_final=True)
        validation = minimiser.validate_finally()
        return Outcome(
            parameters=self._run.best,
            loss=self._best_value,
            stop=stop,
            passes=float(self._evaluations),
            repeatable=len(self._run.kinds) <= 1,
            validation=validation,
        )


class _Minimiser:
    """L-BFGS on one generation of actors; the counters live in the driver and outlast it."""

    def __init__(self, driver: SandblasterDriver, deployment: Deployment) -> None:
        self._driver = driver
        self._run = driver._run
        self._method = driver._method
        self._deployment = deployment
        self._memory = CurvatureMemory(self._method.history_size)
        self._options = StrongWolfe(c1=1e-4, relative_noise=_NOISE[self._run.facts.dtype])
        self._last_progress = time.monotonic()
        self._validated_iteration = -1

    def minimise(self) -> Stop:
        """Iterate until there is a reason to stop."""
        point = self._first_point()
        self._driver._best_value = point.value
        previous: float | None = None
        while True:
            stop = self._after_iteration(point, previous)
            if stop is not None:
                return stop
            found = self._search(point)
            if isinstance(found, Stop):
                return found
            step, trial = found
            previous = point.value
            point = trial
            self._accept()
            self._driver._iteration += 1
            self._driver._best_value = point.value
            self._emit(point, step)
            self._run.keep(self._deployment, POINT)

    # One iteration.

    def _first_point(self) -> Point:
        point = self._evaluate(POINT, GRADIENT, first=True)
        pairs = self._memory.pairs_to_dot(None)
        [dots] = self._deployment.execute(Dot(tuple(pairs)))
        self._memory.update(None, dict(zip(pairs, dots, strict=True)))
        return point

    def _after_iteration(self, point: Point, previous: float | None) -> Stop | None:
        driver = self._driver
        self._validate()
        asked = self._run.asked_to_stop(iteration=driver._iteration, loss=point.value)
        return asked or check_iteration(
            driver._criteria,
            iteration=driver._iteration,
            evaluations=driver._evaluations,
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
            return self._no_step(search, point)
        if search.step != search.best_step:
            # The last trial was not the best one: go back to it for its gradient.
            trial = self._try(search.best_step)
        return search.best_step, trial

    def _line_search(self, point: Point) -> tuple[LineSearch, Point | None]:
        step = self._memory.first_step()
        direction = tuple((coefficient, name) for name, coefficient in self._memory.direction().items())
        [[slope]] = self._deployment.execute(Combine(DIRECTION, direction), Dot(((DIRECTION, GRADIENT),)))
        search = LineSearch(self._options, point.value, slope, step)
        trial = None
        while not search.done:
            trial = self._try(search.step)
            search.tell(trial.value, trial.slope)
        return search, trial

    def _try(self, step: float) -> Point:
        move = Combine(TRIAL, ((1.0, POINT), (step, DIRECTION)))
        return self._evaluate(TRIAL, TRIAL_GRADIENT, prepare=(move,))

    def _no_step(self, search: LineSearch, point: Point) -> Stop:
        reasons = {
            SearchOutcome.ROUNDING: StopReason.LINE_SEARCH_ROUNDING,
            SearchOutcome.NOT_FINITE: StopReason.NOT_FINITE,
            SearchOutcome.NO_DESCENT: StopReason.NO_DESCENT,
        }
        reason = reasons.get(search.outcome, StopReason.LINE_SEARCH_FAILED)
        numbers = {"loss": point.value, "gradient_norm": point.gradient_norm, "evaluations": search.evaluations}
        return Stop(reason, numbers)

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
            logger.info("iteration %d: the pair has no positive curvature and is left out", self._driver._iteration)

    # One evaluation: a pass over all rows by all replicas.

    def _evaluate(
        self, name: str, gradient: str, prepare: Sequence[Command] = (), first: bool = False
    ) -> Point:
        driver, deployment, n_rows = self._driver, self._deployment, self._run.facts.dataset.n_rows
        driver._evaluations += 1
        number = driver._evaluations
        deployment.execute(*prepare, BeginSum(number, name, len(driver._plan)))
        deployment.ask("begin", number)
        status = self._wait()
        if first and (status.faulty or status.loss is None or not math.isfinite(status.loss)):
            raise NonFiniteError(self._fault(status))
        l2 = self._method.l2
        commands: list[Command] = [EndSum(number, gradient, n_rows, l2), MaxNorm(gradient), SquaredPenalty(name)]
        if not first:
            commands.append(Dot(((gradient, DIRECTION),)))
        [norm], [squares], *slopes = deployment.execute(*commands)
        assert status.loss is not None
        value = math.nan if status.faulty else status.loss / n_rows + 0.5 * l2 * squares
        return Point(value=value, slope=slopes[0][0] if slopes else 0.0, gradient_norm=norm)

    def _wait(self) -> Status:
        """Wait for the evaluation, and look after the cluster meanwhile."""
        deployment, n_done = self._deployment, -1
        while True:
            status: Status = deployment.ask("wait", LIMITS.watch_seconds)
            deployment.watch()
            self._run.note_changes(deployment)
            self._run.note_kinds(status.kinds)
            self._run.poll_validation()
            now = time.monotonic()
            if status.n_done != n_done:
                n_done, self._last_progress = status.n_done, now
            if status.loss is not None:
                return status
            if now - self._last_progress > LIMITS.no_progress_seconds:
                raise NoProgressError(
                    f"no unit was finished for {LIMITS.no_progress_seconds:g} seconds, with {status.n_done} of "
                    f"{len(self._driver._plan)} done and {status.n_replicas} replicas. Look at the workers' logs."
                )

    def _fault(self, status: Status) -> str:
        plan = self._driver._plan
        units = [plan[number] for number in status.faulty[:3]]
        where = ", ".join(f"unit {unit.number} (rows {unit.start} to {unit.stop - 1})" for unit in units) or "the sum"
        more = f" and {len(status.faulty) - 3} more" if len(status.faulty) > 3 else ""
        return (
            f"the loss or gradient at the initial parameters is NaN or infinite in {where}{more}. Look for NaN or huge "
            "values in these rows (dataset.check(nan=True)), scale the inputs, or start from smaller parameters."
        )

    # What others hear.

    def _emit(self, point: Point, step: float) -> None:
        driver = self._driver
        event = IterationEnded(
            iteration=driver._iteration,
            evaluations=driver._evaluations,
            loss=point.value,
            gradient_norm=point.gradient_norm,
            step=step,
            seconds=self._run.seconds,
            passes=float(driver._evaluations),
        )
        logger.info(
            "iteration %d: f %.8g, |g| %.3g, step %.3g, %d evaluations, %.1f s",
            event.iteration, event.loss, event.gradient_norm, event.step, event.evaluations, event.seconds,
        )
        self._run.emit(event)

    def _validate(self) -> None:
        self._run.poll_validation()
        if self._run.is_validation_due:
            self._start_validation()

    def _start_validation(self) -> None:
        self._deployment.execute(Combine(SNAPSHOT, ((1.0, POINT),)))
        self._run.start_validation(self._deployment.directory, float(self._driver._evaluations))
        self._validated_iteration = self._driver._iteration

    def validate_finally(self) -> dict[str, float]:
        """The validation means at the last point."""
        means = self._run.finish_validation()
        if self._run.facts.validation is None or self._validated_iteration == self._driver._iteration:
            return means
        self._start_validation()
        return self._run.finish_validation()
