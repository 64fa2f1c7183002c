"""What a keeper holds of a shard: parts by name and place, until they are not wanted any more."""

from __future__ import annotations

import numpy as np
import pytest

from dask_belief.errors import StaleError
from dask_belief.parameter_server.keeper import Keeper


def filled() -> Keeper:
    keeper = Keeper()
    for name in ("x@1", "g@1", "s7@1"):
        for start in (0, 5):
            keeper.write(name, start, np.full(5, float(start), np.float32))
    return keeper


def test_part_comes_back_to_the_bit() -> None:
    """Whatever its dtype; a copy, so that nobody changes what is kept."""
    keeper, values = Keeper(), np.array([np.nan, -0.0, 1e-300])
    keeper.write("x@1", 3, values.copy())
    given = keeper.read("x@1", 3)
    assert (given.tobytes(), given.dtype) == (values.tobytes(), values.dtype)
    given[:] = 0
    assert keeper.read("x@1", 3).tobytes() == values.tobytes()


def test_only_what_is_named_is_kept() -> None:
    """All parts of the others go, with their memory; nothing happens to names that it never had."""
    keeper = filled()
    assert keeper.n_bytes() == 6 * 20
    keeper.keep(["s7@1", "x@9"])
    assert keeper.n_bytes() == 2 * 20
    np.testing.assert_array_equal(keeper.read("s7@1", 5), np.full(5, 5, np.float32))
    with pytest.raises(StaleError, match=r"no part of 'x@1' that begins at 0"):
        keeper.read("x@1", 0)
    keeper.keep([])
    assert keeper.n_bytes() == 0


def test_part_at_another_place_is_not_given() -> None:
    """A name alone is not enough, nor is a place within a part."""
    keeper = filled()
    with pytest.raises(StaleError, match="begins at 2"):
        keeper.read("x@1", 2)


def test_part_that_is_written_again_is_replaced() -> None:
    """As a task does that was sent twice; it takes no memory besides."""
    keeper = filled()
    keeper.write("x@1", 0, np.ones(5, np.float32))
    np.testing.assert_array_equal(keeper.read("x@1", 0), np.ones(5, np.float32))
    assert keeper.n_bytes() == 6 * 20
