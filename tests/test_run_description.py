"""What a checkpoint says of a run comes back as it was, or with a word of what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dask_belief as db
from dask_belief.data.zarr_dataset import ZarrDataset
from dask_belief.run_description import DataShape, RunDescription

ROWS = db.ArrayDataset(np.zeros((20, 3), np.float32), np.zeros(20, int), chunk_rows=5)
NETWORK = db.Network([db.Dense(2)], loss="softmax", input_shape=(3,))
METHODS = (
    db.Sandblaster(l1=0.1, max_seconds=3.5, backup_after=None),
    db.Downpour(rule=db.Adam(0.01), staleness=db.MaxStaleness(4), clip_norm=1.5),
)


def described(objective: Any = NETWORK, validation: Any = None, methods: Any = METHODS) -> RunDescription:
    return RunDescription.of(objective, ROWS, validation, methods, 7, "float64", "numpy")


def through_json(description: RunDescription) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(json.dumps(description.to_config(), allow_nan=False))
    return config


def test_a_run_comes_back_from_json() -> None:
    """Objective, methods and rows."""
    description = described(validation=ROWS)
    again = RunDescription.from_config(through_json(description))
    assert again.to_config() == description.to_config() and again.validation == again.dataset
    assert again.objective() == NETWORK
    assert tuple(again.method(number) for number in range(2)) == METHODS


def test_what_cannot_be_described_is_to_be_given_again() -> None:
    """An objective, and a direction, of the user's own."""

    class Own:
        n_parameters = 3

    again = RunDescription.from_config(through_json(described(Own(), methods=[db.Sandblaster(direction=Own)])))
    with pytest.raises(db.ArgumentError, match=r"^objective: .*give it"):
        again.objective()
    with pytest.raises(db.ArgumentError, match=r"^method: .*give the method again"):
        again.method(0)


def test_rows_are_the_same_by_their_shape(tmp_path: Path) -> None:
    """A store is known by its address, arrays are not; other chunks are other rows."""
    db.write_dataset(tmp_path / "rows.zarr", np.zeros((20, 3), np.float32), np.zeros(20, int), chunk_rows=5)
    store = ZarrDataset(tmp_path / "rows.zarr")
    assert DataShape.of(store).address == store.address and DataShape.of(ROWS).address is None
    DataShape.of(ROWS).check(store, "dataset")
    for rows, width, chunk_rows, name in ((21, 3, 5, "n_rows"), (20, 4, 5, "input_shape"), (20, 3, 4, "chunk_rows")):
        other = db.ArrayDataset(np.zeros((rows, width), np.float32), np.zeros(rows, int), chunk_rows=chunk_rows)
        with pytest.raises(db.ArgumentError, match=f"^validation: .*{name}"):
            DataShape.of(ROWS).check(other, "validation")
    for inputs, targets, name in ((np.uint8, int, "input_dtype"), (np.float32, np.uint8, "target_dtype")):
        other = db.ArrayDataset(np.zeros((20, 3), inputs), np.zeros(20, targets), chunk_rows=5)
        with pytest.raises(db.ArgumentError, match=f"^dataset: .*{name}"):
            DataShape.of(ROWS).check(other, "dataset")


@pytest.mark.parametrize("name", list(described().to_config()))
def test_what_is_missing_is_told(name: str) -> None:
    """With a word of what to do."""
    config = through_json(described())
    del config[name]
    with pytest.raises(db.CheckpointError, match=rf"{name}.*resume from the one before"):
        RunDescription.from_config(config)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float16"},
        {"seed": -1},
        {"seed": "x"},
        {"dataset": None},
        {"dataset": {"n_rows": 3}},
        {"methods": [["Sandblaster"]]},
        {"methods": [3]},
        {"network": 3},
        {"n_parameters": []},
        {"validation": []},
    ],
    ids=str,
)
def test_nonsense_is_told(change: dict[str, Any]) -> None:
    """Whatever stands there instead."""
    with pytest.raises(db.CheckpointError, match="resume from the one before"):
        RunDescription.from_config(through_json(described()) | change)


@pytest.mark.parametrize("options", [{"max_iter": -3}, {"no_such": 1}, {"direction": "up"}], ids=str)
def test_methods_that_cannot_be_are_damage(options: dict[str, Any]) -> None:
    """Also those of another kind than there is."""
    config = through_json(described(methods=METHODS[:1]))
    config["methods"][0][1] |= options
    with pytest.raises(db.CheckpointError):
        RunDescription.from_config(config).method(0)
    config["methods"] = [["Bulldozer", {}]]
    with pytest.raises(db.CheckpointError, match="Bulldozer"):
        RunDescription.from_config(config).method(0)
