"""Which backend one gets, and what one is told when it is not the one that was wished for."""

from __future__ import annotations

import logging
import pickle
import sys
import threading
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest

import dask_belief.backend as selection
from dask_belief.backend import Backend, cupy_status, get_backend
from dask_belief.errors import ArgumentError, NoGPU


class Unusable(RuntimeError):
    """Stands for CuPy's CUDARuntimeError."""


def planted_cupy(n_devices: int | None, product: float | None) -> ModuleType:
    """A module that answers as CuPy would; None for what raises."""

    def count() -> int:
        if n_devices is None:
            raise Unusable("cudaErrorInsufficientDriver: driver version is insufficient\nsecond line")
        return n_devices

    class Ones:
        def __matmul__(self, other: object) -> Ones:
            if product is None:
                raise Unusable("libnvrtc.so not found\nsecond line")
            return self

        def __add__(self, other: object) -> Ones:
            return self

        def sum(self) -> SimpleNamespace:
            return SimpleNamespace(get=lambda: product)

    class Device:
        def __init__(self, number: int) -> None:
            self.number = number

        def __enter__(self) -> Device:
            return self

        def __exit__(self, *error: object) -> None:
            return None

    module = ModuleType("cupy")
    module.cuda = SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=count), Device=Device)
    module.ones = lambda shape, dtype: Ones()
    return module


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget what was found of this machine, and again what the test pretended."""
    monkeypatch.delenv(selection.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(selection, "_backends", {})
    cupy_status.cache_clear()
    selection._log_fallback.cache_clear()
    yield
    cupy_status.cache_clear()
    selection._log_fallback.cache_clear()


@pytest.fixture
def without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)


@pytest.mark.usefixtures("without_cupy")
def test_explicit_cupy_without_a_gpu_says_why() -> None:
    """Asking for CuPy by name is never answered with NumPy: the error has the reason and what to do."""
    with pytest.raises(NoGPU, match=r"backend 'cupy' was asked for: CuPy is not installed.*'numpy', or 'auto'"):
        get_backend("cupy")


@pytest.mark.usefixtures("without_cupy")
def test_auto_falls_back_and_logs_the_reason_once(caplog: pytest.LogCaptureFixture) -> None:
    """Without CuPy auto means NumPy; the reason is logged once, however many threads and devices ask."""
    with caplog.at_level(logging.INFO, "dask_belief.backend"):
        threads = [threading.Thread(target=get_backend, args=("auto", number % 2)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert get_backend().name == "numpy"
    assert [record.getMessage() for record in caplog.records] == [
        "Computing on the host with NumPy: CuPy is not installed."
    ]


@pytest.mark.usefixtures("without_cupy")
def test_numpy_by_name_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Who asks for NumPy gets it without a word, and the same one each time."""
    with caplog.at_level(logging.DEBUG):
        assert get_backend("numpy") is get_backend("numpy", device=3)
    assert not caplog.records


@pytest.mark.usefixtures("without_cupy")
def test_environment_names_what_auto_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment decides for auto alone, and naming CuPy there is as explicit as in the call."""
    monkeypatch.setenv(selection.ENVIRONMENT_VARIABLE, "cupy")
    with pytest.raises(NoGPU):
        get_backend("auto")
    assert get_backend("numpy").name == "numpy"
    monkeypatch.setenv(selection.ENVIRONMENT_VARIABLE, "numpy")
    assert get_backend("auto").name == "numpy"
    monkeypatch.setenv(selection.ENVIRONMENT_VARIABLE, "torch")
    with pytest.raises(ArgumentError, match=r"^DASK_BELIEF_BACKEND: .*'torch'.*auto, numpy, cupy"):
        get_backend("auto")


def test_bad_arguments_are_refused() -> None:
    """An unknown name and a negative device are refused by argument."""
    with pytest.raises(ArgumentError, match=r"^name: .*'jax'"):
        get_backend("jax")
    with pytest.raises(ArgumentError, match=r"^device: .*-1"):
        get_backend("numpy", device=-1)


@pytest.mark.parametrize(
    ("n_devices", "product", "device", "reason"),
    [
        (None, 12.0, 0, "CuPy finds no CUDA device: cudaErrorInsufficientDriver: driver version is insufficient"),
        (0, 12.0, 0, "CuPy finds no CUDA device"),
        (1, 12.0, 1, "device 1 was asked for, and there are 1"),
        (1, None, 0, "the CUDA device cannot compute: Unusable: libnvrtc.so not found"),
        (1, 11.0, 0, "the CUDA device computes wrongly: a 2 x 2 product is off"),
    ],
)
def test_status_says_in_one_line_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, n_devices: int | None, product: float | None, device: int, reason: str
) -> None:
    """An installed CuPy counts as usable only if that device computes rightly."""
    monkeypatch.setitem(sys.modules, "cupy", planted_cupy(n_devices, product))
    assert cupy_status(device) == (False, reason)
    with pytest.raises(NoGPU, match=r"backend 'cupy' was asked for"):
        get_backend("cupy", device)


def test_status_of_a_device_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device whose product is right is usable."""
    monkeypatch.setitem(sys.modules, "cupy", planted_cupy(2, 12.0))
    assert cupy_status(1) == (True, "usable")


def test_status_of_a_package_that_does_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of CuPy's banner only the cause is told."""

    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "cupy":
                raise ImportError("=" * 40 + "\nbanner") from OSError("libamdhip64.so: cannot open")

    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    assert cupy_status() == (False, "CuPy does not import: libamdhip64.so: cannot open")


def test_a_backend_pickles_as_its_name() -> None:
    """What comes back is the one that the process has, not a second one."""
    backend = get_backend("numpy")
    text = pickle.dumps(backend)
    assert pickle.loads(text) is backend
    assert len(text) < 200


def test_numpy_backend_offers_the_whole_seam() -> None:
    """Nothing of the seam is left abstract."""
    assert isinstance(get_backend("numpy"), Backend)
    assert not getattr(type(get_backend("numpy")), "__abstractmethods__", None)
