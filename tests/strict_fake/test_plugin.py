"""With the plugin CuPy counts as usable; without it nothing changes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.strict_fake.modules import install

CHECKOUT = Path(__file__).parents[2]
TESTS = "tests/backend/test_operations.py"
# Neither what is installed nor an emulated device may stand in for the stand-in.
WITHOUT_CUPY = "import sys; sys.modules['cupy'] = None; import pytest; sys.exit(pytest.main(sys.argv[1:]))"


def collected(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command, "--collect-only", "-q", "-p", "no:cacheprovider", TESTS],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_tests_of_every_backend_run_on_the_stand_in() -> None:
    """As many tests with CuPy as with NumPy, where there were none."""
    found = collected("-m", "pytest", "-p", "tests.strict_fake.plugin")
    assert found.count("[cupy") == found.count("[numpy") > 100
    assert collected("-c", WITHOUT_CUPY).count("[cupy") == 0


def test_it_must_come_first(cupy: ModuleType) -> None:
    """Where CuPy has been imported already, some would use the one and some the other."""
    with pytest.raises(RuntimeError, match="imported already"):
        install()
