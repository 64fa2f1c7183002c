"""A pytest plugin under which nothing is skipped unseen: ``python -m pytest -p tests.gpu.require_cupy tests/backend``.

A test that is skipped fails, since on a machine with a GPU there is no reason to. One thing is allowed for: a machine
that has NumPy, CuPy and pytest alone. Test modules, and tests, that need another package are left out, and each is
named with its reason in the file that ``--left-out`` names.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from dask_belief.backend import cupy_status

_NEEDS_PACKAGE = re.compile(r"could not import '(\w+)")
_left_out: dict[str, str] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--left-out", type=Path, help="write here, as JSON, what needs packages that are not installed")


def pytest_configure(config: pytest.Config) -> None:
    is_usable, reason = cupy_status()
    if not is_usable:
        pytest.exit(f"CuPy cannot be used: {reason}", returncode=2)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if collection_path.suffix != ".py" or not collection_path.name.startswith("test_"):
        return None
    missing = missing_packages(collection_path.read_text(encoding="utf-8"))
    if not missing:
        return None
    name = collection_path.relative_to(config.rootpath) if config.rootpath in collection_path.parents else None
    _left_out[str(name or collection_path.name)] = f"needs {', '.join(missing)}"
    return True


def missing_packages(source: str) -> list[str]:
    """The packages that a module imports at its top and that are not installed; those of the standard library are."""
    names = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module)
    tops = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)
    return sorted(top for top in tops if importlib.util.find_spec(top) is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if not report.skipped or hasattr(report, "wasxfail"):
        return report
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    needed = _NEEDS_PACKAGE.search(reason)
    if needed is not None and needed[1] not in ("cupy", "cupyx"):
        _left_out[item.nodeid] = f"needs {needed[1]}"
        return report
    report.outcome = "failed"
    report.longrepr = f"skipped, where nothing may be: {reason}"
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    path: Path | None = session.config.getoption("--left-out")
    if path is not None:
        path.write_text(json.dumps(_left_out, indent=1, sort_keys=True) + "\n", encoding="utf-8")
