"""Planted bugs, each caught by the mode of the emulated device that is for it; without the bug all is well."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    os.environ.get("EMULATED_GPU") != "1", reason="needs the emulated device: scripts/emulated_gpu python -m pytest"
)

CHECKOUT = Path(__file__).parents[2]
FAULT = 3
"""The status with which a program of `planted` says that its result is wrong."""

PLAIN: dict[str, str] = {}
DEFERRED, GUARDED = {"EMULATED_GPU_DEFER": "1"}, {"EMULATED_GPU_GUARD": "1"}
REVERSED, TWO_DEVICES = {"EMULATED_GPU_ORDER": "reverse"}, {"EMULATED_GPU_DEVICES": "2"}
NOT_POISONED = {"EMULATED_GPU_POISON": "0"}
SEEDS = ("5", "1", "2", "3")


def shuffled(seed: str) -> dict[str, str]:
    return {"EMULATED_GPU_ORDER": "shuffle", "EMULATED_GPU_SEED": seed}


def together(seed: str) -> dict[str, str]:
    """Every mode at once, as the suite is run."""
    return {**DEFERRED, **GUARDED, **shuffled(seed), **TWO_DEVICES}


@dataclass(frozen=True)
class Case:
    """A bug, the mode that is to catch it, and what then is seen."""

    name: str
    mode: dict[str, str]
    status: int
    said: str = ""

    missed_with: dict[str, str] | None = None
    """A mode that does not show it, so that it is the other one that does; None where every mode shows it."""

    def __str__(self) -> str:
        return self.name


CASES = [
    Case("missing_event", DEFERRED, FAULT, missed_with=PLAIN),
    Case("unordered_null_stream", DEFERRED, FAULT, missed_with=PLAIN),
    Case("refilled_buffer", DEFERRED, FAULT, missed_with=PLAIN),
    Case("freed_buffer", DEFERRED, FAULT, missed_with=PLAIN),
    Case("early_read", DEFERRED, FAULT, missed_with=PLAIN),
    Case("race_between_blocks", REVERSED, FAULT, missed_with=PLAIN),
    Case("race_between_blocks", shuffled("5"), FAULT),
    Case("race_within_a_block", PLAIN, FAULT),
    Case("race_within_a_warp", PLAIN, FAULT),
    Case("last_of_several", REVERSED, FAULT, missed_with=PLAIN),
    Case("repeated_indices", PLAIN, FAULT),
    Case("past_the_end", PLAIN, -6, "OUT-OF-BOUNDS WRITE, 0 bytes past the end of an array of 400 bytes"),
    Case("before_the_start", PLAIN, -6, "bytes past the end of an array of 400 bytes"),
    Case("read_past_the_end", PLAIN, FAULT),
    Case("too_little_shared_memory", PLAIN, 1, "a write past the end of the shared memory that its launch asks for"),
    Case("unwritten_memory", PLAIN, FAULT, missed_with=NOT_POISONED),
    Case("unwritten_buffer", PLAIN, FAULT),
    Case("touch_of_the_host", GUARDED, -11, missed_with=PLAIN),
    Case("memory_of_another_device", {**GUARDED, **TWO_DEVICES}, -11, missed_with=TWO_DEVICES),
    Case("divergent_barrier", PLAIN, 1, "not every thread of the block comes to the same barrier"),
    Case("wait_inside_a_graph", PLAIN, 1, "a wait for a stream that is captured"),
]
NAMES = list(dict.fromkeys(case.name for case in CASES))


def run(name: str, which: str, mode: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a program of `planted` in a process of its own."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("EMULATED_GPU_")}
    command = [sys.executable, "-m", "tests.emulated_gpu.planted", name, which]
    return subprocess.run(command, cwd=CHECKOUT, env=plain | mode, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bug_is_caught(case: Case) -> None:
    """By its mode; and where that is what shows it, not in another one."""
    found = run(case.name, "wrong", case.mode)
    assert found.returncode == case.status, found.stderr
    assert case.said in found.stderr
    if case.missed_with is not None:
        otherwise = run(case.name, "wrong", case.missed_with)
        assert otherwise.returncode == 0, otherwise.stderr


@pytest.mark.parametrize("mode", [PLAIN, together(SEEDS[0])], ids=["plain", "together"])
@pytest.mark.parametrize("name", NAMES)
def test_right_program_passes(name: str, mode: dict[str, str]) -> None:
    """With two devices, in the plainest mode and in the strictest."""
    found = run(name, "right", TWO_DEVICES | mode)
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.parametrize("name", NAMES)
def test_no_mode_hides_what_another_catches(name: str) -> None:
    """In all modes at once each bug is caught: by some order of threads at least, for which there are several seeds."""
    assert any(run(name, "wrong", together(seed)).returncode != 0 for seed in SEEDS)


def test_one_order_does_not_catch_everything() -> None:
    """Some order shows no fault where elements are assigned to one place, which is why the suite takes several."""
    statuses = {run("last_of_several", "wrong", shuffled(seed)).returncode for seed in SEEDS}
    assert statuses == {0, FAULT}


def test_every_bug_has_its_case() -> None:
    """None was planted for nothing."""
    from tests.emulated_gpu.planted import PLANTED

    assert set(NAMES) == set(PLANTED)
