"""The bell that wakes whoever waits, and what a hub tells of the shards."""

from __future__ import annotations

import asyncio

import pytest

from dask_belief.cluster.hub import Bell, Hub, Over
from dask_belief.errors import StaleError

GENERATION = 3
LIMIT_SECONDS = 20.0


def test_ring_wakes_everyone_who_waits() -> None:
    """All that wait when it rings are woken."""

    async def scenario() -> list[bool]:
        bell = Bell()
        waiting = [asyncio.ensure_future(bell.wait(10.0)) for _ in range(3)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        bell.ring()
        return list(await asyncio.gather(*waiting))

    assert asyncio.run(scenario()) == [True, True, True]


def test_ring_is_not_kept_for_later() -> None:
    """Who begins to wait after a ring waits for the next one, and is told when the limit passes first."""

    async def scenario() -> tuple[bool, bool]:
        bell = Bell()
        bell.ring()
        missed = await bell.wait(0.01)
        waiting = asyncio.ensure_future(bell.wait(10.0))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        bell.ring()
        return missed, await waiting

    assert asyncio.run(scenario()) == (False, True)


def test_passed_limit_does_not_wait() -> None:
    """A limit of zero or less is answered at once."""

    async def scenario() -> list[bool]:
        bell = Bell()
        return [await bell.wait(0.0), await bell.wait(-1.0)]

    assert asyncio.run(scenario()) == [False, False]


def test_over_is_one_answer() -> None:
    """Two answers that say so are equal, on whichever side of a network."""
    assert Over() == Over()


class Idle(Hub):
    """Has no work for anybody."""

    def _join(self, replica: str) -> None:
        pass

    def _leave(self, replica: str) -> None:
        pass

    def _next_lease(self, replica: str, now: float) -> object | None:
        return None


async def with_replica() -> Idle:
    hub = Idle(GENERATION)
    await hub.hello(GENERATION, "a", "kind")
    return hub


async def asking(hub: Idle, known: int) -> asyncio.Future[object | None]:
    """A question that is held open."""
    asked = asyncio.ensure_future(hub.directory(GENERATION, "a", known, LIMIT_SECONDS))
    for _ in range(3):
        await asyncio.sleep(0)
    assert not asked.done()
    return asked


def test_newer_directory_is_told_to_whoever_waits() -> None:
    """At once; to those who ask later too, and the newest only."""

    async def scenario() -> list[object]:
        hub = await with_replica()
        first, second = await asking(hub, 0), await asking(hub, 0)
        await hub.publish(GENERATION, 1, "one")
        told = [await first, await second]
        await hub.publish(GENERATION, 2, "two")
        return [*told, await hub.directory(GENERATION, "a", 0, 0.0), await hub.directory(GENERATION, "a", 1, 0.0)]

    assert asyncio.run(asyncio.wait_for(scenario(), LIMIT_SECONDS)) == ["one", "one", "two", "two"]


def test_known_directory_is_not_told() -> None:
    """Nor an older one, nor any where there is none: the question ends with its limit, and by no other ring."""

    async def scenario() -> list[object]:
        hub = await with_replica()
        answers = [await hub.directory(GENERATION, "a", -1, 0.0)]
        await hub.publish(GENERATION, 4, "four")
        answers += [await hub.directory(GENERATION, "a", known, 0.0) for known in (4, 5)]
        answers.append(await hub.directory(GENERATION, "a", 4, 0.02))
        waiting = await asking(hub, 4)
        await hub.hello(GENERATION, "b", "kind")
        for _ in range(3):
            await asyncio.sleep(0)
        assert not waiting.done()
        await hub.publish(GENERATION, 5, "five")
        return [*answers, await waiting]

    assert asyncio.run(asyncio.wait_for(scenario(), LIMIT_SECONDS)) == [None, None, None, None, "five"]


@pytest.mark.parametrize("end", ["leave", "finish"])
def test_replica_without_a_part_in_the_run_is_told_of_no_shards(end: str) -> None:
    """Counted out, or at the end of the run, also while it waits; or never counted in."""

    async def scenario() -> None:
        hub = await with_replica()
        await hub.publish(GENERATION, 1, "one")
        with pytest.raises(StaleError, match="b is not a part of this run"):
            await hub.directory(GENERATION, "b", 0, LIMIT_SECONDS)
        waiting = await asking(hub, 1)
        await (hub.leave(GENERATION, "a") if end == "leave" else hub.finish(GENERATION))
        with pytest.raises(StaleError, match="a is not a part of this run any more"):
            await waiting
        with pytest.raises(StaleError, match="not a part of this run"):
            await hub.directory(GENERATION, "a", 0, LIMIT_SECONDS)

    asyncio.run(asyncio.wait_for(scenario(), LIMIT_SECONDS))


@pytest.mark.parametrize("generation", [GENERATION - 1, GENERATION + 1])
def test_messages_of_another_hub_are_refused(generation: int) -> None:
    """Of the one before, or of one that took its place."""

    async def scenario() -> object:
        hub = await with_replica()
        with pytest.raises(StaleError, match="idle: generation"):
            await hub.publish(generation, 9, "nine")
        with pytest.raises(StaleError, match="idle: generation"):
            await hub.directory(generation, "a", 0, LIMIT_SECONDS)
        return await hub.directory(GENERATION, "a", -1, 0.0)

    assert asyncio.run(scenario()) is None
