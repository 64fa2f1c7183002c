"""The ledger: waits that end with work, sums of reports, and what it refuses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from dask_belief.cluster.hub import Over
from dask_belief.downpour.lease_book import BookState, RowLease
from dask_belief.downpour.ledger import LeaseReport, Ledger, LedgerSpec
from dask_belief.errors import StaleError
from dask_belief.parameter_server.consistency import MaxStaleness, Staleness, Synchronous
from dask_belief.parameter_server.messages import Finished, LeaseKey, PushKey, Round
from tests.downpour.facts import replica_progress

GENERATION, SEED = 2, 42
LONG = 60.0
"""A limit that a test does not reach: what it waits for comes, or the test hangs and fails."""


async def soon() -> None:
    """Let everything that waits get as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


def ledger_of(n_leases: int = 2, epochs: int = 1, **options: Any) -> Ledger:
    return Ledger(GENERATION, LedgerSpec(n_leases, epochs, SEED, **options))


def report_of(key: Any, *, loss_sum: float = 6.0, loss_rows: int = 30, **told: Any) -> LeaseReport:
    return LeaseReport(key, 3, 30, loss_sum, loss_rows, replica_progress(**told))


def key_of(lease: int, step: int = 0) -> PushKey:
    return PushKey(LeaseKey(0, lease), step, step)


async def at_work(staleness: Staleness | None, replicas: str = "ab") -> Ledger:
    """A ledger whose replicas have a lease each."""
    ledger = ledger_of(n_leases=len(replicas), staleness=staleness)
    for replica in replicas:
        await ledger.hello(GENERATION, replica, "numpy")
        await take(ledger, replica)
    return ledger


async def take(ledger: Ledger, replica: str) -> RowLease:
    lease = await ledger.next_lease(GENERATION, replica, LONG)
    assert isinstance(lease, RowLease)
    return lease


def test_run_from_begin_to_end() -> None:
    """Leases, reports, the status that the driver waits for, and an end for replicas when all is done."""

    async def scenario() -> None:
        ledger = ledger_of()
        for replica in "ab":
            await ledger.hello(GENERATION, replica, "numpy")
        first, second = await take(ledger, "a"), await take(ledger, "b")
        assert {first.key, second.key} == {LeaseKey(0, 0), LeaseKey(0, 1)}
        await ledger.report(GENERATION, "a", report_of(first.key))
        status = await ledger.wait(GENERATION, 0, LONG)
        assert (status.steps, status.rows, status.n_finished, status.is_over) == (3, 30, 1, False)
        waiting = asyncio.ensure_future(ledger.wait(GENERATION, 1, LONG))
        asked = asyncio.ensure_future(ledger.next_lease(GENERATION, "a", LONG))
        await soon()
        assert not waiting.done()
        assert not asked.done()
        await ledger.report(GENERATION, "b", report_of(second.key, loss_sum=4.0, loss_rows=20))
        status = await waiting
        assert (status.steps, status.rows, status.n_finished, status.is_over) == (6, 60, 2, True)
        assert (status.loss_sum, status.loss_rows) == (10.0, 50)
        assert (status.n_replicas, status.kinds) == (2, ("numpy",))
        assert await asked == Over()

    asyncio.run(scenario())


def test_repeated_report_counts_once() -> None:
    """The lease, its rows and its loss; also when the key comes as a plain tuple."""

    async def scenario() -> None:
        ledger = ledger_of()
        await ledger.hello(GENERATION, "a", "numpy")
        lease = await take(ledger, "a")
        await ledger.report(GENERATION, "a", report_of(tuple(lease.key)))
        await ledger.report(GENERATION, "b", report_of(lease.key))
        status = await ledger.wait(GENERATION, 0, LONG)
        assert (status.n_finished, status.rows, status.loss_sum, status.loss_rows) == (1, 30, 6.0, 30)

    asyncio.run(scenario())


def test_limits_pass() -> None:
    """A driver's wait ends with the status as it is, and a replica's with nothing."""

    async def scenario() -> None:
        ledger = ledger_of(n_leases=1)
        await ledger.hello(GENERATION, "a", "numpy")
        await take(ledger, "a")
        assert (await ledger.wait(GENERATION, 0, 0.01)).n_finished == 0
        await ledger.hello(GENERATION, "b", "numpy")
        assert await ledger.next_lease(GENERATION, "b", 0.01) is None
        assert await ledger.next_lease(GENERATION, "b", 0.0) is None

    asyncio.run(scenario())


