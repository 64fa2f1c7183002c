"""What the drivers share: a run on its cluster, events, what is saved, the best point kept, validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from distributed import Client

from dask_belief.checkpoint import SavedState
from dask_belief.cluster.membership import Joined, Lost, Membership
from dask_belief.data.dataset import ArrayDataset
from dask_belief.errors import ActorLostError, ClusterError, NonFiniteError
from dask_belief.evaluation import SNAPSHOT
from dask_belief.monitoring.callbacks import CallbackList
from dask_belief.monitoring.events import Event, Rebuilt, RunStarted, Saved, Validated, WorkerJoined, WorkerLost
from dask_belief.optim.stopping import Stop, StopReason
from dask_belief.parameter_server.deployment import Deployment, DeploymentSpec, deployed
from dask_belief.parameter_server.ranges import shard_ranges
from dask_belief.parameter_server.shards import ShardsSpec
from dask_belief.parameter_server.vault import SavedNow
from dask_belief.run import Facts, Run
from tests.small_cluster import close_worker, eventually

N_FEATURES = 3


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

    async def leave(self, generation: int, replica: str) -> None:
        """Count a replica out."""

    async def publish(self, generation: int, number: int, directory: object) -> None:
        """Tell where the shards are."""


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
        shards=ShardsSpec(N_FEATURES, "float32", None, None, shard_ranges(N_FEATURES, 1)),
        n_replicas=1,
        hub=Desk,
        hub_arguments=(),
        hub_state=lambda deployment: None,
        hub_cost="nothing",
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

    def opened(self, name: str) -> AbstractContextManager[Deployment]:
        return self.run.on_cluster(spec_of(name), (7.0, "epochs"))


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
    deployment: Any = SimpleNamespace(changes=[Lost("a"), Joined("b", 2)], rebuilt=[])
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


def test_rebuilding_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """By an event and a line of the log: why, what it cost, and how far back; what the deployment rebuilt, once."""
    scene = Scene(None)
    scene.run.note_rebuild("shard 2 was lost.", "nothing", 7, updates_lost=11)
    deployment: Any = SimpleNamespace(changes=[Lost("a")], rebuilt=[("the ledger was lost.", "a moment")])
    scene.run.note_changes(deployment)
    scene.run.note_changes(deployment)
    first, second = scene.of_kind(Rebuilt)
    assert (first.reason, first.lost, first.iteration, first.updates_lost) == ("shard 2 was lost.", "nothing", 7, 11)
    assert (second.reason, second.lost, second.iteration) == ("the ledger was lost.", "a moment", None)
    assert 0.0 <= first.seconds <= second.seconds
    assert [type(event) for event in scene.events] == [Rebuilt, WorkerLost, Rebuilt]
    assert "shard 2 was lost. Going on: nothing." in caplog.messages


def test_what_is_validated_is_dropped_when_shards_go_back() -> None:
    """Its snapshot is gone; a worker that is lost takes its parts only."""
    scene, told = Scene(None), []
    evaluation: Any = SimpleNamespace(drop=lambda: told.append("drop"), lose=told.append)
    scene.run._validation = evaluation
    deployment: Any = SimpleNamespace(changes=[Lost("a"), Joined("b", 1)], rebuilt=[])
    scene.run.note_changes(deployment)
    assert told == ["a"]
    scene.run.note_rebuild("shard 0 was lost.", "nothing")
    assert told == ["a", "drop"]


# On the cluster.


@pytest.fixture
def scene(client: Client, request: pytest.FixtureRequest) -> Scene:
    return Scene(client, name=request.node.name)


def assert_nothing_left(client: Client) -> None:
    scheduler = client.cluster.scheduler
    eventually(lambda: not scheduler.tasks)
    assert not [name for name in scheduler.plugins if "dask-belief" in name]


def test_run_begins_and_ends_on_the_cluster(scene: Scene, client: Client) -> None:
    """It is told what begins; the actors are there within the block, and nothing is after it."""
    with scene.opened("one") as deployment:
        assert deployment.directory.generation == 0
        assert any("dask-belief" in name for name in client.cluster.scheduler.plugins)
    [started] = scene.of_kind(RunStarted)
    assert (started.method, started.n_rows, started.n_parameters, started.n_workers) == ("a method", 6, 3, 2)
    assert (started.planned, started.planned_unit) == (7.0, "epochs")
    assert_nothing_left(client)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ActorLostError("gone"), ValueError("else")], ids=repr)
def test_errors_end_the_run_as_they_are(scene: Scene, client: Client, error: BaseException) -> None:
    """With nothing left behind."""
    with pytest.raises(type(error)) as raised, scene.opened("ended"):
        raise error
    assert raised.value is error
    assert_nothing_left(client)


def test_run_gives_up_when_actors_are_lost_again_and_again(scene: Scene) -> None:
    """By an error, and not for ever; work that is finished in between begins the count anew."""
    with (
        pytest.raises(ClusterError, match="lost 6 times without any work finished"),
        scene.opened("lost") as deployment,
    ):
        deployment.lost_shards = lambda: [0]  # type: ignore[method-assign]
        for _ in range(2):
            for _ in range(5):
                deployment.find_losses(ActorLostError("again"))
            deployment.progressed()
        for _ in range(6):
            deployment.find_losses(ActorLostError("again"))


@pytest.mark.parametrize("is_of_the_run", [True, False])
def test_whatever_goes_wrong_without_a_scheduler_is_told_as_that(is_of_the_run: bool) -> None:
    """But for what replicas said of the objective and the data."""
    client: Any = SimpleNamespace(status="closed")
    run, error = Scene(client).run, NonFiniteError("row 3") if is_of_the_run else RuntimeError("cannot schedule")
    with pytest.raises(NonFiniteError if is_of_the_run else ClusterError) as raised, run._while_connected():
        raise error
    if not is_of_the_run:
        assert "the connection to Dask's scheduler is gone: RuntimeError" in str(raised.value)
        assert raised.value.__cause__ is error


def test_lost_worker_is_told_though_the_run_ends_by_it(own_client: Client) -> None:
    """Listeners hear of what was noted last."""
    scene = Scene(own_client, name="along")
    lost: list[str] = []
    # Watching would start replicas, which have nothing to do here.
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(ActorLostError, match="shard 0"),
        scene.opened("along") as deployment,
    ):
        patch.setattr(Deployment, "start_replicas", lambda self: None)
        lost.append(deployment.directory.shards[0].worker)
        close_worker(own_client, lost[0])

        def never() -> bool:
            deployment.watch()
            return False

        eventually(never)
    assert [type(event) for event in scene.events if not isinstance(event, Rebuilt)] == [RunStarted, WorkerLost]
    assert [event.address for event in scene.of_kind(WorkerLost)] == lost


# What is saved.


class Vault:
    """Notes what the run asks of its vault, and says what the test wants."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.saved: list[SavedNow] = []
        self.due = False
        self.is_place = True

    def has_place(self, deployment: Any) -> bool:
        return self.is_place

    def look(self, deployment: Any) -> None:
        self.told.append("look")

    def poll(self, deployment: Any, now: float) -> SavedNow | None:
        self.told.append("poll")
        return self.saved.pop() if self.saved else None

    def finish(self, deployment: Any, now: Callable[[], float]) -> SavedNow | None:
        assert now() >= 0.0
        return self.saved.pop() if self.saved else None

    def is_due(self, now: float) -> bool:
        return self.due

    def begin(self, deployment: Any, state: Any, vectors: Any, now: float, own: Any) -> bool:
        self.told.append((state, vectors, own))
        return True


