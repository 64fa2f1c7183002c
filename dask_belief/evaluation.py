"""Sums over a data set at parameters that the shards hold: validation, and the training loss at the end.

Ordinary short Dask tasks, beside the replicas, which hold no task slot: each fetches the vector named `SNAPSHOT`, and
sums over a part of the rows. The parts follow from the number of rows alone, and are added in order. Each is pinned to
a worker: one that Dask may place waits for ever when it is placed on a worker that has frozen.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from distributed import Client, Future, get_worker

from dask_belief.backend import get_backend
from dask_belief.cluster.actors import Caller
from dask_belief.cluster.asking import send
from dask_belief.cluster.full_device import lacking_bytes, refused_when_full
from dask_belief.cluster.futures import is_loss, let_go, wait_for
from dask_belief.cluster.limits import Limits, limited_by, limits
from dask_belief.data.dataset import Dataset
from dask_belief.errors import CallTimeoutError, ClusterError, NoWorkersError, ReplicaError
from dask_belief.monitoring.metrics import MetricSums
from dask_belief.objective import Objective, evaluation_sums
from dask_belief.parameter_server.client import ParameterServer
from dask_belief.parameter_server.directory import Directory

logger = logging.getLogger(__name__)

SNAPSHOT = "snapshot"
"""The name of the vector on the shards at which data sets are evaluated."""

_MAX_PARTS = 8
_BLOCK_BYTES = 16 * 2**20
_ATTEMPTS = 3

_DEVICE_ADVICE = "leave room beside the training: ask Sandblaster for a smaller cache_bytes="


@dataclass(frozen=True)
class PartSpec:
    """What an evaluation task is told.

    Attributes
    ----------
    objective, directory, backend
        What is evaluated, where its parameters are, and on what it is computed.
    start, stop
        The rows.
    limits
        Of the run.
    """

    objective: Objective
    directory: Directory
    backend: str
    start: int
    stop: int
    limits: Limits


def evaluate_part(spec: PartSpec, dataset: Dataset) -> dict[str, float]:
    """The sums over some rows; runs as a Dask task."""
    backend = get_backend(spec.backend)
    backend.single_thread()
    on = getattr(spec.objective, "on", None)
    objective = spec.objective if on is None else on(backend)
    caller = Caller.of_worker(worker := get_worker())
    dtype = np.dtype(spec.directory.dtype)
    vector = np.empty(spec.directory.n_parameters, dtype)
    with limited_by(spec.limits):
        caller.run(ParameterServer(spec.directory, caller).read(SNAPSHOT, vector))
    total = MetricSums()
    holdings = {"the parameters of the evaluation": vector.nbytes}
    where = f"an evaluation on {worker.address}"
    with refused_when_full(backend, where, lambda: holdings, _DEVICE_ADVICE), backend.computing():
        parameters = backend.asarray(vector)
        start, step = spec.start, max(1, min(4096, _BLOCK_BYTES // max(1, dataset.row_bytes(dtype))))
        while start < spec.stop:
            inputs, targets = dataset.read(start, min(start + step, spec.stop), dtype=dtype)
            try:
                total.add(evaluation_sums(objective, parameters, backend.asarray(inputs), backend.asarray(targets)))
            except Exception as error:
                if step > 1 and lacking_bytes(backend, error) is not None:
                    # Beside the training, a device may have room for fewer rows only.
                    step //= 2
                    continue
                raise ReplicaError(
                    f"evaluating the objective raised {type(error).__name__}: {error}, in rows {start} to "
                    f"{start + len(inputs) - 1}. Call its evaluate(), or loss_and_gradient(), on these rows to see it."
                ) from error
            start += len(inputs)
    return {"rows": total.rows, **total.sums}


@dataclass
class _Part:
    """Some rows of an evaluation that is under way; `sums` once they are there."""

    start: int
    stop: int
    worker: str
    future: Future[dict[str, float]]
    n_attempts: int = 1
    sums: dict[str, float] | None = None


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
        self._parts: list[_Part] = []
        # The workers that parts may go to, the next one first, and the data set on those that have had one.
        self._workers: list[str] = []
        self._sent: dict[str, Future[Dataset]] = {}
        self._directory: Directory | None = None

    @property
    def is_running(self) -> bool:
        """Whether an evaluation is under way."""
        return bool(self._parts)

    def start(self, directory: Directory, workers: Sequence[str]) -> None:
        """Begin to evaluate at the vector `SNAPSHOT` of the shards, which must stay as it is meanwhile.

        Parameters
        ----------
        directory
            Where the shards are.
        workers
            Those that are there; the parts go to them in turn, and the data set to each that gets one, once.

        Raises
        ------
        NoWorkersError
            When none of the workers takes the data set.
        """
        self.drop()
        self._directory, self._workers = directory, list(workers)
        n_rows, chunk = self._dataset.n_rows, self._dataset.chunk_rows
        n_chunks = -(-n_rows // chunk)
        n_parts = min(_MAX_PARTS, n_chunks)
        borders = [n_chunks * part // n_parts * chunk for part in range(n_parts)] + [n_rows]
        for start, stop in itertools.pairwise(borders):
            worker, future = self._submit(start, stop)
            self._parts.append(_Part(start, stop, worker, future))

    def _submit(self, start: int, stop: int) -> tuple[str, Future[dict[str, float]]]:
        """Begin a part on the worker whose turn it is."""
        assert self._directory is not None
        why = ""
        while self._workers:
            worker = self._workers[0]
            try:
                sent = self._sent_to(worker)
            except (KeyError, OSError) as error:
                logger.warning("%s: worker %s takes no data: %r", self._prefix, worker, error)
                self._workers.remove(worker)
                why = f" The last: {error}"
                continue
            self._workers.append(self._workers.pop(0))
            spec = PartSpec(self._objective, self._directory, self._backend, start, stop, limits())
            future = self._client.submit(
                evaluate_part,
                spec,
                sent,
                key=f"{self._prefix}-{next(self._numbers)}-{start}",
                workers=[worker],
                allow_other_workers=False,
                pure=False,
            )
            return worker, future
        self.drop()
        raise NoWorkersError(f"{self._prefix}: no worker is left to evaluate on. Start workers.{why}")

    def _sent_to(self, worker: str) -> Future[Dataset]:
        if worker not in self._sent or self._sent[worker].status != "finished":
            self._sent[worker] = send(self._client, self._dataset, worker)
        return self._sent[worker]

    def lose(self, worker: str) -> None:
        """Give the parts of a worker that is gone or frozen to others; where none takes them, all is forgotten."""
        self._workers = [other for other in self._workers if other != worker]
        if worker in self._sent:
            let_go(self._client, [self._sent.pop(worker)])
        try:
            for part in list(self._parts):
                if part.worker == worker and part.sums is None:
                    self._move(part)
        except ClusterError as error:
            logger.warning("forgotten: %s", error)
            self.drop()

    def _move(self, part: _Part) -> None:
        """Begin a part anew on another worker."""
        if part.n_attempts == _ATTEMPTS:
            self.drop()
            raise ClusterError(f"{self._prefix} was lost with a worker {_ATTEMPTS} times. Look at the workers' logs.")
        let_go(self._client, [part.future])
        part.n_attempts += 1
        part.worker, part.future = self._submit(part.start, part.stop)

    def poll(self) -> MetricSums | None:
        """The sums once all parts are there, else None; raises what a part raised.

        A part that Dask says is lost goes to another worker.
        """
        try:
            for part in list(self._parts):
                self._take(part)
        except BaseException:
            self.drop()
            raise
        if not self._parts or any(part.sums is None for part in self._parts):
            return None
        total = MetricSums()
        for part in self._parts:
            assert part.sums is not None
            total.add(part.sums)
        self.drop()
        return total

    def _take(self, part: _Part) -> None:
        """Take the sums of a part that has ended."""
        if part.sums is not None or not part.future.done():
            return
        try:
            # A short wait: what has ended is a small message away, unless its worker has frozen since.
            part.sums = part.future.result(timeout=limits().connect_seconds)
        except TimeoutError:
            if part.future.status == "error":
                raise
            logger.info("%s: worker %s does not hand over its part", self._prefix, part.worker)
        except BaseException as error:
            if not is_loss(error):
                raise
            logger.info("%s: a part was lost with worker %s", self._prefix, part.worker)
            self._move(part)

    def finish(self, there: Callable[[], Collection[str]] | None = None) -> MetricSums:
        """Wait for the sums of the evaluation under way.

        Parameters
        ----------
        there
            Gives the workers that are there; it is asked now and then, and the parts of others are begun anew. None
            when the caller has no word of workers.

        Raises
        ------
        CallTimeoutError
            When it does not end within the limit.
        ClusterError
            When it is lost again and again, or no worker is left.
        """
        if not self._parts:
            raise ClusterError(f"{self._prefix}: finish() was called without an evaluation under way.")
        limit_seconds, look_seconds = limits().no_progress_seconds, limits().watch_seconds
        until = time.monotonic() + limit_seconds
        while (sums := self.poll()) is None:
            if time.monotonic() > until:
                on = sorted({part.worker for part in self._parts if part.sums is None})
                self.drop()
                raise CallTimeoutError(
                    f"{self._prefix} was not finished within {limit_seconds:g} seconds; parts are missing from {on}. "
                    "Look at these workers in the dashboard."
                )
            self._wait(look_seconds)
            if there is not None:
                for worker in {*self._workers} - {*there()}:
                    self.lose(worker)
            if not self._parts:
                raise ClusterError(f"{self._prefix} was lost with its workers. Look at their logs, or start others.")
        return sums

    def _wait(self, seconds: float) -> None:
        """Wait until the parts have ended, at most for so long."""
        waiting = [part.future for part in self._parts if part.sums is None and not part.future.done()]
        try:
            wait_for(waiting, seconds)
        except TimeoutError:
            return
        except BaseException as error:
            if not is_loss(error):
                raise

    def close(self) -> None:
        """Leave nothing under way, and let go of the data set."""
        self.drop()
        let_go(self._client, self._sent.values())
        self._sent.clear()

    def drop(self) -> None:
        """Forget the evaluation under way."""
        let_go(self._client, [part.future for part in self._parts])
        self._parts = []
