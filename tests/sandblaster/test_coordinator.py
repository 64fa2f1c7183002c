"""The coordinator: waits that end with work, and what it refuses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from dask_belief.binary_tree import Node
from dask_belief.cluster.hub import Over
from dask_belief.errors import StaleError
from dask_belief.sandblaster.backups import BackupCounts
from dask_belief.sandblaster.coordinator import Coordinator, Report
from dask_belief.sandblaster.effort import Effort
from dask_belief.sandblaster.unit_scheduler import Lease

GENERATION = 2
LONG = 60.0
"""A limit that a test does not reach: what it waits for comes, or the test hangs and fails."""


async def soon() -> None:
    """Let everything that waits get as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


def report_of(lease: Lease, losses: list[float], **more: Any) -> Report:
    return Report(lease, np.array(losses), **more)


async def opened(n_units: int = 2, max_level: int = 0, backup_after: float | None = 1.5) -> Coordinator:
    coordinator = Coordinator(GENERATION, n_units, max_level, backup_after)
    for replica in "ab":
        await coordinator.hello(GENERATION, replica, "numpy")
    await coordinator.evaluate(GENERATION, 1, 0.0)
    return coordinator


def test_evaluation_from_begin_to_end() -> None:
    """Leases, reports, and the status that the driver waits for: the losses joined, nothing faulty."""

    async def scenario() -> None:
        coordinator = await opened()
        of_a = await coordinator.next_lease(GENERATION, "a", LONG)
        of_b = await coordinator.next_lease(GENERATION, "b", LONG)
        assert (of_a, of_b) == (Lease(1, Node(0, 0)), Lease(1, Node(0, 1)))
        waiting = asyncio.ensure_future(coordinator.evaluate(GENERATION, 1, LONG))
        await coordinator.report(GENERATION, "a", report_of(of_a, [1.5]))
        await soon()
        assert not waiting.done()
        await coordinator.report(GENERATION, "b", report_of(of_b, [2.0]))
        status = await waiting
        assert (status.n_done, status.loss, status.faulty) == (2, 3.5, ())
        assert (status.n_replicas, status.backups, status.kinds) == (2, BackupCounts(), ("numpy",))

    asyncio.run(scenario())


def test_losses_are_added_in_the_tree() -> None:
    """The loss of an evaluation has the bits of the fixed tree, whoever reported what."""
    losses = [1e16, 1.0, -1e16, 1.0, 3.0]

    async def scenario(order: list[int]) -> float | None:
        coordinator = Coordinator(GENERATION, 5, 0, None)
        await coordinator.evaluate(GENERATION, 1, 0.0)
        for unit in order:
            await coordinator.report(GENERATION, "a", report_of(Lease(1, Node(0, unit)), [losses[unit]]))
        return (await coordinator.evaluate(GENERATION, 1, LONG)).loss

    expected = ((losses[0] + losses[1]) + (losses[2] + losses[3])) + losses[4]
    assert asyncio.run(scenario([0, 1, 2, 3, 4])) == asyncio.run(scenario([4, 2, 0, 3, 1])) == expected


def test_driver_is_answered_when_the_limit_passes() -> None:
    """With how far it is, and no loss."""

    async def scenario() -> None:
        coordinator = await opened()
        lease = await coordinator.next_lease(GENERATION, "a", LONG)
        assert isinstance(lease, Lease)
        await coordinator.report(GENERATION, "a", report_of(lease, [1.0]))
        status = await coordinator.evaluate(GENERATION, 1, 0.01)
        assert (status.n_done, status.loss) == (1, None)

    asyncio.run(scenario())


def test_question_is_held_open_until_there_is_work() -> None:
    """A replica that asks between evaluations gets its lease when the next one begins."""

    async def scenario() -> None:
        coordinator = Coordinator(GENERATION, 2, 0, None)
        await coordinator.hello(GENERATION, "a", "numpy")
        asked = asyncio.ensure_future(coordinator.next_lease(GENERATION, "a", LONG))
        await soon()
        assert not asked.done()
        await coordinator.evaluate(GENERATION, 1, 0.0)
        assert await asked == Lease(1, Node(0, 0))

    asyncio.run(scenario())


def test_question_without_work_is_answered_when_the_limit_passes() -> None:
    """With nothing, at once when the limit is zero."""

    async def scenario() -> None:
        coordinator = Coordinator(GENERATION, 2, 0, None)
        await coordinator.hello(GENERATION, "a", "numpy")
        assert await coordinator.next_lease(GENERATION, "a", 0.0) is None
        assert await coordinator.next_lease(GENERATION, "a", 0.01) is None

    asyncio.run(scenario())


