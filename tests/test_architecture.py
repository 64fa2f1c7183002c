"""Layers and guarded names, read from the import statements of every file, those inside functions among them.

Fails, naming file and module, when an import points up the layers of ``docs/design.md``, when a package is named
outside the files that are for it, when packages or modules form a circle, and when the root is imported from inside.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = "dask_belief"
PACKAGE = Path(__file__).parents[1] / ROOT

# From the ground up. Imports point down or stay in their layer; every module or folder below the root has its place.
LAYERS = (
    {"errors", "seeds", "binary_tree", "checks", "share", "backend"},
    {"models", "optim", "objective", "testing"},
    {"data", "monitoring"},
    {"cluster"},
    {
        "parameter_server",
        "model_parallel",
        "checkpoint",
        "recovery",
        "evaluation",
        "memory_needs",
        "memory_plan",
        "run",
    },
    {"downpour", "sandblaster"},
    {"training", "resuming", "door", "run_description", "stages", "result", "predicting"},
    {"estimators", "cli"},
)
ALGORITHMS = (
    "downpour",
    "sandblaster",
    "training",
    "resuming",
    "door",
    "run_description",
    "stages",
    "result",
    "predicting",
    "estimators",
    "cli",
)
SERVICES = (
    "parameter_server",
    "model_parallel",
    "checkpoint",
    "recovery",
    "evaluation",
    "memory_needs",
    "memory_plan",
    "run",
)

# Name -> the modules (with what lies below them) that may import it. A name that is not here is free above the math.
GUARDED = {
    "cupy": ("backend",),
    "cupyx": ("backend",),
    "threadpoolctl": ("backend",),
    # In data only to recognise a user's Dask array.
    "dask": ("cluster", *SERVICES, *ALGORITHMS, "data.blocks"),
    "distributed": ("cluster", *SERVICES, *ALGORITHMS),
    "zarr": ("data", *SERVICES, *ALGORITHMS),
    "numcodecs": ("data",),
    "bokeh": ("cluster.dashboard",),
    "matplotlib": ("monitoring.history",),
    "pandas": ("monitoring.history",),
    "tqdm": ("monitoring.progress",),
    "scipy": (),
    "sklearn": ("estimators",),
    # What is written to disk is plain Zarr and JSON; only a message between processes may be pickled.
    "pickle": ("cluster",),
    "cloudpickle": ("cluster",),
}
# Where these may be named, they are imported at the moment of use, so that `import dask_belief` stays quick.
LAZY = {"threadpoolctl", "bokeh", "matplotlib", "pandas", "tqdm", "sklearn"}
LAZY_IN_DATA = {"dask"}
# The numeric core runs where only NumPy is installed.
NUMERIC = {"errors", "seeds", "binary_tree", "checks", "backend", "models", "optim", "objective", "testing"}
NUMERIC_NEEDS = {"numpy", "cupy", "cupyx", "threadpoolctl"}


class Import(NamedTuple):
    """One imported module, in full: ``dask_belief.data.units``, ``numpy.typing``."""

    module: str
    line: int
    is_lazy: bool
    is_for_types: bool
    is_relative: bool = False

    @property
    def top(self) -> str:
        """The name of the package that is installed: ``numpy``."""
        return self.module.partition(".")[0]


class Source(NamedTuple):
    """One file of the package."""

    path: Path
    name: str
    """Its module, without the root: ``data.units``; a package is named like its folder; the root itself is ``""``."""
    imports: list[Import]

    @property
    def part(self) -> str:
        """The first part of the name, which has a place among the layers."""
        return self.name.partition(".")[0]


class ImportReader(ast.NodeVisitor):
    """Collects the imports of one file."""

    def __init__(self) -> None:
        self.found: list[Import] = []
        self._functions = 0
        self._type_checking = 0

    def _add(self, module: str, node: ast.AST, is_relative: bool = False) -> None:
        line = getattr(node, "lineno", 0)
        self.found.append(Import(module, line, self._functions > 0, self._type_checking > 0, is_relative))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name, node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = "." * node.level + (node.module or "")
        for alias in node.names:
            # `from package import module` and `from module import name` look alike: is_inside_package tells them apart.
            self._add(f"{module}:{alias.name}", node, is_relative=node.level > 0)

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in {"import_module", "__import__"} and node.args and isinstance(node.args[0], ast.Constant):
            self._add(str(node.args[0].value), node)
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        is_for_types = "TYPE_CHECKING" in ast.unparse(node.test)
        self._type_checking += is_for_types
        for child in node.body:
            self.visit(child)
        self._type_checking -= is_for_types
        for child in node.orelse:
            self.visit(child)

    def _visit_function(self, node: ast.AST) -> None:
        self._functions += 1
        self.generic_visit(node)
        self._functions -= 1

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = _visit_function


def read_package(package: Path) -> list[Source]:
    """Every file of the package with what it imports, submodules told from the names inside a module."""
    paths = {path: ".".join(path.relative_to(package).with_suffix("").parts) for path in sorted(package.rglob("*.py"))}
    names = {path: name.removesuffix("__init__").removesuffix(".") for path, name in paths.items()}
    modules = {f"{package.name}.{name}".removesuffix(".") for name in names.values()}
    sources = []
    for path, name in names.items():
        reader = ImportReader()
        reader.visit(ast.parse(path.read_text(encoding="utf-8"), filename=str(path)))
        imports = []
        for found in reader.found:
            module, _, member = found.module.partition(":")
            whole = f"{module}.{member}"
            imports.append(found._replace(module=whole if whole in modules else module))
        sources.append(Source(path, name, imports))
    return sources


def violations(package: Path) -> list[str]:
    """All that is wrong with the imports of a package, one line each: file, line, what, why."""
    sources = read_package(package)
    problems = []
    for source in sources:
        where = source.path.relative_to(package.parent)
        for found in source.imports:
            reasons = [*_of_root(source, found, package.name), *_of_layers(source, found, package.name)]
            reasons += _of_guards(source, found) if found.top != package.name else []
            problems += [f"{where}:{found.line} imports {found.module}: {reason}" for reason in reasons]
        if source.name and _layer(source.part) is None:
            problems.append(f"{where}: {source.part} has no place in LAYERS of {Path(__file__).name}; give it one")
    return problems + _circles(sources, package.name)


def _layer(part: str) -> int | None:
    return next((number for number, parts in enumerate(LAYERS) if part in parts), None)


def _of_root(source: Source, found: Import, root: str) -> Iterator[str]:
    if found.is_relative:
        yield "relative; an absolute import shows its layer"
    elif found.module == root and source.name:
        yield "the root imports and is never imported from inside; name the module that has it"


def _of_layers(source: Source, found: Import, root: str) -> Iterator[str]:
    if found.top != root or not source.name:
        return
    here, there = _layer(source.part), _layer(found.module.split(".")[1] if "." in found.module else "")
    if here is not None and there is not None and there > here:
        yield f"points up, from layer {here} to layer {there}; imports point down only"


def _of_guards(source: Source, found: Import) -> Iterator[str]:
    places = GUARDED.get(found.top)
    if places is not None and not any(source.name == p or source.name.startswith(f"{p}.") for p in places):
        yield f"{found.top} may be named in {', '.join(places) or 'no file of the package'} only"
    elif source.part in NUMERIC and found.top not in NUMERIC_NEEDS | set(sys.stdlib_module_names):
        yield "the numeric core needs NumPy alone"
    is_lazy_here = found.top in LAZY or (source.part == "data" and found.top in LAZY_IN_DATA)
    if is_lazy_here and not (found.is_lazy or found.is_for_types):
        yield "imported at the top of the file; import it in the function that uses it"


def _circles(sources: list[Source], root: str) -> list[str]:
    """One line for each circle of parts of the package, and of modules as they import each other when loaded."""
    parts: dict[str, set[str]] = {}
    modules: dict[str, set[str]] = {}
    for source in sources:
        for found in source.imports:
            target = found.module.removeprefix(f"{root}.")
            if found.top != root or not source.name or target == root:
                continue
            if (part := target.partition(".")[0]) != source.part:
                parts.setdefault(source.part, set()).add(part)
            if not found.is_lazy and not found.is_for_types:
                modules.setdefault(source.name, set()).add(target)
    circles = [_circle(parts), _circle(modules)]
    return [
        f"{' imports '.join(circle)}: a circle; one of them holds what belongs below both"
        for circle in circles
        if circle
    ]


def _circle(graph: dict[str, set[str]]) -> list[str]:
    """The names along one circle, the first repeated at the end; empty when there is none."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        found = next((c for target in sorted(graph.get(name, ())) if (c := walk(target, [*path, name]))), [])
        done.add(name)
        return found

    return next((circle for name in sorted(graph) if (circle := walk(name, []))), [])


