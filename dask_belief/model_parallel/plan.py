"""Which piece has which nodes of a network, what crosses between the pieces, and what it costs: known before it runs.

::

    array 0      layer 0      array 1      layer 1      array 2 ...        array n: the outputs, given to the loss
    (inputs)                  (outputs of layer 0)
    ┌───────┐  needs  ┌─────┐ ┌───────┐
    │piece 0├────────>│piece├>│piece 0│     Each piece has a box of each array, and computes it. What a part of a layer
    │ has   │    ┌───>│  0  │ ├───────┤     needs of the array below and others have crosses the cut: up as it is,
    │ all   ├────┼───>│piece├>│piece 1│     down as the derivative by it. A node is sent to a piece once, however many
    └───────┘         │  1  │ └───────┘     edges it has there, and not at all where it has none.

The same rule holds for every kind of layer and every cut, since a layer says itself what a box of its outputs needs
(`Layer.part`). Where parts share parameters, as filters that see every place, one piece owns them and adds what the
others found.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dask_belief.checks import check_count
from dask_belief.errors import ArgumentError
from dask_belief.model_parallel.cost import Speeds
from dask_belief.model_parallel.cuts import BY, Cut, cheapest, choose
from dask_belief.models.box import Box
from dask_belief.models.layers import Layer
from dask_belief.models.layers.base import Part
from dask_belief.models.layout import ParameterLayout, Shape
from dask_belief.models.network import Network

LEAD = 0
"""The piece that is given the rows."""


@dataclass(frozen=True)
class Crossing:
    """What one piece sends another between two layers: up the values of nodes, down the derivatives by them."""

    array: int
    """Which nodes: the outputs of the layer of this number less one; 0 for the inputs."""

    source: int
    """The piece that has them."""

    destination: int
    """The piece that has edges to them."""

    box: Box
    """Of the whole array."""


@dataclass(frozen=True)
class Share:
    """A parameter array, or a box of it, that several pieces compute with."""

    name: str
    """As the network's layout calls the array."""

    box: Box
    """Of the whole array."""

    owner: int
    """The piece to whose vector it belongs."""

    borrowers: tuple[int, ...]
    """The others."""


@dataclass(frozen=True)
class LayerPlan:
    """One layer and what each piece has of it."""

    number: int
    layer: Layer
    input_shape: Shape
    cut: Cut
    parts: tuple[Part | None, ...]
    """One a piece; None where it has no node of the layer."""

    @property
    def output_shape(self) -> Shape:
        """Of one row."""
        return self.layer.output_shape(self.input_shape)


