"""Both methods end to end on clusters whose worker processes compute with CuPy, each on an emulated device of its own.

What is compared with NumPy's is computed by the same cluster, with ``backend="numpy"``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, LocalCluster, Nanny, Scheduler, SpecCluster

import dask_belief as db
from dask_belief.backend import Backend, get_backend
from dask_belief.cluster.asking import known_of_workers
from dask_belief.monitoring.events import DownpourProgressed, Event, IterationEnded, WorkerLost
from dask_belief.seeds import stream
from tests.emulated_gpu import device_arrays
from tests.small_cluster import eventually

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("EMULATED_GPU") != "1", reason="needs the emulated device: scripts/emulated_gpu python -m pytest"
    ),
    # Each worker process compiles the kernels that are not in the cache yet.
    pytest.mark.timeout(300),
]

SEED = 29
N_ROWS, CHUNK_ROWS = 3000, 100
N_FEATURES, N_CLASSES = 10, 4
MIB = 2**20


def clouds(n_rows: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping clouds, as float32 inputs and classes; all sets share the centres."""
    centres = stream(SEED, "centres").normal(size=(N_CLASSES, N_FEATURES))
    random = stream(SEED, name)
    classes = random.integers(0, N_CLASSES, n_rows)
    return (centres[classes] + random.normal(size=(n_rows, N_FEATURES))).astype(np.float32), classes


def network(n_hidden: int = 16) -> db.Network:
    layers = [db.Dense(n_hidden, "tanh"), db.Dense(N_CLASSES)]
    return db.Network(layers, loss="softmax", input_shape=(N_FEATURES,))


@contextlib.contextmanager
def devices(n_devices: int, memory_mib: int | None = None) -> Iterator[None]:
    """As many emulated devices as that, in processes that are started meanwhile; this one keeps what it has.

    There nothing runs before somebody waits for it, so that what should be waited for, and is not, is noticed.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMULATED_GPU_DEFER", "1")
        patch.setenv("EMULATED_GPU_DEVICES", str(n_devices))
        if memory_mib is not None:
            patch.setenv("EMULATED_GPU_MEMORY_MB", str(memory_mib))
        yield


@contextlib.contextmanager
def gpu_cluster(n_devices: int = 2, memory_mib: int | None = None) -> Iterator[Client]:
    with (
        devices(n_devices, memory_mib),
        db.LocalGPUCluster(silence_logs=logging.CRITICAL) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def gpus() -> Iterator[Client]:
    """Two workers, each on its own device; for tests that harm none of them."""
    with gpu_cluster() as client:
        yield client


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.zarr"
    db.write_dataset(path, *clouds(N_ROWS, "rows"), chunk_rows=CHUNK_ROWS)
    return path


def last(result: db.TrainingResult, kind: type[Event]) -> Any:
    """The last event of a kind."""
    return [event for event in result.history.events if isinstance(event, kind)][-1]


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Relative, in the Euclidean norm."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def of_process() -> dict[str, Any]:
    """What a worker says of itself and its device; run there."""
    backend = get_backend()
    memory = backend.device_memory()
    return {
        "pid": os.getpid(),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "kind": backend.kind(),
        "backend": backend.name,
        "used_bytes": 0 if memory is None else memory.used_bytes,
    }


def visible(client: Client) -> list[str]:
    return sorted(worker["visible"] for worker in client.run(of_process).values())


class DuringIteration:
    """A callback that looks at the workers once, while their replicas live."""

    def __init__(self, client: Client) -> None:
        self.seen: dict[str, dict[str, Any]] = {}
        self._client = client

    def __call__(self, event: Event) -> None:
        if isinstance(event, IterationEnded) and event.iteration == 2:
            self.seen = self._client.run(of_process)


# The cluster.


def test_each_worker_has_a_device_and_a_thread_of_its_own(gpus: Client) -> None:
    """Two processes, one thread each, and each is shown one device, which is another for each."""
    seen = gpus.run(of_process)
    assert set(gpus.nthreads().values()) == {1}
    assert len({worker["pid"] for worker in seen.values()} | {os.getpid()}) == 3
    assert visible(gpus) == ["0", "1"]
    assert {worker["backend"] for worker in seen.values()} == {"cupy"}
    [kind] = {worker["kind"] for worker in seen.values()}
    assert kind.startswith("cupy ")


def test_devices_can_be_chosen_and_are_the_workers_names() -> None:
    """Of three that CUDA shows under other numbers two are taken; a third worker has nowhere to go."""
    with devices(4), pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "3,1,2")
        with db.LocalGPUCluster([0, 2], silence_logs=logging.CRITICAL) as cluster:
            assert cluster.devices == (0, 2)
            with Client(cluster, set_as_default=False) as client:
                by_name = {known["name"]: address for address, known in known_of_workers(client).items()}
                seen = client.run(of_process)
                assert {name: seen[by_name[name]]["visible"] for name in by_name} == {0: "3", 2: "2"}
            with pytest.raises(db.ArgumentError, match="one worker for each of 2 devices"):
                cluster.scale(3)


def test_process_that_makes_the_cluster_never_imports_cupy(tmp_path: Path) -> None:
    """Neither before the workers start nor while a run goes on, so nothing of CUDA begins there."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "import numpy as np\n"
        "from distributed import Client\n"
        "import dask_belief as db\n"
        "if __name__ == '__main__':\n"
        "    inputs = np.arange(40, dtype=np.float32).reshape(20, 2) / 40\n"
        "    network = db.Network([db.Dense(1)], loss='squared', input_shape=(2,))\n"
        "    with db.LocalGPUCluster() as cluster, Client(cluster) as client:\n"
        "        result = db.train(network, (inputs, inputs[:, :1]), db.Sandblaster(max_iter=2), client=client)\n"
        "    assert result.history.events\n"
        "    print('cupy' in sys.modules)\n"
    )
    with devices(2):
        done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"


