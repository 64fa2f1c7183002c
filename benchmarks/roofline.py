r"""What a step on a GPU costs at best, on paper: from a device's figures and a network's sizes, with nothing measured.

For one mini-batch of B rows, a vector of n parameters and layers of i inputs and o outputs each::

    products     2 B i o operations forward, as many for the weights' gradient, as many for the inputs', where it is
                 needed: at a share of the device's peak that is assumed
    weights      4 n bytes read forward, 4 n read backward, 4 n written as the gradient
    activations  4 B o bytes, as often as `ACTIVATION_PASSES` says
    vectors      4 n bytes for each pass of the rule, of the mean and of what accrues over a vector

Products run at the slower of arithmetic and memory, vectors at the speed of memory, and the host needs a while for each
launch: a step takes the device's seconds or the host's, whichever is more, since nothing in it waits. An exchange
copies the vector down and the fetched one up while the device stands still, and crosses the network, as one message,
beside the computing. From the root of the repository::

    python -m benchmarks.roofline --json benchmarks/results/roofline.json
    python -m benchmarks.roofline --model speech --batch-rows 64 --precision tf32 --bandwidth 1000 --flops 40
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu_networks import Case, cases
from benchmarks.record import Record
from dask_belief.models import Dense, Network

ITEM_BYTES = 4
"""Of a parameter or an activation: float32. TF32 and BF16 change how products are computed, not what is stored."""

PRECISIONS = ("fp32", "tf32", "bf16")

PRODUCT_SHARE = {"fp32": 0.75, "tf32": 0.7, "bf16": 0.75}
"""Of the peak that matrix products reach; assumed, as cuBLAS reaches it with large matrices."""

ACTIVATION_PASSES = 8
"""Times that the outputs of a layer, or their derivatives, cross the device's memory in a step. The launches read and
write them twelve times; about a third of that finds in the cache what the launch before has written. Assumed."""

LAUNCH_SECONDS = 10e-6
"""Of the host for one launch: CuPy's code and ours took 9 to 11 microseconds, over whole steps, where the device's work
was put off (``benchmarks/results/gpu_budgets.json``)."""

GRAPH_LAUNCH_SECONDS = 2e-6
"""Of the device for one kernel of a captured graph, however small; assumed."""

RULE_PASSES = {"sgd": 3, "momentum": 5, "nesterov": 5, "adagrad": 5, "rmsprop": 5, "adam": 7}
"""Vectors that a rule reads and writes: the gradient once, each other one twice."""

METHOD_PASSES: Mapping[str, Mapping[str, int]] = {
    "downpour": {"mean": 2, "accrual": 3},
    "sandblaster": {"tree sum": 3},
}
"""What a step of each method does to vectors beside the rule, by cause."""

NETWORK_BANDWIDTH = 1.25e9
"""Bytes a second between a replica and its shards, where nothing else is said: 10 Gbit/s Ethernet."""

CALL_SECONDS = 2e-3
"""Of a call to an actor on another worker of Dask, however little it carries; as measured over TCP."""

COST_ALLOWED = 0.1
"""Of the computing: what exchanges may cost at the second advised interval."""


@dataclass(frozen=True)
class Device:
    """What decides the speed of a device.

    Attributes
    ----------
    name
        As sold.
    bandwidth
        Of its memory, in bytes a second, read and written together, as a long copy reaches it.
    peak
        Operations a second of dense products, by precision; a multiplication and an addition are two.
    pcie
        Bytes a second between pinned host memory and the device, in one direction.
    source
        Where the figures are from.
    """

    name: str
    bandwidth: float
    peak: Mapping[str, float]
    pcie: float
    source: str


_PCIE = "PCIe: about 0.8 of the bus's 64 (generation 5) or 32 GB/s (4), 16 lanes"

DEVICES = {
    "h100-sxm": Device(
        "H100 SXM 80 GB",
        3.0e12,
        {"fp32": 67e12, "tf32": 495e12, "bf16": 989e12},
        50e9,
        f"NVIDIA H100 data sheet (memory: 3.35 TB/s, of which a copy between arrays moved 3.0); {_PCIE}",
    ),
    "h200": Device(
        "H200 SXM 141 GB",
        4.3e12,
        {"fp32": 67e12, "tf32": 495e12, "bf16": 989e12},
        50e9,
        f"NVIDIA H200 data sheet (memory: 4.8 TB/s, of which a copy between arrays moved 4.3); {_PCIE}",
    ),
    "a100-sxm": Device(
        "A100 SXM 80 GB",
        1.83e12,
        {"fp32": 19.5e12, "tf32": 156e12, "bf16": 312e12},
        25e9,
        f"NVIDIA A100 data sheet (memory: 2.04 TB/s, of which 0.9 is assumed); {_PCIE}",
    ),
    "l4": Device(
        "L4 24 GB",
        0.27e12,
        {"fp32": 30.3e12, "tf32": 60e12, "bf16": 121e12},
        25e9,
        f"NVIDIA L4 data sheet (memory: 300 GB/s, of which 0.9 is assumed; dense is half of its sparse peak); {_PCIE}",
    ),
}
"""Known devices; peaks of TF32 and BF16 are those without sparsity."""


@dataclass(frozen=True)
class Step:
    """The work of one mini-batch.

    Attributes
    ----------
    rows
        Of the mini-batch.
    n_parameters
        Of the network.
    multiply_adds
        Of the products; each is two operations.
    products_bytes, vectors_bytes
        That cross the device's memory, by cause: with the products, and in passes over whole vectors.
    launches
        Kernels that the host starts.
    """

    rows: int
    n_parameters: int
    multiply_adds: int
    products_bytes: Mapping[str, int]
    vectors_bytes: Mapping[str, int]
    launches: int

    @property
    def vector_bytes(self) -> int:
        """Of one vector of all parameters."""
        return ITEM_BYTES * self.n_parameters


@dataclass(frozen=True)
class Expected:
    """The seconds of a step, and of what it is made.

    Attributes
    ----------
    seconds
        Of the step: `device_seconds` or `host_seconds`.
    device_seconds
        Products and vectors.
    host_seconds
        Of the host for the launches.
    graph_seconds
        Of the step, were its launches captured as one graph.
    rows_per_second
        By `seconds`.
    bound
        What decides: ``"arithmetic"``, ``"memory"`` or ``"launches"``.
    """

    seconds: float
    device_seconds: float
    host_seconds: float
    graph_seconds: float
    rows_per_second: float
    bound: str


@dataclass(frozen=True)
class Advice:
    """How often to exchange.

    Attributes
    ----------
    bytes_each_way
        Of a fetch or a push.
    pcie_seconds, network_seconds
        Of a fetch and a push together: for the first the device stands still, the second has a call to an actor in it.
    hidden_interval
        The least n_fetch = n_push at which the network's part hides behind computing, with fetch_lag as long.
    hidden_cost
        What the copies to and from the device still cost there, as a share of the computing.
    allowed_interval
        The least at which all costs `COST_ALLOWED` of the computing, with fetch_lag as long.
    allowed_interval_lag_1
        The same with fetch_lag=1, the default, where the network hides behind one mini-batch only.
    """

    bytes_each_way: int
    pcie_seconds: float
    network_seconds: float
    hidden_interval: int
    hidden_cost: float
    allowed_interval: int
    allowed_interval_lag_1: int


def gradient_launches(network: Network, *, casts_targets: bool = False) -> int:
    """Count the kernels of `Network.loss_and_gradient` for rows that are numbers; copies are not among them.

    Forward two a layer; the loss and its sum. Backward two a layer, one more for each activation, and one for each
    derivative by a layer's inputs.
    """
    layers = dense_layers(network)
    n_activated = sum(layer.activation is not None for layer in layers)
    forward, loss = 2 * len(layers), 2 + casts_targets
    return forward + loss + 2 * len(layers) + n_activated + len(layers) - 1


def step_launches(network: Network, method: str, *, casts_targets: bool = False) -> int:
    """Count the kernels of a mini-batch of Downpour, or of a unit of one block of Sandblaster."""
    # The loss joins the sum; then the mean, the rule and what accrues, or the join of the tree.
    own = {"downpour": 4, "sandblaster": 2}[method]
    return gradient_launches(network, casts_targets=casts_targets) + own


def dense_layers(network: Network) -> list[Dense]:
    """Give the layers, which have to be dense."""
    layers = [layer for layer in network.layers if isinstance(layer, Dense)]
    if len(layers) < len(network.layers):
        raise ValueError(f"only Dense layers are put on paper, got {network.layers}")
    return layers


def vector_passes(method: str, rule: str = "adagrad") -> dict[str, int]:
    """Give the passes over vectors of a step, by cause."""
    of_rule = {"rule": RULE_PASSES[rule]} if method == "downpour" else {}
    return {**METHOD_PASSES[method], **of_rule}


def step(network: Network, rows: int, passes: Mapping[str, int], launches: int) -> Step:
    """Count the work of one mini-batch.

    Parameters
    ----------
    network
        Of dense layers.
    rows
        Of the mini-batch.
    passes
        Over vectors, by cause; see `vector_passes`.
    launches
        See `step_launches`.
    """
    outputs = [layer.units for layer in dense_layers(network)]
    inputs = [math.prod(network.input_shape), *outputs[:-1]]
    weights = [n_in * n_out for n_in, n_out in zip(inputs, outputs, strict=True)]
    # Three products a layer; the first one's inputs are data, which need no derivative.
    multiply_adds = rows * (3 * sum(weights) - weights[0])
    vector_bytes = ITEM_BYTES * network.n_parameters
    products_bytes = {
        "weights, forward": vector_bytes,
        "weights, backward": vector_bytes,
        "gradient": vector_bytes,
        "activations": ITEM_BYTES * rows * (inputs[0] + ACTIVATION_PASSES * sum(outputs)),
    }
    vectors_bytes = {cause: count * vector_bytes for cause, count in passes.items()}
    return Step(rows, network.n_parameters, multiply_adds, products_bytes, vectors_bytes, launches)


def expected(work: Step, device: Device, precision: str, launch_seconds: float = LAUNCH_SECONDS) -> Expected:
    """Give the seconds of a step on a device."""
    arithmetic = 2 * work.multiply_adds / (PRODUCT_SHARE[precision] * device.peak[precision])
    memory = sum(work.products_bytes.values()) / device.bandwidth
    vectors = sum(work.vectors_bytes.values()) / device.bandwidth
    on_device, on_host = max(arithmetic, memory) + vectors, work.launches * launch_seconds
    seconds = max(on_device, on_host)
    by_device = "arithmetic" if arithmetic > memory + vectors else "memory"
    bound = "launches" if on_host > on_device else by_device
    graph_seconds = max(on_device, work.launches * GRAPH_LAUNCH_SECONDS)
    return Expected(seconds, on_device, on_host, graph_seconds, work.rows / seconds, bound)


def advice(work: Step, seconds: float, pcie: float, network_bandwidth: float) -> Advice:
    """Say how often to exchange, where a step takes so many seconds."""
    both_ways = 2 * work.vector_bytes
    pcie_seconds, network_seconds = both_ways / pcie, CALL_SECONDS + both_ways / network_bandwidth
    hidden = _at_least(network_seconds / seconds)
    # Of n steps that take n s the copies c are seen whole, of the network m what n s do not hide:
    # c + max(0, m - n s) <= 0.1 n s.
    whole = (pcie_seconds + network_seconds) / ((1 + COST_ALLOWED) * seconds)
    allowed = _at_least(max(whole, pcie_seconds / (COST_ALLOWED * seconds)))
    seen = pcie_seconds + max(0.0, network_seconds - seconds)
    return Advice(
        work.vector_bytes,
        pcie_seconds,
        network_seconds,
        hidden,
        pcie_seconds / (hidden * seconds),
        allowed,
        _at_least(seen / (COST_ALLOWED * seconds)),
    )


def _at_least(number: float) -> int:
    return max(1, math.ceil(number))


def figures_of(case: Case, device: Device, precision: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Give the figures of one network on one device."""
    method = arguments.method
    launches = step_launches(case.network, method, casts_targets=case.casts_targets)
    work = step(case.network, arguments.batch_rows or case.batch_rows, vector_passes(method), launches)
    found = expected(work, device, precision, arguments.launch_microseconds * 1e-6)
    figures: dict[str, Any] = {"model": case.name, "device": device.name, "precision": precision, "method": method}
    figures |= {"step": asdict(work), "expected": asdict(found)}
    if method == "downpour":
        figures["advice"] = asdict(advice(work, found.seconds, device.pcie, arguments.network * 1e9))
    return figures


