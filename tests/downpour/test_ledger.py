"""The ledger: waits that end with work, sums of reports, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from dask_belief.cluster.hub import Over
from dask_belief.downpour.lease_book import BookState, RowLease
from dask_belief.downpour.ledger import LeaseReport, Ledger, LedgerSpec, LedgerState
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


def through_json(state: LedgerState) -> LedgerState:
    """As a checkpoint keeps it."""
    return LedgerState.from_config(json.loads(json.dumps(state.to_config(), allow_nan=False)))


def test_state_is_put_back() -> None:
    """A ledger that is made anew goes on where the old one was saved; what was under way is begun again."""

    async def scenario() -> None:
        ledger = ledger_of(n_leases=3)
        await ledger.hello(GENERATION, "a", "numpy")
        finished = await take(ledger, "a")
        await ledger.report(GENERATION, "a", report_of(finished.key))
        await take(ledger, "a")
        state = await ledger.state(GENERATION)
        book = BookState(Finished(0, frozenset([finished.key])), 3, 30, is_released=True)
        assert state == LedgerState(book, 6.0, 30)
        successor = Ledger(GENERATION + 1, LedgerSpec(3, 1, SEED))
        await successor.restore(GENERATION + 1, through_json(state))
        await successor.hello(GENERATION + 1, "b", "numpy")
        status = await successor.wait(GENERATION + 1, 0, LONG)
        assert (status.n_finished, status.rows, status.loss_sum, status.loss_rows) == (1, 30, 6.0, 30)
        keys = set()
        for _ in range(2):
            lease = await successor.next_lease(GENERATION + 1, "b", LONG)
            assert isinstance(lease, RowLease)
            assert lease.is_taken_over
            keys.add(lease.key)
            await successor.report(GENERATION + 1, "b", report_of(lease.key, loss_sum=0.5))
        assert keys == {LeaseKey(0, number) for number in range(3)} - {finished.key}
        status = await successor.wait(GENERATION + 1, 2, LONG)
        assert (status.is_over, status.rows, status.loss_sum, status.loss_rows) == (True, 90, 7.0, 90)
        assert await successor.next_lease(GENERATION + 1, "b", LONG) == Over()

    asyncio.run(scenario())


@pytest.mark.parametrize("seed", range(20))
def test_losses_of_ledgers_one_after_another_repeat_and_skip_nothing(seed: int) -> None:
    """Over three epochs, with states that are older than the ledger: what was saved as finished is not given again."""

    async def scenario() -> None:
        chance, n_leases, epochs = random.Random(seed), 5, 3
        options: dict[str, Any] = {"n_leases": n_leases, "epochs": epochs}
        ledger, generation, saved = ledger_of(**options), GENERATION, await ledger_of(**options).state(GENERATION)
        trained: list[LeaseKey] = []
        kept: list[LeaseKey] = []
        held: list[LeaseKey] = []
        await ledger.hello(generation, "a", "numpy")
        while not (await ledger.wait(generation, -1, LONG)).is_over:
            deed = chance.random()
            lease = await ledger.next_lease(generation, "a", 0.0) if deed < 0.45 else None
            if isinstance(lease, RowLease):
                held.append(lease.key)
            elif held and deed < 0.85:
                key = held.pop(chance.randrange(len(held)))
                trained.append(key)
                await ledger.report(generation, "a", report_of(key, loss_sum=1.0, loss_rows=30))
            elif deed > 0.95:
                saved, kept = await ledger.state(generation), list(trained)
            elif deed > 0.92:
                generation += 1
                ledger = Ledger(generation, LedgerSpec(n_leases, epochs, SEED))
                await ledger.restore(generation, through_json(saved))
                await ledger.hello(generation, "a", "numpy")
                trained, held = list(kept), []
        status = await ledger.wait(generation, 0, LONG)
        assert sorted(trained) == [LeaseKey(epoch, lease) for epoch in range(epochs) for lease in range(n_leases)]
        assert (status.rows, status.steps) == (30 * len(trained), 3 * len(trained))
        assert (status.loss_sum, status.loss_rows) == (float(len(trained)), 30 * len(trained))

    asyncio.run(scenario())


def test_ledger_that_is_put_back_at_its_end_is_over() -> None:
    """Whoever waits is told, and replicas that come are sent home."""

    async def scenario() -> None:
        ledger = ledger_of(n_leases=1)
        await ledger.hello(GENERATION, "a", "numpy")
        await ledger.report(GENERATION, "a", report_of((await take(ledger, "a")).key))
        successor = ledger_of(n_leases=1)
        await successor.restore(GENERATION, through_json(await ledger.state(GENERATION)))
        assert (await successor.wait(GENERATION, -1, LONG)).is_over
        await successor.hello(GENERATION, "b", "numpy")
        assert await successor.next_lease(GENERATION, "b", LONG) == Over()

    asyncio.run(scenario())


def test_synchronous_ledger_goes_on_with_the_rounds_that_shards_have_closed() -> None:
    """The next round is the one after; a push for an older one came too late."""

    async def scenario() -> None:
        ledger = ledger_of(n_leases=2, staleness=Synchronous())
        state = await ledger.state(GENERATION)
        await ledger.restore(GENERATION, through_json(state), 7)
        for replica in "ab":
            await ledger.hello(GENERATION, replica, "numpy")
            await take(ledger, replica)
        # Whoever asks for the last round that is closed is told of one without members.
        assert await ledger.closed(GENERATION, "a", 6, LONG) == Round(6, (), ())
        late = await ledger.arrive(GENERATION, "a", 6, key_of(0), 0.0)
        assert late == Round(6, (), ())
        waiting = asyncio.ensure_future(ledger.arrive(GENERATION, "a", 7, key_of(0, 1), LONG))
        await soon()
        assert not waiting.done()
        closed = await ledger.arrive(GENERATION, "b", 7, key_of(1), LONG)
        assert closed == await waiting == Round(7, (key_of(0, 1), key_of(1)), (key_of(0),))

    asyncio.run(scenario())


@pytest.mark.parametrize("loss_sum", [0.1 + 0.2, math.inf, -math.inf, math.nan, 5e-324])
def test_state_goes_through_json_bit_for_bit(loss_sum: float) -> None:
    """Numbers that JSON does not know among them."""
    finished = Finished(3, frozenset([LeaseKey(3, 2), LeaseKey(4, 0)]))
    state = LedgerState(BookState(finished, 21, 210, is_released=True), loss_sum, 210)
    assert repr(through_json(state)) == repr(state)


DAMAGES: list[dict[str, Any]] = [
    {"loss_sum": None},
    {"loss_sum": "much"},
    {"loss_sum": []},
    {"loss_rows": None},
    {"book": None},
    {"book": {}},
    {"book": {"epoch": 0, "finished": [[0]], "steps": 0, "rows": 0, "is_released": True}},
    {"book": {"epoch": 0, "finished": [["x", 1]], "steps": 0, "rows": 0, "is_released": True}},
    {"book": {"epoch": None, "finished": [], "steps": 0, "rows": 0, "is_released": True}},
]


@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_damaged_state_is_refused(damage: dict[str, Any]) -> None:
    """Not taken for another one."""
    state = LedgerState(BookState(Finished(0, frozenset()), 0, 0)).to_config()
    for name in state:
        with pytest.raises(KeyError):
            LedgerState.from_config({key: value for key, value in state.items() if key != name})
    with pytest.raises((KeyError, TypeError, ValueError)):
        LedgerState.from_config(state | damage)


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
