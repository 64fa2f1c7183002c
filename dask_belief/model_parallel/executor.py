"""Both methods with a network in pieces: the lead passes every word on, and each piece carries it out on its own.

::

    replica's task (the lead)                                  a piece's task, on another worker
    Trainer or Evaluator                                       serve()
      PartitionedExecutor ── orders: fetch, compute, push ──>    PlainExecutor of its own range of the parameters
        PlainExecutor of the lead's own range                      PieceObjective
          PieceObjective <──── values of nodes, derivatives ────>

So neither method knows that there are pieces; each piece fetches from and pushes to the shards that hold its own
parameters, and what crosses between pieces goes straight from worker to worker.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import numpy as np

from dask_belief.backend import Backend, Scalar
from dask_belief.binary_tree import Node
from dask_belief.cluster.limits import limits
from dask_belief.cluster.post_box import Correspondent
from dask_belief.errors import CallTimeoutError
from dask_belief.model_parallel.letters import ANSWER, ORDERS, Letter
from dask_belief.model_parallel.partitioned import PartitionedNetwork
from dask_belief.model_parallel.piece import Batch
from dask_belief.model_parallel.plan import LEAD
from dask_belief.model_parallel.servant import Failed, Order
from dask_belief.parameter_server.exchange import Exchanged, Traffic
from dask_belief.parameter_server.executor import Ahead, BatchExecutor, Executor, StepExecutor
from dask_belief.parameter_server.messages import LeaseKey, PushKey, StepKey

Inner = TypeVar("Inner", bound=Executor)


class PartitionedExecutor(Generic[Inner]):
    """What the lead does with the words of both methods: passes them on, and carries out its own part.

    Parameters
    ----------
    inner
        Of the lead's own piece.
    network
        What is trained.
    correspondent
        The lead's.
    backend, dtype
        Of the run.
    """

    def __init__(
        self,
        inner: Inner,
        network: PartitionedNetwork,
        correspondent: Correspondent,
        backend: Backend,
        dtype: str,
    ) -> None:
        self._inner = inner
        self._network = network.network.on(backend)
        self._plan = network.plan
        self._correspondent = correspondent
        self._dtype = np.dtype(dtype)
        self._n_micro_batches = network.plan.micro_batches
        self._others = [piece for piece in range(network.plan.n_pieces) if piece != LEAD]
        self._waiting: list[Order] = []
        self._n_orders = 0
        self._n_steps = 0
        self._n_questions = 0
        self._has_new_parameters = True

    # Words that are passed on and carried out.

    def compute(self, inputs: Any, targets: Any, key: int | None = None) -> Scalar:
        """Find the gradient sum of some rows on all pieces; gives the loss sum."""
        rows = self._network.rows(inputs, self._dtype)
        self._n_steps += 1
        batch = Batch(
            self._n_steps, len(rows), self._n_micro_batches, has_new_parameters=self._has_new_parameters, key=key
        )
        self._has_new_parameters = False
        knower = self._plan.loss_piece
        for piece in self._others:
            self._send(piece, [*self._waiting, ("compute", (batch, targets if piece == knower else None))])
        self._sent()
        return self._inner.compute((batch, rows), targets if knower == LEAD else None)

    def number(self, loss: Scalar) -> float:
        """Tell a loss that `compute` gave, or a sum of such."""
        return self._inner.number(loss)

    def holdings(self) -> Mapping[str, int]:
        """Bytes of the vectors that the lead has where it computes, by what they are for."""
        return self._inner.holdings()

    def gradient_is_finite(self) -> bool:
        """Whether the gradient found so far is finite, on all pieces."""
        return all(self._ask("gradient_is_finite"))

    @property
    def pieces_waiting_seconds(self) -> float:
        """What the lead has waited for letters of the others."""
        return self._correspondent.waiting_seconds

    # How they travel.

    def _pass_on(self, word: str, *arguments: Any) -> None:
        """Have the pieces carry out a word with the next that cannot wait."""
        self._waiting.append((word, arguments))

    def _flush(self) -> None:
        if self._waiting:
            for piece in self._others:
                self._send(piece, self._waiting)
            self._sent()

    def _send(self, piece: int, orders: Sequence[Order]) -> None:
        letter = Letter(self._n_orders, ORDERS, 0, LEAD, piece)
        self._correspondent.send(piece, letter, list(orders))

    def _sent(self) -> None:
        self._waiting = []
        self._n_orders += 1

    def _ask(self, word: str, *arguments: Any) -> list[Any]:
        """Ask all pieces, the lead first, and wait for their answers."""
        question = self._question(word, *arguments)
        own = getattr(self._inner, word)(*arguments)
        answers = [
            self._correspondent.receive(self._answer(question, piece), f"piece {piece}'s answer to {word!r}")
            for piece in self._others
        ]
        return [own, *answers]

    def _question(self, word: str, *arguments: Any) -> int:
        self._n_questions += 1
        self._pass_on("answer", self._n_questions, word, arguments)
        self._flush()
        return self._n_questions

    @staticmethod
    def _answer(question: int, piece: int) -> Letter:
        return Letter(question, ANSWER, 0, piece, LEAD)

    async def _all_sent(self, own: Awaitable[Any], question: int) -> list[Any]:
        """Wait until what this piece and all others have begun to send has arrived.

        Raises
        ------
        StaleError, ActorLostError
            What one of them met.
        """
        first = await own
        found = [first]
        for piece in self._others:
            limit_seconds = limits().two_calls_seconds
            try:
                waiting = self._correspondent.arrival(self._answer(question, piece))
                answer = await asyncio.wait_for(waiting, limit_seconds)
            except TimeoutError as error:
                raise CallTimeoutError(
                    f"piece {piece} of a replica did not tell within {limit_seconds:g} seconds that what it sent has "
                    "arrived. Look in the dashboard whether its worker, or a shard's, is frozen or overloaded."
                ) from error
            if isinstance(answer, Failed):
                raise answer.as_error(piece)
            found.append(answer)
        return found

    def close(self) -> None:
        """Tell the pieces that there is no more to come."""
        self._pass_on("end")
        self._flush()


class PartitionedBatchExecutor(PartitionedExecutor[BatchExecutor]):
    """Units of Algorithm 1.2 with a network in pieces."""

    def fetch(self, evaluation: int) -> None:
        """Bring the parameters of an evaluation to all pieces."""
        self._has_new_parameters = True
        self._pass_on("fetch", evaluation)
        self._flush()
        self._inner.fetch(evaluation)

    @property
    def received_bytes(self) -> int:
        """Bytes of vectors that the lead fetched so far; each piece fetches its own."""
        return self._inner.received_bytes

    def add(self, unit: int) -> None:
        """Add what the last `compute` calls found to the sum of the lease."""
        # At once: it takes long, and all pieces are to do it at the same time.
        self._pass_on("add", unit)
        self._flush()
        self._inner.add(unit)

    def sum_is_finite(self) -> bool:
        """Whether the sum of the lease is finite, on all pieces."""
        return all(self._ask("sum_is_finite"))

    def drop_gradient(self) -> None:
        """Forget what was computed since the last `add`."""
        self._pass_on("drop_gradient")
        self._inner.drop_gradient()

    def drop_sum(self) -> None:
        """Forget the sum of the lease."""
        self._pass_on("drop_sum")
        self._inner.drop_sum()

    def push_sum(self, evaluation: int, node: Node) -> concurrent.futures.Future[int]:
        """Begin to push the sum of the lease, each piece its own; ends when all have."""
        question = self._question("push_sum", evaluation, node)
        own = self._inner.push_sum(evaluation, node)

        async def all_of() -> int:
            n_bytes: list[int] = await self._all_sent(asyncio.wrap_future(own), question)
            return sum(n_bytes)

        return self._correspondent.start(all_of())


class PartitionedStepExecutor(PartitionedExecutor[StepExecutor]):
    """Steps of Algorithm 1.1 with a network in pieces."""

    is_sparse = False

    def __init__(
        self,
        inner: StepExecutor,
        network: PartitionedNetwork,
        correspondent: Correspondent,
        backend: Backend,
        dtype: str,
    ) -> None:
        super().__init__(inner, network, correspondent, backend, dtype)
        self._pushed_bytes = 0
        self._fetched_bytes = 0

    def exchange(
        self, at: StepKey, push: PushKey | None, effective_step: float | None, ahead: Ahead
    ) -> concurrent.futures.Future[Exchanged] | None:
        """Begin to push and fetch on all pieces; what is given ends when all have."""
        if push is None and effective_step is None:
            return None
        question = self._question("exchange", at, push, effective_step)
        own = self._inner.exchange(at, push, effective_step, ahead)

        async def all_of() -> Exchanged:
            mine = _nothing() if own is None else asyncio.wrap_future(own)
            first, *others = await self._all_sent(mine, question)
            for pushed_bytes, fetched_bytes in others:
                self._pushed_bytes += pushed_bytes
                self._fetched_bytes += fetched_bytes
            return first if first is not None else Exchanged((), 0, 0)

        return self._correspondent.start(all_of())

    def take_effect(self, step: float) -> None:
        """Use the fetched parameters that take effect at `step` or before, on all pieces."""
        self._has_new_parameters = True
        self._pass_on("take_effect", step)
        self._inner.take_effect(step)

    def accrue(self, n_rows: int) -> None:
        """Add the mean gradient to what has accrued, and make the local step, on all pieces."""
        self._has_new_parameters = True
        # At once: it takes long, and all pieces are to do it at the same time.
        self._pass_on("accrue", n_rows)
        self._flush()
        self._inner.accrue(n_rows)

    def accrued_is_finite(self) -> bool:
        """Whether what has accrued is finite, on all pieces."""
        return all(self._ask("accrued_is_finite"))

    def applied(self, lease: LeaseKey) -> int:
        """The last mini-batch of a lease that every shard of every piece has applied; -1 for none."""
        marks: list[int] = self._ask("applied", lease)
        return min(marks)

    @property
    def traffic(self) -> Traffic:
        """What was exchanged so far by all pieces, and how long the lead waited for it."""
        own = self._inner.traffic
        return replace(
            own,
            pushed_bytes=own.pushed_bytes + self._pushed_bytes,
            fetched_bytes=own.fetched_bytes + self._fetched_bytes,
        )


async def _nothing() -> None:
    return None
