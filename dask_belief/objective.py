"""What can be trained: anything that gives a loss and a gradient over rows on one flat vector.

The paper: "applicable to any gradient-based machine learning algorithm". `dask_belief.Network` is one; a user's few
lines are another.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dask_belief.backend import Scalar
from dask_belief.errors import ArgumentError

Vector = NDArray[np.floating]


@runtime_checkable
class Objective(Protocol):
    """The least that `dask_belief.train` asks of an objective; it is pickled to the workers.

    An objective may offer more: ``penalised``, boolean ``(n_parameters,)``, says which parameters a penalty covers
    (all, where it is missing); ``loss_and_gradient(..., out=vector)`` writes the gradient where it is wanted;
    ``evaluate(parameters, inputs, targets)`` gives sums over rows for validation; ``predict(parameters, inputs)``
    is what `TrainingResult.predict` calls; ``check_data`` refuses data that do not fit; ``on(backend)`` gives the same
    objective for a backend of `dask_belief.get_backend`, to which it brings rows itself, and may take
    ``is_awaited=False`` then (see `Network.loss_and_gradient`): an objective without it is computed with NumPy on any
    worker. A `Network` is saved with a result, another objective is not.

    Where a few rows depend on few of the parameters, as with an `Embedding`, two members let a run fetch, compute and
    push those alone. ``touched(inputs, targets)`` gives the ranges of the vector on which loss and gradient of these
    rows depend, int64 ``(n_runs, 2)``: half-open, sorted, none empty, none overlapping the next; the gradient is zero
    elsewhere, the penalty left aside. As an attribute that is None it says that there is nothing to gain.
    ``loss_and_gradient(..., out=vector, only_touched=True)`` then leaves what lies outside these ranges in ``out`` as
    it is, so that no call costs a pass over the whole vector.
    """

    @property
    def n_parameters(self) -> int:
        """The length of the parameter vector."""
        ...

    def initial_parameters(self, seed: int) -> Vector:
        """Where training begins, ``(n_parameters,)``."""
        ...

    def loss_and_gradient(self, parameters: Any, inputs: Any, targets: Any) -> tuple[float, Any]:
        """The sums over rows of the loss and of its gradient ``(n_parameters,)``."""
        ...


def check_objective(objective: object) -> None:
    """Refuse what is no objective, by name of what is missing; raises `ArgumentError`."""
    if isinstance(objective, type):
        raise ArgumentError(f"objective: got the class {objective.__name__} itself; give one of its instances.")
    missing = [
        name for name in ("n_parameters", "initial_parameters", "loss_and_gradient") if not hasattr(objective, name)
    ]
    if missing:
        raise ArgumentError(
            f"objective: {type(objective).__name__} lacks {', '.join(missing)}. Give a dask_belief.Network, or an "
            "object with n_parameters, initial_parameters(seed) and loss_and_gradient(parameters, inputs, targets)."
        )


def penalised_of(objective: Objective) -> NDArray[np.bool_] | None:
    """Which parameters a penalty covers, or None for all; raises `ArgumentError` for a wrong mask."""
    mask = getattr(objective, "penalised", None)
    if mask is None:
        return None
    mask = np.asarray(mask)
    if mask.dtype != np.bool_ or mask.shape != (objective.n_parameters,):
        raise ArgumentError(
            f"objective.penalised: expected booleans of shape ({objective.n_parameters},), got {mask.dtype} of shape "
            f"{mask.shape}."
        )
    return mask


def penalty(objective: Objective, parameters: Vector, l2: float) -> float:
    """``l2 / 2 * ||w||^2`` over the penalised parameters, in float64."""
    mask = penalised_of(objective)
    covered = np.asarray(parameters if mask is None else parameters[mask], np.float64)
    return 0.5 * l2 * float(np.dot(covered, covered))


def draws_of(objective: Objective) -> bool:
    """Tell whether an objective draws random numbers, as a `Network` with a `Dropout` does."""
    return bool(getattr(objective, "draws", False))


Touched = Callable[[Any, Any], NDArray[np.int64]]
"""Gives the ranges that inputs and targets touch; see `Objective`."""


def touched_of(objective: Objective) -> Touched | None:
    """What tells which parameters some rows touch, checked at each call; None where it may be any of them."""
    touched: Touched | None = getattr(objective, "touched", None)
    if touched is None:
        return None
    if not callable(touched):
        raise ArgumentError(f"objective.touched: expected a function of inputs and targets or None, got {touched!r}.")
    return _CheckedTouched(touched, objective.n_parameters)


class _CheckedTouched:
    """Calls an objective's ``touched`` and refuses what are no ranges of the vector."""

    def __init__(self, touched: Touched, n_parameters: int) -> None:
        self._touched = touched
        self._n_parameters = n_parameters

    def __call__(self, inputs: Any, targets: Any) -> NDArray[np.int64]:
        runs = np.asarray(self._touched(inputs, targets))
        if runs.ndim != 2 or runs.shape[1] != 2 or runs.dtype.kind not in "iu":
            raise ArgumentError(
                f"objective.touched: expected whole numbers of shape (n_runs, 2), got {runs.dtype} of shape "
                f"{runs.shape}."
            )
        borders = runs.astype(np.int64, copy=False).reshape(-1)
        gaps = np.diff(borders)
        if borders.size and not (
            borders[0] >= 0 and borders[-1] <= self._n_parameters and gaps.min() >= 0 and gaps[::2].min() > 0
        ):
            raise ArgumentError(
                f"objective.touched: expected sorted ranges of the {self._n_parameters} parameters, none empty and "
                "none overlapping the next; got others."
            )
        return borders.reshape(-1, 2)


