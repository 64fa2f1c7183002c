"""The stand-in where real CuPy, or nothing, may be in its place."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from tests.strict_fake.modules import stand_ins


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The stand-in with two devices, as ``import cupy`` finds it in the test."""
    for name, module in stand_ins(n_devices=2).items():
        monkeypatch.setitem(sys.modules, name, module)
    return sys.modules["cupy"]


@pytest.fixture
def cupyx(cupy: ModuleType) -> ModuleType:
    """Its other half."""
    return sys.modules["cupyx"]
