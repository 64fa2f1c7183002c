"""Every operation against its plain formula in float64, over the shapes and dtypes at which blocks could go wrong."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from dask_belief.backend import Array, Backend
from dask_belief.backend.operations import BLOCK_ELEMENTS, FEW_COLUMNS, OPERATIONS, RULE_BLOCK_BYTES
from dask_belief.errors import ArgumentError

SEED = 11
SHAPES = [
    (0, 3),  # no rows
    (1, 1),
    (7, 5),
    (2 * (BLOCK_ELEMENTS // 10) + 1, 10),  # two blocks and a row
    (33, 1031),
    (3, BLOCK_ELEMENTS + 5),  # a row longer than a block
]
LENGTHS = [0, 1, 1000, BLOCK_ELEMENTS, 2 * BLOCK_ELEMENTS + 17]
REAL = [np.float32, np.float64]
ACTIVATIONS: dict[str | None, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    None: lambda z: z,
    "relu": lambda z: np.where(z > 0, z, 0),
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "tanh": np.tanh,
}
SLOPES: dict[str | None, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    None: np.ones_like,
    "relu": lambda a: (a > 0).astype(float),
    "sigmoid": lambda a: a * (1 - a),
    "tanh": lambda a: 1 - a**2,
}


def draw(*shape: int, dtype: type[np.floating] = np.float32) -> Array:
    return np.random.default_rng(SEED).standard_normal(shape).astype(dtype)


def close(backend: Backend, found: Array, expected: Array, scale: float = 1.0) -> None:
    """Compare to a few roundings of the dtype, of numbers of about `scale`."""
    host = backend.to_host(found)
    tolerance = 50 * float(np.finfo(host.dtype).eps)
    np.testing.assert_allclose(host, expected, rtol=tolerance, atol=tolerance * scale)


def wide(values: Array) -> NDArray[np.float64]:
    return values.astype(np.float64)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bias_activation(
    backend: Backend, activation: str | None, shape: tuple[int, int], dtype: type[np.floating]
) -> None:
    """The bias is added to each row and the activation taken, in place."""
    z, bias = draw(*shape, dtype=dtype), draw(shape[1], dtype=dtype)
    on_device = backend.asarray(z.copy())
    backend.bias_activation_(on_device, backend.asarray(bias), activation)
    close(backend, on_device, ACTIVATIONS[activation](wide(z) + wide(bias)))


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_gradient(
    backend: Backend, activation: str | None, shape: tuple[int, int], dtype: type[np.floating]
) -> None:
    """What comes from above is multiplied by the derivative, found from the activation's value."""
    activated: Array = ACTIVATIONS[activation](wide(draw(*shape, dtype=dtype))).astype(dtype)
    delta = draw(*shape, dtype=dtype)[::-1].copy()
    on_device = backend.asarray(delta.copy())
    backend.activation_gradient_(on_device, backend.asarray(activated), activation)
    close(backend, on_device, wide(delta) * SLOPES[activation](wide(activated)))


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("shape", SHAPES)
def test_softmax_and_its_cross_entropy(backend: Backend, shape: tuple[int, int], dtype: type[np.floating]) -> None:
    """Loss, gradient and probabilities are those of the formula, on either side of `FEW_COLUMNS`."""
    z = draw(*shape, dtype=dtype)
    targets = np.random.default_rng(SEED).integers(0, shape[1], shape[0])
    exponentials = np.exp(wide(z))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    rows = np.arange(shape[0])
    expected_losses = -np.log(probabilities[rows, targets])

    on_device, losses = backend.asarray(z.copy()), backend.empty(shape[0], dtype)
    backend.softmax_cross_entropy_(on_device, backend.asarray(targets), losses)
    close(backend, losses, expected_losses, scale=10)
    expected = probabilities.copy()
    expected[rows, targets] -= 1
    close(backend, on_device, expected)

    on_device = backend.asarray(z.copy())
    backend.softmax_(on_device)
    close(backend, on_device, probabilities)


