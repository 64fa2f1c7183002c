"""The backends that this machine can run: NumPy always, CuPy where it works."""

from __future__ import annotations

import pytest

from dask_belief.backend import Backend, cupy_status, get_backend

USABLE = ["numpy", *(["cupy"] if cupy_status()[0] else [])]


@pytest.fixture(params=USABLE)
def backend(request: pytest.FixtureRequest) -> Backend:
    return get_backend(request.param)
