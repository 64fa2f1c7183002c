"""The CUDA bodies as text: within the rules that NVRTC sets, and accepted by a compiler where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dask_belief.backend.cuda import Elementwise, RowByRow
from dask_belief.backend.operations import OPERATIONS

ROWS = {name: o.cuda for name, o in OPERATIONS.items() if isinstance(o.cuda, RowByRow)}
C_TYPES = {"float32 ": "float ", "uint16 ": "unsigned short "}
"""What CuPy makes of the names of dtypes."""

ELEMENTS = {name: o.cuda for name, o in OPERATIONS.items() if isinstance(o.cuda, Elementwise)}


def test_both_forms_are_in_the_table() -> None:
    """The table has operations on rows and on elements, so the tests below are not empty; names agree."""
    assert len(ROWS) >= 5 and len(ELEMENTS) >= 10
    assert all(name == body.name for name, body in ROWS.items())


@pytest.mark.parametrize("name", OPERATIONS)
def test_bodies_keep_the_rules_of_the_device(name: str) -> None:
    """No header, no macro of the C library, no atomic addition, no 32-bit index, no double where Real is meant."""
    body = OPERATIONS[name].cuda
    text = body.source("float") if isinstance(body, RowByRow) else f"{body.inputs} {body.outputs} {body.body}"
    for word in ("#include", "INFINITY", "NAN", "atomic", "expf", "logf", "int row", "int j", "double", ".0"):
        assert word not in text


@pytest.mark.parametrize("name", ROWS)
def test_sizes_are_64_bit_and_blocks_are_powers_of_two(name: str) -> None:
    """Sizes reach the device as size_t, and sums by halving need a power of two."""
    body = ROWS[name]
    assert all(f"const size_t {size}" in body.source("float") for size, _, _ in body.sizes)
    assert body.threads & (body.threads - 1) == 0


@pytest.mark.parametrize("name", ELEMENTS)
def test_the_array_that_is_written_comes_last(name: str) -> None:
    """The last argument gives the dtype, so it is an array that is written, as the backend's methods pass it."""
    body = ELEMENTS[name]
    written = body.outputs.split(",")[-1].split()[-1]
    assert any(f"{written} {sign}" in body.body for sign in ("=", "+=", "-=", "*="))


@pytest.mark.long
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc, which compiles without a GPU")
@pytest.mark.parametrize("real", ["float", "double"])
def test_bodies_compile(tmp_path: Path, real: str) -> None:
    """A compiler takes every body, for either dtype, without a warning."""
    # One name space each, since each source brings its own prologue.
    text = ["typedef unsigned long long uint64; typedef long long int64;"]
    text += [f"namespace of_{name} {{ {body.source(real)} }}" for name, body in ROWS.items()]
    for name, body in ELEMENTS.items():
        declared = [part.strip() for part in body.inputs.split(",") if part.strip()]
        parameters = [f"const {part}" for part in declared]
        parameters += [" & ".join(part.split()) for part in body.outputs.split(",")]
        for dtype, in_c in C_TYPES.items():
            parameters = [part.replace(dtype, in_c) for part in parameters]
        text.append(f"template <class T> __device__ void of_{name}({', '.join(parameters)}) {{ {body.body}; }}")
        types = ", ".join(re.sub(r"\bT\b", real, part).rsplit(" ", 1)[0] for part in parameters)
        text.append(f"template __device__ void of_{name}<{real}>({types});")
    source = tmp_path / "operations.cu"
    source.write_text("\n".join(text))
    command = ["nvcc", "-arch=sm_90", "-cubin", "--Werror", "all-warnings", "-o", str(tmp_path / "out"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
