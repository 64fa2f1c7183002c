"""Work units: every row once, borders on the chunk grid, sizes within the stated bounds."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_belief.data.units import (
    BLOCK_BYTES,
    BLOCK_ROWS,
    FEWEST_ROWS,
    FEWEST_UNITS,
    UNIT_BYTES,
    UNIT_OPERATIONS,
    UnitPlan,
    WorkUnit,
    plan_units,
)
from dask_belief.errors import ArgumentError, EmptyDataError

sizes = {
    "n_rows": st.integers(1, 20_000),
    "chunk_rows": st.integers(1, 3_000),
    "row_bytes": st.sampled_from([1, 8, 44, 3_144, 600_000, 70 * 2**20]),
    "n_parameters": st.sampled_from([1, 60, 7_850, 407_050, 10**8]),
    "unit_rows": st.none() | st.integers(1, 5_000),
}


def borders(plan: UnitPlan) -> list[int]:
    return [unit.start for unit in plan] + [plan.n_rows]


@given(**sizes)
def test_units_cover_every_row_once(n_rows, chunk_rows, row_bytes, n_parameters, unit_rows):
    """Units are numbered from 0, not empty, and follow on each other from the first row to the last."""
    plan = plan_units(n_rows, chunk_rows, row_bytes, n_parameters, unit_rows=unit_rows)
    position = 0
    for number, unit in enumerate(plan.units):
        assert (unit.number, unit.start) == (number, position)
        assert unit.rows >= 1
        position = unit.stop
    assert position == n_rows
    assert len(plan) == number + 1


@given(**sizes)
def test_borders_fit_the_chunk_grid(n_rows, chunk_rows, row_bytes, n_parameters, unit_rows):
    """A unit is a run of whole chunks, or lies in one chunk, whose parts differ by one row at most."""
    plan = plan_units(n_rows, chunk_rows, row_bytes, n_parameters, unit_rows=unit_rows)
    for unit in plan:
        begins = unit.start % plan.chunk_rows == 0
        ends = unit.stop % plan.chunk_rows == 0 or unit.stop == n_rows
        is_within_one = unit.start // plan.chunk_rows == (unit.stop - 1) // plan.chunk_rows
        assert (begins and ends) or is_within_one
    by_chunk: dict[int, list[int]] = {}
    for unit in plan:
        by_chunk.setdefault(unit.start // plan.chunk_rows, []).append(unit.rows)
    if plan.unit_rows < plan.chunk_rows:
        assert all(max(rows) - min(rows) <= 1 for rows in by_chunk.values())
        assert sum(by_chunk[0]) == plan.chunk_rows


@given(**sizes)
def test_sizes_keep_their_bounds(n_rows, chunk_rows, row_bytes, n_parameters, unit_rows):
    """Units have no more rows and bytes, blocks no more rows, than the rule allows."""
    plan = plan_units(n_rows, chunk_rows, row_bytes, n_parameters, unit_rows=unit_rows)
    largest = max(unit.rows for unit in plan)
    assert largest == plan.largest_rows
    assert 1 <= plan.block_rows <= min(BLOCK_ROWS, largest)
    assert plan.block_rows == 1 or plan.block_rows * row_bytes <= BLOCK_BYTES
    if unit_rows is not None:
        assert largest <= unit_rows
        return
    assert largest <= math.ceil(n_rows / FEWEST_UNITS)
    assert largest == 1 or largest * row_bytes <= UNIT_BYTES
    operations = 6 * n_parameters + 10 * row_bytes
    assert largest <= max(FEWEST_ROWS, math.ceil(UNIT_OPERATIONS / operations))


@given(**sizes)
def test_a_plan_survives_json(n_rows, chunk_rows, row_bytes, n_parameters, unit_rows):
    """A plan that went through plain JSON has the same units, and stays equal to one made anew."""
    plan = plan_units(n_rows, chunk_rows, row_bytes, n_parameters, unit_rows=unit_rows)
    again = UnitPlan.from_config(json.loads(json.dumps(plan.to_config())))
    assert again == plan == plan_units(n_rows, chunk_rows, row_bytes, n_parameters, unit_rows=unit_rows)
    assert borders(again) == borders(plan)


def test_small_chunks_are_joined():
    """Chunks of less than the wanted work are joined whole."""
    plan = plan_units(100_000, 100, 44, 1_000, unit_rows=350)
    assert plan[0] == WorkUnit(0, 0, 300)
    assert len(plan) == math.ceil(1_000 / 3)


def test_large_chunks_are_cut_into_equal_parts():
    """A chunk of twice the wanted work is cut in parts; the short last chunk into fewer."""
    plan = plan_units(2_300, 1_000, 44, 1_000, unit_rows=400)
    assert borders(plan) == [0, 333, 666, 1_000, 1_333, 1_666, 2_000, 2_300]


def test_a_heavy_model_gets_few_rows_but_not_too_few():
    """With 100 million parameters a unit is 512 rows, so that adding its gradient is small beside computing it."""
    assert plan_units(1_000_000, 512, 3_144, 10**8)[0].rows == FEWEST_ROWS


def test_a_unit_of_a_network_is_tens_of_milliseconds():
    """784-1024-1024-10 on Fashion-MNIST: halves of chunks, 500 rows that take a thread 25 ms, each one block."""
    plan = plan_units(60_000, 1_000, 3_144, 1_863_690)
    assert (len(plan), plan.block_rows) == (120, 500)


def test_blocks_divide_a_unit_evenly():
    """A unit of 1,100 rows is computed as two blocks of 550, not as one large and one small."""
    assert plan_units(100_000, 1_100, 44, 1_000, unit_rows=1_100).block_rows == 550


def test_a_plan_is_a_sequence():
    """Units are found by number from either end and by slices; there is none behind the end."""
    plan = plan_units(10, 2, 8, 10, unit_rows=2)
    assert plan[-1] == plan[4] == WorkUnit(4, 8, 10)
    assert plan[1:3] == [WorkUnit(1, 2, 4), WorkUnit(2, 4, 6)]
    assert list(plan.units) == list(plan)
    with pytest.raises(IndexError, match="unit 5"):
        plan[5]


def test_no_rows_are_refused():
    """A data set without rows has no plan."""
    with pytest.raises(EmptyDataError):
        plan_units(0, 10, 8, 10)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("n_rows", {"n_rows": -1}),
        ("chunk_rows", {"chunk_rows": 0}),
        ("row_bytes", {"row_bytes": 0}),
        ("n_parameters", {"n_parameters": 0}),
        ("unit_rows", {"unit_rows": 0}),
        ("unit_rows", {"unit_rows": 1.5}),
    ],
)
def test_bad_numbers_are_refused(name, arguments):
    """A number below 1, or a fraction of a row, is refused by name."""
    good = {"n_rows": 100, "chunk_rows": 10, "row_bytes": 8, "n_parameters": 10}
    with pytest.raises(ArgumentError, match=name):
        plan_units(**{**good, **arguments})


@pytest.mark.parametrize("change", [{"colour": 1}, {"n_rows": None}])
def test_a_config_of_another_kind_is_refused(change):
    """Unknown names, and values that are no numbers, are refused."""
    config = plan_units(100, 10, 8, 10).to_config() | change
    with pytest.raises(ArgumentError):
        UnitPlan.from_config(config)
