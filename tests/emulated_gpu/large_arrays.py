"""Arrays of more elements than 32 bits can count, on an emulated device that pretends to have the memory.

Only what a kernel touches is really there, so little may be touched: memory must not be poisoned. Not collected on its
own: ``test_wrong_bodies.py`` runs it with ``EMULATED_GPU_POISON=0`` and ``EMULATED_GPU_MEMORY_MB=20000``.
"""

from __future__ import annotations

import numpy as np

from dask_belief.backend import get_backend

N_COLUMNS = 2**15
N_ROWS = 2**16 + 2


def test_indices_have_64_bits() -> None:
    """The last row of 8 GiB is added to, which begins beyond the 2**31st element; the first is left alone."""
    backend = get_backend("cupy")
    with backend.computing():
        table = backend.empty((N_ROWS, N_COLUMNS), np.float32)
        first, last = table[0], table[-1]
        first.fill(1)
        last.fill(2)
        source = backend.asarray(np.arange(N_COLUMNS, dtype=np.float32).reshape(1, -1))
        backend.scatter_add_(table, backend.asarray(np.array([N_ROWS - 1])), source)
        np.testing.assert_array_equal(backend.to_host(last), np.arange(N_COLUMNS) + 2)
        np.testing.assert_array_equal(backend.to_host(first), 1)
