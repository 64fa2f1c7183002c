"""A network: layers and a loss, as a function of one flat vector of parameters."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from dask_belief.backend import Array, Backend, Scalar, get_backend
from dask_belief.checks import check_count
from dask_belief.errors import ArgumentError, DataError
from dask_belief.models.layers import Layer, is_ours, layer_from_config
from dask_belief.models.layout import ParameterLayout, Shape, check_real, check_shape
from dask_belief.models.losses import Loss, get_loss
from dask_belief.models.propagation import Propagation
from dask_belief.models.stack import Stack

FORMAT = 1
"""The version of what `Network.to_config` gives."""

BATCH_ROWS = 4096
"""Rows that `predict` and `evaluate` compute at once."""


@dataclass(frozen=True)
class Network:
    """Layers and a loss; a description, which holds no parameters.

    Conventions
    -----------
    `parameters` is one flat vector ``(n_parameters,)``, float32 or float64, and all is computed in its dtype. `inputs`
    is ``(n_rows, ...)``, each row of as many numbers as ``input_shape`` has, or ids where the first layer is an
    `Embedding`, which says what ids are; `targets` are as
    `dask_belief.models.losses` says. Losses and gradients are sums over rows, losses in float64. A loss that is not
    finite is returned, not raised. Arrays on the host and on the network's device will both do; `out` must be where
    the network computes. Any number of threads may use one network: each has buffers of its own.

    A network pickles as its configuration and its backend's name; with a layer of the user's own, as its layers. Its
    configuration is all that a file holds of it: see `dask_belief.register_layer`.

    Raises
    ------
    ArgumentError
        There are no layers, a layer cannot take what the one before gives, an `Embedding` is not the first, or there
        is no such loss.

    Examples
    --------
    >>> network = Network([Dense(512, "relu"), Dense(10)], loss="softmax", input_shape=(784,))  # doctest: +SKIP
    >>> parameters = network.initial_parameters(seed=0)                                         # doctest: +SKIP
    >>> loss, gradient = network.loss_and_gradient(parameters, inputs, targets)                 # doctest: +SKIP
    """

    layers: Sequence[Layer]
    """From the inputs to the outputs."""

    loss: str
    """``"softmax"``, ``"logistic"`` or ``"squared"``."""

    input_shape: Shape
    """Of one row of inputs."""

    backend: Backend = field(default_factory=lambda: get_backend("numpy"), compare=False, repr=False, kw_only=True)
    """What it computes with; see `on`."""

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "input_shape", check_shape("input_shape", self.input_shape))
        if not self.layers or not all(isinstance(layer, Layer) for layer in self.layers):
            raise ArgumentError(f"layers: expected one layer or more, got {self.layers!r}.")
        self._loss.check_outputs(self.n_outputs)

    @property
    def draws(self) -> bool:
        """Whether a layer draws random numbers while it is trained, so that `loss_and_gradient` needs a key."""
        return any(layer.draws for layer in self.layers)

    @property
    def layout(self) -> ParameterLayout:
        """Where each parameter array lies; ``"1.weights"`` are the weights of the second layer."""
        return self._stack.layout

    @property
    def n_parameters(self) -> int:
        """The length of the parameter vector."""
        return self.layout.n_parameters

    @property
    def n_outputs(self) -> int:
        """How many numbers the last layer gives for a row."""
        return self._stack.n_outputs

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The shapes of one row: of the inputs, and of what each layer gives."""
        return tuple(self._stack.shapes)

    @functools.cached_property
    def penalised(self) -> npt.NDArray[np.bool_]:
        """Which parameters a penalty on the weights covers, bool ``(n_parameters,)``; read-only."""
        mask = self._stack.penalised()
        mask.flags.writeable = False
        return mask

    def on(self, backend: Backend) -> Network:
        """Give the same network, computing with another backend."""
        return replace(self, backend=backend)

    def initial_parameters(self, seed: int, dtype: npt.DTypeLike = np.float32) -> Array:
        """Draw the first parameters, on the host.

        Parameters
        ----------
        seed
            The run's root seed. Each array has a stream of its own, so that another layer more changes no other.
        dtype
            float32 or float64, of the same numbers.
        """
        vector = np.empty(self.n_parameters, check_real(dtype, "dtype"))
        self._stack.draw(seed, vector)
        return vector

    @property
    def touched(self) -> Callable[[Array, Array], npt.NDArray[np.int64]] | None:
        """Which parameters the loss of some rows depends on, where that is not all of them.

        None where no layer is an `Embedding`. Else a function of inputs and targets, which gives int64 ``(n_runs, 2)``
        on the host: half-open ranges of the vector, sorted, apart from one another. The gradient is zero elsewhere. It
        raises `ArgumentError` for inputs that do not fit.

        Examples
        --------
        >>> network = Network([Embedding(100, 2), Dense(1)], loss="squared", input_shape=(3,))  # doctest: +SKIP
        >>> network.touched(np.array([[7, 8, 50]]), np.zeros(1)).tolist()                       # doctest: +SKIP
        [[14, 18], [100, 102], [200, 207]]
        """
        return None if self._stack.embedding is None else self._touched

    def _touched(self, inputs: Array, targets: Array) -> npt.NDArray[np.int64]:
        # Not the dtype of parameters: ids need none.
        with self.backend.computing():
            return self._stack.touched(self.backend.to_host(self.rows(inputs, np.dtype(np.int64))))

    @overload
    def loss_and_gradient(
        self,
        parameters: Array,
        inputs: Array,
        targets: Array,
        *,
        out: Array | None = None,
        only_touched: bool = False,
        is_awaited: Literal[True] = True,
        key: int | None = None,
    ) -> tuple[float, Array]: ...

    @overload
    def loss_and_gradient(
        self,
        parameters: Array,
        inputs: Array,
        targets: Array,
        *,
        out: Array | None = None,
        only_touched: bool = False,
        is_awaited: bool,
        key: int | None = None,
    ) -> tuple[Scalar, Array]: ...

    def loss_and_gradient(
        self,
        parameters: Array,
        inputs: Array,
        targets: Array,
        *,
        out: Array | None = None,
        only_touched: bool = False,
        is_awaited: bool = True,
        key: int | None = None,
    ) -> tuple[Scalar, Array]:
        """Give the loss and its gradient, both summed over the rows.

        Parameters
        ----------
        parameters, inputs, targets
            See the conventions of the class.
        out
            Where to write the gradient, like `parameters`; what it held does not count. Without it the vector is new.
        only_touched
            Leave what lies outside `touched` as it is in `out`, where else it becomes zero: a mini-batch then costs the
            rows of an `Embedding` that it touches, not the whole table. Makes no difference without one, and needs
            `out`.
        is_awaited
            False to wait for nothing on a device: the loss is an array of one value there.
        key
            What a network that `draws` takes its random numbers from, zero or more: the same key with the same
            mini-batch draws the same. `dask_belief.seeds.key` makes one. Others take no notice of it.

        Returns
        -------
        loss_sum
            Python float, but for `is_awaited`.
        gradient_sum
            `out`, or the new vector.

        Raises
        ------
        ArgumentError
            A shape or dtype does not fit, ids are no entries, targets lie outside the classes, or the network draws and
            there is no key.
        """
        check_count("key", key, low=0, may_be_none=True)
        if self.draws and key is None:
            raise ArgumentError(
                "key: expected a whole number, since a layer of the network (Dropout) draws random numbers, got None. "
                "Give one that is another for each mini-batch, as dask_belief.seeds.key makes it."
            )
        if only_touched and out is None:
            raise ArgumentError("only_touched: expected out with it, whose untouched elements keep their values.")
        backend = self.backend
        with backend.computing():
            parameters = self._vector(parameters, "parameters")
            gradient = backend.empty(self.n_parameters, parameters.dtype) if out is None else self._vector(out, "out")
            if gradient.dtype != parameters.dtype:
                raise ArgumentError(f"out: expected dtype {parameters.dtype}, as parameters, got {gradient.dtype}.")
            rows = self.rows(inputs, parameters.dtype)
            loss = self._propagation.loss_and_gradient(
                self._stack.views(parameters),
                rows,
                targets,
                self._stack.views(gradient),
                only_touched=only_touched,
                key=key,
            )
            is_known = is_awaited or backend.name == "numpy"
            return (backend.item(loss) if is_known else loss), gradient

    def predict(self, parameters: Array, inputs: Array, *, batch_rows: int = BATCH_ROWS) -> Array:
        """Predict, from host to host.

        Parameters
        ----------
        parameters, inputs
            See the conventions of the class.
        batch_rows
            Rows computed at once.

        Returns
        -------
        numpy.ndarray
            ``(n_rows, n_outputs)``, of the dtype of `parameters`: probabilities, or values for ``"squared"``.
        """
        check_count("batch_rows", batch_rows)
        backend = self.backend
        with backend.computing():
            parameters = self._vector(parameters, "parameters")
            of_layers = self._stack.views(parameters)
            predictions = np.empty((len(inputs), self.n_outputs), parameters.dtype)
            for where in _batches(len(inputs), batch_rows):
                rows = self.rows(inputs[where], parameters.dtype)
                backend.to_host(self._propagation.predict(of_layers, rows), out=predictions[where])
        return predictions

    def evaluate(self, parameters: Array, inputs: Array, targets: Array) -> dict[str, float]:
        """Give sums over the rows, which add up over any cut of the data.

        Parameters
        ----------
        parameters, inputs, targets
            See the conventions of the class.

        Returns
        -------
        dict
            ``"loss"``, ``"rows"``, and but for ``"squared"`` ``"correct"``: the rows whose likeliest answer is right.
        """
        if len(inputs) != len(targets):
            raise ArgumentError(f"targets: expected as many rows as inputs, {len(inputs)}, got {len(targets)}.")
        sums = {"loss": 0.0, "rows": float(len(inputs))}
        with self.backend.computing():
            parameters = self._vector(parameters, "parameters")
            of_layers = self._stack.views(parameters)
            for where in _batches(len(inputs), BATCH_ROWS):
                rows = self.rows(inputs[where], parameters.dtype)
                for name, value in self._propagation.evaluate(of_layers, rows, targets[where]).items():
                    sums[name] = sums.get(name, 0.0) + value
        return sums

    def check_data(
        self,
        input_shape: Shape,
        target_shape: Shape,
        target_dtype: npt.DTypeLike,
        target_range: tuple[float, float] | None = None,
        input_range: tuple[float, float] | None = None,
        input_dtype: npt.DTypeLike | None = None,
    ) -> None:
        """Refuse a data set that the network cannot learn from, before any work starts.

        Parameters
        ----------
        input_shape, target_shape
            Of one row.
        target_dtype
            As stored.
        target_range
            The lowest and the highest target; None where it is not known.
        input_range
            Of the inputs, likewise.
        input_dtype
            In which the network will be given the inputs, such as the run's; None where it is not known.

        Raises
        ------
        DataError
            The width of the inputs, ids for an `Embedding`, or shape, dtype or values of the targets do not fit.
        """
        if math.prod(input_shape) != math.prod(self.input_shape):
            raise DataError(
                f"inputs: expected rows of shape {self.input_shape}, as the network's input_shape says, got "
                f"{tuple(input_shape)}. Change input_shape, or the data."
            )
        if self._stack.embedding is not None:
            # Integers hold every id; only the range may be wrong.
            fault = self._stack.embedding.fault(np.dtype(np.int64 if input_dtype is None else input_dtype), input_range)
            if fault is not None:
                raise DataError(f"inputs: {fault}")
        self._loss.check_targets(tuple(target_shape), np.dtype(target_dtype), target_range, self.n_outputs)

    def to_config(self) -> dict[str, Any]:
        """Describe the network in plain JSON; see `from_config`."""
        return {
            "format": FORMAT,
            "input_shape": list(self.input_shape),
            "layers": [layer.to_config() for layer in self.layers],
            "loss": self.loss,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Network:
        """Make the network that `to_config` described; it computes on the host.

        Raises
        ------
        ArgumentError
            The format or a key is unknown, or a value is wrong.
        UnknownLayerError
            No layer of a kind that it names is registered.
        """
        expected = {"format", "input_shape", "layers", "loss"}
        if set(config) != expected or config["format"] != FORMAT:
            raise ArgumentError(
                f"config: expected the keys {sorted(expected)} with format {FORMAT}, got {sorted(config)} with format "
                f"{config.get('format')!r}. Another version wrote it, or it is no network."
            )
        return cls([layer_from_config(layer) for layer in config["layers"]], config["loss"], config["input_shape"])

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        """Pickle as configuration and backend; a layer that the other process need not know, as it is."""
        if all(is_ours(layer) for layer in self.layers):
            return _restore, (self.to_config(), self.backend)
        return _rebuild, (self.layers, self.loss, self.input_shape, self.backend)

    @functools.cached_property
    def _stack(self) -> Stack:
        return Stack(self.layers, self.input_shape)

    @functools.cached_property
    def _propagation(self) -> Propagation:
        return Propagation(self._stack, self._loss, self.backend)

    @property
    def _loss(self) -> Loss:
        return get_loss(self.loss)

    def _vector(self, vector: Array, name: str) -> Array:
        """Check a parameter vector or a gradient, and bring it to where the network computes."""
        checked = self.backend.asarray(vector)
        if checked is not vector and name == "out":
            raise ArgumentError(f"out: expected an array of {self.backend.name}, got {type(vector).__name__}.")
        self.layout.check(checked, name)
        return checked

    def rows(self, inputs: Array, dtype: np.dtype[Any]) -> Array:
        """Check the inputs, and bring them to where the network computes; as ids where there is an embedding."""
        embedding = self._stack.embedding
        if embedding is None:
            rows = self.backend.asarray(inputs, dtype)
        else:
            # Ids on the host are checked there, which needs no wait for a device.
            rows = inputs if isinstance(inputs, np.ndarray) else self.backend.asarray(inputs)
        if rows.ndim == 0 or math.prod(rows.shape[1:]) != math.prod(self.input_shape):
            raise ArgumentError(f"inputs: expected rows of shape {self.input_shape}, got an array of {rows.shape}.")
        if embedding is not None:
            rows = embedding.ids(self.backend, rows)
        return rows.reshape(len(rows), *self.input_shape)


def _restore(config: Mapping[str, Any], backend: Backend) -> Network:
    return Network.from_config(config).on(backend)


def _rebuild(layers: Sequence[Layer], loss: str, input_shape: Shape, backend: Backend) -> Network:
    return Network(layers, loss, input_shape, backend=backend)


def _batches(n_rows: int, batch_rows: int) -> Iterator[slice]:
    """Cut rows into runs; one of no rows where there are none, so that its sums still have every name."""
    for start in range(0, max(1, n_rows), batch_rows):
        yield slice(start, start + batch_rows)
