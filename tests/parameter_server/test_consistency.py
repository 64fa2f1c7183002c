"""What may be done about old gradients: options that are checked, and rebuilt from plain JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import pytest

from dask_belief.errors import ArgumentError
from dask_belief.parameter_server.consistency import (
    ElasticAveraging,
    MaxStaleness,
    ScaleByStaleness,
    Staleness,
    Synchronous,
    check_staleness,
    staleness_from_config,
)

WAYS = [MaxStaleness(0), MaxStaleness(3), ScaleByStaleness(), Synchronous(), Synchronous(2), ElasticAveraging(0.4)]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_way_comes_back_from_its_config(way: Staleness) -> None:
    """By its name and fields, through JSON."""
    config = json.loads(json.dumps({"name": type(way).__name__, **asdict(way)}))
    assert staleness_from_config(config) == way


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaxStaleness(-1), "^max_staleness: "),
        (lambda: MaxStaleness(1.5), "^max_staleness: "),
        (lambda: Synchronous(-1), "^backup_replicas: "),
        (lambda: Synchronous(True), "^backup_replicas: "),
        (lambda: ElasticAveraging(0.0), "^elasticity: "),
        (lambda: ElasticAveraging(math.nan), "^elasticity: "),
        (lambda: staleness_from_config({"name": "Lockstep"}), "^staleness: one of MaxStaleness, .* got 'Lockstep'"),
        (lambda: staleness_from_config({}), "^staleness: one of .* got None"),
        (lambda: staleness_from_config({"name": "Synchronous", "n": 1}), "^staleness: Synchronous cannot be made"),
    ],
)
def test_what_is_out_of_range_is_refused(make: Any, message: str) -> None:
    """By the name of the argument."""
    with pytest.raises(ArgumentError, match=message):
        make()


@pytest.mark.parametrize("way", [*WAYS, None], ids=str)
def test_ways_pass(way: Staleness | None) -> None:
    """Each of the options, and none of them."""
    check_staleness(way)


@pytest.mark.parametrize(
    ("found", "told"), [(Synchronous, "Synchronous, the class itself"), (3, "got 3"), ("none", "got 'none'")]
)
def test_what_is_no_way_is_refused(found: object, told: str) -> None:
    """With what was found, and what may be given."""
    with pytest.raises(ArgumentError, match=f"^staleness: expected None, MaxStaleness.*{told}"):
        check_staleness(found)
