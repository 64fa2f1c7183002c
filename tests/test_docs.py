"""The documentation is true where a program can tell: examples run, links resolve, named files and limits exist."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import dask
import pytest
from distributed import Client

from dask_belief.cluster.limits import Limits
from tests.small_cluster import small_cluster

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("README.md"), *(ROOT / "docs").glob("*.md")])
MARK = "# runs"

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NAMED_PATH = re.compile(r"`((?:dask_belief|benchmarks|pipelines|tests|scripts|docs)/[\w./-]*)`")
ROW = re.compile(r"^\| ((?:MP|OP|DP|SB|EX)\d+) \|(.*)\|$", re.MULTILINE)

# The rows of the paper, as counted when it was read.
LAST_ROWS = {"MP": 10, "OP": 4, "DP": 15, "SB": 12, "EX": 13}
ROWS = [f"{part}{number}" for part, last in LAST_ROWS.items() for number in range(1, last + 1)]


def marked_blocks(text: str) -> list[str]:
    """The Python blocks of a page that say of themselves, in their first line, that they run."""
    return [body for language, body in FENCED.findall(text) if language == "python" and body.startswith(f"{MARK}\n")]


def broken_links(page: Path) -> list[str]:
    """The relative links of a page that lead to no file, or to no heading of it."""
    prose = FENCED.sub("", page.read_text(encoding="utf-8"))
    return [link for link in LINK.findall(prose) if "://" not in link and not resolves(page, link)]


def resolves(page: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    if not target.exists():
        return False
    return not anchor or anchor in anchors(target.read_text(encoding="utf-8"))


def anchors(text: str) -> set[str]:
    """The names that headings are linked by: lower case, punctuation dropped, spaces as hyphens."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


BLOCKS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(marked_blocks(page.read_text(encoding="utf-8")))
]


@pytest.fixture(scope="module")
def current_client() -> Iterator[Client]:
    """A cluster of two workers that the examples find as Dask's current one."""
    with small_cluster(n_workers=2) as cluster, Client(cluster) as client:
        yield client


@pytest.fixture
def dask_settings() -> Iterator[None]:
    """Dask's settings are afterwards what they were before."""
    kept = copy.deepcopy(dask.config.config)
    yield
    dask.config.config.clear()
    dask.config.config.update(kept)


@pytest.mark.usefixtures("current_client", "dask_settings")
@pytest.mark.parametrize("block", BLOCKS)
def test_marked_example_runs(block: str, tmp_path: Path, monkeypatch) -> None:
    """An example that begins with ``# runs`` runs as it stands, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "example", "exec"), {"__name__": "__main__"})


def test_there_are_examples_to_run() -> None:
    """Each page for users that shows how to call the package has an example that runs."""
    found = {page.name for page in PAGES if marked_blocks(page.read_text(encoding="utf-8"))}
    assert {"choosing.md", "reliability.md", "clusters.md", "paper.md"} <= found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_resolve(page: Path) -> None:
    """Every relative link leads to a file of the repository, and to a heading where it names one."""
    assert broken_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_named_in_the_text_exist(page: Path) -> None:
    """A path in backquotes that begins with a folder of the repository is a file or a folder there."""
    assert [path for path in NAMED_PATH.findall(page.read_text(encoding="utf-8")) if not (ROOT / path).exists()] == []


def test_every_row_of_the_paper_has_its_place() -> None:
    """paper.md holds each row once, in order, and says where it lives or that it is not there yet."""
    rows = ROW.findall((ROOT / "docs" / "paper.md").read_text(encoding="utf-8"))
    assert [name for name, _ in rows] == ROWS
    placed = re.compile(f"{NAMED_PATH.pattern}|not yet|no claim of ours")
    assert [name for name, text in rows if not placed.search(text)] == []


def test_table_of_limits_is_the_codes() -> None:
    """reliability.md lists every limit with its value."""
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(\w+_seconds)` \| ([\d.]+) s", text, re.MULTILINE))
    assert {name: float(value) for name, value in listed.items()} == asdict(Limits())


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    """The check itself tells good links from bad ones, and leaves code and the web alone."""
    page = tmp_path / "page.md"
    page.write_text(
        "# A heading, with `code`\n[a](page.md) [b](#a-heading-with-code) [c](https://example.org/x)\n"
        "[d](gone.md) [e](page.md#no-such)\n```python\nf[0](g)\n```\n",
        encoding="utf-8",
    )
    assert broken_links(page) == ["gone.md", "page.md#no-such"]


def test_only_marked_blocks_are_run() -> None:
    """A block without the mark, or in another language, is not taken for an example that runs."""
    text = "```python\n# runs\nx = 1\n```\n\n```python\nx = 2\n```\n\n```bash\n# runs\nls\n```\n"
    assert marked_blocks(text) == ["# runs\nx = 1\n"]
