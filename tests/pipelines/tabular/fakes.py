"""A small year of flights and weather, made up from a seed."""

from __future__ import annotations

import numpy as np
import pandas as pd

SEED = 3
WEATHER = {"temp": 50.0, "dewp": 40.0, "humid": 60.0, "wind_dir": 90.0, "wind_speed": 10.0, "wind_gust": np.nan,
           "precip": 0.0, "pressure": 1015.0, "visib": 10.0}  # fmt: skip


def fake_flights(n_days: int = 365) -> pd.DataFrame:
    """Eight flights on each day of a year, of five carriers, one of them rare; every 20th has no arrival delay."""
    rng = np.random.Generator(np.random.Philox(SEED))
    day = np.repeat(pd.date_range("2013-01-01", periods=n_days), 8)
    n_flights = len(day)
    hour = np.tile([6, 8, 10, 12, 14, 16, 18, 20], n_days)
    departure_delay = np.round(rng.exponential(15.0, n_flights)) - 5
    arrival_delay = departure_delay + np.round(rng.normal(0.0, 10.0, n_flights))
    arrival_delay[::20] = np.nan
    carrier = np.where(np.arange(n_flights) % 101 == 7, "XX", rng.choice(["AA", "B6", "DL", "UA"], n_flights))
    return pd.DataFrame(
        {
            "year": day.year, "month": day.month, "day": day.day,
            "sched_dep_time": hour * 100 + 30, "sched_arr_time": (hour * 100 + 315) % 2400,
            "dep_delay": departure_delay, "arr_delay": arrival_delay,
            "carrier": carrier, "origin": rng.choice(["EWR", "JFK", "LGA"], n_flights),
            "dest": rng.choice(["BOS", "LAX", "MIA"], n_flights), "distance": rng.integers(180, 2600, n_flights),
            "time_hour": (day + pd.to_timedelta(hour + 5, unit="h")).strftime("%Y-%m-%dT%H:00:00Z"),
        }
    )  # fmt: skip


def fake_weather(flights: pd.DataFrame) -> pd.DataFrame:
    """An observation for each hour of the year at each airport; its temperature is its hour, counted from the first."""
    first, last = (pd.Timestamp(flights["time_hour"].iloc[i]) for i in (0, -1))
    hours = pd.date_range(first - pd.Timedelta(hours=12), last, freq="h")
    tables = []
    for origin in ("EWR", "JFK", "LGA"):
        table = pd.DataFrame({"origin": origin, "time_hour": hours.strftime("%Y-%m-%dT%H:00:00Z"), **WEATHER})
        tables.append(table.assign(temp=np.arange(len(hours), dtype=float)))
    return pd.concat(tables, ignore_index=True)
