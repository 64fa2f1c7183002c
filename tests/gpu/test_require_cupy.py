"""The plugin under which a skipped test fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dask_belief.backend import cupy_status
from tests.gpu.require_cupy import missing_packages

CHECKOUT = Path(__file__).parents[2]
OPTIONS = CHECKOUT / "tests" / "gpu" / "options.ini"
IS_USABLE = cupy_status()[0]

SOME_TESTS = """
import pytest

def test_passes():
    pass

def test_skipped():
    pytest.skip("no time")

@pytest.mark.skipif(True, reason="never")
def test_marked():
    pass

def test_needs_a_package():
    pytest.importorskip("no_such_package")

def test_needs_cupy():
    pytest.importorskip("cupy.no_such_module")
"""


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    """The plugin on tests of ours, in a process of its own; a stand-in for CuPy where there is none."""
    stand_in = [] if IS_USABLE else ["-p", "tests.strict_fake.plugin"]
    command = [sys.executable, "-m", "pytest", "-c", str(OPTIONS), "--rootdir", str(folder), *stand_in]
    command += ["-p", "tests.gpu.require_cupy", "-p", "no:cacheprovider", "--left-out", str(folder / "left_out.json")]
    return subprocess.run([*command, str(folder)], cwd=CHECKOUT, capture_output=True, text=True, timeout=60)


def test_a_skip_fails(tmp_path: Path) -> None:
    """But for what needs a package beside CuPy, which is named with its reason."""
    (tmp_path / "test_some.py").write_text(SOME_TESTS)
    (tmp_path / "test_other.py").write_text("import no_such_package\n")
    done = run(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 failed, 1 passed, 1 skipped, 1 error" in done.stdout
    assert "skipped, where nothing may be: Skipped: no time" in done.stdout
    left_out = json.loads((tmp_path / "left_out.json").read_text())
    assert left_out == {
        "test_other.py": "needs no_such_package",
        "test_some.py::test_needs_a_package": "needs no_such_package",
    }


def test_without_cupy_nothing_runs(tmp_path: Path) -> None:
    """A machine on which CuPy cannot be used fails at once, and says why."""
    if IS_USABLE:
        pytest.skip("CuPy works here")
    (tmp_path / "test_some.py").write_text("def test_passes(): pass\n")
    command = [sys.executable, "-m", "pytest", "-c", str(OPTIONS), "-p", "tests.gpu.require_cupy", str(tmp_path)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "CuPy cannot be used: CuPy is not installed" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("import json\nimport numpy as np\nfrom collections import abc", []),
        ("import no_such_package.part\nfrom other_package.part import name", ["no_such_package", "other_package"]),
        ("def f():\n    import no_such_package", []),
    ],
)
def test_packages_that_are_missing(source: str, missing: list[str]) -> None:
    """Those that the module imports when it is loaded."""
    assert missing_packages(source) == missing
