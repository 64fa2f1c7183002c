"""A network that notes when each mini-batch begins, in whatever process it computes; and a watch over a run's events.

The benchmarks' clocks begin at the first mini-batch, not when processes are started or data are sent to them.
"""

from __future__ import annotations

import functools
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

import dask_belief as db
from dask_belief.cluster.placement import Placement
from dask_belief.monitoring.events import Event, Validated
from dask_belief.parameter_server import deployment


@dataclass(frozen=True)
class NotedNetwork(db.Network):
    """A network like any other, which besides appends a time of the machine's clock for each gradient to a file.

    The clock is ``time.monotonic``, which on Linux is the same in all processes.
    """

    folder: str = field(default="", compare=False, kw_only=True)
    """Where the files are, one for each process."""

    def loss_and_gradient(
        self,
        parameters: Any,
        inputs: Any,
        targets: Any,
        *,
        out: Any = None,
        only_touched: bool = False,
        is_awaited: bool = True,
        key: int | None = None,
    ) -> tuple[Any, Any]:
        """Note the time, and give loss and gradient."""
        os.write(_file(self.folder), struct.pack("d", time.monotonic()))
        return super().loss_and_gradient(
            parameters, inputs, targets, out=out, only_touched=only_touched, is_awaited=is_awaited, key=key
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (super().__reduce__(), self.folder)

    def starts(self) -> list[np.ndarray]:
        """When each mini-batch began, an array for each process."""
        return [np.frombuffer(path.read_bytes()) for path in sorted(Path(self.folder).iterdir())]


def noted(network: db.Network, folder: Path) -> NotedNetwork:
    """Give the same network with an empty folder for its notes."""
    number = len(list(folder.glob("notes-*")))
    own = folder / f"notes-{number}"
    own.mkdir()
    return NotedNetwork(network.layers, network.loss, network.input_shape, backend=network.backend, folder=str(own))


def _again(reduced: tuple[Any, ...], folder: str) -> NotedNetwork:
    make, arguments = reduced[:2]
    network = make(*arguments)
    plain = NotedNetwork(network.layers, network.loss, network.input_shape, backend=network.backend)
    return replace(plain, folder=folder)


@functools.cache
def _file(folder: str) -> int:
    return os.open(Path(folder) / f"{os.getpid()}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def rows_per_second(network: NotedNetwork, batch_rows: int) -> float:
    """Rows of all processes over the time from the first mini-batch's beginning to the last one's."""
    starts = np.concatenate(network.starts())
    return float((len(starts) - 1) * batch_rows / (starts.max() - starts.min()))


@dataclass
class Watch:
    """A callback that keeps when each validation ended, and ends the run when one is good enough."""

    until_accuracy: float | None = None
    validated: list[tuple[float, Validated]] = field(default_factory=list)
    """By the clock of `NotedNetwork`."""

    def __call__(self, event: Event) -> bool:
        """Take note of an event; True ends the run."""
        if not isinstance(event, Validated):
            return False
        self.validated.append((time.monotonic(), event))
        return self.until_accuracy is not None and event.metrics["accuracy"] >= self.until_accuracy

    def curve(self, network: NotedNetwork) -> list[dict[str, float]]:
        """Give seconds since the first mini-batch began, passes and accuracy of each validation."""
        began = min(starts[0] for starts in network.starts())
        return [
            {"seconds": float(now - began), "passes": event.passes, "accuracy": event.metrics["accuracy"]}
            for now, event in self.validated
        ]


def seconds_until(curve: list[dict[str, float]], accuracy: float) -> float | None:
    """When a curve first reached an accuracy; None where it never did."""
    return next((point["seconds"] for point in curve if point["accuracy"] >= accuracy), None)


@contextmanager
def shards_on_the_last_worker() -> Iterator[None]:
    """Put all shards on the worker that a single replica is not on: the benchmark's business, and no option."""

    def place(workers: Any, n_shards: int) -> Placement:
        last = max(workers)
        return Placement(shards=(last,) * n_shards, hub=last)

    with patch.object(deployment, "place", place):
        yield
