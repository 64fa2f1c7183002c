"""How a search goes: the same words along a line and within an orthant, against the formulas on NumPy vectors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from dask_belief.optim.backtracking import Backtracking, ProjectedSearch
from dask_belief.optim.direction import Direction
from dask_belief.optim.line_search import LineSearch, StrongWolfe
from dask_belief.parameter_server.messages import Command, Swap
from dask_belief.parameter_server.ranges import BLOCK, shard_ranges
from dask_belief.sandblaster.round import Round
from dask_belief.sandblaster.steps import SLOPE, OrthantWise, Smooth, Steps, combine_direction
from dask_belief.seeds import stream
from tests.optim.minimise import pseudo_gradient
from tests.parameter_server.local_actors import LocalActors, deploy

SEED = 67
N = 2 * BLOCK + 9
L1 = 0.4
PENALISED = np.arange(N) % 3 > 0
WEIGHTS = L1 * PENALISED


def vector(name: str) -> np.ndarray:
    """Numbers of either sign; a quarter of a point is zero, as it is with an L1 penalty."""
    numbers = stream(SEED, name).standard_normal(N)
    if name in ("x", "trial"):
        numbers[::4] = 0.0
    return numbers


class Shards:
    """Three shards with named vectors, and what a round needs of a deployment."""

    def __init__(self, actors: LocalActors, *names: str) -> None:
        self._caller = actors.caller
        self._server = deploy(actors, shard_ranges(N, 3), dtype="float64", penalised=PENALISED)
        for name in names:
            self._caller.run(self._server.write(name, vector(name)))

    def execute(self, *commands: Command) -> list[list[float]]:
        return self._caller.run(self._server.execute(*commands))

    def __getitem__(self, name: str) -> np.ndarray:
        into = np.empty(N)
        self._caller.run(self._server.read(name, into))
        return into


@pytest.fixture
def actors() -> Iterator[LocalActors]:
    with LocalActors() as carrier:
        yield carrier


def smooth(**options: Any) -> Smooth:
    return Smooth(StrongWolfe(**options))


def orthant_wise() -> OrthantWise:
    return OrthantWise(ProjectedSearch(), L1)


def send(to_shards: Round, shards: Any) -> dict[str, list[float]]:
    return to_shards.send(shards)


@pytest.mark.parametrize("steps", [smooth(), orthant_wise()], ids=["smooth", "orthant-wise"])
def test_names_of_the_steepest_vectors_are_those_that_are_exchanged(steps: Steps) -> None:
    """When a trial is accepted: the point, its gradient, and what is steepest there."""
    to_shards = Round()
    steps.accept(to_shards)
    swapped = {(command.left, command.right) for command in to_shards._commands if isinstance(command, Swap)}
    assert swapped == {("x", "trial"), ("g", "trial_g"), (steps.steepest, steps.trial_steepest)}
    assert len(swapped) == len(to_shards._commands)


# Along a line.


def test_direction_is_combined_and_its_slope_asked_for(actors: LocalActors) -> None:
    """Of gradient and pairs, as the rule has it."""
    shards, to_shards = Shards(actors, "g", "s0", "y0"), Round()
    smooth().aim(to_shards, Direction({"g": -1.5, "s0": 0.5, "y0": -0.25}))
    [slope] = send(to_shards, shards)[SLOPE]
    expected = -1.5 * vector("g") + 0.5 * vector("s0") - 0.25 * vector("y0")
    np.testing.assert_allclose(shards["d"], expected, rtol=1e-12, atol=1e-14)
    assert slope == pytest.approx(math.fsum(expected * vector("g")), rel=1e-12)


def test_scaled_terms_are_multiplied_by_the_diagonal(actors: LocalActors) -> None:
    """Element by element, and the plain terms are not."""
    shards, to_shards = Shards(actors, "g", "s0", "y0", "h0"), Round()
    combine_direction(to_shards, Direction({"s0": 0.5}, {"g": -1.5, "y0": -0.25}), "g")
    send(to_shards, shards)
    expected = 0.5 * vector("s0") + vector("h0") * (-1.5 * vector("g") - 0.25 * vector("y0"))
    np.testing.assert_allclose(shards["d"], expected, rtol=1e-12, atol=1e-14)


def test_direction_of_scaled_terms_alone(actors: LocalActors) -> None:
    """As the first one of a run with a diagonal: minus the gradient, scaled."""
    shards, to_shards = Shards(actors, "g", "h0"), Round()
    smooth().aim(to_shards, Direction({}, {"g": -1.0}))
    [slope] = send(to_shards, shards)[SLOPE]
    np.testing.assert_array_equal(shards["d"], -vector("g") * vector("h0"))
    assert slope == pytest.approx(-math.fsum(vector("g") ** 2 * vector("h0")), rel=1e-12)


def test_line_is_walked(actors: LocalActors) -> None:
    """The trial lies on it, and is told with its slope."""
    shards, to_shards = Shards(actors, "x", "d", "trial_g"), Round()
    steps = smooth()
    steps.at_start(to_shards)
    assert to_shards.is_empty
    steps.move(to_shards, 0.75)
    steps.measure(to_shards)
    [slope] = send(to_shards, shards)[SLOPE]
    np.testing.assert_allclose(shards["trial"], vector("x") + 0.75 * vector("d"), rtol=1e-14)
    assert slope == pytest.approx(math.fsum(vector("trial_g") * vector("d")), rel=1e-12)


def test_search_along_a_line_has_the_options() -> None:
    """The strong Wolfe search, from the step that is proposed but no more than the largest."""
    steps = smooth(c2=0.3, max_step=5.0)
    search = steps.search(2.0, -1.0, steps.first_step(7.0))
    assert isinstance(search, LineSearch)
    assert (search.options.c2, search.step, search.best_value) == (0.3, 5.0, 2.0)
    assert steps.first_step(0.5) == 0.5


# Within an orthant.


def test_pseudo_gradient_is_made_at_the_start(actors: LocalActors) -> None:
    """Of the first point's gradient."""
    shards, to_shards = Shards(actors, "x", "g"), Round()
    orthant_wise().at_start(to_shards)
    send(to_shards, shards)
    np.testing.assert_allclose(shards["v"], pseudo_gradient(vector("x"), vector("g"), WEIGHTS), rtol=1e-15)


