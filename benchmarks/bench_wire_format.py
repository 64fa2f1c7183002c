"""Whether Downpour SGD learns as well when pushes and fetches travel as bfloat16, and what error feedback is worth.

A network 784-256-10 on Fashion-MNIST, mini-batches of 100 rows, three passes, two shards, Adagrad at 0.02. What counts
is the test accuracy of the last parameters, the mean of three seeds; with it the loss over all training rows. Three
ways, each with a fetch and a push every 1, 5 and 20 mini-batches:

- ``float32``: `wire_dtype=None`;
- ``bfloat16``: `wire_dtype="bfloat16"`, where what rounding leaves out of a push is a part of the next;
- ``bfloat16, forgetful``: the same without that: what is left out is dropped on the workers before each step. There is
  no such option; the benchmark does it to the workers of its own cluster.

By one replica, whose mini-batches are the same for all three, so that nothing but the rounding differs; by four, where
the order of exchanges differs from run to run as well; and by four with elastic averaging, every 5. On one machine the
bytes cost little: what is asked here is what they do to the answer. From the root of the repository, with the
environment's OPENBLAS_* settings out of the way::

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python -m benchmarks.bench_wire_format \
        --json benchmarks/results/wire_format.json
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from distributed import Client

import dask_belief as db
from benchmarks.bench_downpour import NETWORK, accuracy, cluster, downpour
from benchmarks.fashion_mnist import Rows, load, write_store
from benchmarks.record import Record

RULE = db.Adagrad(0.02)
EPOCHS = 3
N_SEEDS = 3
INTERVALS = (1, 5, 20)
N_WORKERS = 4
FORGETFUL = "bfloat16, forgetful"
WIRES: dict[str, str | None] = {"float32": None, "bfloat16": "bfloat16", FORGETFUL: "bfloat16"}

_by_one = {f"1 replica, every {each}": downpour(n_replicas=1, n_fetch=each, n_push=each) for each in INTERVALS}
_by_four = {f"4 replicas, every {each}": downpour(n_fetch=each, n_push=each) for each in INTERVALS}
_elastic = {"4 replicas, elastic, every 5": downpour(staleness=db.ElasticAveraging(), n_fetch=5, n_push=5)}
WAYS = _by_one | _by_four | _elastic


@dataclass(frozen=True)
class Trained:
    """One training run."""

    seed: int
    accuracy: float
    """At the last parameters, over the test rows."""
    loss: float
    """There, over all training rows."""
    seconds: float
    steps: int
    bytes_a_step: float
    """Of what was pushed and fetched, as far as replicas had told of it when they last did."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures, with commit and machine, to this file")
    parser.add_argument("--quick", action="store_true", help="6,000 rows, two passes, one seed: to see it run")
    arguments = parser.parse_args()
    n_rows, epochs, n_seeds = (6000, 2, 1) if arguments.quick else (None, EPOCHS, N_SEEDS)

    record = Record(__doc__.splitlines()[0])
    train, test = load("train", n_rows), load("test")
    found: dict[str, dict[str, list[Trained]]] = {}
    with tempfile.TemporaryDirectory() as folder, cluster(N_WORKERS) as client:
        dataset = write_store(train, Path(folder) / "train.zarr")
        for name, way in WAYS.items():
            found[name] = {}
            for wire, wire_dtype in WIRES.items():
                method = replace(way, rule=RULE, epochs=epochs, wire_dtype=wire_dtype)
                with forgetting(client, wire == FORGETFUL):
                    found[name][wire] = [trained(client, dataset, test, method, seed) for seed in range(n_seeds)]
                tell(name, wire, found[name])
    if arguments.json:
        figures = {
            "quick": arguments.quick,
            "rows": len(train.targets),
            "epochs": epochs,
            "rule": RULE.to_config(),
            "runs": {
                name: {wire: [asdict(run) for run in runs] for wire, runs in wires.items()}
                for name, wires in found.items()
            },
            "points_above_float32": {
                name: {wire: points_above(wires, wire) for wire in wires if wire != "float32"}
                for name, wires in found.items()
            },
        }
        record.write(arguments.json, figures)


def trained(client: Client, dataset: db.ZarrDataset, test: Rows, method: db.Downpour, seed: int) -> Trained:
    result = db.train(NETWORK, dataset, method, client=client, seed=seed, progress=False)
    last = result.history.rows("DownpourProgressed")[-1]
    return Trained(
        seed=seed,
        accuracy=accuracy(result.parameters, test),
        loss=result.loss,
        seconds=result.seconds,
        steps=last["steps"],
        bytes_a_step=(last["pushed_bytes"] + last["fetched_bytes"]) / last["steps"],
    )


@contextmanager
def forgetting(client: Client, is_asked: bool) -> Iterator[None]:
    """Let the replicas of a cluster drop what rounding leaves out of a push."""
    if not is_asked:
        yield
        return
    client.run(_forget)
    try:
        yield
    finally:
        client.run(_remember)


def _forget() -> None:
    from dask_belief.downpour.executor import PlainStepExecutor

    taken = PlainStepExecutor._taken

    def forgetful(self: PlainStepExecutor, vector: Any) -> Any:
        outgoing = taken(self, vector)
        vector[:] = 0
        return outgoing

    forgetful.whole = taken  # type: ignore[attr-defined]
    PlainStepExecutor._taken = forgetful  # type: ignore[method-assign]


def _remember() -> None:
    from dask_belief.downpour.executor import PlainStepExecutor

    PlainStepExecutor._taken = PlainStepExecutor._taken.whole  # type: ignore[attr-defined, method-assign]


def points_above(wires: dict[str, list[Trained]], wire: str) -> float:
    """By how many points of accuracy a way is above float32, in the mean."""
    return 100 * (mean(run.accuracy for run in wires[wire]) - mean(run.accuracy for run in wires["float32"]))


def tell(name: str, wire: str, wires: dict[str, list[Trained]]) -> None:
    runs = wires[wire]
    each = [run.accuracy for run in runs]
    megabytes, seconds = mean(run.bytes_a_step for run in runs) / 1e6, mean(run.seconds for run in runs)
    spread = f" +- {stdev(each):.4f}" if len(each) > 1 else ""
    above = "" if wire == "float32" else f", {points_above(wires, wire):+.2f} points"
    print(
        f"{name:30}{wire:21}accuracy {mean(each):.4f}{spread}, loss {mean(run.loss for run in runs):.4f}, "
        f"{megabytes:.3f} MB a step, {seconds:.1f} s{above}",
        flush=True,
    )


if __name__ == "__main__":
    main()
