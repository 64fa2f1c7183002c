"""The bell that wakes whoever waits."""

from __future__ import annotations

import asyncio

from dask_belief.cluster.hub import Bell, Over


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