def test_waiting_replica_gets_what_a_lost_one_had() -> None:
    """Its question is open already when the loss is heard."""

    async def scenario() -> None:
        coordinator = await opened(n_units=1)
        lease = await coordinator.next_lease(GENERATION, "a", LONG)
        asked = asyncio.ensure_future(coordinator.next_lease(GENERATION, "b", LONG))
        await soon()
        assert not asked.done()
        await coordinator.leave(GENERATION, "a")
        assert await asked == lease

    asyncio.run(scenario())


def test_question_that_a_lost_replica_left_open_gets_no_lease() -> None:
    """Nobody would compute it: what is freed goes to a living replica, whoever asked first."""

    async def scenario() -> None:
        coordinator = await opened(n_units=1)
        await coordinator.hello(GENERATION, "c", "numpy")
        lease = await coordinator.next_lease(GENERATION, "a", LONG)
        of_the_dead = asyncio.ensure_future(coordinator.next_lease(GENERATION, "b", LONG))
        await soon()
        await coordinator.leave(GENERATION, "b")
        await soon()
        asked = asyncio.ensure_future(coordinator.next_lease(GENERATION, "c", LONG))
        await soon()
        await coordinator.leave(GENERATION, "a")
        assert await asyncio.wait_for(asked, 1.0) == lease
        assert (await coordinator.evaluate(GENERATION, 1, 0.0)).n_replicas == 1
        await coordinator.finish(GENERATION)
        [answer] = await asyncio.gather(of_the_dead, return_exceptions=True)
        assert not isinstance(answer, Lease)

    asyncio.run(scenario())


def test_replica_that_was_counted_out_is_told_to_end() -> None:
    """A worker that was given up and woke again gets no work."""

    async def scenario() -> None:
        coordinator = await opened()
        await coordinator.leave(GENERATION, "a")
        assert await coordinator.next_lease(GENERATION, "a", LONG) == Over()

    asyncio.run(scenario())


def test_evaluation_under_way_is_not_opened_again() -> None:
    """The driver asks again and again with the same number: what is done stays done."""

    async def scenario() -> None:
        coordinator = await opened()
        lease = await coordinator.next_lease(GENERATION, "a", LONG)
        assert isinstance(lease, Lease)
        await coordinator.report(GENERATION, "a", report_of(lease, [1.0]))
        for _ in range(3):
            assert (await coordinator.evaluate(GENERATION, 1, 0.0)).n_done == 1
        assert (await coordinator.evaluate(GENERATION, 2, 0.0)).n_done == 0

    asyncio.run(scenario())


def test_slow_lease_is_copied_to_a_replica_that_waits() -> None:
    """The clock wakes an open question too: nothing else would."""

    async def scenario() -> None:
        coordinator = await opened()
        of_a = await coordinator.next_lease(GENERATION, "a", LONG)
        of_b = await coordinator.next_lease(GENERATION, "b", LONG)
        assert isinstance(of_a, Lease)
        await coordinator.report(GENERATION, "a", report_of(of_a, [1.0]))
        assert await asyncio.wait_for(coordinator.next_lease(GENERATION, "a", LONG), 10) == of_b
        assert (await coordinator.evaluate(GENERATION, 1, 0.0)).backups.started == 1

    asyncio.run(scenario())


def test_copies_are_counted_over_all_evaluations() -> None:
    """What was started, won and wasted does not begin anew: the driver takes differences."""

    async def scenario() -> None:
        coordinator = await opened(n_units=1, backup_after=0.0)
        for evaluation in (1, 2):
            await coordinator.evaluate(GENERATION, evaluation, 0.0)
            lease = await coordinator.next_lease(GENERATION, "a", LONG)
            assert await coordinator.next_lease(GENERATION, "b", LONG) == lease
            await coordinator.report(GENERATION, "b", report_of(lease, [1.0]))
            await coordinator.report(GENERATION, "a", report_of(lease, [1.0]))
            backups = (await coordinator.evaluate(GENERATION, evaluation, LONG)).backups
            assert (backups.started, backups.won) == (evaluation, evaluation)
        assert backups.wasted_seconds > 0

    asyncio.run(scenario())


def test_nothing_is_copied_where_none_are_wanted() -> None:
    """However idle a replica is: its question ends with the limit."""

    async def scenario() -> None:
        coordinator = await opened(n_units=1, backup_after=None)
        await coordinator.next_lease(GENERATION, "a", LONG)
        assert await coordinator.next_lease(GENERATION, "b", 0.01) is None
        assert (await coordinator.evaluate(GENERATION, 1, 0.0)).backups == BackupCounts()

    asyncio.run(scenario())


