"""Builds the emulated device: ``python build.py FOLDER``, run by the Python that has CuPy's ROCm wheel.

The wheel is linked to the libraries of a ROCm installation. What our stand-ins for them have is compiled from
``source/``; every other symbol that the wheel asks for becomes a function that fails and says its name. Nothing is done
when sources, wheel and this file are those that the folder was built from.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "source"
WHEEL = "cupy-rocm-7-0"
TOOLS = ("gcc", "g++", "readelf", "nm")

RUNTIME, COMPILER, BLAS = "libamdhip64.so.7", "libhiprtc.so.7", "libhipblas.so.3"
SOURCES = {
    RUNTIME: ("devices.cpp", "memory.cpp", "streams.cpp", "modules.cpp"),
    COMPILER: ("compiler.cpp",),
    BLAS: ("blas.cpp",),
}
"""Our stand-ins; each other library that the wheel needs has stubs alone."""

PREFIXES = {
    "hipblas": BLAS,
    "hiprtc": COMPILER,
    "hipsparse": "libhipsparse.so.4",
    "hiprand": "libhiprand.so.1",
    "hipfft": "libhipfft.so.0",
    "rocsolver": "librocsolver.so.0",
    "rocblas": "librocblas.so.5",
    "roctracer": "libroctracer64.so.4",
    "roctx": "libroctx64.so.4",
    "rccl": "librccl.so.1",
    "nccl": "librccl.so.1",
}
"""In which library a function is, by how its name begins; all others are the runtime's."""

NOT_SUPPORTED = {RUNTIME: 801}
"""What a stub gives back: of the runtime hipErrorNotSupported, of the others their status of that meaning."""
OTHERWISE = 7

_NEEDED = re.compile(r"NEEDED.*\[(lib(?:amdhip|hip|roc|rccl)[^\]]*)\]")
_FUNCTION = re.compile(r"(?:__hip|hip|roc|rccl|nccl)\w+")

# A program of that name is looked for by CuPy: some kernels are compiled by it. It hands them to the stand-in.
_HIPCC = """#!{python}
import ctypes, sys
words = sys.argv[1:]
if "-v" in words:
    sys.stderr.write("#include <...> search starts here:\\n {folder}/include\\nEnd of search list.\\n")
    sys.exit()
if "--preprocess" in words:
    print("emulated GPU")
    sys.exit()
into = words[words.index("-o") + 1]
source = next(word for word in words if word.endswith((".cu", ".hip", ".cpp")))
compiler = ctypes.CDLL("{folder}/{compiler}")
program, size = ctypes.c_void_p(), ctypes.c_size_t()
compiler.hiprtcCreateProgram(ctypes.byref(program), open(source, "rb").read(), b"kernel.cu", 0, None, None)
options = [word.encode() for word in words if word.startswith(("-I", "-D", "-std", "--std"))]
failed = compiler.hiprtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
what = "ProgramLog" if failed else "Code"
getattr(compiler, f"hiprtcGet{{what}}Size")(program, ctypes.byref(size))
found = ctypes.create_string_buffer(size.value)
getattr(compiler, f"hiprtcGet{{what}}")(program, found)
if failed:
    sys.exit(found.value.decode())
open(into, "wb").write(found.raw)
"""


