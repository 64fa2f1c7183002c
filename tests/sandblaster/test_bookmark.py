"""A run between two iterations: told in JSON bit for bit, and gone on from with the bits of an unbroken run."""

from __future__ import annotations

import copy
import doctest
import inspect
import json
import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from dask_belief.errors import CheckpointError
from dask_belief.monitoring.events import IterationEnded
from dask_belief.optim import direction as direction_module
from dask_belief.optim.backtracking import ProjectedSearch
from dask_belief.optim.direction import DirectionRule
from dask_belief.optim.line_search import StrongWolfe
from dask_belief.optim.stopping import Criteria, StopReason
from dask_belief.parameter_server.messages import Alias, BeginSum, EndSum
from dask_belief.parameter_server.ranges import BLOCK
from dask_belief.sandblaster.bookmark import Bookmark
from dask_belief.sandblaster.config import Sandblaster
from dask_belief.sandblaster.minimiser import Minimiser
from dask_belief.sandblaster.progress import Progress
from dask_belief.sandblaster.steps import DIAGONAL, GRADIENT, POINT, OrthantWise, Smooth
from tests.optim.minimise import Objective, rosenbrock
from tests.sandblaster.local_run import LocalRun

SMALL = np.tile([-1.2, 1.0], 4)
N = 2 * BLOCK + 10


def documented_rule() -> type:
    """The example of `DirectionRule`, as it stands in its documentation: a rule that describes itself by nothing."""
    text = inspect.getdoc(DirectionRule)
    assert text is not None
    example = next(each for each in doctest.DocTestParser().get_examples(text) if each.source.startswith("class"))
    names: dict[str, Any] = dict(vars(direction_module))
    exec(example.source, names)
    made: type = names["HeavyBall"]
    return made


METHODS = [
    pytest.param(Sandblaster(history_size=3), id="lbfgs"),
    pytest.param(Sandblaster(history_size=1), id="one pair"),
    pytest.param(Sandblaster(history_size=3, damping=True), id="damped"),
    pytest.param(Sandblaster(history_size=3, first_hessian="adagrad"), id="diagonal"),
    pytest.param(Sandblaster(history_size=3, l1=1e-2), id="l1"),
    pytest.param(Sandblaster(history_size=3, l1=1e-2, first_hessian="adagrad"), id="l1, diagonal"),
    pytest.param(Sandblaster(direction="conjugate_gradient"), id="conjugate gradient"),
    pytest.param(Sandblaster(direction="gradient_descent"), id="gradient descent"),
    pytest.param(Sandblaster(direction="gradient_descent", l1=1e-2), id="l1, gradient descent"),
    pytest.param(Sandblaster(direction=documented_rule()), id="own rule"),
    pytest.param(Sandblaster(direction=documented_rule(), l1=1e-2), id="l1, own rule"),
]


def bowl(w: np.ndarray) -> tuple[float, np.ndarray]:
    """A parabola whose curvatures lie between 1 and 50, with its minimum, 0, at 1."""
    curvatures, away = np.geomspace(1, 50, len(w)), w - 1
    return float(curvatures @ away**2 / 2), curvatures * away


