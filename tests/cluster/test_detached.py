"""Runs whose driver is a task on the cluster, with scripted work: they are found, followed, stopped and let go."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from distributed import Client

from dask_belief.cluster.detached import Desk, attach, detach_driver
from dask_belief.errors import ArgumentError, CallTimeoutError, ClusterError
from tests.small_cluster import eventually, small_cluster

LIMIT_SECONDS = 20.0
# The workers of these clusters are threads of this process.
GOES_ON = threading.Event()


def described(event: Any) -> dict[str, Any]:
    return {"kind": "Said", "what": event}


def tell(order: int, client: Client, desk: Desk) -> int:
    """Tells of so many things, and of who it is."""
    for number in range(order):
        desk(number)
    return order * len(client.nthreads())


def fail(order: str, client: Client, desk: Desk) -> None:
    raise ArithmeticError(order)


def wait_for_a_stop(order: Any, client: Client, desk: Desk) -> str:
    """Goes on until it is asked to stop."""
    desk("begun")
    eventually(lambda: desk("again"), LIMIT_SECONDS)
    return "stopped"


def wait_until_set(order: Any, client: Client, desk: Desk) -> str:
    desk("begun")
    while not GOES_ON.wait(0.01):
        if desk("again"):
            return "ended early"
    return "through"


def has_begun(client: Client, name: str) -> None:
    run = attach(name, client)
    eventually(lambda: bool(run.events()), LIMIT_SECONDS)


def names_on(client: Client) -> list[str]:
    return [str(name) for name in client.list_datasets()]


def test_a_result_comes_and_its_name_goes(client: Client) -> None:
    """The driver has a client of its own; when its result is there nothing is left on the scheduler."""
    run = detach_driver(client, "a", tell, 3, described)
    assert "'a'" in repr(run) and names_on(client)
    assert run.result(LIMIT_SECONDS) == 6
    assert run.is_done
    assert names_on(client) == []
    with pytest.raises(ArgumentError, match="'a'"):
        attach("a", client)
    # And may be used again.
    assert detach_driver(client, "a", tell, 1, described).result(LIMIT_SECONDS) == 2


def test_a_result_that_does_not_come_in_time_stays(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be on a worker that is frozen for a while: whoever asks again is given it."""
    run = detach_driver(client, "slow", tell, 7, described)
    eventually(lambda: run.is_done, limit_seconds=20)
    with monkeypatch.context() as slow:

        def late(*_: object, **__: object) -> None:
            raise TimeoutError

        slow.setattr(type(run._future), "result", late)
        with pytest.raises(CallTimeoutError, match=r"^the result of run slow was not brought within .* ask again"):
            run.result()
    assert len(names_on(client)) == 1
    assert run.result(LIMIT_SECONDS) == 14
    assert names_on(client) == []


def test_events_come_in_order_to_whoever_is_attached(client: Client) -> None:
    """As plain JSON; to a client that came later, too."""
    run = detach_driver(client, "told", tell, 5, described)
    eventually(lambda: run.is_done, LIMIT_SECONDS)
    with Client(client.scheduler.address, set_as_default=False) as other:
        again = attach("told", other)
        assert again.events() == [{"kind": "Said", "what": number} for number in range(5)]
        assert again.result(LIMIT_SECONDS) == 10
    assert names_on(client) == []


def test_a_new_run_under_an_old_name_has_its_own_events_and_orders(client: Client) -> None:
    """What the run before told, and that it was stopped, is not of this one."""
    first = detach_driver(client, "again", wait_for_a_stop, None, described)
    first.stop()
    assert first.result(LIMIT_SECONDS) == "stopped"
    second = detach_driver(client, "again", tell, 2, described)
    eventually(lambda: second.is_done, LIMIT_SECONDS)
    assert second.events() == [{"kind": "Said", "what": number} for number in range(2)]
    second.forget()
    GOES_ON.clear()
    third = detach_driver(client, "again", wait_until_set, None, described)
    eventually(lambda: len(third.events()) > 2, LIMIT_SECONDS)
    GOES_ON.set()
    assert third.result(LIMIT_SECONDS) == "through"


def test_a_run_lives_on_without_the_client_that_began_it(client: Client) -> None:
    """Its client closes before it is through."""
    GOES_ON.clear()
    with Client(client.scheduler.address, set_as_default=False) as other:
        detach_driver(other, "orphan", wait_until_set, None, described)
        has_begun(other, "orphan")
    GOES_ON.set()
    assert attach("orphan", client).result(LIMIT_SECONDS) == "through"


