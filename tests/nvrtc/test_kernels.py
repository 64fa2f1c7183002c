"""Every kernel compiles for every architecture, with NVIDIA's own compiler, and keeps what it works on in registers.

The assembler tells of each function how many bytes a thread must store and load again because registers do not suffice,
and no kernel of ours may need any.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dask_belief.backend.operations import OPERATIONS
from tests.nvrtc import sources
from tests.nvrtc.compiler import ARCHITECTURES, CompileError, Nvrtc
from tests.nvrtc.sources import REALS, Source

RECORDED = sources.recorded(Path(os.environ.get(sources.FOLDER_VARIABLE, "no folder")))
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def check(nvrtc: Nvrtc, source: Source, architecture: str) -> None:
    compiled = nvrtc.compile(source.text, architecture)
    assert compiled.code.startswith(b"\x7fELF")
    assert compiled.registers > 0
    assert compiled.spilled_bytes == 0


@each_architecture
@pytest.mark.parametrize(
    "source", RECORDED, ids=[f"{source.kernel}-{number}" for number, source in enumerate(RECORDED)]
)
def test_what_ran_on_the_emulated_device_compiles(nvrtc: Nvrtc, source: Source, architecture: str) -> None:
    """Each text that CuPy wrote there."""
    check(nvrtc, source, architecture)


@each_architecture
@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_bodies_of_the_table_compile(nvrtc: Nvrtc, operation: str, real: str, architecture: str) -> None:
    """Each body, for either dtype, whether or not anything ran it."""
    check(nvrtc, sources.of_table(operation, real), architecture)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_ran_on_the_emulated_device(operation: str) -> None:
    """No operation is missing among what was recorded, in either dtype; run rung R2 first."""
    texts = [source.text for source in RECORDED if sources.operation_of(source) == operation]
    for real in sources.reals_of(operation):
        assert any(f"<{real}," in text or f"typedef {real} Real;" in text for text in texts), real


@each_architecture
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ('#include <math.h>\nextern "C" __global__ void k(float* x) { x[0] = 1; }', "math.h"),
        ('#include <stdio.h>\nextern "C" __global__ void k(float* x) { x[0] = 1; }', "stdio.h"),
        ('extern "C" __global__ void k(float* x) { x[0] = INFINITY; }', '"INFINITY" is undefined'),
        ('extern "C" __global__ void k(float* x) { x[0] = NAN; }', '"NAN" is undefined'),
        ('extern "C" __global__ void k(float* x) { x[0] = 1 }', "expected a"),
    ],
    ids=["math.h", "stdio.h", "INFINITY", "NAN", "syntax"],
)
def test_faults_are_found(nvrtc: Nvrtc, fault: str, told: str, architecture: str) -> None:
    """What a compiler for the host takes and NVRTC does not is an error, and the log says of what."""
    with pytest.raises(CompileError, match=told):
        nvrtc.compile(fault, architecture)


@each_architecture
def test_spills_are_found(nvrtc: Nvrtc, architecture: str) -> None:
    """A function that is given too few registers spills, and that is told."""
    statements = " ".join(f"const double v{number} = x[{number}] * x[i + {number}];" for number in range(40))
    total = " + ".join(f"v{number} * v{(number * 7 + 3) % 40}" for number in range(40))
    text = f'extern "C" __global__ void k(double* x, int i) {{ {statements} __syncthreads(); x[i] = {total}; }}'
    assert nvrtc.compile(text, architecture).spilled_bytes == 0
    assert nvrtc.compile(text, architecture, "--maxrregcount=24").spilled_bytes > 0
