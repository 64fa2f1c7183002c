"""What can be trained: anything that gives a loss and a gradient over rows on one flat vector.

The paper: "applicable to any gradient-based machine learning algorithm". `dask_belief.Network` is one; a user's few
lines are another.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dask_belief.errors import ArgumentError

Vector = NDArray[np.floating]


@runtime_checkable
class Objective(Protocol):
    """The least that `dask_belief.train` asks of an objective; it is pickled to the workers.

    An objective may offer more: ``penalised``, boolean ``(n_parameters,)``, says which parameters a penalty covers
    (all, where it is missing); ``loss_and_gradient(..., out=vector)`` writes the gradient where it is wanted;
    ``evaluate(parameters, inputs, targets)`` gives sums over rows for validation; ``predict(parameters, inputs)``
    is what `TrainingResult.predict` calls; ``check_data`` refuses data that do not fit; a
    `Network` is saved with a result, another objective is not.
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


class Gradients:
    """Calls an objective so that the gradient lands in a given vector, whether the objective knows `out` or not.

    Parameters
    ----------
    objective
        Any `Objective`.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._n_parameters = objective.n_parameters
        self._knows_out = "out" in inspect.signature(objective.loss_and_gradient).parameters

    def __call__(self, parameters: Vector, inputs: Any, targets: Any, out: Vector) -> float:
        """Write the gradient sum into `out` and give the loss sum.

        Raises
        ------
        ArgumentError
            When the objective gives something else than a number and a vector of n_parameters.
        """
        options = {"out": out} if self._knows_out else {}
        loss, gradient = self._objective.loss_and_gradient(parameters, inputs, targets, **options)
        if gradient is out:
            return float(loss)
        if np.shape(gradient) != (self._n_parameters,):
            raise ArgumentError(
                f"objective: loss_and_gradient gave a gradient of shape {np.shape(gradient)}, not "
                f"({self._n_parameters},)."
            )
        out[:] = gradient
        return float(loss)


def evaluation_sums(objective: Objective, parameters: Vector, inputs: Any, targets: Any) -> Mapping[str, float]:
    """The sums over rows that validation reports: ``loss`` and ``rows`` always, more where the objective has more."""
    evaluate = getattr(objective, "evaluate", None)
    if evaluate is not None:
        sums: Mapping[str, float] = evaluate(parameters, inputs, targets)
        return sums
    loss, _ = objective.loss_and_gradient(parameters, inputs, targets)
    return {"loss": float(loss), "rows": float(len(inputs))}
