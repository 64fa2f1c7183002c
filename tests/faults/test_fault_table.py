"""Every run of the table ends within its limit, with the result of a run that nothing happened to.

Sandblaster: the same bits, each iteration told once, whatever was lost. Downpour: each mini-batch once; where a shard
without a copy was lost, what the run says was lost with it is missing, and nothing counts twice.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from distributed import Client

import dask_belief as db
from dask_belief.checkpoint import CheckpointStore
from dask_belief.data.folder import PARTIAL
from dask_belief.monitoring.events import DownpourProgressed, IterationEnded, Rebuilt
from dask_belief.parameter_server.vault import Vault
from tests.faults.cases import LONG_SECONDS, Case, table
from tests.faults.clusters import Clusters, assert_clean
from tests.faults.injection import Faults, Watched, planted
from tests.faults.wide import wide_network
from tests.row_counts import BATCH_SIZE, OPTIONS, RowCounts

LIMITS = db.Limits(
    frozen_seconds=2.0, call_seconds=15.0, connect_seconds=3.0, silence_seconds=15.0, no_progress_seconds=60.0
)
N_ROWS, EPOCHS = 2048, 3
PLAIN = {**OPTIONS, "lease_rows": 64, "epochs": EPOCHS}

pytestmark = pytest.mark.timeout(100)


@pytest.fixture
def save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs save as often as they can: the next save begins where the last has ended."""
    monkeypatch.setattr(Vault, "is_due", lambda vault, now: not vault.is_saving)


@pytest.fixture(scope="module")
def clusters():
    """A cluster of three worker processes, with another in its place when it is not whole again after a test."""
    with Clusters(n_workers=3) as clusters:
        yield clusters


def sandblaster(case: Case) -> db.Sandblaster:
    return db.Sandblaster(
        **{"max_iter": 10, "l2": 1e-3, "gtol": 0.0, "ftol": 0.0, **case.options}, n_shards=case.n_shards
    )


def network() -> db.Network:
    return wide_network(2, "relu")


@pytest.fixture(scope="module")
def unbroken(clusters: Clusters, store: Path):
    """Gives the run of a case to which nothing happens; its bits do not depend on the number of shards."""
    known: dict[str, db.TrainingResult] = {}

    def run(case: Case) -> db.TrainingResult:
        key = repr(sorted(case.options.items()))
        if key not in known:
            method = sandblaster(replace(case, n_shards=1))
            known[key] = db.train(network(), store, method, client=clusters.client(), progress=False)
        return known[key]

    return run


def later_trial(result: db.TrainingResult) -> int:
    """The number of an evaluation that is not the first of its line search."""
    ended = [0, *(event.evaluations for event in result.history.events if isinstance(event, IterationEnded))]
    # The first iteration's evaluations have the initial point's before them.
    later = [now for before, now in itertools.pairwise(ended) if now - before > (2 if before == 0 else 1)]
    assert later, "no line search of this run takes a second trial"
    return later[-1]


def assert_happened(faults: Faults, case: Case, clusters: Clusters) -> None:
    """The fault came about, and what this process had to do is done."""
    faults.await_helpers()
    if case.kinds & {"retire", "add"}:
        clusters.spoil()
    for number, fault in enumerate(case.faults):
        assert faults.happened(number) is not None, f"{fault} never came about"


def checkpoint_of(case: Case, folder: Path) -> db.Checkpoint | None:
    """Where the run is saved on disk; None where it is saved in the memory of workers."""
    return db.Checkpoint(folder / "run", every_seconds=0) if case.is_checkpointed else None


def assert_whole(case: Case, folder: Path) -> None:
    """What is saved on disk is all there, the end of the run with it; no file is half written."""
    if case.is_checkpointed:
        store = CheckpointStore(folder / "run")
        store.verify(store.newest())
        assert not [path for path in (folder / "run").rglob("*") if PARTIAL in path.name]


