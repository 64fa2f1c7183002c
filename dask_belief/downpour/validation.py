"""When a snapshot is validated, which was the best, and when it is time to stop early; pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dask_belief.downpour.config import Downpour
from dask_belief.optim.stopping import Stop, StopReason, number_from_json, number_to_json


class Validations:
    """Keeps the schedule of validations and their outcome.

    Parameters
    ----------
    method
        The options: how often, and with how much patience.
    n_leases
        Leases of an epoch.

    Attributes
    ----------
    best
        The means of the validation with the lowest loss; empty before the first.
    """

    def __init__(self, method: Downpour, n_leases: int) -> None:
        self.best: dict[str, float] = {}
        self._method = method
        self._n_leases = n_leases
        self._epoch = 0
        self._steps = 0
        self._seconds = 0.0
        self._n_worse = 0
        self._n_taken = 0

    def is_due(self, n_finished: int, steps: int, seconds: float, is_cheap: bool) -> bool:
        """Whether to validate now; once an epoch, where nothing else was asked for, and then only if it is cheap."""
        every_steps, every_seconds = self._method.validate_every_steps, self._method.validate_every_seconds
        if every_steps is None and every_seconds is None:
            return is_cheap and self._epoch < n_finished // self._n_leases < self._method.epochs
        is_by_steps = every_steps is not None and steps // every_steps > self._steps // every_steps
        return is_by_steps or (every_seconds is not None and seconds - self._seconds >= every_seconds)

    def begin(self, n_finished: int, steps: int, seconds: float) -> None:
        """Note that a validation is begun."""
        self._epoch, self._steps, self._seconds = n_finished // self._n_leases, steps, seconds

    def take(self, means: dict[str, float]) -> bool:
        """Note the means of a validation; tells whether it is the best so far."""
        self._n_taken += 1
        if means["loss"] < self.best.get("loss", math.inf):
            self.best, self._n_worse = means, 0
            return True
        self._n_worse += 1
        return False

    def to_config(self) -> dict[str, Any]:
        """Describe what has been found by plain JSON."""
        best = {name: number_to_json(mean) for name, mean in self.best.items()}
        counts = {"n_worse": self._n_worse, "n_taken": self._n_taken, "epoch": self._epoch, "steps": self._steps}
        return {"best": best, **counts}

    def take_config(self, config: Mapping[str, Any]) -> None:
        """Go on from `to_config`; raises `KeyError`, `TypeError` or `ValueError` for what is not one."""
        self.best = {str(name): float(number_from_json(mean)) for name, mean in dict(config["best"]).items()}
        self._n_worse, self._n_taken = int(config["n_worse"]), int(config["n_taken"])
        self._epoch, self._steps = int(config["epoch"]), int(config["steps"])

    def stop(self) -> Stop | None:
        """The reason to stop early, if there is one."""
        patience = self._method.patience
        if patience is None or self._n_worse < patience:
            return None
        numbers = {
            "patience": patience,
            "validations": self._n_taken,
            "validation_loss": self.best.get("loss", math.nan),
        }
        return Stop(StopReason.NO_IMPROVEMENT, numbers)