@dataclass(frozen=True)
class Plan:
    """A network cut into pieces, each for a machine of its own.

    Made by `partition`. Counts are for one row, unless a number of rows is given.

    Attributes
    ----------
    network
        What is cut.
    n_pieces
        How many pieces there are; some may have no node.
    by
        As asked for.
    layers
        From the inputs to the outputs.
    micro_batches
        In how many parts a mini-batch goes through the pieces: while one is sent, another is computed.
    """

    network: Network
    n_pieces: int
    by: str
    layers: tuple[LayerPlan, ...]
    micro_batches: int = 1

    @functools.cached_property
    def loss_piece(self) -> int:
        """The piece that is given all outputs and knows the loss: the one that has most of them."""
        return max(range(self.n_pieces), key=lambda piece: (_size(self.held(len(self.layers), piece)), -piece))

    def held(self, array: int, piece: int) -> Box | None:
        """Give the box of an array that a piece has, the rows of the lead among them; None for nothing."""
        if array == 0:
            return Box.whole(self.network.input_shape) if piece == LEAD else None
        part = self.layers[array - 1].parts[piece]
        return None if part is None else part.outputs

    def needed(self, array: int, piece: int) -> Box | None:
        """Give the box of an array that a piece computes with; None for nothing."""
        if array == len(self.layers):
            return Box.whole(self.layers[-1].output_shape) if piece == self.loss_piece else None
        part = self.layers[array].parts[piece]
        return None if part is None else part.inputs

    @functools.cached_property
    def crossings(self) -> tuple[Crossing, ...]:
        """All that crosses, by array, source and destination."""
        found = []
        for array in range(len(self.layers) + 1):
            for source in range(self.n_pieces):
                held = self.held(array, source)
                for destination in range(self.n_pieces):
                    needed = self.needed(array, destination)
                    if held is None or needed is None or source == destination or (held & needed).is_empty:
                        continue
                    found.append(Crossing(array, source, destination, held & needed))
        return tuple(found)

    @functools.cached_property
    def shares(self) -> tuple[Share, ...]:
        """The parameters that several pieces compute with."""
        found = []
        for layer in self.layers:
            users: dict[tuple[str, Box], list[int]] = {}
            for piece, part in enumerate(layer.parts):
                for name, box in () if part is None else part.parameters.items():
                    users.setdefault((f"{layer.number}.{name}", box), []).append(piece)
            found += [
                Share(name, box, owner, tuple(borrowers))
                for (name, box), (owner, *borrowers) in users.items()
                if borrowers
            ]
        return tuple(found)

    @functools.cached_property
    def own_boxes(self) -> tuple[dict[str, Box], ...]:
        """For each piece the boxes of parameters that it owns, by the names of the network's layout, in its order."""
        borrowed = {(share.name, piece) for share in self.shares for piece in share.borrowers}
        boxes: tuple[dict[str, Box], ...] = tuple({} for _ in range(self.n_pieces))
        for layer in self.layers:
            for piece, part in enumerate(layer.parts):
                for name, box in () if part is None else part.parameters.items():
                    if (full := f"{layer.number}.{name}", piece) not in borrowed:
                        boxes[piece][full] = box
        return boxes

    @functools.cached_property
    def layouts(self) -> tuple[ParameterLayout, ...]:
        """For each piece where the parameters that it owns lie in its vector."""
        return tuple(ParameterLayout({name: box.shape for name, box in boxes.items()}) for boxes in self.own_boxes)

    def cut_vector(self, vector: npt.NDArray[np.floating]) -> list[npt.NDArray[np.floating]]:
        """Give each piece's own vector, copied from one of the whole network."""
        arrays = self.network.layout.views(vector)
        return [
            np.concatenate(
                [
                    np.zeros(0, vector.dtype),
                    *(arrays[name][_all(box)].reshape(-1) for name, box in self.own_boxes[piece].items()),
                ]
            )
            for piece in range(self.n_pieces)
        ]

    def join_vectors(
        self, vectors: Sequence[npt.NDArray[np.floating]], out: npt.NDArray[np.floating]
    ) -> npt.NDArray[np.floating]:
        """Write the pieces' own vectors to where they belong in one of the whole network, and give that."""
        arrays = self.network.layout.views(out)
        for vector, layout, boxes in zip(vectors, self.layouts, self.own_boxes, strict=True):
            for name, own in layout.views(vector).items():
                arrays[name][_all(boxes[name])] = own
        return out

    def operations(self, piece: int) -> float:
        """Estimate the floating-point operations of one row, up and down: thrice those of the way up."""
        parts = (layer.parts[piece] for layer in self.layers)
        return 3.0 * sum(part.layer.operations(part.inputs.shape) for part in parts if part is not None)

    def nodes(self, piece: int) -> int:
        """Count the values that a piece holds for one row: what it computes, and what it needs for that."""
        return sum(_size(self.held(array, piece)) + _size(self.needed(array, piece)) for array in self._arrays)

    def sent_values(self, piece: int, *, arrays: Sequence[int] | None = None) -> int:
        """Count the values that a piece sends for one row, up and down; nothing goes down to the inputs."""
        among = self._arrays if arrays is None else arrays
        up = sum(each.box.size for each in self.crossings if each.source == piece and each.array in among)
        down = sum(
            each.box.size for each in self.crossings if each.destination == piece and each.array in among and each.array
        )
        return up + down

    def shared_values(self) -> int:
        """Count the parameters that are sent to be shared, and their gradients, once a mini-batch however many rows."""
        return sum(2 * share.box.size * len(share.borrowers) for share in self.shares)

    def sent_bytes(self, n_rows: int, dtype: npt.DTypeLike = np.float32) -> int:
        """Count what all pieces send each other for one mini-batch."""
        values = n_rows * sum(self.sent_values(piece) for piece in range(self.n_pieces)) + self.shared_values()
        return values * np.dtype(dtype).itemsize

    def held_bytes(self, piece: int, n_rows: int, dtype: npt.DTypeLike = np.float32) -> int:
        """Count what a piece holds: parameters and gradient, values of nodes and the derivatives by them."""
        borrowed = sum(share.box.size for share in self.shares if piece in share.borrowers)
        values = 2 * (self.layouts[piece].n_parameters + borrowed) + 2 * n_rows * self.nodes(piece)
        return values * np.dtype(dtype).itemsize

    def seconds(self, n_rows: int, speeds: Speeds | None = None) -> float:
        """Estimate how long one mini-batch takes; see `Speeds`."""
        return sum(self.layer_seconds(number, n_rows, speeds or Speeds()) for number in range(len(self.layers) + 1))

    def layer_seconds(self, number: int, n_rows: int, speeds: Speeds) -> float:
        """Estimate the seconds of one layer, up and down, until its slowest piece has done; last comes the loss."""
        slowest = 0.0
        for piece in range(self.n_pieces):
            part = self.layers[number].parts[piece] if number < len(self.layers) else None
            operations = 0.0 if part is None else 3.0 * n_rows * part.layer.operations(part.inputs.shape)
            ends = [
                each for each in self.crossings if each.array == number and piece in (each.source, each.destination)
            ]
            ways = 1 if number == 0 else 2
            n_bytes = 4.0 * n_rows * ways * sum(each.box.size for each in ends)
            if part is not None:
                n_bytes += 8.0 * sum(self._shared_by(number, piece))
            slowest = max(slowest, speeds.seconds(operations, n_bytes, ways * len(ends)))
        return slowest

    def _shared_by(self, number: int, piece: int) -> list[int]:
        of_layer = (share for share in self.shares if share.name.startswith(f"{number}."))
        return [share.box.size for share in of_layer if piece in (share.owner, *share.borrowers)]

    @property
    def _arrays(self) -> range:
        return range(len(self.layers) + 1)

    def __reduce__(self) -> tuple[object, tuple[Network, int, str, tuple[Cut, ...], int]]:
        """Pickle as the network and its cuts, of which all else follows."""
        return plan_of, (
            self.network,
            self.n_pieces,
            self.by,
            tuple(layer.cut for layer in self.layers),
            self.micro_batches,
        )

    def __str__(self) -> str:
        """Give the tables of layers and pieces; see `dask_belief.model_parallel.tables`."""
        from dask_belief.model_parallel.tables import tables

        return tables(self)

    def draw(self, path: str | None = None) -> str:
        """Draw the plan as the paper's Figure 1 does; gives the SVG, and writes it where a path is given."""
        from dask_belief.model_parallel.drawing import drawing

        text = drawing(self)
        if path is not None:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        return text

    def _repr_svg_(self) -> str:
        return self.draw()


