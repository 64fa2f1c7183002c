"""How far float32 on a device is from float64 on the host, layer by layer; and whether it says the same twice.

Run by itself, since CuPy reads ``CUPY_TF32`` when it is imported::

    CUPY_TF32=1 python -m tests.gpu.accuracy --seed 7 --json accuracy.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.gpu_networks import Case, cases
from benchmarks.gpu_steps import DownpourStep
from dask_belief.backend import Array, Backend, get_backend
from dask_belief.models import Dense, Embedding, Network
from dask_belief.models.layers import Add, Dropout, Layer, LayerNorm, LocalContrastNorm2D
from dask_belief.optim.rules import SGD, Adagrad, Adam, AnyRule, Momentum, Nesterov, RMSProp

MOST_ERROR = {"fp32": 3e-5, "tf32": 1e-2}
"""Of the largest value: sums of a thousand products of float32, and of numbers with ten bits behind the point."""

N_REPEATS = 10
N_STEPS = 5
RULES: tuple[AnyRule, ...] = (SGD(0.1), Momentum(0.1), Nesterov(0.1), Adagrad(0.1), RMSProp(0.1), Adam(0.1))
N_ELEMENTS = 1_000_003


@dataclass(frozen=True)
class Found:
    """One comparison."""

    name: str
    error: float
    """The largest difference, as a share of the largest value; infinite where a value is not finite."""

    limit: float

    @property
    def is_good(self) -> bool:
        """Whether the error is within its limit."""
        return self.error <= self.limit


def relative_error(found: Array, expected: Array) -> float:
    """Give the largest difference as a share of the largest expected value; infinite where one is not finite."""
    difference = float(np.abs(np.asarray(found, np.float64) - expected).max(initial=0.0))
    scale = float(np.abs(expected).max(initial=0.0))
    return difference / scale if math.isfinite(difference) and scale > 0 else math.inf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, required=True, help="of the data, which are drawn anew for each report")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="narrow layers, for an emulated device")
    arguments = parser.parse_args()
    precision = "tf32" if os.environ.get("CUPY_TF32", "0") not in ("", "0") else "fp32"
    backend, scale = get_backend("cupy"), 8 if arguments.quick else 1
    found = [*of_layers(backend, arguments.seed, precision, scale), *of_rules(backend, arguments.seed, scale)]
    hashes = repeated(backend, cases()["images"], arguments.quick)
    for one in found:
        print(f"{one.name:42}{one.error:10.2e}  {'' if one.is_good else f'MORE THAN {one.limit}'}")
    print(f"repeated {len(hashes)} times: {len(set(hashes))} different results")
    figures = {
        "precision": precision,
        "seed": arguments.seed,
        "errors": [{**asdict(one), "is_good": one.is_good} for one in found],
        "repeats": len(hashes),
        "different_results": len(set(hashes)),
        "is_good": all(one.is_good for one in found) and len(set(hashes)) == 1,
    }
    arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def of_layers(backend: Backend, seed: int, precision: str, scale: int = 1) -> Iterator[Found]:
    """Compare losses, gradients and predictions of small stacks: each activation, each loss, a table of vectors."""
    widths = (513 // scale, 1025 // scale, 37)
    limit = MOST_ERROR[precision]
    for activation in (None, "relu", "sigmoid", "tanh"):
        for loss in ("softmax", "logistic", "squared"):
            network = Network([Dense(widths[1], activation), Dense(widths[2])], loss, widths[:1])
            for name, error in errors(network, backend, seed, 257 // scale):
                yield Found(f"dense, {activation}, {loss}: {name}", error, limit)
    network = Network([Embedding(5000 // scale, 16), Dense(37)], "softmax", (9,))
    for name, error in errors(network, backend, seed, 257 // scale):
        yield Found(f"embedding, softmax: {name}", error, limit)
    others: dict[str, tuple[list[Layer], tuple[int, ...]]] = {
        "layer norm": ([Dense(widths[1], "tanh"), LayerNorm()], widths[:1]),
        "local contrast": ([LocalContrastNorm2D(9)], (64 // scale + 3, 64 // scale, 5)),
        "add, dropout": ([Add([Dense(widths[1], "tanh"), Dense(widths[0])]), Dropout(0.5)], widths[:1]),
    }
    for kind, (layers, shape) in others.items():
        network = Network([*layers, Dense(37)], "softmax", shape)
        for name, error in errors(network, backend, seed, 257 // scale):
            yield Found(f"{kind}, softmax: {name}", error, limit)


def errors(network: Network, backend: Backend, seed: int, n_rows: int) -> Iterator[tuple[str, float]]:
    """Compare one network: the same float32 numbers in, float64 on the host as the truth."""
    case = Case("any", network, n_rows, "int64" if network.loss == "softmax" else "float32")
    inputs, targets = case.rows(seed)
    parameters = network.initial_parameters(seed % 2**31)
    truth = network.on(get_backend("numpy"))
    exact = parameters.astype(np.float64)
    wide = inputs if inputs.dtype.kind == "i" else inputs.astype(np.float64)
    loss, gradient = truth.loss_and_gradient(exact, wide, targets, key=seed)
    device = network.on(backend)
    found_loss, found_gradient = device.loss_and_gradient(parameters, inputs, targets, key=seed)
    yield "loss", relative_error(np.array(found_loss), np.array(loss))
    found = backend.to_host(found_gradient)
    for name, where in network.layout.slices.items():
        yield f"gradient of {name}", relative_error(found[where], gradient[where])
    yield "predictions", relative_error(device.predict(parameters, inputs), truth.predict(exact, wide))


def of_rules(backend: Backend, seed: int, scale: int = 1) -> Iterator[Found]:
    """Compare some steps of each rule; no product is in them, so TF32 changes nothing."""
    generator = np.random.default_rng([seed, 1])
    values = generator.standard_normal(N_ELEMENTS // scale**2, dtype=np.float32)
    gradients = [generator.standard_normal(values.shape, dtype=np.float32) for _ in range(N_STEPS)]
    for rule in RULES:
        exact = values.astype(np.float64)
        exact_state = rule.init(exact)
        with backend.computing():
            found = backend.asarray(values)
            state = rule.init(found)
            for number, gradient in enumerate(gradients):
                rule.apply(exact, gradient.astype(np.float64), exact_state, number)
                rule.apply(found, backend.asarray(gradient), state, number, backend=backend)
            yield Found(
                f"{rule.name}, {N_STEPS} steps", relative_error(backend.to_host(found), exact), MOST_ERROR["fp32"]
            )


def repeated(backend: Backend, case: Case, is_quick: bool) -> list[str]:
    """Train a network some steps, as often as `N_REPEATS`, and give a hash of the parameters of each."""
    case = case.narrowed() if is_quick else case
    batches = [case.rows(seed) for seed in range(N_STEPS)]
    hashes = []
    for _ in range(N_REPEATS):
        step = DownpourStep(case.network, backend)
        for inputs, targets in batches:
            step(inputs, targets)
        hashes.append(hashlib.sha256(backend.to_host(step.parameters).tobytes()).hexdigest())
    return hashes


if __name__ == "__main__":
    main()
