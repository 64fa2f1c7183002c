"""What is known of a flight at take-off, as columns of numbers.

Nothing here looks at ``arr_time``, ``arr_delay`` or ``air_time``: they are known only after landing. The weather is
that of the hour before the scheduled one, since an hour's own observation may be made after take-off.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

LATE_MINUTES = 15
FLIGHT_SOURCES = ("year", "month", "day", "sched_dep_time", "sched_arr_time", "dep_delay", "carrier", "origin", "dest",
                  "distance", "time_hour")  # fmt: skip
WEATHER_SOURCES = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")
CATEGORIES = ("carrier", "origin", "dest")
# A category with fewer training flights gets no column: scaled, that would be one large number in a few rows, and its
# weight a guess.
MIN_CATEGORY_ROWS = 200
# Minutes of departure delay at which the slope may change. Around a quarter of an hour, the limit of "late", the
# outcome turns; beyond two hours nothing more is learnt.
DELAY_KNOTS = (-10, -5, 0, 5, 10, 15, 20, 25, 30, 40, 60)
DELAY_RANGE = (-20.0, 120.0)
MINUTES_PER_DAY = 1440
# Miles per hour. Above it the recorder slipped (one hour says 1,048), and the speed counts as unknown.
MAX_WIND_SPEED = 100.0


@dataclass(frozen=True)
class Columns:
    """Names, categories and scaling of the columns: all that is needed to turn flights into the network's inputs.

    Everything here is learnt from the training flights alone.
    """

    categories: dict[str, list[str]]
    """For carrier, origin and destination the values that have a column of their own."""
    names: list[str]
    """One name for each column, in order."""
    mean: list[float]
    """Of each column over the training rows where it is known."""
    scale: list[float]
    """Standard deviation of each column over the same rows; 1 where it is constant."""

    def to_config(self) -> dict[str, Any]:
        """Describe the columns in plain JSON."""
        return asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Columns:
        """Make the columns that ``to_config`` described."""
        return cls(**config)

    def transform(self, flights: pd.DataFrame) -> np.ndarray:
        """Give the scaled columns of some flights.

        Returns
        -------
        numpy.ndarray
            float32, ``(n_flights, n_columns)``: mean 0 and variance 1 over the training rows. What is not known is 0,
            the mean, and a column beside it says that it was missing.
        """
        scaled = (raw_columns(flights, self.categories)[1] - np.asarray(self.mean)) / np.asarray(self.scale)
        return np.nan_to_num(scaled, copy=False, nan=0.0).astype(np.float32)


def learn_columns(train: pd.DataFrame, block_rows: int = 16_384) -> Columns:
    """Learn categories and scaling from the training flights, a block of rows at a time."""
    categories = {}
    for name in CATEGORIES:
        counts = train[name].value_counts()
        categories[name] = sorted(str(value) for value in counts.index[counts >= MIN_CATEGORY_ROWS])
    names, first = raw_columns(train.iloc[:1], categories)
    rows, sums, squares = np.zeros((3, first.shape[1]))
    for start in range(0, len(train), block_rows):
        values = raw_columns(train.iloc[start : start + block_rows], categories)[1]
        rows += np.isfinite(values).sum(axis=0)
        sums += np.nansum(values, axis=0)
        squares += np.nansum(values**2, axis=0)
    mean = sums / np.maximum(rows, 1)
    # Sums of squares lose digits where the mean is large beside the spread; the largest ratio here is that of the
    # pressure, 140, which leaves 11 of float64's 16 digits.
    variance = np.maximum(squares / np.maximum(rows, 1) - mean**2, 0.0)
    scale = np.where(variance > 1e-9 * np.maximum(mean**2, 1e-9), np.sqrt(variance), 1.0)
    return Columns(categories, names, mean.tolist(), scale.tolist())


def raw_columns(flights: pd.DataFrame, categories: dict[str, list[str]]) -> tuple[list[str], np.ndarray]:
    """Give names and values, float64 ``(n_flights, n_columns)``, before scaling; NaN where something is not known."""
    columns = _category_columns(flights, categories) | _time_columns(flights)
    columns |= _delay_columns(flights["dep_delay"].to_numpy(dtype=np.float64))
    columns |= _weather_columns(flights)
    return list(columns), np.stack([np.asarray(values, dtype=np.float64) for values in columns.values()], axis=1)


def is_late(flights: pd.DataFrame) -> np.ndarray:
    """Give the targets: int64 ``(n_flights,)``, 1 for an arrival more than 15 minutes behind the schedule."""
    return (flights["arr_delay"].to_numpy() > LATE_MINUTES).astype(np.int64)


def _category_columns(flights: pd.DataFrame, categories: dict[str, list[str]]) -> dict[str, np.ndarray]:
    values = {name: flights[name].to_numpy(dtype=object) for name in CATEGORIES}
    return {f"{name}={value}": values[name] == value for name in CATEGORIES for value in categories[name]}


def _time_columns(flights: pd.DataFrame) -> dict[str, np.ndarray]:
    """Give date, times of the schedule and distance.

    The time of the year goes round in a circle: the held-out months then lie between October and January, while a
    column for each month would be constant in training for just the months that are asked about.
    """
    date = _dates(flights)
    weekday = (date.astype(np.int64) + 3) % 7  # 1 January 1970 was a Thursday; 0 is Monday
    angle = 2 * np.pi * (date - date.astype("datetime64[Y]")).astype(np.int64) / 365.25
    departure, arrival = (_minutes(flights[name].to_numpy()) for name in ("sched_dep_time", "sched_arr_time"))
    columns: dict[str, np.ndarray] = {f"weekday={day}": weekday == day for day in range(7)}
    # The first flights of a day leave at five; the few before join them.
    hour = np.maximum(departure // 60, 5)
    columns |= {f"hour={number}": hour == number for number in range(5, 24)}
    for name, turn in (("year", angle), ("half year", 2 * angle), ("arrival", 2 * np.pi * arrival / MINUTES_PER_DAY)):
        columns |= {f"sin {name}": np.sin(turn), f"cos {name}": np.cos(turn)}
    columns["departure"] = departure
    # Difference of two local clocks: block time plus time zones, which the destination's column takes out again.
    columns["clock difference"] = (arrival - departure) % MINUTES_PER_DAY
    distance = flights["distance"].to_numpy(dtype=np.float64)
    return columns | {"distance": distance, "log distance": np.log(distance)}


def _dates(flights: pd.DataFrame) -> np.ndarray:
    year, month, day = (flights[name].to_numpy(dtype=np.int64) for name in ("year", "month", "day"))
    months = ((year - 1970) * 12 + month - 1).astype("datetime64[M]")
    return months.astype("datetime64[D]") + (day - 1)


def _minutes(clock: np.ndarray) -> np.ndarray:
    """Minutes since midnight of a clock time written as a number: 1345 for a quarter to two."""
    return (clock // 100 * 60 + clock % 100).astype(np.float64)


def _delay_columns(delay: np.ndarray) -> dict[str, np.ndarray]:
    clipped = np.clip(delay, *DELAY_RANGE)
    columns = {"departure delay": clipped, "log departure delay": np.log1p(np.maximum(delay, 0.0))}
    return columns | {f"departure delay above {knot}": np.maximum(clipped - knot, 0.0) for knot in DELAY_KNOTS}


def _weather_columns(flights: pd.DataFrame) -> dict[str, np.ndarray]:
    values = {name: flights[name].to_numpy(dtype=np.float64) for name in WEATHER_SOURCES}
    values["wind_speed"] = np.where(values["wind_speed"] > MAX_WIND_SPEED, np.nan, values["wind_speed"])
    direction = np.deg2rad(values["wind_dir"])
    columns = {name: values[name] for name in WEATHER_SOURCES if name not in {"wind_dir", "precip"}}
    # Most hours are dry: the root keeps the few wet ones from being a hundred standard deviations away.
    columns["root of precip"] = np.sqrt(values["precip"])
    columns["wind from the north"] = values["wind_speed"] * np.cos(direction)
    columns["wind from the east"] = values["wind_speed"] * np.sin(direction)
    # Where the whole observation is missing, so are these three.
    for name in ("wind_dir", "wind_gust", "pressure"):
        columns[f"{name} missing"] = np.isnan(values[name])
    return columns
