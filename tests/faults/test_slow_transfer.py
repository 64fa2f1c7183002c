"""A data set in memory that takes long to reach the workers: no limit takes them for frozen meanwhile."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from distributed import Client

import dask_belief as db
from dask_belief.monitoring.events import Rebuilt, WorkerLost
from tests.faults.clusters import assert_clean
from tests.faults.wide import few_rows

SLOW_SECONDS = 3.0
"""Longer than a worker may be silent: the limit below, and no less than five heartbeats of half a second."""

NETWORK = db.Network([db.Dense(8, "sigmoid"), db.Dense(1)], loss="logistic", input_shape=(20,))
LIMITS = db.Limits(frozen_seconds=2.0)


@pytest.mark.long
@pytest.mark.parametrize(
    "method", [db.Sandblaster(max_iter=5, n_shards=1), db.Downpour(epochs=2, n_shards=1, n_replicas=1)], ids=type
)
def test_slow_transfer_of_a_data_set_is_not_cut_off(own_client: Client, monkeypatch, method) -> None:
    """The run has no loss, and the result of one whose data came at once."""
    at_once = db.train(NETWORK, few_rows(), method, client=own_client, progress=False)
    scatter, n_slow = Client.scatter, 0

    def slow(*given: Any, **options: Any) -> Any:
        nonlocal n_slow
        n_slow += 1
        if n_slow == 1:
            threading.Event().wait(SLOW_SECONDS)
        return scatter(*given, **options)

    monkeypatch.setattr(Client, "scatter", slow)
    result = db.train(NETWORK, few_rows(), method, client=own_client, progress=False, limits=LIMITS)
    assert n_slow
    kinds = [type(event) for event in result.history.events]
    assert WorkerLost not in kinds and Rebuilt not in kinds
    np.testing.assert_array_equal(result.parameters, at_once.parameters)
    assert_clean(own_client)
