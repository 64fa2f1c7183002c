"""A network that begins with an embedding: its gradient, and what a mini-batch touches of it."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_belief.backend import get_backend
from dask_belief.errors import ArgumentError, DataError
from dask_belief.models import Dense, Embedding, Network
from tests.backend.usable import USABLE
from tests.models.cases import LOSSES, ROWS, SEED, SMALL, central_differences, rows, targets_for

N_ENTRIES = 12
N_POSITIONS = 4
IDS = np.random.default_rng(SEED).integers(0, 8, (ROWS, N_POSITIONS))
"""More numbers than entries, so that they repeat within rows and between them; four entries do not come at all."""


def network_for(loss: str = "softmax", dense: bool = True, dtype: type = np.float64) -> tuple[Network, np.ndarray]:
    above = [Dense(5, "tanh"), Dense(3)] if dense else []
    network = Network([Embedding(N_ENTRIES, 3), *above], loss, (N_POSITIONS,))
    parameters = network.initial_parameters(SEED, np.float64) + 0.1 * rows(network.n_parameters)
    return network, parameters.astype(dtype)


def touched(network: Network, inputs: np.ndarray) -> np.ndarray:
    assert network.touched is not None
    return network.touched(inputs, np.zeros(len(inputs)))


def mask_of(runs: np.ndarray, length: int) -> np.ndarray:
    mask = np.zeros(length, bool)
    for start, stop in runs:
        mask[start:stop] = True
    return mask


@pytest.mark.parametrize("name", USABLE)
@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_agrees_with_central_differences(loss: str, dense: bool, name: str) -> None:
    """In float64, to 1e-6, with ids that repeat, with layers above the embedding and with none."""
    host, parameters = network_for(loss, dense)
    network, targets = host.on(get_backend(name)), targets_for(loss, ROWS, host.n_outputs)
    value, gradient = network.loss_and_gradient(parameters, IDS, targets)
    expected = central_differences(lambda p: host.loss_and_gradient(p, IDS, targets)[0], parameters)
    assert value == pytest.approx(host.loss_and_gradient(parameters, IDS, targets)[0], rel=1e-12)
    found = network.backend.to_host(gradient)
    assert np.abs(found).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_it_is_a_dense_layer_on_one_hot_rows() -> None:
    """Loss, gradient, predictions and sums are those of the product that a lookup saves."""
    network, _ = network_for()
    by_table = Network([Dense(3), *network.layers[1:]], "softmax", (N_ENTRIES,))
    single = Network(network.layers, "softmax", (1,))
    n_table = N_ENTRIES * 3
    # Of one position, since a dense layer knows no positions; its bias is zero.
    vector = single.initial_parameters(SEED, np.float64)
    with_bias = np.concatenate([vector[:n_table], np.zeros(3), vector[n_table:]])
    ids, one_hot = IDS[:, :1], np.eye(N_ENTRIES)[IDS[:, 0]]
    targets = targets_for("softmax", ROWS)
    value, gradient = single.loss_and_gradient(vector, ids, targets)
    expected, other = by_table.loss_and_gradient(with_bias, one_hot, targets)
    assert value == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(gradient, np.delete(other, range(n_table, n_table + 3)), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(single.predict(vector, ids), by_table.predict(with_bias, one_hot), rtol=1e-12)
    assert single.evaluate(vector, ids, targets) == pytest.approx(by_table.evaluate(with_bias, one_hot, targets))


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.float32, np.float64])
def test_ids_as_data_sets_hand_them_over(dtype: type) -> None:
    """As floats of the run's dtype or as integers they give the same bits, in either dtype of the run."""
    for run in (np.float32, np.float64):
        network, parameters = network_for(dtype=run)
        targets = targets_for("softmax", ROWS)
        value, gradient = network.loss_and_gradient(parameters, IDS, targets)
        again, same = network.loss_and_gradient(parameters, IDS.astype(dtype), targets)
        assert again == value
        assert same.dtype == run
        np.testing.assert_array_equal(same, gradient)
        np.testing.assert_array_equal(network.predict(parameters, IDS.astype(dtype)), network.predict(parameters, IDS))