class Played:
    """A run that is played to its end on local shards, from its beginning or from a bookmark.

    Attributes
    ----------
    scene
        The local run.
    numbers
        All scalars of each iteration, by its number.
    """

    def __init__(
        self, function: Objective, start: np.ndarray, method: Sandblaster, max_iter: int, n_shards: int = 1
    ) -> None:
        self.method = method
        self.progress = Progress()
        self.criteria = Criteria(gtol=0.0, ftol=0.0, max_iter=max_iter)
        self.scene = LocalRun(function, start, l1=method.l1, l2=method.l2, n_shards=n_shards)

    def play(self, mark: Bookmark | None = None) -> None:
        """Play to the end; the shards hold what belongs to the bookmark."""
        scene, method = self.scene, self.method
        rule = method.direction_rule() if mark is None else copy.deepcopy(mark.rule)
        noise: dict[str, Any] = {"relative_noise": 1e-15}
        searches: Any = Smooth(StrongWolfe(c2=rule.c2, **noise))
        if method.l1:
            searches = OrthantWise(ProjectedSearch(**noise), method.l1)
        if mark is not None:
            self.progress.iteration, self.progress.evaluations = mark.iteration, mark.evaluations
        # Nothing is copied to the driver but the end: how often that is done depends on time.
        scene.run._keeping._ready_at = math.inf
        batch = scene.new_batch(has_value=mark is not None)
        made = Minimiser(scene.run, scene.deployment, batch, rule, searches, self.criteria, self.progress, {"plan": {}})
        self.stop = made.minimise(mark)
        self.parameters = scene.deployment.vector(POINT)

    def begin(self) -> None:
        """Bring to the shards what the method begins with."""
        if self.method.first_hessian == "adagrad":
            server = self.scene.deployment.server
            self.scene.deployment.run(server.write(DIAGONAL, np.geomspace(1, 0.05, len(self.scene.run.best))))

    @property
    def numbers(self) -> dict[int, tuple[float, ...]]:
        names = ("loss", "gradient_norm", "step", "evaluations", "passes", "curvature", "decrease_ratio", "slope_ratio")
        told: dict[int, tuple[float, ...]] = {}
        for event in self.scene.of_kind(IterationEnded):
            numbers = tuple(getattr(event, name) for name in names)
            # What is computed again is as it was.
            assert repr(told.setdefault(event.iteration, numbers)) == repr(numbers)
        return told


def unbroken(function: Objective, start: np.ndarray, method: Sandblaster, max_iter: int, n_shards: int = 1) -> Played:
    """A run that is never saved."""
    played = Played(function, start, method, max_iter, n_shards)
    with played.scene:
        played.begin()
        played.play()
    return played


def marked(method: Sandblaster, state: Mapping[str, Any]) -> Bookmark:
    return Bookmark.from_state(state, method.direction_rule)


def assert_same(found: Played, expected: Played, after: int) -> None:
    """Bit for bit, NaN as NaN: each scalar of each iteration after this one, the end, and the parameters."""
    wanted = {iteration: numbers for iteration, numbers in expected.numbers.items() if iteration > after}
    assert repr({key: value for key, value in found.numbers.items() if key > after}) == repr(wanted)
    assert repr(found.stop) == repr(expected.stop)
    assert found.progress.evaluations == expected.progress.evaluations
    assert found.parameters.tobytes() == expected.parameters.tobytes()


# Going on.


@pytest.mark.parametrize("method", METHODS)
def test_run_goes_on_from_every_iteration_with_the_same_bits(method: Sandblaster) -> None:
    """On other shards, which hold what was saved and nothing else."""
    expected = unbroken(rosenbrock, SMALL, method, max_iter=12)
    first = Played(rosenbrock, SMALL, method, max_iter=12)
    with first.scene:
        first.begin()
        first.scene.shelf.wanted = lambda: True
        first.play()
        assert_same(first, expected, after=0)
    states, shelf = first.scene.shelf.states, first.scene.shelf
    is_without_step = expected.stop.reason is not StopReason.MAX_ITERATIONS
    assert [state.state["iteration"] for state in states] == list(range(len(expected.numbers) + is_without_step))
    for saved in states:
        again = Played(rosenbrock, SMALL, method, max_iter=12)
        with again.scene:
            shelf.newest = saved
            again.scene.deployment.fill(shelf.fills(again.scene.deployment, again.scene.deployment.directory, ()))
            again.scene.deployment.forget(POINT)
            shelf.go_back(again.scene.deployment)
            again.play(marked(method, saved.state))
        assert_same(again, expected, after=saved.state["iteration"])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("further", [1, 4])
