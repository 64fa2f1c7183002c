"""The report of a GPU: its verdict, and what it makes of runs of tests."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dask_belief.backend import cupy_status, get_backend
from dask_belief.models import Dense, Network
from tests.gpu.accuracy import MOST_ERROR, errors, relative_error
from tests.gpu.report import NEEDED, PYTEST, RUNGS, Check, Outcome, counted, verdict_of

CHECKOUT = Path(__file__).parents[2]


def checks(**outcomes: Outcome) -> list[Check]:
    """One check a rung: passed, where nothing else is said."""
    return [Check(rung, "one", outcomes.get(rung, "passed")) for rung in RUNGS]


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ({}, "PASSED"),
        ({"R5b": "not run"}, "PASSED"),
        ({"R5d": "not run"}, "INCOMPLETE: R5d"),
        ({"R5b": "failed"}, "FAILED: R5b"),
        ({"R5a": "failed", "R5d": "not run"}, "FAILED: R5a"),
    ],
)
def test_verdict(outcomes: dict[str, Outcome], expected: str) -> None:
    """All that is needed has passed and nothing has failed; an emulated device never gives a report of a GPU."""
    verdict = verdict_of(checks(**outcomes), is_emulated=False)
    assert verdict.startswith(expected)
    assert verdict_of(checks(**outcomes), is_emulated=True) == f"EMULATED, no report of a GPU: {verdict}"


def test_a_rung_of_which_a_part_was_not_run_is_incomplete() -> None:
    """As R5d is where only one of its two runs was possible."""
    some = [*checks(), Check("R5d", "other", "not run")]
    assert verdict_of(some, is_emulated=False) == "INCOMPLETE: R5d not run, or not wholly"
    assert verdict_of([], is_emulated=False) == f"INCOMPLETE: {', '.join(NEEDED)} not run, or not wholly"


def test_counts_of_a_run(tmp_path: Path) -> None:
    """Read from what pytest writes of a real run, by the options of a bare machine."""
    (tmp_path / "test_some.py").write_text(
        "import pytest\n\ndef test_a(): pass\n\ndef test_b(): assert 0\n\ndef test_c(): pytest.skip('no')\n"
    )
    report = tmp_path / "counts.xml"
    command = [sys.executable, *PYTEST, "--rootdir", str(tmp_path), f"--junitxml={report}", str(tmp_path)]
    subprocess.run(command, cwd=CHECKOUT, capture_output=True, timeout=60)
    assert counted(report) == {"passed": 1, "failed": 1, "skipped": 1}


def test_error_is_relative_to_the_largest_value() -> None:
    """NaN never passes, nor does a truth of zeros."""
    assert relative_error(np.array([1.0, 4.1]), np.array([1.0, 4.0])) == pytest.approx(0.1 / 4)
    for bad in (np.nan, np.inf):
        assert relative_error(np.array([bad, 4.0]), np.array([1.0, 4.0])) == math.inf
    assert relative_error(np.zeros(2), np.zeros(2)) == math.inf


def test_errors_of_a_network() -> None:
    """Of float32 on the host each error is there, and within its limit."""
    host, network = get_backend("numpy"), Network([Dense(9, "tanh"), Dense(4)], "softmax", (5,))
    found = dict(errors(network, host, seed=3, n_rows=50))
    assert {"loss", "gradient of 0.weights", "gradient of 1.bias", "predictions"} <= set(found)
    assert 0 < max(found.values()) < MOST_ERROR["fp32"]


def test_a_machine_without_a_gpu_has_no_report(tmp_path: Path) -> None:
    """The script says so and writes nothing."""
    if cupy_status()[0]:
        pytest.skip("CuPy works here")
    command = [str(CHECKOUT / "tests" / "gpu" / "run_gpu"), "--out", str(tmp_path / "report")]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "There is no GPU to test: CuPy is not installed" in done.stderr
    assert not (tmp_path / "report").exists()
