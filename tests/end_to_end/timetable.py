"""What happens to a Downpour run at settled moments: counted in mini-batches of all replicas, never in seconds."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
from distributed import Client, get_worker

import dask_belief as db
from dask_belief.backend import Scalar
from dask_belief.cluster.actors import ActorAddress, Caller
from dask_belief.cluster.placement import place
from dask_belief.downpour.trainer import Trainer

LIMIT_SECONDS = 30.0
"""After so long what is held back fails."""


def first_then_long(cases: Iterable[Any], n_first: int = 1) -> list[Any]:
    """Cases of a test, of which all but the first are left to the long tests."""
    cases = list(cases)
    return [*cases[:n_first], *(pytest.param(case, marks=pytest.mark.long) for case in cases[n_first:])]


class Timetable:
    """Does something as the n-th mini-batch of a run is begun, in the thread of the replica that begins it.

    Parameters
    ----------
    monkeypatch
        Undoes it at the end of the test.
    actions
        By number of the mini-batch, over all replicas.

    Attributes
    ----------
    n_begun
        Mini-batches begun so far.
    workers
        On which workers.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, actions: Mapping[int, Callable[[], object]]) -> None:
        self.n_begun = 0
        self.workers: set[str] = set()
        self._actions = dict(actions)
        self._awaited: Callable[[str], bool] | None = None
        self._changed = threading.Condition()
        self._compute = Trainer._compute
        monkeypatch.setattr(Trainer, "_compute", lambda trainer, *given: self._begin(trainer, *given))

    def await_other_than(self, workers: set[str]) -> None:
        """Let no replica on these workers begin anything before one elsewhere has."""
        self._awaited = workers.__contains__

    def _begin(self, trainer: Trainer, *given: Any) -> Scalar:
        worker = get_worker().address
        with self._changed:
            self.workers.add(worker)
            action = self._actions.pop(self.n_begun, None)
            self.n_begun += 1
            self._changed.notify_all()
        if action is not None:
            action()
        with self._changed:
            assert self._changed.wait_for(self._is_free, LIMIT_SECONDS), "nobody else came"
        return self._compute(trainer, *given)

    def _is_free(self) -> bool:
        return self._awaited is None or not all(map(self._awaited, self.workers))


class Failing:
    """The n-th call of a method fails, of one actor or of all: before it is made, or afterwards, its answer lost.

    Attributes
    ----------
    has_failed
        Whether it came to that.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, method: str, number: int, actor: str = "", is_made: bool = False
    ) -> None:
        self.has_failed = False
        call, numbers = Caller.call, itertools.count()

        async def fail_once(caller: Caller, to: ActorAddress, name: str, *arguments: Any, **options: float) -> Any:
            is_chosen = name == method and to.name.startswith(actor) and next(numbers) == number
            if not is_chosen:
                return await call(caller, to, name, *arguments, **options)
            self.has_failed = True
            if is_made:
                await call(caller, to, name, *arguments, **options)
            raise db.CallTimeoutError("planted")

        monkeypatch.setattr(Caller, "call", fail_once)


def idle_workers(client: Client, n_shards: int = 1) -> list[str]:
    """The workers that will hold neither a shard nor the ledger."""
    placement = place(list(client.nthreads()), n_shards)
    return sorted(set(client.nthreads()) - {placement.hub, *placement.shards})
