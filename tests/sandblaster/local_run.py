"""A Sandblaster run without a cluster: real shards behind real messages, and one replica that is called in between."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np

from dask_belief.binary_tree import Node
from dask_belief.checkpoint import SavedState
from dask_belief.data.dataset import ArrayDataset
from dask_belief.data.units import UnitPlan
from dask_belief.monitoring.callbacks import CallbackList
from dask_belief.monitoring.events import Event
from dask_belief.parameter_server.client import ParameterServer
from dask_belief.parameter_server.directory import Directory
from dask_belief.parameter_server.messages import Alias, BeginSum, Command, Drop
from dask_belief.parameter_server.ranges import shard_ranges
from dask_belief.parameter_server.shard import Shard, ShardSpec
from dask_belief.parameter_server.vault import HELD
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


class LocalScheduler:
    """Knows of one worker."""

    def identity(self, n_workers: int) -> dict[str, Any]:
        return {"workers": {"tcp://local": {"memory_limit": 0, "nthreads": 1}}}


class LocalClient:
    """What is asked of a client before a run begins: the workers, of which there is one, and their memory."""

    scheduler = LocalScheduler()

    def nthreads(self) -> dict[str, int]:
        return {"tcp://local": 1}

    def sync(self, ask: Callable[..., Any], **options: Any) -> Any:
        return ask(**options)


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
    leaving
        The shards that have to move.
    handed_over
        The names of the vectors that were carried when shards moved, each time.
    """

    def __init__(self, actors: LocalActors, facts: Facts, plan: UnitPlan, n_shards: int, penalised: Any) -> None:
        self.rounds: list[tuple[Command, ...]] = []
        self.n_watched = 0
        self.n_progressed = 0
        self.statuses: list[Status] = []
        self.changes: list[Any] = []
        self.rebuilt: list[tuple[str, str]] = []
        self.n_replicas = 1
        self.workers = {"tcp://local": 1}
        self.leaving: list[int] = []
        self.handed_over: list[tuple[str, ...]] = []
        self._actors = actors
        self._caller = actors.caller
        self._facts = facts
        self._plan = plan
        self._penalised = penalised
        self._n_evaluations = 0
        self._lost: list[int] = []
        ranges = shard_ranges(facts.objective.n_parameters, n_shards)
        self.server = deploy(actors, ranges, dtype=facts.dtype, penalised=penalised)

    @property
    def directory(self) -> Directory:
        return self.server.directory

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._caller.run(coroutine)

    def execute(self, *commands: Command) -> list[list[float]]:
        self.rounds.append(commands)
        return self.run(self.server.execute(*commands))

    def next_evaluation(self) -> int:
        self._n_evaluations += 1
        return self._n_evaluations

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

    def there(self) -> dict[str, int]:
        return self.workers

    def progressed(self) -> None:
        self.n_progressed += 1

    # Shards that move, and shards that are lost.

    def leaving_shards(self) -> list[int]:
        return list(self.leaving)

    def hand_over(self, vectors: tuple[str, ...]) -> None:
        """Make the shards anew that have to move, with these vectors and no others."""
        self.handed_over.append(vectors)
        carried = {name: self.vector(name) for name in vectors}
        indices, self.leaving = self.leaving, []
        self._make_anew(indices)
        for name, values in carried.items():
            self.run(self.server.write(name, values, indices))

    def lose(self, *indices: int) -> None:
        """Let shards be gone, with all that they hold."""
        for index in indices:
            del self._actors.actors[self.directory.shards[index].key]
        self._lost.extend(indices)

    def lost_shards(self) -> list[int]:
        return sorted(self._lost)

    def find_losses(self, error: Exception) -> None:
        """Nobody need be asked: who is lost is known."""

    def fill(self, errands: Iterable[Callable[[ParameterServer], None]]) -> None:
        for errand in errands:
            errand(self.server)

    def replace(self, indices: Collection[int], carry: Callable[[ParameterServer], Any], avoid: object) -> None:
        self._make_anew(indices)
        self._lost.clear()
        self.fill(carry(self.server))

    def _make_anew(self, indices: Collection[int]) -> None:
        """Make shards that hold nothing; the others adopt the new generation."""
        directory = self.directory
        shards, generation = list(directory.shards), directory.generation + 1
        for index in indices:
            span = directory.ranges[index]
            penalised = None if self._penalised is None else self._penalised[span.start : span.stop]
            spec = ShardSpec(generation, index, span, directory.n_parameters, directory.dtype, penalised)
            shards[index] = self._actors.register(f"shard {index}, generation {generation}", Shard(spec))
        for shard in shards:
            self.run(self._caller.call(shard, "adopt", generation))
        self.server.directory = replace(directory, generation=generation, shards=tuple(shards))

    def vector(self, name: str) -> np.ndarray:
        """A vector of the shards."""
        into = np.empty_like(self._facts.initial)
        self.run(self.server.read(name, into))
        return into

    def forget(self, name: str) -> None:
        """Drop a vector from the shards."""
        self.run(self.server.execute(Drop(name)))

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


