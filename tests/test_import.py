"""What importing the package loads. How long it takes is measured by ``benchmarks/bench_import.py``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]

# Blocks every installed package but NumPy, and gives the root without running it: the numeric core stands alone.
NUMPY_ALONE = """
import importlib, importlib.abc, json, sys, types

class NumPyAlone(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in {"numpy", "dask_belief", *sys.stdlib_module_names}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NumPyAlone())
root = types.ModuleType("dask_belief")
root.__path__ = [sys.argv[1]]
sys.modules["dask_belief"] = root
for name in sys.argv[2:]:
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""


def modules_after(code: str, *arguments: str) -> set[str]:
    """The modules that a fresh interpreter holds after the code, which prints them or says nothing."""
    if "print" not in code:
        code = f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("code", "needed"),
    [
        ("import dask_belief", "dask_belief"),
        # Names are imported when they are first used, so the line above loads next to nothing.
        ("import dask_belief as db; [getattr(db, name) for name in db.__all__]", "dask_belief.training"),
    ],
    ids=["root", "all names"],
)
def test_import_loads_nothing_heavy(code: str, needed: str) -> None:
    """Importing the package loads neither a GPU library nor anything that draws, plots or shows progress."""
    loaded = modules_after(code)
    assert needed in loaded
    assert loaded.isdisjoint({"cupy", "bokeh", "matplotlib", "pandas", "tqdm", "scipy", "sklearn", "IPython"})


def test_numeric_core_needs_numpy_alone() -> None:
    """Backend, models and optim import where neither Dask nor Zarr nor SciPy is installed."""
    package = CHECKOUT / "dask_belief"
    parts = [path for part in ("backend", "models", "optim") for path in (package / part).rglob("*.py")]
    names = {".".join(path.relative_to(CHECKOUT).with_suffix("").parts).removesuffix(".__init__") for path in parts}
    # These name CuPy, and are loaded by get_backend once CuPy has been found to work.
    names -= {"dask_belief.backend.cupy", "dask_belief.backend.staging"}
    loaded = modules_after(NUMPY_ALONE, str(package), *sorted(names))
    assert names <= loaded
    assert "numpy" in loaded
    assert loaded.isdisjoint({"dask", "distributed", "zarr", "scipy"})
