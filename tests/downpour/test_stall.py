"""A run that goes on and learns nothing is told so, and one that learns is not."""

from __future__ import annotations

import pytest

from dask_belief.downpour.stall import Stall
from dask_belief.errors import NoProgressError
from tests.downpour.facts import ledger_status, shard_progress

LIMIT = 10.0


def test_no_update_for_too_long_is_an_error() -> None:
    """From the last update on, by the clock that is given."""
    stall = Stall(LIMIT)
    stall.look(ledger_status(), [shard_progress(0)], 100.0)
    stall.look(ledger_status(), [shard_progress(0, 1)], 109.0)
    stall.look(ledger_status(2), [shard_progress(0, 1)], 119.0)
    with pytest.raises(NoProgressError, match=r"no update was made for 10 seconds, with 2 leases .* by 2 replicas"):
        stall.look(ledger_status(2), [shard_progress(0, 1)], 119.1)


def test_nothing_at_all_is_an_error() -> None:
    """Although there never was an update."""
    stall = Stall(LIMIT)
    stall.look(ledger_status(), [shard_progress(0)], 0.0)
    with pytest.raises(NoProgressError, match="no update was made"):
        stall.look(ledger_status(), [shard_progress(0)], 10.1)


def test_shard_that_nobody_reaches_is_an_error() -> None:
    """While others have updates."""
    stall = Stall(LIMIT)
    stall.look(ledger_status(), [shard_progress(0), shard_progress(1)], 0.0)
    for second in range(1, 11):
        stall.look(ledger_status(), [shard_progress(0, second), shard_progress(1)], float(second))
    with pytest.raises(NoProgressError, match="shard 1 had no update for 10 seconds, while others had"):
        stall.look(ledger_status(), [shard_progress(0, 11), shard_progress(1)], 11.0)


def test_run_that_is_over_has_no_more_updates() -> None:
    """Nothing is late then."""
    stall = Stall(LIMIT)
    stall.look(ledger_status(), [shard_progress(0)], 0.0)
    stall.look(ledger_status(4, is_over=True), [shard_progress(0)], 99.0)


def test_parameters_are_compared_once_an_epoch() -> None:
    """At the beginning, and then as often as all leases were finished, here without an update."""
    stall = Stall(LIMIT)
    assert stall.should_compare(ledger_status(0), n_leases=4)
    stall.compare(ledger_status(0), 1.0)
    assert [n for n in range(1, 8) if stall.should_compare(ledger_status(n), n_leases=4)] == [4, 5, 6, 7]
    stall.compare(ledger_status(5), 1.0)
    assert [n for n in range(5, 12) if stall.should_compare(ledger_status(n), n_leases=4)] == [9, 10, 11]


def test_run_that_has_learned_may_come_to_rest() -> None:
    """Parameters that changed once and then stay are at a minimum, as far as their dtype tells."""
    stall = Stall(LIMIT)
    stall.compare(ledger_status(0), 1.0)
    stall.look(ledger_status(4), [shard_progress(0, 12)], 1.0)
    stall.compare(ledger_status(4), 1.5)
    assert not any(stall.should_compare(ledger_status(n), n_leases=4) for n in range(4, 40))


def compare(n_updates: int = 12, squares: float = 1.0, rate: float = 0.1, loss_sum: float = 5.0) -> None:
    """Compare after an epoch that began at a sum of squares of 1."""
    stall = Stall(LIMIT)
    stall.look(ledger_status(0), [shard_progress(0), shard_progress(1)], 0.0)
    stall.compare(ledger_status(0), 1.0)
    shards = [shard_progress(0, n_updates, rate), shard_progress(1, n_updates, rate)]
    status = ledger_status(4, loss_sum=loss_sum)
    stall.look(status, shards, 1.0)
    stall.compare(status, squares)


def test_updates_that_change_nothing_are_an_error() -> None:
    """With the number of updates and what may be done about it."""
    with pytest.raises(NoProgressError, match=r"did not change in 24 updates: every gradient is zero"):
        compare()


@pytest.mark.parametrize(
    "fact", [{"squares": 1.0 + 1e-15}, {"n_updates": 0}, {"rate": 0.0}, {"loss_sum": 0.0}], ids=str
)
def test_reasons_for_parameters_to_stay(fact: dict[str, float]) -> None:
    """They did change, no update was made, the rate is zero, or nothing is left to learn."""
    compare(**fact)
