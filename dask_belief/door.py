"""The door of a run: every argument is checked before any work starts, and refused by its name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dask_belief.checkpoint import Checkpoint
from dask_belief.checks import check_count
from dask_belief.cluster.limits import Limits
from dask_belief.cluster.limits import limits as limits_in_force
from dask_belief.data.dataset import Dataset, DatasetLike, as_dataset
from dask_belief.downpour.config import Downpour
from dask_belief.downpour.record import check_path
from dask_belief.errors import ArgumentError, DataError
from dask_belief.model_parallel.partitioned import PartitionedNetwork, run_order
from dask_belief.model_parallel.plan import Plan
from dask_belief.model_parallel.team import ranges_of
from dask_belief.objective import Objective, check_objective, draws_of, penalised_of
from dask_belief.optim.rules import ADAGRAD_SUMS
from dask_belief.parameter_server.consistency import Synchronous
from dask_belief.result import TrainingResult, load_result
from dask_belief.run import Vector
from dask_belief.sandblaster.config import Sandblaster
from dask_belief.stages import Method, check_handover

Beginning = NDArray[np.floating] | TrainingResult | None


def as_objective(objective: object) -> Objective:
    """Give what is trained: a plan of a network in pieces is one; raises `ArgumentError` for what cannot be."""
    given = PartitionedNetwork(objective) if isinstance(objective, Plan) else objective
    check_objective(given)
    return given  # type: ignore[return-value]


def check_in_pieces(objective: Objective, methods: Sequence[Method], record: object) -> None:
    """Refuse what a network in pieces cannot be trained with; raises `ArgumentError`."""
    if not isinstance(objective, PartitionedNetwork):
        return
    if record is not None:
        raise ArgumentError("record: a run of a network in pieces is not recorded; leave it out, or train it whole.")
    for method in methods:
        if isinstance(method, Downpour) and isinstance(method.staleness, Synchronous):
            raise ArgumentError(
                "staleness: rounds of Synchronous are closed over all shards at once, and a piece knows its own only. "
                "Train in pieces with another staleness, or whole."
            )
        if isinstance(method, Downpour) and method.clip_norm is not None:
            raise ArgumentError(
                "clip_norm: a piece knows the norm of its own gradient only. Train in pieces without, or whole."
            )


def check_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """Give float32 or float64; raises `ArgumentError` for anything else."""
    try:
        found = np.dtype(dtype)
    except TypeError as error:
        raise ArgumentError(f"dtype: expected 'float32' or 'float64', got {dtype!r}.") from error
    if found not in (np.float32, np.float64):
        raise ArgumentError(f"dtype: expected float32 or float64, got {found}.")
    return found


def check_wire(methods: Sequence[Method], dtype: str) -> None:
    """Refuse a wire format that was made for another dtype; raises `ArgumentError`."""
    for method in methods:
        if isinstance(method, Downpour) and method.wire_dtype is not None and dtype != "float32":
            raise ArgumentError(
                f"wire_dtype: {method.wire_dtype!r} is the upper half of a float32, and dtype is {dtype}: its digits "
                "would be thrown away. Leave wire_dtype= out, or train in float32."
            )


def check_record(record: str | Path | None, methods: Sequence[Method]) -> None:
    """Refuse what cannot be recorded, or a path that is taken; raises `ArgumentError`."""
    if record is None:
        return
    if len(methods) != 1 or not isinstance(methods[0], Downpour):
        raise ArgumentError(
            "record: is of one Downpour run. Sandblaster gives the same bits without; run several methods one by one."
        )
    check_path(Path(record))


def check_limits(limits: object) -> Limits:
    """Give the limits of a run: those in force where it begins, unless others are given."""
    if limits is None:
        return limits_in_force()
    if not isinstance(limits, Limits):
        raise ArgumentError(f"limits: expected Limits(...) or None, got {limits!r}.")
    return limits


def check_checkpoint(
    checkpoint: str | Path | Checkpoint | None, methods: Sequence[Method], record: object
) -> Checkpoint | None:
    """Give the options of a checkpoint, for methods that can be saved; raises `ArgumentError`."""
    if checkpoint is None:
        return None
    if record is not None:
        raise ArgumentError("checkpoint: a recorded run cannot be resumed; leave checkpoint= or record= out.")
    if not isinstance(checkpoint, str | Path | Checkpoint):
        raise ArgumentError(f"checkpoint: expected a path, a URL or a Checkpoint, got {checkpoint!r}.")
    for method in methods:
        if isinstance(method, Sandblaster):
            method.check_saves()
    return checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)


def check_backend(backend: object, objective: Objective) -> str:
    """Give the backend with which an objective is computed; raises `ArgumentError` for one that cannot be.

    An objective that offers no ``on(backend)`` is computed with NumPy: it may know nothing of other arrays. Whether a
    backend can be used is found out on the workers: the client may be on a machine without a GPU, and has no use for
    one.
    """
    if backend not in ("auto", "numpy", "cupy"):
        raise ArgumentError(f"backend: expected 'auto', 'numpy' or 'cupy', got {backend!r}.")
    if hasattr(objective, "on"):
        return str(backend)
    if backend == "cupy":
        raise ArgumentError(
            f"backend: 'cupy' was asked for, and {type(objective).__name__} offers no on(backend), which would give an "
            "objective that computes there. Ask for 'auto', or write that method."
        )
    return "numpy"


def check_listening(progress: object, callbacks: object) -> None:
    """Refuse what nobody can listen with; raises `ArgumentError`."""
    if not isinstance(progress, bool):
        raise ArgumentError(f"progress: expected True or False, got {progress!r}.")
    if not isinstance(callbacks, Iterable):
        raise ArgumentError(f"callbacks: expected functions of one event, got {callbacks!r}.")


def check_methods(method: object, objective: Objective, has_validation: bool) -> tuple[Method, ...]:
    """Give the methods in their order, all of them checked."""
    methods = tuple(method) if isinstance(method, list | tuple) else (method,)
    if not methods:
        raise ArgumentError("method: expected a Sandblaster, a Downpour, or a list of them, got an empty list.")
    check_count("objective.n_parameters", objective.n_parameters)
    penalised_of(objective)
    for number, each in enumerate(methods):
        if not isinstance(each, Method):
            where = f" at place {number} of the list" if isinstance(method, list | tuple) else ""
            raise ArgumentError(f"method: expected a Sandblaster or a Downpour, got {type(each).__name__}{where}.")
        if isinstance(each, Sandblaster) and draws_of(objective):
            raise ArgumentError(
                "method: Sandblaster goes by one function of the parameters, and the objective draws random numbers, "
                "as a network with a Dropout does: its line searches would compare different functions. Use Downpour, "
                "or leave the Dropout out."
            )
        if each.n_shards is not None:
            ranges_of(objective, each.n_shards)
        if isinstance(each, Downpour) and not has_validation:
            for name in ("patience", "validate_every_steps", "validate_every_seconds"):
                if getattr(each, name) is not None:
                    raise ArgumentError(f"{name}: needs validation=, the rows to go by; give them, or leave it out.")
    check_handover(methods)
    return methods


def adagrad_sums_of(method: Method, initial: Beginning, objective: Objective, dtype: np.dtype[Any]) -> Vector | None:
    """The sums that the first method asks for by its `first_hessian`, from the result that the run begins with."""
    if not isinstance(method, Sandblaster) or method.first_hessian != "adagrad":
        return None
    state = initial.rule_state if isinstance(initial, TrainingResult) else {}
    if ADAGRAD_SUMS not in state:
        found = "a result without its sums" if isinstance(initial, TrainingResult) else "no result"
        raise ArgumentError(
            "first_hessian: 'adagrad' needs a Downpour by the rule Adagrad, before this method in a list or as the "
            f"result that is given as initial=; got {found}."
        )
    sums = run_order(objective, np.array(state[ADAGRAD_SUMS], dtype))
    if sums.shape != (objective.n_parameters,) or not (np.isfinite(sums).all() and (sums >= 0).all()):
        raise ArgumentError(
            f"initial: its sums of squared gradients are not {objective.n_parameters} finite numbers of zero or more."
        )
    return sums


def check_data(objective: Objective, given: DatasetLike, argument: str, dtype: np.dtype[Any]) -> Dataset:
    """Refuse rows that do not fit, before any work starts; reads the targets where their range is not on record."""
    data = as_dataset(given)
    data.check()
    check = getattr(objective, "check_data", None)
    if check is None:
        return data
    # What reaches the objective is of the run's dtype, which an objective of the user's need not ask for.
    known = inspect.signature(check).parameters
    options = {"input_dtype": dtype} if "input_dtype" in known else {}
    try:
        check(data.input_shape, data.target_shape, data.target_dtype, data.target_range(), **options)
    except (ArgumentError, DataError) as error:
        raise type(error)(f"{argument}: {error}") from error
    return data


def open_beginning(initial: NDArray[np.floating] | TrainingResult | str | Path | None) -> Beginning:
    """Open the result that a path names; all else is as it was given."""
    if not isinstance(initial, str | Path):
        return initial
    try:
        return load_result(initial)
    except DataError as error:
        raise type(error)(f"initial: {error}") from error


def initial_vector(objective: Objective, initial: Beginning, seed: int, dtype: np.dtype[Any]) -> Vector:
    """Give the parameters at which a run begins; raises `ArgumentError` for what does not fit."""
    given = initial.parameters if isinstance(initial, TrainingResult) else initial
    name = "objective.initial_parameters" if given is None else "initial"
    try:
        vector = np.array(objective.initial_parameters(seed) if given is None else given, dtype)
        if given is not None:
            vector = run_order(objective, vector)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{name}: expected a vector of numbers, got {given!r} ({error}).") from error
    if vector.shape != (objective.n_parameters,):
        raise ArgumentError(f"{name}: expected shape ({objective.n_parameters},), got {vector.shape}.")
    if not np.isfinite(vector).all():
        raise ArgumentError(f"{name}: holds NaN or infinity; begin from finite parameters.")
    return vector
