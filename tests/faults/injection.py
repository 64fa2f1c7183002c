"""Faults at named points of a run: settled beforehand, fired once, on the worker in a stated role.

::

    worker process      every call of an actor, made or taken, and every computation passes an `Injector`
                          the n-th that is at the fault's point    ──> claims the fault (a file, made by one only)
                          whoever plays the role, here or elsewhere ──> is killed, frozen, slowed down
                          until then the call that claimed it is held
    test process        `Faults` lets a frozen process go on, retires a worker, adds one

Files in a folder are all that the processes have in common, so a process that a nanny starts again knows what was
fired before its time.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed import Client, Worker, WorkerPlugin

import dask_belief as db
from dask_belief.checkpoint import CheckpointStore
from dask_belief.cluster.actors import ActorAddress, Caller
from dask_belief.parameter_server.messages import Dot, EndSum

HOLD_SECONDS = 20.0
"""A call that claimed a fault is held for so long at most."""

_LOOK_SECONDS = 0.005
_PLUGIN = "planted-faults"
_HUBS = {"Coordinator", "Ledger"}

# Calls and computations that a worker delays once it is slow.
_N_SLOW = 60


@dataclass(frozen=True)
class Passing:
    """A call or a computation that passes.

    Attributes
    ----------
    name
        The actor's method or the objective's.
    arguments
        Of a call: the generation first, but for keepers.
    is_made
        Whether this worker makes the call, rather than taking it.
    """

    name: str
    arguments: tuple[Any, ...] = ()
    is_made: bool = False


def _is_push(passing: Passing) -> bool:
    return passing.name == "exchange" and passing.arguments[3] is not None


def _sums(passing: Passing) -> bool:
    """Whether shards are told to form sums over all parameters."""
    return passing.name == "execute" and any(isinstance(command, Dot | EndSum) for command in passing.arguments[2])


def _saves(passing: Passing) -> bool:
    """Whether a piece of a shard is carried to where it is kept; a keeper is called without a generation."""
    to_keeper = passing.name == "write" and isinstance(passing.arguments[0], str)
    from_shard = passing.name == "read" and str(passing.arguments[1]).startswith("held:")
    return to_keeper or from_shard or passing.name == "save"


def _fills(passing: Passing) -> bool:
    """Whether a shard is filled with what was kept of another."""
    from_keeper = passing.name == "read" and isinstance(passing.arguments[0], str)
    return from_keeper or passing.name == "restore"


def _reads_snapshot(passing: Passing) -> bool:
    return passing.name == "read" and "snapshot" in passing.arguments


POINTS: dict[str, Callable[[Passing], bool]] = {
    "hello": lambda passing: passing.name == "hello",
    "letter": lambda passing: passing.name == "put",
    "lease": lambda passing: passing.name == "next_lease",
    "report": lambda passing: passing.name == "report",
    "fetch": lambda passing: passing.name == "fetch" or (passing.name == "exchange" and not _is_push(passing)),
    "compute": lambda passing: passing.name == "loss_and_gradient",
    "push": lambda passing: passing.name == "add" or _is_push(passing),
    "reduction": _sums,
    "saving": _saves,
    "writing": lambda passing: passing.name == "write_part",
    "commit": lambda passing: passing.name == "commit",
    "fence": lambda passing: passing.name == "adopt",
    "fill": _fills,
    "evaluation": lambda passing: passing.name == "evaluate" or _reads_snapshot(passing),
}
"""Where in a run a fault may be, for both methods.

