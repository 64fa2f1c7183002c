r"""What a replica's step asks of a device once it is warm, as counted; and how long the host takes to ask for it.

Counted on the emulated device, where nothing is missed and nothing depends on speed. Layers are narrow, since no count
depends on their width; rows come from the host, as in a run. What may not change unseen is a test beside it,
``tests/emulated_gpu/test_budgets.py``. The host's time is that of CuPy's own code and ours, without the device's: it is
taken where streams put off their work until something waits for it, and rows are on the device. From the root of the
repository::

    EMULATED_GPU_DEFER=1 scripts/emulated_gpu python -m benchmarks.gpu_budgets \
        --json benchmarks/results/gpu_budgets.json
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu_networks import Case, cases
from benchmarks.gpu_steps import DownpourStep, SandblasterStep, Step
from benchmarks.record import Record
from dask_belief.backend import Array, Backend, get_backend
from dask_belief.models import Dense, Network
from tests.emulated_gpu.counters import counted

STEPS: dict[str, Callable[[Network, Backend], Step]] = {"downpour": DownpourStep, "sandblaster": SandblasterStep}
N_WARM_UP = 3
N_TURNS, N_STEPS = 20, 10
"""Of so many turns of so many steps the least time counts."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures, with commit and machine, to this file")
    arguments = parser.parse_args()

    record = Record(__doc__.splitlines()[0])
    backend = get_backend("cupy")
    names = f"{'launches':>9}{'waits':>7}{'to device':>11}{'to host':>9}{'allocations':>13}"
    print(f"{backend.kind()}\n{'':33}{names}  microseconds of the host for a launch")
    found = [measure(case, method, backend) for case in cases().values() for method in STEPS]
    if arguments.json:
        record.write(arguments.json, {"kind": backend.kind(), "layers": "narrow", "steps": found})


def measure(case: Case, method: str, backend: Backend) -> dict[str, Any]:
    """Count one warm step and print its line."""
    narrow = case.narrowed()
    step, (inputs, targets) = STEPS[method](narrow.network, backend), narrow.rows()
    for _ in range(N_WARM_UP):
        step(inputs, targets)
    # A host that is far ahead of the device waits for a pinned buffer, as it should.
    backend.sync()
    with counted() as counters:
        step(inputs, targets)
    seconds = None
    if os.environ.get("EMULATED_GPU_DEFER") == "1" and isinstance(case.network.layers[0], Dense):
        seconds = host_seconds(step, [backend.asarray(rows) for rows in (inputs, targets)], backend)
    print(
        f"{case.name:20}{method:13}{counters.launches:9}{counters.waits:7}{counters.copies_to_device:11}"
        f"{counters.copies_to_host:9}{counters.allocations:13}"
        + ("" if seconds is None else f"{1e6 * seconds / counters.launches:9.1f}")
    )
    return {"model": case.name, "method": method, "counted": asdict(counters), "host_seconds": seconds}


def host_seconds(step: Step, rows: list[Array], backend: Backend) -> float:
    """Give the seconds in which the host asks for a step."""
    turns = []
    with backend.computing():
        for _ in range(N_TURNS):
            backend.sync()
            began = time.perf_counter()
            for _ in range(N_STEPS):
                step(*rows)
            turns.append((time.perf_counter() - began) / N_STEPS)
        backend.sync()
    return min(turns)


if __name__ == "__main__":
    main()