def test_saves_are_told_and_begun_when_they_are_due() -> None:
    """A save that is complete is an event; whether another is due is the vault's to say, after a look."""
    scene, nowhere = Scene(None), cast(Deployment, None)
    scene.run.vault = vault = cast(Any, Vault())
    assert not scene.run.look_after_saves(nowhere)
    assert vault.told == ["look", "poll"]
    assert scene.of_kind(Saved) == []
    vault.due = True
    vault.saved = [SavedNow(SavedState(3, {}, {}), 0.25, 4096)]
    assert scene.run.look_after_saves(nowhere)
    vault.is_place = False
    assert not scene.run.look_after_saves(nowhere)
    [saved] = scene.of_kind(Saved)
    assert saved == Saved(3, saved.seconds, 0.25, 4096)
    vault.saved = [SavedNow(SavedState(4, {}, {}), 0.5, 1)]
    scene.run.finish_save(nowhere)
    scene.run.finish_save(nowhere)
    assert len(scene.of_kind(Saved)) == 2


def test_what_is_carried_goes_with_every_save() -> None:
    """Beside what the method adds of its own."""
    scene, nowhere = Scene(None), cast(Deployment, None)
    ones, twos = np.ones(3), np.full(3, 2.0)
    scene.run.facts = replace(scene.run.facts, carried={"sums": ones})
    scene.run.vault = vault = cast(Any, Vault())
    scene.run.begin_save(nowhere, {"a": 1}, {"x": None})
    scene.run.begin_save(nowhere, {"a": 2}, None, {"best1": twos})
    (first, vectors, carried), (second, others, more) = vault.told
    assert 0.0 <= first.pop("seconds") <= second.pop("seconds")
    assert (first, vectors, carried) == ({"a": 1}, {"x": None}, {"sums": ones})
    assert (second, others, more) == ({"a": 2}, None, {"sums": ones, "best1": twos})


def test_run_is_repeatable_unless_something_has_set_it_apart() -> None:
    """Replicas of two kinds, or a loss after which it took another way."""
    for kinds, was_set_back, is_repeatable in (
        ((), False, True),
        (("a",), False, True),
        (("a", "b"), False, False),
        (("a",), True, False),
    ):
        run = Scene(None).run
        run.note_kinds(kinds)
        run.was_set_back = was_set_back
        assert run.is_repeatable == is_repeatable


# The best point, and validation.


@pytest.fixture
def deployment(client: Client, request: pytest.FixtureRequest) -> Iterator[Deployment]:
    membership = Membership(client, request.node.name)
    with deployed(client, spec_of(request.node.name), membership) as deployment:
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
    run.start_validation(deployment, passes=1.5)
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
    scene.run.start_validation(deployment, passes=0.5)
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
    run.start_validation(deployment, 1.0)
    assert run.poll_validation() is None
    assert run.finish_validation() == {}
