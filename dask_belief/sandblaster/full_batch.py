"""One evaluation of Algorithm 1.2: a pass over all rows by all replicas, commanded by the driver.

::

    begin       trial point on the shards, sum opened, units handed out
    wait        while replicas compute and push; the driver looks after the cluster
    end         gradient = sum / rows + penalty, its norm and slope, in one more round of messages
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from dask_belief.cluster.limits import LIMITS
from dask_belief.data.units import UnitPlan
from dask_belief.errors import NonFiniteError, NoProgressError
from dask_belief.parameter_server.deployment import Deployment
from dask_belief.parameter_server.messages import BeginSum, Command, Dot, EndSum, MaxNorm, SquaredPenalty
from dask_belief.run import Run
from dask_belief.sandblaster.coordinator import Status


@dataclass(frozen=True)
class Point:
    """A value of the objective, with what the line search and the stopping rules ask about its gradient.

    Attributes
    ----------
    value
        The objective: mean loss and penalty; NaN where a unit's loss or gradient is not finite.
    slope
        Along the direction; 0 where none was named.
    gradient_norm
        The largest magnitude in the gradient.
    """

    value: float
    slope: float
    gradient_norm: float


class FullBatch:
    """Evaluates the objective and its gradient at vectors of the shards.

    Parameters
    ----------
    run, deployment
        The run, and its present generation.
    plan
        The units of an evaluation.
    l2
        Weight of the penalty.
    n_done
        Evaluations that the run made before.

    Attributes
    ----------
    n_done
        Evaluations that the run has made.
    """

    def __init__(self, run: Run, deployment: Deployment, plan: UnitPlan, l2: float, n_done: int) -> None:
        self.n_done = n_done
        self._run = run
        self._deployment = deployment
        self._plan = plan
        self._l2 = l2
        self._last_progress = time.monotonic()

    def begin(self, at: str, *prepare: Command) -> list[list[float]]:
        """Open the sum of the next evaluation on the shards, after other commands in the same message.

        Parameters
        ----------
        at
            The name of the vector at which to evaluate.
        *prepare
            Commands to run before.

        Returns
        -------
        list of list of float
            The scalars of these commands.
        """
        return self._deployment.execute(*prepare, BeginSum(self.n_done + 1, at, len(self._plan)))

    def finish(self, at: str, gradient: str, direction: str | None = None) -> Point:
        """Make the pass over all rows that was begun.

        Parameters
        ----------
        at, gradient
            Names of vectors: where to evaluate, and where the gradient goes.
        direction
            The name of the vector along which the slope is wanted; None for the first evaluation.

        Raises
        ------
        NonFiniteError
            When the first evaluation of a generation is NaN or infinite; names the units and their rows.
        NoProgressError
            When no unit was finished for longer than the limit.
        """
        self.n_done += 1
        n_rows = self._run.facts.dataset.n_rows
        status = self._wait()
        if direction is None and (status.faulty or not math.isfinite(status.loss or 0.0)):
            raise NonFiniteError(self._fault(status))
        commands: list[Command] = [EndSum(self.n_done, gradient, n_rows, self._l2), MaxNorm(gradient)]
        commands.append(SquaredPenalty(at))
        if direction is not None:
            commands.append(Dot(((gradient, direction),)))
        [norm], [squares], *slopes = self._deployment.execute(*commands)
        loss = math.nan if status.faulty or status.loss is None else status.loss
        value = loss / n_rows + 0.5 * self._l2 * squares
        return Point(value=value, slope=slopes[0][0] if slopes else 0.0, gradient_norm=norm)

    def _wait(self) -> Status:
        """Wait for the evaluation, and look after the cluster meanwhile."""
        n_done = -1
        while True:
            status: Status = self._deployment.ask("evaluate", self.n_done, LIMITS.watch_seconds)
            self._deployment.watch()
            self._run.note_changes(self._deployment)
            self._run.note_kinds(status.kinds)
            self._run.poll_validation()
            now = time.monotonic()
            if status.n_done != n_done:
                if status.n_done > max(n_done, 0):
                    self._deployment.progressed()
                n_done, self._last_progress = status.n_done, now
            if status.loss is not None:
                return status
            if now - self._last_progress > LIMITS.no_progress_seconds:
                raise NoProgressError(
                    f"no unit was finished for {LIMITS.no_progress_seconds:g} seconds, with {status.n_done} of "
                    f"{len(self._plan)} done and {status.n_replicas} replicas. Look at the workers' logs."
                )

    def _fault(self, status: Status) -> str:
        units = [self._plan[number] for number in status.faulty[:3]]
        where = ", ".join(f"unit {unit.number} (rows {unit.start} to {unit.stop - 1})" for unit in units) or "the sum"
        more = f" and {len(status.faulty) - 3} more" if len(status.faulty) > 3 else ""
        return (
            f"the loss or gradient at the start is NaN or infinite in {where}{more}. Look for NaN or huge values in "
            "these rows (dataset.check(nan=True)), scale the inputs, or start from smaller parameters."
        )