def test_shards_go_back_by_second_names(method: Sandblaster, further: int) -> None:
    """Whatever was computed since, and over slots that were written to again."""
    expected = unbroken(rosenbrock, SMALL, method, max_iter=10)
    last = len(expected.numbers)
    for iteration in range(last):
        played = Played(rosenbrock, SMALL, method, max_iter=min(10, iteration + further))
        with played.scene:
            played.begin()
            shelf, progress = played.scene.shelf, played.progress
            shelf.wanted = lambda progress=progress, at=iteration: progress.iteration == at
            played.play()
            [saved] = shelf.states
            shelf.wanted = lambda: False
            played.criteria = expected.criteria
            shelf.go_back(played.scene.deployment)
            played.play(marked(method, saved.state))
        assert_same(played, expected, after=0)


@pytest.mark.parametrize("method", [METHODS[0], METHODS[3], METHODS[4], METHODS[6], METHODS[9]])
@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 2)])
def test_run_goes_on_with_the_same_bits_on_other_numbers_of_shards(
    method: Sandblaster, before: int, after: int
) -> None:
    """A vector that is long enough to be cut elsewhere."""
    start = np.linspace(-2, 2, N)
    expected = unbroken(bowl, start, method, max_iter=5)
    first = Played(bowl, start, method, max_iter=3, n_shards=before)
    with first.scene:
        first.begin()
        first.scene.shelf.wanted = lambda: True
        first.play()
    assert len(first.scene.deployment.directory.shards) == before
    shelf = first.scene.shelf
    for saved in shelf.states:
        again = Played(bowl, start, method, max_iter=5, n_shards=after)
        with again.scene:
            assert len(again.scene.deployment.directory.shards) == after
            shelf.newest = saved
            again.scene.deployment.fill(shelf.fills(again.scene.deployment, again.scene.deployment.directory, ()))
            shelf.go_back(again.scene.deployment)
            again.play(marked(method, saved.state))
        assert_same(again, expected, after=saved.state["iteration"])


def test_shards_that_move_carry_what_is_needed() -> None:
    """Between any two iterations, with the bits of a run that stays; what each trial makes anew stays behind."""
    for method in (each.values[0] for each in METHODS):
        assert isinstance(method, Sandblaster)
        expected = unbroken(rosenbrock, SMALL, method, max_iter=8)
        played = Played(rosenbrock, SMALL, method, max_iter=8)
        with played.scene:
            played.begin()
            deployment, shelf = played.scene.deployment, played.scene.shelf

            def move(deployment: Any = deployment, progress: Progress = played.progress) -> bool:
                # Asked between iterations: the next one finds its shard on the move.
                deployment.leaving = [0]
                return progress.iteration % 3 == 0

            shelf.wanted = move
            played.play()
            moved = deployment.handed_over
        assert_same(played, expected, after=0)
        # Before each iteration, and before the search that finds none.
        is_without_step = expected.stop.reason is not StopReason.MAX_ITERATIONS
        assert len(moved) == len(expected.numbers) + is_without_step
        for names in moved:
            assert {POINT, GRADIENT} <= set(names)
            assert not {"trial", "trial_g", "trial_v", "d", "move"} & set(names)
            assert not [name for name in names if name.startswith("held:")]


# What it costs.


