"""Predictions for many rows on a cluster, by whole models on all workers or by networks in pieces.

::

    driver                         a team: one worker, or one for each piece
    parts of the rows ──────────>  the lead reads the rows of a part, computes, and sends up what others need
                                   the others compute their own range of the parameters, as in training
    predictions, in order <──────  the piece that knows the outputs gives them back

A part is one short Dask task for each piece. They leave their slots, so that no two teams wait for one another. A part
whose worker is lost, or falls silent, goes to another team.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from distributed import Client, Future, get_worker
from numpy.typing import NDArray

from dask_belief.backend import Backend, get_backend
from dask_belief.checks import check_count
from dask_belief.cluster.actors import ActorHost, Caller
from dask_belief.cluster.asking import send
from dask_belief.cluster.connection import check_travels, connected
from dask_belief.cluster.full_device import refused_when_full
from dask_belief.cluster.futures import is_loss, let_go
from dask_belief.cluster.limits import Limits, limited_by, limits
from dask_belief.cluster.membership import Joined, Leaving, Membership, wait_for_a_worker
from dask_belief.cluster.placement import teams_to_start
from dask_belief.cluster.post_box import Correspondent, PostBox
from dask_belief.cluster.replicas import Team, stand_aside
from dask_belief.cluster.standing import Standing
from dask_belief.data.blocks import is_dask_array
from dask_belief.data.checks import require_finite
from dask_belief.data.dataset import ArrayDataset, Dataset, DatasetLike, as_dataset
from dask_belief.door import as_objective, check_backend, check_limits
from dask_belief.errors import (
    ActorLostError,
    ArgumentError,
    CallTimeoutError,
    ClusterError,
    DaskBeliefError,
    NoProgressError,
    ReplicaError,
    StaleError,
)
from dask_belief.model_parallel.own_range import PieceObjective
from dask_belief.model_parallel.partitioned import PartitionedNetwork
from dask_belief.model_parallel.piece import Batch
from dask_belief.model_parallel.plan import LEAD, Plan
from dask_belief.model_parallel.team import n_pieces_of
from dask_belief.monitoring.progress import RowBar
from dask_belief.objective import Objective
from dask_belief.result import TrainingResult

logger = logging.getLogger(__name__)

Vector = NDArray[np.floating]

_BLOCK_BYTES = 16 * 2**20
_MOST_BATCH_ROWS = 4096
# So many mini-batches has a part at most: the lead may be as far ahead of the other pieces.
_PART_BATCHES = 16
# So many parts has each team at least, where there are rows enough: one that is slower does fewer.
_TEAM_PARTS = 4
_ATTEMPTS = 3
_LOOK_SECONDS = 0.01

_DEVICE_ADVICE = "give a smaller batch_rows="


def predict(
    network: Objective | Plan,
    parameters: Vector | TrainingResult,
    inputs: NDArray[Any] | DatasetLike,
    *,
    client: Client | None = None,
    backend: str = "auto",
    batch_rows: int | None = None,
    progress: bool = True,
    limits: Limits | None = None,
) -> Vector:
    """Predict many rows on a cluster (paper, section 3: the pieces of a model serve inference, too).

    Parameters
    ----------
    network
        A `Network`, or any objective with ``predict(parameters, inputs)``: whole on each worker. Or a plan of
        `partition`: each piece of it on a worker of its own, which holds that piece's parameters and activations and no
        others. Where there are workers for several teams of pieces, all are used; where there are fewer workers than
        pieces, some take turns on one, as in training.
    parameters
        In the network's own order, as `TrainingResult.parameters` is, float32 or float64; or the result itself.
    inputs
        The rows: a NumPy or Dask array ``(n_rows, *input_shape)``, or a data set as `train` takes it, whose targets are
        not looked at.
    client
        A synchronous Dask client; None takes the current one, else makes a cluster on loopback for this call.
    backend
        ``"numpy"``, ``"cupy"``, or ``"auto"``: each worker's own choice.
    batch_rows
        Rows computed at once; None for 16 MiB of inputs, and at most 4,096.
    progress
        Whether a bar is shown.
    limits
        How long is waited for what; None for the default `Limits`.

    Returns
    -------
    numpy.ndarray
        ``(n_rows, n_outputs)`` in the order of the rows, of the dtype of `parameters`; as `Network.predict` gives them.

    Raises
    ------
    ArgumentError, DataError
        For an argument that is refused; its name comes first.
    ReplicaError
        What the model raised, with the rows.
    ClusterError
        When the cluster cannot do it: no worker, or workers lost again and again.
    NoProgressError
        When no part of the rows is done within `Limits.no_progress_seconds`.

    Examples
    --------
    >>> predictions = db.predict(db.partition(network, 4), result, "rows.zarr", client=client)     # doctest: +SKIP
    """
    objective = as_objective(network)
    if not hasattr(objective, "predict"):
        raise ArgumentError(f"network: {type(objective).__name__} has no predict(parameters, inputs).")
    vector = _vector(objective, parameters)
    rows = _rows(objective, inputs)
    chosen = check_backend(backend, objective)
    check_count("batch_rows", batch_rows, may_be_none=True)
    check_travels("network", objective)
    in_force = check_limits(limits)
    most = max(1, min(_MOST_BATCH_ROWS, _BLOCK_BYTES // max(1, rows.row_bytes(vector.dtype))))
    job = _Job(objective, vector, rows, chosen, batch_rows or most)
    bar = RowBar("predicting", rows.n_rows, progress)
    with limited_by(in_force), contextlib.closing(bar), connected(client) as connection:
        return _Crew(connection, job).predict(bar)


def _vector(objective: Objective, parameters: object) -> Vector:
    given = np.asarray(parameters.parameters if isinstance(parameters, TrainingResult) else parameters)
    n_parameters = _whole(objective).n_parameters
    if given.dtype not in (np.float32, np.float64):
        raise ArgumentError(f"parameters: expected float32 or float64, got {given.dtype}.")
    if given.shape != (n_parameters,):
        raise ArgumentError(f"parameters: expected shape ({n_parameters},), got {given.shape}.")
    if not np.isfinite(given).all():
        raise ArgumentError("parameters: they hold NaN or infinity; nothing can be predicted with them.")
    return given


def _whole(objective: Objective) -> Objective:
    return objective.network if isinstance(objective, PartitionedNetwork) else objective


def _rows(objective: Objective, inputs: Any) -> Dataset:
    if is_dask_array(inputs):
        rows = as_dataset((inputs, np.zeros(len(inputs))))
    elif isinstance(inputs, np.ndarray):
        rows = ArrayDataset(inputs, np.zeros(len(inputs) if inputs.ndim else 0))
        rows.check(nan=True)
    else:
        rows = as_dataset(inputs)
    expected = getattr(_whole(objective), "input_shape", rows.input_shape)
    if rows.input_shape != expected:
        raise ArgumentError(f"inputs: expected rows of shape {expected}, got {rows.input_shape}.")
    return rows


@dataclass(frozen=True)
class _Job:
    """What is to be predicted."""

    objective: Objective
    vector: Vector
    rows: Dataset
    backend: str
    batch_rows: int

    @property
    def n_pieces(self) -> int:
        return n_pieces_of(self.objective)

    @property
    def knower(self) -> int:
        """Whose task gives the predictions."""
        return self.objective.plan.loss_piece if isinstance(self.objective, PartitionedNetwork) else LEAD

    def parameters_of(self, piece: int) -> Vector:
        """Give what one piece holds."""
        if not isinstance(self.objective, PartitionedNetwork):
            return self.vector
        return self.objective.plan.cut_vector(self.vector)[piece]

    def parts(self, n_teams: int) -> Iterator[range]:
        """Cut the rows; a part is whole chunks where chunks are smaller than parts."""
        n_rows, chunk = self.rows.n_rows, self.rows.chunk_rows
        most = min(_PART_BATCHES * self.batch_rows, -(-n_rows // (_TEAM_PARTS * max(1, n_teams))))
        length = max(self.batch_rows, most)
        length = -(-length // chunk) * chunk if length > chunk else length
        return (range(start, min(start + length, n_rows)) for start in range(0, n_rows, length))


@dataclass(frozen=True)
class PartSpec:
    """What the task of one piece is told.

    Attributes
    ----------
    objective, backend
        What predicts, on what.
    dtype
        Of parameters and predictions.
    start, stop, batch_rows
        The rows, and how many are computed at once.
    first_step
        The number of the first mini-batch: each has a number of its own.
    team
        The tasks of the other pieces; None for a model that is whole.
    limits
        Those in force.
    """

    objective: Objective
    backend: str
    dtype: str
    start: int
    stop: int
    batch_rows: int
    first_step: int
    team: Team | None
    limits: Limits

    def batches(self) -> Iterator[tuple[int, int]]:
        """Give the borders of each mini-batch."""
        starts = range(self.start, self.stop, self.batch_rows)
        return ((start, min(start + self.batch_rows, self.stop)) for start in starts)

    def read(self, rows: Dataset, start: int, stop: int) -> NDArray[Any]:
        """Read the inputs of a mini-batch; raises `NonFiniteDataError`, since nobody has looked into a store before."""
        inputs = rows.read(start, stop, dtype=np.dtype(self.dtype))[0]
        require_finite("inputs", inputs, start)
        return inputs


def predict_part(spec: PartSpec, number: int, parameters: Vector, rows: Dataset | None) -> Vector | None:
    """Predict some rows, as a piece or as a whole; gives the predictions where they are known. Runs as a Dask task."""
    standing = stand_aside()
    backend = get_backend(spec.backend)
    backend.single_thread()
    where = f"a prediction on {standing.worker.address}"
    holdings = {"the parameters": parameters.nbytes}
    try:
        with limited_by(spec.limits), refused_when_full(backend, where, lambda: holdings, _DEVICE_ADVICE):
            if spec.team is None:
                assert rows is not None
                return _as_a_whole(spec, parameters, rows, backend)
            return _as_a_piece(spec, spec.team, number, parameters, rows, backend, standing)
    except DaskBeliefError:
        raise
    except Exception as error:
        raise ReplicaError(
            f"predicting rows {spec.start} to {spec.stop - 1} raised {type(error).__name__}: {error}. Call the model's "
            "own predict() on these rows to see it."
        ) from error


def _as_a_whole(spec: PartSpec, parameters: Vector, rows: Dataset, backend: Backend) -> Vector:
    on = getattr(spec.objective, "on", None)
    model: Any = spec.objective if on is None else on(backend)
    read = (spec.read(rows, start, stop) for start, stop in spec.batches())
    found: Vector = np.concatenate([np.asarray(model.predict(parameters, inputs)) for inputs in read])
    return found


def _as_a_piece(
    spec: PartSpec,
    team: Team,
    number: int,
    parameters: Vector,
    rows: Dataset | None,
    backend: Backend,
    standing: Standing,
) -> Vector | None:
    network = spec.objective
    assert isinstance(network, PartitionedNetwork)
    dtype = np.dtype(spec.dtype)
    correspondent = Correspondent(team.boxes, team.box_name(number), Caller.of_worker(get_worker()), standing)
    piece = PieceObjective(network, number, spec.dtype, backend, correspondent)
    whole, found = network.network.on(backend), []
    with backend.computing():
        own = backend.asarray(parameters)
        for step, (start, stop) in enumerate(spec.batches()):
            inputs = None if rows is None else whole.rows(spec.read(rows, start, stop), dtype)
            batch = Batch(
                spec.first_step + step,
                stop - start,
                network.plan.micro_batches,
                is_training=False,
                has_new_parameters=step == 0,
            )
            outputs = piece.predict(own, batch, inputs)
            if outputs is not None:
                found.append(outputs)
    return np.concatenate(found) if found else None


@dataclass
class _Part:
    """Some rows, and how often they were begun."""

    rows: range
    n_attempts: int = 0


@dataclass
class _Team:
    """Workers that predict part after part, the lead first."""

    workers: tuple[str, ...]
    team: Team | None
    part: _Part | None = None
    futures: list[Future[Any]] = field(default_factory=list)

    @property
    def keys(self) -> list[tuple[str, int | str]]:
        """What is sent to it, by worker."""
        return [(self.workers[LEAD], "rows"), *((worker, number) for number, worker in enumerate(self.workers))]


class _Crew:
    """The teams of a cluster, and the parts that they are given."""

    def __init__(self, client: Client, job: _Job) -> None:
        self._client = client
        self._job = job
        self._name = uuid.uuid4().hex[:8]
        self._host = ActorHost(client, self._name)
        self._teams: list[_Team] = []
        self._waiting: deque[_Part] = deque()
        self._numbers = itertools.count()
        self._n_steps = 0
        # What workers were sent: their own parameters, by piece, and rows where they lead; of teams that are there.
        self._sent: dict[tuple[str, int | str], Future[Any]] = {}
        self._found: dict[int, Vector] = {}

    def predict(self, bar: RowBar) -> Vector:
        """Predict all rows, in their order; nothing stays on the cluster."""
        membership = Membership(self._client, f"dask-belief-{self._name}")
        self._host.present = lambda: membership.workers
        try:
            wait_for_a_worker(self._client, membership)
            n_teams = max(1, sum(membership.workers.values()) // self._job.n_pieces)
            self._waiting.extend(_Part(rows) for rows in self._job.parts(n_teams))
            self._work(membership, bar)
        finally:
            for team in list(self._teams):
                self._drop(team)
            self._host.close()
            membership.close()
        return np.concatenate([self._found[start] for start in sorted(self._found)])

    def _work(self, membership: Membership, bar: RowBar) -> None:
        limit_seconds = limits().no_progress_seconds
        until = time.monotonic() + limit_seconds
        while self._waiting or any(team.part for team in self._teams):
            self._take_changes(membership)
            self._start_teams(membership)
            n_rows = sum(map(self._take, list(self._teams)))
            if n_rows:
                bar.add(n_rows)
                until = time.monotonic() + limit_seconds
            elif time.monotonic() > until:
                raise NoProgressError(
                    f"no part of the rows was predicted within {limit_seconds:g} seconds, by teams on "
                    f"{[team.workers for team in self._teams]}. Look at these workers in the dashboard, or allow more "
                    "by Limits(no_progress_seconds=...)."
                )
            else:
                time.sleep(_LOOK_SECONDS)

    def _take_changes(self, membership: Membership) -> None:
        if self._client.status != "running":
            raise ClusterError("the connection to Dask's scheduler is gone. Connect a new client, and predict again.")
        for change in membership.poll():
            if isinstance(change, Joined):
                continue
            for team in list(self._teams):
                if change.worker in team.workers:
                    self._lose(team, f"worker {change.worker} was lost")
            if isinstance(change, Leaving):
                membership.left(change.worker)
        if not membership.workers:
            # It asks the scheduler, which announces changes by itself as long as there is somebody to go on with.
            wait_for_a_worker(self._client, membership)

    def _start_teams(self, membership: Membership) -> None:
        """Form the teams that are missing, and give a part to each that has none."""
        busy = Counter(worker for team in self._teams for worker in team.workers)
        for workers in teams_to_start(membership.workers, busy, len(self._teams), None, self._job.n_pieces):
            if len(self._teams) < len(self._waiting) + sum(team.part is not None for team in self._teams):
                with self._losses(workers):
                    self._teams.append(_Team(workers, self._boxes(workers)))
        for team in [team for team in self._teams if team.part is None]:
            if self._waiting:
                with self._losses(team.workers, team):
                    self._begin(team, self._waiting.popleft())

    @contextlib.contextmanager
    def _losses(self, workers: Iterable[str], team: _Team | None = None) -> Iterator[None]:
        """What is begun on a worker that has just left is begun elsewhere, once its loss is heard of."""
        try:
            yield
        except (ActorLostError, KeyError, OSError) as error:
            logger.info("nothing was begun on %s: %r", ", ".join(workers), error)
            if team is not None and team.part is not None:
                # It was not begun: that does not count.
                team.part.n_attempts -= 1
                self._lose(team, repr(error))
            time.sleep(_LOOK_SECONDS)

    def _boxes(self, workers: tuple[str, ...]) -> Team | None:
        """Make the boxes in which the pieces of a team get their letters."""
        if self._job.n_pieces == 1:
            return None
        team = Team(f"{self._name}-team-{next(self._numbers)}", ())
        boxes = tuple(
            self._host.spawn(PostBox, f"post box {number} of {team.name}", worker, team.box_name(number))
            for number, worker in enumerate(workers)
        )
        try:
            self._host.ready(boxes)
        except BaseException:
            for box in boxes:
                self._host.drop(box)
            raise
        return Team(team.name, boxes)

    def _begin(self, team: _Team, part: _Part) -> None:
        job = self._job
        team.part = part
        part.n_attempts += 1
        spec = PartSpec(
            objective=job.objective,
            backend=job.backend,
            dtype=job.vector.dtype.name,
            start=part.rows.start,
            stop=part.rows.stop,
            batch_rows=job.batch_rows,
            first_step=self._n_steps,
            team=team.team,
            limits=limits(),
        )
        self._n_steps += -(-len(part.rows) // job.batch_rows)
        for number, worker in enumerate(team.workers):
            parameters = self._send(worker, number, lambda number=number: job.parameters_of(number))  # type: ignore[misc]
            rows = self._send(worker, "rows", lambda: job.rows) if number == LEAD else None
            team.futures.append(
                self._client.submit(
                    predict_part,
                    spec,
                    number,
                    parameters,
                    rows,
                    key=f"predict_part-{self._name}-{next(self._numbers)}",
                    workers=[worker],
                    allow_other_workers=False,
                    pure=False,
                    retries=0,
                )
            )

    def _send(self, worker: str, what: int | str, make: Callable[[], object]) -> Future[Any]:
        """Send something to a worker, once."""
        key = (worker, what)
        if key not in self._sent:
            self._sent[key] = send(self._client, make(), worker)
        return self._sent[key]

    def _take(self, team: _Team) -> int:
        """Take what a team has found; gives the rows that were predicted."""
        part = team.part
        if part is None or not any(future.done() for future in team.futures):
            return 0
        failed = next((future for future in team.futures if future.done() and future.status != "finished"), None)
        if failed is not None:
            error = failed.exception(timeout=limits().call_seconds)
            # A task is stale to itself where its worker is closing, which may be heard before the worker's leave.
            is_lost = isinstance(error, ActorLostError | CallTimeoutError | StaleError)
            if is_lost or error is None or is_loss(error):
                self._lose(team, str(error))
                return 0
            raise error
        if not all(future.done() for future in team.futures):
            return 0
        try:
            self._found[part.rows.start] = team.futures[self._job.knower].result(timeout=limits().call_seconds)
        except TimeoutError as error:
            self._lose(team, f"worker {team.workers[self._job.knower]} does not hand over its predictions: {error}")
            return 0
        let_go(self._client, team.futures)
        team.part, team.futures = None, []
        return len(part.rows)

    def _lose(self, team: _Team, why: str) -> None:
        """Give a team up, and its part to another."""
        part = team.part
        self._drop(team)
        if part is None:
            return
        if part.n_attempts == _ATTEMPTS:
            raise ClusterError(
                f"rows {part.rows.start} to {part.rows.stop - 1} were lost with a worker {_ATTEMPTS} times; the last: "
                f"{why}. Look at the workers' logs."
            )
        logger.warning("rows %d to %d are predicted again: %s", part.rows.start, part.rows.stop - 1, why)
        self._waiting.appendleft(part)

    def _drop(self, team: _Team) -> None:
        self._teams.remove(team)
        let_go(self._client, team.futures)
        for box in () if team.team is None else team.team.boxes:
            self._host.drop(box)
        # Whoever stays of a team may be another piece of the next, and is to hold that one's parameters alone.
        needed = {key for team in self._teams for key in team.keys}
        let_go(self._client, [self._sent.pop(key) for key in self._sent.keys() - needed])
