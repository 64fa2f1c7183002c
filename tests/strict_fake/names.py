"""What CuPy offers under which name, and what its functions take; kept in ``cupy_names.txt``, one name a line.

``python -m tests.strict_fake.names`` writes the list of the CuPy that is installed, for which no device is needed.
"""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

FILE = Path(__file__).with_name("cupy_names.txt")

SOURCES = (
    "cupy",
    "cupy.ndarray",
    "cupy.ufunc",
    "cupy.cuda",
    "cupy.cuda.Device",
    "cupy.cuda.Event",
    "cupy.cuda.Stream",
    "cupy.cuda.runtime",
    "cupy.lib.stride_tricks",
    "cupy.linalg",
    "cupy.random",
    "cupyx",
)
"""Modules and classes whose names are kept."""

ANY = "**"
"""Stands among the parameters of a function that takes further keywords."""

Names = dict[str, frozenset[str] | None]
"""Name to the parameters of a function; None for what is no function, or does not say what it takes."""


def load() -> dict[str, Names]:
    """Give the names of each source as they were recorded."""
    recorded: dict[str, Names] = {source: {} for source in SOURCES}
    for line in FILE.read_text(encoding="utf-8").splitlines():
        full, _, parameters = line.partition(" ")
        source, _, name = full.rpartition(".")
        recorded[source][name] = frozenset(parameters.strip("()").split()) if parameters else None
    return recorded


def lines_of_installed_cupy() -> list[str]:
    """Give the lines of the file, as the CuPy that is installed has them."""
    lines = []
    for source in SOURCES:
        holder = _resolve(source)
        for name in sorted(name for name in dir(holder) if not name.startswith("_")):
            value = getattr(holder, name, None)
            parameters = _parameters(value)
            if source == "cupy.cuda.runtime" and not callable(value):
                # Attributes by number, which are others for each vendor.
                continue
            if source in ("cupy.cuda", "cupyx") and isinstance(value, ModuleType):
                # Some are there only once they have been used.
                continue
            lines.append(f"{source}.{name}" + (f" ({' '.join(parameters)})" if parameters is not None else ""))
    return lines


def _resolve(source: str) -> object:
    try:
        return importlib.import_module(source)
    except ModuleNotFoundError:
        module, _, name = source.rpartition(".")
        found: object = getattr(importlib.import_module(module), name)
        return found


def _parameters(value: object) -> list[str] | None:
    if not callable(value) or isinstance(value, type):
        return None
    try:
        parameters = inspect.signature(value).parameters.values()
        return [ANY if each.kind is each.VAR_KEYWORD else each.name for each in parameters if each.name != "self"]
    except (TypeError, ValueError):
        # A compiled method has its signature in the first line of its description.
        found = re.match(r"[\w.]+\(([^()]*(?:\([^()]*\)[^()]*)*)\)", inspect.getdoc(value) or "")
        if found is None or not found[1]:
            return None
        words = [part.split("=")[0].split()[-1] for part in re.split(r",(?![^()]*\))", found[1]) if part.strip()]
        words = [ANY if word.startswith("**") else word.strip("*/ ") for word in words]
        return [word for word in words if word not in ("", "self")]


if __name__ == "__main__":
    FILE.write_text("".join(f"{line}\n" for line in lines_of_installed_cupy()), encoding="utf-8")
