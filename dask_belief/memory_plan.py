"""What a run needs in the memory of each worker: sizes in, bytes by purpose out; pure.

::

    process     Python, Dask and this package, what is freed and kept, the hub
    data        an in-memory data set that was sent there, and what Dask holds for others
    replicas    parameters, gradients, sums, what is on its way; rows read ahead; what a block of rows is computed in
    shards      the vectors that have names, and pieces that have arrived or are about to leave
    kept        saved vectors of other workers' shards
    evaluation  tasks that find the loss of a data set beside the training
    cache       decoded rows, kept between passes

A method says what it needs for one replica and for one parameter (`Needs`), the cluster what each worker has to do
(`WorkerFacts`). The cache gets what is left over, unless its size is given.

Two numbers come of it. The most is what is there when every purpose is at its height at once, which seldom happens:
about twice what is measured. The least is what is there all the time; a run is refused when that does not fit.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from dask_belief.cluster.memory import Thresholds, WorkerMemory, kept_freed_bytes, read_ahead_bytes
from dask_belief.cluster.placement import place_one, replicas_to_start, teams_to_start
from dask_belief.errors import DoesNotFitError
from dask_belief.memory_needs import Needs
from dask_belief.parameter_server.ranges import PIECE_BYTES

MIB = 2**20

CACHE_SHARE = 0.4
"""The part of a worker's memory limit, or of a device's free memory, that keeps decoded data between passes."""

LEAST_PROCESS_BYTES = 64 * MIB
PROCESS_BYTES = 96 * MIB
"""A worker that has done nothing has 62 MiB resident, after small runs 69 to 84."""

HUB_BYTES = 8 * MIB

# As `parameter_server.client` sends them.
PIECES_IN_FLIGHT = 2

# As `parameter_server.vectors` works through them.
_CHUNK_NUMBERS = 32_768

# As many parts has an `evaluation.Evaluation`.
_MOST_EVALUATIONS = 8

# So many workers are named in an error.
_MOST_NAMED = 4


@dataclass(frozen=True)
class WorkerFacts:
    """What one worker has to do.

    Attributes
    ----------
    worker
        Its address.
    memory
        What it has.
    n_replicas
        Replicas on it.
    shards
        The parameters of each shard on it, copies of shards among them.
    kept
        The parameters of each shard whose saved vectors it keeps.
    is_hub
        Whether the coordinator or ledger is on it.
    """

    worker: str
    memory: WorkerMemory
    n_replicas: int
    shards: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()
    is_hub: bool = False


@dataclass(frozen=True)
class Purposes:
    """Bytes of one worker by purpose; see the module."""

    process: int
    data: int
    replicas: int
    shards: int
    kept: int
    evaluation: int
    cache: int

    @property
    def total(self) -> int:
        """All together."""
        return sum(asdict(self).values())

    def __str__(self) -> str:
        return ", ".join(f"{name} {_mib(n_bytes)}" for name, n_bytes in asdict(self).items() if n_bytes)


@dataclass(frozen=True)
class WorkerPlan:
    """What is planned for one worker.

    Attributes
    ----------
    facts
        What it has to do.
    bytes
        At most, by purpose; of the cache what all its replicas may keep together.
    least_bytes
        What is needed all the time.
    usable_bytes
        The part of its limit that may be used; 0 for no limit.
    """

    facts: WorkerFacts
    bytes: Purposes
    least_bytes: int
    usable_bytes: int

    @property
    def missing_bytes(self) -> int:
        """By how much too little it has; 0 where the run may fit."""
        return max(0, self.least_bytes - self.usable_bytes) if self.usable_bytes else 0

    def __str__(self) -> str:
        text = f"worker {self.facts.worker}: at most {self.bytes}; {_mib(self.least_bytes)} to {_mib(self.bytes.total)}"
        if not self.usable_bytes:
            return f"{text} together, without a limit"
        return f"{text} together, of {_mib(self.usable_bytes)} that may be used of its limit of {_mib(self._limit)}"

    @property
    def _limit(self) -> int:
        return self.facts.memory.limit_bytes


@dataclass(frozen=True)
class MemoryPlan:
    """What is planned for all workers.

    Attributes
    ----------
    workers
        One by one.
    cache_bytes
        Decoded rows that each replica may keep on the host.
    thresholds
        Of the workers.
    advice
        How the method is made to need less, as the rest of a sentence.
    """

    workers: tuple[WorkerPlan, ...]
    cache_bytes: int
    thresholds: Thresholds
    advice: str

    @property
    def fits(self) -> bool:
        """Whether the least that is needed fits on every worker."""
        return not any(plan.missing_bytes for plan in self.workers)

    def check(self) -> None:
        """Refuse a run that does not fit.

        Raises
        ------
        DoesNotFitError
            With the numbers of each worker whose memory is too small, and what to do.
        """
        lacking = sorted((plan for plan in self.workers if plan.missing_bytes), key=lambda plan: -plan.missing_bytes)
        if not lacking:
            return
        lines = [f"{_mib(plan.missing_bytes)} too much for {plan}" for plan in lacking[:_MOST_NAMED]]
        if len(lacking) > _MOST_NAMED:
            lines.append(f"and {len(lacking) - _MOST_NAMED} workers more")
        raise DoesNotFitError(
            f"the run does not fit into the memory of {len(lacking)} of {len(self.workers)} workers: "
            f"{'; '.join(lines)}. Use workers with more memory, or {self.advice}."
        )

    @property
    def warning(self) -> str | None:
        """What is to be warned of although it may fit: a worker may be paused, or data that it holds go to disk."""
        for plan in self.workers:
            if plan.usable_bytes and plan.bytes.total > plan.usable_bytes:
                return f"the run may become too large for the memory of a worker, and Dask pause it. {plan}."
            limit, data = plan.facts.memory.limit_bytes, plan.bytes.data
            target, spill = self.thresholds.target, self.thresholds.spill
            if not limit or not data:
                continue
            if (target and data > target * limit) or (spill and plan.bytes.total > spill * limit):
                return (
                    f"Dask may write data that it holds in memory ({_mib(data)}) to disk during the run. {plan}. "
                    "Write the data set to a store with write_dataset, or use workers with more memory."
                )
        return None

    @property
    def short(self) -> str:
        """A few words for those who watch: what the fullest worker may need."""
        plan = self._fullest
        limit = plan.facts.memory.limit_bytes
        return f"memory up to {_mib(plan.bytes.total)} a worker" + (f" of {_mib(limit)}" if limit else "")

    @property
    def _fullest(self) -> WorkerPlan:
        return min(self.workers, key=lambda plan: (plan.usable_bytes or float("inf")) - plan.bytes.total)

    def __str__(self) -> str:
        fullest = self._fullest
        more = f" (the fullest of {len(self.workers)})" if len(self.workers) > 1 else ""
        return f"memory planned{more}: {fullest}"


def placed_elsewhere(workers: Iterable[str], owners: Iterable[str]) -> list[str]:
    """Where copies of shards on `owners`, or what is saved of them, go: to other workers; empty without any."""
    known, taken = sorted(workers), list[str]()
    for owner in owners:
        if set(known) <= {owner}:
            return []
        taken.append(place_one(known, taken, {owner}))
    return taken


def workers_of_run(
    memory: Mapping[str, WorkerMemory],
    n_replicas: int | None,
    n_pieces: int,
    shards: Iterable[tuple[str, int]],
    hub: str,
    kept: Iterable[tuple[str, int]] = (),
) -> tuple[WorkerFacts, ...]:
    """Tell what each worker has to do.

    Parameters
    ----------
    memory
        Of each worker of the run.
    n_replicas
        Of the run; None for one on every thread.
    n_pieces
        Tasks of each replica.
    shards
        Worker and number of parameters of each shard, and of each copy of one.
    hub
        The worker of the coordinator or ledger.
    kept
        Worker and number of parameters of each shard whose saved vectors are kept on another worker.
    """
    n_threads = {each: memory[each].n_threads for each in memory}
    if n_pieces == 1:
        starting = Counter(replicas_to_start(n_threads, {}, n_replicas))
    else:
        starting = Counter(itertools.chain(*teams_to_start(n_threads, {}, 0, n_replicas, n_pieces)))
    shards, kept = tuple(shards), tuple(kept)
    return tuple(
        WorkerFacts(
            worker,
            memory[worker],
            starting[worker],
            tuple(length for where, length in shards if where == worker),
            tuple(length for where, length in kept if where == worker),
            worker == hub,
        )
        for worker in sorted(memory)
    )


def plan_memory(needs: Needs, workers: Sequence[WorkerFacts], thresholds: Thresholds) -> MemoryPlan:
    """Plan the memory of a run.

    Parameters
    ----------
    needs
        Of the method.
    workers
        One or more.
    thresholds
        A worker may be filled up to `Thresholds.pause`; a cache whose size is not given ends below `Thresholds.spill`.
    """
    n_replicas = sum(facts.n_replicas for facts in workers)
    n_shards = sum(len(facts.shards) for facts in workers)
    least = {facts.worker: _least_bytes(needs, facts) for facts in workers}
    beside = {facts.worker: _beside_cache(needs, facts, n_replicas, n_shards) for facts in workers}
    caches = [
        _cache_bytes(needs, facts, beside[facts.worker].total, thresholds) for facts in workers if facts.n_replicas
    ]
    cache_bytes = min(caches, default=0)
    plans = []
    for facts in workers:
        planned = Purposes(**asdict(beside[facts.worker]) | {"cache": facts.n_replicas * cache_bytes})
        usable = int((thresholds.pause or 1.0) * facts.memory.limit_bytes)
        given = 0 if needs.cache_bytes is None else planned.cache
        plans.append(WorkerPlan(facts, planned, least[facts.worker] + given, usable))
    return MemoryPlan(tuple(plans), cache_bytes, thresholds, needs.advice)


def _cache_bytes(needs: Needs, facts: WorkerFacts, beside_bytes: int, thresholds: Thresholds) -> int:
    """What each replica of a worker may keep; never more than there is to be kept."""
    if needs.cache_bytes is not None:
        return min(needs.cache_bytes, needs.data_bytes)
    limit = facts.memory.limit_bytes
    share = int(CACHE_SHARE * facts.memory.replica_bytes)
    if limit:
        # A cache is never why data are written to disk.
        end = min(thresholds.spill or 1.0, thresholds.pause or 1.0)
        share = min(share, max(0, int(end * limit) - beside_bytes) // facts.n_replicas)
    return min(share, needs.data_bytes)


def _beside_cache(needs: Needs, facts: WorkerFacts, n_replicas: int, n_shards: int) -> Purposes:
    """All but the cache."""
    has_replicas = facts.n_replicas > 0
    evaluations = min(facts.memory.n_threads, _MOST_EVALUATIONS)
    return Purposes(
        process=PROCESS_BYTES + kept_freed_bytes(facts.memory.replica_bytes) + facts.is_hub * HUB_BYTES,
        data=facts.memory.held_bytes + has_replicas * needs.sent_bytes,
        replicas=_of_replicas(needs, facts, n_shards),
        shards=sum(_of_shard(needs, length, n_replicas) for length in facts.shards),
        kept=sum(_of_kept(needs, length) for length in facts.kept),
        evaluation=evaluations * needs.evaluation_bytes,
        cache=0,
    )


def _least_bytes(needs: Needs, facts: WorkerFacts) -> int:
    """All that is there all the time, but for the cache."""
    n_bytes = LEAST_PROCESS_BYTES + facts.memory.held_bytes
    if facts.n_replicas:
        n_bytes += facts.n_replicas * (needs.replica_vectors * needs.vector_bytes + needs.workspace_bytes)
        n_bytes += needs.sent_bytes + bool(needs.shared_vectors) * needs.vector_bytes
    of_shards = needs.shard_vectors * sum(facts.shards) + needs.kept_vectors * sum(facts.kept)
    return n_bytes + of_shards * needs.item_bytes


def _of_replicas(needs: Needs, facts: WorkerFacts, n_shards: int) -> int:
    if not facts.n_replicas:
        return 0
    # Ready, with one unit beyond what is allowed; being read; being computed.
    rows = min(read_ahead_bytes(facts.memory.replica_bytes), needs.data_bytes) + 3 * needs.unit_bytes
    n_vectors = needs.replica_vectors + needs.passing_replica_vectors
    each = n_vectors * needs.vector_bytes + rows + needs.workspace_bytes
    shared = min(needs.shared_vectors, facts.n_replicas) * needs.vector_bytes
    # Values that have come, and are not yet where they are used.
    arriving = min(needs.vector_bytes, n_shards * PIECES_IN_FLIGHT * PIECE_BYTES)
    n_fetches = 1 if needs.shared_vectors else facts.n_replicas
    return facts.n_replicas * each + shared + n_fetches * arriving


def _of_shard(needs: Needs, length: int, n_replicas: int) -> int:
    n_bytes = length * needs.item_bytes
    # Dask does not hold senders back: what all replicas have under way with this shard may arrive at once.
    arriving = n_replicas * needs.n_under_way * _pieces_bytes(n_bytes)
    scratch = needs.shard_vectors * min(length, _CHUNK_NUMBERS) * 8
    n_vectors = needs.shard_vectors + needs.passing_vectors
    # A piece that is carried to where it is saved is read, sent, and written.
    return n_vectors * n_bytes + arriving + scratch + 2 * _pieces_bytes(n_bytes)


def _of_kept(needs: Needs, length: int) -> int:
    n_bytes = length * needs.item_bytes
    return (needs.kept_vectors + needs.passing_kept_vectors) * n_bytes + 2 * _pieces_bytes(n_bytes)


def _pieces_bytes(shard_bytes: int) -> int:
    """The pieces of one shard that are under way together in one exchange."""
    return min(shard_bytes, PIECES_IN_FLIGHT * PIECE_BYTES)


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / MIB:.4g} MiB" if n_bytes >= MIB / 10 else f"{n_bytes} bytes"
