"""One evaluation of Algorithm 1.2: a pass over all rows by all replicas, commanded by the driver.

::

    begin       trial point on the shards, sum opened, units handed out
    wait        while replicas compute and push; the driver looks after the cluster
    end         gradient = sum / rows + penalty, and whatever is asked about it, in one more round of messages
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from dask_belief.cluster.limits import limits
from dask_belief.data.units import UnitPlan, WorkUnit
from dask_belief.errors import NonFiniteError, NoProgressError
from dask_belief.parameter_server.deployment import Deployment
from dask_belief.parameter_server.messages import Absolutes, BeginSum, EndSum, SquaredPenalty
from dask_belief.run import Run
from dask_belief.sandblaster.coordinator import Status
from dask_belief.sandblaster.round import Round

Answers = dict[str, list[float]]


class TimeIsUp(Exception):
    """The run's seconds were used up in the middle of an evaluation, which is given up; its driver ends the run."""


@dataclass(frozen=True)
class Penalty:
    """``l2 / 2 * ||w||^2 + l1 * ||w||_1``, over the penalised parameters.

    Attributes
    ----------
    l2, l1
        The weights, zero or more.
    """

    l2: float = 0.0
    l1: float = 0.0

    def ask(self, to_shards: Round, at: str) -> None:
        """Ask for what `value` needs."""
        if self.l2:
            to_shards.ask("squares", SquaredPenalty(at))
        if self.l1:
            to_shards.ask("absolutes", Absolutes(at))

    def value(self, answers: Answers) -> float:
        """The penalty, from the answers of a round that was asked for it."""
        [squares], [absolutes] = answers.get("squares", [0.0]), answers.get("absolutes", [0.0])
        return 0.5 * self.l2 * squares + self.l1 * absolutes


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found.

    Attributes
    ----------
    value
        The objective: mean loss and penalty; NaN where a unit's loss or gradient is not finite.
    answers
        To what was asked in the last round.
    status
        What the coordinator says of it: effort and backups.
    vector_seconds
        The rounds of messages to the shards, and their work in them.
    fault
        The first unit whose loss or gradient is not finite; None for none.
    """

    value: float
    answers: Answers
    status: Status
    vector_seconds: float
    fault: WorkUnit | None


class FullBatch:
    """Evaluates the objective and its gradient at vectors of the shards.

    Parameters
    ----------
    run, deployment
        The run, and its actors.
    plan
        The units of an evaluation.
    penalty
        What is added to the mean loss; only the part of `l2` has a gradient here.
    max_seconds
        Of the run; None for no limit. The first evaluation is made whatever it takes.
    has_value
        Whether the run knows a finite value already.
    """

    def __init__(
        self,
        run: Run,
        deployment: Deployment,
        plan: UnitPlan,
        penalty: Penalty,
        max_seconds: float | None = None,
        has_value: bool = False,
    ) -> None:
        # What is repeated after a loss has another number than before: nothing of then counts.
        self._number = 0
        self._run = run
        self._deployment = deployment
        self._plan = plan
        self._penalty = penalty
        self._max_seconds = max_seconds
        self._last_progress = time.monotonic()
        self._begun_seconds = 0.0
        self._has_value = has_value

    def begin(self, to_shards: Round, at: str) -> Answers:
        """Open the sum of the next evaluation, after the other commands of the round.

        Parameters
        ----------
        to_shards
            Commands that go before, such as those that make the vector `at`.
        at
            The name of the vector at which to evaluate.

        Returns
        -------
        dict
            The answers of the round.
        """
        self._number = self._deployment.next_evaluation()
        to_shards.do(BeginSum(self._number, at, len(self._plan)))
        answers = to_shards.send(self._deployment)
        self._begun_seconds = to_shards.seconds
        return answers

    def finish(self, at: str, gradient: str, ask: Callable[[Round], None]) -> Evaluated:
        """Make the pass over all rows that was begun.

        Parameters
        ----------
        at, gradient
            Names of vectors: where to evaluate, and where the gradient goes.
        ask
            Adds to the last round what is wanted of the gradient.

        Raises
        ------
        NonFiniteError
            When the run's first evaluation is NaN or infinite; names the units and their rows.
        NoProgressError
            When no unit was finished for longer than the limit.
        TimeIsUp
            When the run's seconds are used up, but for the first evaluation.
        """
        n_rows = self._run.facts.dataset.n_rows
        status = self._wait()
        is_finite = not status.faulty and math.isfinite(status.loss or 0.0)
        if not self._has_value and not is_finite:
            raise NonFiniteError(self._fault(status))
        self._has_value = True
        to_shards = Round()
        to_shards.do(EndSum(self._number, gradient, n_rows, self._penalty.l2))
        self._penalty.ask(to_shards, at)
        ask(to_shards)
        answers = to_shards.send(self._deployment)
        loss = math.nan if status.faulty or status.loss is None else status.loss
        return Evaluated(
            value=loss / n_rows + self._penalty.value(answers),
            answers=answers,
            status=status,
            vector_seconds=self._begun_seconds + to_shards.seconds,
            fault=self._plan[status.faulty[0]] if status.faulty else None,
        )

    def _wait(self) -> Status:
        """Wait for the evaluation, and look after the cluster meanwhile."""
        n_done = -1
        while True:
            status: Status = self._deployment.ask("evaluate", self._number, limits().watch_seconds)
            self._deployment.watch()
            self._run.note_changes(self._deployment)
            self._run.note_kinds(status.kinds)
            self._run.poll_validation()
            self._run.look_after_saves(self._deployment)
            now = time.monotonic()
            if status.n_done != n_done:
                if status.n_done > max(n_done, 0):
                    self._deployment.progressed()
                n_done, self._last_progress = status.n_done, now
            if status.loss is not None:
                return status
            if self._has_value and self._max_seconds is not None and self._run.seconds >= self._max_seconds:
                raise TimeIsUp
            if now - self._last_progress > limits().no_progress_seconds:
                raise NoProgressError(
                    f"no unit was finished for {limits().no_progress_seconds:g} seconds, with {status.n_done} of "
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
