"""What a run that is resumed takes from its checkpoint, beside the state of its shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_belief.checkpoint import CheckpointStore, Loaded, SavedState
from dask_belief.cluster.asking import from_store
from dask_belief.data.dataset import Dataset, DatasetLike
from dask_belief.data.units import UnitPlan
from dask_belief.door import as_objective, check_data
from dask_belief.downpour.config import Downpour
from dask_belief.downpour.ledger import LedgerState
from dask_belief.errors import ArgumentError, CheckpointError, DaskBeliefError
from dask_belief.model_parallel.plan import Plan
from dask_belief.monitoring.history import History
from dask_belief.objective import Objective
from dask_belief.parameter_server.updates import STATE, VALUES
from dask_belief.run_description import DataShape, RunDescription
from dask_belief.sandblaster.bookmark import Bookmark
from dask_belief.sandblaster.config import Sandblaster
from dask_belief.sandblaster.steps import POINT
from dask_belief.stages import Begun, Method

Vector = NDArray[np.floating]

# What a saved state counts in, or is a state of: with other options it would be of another run.
_LASTING = {
    "Sandblaster": ("l2", "l1", "direction", "first_hessian", "damping"),
    "Downpour": ("l2", "batch_size", "n_push"),
}


def begun_of(store: CheckpointStore, loaded: Loaded) -> Begun:
    """What the methods gave that were through."""

    def read(name: str) -> Vector:
        found = own_vector(store, loaded, name)
        if found is None:
            raise KeyError(name)
        return found

    try:
        return Begun.from_config(loaded.description["begun"], read)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise _damaged(loaded, error) from error


def own_vector(store: CheckpointStore, loaded: Loaded, name: str) -> Vector | None:
    """A vector that belongs to the state without being on the shards; None where there is none of that name."""
    try:
        at = loaded.saved.state["own"].get(name)
    except (KeyError, AttributeError) as error:
        raise _damaged(loaded, error) from error
    return None if at is None else read_in_time(store, loaded, at)


def seconds_of(loaded: Loaded) -> float:
    """How long the method that was broken off had run."""
    try:
        return float(loaded.saved.state["seconds"])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(loaded, error) from error


def read_in_time(store: CheckpointStore, loaded: Loaded, name: str) -> Vector:
    """Read a vector of a checkpoint; raises `CheckpointError` for one that is damaged, or does not come in time."""
    vector: Vector = from_store(store.path, f"reading {name} from", lambda: store.read_vector(loaded, name))
    return vector


def objective_for(given: Objective | Plan | None, description: RunDescription) -> Objective:
    """Give the objective of a run, the one that is given where there is one."""
    objective = as_objective(description.objective() if given is None else given)
    if objective.n_parameters != description.n_parameters:
        raise ArgumentError(
            f"objective: has {objective.n_parameters} parameters, the checkpoint is of {description.n_parameters}."
        )
    return objective


def data_for(
    objective: Objective, given: DatasetLike | None, shape: DataShape, argument: str, description: RunDescription
) -> Dataset:
    """Open the rows of a run, those that are given where there are any, and check that they are the same."""
    if given is None and shape.address is None:
        raise ArgumentError(f"{argument}: the checkpoint is of rows that cannot be opened by name; give them.")
    data = check_data(objective, shape.address if given is None else given, argument, np.dtype(description.dtype))  # type: ignore[arg-type]
    shape.check(data, argument)
    return data


def validation_for(objective: Objective, given: DatasetLike | None, description: RunDescription) -> Dataset | None:
    """Give the validation set of a run; None where it had none."""
    shape = description.validation
    if shape is None:
        if given is not None:
            raise ArgumentError("validation: the run had none, and has chosen no point by one; leave it out.")
        return None
    return data_for(objective, given, shape, "validation", description)


def methods_for(given: Method | Sequence[Method] | None, description: RunDescription, n_run: int) -> tuple[Method, ...]:
    """All methods of the run, the one that was broken off, or all, with other options where they are given."""
    kinds = [kind for kind, _ in description.methods]
    if not 0 <= n_run < len(kinds):
        raise CheckpointError(f"checkpoint: it says that {n_run} of {len(kinds)} methods have run; it is damaged.")
    if isinstance(given, list | tuple):
        found = [type(each).__name__ for each in given]
        if found != kinds:
            raise ArgumentError(f"method: the run is of {', '.join(kinds)}, got {', '.join(found) or 'an empty list'}.")
        methods = tuple(given)
    elif given is not None and type(given).__name__ != kinds[n_run]:
        raise ArgumentError(f"method: the run was broken off in a {kinds[n_run]}, got a {type(given).__name__}.")
    else:
        methods = tuple(
            given if given is not None and number == n_run else description.method(number)
            for number in range(len(kinds))
        )
    _check_same(methods[n_run], description.methods[n_run][1])
    for method in methods[n_run:]:
        if isinstance(method, Sandblaster):
            method.check_saves()
    return methods


def _check_same(method: Method, options: Mapping[str, Any]) -> None:
    """Refuse other options than the run had where its state would mean something else with them."""
    found = method.to_config()
    for name in _LASTING[type(method).__name__]:
        if name not in options:
            raise CheckpointError(f"checkpoint: it does not say what {name} was; it is damaged.")
        if found[name] != options[name]:
            raise ArgumentError(f"{name}: the run that is resumed has {options[name]!r}, got {found[name]!r}.")
    if isinstance(method, Downpour):
        for name, kind in (("rule", "rule"), ("staleness", "name")):
            was, now = (each[name].get(kind) if each.get(name) else None for each in (options, found))
            if was != now:
                raise ArgumentError(f"{name}: the run that is resumed has {was}, got {now}.")


def check_state(loaded: Loaded, method: Method, description: RunDescription) -> None:
    """Refuse a state that shards and driver could not take up, before any work starts."""
    state, vectors = loaded.saved.state, loaded.saved.vectors
    try:
        plan = UnitPlan.from_config(state["plan"])
        _require(plan.n_rows == description.dataset.n_rows, f"a plan of {plan.n_rows} rows")
        own = dict(state["own"])
        _require(set(own.values()) <= vectors.keys(), "vectors of its own that are not there")
        if isinstance(method, Sandblaster):
            on_shards = dict(state["vectors"])
            _require(set(on_shards.values()) <= vectors.keys(), "vectors of shards that are not there")
            needed = Bookmark.from_state(state, method.direction_rule).vectors(POINT)
            _require(needed.keys() <= on_shards.keys(), "fewer vectors than the next direction is made of")
        else:
            _check_updates(loaded.saved)
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _damaged(loaded, error) from error


def _check_updates(saved: SavedState) -> None:
    """Refuse what the shards of a Downpour run could not take up; raises whatever it stumbles on."""
    state, vectors = saved.state, saved.vectors
    ledger = LedgerState.from_config(state["ledger"])
    epoch = ledger.book.finished.epoch
    _require(epoch >= 0, f"an epoch {epoch}")
    notes = {int(start): note for start, note in state["notes"].items()}
    [values] = [name for name in vectors if name.startswith(f"{VALUES}@")]
    number = values.rpartition("@")[2]
    for part in vectors[values]:
        note = notes[part.start]
        marks = [tuple(map(int, mark)) for mark in note["marks"]]
        counts = tuple(int(note[name]) for name in ("n_updates", "n_rounds", "n_lost"))
        _require(all(len(mark) == 3 for mark in marks) and min(counts) >= 0, "marks or counts that are none")
        _require(isinstance(note["state"], list), "no list of a rule's vectors")
        for name in note["state"]:
            starts = [other.start for other in vectors[f"{STATE}{name}@{number}"]]
            _require(part.start in starts, f"no {name} of the values at {part.start}")


def _require(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise ValueError(f"it has {otherwise}")


def history_of(loaded: Loaded) -> History:
    """Give the events until then."""
    try:
        return History.from_config(loaded.history)
    except (DaskBeliefError, KeyError, TypeError, ValueError) as error:
        raise _damaged(loaded, error) from error


def point_of(store: CheckpointStore, loaded: Loaded, description: RunDescription) -> Vector:
    """The parameters of the saved state."""
    saved = loaded.saved
    try:
        named: Any = saved.state["vectors"]
        name = named[POINT] if named else next(name for name in saved.vectors if name.startswith(f"{VALUES}@"))
        vector = read_in_time(store, loaded, name)
    except (KeyError, TypeError, StopIteration) as error:
        raise _damaged(loaded, error) from error
    if vector.shape != (description.n_parameters,):
        raise _damaged(loaded, ValueError(f"{name} has {vector.size} values, not {description.n_parameters}"))
    return np.array(vector, description.dtype)


def _damaged(loaded: Loaded, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"checkpoint: state {loaded.number} cannot be gone on from: {error!r}. It is damaged; resume from the one "
        "before, by number=."
    )
