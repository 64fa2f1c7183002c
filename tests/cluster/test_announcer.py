"""Silence is told from lateness, and a run's announcer goes with its run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from distributed import Client

from dask_belief.cluster.announcer import Announcer, Silence
from tests.small_cluster import eventually, small_cluster

LIMIT, LATE = 4.0, 1.5


def look(silence: Silence, now: float, **heartbeats: float) -> tuple[list[str], list[str]]:
    return silence.look(now, heartbeats, LIMIT, LATE)


def test_worker_without_heartbeats_is_silent_once() -> None:
    """After the limit, and it is said once; the others are not."""
    silence = Silence()
    said = [look(silence, 0.5 * number, a=1.0, b=float(number)) for number in range(12)]
    assert [number for number, each in enumerate(said) if each != ([], [])] == [9]
    assert said[9] == (["a"], [])
    assert "a" in silence
    assert "b" not in silence


def test_silent_worker_is_heard() -> None:
    """At its next heartbeat, once, and its clock starts anew."""
    silence = Silence()
    for number in range(10):
        look(silence, 0.5 * number, a=1.0)
    assert look(silence, 5.0, a=2.0) == ([], ["a"])
    assert "a" not in silence
    said = [look(silence, 5.0 + 0.5 * number, a=2.0) for number in range(1, 10)]
    assert said[:-1] == 8 * [([], [])]
    assert said[-1] == (["a"], [])


def test_late_look_starts_the_clocks_anew() -> None:
    """A scheduler that was stopped has heard nobody, and nobody is silent for that."""
    silence = Silence()
    look(silence, 0.0, a=1.0)
    assert look(silence, 100.0, a=1.0) == ([], [])
    assert look(silence, 101.0, a=1.0) == ([], [])
    for number in range(1, 8):
        assert look(silence, 100.0 + 0.5 * number, a=1.0) == ([], [])
    assert look(silence, 104.5, a=1.0) == (["a"], [])


def test_late_look_still_hears() -> None:
    """Who was silent before and has been heard since is told of, although the look is late."""
    silence = Silence()
    for number in range(10):
        look(silence, 0.5 * number, a=1.0)
    assert look(silence, 100.0, a=2.0) == ([], ["a"])


def test_worker_that_is_given_up_is_silent_until_its_next_heartbeat() -> None:
    """It is not said to be silent once more, and it is said to be heard again."""
    silence = Silence()
    look(silence, 0.0, a=1.0)
    silence.give_up("a", 1.0, 0.1)
    assert look(silence, 0.5, a=1.0) == ([], [])
    assert look(silence, 1.0, a=2.0) == ([], ["a"])


def test_worker_that_left_is_forgotten() -> None:
    """One that comes under the same address begins anew."""
    silence = Silence()
    for number in range(10):
        look(silence, 0.5 * number, a=1.0)
    assert look(silence, 5.0) == ([], [])
    assert "a" not in silence
    assert look(silence, 5.5, a=1.0) == ([], [])


@pytest.fixture
def small() -> Iterator[Client]:
    with small_cluster(n_workers=1) as cluster, Client(cluster, set_as_default=False) as client:
        yield client


def test_announcer_goes_when_its_client_is_gone(small: Client) -> None:
    """A client that died could not take it off; it takes itself off, after a while."""
    small.register_plugin(Announcer("dask-belief-deserted", "a client that is gone", 1.0, 0.1))
    small.register_plugin(Announcer("dask-belief-kept", small.id, 1.0, 0.1))
    plugins = small.cluster.scheduler.plugins
    eventually(lambda: "dask-belief-deserted" not in plugins)
    assert "dask-belief-kept" in plugins
    small.unregister_scheduler_plugin("dask-belief-kept")


def test_announcer_stops_when_it_is_taken_off(small: Client) -> None:
    """It does not look again, and leaves nothing on the event loop."""
    announcer = Announcer("dask-belief-short", small.id, 1.0, 0.1)
    small.register_plugin(announcer)
    [on_scheduler] = [each for name, each in small.cluster.scheduler.plugins.items() if name == "dask-belief-short"]
    small.unregister_scheduler_plugin("dask-belief-short")
    loop = on_scheduler._loop
    eventually(lambda: on_scheduler._timer.when() < loop.time())
    timer = on_scheduler._timer
    small.nthreads()
    assert on_scheduler._timer is timer