def test_waiting_replica_gets_what_a_lost_one_had() -> None:
    """Its question is open already when the loss is heard."""

    async def scenario() -> None:
        ledger = ledger_of(n_leases=1)
        for replica in "ab":
            await ledger.hello(GENERATION, replica, "numpy")
        lease = await take(ledger, "a")
        asked = asyncio.ensure_future(ledger.next_lease(GENERATION, "b", LONG))
        await soon()
        await ledger.leave(GENERATION, "a")
        assert await asked == RowLease(lease.key, is_taken_over=True)
        assert (await ledger.wait(GENERATION, -1, LONG)).n_replicas == 1

    asyncio.run(scenario())


def test_question_that_a_lost_replica_left_open_gets_no_lease() -> None:
    """Nobody would train on it: what is freed goes to a living replica, whoever asked first."""

    async def scenario() -> None:
        ledger = ledger_of(n_leases=1)
        for replica in "abc":
            await ledger.hello(GENERATION, replica, "numpy")
        lease = await take(ledger, "a")
        of_the_dead = asyncio.ensure_future(ledger.next_lease(GENERATION, "b", LONG))
        await soon()
        await ledger.leave(GENERATION, "b")
        await soon()
        asked = asyncio.ensure_future(ledger.next_lease(GENERATION, "c", LONG))
        await soon()
        await ledger.leave(GENERATION, "a")
        assert await asyncio.wait_for(asked, 1.0) == RowLease(lease.key, is_taken_over=True)
        await ledger.finish(GENERATION)
        [answer] = await asyncio.gather(of_the_dead, return_exceptions=True)
        assert not isinstance(answer, RowLease)

    asyncio.run(scenario())


def test_replica_that_was_counted_out_is_told_to_end() -> None:
    """A worker that was given up and woke again is not to train beside its successor."""

    async def scenario() -> None:
        ledger = ledger_of()
        await ledger.hello(GENERATION, "a", "numpy")
        await ledger.leave(GENERATION, "a")
        assert await ledger.next_lease(GENERATION, "a", LONG) == Over()

    asyncio.run(scenario())


def test_lost_replica_does_not_hold_up_the_warm_start() -> None:
    """One that was lost while it waited for the end of the warm start is not the next in line."""

    async def scenario() -> None:
        ledger = ledger_of(n_leases=4, warm_start_steps=100)
        for replica in "ab":
            await ledger.hello(GENERATION, replica, "numpy")
        lease = await take(ledger, "a")
        of_the_dead = asyncio.ensure_future(ledger.next_lease(GENERATION, "b", 0.05))
        await soon()
        await ledger.leave(GENERATION, "b")
        await asyncio.gather(of_the_dead, return_exceptions=True)
        await ledger.hello(GENERATION, "c", "numpy")
        await ledger.leave(GENERATION, "a")
        assert await ledger.next_lease(GENERATION, "c", 1.0) == RowLease(lease.key, is_taken_over=True)

    asyncio.run(scenario())


def test_waiting_replicas_are_released_by_the_warm_start() -> None:
    """The report that completes it wakes them."""

    async def scenario() -> None:
        ledger = ledger_of(n_leases=4, warm_start_steps=3)
        for replica in "ab":
            await ledger.hello(GENERATION, replica, "numpy")
        asked = asyncio.ensure_future(ledger.next_lease(GENERATION, "b", LONG))
        lease = await take(ledger, "a")
        await soon()
        assert not asked.done()
        await ledger.report(GENERATION, "a", report_of(lease.key))
        assert isinstance(await asked, RowLease)

    asyncio.run(scenario())


def test_end_of_the_run_answers_everyone() -> None:
    """Although leases are left."""

    async def scenario() -> None:
        ledger = ledger_of(n_leases=1)
        for replica in "ab":
            await ledger.hello(GENERATION, replica, "numpy")
        await take(ledger, "a")
        asked = asyncio.ensure_future(ledger.next_lease(GENERATION, "b", LONG))
        await soon()
        await ledger.finish(GENERATION)
        assert await asked == Over()
        assert await ledger.next_lease(GENERATION, "a", LONG) == Over()

    asyncio.run(scenario())