def test_both_ways_of_softmax_are_met() -> None:
    """The shapes above lie on either side of the bound that chooses whether NumPy turns rows into columns."""
    assert {columns <= FEW_COLUMNS for _, columns in SHAPES} == {True, False}


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("shape", SHAPES)
def test_logistic(backend: Backend, shape: tuple[int, int], dtype: type[np.floating]) -> None:
    """Losses are summed over the outputs of a row; the gradient is the probability less the target."""
    z = draw(*shape, dtype=dtype)
    targets: Array = (draw(*shape)[:, ::-1] > 0).astype(dtype)
    on_device, losses = backend.asarray(z.copy()), backend.empty(shape[0], dtype)
    backend.logistic_(on_device, backend.asarray(targets), losses)
    probabilities = 1 / (1 + np.exp(-wide(z)))
    expected = -np.where(targets == 1, np.log(probabilities), np.log(1 - probabilities)).sum(axis=1)
    close(backend, losses, expected, scale=shape[1])
    close(backend, on_device, probabilities - targets)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("shape", SHAPES)
def test_squared_error(backend: Backend, shape: tuple[int, int], dtype: type[np.floating]) -> None:
    """The loss is half the sum of squares, the gradient the difference."""
    z, targets = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype)[::-1].copy()
    on_device, losses = backend.asarray(z.copy()), backend.empty(shape[0], dtype)
    backend.squared_error_(on_device, backend.asarray(targets), losses)
    close(backend, losses, 0.5 * ((wide(z) - wide(targets)) ** 2).sum(axis=1), scale=shape[1])
    close(backend, on_device, wide(z) - wide(targets))


@pytest.mark.parametrize("dtype", REAL)
def test_losses_are_stable_at_large_logits(backend: Backend, dtype: type[np.floating]) -> None:
    """At logits of plus and minus 10,000 losses and gradients are exact, not infinite or NaN."""
    big = 1e4
    z = np.array([[big, -big], [big, -big], [big, big]], dtype)
    on_device, losses = backend.asarray(z.copy()), backend.empty(3, dtype)
    backend.softmax_cross_entropy_(on_device, backend.asarray(np.array([0, 1, 0])), losses)
    close(backend, losses, np.array([0, 2 * big, np.log(2)]))
    close(backend, on_device, np.array([[0, 0], [1, -1], [-0.5, 0.5]]))

    on_device, losses = backend.asarray(z.copy()), backend.empty(3, dtype)
    targets = np.array([[1, 0], [0, 1], [1, 1]], dtype)
    backend.logistic_(on_device, backend.asarray(targets), losses)
    close(backend, losses, np.array([0, 2 * big, 0]))
    close(backend, on_device, np.array([[0, 0], [1, -1], [0, 0]]))


@pytest.mark.parametrize("dtype", REAL)
def test_sigmoid_keeps_its_lower_tail(backend: Backend, dtype: type[np.floating]) -> None:
    """Small probabilities keep their relative accuracy, so that rare events can be ranked; none overflows."""
    z = np.array([[-80.0, -40.0, -1.0, 0.0, 3.0, 1e4, -1e4]], dtype)
    on_device = backend.asarray(z.copy())
    backend.sigmoid_(on_device)
    expected = [[np.exp(-80.0), np.exp(-40.0), 1 / (1 + np.e), 0.5, 1 / (1 + np.exp(-3.0)), 1.0, 0.0]]
    np.testing.assert_allclose(backend.to_host(on_device), expected, rtol=50 * float(np.finfo(dtype).eps))


