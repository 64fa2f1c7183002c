"""A network with a layer of the user's own is trained, saved and loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, LocalCluster

import dask_belief as db
from dask_belief.models.layers.registry import LAYERS
from dask_belief.seeds import stream


def softplus() -> type[db.Layer]:
    """A class that no module has, as in a notebook."""

    @dataclass(frozen=True)
    class Softplus(db.Layer):
        kind = "softplus"

        def output_shape(self, input_shape):
            return input_shape

        def parameter_shapes(self, input_shape):
            return {}

        def initial(self, name, input_shape, generator):
            raise KeyError(name)

        def forward(self, backend, parameters, inputs, workspace):
            outputs = workspace.array("outputs", inputs.shape, inputs.dtype)
            backend.xp.logaddexp(inputs, 0, out=outputs)
            return outputs

        def backward(self, backend, parameters, gradients, inputs, outputs, delta, workspace, *, needs_input_delta):
            if not needs_input_delta:
                return None
            slopes = workspace.array("slopes", inputs.shape, inputs.dtype)
            backend.xp.exp(-outputs, out=slopes)
            backend.xp.subtract(1, slopes, out=slopes)
            backend.xp.multiply(delta, slopes, out=delta)
            return delta

    return Softplus


@pytest.fixture
def own() -> Iterator[type[db.Layer]]:
    """The class; nothing is registered before nor after the test."""
    known = dict(LAYERS)
    yield softplus()
    LAYERS.clear()
    LAYERS.update(known)


def problem() -> tuple[np.ndarray, np.ndarray]:
    inputs = stream(3, "inputs").standard_normal((400, 4)).astype(np.float32)
    return inputs, (inputs[:, 0] * inputs[:, 1] > 0).astype(np.int64)


def test_it_is_trained_saved_and_loaded(two_workers: Client, own: type[db.Layer], tmp_path: Path) -> None:
    """By its instances on the cluster; from a store once it is registered, and with an error that says so before."""
    db.testing.check_layer(own(), (3,))
    network = db.Network([db.Dense(6), own(), db.Dense(2)], "softmax", (4,))
    arguments: dict[str, Any] = {"client": two_workers, "progress": False, "checkpoint": tmp_path / "checkpoint"}
    result = db.train(network, problem(), db.Sandblaster(max_iter=4), **arguments)
    inputs, targets = problem()
    first = network.loss_and_gradient(network.initial_parameters(0), inputs, targets)[0] / len(inputs)
    assert result.loss < first
    result.save(tmp_path / "result")
    again: dict[str, Any] = {
        "client": two_workers,
        "progress": False,
        "dataset": problem(),
        "method": db.Sandblaster(max_iter=6),
    }
    for load in (lambda: db.load_result(tmp_path / "result"), lambda: db.resume(tmp_path / "checkpoint", **again)):
        with pytest.raises(db.UnknownLayerError, match=r"'softplus'.*register_layer"):
            load()
    db.register_layer(own)
    loaded = db.load_result(tmp_path / "result")
    np.testing.assert_array_equal(loaded.predict(inputs), result.predict(inputs))
    assert db.resume(tmp_path / "checkpoint", **again).loss < result.loss


@pytest.mark.long
def test_it_is_sent_to_processes(own: type[db.Layer]) -> None:
    """Workers of processes of their own, which cannot import it and have never heard of its kind."""
    network = db.Network([db.Dense(6), db.Add([own()]), db.Dense(2)], "softmax", (4,))
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        for method in (db.Sandblaster(max_iter=3), db.Downpour(epochs=1, rule=db.SGD(0.1), batch_size=50)):
            result = db.train(network, problem(), method, client=client, progress=False)
            assert np.isfinite(result.loss)
