"""A plan as a picture, as the paper's Figure 1: machines with their nodes, and the edges that cross between them.

The inputs are below, the outputs on top. A line between two machines is as wide as what it carries is large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from dask_belief.model_parallel.plan import Plan
    from dask_belief.models.box import Box

_WIDTH, _HEIGHT = 132, 34
"""Of the box of one piece's nodes of one array, in points."""

_ACROSS, _UP = 64, 40
"""Between boxes."""

_EDGE, _LEFT, _TOP = 16, 164, 44
_COLOURS = ("#4C78A8", "#F58518", "#54A24B", "#B279A2", "#E45756", "#72B7B2", "#9D755D", "#EECA3B")


def drawing(plan: Plan) -> str:
    """Give the picture as SVG."""
    arrays = range(len(plan.layers) + 1)
    width = _LEFT + plan.n_pieces * (_WIDTH + _ACROSS) - _ACROSS + 2 * _EDGE
    height = _TOP + len(arrays) * (_HEIGHT + _UP) - _UP + 2 * _EDGE + 22
    text = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for piece in range(plan.n_pieces):
        x, top = _left(piece) - 12, _TOP - 8
        colour = _COLOURS[piece % len(_COLOURS)]
        text += [
            f'<rect x="{x}" y="{top}" width="{_WIDTH + 24}" height="{height - top - _EDGE}" rx="10" fill="{colour}" '
            f'fill-opacity="0.08" stroke="{colour}" stroke-dasharray="5 3"/>',
            _words(x + _WIDTH / 2 + 12, top - 10, f"machine {piece}", "middle", "bold"),
            _words(
                x + _WIDTH / 2 + 12,
                height - _EDGE - 8,
                f"{_short(plan.layouts[piece].n_parameters)} parameters",
                "middle",
            ),
        ]
    text += _edges(plan)
    for array in arrays:
        y = _bottom(plan, array) - _HEIGHT
        text.append(_words(_EDGE, y + 14, _name(plan, array), "start", "bold"))
        text.append(_words(_EDGE, y + 28, _shape(_whole(plan, array)), "start"))
        for piece in range(plan.n_pieces):
            held = plan.held(array, piece)
            if held is None:
                continue
            text += [
                f'<rect x="{_left(piece)}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="4" '
                f'fill="{_COLOURS[piece % len(_COLOURS)]}" fill-opacity="0.9"/>',
                f'<g fill="white">{_words(_left(piece) + _WIDTH / 2, y + 21, _range(held), "middle")}</g>',
            ]
    return "\n".join([*text, "</svg>", ""])


def _edges(plan: Plan) -> list[str]:
    """Draw what crosses between machines, and lines for what stays."""
    text = []
    most = max((crossing.box.size for crossing in plan.crossings), default=1)
    for array in range(len(plan.layers)):
        for piece in range(plan.n_pieces):
            held, needed = plan.held(array, piece), plan.needed(array, piece)
            if held is not None and needed is not None and not (held & needed).is_empty:
                text.append(_line(plan, array, piece, piece, "#999999", 1.5, "stays"))
    for crossing in plan.crossings:
        if crossing.array == len(plan.layers):
            continue
        wide = 1 + 5 * math.log1p(crossing.box.size) / math.log1p(most)
        words = f"{crossing.box.size:,} values a row, from machine {crossing.source} to {crossing.destination}"
        text.append(_line(plan, crossing.array, crossing.source, crossing.destination, "#222222", wide, words))
    return text


def _line(plan: Plan, array: int, source: int, destination: int, colour: str, wide: float, words: str) -> str:
    x1, x2 = _left(source) + _WIDTH / 2, _left(destination) + _WIDTH / 2
    y1, y2 = _bottom(plan, array) - _HEIGHT, _bottom(plan, array + 1)
    return (
        f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{colour}" stroke-width="{wide:.1f}" '
        f'stroke-opacity="0.7"><title>{escape(words)}</title></line>'
    )


def _words(x: float, y: float, words: str, anchor: str, weight: str = "normal") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-weight="{weight}">{escape(words)}</text>'


def _left(piece: int) -> int:
    return _EDGE + _LEFT + piece * (_WIDTH + _ACROSS)


def _bottom(plan: Plan, array: int) -> int:
    return _TOP + _HEIGHT + (len(plan.layers) - array) * (_HEIGHT + _UP)


def _name(plan: Plan, array: int) -> str:
    return "inputs" if array == 0 else plan.layers[array - 1].layer.kind.replace("_", " ")


def _whole(plan: Plan, array: int) -> Sequence[int]:
    return plan.network.shapes[array]


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _range(box: Box) -> str:
    return ", ".join(f"{start}-{stop - 1}" for start, stop in zip(box.starts, box.stops, strict=True))


def _short(number: int) -> str:
    """Give a count in three digits or so."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