def test_package_keeps_its_architecture() -> None:
    """No import of the package points up, forms a circle or names a guarded package out of its place."""
    assert violations(PACKAGE) == []


def test_reader_sees_every_file() -> None:
    """The reader finds the files that hold the package's ground and their imports: an empty walk would pass all."""
    sources = {source.name: source for source in read_package(PACKAGE)}
    assert {"errors", "seeds", "backend.base"} <= set(sources)
    assert "numpy" in {found.top for found in sources["seeds"].imports}


def plant(folder: Path, files: dict[str, str]) -> Path:
    """Write a package of that name, so that its violations can be counted."""
    package = folder / ROOT
    for name, text in {"__init__.py": "", **files}.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return package


PLANTED = {
    "up": ({"data/units.py": "from dask_belief.cluster.actors import call\n", "cluster/actors.py": ""}, "points up"),
    "up, in a function": (
        {"optim/rules.py": "def f():\n    import dask_belief.training\n", "training.py": ""},
        "optim/rules.py:2 imports dask_belief.training: points up",
    ),
    "up, for types": (
        {
            "models/network.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from dask_belief.data.units "
            "import WorkUnit\n",
            "data/units.py": "",
        },
        "models/network.py:3 imports dask_belief.data.units: points up",
    ),
    "root": ({"data/units.py": "from dask_belief import train\n", "data/__init__.py": ""}, "the root imports"),
    "root, whole": ({"data/units.py": "import dask_belief as db\n"}, "the root imports"),
    "relative": ({"data/units.py": "from .dataset import x\n", "data/dataset.py": ""}, "relative"),
    "CuPy outside the backend": (
        {"models/layout.py": "def f():\n    import cupy.cuda\n"},
        "cupy may be named in backend",
    ),
    "CuPy by its name": (
        {"models/layout.py": "import importlib\ndef f():\n    return importlib.import_module('cupy')\n"},
        "models/layout.py:3 imports cupy",
    ),
    "Dask in monitoring": ({"monitoring/history.py": "import dask.array\n"}, "dask may be named in cluster"),
    "distributed in data": ({"data/write.py": "def f():\n    import distributed\n"}, "distributed may be named in"),
    "Dask at the top of data": ({"data/blocks.py": "import dask.array\n"}, "imported at the top"),
    "pandas at the top": ({"monitoring/history.py": "import pandas\n"}, "imported at the top"),
    "Zarr in the core": ({"optim/rules.py": "import zarr\n"}, "zarr may be named in data"),
    "another package in the core": ({"optim/rules.py": "import toolz\n"}, "the numeric core needs NumPy alone"),
    "no layer": ({"utils.py": ""}, "utils has no place in LAYERS"),
    "circle of packages": (
        {
            "data/a.py": "from dask_belief.monitoring.b import x\n",
            "monitoring/b.py": "def f():\n    import dask_belief.data.a\n",
        },
        "data imports monitoring imports data: a circle",
    ),
    "circle of modules": (
        {"data/a.py": "from dask_belief.data import b\n", "data/b.py": "from dask_belief.data.a import x\n"},
        "data.a imports data.b imports data.a: a circle",
    ),
}


@pytest.mark.parametrize(("files", "message"), PLANTED.values(), ids=PLANTED)
def test_planted_violation_is_found(tmp_path: Path, files: dict[str, str], message: str) -> None:
    """Each kind of wrong import is found, and its message names the file and the reason."""
    found = violations(plant(tmp_path, files))
    assert any(message in problem for problem in found), found


def test_right_imports_pass(tmp_path: Path) -> None:
    """What the rules allow is not reported: downwards, lazily where it must be, the root importing its parts."""
    files = {
        "__init__.py": "from dask_belief.training import train\nfrom dask_belief import errors\n",
        "errors.py": "",
        "backend/cupy.py": "import cupy\nimport numpy\n",
        "backend/numpy.py": "def f():\n    import threadpoolctl\n",
        "data/blocks.py": "import zarr\ndef f():\n    import dask.array\n",
        "monitoring/history.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pandas\n",
        "downpour/driver.py": "import distributed\nfrom dask_belief.data.blocks import f\n",
        "training.py": "from dask_belief.downpour.driver import run\nimport zarr\n",
    }
    assert violations(plant(tmp_path, files)) == []
