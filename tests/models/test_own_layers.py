"""Layers of a user's own: known by registering alone, and sent as any object is."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dask_belief as db
from dask_belief.models.layers import is_ours, layer_from_config
from dask_belief.models.layers.registry import LAYERS
from tests.models.cases import SEED, central_differences, classes, rows

ROOT = Path(__file__).parents[2]

MODULE = '''
from dataclasses import dataclass

import numpy as np

import dask_belief as db


@dataclass(frozen=True)
class Leaky(db.Layer):
    """A slope of its own below zero."""

    kind = "leaky"
    slope: float = 0.1

    def output_shape(self, input_shape):
        return input_shape

    def parameter_shapes(self, input_shape):
        return {}

    def initial(self, name, input_shape, generator):
        raise KeyError(name)

    def forward(self, backend, parameters, inputs, workspace):
        outputs = workspace.array("outputs", inputs.shape, inputs.dtype)
        backend.xp.multiply(inputs, self.slope, out=outputs)
        backend.xp.maximum(inputs, outputs, out=outputs)
        return outputs

    def backward(self, backend, parameters, gradients, inputs, outputs, delta, workspace, *, needs_input_delta):
        if not needs_input_delta:
            return None
        slopes = workspace.array("slopes", inputs.shape, inputs.dtype)
        backend.xp.multiply(inputs > 0, 1 - self.slope, out=slopes)
        backend.xp.add(slopes, self.slope, out=slopes)
        backend.xp.multiply(delta, slopes, out=delta)
        return delta
'''


@pytest.fixture
def leaky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[db.Layer]]:
    """The class, of a module in a folder of the user's; nothing is registered after the test."""
    (tmp_path / "my_layers.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    known = dict(LAYERS)
    import my_layers  # type: ignore[import-not-found]

    try:
        yield my_layers.Leaky
    finally:
        del sys.modules["my_layers"]
        LAYERS.clear()
        LAYERS.update(known)


def network(leaky: Any) -> db.Network:
    return db.Network([db.Dense(5), leaky(0.2), db.Dense(3)], "softmax", (4,))


def test_it_keeps_the_contract(leaky: Any) -> None:
    """Registered or not."""
    db.testing.check_layer(leaky(0.3), (4, 3))
    db.register_layer(leaky)
    db.testing.check_layer(leaky(0.3), (4, 3))


def test_a_network_computes_with_it(leaky: Any) -> None:
    """Gradients agree with central differences."""
    net = network(leaky)
    parameters, inputs, targets = net.initial_parameters(SEED, np.float64), rows(9, 4), classes(9, 3)
    _, gradient = net.loss_and_gradient(parameters, inputs, targets)
    expected = central_differences(lambda p: net.loss_and_gradient(p, inputs, targets)[0], parameters)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-6)


def test_a_configuration_is_read_once_it_is_registered(leaky: Any) -> None:
    """Before, the error says what to do; nothing else is done because a file holds a name."""
    net = network(leaky)
    config = json.loads(json.dumps(net.to_config()))
    with pytest.raises(db.UnknownLayerError, match=r"^layer: .*'leaky'.*register_layer"):
        db.Network.from_config(config)
    assert db.register_layer(leaky) is leaky
    assert db.Network.from_config(config) == net
    inside = db.Add([leaky(0.3)])
    assert layer_from_config(json.loads(json.dumps(inside.to_config()))) == inside


def test_a_name_in_a_file_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind that reads like a module is a kind that nobody knows."""
    (tmp_path / "planted.py").write_text("raise SystemExit('imported')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for kind in ("planted", "planted.Layer", "os.system", ["planted"], None):
        with pytest.raises(db.UnknownLayerError):
            layer_from_config({"layer": kind})
    assert "planted" not in sys.modules


def test_it_pickles_as_it_is(leaky: Any, tmp_path: Path) -> None:
    """Another process that can import its module gets the network, though nobody registered the class there."""
    for net in (network(leaky), db.Network([db.Add([leaky(0.5)]), db.Dense(3)], "softmax", (4,))):
        assert not all(is_ours(layer) for layer in net.layers)
        program = """
            import pickle, sys
            network = pickle.load(sys.stdin.buffer)
            print(network.loss_and_gradient(network.initial_parameters(1), [[1, 2, 3, 4]], [0])[0])
            """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program).replace("[[1, 2, 3, 4]], [0]", _ROWS)],
            input=pickle.dumps(net),
            capture_output=True,
            timeout=60,
            check=False,
            env={"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": ""},
        )
        assert done.returncode == 0, done.stderr.decode()
        inputs, targets = np.array([[1, 2, 3, 4]], np.float32), np.array([0])
        assert float(done.stdout) == net.loss_and_gradient(net.initial_parameters(1), inputs, targets)[0]


_ROWS = "__import__('numpy').array([[1, 2, 3, 4]], 'float32'), __import__('numpy').array([0])"


def test_a_network_of_our_layers_pickles_as_its_configuration() -> None:
    """Also where layers are nested: old and new versions understand one another."""
    net = db.Network([db.Add([db.Dense(4)]), db.Dropout(), db.Dense(3)], "softmax", (4,))
    _, arguments = net.__reduce__()
    assert arguments[0] == net.to_config()
    assert pickle.loads(pickle.dumps(net)) == net


def test_what_is_registered_is_checked(leaky: Any) -> None:
    """A subclass of Layer with a kind of its own; the same class again is no error, nor one made anew in its place."""
    wrongs: list[Any] = [leaky(), int, "leaky"]
    for wrong in wrongs:
        with pytest.raises(db.ArgumentError, match=r"^layer: expected a subclass"):
            db.register_layer(wrong)

    class Unnamed(db.Layer):
        pass

    with pytest.raises(db.ArgumentError, match=r"^layer: Unnamed\.kind"):
        db.register_layer(Unnamed)

    class Taken(leaky):  # type: ignore[misc]
        kind = "dense"

    with pytest.raises(db.ArgumentError, match=r"^layer: the kind 'dense' of .*Taken is that of .*Dense"):
        db.register_layer(Taken)
    assert LAYERS["dense"] is db.Dense

    def again() -> type[db.Layer]:
        @db.register_layer
        @dataclass(frozen=True)
        class Mine(leaky):  # type: ignore[misc]
            kind = "mine"

        return Mine

    first, second = again(), again()
    assert first is not second
    assert LAYERS["mine"] is second