@pytest.mark.parametrize("operation", ["softmax_cross_entropy_", "logistic_", "squared_error_"])
def test_a_logit_that_is_not_a_number_makes_its_loss_one(backend: Backend, operation: str) -> None:
    """NaN reaches the loss of its row and of no other, and nothing warns."""
    z = np.array([[0.0, np.nan, 1.0], [0.0, 1.0, 2.0]], np.float32)
    targets = np.array([0, 1]) if "softmax" in operation else np.zeros((2, 3), np.float32)
    losses = backend.empty(2, np.float32)
    getattr(backend, operation)(backend.asarray(z), backend.asarray(targets), losses)
    assert np.isnan(backend.to_host(losses)).tolist() == [True, False]


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("length", LENGTHS)
def test_vector_algebra(backend: Backend, length: int, dtype: type[np.floating]) -> None:
    """axpy_ and add_ write their second array, scale_ its only one."""
    x, y = draw(length, dtype=dtype), draw(length, dtype=dtype)[::-1].copy()
    on_device = backend.asarray(y.copy())
    backend.axpy_(-0.3, backend.asarray(x), on_device)
    close(backend, on_device, wide(y) - 0.3 * wide(x))
    on_device = backend.asarray(y.copy())
    backend.add_(backend.asarray(x), on_device)
    close(backend, on_device, wide(y) + wide(x))
    on_device = backend.asarray(y.copy())
    backend.scale_(0.7, on_device)
    close(backend, on_device, 0.7 * wide(y))


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("length", [*LENGTHS[:3], RULE_BLOCK_BYTES // 4, 2 * (RULE_BLOCK_BYTES // 4) + 17])
def test_rules(backend: Backend, length: int, dtype: type[np.floating]) -> None:
    """Two steps of each rule give what its formula gives, state included."""
    rate, momentum, share, epsilon = 0.1, 0.9, 0.01, 1e-8
    start = draw(length, dtype=dtype)
    gradients = [draw(length, dtype=dtype)[::-1].copy(), draw(length, dtype=dtype)]
    values = {name: backend.asarray(start.copy()) for name in ("sgd", "momentum", "nesterov", "adagrad", "rmsprop")}
    values["adam"] = backend.asarray(start.copy())
    vectors = ("momentum velocity", "nesterov velocity", "adagrad sum", "rmsprop square", "adam mean", "adam square")
    state = {name: backend.asarray(np.full(length, 0.1, dtype)) for name in vectors}
    plain = {name: wide(start) for name in values}
    plain_state = {name: wide(np.full(length, 0.1, dtype)) for name in vectors}
    for gradient in gradients:
        on_device, g = backend.asarray(gradient), wide(gradient)
        backend.sgd_(values["sgd"], on_device, rate)
        backend.momentum_(values["momentum"], on_device, state["momentum velocity"], rate, momentum)
        backend.nesterov_(values["nesterov"], on_device, state["nesterov velocity"], rate, momentum)
        backend.adagrad_(values["adagrad"], on_device, state["adagrad sum"], rate, epsilon)
        backend.rmsprop_(values["rmsprop"], on_device, state["rmsprop square"], rate, share, epsilon)
        of_adam = state["adam mean"], state["adam square"]
        backend.adam_(values["adam"], on_device, *of_adam, rate, 1 - momentum, share, epsilon)
        for name in ("momentum velocity", "nesterov velocity"):
            plain_state[name] = momentum * plain_state[name] + g
        plain_state["adagrad sum"] += g * g
        plain_state["adam mean"] = momentum * plain_state["adam mean"] + (1 - momentum) * g
        for name in ("rmsprop square", "adam square"):
            plain_state[name] = (1 - share) * plain_state[name] + share * g * g
        plain["sgd"] -= rate * g
        plain["momentum"] -= rate * plain_state["momentum velocity"]
        plain["nesterov"] -= rate * (g + momentum * plain_state["nesterov velocity"])
        plain["adagrad"] -= rate * g / (np.sqrt(plain_state["adagrad sum"]) + epsilon)
        plain["rmsprop"] -= rate * g / (np.sqrt(plain_state["rmsprop square"]) + epsilon)
        plain["adam"] -= rate * plain_state["adam mean"] / (np.sqrt(plain_state["adam square"]) + epsilon)
    for name, expected in (plain | plain_state).items():
        close(backend, (values | state)[name], expected)


def every_kind_of_float32() -> NDArray[np.float32]:
    """Each sign, exponent and upper half of a mantissa there is, with lower halves around a tie and at the ends."""
    upper = np.arange(2**16, dtype=np.uint32)[:, np.newaxis] << 16
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    return (upper | lower).reshape(-1).view(np.float32)


def as_bfloat16(values: Array) -> NDArray[np.float32]:
    """Round numbers that are not NaN to eight binary digits, by their definition and in float64."""
    wider = wide(values)
    _, exponents = np.frexp(wider)
    with np.errstate(invalid="ignore", over="ignore"):
        unit = np.ldexp(1.0, np.maximum(exponents, -125) - 8)
        rounded = np.where(np.isinf(wider), wider, np.rint(wider / unit) * unit)
        # What is a unit above the largest is infinite.
        return rounded.astype(np.float32)


def test_bfloat16_is_the_nearest_and_even_of_two(backend: Backend) -> None:
    """Over all exponents, ties, numbers too small to be normal, infinities and NaN with any other bits."""
    values = every_kind_of_float32()
    is_nan = np.isnan(values)
    bits = backend.empty(len(values), np.uint16)
    backend.to_bfloat16_(backend.asarray(values), bits)
    found = backend.to_host(bits)
    expected = as_bfloat16(values[~is_nan]).view(np.uint32) >> 16
    np.testing.assert_array_equal(found[~is_nan], expected)
    # Quiet, and else the bits that it had.
    np.testing.assert_array_equal(found[is_nan], values[is_nan].view(np.uint32) >> 16 | 0x40)


def test_what_bfloat16_leaves_out_stays_behind(backend: Backend) -> None:
    """What was taken and what stays add up to what there was, exactly; nothing stays of what is not finite."""
    values = every_kind_of_float32()
    is_nan = np.isnan(values)
    on_device, bits = backend.asarray(values.copy()), backend.empty(len(values), np.uint16)
    backend.take_bfloat16_(on_device, bits)
    plain = backend.empty(len(values), np.uint16)
    backend.to_bfloat16_(backend.asarray(values), plain)
    np.testing.assert_array_equal(backend.to_host(bits), backend.to_host(plain))
    taken = as_bfloat16(values[~is_nan])
    expected = np.where(np.isinf(taken), 0, wide(values[~is_nan]) - np.where(np.isinf(taken), 0, taken))
    found = backend.to_host(on_device)
    # A device may flush what is too small to be normal.
    smallest = 0.0 if backend.name == "numpy" else float(np.finfo(np.float32).tiny)
    np.testing.assert_allclose(found[~is_nan], expected, rtol=0, atol=smallest)
    assert (found[is_nan] == 0).all()


def test_bfloat16_is_widened_exactly(backend: Backend) -> None:
    """Each of the 65,536 becomes the float32 whose upper half it is."""
    bits = np.arange(2**16, dtype=np.uint16)
    values = backend.empty(len(bits), np.float32)
    backend.from_bfloat16_(backend.asarray(bits), values)
    np.testing.assert_array_equal(backend.to_host(values).view(np.uint32), bits.astype(np.uint32) << 16)


@pytest.mark.parametrize("length", LENGTHS)
def test_bfloat16_over_blocks(backend: Backend, length: int) -> None:
    """Of any length, each element by itself; what is only read stays as it is."""
    values = draw(length)
    on_device, bits = backend.asarray(values.copy()), backend.asarray(np.full(length + 1, 7, np.uint16))
    with backend.computing():
        head = bits[:length]
    backend.to_bfloat16_(on_device, head)
    np.testing.assert_array_equal(backend.to_host(on_device), values)
    assert backend.to_host(bits)[length] == 7
    widened = backend.empty(length, np.float32)
    backend.from_bfloat16_(head, widened)
    np.testing.assert_array_equal(backend.to_host(widened), as_bfloat16(values))
    np.testing.assert_array_equal(backend.to_host(bits)[:length], as_bfloat16(values).view(np.uint32) >> 16)
    backend.take_bfloat16_(on_device, head)
    np.testing.assert_array_equal(backend.to_host(on_device), values - as_bfloat16(values))


def test_one_number_that_is_not_finite_spoils_no_other(backend: Backend) -> None:
    """Also where the squares of the others are too large to be added up."""
    values = np.full(1000, 3e30, np.float32)
    values[[10, 20, 30]] = np.nan, np.inf, -np.inf
    on_device, bits = backend.asarray(values.copy()), backend.empty(len(values), np.uint16)
    backend.take_bfloat16_(on_device, bits)
    widened = backend.empty(len(values), np.float32)
    backend.from_bfloat16_(bits, widened)
    rest, taken = backend.to_host(on_device), backend.to_host(widened)
    assert np.isnan(taken[10]) and taken[20] == np.inf and taken[30] == -np.inf
    assert (rest[[10, 20, 30]] == 0).all()
    others = np.delete(np.arange(1000), [10, 20, 30])
    np.testing.assert_array_equal(taken[others], as_bfloat16(values[others]))
    np.testing.assert_array_equal(rest[others], values[others] - as_bfloat16(values[others]))


def test_bfloat16_of_views_with_gaps_on_the_host() -> None:
    """What lies between is left alone."""
    whole, bits = draw(40), np.full(60, 7, np.uint16)
    before = whole.copy()
    OPERATIONS["take_bfloat16"].numpy(whole[::2], bits[::3])
    np.testing.assert_array_equal(whole[1::2], before[1::2])
    np.testing.assert_array_equal(whole[::2], before[::2] - as_bfloat16(before[::2]))
    assert (bits[1::3] == 7).all() and (bits[2::3] == 7).all()
    OPERATIONS["from_bfloat16"].numpy(bits[::3], whole[::2])
    np.testing.assert_array_equal(whole[::2], as_bfloat16(before[::2]))


def test_scatter_add_counts_repeated_indices(backend: Backend) -> None:
    """Each source row is added to the row of its index, also where an index comes many times."""
    generator = np.random.default_rng(SEED)
    indices = generator.integers(0, 5, 300)
    source, destination = draw(300, 7, dtype=np.float64), draw(6, 7, dtype=np.float64)
    expected = destination.copy()
    for index, row in zip(indices, source, strict=True):
        expected[index] += row
    on_device = backend.asarray(destination.copy())
    backend.scatter_add_(on_device, backend.asarray(indices), backend.asarray(source))
    # The same additions in the same order: the same bits.
    np.testing.assert_array_equal(backend.to_host(on_device), expected)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("n_columns", [1, 64, BLOCK_ELEMENTS + 1])
def test_scatter_add_over_blocks(backend: Backend, n_columns: int, dtype: type[np.floating]) -> None:
    """Where an index comes in several blocks the additions keep their order, and with it their bits."""
    n_rows = 3 if n_columns > BLOCK_ELEMENTS else 2 * (BLOCK_ELEMENTS // n_columns) + 5
    indices = np.random.default_rng(SEED).integers(0, 2, n_rows)
    source, destination = draw(n_rows, n_columns, dtype=dtype), draw(3, n_columns, dtype=dtype)[::-1].copy()
    on_device = backend.asarray(destination.copy())
    backend.scatter_add_(on_device, backend.asarray(indices), backend.asarray(source))
    np.add.at(destination, indices, source)
    np.testing.assert_array_equal(backend.to_host(on_device), destination)


def test_scatter_add_to_a_view_with_gaps_on_the_host() -> None:
    """What lies between the columns stays as it is."""
    whole, source = draw(6, 10), draw(40, 5)[::-1]
    expected, indices = whole.copy(), np.random.default_rng(SEED).integers(0, 6, 40)
    np.add.at(expected[:, ::2], indices, source)
    OPERATIONS["scatter_add"].numpy(indices, source, whole[:, ::2])
    np.testing.assert_array_equal(whole, expected)


def test_a_second_call_gives_the_same_bits(backend: Backend) -> None:
    """Scratch that an earlier, larger call left behind changes nothing."""
    z, targets = draw(40, 12), np.random.default_rng(SEED).integers(0, 12, 40)

    def once() -> Array:
        on_device, losses = backend.asarray(z.copy()), backend.empty(40, np.float32)
        backend.bias_activation_(on_device, backend.asarray(z[0]), "sigmoid")
        backend.activation_gradient_(on_device, backend.asarray(z), "tanh")
        backend.softmax_cross_entropy_(on_device, backend.asarray(targets), losses)
        return backend.to_host(on_device)

    first = once()
    large = backend.asarray(draw(2000, 100))
    backend.activation_gradient_(large, backend.asarray(draw(2000, 100)), "tanh")
    np.testing.assert_array_equal(once(), first)


def test_arguments_that_are_only_read_stay_as_they_are(backend: Backend) -> None:
    """Operations write what their formulas say and nothing else."""
    bias, activated, targets = draw(4), draw(3, 4), draw(3, 4)
    read_only = [backend.asarray(values.copy()) for values in (bias, activated, targets)]
    z, losses = backend.asarray(draw(3, 4)), backend.empty(3, np.float32)
    for activation in ACTIVATIONS:
        backend.bias_activation_(z, read_only[0], activation)
        backend.activation_gradient_(z, read_only[1], activation)
    backend.logistic_(z, read_only[2], losses)
    backend.squared_error_(z, read_only[2], losses)
    backend.adagrad_(z, read_only[1], backend.asarray(np.ones((3, 4), np.float32)), 0.1, 1e-8)
    backend.axpy_(2.0, read_only[1], z)
    for kept, before in zip(read_only, (bias, activated, targets), strict=True):
        np.testing.assert_array_equal(backend.to_host(kept), before)


def test_views_with_gaps_are_written_on_the_host() -> None:
    """The NumPy bodies take strided views, as a slice of columns is, and leave what lies between."""
    whole = draw(50, 20)
    before = whole.copy()
    OPERATIONS["bias_tanh"].numpy(np.zeros(10, np.float32), whole[:, ::2])
    close_to = np.tanh(wide(before[:, ::2]))
    np.testing.assert_allclose(whole[:, ::2], close_to, rtol=1e-5)
    np.testing.assert_array_equal(whole[:, 1::2], before[:, 1::2])


ON_ELEMENTS = [
    *("bias_identity", "bias_relu", "bias_sigmoid", "bias_tanh", "relu_gradient", "sigmoid_gradient", "tanh_gradient"),
    *("sigmoid", "axpy", "scale", "add", "sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam"),
]
VIEWED = [*ON_ELEMENTS, "softmax_cross_entropy", "softmax", "logistic", "squared_error", "scatter_add"]
"""Operations whose arguments `operands` knows."""


def operands(operation: str, dtype: type[np.floating]) -> list[Array | float]:
    """Arguments for an operation of the table, on the host: six rows of ten, numbers where it takes numbers."""
    found: list[Array | float] = []
    for number, parameter in enumerate(inspect.signature(OPERATIONS[operation].numpy).parameters.values()):
        if parameter.annotation == "float":
            found.append(0.25)
        elif parameter.name == "indices" or (parameter.name, operation) == ("targets", "softmax_cross_entropy"):
            found.append(np.array([0, 2, 2, 5, 1, 0]))
        else:
            # Positive, as sums of squares are, and not the same for all.
            shape = (6,) if parameter.name == "losses" else (6, 10)
            found.append(np.abs(draw(*shape, dtype=dtype)) / (number + 1))
    return found


def with_gaps(backend: Backend, values: Array | float) -> tuple[Array, Array | float]:
    """An array on the device, and the view of every other of its columns, which are `values`; a number as it is."""
    if isinstance(values, float):
        return np.zeros(0), values
    whole = np.full((*values.shape[:-1], 2 * values.shape[-1]), 3, values.dtype)
    whole[..., ::2] = values
    on_device = backend.asarray(whole)
    return on_device, on_device[..., ::2]


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("operation", VIEWED)
def test_views_with_gaps(backend: Backend, operation: str, dtype: type[np.floating]) -> None:
    """A slice of columns gives what a copy of it gives, and what lies between stays as it is.

    A device's kernels on rows go by address and shape alone: they refuse each array with gaps, and write nothing.
    """
    if backend.name != "numpy" and operation not in ON_ELEMENTS:
        for number in range(len(operands(operation, dtype))):
            check_refusal(backend, operation, dtype, number)
        return
    expected = [
        values if isinstance(values, float) else backend.asarray(values.copy()) for values in operands(operation, dtype)
    ]
    backend._run(operation, *expected)
    wholes, views = zip(*(with_gaps(backend, values) for values in operands(operation, dtype)), strict=True)
    backend._run(operation, *views)
    for whole, values in zip(wholes, expected, strict=True):
        if not isinstance(values, float):
            host = backend.to_host(whole)
            np.testing.assert_allclose(host[..., ::2], backend.to_host(values), rtol=50 * float(np.finfo(dtype).eps))
            np.testing.assert_array_equal(host[..., 1::2], 3)


def check_refusal(backend: Backend, operation: str, dtype: type[np.floating], number: int) -> None:
    """The argument of that number has gaps: the operation raises, and its other arguments are as they were."""
    arrays: list[Array | float] = [backend.asarray(values) for values in operands(operation, dtype)]
    _, arrays[number] = with_gaps(backend, operands(operation, dtype)[number])
    with pytest.raises(ArgumentError, match=f"a C-contiguous array .* is needed by {operation}"):
        backend._run(operation, *arrays)
    for array, values in zip(arrays, operands(operation, dtype), strict=True):
        np.testing.assert_array_equal(backend.to_host(array), values)


@pytest.mark.parametrize("dtype", REAL)
def test_what_is_not_finite_is_found(backend: Backend, dtype: type[np.floating]) -> None:
    """One NaN or infinity anywhere is told, in silence; numbers whose squares are too large are finite."""
    values = np.ones(1000, dtype)
    assert backend.is_finite(backend.asarray(values))
    assert backend.is_finite(backend.asarray(values * np.sqrt(np.finfo(dtype).max)))
    assert backend.is_finite(backend.asarray(values[:0]))
    for bad in (np.nan, np.inf, -np.inf):
        values[777] = bad
        assert not backend.is_finite(backend.asarray(values))
