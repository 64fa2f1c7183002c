"""Steps on paper: against figures that were found by hand, and against a search over all intervals."""

from __future__ import annotations

import argparse

import pytest

from benchmarks.gpu_networks import cases
from benchmarks.roofline import (
    COST_ALLOWED,
    DEVICES,
    Device,
    Step,
    advice,
    expected,
    figures_of,
    gradient_launches,
    step,
    step_launches,
    vector_passes,
)
from dask_belief.models import Dense, Embedding, Network

SPEECH = cases()["speech"].network
H100 = DEVICES["h100-sxm"]
ONLY_ADAGRAD = {"rule": 5}


def speech_step(rows: int) -> Step:
    """The gradient and Adagrad of the speech network, which the figures below are of."""
    return step(SPEECH, rows, ONLY_ADAGRAD, launches=33)


def test_work_of_the_speech_network() -> None:
    """440-2560x4-8192 by hand: parameters, operations a row, and what the weights and Adagrad move."""
    work = speech_step(1)
    assert work.n_parameters == 41_777_152
    assert 2 * work.multiply_adds == pytest.approx(248.3e6, rel=1e-4)
    of_weights = sum(n for cause, n in work.products_bytes.items() if cause != "activations")
    assert of_weights == pytest.approx(0.50e9, rel=0.01)
    assert sum(work.vectors_bytes.values()) == pytest.approx(0.84e9, rel=0.01)
    assert (of_weights + work.vectors_bytes["rule"]) / H100.bandwidth == pytest.approx(0.45e-3, rel=0.01)


@pytest.mark.parametrize(
    ("rows", "precision", "milliseconds", "rows_per_second"),
    [
        (64, "fp32", 0.59, 108e3),
        (64, "tf32", 0.46, 140e3),
        (64, "bf16", 0.46, None),
        (256, "fp32", 1.54, 166e3),
        (256, "tf32", 0.49, 517e3),
        (256, "bf16", 0.49, None),
        (1024, "fp32", 5.3, 192e3),
        (1024, "tf32", 1.0, 1.0e6),
        (1024, "bf16", 0.65, 1.6e6),
    ],
)
def test_seconds_of_the_speech_network(
    rows: int, precision: str, milliseconds: float, rows_per_second: float | None
) -> None:
    """The table that was made by hand for the H100, within its rounding."""
    found = expected(speech_step(rows), H100, precision)
    assert 1e3 * found.seconds == pytest.approx(milliseconds, rel=0.02)
    if rows_per_second is not None:
        assert found.rows_per_second == pytest.approx(rows_per_second, rel=0.02)


def test_exchanges_of_the_speech_network() -> None:
    """By hand: 334 MB take 7 ms over PCIe, four steps, and 170 to 330 ms over 2 to 1 GB/s, 110 to 220 steps."""
    work = speech_step(256)
    seconds = expected(work, H100, "fp32").seconds
    slow, fast = (advice(work, seconds, H100.pcie, bandwidth) for bandwidth in (1e9, 2e9))
    assert 2 * slow.bytes_each_way == pytest.approx(334e6, rel=0.01)
    assert slow.pcie_seconds == pytest.approx(6.7e-3, rel=0.01)
    assert round(slow.pcie_seconds / seconds) == 4
    assert fast.network_seconds == pytest.approx(0.17, rel=0.02)
    assert slow.network_seconds == pytest.approx(0.33, rel=0.02)
    assert fast.hidden_interval == pytest.approx(110, rel=0.02)
    assert slow.hidden_interval == pytest.approx(220, rel=0.02)


def test_what_bounds_a_step() -> None:
    """FP32 turns from memory to arithmetic with more rows; a small network waits for the host."""
    assert expected(speech_step(16), H100, "fp32").bound == "memory"
    assert expected(speech_step(1024), H100, "fp32").bound == "arithmetic"
    flights = cases()["flights"]
    small = step(flights.network, flights.batch_rows, vector_passes("downpour"), launches=23)
    found = expected(small, H100, "fp32", launch_seconds=1e-5)
    assert found.bound == "launches"
    assert found.seconds == pytest.approx(23e-5)
    assert found.graph_seconds < found.seconds / 4


def overhead(interval: int, lag: int, pcie: float, network: float, seconds: float) -> float:
    """What exchanges add to the computing between two of them, as a share, told step by step."""
    hidden = sum(seconds for _ in range(min(lag, interval)))
    return (pcie + max(0.0, network - hidden)) / (interval * seconds)


@pytest.mark.parametrize("seconds", [1e-4, 3e-3, 0.05, 2.0])
@pytest.mark.parametrize("network_bandwidth", [0.1e9, 1.25e9, 100e9])
def test_intervals_are_the_least(seconds: float, network_bandwidth: float) -> None:
    """Each advised interval does what it promises, and the next shorter one does not."""
    hint = advice(speech_step(256), seconds, 25e9, network_bandwidth)
    pcie, network = hint.pcie_seconds, hint.network_seconds
    assert hint.hidden_interval * seconds >= network
    assert hint.hidden_interval == 1 or (hint.hidden_interval - 1) * seconds < network
    assert hint.hidden_cost == pytest.approx(pcie / (hint.hidden_interval * seconds))
    for found, lag in ((hint.allowed_interval, 10**9), (hint.allowed_interval_lag_1, 1)):
        assert overhead(found, lag, pcie, network, seconds) <= COST_ALLOWED * (1 + 1e-9)
        assert found == 1 or overhead(found - 1, lag, pcie, network, seconds) > COST_ALLOWED


def test_launches_by_hand() -> None:
    """Each kernel of a network of two layers named: the budgets on the emulated device say the same."""
    network = Network([Dense(5, "tanh"), Dense(3)], "softmax", (4,))
    forward = ["product", "bias and tanh", "product", "bias"]
    loss = ["loss and its derivative", "sum"]
    backward = ["weights", "bias", "derivative by inputs", "tanh", "weights", "bias"]
    assert gradient_launches(network) == len([*forward, *loss, *backward])
    assert step_launches(network, "downpour", casts_targets=True) == gradient_launches(network) + 5
    assert step_launches(network, "sandblaster") == gradient_launches(network) + 2
    ends_activated = Network([Dense(5, "tanh"), Dense(3, "tanh")], "softmax", (4,))
    assert gradient_launches(ends_activated) == gradient_launches(network) + 1


def test_embeddings_are_not_put_on_paper() -> None:
    """A table's cost depends on the ids."""
    with pytest.raises(ValueError, match="only Dense layers"):
        gradient_launches(Network([Embedding(4, 2), Dense(2)], "softmax", (1,)))


def test_a_devices_figures_decide() -> None:
    """Twice the memory speed halves a step that memory bounds."""
    slow = Device("slow", 1e12, dict.fromkeys(("fp32", "tf32", "bf16"), 1e15), 1e9, "made up")
    fast = Device("fast", 2e12, slow.peak, 1e9, "made up")
    work = speech_step(8)
    assert expected(work, slow, "fp32").seconds == pytest.approx(2 * expected(work, fast, "fp32").seconds)
    for method in ("downpour", "sandblaster"):
        arguments = argparse.Namespace(method=method, batch_rows=None, launch_microseconds=10.0, network=1.0)
        figures = figures_of(cases()["flights"], slow, "fp32", arguments)
        assert ("advice" in figures) == (method == "downpour")
