"""Small expressions, what they give on real CuPy, and what they give here.

``probes.json`` holds them, with CuPy's outcome as it was recorded. Where the stand-in is meant to be stricter its own
outcome stands beside it, with the reason. On a device, or an emulated one, ``python -m tests.strict_fake.probes``
writes the record anew.
"""

from __future__ import annotations

import copy
import json
import operator
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

FILE = Path(__file__).with_name("probes.json")


@dataclass(frozen=True)
class Probe:
    """One expression; the names in it are those of `surroundings`."""

    expression: str
    outcome: str
    """What real CuPy gives: the kind of a result, or the name of an error."""

    stricter: str | None = None
    """What the stand-in gives, where that is another thing on purpose."""

    why: str | None = None
    """Why it does."""

    @property
    def of_stand_in(self) -> str:
        """What the stand-in is to give."""
        return self.stricter or self.outcome


def load() -> list[Probe]:
    """Give all probes."""
    return [Probe(**fields) for fields in json.loads(FILE.read_text(encoding="utf-8"))]


def save(probes: list[Probe]) -> None:
    """Write all probes, one a line."""
    lines = [json.dumps({name: value for name, value in asdict(probe).items() if value}) for probe in probes]
    FILE.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def surroundings(cupy: ModuleType, cupyx: ModuleType) -> dict[str, Any]:
    """Give what the expressions name: three ones, a 2 x 2 matrix, indices, and the same on the host."""
    return {
        "cupy": cupy,
        "cupyx": cupyx,
        "np": np,
        "x": cupy.ones(3, "f4"),
        "m": cupy.ones((2, 2), "f4"),
        "i": cupy.asarray([0, 1]),
        "whole": cupy.ones(3, "i4"),
        "host": np.ones(3, "f4"),
        "host_m": np.ones((2, 2), "f4"),
        "everything": slice(None),
        "setitem": operator.setitem,
        "operator": operator,
        "pickle": pickle,
        "copy": copy,
    }


def outcome(expression: str, names: Mapping[str, Any]) -> str:
    """Give the kind of an expression's value, or the name of the error that it raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _kind(eval(expression, dict(names)))
    except Exception as error:
        # NumPy raises private heirs of TypeError where CuPy raises TypeError.
        return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ in ("builtins", __name__))


def _kind(value: object) -> str:
    if type(value).__name__ == "ndarray":
        where = "host" if isinstance(value, np.ndarray) else "device"
        return f"{where} {value.dtype.name} {value.shape}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, (bool, int, float, str, np.generic)):
        return f"{type(value).__name__} {value}"
    return "None" if value is None else type(value).__name__


if __name__ == "__main__":
    import cupy
    import cupyx

    found = surroundings(cupy, cupyx)
    save([Probe(**{**asdict(probe), "outcome": outcome(probe.expression, found)}) for probe in load()])
