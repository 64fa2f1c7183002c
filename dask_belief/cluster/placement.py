"""Which worker gets which actor: facts in, decision out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dask_belief.errors import NoWorkersError


@dataclass(frozen=True)
class Placement:
    """Where the actors of a run go as it begins.

    Attributes
    ----------
    shards
        The worker of each shard, by shard number.
    hub
        The worker of the coordinator or ledger.
    """

    shards: tuple[str, ...]
    hub: str


def place(workers: Sequence[str], n_shards: int) -> Placement:
    """Spread the shards over the workers, and put the hub where there are fewest.

    The synchronous actors of one worker share one thread, so two shards on one worker take turns: they are spread as
    evenly as can be. The order of addresses decides, so two drivers that see the same workers agree.

    Raises
    ------
    NoWorkersError
        When there are no workers.
    """
    if not workers:
        raise NoWorkersError("the cluster has no worker to place shards on. Start workers, then train again.")
    ordered = sorted(workers)
    shards = tuple(ordered[index % len(ordered)] for index in range(n_shards))
    hub = min(reversed(ordered), key=shards.count)
    return Placement(shards=shards, hub=hub)


def place_one(workers: Iterable[str], taken: Iterable[str], avoid: Collection[str] = ()) -> str:
    """The worker for one more actor: where fewest are already, and if it can be, none of those to avoid.

    Parameters
    ----------
    workers
        Those that are there.
    taken
        The worker of each actor that stays.
    avoid
        Workers whose loss the actor should outlive: where its copy is, or what was saved of it.

    Raises
    ------
    NoWorkersError
        When there are no workers.
    """
    counts = Counter(taken)
    ordered = sorted(workers, key=lambda worker: (worker in avoid, counts[worker], worker))
    if not ordered:
        raise NoWorkersError("the cluster has no worker to place an actor on. Start workers, then go on.")
    return ordered[0]


def replicas_to_start(
    n_threads: Mapping[str, int], running: Mapping[str, int], n_replicas: int | None
) -> tuple[str, ...]:
    """The workers on which replicas are missing, one entry a replica.

    Parameters
    ----------
    n_threads
        Threads of each worker.
    running
        Replicas that run on each worker now.
    n_replicas
        How many there should be; None for one on every thread.

    Returns
    -------
    tuple of str
        The emptiest workers first. More replicas than threads are spread evenly: they take turns.
    """
    counts = {worker: running.get(worker, 0) for worker in n_threads}
    wanted = sum(n_threads.values()) if n_replicas is None else n_replicas
    missing = []
    while counts and sum(counts.values()) < wanted:
        worker = min(sorted(counts), key=lambda each: counts[each] / n_threads[each])
        if n_replicas is None and counts[worker] >= n_threads[worker]:
            break
        counts[worker] += 1
        missing.append(worker)
    return tuple(missing)


def teams_to_start(
    n_threads: Mapping[str, int], running: Mapping[str, int], n_running: int, n_replicas: int | None, n_pieces: int
) -> tuple[tuple[str, ...], ...]:
    """The workers of replicas in pieces that are missing: for each the lead's, and then one a piece.

    Parameters
    ----------
    n_threads
        Threads of each worker.
    running
        Tasks of replicas that run on each worker now.
    n_running
        Replicas that run now.
    n_replicas
        How many there should be; None for as many as there are threads for, one at least.
    n_pieces
        Tasks of each.

    Returns
    -------
    tuple of tuple of str
        The emptiest workers first, and no worker twice in a team unless there are too few: then its pieces take turns.
    """
    counts = {worker: running.get(worker, 0) for worker in n_threads}
    wanted = max(1, sum(n_threads.values()) // n_pieces) if n_replicas is None else n_replicas
    teams = []
    for _ in range(wanted - n_running if counts else 0):
        team: list[str] = []
        for _ in range(n_pieces):
            least = min(team.count(each) for each in counts)
            worker = min(
                (each for each in sorted(counts) if team.count(each) == least),
                key=lambda each: counts[each] / n_threads[each],
            )
            counts[worker] += 1
            team.append(worker)
        teams.append(tuple(team))
    return tuple(teams)
