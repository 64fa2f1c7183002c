"""Sums over a data set at parameters that the shards hold: validation, and the training loss at the end.

Ordinary short Dask tasks, beside the replicas, which hold no task slot: each fetches the vector named `SNAPSHOT`, and
sums over a part of the rows. The parts follow from the number of rows alone, and are added in order.
"""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass

import numpy as np
from distributed import Client, Future, get_worker

from dask_belief.backend import get_backend
from dask_belief.cluster.actors import Caller
from dask_belief.cluster.futures import let_go, wait_for
from dask_belief.cluster.limits import LIMITS
from dask_belief.data.dataset import Dataset
from dask_belief.errors import CallTimeoutError, ClusterError, ReplicaError
from dask_belief.monitoring.metrics import MetricSums
from dask_belief.objective import Objective, evaluation_sums
from dask_belief.parameter_server.client import Directory, ParameterServer

logger = logging.getLogger(__name__)

SNAPSHOT = "snapshot"
"""The name of the vector on the shards at which data sets are evaluated."""

_MAX_PARTS = 8
_BLOCK_BYTES = 16 * 2**20
_ATTEMPTS = 3


@dataclass(frozen=True)
class PartSpec:
    """What an evaluation task is told.

    Attributes
    ----------
    objective, directory, backend
        What is evaluated, where its parameters are, and on what it is computed.
    start, stop
        The rows.
    """

    objective: Objective
    directory: Directory
    backend: str
    start: int
    stop: int


def evaluate_part(spec: PartSpec, dataset: Dataset) -> dict[str, float]:
    """The sums over some rows; runs as a Dask task."""
    backend = get_backend(spec.backend)
    backend.single_thread()
    on = getattr(spec.objective, "on", None)
    objective = spec.objective if on is None else on(backend)
    caller = Caller.of_worker(get_worker())
    dtype = np.dtype(spec.directory.dtype)
    vector = np.empty(spec.directory.n_parameters, dtype)
    caller.run(ParameterServer(spec.directory, caller).read(SNAPSHOT, vector))
    parameters = backend.asarray(vector)
    total = MetricSums()
    step = max(1, min(4096, _BLOCK_BYTES // max(1, dataset.row_bytes(dtype))))
    with backend.computing():
        for start in range(spec.start, spec.stop, step):
            inputs, targets = dataset.read(start, min(start + step, spec.stop), dtype=dtype)
            try:
                total.add(evaluation_sums(objective, parameters, backend.asarray(inputs), backend.asarray(targets)))
            except Exception as error:
                raise ReplicaError(
                    f"evaluating the objective raised {type(error).__name__}: {error}, in rows {start} to "
                    f"{start + len(inputs) - 1}. Call its evaluate(), or loss_and_gradient(), on these rows to see it."
                ) from error
    return {"rows": total.rows, **total.sums}


class Evaluation:
    """Evaluates one data set, whenever asked, without holding up whoever asks.

    Parameters
    ----------
    client, objective, dataset, backend
        Where, what, on which rows, with which backend.
    run
        The name of the run.
    what
        The name of the data set in the tasks' keys, such as ``"validation"``.
    """

    def __init__(
        self, client: Client, objective: Objective, dataset: Dataset, backend: str, run: str, what: str
    ) -> None:
        self._client = client
        self._objective = objective
        self._dataset = dataset
        self._backend = backend
        self._prefix = f"{what}-{run}"
        self._numbers = itertools.count()
        self._futures: list[Future[dict[str, float]]] = []
        self._sent: Future[Dataset] | None = None
        self._directory: Directory | None = None

    @property
    def is_running(self) -> bool:
        """Whether an evaluation is under way."""
        return bool(self._futures)

    def start(self, directory: Directory) -> None:
        """Begin to evaluate at the vector `SNAPSHOT` of the shards, which must stay as it is meanwhile."""
        self._directory = directory
        number = next(self._numbers)
        if self._sent is None or self._sent.status != "finished":
            # Sent once, and again when the worker that held it is gone.
            [self._sent] = self._client.scatter([self._dataset], hash=False, timeout=LIMITS.start_seconds)
        n_rows, chunk = self._dataset.n_rows, self._dataset.chunk_rows
        n_chunks = -(-n_rows // chunk)
        n_parts = min(_MAX_PARTS, n_chunks)
        borders = [n_chunks * part // n_parts * chunk for part in range(n_parts)] + [n_rows]
        self._futures = [
            self._client.submit(
                evaluate_part,
                PartSpec(self._objective, directory, self._backend, start, stop),
                self._sent,
                key=f"{self._prefix}-{number}-{start}",
                pure=False,
            )
            for start, stop in itertools.pairwise(borders)
        ]

    def poll(self) -> MetricSums | None:
        """The sums once all parts are there, else None; raises what a part raised.

        A part that was lost with the worker that held the data set makes the whole be forgotten.
        """
        if not self._futures or not all(future.done() for future in self._futures):
            return None
        futures, self._futures = self._futures, []
        try:
            if any(future.cancelled() for future in futures):
                logger.info("%s was lost with a worker", self._prefix)
                return None
            total = MetricSums()
            for future in futures:
                total.add(future.result(timeout=LIMITS.call_seconds))
            return total
        finally:
            let_go(self._client, futures)

    def finish(self) -> MetricSums:
        """Wait for the sums of the evaluation under way; begins again when it is lost with a worker.

        Raises
        ------
        CallTimeoutError
            When it does not end within the limit.
        ClusterError
            When it is lost again and again.
        """
        for _ in range(_ATTEMPTS):
            try:
                wait_for(self._futures, LIMITS.no_progress_seconds)
            except TimeoutError as error:
                self.drop()
                raise CallTimeoutError(
                    f"{self._prefix} was not finished within {LIMITS.no_progress_seconds:g} seconds."
                ) from error
            if (sums := self.poll()) is not None:
                return sums
            if self._directory is None:
                raise ClusterError(f"{self._prefix}: finish() was called before start().")
            self.start(self._directory)
        self.drop()
        raise ClusterError(f"{self._prefix} was lost with a worker {_ATTEMPTS} times. Look at the workers' logs.")

    def close(self) -> None:
        """Leave nothing under way, and let go of the data set."""
        self.drop()
        if self._sent is not None:
            let_go(self._client, [self._sent])
            self._sent = None

    def drop(self) -> None:
        """Forget the evaluation under way."""
        let_go(self._client, self._futures)
        self._futures = []
