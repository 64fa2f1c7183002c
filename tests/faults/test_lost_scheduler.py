"""The scheduler is killed, or stands still: the run says so within a limit, with the best point in hand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from distributed import Client

import dask_belief as db
from dask_belief.cluster.limits import limited_by
from dask_belief.monitoring.events import DownpourProgressed, Event, IterationEnded
from tests.small_cluster import eventually


def start(module: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Run a command-line program of Dask's, where this project can be imported."""
    command = [sys.executable, "-m", module, *arguments]
    root = Path(__file__).parents[2]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[Client, subprocess.Popen[bytes]]]:
    """A scheduler and a worker as processes of their own, as on a real cluster."""
    file = tmp_path / "scheduler.json"
    common = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(file)]
    scheduler = start("distributed.cli.dask_scheduler", "--port", "0", "--dashboard-address", "127.0.0.1:0", *common)
    folder = ["--local-directory", str(tmp_path)]
    worker = start("distributed.cli.dask_worker", "--no-nanny", "--nthreads", "1", *folder, *common)
    try:
        eventually(file.exists, limit_seconds=60)
        # The limit is also how long the client tries to find its scheduler again.
        with Client(scheduler_file=str(file), set_as_default=False, timeout=8) as client:
            client.wait_for_workers(1, timeout=60)
            yield client, scheduler
    finally:
        for process in (worker, scheduler):
            process.kill()
            process.wait(30)


@pytest.mark.long
@pytest.mark.parametrize("method", [db.Sandblaster(max_iter=100_000, ftol=0.0, gtol=0.0), db.Downpour(epochs=100_000)])
def test_a_lost_scheduler_is_an_error_that_keeps_the_best_point(cluster, store: Path, method) -> None:
    """The error says that the scheduler is gone, and carries finite parameters of the right length."""
    client, scheduler = cluster
    network = db.Network([db.Dense(8, "sigmoid"), db.Dense(1)], loss="logistic", input_shape=(20,))

    def kill(event: Event) -> None:
        if isinstance(event, IterationEnded | DownpourProgressed):
            scheduler.send_signal(signal.SIGKILL)

    with pytest.raises(db.ClusterError, match="scheduler is gone") as caught:
        db.train(network, store, method, client=client, callbacks=[kill], progress=False)
    assert caught.value.kept_parameters is not None
    assert caught.value.kept_parameters.shape == (network.n_parameters,)
    assert np.isfinite(caught.value.kept_parameters).all()


@pytest.fixture
def frozen(cluster) -> Iterator[Client]:
    """The client of a scheduler that stands still, and goes on after the test."""
    client, scheduler = cluster
    scheduler.send_signal(signal.SIGSTOP)
    try:
        yield client
    finally:
        scheduler.send_signal(signal.SIGCONT)


@pytest.mark.long
def test_a_frozen_scheduler_is_an_error_at_the_door(frozen: Client, store: Path) -> None:
    """Whatever is asked of it ends within the limit of a call, and says so."""
    network, frozen_soon = db.Network([db.Dense(1)], loss="logistic", input_shape=(20,)), db.Limits(call_seconds=1.0)
    asked_in_vain = r"^the scheduler was asked for .* did not answer within 1 seconds"
    with pytest.raises(db.CallTimeoutError, match=asked_in_vain):
        db.train(network, store, db.Sandblaster(), client=frozen, progress=False, limits=frozen_soon)
    with limited_by(frozen_soon):
        with pytest.raises(db.CallTimeoutError, match=asked_in_vain):
            db.retire_workers(frozen, ["tcp://127.0.0.1:1"])
        with pytest.raises(db.CallTimeoutError, match=asked_in_vain):
            db.attach("nightly", frozen)


@pytest.mark.long
@pytest.mark.parametrize("method", [db.Sandblaster(max_iter=20, ftol=0.0, gtol=0.0), db.Downpour(epochs=20)])
def test_a_run_goes_on_while_its_scheduler_is_frozen(cluster, store: Path, method) -> None:
    """Training does not go through it. An evaluation does, as Downpour's at its end: an error that loses nothing."""
    client, scheduler = cluster
    network = db.Network([db.Dense(8, "sigmoid"), db.Dense(1)], loss="logistic", input_shape=(20,))

    def freeze(event: Event) -> None:
        if isinstance(event, IterationEnded | DownpourProgressed):
            scheduler.send_signal(signal.SIGSTOP)

    def train() -> db.TrainingResult:
        limits = db.Limits(call_seconds=3.0, stop_seconds=1.0, no_progress_seconds=4.0)
        return db.train(network, store, method, client=client, callbacks=[freeze], progress=False, limits=limits)

    try:
        if isinstance(method, db.Sandblaster):
            assert train().stop.reason is db.StopReason.MAX_ITERATIONS
        else:
            with pytest.raises(db.ClusterError, match=r"evaluate on.* data for the run were not on") as caught:
                train()
            assert caught.value.kept_parameters is not None
    finally:
        scheduler.send_signal(signal.SIGCONT)


@pytest.mark.long
@pytest.mark.parametrize("method", [db.Sandblaster(max_iter=100_000, ftol=0.0, gtol=0.0), db.Downpour(epochs=100_000)])
def test_an_interrupt_ends_a_run_whose_scheduler_is_frozen(cluster, store: Path, method) -> None:
    """Within the five seconds of any interrupt: what would be asked of the scheduler is not waited for."""
    client, scheduler = cluster
    network = db.Network([db.Dense(8, "sigmoid"), db.Dense(1)], loss="logistic", input_shape=(20,))
    sent: list[float] = []

    def freeze(event: Event) -> None:
        if isinstance(event, IterationEnded | DownpourProgressed) and not sent:
            scheduler.send_signal(signal.SIGSTOP)
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = db.train(network, store, method, client=client, callbacks=[freeze], progress=False)
        assert result.stop.reason is db.StopReason.INTERRUPTED
    except KeyboardInterrupt as error:
        # It met the callback itself, as an interrupt may; then the exception goes through.
        assert error.kept_parameters is not None
    finally:
        ended = time.monotonic()
        signal.signal(signal.SIGINT, before)
        scheduler.send_signal(signal.SIGCONT)
    assert ended - sent[0] < 5.0


@pytest.mark.long
def test_nobody_waits_for_ever_for_a_detached_run_of_a_frozen_scheduler(cluster, store: Path) -> None:
    """The client says that it is running as long as the connection lasts."""
    client, scheduler = cluster
    network = db.Network([db.Dense(8, "sigmoid"), db.Dense(1)], loss="logistic", input_shape=(20,))
    method = db.Sandblaster(max_iter=100_000, ftol=0.0, gtol=0.0)
    run = db.train(network, store, method, client=client, detach=True, name="long", progress=False)
    try:
        scheduler.send_signal(signal.SIGSTOP)
        with (
            limited_by(db.Limits(frozen_seconds=1.0, call_seconds=1.0)),
            pytest.raises(db.ClusterError, match=r"run long was waited for, .* the scheduler was asked for"),
        ):
            run.result()
    finally:
        scheduler.send_signal(signal.SIGCONT)
    run.forget()
