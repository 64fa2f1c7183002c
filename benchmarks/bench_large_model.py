r"""Whether exchanges of a large model run at the network's speed, and hide behind the mathematics.

The network of the paper's speech experiment, 440-2560-2560-2560-2560-8192 with sigmoids: 42 million parameters, 167 MB
of float32. Rows are synthetic: only their shape counts. The shard is on one worker process, the replica on another.

1. A push and a fetch of the whole vector, against a plain socket over loopback between two processes that carries as
   many bytes into and from standing memory. Asked for: at least 0.6 of the socket's speed, each. Such a push is one
   that the shard has had before and drops: carried and not applied. One that Adagrad applies is reported beside it, and
   an exchange that does both.
2. Seconds for each mini-batch of 256 rows with a push and a fetch each, against training with none. Asked for: at most
   1.1 times. Without fetches a replica makes Adagrad's step itself, which is more work than it has with them; so the
   gradient alone, in a loop in one process, is measured too, and the lesser of both is what we compare with.

All in turns; the least of each counts, for what disturbs only adds. From the root of the repository, with the
environment's OPENBLAS_* settings out of the way::

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python -m benchmarks.bench_large_model \
        --json benchmarks/results/large_model.json
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
from distributed import Client, LocalCluster

import dask_belief as db
from benchmarks.noted_network import NotedNetwork, noted, shards_on_the_last_worker
from benchmarks.record import Record
from dask_belief.cluster.actors import ActorHost, Caller
from dask_belief.cluster.replicas import stand_aside
from dask_belief.parameter_server.client import ParameterServer
from dask_belief.parameter_server.directory import Directory
from dask_belief.parameter_server.exchange import Exchange
from dask_belief.parameter_server.messages import LeaseKey, PushKey, StepKey
from dask_belief.parameter_server.shard import Shard, ShardSpec
from dask_belief.parameter_server.updates import VALUES, UpdateSpec

WIDTHS = (440, 2560, 2560, 2560, 2560, 8192)
SMALL_WIDTHS = (440, 512, 512, 1024)
BATCH_ROWS = 256
N_WARM_UP = 3
"""Mini-batches of a run that are not counted."""

RULE = db.Adagrad(0.01)
LEAST_SPEED = 0.6
"""What is asked for: the speed of a push and of a fetch over a plain socket's."""

MOST_SECONDS = 1.1
"""What is asked for: seconds of a mini-batch with exchanges over those without."""

NEVER = 10**6
"""Mini-batches from one exchange to the next, where there is to be none."""

