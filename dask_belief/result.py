"""What a run gives back, and how it is kept: a Zarr group with plain JSON beside the parameters, no pickle."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_belief.errors import ArgumentError, DataError, MissingStoreError
from dask_belief.models.network import Network
from dask_belief.monitoring.history import History
from dask_belief.objective import Objective
from dask_belief.optim.stopping import Stop, number_from_json, number_to_json

FORMAT = 1
ATTRIBUTE = "dask_belief_result"

_STATE = "rule_state"


@dataclass(frozen=True)
class TrainingResult:
    """The best point of a run, and how it was found.

    Where several methods ran in turn, it is of all of them together, see `dask_belief.train`.

    Attributes
    ----------
    parameters
        ``(n_parameters,)``, of the run's dtype.
    loss
        The objective at `parameters`: mean loss over all training rows, and penalty; of methods in turn, with the
        penalty of the last one. NaN for a run that was interrupted before it was known: Downpour's takes a pass over
        all rows, for which an interrupt does not wait.
    validation
        Means over the validation set at `parameters`: ``loss``, ``accuracy``; empty without one.
    stop
        Why the run ended, with numbers and advice.
    history
        What happened: ``history["loss"]``, ``history.to_frame()``, ``history.plot()``; of Downpour, too,
        ``history.staleness()``, ``history.replicas()``, ``history.shards()``.
    method
        The name of the method; of methods in turn, the names of those that ran.
    seconds
        From the start of the run to its end.
    passes
        Over the training rows.
    repeatable
        Whether the same run again, on replicas of the same kind, gives the same bits. Not so for Downpour with several
        replicas, or with a validation set, whose snapshots are taken at moments set by time; for a run with a limit in
        seconds; or when a worker was lost that held a shard, a coordinator or a ledger.
    objective
        What was trained; None when it was loaded and is no `Network`.
    rule_state
        The vectors that the rule of a Downpour that ran last ended with, ``(n_parameters,)`` each: ``accumulator``,
        Adagrad's sums of squared gradients, or ``velocity``. Empty for Sandblaster, and where the run diverged.
    """

    parameters: NDArray[np.floating]
    loss: float
    validation: dict[str, float]
    stop: Stop
    history: History
    method: str
    seconds: float
    passes: float
    repeatable: bool
    objective: Objective | None
    rule_state: dict[str, NDArray[np.floating]] = field(default_factory=dict)

    def predict(self, inputs: NDArray[Any]) -> NDArray[np.floating]:
        """Give the objective's predictions at the best parameters.

        Parameters
        ----------
        inputs
            Rows, scaled as the training rows were.

        Raises
        ------
        ArgumentError
            When the objective does not predict.
        """
        predict = getattr(self.objective, "predict", None)
        if predict is None:
            raise ArgumentError("predict: the objective of this result has no predict(parameters, inputs).")
        predictions: NDArray[np.floating] = predict(self.parameters, inputs)
        return predictions

    def save(self, store: str | Path) -> None:
        """Write the result as a Zarr group: parameters as an array, all else as JSON attributes.

        A `Network` is kept with it; of another objective, parameters and history are kept alone. A result that was
        saved there before is replaced.

        Raises
        ------
        ArgumentError
            When `store` holds something else than a saved result.
        """
        import zarr

        _refuse_what_is_no_result(store)
        group = zarr.open_group(str(store), mode="w")
        array = group.create_array("parameters", shape=self.parameters.shape, dtype=self.parameters.dtype)
        array[:] = self.parameters
        for name, vector in self.rule_state.items():
            group.create_array(f"{_STATE}/{name}", shape=vector.shape, dtype=vector.dtype)[:] = vector
        kept: dict[str, Any] = {
            "format": FORMAT,
            "network": self.objective.to_config() if isinstance(self.objective, Network) else None,
            "loss": number_to_json(self.loss),
            "validation": {name: number_to_json(mean) for name, mean in self.validation.items()},
            "stop": self.stop.to_config(),
            "history": self.history.to_config(),
            "method": self.method,
            "seconds": self.seconds,
            "passes": self.passes,
            "repeatable": self.repeatable,
            "rule_state": sorted(self.rule_state),
        }
        group.attrs[ATTRIBUTE] = kept


def _refuse_what_is_no_result(store: str | Path) -> None:
    """Raise `ArgumentError` unless there is nothing at `store`, or a result that may be replaced."""
    import zarr

    try:
        found = zarr.open_group(str(store), mode="r")
        is_replaceable = ATTRIBUTE in found.attrs
    except ValueError:
        is_replaceable = False
    except OSError:
        # No group: a local folder may still hold something else.
        folder = Path(store)
        is_replaceable = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_replaceable:
        raise ArgumentError(f"store: {store} holds something else than a saved result. Give another path.")


def load_result(store: str | Path) -> TrainingResult:
    """Open what `TrainingResult.save` wrote.

    Raises
    ------
    MissingStoreError
        When there is no result at `store`.
    DataError
        When it was written by a newer version.
    UnknownLayerError
        When its network has a layer of the user's own that is not registered; see `dask_belief.register_layer`.
    """
    import zarr

    try:
        group = zarr.open_group(str(store), mode="r")
        kept: Any = group.attrs[ATTRIBUTE]
        parameters = np.asarray(group["parameters"][:])  # type: ignore[index]
        names = kept.get("rule_state", [])
        state = {name: np.asarray(group[f"{_STATE}/{name}"][:]) for name in names}  # type: ignore[index]
    except (OSError, KeyError, ValueError) as error:
        raise MissingStoreError(f"{store}: holds no saved result. Give the path that was given to save().") from error
    if kept["format"] > FORMAT:
        raise DataError(f"{store}: has format {kept['format']}, this version knows up to {FORMAT}. Update dask_belief.")
    return TrainingResult(
        parameters=parameters,
        loss=number_from_json(kept["loss"]),
        validation={name: number_from_json(mean) for name, mean in kept["validation"].items()},
        stop=Stop.from_config(kept["stop"]),
        history=History.from_config(kept["history"]),
        method=kept["method"],
        seconds=kept["seconds"],
        passes=kept["passes"],
        repeatable=kept["repeatable"],
        objective=None if kept["network"] is None else Network.from_config(kept["network"]),
        rule_state=state,
    )
