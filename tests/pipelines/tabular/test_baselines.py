"""Baselines: the same objective as ours, and kept until something changes."""

from __future__ import annotations

import numpy as np
import pytest

import dask_belief as db
from pipelines.tabular import baselines as baselines_module
from pipelines.tabular.baselines import baselines
from pipelines.tabular.model import Settings, logistic_regression
from pipelines.tabular.prepare import Prepared
from tests.pipelines.tabular.fakes import SEED


def test_baselines_are_kept_until_something_changes(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second call trains nothing and gives the same figures; other settings, another seed and `fresh` do train."""
    trained: list[int] = []
    plain = baselines_module._majority

    def counting(*arguments: object) -> baselines_module.Fitted:
        trained.append(1)
        return plain(*arguments)

    monkeypatch.setattr(baselines_module, "_majority", counting)
    settings = Settings(hidden=(4, 3), mlp_epochs=1)
    first = baselines(prepared, settings, SEED)
    second = baselines(prepared, settings, SEED)
    assert len(trained) == 1
    assert [one.reused for one in first] == [False] * 3
    assert [one.reused for one in second] == [True] * 3
    assert [one.held_out for one in second] == [one.held_out for one in first]
    baselines(prepared, settings, SEED + 1)
    baselines(prepared, Settings(hidden=(4, 2), mlp_epochs=1), SEED)
    baselines(prepared, Settings(hidden=(4, 2), mlp_epochs=1), SEED, fresh=True)
    assert len(trained) == 4


def test_majority_says_what_it_has_counted(prepared: Prepared) -> None:
    """The majority's accuracy is the larger share of the held-out flights, and its AUC a half."""
    outcome = baselines(prepared, Settings(hidden=(4, 3), mlp_epochs=1), SEED)[0]
    targets = db.ZarrDataset(prepared.test).read(0, prepared.rows["test"])[1]
    assert outcome.held_out.auc == 0.5
    assert outcome.held_out.accuracy == pytest.approx(max(targets.mean(), 1 - targets.mean()))


def test_logistic_regression_has_our_objective(prepared: Prepared) -> None:
    """scikit-learn's C is such that its minimum is that of our objective: the gradient of ours is zero there."""
    settings = Settings(logistic_l2=0.01)
    arrays = baselines_module.Arrays(
        *(
            array.astype(np.float64)
            for store in (prepared.train, prepared.validation, prepared.test)
            for array in db.ZarrDataset(store).read(0, db.ZarrDataset(store).n_rows)
        )
    )
    fitted = baselines_module._logistic_regression(arrays, settings, SEED)
    n_columns = arrays.train_inputs.shape[1]
    # Weights and bias, read from the log odds of the origin and of each unit vector.
    odds = fitted.predict(np.vstack([np.zeros(n_columns), np.eye(n_columns)]))
    logits = np.log(odds) - np.log1p(-odds)
    parameters = np.concatenate([logits[1:] - logits[0], logits[:1]])
    model = logistic_regression(n_columns)
    _, gradient = model.loss_and_gradient(parameters, arrays.train_inputs, arrays.train_targets.astype(np.int64))
    gradient = gradient / len(arrays.train_inputs) + settings.logistic_l2 * parameters * model.penalised
    np.testing.assert_allclose(gradient, 0.0, atol=2e-4)
