"""Checkpoints of a run that never was, small, and known to the bit."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from dask_belief.checkpoint import CheckpointStore, Loaded, Part, SavedState
from dask_belief.seeds import stream

N_PARAMETERS = 90
BORDERS = (0, 40, 64, N_PARAMETERS)
DESCRIPTION = {"method": "Sandblaster", "seed": 3, "l2": 1e-3, "widths": [5, 4]}
SHARED = "s@1"


def vector(name: str, seed: int = 0) -> np.ndarray:
    """The values that a run of this seed saves under a name."""
    return stream(seed, name).normal(size=N_PARAMETERS).astype(np.float64 if name.startswith("g") else np.float32)


def names_of(number: int) -> list[str]:
    """The vectors that checkpoint `number` names; the first one's pair is shared by all."""
    return [f"x@{number}", f"g@{number}", f"state:sums@{number}", SHARED]


def state_of(number: int, seed: int = 0) -> dict[str, Any]:
    return {"iteration": number, "loss": 0.1 + seed + 1 / (number + 1), "marks": [[0, 1], [number, 2]], "name": "ö"}


def history_of(number: int, seed: int = 0) -> list[dict[str, Any]]:
    return [{"event": "iteration", "number": each, "loss": seed + 1 / (each + 1)} for each in range(number % 20)]


def write_vector(store: CheckpointStore, name: str, seed: int = 0) -> tuple[Part, ...]:
    values = vector(name, seed)
    return tuple(store.write_part(name, start, values[start:stop]) for start, stop in itertools.pairwise(BORDERS))


def save(store: CheckpointStore, number: int, seed: int = 0) -> SavedState:
    """Write and commit checkpoint `number`."""
    vectors = {name: write_vector(store, name, seed) for name in names_of(number)}
    saved = SavedState(number, vectors, state_of(number, seed))
    store.commit(saved, DESCRIPTION | {"seed": seed}, history_of(number, seed))
    return saved


def check(store: CheckpointStore, loaded: Loaded, seed: int = 0) -> None:
    """Check that what was loaded is what was saved under its number, to the bit; raises what reading raises."""
    found = {name: store.read_vector(loaded, name) for name in loaded.saved.vectors}
    assert sorted(found) == sorted(names_of(loaded.number))
    for name, values in found.items():
        np.testing.assert_array_equal(values, vector(name, seed), strict=True)
    assert loaded.saved.state == state_of(loaded.number, seed)
    assert loaded.saved.number == loaded.number
    assert list(loaded.history) == history_of(loaded.number, seed)
    assert loaded.description == DESCRIPTION | {"seed": seed}
