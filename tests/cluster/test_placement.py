"""Where shards, hub and replicas go."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_belief.cluster.placement import place, place_one, replicas_to_start, teams_to_start
from dask_belief.errors import NoWorkersError

EXAMPLES = settings(derandomize=True, deadline=None, max_examples=200)
WORKERS = st.sets(st.sampled_from([f"tcp://w{number}:1" for number in range(9)]), min_size=1)


@EXAMPLES
@given(WORKERS, st.integers(1, 30))
def test_shards_are_spread_and_the_hub_is_where_they_are_fewest(workers: set[str], n_shards: int) -> None:
    """Each shard has a worker, no worker has two more than another, and the hub has as few neighbours as can be."""
    placement = place(sorted(workers), n_shards)
    counts = Counter({worker: 0 for worker in workers})
    counts.update(placement.shards)
    assert len(placement.shards) == n_shards
    assert set(counts) == workers
    assert max(counts.values()) - min(counts.values()) <= 1
    assert counts[placement.hub] == min(counts.values())


@EXAMPLES
@given(WORKERS.flatmap(lambda workers: st.permutations(sorted(workers))), st.integers(1, 30))
def test_placement_does_not_depend_on_the_order_of_workers(workers: list[str], n_shards: int) -> None:
    """Two drivers that see the same workers agree."""
    assert place(workers, n_shards) == place(sorted(workers), n_shards)


def test_no_worker_is_an_error() -> None:
    """There is nowhere to place anything."""
    with pytest.raises(NoWorkersError):
        place([], 1)


def test_one_replica_a_thread() -> None:
    """Without a number, every thread gets a replica, and those that run are counted."""
    assert Counter(replicas_to_start({"a": 2, "b": 1}, {}, None)) == {"a": 2, "b": 1}
    assert replicas_to_start({"a": 2, "b": 1}, {"a": 1, "b": 1}, None) == ("a",)
    assert replicas_to_start({"a": 2, "b": 1}, {"a": 2, "b": 1}, None) == ()


def test_replicas_of_workers_that_are_gone_do_not_count() -> None:
    """What runs on a worker that left is missing."""
    assert replicas_to_start({"a": 1}, {"gone": 4}, 2) == ("a", "a")


@EXAMPLES
@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 4), min_size=1, max_size=6),
    st.data(),
    st.one_of(st.none(), st.integers(1, 30)),
)
def test_missing_replicas_are_spread_by_threads(
    n_threads: dict[str, int], data: st.DataObject, n_replicas: int | None
) -> None:
    """As many as are missing are started, never more than a thread each without a number, the emptiest first."""
    running = data.draw(st.dictionaries(st.sampled_from(sorted(n_threads)), st.integers(0, 1)))
    missing = replicas_to_start(n_threads, running, n_replicas)
    n_running = sum(running.values())
    wanted = sum(n_threads.values()) if n_replicas is None else n_replicas
    assert len(missing) == max(0, wanted - n_running)
    counts = Counter(running)
    for worker in missing:
        assert counts[worker] / n_threads[worker] == min(counts[each] / n_threads[each] for each in n_threads)
        counts[worker] += 1
    if n_replicas is None:
        assert all(counts[worker] <= n_threads[worker] for worker in n_threads)


def test_no_worker_needs_no_replica() -> None:
    """Nothing is started where nothing is."""
    assert replicas_to_start({}, {}, 3) == ()


@EXAMPLES
@given(WORKERS, st.lists(st.sampled_from([f"tcp://w{number}:1" for number in range(9)]), max_size=12), st.data())
def test_one_more_actor_goes_where_fewest_are(workers: set[str], taken: list[str], data: st.DataObject) -> None:
    """Among those that need not be avoided, or among all where there is no other; actors that are gone do not count."""
    avoid = data.draw(st.sets(st.sampled_from([f"tcp://w{number}:1" for number in range(9)])))
    chosen = place_one(sorted(workers), taken, avoid)
    counts = Counter(taken)
    allowed = workers - avoid or workers
    assert chosen in allowed
    assert counts[chosen] == min(counts[worker] for worker in allowed)
    # Whatever the order in which the workers are seen.
    assert place_one(data.draw(st.permutations(sorted(workers))), taken, avoid) == chosen


def test_worker_to_avoid_is_better_than_none() -> None:
    """A full one that outlives the loss is better than an empty one that does not."""
    assert place_one(["a"], ["a"], {"a"}) == "a"
    assert place_one(["a", "b"], ["b", "b", "b"], {"a"}) == "b"


def test_nowhere_to_place_one_is_an_error() -> None:
    """It says what to do."""
    with pytest.raises(NoWorkersError, match="Start workers"):
        place_one([], ["gone"], {"gone"})


def test_teams_are_of_different_workers() -> None:
    """The emptiest first; a worker has two pieces of a team only where there are too few."""
    threads = {"a": 1, "b": 1, "c": 2}
    assert teams_to_start(threads, {}, 0, None, 2) == (("a", "b"), ("c", "a"))
    assert teams_to_start(threads, {"a": 1, "b": 1}, 1, 2, 2) == (("c", "a"),)
    assert teams_to_start({"a": 1}, {}, 0, None, 3) == (("a", "a", "a"),)
    assert teams_to_start({}, {}, 0, 4, 2) == () == teams_to_start(threads, {}, 4, 4, 2)


def test_as_many_teams_as_there_are_threads_for() -> None:
    """One at least, however few there are."""
    assert len(teams_to_start({"a": 2, "b": 2, "c": 2}, {}, 0, None, 2)) == 3
    assert len(teams_to_start({"a": 1, "b": 1}, {}, 0, None, 3)) == 1
