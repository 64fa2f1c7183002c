"""A plan in words and numbers, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dask_belief.model_parallel.plan import Plan


def tables(plan: Plan) -> str:
    """Give what each layer sends, and what each piece has: two tables, with counts for one row."""
    network = plan.network
    total = sum(plan.sent_values(piece) for piece in range(plan.n_pieces))
    lines = [
        f"{network.n_parameters:,} parameters in {_count(plan.n_pieces, 'piece')}, by {plan.by!r}; "
        f"{total:,} values sent for a row"
        + (f", and {plan.shared_values():,} shared parameters and gradients for a mini-batch" if plan.shares else "")
    ]
    of_layers = []
    for layer in plan.layers:
        shapes = [part.outputs.shape for part in layer.parts if part is not None]
        of_layers.append(
            [
                str(layer.number),
                layer.layer.kind,
                _shape(layer.output_shape),
                layer.cut.name(layer.output_shape),
                " + ".join(_runs([_shape(shape) for shape in shapes])),
                f"{_values(plan, layer.number):,}",
            ]
        )
    of_layers.append(["", "loss", "", f"on {plan.loss_piece}", "", f"{_values(plan, len(plan.layers)):,}"])
    lines += ["", *_aligned(["layer", "", "outputs", "cut", "pieces", "values sent"], of_layers, n_words=5)]
    of_pieces = [
        [
            str(piece),
            f"{plan.layouts[piece].n_parameters:,}",
            f"{plan.operations(piece):,.0f}",
            f"{plan.nodes(piece):,}",
            f"{plan.sent_values(piece):,}",
        ]
        for piece in range(plan.n_pieces)
    ]
    lines += ["", *_aligned(["piece", "parameters", "operations", "values held", "values sent"], of_pieces, n_words=0)]
    return "\n".join(lines)


def _values(plan: Plan, array: int) -> int:
    return sum(plan.sent_values(piece, arrays=[array]) for piece in range(plan.n_pieces))


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _runs(words: Sequence[str]) -> list[str]:
    """Say equal neighbours once, with how many they are."""
    runs: list[tuple[str, int]] = []
    for word in words:
        if runs and runs[-1][0] == word:
            runs[-1] = (word, runs[-1][1] + 1)
        else:
            runs.append((word, 1))
    return [word if number == 1 else f"{number} of {word}" for word, number in runs]


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]], *, n_words: int) -> list[str]:
    """Set rows below a head: the first columns are words and begin alike, the others are numbers and end alike."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if column < n_words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [head, *rows]
    ]