A part of a checkpoint is written by a task on a worker, and its manifest by this process.
"""


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes
    ----------
    kind
        ``"kill"``, ``"freeze"``, ``"slow"``, ``"retire"`` or ``"add"``.
    role
        Of the worker that it happens to: ``"replica"`` (neither shard nor hub), ``"shard"``, ``"hub"``, ``"keeper"``
        (and no shard), or ``"any"``.
    point
        One of `POINTS`.
    number
        It happens when the point is passed for so many times, on one worker.
    is_after
        Whether what passes is done first; its answer does not arrive.
    is_elsewhere
        Whether the passings of all workers count, and not only those of workers in the role.
    seconds
        How long a frozen worker stays so; by how much a slow one delays each call.
    evaluation
        Only what belongs to this evaluation of Sandblaster; None for all.
    after
        Only what passes once the fault of this place in the list has happened; None for from the start on.
    """

    kind: str
    role: str
    point: str
    number: int = 1
    is_after: bool = False
    is_elsewhere: bool = False
    seconds: float = 0.0
    evaluation: int | None = None
    after: int | None = None

    def is_at(self, passing: Passing) -> bool:
        """Whether this is the point."""
        if not POINTS[self.point](passing):
            return False
        if self.evaluation is None:
            return True
        return len(passing.arguments) > 1 and passing.arguments[1] == self.evaluation


@dataclass(frozen=True)
class Happened:
    """To whom a fault happened."""

    worker: str
    pid: int


class Board:
    """The folder in which processes tell each other what has happened."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def claim(self, step: str, number: int, word: object = None) -> bool:
        """Note a step of a fault, with a word on it; False when another has done so."""
        # A file is there with all that it says, or not at all.
        draft = self._folder / f"draft-{os.getpid()}-{threading.get_ident()}-{step}-{number}"
        draft.write_text(json.dumps(word))
        try:
            os.link(draft, self._path(step, number))
        except FileExistsError:
            return False
        finally:
            draft.unlink()
        return True

    def is_noted(self, step: str, number: int) -> bool:
        """Whether a step was noted."""
        return self._path(step, number).exists()

    def read(self, step: str, number: int) -> Any:
        """Give the word on a step that was noted."""
        return json.loads(self._path(step, number).read_text())

    def _path(self, step: str, number: int) -> Path:
        return self._folder / f"{step}-{number}"


class Injector:
    """Lets calls and computations of one worker process pass, and makes the faults happen that are due.

    Parameters
    ----------
    worker
        The worker of this process.
    faults, board
        What is to happen, and what has.
    """

    def __init__(self, worker: Worker, faults: Sequence[Fault], board: Board) -> None:
        self._worker = worker
        self._faults = faults
        self._board = board
        self._counts = [0] * len(faults)
        self._lock = threading.Lock()
        self._n_slow = 0
        self._delay_seconds = 0.0

    def _plays(self, role: str) -> bool:
        kinds = {type(actor).__name__ for actor in list(self._worker.state.actors.values())}
        match role:
            case "any":
                return True
            case "replica":
                return not kinds & {"Shard", *_HUBS}
            case "hub":
                return bool(kinds & _HUBS)
            case "keeper":
                return "Keeper" in kinds and "Shard" not in kinds
        return role.capitalize() in kinds

    # What passes.

    def _claimed(self, passing: Passing) -> list[int]:
        """The faults that what passes has claimed."""
        claimed = []
        for number, fault in enumerate(self._faults):
            is_open = fault.after is None or self._board.is_noted("happened", fault.after)
            if not (is_open and fault.is_at(passing) and (fault.is_elsewhere or self._plays(fault.role))):
                continue
            with self._lock:
                self._counts[number] += 1
                is_due = self._counts[number] >= fault.number
            if is_due and not self._board.is_noted("claimed", number) and self._board.claim("claimed", number):
                claimed.append(number)
        return claimed

    def _delay(self) -> float:
        with self._lock:
            self._n_slow -= 1
            return self._delay_seconds if self._n_slow >= 0 else 0.0

    async def let_pass(self, passing: Passing, go_on: Callable[[], Any]) -> Any:
        """Let a call pass; its faults happen before it or after."""
        if delay := self._delay():
            await asyncio.sleep(delay)
        claimed = self._claimed(passing)
        for number in claimed:
            if not self._faults[number].is_after:
                await self._see_to(number)
        reply = await go_on()
        for number in claimed:
            if self._faults[number].is_after:
                await self._see_to(number)
        return reply

    def compute(self, name: str, go_on: Callable[[], Any]) -> Any:
        """Let a computation pass, in its own thread."""
        if delay := self._delay():
            time.sleep(delay)
        for number in self._claimed(Passing(name)):
            self._happen_here(number)
            until = time.monotonic() + HOLD_SECONDS
            while not self._is_settled(number) and time.monotonic() < until:
                time.sleep(_LOOK_SECONDS)
        return go_on()

    # What happens.

    async def _see_to(self, number: int) -> None:
        """Let a fault happen, here or on the worker whose role it is."""
        self._happen_here(number)
        until = time.monotonic() + HOLD_SECONDS
        while not self._is_settled(number) and time.monotonic() < until:
            await asyncio.sleep(_LOOK_SECONDS)

    def _is_settled(self, number: int) -> bool:
        by_test = self._faults[number].kind in ("retire", "add")
        return self._board.is_noted("begun" if by_test else "happened", number)

    def _happen_here(self, number: int) -> None:
        fault = self._faults[number]
        who = {"worker": self._worker.address, "pid": os.getpid()}
        if not self._plays(fault.role) or not self._board.claim("happened", number, who):
            return
        match fault.kind:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "freeze":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "slow":
                with self._lock:
                    self._n_slow, self._delay_seconds = _N_SLOW, fault.seconds

    async def listen(self) -> None:
        """Look out for faults that were claimed elsewhere, and are this worker's."""
        while True:
            for number in range(len(self._faults)):
                if self._board.is_noted("claimed", number) and not self._board.is_noted("happened", number):
                    self._happen_here(number)
            await asyncio.sleep(_LOOK_SECONDS)


