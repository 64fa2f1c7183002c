"""The networks, and the settings by which each method trains them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import dask_belief as db


@dataclass(frozen=True)
class Settings:
    """All that the figures depend on, beside data and seed.

    The penalty of the network was chosen by training on January to August and looking at September and October, from
    0.0003 to 0.01: with less the network learns the year's own weather by heart, and its held-out log loss rises with
    every pass. It is the same for all methods, so all of them seek the lowest point of one function.
    """

    hidden: tuple[int, int] = (64, 32)
    l2: float = 0.004
    logistic_l2: float = 1e-4
    sandblaster_iterations: int = 100
    downpour_epochs: int = 15
    downpour_batch: int = 100
    downpour_rate: float = 0.02
    downpour_exchange: int = 5
    """Mini-batches between two fetches, and between two pushes."""
    mlp_epochs: int = 30
    mlp_batch: int = 500

    @classmethod
    def quick(cls) -> Settings:
        """A few seconds in all, to see that everything runs."""
        return cls(sandblaster_iterations=8, downpour_epochs=2, mlp_epochs=2)


class Run(NamedTuple):
    """One training: what is trained, and how."""

    name: str
    file_name: str
    network: db.Network
    method: db.Sandblaster | db.Downpour


def network(n_columns: int, settings: Settings) -> db.Network:
    """Give the network: two hidden layers of rectified linear units and one output, the log odds of being late."""
    layers = [*(db.Dense(units, "relu") for units in settings.hidden), db.Dense(1)]
    return db.Network(layers, loss="logistic", input_shape=(n_columns,))


def logistic_regression(n_columns: int) -> db.Network:
    """Give logistic regression: a network without a hidden layer."""
    return db.Network([db.Dense(1)], loss="logistic", input_shape=(n_columns,))


def runs(n_columns: int, settings: Settings) -> list[Run]:
    """Give the trainings of the demo, in the order in which they are run."""
    linear, deep = logistic_regression(n_columns), network(n_columns, settings)
    sandblaster: dict[str, Any] = {"max_iter": settings.sandblaster_iterations, "history_size": 10}
    downpour = db.Downpour(
        rule=db.Adagrad(settings.downpour_rate),
        batch_size=settings.downpour_batch,
        n_fetch=settings.downpour_exchange,
        n_push=settings.downpour_exchange,
        epochs=settings.downpour_epochs,
        l2=settings.l2,
    )
    return [
        Run(
            "Logistic regression, Sandblaster",
            "logistic-sandblaster",
            linear,
            db.Sandblaster(l2=settings.logistic_l2, **sandblaster),
        ),
        Run("Network, Sandblaster L-BFGS", "network-sandblaster", deep, db.Sandblaster(l2=settings.l2, **sandblaster)),
        Run("Network, Downpour SGD", "network-downpour", deep, downpour),
    ]