def test_state_is_put_back() -> None:
    """A new generation's ledger goes on where the old one was saved."""

    async def scenario() -> None:
        ledger = ledger_of(n_leases=3)
        await ledger.hello(GENERATION, "a", "numpy")
        finished = await take(ledger, "a")
        await ledger.report(GENERATION, "a", report_of(finished.key))
        await take(ledger, "a")
        state = await ledger.state(GENERATION)
        assert state == BookState(Finished(0, frozenset([finished.key])), 3, 30, is_released=True)
        successor = Ledger(GENERATION + 1, LedgerSpec(3, 1, SEED))
        await successor.restore(GENERATION + 1, state)
        await successor.hello(GENERATION + 1, "b", "numpy")
        status = await successor.wait(GENERATION + 1, 0, LONG)
        assert (status.n_finished, status.rows, status.loss_rows) == (1, 30, 0)
        keys = set()
        for _ in range(2):
            lease = await successor.next_lease(GENERATION + 1, "b", LONG)
            assert isinstance(lease, RowLease)
            assert lease.is_taken_over
            keys.add(lease.key)
        assert keys == {LeaseKey(0, number) for number in range(3)} - {finished.key}

    asyncio.run(scenario())


def test_others_are_released_by_the_clock_of_the_warm_start() -> None:
    """Without a report that would wake them."""

    async def scenario() -> None:
        ledger = ledger_of(n_leases=4, warm_start_seconds=0.05)
        for replica in "ab":
            await ledger.hello(GENERATION, replica, "numpy")
        began = time.monotonic()
        await take(ledger, "a")
        await take(ledger, "b")
        assert time.monotonic() - began >= 0.05

    asyncio.run(scenario())


def test_what_replicas_tell_of_themselves_is_kept() -> None:
    """The newest of each, in the order of their names, also of those that have left."""

    async def scenario() -> None:
        ledger = await at_work(None)
        await ledger.tell(GENERATION, "b", replica_progress("b", steps=1))
        await ledger.tell(GENERATION, "a", replica_progress("a", steps=2))
        await ledger.leave(GENERATION, "b")
        await ledger.report(GENERATION, "a", report_of(LeaseKey(0, 0), steps=5))
        status = await ledger.wait(GENERATION, 0, LONG)
        assert [(each.replica, each.steps) for each in status.replicas] == [("a", 5), ("b", 1)]

    asyncio.run(scenario())


def test_report_that_took_long_does_not_take_back_newer_news() -> None:
    """It was written when the lease ended, and sent when its last push was through."""

    async def scenario() -> None:
        ledger = await at_work(None)
        await ledger.tell(GENERATION, "a", replica_progress("a", steps=9))
        await ledger.report(GENERATION, "a", report_of(LeaseKey(0, 0), steps=5))
        status = await ledger.wait(GENERATION, 0, LONG)
        assert [each.steps for each in status.replicas] == [9]

    asyncio.run(scenario())


def test_replica_that_is_ahead_waits_for_the_slowest() -> None:
    """Its tick is answered once the slowest has come far enough, with how many mini-batches it may begin."""

    async def scenario() -> None:
        ledger = await at_work(MaxStaleness(1))
        assert await ledger.tick(GENERATION, "a", 1, LONG) == 2
        ticked = asyncio.ensure_future(ledger.tick(GENERATION, "a", 2, LONG))
        await soon()
        assert not ticked.done()
        assert await ledger.tick(GENERATION, "a", 2, 0.01) == 2
        assert await ledger.tick(GENERATION, "b", 1, LONG) == 3
        assert await ticked == 3

    asyncio.run(scenario())


@pytest.mark.parametrize("what", ["leave", "finish the lease", "end of the run"])
def test_replica_that_is_ahead_is_released(what: str) -> None:
    """When the slowest is lost or has no work, or there is nothing to wait for any more."""

    async def scenario() -> None:
        ledger = await at_work(MaxStaleness(0))
        ticked = asyncio.ensure_future(ledger.tick(GENERATION, "a", 1, LONG))
        await soon()
        assert not ticked.done()
        if what == "leave":
            await ledger.leave(GENERATION, "b")
        elif what == "end of the run":
            await ledger.finish(GENERATION)
        else:
            [lease] = [key for key, holder in ledger._book._held.items() if holder == "b"]
            await ledger.report(GENERATION, "b", report_of(lease))
        assert await asyncio.wait_for(ticked, 1.0) == 2

    asyncio.run(scenario())


