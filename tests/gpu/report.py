"""The rung of a real GPU: every check that needs one, and one report of them all.

====  ==================================================================================================
R5a   the tests that rung R2 runs on the emulated device, where nothing may be skipped
R5b   compute-sanitizer (memcheck, racecheck, initcheck, synccheck) over the kernels of our own
R5c   float32 against float64 on the host, layer by layer, on data drawn anew; ten times the same bits;
      once as it is and once with TF32
R5d   the tests of R5a's numerics with CUPY_ACCELERATORS=cub, and empty
R5e   times by CUDA events beside the roofline, with and without TF32
R5f   the sources of all kernels that CuPy compiled meanwhile, kept beside the report
====  ==================================================================================================

A check passes, fails, or was not run, with the reason. The report passes when R5a, R5c, R5d, R5e and R5f have and
nothing failed. With ``--emulated`` the same runs on an emulated device, to try it: layers are narrow, and the report
says of itself that it is no report of a GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as tree
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.record import ROOT, Record
from dask_belief.backend import cupy_status, get_backend

PYTEST = ["-m", "pytest", "-c", "tests/gpu/options.ini", "--rootdir", ".", "-q", "-p", "no:cacheprovider"]
SUITE = [
    "tests/backend",
    "tests/models",
    "tests/optim",
    "tests/emulated_gpu/test_nets.py",
]
NUMERICS = ["tests/backend/test_operations.py", "tests/models", "tests/emulated_gpu/test_nets.py"]
OWN_KERNELS = ["tests/backend/test_operations.py"]
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
NEEDED = ("R5a", "R5c", "R5d", "R5e", "R5f")
"""What must have passed; compute-sanitizer is not on every machine."""

CHECK_SECONDS = 3600
"""The longest that one process of a check may take."""

Outcome = Literal["passed", "failed", "not run"]


@dataclass
class Check:
    """What one check found."""

    rung: str
    name: str
    outcome: Outcome
    seconds: float = 0.0
    reason: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)


class Runner:
    """Runs checks, each in processes of its own, so that one that crashes takes no other with it.

    Parameters
    ----------
    out
        The folder of the report, its logs and the kernels' sources.
    is_emulated
        Whether the device is emulated.
    seed
        Of the data of R5c.
    """

    def __init__(self, out: Path, is_emulated: bool, seed: int) -> None:
        self.out = out
        self.is_emulated = is_emulated
        self.seed = seed
        self.kernels = out / "kernels"
        self.checks: list[Check] = []

    def process(self, rung: str, name: str, command: list[str], **environment: str) -> tuple[int, float]:
        """Run a command with its output in a log of that name; gives its status and its seconds."""
        kernels = str(self.kernels.resolve())
        if self.is_emulated:
            # It compiles slowly, so CuPy's cache there is left as it is; the device tells what was used.
            own = {"EMULATED_GPU_RECORD": kernels}
        else:
            own = {"CUPY_CACHE_SAVE_CUDA_SOURCE": "1", "CUPY_CACHE_DIR": kernels}
        log = self.out / f"{rung}-{name}.log"
        began = time.monotonic()
        with log.open("w", encoding="utf-8") as lines:
            try:
                status = subprocess.run(
                    command,
                    cwd=ROOT,
                    env={**os.environ, **own, **environment},
                    stdout=lines,
                    stderr=subprocess.STDOUT,
                    timeout=CHECK_SECONDS,
                ).returncode
            except subprocess.TimeoutExpired:
                status = 124
        return status, time.monotonic() - began

    def add(self, check: Check) -> None:
        """Keep what a check found, and tell it."""
        self.checks.append(check)
        print(f"{check.rung}  {check.name:24}{check.outcome:9}{check.seconds:7.0f} s  {check.reason}", flush=True)

    def pytest(
        self, rung: str, name: str, tests: list[str], *, before: tuple[str, ...] = (), **environment: str
    ) -> None:
        """Run tests where nothing may be skipped, under the command `before` where there is one."""
        counts, left_out = self.out / f"{rung}-{name}.xml", self.out / f"{rung}-{name}-left-out.json"
        plugins = ["-p", "tests.gpu.require_cupy", *(["-p", "tests.gpu.no_pool"] if before else [])]
        command = [*before, sys.executable, *PYTEST, *plugins, f"--junitxml={counts}", "--left-out", str(left_out)]
        status, seconds = self.process(rung, name, [*command, *tests], **environment)
        figures: dict[str, Any] = counted(counts) if counts.exists() else {}
        if left_out.exists():
            figures["left_out"] = json.loads(left_out.read_text(encoding="utf-8"))
        reason = ", ".join(f"{number} {what}" for what, number in figures.items() if isinstance(number, int))
        if figures.get("left_out"):
            reason += f"; {len(figures['left_out'])} left out, which need packages that are not here"
        # A run in which nothing was collected proves nothing.
        is_good = status == 0 and figures.get("passed", 0) > 0
        self.add(Check(rung, name, "passed" if is_good else "failed", seconds, reason or f"status {status}", figures))

    def program(self, rung: str, name: str, module: str, *arguments: str, **environment: str) -> None:
        """Run a program that writes figures, among them whether they are good."""
        figures_path = self.out / f"{rung}-{name}.json"
        command = [sys.executable, "-m", module, "--json", str(figures_path), *arguments]
        command += ["--quick"] if self.is_emulated else []
        status, seconds = self.process(rung, name, command, **environment)
        figures = json.loads(figures_path.read_text(encoding="utf-8")) if status == 0 else {}
        outcome: Outcome = "passed" if figures.get("is_good") else "failed"
        self.add(Check(rung, name, outcome, seconds, "" if status == 0 else f"status {status}, see the log", figures))


def counted(report: Path) -> dict[str, int]:
    """Give what a run of tests came to, from pytest's XML."""
    (suite,) = tree.parse(report).getroot().iter("testsuite")
    numbers = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = numbers["failures"] + numbers["errors"]
    return {"passed": numbers["tests"] - failed - numbers["skipped"], "failed": failed, "skipped": numbers["skipped"]}


