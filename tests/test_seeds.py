"""Named streams: the same name gives the same numbers, any other name others, in every process and for ever."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dask_belief.seeds import key, stream

SEED = 7


def test_same_name_same_numbers() -> None:
    """A stream is known by its name: asking again, after others, gives the same numbers from the start."""
    first = stream(SEED, "rows", 3, 1).random(8)
    stream(SEED, "rows", 4, 1).random(100)
    np.testing.assert_array_equal(stream(SEED, "rows", 3, 1).random(8), first)


@pytest.mark.parametrize(
    "other",
    [
        (SEED, "rows", 1, 3),
        (SEED, "rows", 3),
        (SEED, "rows", 3, 1, 0),
        (SEED, "rows", "3", 1),
        (SEED, "rows3", 1),
        (SEED, "initial", 3, 1),
        (SEED + 1, "rows", 3, 1),
        (0, "rows", 3, 1),
    ],
)
def test_other_name_other_numbers(other: tuple[int | str, ...]) -> None:
    """Order, length, type and spelling of the name and the seed itself all matter."""
    seed, *name = other
    assert stream(int(seed), *name).integers(2**63) != stream(SEED, "rows", 3, 1).integers(2**63)


def test_streams_are_uncorrelated() -> None:
    """Streams of neighbouring numbers look independent: no pair of 40 correlates beyond what chance allows."""
    values = np.stack([stream(SEED, "rows", number).standard_normal(10_000) for number in range(40)])
    correlation = np.corrcoef(values) - np.eye(len(values))
    # 780 pairs of standard deviation 0.01: five of them are passed once in 2,000 seeds, and this seed is fixed.
    assert np.abs(correlation).max() < 0.05


def test_numbers_do_not_depend_on_the_process() -> None:
    """A fresh interpreter with another hash seed draws the same numbers."""
    code = f"from dask_belief.seeds import stream; print(stream({SEED}, 'rows', 3, 1).integers(2**63))"
    environment = {"PYTHONHASHSEED": "12345"}
    command = [sys.executable, "-c", code]
    checkout = Path(__file__).parents[1]
    done = subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert int(done.stdout) == stream(SEED, "rows", 3, 1).integers(2**63)


def test_numbers_are_those_of_the_first_release() -> None:
    """A change of the numbers would break the repeatability of every saved run, so it must be seen here."""
    assert stream(0, "rows", 1).integers(2**63) == 2165575567941490988


def test_a_key_is_a_number_of_its_name() -> None:
    """Of 64 bits, the same in every process and version; order, length, type and the seed itself all matter."""
    assert key(SEED, "pass", 3, 1, 4) == 14323870195409734535
    names: list[tuple[int | str, ...]] = [
        ("pass", 3, 1, 4),
        ("pass", 1, 3, 4),
        ("pass", 3, 1),
        ("pass", "3", 1, 4),
        ("row", 3, 1, 4),
    ]
    found = {key(seed, *name) for seed in (SEED, SEED + 1) for name in names}
    assert len(found) == 2 * len(names)
    assert all(0 <= number < 2**64 for number in found)
    assert key(key(SEED, "pass"), 0) != key(SEED, "pass", 0)
