"""Tests of what a user writes, without a test runner."""

from __future__ import annotations

from dask_belief.testing.layers import check_layer

__all__ = ["check_layer"]