def main() -> None:
    """Build into the folder that is named."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        sys.exit(f"the emulated GPU needs {', '.join(missing)}; on Debian and Ubuntu: apt-get install g++ binutils")
    build(Path(sys.argv[1]).resolve())


def build(folder: Path) -> None:
    """Build what is not built yet, or from something else."""
    stamp, key = folder / "built-from", _key()
    if stamp.exists() and stamp.read_text() == key:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    libraries, functions = _wanted(_wheel_folder())
    shutil.copytree(SOURCE / "include", folder / "include")
    for header in ("kernel.h", "launch.h"):
        shutil.copy(SOURCE / header, folder)
    # The runtime first: others are linked to it.
    for library in sorted({*libraries, *SOURCES}, key=lambda name: name != RUNTIME):
        _build_library(folder, library, functions.get(library, {}))
    _write_hipcc(folder)
    stamp.write_text(key)


def _key() -> str:
    files = [Path(__file__), *sorted(path for path in SOURCE.rglob("*") if path.is_file())]
    digest = hashlib.sha256(importlib.metadata.version(WHEEL).encode())
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _wheel_folder() -> Path:
    found = importlib.util.find_spec("cupy")
    if found is None or found.origin is None:
        sys.exit(f"the emulated GPU needs {WHEEL} in the environment of {sys.executable}")
    return Path(found.origin).parents[1]


def _wanted(site: Path) -> tuple[set[str], Mapping[str, Mapping[str, set[str]]]]:
    """The libraries that the wheel needs, and by library the functions, each with the versions of its symbol."""
    libraries: set[str] = set()
    functions: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for package in ("cupy", "cupy_backends", "cupyx"):
        for module in (site / package).rglob("*.so"):
            libraries.update(_NEEDED.findall(_said("readelf", "-d", str(module))))
            for line in _said("nm", "-D", "--undefined-only", str(module)).splitlines():
                name, _, version = line.split()[-1].partition("@")
                if _FUNCTION.fullmatch(name):
                    functions[_library_of(name)][name].add(version.lstrip("@"))
    return libraries, functions


def _library_of(function: str) -> str:
    return next((library for prefix, library in PREFIXES.items() if function.startswith(prefix)), RUNTIME)


def _build_library(folder: Path, library: str, functions: Mapping[str, set[str]]) -> None:
    objects = [folder / f"{source}.o" for source in SOURCES.get(library, ())]
    for source, into in zip(SOURCES.get(library, ()), objects, strict=True):
        options = ["-std=c++17", "-O3", "-fPIC", "-Wall", f'-DEMULATED_GPU_BUILT_FROM="{_key()}"']
        _run("g++", *options, "-c", str(SOURCE / source), "-o", str(into))
    written = {line.split()[-1] for each in objects for line in _said("nm", "--defined-only", str(each)).splitlines()}
    stubs = folder / f"{library}.c"
    stubs.write_text(_stubs(library, sorted(functions.keys() - written)))
    versions = folder / f"{library}.map"
    versions.write_text(_versions(functions))
    script = [f"-Wl,--version-script={versions}"] if versions.stat().st_size else []
    runtime = [] if library in (RUNTIME, COMPILER) else [str(folder / RUNTIME)]
    linked = ["-Wl,--no-as-needed", *runtime, "-Wl,-rpath,$ORIGIN", "-ldl", "-lpthread"]
    stub_object = folder / f"{library}.c.o"
    _run("gcc", "-O1", "-fPIC", "-w", "-c", str(stubs), "-o", str(stub_object))
    parts = [*map(str, objects), str(stub_object)]
    _run("g++", "-shared", f"-Wl,-soname,{library}", *script, *parts, *linked, "-o", str(folder / library))
    for part in (*objects, stub_object, stubs, versions):
        part.unlink()


def _stubs(library: str, functions: Iterable[str]) -> str:
    status = NOT_SUPPORTED.get(library, OTHERWISE)
    lines = ["#include <stdio.h>"]
    for name in functions:
        lines.append(f'int {name}() {{ fprintf(stderr, "emulated GPU: {name} is not emulated\\n"); return {status}; }}')
    return "\n".join(lines) + "\n"


def _versions(functions: Mapping[str, set[str]]) -> str:
    """A linker's script that gives symbols the versions that the wheel asks for."""
    by_version: dict[str, set[str]] = defaultdict(set)
    for name, versions in functions.items():
        for version in versions - {""}:
            by_version[version].add(name)
    return "".join(
        f"{version} {{ global: {' '.join(f'{n};' for n in sorted(by_version[version]))} }};\n" for version in by_version
    )


def _write_hipcc(folder: Path) -> None:
    program = folder / "bin" / "hipcc"
    program.parent.mkdir()
    program.write_text(_HIPCC.format(python=sys.executable, folder=folder, compiler=COMPILER))
    program.chmod(program.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


def _said(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _run(*command: str) -> None:
    # Without the stand-ins, where they are in force.
    environment = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    subprocess.run(command, check=True, env=environment)


if __name__ == "__main__":
    main()
