r"""What is to be gained by cutting one network over many machines: reckoned from plans, beside the paper's Figure 3.

For 1 to 144 machines, the seconds of a mini-batch by `Plan.seconds`: the slowest piece of each layer, the bytes that
it sends and is sent, and its messages; a machine is one core as measured here, with 1 GB/s and a millisecond a message.
The speech network is the paper's; the image networks have its three stages of unshared filters, pooling and
normalisation, with as many maps as make the paper's numbers of parameters. Nothing is run. What the model leaves out:
machines differ in speed, and wait for the slowest, which the paper names as the main loss; messages hide behind
computing, which would gain; an image is cut along one axis only, where 81 machines may be 9 by 9. From the root of the
repository::

    python -m benchmarks.simulate_pieces --json benchmarks/results/pieces_simulated.json
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

import dask_belief as db
from benchmarks.record import Record
from dask_belief.model_parallel.plan import Plan

MACHINES = (1, 2, 4, 8, 16, 32, 64, 81, 128, 144)
BATCH_ROWS = 100
PAPER = {
    "speech, 42 million": "2.2 at 8 machines, and slower beyond",
    "images, 1.7 billion": "over 12 at 81 machines",
}


def speech() -> db.Network:
    """Give the paper's network of the acoustic model."""
    return db.Network([*(db.Dense(2560, "sigmoid") for _ in range(4)), db.Dense(8192)], "softmax", (440,))


def images(n_maps: int) -> db.Network:
    """Give a network in the shape of the paper's image model: three stages, and 21,000 questions."""
    return db.Network(
        [
            db.LocallyConnected2D(n_maps, 10),
            db.L2Pool2D(5, 2),
            db.LocalContrastNorm2D(5),
            db.LocallyConnected2D(n_maps, 10),
            db.L2Pool2D(5, 2),
            db.LocalContrastNorm2D(5),
            db.LocallyConnected2D(n_maps, 10),
            db.L2Pool2D(2),
            db.LocalContrastNorm2D(3),
            db.Dense(21_000),
        ],
        "logistic",
        (100, 100, 3),
    )


def measured_operations() -> float:
    """Measure the floating-point operations of one core in a large product."""
    left, right = np.ones((1024, 1024), np.float32), np.ones((1024, 1024), np.float32)
    out = np.empty_like(left)
    least = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        np.matmul(left, right, out=out)
        least = min(least, time.perf_counter() - began)
    return 2 * 1024**3 / least


def best(network: db.Network, n_machines: int, speeds: db.Speeds) -> tuple[float, str, Plan]:
    """Give the least seconds of all ways to cut, and which it is."""
    ways = ("units",) if len(network.input_shape) == 1 else ("rows", "channels")
    plans = [(by, db.partition(network, n_machines, by)) for by in ways]
    found = [(plan.seconds(BATCH_ROWS, speeds), by, plan) for by, plan in plans]
    return min(found, key=lambda each: each[0])


def draw(curves: dict[str, dict[int, float]], path: Path) -> None:
    """Draw speed-up against machines, with what the paper says in words."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="tight")
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot(list(curve), list(curve.values()), marker="o", label=name)
    axes.scatter(
        [8, 81], [2.2, 12], marker="x", color="black", zorder=5, label="the paper: speech at 8, 1.7 billion at 81"
    )
    axes.set_xlabel("machines for one network")
    axes.set_ylabel("speed-up of a mini-batch")
    axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures, with commit and machine, to this file")
    parser.add_argument("--plot", type=Path, help="draw the speed-ups to this file")
    options = parser.parse_args()
    record = Record("What is to be gained by cutting one network over many machines?")
    speeds = db.Speeds(measured_operations(), 1e9, 1e-3)
    networks = {
        "speech, 42 million": speech(),
        "images, 80 million": images(16),
        "images, 330 million": images(41),
        "images, 1.7 billion": images(105),
    }
    print(speeds)
    found: dict[str, object] = {}
    curves = {}
    for name, network in networks.items():
        alone, *_ = best(network, 1, speeds)
        rows = {}
        for n_machines in MACHINES:
            seconds, by, plan = best(network, n_machines, speeds)
            rows[n_machines] = {
                "speedup": alone / seconds,
                "by": by,
                "seconds": seconds,
                "sent_bytes": plan.sent_bytes(BATCH_ROWS),
            }
        curves[name] = {n: float(row["speedup"]) for n, row in rows.items()}  # type: ignore[arg-type]
        told = ", ".join(f"{n}: {speedup:.1f}" for n, speedup in curves[name].items())
        print(
            f"{name} ({network.n_parameters:,} parameters): {told}. The paper: {PAPER.get(name, 'a curve')}.",
            flush=True,
        )
        found[name] = {"n_parameters": network.n_parameters, "machines": rows}
    if options.plot:
        draw(curves, options.plot)
    if options.json:
        figures = {"speeds": asdict(speeds), "paper": PAPER, "batch_rows": BATCH_ROWS, "networks": found}
        record.write(options.json, figures)


if __name__ == "__main__":
    main()
