"""What the drivers share: shares of time, events, the best point kept, validation, one generation after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_belief import run as run_module
from dask_belief.cluster.membership import Joined, Lost, Membership
from dask_belief.data.dataset import ArrayDataset
from dask_belief.errors import ActorLostError, ClusterError
from dask_belief.evaluation import SNAPSHOT
from dask_belief.monitoring.callbacks import CallbackList
from dask_belief.monitoring.events import Event, Rebuilt, RunStarted, Validated, WorkerJoined, WorkerLost
from dask_belief.optim.stopping import Stop, StopReason
from dask_belief.parameter_server.deployment import Deployment, DeploymentSpec, deployed
from dask_belief.run import Facts, Outcome, Run, Share
from tests.small_cluster import close_worker, eventually

EXAMPLES = settings(derandomize=True, deadline=None, max_examples=100)
N_FEATURES = 3
OUTCOME = Outcome(np.zeros(N_FEATURES), 0.5, Stop(StopReason.MAX_ITERATIONS), 1.0, True, {})


class Distance:
    """Loss ``|w - row|^2``."""

    n_parameters = N_FEATURES

    def initial_parameters(self, seed: int) -> np.ndarray:
        return np.zeros(N_FEATURES)

    def loss_and_gradient(self, parameters: Any, inputs: Any, targets: Any) -> tuple[float, Any]:
        difference = parameters - inputs
        return float((difference**2).sum()), 2 * difference.sum(axis=0)


class Desk:
    """The least of a hub."""

    def __init__(self, generation: int) -> None:
        self.generation = generation

    async def finish(self, generation: int) -> None:
        """End the run."""


def replica(spec: object, dataset: object, name: str) -> str:
    raise AssertionError("none is started here")


def facts_of(client: Any, has_validation: bool = False, name: str = "facts") -> Facts:
    rows = ArrayDataset(np.ones((6, N_FEATURES), np.float32), np.zeros(6, np.int64), chunk_rows=2)
    return Facts(
        name=name,
        client=client,
        objective=Distance(),
        dataset=rows,
        validation=rows if has_validation else None,
        initial=np.arange(N_FEATURES, dtype=np.float32),
        seed=0,
        dtype="float32",
        backend="numpy",
    )


def spec_of(name: str) -> DeploymentSpec:
    return DeploymentSpec(
        run=name,
        method="a method",
        n_parameters=N_FEATURES,
        dtype="float32",
        penalised=None,
        n_shards=1,
        n_replicas=1,
        updates=None,
        hub=Desk,
        hub_arguments=(),
        replica=replica,
        replica_spec=lambda directory, hub: None,
        dataset="rows",
    )


class Scene:
    """A run whose events are noted."""

    def __init__(self, client: Any, **options: Any) -> None:
        self.events: list[Event] = []
        self.answer: bool | None = None
        self.run = Run(facts_of(client, **options), CallbackList([self.note]))

    def note(self, event: Event) -> bool | None:
        self.events.append(event)
        return self.answer

    def of_kind(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def through(self, live: Callable[[Deployment], Outcome], name: str) -> Outcome:
        return self.run.through_generations(spec_of(name), (7.0, "epochs"), live, lambda: "nothing")


# Shares of time.


@EXAMPLES
@given(st.floats(0.01, 0.99), st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), min_size=1, max_size=20))
def test_share_of_time_is_kept(share: float, turns: list[tuple[float, float]]) -> None:
    """Done whenever it is due, something takes at most its part of the time until it is due again."""
    kept, now, spent = Share(share), 0.0, 0.0
    for waits, takes in turns:
        now += waits
        if kept.is_due(now):
            kept.took(now, now + takes)
            now, spent = now + takes, spent + takes
            now += takes * (1 - share) / share
            assert spent <= share * now * (1 + 1e-9)


def test_share_is_due_at_first_and_after_its_pause() -> None:
    """What took one second of a twentieth is due again after nineteen."""
    kept = Share(0.05)
    assert kept.is_due(0.0)
    kept.took(10.0, 11.0)
    assert not kept.is_due(29.9)
    assert kept.is_due(30.1)


def test_what_costs_little_is_not_due_at_once_either() -> None:
    """There is a least pause, beside the share."""
    kept = Share(0.05, least_seconds=1.0)
    assert kept.is_due(0.0)
    kept.took(10.0, 10.001)
    assert not kept.is_due(10.9)
    assert kept.is_due(11.1)
    kept.took(20.0, 21.0)
    assert not kept.is_due(39.9)
    assert kept.is_due(40.1)


# Events.


def test_callback_that_says_true_stops_the_run() -> None:
    """From then on, with the numbers that the driver gives; before, there is no reason."""
    scene = Scene(None)
    scene.run.emit(WorkerLost("w"))
    assert scene.run.asked_to_stop(iteration=3) is None
    scene.answer = True
    scene.run.emit(WorkerLost("w"))
    scene.answer = None
    scene.run.emit(WorkerLost("w"))
    assert scene.run.asked_to_stop(iteration=3) == Stop(StopReason.CALLBACK, {"iteration": 3})


def test_changes_are_told_once() -> None:
    """Workers that came and went, in order, and then the list is empty."""
    scene = Scene(None)
    deployment: Any = type("Deployment", (), {"changes": [Lost("a"), Joined("b", 2)]})()
    scene.run.note_changes(deployment)
    scene.run.note_changes(deployment)
    assert [(type(event), event.address) for event in scene.of_kind((WorkerLost, WorkerJoined))] == [
        (WorkerLost, "a"),
        (WorkerJoined, "b"),
    ]


def test_mixed_kinds_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """Each kind is kept; the warning comes when a second one is seen, and not again for a third."""
    run = Scene(None).run
    for kinds in ((), ("one",), ("one",), ("one", "two"), ("one", "two", "three")):
        run.note_kinds(kinds)
    assert run.kinds == {"one", "two", "three"}
    assert len([record for record in caplog.records if "different kinds" in record.message]) == 1


# Generations.


@pytest.fixture
def scene(client: Client, request: pytest.FixtureRequest) -> Scene:
    return Scene(client, name=request.node.name)


def test_run_that_loses_nothing_has_one_generation(scene: Scene, client: Client) -> None:
    """It is told what begins, and the outcome is handed back; nothing stays on the scheduler."""
    generations = []

    def live(deployment: Deployment) -> Outcome:
        generations.append(deployment.generation)
        return OUTCOME

    assert scene.through(live, "one") is OUTCOME
    assert generations == [0]
    [started] = scene.of_kind(RunStarted)
    assert (started.method, started.n_rows, started.n_parameters, started.n_workers) == ("a method", 6, 3, 2)
    assert (started.planned, started.planned_unit) == (7.0, "epochs")
    scheduler = client.cluster.scheduler
    eventually(lambda: not scheduler.tasks)
    assert not [name for name in scheduler.plugins if "dask-belief" in name]


def test_lost_generation_is_followed_by_another(scene: Scene) -> None:
    """With the next number, and said: why, and what it cost."""
    generations = []

    def live(deployment: Deployment) -> Outcome:
        generations.append(deployment.generation)
        if len(generations) < 3:
            raise ActorLostError("shard 0 is gone.")
        return OUTCOME

    assert scene.through(live, "three") is OUTCOME
    assert generations == [0, 1, 2]
    assert [(event.reason, event.lost) for event in scene.of_kind(Rebuilt)] == [("shard 0 is gone.", "nothing")] * 2


def test_run_gives_up_when_generation_after_generation_is_lost(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an error, and not for ever, when no work is finished in between."""
    monkeypatch.setattr(run_module, "_IDLE_GENERATIONS", 2)

    def live(deployment: Deployment) -> Outcome:
        raise ActorLostError("again")

    with pytest.raises(ClusterError, match="3 generations of the run were lost one after another"):
        scene.through(live, "short-lived")


