"""What is kept of a benchmark: the question, the figures, and all that is needed to judge or repeat them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "benchmarks/results"

# Settings that change what the processor is asked to do.
_ENVIRONMENT = ("OPENBLAS_", "OMP_", "MKL_", "BLIS_", "DASK_BELIEF_")


@dataclass(frozen=True)
class Record:
    """The circumstances of a run, taken when it is made: before the measurement, whose end may find other files.

    No path of the machine is kept.
    """

    question: str
    command: str = field(default_factory=lambda: command())
    commit: str = field(default_factory=lambda: _git("rev-parse", "HEAD") or "unknown")
    dirty: bool = field(default_factory=lambda: is_dirty())
    """Whether files differ from the commit, earlier results left aside."""
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    machine: dict[str, Any] = field(default_factory=lambda: machine())

    def write(self, path: Path, figures: Mapping[str, Any]) -> None:
        """Write circumstances and figures as JSON, and make the folder if it is not there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**asdict(self), "figures": figures}, indent=2, allow_nan=False) + "\n")


def command() -> str:
    """Give the command line, with paths relative to the repository, or bare names where they lie outside."""
    return " ".join(["python", *(_without_folder(word) for word in sys.orig_argv[1:])])


def _without_folder(word: str) -> str:
    path = Path(word)
    if not path.is_absolute():
        return word
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def is_dirty() -> bool:
    """Tell whether a file of the repository differs from the commit; new files count, results do not."""
    return bool(_git("status", "--porcelain", "--", ".", f":!{RESULTS}"))


def _git(*arguments: str) -> str:
    """Give what git says; nothing where there is no git or no repository."""
    try:
        answer = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return answer.stdout.strip()


def machine() -> dict[str, Any]:
    """Describe the machine and the libraries that decide speed and last bits."""
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": _blas(),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_ENVIRONMENT)},
    }


def _blas() -> list[dict[str, Any]]:
    """Describe each BLAS of this process; none where nobody can tell, as on a machine with NumPy and CuPy alone."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return []
    return [
        {
            "name": library["prefix"],
            "version": library["version"],
            "architecture": library.get("architecture"),
            "threads": library["num_threads"],
        }
        for library in threadpool_info()
        if library["user_api"] == "blas"
    ]


def processor() -> str:
    """Name the model of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown"
