"""One run of `benchmarks.chaos`, as a process that can be killed: ``python -m benchmarks.chaos_run ORDER.json``.

The order is an `Order` in JSON. What happens is told on standard output, a line an event, and what came of the run is
written as JSON where the order says. SIGUSR1 writes the stacks of all threads to standard error.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import logging
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client

import dask_belief as db
from benchmarks.fashion_mnist import N_CLASSES, N_FEATURES, Rows
from dask_belief.monitoring.events import DownpourProgressed, Event, IterationEnded, Rebuilt, Saved
from dask_belief.parameter_server.ranges import BLOCK

N_ROWS, CHUNK_ROWS, BATCH_ROWS = 16_384, 512, 32
RATE = 2.0**-5
"""With whole mini-batches of a power of two, sums of what rows add to their counts are exact."""

LIMITS = db.Limits(frozen_seconds=3.0)
_TRAINED = db.Network([db.Dense(48, "relu"), db.Dense(N_CLASSES)], "softmax", (N_FEATURES,))


class CountedNetwork:
    """A network whose gradient also counts rows, on each shard, so that the end shows how often each row was applied.

    The targets are the rows' numbers. The count of row i on shard s is parameter ``s * BLOCK + i``, and the network's
    own parameters follow the first counts.

    Parameters
    ----------
    classes
        Of the rows, ``(N_ROWS,)``.
    n_shards
        Blocks of parameters.
    """

    def __init__(self, classes: np.ndarray, n_shards: int) -> None:
        self._classes = classes
        self._n_shards = n_shards
        self._own = slice(N_ROWS, N_ROWS + _TRAINED.n_parameters)
        self.n_parameters = n_shards * BLOCK

    def initial_parameters(self, seed: int) -> np.ndarray:
        """Counts of zero, and the network's own."""
        parameters = np.zeros(self.n_parameters)
        parameters[self._own] = _TRAINED.initial_parameters(seed)
        return parameters

    def loss_and_gradient(self, parameters: np.ndarray, inputs: np.ndarray, targets: np.ndarray) -> tuple[float, Any]:
        """The network's loss, its gradient, and one for each row."""
        rows = np.asarray(targets, np.int64)
        gradient = np.zeros_like(parameters)
        loss, gradient[self._own] = _TRAINED.loss_and_gradient(parameters[self._own], inputs, self._classes[rows])
        for shard in range(self._n_shards):
            gradient[shard * BLOCK + rows] = 1.0
        return loss, gradient

    def counts(self, parameters: np.ndarray) -> np.ndarray:
        """How often each shard counted each row, ``(n_shards, N_ROWS)``."""
        blocks = parameters.astype(np.float64).reshape(self._n_shards, BLOCK)
        return -blocks[:, :N_ROWS] * (BATCH_ROWS / RATE)


@dataclass(frozen=True)
class Order:
    """What to train.

    Attributes
    ----------
    scheduler
        Its address.
    method
        ``"Sandblaster"`` or ``"Downpour"``.
    options
        Of the method.
    data, result
        The folder with the rows, and the file for what came of the run.
    checkpoint, every_seconds
        See `dask_belief.Checkpoint`; None for no checkpoint.
    should_resume
        Whether to go on from there.
    """

    scheduler: str
    method: str
    options: dict[str, Any]
    data: str
    result: str
    checkpoint: str | None = None
    every_seconds: float | None = None
    should_resume: bool = False


@dataclass
class Told:
    """What came of a run.

    Attributes
    ----------
    reason
        Why it stopped.
    digest, losses
        Of the parameters, and of each iteration: the bits of a Sandblaster run.
    most, missing, n_told_lost
        Of a Downpour run: the most often that a row was applied, and by shard the mini-batches that were not, and those
        that the run says were lost.
    is_finite
        Whether all parameters are numbers.
    rebuilt
        What was made anew, and what that cost.
    """

    reason: str
    seconds: float
    loss: float
    is_repeatable: bool
    is_finite: bool
    digest: str = ""
    losses: list[float] = field(default_factory=list)
    most: float = 0.0
    missing: list[float] = field(default_factory=list)
    n_told_lost: list[int] = field(default_factory=list)
    rebuilt: list[dict[str, Any]] = field(default_factory=list)


