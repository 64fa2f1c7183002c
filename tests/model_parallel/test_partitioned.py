"""The vector of a run in pieces, and the shards that hold it."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest

from dask_belief.cluster.actors import ActorAddress
from dask_belief.errors import ArgumentError
from dask_belief.model_parallel.own_range import own_directory
from dask_belief.model_parallel.partitioned import PartitionedNetwork, run_order, users_objective, users_order
from dask_belief.model_parallel.plan import partition
from dask_belief.models.layers import Dense
from dask_belief.models.network import Network
from dask_belief.parameter_server.directory import Directory
from dask_belief.parameter_server.ranges import BLOCK
from dask_belief.seeds import stream
from tests.model_parallel.cases import rows_for

NETWORK = Network([Dense(300, "tanh"), Dense(7)], "softmax", (400,))


def partitioned(n_pieces: int = 3, by: str = "units") -> PartitionedNetwork:
    return PartitionedNetwork(partition(NETWORK, n_pieces, by))


def test_vectors_keep_every_number() -> None:
    """There and back; what fills a piece up is zero."""
    vector = stream(0, "vector").normal(size=NETWORK.n_parameters)
    objective = partitioned()
    run = run_order(objective, vector)
    assert run.shape == (objective.n_parameters,) and np.count_nonzero(run) == len(vector)
    assert np.array_equal(users_order(objective, run), vector)
    assert users_objective(objective) is NETWORK
    assert run_order(NETWORK, vector) is vector and users_order(NETWORK, vector) is vector


def test_it_is_the_network_to_those_who_do_not_look() -> None:
    """Loss, gradient, sums, predictions, penalties and first parameters."""
    objective = partitioned()
    start = objective.initial_parameters(3, np.float64)
    assert np.array_equal(users_order(objective, start), NETWORK.initial_parameters(3, np.float64))
    inputs, targets = rows_for(NETWORK, 8, "float64")
    loss, gradient = objective.loss_and_gradient(start, inputs, targets)
    expected, of_network = NETWORK.loss_and_gradient(users_order(objective, start), inputs, targets)
    assert loss == expected and np.array_equal(users_order(objective, gradient), of_network)
    whole = users_order(objective, start)
    assert objective.evaluate(start, inputs, targets) == NETWORK.evaluate(whole, inputs, targets)
    assert np.array_equal(objective.predict(start, inputs), NETWORK.predict(whole, inputs))
    penalised = objective.to_network(objective.penalised.astype(np.float32)) > 0
    assert np.array_equal(penalised, NETWORK.penalised)
    assert objective.penalised.sum() == NETWORK.penalised.sum()


@pytest.mark.parametrize("n_shards", [1, 2, 3, 5, 9])
def test_shards_follow_pieces(n_shards: int) -> None:
    """Each shard is of one piece, and begins where a block of that piece does."""
    objective = partitioned()
    ranges = objective.ranges(n_shards)
    assert ranges[0].start == 0 and ranges[-1].stop == objective.n_parameters
    assert all(before.stop == after.start for before, after in itertools.pairwise(ranges))
    for each in ranges:
        [span] = [span for span in objective.spans if span.start <= each.start and each.stop <= span.stop]
        assert (each.start - span.start) % BLOCK == 0
    with pytest.raises(ArgumentError, match="n_shards"):
        objective.ranges(0)


def test_the_larger_piece_has_more_shards() -> None:
    """Of the shards beyond one a piece."""
    network = Network([Dense(2000, "tanh"), Dense(10)], "softmax", (400,))
    objective = PartitionedNetwork(partition(network, 2, "layers"))
    first, second = (
        sum(span.start <= each.start < span.stop for each in objective.ranges(6)) for span in objective.spans
    )
    assert (first, second) == (5, 1)


def test_a_piece_sees_its_own_shards_only() -> None:
    """As if they were all there are."""
    objective = partitioned()
    ranges = objective.ranges(3)
    shards = tuple(ActorAddress(f"shard {number}", "w", f"k{number}") for number in range(3))
    directory = Directory(4, objective.n_parameters, "float32", shards, ranges, (ranges[1].start,), (None, *shards[1:]))
    own = own_directory(directory, objective.spans[1])
    assert own.shards == shards[1:2] and own.copies == shards[1:2] and own.generation == 4
    assert own.ranges == (range(0, len(objective.spans[1])),) and own.cuts == (0,)
    assert own.n_parameters == len(objective.spans[1])


def test_it_is_described_in_json_and_travels() -> None:
    """With the same cuts."""
    objective = partitioned(2, "layers")
    assert PartitionedNetwork.from_config(objective.to_config()) == objective
    assert pickle.loads(pickle.dumps(objective)) == objective
    with pytest.raises(ArgumentError, match="config"):
        PartitionedNetwork.from_config({**objective.to_config(), "format": 2})


def test_a_beginning_of_another_length_is_refused() -> None:
    """By the argument's name."""
    with pytest.raises(ArgumentError, match="initial"):
        run_order(partitioned(), np.zeros(3))
