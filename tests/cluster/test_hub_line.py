"""A replica's line to its hub: leases ahead, reports behind their pushes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from dask_belief.cluster.hub import Over
from dask_belief.cluster.hub_line import HubLine
from dask_belief.cluster.limits import limits
from dask_belief.errors import ActorLostError, StaleError
from tests.parameter_server.local_actors import LocalActors

GENERATION = 6


class Desk:
    """A hub that gives prepared answers and notes what it is told."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.notes: list[tuple[Any, ...]] = []
        self.is_done = threading.Event()

    async def hello(self, *told: Any) -> None:
        self.notes.append(("hello", *told))

    async def next_lease(self, *told: Any) -> Any:
        self.notes.append(("next_lease", *told))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def report(self, *told: Any) -> None:
        self.notes.append(("report", *told))

    async def until_unwanted(self, *told: Any) -> bool:
        """Answers as soon as the test lets it."""
        self.notes.append(("until_unwanted", *told))
        while not self.is_done.is_set():
            await asyncio.sleep(0.001)
        return True


class Standing:
    """Counts the words that were heard from the hub."""

    def __init__(self) -> None:
        self.n_asked = 0
        self.n_heard = 0

    def listen(self) -> None:
        self.n_asked += 1

    def heard(self) -> None:
        self.n_heard += 1


@pytest.fixture
def actors() -> Iterator[LocalActors]:
    with LocalActors() as carrier:
        yield carrier


def line_to(actors: LocalActors, desk: Desk) -> tuple[HubLine, Standing, list[Any]]:
    stand_in: Any = Standing()
    ahead: list[Any] = []
    hub = replace(actors.register("desk", desk), generation=GENERATION)
    return HubLine(hub, "replica-0", stand_in, actors.caller, ahead.append), stand_in, ahead


def test_hello_tells_replica_and_kind(actors: LocalActors) -> None:
    """And returns once the hub knows."""
    desk = Desk()
    line, _, _ = line_to(actors, desk)
    line.hello("numpy on this")
    assert desk.notes == [("hello", GENERATION, "replica-0", "numpy on this")]


def test_lease_is_told_as_soon_as_it_arrives(actors: LocalActors) -> None:
    """So that its data can be read before it is taken; the question is held open by the hub for the stated time."""
    desk = Desk("a lease")
    line, standing, ahead = line_to(actors, desk)
    asked = line.ask()
    concurrent.futures.wait([asked], 10)
    assert line.answer(asked) == "a lease"
    assert ahead == ["a lease"]
    assert standing.n_heard == 1
    assert desk.notes == [("next_lease", GENERATION, "replica-0", limits().poll_seconds)]


@pytest.mark.parametrize("answer", [None, Over()])
def test_what_is_no_lease_is_not_read_ahead(actors: LocalActors, answer: Any) -> None:
    """Neither "nothing yet" nor the end of the run; both are words from the hub."""
    line, standing, ahead = line_to(actors, Desk(answer))
    assert line.answer(line.ask()) == answer
    assert ahead == []
    assert standing.n_heard == 1


def test_refusal_reaches_who_waits_for_the_answer(actors: LocalActors) -> None:
    """A replica of an older generation learns that it is one, and nothing is read ahead."""
    line, standing, ahead = line_to(actors, Desk(StaleError("generation 6 was named")))
    with pytest.raises(StaleError, match="generation 6"):
        line.answer(line.ask())
    assert (standing.n_heard, ahead) == (0, [])


def test_lost_hub_is_told(actors: LocalActors) -> None:
    """To whoever waits for the answer."""
    line, _, _ = line_to(actors, Desk())
    actors.actors.clear()
    with pytest.raises(ActorLostError, match="desk"):
        line.answer(line.ask())


def test_any_word_may_be_said_in_the_replicas_name(actors: LocalActors) -> None:
    """With the generation, and the hub's answer comes back."""
    desk = Desk()
    desk.is_done.set()
    line, _, ahead = line_to(actors, desk)
    assert actors.caller.run(line.call("until_unwanted", "a lease", 2.0)) is True
    assert desk.notes == [("until_unwanted", GENERATION, "replica-0", "a lease", 2.0)]
    assert ahead == []


def test_word_that_was_begun_is_answered_later(actors: LocalActors) -> None:
    """The replica's thread goes on meanwhile, and other words are said."""
    desk = Desk("a lease")
    line, standing, _ = line_to(actors, desk)
    begun = line.start("until_unwanted", "another", 2.0)
    assert line.answer(line.ask()) == "a lease"
    assert not begun.done()
    desk.is_done.set()
    assert begun.result(10) is True
    # Whether the hub is silent is known by its answers to questions for work.
    assert (standing.n_asked, standing.n_heard) == (1, 1)


def test_word_that_the_hub_does_not_hear_fails(actors: LocalActors) -> None:
    """Whoever waits for the answer is told."""
    line, _, _ = line_to(actors, Desk())
    actors.actors.clear()
    with pytest.raises(ActorLostError, match="desk"):
        line.start("report", "done").result(10)


def test_report_comes_after_its_push(actors: LocalActors) -> None:
    """What is reported has arrived: the report waits until the push has ended."""
    desk, is_through = Desk(), threading.Event()
    line, _, _ = line_to(actors, desk)

    async def push() -> None:
        while not is_through.is_set():
            await asyncio.sleep(0.001)
        desk.notes.append(("push",))

    sent = actors.caller.start(push())
    reported = line.report_after(sent, "done")
    assert desk.notes == []
    is_through.set()
    reported.result(10)
    assert desk.notes == [("push",), ("report", GENERATION, "replica-0", "done")]


def test_report_without_a_push_goes_at_once(actors: LocalActors) -> None:
    """Where all was pushed before."""
    desk = Desk()
    line, _, _ = line_to(actors, desk)
    line.report_after(None, "done").result(10)
    assert desk.notes == [("report", GENERATION, "replica-0", "done")]


def test_work_whose_push_is_stale_is_not_reported(actors: LocalActors) -> None:
    """Others did it; that is no error."""
    desk = Desk()
    line, _, _ = line_to(actors, desk)

    async def push() -> None:
        raise StaleError("evaluation 3 was named, but 4 is under way")

    line.report_after(actors.caller.start(push()), "done").result(10)
    assert desk.notes == []


def test_work_whose_push_failed_is_not_reported(actors: LocalActors) -> None:
    """The error reaches whoever waits for the report."""
    desk = Desk()
    line, _, _ = line_to(actors, desk)

    async def push() -> None:
        raise ActorLostError("shard 0 is gone")

    with pytest.raises(ActorLostError, match="shard 0 is gone"):
        line.report_after(actors.caller.start(push()), "done").result(10)
    assert desk.notes == []
