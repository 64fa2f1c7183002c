"""What to compare with: always saying how many are late, and scikit-learn on the same columns."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

import dask_belief as db
from pipelines.tabular.evaluate import Outcome, log_loss, score
from pipelines.tabular.model import Settings
from pipelines.tabular.prepare import Prepared

FILE = "baselines.json"


class Arrays(NamedTuple):
    """All rows in memory, as scikit-learn needs them."""

    train_inputs: np.ndarray
    train_targets: np.ndarray
    validation_inputs: np.ndarray
    validation_targets: np.ndarray
    test_inputs: np.ndarray
    test_targets: np.ndarray


class Fitted(NamedTuple):
    """A trained baseline."""

    predict: Callable[[np.ndarray], np.ndarray]
    passes: float
    stopped: str


def baselines(prepared: Prepared, settings: Settings, seed: int, *, fresh: bool = False) -> list[Outcome]:
    """Give the outcomes of the baselines: kept ones where data, settings, seed and scikit-learn are the same.

    Parameters
    ----------
    fresh
        Train them again all the same.
    """
    import sklearn

    path = prepared.folder / FILE
    key = {"data": prepared.fingerprint, "settings": asdict(settings), "seed": seed, "sklearn": sklearn.__version__}
    key = json.loads(json.dumps(key))  # tuples become lists, as they do in the file
    if not fresh and (kept := _kept(path, key)):
        return kept
    outcomes = list(_train(prepared, settings, seed))
    text = {"key": key, "outcomes": [outcome.to_config() for outcome in outcomes]}
    path.write_text(json.dumps(text, indent=1), encoding="utf-8")
    return outcomes


def _kept(path: Path, key: dict[str, Any]) -> list[Outcome]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return [Outcome.from_config(config) for config in found["outcomes"]] if found["key"] == key else []
    except (OSError, ValueError, KeyError, TypeError):
        return []  # none, or of another version: they are made again


def _train(prepared: Prepared, settings: Settings, seed: int) -> Iterator[Outcome]:
    stores = [db.ZarrDataset(store) for store in (prepared.train, prepared.validation, prepared.test)]
    arrays = Arrays(*(array for store in stores for array in store.read(0, store.n_rows)))
    for name, fit in (
        ("Majority", _majority),
        ("Logistic regression, scikit-learn", _logistic_regression),
        ("Network, scikit-learn MLPClassifier", _mlp),
    ):
        start = time.perf_counter()
        # Two threads are no faster with matrices of this size, and up to eight times slower where other programs run.
        with threadpool_limits(1):
            fitted = fit(arrays, settings, seed)
        seconds = time.perf_counter() - start
        training_loss = log_loss(fitted.predict(arrays.train_inputs), arrays.train_targets)
        validation_loss = log_loss(fitted.predict(arrays.validation_inputs), arrays.validation_targets)
        held_out = score(fitted.predict(arrays.test_inputs), arrays.test_targets)
        yield Outcome(name, seconds, fitted.passes, training_loss, validation_loss, held_out, fitted.stopped)


def _majority(arrays: Arrays, settings: Settings, seed: int) -> Fitted:
    share = float(np.mean(arrays.train_targets))
    return Fitted(lambda inputs: np.full(len(inputs), share), 1.0, "counted")


def _logistic_regression(arrays: Arrays, settings: Settings, seed: int) -> Fitted:
    from sklearn.linear_model import LogisticRegression

    # scikit-learn minimises C * (sum of the losses) + ||w||^2 / 2, so C = 1 / (n * l2) gives our objective's minimum.
    strength = 1.0 / (len(arrays.train_targets) * settings.logistic_l2)
    limit = 300
    model = _quietly_fitted(LogisticRegression(C=strength, max_iter=limit, tol=1e-5), arrays)
    iterations = int(model.n_iter_[0])
    stopped = "converged" if iterations < limit else "iteration limit reached"
    return Fitted(lambda inputs: model.predict_proba(inputs)[:, 1], iterations, stopped)


def _mlp(arrays: Arrays, settings: Settings, seed: int) -> Fitted:
    from sklearn.neural_network import MLPClassifier

    model = MLPClassifier(
        settings.hidden,
        # scikit-learn divides its penalty by the rows of a mini-batch.
        alpha=settings.l2 * settings.mlp_batch,
        batch_size=settings.mlp_batch,
        max_iter=settings.mlp_epochs,
        random_state=seed,
    )
    model = _quietly_fitted(model, arrays)
    stopped = "all epochs done" if model.n_iter_ >= settings.mlp_epochs else "loss no longer improves"
    return Fitted(lambda inputs: model.predict_proba(inputs)[:, 1], float(model.n_iter_), stopped)


def _quietly_fitted(model: Any, arrays: Arrays) -> Any:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # The number of epochs is a setting, and the table says that it was reached.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(arrays.train_inputs, arrays.train_targets)