# Leases that others have done.


def test_replica_is_told_as_soon_as_others_did_its_lease() -> None:
    """Whoever computes it meanwhile need not end it."""

    async def scenario() -> None:
        coordinator = await opened(n_units=1, backup_after=0.0)
        lease = await coordinator.next_lease(GENERATION, "a", LONG)
        assert isinstance(lease, Lease)
        told = asyncio.ensure_future(coordinator.until_unwanted(GENERATION, "a", lease, LONG))
        await soon()
        assert not told.done()
        await coordinator.report(GENERATION, "b", report_of(lease, [1.0]))
        assert await told is True

    asyncio.run(scenario())


def test_lease_that_is_done_in_part_is_wanted() -> None:
    """The question ends with the limit, and is asked again."""

    async def scenario() -> None:
        coordinator = await opened(n_units=2)
        lease = Lease(1, Node(1, 0))
        await coordinator.report(GENERATION, "b", report_of(Lease(1, Node(0, 1)), [1.0]))
        assert await coordinator.until_unwanted(GENERATION, "a", lease, 0.01) is False
        await coordinator.report(GENERATION, "b", report_of(Lease(1, Node(0, 0)), [1.0]))
        assert await coordinator.until_unwanted(GENERATION, "a", lease, LONG) is True

    asyncio.run(scenario())


def test_lease_of_another_evaluation_is_not_wanted() -> None:
    """Nor is it once the next evaluation begins, while the question is open."""

    async def scenario() -> None:
        coordinator = await opened()
        lease = Lease(1, Node(0, 0))
        told = asyncio.ensure_future(coordinator.until_unwanted(GENERATION, "a", lease, LONG))
        await soon()
        assert not told.done()
        await coordinator.evaluate(GENERATION, 2, 0.0)
        assert await told is True
        assert await coordinator.until_unwanted(GENERATION, "a", lease, LONG) is True

    asyncio.run(scenario())


def test_what_was_given_up_goes_to_whoever_waits() -> None:
    """At once, where it is still wanted and nobody else has it."""

    async def scenario() -> None:
        coordinator = await opened(n_units=1, backup_after=None)
        lease = await coordinator.next_lease(GENERATION, "a", LONG)
        assert isinstance(lease, Lease)
        asked = asyncio.ensure_future(coordinator.next_lease(GENERATION, "b", LONG))
        await soon()
        assert not asked.done()
        await coordinator.give_up(GENERATION, "a", lease)
        await soon()
        assert asked.done()
        assert await asked == lease

    asyncio.run(scenario())


def test_lease_that_was_given_up_as_done_comes_to_nobody() -> None:
    """The evaluation is complete, and the time that it took is told as wasted."""

    async def scenario() -> None:
        coordinator = await opened(n_units=1, backup_after=0.0)
        lease = await coordinator.next_lease(GENERATION, "a", LONG)
        assert isinstance(lease, Lease)
        assert await coordinator.next_lease(GENERATION, "b", LONG) == lease
        await coordinator.report(GENERATION, "b", report_of(lease, [1.0]))
        await coordinator.give_up(GENERATION, "a", lease)
        assert await coordinator.next_lease(GENERATION, "b", 0.0) is None
        status = await coordinator.evaluate(GENERATION, 1, LONG)
        assert (status.loss, status.backups.won) == (1.0, 1)
        assert status.backups.wasted_seconds > 0

    asyncio.run(scenario())


# What it cost.


def test_efforts_are_those_of_all_replicas() -> None:
    """Added up, with the computing of the one that computed longest beside; the next evaluation begins at none."""

    async def scenario() -> None:
        coordinator = await opened(n_units=3)
        of_a = Effort(waiting_seconds=0.5, computing_seconds=2.0, fetched_bytes=100, pushed_bytes=100, cache_hits=1)
        of_b = Effort(reading_seconds=0.25, computing_seconds=3.0, sending_seconds=0.1, cache_misses=1)
        for unit, replica, effort in ((0, "a", of_a), (1, "b", of_b), (2, "a", of_a)):
            report = report_of(Lease(1, Node(0, unit)), [1.0], effort=effort)
            await coordinator.report(GENERATION, replica, report)
        status = await coordinator.evaluate(GENERATION, 1, LONG)
        assert status.effort == of_a + of_b + of_a
        assert status.busiest_seconds == 4.0
        status = await coordinator.evaluate(GENERATION, 2, 0.0)
        assert (status.effort, status.busiest_seconds) == (Effort(), 0.0)

    asyncio.run(scenario())


