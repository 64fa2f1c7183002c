"""Columns: no look into the future, and nothing learnt but from training rows."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from pipelines.tabular.columns import MIN_CATEGORY_ROWS, Columns, is_late, learn_columns, raw_columns
from pipelines.tabular.prepare import split, with_weather
from tests.pipelines.tabular.fakes import SEED, WEATHER, fake_flights, fake_weather


def test_columns_do_not_see_the_arrival(flights: pd.DataFrame, columns: Columns) -> None:
    """Other arrival times, delays and times in the air give the same columns to the bit, and so does their absence."""
    other = flights.assign(arr_delay=999.0, arr_time=1234.0, air_time=77.0, dep_time=1.0)
    np.testing.assert_array_equal(columns.transform(other), columns.transform(flights))
    np.testing.assert_array_equal(columns.transform(flights.drop(columns="arr_delay")), columns.transform(flights))


def test_target_is_the_arrival_delay() -> None:
    """Late is more than a quarter of an hour behind the schedule; exactly a quarter is not."""
    late = is_late(pd.DataFrame({"arr_delay": [-3.0, 15.0, 15.5, 16.0, 200.0]}))
    np.testing.assert_array_equal(late, [0, 0, 1, 1, 1])
    assert late.dtype == np.int64


def test_weather_is_that_of_the_hour_before() -> None:
    """A flight at 6:30 knows the weather of five o'clock at its own airport, not that of six."""
    plain = fake_flights(n_days=2)
    observed = fake_weather(plain)
    joined = with_weather(plain, observed)
    by_hour = observed[observed["origin"] == "JFK"].set_index("time_hour")["temp"]
    of_jfk = joined[joined["origin"] == "JFK"]
    before = pd.to_datetime(of_jfk["time_hour"], utc=True) - pd.Timedelta(hours=1)
    expected = by_hour[before.dt.strftime("%Y-%m-%dT%H:00:00Z")].to_numpy()
    np.testing.assert_array_equal(of_jfk["temp"], expected)
    assert len(joined) == len(plain)


def test_hour_without_weather_is_the_mean_and_says_so(flights: pd.DataFrame, columns: Columns) -> None:
    """Missing weather gives zeros, the means of the scaled columns, and sets the columns that say it is missing."""
    missing = flights.iloc[:4].assign(**dict.fromkeys(WEATHER, np.nan))
    names, raw = raw_columns(missing, columns.categories)
    values = dict(zip(names, columns.transform(missing).T, strict=True))
    flags = dict(zip(names, raw.T, strict=True))
    for name in ("temp", "pressure", "root of precip", "wind from the north"):
        np.testing.assert_array_equal(values[name], 0.0)
    for name in ("wind_dir missing", "wind_gust missing", "pressure missing"):
        np.testing.assert_array_equal(flags[name], 1.0)


def test_slip_of_the_recorder_counts_as_unknown(flights: pd.DataFrame, columns: Columns) -> None:
    """A wind of a thousand miles per hour, which the tables hold, is no wind speed."""
    slip = flights.iloc[:1].assign(wind_speed=1048.36)
    value = dict(zip(columns.names, columns.transform(slip)[0], strict=True))
    assert value["wind_speed"] == 0.0


def test_columns_of_one_flight(flights: pd.DataFrame) -> None:
    """The columns of a flight are those that its entry in the table says, worked out by hand."""
    flight = flights.iloc[:1].assign(
        year=2013, month=3, day=9, sched_dep_time=2245, sched_arr_time=115, dep_delay=12.0, carrier="UA", origin="EWR",
        dest="BOS", distance=200, **WEATHER,
    )  # fmt: skip
    names, raw = raw_columns(flight, {"carrier": ["DL", "UA"], "origin": ["EWR"], "dest": ["LAX"]})
    value = dict(zip(names, raw[0], strict=True))
    assert (value["carrier=DL"], value["carrier=UA"], value["origin=EWR"], value["dest=LAX"]) == (0, 1, 1, 0)
    # 9 March 2013 was a Saturday, the 68th day of the year.
    assert [value[f"weekday={day}"] for day in range(7)] == [0, 0, 0, 0, 0, 1, 0]
    assert value["sin year"] == pytest.approx(np.sin(2 * np.pi * 67 / 365.25), rel=1e-12)
    assert [name for name in names if name.startswith("hour=") and value[name]] == ["hour=22"]
    assert value["departure"] == 22 * 60 + 45
    assert value["clock difference"] == 2 * 60 + 30
    assert value["departure delay"] == 12
    assert value["departure delay above 10"] == 2
    assert value["departure delay above 15"] == 0
    assert value["log departure delay"] == pytest.approx(np.log(13.0), rel=1e-12)
    assert (value["wind from the east"], value["wind from the north"]) == pytest.approx((10.0, 0.0), abs=1e-12)


def test_scaling_is_that_of_the_training_rows(flights: pd.DataFrame, columns: Columns) -> None:
    """Over the training rows each column has mean 0 and variance 1, where it varies and is known."""
    train = split(flights, SEED).train
    scaled = columns.transform(train).astype(np.float64)
    raw = raw_columns(train, columns.categories)[1]
    known = np.isfinite(raw).all(axis=0)
    varies = np.ptp(raw, axis=0) > 0
    assert (known & varies).sum() > 40
    np.testing.assert_allclose(scaled.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(scaled.std(axis=0)[known & varies], 1.0, atol=1e-5)
    np.testing.assert_allclose(scaled[:, known & ~varies], 0.0, atol=1e-12)


def test_held_out_rows_change_nothing_that_is_learnt(flights: pd.DataFrame, columns: Columns) -> None:
    """Other held-out flights, of another carrier and in other weather, give the same columns."""
    other = flights.copy()
    held_out = other["month"] >= 11
    other.loc[held_out, ["dep_delay", "temp", "distance"]] = 1e4
    other.loc[held_out, "carrier"] = "ZZ"
    assert learn_columns(split(other, SEED).train) == columns


def test_blocks_give_what_all_rows_give(flights: pd.DataFrame, columns: Columns) -> None:
    """The scaling does not depend on how many rows are looked at together, but for rounding."""
    train = split(flights, SEED).train
    whole = learn_columns(train, block_rows=len(train))
    parts = learn_columns(train, block_rows=100)
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(parts.scale, whole.scale, rtol=1e-7)


def test_rare_and_unknown_categories_have_no_column(flights: pd.DataFrame, columns: Columns) -> None:
    """A carrier with few training flights gets no column, and a flight of an unknown one is no carrier's."""
    counts = split(flights, SEED).train["carrier"].value_counts()
    assert counts["XX"] < MIN_CATEGORY_ROWS
    assert columns.categories["carrier"] == ["AA", "B6", "DL", "UA"]
    names, raw = raw_columns(flights.iloc[:1].assign(carrier="ZZ"), columns.categories)
    assert [value for name, value in zip(names, raw[0], strict=True) if name.startswith("carrier=")] == [0, 0, 0, 0]


def test_columns_survive_json(flights: pd.DataFrame, columns: Columns) -> None:
    """What schema.json holds makes the same columns again, to the bit."""
    again = Columns.from_config(json.loads(json.dumps(columns.to_config())))
    assert again == columns
    np.testing.assert_array_equal(again.transform(flights.iloc[:50]), columns.transform(flights.iloc[:50]))