class Shelf:
    """Stands for the run's vault: a saved state is there at once, under second names on the shards and as a copy.

    Attributes
    ----------
    newest, saved_at, n_saved, is_able
        As of a vault.
    states
        All that was saved, in order.
    is_place
        Whether there is somewhere to save to.
    wanted
        Tells whether to save now.
    n_ways
        In how many ways the run went: one more each time that it was told of another.
    """

    def __init__(self) -> None:
        self.newest: SavedState | None = None
        self.saved_at = 0.0
        self.n_saved = 0
        self.is_able = True
        self.is_place = True
        self.n_ways = 1
        self.states: list[SavedState] = []
        self.wanted: Callable[[], bool] = lambda: False
        self._copies: dict[str, np.ndarray] = {}

    def look(self, deployment: Any) -> None:
        """No keeper can be lost."""

    def poll(self, deployment: Any, now: float) -> None:
        """What was begun is complete."""

    def give_up(self) -> None:
        """Nothing is ever under way."""

    def keeper_workers(self) -> dict[int, str]:
        return {}

    def has_place(self, deployment: Any) -> bool:
        return self.is_place

    def part_ways(self) -> None:
        self.n_ways += 1

    def is_due(self, now: float) -> bool:
        return self.wanted()

    def begin(
        self, deployment: Any, state: Mapping[str, Any], vectors: Mapping[str, str | None], now: float, own: object
    ) -> bool:
        self.n_saved += 1
        names = {name: f"{lasting or name}@{self.n_saved}" for name, lasting in vectors.items()}
        deployment.execute(*(Alias(HELD + name, own) for own, name in names.items()))
        self._copies |= {name: deployment.vector(HELD + name) for name in names.values()}
        kept = dict(state)
        if isinstance(kept["rule"], Mapping):
            # As in a checkpoint.
            kept = json.loads(json.dumps(kept, allow_nan=False))
        self.newest = SavedState(self.n_saved, dict.fromkeys(names.values(), ()), kept | {"vectors": names})
        self.states.append(self.newest)
        return True

    def can_fill(self, lost: Collection[int]) -> bool:
        return self.newest is not None

    def fills(
        self, deployment: Any, directory: Directory, lost: Collection[int]
    ) -> list[Callable[[ParameterServer], None]]:
        """Shards that are not lost have what they need, unless all are new to it."""
        assert self.newest is not None
        shards = None if not lost else list(lost)
        return [self._fill(deployment, name, shards) for name in self.newest.vectors]

    def _fill(self, deployment: Any, name: str, shards: list[int] | None) -> Callable[[ParameterServer], None]:
        return lambda server: deployment.run(server.write(HELD + name, self._copies[name], shards))

    def go_back(self, deployment: Any) -> None:
        assert self.newest is not None
        names = self.newest.state["vectors"]
        deployment.execute(*(Alias(own, HELD + name) for own, name in sorted(names.items())))


class LocalRun:
    """A run; leaves no thread behind when the ``with`` block ends.

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
    adagrad_sums
        That the beginning of the run was found with.

    Attributes
    ----------
    shelf
        Where the run is saved, when the test says so.
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
        adagrad_sums: np.ndarray | None = None,
    ) -> None:
        inputs = np.array(list(rows), np.float64)[:, None]
        dataset = ArrayDataset(inputs, np.zeros(len(inputs), np.int64), chunk_rows=1)
        self.plan = UnitPlan(n_rows=len(inputs), chunk_rows=1, unit_rows=unit_rows, block_rows=1)
        client: Any = LocalClient()
        facts = Facts(
            name="local",
            client=client,
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
        self._options = (Penalty(l2, l1), max_seconds)
        shelf: Any = Shelf()
        self.shelf = self.run.vault = shelf

    def __enter__(self) -> LocalRun:
        self.deployment: Any = self.new_deployment()
        self.deployment.run(self.deployment.server.write(POINT, self.run.facts.initial))
        self.batch = self.new_batch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def new_deployment(self) -> Any:
        """Shards that hold nothing yet."""
        return LocalDeployment(self._stack.enter_context(LocalActors()), *self._made_of)

    @contextmanager
    def on_cluster(self, spec: Any, planned: tuple[float, str]) -> Iterator[Any]:
        """Stands for `Run.on_cluster`: the local shards."""
        yield self.deployment

    def new_batch(self, has_value: bool = False) -> FullBatch:
        """Evaluations on the present deployment."""
        return FullBatch(self.run, self.deployment, self.plan, *self._options, has_value=has_value)

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
