"""What a run gives back: predictions, and a store that is read back exactly."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from dask_belief.errors import ArgumentError, DataError, MissingStoreError
from dask_belief.models.layers.dense import Dense
from dask_belief.models.network import Network
from dask_belief.monitoring.events import DownpourProgressed, IterationEnded, Stopped, Validated
from dask_belief.monitoring.history import History
from dask_belief.optim.stopping import Stop, StopReason
from dask_belief.result import FORMAT, TrainingResult, load_result
from dask_belief.seeds import stream
from tests.monitoring.test_events import EVENTS, REPLICAS

SEED = 53
STOP = Stop(StopReason.GRADIENT_SMALL, {"gradient_norm": 1e-6, "gtol": 1e-5})


def network() -> Network:
    return Network([Dense(4, "tanh"), Dense(3)], loss="softmax", input_shape=(5,))


def result_of(objective: Any = None, dtype: str = "float32", **changes: Any) -> TrainingResult:
    history = History(
        [
            IterationEnded(
                1,
                2,
                loss=0.5,
                gradient_norm=0.1,
                step=1.0,
                seconds=0.1,
                passes=2.0,
                curvature=0.3,
                decrease_ratio=0.4,
                slope_ratio=0.2,
                fetched_bytes=100,
            ),
            Validated(loss=0.6, metrics={"accuracy": 0.8}, passes=2.0, seconds=0.2),
            Stopped(STOP, 0.3, 2.0),
        ]
    )
    options: dict[str, Any] = {
        "parameters": network().initial_parameters(SEED, np.dtype(dtype)),
        "loss": 0.25,
        "validation": {"loss": 0.6, "accuracy": 0.8},
        "stop": STOP,
        "history": history,
        "method": "Sandblaster L-BFGS",
        "seconds": 1.5,
        "passes": 12.0,
        "repeatable": True,
        "objective": network() if objective is None else objective,
    }
    return TrainingResult(**{**options, **changes})


class NoNetwork:
    """An objective that neither predicts nor can be described."""

    n_parameters = 39


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_saved_result_is_read_back(tmp_path: Path, dtype: str) -> None:
    """Every field, the parameters to the bit, the network so that it predicts the same."""
    result = result_of(dtype=dtype)
    result.save(tmp_path / "model.zarr")
    loaded = load_result(tmp_path / "model.zarr")
    assert loaded.parameters.dtype == dtype
    np.testing.assert_array_equal(loaded.parameters, result.parameters)
    for name in ("loss", "validation", "stop", "method", "seconds", "passes", "repeatable"):
        assert getattr(loaded, name) == getattr(result, name), name
    assert loaded.history.events == result.history.events
    inputs = stream(SEED, "rows").standard_normal((6, 5)).astype(dtype)
    np.testing.assert_array_equal(loaded.predict(inputs), result.predict(inputs))


def test_downpours_history_is_read_back(tmp_path: Path) -> None:
    """With what replicas and shards have done, and how stale pushes were."""
    history = History(EVENTS)
    assert any(isinstance(event, DownpourProgressed) and event.replicas for event in history)
    result_of(history=history).save(tmp_path / "model.zarr")
    loaded = load_result(tmp_path / "model.zarr").history
    assert loaded.events == history.events
    assert loaded.staleness() == history.staleness() != {}
    assert (len(loaded.replicas()), len(loaded.shards())) == (len(REPLICAS), 2)


def test_state_of_the_rule_is_read_back(tmp_path: Path) -> None:
    """To the bit, by its names; a result without it comes back without."""
    state = {"accumulator": stream(SEED, "sums").uniform(size=7).astype(np.float32), "velocity": np.arange(7.0)}
    result_of(rule_state=state).save(tmp_path / "model.zarr")
    loaded = load_result(tmp_path / "model.zarr").rule_state
    assert loaded.keys() == state.keys()
    for name, vector in state.items():
        np.testing.assert_array_equal(loaded[name], vector)
        assert loaded[name].dtype == vector.dtype
    result_of().save(tmp_path / "model.zarr")
    assert load_result(tmp_path / "model.zarr").rule_state == {}


def test_result_that_was_saved_before_rules_kept_a_state_is_read(tmp_path: Path) -> None:
    """Its description does not name any."""
    result_of().save(tmp_path / "model.zarr")
    group = zarr.open_group(str(tmp_path / "model.zarr"), mode="a")
    kept: Any = group.attrs["dask_belief_result"]
    group.attrs["dask_belief_result"] = {name: value for name, value in kept.items() if name != "rule_state"}
    assert load_result(tmp_path / "model.zarr").rule_state == {}


def test_path_may_be_a_string(tmp_path: Path) -> None:
    """In both directions."""
    result_of().save(str(tmp_path / "model.zarr"))
    assert load_result(str(tmp_path / "model.zarr")).loss == 0.25


def test_prediction_is_the_objectives(tmp_path: Path) -> None:
    """At the best parameters."""
    result = result_of()
    inputs = np.ones((2, 5), np.float32)
    np.testing.assert_array_equal(result.predict(inputs), network().predict(result.parameters, inputs))


def test_objective_that_does_not_predict_is_refused() -> None:
    """By an error that says what it would need."""
    with pytest.raises(ArgumentError, match=r"^predict: .* no predict\(parameters, inputs\)"):
        result_of(NoNetwork()).predict(np.ones((2, 5)))


def test_result_of_another_objective_keeps_all_but_the_objective(tmp_path: Path) -> None:
    """Parameters and history are of use without it; predicting says what is missing."""
    result = result_of(NoNetwork())
    result.save(tmp_path / "model.zarr")
    loaded = load_result(tmp_path / "model.zarr")
    assert loaded.objective is None
    np.testing.assert_array_equal(loaded.parameters, result.parameters)
    with pytest.raises(ArgumentError, match=r"^predict: "):
        loaded.predict(np.ones((2, 5)))


def no_constants(name: str) -> float:
    raise AssertionError(f"{name} is no JSON")


def test_store_is_strict_json_whatever_the_numbers(tmp_path: Path) -> None:
    """NaN, as is the loss of a run that was interrupted before its first value, and infinity come back as they were."""
    stop = Stop(StopReason.NOT_FINITE, {"loss": math.inf})
    result = result_of(loss=math.nan, validation={"loss": math.inf}, stop=stop)
    result.save(tmp_path / "model.zarr")
    loaded = load_result(tmp_path / "model.zarr")
    assert math.isnan(loaded.loss)
    assert loaded.validation == {"loss": math.inf}
    assert loaded.stop == stop
    for path in tmp_path.rglob("zarr.json"):
        json.loads(path.read_text(), parse_constant=no_constants)


def test_result_may_be_saved_again(tmp_path: Path) -> None:
    """Over an older one, of which nothing is left."""
    result_of(dtype="float64").save(tmp_path / "model.zarr")
    result_of(NoNetwork(), parameters=np.zeros(3, np.float32)).save(tmp_path / "model.zarr")
    loaded = load_result(tmp_path / "model.zarr")
    assert loaded.parameters.tolist() == [0, 0, 0]
    assert loaded.objective is None


def test_missing_store_is_an_error(tmp_path: Path) -> None:
    """The message names the path."""
    with pytest.raises(MissingStoreError, match=r"nowhere.*holds no saved result"):
        load_result(tmp_path / "nowhere.zarr")


def as_array(path: Path) -> None:
    zarr.create_array(str(path), shape=(3,), dtype="f4")


def as_other_group(path: Path) -> None:
    zarr.open_group(str(path), mode="w").attrs["other"] = 1


def as_broken_off(path: Path) -> None:
    zarr.open_group(str(path), mode="w").attrs["dask_belief_result"] = {"format": FORMAT}


def as_empty_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [as_array, as_other_group, as_broken_off, as_empty_folder])
def test_what_is_no_result_is_an_error(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """An array, another's group, one without parameters, an empty folder."""
    make(tmp_path / "other.zarr")
    with pytest.raises(MissingStoreError, match="holds no saved result"):
        load_result(tmp_path / "other.zarr")


def test_newer_format_is_refused(tmp_path: Path) -> None:
    """With both numbers, and what to do."""
    result_of().save(tmp_path / "model.zarr")
    group = zarr.open_group(str(tmp_path / "model.zarr"), mode="a")
    kept: Any = group.attrs["dask_belief_result"]
    group.attrs["dask_belief_result"] = {**kept, "format": FORMAT + 1}
    with pytest.raises(DataError, match=f"has format {FORMAT + 1}, this version knows up to {FORMAT}"):
        load_result(tmp_path / "model.zarr")


def test_save_does_not_destroy_a_data_set(tmp_path: Path) -> None:
    """A path that holds something else than a result, such as the training rows, is refused and stays as it is."""
    path = tmp_path / "train.zarr"
    group = zarr.open_group(str(path), mode="w")
    inputs = group.create_array("inputs", data=np.arange(6.0))
    with pytest.raises((ArgumentError, DataError)):
        result_of().save(path)
    np.testing.assert_array_equal(np.asarray(inputs[:]), np.arange(6.0))