def main() -> None:
    arguments = _arguments()
    record = Record(__doc__.splitlines()[0])
    chosen = [case for case in cases().values() if _is_dense(case.network) and arguments.model in (None, case.name)]
    if not chosen:
        raise SystemExit(f"--model: no dense network is called {arguments.model!r}")
    precisions = [arguments.precision] if arguments.precision else list(PRECISIONS)
    found = []
    for device in _devices(arguments):
        print(f"\n{device.name}: {device.source}")
        _print_heading()
        for case in chosen:
            for precision in precisions:
                found.append(figures_of(case, device, precision, arguments))
                _print_line(found[-1])
    if arguments.model:
        _print_bytes(found[0]["step"])
    if arguments.json:
        assumed = {
            "product_share": PRODUCT_SHARE,
            "activation_passes": ACTIVATION_PASSES,
            "launch_seconds": arguments.launch_microseconds * 1e-6,
            "graph_launch_seconds": GRAPH_LAUNCH_SECONDS,
            "call_seconds": CALL_SECONDS,
            "network_bytes_per_second": arguments.network * 1e9,
        }
        devices = [asdict(device) for device in _devices(arguments)]
        record.write(arguments.json, {"measured": False, "assumed": assumed, "devices": devices, "cases": found})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures, with commit and machine, to this file")
    parser.add_argument("--device", choices=sorted(DEVICES), help="default: all")
    parser.add_argument("--model", help=f"one of {', '.join(cases())}; default: all that are dense")
    parser.add_argument("--method", choices=sorted(METHOD_PASSES), default="downpour", help="default: downpour")
    parser.add_argument("--batch-rows", type=int, help="rows of a mini-batch (default: the network's own)")
    parser.add_argument("--precision", choices=PRECISIONS, help="default: all")
    parser.add_argument("--bandwidth", type=float, help="GB/s of the device's memory, in place of the table's")
    parser.add_argument("--flops", type=float, help="TFLOP/s at peak, in place of the table's for every precision")
    parser.add_argument("--pcie", type=float, help="GB/s between host and device, in place of the table's")
    parser.add_argument(
        "--network", type=float, default=NETWORK_BANDWIDTH / 1e9, help="GB/s to the shards (default: %(default)s)"
    )
    parser.add_argument(
        "--launch-microseconds", type=float, default=LAUNCH_SECONDS * 1e6, help="of the host (default: %(default)g)"
    )
    return parser.parse_args()