@pytest.mark.usefixtures("save_always")
@pytest.mark.parametrize("case", table("sandblaster"))
def test_sandblaster_keeps_its_bits(clusters: Clusters, unbroken, store: Path, tmp_path: Path, case: Case) -> None:
    """Loss and step of every iteration, and the parameters, are those of the unbroken run."""
    expected = unbroken(case)
    client, planned = clusters.client(), case.faults
    if case.is_at_a_later_trial:
        planned = (replace(planned[0], evaluation=later_trial(expected)), *planned[1:])
    with planted(client, planned, tmp_path / "faults") as faults:
        result = db.train(
            Watched(network()),
            store,
            sandblaster(case),
            client=client,
            progress=False,
            limits=LIMITS,
            validation=store if case.is_validated else None,
            checkpoint=checkpoint_of(case, tmp_path),
        )
        assert_happened(faults, case, clusters)
    assert_whole(case, tmp_path)
    assert result.history["loss"] == expected.history["loss"]
    assert result.history["step"] == expected.history["step"]
    assert result.parameters.tobytes() == expected.parameters.tobytes()
    assert_clean(client)


@pytest.mark.usefixtures("save_always")
@pytest.mark.parametrize("case", table("downpour"))
def test_downpour_counts_each_mini_batch_once(clusters: Clusters, tmp_path: Path, case: Case) -> None:
    """What a shard without a copy lost is told, and is all that is missing."""
    client = clusters.client()
    counting = RowCounts(N_ROWS, case.n_shards)
    method = db.Downpour(**{**PLAIN, **case.options}, n_shards=case.n_shards)
    with planted(client, case.faults, tmp_path / "faults") as faults:
        result = db.train(
            Watched(counting),
            counting.data(),
            method,
            client=client,
            progress=False,
            limits=LIMITS,
            validation=counting.data() if case.is_validated else None,
            checkpoint=checkpoint_of(case, tmp_path),
        )
        assert_happened(faults, case, clusters)
    assert_whole(case, tmp_path)
    assert result.stop.reason is db.StopReason.EPOCHS_DONE
    assert result.passes == EPOCHS
    counts = counting.counts(result.parameters)
    assert counts.max() <= EPOCHS
    if case.hits_a_shard and "shard_copies" not in case.options:
        assert_told(result, (EPOCHS - counts).sum(axis=1) / BATCH_SIZE, is_exact=len(case.faults) == 1)
    else:
        assert counting.found(result.parameters) == [[EPOCHS]] * case.n_shards
    assert_clean(client)


def assert_told(result: db.TrainingResult, missing, is_exact: bool) -> None:
    """The run has told how many mini-batches each shard has lost; a few more where saved states were lost as well."""
    *_, last = (event for event in result.history.events if isinstance(event, DownpourProgressed))
    told = [shard.n_lost for shard in last.shards]
    assert told == missing.tolist() or (not is_exact and all(missing <= told))
    if missing.any():
        assert any(isinstance(event, Rebuilt) for event in result.history.events)


@pytest.mark.long
@pytest.mark.usefixtures("save_always")
def test_a_frozen_worker_comes_back_to_the_run(clusters: Clusters, tmp_path: Path) -> None:
    """It was taken for lost, goes on while the run does, and is given work again; what it had is not counted twice."""
    from dask_belief.monitoring.events import Event, WorkerJoined, WorkerLost

    client: Client = clusters.client()
    counting = RowCounts(N_ROWS)
    [case] = [each.values[0] for each in table("downpour") if each.id.startswith("freeze-long-replica-compute")]
    heard: list[Event] = []

    def until_back(event: Event) -> bool:
        heard.append(event)
        lost = [each.address for each in heard if isinstance(each, WorkerLost)]
        return any(isinstance(each, WorkerJoined) and each.address in lost for each in heard)

    method = db.Downpour(**{**PLAIN, "epochs": 100_000}, n_shards=1, max_seconds=60.0)
    with planted(client, [replace(case.faults[0], seconds=LONG_SECONDS)], tmp_path / "faults") as faults:
        result = db.train(
            Watched(counting),
            counting.data(),
            method,
            client=client,
            progress=False,
            limits=LIMITS,
            callbacks=[until_back],
        )
        assert_happened(faults, case, clusters)
    assert result.stop.reason is db.StopReason.CALLBACK
    assert_clean(client)
