"""A network over several workers is trained by both methods as if it were in one piece."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from distributed import Client

import dask_belief as db
from dask_belief.monitoring.events import Event, IterationEnded
from dask_belief.seeds import stream
from tests.end_to_end.conftest import threaded
from tests.faults.clusters import assert_clean

TOLERANCES = {"float32": 2e-4, "float64": 1e-9}


@pytest.fixture(scope="module")
def four_workers() -> Iterator[Client]:
    """A cluster of four workers."""
    with threaded(4) as client:
        yield client


def rows() -> tuple[np.ndarray, np.ndarray]:
    """Rows that a few units can tell apart."""
    random = stream(0, "in pieces")
    inputs = random.normal(size=(600, 12))
    return inputs, (inputs[:, :3].sum(axis=1) > 0).astype(np.int64) + (inputs[:, 4] > 0)


@pytest.fixture(scope="module")
def data() -> db.ArrayDataset:
    """These rows, in chunks."""
    return db.ArrayDataset(*rows(), chunk_rows=100)


def network() -> db.Network:
    return db.Network([db.Dense(10, "tanh"), db.Dense(8, "sigmoid"), db.Dense(3)], "softmax", (12,))


def sandblaster(**options: Any) -> db.Sandblaster:
    return db.Sandblaster(**{"max_iter": 6, "l2": 1e-3, "gtol": 0.0, "ftol": 0.0, "unit_rows": 100, **options})


def downpour(**options: Any) -> db.Downpour:
    return db.Downpour(
        **{
            "n_replicas": 1,
            "n_shards": 2,
            "rule": db.Adagrad(0.05),
            "batch_size": 20,
            "epochs": 2,
            "l2": 1e-3,
            **options,
        }
    )


def trained(client: Client, objective: Any, data: db.ArrayDataset, method: Any, **options: Any) -> db.TrainingResult:
    result = db.train(objective, data, method, client=client, progress=False, **options)
    assert_clean(client)
    return result


@pytest.mark.parametrize(
    ("by", "pieces", "dtype"),
    [
        ("units", 2, "float32"),
        pytest.param("units", 4, "float64", marks=pytest.mark.long),
        pytest.param("layers", 3, "float32", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("make", [sandblaster, downpour])
def test_pieces_find_what_the_whole_finds(
    four_workers: Client, data: db.ArrayDataset, make: Any, by: str, pieces: int, dtype: str
) -> None:
    """To rounding; what comes back is the network itself, with parameters in its own order."""
    plan, method = db.partition(network(), pieces, by), make()
    whole = trained(four_workers, network(), data, method, dtype=dtype)
    result = trained(four_workers, plan, data, method, dtype=dtype)
    scale = np.abs(whole.parameters).max()
    assert np.abs(result.parameters - whole.parameters).max() <= TOLERANCES[dtype] * scale
    assert result.loss == pytest.approx(whole.loss, rel=TOLERANCES[dtype])
    assert result.objective == network() and result.parameters.shape == (network().n_parameters,)
    inputs, _ = rows()
    assert np.allclose(result.predict(inputs[:5]), whole.predict(inputs[:5]), atol=1e-3)


@pytest.mark.long
def test_bits_do_not_depend_on_shards(four_workers: Client, data: db.ArrayDataset) -> None:
    """Nor on how often it is tried; pieces are what they are."""
    plan = db.partition(network(), 2, "units")
    first, *others = (trained(four_workers, plan, data, sandblaster(n_shards=n_shards)) for n_shards in (1, 2, 4))
    for result in others:
        assert result.parameters.tobytes() == first.parameters.tobytes()
        assert result.history["loss"] == first.history["loss"]


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [{}, {"n_fetch": 3, "n_push": 2}, {"fetch_lag": 0}, {"shard_copies": 1}, {"wire_dtype": "bfloat16"}],
    ids=str,
)
def test_one_replica_gives_the_same_bits_again(four_workers: Client, data: db.ArrayDataset, options: dict) -> None:
    """In pieces as in one."""
    plan = db.partition(network(), 2, "units")
    one, other = (trained(four_workers, plan, data, downpour(**options)) for _ in range(2))
    assert one.parameters.tobytes() == other.parameters.tobytes()


@pytest.mark.long
@pytest.mark.parametrize(
    "staleness", [None, db.MaxStaleness(2), db.ScaleByStaleness(), db.ElasticAveraging(0.5)], ids=repr
)
def test_several_replicas_of_several_pieces(four_workers: Client, data: db.ArrayDataset, staleness: Any) -> None:
    """Both ways of being parallel at once: two replicas of two pieces each."""
    plan = db.partition(network(), 2, "units")
    options = {"n_fetch": 2, "n_push": 2} if isinstance(staleness, db.ElasticAveraging) else {}
    result = trained(
        four_workers, plan, data, downpour(n_replicas=2, staleness=staleness, epochs=4, **options), validation=data
    )
    inputs, targets = rows()
    sums = network().evaluate(network().initial_parameters(0), inputs, targets)
    assert result.passes == 4 and result.validation["loss"] < 0.95 * sums["loss"] / sums["rows"]


@pytest.mark.long
def test_batches_of_several_replicas_in_pieces(four_workers: Client, data: db.ArrayDataset) -> None:
    """The same bits with one replica of two pieces as with two."""
    plan = db.partition(network(), 2, "units")
    result = trained(four_workers, plan, data, sandblaster(), validation=data)
    with threaded(2) as client:
        alone = trained(client, plan, data, sandblaster())
    assert result.parameters.tobytes() == alone.parameters.tobytes()
    assert result.validation["loss"] == pytest.approx(result.history["loss"][-1], rel=0.1)


class BrokenOffError(Exception):
    """What a callback of a user's raises."""