def r5a(runner: Runner) -> None:
    """The suite of R2."""
    runner.pytest("R5a", "suite", SUITE)


def r5b(runner: Runner) -> None:
    """compute-sanitizer, where it is."""
    found = shutil.which("compute-sanitizer")
    for tool in SANITIZERS:
        if runner.is_emulated or found is None:
            reason = "the device is emulated" if runner.is_emulated else "compute-sanitizer is not on PATH"
            runner.add(Check("R5b", tool, "not run", reason=reason))
            continue
        runner.pytest("R5b", tool, OWN_KERNELS, before=(found, "--tool", tool, "--error-exitcode", "9"))


def r5c(runner: Runner) -> None:
    """Errors and repeatability."""
    for name, tf32 in (("fp32", "0"), ("tf32", "1")):
        runner.program("R5c", name, "tests.gpu.accuracy", "--seed", str(runner.seed), CUPY_TF32=tf32)


def r5d(runner: Runner) -> None:
    """The accelerators of CuPy's reductions."""
    for name, accelerators in (("cub", "cub"), ("none", "")):
        if runner.is_emulated and accelerators:
            runner.add(Check("R5d", name, "not run", reason="its kernels are compiled for a GPU"))
            continue
        runner.pytest("R5d", name, NUMERICS, CUPY_ACCELERATORS=accelerators)


def r5e(runner: Runner) -> None:
    """Times."""
    for name, tf32 in (("fp32", "0"), ("tf32", "1")):
        runner.program("R5e", name, "tests.gpu.timing", CUPY_TF32=tf32)


def r5f(runner: Runner) -> None:
    """What was compiled: names and hashes go into the report, the sources stay beside it."""
    sources = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(runner.kernels.glob("*.cu"))}
    outcome: Outcome = "passed" if sources else "failed"
    runner.add(Check("R5f", "sources", outcome, reason=f"{len(sources)} kernels", figures={"sha256": sources}))


RUNGS: dict[str, Callable[[Runner], None]] = {"R5a": r5a, "R5b": r5b, "R5c": r5c, "R5d": r5d, "R5e": r5e, "R5f": r5f}


def main() -> int:
    arguments = _arguments()
    is_usable, reason = cupy_status()
    if not is_usable:
        print(f"There is no GPU to test: {reason}", file=sys.stderr)
        return 2
    if (os.environ.get("EMULATED_GPU") == "1") != arguments.emulated:
        what = "is" if not arguments.emulated else "is not"
        print(f"The device {what} emulated; give --emulated there, and only there", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    out = arguments.out.resolve()
    record = Record(__doc__.splitlines()[0])
    runner = Runner(out, arguments.emulated, arguments.seed)
    for rung in arguments.only or RUNGS:
        RUNGS[rung](runner)
    verdict = verdict_of(runner.checks, arguments.emulated)
    figures = {
        "is_of_a_gpu": not arguments.emulated,
        "verdict": verdict,
        "device": device(),
        "seed": arguments.seed,
        "checks": [asdict(check) for check in runner.checks],
    }
    if arguments.commit:
        figures["commit_as_given"] = arguments.commit
    record.write(out / "report.json", figures)
    print(f"\n{verdict}: {out.name}/report.json")
    return int(any(check.outcome == "failed" for check in runner.checks))


def verdict_of(checks: list[Check], is_emulated: bool) -> str:
    """Say in a line what the checks come to."""
    failed = sorted({check.rung for check in checks if check.outcome == "failed"})
    passed = {check.rung for check in checks if check.outcome == "passed"}
    not_run = {check.rung for check in checks if check.outcome == "not run"}
    missing = [rung for rung in NEEDED if rung not in passed or rung in not_run]
    if failed:
        text = f"FAILED: {', '.join(failed)}"
    elif missing:
        text = f"INCOMPLETE: {', '.join(missing)} not run, or not wholly"
    else:
        text = "PASSED"
    return f"EMULATED, no report of a GPU: {text}" if is_emulated else text


def device() -> dict[str, Any]:
    """Describe the device and the software above it."""
    import cupy

    runtime, backend = cupy.cuda.runtime, get_backend("cupy")
    properties = runtime.getDeviceProperties(backend.device)
    memory = backend.device_memory()
    return {
        "name": properties["name"].decode(),
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "memory_gib": None if memory is None else round(memory.total_bytes / 2**30, 1),
        "cuda_runtime": runtime.runtimeGetVersion(),
        "driver": runtime.driverGetVersion(),
        "cupy": cupy.__version__,
        "numpy": np.__version__,
        "kind": backend.kind(),
        "accelerators": [str(accelerator) for accelerator in cupy._core.get_routine_accelerators()],
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="folder to write (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=sorted(RUNGS), help="these alone; the report is incomplete then")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31), help="of R5c's data (default: drawn)")
    parser.add_argument("--commit", help="what is tested, where there is no git to ask")
    parser.add_argument("--emulated", action="store_true", help="on an emulated device, to try the script")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