def test_other_errors_end_the_run(scene: Scene, client: Client) -> None:
    """As they are, with nothing left behind."""

    def live(deployment: Deployment) -> Outcome:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scene.through(live, "interrupted")
    scheduler = client.cluster.scheduler
    eventually(lambda: not scheduler.tasks)
    assert not [name for name in scheduler.plugins if "dask-belief" in name]


def test_worker_that_took_a_generation_along_is_told(own_client: Client) -> None:
    """Listeners hear of the lost worker and of the rebuilding, in this order."""
    scene = Scene(own_client, name="along")
    lost: list[str] = []

    def live(deployment: Deployment) -> Outcome:
        if lost:
            return OUTCOME
        lost.append(deployment.directory.shards[0].worker)
        close_worker(own_client, lost[0])

        def never() -> bool:
            deployment.watch()
            return False

        eventually(never)
        return OUTCOME

    # Watching would start replicas, which have nothing to do here.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Deployment, "start_replicas", lambda self: None)
        scene.through(live, "along")
    kinds = [type(event) for event in scene.events]
    assert kinds == [RunStarted, WorkerLost, Rebuilt]
    assert [event.address for event in scene.of_kind(WorkerLost)] == lost


# The best point, and validation.


@pytest.fixture
def deployment(client: Client, request: pytest.FixtureRequest) -> Iterator[Deployment]:
    membership = Membership(client, request.node.name)
    with deployed(client, spec_of(request.node.name), 0, membership) as deployment:
        yield deployment
    membership.close()


