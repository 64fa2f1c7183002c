"""A pytest plugin that gives each array an allocation of its own.

In CuPy's pool many arrays share one, and no tool can tell when an index leads from one into the next.
"""

from __future__ import annotations

import cupy


def pytest_configure() -> None:
    cupy.cuda.set_allocator(None)
    cupy.cuda.set_pinned_memory_allocator(None)