def test_direction_goes_by_the_pseudo_gradient_and_down_along_it(actors: LocalActors) -> None:
    """Where the rule says gradient, it stands for it; pairs are as they are; from a zero, what goes up is left out."""
    shards, to_shards = Shards(actors, "x", "g", "s0", "y0"), Round()
    steps = orthant_wise()
    steps.at_start(to_shards)
    steps.aim(to_shards, Direction({"g": -1.0, "s0": 2.0, "y0": 0.5}))
    [slope] = send(to_shards, shards)[SLOPE]
    v = pseudo_gradient(vector("x"), vector("g"), WEIGHTS)
    d = -v + 2.0 * vector("s0") + 0.5 * vector("y0")
    at_zero = PENALISED & (vector("x") == 0)
    aligned = np.where(at_zero & (d * v >= 0), 0.0, d)
    np.testing.assert_allclose(shards["d"], aligned, rtol=1e-12, atol=1e-14)
    assert 0 < np.count_nonzero(aligned == 0) < at_zero.sum()
    assert slope == pytest.approx(math.fsum(aligned * v), rel=1e-12)


def test_scaled_terms_go_by_the_pseudo_gradient_too(actors: LocalActors) -> None:
    """A run may have both a diagonal and an L1 penalty."""
    shards, to_shards = Shards(actors, "x", "g", "h0"), Round()
    steps = orthant_wise()
    steps.at_start(to_shards)
    combine_direction(to_shards, Direction({}, {"g": -1.0}), steps.steepest)
    send(to_shards, shards)
    np.testing.assert_array_equal(shards["d"], -shards["v"] * vector("h0"))


def test_trial_stays_within_the_orthant(actors: LocalActors) -> None:
    """And the search is told what the move to it promised, which is less than the step along the line would."""
    shards, to_shards = Shards(actors, "x", "g", "trial_g"), Round()
    steps = orthant_wise()
    steps.at_start(to_shards)
    steps.aim(to_shards, Direction({"g": -1.0}))
    steps.move(to_shards, 0.5)
    steps.measure(to_shards)
    round_answers = send(to_shards, shards)
    x, v = vector("x"), pseudo_gradient(vector("x"), vector("g"), WEIGHTS)
    trial = x - 0.5 * v
    leaves = PENALISED & (np.sign(trial) != np.where(x == 0, -np.sign(v), np.sign(x)))
    trial[leaves] = 0.0
    np.testing.assert_allclose(shards["trial"], trial, rtol=1e-12, atol=1e-14)
    assert np.count_nonzero(leaves & (x != 0)) > 0
    np.testing.assert_allclose(
        shards["trial_v"], pseudo_gradient(shards["trial"], vector("trial_g"), WEIGHTS), rtol=1e-14
    )
    [promised] = round_answers[SLOPE]
    assert promised == pytest.approx(math.fsum(v * (trial - x)), rel=1e-12)
    assert -0.5 * math.fsum(v * v) < promised < 0


def test_search_within_an_orthant_has_the_options() -> None:
    """Backtracking from the step that the rule proposes."""
    steps = OrthantWise(ProjectedSearch(c1=0.2), L1)
    search = steps.search(2.0, -1.0, steps.first_step(7.0))
    assert isinstance(search, Backtracking)
    assert (search.options.c1, search.step, search.best_value) == (0.2, 7.0, 2.0)
