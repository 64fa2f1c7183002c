"""One verb: train an objective on a data set by a method, or by several in turn; and go on with it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, overload

import numpy as np
from distributed import Client
from numpy.typing import DTypeLike, NDArray

from dask_belief.checkpoint import Checkpoint, CheckpointStore
from dask_belief.checks import check_count
from dask_belief.cluster.asking import from_store
from dask_belief.cluster.connection import check_travels, connected, current_client
from dask_belief.cluster.detached import Desk, DetachedRun, detach_driver
from dask_belief.cluster.limits import Limits, limited_by
from dask_belief.data.dataset import Dataset, DatasetLike
from dask_belief.data.zarr_dataset import ZarrDataset
from dask_belief.door import (
    adagrad_sums_of,
    as_objective,
    check_backend,
    check_checkpoint,
    check_data,
    check_dtype,
    check_in_pieces,
    check_limits,
    check_listening,
    check_methods,
    check_record,
    check_wire,
    initial_vector,
    open_beginning,
)
from dask_belief.errors import ArgumentError
from dask_belief.model_parallel.partitioned import users_objective, users_order
from dask_belief.model_parallel.plan import Plan
from dask_belief.monitoring.callbacks import Callback, CallbackList
from dask_belief.monitoring.events import Resumed, event_to_config
from dask_belief.monitoring.history import History
from dask_belief.monitoring.progress import ProgressBar
from dask_belief.objective import Objective
from dask_belief.result import TrainingResult
from dask_belief.resuming import (
    begun_of,
    check_state,
    data_for,
    history_of,
    methods_for,
    objective_for,
    own_vector,
    point_of,
    seconds_of,
    validation_for,
)
from dask_belief.run import Facts
from dask_belief.run_description import RunDescription
from dask_belief.stages import SUMS_BEFORE, Method, Stages, Trained, new_name


@overload
def train(
    objective: Objective | Plan,
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
    checkpoint: str | Path | Checkpoint | None = None,
    limits: Limits | None = None,
    detach: Literal[False] = False,
    name: str | None = None,
) -> TrainingResult: ...


@overload
def train(
    objective: Objective | Plan,
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
    checkpoint: str | Path | Checkpoint | None = None,
    limits: Limits | None = None,
    detach: Literal[True],
    name: str,
) -> DetachedRun[TrainingResult]: ...


def train(
    objective: Objective | Plan,
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
    checkpoint: str | Path | Checkpoint | None = None,
    limits: Limits | None = None,
    detach: bool = False,
    name: str | None = None,
) -> TrainingResult | DetachedRun[TrainingResult]:
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
    checkpoint
        An empty folder or URL in which the run saves itself now and then, so that `resume` can go on from there
        whatever was lost; or a `Checkpoint`, which says how often, too. It must be one that all workers reach.
    limits
        How long the run waits for what; None for the default `Limits`.
    detach
        Whether the run is driven by a task on the cluster, so that it goes on when this process ends. Then this returns
        at once; `attach` finds the run again.
    name
        Of a detached run.

    Returns
    -------
    TrainingResult
        The best point found, whatever ended the run; of a detached run a `DetachedRun`, which waits for it.

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
    run_dtype = check_dtype(dtype)
    objective = as_objective(objective)
    check_count("seed", seed, low=0)
    methods = check_methods(method, objective, validation is not None)
    check_wire(methods, run_dtype.name)
    chosen = check_backend(backend, objective)
    check_listening(progress, callbacks)
    check_record(record, methods)
    check_in_pieces(objective, methods, record)
    in_force = check_limits(limits)
    callbacks = tuple(callbacks)
    listeners = CallbackList([history := History(), bar := ProgressBar(progress), *callbacks])
    beginning = open_beginning(initial)
    start = initial_vector(objective, beginning, seed, run_dtype)
    sums = adagrad_sums_of(methods[0], beginning, objective, run_dtype)
    data = check_data(objective, dataset, "dataset", run_dtype)
    validation_data = None if validation is None else check_data(objective, validation, "validation", run_dtype)
    check_travels("objective", objective)
    saving = check_checkpoint(checkpoint, methods, record)
    if detach or name is not None:
        # Of a result, more than the point may be wanted.
        begin = beginning if isinstance(beginning, TrainingResult) else users_order(objective, start)
        order = _Order(objective, data, methods, begin, validation_data, callbacks, int(seed), run_dtype.name, chosen)
        return _detach(client, name, replace(order, limits=in_force, checkpoint=saving), detach, record)
    store = None if saving is None else CheckpointStore(saving.path, keep=saving.keep)
    if store is not None:
        from_store(store.path, "preparing", store.prepare)
    description = RunDescription.of(objective, data, validation_data, methods, int(seed), run_dtype.name, backend)

    with limited_by(in_force), contextlib.closing(bar), connected(client) as connection:
        facts = Facts(
            name=new_name(),
            client=connection,
            objective=objective,
            dataset=data,
            validation=validation_data,
            initial=start,
            seed=int(seed),
            dtype=run_dtype.name,
            backend=chosen,
            adagrad_sums=sums,
            record=None if record is None else Path(record),
            limits=in_force,
            checkpoint=saving,
            store=store,
            description={} if store is None else description.to_config(),
            history=history.to_config,
        )
        trained = Stages(methods, facts, listeners).train()
    return _result(trained, history, objective)


def resume(
    checkpoint: str | Path | Checkpoint,
    *,
    client: Client | None = None,
    objective: Objective | Plan | None = None,
    dataset: DatasetLike | None = None,
    validation: DatasetLike | None = None,
    method: Method | Sequence[Method] | None = None,
    number: int | None = None,
    callbacks: Iterable[Callback] = (),
    backend: str | None = None,
    progress: bool = True,
    limits: Limits | None = None,
) -> TrainingResult:
    """Go on with a run from its checkpoint, with any number of workers, shards and replicas.

    Sandblaster gives the same bits as a run that was never broken off; Downpour goes on without skipping or repeating
    a mini-batch.

    Parameters
    ----------
    checkpoint
        What was given to `train` as ``checkpoint=``; the run goes on saving there.
    client
        A synchronous Dask client; None takes the current one, else makes a cluster on loopback for this run.
    objective
        What is trained; None where it is a `Network`, which is in the checkpoint.
    dataset, validation
        The rows; None where they are stores that can be opened again by their address.
    method
        Options of the method that was broken off, in place of those it had: more epochs, other numbers of shards and
        replicas. Of Sandblaster `history_size`, and of both how the rows are cut, stay as they were. Of a run by
        several methods, the list of all of them may be given instead.
    number
        Of the saved state; None for the newest.
    callbacks, progress, limits
        See `train`.
    backend
        See `train`; None for what the run had.

    Returns
    -------
    TrainingResult
        As of one run: its history, seconds and passes run on.

    Raises
    ------
    MissingStoreError
        When there is no checkpoint.
    CheckpointError
        When it is damaged, foreign, or of a newer version; says which one before it can be tried.
    ArgumentError
        When something has to be given, or what is given does not fit.
    DaskBeliefError
        See `train`.

    Examples
    --------
    >>> result = db.resume("run.checkpoint", client=client)                                # doctest: +SKIP
    >>> result = db.resume("run.checkpoint", method=db.Downpour(epochs=20, n_shards=4))    # doctest: +SKIP
    """
    saving = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
    check_count("number", number, low=0, may_be_none=True)
    in_force = check_limits(limits)
    check_listening(progress, callbacks)
    store = CheckpointStore(saving.path, keep=saving.keep)
    loaded = from_store(store.path, "opening", lambda: store.newest() if number is None else store.load(number))
    description = RunDescription.from_config(loaded.description)
    begun = begun_of(store, loaded)
    objective = objective_for(objective, description)
    data = data_for(objective, dataset, description.dataset, "dataset", description)
    validation_data = validation_for(objective, validation, description)
    methods = methods_for(method, description, begun.n_run)
    check_methods(methods, objective, validation_data is not None)
    check_wire(methods, description.dtype)
    check_state(loaded, methods[begun.n_run], description)
    description = replace(
        RunDescription.of(
            objective, data, validation_data, methods, description.seed, description.dtype, description.backend
        ),
        network=description.network,
    )
    chosen = description.backend if backend is None else backend
    chosen = check_backend(chosen, objective)
    check_travels("objective", objective)
    history = history_of(loaded)
    listeners = CallbackList([history, bar := ProgressBar(progress), *callbacks])
    with limited_by(in_force), contextlib.closing(bar), connected(client) as connection:
        facts = Facts(
            name=new_name(),
            client=connection,
            objective=objective,
            dataset=data,
            validation=validation_data,
            initial=point_of(store, loaded, description),
            seed=description.seed,
            dtype=description.dtype,
            backend=chosen,
            adagrad_sums=own_vector(store, loaded, SUMS_BEFORE),
            limits=in_force,
            checkpoint=saving,
            store=store,
            resumed=loaded,
            seconds_before=seconds_of(loaded),
            description=description.to_config(),
            history=history.to_config,
        )
        from_store(store.path, "preparing", lambda: store.prepare(resumed=loaded.number))
        listeners(Resumed(loaded.number, begun.seconds + facts.seconds_before, loaded.saved.state.get("iteration")))
        trained = Stages(methods, facts, listeners, begun).train()
    return _result(trained, history, objective)


@dataclass(frozen=True)
class _Order:
    """What the driver of a detached run is told: the arguments of `train`, all of them checked."""

    objective: Objective
    dataset: Dataset
    methods: tuple[Method, ...]
    initial: NDArray[np.floating] | TrainingResult
    validation: Dataset | None
    callbacks: tuple[Callback, ...]
    seed: int
    dtype: str
    backend: str
    limits: Limits | None = None
    checkpoint: Checkpoint | None = None


def _detach(
    client: Client | None, name: str | None, order: _Order, detach: bool, record: object
) -> DetachedRun[TrainingResult]:
    if not isinstance(detach, bool):
        raise ArgumentError(f"detach: expected True or False, got {detach!r}.")
    if not detach:
        raise ArgumentError("name: is of a detached run; give detach=True, too.")
    if not isinstance(name, str) or not name.strip():
        raise ArgumentError(f"name: a detached run is found again by its name; give one, got {name!r}.")
    if record is not None:
        raise ArgumentError("record: is written by this process, and a detached run goes on without it; leave one out.")
    for argument, data in (("dataset", order.dataset), ("validation", order.validation)):
        if data is not None and not isinstance(data, ZarrDataset):
            raise ArgumentError(
                f"{argument}: a detached run outlives the memory of this process; write the rows to a store with "
                "write_dataset."
            )
    if order.checkpoint is not None and _numbers(order.checkpoint):
        # Those that the driver finds later are its own.
        raise ArgumentError(
            f"checkpoint: {order.checkpoint.path} holds checkpoints of a run. Go on from it with db.resume(path), or "
            "give an empty folder."
        )
    check_travels("callbacks", order.callbacks)
    check_travels("method", order.methods)
    given = current_client() if client is None else client
    with connected(given) as connection:
        return detach_driver(connection, name, _drive, order, event_to_config)


def _numbers(checkpoint: Checkpoint) -> list[int]:
    """The numbers of the checkpoints that are there."""
    store = CheckpointStore(checkpoint.path)
    return from_store(store.path, "looking at", lambda: list(store.numbers()))


def _drive(order: _Order, client: Client, desk: Desk) -> TrainingResult:
    """Drive a detached run; a second time, after its worker was lost, from where its checkpoint is."""
    callbacks: list[Callback] = [*order.callbacks, desk]
    if order.checkpoint is not None and _numbers(order.checkpoint):
        return resume(
            order.checkpoint,
            client=client,
            objective=order.objective,
            dataset=order.dataset,
            validation=order.validation,
            method=order.methods,
            callbacks=callbacks,
            backend=order.backend,
            progress=False,
            limits=order.limits,
        )
    return train(
        order.objective,
        order.dataset,
        order.methods,
        client=client,
        initial=order.initial,
        validation=order.validation,
        callbacks=callbacks,
        seed=order.seed,
        dtype=order.dtype,
        backend=order.backend,
        progress=False,
        checkpoint=order.checkpoint,
        limits=order.limits,
    )


def _result(trained: Trained, history: History, objective: Objective) -> TrainingResult:
    """Make a result of what methods gave."""
    outcome = trained.outcome
    return TrainingResult(
        parameters=users_order(objective, outcome.parameters),
        loss=outcome.loss,
        validation=outcome.validation,
        stop=outcome.stop,
        history=history,
        method=trained.name,
        seconds=trained.seconds,
        passes=outcome.passes,
        repeatable=outcome.repeatable,
        objective=users_objective(objective),
        rule_state={name: users_order(objective, vector) for name, vector in outcome.rule_state.items()},
    )
