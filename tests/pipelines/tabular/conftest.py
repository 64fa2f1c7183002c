"""Made-up tables, as frames, as files in the place of the package's, and prepared."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from pipelines.tabular import prepare as prepare_module
from pipelines.tabular.columns import Columns, learn_columns
from pipelines.tabular.prepare import Prepared, prepare, split, with_weather
from tests.pipelines.tabular.fakes import SEED, fake_flights, fake_weather


@pytest.fixture(scope="module")
def flights() -> pd.DataFrame:
    plain = fake_flights()
    return with_weather(plain, fake_weather(plain))


@pytest.fixture(scope="module")
def columns(flights: pd.DataFrame) -> Columns:
    return learn_columns(split(flights, SEED).train)


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The tables of the fakes, in the place of the package's."""
    paths = {"flights": tmp_path / "flights.csv", "weather": tmp_path / "weather.csv"}
    plain = fake_flights()
    plain.to_csv(paths["flights"], index=False)
    fake_weather(plain).to_csv(paths["weather"], index=False)
    monkeypatch.setattr(prepare_module, "find_sources", lambda: paths)
    return paths


@pytest.fixture
def prepared(sources: dict[str, Path], tmp_path: Path) -> Prepared:
    return prepare(tmp_path / "out", seed=SEED, max_rows=800)
