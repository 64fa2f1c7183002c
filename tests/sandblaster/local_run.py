"""A Sandblaster run without a cluster: real shards behind real messages, and one replica that is called in between."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np

from dask_belief.binary_tree import Node
from dask_belief.data.dataset import ArrayDataset
from dask_belief.data.units import UnitPlan
from dask_belief.monitoring.callbacks import CallbackList
from dask_belief.monitoring.events import Event
from dask_belief.parameter_server.messages import BeginSum, Command
from dask_belief.parameter_server.ranges import shard_ranges
from dask_belief.run import Facts, Run
from dask_belief.sandblaster.backups import BackupCounts
from dask_belief.sandblaster.coordinator import Status
from dask_belief.sandblaster.effort import Effort
from dask_belief.sandblaster.full_batch import FullBatch, Penalty
from dask_belief.sandblaster.steps import POINT
from tests.parameter_server.local_actors import LocalActors, deploy

Function = Callable[[np.ndarray], tuple[float, np.ndarray]]


class SumOf:
    """An objective whose rows are numbers: each adds its number times one function and its gradient.

    With ones as rows, the mean over them is the function itself.
    """

    def __init__(self, function: Function, n_parameters: int) -> None:
        self.function = function
        self.n_parameters = n_parameters

    def initial_parameters(self, seed: int) -> np.ndarray:
        return np.zeros(self.n_parameters)

    def loss_and_gradient(self, parameters: Any, inputs: Any, targets: Any) -> tuple[float, Any]:
        value, gradient = self.function(parameters)
        weight = float(inputs.sum())
        return weight * value, weight * gradient


class LocalDeployment:
    """What a driver, its minimiser and its full batch use of a deployment, in this process.

    Attributes
    ----------
    rounds
        The commands of each round of messages to the shards, in order.
    n_watched
        How often the cluster was looked after.
    n_progressed
        How often it was noted that work was finished.
    statuses
        What the coordinator answers before the evaluation is done.
    """

    def __init__(self, actors: LocalActors, facts: Facts, plan: UnitPlan, n_shards: int, penalised: Any) -> None:
        self.rounds: list[tuple[Command, ...]] = []
        self.n_watched = 0
        self.n_progressed = 0
        self.statuses: list[Status] = []
        self.changes: list[Any] = []
        self.n_replicas = 1
        self._caller = actors.caller
        self._facts = facts
        self._plan = plan
        ranges = shard_ranges(facts.objective.n_parameters, n_shards)
        self.server = deploy(actors, ranges, dtype=facts.dtype, penalised=penalised)
        self.directory = self.server.directory

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._caller.run(coroutine)

    def execute(self, *commands: Command) -> list[list[float]]:
        self.rounds.append(commands)
        return self.run(self.server.execute(*commands))

    def ask(self, method: str, evaluation: int, limit_seconds: float) -> Status:
        """The coordinator: compute every unit as a replica would, unless something else is to be answered first."""
        assert method == "evaluate"
        return self.statuses.pop(0) if self.statuses else self._evaluate(evaluation)

    def _evaluate(self, evaluation: int) -> Status:
        facts = self._facts
        parameters = np.empty_like(facts.initial)
        self.run(self.server.fetch(evaluation, parameters))
        losses, faulty = [], []
        for unit in self._plan.units:
            inputs, targets = facts.dataset.read(unit.start, unit.stop, dtype=facts.initial.dtype)
            loss, gradient = facts.objective.loss_and_gradient(parameters, inputs, targets)
            losses.append(loss)
            if not (np.isfinite(loss) and np.isfinite(gradient).all()):
                faulty.append(unit.number)
            self.run(self.server.add(evaluation, Node(0, unit.number), gradient.astype(facts.dtype)))
        return status(n_done=len(losses), loss=float(np.sum(losses)), faulty=tuple(faulty))

    def start_replicas(self) -> None:
        """Nobody need be started: units are computed when the coordinator is asked."""

    def watch(self) -> None:
        self.n_watched += 1

    def progressed(self) -> None:
        self.n_progressed += 1

    def vector(self, name: str) -> np.ndarray:
        """A vector of the shards."""
        into = np.empty_like(self._facts.initial)
        self.run(self.server.read(name, into))
        return into

    def of_kind(self, kind: type) -> list[Any]:
        """The commands of one kind, over all rounds."""
        return [command for commands in self.rounds for command in commands if isinstance(command, kind)]

    @property
    def evaluated_at(self) -> list[str]:
        """The names of the vectors at which evaluations were opened."""
        return [command.parameters for command in self.of_kind(BeginSum)]


def status(**changes: Any) -> Status:
    """A coordinator's answer."""
    options: dict[str, Any] = {
        "n_done": 0,
        "loss": None,
        "faulty": (),
        "n_replicas": 1,
        "effort": Effort(computing_seconds=1.0, fetched_bytes=100),
        "busiest_seconds": 0.75,
        "backups": BackupCounts(),
        "kinds": ("local",),
    }
    return Status(**(options | changes))


