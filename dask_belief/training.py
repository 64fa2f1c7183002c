"""One verb: train an objective on a data set by a method, or by several in turn, on a Dask cluster."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client
from numpy.typing import DTypeLike, NDArray

from dask_belief.backend import get_backend
from dask_belief.checks import check_count
from dask_belief.cluster.connection import check_travels, connected
from dask_belief.data.dataset import Dataset, DatasetLike, as_dataset
from dask_belief.downpour.config import Downpour
from dask_belief.downpour.record import check_path
from dask_belief.errors import ArgumentError, DataError
from dask_belief.monitoring.callbacks import Callback, CallbackList
from dask_belief.monitoring.history import History
from dask_belief.monitoring.progress import ProgressBar
from dask_belief.objective import Objective, check_objective, penalised_of
from dask_belief.optim.rules import ADAGRAD_SUMS
from dask_belief.parameter_server.ranges import shard_ranges
from dask_belief.result import TrainingResult, load_result
from dask_belief.run import Facts, Vector
from dask_belief.sandblaster.config import Sandblaster
from dask_belief.stages import Method, Stages, check_handover, new_name

Beginning = NDArray[np.floating] | TrainingResult | None


def train(
    objective: Objective,
    dataset: DatasetLike,
    method: Method | Sequence[Method],
    *,
    client: Client | None = None,
    initial: NDArray[np.floating] | TrainingResult | str | Path | None = None,
    validation: DatasetLike | None = None,
    callbacks: Iterable[Callback] = (),
    seed: int = 0,
    dtype: DTypeLike = "float32",
    backend: str = "auto",
    progress: bool = True,
    record: str | Path | None = None,
) -> TrainingResult:
    """Train `objective` on `dataset` by `method`, or by several methods in turn.

    What is minimised is the mean over rows of the loss plus ``l2 / 2 * ||w||^2 + l1 * ||w||_1`` (the latter by
    `Sandblaster` only), over weights but not biases for a `Network`.

    Parameters
    ----------
    objective
        A `Network`, or anything with ``n_parameters``, ``initial_parameters(seed)`` and
        ``loss_and_gradient(parameters, inputs, targets) -> (loss_sum, gradient_sum)``.
    dataset
        A `ZarrDataset`, the path of one, a tuple ``(inputs, targets)`` of NumPy arrays, or of Dask arrays, which are
        written once to a temporary store.
    method
        `Sandblaster` or `Downpour`, with its options; or a list of them, which run in turn on the same cluster, see
        below.
    client
        A synchronous Dask client; None takes the current one, else makes a cluster on loopback for this run.
    initial
        Where to begin: a vector ``(n_parameters,)``, the result of another run, or the path of one that was saved; None
        for the objective's own. Of a result, ``Sandblaster(first_hessian="adagrad")`` takes Adagrad's sums, too.
    validation
        Rows on which the loss, and the accuracy where the objective knows it, are found now and then.
    callbacks
        Functions of one event (see `dask_belief.monitoring.events`); one that returns True ends the run.
    seed
        The root of every random number of the run.
    dtype
        Of every vector: float32 or float64.
    backend
        ``"auto"``, ``"numpy"`` or ``"cupy"``: what replicas compute with.
    progress
        Whether to show a line of progress when the run takes longer than two seconds.
    record
        The folder, empty or of an older record, in which a `Downpour` run writes the order of its exchanges, so that
        `replay` gives the same parameters to the bit. For one method.

    Returns
    -------
    TrainingResult
        The best point found, whatever ended the run.

    Raises
    ------
    DaskBeliefError
        Each of the following; when a run had begun, ``kept_parameters`` of the error holds the best point kept.
    ArgumentError
        For an argument that is refused; its name comes first.
    DataError
        When the data do not fit the objective, or cannot be trained on.
    NonFiniteError
        When the loss at the start is NaN or infinite; says in which rows.
    ClusterError
        When the cluster cannot do what the run needs.

    Notes
    -----
    Of a list, each method begins at the best point of those before it, and a `Sandblaster` that comes after a
    `Downpour` by the rule `Adagrad` takes Adagrad's sums as its first diagonal, unless its `first_hessian` says
    otherwise. Limits such as `max_seconds` and `max_iter` count from the start of each method; all have the same seed.
    When a callback asks to stop, or the user interrupts, the methods that are left are not run. Any other end of a
    method, such as its epochs or a loss that is no longer finite, goes on to the next.

    One result comes back. Its history holds the events of all methods, with seconds and passes that run on; why it
    stopped, and the state of a rule, are those of the last method. Its point is that of the last method, unless that
    ended higher than it began: then it is the one at which it began. What is compared is the objective over all
    training rows; for a Downpour with a validation set, which goes by it, the loss over that. Two methods with
    different `l2` or `l1` minimise different things, their losses cannot be compared, and the point of the later
    counts.

    Examples
    --------
    Downpour for the way, Sandblaster for the last digits::

        result = db.train(network, "train.zarr", [db.Downpour(epochs=3), db.Sandblaster(max_iter=50)])
    """
    run_dtype = _check_dtype(dtype)
    check_objective(objective)
    check_count("seed", seed, low=0)
    methods = _check_methods(method, objective, validation is not None)
    _check_backend(backend)
    _check_listening(progress, callbacks)
    _check_record(record, methods)
    listeners = CallbackList([history := History(), bar := ProgressBar(progress), *callbacks])
    beginning = _check_beginning(initial)
    start = _initial_vector(objective, beginning, seed, run_dtype)
    sums = _adagrad_sums(methods[0], beginning, objective, run_dtype)
    data = _check_data(objective, dataset, "dataset", run_dtype)
    validation_data = None if validation is None else _check_data(objective, validation, "validation", run_dtype)
    check_travels("objective", objective)

    with contextlib.closing(bar), connected(client) as connection:
        facts = Facts(
            name=new_name(),
            client=connection,
            objective=objective,
            dataset=data,
            validation=validation_data,
            initial=start,
            seed=int(seed),
            dtype=run_dtype.name,
            backend=backend,
            adagrad_sums=sums,
            record=None if record is None else Path(record),
        )
        trained = Stages(methods, facts, listeners).train()
    outcome = trained.outcome
    return TrainingResult(
        parameters=outcome.parameters,
        loss=outcome.loss,
        validation=outcome.validation,
        stop=outcome.stop,
        history=history,
        method=trained.name,
        seconds=trained.seconds,
        passes=outcome.passes,
        repeatable=outcome.repeatable,
        objective=objective,
        rule_state=outcome.rule_state,
    )


def _check_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    try:
        found = np.dtype(dtype)
    except TypeError as error:
        raise ArgumentError(f"dtype: expected 'float32' or 'float64', got {dtype!r}.") from error
    if found not in (np.float32, np.float64):
        raise ArgumentError(f"dtype: expected float32 or float64, got {found}.")
    return found


def _check_record(record: str | Path | None, methods: Sequence[Method]) -> None:
    if record is None:
        return
    if len(methods) != 1 or not isinstance(methods[0], Downpour):
        raise ArgumentError(
            "record: is of one Downpour run. Sandblaster gives the same bits without; run several methods one by one."
        )
    check_path(Path(record))


def _check_backend(backend: object) -> None:
    if backend not in ("auto", "numpy", "cupy"):
        raise ArgumentError(f"backend: expected 'auto', 'numpy' or 'cupy', got {backend!r}.")
    if backend != "auto":
        get_backend(str(backend))


def _check_listening(progress: object, callbacks: object) -> None:
    if not isinstance(progress, bool):
        raise ArgumentError(f"progress: expected True or False, got {progress!r}.")
    if not isinstance(callbacks, Iterable):
        raise ArgumentError(f"callbacks: expected functions of one event, got {callbacks!r}.")


def _check_methods(method: object, objective: Objective, has_validation: bool) -> tuple[Method, ...]:
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
        if each.n_shards is not None:
            shard_ranges(objective.n_parameters, each.n_shards)
        if isinstance(each, Downpour) and not has_validation:
            for name in ("patience", "validate_every_steps", "validate_every_seconds"):
                if getattr(each, name) is not None:
                    raise ArgumentError(f"{name}: needs validation=, the rows to go by; give them, or leave it out.")
    check_handover(methods)
    return methods


def _adagrad_sums(method: Method, initial: Beginning, objective: Objective, dtype: np.dtype[Any]) -> Vector | None:
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
    sums = np.array(state[ADAGRAD_SUMS], dtype)
    if sums.shape != (objective.n_parameters,) or not (np.isfinite(sums).all() and (sums >= 0).all()):
        raise ArgumentError(
            f"initial: its sums of squared gradients are not {objective.n_parameters} finite numbers of zero or more."
        )
    return sums


def _check_data(objective: Objective, given: DatasetLike, argument: str, dtype: np.dtype[Any]) -> Dataset:
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


def _check_beginning(initial: NDArray[np.floating] | TrainingResult | str | Path | None) -> Beginning:
    """Open the result that a path names; all else is as it was given."""
    if not isinstance(initial, str | Path):
        return initial
    try:
        return load_result(initial)
    except DataError as error:
        raise type(error)(f"initial: {error}") from error


def _initial_vector(objective: Objective, initial: Beginning, seed: int, dtype: np.dtype[Any]) -> Vector:
    given = initial.parameters if isinstance(initial, TrainingResult) else initial
    name = "objective.initial_parameters" if given is None else "initial"
    try:
        vector = np.array(objective.initial_parameters(seed) if given is None else given, dtype)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{name}: expected a vector of numbers, got {given!r} ({error}).") from error
    if vector.shape != (objective.n_parameters,):
        raise ArgumentError(f"{name}: expected shape ({objective.n_parameters},), got {vector.shape}.")
    if not np.isfinite(vector).all():
        raise ArgumentError(f"{name}: holds NaN or infinity; begin from finite parameters.")
    return vector