@pytest.mark.long
@pytest.mark.parametrize("make", [sandblaster, downpour])
def test_it_goes_on_from_a_checkpoint(four_workers: Client, data: db.ArrayDataset, tmp_path: Any, make: Any) -> None:
    """Which knows how the network was cut; what is raised carries parameters in the network's own order."""
    plan, path = db.partition(network(), 3, "units"), tmp_path / "run"
    n_events = 0

    def break_off(event: Event) -> None:
        nonlocal n_events
        n_events += type(event).__name__ in ("IterationEnded", "Saved")
        if n_events > 4 and (isinstance(event, IterationEnded) or make is downpour):
            raise BrokenOffError

    options = {} if make is sandblaster else {"epochs": 5}
    with pytest.raises(BrokenOffError) as caught:
        trained(
            four_workers,
            plan,
            data,
            make(**options),
            checkpoint=db.Checkpoint(path, every_seconds=0),
            callbacks=[break_off],
        )
    assert caught.value.kept_parameters.shape == (network().n_parameters,)
    result = db.resume(path, client=four_workers, dataset=data, progress=False)
    assert_clean(four_workers)
    unbroken = trained(four_workers, plan, data, make(**options))
    if make is sandblaster:
        assert result.parameters.tobytes() == unbroken.parameters.tobytes()
    assert result.passes == unbroken.passes and result.objective == network()


@pytest.mark.long
def test_one_method_after_the_other(four_workers: Client, data: db.ArrayDataset) -> None:
    """A beginning in the network's order, Adagrad's sums handed over within the run, a sum's place the same outside."""
    plan = db.partition(network(), 2, "units")
    start = network().initial_parameters(7)
    methods = [downpour(), sandblaster(first_hessian="adagrad")]
    result = trained(four_workers, plan, data, methods, initial=start)
    whole = trained(four_workers, network(), data, methods, initial=start)
    assert result.loss == pytest.approx(whole.loss, rel=1e-3)
    sums = trained(four_workers, plan, data, downpour(), initial=start).rule_state["accumulator"]
    of_whole = trained(four_workers, network(), data, downpour(), initial=start).rule_state["accumulator"]
    assert np.allclose(sums, of_whole, rtol=1e-3)


@pytest.mark.parametrize(
    ("method", "options", "name"),
    [
        (downpour(staleness=db.Synchronous()), {}, "staleness"),
        (downpour(clip_norm=1.0), {}, "clip_norm"),
        (downpour(), {"record": "here.json"}, "record"),
        (downpour(), {"initial": np.zeros(3)}, "initial"),
    ],
)
def test_what_pieces_cannot_do_is_refused(
    four_workers: Client, data: db.ArrayDataset, method: Any, options: dict, name: str
) -> None:
    """By the argument's name."""
    with pytest.raises(db.ArgumentError, match=f"^{name}:"):
        trained(four_workers, db.partition(network(), 2), data, method, **options)


@pytest.mark.long
def test_random_numbers_are_those_of_the_whole(four_workers: Client, data: db.ArrayDataset) -> None:
    """Which nodes a mini-batch does without follows from the mini-batch, in pieces and micro-batches as in one."""
    layers = [db.Dense(10, "tanh"), db.Dropout(0.4), db.Dense(8, "sigmoid"), db.Dropout(0.2), db.Dense(3)]
    drawing = db.Network(layers, "softmax", (12,))
    whole, again, other = (
        trained(four_workers, drawing, data, downpour(), seed=seed, initial=drawing.initial_parameters(0))
        for seed in (0, 0, 1)
    )
    assert again.parameters.tobytes() == whole.parameters.tobytes() != other.parameters.tobytes()
    for by, parts in (("units", 1), ("units", 3), ("layers", 2)):
        plan = db.partition(drawing, 2, by, micro_batches=parts)
        result = trained(four_workers, plan, data, downpour(), initial=drawing.initial_parameters(0))
        assert np.abs(result.parameters - whole.parameters).max() < 1e-4


def test_random_numbers_are_not_for_batches(four_workers: Client, data: db.ArrayDataset) -> None:
    """A line search compares values of one function."""
    drawing = db.Network([db.Dense(4, "tanh"), db.Dropout(0.5), db.Dense(3)], "softmax", (12,))
    for objective in (drawing, db.partition(drawing, 2, "units")):
        with pytest.raises(db.ArgumentError, match=r"^method: Sandblaster goes by one function"):
            trained(four_workers, objective, data, sandblaster())


def test_more_pieces_than_workers_take_turns(data: db.ArrayDataset) -> None:
    """A cluster that has become small does not stop a run."""
    with threaded(1) as client:
        result = trained(client, db.partition(network(), 3, "units"), data, sandblaster())
    assert result.stop.reason is db.StopReason.MAX_ITERATIONS