class LocalRun:
    """One generation of a run; leaves no thread behind when the ``with`` block ends.

    Parameters
    ----------
    function, initial
        What is minimised, plus the penalty; from where. The dtype of `initial` is the run's.
    rows
        One number a row: see `SumOf`.
    unit_rows, n_shards
        How rows and parameters are cut.
    l2, l1, penalised
        The penalty, and which parameters it covers; None for all.
    max_seconds
        Of the run.
    n_done
        Evaluations that earlier generations made.
    adagrad_sums
        That the beginning of the run was found with.
    """

    def __init__(
        self,
        function: Function,
        initial: np.ndarray,
        rows: Iterable[float] = (1.0, 1.0, 1.0, 1.0),
        *,
        unit_rows: int = 2,
        n_shards: int = 1,
        l2: float = 0.0,
        l1: float = 0.0,
        max_seconds: float | None = None,
        penalised: np.ndarray | None = None,
        n_done: int = 0,
        adagrad_sums: np.ndarray | None = None,
    ) -> None:
        inputs = np.array(list(rows), np.float64)[:, None]
        dataset = ArrayDataset(inputs, np.zeros(len(inputs), np.int64), chunk_rows=1)
        self.plan = UnitPlan(n_rows=len(inputs), chunk_rows=1, unit_rows=unit_rows, block_rows=1)
        facts = Facts(
            name="local",
            client=None,
            objective=SumOf(function, len(initial)),
            dataset=dataset,
            validation=None,
            initial=initial,
            seed=0,
            dtype=initial.dtype.name,
            backend="numpy",
            adagrad_sums=adagrad_sums,
        )
        self.events: list[Event] = []
        self.answer: bool | None = None
        self.run = Run(facts, CallbackList([self._note]))
        self._stack = ExitStack()
        self._made_of = (facts, self.plan, n_shards, penalised)
        self._options = (Penalty(l2, l1), n_done, max_seconds)

    def __enter__(self) -> LocalRun:
        self.deployment: Any = self.new_deployment()
        self.deployment.run(self.deployment.server.write(POINT, self.run.facts.initial))
        self.batch = FullBatch(self.run, self.deployment, self.plan, *self._options)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def new_deployment(self) -> Any:
        """Shards that hold nothing yet."""
        return LocalDeployment(self._stack.enter_context(LocalActors()), *self._made_of)

    def _note(self, event: Event) -> bool | None:
        self.events.append(event)
        return self.answer

    def of_kind(self, kind: type) -> list[Any]:
        """The events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    def validate_by(self, evaluation: Any) -> None:
        """Give the run a validation set, which `evaluation` stands for."""
        self.run.facts = replace(self.run.facts, validation=self.run.facts.dataset)
        self.run._validation = evaluation
