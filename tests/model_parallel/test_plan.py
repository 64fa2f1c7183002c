"""Plans against counting by hand, and their pictures."""

from __future__ import annotations

import pickle
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from dask_belief.errors import ArgumentError
from dask_belief.model_parallel.cost import Speeds
from dask_belief.model_parallel.plan import Plan, partition
from dask_belief.models.layers import Dense
from dask_belief.models.network import Network
from dask_belief.seeds import stream


def network() -> Network:
    return Network([Dense(8, "tanh"), Dense(6, "tanh"), Dense(3)], "softmax", (5,))


def test_each_parameter_has_one_owner() -> None:
    """Cutting a vector and joining it again gives every number once."""
    for by in ("units", "layers", "auto"):
        plan = partition(network(), 3, by)
        vector = stream(0, "vector").normal(size=plan.network.n_parameters)
        owns = plan.cut_vector(vector)
        assert sum(len(own) for own in owns) == len(vector)
        assert [len(own) for own in owns] == [layout.n_parameters for layout in plan.layouts]
        assert np.array_equal(plan.join_vectors(owns, np.full_like(vector, np.nan)), vector)


def test_counts_by_hand() -> None:
    """Two pieces by units: inputs to the second, halves of each layer to each other, outputs to where the loss is."""
    plan = partition(network(), 2, by="units")
    assert [each.box.shape for each in plan.crossings] == [(5,), (4,), (4,), (3,), (3,), (1,)]
    assert plan.loss_piece == 0
    # Up: 5 inputs, 4 + 3 units. Down: what the other has of its own 4 + 3, and one derivative by outputs.
    assert plan.sent_values(0) == 5 + 4 + 3 + 4 + 3 + 1
    assert plan.sent_values(1) == 4 + 3 + 1 + 4 + 3
    assert plan.sent_bytes(10) == 4 * 10 * (20 + 15) and plan.sent_bytes(10, np.float64) == 8 * 10 * 35
    assert plan.operations(0) == 3 * 2 * (5 * 4 + 4 + 8 * 3 + 3 + 6 * 2 + 2)
    assert plan.shared_values() == 0


def test_layers_in_a_row_send_to_the_next_piece_only() -> None:
    """What crosses between two layers of one piece is nothing."""
    plan = partition(network(), 3, by="layers")
    assert [(each.array, each.source, each.destination) for each in plan.crossings] == [(1, 0, 1), (2, 1, 2)]
    assert plan.loss_piece == 2 and plan.micro_batches == 12
    assert partition(network(), 3, by="units").micro_batches == 1


def test_a_piece_holds_less_than_the_whole() -> None:
    """Of parameters and gradients a share, of nodes less than all."""
    layers = [Dense(2560, "sigmoid")] * 4 + [Dense(8192)]
    speech = Network(layers, "softmax", (440,))
    whole = partition(speech, 1).held_bytes(0, 100)
    for piece in range(4):
        assert partition(speech, 4, "units").held_bytes(piece, 100) < 0.3 * whole


def test_a_slow_network_keeps_a_model_in_one_piece() -> None:
    """What "auto" takes follows from the speeds."""
    layers = [Dense(2560, "sigmoid")] * 4 + [Dense(8192)]
    speech = Network(layers, "softmax", (440,))
    fast = partition(speech, 2, speeds=Speeds(bytes_per_second=1e10))
    slow = partition(speech, 2, speeds=Speeds(bytes_per_second=1e5))
    assert all(layer.cut.axis == 0 for layer in fast.layers)
    assert slow.sent_bytes(100) < fast.sent_bytes(100) / 10
    assert slow.seconds(100, Speeds(bytes_per_second=1e5)) < fast.seconds(100, Speeds(bytes_per_second=1e5))


def test_no_other_way_is_cheaper_than_auto() -> None:
    """By the plan's own reckoning."""
    speeds = Speeds(1e9, 1e8, 1e-4)
    auto = partition(network(), 3, speeds=speeds, n_rows=50).seconds(50, speeds)
    for by in ("units", "layers", "rows"):
        assert auto <= partition(network(), 3, by).seconds(50, speeds) * (1 + 1e-9)


def test_it_travels_as_its_cuts() -> None:
    """And is the same plan where it arrives."""
    plan = partition(network(), 3, "units", micro_batches=2)
    again = pickle.loads(pickle.dumps(plan))
    assert isinstance(again, Plan) and again == plan and again.crossings == plan.crossings


def test_it_prints_itself() -> None:
    """Layers with what they send, pieces with what they have."""
    told = str(partition(network(), 2, by="units"))
    assert "2 pieces" in told and "by 'units'" in told
    *_, of_loss, _, _, first, second = told.splitlines()
    assert of_loss.split() == ["loss", "on", "0", "2"]
    assert first.split() == ["0", "65", "390", "36", "20"] and second.split()[0] == "1"


def test_it_draws_itself(tmp_path: Path) -> None:
    """A picture with a box for each piece of each array, and a line for all that crosses."""
    plan = partition(network(), 2, by="units")
    text = plan.draw(str(tmp_path / "plan.svg"))
    assert (tmp_path / "plan.svg").read_text() == text == plan._repr_svg_()
    root = ElementTree.fromstring(text)
    lines = [each for each in root.iter() if each.tag.endswith("line")]
    titles = [title.text or "" for each in lines for title in each]
    assert sum("from machine" in title for title in titles) == sum(each.array < 3 for each in plan.crossings)
    words = [each.text for each in root.iter() if each.tag.endswith("text")]
    assert {"machine 0", "machine 1", "inputs", "0-3", "4-7"} <= set(words)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"pieces": 0}, "pieces"),
        ({"pieces": 2, "by": "width"}, "by"),
        ({"pieces": 4, "by": "layers"}, "pieces"),
        ({"pieces": 2, "micro_batches": 0}, "micro_batches"),
        ({"pieces": 2, "n_rows": 0}, "n_rows"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments: dict, name: str) -> None:
    """Before anything is planned."""
    with pytest.raises(ArgumentError, match=f"^{name}:"):
        partition(network(), **arguments)


def test_what_is_no_network_is_refused() -> None:
    """A plan follows from layers."""
    with pytest.raises(ArgumentError, match="network"):
        partition(object(), 2)


@pytest.mark.parametrize("name", ["operations_per_second", "bytes_per_second", "seconds_per_message"])
def test_speeds_are_above_zero(name: str) -> None:
    """Each of them."""
    with pytest.raises(ArgumentError, match=name):
        Speeds(**{name: 0.0})