_injector: Injector | None = None
"""That of this process: a worker's, or none."""


class PlantedFaults(WorkerPlugin):
    """Puts an `Injector` between a worker and its actors."""

    name = _PLUGIN

    def __init__(self, faults: Sequence[Fault], folder: Path) -> None:
        self._faults = tuple(faults)
        self._folder = folder
        self._undo: list[Callable[[], object]] = []

    def setup(self, worker: Worker) -> None:
        """Wrap what a call passes on both sides."""
        global _injector
        injector = _injector = Injector(worker, self._faults, Board(self._folder))
        call, execute = Caller.call, worker.actor_execute

        async def pass_call(caller: Caller, actor: ActorAddress, method: str, *arguments: Any, **options: Any) -> Any:
            passing = Passing(method, arguments, is_made=True)
            return await injector.let_pass(passing, lambda: call(caller, actor, method, *arguments, **options))

        async def pass_execute(actor: Any = None, function: Any = None, args: Any = (), kwargs: Any = None) -> Any:
            passing = Passing(function, tuple(args))
            return await injector.let_pass(passing, lambda: execute(actor, function, args, kwargs))

        # Calls of a worker's own actors go by its attribute, those of others by its handler.
        Caller.call = pass_call  # type: ignore[method-assign, assignment]
        write_part = CheckpointStore.write_part

        def pass_write(store: CheckpointStore, *arguments: Any) -> Any:
            return injector.compute("write_part", lambda: write_part(store, *arguments))

        CheckpointStore.write_part = pass_write  # type: ignore[method-assign, assignment]
        worker.actor_execute = worker.handlers["actor_execute"] = pass_execute  # type: ignore[method-assign]
        listening = asyncio.ensure_future(injector.listen())

        def undo() -> None:
            global _injector
            _injector = None
            listening.cancel()
            Caller.call = call  # type: ignore[method-assign]
            CheckpointStore.write_part = write_part  # type: ignore[method-assign]
            worker.actor_execute = worker.handlers["actor_execute"] = execute  # type: ignore[method-assign]

        self._undo = [undo]

    def teardown(self, worker: Worker) -> None:
        """Leave all as it was."""
        for undo in self._undo:
            undo()
        self._undo.clear()


class Watched:
    """An objective whose computations pass the injector of the process; in all else it is the objective itself."""

    def __init__(self, objective: Any) -> None:
        self.objective = objective

    def __getattr__(self, name: str) -> Any:
        if name == "objective":
            # While it is unpickled there is none yet.
            raise AttributeError(name)
        found = getattr(self.objective, name)
        if name == "on":
            return lambda backend: Watched(found(backend))
        if name not in ("loss_and_gradient", "evaluate"):
            return found

        @functools.wraps(found)
        def computed(*arguments: Any, **options: Any) -> Any:
            if _injector is None:
                return found(*arguments, **options)
            return _injector.compute(name, lambda: found(*arguments, **options))

        return computed


