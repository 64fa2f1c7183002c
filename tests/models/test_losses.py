"""Losses: which targets they take, and what they count as right. Their values and gradients: `test_network.py`."""

from __future__ import annotations

import numpy as np
import pytest

from dask_belief.backend import get_backend
from dask_belief.errors import ArgumentError, DataError
from dask_belief.models.losses import LOSSES, get_loss

backend = get_backend("numpy")
Z = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])


@pytest.mark.parametrize(
    ("name", "targets", "n_outputs", "expected"),
    [
        ("softmax", np.array([0, 2], np.uint8), 3, [0, 2]),
        ("softmax", np.array([[0], [2]]), 3, [0, 2]),
        ("softmax", np.array([True, False]), 3, [1, 0]),
        ("logistic", np.array([0, 1]), 1, [[0], [1]]),
        ("logistic", np.array([[0, 1, 0], [1, 1, 1]]), 3, [[0, 1, 0], [1, 1, 1]]),
        ("squared", np.array([0.5, 2.0], np.float32), 1, [[0.5], [2]]),
        ("squared", np.array([[1, 2, 3], [4, 5, 6]]), 3, [[1, 2, 3], [4, 5, 6]]),
    ],
)
def test_targets_are_arranged(name: str, targets: np.ndarray, n_outputs: int, expected: list) -> None:
    """Classes become int64 of one axis; numbers take the shape and dtype of the outputs."""
    z = Z[:, :n_outputs]
    prepared = get_loss(name).prepare(backend, targets, z)
    assert prepared.tolist() == expected
    assert prepared.dtype == (np.int64 if name == "softmax" else z.dtype)


BAD = [
    ("softmax", np.array([0, 3]), 3, "classes from 0 to 2, got 0 to 3"),
    ("softmax", np.array([-1, 0]), 3, "got -1 to 0"),
    ("softmax", np.array([0.0, 1.0]), 3, "whole numbers.*float64"),
    ("logistic", np.array([0, 2]), 1, "0 or 1 .*got 0 to 2"),
    ("logistic", np.array([-0.1, 1]), 1, "got -0.1 to 1"),
    ("logistic", np.array(["a", "b"]), 1, "numbers"),
    ("squared", np.array([1j, 0]), 1, "real numbers.*complex128"),
]


@pytest.mark.parametrize(("name", "targets", "n_outputs", "message"), BAD)
def test_wrong_targets_are_refused(name: str, targets: np.ndarray, n_outputs: int, message: str) -> None:
    """In a batch and in a data set alike; of the latter by dtype and range alone."""
    loss = get_loss(name)
    if targets.dtype.kind in "if":
        with pytest.raises(ArgumentError, match=rf"^targets: .*{message}"):
            loss.prepare(backend, targets, Z[:, :n_outputs])
        target_range = (float(targets.min()), float(targets.max()))
    else:
        target_range = None
    with pytest.raises(DataError, match=rf"^targets: .*{message}"):
        loss.check_targets((), targets.dtype, target_range, n_outputs)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("softmax", (3,)), ("softmax", (3, 1)), ("softmax", ()), ("logistic", (2,)), ("squared", (2, 2))],
)
def test_wrong_shapes_are_refused(name: str, shape: tuple[int, ...]) -> None:
    """As many rows as the outputs have, each with as many numbers as the loss asks for."""
    targets = np.zeros(shape, int)
    with pytest.raises(ArgumentError, match=rf"^targets: expected 2 rows of .*{name}"):
        get_loss(name).prepare(backend, targets, Z)


@pytest.mark.parametrize(("name", "row_shape"), [("softmax", (2,)), ("logistic", ()), ("squared", (4,))])
def test_a_data_set_of_another_width_is_refused(name: str, row_shape: tuple[int, ...]) -> None:
    """The shape of a row of targets fits the network's outputs."""
    with pytest.raises(DataError, match=r"^targets: expected [13] a row"):
        get_loss(name).check_targets(row_shape, np.dtype(np.int64), (0, 1), 3)


def test_an_unknown_range_passes() -> None:
    """Where nobody has looked at the values yet, shape and dtype decide."""
    get_loss("softmax").check_targets((), np.dtype(np.uint8), None, 3)
    get_loss("logistic").check_targets((1,), np.dtype(np.float32), None, 1)


def test_what_counts_as_right() -> None:
    """Softmax: the likeliest class. Logistic: the right side of a half, or of several outputs the largest."""
    three, one = Z, np.array([[0.3], [-0.2]])
    assert get_loss("softmax").is_correct(backend, three, np.array([0, 1])).tolist() == [True, False]
    onehot = np.array([[1.0, 0, 0], [0, 1, 0]])
    assert get_loss("logistic").is_correct(backend, three, onehot).tolist() == [True, False]
    assert get_loss("logistic").is_correct(backend, one, np.array([[1.0], [1.0]])).tolist() == [True, False]
    assert get_loss("squared").is_correct(backend, three, three) is None


def test_softmax_of_one_output_is_refused() -> None:
    """It would always be 1; the message says which loss to use."""
    with pytest.raises(ArgumentError, match=r"^loss: .*'logistic'"):
        get_loss("softmax").check_outputs(1)
    get_loss("logistic").check_outputs(1)


@pytest.mark.parametrize("name", ["hinge", None, ["softmax"]])
def test_unknown_losses_are_refused(name: object) -> None:
    """The message gives the choice."""
    with pytest.raises(ArgumentError, match=r"^loss: expected one of softmax, logistic, squared"):
        get_loss(name)


def test_every_loss_is_listed_under_its_name() -> None:
    """A configuration names losses by name."""
    assert all(name == loss.name for name, loss in LOSSES.items())