def test_without_a_bound_nobody_is_held_back() -> None:
    """A tick is answered at once, and there are no rounds."""

    async def scenario() -> None:
        ledger = await at_work(None)
        assert await ledger.tick(GENERATION, "a", 1000, LONG) == 1001
        assert await ledger.arrive(GENERATION, "a", 0, key_of(0), LONG) is None
        assert await ledger.closed(GENERATION, "a", -1, LONG) is None

    asyncio.run(scenario())


def test_round_is_told_to_all_when_it_is_closed() -> None:
    """To those who arrived, to one that came too late, and to one that begins."""

    async def scenario() -> None:
        ledger = await at_work(Synchronous(backup_replicas=1), "abc")
        assert await ledger.closed(GENERATION, "a", -1, LONG) is None
        plain: Any = ((0, 0), 0, 0)
        first = asyncio.ensure_future(ledger.arrive(GENERATION, "a", 0, plain, LONG))
        await soon()
        assert not first.done()
        assert await ledger.closed(GENERATION, "a", 0, 0.01) is None
        closed = Round(0, (key_of(0), key_of(1)), ())
        assert await ledger.arrive(GENERATION, "b", 0, key_of(1), LONG) == closed
        assert await first == closed
        assert await ledger.arrive(GENERATION, "c", 0, key_of(2), LONG) == closed
        assert await ledger.closed(GENERATION, "d", -1, LONG) == closed

    asyncio.run(scenario())


@pytest.mark.parametrize("is_lost", [True, False], ids=["lost", "out of work"])
def test_round_closes_when_the_one_that_it_waits_for_goes(is_lost: bool) -> None:
    """Whether that is lost or has no more work."""

    async def scenario() -> None:
        ledger = await at_work(Synchronous())
        waiting = asyncio.ensure_future(ledger.arrive(GENERATION, "a", 0, key_of(0), LONG))
        await soon()
        assert not waiting.done()
        [lease] = [key for key, holder in ledger._book._held.items() if holder == "b"]
        if is_lost:
            await ledger.leave(GENERATION, "b")
        else:
            await ledger.report(GENERATION, "b", report_of(lease))
        assert await asyncio.wait_for(waiting, 1.0) == Round(0, (key_of(0),), ())

    asyncio.run(scenario())


def test_round_that_will_not_be_closed_is_refused() -> None:
    """The run is over: whoever waits ends."""

    async def scenario() -> None:
        ledger = await at_work(Synchronous())
        waiting = asyncio.ensure_future(ledger.arrive(GENERATION, "a", 0, key_of(0), LONG))
        await soon()
        await ledger.finish(GENERATION)
        with pytest.raises(StaleError, match="the run is over, and round 0 will not be closed"):
            await waiting

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "call",
    [
        lambda hub, generation: hub.hello(generation, "a", "numpy"),
        lambda hub, generation: hub.next_lease(generation, "a", LONG),
        lambda hub, generation: hub.report(generation, "a", report_of(LeaseKey(0, 0))),
        lambda hub, generation: hub.restore(generation, BookState(Finished(0, frozenset()), 0, 0)),
        lambda hub, generation: hub.state(generation),
        lambda hub, generation: hub.wait(generation, 0, LONG),
        lambda hub, generation: hub.leave(generation, "a"),
        lambda hub, generation: hub.tell(generation, "a", replica_progress()),
        lambda hub, generation: hub.tick(generation, "a", 1, LONG),
        lambda hub, generation: hub.arrive(generation, "a", 0, key_of(0), LONG),
        lambda hub, generation: hub.closed(generation, "a", 0, LONG),
        lambda hub, generation: hub.finish(generation),
    ],
)
def test_another_generation_is_refused(call: Callable[[Ledger, int], Awaitable[object]]) -> None:
    """Whatever is asked, at once, and both generations are named."""

    async def scenario() -> None:
        with pytest.raises(StaleError, match="generation 1 was named, this is 2"):
            await call(ledger_of(), GENERATION - 1)

    began = time.monotonic()
    asyncio.run(scenario())
    assert time.monotonic() - began < LONG / 2
