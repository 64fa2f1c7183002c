"""``environment.yml`` and ``pyproject.toml`` ask for the same packages in the same versions."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

CHECKOUT = Path(__file__).parents[1]
PROJECT = (CHECKOUT / "pyproject.toml").read_text(encoding="utf-8")
ENVIRONMENT = (CHECKOUT / "environment.yml").read_text(encoding="utf-8")

REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(?P<bound>[<>=!~].*)?")
# An entry of environment.yml; one that is commented out belongs to the CUDA part.
ENTRY = re.compile(r"^ +(?P<off># )?- (?P<name>[a-z0-9._-]+)(?P<bound>[<>=!~][^\s#]*)?(?: # pip: (?P<pip>\S+))?$")
# What conda needs and pip does not: the tool itself, and the CUDA runtime that its CuPy brings along.
OF_CONDA_ALONE = {"pip", "cuda-version"}


def of_project(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """Names and bounds that pyproject.toml gives: those of everybody, and those of the extra with the GPU."""
    project = tomllib.loads(text)["project"]
    extras = project["optional-dependencies"]
    gpu = extras.pop("cupy")
    everybody = {"python": project["requires-python"]}
    for requirement in [*project["dependencies"], *(entry for extra in extras.values() for entry in extra)]:
        found = REQUIREMENT.fullmatch(requirement)
        assert found, requirement
        bound = found["bound"] or ""
        assert everybody.setdefault(found["name"], bound) == bound, f"{found['name']} has two bounds"
    return everybody, dict(re.findall(r"([\w-]+)(\S*)", " ".join(gpu)))


def of_environment(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """The same from environment.yml, under the names that pip knows; the part with the GPU is commented out."""
    everybody: dict[str, str] = {}
    gpu: dict[str, str] = {}
    for line in text.splitlines():
        found = ENTRY.match(line)
        if found and found["name"] not in {*OF_CONDA_ALONE, "conda-forge"}:
            names = gpu if found["off"] else everybody
            assert found["name"] not in names, f"{line.strip()} stands there twice"
            names[found["pip"] or found["name"]] = found["bound"] or ""
    return everybody, gpu


def test_both_files_agree() -> None:
    """Each package, with its bounds, stands in both files."""
    assert of_environment(ENVIRONMENT)[0] == of_project(PROJECT)[0]


def test_gpu_parts_agree_and_are_marked() -> None:
    """CuPy stands in both files, in environment.yml commented out below a heading that names CUDA."""
    assert of_environment(ENVIRONMENT)[1] == of_project(PROJECT)[1] != {}
    heading = ENVIRONMENT.index("# CUDA")
    assert heading < ENVIRONMENT.index("# - cupy")


def test_every_entry_was_read() -> None:
    """The entries that the test reads line by line are those that conda reads."""
    document = yaml.safe_load(ENVIRONMENT)
    assert document["channels"] == ["conda-forge"]
    of_pip = next(entry["pip"] for entry in document["dependencies"] if isinstance(entry, dict))
    entries = [entry for entry in document["dependencies"] if isinstance(entry, str)] + of_pip
    entries = [entry for entry in entries if not entry.startswith("--editable")]
    names = [REQUIREMENT.fullmatch(entry) for entry in entries]
    assert all(names)
    assert len(entries) == len(of_environment(ENVIRONMENT)[0]) + len(OF_CONDA_ALONE - {"cuda-version"})


def test_lower_bounds_are_given() -> None:
    """Every package has a lower bound, so that an old one is an error of the installer and not of the user's run."""
    everybody, gpu = of_project(PROJECT)
    assert [name for name, bound in (everybody | gpu).items() if not bound.startswith(">=")] == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("  - numpy>=2.0\n", ""),
        ("  - numpy>=2.0\n", "  - numpy>=2.1\n"),
        ("  - numpy>=2.0\n", "  - numpy>=2.0\n  - toolz>=1.0\n"),
        ("# pip: dask", "# pip: task"),
        ("mypy>=2.4,<3", "mypy>=2.4"),
        ("python>=3.11", "python>=3.12"),
    ],
)
def test_disagreement_is_seen(before: str, after: str) -> None:
    """A package that is missing, added, renamed or bounded otherwise in environment.yml is found."""
    assert before in ENVIRONMENT
    assert of_environment(ENVIRONMENT.replace(before, after))[0] != of_project(PROJECT)[0]


def test_gpu_disagreement_is_seen() -> None:
    """Another bound of CuPy is found, too."""
    assert of_environment(ENVIRONMENT.replace("cupy>=14.0", "cupy>=13.0"))[1] != of_project(PROJECT)[1]