class Gradients:
    """Calls an objective so that the gradient lands in a given vector, whatever more than the least it knows.

    Parameters
    ----------
    objective
        Any `Objective`.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._n_parameters = objective.n_parameters
        known = inspect.signature(objective.loss_and_gradient).parameters
        self._knows_out = "out" in known
        self._knows_only_touched = self._knows_out and "only_touched" in known
        self._knows_is_awaited = "is_awaited" in known
        self._knows_key = "key" in known

    def __call__(
        self,
        parameters: Vector,
        inputs: Any,
        targets: Any,
        out: Vector,
        *,
        only_touched: bool = False,
        key: int | None = None,
    ) -> Scalar:
        """Write the gradient sum into `out` and give the loss sum, which on a device need not be known yet.

        With `only_touched` what lies outside the ranges that the rows touch is not to be read: it is left as it is by
        an objective that knows the option, and becomes zero by another. `key` is for one that draws random numbers.

        Raises
        ------
        ArgumentError
            When the objective gives something else than a number and a vector of n_parameters.
        """
        options: dict[str, Any] = {"out": out} if self._knows_out else {}
        if only_touched and self._knows_only_touched:
            options["only_touched"] = True
        if self._knows_is_awaited:
            options["is_awaited"] = False
        if self._knows_key:
            options["key"] = key
        loss, gradient = self._objective.loss_and_gradient(parameters, inputs, targets, **options)
        if not self._knows_is_awaited:
            loss = float(loss)
        if gradient is out:
            return loss
        if np.shape(gradient) != (self._n_parameters,):
            raise ArgumentError(
                f"objective: loss_and_gradient gave a gradient of shape {np.shape(gradient)}, not "
                f"({self._n_parameters},)."
            )
        out[:] = gradient
        return loss


def evaluation_sums(objective: Objective, parameters: Vector, inputs: Any, targets: Any) -> Mapping[str, float]:
    """The sums over rows that validation reports: ``loss`` and ``rows`` always, more where the objective has more."""
    evaluate = getattr(objective, "evaluate", None)
    if evaluate is not None:
        sums: Mapping[str, float] = evaluate(parameters, inputs, targets)
        return sums
    loss, _ = objective.loss_and_gradient(parameters, inputs, targets)
    return {"loss": float(loss), "rows": float(len(inputs))}
