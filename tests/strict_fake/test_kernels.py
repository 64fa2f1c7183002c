"""Kernels run the NumPy body of their operation, and everything around the CUDA text is checked."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from dask_belief.backend.cuda import Elementwise, RowByRow
from dask_belief.backend.operations import OPERATIONS, Operation
from tests.strict_fake import kernels
from tests.strict_fake.counters import counted

SQUARED = OPERATIONS["squared_error"].cuda


@pytest.fixture
def adagrad(cupy: ModuleType) -> Any:
    body = OPERATIONS["adagrad"].cuda
    assert isinstance(body, Elementwise)
    return cupy.ElementwiseKernel(body.inputs, body.outputs, body.body, "dask_belief_adagrad")


@pytest.fixture
def squared_error(cupy: ModuleType) -> Any:
    assert isinstance(SQUARED, RowByRow)
    return cupy.RawKernel(SQUARED.source("float"), SQUARED.function)


@pytest.fixture
def body_of_double() -> Iterator[None]:
    def double(x: np.ndarray, y: np.ndarray) -> None:
        np.multiply(x, 2, out=y)

    kernels.BODIES["double"] = double
    yield
    del kernels.BODIES["double"]


def test_an_elementwise_kernel_is_its_operation(cupy: ModuleType, adagrad: Any) -> None:
    """One launch, which writes what the operation writes."""
    gradient, total, values = cupy.full(3, 2.0), cupy.zeros(3), cupy.zeros(3)
    with counted() as asked:
        adagrad(gradient, np.float64(0.5), np.float64(0.0), total, values)
    assert (total.tolist(), values.tolist()) == ([4.0] * 3, [-0.5] * 3)
    assert (asked.launches, asked.allocations) == (1, 0)


def test_an_elementwise_kernel_takes_what_it_declares(cupy: ModuleType, adagrad: Any) -> None:
    """All arguments, of one dtype, on the device, and of the shape that is written."""
    x, rate = cupy.ones(3, "f4"), np.float32(0.1)
    for arguments, error in (
        ((x, rate, rate, x), TypeError),
        ((x, 0.1, rate, x, x), TypeError),
        ((x, np.float64(0.1), rate, x, x), TypeError),
        ((np.ones(3, "f4"), rate, rate, x, x), TypeError),
        ((x, rate, rate, x, cupy.ones(3)), TypeError),
        ((x, rate, rate, x, rate), TypeError),
        ((x, rate, rate, x, cupy.ones(1, "f4")), ValueError),
        ((x, rate, rate, x, cupy.ones(4, "f4")), ValueError),
    ):
        with pytest.raises(error):
            adagrad(*arguments)


def launch(cupy: ModuleType, kernel: Any, **changed: Any) -> tuple[Any, Any]:
    """Start it as the backend does, but for what is changed; gives the losses and z."""
    targets, losses, z = cupy.zeros((5, 4), "f4"), cupy.empty(5, "f4"), cupy.full((5, 4), 2.0, "f4")
    values = {"targets": targets, "losses": losses, "z": z, "rows": np.uint64(5), "columns": np.uint64(4)}
    values |= {name: value for name, value in changed.items() if name in values}
    grid, block = changed.get("grid", (5,)), changed.get("block", (128,))
    kernel(grid, block, tuple(values.values()), shared_mem=changed.get("shared_mem", 512))
    return losses, z


def test_a_raw_kernel_is_its_operation(cupy: ModuleType, squared_error: Any) -> None:
    """It writes what the operation writes, whatever text it was given."""
    losses, z = launch(cupy, squared_error)
    assert losses.tolist() == [8.0] * 5
    assert z.tolist() == [[2.0] * 4] * 5


def test_a_raw_kernel_is_started_as_its_text_says(cupy: ModuleType, squared_error: Any) -> None:
    """Types are those of the declaration, sizes those of the arrays, and threads and shared memory suffice."""
    for changed, error in (
        ({"z": cupy.ones((5, 4))}, TypeError),
        ({"z": np.ones((5, 4), "f4")}, TypeError),
        ({"z": cupy.ones((4, 5), "f4").T}, ValueError),
        ({"rows": 5}, TypeError),
        ({"rows": np.int32(5)}, TypeError),
        ({"rows": np.uint64(6)}, ValueError),
        ({"columns": np.uint64(5)}, ValueError),
        ({"grid": (4,)}, ValueError),
        ({"grid": (0,)}, ValueError),
        ({"block": (64,)}, ValueError),
        ({"block": (2048,)}, ValueError),
        ({"shared_mem": 508}, ValueError),
        ({"shared_mem": 64 * 1024}, ValueError),
    ):
        with pytest.raises(error):
            launch(cupy, squared_error, **changed)
    with pytest.raises(TypeError, match="takes 5 arguments, found 3"):
        squared_error((5,), (128,), (cupy.ones((5, 4), "f4"),) * 3, shared_mem=512)


def test_the_text_must_hold_the_kernel(cupy: ModuleType) -> None:
    """A name that the text does not define is an error of the compiler on a device, and here at once."""
    assert isinstance(SQUARED, RowByRow)
    with pytest.raises(ValueError, match="no kernel dask_belief_softmax"):
        cupy.RawKernel(SQUARED.source("float"), "dask_belief_softmax")


def test_what_an_operation_only_reads_cannot_be_written(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body in NumPy that writes what the CUDA text declares to be read only is found."""

    def wrong(x: np.ndarray, y: np.ndarray) -> None:
        x += y

    monkeypatch.setitem(OPERATIONS, "add", Operation(wrong, OPERATIONS["add"].cuda))
    kernel = cupy.ElementwiseKernel("T x", "T y", "y += x", "dask_belief_add")
    with pytest.raises(ValueError, match="read-only"):
        kernel(cupy.ones(3), cupy.ones(3))


def test_a_kernel_without_a_body_fails_by_name(cupy: ModuleType) -> None:
    """Nothing is made up for a kernel that is not ours."""
    with pytest.raises(NotImplementedError, match="'double' has no body"):
        cupy.ElementwiseKernel("T x", "T y", "y = 2 * x", "double")
    with pytest.raises(NotImplementedError, match="'dask_belief_lion'"):
        cupy.ElementwiseKernel("T x", "T y", "y = 2 * x", "dask_belief_lion")


@pytest.mark.usefixtures("body_of_double")
def test_a_body_can_be_registered(cupy: ModuleType) -> None:
    """A kernel of another name runs the function of that name."""
    kernel = cupy.ElementwiseKernel("T x", "T y", "y = 2 * x", "double")
    assert kernel(cupy.ones(3), cupy.empty(3)).tolist() == [2, 2, 2]
