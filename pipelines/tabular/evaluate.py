"""What a method reached: its scores on the held-out flights, the table, and the picture of the learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


@dataclass(frozen=True)
class Score:
    """How well probabilities fit what happened."""

    auc: float
    """Chance that a late flight gets a higher probability than one that is not late."""
    log_loss: float
    """Mean over the flights of minus the logarithm of the probability given to what happened."""
    accuracy: float
    """Share of the flights for which what was held more likely happened."""


@dataclass(frozen=True)
class Outcome:
    """One line of the table."""

    method: str
    seconds: float
    passes: float
    """Passes over the training data."""
    training_loss: float
    """Log loss over the training flights, without the penalty."""
    validation_loss: float
    """Log loss over the validation flights."""
    held_out: Score
    stopped: str
    """Why it ended, in words."""
    reused: bool = False
    """Whether the figures were kept from an earlier call."""

    def to_config(self) -> dict[str, Any]:
        """Describe the outcome in plain JSON."""
        return asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Outcome:
        """Make the outcome that ``to_config`` described, marked as kept from an earlier call."""
        return cls(**{**config, "held_out": Score(**config["held_out"]), "reused": True})


class Curve(NamedTuple):
    """One line of the picture: (seconds, passes, value) of each point."""

    method: str
    points: list[tuple[float, float, float]]


def score(probabilities: np.ndarray, targets: np.ndarray) -> Score:
    """Score the probabilities of being late, ``(n_flights,)``, by what happened: 1 for late."""
    from sklearn.metrics import roc_auc_score

    return Score(
        auc=float(roc_auc_score(targets, probabilities)),
        log_loss=log_loss(probabilities, targets),
        accuracy=float(np.mean((probabilities > 0.5) == targets)),
    )


def log_loss(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Give the mean of minus the logarithm of the probability of what happened, in float64.

    A float32 probability can be exactly 0 or 1; it is taken to be one rounding away.
    """
    limit = float(np.finfo(np.float32).eps)
    held = np.clip(probabilities.astype(np.float64), limit, 1 - limit)
    return float(-np.mean(np.where(targets == 1, np.log(held), np.log1p(-held))))


HEADER = ("method", "seconds", "passes", "training loss", "AUC", "log loss", "accuracy", "why it stopped")


def format_table(outcomes: Sequence[Outcome], left_out: int) -> str:
    """Give the table as text: one line a method, AUC, log loss and accuracy on the held-out flights."""
    rows = [HEADER]
    for outcome in outcomes:
        name = f"{outcome.method} *" if outcome.reused else outcome.method
        figures = (f"{outcome.seconds:.1f}", f"{outcome.passes:.1f}", f"{outcome.training_loss:.4f}")
        held_out = outcome.held_out
        scores = (f"{held_out.auc:.4f}", f"{held_out.log_loss:.4f}", f"{held_out.accuracy:.4f}")
        rows.append((name, *figures, *scores, outcome.stopped))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = [
        "  ".join(_aligned(cell, widths[column], column) for column, cell in enumerate(row)).rstrip() for row in rows
    ]
    lines.insert(1, "─" * max(map(len, lines)))
    lines.append("")
    lines.append(
        "AUC, log loss and accuracy on the held-out flights, November and December; training loss without penalty."
    )
    lines.append(
        f"Left out: {left_out:,} flights without a recorded arrival delay (cancelled, diverted, or not noted)."
    )
    if any(outcome.reused for outcome in outcomes):
        lines.append("* Kept from an earlier call on the same data and settings; --fresh trains it again.")
    return "\n".join(lines)


def _aligned(cell: str, width: int, column: int) -> str:
    is_text = column in {0, len(HEADER) - 1}
    return cell.ljust(width) if is_text else cell.rjust(width)


# Blue, vermilion and green of the palette by Okabe and Ito, which colour-blind readers tell apart as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def draw_curves(
    path: Path, training: Sequence[Curve], validation: Sequence[Curve], levels: Sequence[Outcome] = ()
) -> None:
    """Draw training objective and validation log loss against seconds and against passes over the data, as a PNG.

    Parameters
    ----------
    path
        The file.
    training, validation
        One curve a method, in the same order.
    levels
        What is drawn as a level to compare with on the side of validation.
    """
    import matplotlib

    matplotlib.use("Agg")  # a demo may run where there is no screen
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(12, 8), sharey="row", layout="constrained")
    for row, (curves, label) in enumerate(((training, "Training objective"), (validation, "Validation log loss"))):
        for column, across in enumerate(("Seconds", "Passes over the training data")):
            ax = axes[row, column]
            for curve, colour in zip(curves, COLOURS, strict=False):
                if curve.points:
                    xs, ys = [point[column] for point in curve.points], [point[2] for point in curve.points]
                    ax.plot(xs, ys, color=colour, linewidth=2, label=curve.method)
                    ax.plot(xs[-1], ys[-1], "o", color=colour, markersize=5)
            for outcome, style in zip(levels if row == 1 else (), ("--", ":"), strict=False):
                ax.axhline(outcome.validation_loss, color="0.35", linestyle=style, linewidth=1.2, label=outcome.method)
            ax.set_xlabel(across)
            ax.spines[["top", "right"]].set_visible(False)
            ax.grid(color="0.9", linewidth=0.8)
            ax.set_axisbelow(True)
        axes[row, 0].set_ylabel(label)
        axes[row, 0].set_ylim(*_limits(curves, levels if row == 1 else ()))
        axes[row, 1].legend(frameon=False, loc="upper right")
    figure.suptitle("Will a flight from New York arrive more than 15 minutes late?", fontsize=14)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _limits(curves: Sequence[Curve], levels: Sequence[Outcome]) -> tuple[float | None, float | None]:
    """Cut the first steep descent off, which would press what follows into one line."""
    values = [point[2] for curve in curves for point in curve.points if np.isfinite(point[2])]
    if not values:
        return None, None
    ends = [curve.points[-1][2] for curve in curves if curve.points and np.isfinite(curve.points[-1][2])]
    levels_drawn = [outcome.validation_loss for outcome in levels]
    lowest = min([*values, *levels_drawn])
    usual = max([float(np.median(values)), *ends, *levels_drawn])
    height = max(4 * (usual - lowest), 0.02)
    return lowest - 0.08 * height, lowest + height