Seconds = dict[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures, with commit and machine, to this file")
    parser.add_argument("--quick", action="store_true", help="one million parameters, one turn: to see that it runs")
    parser.add_argument("--turns", type=int, default=3, help="how often each is measured (default: 3)")
    arguments = parser.parse_args()
    widths, turns, n_batches = (SMALL_WIDTHS, 1, 8) if arguments.quick else (WIDTHS, arguments.turns, 24)

    record = Record(__doc__.splitlines()[0])
    network = db.Network(
        [*(db.Dense(units, "sigmoid") for units in widths[1:-1]), db.Dense(widths[-1])], "softmax", widths[:1]
    )
    data = synthetic_rows(widths, n_batches * BATCH_ROWS)
    transfer: Seconds = {}
    step: Seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(turns):
            keep(transfer, by_server(network), turn)
            keep(transfer, by_socket(4 * network.n_parameters), turn)
            keep(step, {"the gradient alone": gradient_alone(network, data)}, turn)
            for name, n_exchange in (("without exchanges", NEVER), ("an exchange each", 1)):
                keep(step, {name: mini_batch(network, data, n_exchange, Path(folder), turn)}, turn)
    figures = {
        "quick": arguments.quick,
        "n_parameters": network.n_parameters,
        "bytes": 4 * network.n_parameters,
        "batch_rows": BATCH_ROWS,
        "mini_batches": n_batches,
        "transfer_seconds": transfer,
        "mini_batch_seconds": step,
        **compare(4 * network.n_parameters, transfer, step),
    }
    if arguments.json:
        record.write(arguments.json, figures)


def synthetic_rows(widths: tuple[int, ...], n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((n_rows, widths[0]), dtype=np.float32)
    return inputs, generator.integers(0, widths[-1], n_rows)


def keep(seconds: Seconds, found: dict[str, float], turn: int) -> None:
    for name, one in found.items():
        seconds.setdefault(name, []).append(one)
        print(f"turn {turn + 1}, {name}: {one:.4f} s", flush=True)


@contextmanager
def two_workers() -> Iterator[Client]:
    """Two processes with one thread each."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


# The transfer alone.


def by_server(network: db.Network) -> dict[str, float]:
    """The least seconds of a push, a fetch and both, from one worker to a shard on the other."""
    n_parameters = network.n_parameters
    with two_workers() as client:
        first, last = sorted(client.scheduler_info()["workers"])
        with closing(ActorHost(client, "large-model")) as host:
            spec = ShardSpec(0, 0, range(n_parameters), n_parameters, "float32", None, UpdateSpec(RULE, 1))
            shard = host.spawn(Shard, "shard 0", last, spec)
            host.ready([shard])
            directory = Directory(0, n_parameters, "float32", (shard,), (range(n_parameters),))
            return client.submit(from_worker, directory, workers=[first], pure=False).result()


def from_worker(directory: Directory) -> dict[str, float]:
    """Exchange as a replica does, in a task that stands aside."""
    caller = Caller.of_worker(stand_aside().worker)
    server = ParameterServer(directory, caller)
    generator = np.random.default_rng(0)
    vector = generator.standard_normal(directory.n_parameters, dtype=np.float32)
    into = np.empty_like(vector)
    caller.run(server.write(VALUES, vector))
    caller.run(server.begin_updates())

    def exchange(step: int | None, should_fetch: bool) -> None:
        """The one place that knows how replicas and shards talk."""
        lease = LeaseKey(0, 0)
        ask = Exchange(
            replica="replica-0",
            at=StepKey(lease, step or 0),
            push=None if step is None else PushKey(lease, step, step),
            vector=None if step is None else vector,
            bases=() if step is None else (0,) * server.n_pieces,
            into=into if should_fetch else None,
        )
        caller.run(server.exchange(ask))

    # The first push of a mini-batch is applied, one that says the same again is dropped.
    exchange(0, True)
    return {
        "push": least(lambda _: exchange(0, False)),
        "push, applied": least(lambda number: exchange(1 + number, False)),
        "fetch": least(lambda _: exchange(None, True)),
        "push, applied, and fetch": least(lambda number: exchange(1 + N_TIMES + number, True)),
    }


N_TIMES = 5


def least(act: Callable[[int], None]) -> float:
    """The least seconds of several times."""
    seconds = []
    for number in range(N_TIMES):
        start = time.perf_counter()
        act(number)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def by_socket(n_bytes: int) -> dict[str, float]:
    """The least seconds in which a plain socket carries as many bytes to another process, and from it."""
    memory = np.ones(n_bytes, np.uint8)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        peer = multiprocessing.get_context("spawn").Process(target=answer, args=(listening.getsockname(), n_bytes))
        peer.start()
        connection, _ = listening.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def push(_: int) -> None:
                connection.sendall(b"p")
                connection.sendall(memory.data)
                connection.recv(1)

            def fetch(_: int) -> None:
                connection.sendall(b"f")
                receive(connection, memory)

            push(0)
            fetch(0)
            found = {"push, plain socket": least(push), "fetch, plain socket": least(fetch)}
            connection.sendall(b"e")
        peer.join()
    return found


def answer(address: tuple[str, int], n_bytes: int) -> None:
    """The other end: takes and gives as it is told."""
    memory = np.ones(n_bytes, np.uint8)
    with socket.create_connection(address) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while (asked := connection.recv(1)) != b"e":
            if asked == b"p":
                receive(connection, memory)
                connection.sendall(b"a")
            else:
                connection.sendall(memory.data)


def receive(connection: socket.socket, memory: np.ndarray) -> None:
    view = memory.data
    while view:
        view = view[connection.recv_into(view) :]


# Behind the mathematics.


def gradient_alone(network: db.Network, data: tuple[np.ndarray, np.ndarray]) -> float:
    """Seconds of a mini-batch's gradient on one thread, in a worker that does nothing else."""
    with two_workers() as client:
        first = min(client.scheduler_info()["workers"])
        [there] = client.scatter([data], workers=[first])
        return client.submit(gradients, network, there, workers=[first], pure=False).result()


def gradients(network: db.Network, data: tuple[np.ndarray, np.ndarray]) -> float:
    db.get_backend("numpy").single_thread()
    inputs, targets = data
    parameters = network.initial_parameters(0)
    out = np.empty_like(parameters)
    starts = []
    for first in range(0, len(inputs), BATCH_ROWS):
        starts.append(time.perf_counter())
        rows = slice(first, first + BATCH_ROWS)
        network.loss_and_gradient(parameters, inputs[rows], targets[rows], out=out)
    return (starts[-1] - starts[N_WARM_UP]) / (len(starts) - 1 - N_WARM_UP)


def mini_batch(
    network: db.Network, data: tuple[np.ndarray, np.ndarray], n_exchange: int, folder: Path, seed: int
) -> float:
    """Seconds from one mini-batch's beginning to the next one's, within one lease of all rows."""
    method = db.Downpour(
        n_replicas=1,
        n_shards=1,
        rule=RULE,
        batch_size=BATCH_ROWS,
        n_fetch=n_exchange,
        n_push=n_exchange,
        epochs=1,
        lease_rows=len(data[1]),
    )
    with two_workers() as client, shards_on_the_last_worker():
        trained: NotedNetwork = noted(network, folder)
        db.train(trained, data, method, client=client, seed=seed, progress=False)
    [starts] = trained.starts()
    counted = starts[N_WARM_UP:]
    return float((counted[-1] - counted[0]) / (len(counted) - 1))


# Both.


def compare(n_bytes: int, transfer: Seconds, step: Seconds) -> dict[str, object]:
    """Print and give speeds and ratios of the least seconds."""
    best = {name: min(seconds) for name, seconds in (transfer | step).items()}
    print()
    speeds = {name: n_bytes / best[name] for name in transfer}
    for name, speed in speeds.items():
        print(f"{name}: {best[name]:.4f} s, {speed / 1e9:.2f} GB/s" + (", twice that" if "and" in name else ""))
    ratios = {name: best[f"{name}, plain socket"] / best[name] for name in ("push", "fetch")}
    for name, ratio in ratios.items():
        print(f"a {name} runs at {ratio:.3f} of a plain socket's speed; at least {LEAST_SPEED} is asked for")
    applied = best["push, plain socket"] / best["push, applied"]
    print(f"a push that is applied: {applied:.3f}")
    for name in step:
        print(f"a mini-batch, {name}: {best[name]:.4f} s")
    over = {name: best["an exchange each"] / best[name] for name in ("the gradient alone", "without exchanges")}
    ratio = max(over.values())
    print(f"an exchange each takes {ratio:.3f} times as long as none; at most {MOST_SECONDS} is asked for")
    return {
        "bytes_per_second": speeds,
        "speed_ratios": ratios,
        "speed_ratio_of_applied_push": applied,
        "speed_ratio_asked": LEAST_SPEED,
        "mini_batch_ratios": over,
        "mini_batch_ratio": ratio,
        "mini_batch_ratio_allowed": MOST_SECONDS,
    }


if __name__ == "__main__":
    main()
