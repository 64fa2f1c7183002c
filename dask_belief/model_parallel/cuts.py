"""Where each layer of a network is cut: boxes of its outputs, one a piece.

A layer's outputs are cut along one of its axes into runs as even as can be, or stay whole on one piece. Which of these
a layer gets is what ``by`` says (`choose`); by itself the cheapest way through all layers is found (`cheapest`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dask_belief.errors import ArgumentError
from dask_belief.models.box import Box
from dask_belief.models.layers import Layer
from dask_belief.models.layout import Shape

BY = ("auto", "rows", "channels", "units", "layers")
"""What a network may be cut by."""


@dataclass(frozen=True)
class Cut:
    """How the outputs of one layer are shared out.

    Exactly one of the two is given.
    """

    axis: int | None = None
    """The axis along which they are cut."""

    home: int | None = None
    """The piece that has all of them."""

    def boxes(self, shape: Shape, n_pieces: int) -> tuple[Box | None, ...]:
        """Give what each piece has; None where that is nothing.

        Examples
        --------
        >>> [box and box.shape for box in Cut(axis=0).boxes((3, 8), 2)]
        [(2, 8), (1, 8)]
        """
        whole = Box.whole(shape)
        if self.axis is None:
            return tuple(whole if piece == self.home else None for piece in range(n_pieces))
        share, more = divmod(shape[self.axis], n_pieces)
        stops = list(itertools.accumulate(share + (piece < more) for piece in range(n_pieces)))
        boxes = [whole.along(self.axis, start, stop) for start, stop in itertools.pairwise([0, *stops])]
        return tuple(None if box.is_empty else box for box in boxes)

    def name(self, shape: Shape) -> str:
        """Call it by what is cut."""
        if self.axis is None:
            return f"whole on {self.home}"
        if len(shape) == 1:
            return "units"
        return {0: "rows", len(shape) - 1: "channels"}.get(
            self.axis, "columns" if len(shape) == 3 else f"axis {self.axis}"
        )


def possible(layer: Layer, input_shape: Shape, n_pieces: int) -> list[Cut]:
    """Give all cuts of a layer: along each axis that it can be cut along, or whole on the first or the last piece."""
    shape = layer.output_shape(input_shape)
    along = [Cut(axis=axis) for axis in sorted(layer.cut_axes(input_shape)) if shape[axis] > 1]
    return [*along, *(Cut(home=home) for home in sorted({0, n_pieces - 1}))]


def choose(layers: Sequence[Layer], shapes: Sequence[Shape], n_pieces: int, by: str) -> list[Cut]:
    """Give the cut of each layer for every ``by`` but ``"auto"``.

    Layers that cannot be cut so stay whole on the first piece.

    Parameters
    ----------
    layers
        From the inputs to the outputs.
    shapes
        Before the first of them, and after each.
    n_pieces
        How many pieces there are.
    by
        ``"rows"``: what has rows is cut along them, what has units only by units. ``"channels"``: the same with
        channels. ``"units"``: only what has units only. ``"layers"``: each piece gets layers in a row, so that the
        largest share of the operations is as small as can be.
    """
    if by == "layers":
        return by_layers(layers, shapes, n_pieces)
    cuts = []
    for layer, before, after in zip(layers, shapes, shapes[1:], strict=False):
        axis = 0 if len(after) == 1 else {"rows": 0, "channels": len(after) - 1}.get(by)
        can = axis is not None and axis in layer.cut_axes(before)
        cuts.append(Cut(axis=axis) if can else Cut(home=0))
    return cuts


def by_layers(layers: Sequence[Layer], shapes: Sequence[Shape], n_pieces: int) -> list[Cut]:
    """Give each piece layers in a row, so that the largest share of the operations is as small as can be.

    Raises
    ------
    ArgumentError
        There are fewer layers than pieces.
    """
    if len(layers) < n_pieces:
        raise ArgumentError(
            f"pieces: by 'layers' expected at most {len(layers)}, as many as there are layers, got {n_pieces}. Cut the "
            "layers themselves, by 'units', 'rows' or 'channels'."
        )
    costs = [layer.operations(shape) for layer, shape in zip(layers, shapes, strict=False)]
    sums = [0.0, *itertools.accumulate(costs)]
    # For so many layers from the first on and so many pieces: the largest share, and where the last piece begins.
    best: list[list[tuple[float, int]]] = [[(0.0, 0)] + [(float("inf"), 0)] * len(layers)]
    for piece in range(1, n_pieces + 1):
        row = [(float("inf"), 0)] * (len(layers) + 1)
        for stop in range(piece, len(layers) + 1):
            row[stop] = min(
                (max(best[-1][start][0], sums[stop] - sums[start]), start) for start in range(piece - 1, stop)
            )
        best.append(row)
    homes, stop = [0] * len(layers), len(layers)
    for piece in range(n_pieces, 0, -1):
        start = best[piece][stop][1]
        homes[start:stop] = [piece - 1] * (stop - start)
        stop = start
    return [Cut(home=home) for home in homes]


def cheapest(
    layers: Sequence[Layer],
    shapes: Sequence[Shape],
    n_pieces: int,
    seconds: Callable[[int, Cut | None, Cut], float],
) -> list[Cut]:
    """Give the cuts of all layers whose costs add up to the least: the shortest path through the layers.

    Parameters
    ----------
    layers, shapes, n_pieces
        See `choose`.
    seconds
        What a layer costs, by its number, the cut of what it is given (None for the inputs of the network), and its
        own; with number ``len(layers)`` and the first piece as its home what the loss costs.
    """
    # The cut of the layer before -> the least that all so far costs, and the cuts.
    paths: dict[Cut | None, tuple[float, list[Cut]]] = {None: (0.0, [])}
    for number, (layer, shape) in enumerate(zip(layers, shapes, strict=False)):
        further: dict[Cut | None, tuple[float, list[Cut]]] = {}
        for cut in possible(layer, shape, n_pieces):
            further[cut] = min(
                ((cost + seconds(number, before, cut), [*cuts, cut]) for before, (cost, cuts) in paths.items()),
                key=lambda path: path[0],
            )
        paths = further
    ends = [(cost + seconds(len(layers), cuts[-1], cuts[-1]), cuts) for cost, cuts in paths.values()]
    return min(ends, key=lambda path: path[0])[1]
