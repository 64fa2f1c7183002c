"""What the tests of the backends share."""

from __future__ import annotations

import pytest

from dask_belief.backend import Backend, get_backend
from tests.backend.usable import USABLE


@pytest.fixture(params=USABLE)
def backend(request: pytest.FixtureRequest) -> Backend:
    return get_backend(request.param)