class Faults:
    """Faults that wait for their points on a cluster, for as long as the block of `planted` lasts.

    Attributes
    ----------
    error
        What went wrong where this process had to do something.
    """

    def __init__(self, client: Client, faults: Sequence[Fault], folder: Path) -> None:
        self.error: BaseException | None = None
        self._client = client
        self._faults = tuple(faults)
        self._board = Board(folder)
        self._is_over = threading.Event()
        self._seen: set[int] = set()
        self._helpers: list[threading.Thread] = []
        self._frozen: set[int] = set()
        self._watcher = threading.Thread(target=self._watch, name="faults", daemon=True)
        self._n_commits = [0] * len(self._faults)
        self._commit = CheckpointStore.commit
        CheckpointStore.commit = self._pass_commit()  # type: ignore[method-assign]
        client.register_plugin(PlantedFaults(faults, folder))
        self._watcher.start()

    def happened(self, number: int = 0) -> Happened | None:
        """To whom a fault has happened; None when it has not yet."""
        return Happened(**self._board.read("happened", number)) if self._board.is_noted("happened", number) else None

    def _pass_commit(self) -> Callable[..., None]:
        """Let the commit of a checkpoint, which is this process's, pass as what workers do passes."""
        commit = self._commit

        def passed(store: CheckpointStore, *arguments: Any) -> None:
            for number, fault in enumerate(self._faults):
                if not fault.is_at(Passing("commit")):
                    continue
                self._n_commits[number] += 1
                if self._n_commits[number] >= fault.number and self._board.claim("claimed", number):
                    until = time.monotonic() + HOLD_SECONDS
                    while not self._board.is_noted("happened", number) and time.monotonic() < until:
                        time.sleep(_LOOK_SECONDS)
            commit(store, *arguments)

        return passed

    def _watch(self) -> None:
        while not self._is_over.wait(_LOOK_SECONDS):
            for number, fault in enumerate(self._faults):
                happened = None if number in self._seen else self.happened(number)
                if happened is not None:
                    self._seen.add(number)
                    helper = threading.Thread(target=self._help, args=(number, fault, happened), daemon=True)
                    self._helpers.append(helper)
                    helper.start()

    def _help(self, number: int, fault: Fault, happened: Happened) -> None:
        """Do what the process itself cannot."""
        try:
            match fault.kind:
                case "freeze":
                    self._frozen.add(happened.pid)
                    self._is_over.wait(fault.seconds)
                    self._thaw(happened.pid)
                case "retire":
                    self._board.claim("begun", number)
                    assert db.retire_workers(self._client, [happened.worker]) == [happened.worker]
                case "add":
                    self._board.claim("begun", number)
                    cluster = self._client.cluster
                    cluster.scale(len(cluster.worker_spec) + 1)
        except BaseException as error:
            self.error = error

    def _thaw(self, pid: int) -> None:
        if pid in self._frozen:
            self._frozen.discard(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def await_helpers(self, limit_seconds: float = 30.0) -> None:
        """Wait until what this process has to do is done; raises what went wrong."""
        for helper in self._helpers:
            helper.join(limit_seconds)
            stack = "".join(traceback.format_stack(sys._current_frames().get(helper.ident or 0)))
            assert not helper.is_alive(), f"a fault's second half did not end; it is at\n{stack}"
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """Let frozen workers go on, and take the injectors off."""
        self._is_over.set()
        CheckpointStore.commit = self._commit  # type: ignore[method-assign]
        self._watcher.join(5.0)
        for pid in list(self._frozen):
            self._thaw(pid)
        self._client.unregister_worker_plugin(_PLUGIN)


@contextlib.contextmanager
def planted(client: Client, faults: Sequence[Fault], folder: Path) -> Iterator[Faults]:
    """Plant faults on a cluster."""
    folder.mkdir()
    there = Faults(client, faults, folder)
    try:
        yield there
    finally:
        there.close()