@pytest.mark.parametrize("every", [0, 1, 3])
def test_save_costs_one_round_and_one_that_settles(every: int) -> None:
    """With none due, nothing is added to the two rounds of an evaluation."""
    method = Sandblaster(history_size=3)
    played = Played(rosenbrock, SMALL, method, max_iter=9)
    with played.scene:
        progress = played.progress
        played.scene.shelf.wanted = lambda: bool(every) and progress.iteration % every == 0
        played.play()
        rounds, n_saved = played.scene.deployment.rounds, played.scene.shelf.n_saved
    # Before iterations; the first point is there without being settled, the last is settled anyhow.
    assert n_saved == (9 // every if every else 0)
    others = [commands for commands in rounds if not {BeginSum, EndSum} & set(map(type, commands))]
    assert len(rounds) == 2 * progress.evaluations + len(others)
    assert len([commands for commands in others if Alias in map(type, commands)]) == n_saved
    assert len(others) == max(1, 2 * n_saved)


def test_pairs_keep_the_name_of_the_iteration_that_made_them() -> None:
    """So that each is carried once, however often the run is saved; and what is forgotten is no longer named."""
    played = Played(rosenbrock, SMALL, Sandblaster(history_size=3), max_iter=9)
    with played.scene:
        played.scene.shelf.wanted = lambda: True
        marks: list[Bookmark] = []
        begin = played.scene.shelf.begin
        lasting: list[set[str]] = []

        def note(deployment: Any, state: Any, vectors: Mapping[str, str | None], *rest: Any) -> bool:
            marks.append(marked(played.method, state))
            lasting.append({name for name in vectors.values() if name is not None})
            assert {own for own, name in vectors.items() if name is None} == {POINT, GRADIENT}
            return bool(begin(deployment, state, vectors, *rest))

        played.scene.shelf.begin = note
        played.play()
    assert lasting[0] == set()
    for iteration, names in enumerate(lasting):
        made = range(max(1, iteration - 2), iteration + 1)
        assert names == {f"{kind}{number}" for kind in "sy" for number in made}
    for before, after in pairwise(lasting):
        assert len(after - before) == 2
    assert [mark.iteration for mark in marks] == list(range(9))


# Which vectors.


def made_of(method: Sandblaster, iterations: int) -> Bookmark:
    """The bookmark of a run after so many iterations."""
    played = Played(rosenbrock, SMALL, method, max_iter=iterations + 1)
    with played.scene:
        played.begin()
        progress = played.progress
        played.scene.shelf.wanted = lambda: progress.iteration == iterations
        played.play()
        return marked(method, played.scene.shelf.newest.state)


@pytest.mark.parametrize(
    ("method", "iterations", "kinds"),
    [
        (Sandblaster(history_size=3), 0, ""),
        (Sandblaster(history_size=3), 1, "s1 y1"),
        (Sandblaster(history_size=3), 7, "s5 s6 s7 y5 y6 y7"),
        (Sandblaster(history_size=3, first_hessian="adagrad"), 0, "h0"),
        (Sandblaster(history_size=2, first_hessian="adagrad"), 5, "h0 s4 s5 y4 y5"),
        (Sandblaster(direction="gradient_descent"), 5, ""),
        (Sandblaster(direction="conjugate_gradient"), 0, ""),
        (Sandblaster(direction="conjugate_gradient"), 4, "s4"),
    ],
)
def test_vectors_are_those_of_the_next_direction(method: Sandblaster, iterations: int, kinds: str) -> None:
    """Point and gradient change; pairs are named by the iteration that made them; the diagonal stays."""
    vectors = made_of(method, iterations).vectors("point")
    assert vectors.pop("point", "") is None
    assert vectors.pop(GRADIENT, "") is None
    assert set(vectors.values()) == set(kinds.split())
    for name, lasting in vectors.items():
        assert lasting is not None
        assert name[0] == lasting[0]


# What is told of it.


def mark_of(**changes: Any) -> Bookmark:
    rule = Sandblaster().direction_rule()
    rule.update(None, {(GRADIENT, GRADIENT): 1.0})
    facts: dict[str, Any] = {
        "iteration": 7,
        "evaluations": 9,
        "value": 0.1 + 0.2,
        "norm": 5e-324,
        "previous": None,
        "rule": rule,
        "pairs": {3: 4, 1: 2},
    }
    return Bookmark(**(facts | changes))


ODD = [0.1 + 0.2, 5e-324, -0.0, 1.7976931348623157e308, math.inf, -math.inf, math.nan, 1 / 3]


@pytest.mark.parametrize("value", ODD, ids=str)
def test_numbers_come_back_bit_for_bit(value: float) -> None:
    """By way of strict JSON, which knows no NaN and no infinity."""
    mark = mark_of(value=value, norm=value, previous=value)
    text = json.dumps(mark.to_state(), allow_nan=False)
    found = marked(Sandblaster(), json.loads(text))
    for name in ("value", "norm", "previous"):
        assert np.float64(getattr(found, name)).tobytes() == np.float64(value).tobytes()
    assert (found.iteration, found.evaluations, found.pairs) == (7, 9, {3: 4, 1: 2})
    assert json.dumps(found.to_state()) == text
    assert marked(Sandblaster(), json.loads(json.dumps(mark_of().to_state()))).previous is None


def test_history_comes_back_bit_for_bit() -> None:
    """All dot products of a rule that has forgotten pairs, and the same direction from them."""
    for method in (Sandblaster(history_size=3), Sandblaster(history_size=3, first_hessian="adagrad")):
        mark = made_of(method, 8)
        again = marked(method, json.loads(json.dumps(mark.to_state(), allow_nan=False)))
        assert again.rule.direction() == mark.rule.direction()
        assert again.rule.slope() == mark.rule.slope()
        assert again.rule.free_slot() == mark.rule.free_slot()
        assert again.to_state() == mark.to_state()


def test_rule_without_a_description_is_given_itself() -> None:
    """It stays in this process."""
    rule = documented_rule()()
    rule.update(None, {(GRADIENT, GRADIENT): 1.0})
    state = mark_of(rule=rule).to_state()
    assert state["rule"] is rule
    assert marked(Sandblaster(), state).rule is rule


WRONG: dict[str, list[Any]] = {
    "iteration": ["x", None, [], math.inf],
    "evaluations": ["x", None, {}, math.nan],
    "value": ["x", None, []],
    "norm": ["x", None, {}],
    "previous": ["x", []],
    "rule": [None, "lbfgs", 3, [], {}],
    "pairs": [None, 3, [3], [[1]], [[1, 2, 3]], [["x", 1]], {"a": 1}],
}


def damaged_states() -> Iterator[dict[str, Any]]:
    """Every entry missing, and every entry of each wrong type."""
    sound = json.loads(json.dumps(mark_of().to_state()))
    for name in sound:
        yield {key: value for key, value in sound.items() if key != name}
    for name, others in WRONG.items():
        yield from (sound | {name: other} for other in others)
    rule = sound["rule"]
    for name in rule:
        yield sound | {"rule": {key: value for key, value in rule.items() if key != name}}
    yield sound | {"rule": rule | {"slots": [0]}}
    yield sound | {"rule": rule | {"dots": []}}


@pytest.mark.parametrize("state", list(damaged_states()))
def test_damaged_state_is_refused(state: dict[str, Any]) -> None:
    """With a word of what to do."""
    with pytest.raises(CheckpointError, match=r"what it says of the iterations.*resume from the one before"):
        marked(Sandblaster(), state)


def test_history_without_its_vectors_is_refused() -> None:
    """A rule that makes use of a pair which was not saved."""
    method = Sandblaster(history_size=3)
    state = json.loads(json.dumps(made_of(method, 5).to_state()))
    state["pairs"].pop()
    with pytest.raises(CheckpointError):
        marked(method, state)


def test_end_is_the_same_after_every_bookmark() -> None:
    """Decreases are compared with the value before the bookmark; evaluations are counted with those before it."""
    method = Sandblaster(history_size=3)
    for criteria, reason in (
        (Criteria(gtol=0.0, ftol=1e-3, max_iter=99), StopReason.DECREASE_SMALL),
        (Criteria(gtol=1e-3, ftol=0.0, max_iter=99), StopReason.GRADIENT_SMALL),
        (Criteria(gtol=0.0, ftol=0.0, max_iter=99, max_evaluations=17), StopReason.MAX_EVALUATIONS),
    ):
        first = Played(rosenbrock, SMALL, method, max_iter=99)
        first.criteria = criteria
        with first.scene:
            shelf = first.scene.shelf
            shelf.wanted = lambda: True
            first.play()
            assert first.stop.reason is reason
            n_iterations = len(first.numbers)
            for saved in shelf.states[::7]:
                shelf.newest = saved
                shelf.go_back(first.scene.deployment)
                stop, parameters = first.stop, first.parameters
                shelf.wanted = lambda: False
                first.play(marked(method, saved.state))
                assert first.stop == stop
                assert first.parameters.tobytes() == parameters.tobytes()
                assert len(first.numbers) == n_iterations
