"""Cuts cover every node once, and the cheapest way through the layers is the cheapest of all."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dask_belief.errors import ArgumentError
from dask_belief.model_parallel.cuts import Cut, by_layers, cheapest, choose, possible
from dask_belief.models.box import Box
from dask_belief.models.layers import Dense
from dask_belief.seeds import stream


@pytest.mark.parametrize("shape", [(1,), (7,), (5, 4, 3)])
@pytest.mark.parametrize("n_pieces", [1, 2, 3, 8])
def test_every_node_has_one_piece(shape: tuple[int, ...], n_pieces: int) -> None:
    """And the shares differ by one at most along the axis that is cut."""
    for axis in range(len(shape)):
        boxes = Cut(axis=axis).boxes(shape, n_pieces)
        owners = np.zeros(shape, int)
        for box in boxes:
            if box is not None:
                owners[tuple(slice(*ends) for ends in zip(box.starts, box.stops, strict=True))] += 1
        assert (owners == 1).all()
        lengths = [0 if box is None else box.shape[axis] for box in boxes]
        assert max(lengths) - min(lengths) <= 1


def test_what_is_whole_is_at_home() -> None:
    """One piece has all of it, the others nothing."""
    assert Cut(home=2).boxes((4,), 3) == (None, None, Box.whole((4,)))


def test_layers_in_a_row_are_shared_out_as_evenly_as_can_be() -> None:
    """Against all ways to share them out."""
    random = stream(0, "layers")
    for n_layers, n_pieces in itertools.product((3, 5, 6), (1, 2, 3)):
        sizes = [int(size) for size in random.integers(1, 30, n_layers + 1)]
        layers = [Dense(size) for size in sizes[1:]]
        shapes = [(size,) for size in sizes]
        costs = [layer.operations(shape) for layer, shape in zip(layers, shapes, strict=False)]

        def largest(homes: tuple[int, ...], costs: list[float] = costs) -> float:
            return max(sum(cost for cost, home in zip(costs, homes, strict=True) if home == each) for each in homes)

        found = [cut.home or 0 for cut in by_layers(layers, shapes, n_pieces)]
        assert found == sorted(found) and set(found) == set(range(n_pieces))
        ways = (
            tuple(int(np.searchsorted(borders, number, "right")) for number in range(n_layers))
            for borders in itertools.combinations(range(1, n_layers), n_pieces - 1)
        )
        assert largest(tuple(found)) == min(map(largest, ways))


def test_more_pieces_than_layers_are_refused() -> None:
    """A piece without a layer would have nothing to do."""
    with pytest.raises(ArgumentError, match="pieces"):
        by_layers([Dense(3)], [(2,), (3,)], 2)


def test_the_cheapest_way_is_the_cheapest_of_all() -> None:
    """Against all combinations of cuts, with costs drawn at random."""
    layers, shapes = [Dense(4), Dense(6), Dense(2)], [(3,), (4,), (6,), (2,)]
    random = stream(0, "costs")
    costs: dict[tuple[int, Cut | None, Cut], float] = {}

    def seconds(number: int, before: Cut | None, cut: Cut) -> float:
        return costs.setdefault((number, before, cut), float(random.uniform()))

    def of_all(cuts: tuple[Cut, ...]) -> float:
        steps = zip(range(3), (None, *cuts), cuts, strict=False)
        return sum(seconds(*step) for step in steps) + seconds(3, cuts[-1], cuts[-1])

    found = cheapest(layers, shapes, 3, seconds)
    ways = itertools.product(*(possible(layer, shape, 3) for layer, shape in zip(layers, shapes, strict=False)))
    assert of_all(tuple(found)) == min(map(of_all, ways))


def test_layers_that_cannot_be_cut_so_stay_whole() -> None:
    """By rows, a network of units only is cut by units."""
    layers, shapes = [Dense(4), Dense(6)], [(3,), (4,), (6,)]
    for by in ("units", "rows", "channels"):
        assert choose(layers, shapes, 2, by) == [Cut(axis=0), Cut(axis=0)]
