"""Runs a recorded Downpour run again, in one process and to the bit, to find out why it went as it did.

Everything is the real thing, shards, couriers, executors and trainers, each replica in a thread of its own. Only the
way from replicas to shards is another: it lets each exchange through when its turn has come by the record.

::

    replica-0  exchange ──┐                     ┌── piece 0 of shard 0:  replica-0, replica-1, replica-0, ...
    replica-1  exchange ──┴── wait for turn ────┴── piece 0 of shard 1:  replica-1, replica-0, replica-0, ...
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
from collections.abc import Coroutine, Iterator
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_belief.backend import get_backend
from dask_belief.cluster.actors import ActorAddress, Caller, Message
from dask_belief.cluster.limits import limits
from dask_belief.data.dataset import Dataset, DatasetLike, as_dataset
from dask_belief.data.units import UnitPlan
from dask_belief.downpour.config import Downpour
from dask_belief.downpour.executor import StepSpec, update_spec
from dask_belief.downpour.record import Record, read_record
from dask_belief.downpour.replica import step_executor
from dask_belief.downpour.synchronous import SynchronousLine
from dask_belief.downpour.trainer import Trainer, Work
from dask_belief.errors import ArgumentError, DataError, NoProgressError
from dask_belief.models.network import Network
from dask_belief.objective import Objective, check_objective, draws_of, penalised_of
from dask_belief.parameter_server.client import ParameterServer
from dask_belief.parameter_server.consistency import Synchronous
from dask_belief.parameter_server.directory import Directory
from dask_belief.parameter_server.messages import LeaseKey, Logged, Round, StepKey
from dask_belief.parameter_server.ranges import pieces
from dask_belief.parameter_server.shard import Shard, ShardSpec
from dask_belief.parameter_server.updates import VALUES

logger = logging.getLogger(__name__)

Vector = NDArray[np.floating]

# A replay waits for nobody but itself: what bounds it is that some exchange goes through now and then.
_NO_LIMIT = 1e9


def replay(
    path: str | Path, objective: Objective | None = None, dataset: DatasetLike | None = None
) -> NDArray[np.floating]:
    """Run a recorded Downpour run again, in this process.

    Parameters
    ----------
    path
        What was given to `dask_belief.train` as ``record=``.
    objective
        What was trained; None where it was a `Network`, which is in the record.
    dataset
        What it was trained on; None where it was a store that can be opened again.

    Returns
    -------
    numpy.ndarray
        The last parameters, ``(n_parameters,)``: the same bits as the run's, on a processor and with a linear algebra
        library of the same kind.

    Raises
    ------
    MissingStoreError, DataError
        When there is no record that can be run again, or other data are given.
    ArgumentError
        When `objective` or `dataset` is needed, or does not fit.
    NoProgressError
        When the record does not fit what is computed, so that no exchange's turn comes.
    """
    record = read_record(path)
    if objective is None:
        if record.head["network"] is None:
            raise ArgumentError("objective: the record is of an objective of your own; give it.")
        objective = Network.from_config(record.head["network"])
    check_objective(objective)
    if objective.n_parameters != len(record.initial):
        raise ArgumentError(
            f"objective: has {objective.n_parameters} parameters, the record is of {len(record.initial)}."
        )
    if dataset is None:
        if record.head["dataset"] is None:
            raise ArgumentError("dataset: the record is of a data set that cannot be opened by name; give it.")
        dataset = record.head["dataset"]
    data = as_dataset(dataset)
    plan = UnitPlan(**record.head["plan"])
    if data.n_rows != plan.n_rows:
        raise DataError(f"dataset: has {data.n_rows} rows, the record is of {plan.n_rows}.")
    backend = get_backend("numpy")
    if record.head["kinds"] != [backend.kind()]:
        logger.warning("the run was on %s, this is %s: the last bits may differ.", record.head["kinds"], backend.kind())
    with backend.single_thread(), backend.computing(), _Replay(record, objective, data, plan) as run:
        return run.parameters()


Who = tuple[str, StepKey, bool, bool]
"""Who exchanged where in its work, and whether it pushed and fetched."""


class _Turns:
    """Lets the exchanges with one piece through in their recorded order; on one event loop."""

    def __init__(self, recorded: list[Logged]) -> None:
        self._log: list[Logged] = []
        # By place: the round that an exchange closes, and how many there were before a push.
        self._closed: list[Round | None] = []
        self._n_rounds: list[int] = []
        pushes: list[Logged] = []
        n_rounds = 0
        for each in recorded:
            if not each.replica:
                pushes.append(each)
                continue
            closed = Logged.closed(pushes)
            n_rounds += closed is not None
            pushes = []
            self._log.append(each)
            self._closed.append(closed)
            self._n_rounds.append(n_rounds)
        self._places: dict[Who, int] = {
            (each.replica, each.at, each.last >= 0, each.has_fetched): number for number, each in enumerate(self._log)
        }
        self._waiting: dict[int, asyncio.Event] = {}
        self.n_done = 0

    def __contains__(self, who: Who) -> bool:
        return who in self._places

    async def turn(self, who: Who) -> tuple[Round | None, int]:
        """Wait until it is the turn of an exchange; give the round that it closes, and the one that its push is for."""
        place = self._places[who]
        await self._reached(place)
        return self._closed[place], self._n_rounds[place] if self._log[place].is_taken else -1

    async def through(self, who: Who) -> None:
        """Wait until an exchange is through."""
        await self._reached(self._places[who] + 1)

    async def _reached(self, place: int) -> None:
        while self.n_done < place:
            await self._waiting.setdefault(place, asyncio.Event()).wait()

    def done(self) -> None:
        """Note that the exchange whose turn it was is through."""
        self.n_done += 1
        event = self._waiting.pop(self.n_done, None)
        if event is not None:
            event.set()

    @property
    def next_replica(self) -> str | None:
        """Whose turn it is."""
        return self._log[self.n_done].replica if self.n_done < len(self._log) else None


class _ScriptEndedError(Exception):
    """The replica was lost here."""


class _ReplayCaller(Caller):
    """Calls without a limit of their own: an exchange may have to wait for everything before it."""

    async def call(
        self, actor: ActorAddress, method: str, *arguments: object, timeout_seconds: float | None = None
    ) -> Any:
        limit_seconds = _NO_LIMIT if timeout_seconds is None else timeout_seconds
        return await super().call(actor, method, *arguments, timeout_seconds=limit_seconds)

    def run(self, coroutine: Coroutine[Any, Any, Any], timeout_seconds: float | None = None) -> Any:
        return super().run(coroutine, _NO_LIMIT if timeout_seconds is None else timeout_seconds)


class _Replay:
    """The shards of a recorded run, the event loop that reaches them, and a thread for each replica."""

    def __init__(self, record: Record, objective: Objective, dataset: Dataset, plan: UnitPlan) -> None:
        self._record = record
        self._objective = objective
        self._dataset = dataset
        self._plan = plan
        head = record.head
        self._method = replace(Downpour.from_config(head["method"]), stalled_after_seconds=_NO_LIMIT)
        self._loop = asyncio.new_event_loop()
        self._caller = _ReplayCaller(self._loop, self._line)
        self._is_over = False
        self._shards: dict[str, Shard] = {}
        self._directory = self._make_shards()
        self._turns: dict[tuple[str, int], _Turns] = {}
        logs = iter(record.logs)
        for shard, span in zip(self._directory.shards, record.shards, strict=True):
            for piece in pieces(span, head["dtype"]):
                self._turns[shard.key, piece.start - span.start] = _Turns(next(logs))
        self._threads = concurrent.futures.ThreadPoolExecutor(max(1, len(self._replicas)), "dask-belief-replay")
        self._loop_thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def _make_shards(self) -> Directory:
        penalised = penalised_of(self._objective)
        updates = update_spec(self._method, is_recorded=False)
        ranges, dtype = self._record.shards, self._record.head["dtype"]
        addresses = []
        for index, span in enumerate(ranges):
            mask = None if penalised is None else penalised[span.start : span.stop]
            name = f"shard {index}"
            spec = ShardSpec(0, index, span, len(self._record.initial), dtype, mask, updates)
            self._shards[name] = Shard(spec)
            addresses.append(ActorAddress(name, "replay", name))
        return Directory(0, len(self._record.initial), dtype, tuple(addresses), ranges)

    def __enter__(self) -> _Replay:
        self._loop_thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Whoever still waits for a turn, or comes later, is told that there will be none.
        self._is_over = True
        cancelling = asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop)
        concurrent.futures.wait([cancelling], limits().stop_seconds)
        self._threads.shutdown(cancel_futures=True)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._loop_thread.join(limits().stop_seconds)
        self._loop.close()

    @property
    def _replicas(self) -> list[str]:
        """In the order in which they first reached a shard."""
        return list(dict.fromkeys(each.replica for log in self._record.logs for each in log if each.replica))

    def parameters(self) -> Vector:
        """Run all replicas to the end of their parts, and give the shards' values."""
        server = ParameterServer(self._directory, self._caller)
        self._caller.run(server.write(VALUES, self._record.initial))
        self._caller.run(server.begin_updates())
        # A thread of its own has the limits of whoever begins the replay only when it is given them.
        running = {self._threads.submit(copy_context().run, self._run_replica, replica) for replica in self._replicas}
        before = -1
        while running:
            done, running = concurrent.futures.wait(
                running, limits().no_progress_seconds, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for each in done:
                each.result()
            n_done = sum(turns.n_done for turns in self._turns.values())
            if not done and n_done == before:
                whose = sorted({str(turns.next_replica) for turns in self._turns.values()} - {"None"})
                raise NoProgressError(
                    f"replay: no exchange went through for {limits().no_progress_seconds:g} seconds; it is the turn of "
                    f"{', '.join(whose)}. The objective or the data are not those of the record."
                )
            before = n_done
        values = np.empty_like(self._record.initial)
        self._caller.run(server.read(VALUES, values))
        return values

    def _run_replica(self, replica: str) -> None:
        """Train on the leases that the record gives a replica, as far as it came."""
        backend = get_backend("numpy")
        steps = StepSpec(replica, self._objective, self._directory, self._caller, backend, self._method)
        carry = None
        if isinstance(self._method.staleness, Synchronous):
            carry = SynchronousLine(ParameterServer(self._directory, self._caller), _no_ledger)
        executor = step_executor(steps, carry)
        trainer = Trainer(executor, self._method, self._record.head["seed"], draws_of(steps.objective))
        with contextlib.suppress(_ScriptEndedError), backend.computing():
            for key, first in self._leases(replica):
                unit = self._plan[key.lease]
                dtype = np.dtype(self._record.head["dtype"])
                rows = self._dataset.read(unit.start, unit.stop, dtype=dtype)
                trained = trainer.train(Work(key, unit, *rows), first, lambda: True)
                if trained is not None and trained.sent is not None:
                    trained.sent.result(_NO_LIMIT)

    def _leases(self, replica: str) -> Iterator[tuple[LeaseKey, int]]:
        """The leases of a replica in their order, each with the mini-batch at which it began."""
        longest = max(self._record.logs, key=lambda log: sum(each.replica == replica for each in log))
        began = {each.at.lease: each.at.began for each in longest if each.replica == replica}
        yield from began.items()

    async def _line(self, worker: str, message: Message) -> dict[str, Any]:
        """What stands for the way to the shards."""
        if self._is_over:
            raise _ScriptEndedError
        try:
            if message.function == "exchange":
                result = await self._exchange(message)
            else:
                result = getattr(self._shards[message.actor], message.function)(*message.arguments)
        except Exception as error:
            return {"status": "error", "exception": error}
        return {"status": "OK", "result": result}

    async def _exchange(self, message: Message) -> Any:
        """Carry out an exchange with one piece when its turn has come."""
        arguments: Any = message.arguments
        who, offset = (*arguments[1:3], arguments[3] is not None, arguments[9] is not False), arguments[5]
        turns = self._turns[message.actor, offset]
        if who not in turns:
            # The replica was lost before this piece was reached: what reached others is to be done first.
            for other in self._turns.values():
                if who in other:
                    await other.through(who)
            raise _ScriptEndedError
        closed, number = await turns.turn(who)
        if isinstance(self._method.staleness, Synchronous):
            # Which round it was is in the record, and so is what made it.
            arguments = (*arguments[:4], number, *arguments[5:10], closed)
        try:
            return self._shards[message.actor].exchange(*arguments)
        finally:
            turns.done()


async def _cancel_others() -> None:
    """End whatever else runs on this event loop."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _no_ledger(method: str, *_: object) -> Round | None:
    """What stands for the ledger of synchronous training: the record says what it decided."""
    return Round(0, (), ()) if method == "arrive" else None