def test_no_device_is_an_error_that_says_why() -> None:
    """Where CUDA shows nothing, there is nothing to make workers for."""
    with devices(2), pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        with pytest.raises(db.NoGPU, match="a worker for each GPU was asked for: CuPy finds no CUDA device"):
            db.LocalGPUCluster()


# Both methods against NumPy.


def test_sandblaster_is_that_of_numpy(gpus: Client, store: Path) -> None:
    """After ten iterations the loss is within 1e-4, both devices held a replica's vectors, and the bits repeat."""
    method, during = db.Sandblaster(max_iter=10, l2=1e-3), DuringIteration(gpus)
    found, again = (
        db.train(network(), store, method, client=gpus, callbacks=[during], progress=False) for _ in range(2)
    )
    expected = db.train(network(), store, method, client=gpus, progress=False, backend="numpy")
    assert found.loss == pytest.approx(expected.loss, rel=1e-4)
    assert len(found.history["loss"]) == len(expected.history["loss"]) == 10
    assert len(during.seen) == 2
    assert min(worker["used_bytes"] for worker in during.seen.values()) >= 2 * found.parameters.nbytes
    assert found.repeatable
    assert found.parameters.tobytes() == again.parameters.tobytes()


@pytest.mark.parametrize("interval", [1, 3])
def test_downpour_with_one_replica_is_that_of_numpy(gpus: Client, store: Path, interval: int) -> None:
    """After 50 steps the parameters are within 1e-3, also where most steps are the replica's own."""
    options: dict[str, Any] = {"n_replicas": 1, "batch_size": N_ROWS // 50, "epochs": 1, "lease_rows": 600}
    method = db.Downpour(rule=db.Adagrad(0.05), n_push=interval, n_fetch=interval, **options)
    found, expected = (
        db.train(network(), store, method, client=gpus, progress=False, backend=backend)
        for backend in ("auto", "numpy")
    )
    [steps] = {last(result, DownpourProgressed).steps for result in (found, expected)}
    assert steps == 50
    assert distance(found.parameters, expected.parameters) < 1e-3


@pytest.mark.parametrize("staleness", [None, db.ElasticAveraging(0.5)], ids=["alone", "elastic"])
def test_downpour_of_16_bits_on_the_wire_is_that_of_numpy(gpus: Client, store: Path, staleness: Any) -> None:
    """What accrues is rounded on the device; a sum that differs by its last bit may be rounded otherwise."""
    method = db.Downpour(
        n_replicas=1,
        batch_size=N_ROWS // 50,
        epochs=1,
        lease_rows=600,
        n_fetch=3,
        n_push=3,
        rule=db.Adagrad(0.05),
        staleness=staleness,
        wire_dtype="bfloat16",
    )
    found, expected = (
        db.train(network(), store, method, client=gpus, progress=False, backend=backend)
        for backend in ("auto", "numpy")
    )
    assert distance(found.parameters, expected.parameters) < 1e-2
    pushed, fetched = (getattr(last(found, DownpourProgressed), name) for name in ("pushed_bytes", "fetched_bytes"))
    assert pushed == last(found, DownpourProgressed).n_pushes * network().n_parameters * 2
    assert fetched > 0


def test_downpour_with_two_replicas_ends_where_numpy_does(gpus: Client, store: Path) -> None:
    """The final loss is inside the range of five NumPy runs; each device has one replica, and both computed."""
    method = db.Downpour(n_replicas=2, rule=db.Adagrad(0.05), batch_size=20, epochs=2)

    def trained(seed: int, backend: str) -> db.TrainingResult:
        return db.train(network(), store, method, client=gpus, progress=False, backend=backend, seed=seed)

    # Runs of one seed differ by what arrives when, those of several also by where they begin.
    losses = {trained(seed, "numpy").loss: seed for seed in range(5)}
    found = trained(losses[sorted(losses)[2]], "auto")
    assert min(losses) <= found.loss <= max(losses)
    replicas = last(found, DownpourProgressed).replicas
    assert sorted(replica.worker for replica in replicas) == sorted(gpus.nthreads())
    assert min(replica.rows for replica in replicas) > 0


def test_validation_and_prediction(gpus: Client, store: Path) -> None:
    """What is validated on the devices is what the result, which is on the host, finds there."""
    inputs, classes = clouds(500, "validation")
    method = db.Sandblaster(max_iter=10, l2=1e-3)
    found = db.train(network(), store, method, client=gpus, validation=(inputs, classes), progress=False)
    probabilities = found.predict(inputs)
    assert isinstance(found.parameters, np.ndarray) and isinstance(probabilities, np.ndarray)
    assert probabilities.shape == (500, N_CLASSES)
    assert found.validation["accuracy"] == pytest.approx(np.mean(probabilities.argmax(axis=1) == classes), abs=1e-3)
    at_targets = probabilities[np.arange(500), classes]
    assert found.validation["loss"] == pytest.approx(-np.log(at_targets).mean(), rel=1e-4)


def test_run_on_devices_is_resumed_on_the_host(gpus: Client, store: Path, tmp_path: Path) -> None:
    """Ten iterations with CuPy, saved and gone on from with NumPy, are twenty of NumPy's."""
    begun, whole = db.Sandblaster(max_iter=10, l2=1e-3), db.Sandblaster(max_iter=20, l2=1e-3)
    path = tmp_path / "run.checkpoint"
    db.train(network(), store, begun, client=gpus, checkpoint=path, progress=False)
    resumed = db.resume(path, client=gpus, method=whole, backend="numpy", progress=False)
    expected = db.train(network(), store, whole, client=gpus, backend="numpy", progress=False)
    assert resumed.history["iteration"][-1] == 20
    assert resumed.loss == pytest.approx(expected.loss, rel=1e-3)


def test_no_array_of_a_device_leaves_it(gpus: Client, store: Path) -> None:
    """None enters a future, a message, or an actor's argument or reply, in a run of either method with validation."""
    for method in (db.Sandblaster(max_iter=3, l2=1e-3), db.Downpour(n_replicas=2, batch_size=50, n_push=2, n_fetch=2)):
        gpus.run(device_arrays.watch)
        try:
            db.train(network(), store, method, client=gpus, validation=clouds(200, "validation"), progress=False)
        finally:
            seen = gpus.run(device_arrays.seen)
        assert min(calls for calls, _ in seen.values()) > 10
        assert [found for _, found in seen.values()] == [[], []]


@pytest.mark.parametrize("way", device_arrays.WAYS_OUT)
def test_array_that_leaves_would_be_noticed(gpus: Client, way: str) -> None:
    """The watch itself finds what is planted, on each of its ways."""
    worker = sorted(gpus.nthreads())[0]
    gpus.run(device_arrays.watch)
    with contextlib.suppress(Exception):
        gpus.submit(device_arrays.plant, way, workers=[worker], pure=False).result(timeout=20)
    [found] = [found for calls, found in gpus.run(device_arrays.seen).values() if found]
    assert way in found[0]


# A worker that dies.


@pytest.mark.parametrize("name", ["Sandblaster", "Downpour"])
def test_run_goes_on_when_a_worker_is_lost_and_replaced(store: Path, name: str) -> None:
    """The one that takes a killed worker's place has the same device, and the run ends as without."""
    methods: dict[str, db.Sandblaster | db.Downpour] = {
        "Sandblaster": db.Sandblaster(max_iter=12, l2=1e-3),
        "Downpour": db.Downpour(n_replicas=2, rule=db.Adagrad(0.05), batch_size=5, epochs=3),
    }
    with gpu_cluster() as client:
        pid = next(iter(client.run(of_process).values()))["pid"]
        begun: list[int] = []

        def kill(event: Event) -> None:
            if isinstance(event, IterationEnded | DownpourProgressed) and not begun:
                begun.append(pid)
                os.kill(pid, signal.SIGKILL)

        found = db.train(network(), store, methods[name], client=client, callbacks=[kill], progress=False)
        assert WorkerLost in [type(event) for event in found.history.events]
        eventually(lambda: len(client.nthreads()) == 2, limit_seconds=60.0)
        assert visible(client) == ["0", "1"]
        assert pid not in [worker["pid"] for worker in client.run(of_process).values()]
        if name == "Sandblaster":
            expected = db.train(network(), store, methods[name], client=client, progress=False, backend="numpy")
            assert found.loss == pytest.approx(expected.loss, rel=1e-4)
        else:
            assert found.stop.reason is db.StopReason.EPOCHS_DONE
            assert found.passes == 3.0
            assert found.loss < 0.5


def test_threads_of_a_worker_share_its_device(store: Path) -> None:
    """Each thread has a replica with vectors of its own; the result is NumPy's by either method."""
    with (
        devices(1),
        LocalCluster(1, threads_per_worker=2, dashboard_address="127.0.0.1:0", silence_logs=50) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        method, during = db.Sandblaster(max_iter=6, l2=1e-3), DuringIteration(client)
        found = db.train(network(), store, method, client=client, callbacks=[during], progress=False)
        expected = db.train(network(), store, method, client=client, progress=False, backend="numpy")
        assert found.loss == pytest.approx(expected.loss, rel=1e-4)
        [worker] = during.seen.values()
        assert worker["backend"] == "cupy"
        assert worker["used_bytes"] >= 2 * 2 * found.parameters.nbytes
        steps = db.Downpour(n_replicas=2, rule=db.Adagrad(0.05), batch_size=20, epochs=2)
        trained = db.train(network(), store, steps, client=client, progress=False)
        assert min(replica.rows for replica in last(trained, DownpourProgressed).replicas) > 0
        assert trained.loss < 0.5


# Clusters of unlike workers.


class Unhurried:
    """Least squares that waits before each block of rows on a device, and counts the rows of each process."""

    n_parameters = N_FEATURES

    def __init__(self, folder: Path, wait_seconds: float, backend: Backend | None = None) -> None:
        self._folder, self._wait_seconds, self._backend = folder, wait_seconds, backend or get_backend("numpy")

    def on(self, backend: Backend) -> Unhurried:
        return Unhurried(self._folder, self._wait_seconds, backend)

    def initial_parameters(self, seed: int) -> np.ndarray:
        return np.zeros(N_FEATURES, np.float32)

    def loss_and_gradient(self, parameters: Any, inputs: Any, targets: Any) -> tuple[float, Any]:
        if self._backend.name == "cupy":
            time.sleep(self._wait_seconds)
        with (self._folder / self._backend.name).open("a") as file:
            file.write(f"{len(inputs)}\n")
        rows, values = self._backend.asarray(inputs), self._backend.asarray(targets, np.float32)
        rest = rows @ parameters - values
        return 0.5 * self._backend.item((rest * rest).sum()), rest @ rows

    def rows(self, name: str) -> int:
        """How many rows were computed with a backend so far."""
        return sum(map(int, (self._folder / name).read_text().split()))


@pytest.fixture(scope="module")
def mixed() -> Iterator[Client]:
    """Two single-threaded worker processes, of which one is shown a device and one is shown none."""
    shown = {"with": "0", "without": ""}
    workers = {
        name: {"cls": Nanny, "options": {"nthreads": 1, "host": "127.0.0.1", "env": {"CUDA_VISIBLE_DEVICES": devices}}}
        for name, devices in shown.items()
    }
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard": False}}
    with (
        devices(1),
        SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(2)
        yield client


def test_each_worker_of_a_mixed_cluster_chooses_for_itself(
    mixed: Client, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One replica a worker, on a device where there is one; the result is NumPy's, and does not count as repeatable."""
    assert sorted(worker["backend"] for worker in mixed.run(of_process).values()) == ["cupy", "numpy"]
    method, during = db.Sandblaster(max_iter=10, l2=1e-3), DuringIteration(mixed)
    with caplog.at_level(logging.WARNING, "dask_belief"):
        found = db.train(network(), store, method, client=mixed, callbacks=[during], progress=False)
    expected = db.train(network(), store, method, client=mixed, progress=False, backend="numpy")
    assert found.loss == pytest.approx(expected.loss, rel=1e-4)
    assert max(worker["used_bytes"] for worker in during.seen.values()) >= 2 * found.parameters.nbytes
    assert not found.repeatable and expected.repeatable
    assert "replicas of different kinds" in caplog.text


def test_units_go_to_whom_computes_them(mixed: Client, store: Path, tmp_path: Path) -> None:
    """A device that is far slower than the host beside it does less of each evaluation, and does some."""
    objective = Unhurried(tmp_path, wait_seconds=0.05)
    db.train(objective, store, db.Sandblaster(max_iter=4, l2=1e-3, unit_rows=100), client=mixed, progress=False)
    assert 0 < objective.rows("cupy") < objective.rows("numpy")


def test_downpour_trains_on_a_mixed_cluster(mixed: Client, store: Path) -> None:
    """One replica a worker, of both kinds; every row is gone over."""
    method = db.Downpour(n_replicas=2, rule=db.Adagrad(0.05), batch_size=20, epochs=3)
    found = db.train(network(), store, method, client=mixed, progress=False)
    replicas = last(found, DownpourProgressed).replicas
    assert sorted(replica.worker for replica in replicas) == sorted(mixed.nthreads())
    assert sum(replica.rows for replica in replicas) == 3 * N_ROWS
    assert found.loss < 0.5
    assert not found.repeatable


# Devices without enough memory.


@pytest.fixture(scope="module")
def small_gpu() -> Iterator[Client]:
    """One worker on a device of 24 MiB."""
    with gpu_cluster(n_devices=1, memory_mib=24) as client:
        yield client


@pytest.mark.parametrize("method", [db.Sandblaster(max_iter=2), db.Downpour(n_replicas=1)], ids=["batch", "steps"])
def test_model_larger_than_its_device(small_gpu: Client, store: Path, method: Any) -> None:
    """The run ends as its replica begins, and the error has the numbers."""
    wide = network(n_hidden=300_000)
    with pytest.raises(db.DoesNotFitError, match="the device ran out of memory") as caught:
        db.train(wide, store, method, client=small_gpu, progress=False)
    mib = 4 * wide.n_parameters / MIB
    assert f"{mib:.4g} MiB more were needed. Of its 24 MiB" in str(caught.value)
    assert sorted(small_gpu.nthreads())[0] in str(caught.value)


def test_batch_larger_than_its_device(small_gpu: Client, store: Path) -> None:
    """Of a model that fits, a mini-batch does not: the error says what the replica holds beside, and in which rows."""
    method = db.Downpour(n_replicas=1, batch_size=1000, lease_rows=1000)
    with pytest.raises(db.DoesNotFitError) as caught:
        db.train(network(n_hidden=20_000), store, method, client=small_gpu, progress=False)
    said = str(caught.value)
    for part in ("parameters 1.144 MiB", "gradients 1.144 MiB", "in mini-batch 0 of unit", "a smaller batch_size="):
        assert part in said


def test_evaluation_takes_fewer_rows_where_all_do_not_fit(small_gpu: Client, store: Path) -> None:
    """The loss at the end is that over all rows, whose outputs of the wide layer would fill the device ten times."""
    wide = network(n_hidden=20_000)
    method = db.Downpour(n_replicas=1, batch_size=20, lease_rows=1000, epochs=1)
    found = db.train(wide, store, method, client=small_gpu, progress=False)
    inputs, classes = clouds(N_ROWS, "rows")
    assert found.loss == pytest.approx(wide.evaluate(found.parameters, inputs, classes)["loss"] / N_ROWS, rel=1e-4)


def test_cache_gives_way(small_gpu: Client, tmp_path: Path) -> None:
    """Where decoded rows fill the device, fewer are kept and the run goes on, with NumPy's result."""
    random = stream(SEED, "wide rows")
    inputs = random.normal(size=(20_000, 400)).astype(np.float32)
    db.write_dataset(tmp_path / "wide.zarr", inputs, (inputs[:, 0] > 0).astype(int), chunk_rows=500)
    assert inputs.nbytes > 24 * MIB
    linear = db.Network([db.Dense(2)], loss="softmax", input_shape=(400,))
    method = db.Sandblaster(max_iter=3, cache_bytes=2**30)
    found, expected = (
        db.train(linear, tmp_path / "wide.zarr", method, client=small_gpu, progress=False, backend=backend)
        for backend in ("auto", "numpy")
    )
    assert found.loss == pytest.approx(expected.loss, rel=1e-4)
    kept, all_kept = last(found, IterationEnded), last(expected, IterationEnded)
    assert kept.cache_hits > 0 and kept.cache_misses > 0 == all_kept.cache_misses


def test_default_cache_leaves_room(small_gpu: Client, tmp_path: Path) -> None:
    """Without a size the cache takes a share of what is free, twice in turn, and nothing runs out."""
    inputs = stream(SEED, "wide rows").normal(size=(20_000, 400)).astype(np.float32)
    db.write_dataset(tmp_path / "wide.zarr", inputs, (inputs[:, 0] > 0).astype(int), chunk_rows=500)
    linear = db.Network([db.Dense(2)], loss="softmax", input_shape=(400,))
    hits = []
    for _ in range(2):
        found = db.train(linear, tmp_path / "wide.zarr", db.Sandblaster(max_iter=3), client=small_gpu, progress=False)
        hits.append(last(found, IterationEnded).cache_hits)
    assert hits[0] == hits[1] > 0