def write_data(rows: Rows, folder: Path) -> None:
    """Write the rows twice: with their classes for Sandblaster, with their numbers for Downpour."""
    inputs, classes = rows.inputs[:N_ROWS], rows.targets[:N_ROWS]
    for name, targets in (("classes", classes), ("numbers", np.arange(N_ROWS))):
        db.write_dataset(folder / f"{name}.zarr", inputs, targets, chunk_rows=CHUNK_ROWS, scale=1 / 255)
    np.save(folder / "classes.npy", classes)


def main() -> None:
    # Whatever this is started from may ignore interrupts, as a shell does for what it runs in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("dask_belief").setLevel(logging.INFO)
    order = Order(**json.loads(Path(sys.argv[1]).read_text()))
    with Client(order.scheduler, set_as_default=False) as client:
        try:
            # Whoever hears it may interrupt at once.
            say("begins")
            told = run(order, client)
        except KeyboardInterrupt:
            # It had not begun yet.
            say("interrupted")
            return
        draft = Path(f"{order.result}.draft")
        draft.write_text(json.dumps(asdict(told)))
        draft.rename(order.result)
    say(f"ended {told.reason}")


def run(order: Order, client: Client) -> Told:
    """Train as ordered."""
    data = Path(order.data)
    common: dict[str, Any] = {"client": client, "progress": False, "limits": LIMITS, "callbacks": [hear]}
    saving = None if order.checkpoint is None else db.Checkpoint(order.checkpoint, order.every_seconds)
    if order.method == "Sandblaster":
        objective: Any = db.Network([db.Dense(100, "sigmoid"), db.Dense(N_CLASSES)], "softmax", (N_FEATURES,))
        method: Any = db.Sandblaster(**order.options, gtol=0.0, ftol=0.0)
        store = data / "classes.zarr"
    else:
        objective = CountedNetwork(np.load(data / "classes.npy"), order.options["n_shards"])
        method = db.Downpour(**order.options, rule=db.SGD(RATE), batch_size=BATCH_ROWS, lease_rows=CHUNK_ROWS)
        store = data / "numbers.zarr"
    if order.should_resume:
        assert saving is not None
        result = db.resume(saving, objective=objective, **common)
    else:
        result = db.train(objective, store, method, checkpoint=saving, **common)
    is_finite = bool(np.isfinite(result.parameters).all())
    told = Told(result.stop.reason.name, result.seconds, result.loss, result.repeatable, is_finite)
    events = result.history.events
    told.rebuilt = [
        {"reason": event.reason, "lost": event.lost, "updates_lost": event.updates_lost}
        for event in events
        if isinstance(event, Rebuilt)
    ]
    if order.method == "Sandblaster":
        told.digest = hashlib.sha256(result.parameters.tobytes()).hexdigest()
        told.losses = list(result.history["loss"])
    else:
        counts = objective.counts(result.parameters)
        told.most = float(counts.max())
        told.missing = ((order.options["epochs"] - counts).sum(axis=1) / BATCH_ROWS).tolist()
        last = [event for event in events if isinstance(event, DownpourProgressed)][-1:]
        told.n_told_lost = [shard.n_lost for event in last for shard in event.shards]
    return told


_BEGAN = time.monotonic()


def hear(event: Event) -> None:
    """Tell of an event, in a few words."""
    match event:
        case IterationEnded():
            words = f"{event.iteration} {event.loss!r}"
        case DownpourProgressed():
            words = f"{event.rows} {[shard.n_lost for shard in event.shards]}"
        case Saved():
            words = str(event.number)
        case _:
            words = str(event)
    say(f"{type(event).__name__} {words}")


def say(words: str) -> None:
    """Write a line, at once."""
    print(f"{time.monotonic() - _BEGAN:.2f} {words}", flush=True)


if __name__ == "__main__":
    main()
