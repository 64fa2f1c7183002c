"""One verb: train an objective on a data set by a method, on a Dask cluster."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Iterable
from typing import Any

import numpy as np
from distributed import Client
from numpy.typing import DTypeLike, NDArray

from dask_belief.backend import get_backend
from dask_belief.checks import check_count
from dask_belief.cluster.connection import check_travels, connected
from dask_belief.data.dataset import Dataset, DatasetLike, as_dataset
from dask_belief.downpour.config import Downpour
from dask_belief.downpour.driver import DownpourDriver
from dask_belief.errors import ArgumentError, DataError
from dask_belief.monitoring.callbacks import Callback, CallbackList
from dask_belief.monitoring.events import Stopped
from dask_belief.monitoring.history import History
from dask_belief.monitoring.progress import ProgressBar
from dask_belief.objective import Objective, check_objective, penalised_of
from dask_belief.optim.rules import ADAGRAD_SUMS
from dask_belief.parameter_server.ranges import shard_ranges
from dask_belief.result import TrainingResult
from dask_belief.run import Facts, Outcome, Run
from dask_belief.sandblaster.config import Sandblaster
from dask_belief.sandblaster.driver import SandblasterDriver

logger = logging.getLogger(__name__)

Method = Sandblaster | Downpour


def train(
    objective: Objective,
    dataset: DatasetLike,
    method: Method,
    *,
    client: Client | None = None,
    initial: NDArray[np.floating] | TrainingResult | None = None,
    validation: DatasetLike | None = None,
    callbacks: Iterable[Callback] = (),
    seed: int = 0,
    dtype: DTypeLike = "float32",
    backend: str = "auto",
    progress: bool = True,
) -> TrainingResult:
    """Train `objective` on `dataset` by `method`.

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
        `Sandblaster` or `Downpour`, with its options.
    client
        A synchronous Dask client; None takes the current one, else makes a cluster on loopback for this run.
    initial
        Where to begin: a vector ``(n_parameters,)``, or the result of another run; None for the objective's own. Of a
        result, ``Sandblaster(first_hessian="adagrad")`` takes Adagrad's sums, too.
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
    """
    run_dtype = _check_dtype(dtype)
    check_objective(objective)
    check_count("seed", seed, low=0)
    _check_method(method, objective)
    _check_backend(backend)
    if not isinstance(progress, bool):
        raise ArgumentError(f"progress: expected True or False, got {progress!r}.")
    if not isinstance(callbacks, Iterable):
        raise ArgumentError(f"callbacks: expected functions of one event, got {callbacks!r}.")
    listeners = CallbackList([history := History(), bar := ProgressBar(progress), *callbacks])
    data = as_dataset(dataset)
    validation_data = None if validation is None else as_dataset(validation)
    _check_data(objective, data, "dataset")
    if validation_data is not None:
        _check_data(objective, validation_data, "validation")
    start = _initial_vector(objective, initial, seed, run_dtype)

    check_travels("objective", objective)
    sums = _adagrad_sums(method, initial, objective, run_dtype)
    with contextlib.closing(bar), connected(client) as connection:
        facts = Facts(
            name=uuid.uuid4().hex[:8],
            client=connection,
            objective=objective,
            dataset=data,
            validation=validation_data,
            initial=start,
            seed=int(seed),
            dtype=run_dtype.name,
            backend=backend,
            adagrad_sums=sums,
        )
        run = Run(facts, listeners)
        outcome = _drive(run, method)
        seconds = run.seconds
        run.emit(Stopped(outcome.stop, seconds, outcome.passes))
    logger.info("%s: %s. %s", method.name, outcome.stop, outcome.stop.advice)
    return TrainingResult(
        parameters=outcome.parameters,
        loss=outcome.loss,
        validation=outcome.validation,
        stop=outcome.stop,
        history=history,
        method=method.name,
        seconds=seconds,
        passes=outcome.passes,
        repeatable=outcome.repeatable,
        objective=objective,
        rule_state=outcome.rule_state,
    )


def _drive(run: Run, method: Method) -> Outcome:
    """Train to the end; whatever is raised instead carries the best parameters that were kept."""
    driver = SandblasterDriver(run, method) if isinstance(method, Sandblaster) else DownpourDriver(run, method)
    try:
        return driver.drive()
    except BaseException as error:
        # Also on errors of others, a callback's for one: nothing that was found is lost.
        with contextlib.suppress(AttributeError):
            error.kept_parameters = driver.kept()  # type: ignore[attr-defined]
        raise


def _check_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    try:
        found = np.dtype(dtype)
    except TypeError as error:
        raise ArgumentError(f"dtype: expected 'float32' or 'float64', got {dtype!r}.") from error
    if found not in (np.float32, np.float64):
        raise ArgumentError(f"dtype: expected float32 or float64, got {found}.")
    return found


def _check_backend(backend: object) -> None:
    if backend not in ("auto", "numpy", "cupy"):
        raise ArgumentError(f"backend: expected 'auto', 'numpy' or 'cupy', got {backend!r}.")
    if backend != "auto":
        get_backend(str(backend))


def _check_method(method: object, objective: Objective) -> None:
    if not isinstance(method, Sandblaster | Downpour):
        raise ArgumentError(f"method: expected a Sandblaster or a Downpour, got {type(method).__name__}.")
    check_count("objective.n_parameters", objective.n_parameters)
    penalised_of(objective)
    if method.n_shards is not None:
        shard_ranges(objective.n_parameters, method.n_shards)


def _adagrad_sums(
    method: Method,
    initial: NDArray[np.floating] | TrainingResult | None,
    objective: Objective,
    dtype: np.dtype[Any],
) -> NDArray[np.floating] | None:
    """The sums that ``first_hessian="adagrad"`` asks for, from the result that the run begins with."""
    if not isinstance(method, Sandblaster) or method.first_hessian != "adagrad":
        return None
    state = initial.rule_state if isinstance(initial, TrainingResult) else {}
    if ADAGRAD_SUMS not in state:
        raise ArgumentError(
            "first_hessian: 'adagrad' needs initial=, the result of a Downpour run by the rule Adagrad; got "
            f"{'a result without its sums' if isinstance(initial, TrainingResult) else 'no result'}."
        )
    sums = np.array(state[ADAGRAD_SUMS], dtype)
    if sums.shape != (objective.n_parameters,) or not (np.isfinite(sums).all() and (sums >= 0).all()):
        raise ArgumentError(
            f"initial: its sums of squared gradients are not {objective.n_parameters} finite numbers of zero or more."
        )
    return sums


def _check_data(objective: Objective, data: Dataset, argument: str) -> None:
    """Refuse rows that do not fit, before any work starts; reads the targets where their range is not on record."""
    data.check()
    check = getattr(objective, "check_data", None)
    if check is None:
        return
    try:
        check(data.input_shape, data.target_shape, data.target_dtype, data.target_range())
    except (ArgumentError, DataError) as error:
        raise type(error)(f"{argument}: {error}") from error


def _initial_vector(
    objective: Objective, initial: NDArray[np.floating] | TrainingResult | None, seed: int, dtype: np.dtype[Any]
) -> NDArray[np.floating]:
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