def _devices(arguments: argparse.Namespace) -> list[Device]:
    """Give the devices that are asked for, with the figures that are given in place of the table's."""
    given: dict[str, Any] = {}
    if arguments.bandwidth:
        given["bandwidth"] = arguments.bandwidth * 1e9
    if arguments.flops:
        given["peak"] = dict.fromkeys(PRECISIONS, arguments.flops * 1e12)
    if arguments.pcie:
        given["pcie"] = arguments.pcie * 1e9
    names = [arguments.device] if arguments.device else list(DEVICES)
    if given:
        given["source"] = f"{', '.join(given)} as given; the rest as of the table"
    return [replace(DEVICES[name], **given) for name in names]


def _is_dense(network: Network) -> bool:
    return all(isinstance(layer, Dense) for layer in network.layers)


def _print_heading() -> None:
    print(
        f"{'':18}{'':6}{'rows':>6}{'Mparam':>8}{'GFLOP':>8}{'MB':>8}{'launches':>9}{'ms':>9}{'rows/s':>12}  "
        f"{'bound by':11}{'graph ms':>9}  {'fetch+push ms':>14}  n hidden / 10 % / 10 %, lag 1"
    )


def _print_line(figures: Mapping[str, Any]) -> None:
    work, found, hint = figures["step"], figures["expected"], figures.get("advice")
    moved = sum(work["products_bytes"].values()) + sum(work["vectors_bytes"].values())
    exchange = ""
    if hint is not None:
        exchange = f"{1e3 * hint['pcie_seconds']:6.2f} +{1e3 * hint['network_seconds']:7.2f}  "
        exchange += f"{hint['hidden_interval']} / {hint['allowed_interval']} / {hint['allowed_interval_lag_1']}"
    print(
        f"{figures['model']:18}{figures['precision']:6}{work['rows']:6}{work['n_parameters'] / 1e6:8.2f}"
        f"{2e-9 * work['multiply_adds']:8.2f}{moved / 1e6:8.1f}{work['launches']:9}{1e3 * found['seconds']:9.3f}"
        f"{found['rows_per_second']:12,.0f}  {found['bound']:11}{1e3 * found['graph_seconds']:9.3f}  {exchange}"
    )


def _print_bytes(work: Mapping[str, Any]) -> None:
    print("\nMB that cross the device's memory in a step:")
    for cause, n_bytes in (work["products_bytes"] | work["vectors_bytes"]).items():
        print(f"  {cause:18}{n_bytes / 1e6:10.2f}")


if __name__ == "__main__":
    main()