def test_a_run_is_stopped_by_whoever_is_attached(client: Client) -> None:
    """It ends by itself, with a result."""
    detach_driver(client, "long", wait_for_a_stop, None, described)
    has_begun(client, "long")
    run = attach("long", client)
    assert not run.is_done
    run.stop()
    run.stop()
    assert run.result(LIMIT_SECONDS) == "stopped"


def test_what_was_ordered_before_the_driver_listened_is_heard(client: Client) -> None:
    """A driver that was lost is run again, and finds the order that the first one had."""
    run = detach_driver(client, "early", wait_for_a_stop, None, described)
    run.stop()
    assert run.result(LIMIT_SECONDS) == "stopped"


def test_a_name_is_taken_once(client: Client) -> None:
    """Whoever wants it a second time is told what to do; the first run goes on."""
    run = detach_driver(client, "mine", wait_for_a_stop, None, described)
    with pytest.raises(ArgumentError, match=r"^name: .*'mine'.*forget"):
        detach_driver(client, "mine", tell, 1, described)
    run.stop()
    assert run.result(LIMIT_SECONDS) == "stopped"


def test_an_unknown_name_is_refused_with_those_that_there_are(client: Client) -> None:
    """Other published data sets are none of ours."""
    with pytest.raises(ArgumentError, match=r"^name: .*'nobody'.*none"):
        attach("nobody", client)
    client.publish_dataset(3, name="three")
    run = detach_driver(client, "somebody", tell, 1, described)
    with pytest.raises(ArgumentError, match=r"'nobody'.*somebody") as caught:
        attach("nobody", client)
    assert "three" not in str(caught.value)
    assert run.result(LIMIT_SECONDS) == 2
    client.unpublish_dataset("three")


def test_a_wait_has_a_limit_and_the_run_goes_on(client: Client) -> None:
    """Whoever waited in vain may wait again."""
    run = detach_driver(client, "slow", wait_for_a_stop, None, described)
    with pytest.raises(CallTimeoutError, match=r"slow.*0.05 seconds"):
        run.result(0.05)
    assert names_on(client)
    run.stop()
    assert run.result(LIMIT_SECONDS) == "stopped"


def test_an_error_of_the_work_is_raised_where_it_is_waited_for(client: Client) -> None:
    """With its own kind; the name is let go."""
    run = detach_driver(client, "bad", fail, "no luck", described)
    with pytest.raises(ArithmeticError, match="no luck"):
        run.result(LIMIT_SECONDS)
    assert names_on(client) == []


def test_a_run_that_is_forgotten_is_asked_to_end(client: Client) -> None:
    """Its driver sees that nobody wants it; forgetting twice does no harm."""
    run = detach_driver(client, "gone", wait_for_a_stop, None, described)
    has_begun(client, "gone")
    run.forget()
    run.forget()
    assert names_on(client) == []

    def left() -> list[str]:
        keys: list[str] = client.run_on_scheduler(lambda dask_scheduler: list(map(str, dask_scheduler.tasks)))
        return [key for key in keys if "-gone-" in key]

    eventually(lambda: not left(), LIMIT_SECONDS)


def test_a_run_that_another_has_forgotten_is_told_of(client: Client) -> None:
    """Whoever waits for its result is not left waiting, and need not know Dask's words for it."""
    run = detach_driver(client, "ours", wait_for_a_stop, None, described)
    has_begun(client, "ours")
    with Client(client.scheduler.address, set_as_default=False) as other:
        attach("ours", other).forget()
    with pytest.raises(ClusterError, match="ours was forgotten"):
        run.result(LIMIT_SECONDS)


def test_a_scheduler_that_is_gone_is_told_of() -> None:
    """Neither waiting nor letting go hangs."""
    with small_cluster(n_workers=1) as cluster, Client(cluster, set_as_default=False) as client:
        run = detach_driver(client, "cut", wait_for_a_stop, None, described)
        has_begun(client, "cut")
        run.stop()
        eventually(lambda: run.is_done, LIMIT_SECONDS)
        client.close()
        with pytest.raises(ClusterError, match="cut"):
            run.result(1.0)
        run.forget()
