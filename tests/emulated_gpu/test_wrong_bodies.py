"""Wrong CUDA bodies, each of which the rung named beside it finds.

==================================================  ==============  ===================================================
fault                                               rung            found because
==================================================  ==============  ===================================================
a step up the gradient                              R2              values differ from the formula
no epsilon                                          R2              values differ from the formula, in float64
the velocity read before it is written              R2              values differ from the formula
the gradient read after it is written               R2              values differ from the formula
a column too many                                   R2              values of the next row are changed
an exponential that overflows                       R2              a loss is infinite at a large logit
no largest subtracted                               R2              a loss is not a number at a large logit
no barrier before the sum                           R2              sums lack what is not written yet
no barrier before shared memory is used again       R2              a thread reads what another one has overwritten
shared memory that nobody has set                   R2              fresh memory is poisoned
threads that leave before a barrier                 R2              sums take in what nobody has written
additions in the order of arrival                   R2, shuffled    bits differ from those of additions in order
an index of 32 bits                                 R2, large       an element beyond the 2**31st is not the right one
digits cut off in place of rounded                  R2              a number is not the nearest of 16 bits
ties that always go up                              R2              a tie is not even
a NaN that is rounded                               R2              a NaN has become a number
infinity that leaves a remainder                    R2              what stays behind is infinite
atomic additions                                    R0              the text holds a word that it must not
a macro of the C library                            R3              NVIDIA's compiler does not know it
a header of the C library                           R3              NVIDIA's compiler does not have it
==================================================  ==============  ===================================================

R0: the text is read. R2: real CuPy runs the body on the emulated device. R3: NVIDIA's compiler compiles it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.emulated_gpu.wrong_bodies import ENVIRONMENT_VARIABLE, WRONG_BODIES, WrongBody

CHECKOUT = Path(__file__).parents[2]
TESTS_FAILED = 1

pytestmark = pytest.mark.skipif(
    os.environ.get("EMULATED_GPU") != "1", reason="needs an emulated device: run by scripts/emulated_gpu"
)
each_rung = pytest.mark.parametrize("rung", sorted({fault.rung for fault in WRONG_BODIES.values()}))


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where wrong kernels are kept, away from the right ones, which rung R3 compiles."""
    return tmp_path_factory.mktemp("kernels")


def run(checks: list[str], environment: dict[str, str], kernels: Path, name: str = "") -> subprocess.CompletedProcess:
    """Run tests as a rung does, with the fault of that name."""
    compiler = environment.get("NVRTC_ENVIRONMENT")
    if compiler is not None and not (CHECKOUT / compiler).is_dir():
        pytest.skip(f"{compiler} is missing, so that rung R3 is NOT TESTED: scripts/test_gpu R3 makes it")
    plain = {key: value for key, value in os.environ.items() if not key.startswith("EMULATED_GPU_")}
    plain |= {"CUPY_CACHE_DIR": str(kernels), ENVIRONMENT_VARIABLE: name, **environment}
    plugins = ["-p", "tests.emulated_gpu.wrong_bodies", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", *plugins, *checks]
    return subprocess.run(command, cwd=CHECKOUT, env=plain, capture_output=True, text=True, timeout=110, check=False)


@each_rung
def test_the_right_bodies_pass(rung: str, kernels: Path) -> None:
    """The tests that are to fail below pass where nothing is wrong."""
    of_rung = [fault for fault in WRONG_BODIES.values() if fault.rung == rung]
    done = run(sorted({fault.check for fault in of_rung}), of_rung[0].environment, kernels)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("name", "fault"), WRONG_BODIES.items(), ids=list(WRONG_BODIES))
def test_a_wrong_body_is_found(name: str, fault: WrongBody, kernels: Path) -> None:
    """The rung's own test fails, or the device stops the process."""
    done = run([fault.check], fault.environment, kernels, name)
    was_stopped = done.returncode < 0
    assert was_stopped or done.returncode == TESTS_FAILED, done.stdout + done.stderr
    assert was_stopped or f"FAILED {fault.check}" in done.stdout


def test_the_table_tells_each_rung() -> None:
    """The table above names every fault with its rung."""
    rows = [line.split("  ") for line in (__doc__ or "").splitlines()]
    told = {cells[0]: next(cell.strip() for cell in cells[1:] if cell.strip()) for cells in rows if len(cells) > 2}
    assert {name: told.get(name) for name in WRONG_BODIES} == {name: body.rung for name, body in WRONG_BODIES.items()}
