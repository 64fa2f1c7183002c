"""The scripts say what is missing, and do not pretend: on a machine without a compiler, or without a network."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
CANNOT, MISUSED = 77, 2

pytestmark = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="there the machine is what the scripts name"
)

# A Python that makes environments whose pip installs nothing; all else is done by the real one.
PYTHON = f"""#!/bin/sh
case "$*" in
"-m venv"*)
    for folder do :; done
    mkdir -p "$folder/bin" && cp "$0" "$folder/bin/python" ;;
"-m pip --version") ;;
"-m pip "*) echo "pip: no network" >&2; exit 1 ;;
*) exec {sys.executable} "$@" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The scripts alone, and what they read, in a folder of their own, with a Python that cannot install."""
    shutil.copytree(CHECKOUT / "scripts", tmp_path / "scripts")
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)
    write_program(tmp_path / "python", PYTHON)
    return tmp_path


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def run(checkout: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {"PYTHON": str(checkout / "python"), **environment}
    return subprocess.run(
        command, cwd=checkout, env=os.environ | own, capture_output=True, text=True, timeout=60, check=False
    )


def make_environment(checkout: Path) -> None:
    """Make .venv as if everything had been installed."""
    (checkout / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(checkout / "python", checkout / ".venv" / "bin")
    for extra in ("demo", "lint", "test"):
        shutil.copy(checkout / "pyproject.toml", checkout / ".venv" / f"installed-{extra}.toml")


@pytest.mark.parametrize("missing", ["gcc", "g++", "nm", "readelf"])
def test_emulated_gpu_without_a_tool(missing: str, checkout: Path) -> None:
    """It ends with 77 and a loud line that names the tool, before anything is installed."""
    (checkout / "bin").mkdir()
    for tool in {"bash", "dirname", "uname", "gcc", "g++", "nm", "readelf"} - {missing}:
        # Only whether it is there is looked at, so a compiler may be anything.
        (checkout / "bin" / tool).symlink_to(shutil.which(tool) or "/bin/true")
    done = run(checkout, "scripts/emulated_gpu", "true", PATH=str(checkout / "bin"))
    assert (done.returncode, done.stdout) == (CANNOT, "")
    assert f"!!! NO EMULATED GPU: {missing} is missing" in done.stderr
    assert not (checkout / ".venv-emulated-gpu").exists()


def test_emulated_gpu_without_a_network(checkout: Path) -> None:
    """Likewise where nothing can be installed; and what was not installed is not taken for installed the next time."""
    for _ in range(2):
        done = run(checkout, "scripts/emulated_gpu", "true")
        assert (done.returncode, done.stdout) == (CANNOT, ""), done.stderr
        assert "!!! NO EMULATED GPU: what the tests need cannot be installed" in done.stderr
        assert "pip: no network" in done.stderr


def test_emulated_gpu_without_the_wheel(checkout: Path) -> None:
    """As it is where the index has none for this machine."""
    make_environment(checkout)
    (checkout / ".venv").rename(checkout / ".venv-emulated-gpu")
    done = run(checkout, "scripts/emulated_gpu", "true")
    assert done.returncode == CANNOT
    assert "!!! NO EMULATED GPU: cupy-rocm-7-0==14.2.0 cannot be installed" in done.stderr


def test_emulated_gpu_without_a_command(checkout: Path) -> None:
    done = run(checkout, "scripts/emulated_gpu")
    assert done.returncode == MISUSED
    assert "give the command to run" in done.stderr


def test_install_tells_that_it_failed(checkout: Path) -> None:
    """Also where bash does not heed `set -e`, and it leaves no stamp."""
    program = "source scripts/environment.sh; install test || echo no; install test && echo yes; true"
    done = run(checkout, "bash", "-euc", program)
    assert done.stdout == "no\n", done.stderr
    assert not list(checkout.glob(".venv/installed-*"))


def test_install_without_a_python(checkout: Path) -> None:
    """No Python of the right age is an error as well, and says so."""
    write_program(checkout / "python3", "#!/bin/sh\nexit 1\n")
    for name in ("python", "python3.11", "python3.12", "python3.13", "python3.14"):
        shutil.copy(checkout / "python3", checkout / name)
    program = "source scripts/environment.sh; install test || echo no"
    done = run(checkout, "bash", "-c", program, PATH=f"{checkout}:{os.environ['PATH']}")
    assert done.stdout == "no\n"
    assert "dask_belief needs Python 3.11 or newer" in done.stderr


@pytest.mark.parametrize("script", ["test", "demo"])
def test_what_cannot_be_installed_ends_a_script(script: str, checkout: Path) -> None:
    """Nothing is run in an environment that is not whole."""
    done = run(checkout, f"scripts/{script}")
    assert done.returncode not in (0, CANNOT)
    assert done.stdout == ""


def test_the_ladder_without_an_emulated_gpu(checkout: Path) -> None:
    """Its rung is left out, never in silence: the reason is said when it comes, and again in the last line."""
    make_environment(checkout)
    write_program(checkout / "scripts" / "emulated_gpu", "#!/bin/sh\necho '!!! NO EMULATED GPU: why' >&2\nexit 77\n")
    done = run(checkout, "scripts/test_gpu", "R2")
    assert done.returncode == 0, done.stderr
    assert "!! R2 IS NOT TESTED: why\n" in done.stdout
    assert done.stdout.endswith("!! NOT TESTED: R2: why\n")
    assert run(checkout, "scripts/test_gpu", "R2", "--require-all").returncode == 1


def test_the_ladder_with_a_device_that_cannot_be_built(checkout: Path) -> None:
    """What is wrong with our own sources is no reason to leave a rung out."""
    make_environment(checkout)
    write_program(checkout / "scripts" / "emulated_gpu", "#!/bin/sh\necho 'error: expected ;' >&2\nexit 1\n")
    done = run(checkout, "scripts/test_gpu", "R2")
    assert done.returncode == 1
    assert "error: expected ;" in done.stderr
    assert done.stdout.endswith("FAILED: R2, setting up the emulated device\n")


def test_the_ladder_without_nvidias_compiler(checkout: Path) -> None:
    """Likewise for its rung."""
    make_environment(checkout)
    done = run(checkout, "scripts/test_gpu", "R3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("!! NOT TESTED: R3: NVIDIA's compiler cannot be installed, see above\n")
    assert not (checkout / ".venv-nvrtc" / "requirements.txt").exists()


def test_kernels_of_another_tree_are_not_taken_for_this_ones(checkout: Path) -> None:
    """R3 compiles what R2 has recorded of the same tree; else it says so and compiles the bodies of the table alone."""
    make_environment(checkout)
    for folder in ("dask_belief", "tests", "benchmarks", ".venv-emulated-gpu"):
        (checkout / folder).mkdir()
    source = checkout / "tests" / "some.py"
    source.write_text("1\n")
    # Stand-ins for pytest, NVIDIA's compiler, and a device that uses one kernel.
    told = '"-m pytest"*) echo "record: ${EMULATED_GPU_RECORD:-none}, $*" ;;\n'
    write_program(checkout / ".venv" / "bin" / "python", PYTHON.replace('"-m pip --', f'{told}"-m pip --'))
    shutil.copytree(checkout / ".venv", checkout / ".venv-nvrtc")
    requirements = "cupy-cuda13x==14.2.0 nvidia-cuda-nvrtc~=13.5 nvidia-cuda-runtime~=13.5"
    (checkout / ".venv-nvrtc" / "requirements.txt").write_text(requirements)
    uses_one = '#!/bin/sh\n[ -z "$EMULATED_GPU_RECORD" ] || touch "$EMULATED_GPU_RECORD/1.cu"\n'
    write_program(checkout / "scripts" / "emulated_gpu", uses_one)
    record = checkout / ".venv-emulated-gpu" / "recorded"

    def without_record() -> None:
        done = run(checkout, "scripts/test_gpu", "R3")
        assert "!! NOT TESTED: R3: in part: R2 has recorded no kernels of this tree; run R2 before it" in done.stdout
        assert "record: none, -m pytest tests/nvrtc -k not on_the_emulated_device" in done.stdout
        assert run(checkout, "scripts/test_gpu", "R3", "--require-all").returncode == 1

    without_record()
    done = run(checkout, "scripts/test_gpu", "R2", "R3", "--require-all")
    assert done.returncode == 0, done.stdout
    assert "== R3, 1 kernels, sm_80, sm_90, sm_100" in done.stdout
    assert f"record: {record}, -m pytest tests/nvrtc" in done.stdout
    (record / "of an older run.cu").touch()
    run(checkout, "scripts/test_gpu", "R2")
    assert sorted(path.name for path in record.iterdir()) == ["1.cu", "made-by"]
    source.write_text("2\n")
    without_record()
