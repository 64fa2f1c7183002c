"""Compare the time of `import dask_belief` with that of `import dask.distributed`, each in a fresh interpreter.

The two are started in turns, and so is an interpreter that imports nothing, whose time is part of both; medians, so
that a busy moment of the machine does not decide. The names of the package are imported when they are first used:
``all names`` uses every one of them. From the root of the repository::

    python -m benchmarks.bench_import --json benchmarks/results/import.json
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from benchmarks.record import ROOT, Record

CASES = {
    "nothing": "pass",
    "dask.distributed": "import dask.distributed",
    "dask_belief": "import dask_belief",
    "all names": "import dask_belief as db; [getattr(db, name) for name in db.__all__]",
}
TARGET = 1.5
"""The most that `import dask_belief` may take, in times of `import dask.distributed`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures, with commit and machine, to this file")
    parser.add_argument("--repeats", type=int, default=15, help="turns of each (default: 15)")
    arguments = parser.parse_args()

    record = Record(__doc__.splitlines()[0])
    for code in CASES.values():
        seconds_of(code)  # reads the files once, and leaves the compiled ones behind
    turns = [{name: seconds_of(code) for name, code in CASES.items()} for _ in range(arguments.repeats)]
    seconds = {name: median(turn[name] for turn in turns) for name in CASES}
    ratios = {name: seconds[name] / seconds["dask.distributed"] for name in ("dask_belief", "all names")}
    for name, value in seconds.items():
        print(f"{name:18}{1e3 * value:7.0f} ms" + (f"{ratios[name]:7.2f} times" if name in ratios else ""))
    print(f"At most {TARGET} times dask.distributed is asked for.")
    if arguments.json:
        figures = {"repeats": arguments.repeats, "seconds": seconds, "ratios": ratios, "target": TARGET}
        record.write(arguments.json, figures)


def seconds_of(code: str) -> float:
    """Give the seconds that a fresh interpreter lives that runs the code."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
