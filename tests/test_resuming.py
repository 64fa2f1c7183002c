"""Which options of a method may be others when a run is resumed, and which must stay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import dask_belief as db
from dask_belief.data.dataset import ArrayDataset
from dask_belief.errors import ArgumentError, CheckpointError
from dask_belief.resuming import methods_for
from dask_belief.run_description import Method, RunDescription
from tests.end_to_end.conftest import blobs

BATCH = db.Sandblaster(max_iter=5, l2=1e-3)
STOCHASTIC = db.Downpour(batch_size=20, n_push=2)


def description(*methods: Method) -> RunDescription:
    network = db.Network([db.Dense(2)], loss="softmax", input_shape=(5,))
    return RunDescription.of(network, ArrayDataset(*blobs(40, seed=0)), None, methods, 0, "float32", "numpy")


@pytest.mark.parametrize(
    ("had", "given"),
    [
        (BATCH, {"max_iter": 50, "n_shards": 3, "gtol": 1e-8, "c1": 1e-3, "cache_bytes": 0}),
        (STOCHASTIC, {"epochs": 50, "n_shards": 3, "n_replicas": 7, "shard_copies": 1, "n_fetch": 4}),
        (STOCHASTIC, {"rule": db.Adagrad(0.5), "staleness": None}),
    ],
)
def test_some_options_may_be_others(had: Method, given: dict[str, Any]) -> None:
    """How far, how exactly, and on how much of a cluster."""
    chosen = replace(had, **given)
    assert methods_for(chosen, description(had), 0) == (chosen,)
    assert methods_for(None, description(had), 0) == (had,)


@pytest.mark.parametrize(
    ("had", "given"),
    [
        (BATCH, {"l2": 1e-2}),
        (BATCH, {"l1": 1e-2}),
        (BATCH, {"direction": "conjugate_gradient"}),
        (BATCH, {"first_hessian": "scaled"}),
        (BATCH, {"damping": True}),
        (STOCHASTIC, {"l2": 1e-2}),
        (STOCHASTIC, {"batch_size": 10}),
        (STOCHASTIC, {"n_push": 1}),
        (STOCHASTIC, {"rule": db.Adam(0.001)}),
        (STOCHASTIC, {"staleness": db.MaxStaleness(2)}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else type(value).__name__,
)
def test_what_the_state_is_of_must_stay(had: Method, given: dict[str, Any]) -> None:
    """Other values are refused by their name: the state would mean something else."""
    [name] = given
    with pytest.raises(ArgumentError, match=f"^{name}: the run that is resumed has"):
        methods_for(replace(had, **given), description(had), 0)


def test_an_option_that_is_missing_is_damage() -> None:
    """A description without the mini-batch's size cannot be compared."""
    known = description(STOCHASTIC)
    options = {name: value for name, value in known.methods[0][1].items() if name != "batch_size"}
    with pytest.raises(CheckpointError, match="does not say what batch_size was"):
        methods_for(STOCHASTIC, replace(known, methods=(("Downpour", options),)), 0)


@pytest.mark.parametrize("n_run", [-1, 1, 7])
def test_a_method_that_is_none_is_damage(n_run: int) -> None:
    """The number of methods that have run must leave one to go on with."""
    with pytest.raises(CheckpointError, match="it is damaged"):
        methods_for(None, description(BATCH), n_run)


def test_another_kind_of_method_is_refused() -> None:
    """It says which one was broken off."""
    with pytest.raises(ArgumentError, match="broken off in a Sandblaster, got a Downpour"):
        methods_for(STOCHASTIC, description(BATCH), 0)
