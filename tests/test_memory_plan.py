"""The memory of each worker follows from sizes: by hand for small ones, more for more, refused with the numbers."""

from __future__ import annotations

import re
from dataclasses import fields, replace

import pytest

from dask_belief.cluster.memory import Thresholds, WorkerMemory, read_ahead_bytes
from dask_belief.errors import DoesNotFitError
from dask_belief.memory_needs import Needs
from dask_belief.memory_plan import (
    CACHE_SHARE,
    HUB_BYTES,
    PIECES_IN_FLIGHT,
    PROCESS_BYTES,
    MemoryPlan,
    Purposes,
    WorkerFacts,
    placed_elsewhere,
    plan_memory,
    workers_of_run,
)
from dask_belief.parameter_server import client
from dask_belief.parameter_server.ranges import PIECE_BYTES

MIB = 2**20

NEEDS = Needs(
    vector_bytes=80 * MIB,
    item_bytes=4,
    replica_vectors=2,
    passing_replica_vectors=1,
    shared_vectors=2,
    unit_bytes=2 * MIB,
    data_bytes=500 * MIB,
    workspace_bytes=5 * MIB,
    shard_vectors=8,
    passing_vectors=2,
    n_under_way=1,
    kept_vectors=4,
    passing_kept_vectors=2,
    sent_bytes=0,
    evaluation_bytes=0,
    cache_bytes=None,
    advice="do with less",
)
# 40 MiB a vector.
LENGTH = 10 * MIB
THRESHOLDS = Thresholds(target=0.6, spill=0.7, pause=0.8)


def worker(limit: int = 4000 * MIB, **options) -> WorkerFacts:
    known = {"worker": "tcp://a:1", "n_replicas": 1, "shards": (LENGTH,), "kept": (), "is_hub": False}
    threads, held = options.pop("n_threads", 1), options.pop("held_bytes", 0)
    return WorkerFacts(memory=WorkerMemory(limit, threads, held), **(known | options))


def planned(needs: Needs = NEEDS, *workers: WorkerFacts, thresholds: Thresholds = THRESHOLDS) -> MemoryPlan:
    return plan_memory(needs, workers or (worker(),), thresholds)