def write(deployment: Deployment, name: str, value: float) -> None:
    deployment.run(deployment.server.write(name, np.full(N_FEATURES, value, np.float32)))


def test_best_point_is_the_initial_one_at_first() -> None:
    """A copy of it."""
    scene = Scene(None)
    np.testing.assert_array_equal(scene.run.best, [0, 1, 2])
    scene.run.best[:] = 9
    np.testing.assert_array_equal(scene.run.facts.initial, [0, 1, 2])


def test_best_point_is_kept_within_its_share_of_time(scene: Scene, deployment: Deployment) -> None:
    """Due at first, then not at once again; but whenever a driver asks for it, as at the end."""
    run = scene.run
    write(deployment, "x", 1)
    assert run.is_keeping_due
    run.keep(deployment, "x")
    np.testing.assert_array_equal(run.best, np.ones(N_FEATURES))
    run._keeping.took(run.seconds - 100, run.seconds)
    assert not run.is_keeping_due
    write(deployment, "x", 2)
    np.testing.assert_array_equal(run.best, np.ones(N_FEATURES))
    run.keep(deployment, "x")
    np.testing.assert_array_equal(run.best, np.full(N_FEATURES, 2))


def test_keeping_is_noted_with_what_it_took(scene: Scene, deployment: Deployment) -> None:
    """So that the next is due when it may be."""
    noted: list[tuple[float, float]] = []
    write(deployment, "x", 1)
    scene.run._keeping.took = lambda began, ended: noted.append((began, ended))  # type: ignore[method-assign]
    scene.run.keep(deployment, "x")
    [(began, ended)] = noted
    assert 0 <= began <= ended <= scene.run.seconds


def test_validation_is_told_with_the_moment_it_belongs_to(client: Client, deployment: Deployment) -> None:
    """The means at the snapshot, with the passes at which it was taken; then a pause that keeps its share of time."""
    scene = Scene(client, has_validation=True, name="validated")
    run = scene.run
    assert run.is_validation_due
    assert run.poll_validation() is None
    write(deployment, SNAPSHOT, 3)
    run.start_validation(deployment.directory, passes=1.5)
    assert not run.is_validation_due
    assert run.finish_validation() == {"loss": 12.0}
    [validated] = scene.of_kind(Validated)
    assert (validated.loss, validated.metrics, validated.passes) == (12.0, {}, 1.5)
    assert run.finish_validation() == {"loss": 12.0}
    assert len(scene.of_kind(Validated)) == 1
    run._validating.took(run.seconds - 100, run.seconds)
    assert not run.is_validation_due


def test_validation_is_polled_to_its_end(client: Client, deployment: Deployment) -> None:
    """The means come once, when all parts are there."""
    scene = Scene(client, has_validation=True, name="polled")
    write(deployment, SNAPSHOT, 2)
    scene.run.start_validation(deployment.directory, passes=0.5)
    answers: list[dict[str, float]] = []

    def is_there() -> bool:
        answer = scene.run.poll_validation()
        if answer is not None:
            answers.append(answer)
        return bool(answers)

    eventually(is_there)
    assert answers == [{"loss": 3.0}]
    assert scene.run.poll_validation() is None


def test_nothing_is_validated_without_a_validation_set(client: Client, deployment: Deployment) -> None:
    """None is due, and none is begun."""
    run = Scene(client, name="without").run
    assert not run.is_validation_due
    run.start_validation(deployment.directory, 1.0)
    assert run.poll_validation() is None
    assert run.finish_validation() == {}
