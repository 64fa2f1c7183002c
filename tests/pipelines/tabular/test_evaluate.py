"""Scores against scikit-learn; table and picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics

from pipelines.tabular.evaluate import Curve, Outcome, Score, draw_curves, format_table, log_loss, score

SEED = 3


def test_scores_agree_with_scikit_learn() -> None:
    """AUC, log loss and accuracy are those that scikit-learn gives, ties among the probabilities included."""
    rng = np.random.Generator(np.random.Philox(SEED))
    targets = rng.integers(0, 2, 500)
    probabilities = np.round(np.clip(0.3 + 0.3 * targets + rng.normal(0, 0.25, 500), 0.01, 0.99), 2)
    found = score(probabilities, targets)
    assert found.auc == pytest.approx(metrics.roc_auc_score(targets, probabilities), rel=1e-12)
    assert found.log_loss == pytest.approx(metrics.log_loss(targets, probabilities), rel=1e-12)
    assert found.accuracy == pytest.approx(metrics.accuracy_score(targets, probabilities > 0.5), rel=1e-12)


def test_log_loss_of_certainty_is_finite() -> None:
    """A float32 probability of exactly 0 for what happened costs much, not infinity."""
    assert log_loss(np.array([0.0, 1.0], np.float32), np.array([0, 1])) == pytest.approx(0.0, abs=1e-6)
    assert 7 < log_loss(np.array([0.0, 1.0], np.float32), np.array([1, 1])) < 9


def outcome(method: str, reused: bool = False) -> Outcome:
    held_out = Score(auc=0.90125, log_loss=0.2876, accuracy=0.8861)
    return Outcome(method, 12.34, 104.0, 0.2513, 0.26, held_out, "converged", reused)


def test_table_has_a_line_for_each_method() -> None:
    """Columns line up, figures stand in their columns, and the table says how many flights were left out."""
    lines = format_table([outcome("Short"), outcome("A longer name")], left_out=9430).splitlines()
    assert lines[0].split() == ["method", "seconds", "passes", "training", "loss", "AUC", "log", "loss", "accuracy",
                                "why", "it", "stopped"]  # fmt: skip
    assert lines[2].split() == ["Short", "12.3", "104.0", "0.2513", "0.9012", "0.2876", "0.8861", "converged"]
    assert lines[2].index("converged") == lines[3].index("converged") == lines[0].index("why it stopped")
    assert any("9,430 flights" in line for line in lines)
    assert "*" not in "".join(lines)


def test_table_marks_what_was_kept() -> None:
    """Figures of an earlier call are marked, and a note says what the mark means."""
    kept = Outcome.from_config(json.loads(json.dumps(outcome("Network").to_config())))
    lines = format_table([kept, outcome("Other")], left_out=0).splitlines()
    assert lines[2].startswith("Network *")
    assert not lines[3].startswith("Other *")
    assert lines[-1].startswith("* Kept from an earlier call")


@pytest.mark.parametrize("n_points", [0, 1, 30])
def test_picture_is_drawn(tmp_path: Path, n_points: int) -> None:
    """Curves of any length, none at all and values that are not finite make a PNG of the stated size."""
    points = [(0.1 * i, float(i), 0.25 + 0.5 / (i + 1)) for i in range(n_points)]
    some = [Curve("One", points), Curve("Two", [*points, (5.0, 50.0, float("nan"))]), Curve("Three", [])]
    draw_curves(tmp_path / "curves.png", some, some, [outcome("Level")])
    picture = (tmp_path / "curves.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(picture[16:20]), int.from_bytes(picture[20:24])) == (1440, 960)
