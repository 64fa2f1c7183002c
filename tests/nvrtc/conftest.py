"""These tests need NVIDIA's compiler, not a GPU: ``scripts/test_gpu R3`` installs it and says where it is.

Without ``NVRTC_ENVIRONMENT`` they are left alone, as in ``scripts/test``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.nvrtc.compiler import ENVIRONMENT_VARIABLE, Nvrtc

collect_ignore_glob = [] if os.environ.get(ENVIRONMENT_VARIABLE) else ["test_*.py"]


@pytest.fixture(scope="session")
def nvrtc() -> Nvrtc:
    return Nvrtc(Path(os.environ[ENVIRONMENT_VARIABLE]))
