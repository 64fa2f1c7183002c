"""The host's backend: arrays cross for nothing, and what decides the last bits is told."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from dask_belief.backend import get_backend

threadpoolctl = pytest.importorskip("threadpoolctl")
backend = get_backend("numpy")


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"}


def test_nothing_is_copied_on_the_host() -> None:
    """Arrays of the right dtype cross as they are; others are cast."""
    values = np.arange(3, dtype=np.float32)
    assert backend.asarray(values) is values
    assert backend.asarray(values, np.float32) is values
    assert backend.to_host(values) is values
    assert backend.asarray([1, 2], np.float64).dtype == np.float64


def test_to_host_writes_where_it_is_told() -> None:
    """With `out` the values are copied there, and `out` comes back."""
    out = backend.host_empty((3,), np.float32)
    assert backend.to_host(np.arange(3, dtype=np.float32), out=out) is out
    assert out.tolist() == [0, 1, 2]


def test_new_arrays_and_scalars() -> None:
    """Arrays have the shape and dtype asked for, a scalar is a Python float, and waiting is over at once."""
    assert backend.zeros((2, 3), np.float64).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert backend.empty(4, np.float32).shape == (4,)
    assert type(backend.item(np.array(2.5, np.float32))) is float
    backend.sync()


def test_computing_does_not_warn() -> None:
    """In its context an overflow gives infinity in silence; outside, NumPy warns as before."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with backend.computing():
            assert np.isinf(np.exp(np.float32(1000)))
        with pytest.raises(RuntimeWarning):
            np.exp(np.float32(1000))


def test_single_thread_holds_until_it_is_left() -> None:
    """The limit is in force at once, and a ``with`` statement gives back the former one."""
    before = blas_threads()
    with backend.single_thread():
        assert blas_threads() == {1}
    assert blas_threads() == before


def test_kind_names_what_fixes_the_bits() -> None:
    """NumPy's version, its instruction set, and the library, kernels and version of its matrix products."""
    kind = backend.kind()
    assert f"numpy {np.__version__} " in kind
    library = next(library for library in threadpoolctl.threadpool_info() if "numpy" in library["filepath"])
    assert library["internal_api"] in kind
    assert library["version"] in kind
    assert library.get("architecture", "any") in kind


def test_kind_does_not_depend_on_threads_or_on_other_libraries() -> None:
    """A limit on threads, and SciPy's own BLAS, leave the kind as it is."""
    before = backend.kind()
    pytest.importorskip("scipy.linalg")
    with backend.single_thread():
        assert backend.kind() == before


def test_numeric_core_needs_numpy_alone() -> None:
    """Backend and models work where neither threadpoolctl nor Dask nor Zarr is installed."""
    checkout = Path(__file__).parents[2]
    # The package's root, which imports more than the core, is replaced by an empty one.
    code = (
        "import sys, types\n"
        "for name in ('threadpoolctl', 'dask', 'distributed', 'zarr', 'scipy', 'cupy'): sys.modules[name] = None\n"
        "root = sys.modules['dask_belief'] = types.ModuleType('dask_belief')\n"
        f"root.__path__ = [{str(checkout / 'dask_belief')!r}]\n"
        "from dask_belief.backend import get_backend\n"
        "import dask_belief.models\n"
        "print(get_backend('auto').kind())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("unknown BLAS")


def test_pickles_small() -> None:
    """Only name and device travel."""
    assert pickle.loads(pickle.dumps(backend)) is backend
