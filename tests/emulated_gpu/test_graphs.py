"""A warm step can be captured as a graph: nothing in it waits, allocates or reads back. No replica does so yet.

What stands in the way is told in ``docs/gpu.md``; the last test here is a part of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu_networks import cases
from benchmarks.gpu_steps import DownpourStep, SandblasterStep, Step
from dask_belief.backend import Backend, cupy_status, get_backend
from dask_belief.models import Network
from dask_belief.optim.rules import SGD
from dask_belief.optim.schedules import InverseTimeDecay

IS_USABLE, REASON = cupy_status()
pytestmark = pytest.mark.skipif(not IS_USABLE, reason=f"needs CuPy and a device, real or emulated: {REASON}")

CASES = {name: case for name, case in cases().items() if name != "embedding"}
STEPS: dict[str, Callable[[Network, Backend], Step]] = {"downpour": DownpourStep, "sandblaster": SandblasterStep}
N_WARM_UP, N_MORE = 3, 4


def eager(step: Step, rows: tuple[Any, Any]) -> None:
    """Steps as a replica makes them."""
    for _ in range(N_WARM_UP + N_MORE):
        step(*rows)


def captured(step: Step, rows: tuple[Any, Any]) -> None:
    """As many steps, those after the warm-up as launches of one graph; to capture it runs nothing."""
    for _ in range(N_WARM_UP):
        step(*rows)
    stream = get_backend("cupy").xp.cuda.get_current_stream()
    stream.begin_capture()
    step(*rows)
    graph = stream.end_capture()
    for _ in range(N_MORE):
        graph.launch()
    # The graph works in memory that the pool may hand to others: here nobody asks for any until it is done.
    stream.synchronize()


def vectors_after(run: Callable[[Step, tuple[Any, Any]], None], step: Step, rows: tuple[Any, Any]) -> list[np.ndarray]:
    """Every vector that the step changes, on the host."""
    run(step, rows)
    backend = get_backend("cupy")
    found = [value for value in vars(step).values() if isinstance(value, backend.xp.ndarray) and value.ndim == 1]
    assert len(found) == 3
    return [backend.to_host(vector) for vector in found]


@pytest.mark.parametrize("method", STEPS)
@pytest.mark.parametrize("name", CASES)
def test_graph_gives_what_steps_give(name: str, method: str) -> None:
    """Bit for bit, in parameters, gradient and what has accrued."""
    backend, case = get_backend("cupy"), CASES[name].narrowed()
    with backend.computing():
        rows = tuple(backend.asarray(part) for part in case.rows())
        expected = vectors_after(eager, STEPS[method](case.network, backend), rows)
        found = vectors_after(captured, STEPS[method](case.network, backend), rows)
    assert any(np.any(vector) for vector in expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_graph_keeps_the_rate_of_its_capture() -> None:
    """A number is copied into a graph: a schedule would have to hand its rate over in memory of the device."""
    backend, case = get_backend("cupy"), CASES["flights"].narrowed()
    with backend.computing():
        rows = tuple(backend.asarray(part) for part in case.rows())
        rule = SGD(InverseTimeDecay(0.5, 1))
        expected, *_ = vectors_after(eager, DownpourStep(case.network, backend, rule), rows)
        found, *_ = vectors_after(captured, DownpourStep(case.network, backend, rule), rows)
    assert not np.array_equal(found, expected)
