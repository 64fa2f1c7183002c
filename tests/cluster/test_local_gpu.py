"""Which worker is shown which device, without any: a machine with devices is pretended, as far as one can tell."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from distributed import Client

import dask_belief as db
from dask_belief.cluster import local_gpu
from dask_belief.cluster.asking import known_of_workers
from dask_belief.cluster.limits import limited_by
from dask_belief.cluster.local_gpu import VISIBLE, check_devices, count_devices, visible_devices
from dask_belief.errors import ArgumentError, NoGPU


@pytest.mark.parametrize(
    ("listed", "n_devices", "expected"),
    [
        (None, 3, ("0", "1", "2")),
        ("2,0", 2, ("2", "0")),
        (" 2 , GPU-8932f937,MIG-1/0 ", 3, ("2", "GPU-8932f937", "MIG-1/0")),
        # CUDA leaves out what comes after a name that it does not know.
        ("1,9,0", 1, ("1",)),
        (None, 0, ()),
    ],
)
def test_devices_keep_their_names(listed: str | None, n_devices: int, expected: tuple[str, ...]) -> None:
    """A worker is shown its device by the name that this process was shown it by."""
    assert visible_devices(listed, n_devices) == expected


def test_devices_that_are_chosen() -> None:
    """All of them, or those that are named, in their order."""
    assert check_devices(None, 3) == (0, 1, 2)
    assert check_devices([2, 0], 3) == (2, 0)
    assert check_devices(range(2), 3) == (0, 1)


@pytest.mark.parametrize("devices", [[], [3], [-1], [0, 0], ["0"], [True], [0.0], "01", 2, {0}], ids=repr)
def test_devices_that_are_refused(devices: Any) -> None:
    """None at all, one that is not there or there once, and what is no list of numbers."""
    with pytest.raises(ArgumentError, match=r"^devices: "):
        check_devices(devices, 3)


def counted_as(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(local_gpu, "_COUNT", program)


def test_count_is_the_last_line_of_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an import says before does no harm, and the other process finds the modules that this one does."""
    counted_as(monkeypatch, "import tests.row_counts, os; print('hello'); print(f'[4, \"{os.getpid()}\"]')")
    assert count_devices() == 4


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (
            "print('[0, \"CuPy is not installed\"]')",
            "for each GPU was asked for: CuPy is not installed; a LocalCluster",
        ),
        ("raise SystemExit('no driver')", "could not be counted: no driver"),
        ("import os; os._exit(7)", "could not be counted: exit status 7"),
    ],
)
def test_without_devices_the_reason_is_told(monkeypatch: pytest.MonkeyPatch, program: str, reason: str) -> None:
    """Whether it was found out or went wrong."""
    counted_as(monkeypatch, program)
    with pytest.raises(NoGPU, match=reason):
        db.LocalGPUCluster()


def test_counting_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that never answers is named."""
    counted_as(monkeypatch, "import time; time.sleep(60)")
    with limited_by(db.Limits(start_seconds=0.2)), pytest.raises(NoGPU, match=r"did not say within 0\.2 seconds"):
        count_devices()


@pytest.mark.parametrize("option", ["n_workers", "threads_per_worker", "processes", "worker_class"])
def test_workers_are_not_to_be_chosen(option: str) -> None:
    """They follow from the devices; refused before anything is counted."""
    with pytest.raises(ArgumentError, match=f"^{option}: "):
        db.LocalGPUCluster(**{option: 1})


class Pretended:
    """A machine with three devices, none of which is there."""

    NAMES = "97,98,99"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(VISIBLE, self.NAMES)
        monkeypatch.setattr(local_gpu, "count_devices", lambda: 3)

    def cluster(self, devices: Sequence[int] | None = None, **options: Any) -> db.LocalGPUCluster:
        return db.LocalGPUCluster(devices, silence_logs=logging.CRITICAL, **options)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    return Pretended(monkeypatch)


def shown() -> tuple[str | None, str | None, str | None]:
    return os.environ.get(VISIBLE), os.environ.get("DASK_BELIEF_BACKEND"), os.environ.get("OF_MINE")


def test_each_worker_is_shown_its_device_alone(pretended: Pretended) -> None:
    """One process with one thread for each that was chosen, which is its name; they listen on loopback alone."""
    with pretended.cluster([2, 0], env={"OF_MINE": "x"}) as cluster, Client(cluster, set_as_default=False) as client:
        assert cluster.devices == (2, 0)
        workers = known_of_workers(client)
        assert sorted(known["name"] for known in workers.values()) == [0, 2]
        assert {known["nthreads"] for known in workers.values()} == {1}
        assert all(address.startswith("tcp://127.0.0.1:") for address in [*workers, cluster.scheduler_address])
        # The memory of the machine is shared out, not a core's part of it.
        assert sum(known["memory_limit"] for known in workers.values()) > 0.9 * _memory_bytes()
        seen = client.run(shown)
        by_name = {known["name"]: seen[address] for address, known in workers.items()}
        assert by_name == {0: ("97", "cupy", "x"), 2: ("99", "cupy", "x")}


def _memory_bytes() -> int:
    from distributed.system import MEMORY_LIMIT

    return int(MEMORY_LIMIT)


def test_cluster_can_be_asynchronous(pretended: Pretended) -> None:
    """As a `LocalCluster` can be; its workers are there once it is awaited."""

    async def scenario() -> list[Any]:
        async with (
            pretended.cluster(asynchronous=True) as cluster,
            Client(cluster, asynchronous=True, set_as_default=False) as client,
        ):
            return sorted((await client.run(shown)).values())

    assert asyncio.run(scenario()) == [(name, "cupy", None) for name in Pretended.NAMES.split(",")]


def test_scale_stops_at_the_devices(pretended: Pretended) -> None:
    """A worker that was taken away frees its device for the next; one more than there are is refused."""
    with pretended.cluster([0, 1]) as cluster:
        cluster.scale(1)
        assert sorted(cluster.worker_spec) == [0]
        cluster.scale(2)
        assert [cluster.worker_spec[name]["options"]["env"][VISIBLE] for name in (0, 1)] == ["97", "98"]
        with pytest.raises(ArgumentError, match="one worker for each of 2 devices"):
            cluster.scale(3)


def test_missing_device_ends_a_run_with_the_worker_and_the_reason(pretended: Pretended) -> None:
    """Where the device that was counted does not work, the run does not go on on the host."""
    rows = np.eye(4, dtype=np.float32)
    network = db.Network([db.Dense(1)], loss="squared", input_shape=(4,))
    with pretended.cluster([1]) as cluster, Client(cluster, set_as_default=False) as client:

        def train(backend: str) -> db.TrainingResult:
            method = db.Sandblaster(max_iter=1)
            return db.train(network, (rows, rows[:, :1]), method, client=client, progress=False, backend=backend)

        for backend in ("auto", "cupy"):
            with pytest.raises(NoGPU, match=r"^replica-\d on tcp://127.0.0.1:\d+: backend 'cupy' was asked for: CuPy "):
                train(backend)
        # Who asks for the host gets it.
        assert np.isfinite(train("numpy").loss)
