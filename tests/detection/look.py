"""Looks for CuPy as a user's program does, and writes what came of it: ``python -m tests.detection.look DEVICE FAULT``.

Needs NumPy alone. The faults are planted in the CuPy that is installed: ``wrong`` makes it compute wrongly, ``raises``
makes a computation fail.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
from typing import Any

import dask_belief
from dask_belief.backend import cupy_status, get_backend
from dask_belief.errors import NoGPU


class Kept(logging.Handler):
    """Keeps the messages."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def plant(fault: str) -> None:
    """Break the CuPy that is installed."""
    if fault == "none":
        return
    cupy: Any = importlib.import_module("cupy")
    ones = cupy.ones

    def broken(*arguments: object) -> object:
        if fault == "raises":
            raise RuntimeError("an illegal memory access was encountered\nsecond line")
        return 2 * ones(*arguments)

    cupy.ones = broken


def main(device: int, fault: str) -> None:
    """Look, and write."""
    is_imported_early = "cupy" in sys.modules
    kept = Kept()
    logger = logging.getLogger(dask_belief.__name__)
    logger.addHandler(kept)
    logger.setLevel(logging.INFO)
    plant(fault)
    is_usable, reason = cupy_status(device)
    chosen = [get_backend("auto", device).name for _ in range(3)]
    try:
        explicit = get_backend("cupy", device).name
    except NoGPU as error:
        explicit = str(error)
    found = {
        "is_imported_early": is_imported_early,
        "is_usable": is_usable,
        "reason": reason,
        "chosen": chosen,
        "logged": kept.messages,
        "explicit": explicit,
    }
    sys.stdout.write(f"{json.dumps(found)}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