def test_effort_of_work_that_came_too_late_is_an_effort() -> None:
    """Its loss does not count; its seconds and bytes were spent."""

    async def scenario() -> None:
        coordinator = await opened(n_units=1)
        lease, effort = Lease(1, Node(0, 0)), Effort(computing_seconds=1.0, pushed_bytes=10)
        for replica, loss in (("a", 1.0), ("b", 5.0)):
            await coordinator.report(GENERATION, replica, report_of(lease, [loss], effort=effort))
        status = await coordinator.evaluate(GENERATION, 1, LONG)
        assert (status.loss, status.effort, status.busiest_seconds) == (1.0, effort + effort, 1.0)

    asyncio.run(scenario())


def test_end_of_the_run_answers_everyone() -> None:
    """Who asks, and who asks later, is told that it is over."""

    async def scenario() -> None:
        coordinator = Coordinator(GENERATION, 2, 0, None)
        await coordinator.hello(GENERATION, "a", "numpy")
        asked = asyncio.ensure_future(coordinator.next_lease(GENERATION, "a", LONG))
        await soon()
        await coordinator.finish(GENERATION)
        assert await asked == Over()
        assert await coordinator.next_lease(GENERATION, "a", LONG) == Over()

    asyncio.run(scenario())


def test_faulty_units_are_told_and_forgotten() -> None:
    """In order, until the next evaluation begins; a report of another evaluation tells nothing."""

    async def scenario() -> None:
        coordinator = await opened()
        for unit in (1, 0):
            lease = Lease(1, Node(0, unit))
            await coordinator.report(GENERATION, "a", report_of(lease, [np.nan], faulty=(unit,)))
        status = await coordinator.evaluate(GENERATION, 1, LONG)
        assert status.faulty == (0, 1)
        assert status.loss is not None
        assert np.isnan(status.loss)
        await coordinator.evaluate(GENERATION, 2, 0.0)
        await coordinator.report(GENERATION, "a", report_of(Lease(1, Node(0, 0)), [np.nan], faulty=(0,)))
        status = await coordinator.evaluate(GENERATION, 2, 0.0)
        assert (status.n_done, status.faulty) == (0, ())

    asyncio.run(scenario())


def test_first_report_of_a_unit_counts() -> None:
    """A copy that is done later does not change the loss that the driver may have read already."""

    async def scenario() -> None:
        coordinator = await opened(n_units=1)
        lease = Lease(1, Node(0, 0))
        await coordinator.report(GENERATION, "a", report_of(lease, [1.0]))
        await coordinator.report(GENERATION, "b", report_of(lease, [2.0], faulty=(0,)))
        status = await coordinator.evaluate(GENERATION, 1, LONG)
        assert (status.loss, status.faulty) == (1.0, ())

    asyncio.run(scenario())


def test_kinds_of_replicas_are_collected() -> None:
    """Each once, also of those that left."""

    async def scenario() -> None:
        coordinator = Coordinator(GENERATION, 1, 0, None)
        for replica, kind in (("a", "two"), ("b", "one"), ("c", "two")):
            await coordinator.hello(GENERATION, replica, kind)
        await coordinator.leave(GENERATION, "b")
        status = await coordinator.evaluate(GENERATION, 1, 0.0)
        assert (status.kinds, status.n_replicas) == (("one", "two"), 2)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "call",
    [
        lambda hub, generation: hub.hello(generation, "a", "numpy"),
        lambda hub, generation: hub.next_lease(generation, "a", LONG),
        lambda hub, generation: hub.report(generation, "a", report_of(Lease(1, Node(0, 0)), [1.0])),
        lambda hub, generation: hub.give_up(generation, "a", Lease(1, Node(0, 0))),
        lambda hub, generation: hub.until_unwanted(generation, "a", Lease(1, Node(0, 0)), LONG),
        lambda hub, generation: hub.evaluate(generation, 1, LONG),
        lambda hub, generation: hub.leave(generation, "a"),
        lambda hub, generation: hub.finish(generation),
    ],
)
def test_another_generation_is_refused(call: Callable[[Coordinator, int], Awaitable[object]]) -> None:
    """Whatever is asked, at once, and both generations are named."""

    async def scenario() -> None:
        coordinator = Coordinator(GENERATION, 1, 0, None)
        with pytest.raises(StaleError, match="generation 1 was named, this is 2"):
            await call(coordinator, GENERATION - 1)

    began = time.monotonic()
    asyncio.run(scenario())
    assert time.monotonic() - began < LONG / 2