def test_numbers_by_hand() -> None:
    """Each purpose of one worker with a replica, a shard, saved vectors of another and the hub."""
    facts = worker(kept=(LENGTH // 2,), is_hub=True, held_bytes=7 * MIB)
    found = planned(replace(NEEDS, sent_bytes=3 * MIB, evaluation_bytes=11 * MIB), facts).workers[0]
    assert found.bytes == Purposes(
        process=PROCESS_BYTES + 200 * MIB + HUB_BYTES,
        data=10 * MIB,
        # Three vectors of its own and one of the worker's; what arrives of one shard; 128 MiB and three units of rows.
        replicas=(4 * 80 + PIECES_IN_FLIGHT * 16 + 128 + 3 * 2 + 5) * MIB,
        # Ten vectors; two pieces from one replica; four while they are saved; scratch of a quarter MiB a vector.
        shards=(10 * 40 + 32 + 2 * 32) * MIB + 8 * MIB // 4,
        kept=(6 * 20 + 2 * 20) * MIB,
        evaluation=11 * MIB,
        cache=500 * MIB,
    )
    # One vector of parameters, two of the replica's, eight of the shard's, four kept; no rows.
    assert found.least_bytes == (64 + 10 + 3 * 80 + 5 + 8 * 40 + 4 * 20) * MIB
    assert found.usable_bytes == 3200 * MIB
    assert found.missing_bytes == 0
    assert found.bytes.total == sum(getattr(found.bytes, field.name) for field in fields(Purposes))


def test_replicas_of_one_worker_share_what_they_can() -> None:
    """Two vectors of parameters do for any number of them, and one fetch brings them; the rest is each one's own."""
    one, three = (planned(NEEDS, worker(n_replicas=n, n_threads=4)).workers[0].bytes.replicas for n in (1, 3))
    rows = read_ahead_bytes(1000 * MIB) + 6 * MIB
    arriving = PIECES_IN_FLIGHT * PIECE_BYTES
    assert one == 4 * 80 * MIB + rows + 5 * MIB + arriving
    assert three == (3 * 3 + 2) * 80 * MIB + 3 * (rows + 5 * MIB) + arriving
    apart = planned(replace(NEEDS, shared_vectors=0), worker(n_replicas=3, n_threads=4)).workers[0].bytes.replicas
    assert apart == 3 * 3 * 80 * MIB + 3 * (rows + 5 * MIB + arriving)


def test_replicas_of_all_workers_send_to_each_shard() -> None:
    """Dask has no back-pressure: what all have under way may lie at one shard at once."""
    others = [worker(worker=f"tcp://b:{n}", shards=()) for n in range(9)]
    alone, beside = planned(NEEDS, worker()).workers[0], planned(NEEDS, worker(), *others).workers[0]
    assert beside.bytes.shards - alone.bytes.shards == 9 * PIECES_IN_FLIGHT * PIECE_BYTES


@pytest.mark.parametrize(
    "name", [field.name for field in fields(Needs) if field.name not in ("advice", "cache_bytes", "item_bytes")]
)
def test_more_of_anything_needs_no_less(name: str) -> None:
    """Of each fact of the method; and each counts for something."""
    needs = replace(NEEDS, cache_bytes=0)
    more = replace(needs, **{name: 2 * getattr(needs, name) + 1})
    facts = worker(n_replicas=4, n_threads=4, kept=(LENGTH,), limit=0)
    before, after = (planned(one, facts).workers[0].bytes.total for one in (needs, more))
    # The rows of all data are no more than may be read ahead here.
    assert after >= before if name == "data_bytes" else after > before


@pytest.mark.parametrize(
    "more",
    [
        {"n_replicas": 2},
        {"shards": (LENGTH, LENGTH)},
        {"shards": (2 * LENGTH,)},
        {"kept": (LENGTH,)},
        {"is_hub": True},
        {"held_bytes": MIB},
        {"n_threads": 2},
    ],
    ids=str,
)
def test_more_to_do_needs_more(more) -> None:
    """Of each fact of a worker."""
    needs = replace(NEEDS, cache_bytes=0, evaluation_bytes=MIB)
    before, after = planned(needs, worker(limit=0)), planned(needs, worker(limit=0, **more))
    assert after.workers[0].bytes.total > before.workers[0].bytes.total


def test_default_cache_is_what_is_left() -> None:
    """Four tenths of a large worker's memory, less of a small one's, nothing at last; never more than the data."""
    much = replace(NEEDS, data_bytes=10**13)
    assert planned(much, worker(10_000 * MIB)).cache_bytes == int(CACHE_SHARE * 10_000 * MIB)
    small = planned(much, worker(1600 * MIB))
    assert 0 < small.cache_bytes < 0.4 * 1600 * MIB
    [plan] = small.workers
    # It ends where Dask would write data to disk.
    assert 0.7 * 1600 * MIB - 1 <= plan.bytes.total <= 0.7 * 1600 * MIB
    smallest = planned(much, worker(1400 * MIB))
    assert smallest.cache_bytes == 0
    smallest.check()
    assert planned(NEEDS, worker(100_000 * MIB)).cache_bytes == NEEDS.data_bytes
    assert planned(much, worker(0)).cache_bytes == 1024 * MIB


def test_cache_is_that_of_the_fullest_worker() -> None:
    """All replicas are told one number; workers without a replica have no say."""
    much = replace(NEEDS, data_bytes=10**13)
    workers = [
        worker(20_000 * MIB),
        worker(1600 * MIB, worker="tcp://b:1"),
        worker(10, worker="tcp://c:1", n_replicas=0),
    ]
    assert planned(much, *workers).cache_bytes <= planned(much, workers[1]).cache_bytes
    assert planned(much, workers[0], workers[2]).cache_bytes > 1000 * MIB
    assert planned(much, worker(n_replicas=0)).cache_bytes == 0


def test_given_cache_is_taken_as_it_is() -> None:
    """Also where it does not fit: then the run is refused."""
    plan = planned(replace(NEEDS, cache_bytes=900 * MIB), worker(1400 * MIB))
    assert plan.cache_bytes == plan.workers[0].bytes.cache == NEEDS.data_bytes
    with pytest.raises(DoesNotFitError, match="cache 500 MiB"):
        plan.check()


def test_refusal_has_the_numbers() -> None:
    """What is too much, by purpose, for which workers, of what; and what to do. Those with room are not named."""
    workers = [worker(500 * MIB, worker=f"tcp://a:{n}") for n in range(6)]
    plan = planned(NEEDS, *workers, worker(8000 * MIB, worker="tcp://roomy:1"))
    with pytest.raises(DoesNotFitError) as caught:
        plan.check()
    message, total = str(caught.value), plan.workers[0].bytes.total
    assert plan.workers[0].missing_bytes == (64 + 3 * 80 + 5 + 8 * 40 - 400) * MIB
    assert "the memory of 6 of 7 workers" in message
    assert "229 MiB too much for worker tcp://a:0: at most process 121 MiB, replicas" in message
    assert f"629 MiB to {total / MIB:.4g} MiB together, of 400 MiB that may be used of its limit of 500" in message
    assert len(re.findall("too much for", message)) == 4
    assert "and 2 workers more" in message
    assert message.endswith("Use workers with more memory, or do with less.")
    assert "roomy" not in message


def test_what_may_fit_is_not_refused() -> None:
    """What is there all the time decides; that the most is too much is warned of."""
    plan = planned(NEEDS, worker(800 * MIB))
    plan.check()
    assert "Dask pause it. worker tcp://a:1: at most" in str(plan.warning)
    with pytest.raises(DoesNotFitError):
        planned(NEEDS, worker(780 * MIB)).check()


def test_no_limit_is_never_too_little() -> None:
    """Nor is a limit that is reached and not passed, where Dask never pauses."""
    planned(replace(NEEDS, vector_bytes=10**15), worker(0)).check()
    least = planned(NEEDS, worker(0)).workers[0].least_bytes
    never = Thresholds(None, None, None)
    planned(NEEDS, worker(least), thresholds=never).check()
    with pytest.raises(DoesNotFitError):
        planned(NEEDS, worker(least - 1), thresholds=never).check()


def test_plan_says_its_numbers() -> None:
    """In one line, of the worker that is nearest to its limit."""
    text = str(planned(NEEDS, worker(8000 * MIB), worker(4000 * MIB, worker="tcp://b:1")))
    assert text.startswith("memory planned (the fullest of 2): worker tcp://b:1: at most process 296 MiB, replicas ")
    assert re.search(
        r"shards \S+ MiB, cache 500 MiB; \S+ MiB to \S+ MiB together, of 3200 MiB that may be used of its ", text
    )
    assert "kept" not in text
    assert str(planned(NEEDS, worker(0))).endswith("without a limit")
    assert "data 12 bytes" in str(planned(NEEDS, worker(held_bytes=12)))


def test_spilling_is_warned_of() -> None:
    """Where Dask holds data, and either they or the whole process are beyond what it begins to write to disk at."""
    full = worker(1400 * MIB)
    assert planned(NEEDS, full).warning is None
    assert "10 MiB" in str(planned(replace(NEEDS, sent_bytes=10 * MIB), full).warning)
    roomy = worker(10_000 * MIB)
    assert planned(replace(NEEDS, sent_bytes=10 * MIB), roomy).warning is None
    needs, without = replace(NEEDS, sent_bytes=6100 * MIB), Thresholds(0.6, None, 0.95)
    assert "to disk" in str(planned(needs, roomy, thresholds=without).warning)
    assert planned(needs, roomy, thresholds=Thresholds(None, None, 0.95)).warning is None
    assert planned(needs, worker(0)).warning is None


def test_workers_of_a_run() -> None:
    """Replicas go where threads are, shards and saved vectors as they were placed."""
    memory = {"b": WorkerMemory(0, 2), "a": WorkerMemory(10, 1)}
    found = workers_of_run(memory, None, 1, [("a", 5), ("b", 6), ("a", 7)], "b", [("b", 5)])
    assert found == (
        WorkerFacts("a", memory["a"], 1, (5, 7)),
        WorkerFacts("b", memory["b"], 2, (6,), (5,), is_hub=True),
    )
    assert [each.n_replicas for each in workers_of_run(memory, 6, 1, [], "a")] == [2, 4]
    assert [each.n_replicas for each in workers_of_run(memory, 2, 3, [], "a")] == [2, 4]


def test_what_is_kept_is_on_another_worker() -> None:
    """Spread over those that are not the owner; nowhere with one worker."""
    assert placed_elsewhere(["a", "b", "c"], ["a", "b", "c", "a"]) == ["b", "a", "a", "c"]
    assert placed_elsewhere(["a"], ["a", "a"]) == []


def test_constants_are_those_that_are_used() -> None:
    """What the plan takes from other modules is not of its own making."""
    assert client._PIECES_IN_FLIGHT == PIECES_IN_FLIGHT