@pytest.mark.parametrize("name", USABLE)
@pytest.mark.parametrize("dense", [True, False])
@settings(max_examples=40, deadline=None)
@given(
    ids=st.lists(st.lists(st.integers(0, N_ENTRIES - 1), min_size=N_POSITIONS, max_size=N_POSITIONS), max_size=5),
    as_floats=st.booleans(),
)
def test_only_touched_is_the_gradient_there_and_leaves_the_rest(
    name: str, dense: bool, ids: list[list[int]], as_floats: bool
) -> None:
    """On the ranges the full gradient to the bit, which is zero elsewhere; there `out` keeps what it held."""
    host, parameters = network_for("squared", dense)
    network, backend = host.on(get_backend(name)), get_backend(name)
    inputs = np.array(ids, np.float64 if as_floats else np.int64).reshape(-1, N_POSITIONS)
    targets = targets_for("squared", len(inputs), host.n_outputs)
    value, gradient = network.loss_and_gradient(parameters, inputs, targets)
    full = backend.to_host(gradient)
    runs = touched(network, inputs)
    mask = mask_of(runs, host.n_parameters)
    assert not full[~mask].any()
    out = backend.asarray(np.full(host.n_parameters, np.nan))
    only, returned = network.loss_and_gradient(parameters, inputs, targets, out=out, only_touched=True)
    assert returned is out
    assert only == value
    found = backend.to_host(out)
    np.testing.assert_array_equal(found[mask], full[mask])
    assert np.isnan(found[~mask]).all()

    assert runs.dtype == np.int64
    assert isinstance(runs, np.ndarray)
    assert (np.diff(runs.reshape(-1)) > 0).all()
    assert mask[: N_ENTRIES * 3].sum() == 3 * len(set(inputs.reshape(-1)))
    assert mask[N_ENTRIES * 3 :].all()


def test_the_last_row_of_the_table_meets_the_layers_behind_it() -> None:
    """Ranges that meet are one."""
    network, _ = network_for()
    inputs = np.full((1, N_POSITIONS), N_ENTRIES - 1)
    assert touched(network, inputs).tolist() == [[3 * (N_ENTRIES - 1), network.n_parameters]]


def test_what_is_computed_elsewhere_does_not_depend_on_other_rows() -> None:
    """NaN in the parameters that are not touched reaches neither the loss nor the gradient there."""
    network, parameters = network_for()
    targets, mask = targets_for("softmax", ROWS), mask_of(touched(network, IDS), network.n_parameters)
    assert not mask.all()
    unknown = np.where(mask, parameters, np.nan)
    value, gradient = network.loss_and_gradient(parameters, IDS, targets)
    again, same = network.loss_and_gradient(unknown, IDS, targets)
    assert again == value
    np.testing.assert_array_equal(same, gradient)


def test_other_networks_touch_everything() -> None:
    """Without an embedding there is no function, and only_touched makes no difference."""
    assert SMALL.touched is None
    parameters, inputs, targets = SMALL.initial_parameters(SEED), rows(ROWS, 4), targets_for("softmax", ROWS)
    _, gradient = SMALL.loss_and_gradient(parameters, inputs, targets)
    out = np.full(SMALL.n_parameters, np.nan, np.float32)
    SMALL.loss_and_gradient(parameters, inputs, targets, out=out, only_touched=True)
    np.testing.assert_array_equal(out, gradient)


def test_only_touched_needs_out() -> None:
    """A new vector would hold whatever the memory held."""
    network, parameters = network_for()
    with pytest.raises(ArgumentError, match=r"^only_touched: "):
        network.loss_and_gradient(parameters, IDS, targets_for("softmax", ROWS), only_touched=True)


