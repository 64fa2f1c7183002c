"""NVRTC, the compiler that CuPy calls on a GPU machine; it needs neither a GPU nor a driver to compile for one.

Called through its C interface, which is small and documented, with the options and headers of CuPy's own calls. The
library and the headers are those of a virtual environment with the packages ``nvidia-cuda-nvrtc``,
``nvidia-cuda-runtime`` and ``cupy-cuda13x``, of which nothing is imported.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT_VARIABLE = "NVRTC_ENVIRONMENT"
"""Names the virtual environment."""

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
"""A100, H100 and B200."""

_PER_FUNCTION = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")


class CompileError(Exception):
    """NVRTC refuses a text; the message is its log."""


@dataclass(frozen=True)
class Compiled:
    """What came of a text."""

    code: bytes
    """The machine code, an ELF file."""

    spilled_bytes: int
    """Bytes that one thread keeps in memory for want of registers, stores and loads, over all functions."""

    registers: int
    """What the hungriest function uses."""


class Nvrtc:
    """NVRTC and the headers beside it, of one virtual environment."""

    def __init__(self, environment: Path) -> None:
        (library,) = environment.glob("lib/python*/site-packages/nvidia/cu13/lib/libnvrtc.so.*")
        site_packages = library.parents[3]
        self._library = ctypes.CDLL(str(library))
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        of_cupy = site_packages / "cupy/_core/include"
        folders = [of_cupy / "cupy/_cccl" / part for part in ("cub", "thrust", "libcudacxx")]
        folders += [of_cupy, site_packages / "nvidia/cu13/include"]
        # As CuPy calls it, and the assembler told to say what it used.
        self._options = [
            *(f"-I{folder}" for folder in folders),
            "--std=c++17",
            "-ftz=true",
            "--device-as-default-execution-space",
            "--ptxas-options=-v",
        ]

    def version(self) -> str:
        """Give major and minor version."""
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        return f"{major.value}.{minor.value}"

    def compile(self, text: str, architecture: str, *options: str) -> Compiled:
        """Compile to machine code; raises `CompileError` with the log."""
        program = ctypes.c_void_p()
        self._check(self._library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None))
        try:
            words = [word.encode() for word in (*self._options, f"-arch={architecture}", *options)]
            status = self._library.nvrtcCompileProgram(program, len(words), (ctypes.c_char_p * len(words))(*words))
            log = self._read(program, self._library.nvrtcGetProgramLogSize, self._library.nvrtcGetProgramLog).decode()
            if status:
                raise CompileError(log.strip("\0"))
            code = self._read(program, self._library.nvrtcGetCUBINSize, self._library.nvrtcGetCUBIN)
        finally:
            self._check(self._library.nvrtcDestroyProgram(ctypes.byref(program)))
        spilled = sum(int(number) for pair in _PER_FUNCTION.findall(log) for number in pair)
        return Compiled(code, spilled, max(int(number) for number in _REGISTERS.findall(log)))

    def _read(self, program: ctypes.c_void_p, size_of: Callable[..., int], read: Callable[..., int]) -> bytes:
        size = ctypes.c_size_t()
        self._check(size_of(program, ctypes.byref(size)))
        text = ctypes.create_string_buffer(size.value)
        self._check(read(program, text))
        return text.raw

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeError(f"NVRTC: {self._library.nvrtcGetErrorString(status).decode()}")
