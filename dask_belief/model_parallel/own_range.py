"""What one piece of a replica has of the whole: its range of the parameters, their shards, and its share of the work.

To a piece's own executor these are all there is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from dask_belief.backend import Array, Backend
from dask_belief.cluster.post_box import Correspondent
from dask_belief.model_parallel.letters import Letter
from dask_belief.model_parallel.partitioned import PartitionedNetwork
from dask_belief.model_parallel.piece import Batch, Piece, Steps
from dask_belief.parameter_server.directory import Directory, Renew


def own_directory(directory: Directory, span: range) -> Directory:
    """Give the directory of the shards that hold one piece's parameters, as if they were all."""
    chosen = [
        index for index, each in enumerate(directory.ranges) if each.start >= span.start and each.stop <= span.stop
    ]
    return replace(
        directory,
        n_parameters=len(span),
        shards=tuple(directory.shards[index] for index in chosen),
        ranges=tuple(
            range(directory.ranges[index].start - span.start, directory.ranges[index].stop - span.start)
            for index in chosen
        ),
        cuts=tuple(cut - span.start for cut in directory.cuts if span.start <= cut < span.stop),
        copies=tuple(directory.copies[index] for index in chosen) if directory.copies else (),
    )


def own_renew(renew: Renew, span: range) -> Renew:
    """Ask for newer directories likewise."""

    async def ask(generation: int) -> Directory | None:
        found = await renew(generation)
        return None if found is None else own_directory(found, span)

    return ask


class PieceObjective:
    """One piece of a network, as the objective of that piece's own executor.

    It is given the mini-batch's description with the rows, where the plain objective is given rows.
    """

    def __init__(
        self, network: PartitionedNetwork, number: int, dtype: str, backend: Backend, correspondent: Correspondent
    ) -> None:
        plan = network.plan
        span = network.spans[number]
        self.n_parameters = len(span)
        self.penalised: npt.NDArray[np.bool_] = network.penalised[span.start : span.stop]
        self._n_own = plan.layouts[number].n_parameters
        self._number = number
        self._correspondent = correspondent
        self._piece = Piece(plan, number, backend, np.dtype(dtype), self._post)

    def on(self, backend: Backend) -> PieceObjective:
        """Give itself: it was made for the backend."""
        return self

    def initial_parameters(self, seed: int) -> Array:
        """Not asked for: the run's vector is drawn as a whole."""
        raise AssertionError("a piece draws no parameters")

    def loss_and_gradient(
        self,
        parameters: Array,
        inputs: Any,
        targets: Array | None,
        *,
        out: Any = None,
        is_awaited: bool = True,
    ) -> tuple[Any, Array]:
        """Compute this piece's share of a mini-batch, with what comes from the others, and write the gradient."""
        batch: Batch
        batch, rows = inputs
        out[self._n_own :] = 0
        self._run(self._piece.steps(batch, parameters[: self._n_own], out[: self._n_own], rows, targets))
        return self._piece.loss, out

    def predict(self, parameters: Array, batch: Batch, rows: Array | None) -> Array | None:
        """Compute this piece's share of a prediction; gives the outputs, on the host, where this piece knows them."""
        self._run(self._piece.steps(batch, parameters[: self._n_own], None, rows, None))
        return self._piece.outputs

    def _run(self, steps: Steps) -> None:
        """Go through the steps, with what comes from the others."""
        letter = next(steps, None)
        while letter is not None:
            try:
                letter = steps.send(self._received(letter))
            except StopIteration:
                letter = None

    def _post(self, letter: Letter, values: Array) -> None:
        self._correspondent.send(letter.destination, letter, values)

    def _received(self, letter: Letter) -> Array:
        what = f"what piece {letter.source} sends {letter.way} to piece {letter.destination} of its replica"
        values: Array = self._correspondent.receive(letter, what)
        return values
