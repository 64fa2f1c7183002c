"""Networks in pieces, computed by pieces that are all in this process."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dask_belief.backend import Array, Backend
from dask_belief.model_parallel.letters import Letter
from dask_belief.model_parallel.piece import Batch, Piece, run_together
from dask_belief.model_parallel.plan import LEAD, Plan
from dask_belief.models.network import Network
from dask_belief.seeds import stream


def rows_for(network: Network, n_rows: int, dtype: str, seed: int = 0) -> tuple[NDArray[np.floating], NDArray]:
    """Draw rows, and targets that fit the loss."""
    random = stream(seed, "rows")
    inputs = random.normal(size=(n_rows, *network.input_shape)).astype(dtype)
    if network.loss == "softmax":
        return inputs, random.integers(0, network.n_outputs, n_rows)
    if network.loss == "logistic":
        return inputs, random.integers(0, 2, (n_rows, network.n_outputs)).astype(dtype)
    return inputs, random.normal(size=(n_rows, network.n_outputs)).astype(dtype)


def parameters_for(network: Network, dtype: str) -> NDArray[np.floating]:
    """Draw parameters, biases among them."""
    noise = stream(1, "parameters").normal(size=network.n_parameters) * 0.1
    return (network.initial_parameters(0, dtype) + noise).astype(dtype)


class Together:
    """All pieces of a plan in this thread.

    Attributes
    ----------
    sent
        Each message and its number of values.
    """

    def __init__(self, plan: Plan, backend: Backend, dtype: str) -> None:
        self.plan = plan
        self.sent: list[tuple[Letter, int]] = []
        self._letters: dict[Letter, Array] = {}
        self._backend = backend
        self.pieces = [Piece(plan, number, backend, np.dtype(dtype), self._post) for number in range(plan.n_pieces)]

    def _post(self, letter: Letter, values: Array) -> None:
        assert letter not in self._letters and isinstance(values, np.ndarray)
        self.sent.append((letter, values.size))
        self._letters[letter] = values

    def loss_and_gradient(
        self, parameters: NDArray, inputs: Array, targets: NDArray, batch: Batch
    ) -> tuple[float, NDArray]:
        """As `Network.loss_and_gradient`, in pieces; every message that was sent has to be read."""
        backend, plan = self._backend, self.plan
        own = [backend.asarray(vector) for vector in plan.cut_vector(parameters)]
        gradients = [backend.asarray(np.full_like(backend.to_host(vector), np.nan)) for vector in own]

        def steps(piece: Piece):
            rows = inputs if piece.number == LEAD else None
            known = targets if piece.number == plan.loss_piece else None
            return piece.steps(batch, own[piece.number], gradients[piece.number], rows, known)

        self._run(steps)
        loss = self.pieces[LEAD].loss
        out = np.full_like(parameters, np.nan)
        plan.join_vectors([backend.to_host(each) for each in gradients], out)
        return (loss if isinstance(loss, float) else backend.item(loss)), out

    def predict(self, parameters: NDArray, inputs: Array, batch: Batch) -> NDArray:
        """As `Network.predict`, in pieces."""
        own = [self._backend.asarray(vector) for vector in self.plan.cut_vector(parameters)]

        def steps(piece: Piece):
            vector = own[piece.number]
            return piece.steps(batch, vector, vector, inputs if piece.number == LEAD else None, None)

        self._run(steps)
        outputs = self.pieces[self.plan.loss_piece].outputs
        assert outputs is not None
        return outputs

    def _run(self, steps: Callable) -> None:
        with self._backend.computing():
            run_together(self.pieces, [steps(piece) for piece in self.pieces], self._letters)
        assert not self._letters, "messages that nobody has read"