def partition(
    network: Network,
    pieces: int,
    by: str = "auto",
    *,
    micro_batches: int | None = None,
    n_rows: int = 100,
    speeds: Speeds | None = None,
) -> Plan:
    """Cut a network into pieces, each for a machine of its own.

    Parameters
    ----------
    network
        What is cut.
    pieces
        Into how many.
    by
        ``"auto"``, ``"rows"``, ``"channels"``, ``"units"`` or ``"layers"``; see `cuts.choose`. ``"auto"`` takes for
        each layer what makes the whole cheapest, by `speeds`.
    micro_batches
        In how many parts a mini-batch goes through the pieces. None for one; where layers in a row are on different
        pieces for four a piece: a piece has nothing to do until the first part has come to it.
    n_rows
        Of a mini-batch, for ``"auto"``: what is sent grows with them, the messages do not.
    speeds
        Of machines and network, for ``"auto"``.

    Raises
    ------
    ArgumentError
        An argument is wrong, or there are fewer layers than pieces ``by="layers"``.

    Examples
    --------
    >>> from dask_belief.models.layers import Dense
    >>> network = Network([Dense(64, "relu"), Dense(10)], loss="softmax", input_shape=(100,))
    >>> plan = partition(network, 2, by="units")
    >>> [layer.parts[0].outputs.shape for layer in plan.layers], plan.loss_piece
    ([(32,), (5,)], 0)
    >>> plan.sent_bytes(n_rows=1) // 4
    238
    """
    if not isinstance(network, Network):
        raise ArgumentError(f"network: expected a Network, got {type(network).__name__}.")
    check_count("pieces", pieces)
    check_count("n_rows", n_rows)
    if by not in BY:
        raise ArgumentError(f"by: expected one of {', '.join(map(repr, BY))}, got {by!r}.")
    layers, shapes = network.layers, network.shapes
    if micro_batches is not None:
        check_count("micro_batches", micro_batches)
    if by != "auto":
        return plan_of(network, pieces, by, choose(layers, shapes, pieces, by), micro_batches)
    known = speeds or Speeds()

    @functools.cache
    def seconds(number: int, before: Cut | None, cut: Cut) -> float:
        # A plan of the two layers alone tells what the second costs.
        return _two_layers(network, pieces, number, before, cut).layer_seconds(number, n_rows, known)

    return plan_of(network, pieces, by, cheapest(layers, shapes, pieces, seconds), micro_batches)


def plan_of(network: Network, pieces: int, by: str, cuts: Sequence[Cut], micro_batches: int | None = None) -> Plan:
    """Give the plan with these cuts, one a layer; see `partition`."""
    is_pipeline = len({cut.home for cut in cuts}) > 1
    shapes = network.shapes
    layers = []
    for number, (layer, cut) in enumerate(zip(network.layers, cuts, strict=True)):
        boxes = cut.boxes(shapes[number + 1], pieces)
        parts = tuple(None if box is None else layer.part(box, shapes[number]) for box in boxes)
        layers.append(LayerPlan(number, layer, shapes[number], cut, parts))
    return Plan(network, pieces, by, tuple(layers), micro_batches or (4 * pieces if is_pipeline else 1))


def _two_layers(network: Network, pieces: int, number: int, before: Cut | None, cut: Cut) -> Plan:
    cuts = [Cut(home=LEAD)] * len(network.layers)
    if before is not None:
        cuts[number - 1] = before
    if number < len(network.layers):
        cuts[number] = cut
    return plan_of(network, pieces, "auto", cuts)


def _size(box: Box | None) -> int:
    return 0 if box is None else math.prod(box.shape)


def _all(box: Box) -> tuple[slice, ...]:
    return box.within(Box((0,) * len(box.starts), box.stops))
