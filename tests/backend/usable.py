"""The backends that this machine can run."""

from __future__ import annotations

from dask_belief.backend import cupy_status

USABLE = ["numpy", *(["cupy"] if cupy_status()[0] else [])]
"""NumPy always, CuPy where it works."""