def test_description() -> None:
    """Sizes, the mask of penalties, configuration and pickle know the layer."""
    network, _ = network_for()
    assert network.n_parameters == N_ENTRIES * 3 + (12 * 5 + 5) + (5 * 3 + 3)
    assert network.layout.shapes["0.weights"] == (N_ENTRIES, 3)
    assert network.penalised[: N_ENTRIES * 3].all()
    free = Network([Embedding(N_ENTRIES, 3, penalised=False), *network.layers[1:]], "softmax", (N_POSITIONS,))
    assert not free.penalised[: N_ENTRIES * 3].any()
    for same in (Network.from_config(json.loads(json.dumps(free.to_config()))), pickle.loads(pickle.dumps(free))):
        assert same == free
        assert touched(same, IDS).tolist() == touched(free, IDS).tolist()


def test_an_embedding_is_first_or_refused() -> None:
    """No layer gives ids."""
    with pytest.raises(ArgumentError, match=r"^layers: an Embedding takes ids.*got one as layer 1"):
        Network([Dense(3), Embedding(4, 2)], "softmax", (4,))
    with pytest.raises(ArgumentError, match=r"^layers: an Embedding takes ids"):
        Network([Embedding(4, 2), Embedding(4, 2)], "softmax", (4,))


@pytest.mark.parametrize("name", USABLE)
def test_ids_that_are_no_entries_are_refused_by_every_method(name: str) -> None:
    """From the host or from the device; before any is looked up."""
    host, parameters = network_for()
    network, targets = host.on(get_backend(name)), targets_for("softmax", ROWS)
    assert network.touched is not None
    for wrong in (IDS + 5, IDS - 1, IDS + 0.5):
        for inputs in (wrong, network.backend.asarray(wrong)):
            for call in (
                lambda at: network.loss_and_gradient(parameters, at, targets),
                lambda at: network.predict(parameters, at),
                lambda at: network.evaluate(parameters, at, targets),
                lambda at: network.touched(at, targets),
            ):
                with pytest.raises(ArgumentError, match=r"^inputs: expected ids, whole numbers from 0 to 11, "):
                    call(inputs)
    with pytest.raises(ArgumentError, match=r"^inputs: expected rows of shape \(4,\)"):
        network.touched(IDS[:, 1:], targets)


def test_data_are_checked_before_any_work() -> None:
    """The range of the ids where it is known, and a table too large for the dtype in which they will come."""
    network, _ = network_for()
    network.check_data((N_POSITIONS,), (), np.int64, (0, 2), (0, N_ENTRIES - 1), np.float32)
    network.check_data((N_POSITIONS,), (), np.int64, (0, 2))
    with pytest.raises(DataError, match=r"^inputs: expected ids, whole numbers from 0 to 11, .* got -1 to 3\. "):
        network.check_data((N_POSITIONS,), (), np.int64, (0, 2), (-1, 3))
    with pytest.raises(DataError, match=r"^inputs: expected ids.* got 0 to 12\. "):
        network.check_data((N_POSITIONS,), (), np.int64, (0, 2), (0, 12))
    large = Network([Embedding(2**24 + 1, 1), Dense(3)], "softmax", (1,))
    large.check_data((1,), (), np.int64, (0, 2), None, np.float64)
    large.check_data((1,), (), np.int64, (0, 2))
    with pytest.raises(DataError, match=r"^inputs: an Embedding of 16777217 entries got ids of dtype float32"):
        large.check_data((1,), (), np.int64, (0, 2), None, np.float32)
    # Of networks that take numbers these facts are not asked.
    SMALL.check_data((4,), (), np.int64, (0, 2), (-1e9, 1e9), np.float32)


def test_no_rows_give_zero() -> None:
    """An empty batch has a gradient of zeros and touches only what every row does."""
    network, parameters = network_for()
    inputs, out = IDS[:0], np.full(network.n_parameters, np.nan)
    loss, gradient = network.loss_and_gradient(parameters, inputs, targets_for("softmax", 0), out=out)
    assert loss == 0
    assert not gradient.any()
    assert touched(network, inputs).tolist() == [[3 * N_ENTRIES, network.n_parameters]]
    assert network.predict(parameters, inputs).shape == (0, 3)
