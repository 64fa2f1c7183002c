"""The kinds of environment that dask_belief may find itself in, each told by an environment variable.

=========================  ======================================================================
``DETECT_WITHOUT_CUPY``    an interpreter without CuPy
``DETECT_CUDA_WHEEL``      one with CuPy for CUDA, on a machine without a driver
``DETECT_ROCM_WHEEL``      one with CuPy for ROCm, which is run without ROCm's libraries
``DETECT_EMULATED``        a command that runs what follows it on the emulated device, and its Python
=========================  ======================================================================
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).parents[2]
VARIABLES = {"DETECT_WITHOUT_CUPY", "DETECT_CUDA_WHEEL", "DETECT_ROCM_WHEEL", "DETECT_EMULATED"}

_WITHOUT = ("LD_LIBRARY_PATH", "DASK_BELIEF_BACKEND", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "PYTHONPATH")
"""What would make one environment look like another."""


@dataclass(frozen=True)
class Found:
    """What an interpreter found of CuPy."""

    is_imported_early: bool
    """Whether importing the package, or its backends, imported CuPy."""

    is_usable: bool
    reason: str

    chosen: list[str]
    """What ``"auto"`` gave, asked three times."""

    logged: list[str]

    explicit: str
    """The name of the backend that ``"cupy"`` gave, or the message of the `NoGPU` that was raised."""


def look(variable: str, device: int = 0, fault: str = "none", **environment: str) -> Found:
    """Ask the interpreter that the variable names; skips, by name, where there is none."""
    if not os.environ.get(variable):
        pytest.skip(f"{variable} is not set: this kind of environment is NOT TESTED")
    kept = {name: value for name, value in os.environ.items() if name not in _WITHOUT}
    command = [*shlex.split(os.environ[variable]), "-m", "tests.detection.look", str(device), fault]
    done = subprocess.run(
        command, cwd=CHECKOUT, env=kept | environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return Found(**answer)
