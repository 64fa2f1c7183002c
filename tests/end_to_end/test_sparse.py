"""Exchanges of what mini-batches touch: the same parameters as by whole exchanges, for far fewer bytes."""

from __future__ import annotations

import numpy as np
import pytest
from distributed import Client

import dask_belief as db
from dask_belief.seeds import stream

from .algorithm_1_1 import by_the_paper  # noqa: TID252
from .timetable import first_then_long  # noqa: TID252

N_ENTRIES = 20_000
BATCH_SIZE = 16


PLAIN = {"n_replicas": 1, "rule": db.SGD(0.5), "batch_size": BATCH_SIZE, "epochs": 2, "lease_rows": 7 * BATCH_SIZE}


class Whole:
    """A network of which nobody is told what its mini-batches touch."""

    def __init__(self, network: db.Network) -> None:
        self.network = network
        self.n_parameters = network.n_parameters
        self.penalised = network.penalised
        self.initial_parameters = network.initial_parameters

    def loss_and_gradient(self, parameters, inputs, targets):
        return self.network.loss_and_gradient(parameters, inputs, targets)


@pytest.fixture(scope="module")
def words() -> db.Network:
    """A table of three parameter blocks below a small layer."""
    return db.Network([db.Embedding(N_ENTRIES, 8), db.Dense(3)], loss="softmax", input_shape=(4,))


@pytest.fixture(scope="module")
def texts() -> db.ArrayDataset:
    """Rows of four ids, of which a few come often; the class follows from the ids.

    A chunk is 7 mini-batches, so that fetches and pushes do not fit leases.
    """
    random = stream(9, "texts")
    ids = (N_ENTRIES * random.random((1120, 4)) ** 4).astype(np.int64)
    leaning = random.normal(size=(N_ENTRIES, 3))
    return db.ArrayDataset(ids.astype(np.float32), leaning[ids].sum(1).argmax(1), chunk_rows=7 * BATCH_SIZE)


def train(client: Client, objective, texts, **options) -> db.TrainingResult:
    return db.train(objective, texts, db.Downpour(**PLAIN | options), client=client, seed=3, progress=False)


EXCHANGES = [
    {},
    {"n_push": 3, "n_shards": 3},
    {"n_fetch": 3, "n_push": 2, "rule": db.Adagrad(0.05)},
    {"n_fetch": 4, "n_push": 4, "n_shards": 3, "staleness": db.MaxStaleness(2)},
    {"n_fetch": 20, "n_push": 20},
]


@pytest.mark.parametrize("options", EXCHANGES, ids=str)
def test_parameters_are_those_of_whole_exchanges(two_workers: Client, words, texts, options) -> None:
    """One replica that waits for its fetches, by a rule that a gradient of zero leaves where it is: the same bits."""
    whole = train(two_workers, Whole(words), texts, fetch_lag=0, **options)
    sparse = train(two_workers, words, texts, fetch_lag=0, **options)
    assert (sparse.parameters == whole.parameters).all()
    assert (sparse.parameters != words.initial_parameters(3)).any()


@pytest.mark.parametrize("lag", first_then_long([1, 3, 2], 2))
@pytest.mark.parametrize("options", EXCHANGES, ids=str)
def test_fetches_that_are_not_waited_for_bring_what_is_needed(two_workers, words, texts, options, lag: int) -> None:
    """One replica: Algorithm 1.1 on whole vectors, in which no fetch outlives its lease."""
    lag = min(lag, options.get("n_fetch", 1))
    method = db.Downpour(**PLAIN | options | {"fetch_lag": lag})
    result = train(two_workers, words, texts, fetch_lag=lag, **options)
    expected = by_the_paper(words, texts, method, 3, "float32", is_sparse=True)
    np.testing.assert_allclose(result.parameters, expected, rtol=1e-4, atol=1e-5)


def traffic(result: db.TrainingResult) -> tuple[int, int]:
    last = result.history.rows("DownpourProgressed")[-1]
    return last["pushed_bytes"], last["fetched_bytes"]


def test_far_fewer_bytes_travel(two_workers: Client, words, texts) -> None:
    """A mini-batch of 16 rows of 4 ids touches 64 entries at most; the dense layer is touched always."""
    whole = train(two_workers, Whole(words), texts)
    sparse = train(two_workers, words, texts)
    most = BATCH_SIZE * 4 * 8 + 8 * 4 * 3 + 3
    last = sparse.history.rows("DownpourProgressed")[-1]
    pushed, fetched = traffic(sparse)
    assert 0 < pushed <= last["n_pushes"] * most * 4
    # The first fetch of a lease covers two mini-batches.
    n_fetches = sum(replica["n_fetches"] for replica in sparse.history.replicas())
    assert 0 < fetched <= (n_fetches + 20) * most * 4
    assert all(100 * few < many for few, many in zip((pushed, fetched), traffic(whole), strict=True))
    [shard] = sparse.history.shards()
    assert pushed <= shard["received_bytes"] <= pushed + 2 * most * 4


@pytest.mark.parametrize(
    "options", [{"l2": 1e-4}, {"staleness": db.Synchronous()}, {"staleness": db.ElasticAveraging(0.9)}]
)
def test_what_draws_on_all_parameters_exchanges_all(two_workers: Client, words, texts, options) -> None:
    """With a penalty, and where replicas exchange all of theirs, every message is whole."""
    result = train(two_workers, words, texts, n_replicas=2, epochs=1, **options)
    last = result.history.rows("DownpourProgressed")[-1]
    assert traffic(result)[0] == last["n_pushes"] * words.n_parameters * 4


@pytest.mark.parametrize("rule", [db.Adagrad(0.1), db.Adam(0.01), db.Momentum(0.02, 0.8)], ids=lambda rule: rule.name)
def test_several_replicas_learn_from_texts(two_workers: Client, words, texts, rule) -> None:
    """With three replicas and shards, clipping and decay; rules with a memory let it rest where nothing was touched."""
    options = {"n_replicas": 3, "n_shards": 3, "epochs": 5, "n_push": 2, "clip_norm": 5.0, "weight_decay": 1e-3}
    result = train(two_workers, words, texts, rule=rule, **options)
    assert result.loss < 0.97 * np.log(3)
    assert result.passes == 5.0
