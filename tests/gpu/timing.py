"""How long a device takes for what a replica asks of it, beside what the roofline says.

Run by itself, since CuPy reads ``CUPY_TF32`` when it is imported::

    CUPY_TF32=1 python -m tests.gpu.timing --json timing.json
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import cupy
import cupyx
import numpy as np

from benchmarks.gpu_networks import Case, cases
from benchmarks.gpu_steps import DownpourStep, SandblasterStep, Step
from benchmarks.roofline import DEVICES, Device, expected, step, step_launches, vector_passes
from dask_belief.backend import Backend, get_backend
from dask_belief.models import Dense, Network

STEPS: dict[str, Callable[[Network, Backend], Step]] = {"downpour": DownpourStep, "sandblaster": SandblasterStep}
N_WARM_UP = 5
N_TURNS = 7
"""Of which the median counts."""

COPY_BYTES = 2**28


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="narrow layers and short copies, for an emulated device")
    arguments = parser.parse_args()
    precision = "tf32" if os.environ.get("CUPY_TF32", "0") not in ("", "0") else "fp32"
    backend = get_backend("cupy")
    with backend.computing():
        measured = speeds(backend, COPY_BYTES // (1024 if arguments.quick else 1))
        paper = on_paper(backend)
        found = [
            timed(case.narrowed() if arguments.quick else case, method, precision, backend, paper)
            for case in cases().values()
            for method in STEPS
        ]
    figures = {
        "precision": precision,
        "measured": measured,
        "paper": None if paper is None else asdict(paper),
        "steps": found,
        "is_good": all(one["waits_for_nothing"] for one in found),
    }
    arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def on_paper(backend: Backend) -> Device | None:
    """Find the device in the roofline's table by its model; None where it is not there."""
    model = cupy.cuda.runtime.getDeviceProperties(backend.device)["name"].decode().lower()
    words = {"h100-sxm": ("h100",), "h200": ("h200",), "a100-sxm": ("a100",), "l4": ("nvidia l4",)}
    for name, wanted in words.items():
        # An L40 begins like an L4.
        if all(word in model for word in wanted) and not (name == "l4" and "l40" in model):
            return DEVICES[name]
    return None


def milliseconds(work: Callable[[], object], n_times: int) -> float:
    """Give the device's time for one call, by events: the median of some turns of so many calls each."""
    stream = cupy.cuda.get_current_stream()
    for _ in range(N_WARM_UP):
        work()
    turns = []
    for _ in range(N_TURNS):
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record(stream)
        for _ in range(n_times):
            work()
        end.record(stream)
        end.synchronize()
        turns.append(cupy.cuda.get_elapsed_time(start, end) / n_times)
    return float(median(turns))


def speeds(backend: Backend, n_bytes: int) -> dict[str, float]:
    """Measure what the roofline is made of: bytes a second, and the host's seconds for a launch."""
    n_elements = n_bytes // 4
    source, target = backend.zeros(n_elements, np.float32), backend.empty(n_elements, np.float32)
    pinned = backend.host_empty((n_elements,), np.float32)
    pinned[...] = 1
    within = milliseconds(lambda: cupy.copyto(target, source), 10)
    up = milliseconds(lambda: target.set(pinned), 3)
    down = milliseconds(lambda: target.get(out=pinned, blocking=False), 3)
    small = backend.zeros(16, np.float32)
    backend.scale_(1.0, small)
    backend.sync()
    began = time.perf_counter()
    n_launches = 1000
    for _ in range(n_launches):
        backend.scale_(1.0, small)
    launch_seconds = (time.perf_counter() - began) / n_launches
    backend.sync()
    found = {
        "copy_bytes_per_second": 2e3 * n_bytes / within,
        "to_device_bytes_per_second": 1e3 * n_bytes / up,
        "to_host_bytes_per_second": 1e3 * n_bytes / down,
        "host_seconds_per_launch": launch_seconds,
    }
    for name, value in found.items():
        print(f"{name:32}{value:12.4g}")
    return found


def timed(case: Case, method: str, precision: str, backend: Backend, paper: Device | None) -> dict[str, Any]:
    """Time a step with its rows on the device and from the host, and see that it waits for nothing."""
    on_host = case.rows()
    on_device = tuple(backend.asarray(rows) for rows in on_host)
    made = STEPS[method](case.network, backend)
    found = {
        "model": case.name,
        "method": method,
        "rows": case.batch_rows,
        "ms": milliseconds(lambda: made(*on_device), 10),
        "ms_rows_from_host": milliseconds(lambda: made(*on_host), 10),
        "waits_for_nothing": waits_for_nothing(lambda: made(*on_device), case),
    }
    text = ""
    if paper is not None and all(isinstance(layer, Dense) for layer in case.network.layers):
        launches = step_launches(case.network, method, casts_targets=case.casts_targets)
        work = step(case.network, case.batch_rows, vector_passes(method), launches)
        found["ms_on_paper"] = 1e3 * expected(work, paper, precision).seconds
        text = f"{found['ms_on_paper']:9.3f} on paper"
    print(
        f"{case.name:20}{method:13}{precision:6}{found['ms']:9.3f} ms{found['ms_rows_from_host']:9.3f} from host{text}"
    )
    return found


def waits_for_nothing(work: Callable[[], object], case: Case) -> bool:
    """Tell whether a step asks CuPy for no wait; ids that are on the device already are checked, which waits."""
    if not isinstance(case.network.layers[0], Dense):
        return True
    with warnings.catch_warnings():
        # It is said to go, since it does not see every wait; what it sees is one.
        warnings.filterwarnings("ignore", message="cupyx.allow_synchronize will be removed")
        try:
            with cupyx.allow_synchronize(False):
                work()
        except cupyx.DeviceSynchronized:
            return False
    return True


if __name__ == "__main__":
    main()
