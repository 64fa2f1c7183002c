"""What one piece of a network computes for a mini-batch, and when it sends and needs what.

A piece is a program that is the same whether its peers run in this thread, beside it, or on other machines: it hands
out messages as soon as they are there, and says which one it cannot go on without. Whoever runs it carries them.

::

    for each layer, for each micro-batch:      take what the part needs, compute, hand out what others need
    the loss, where this piece is to know it
    the same back, with derivatives:           what others found of this piece's nodes is added to what it found itself

All pieces go through layers and micro-batches in one order, so none can wait for one that waits for it. While a piece
waits for the second micro-batch's message, its peers compute with the first.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dask_belief.backend import Array, Backend, Scalar
from dask_belief.model_parallel.letters import DOWN, FOUND, LENT, LOSS, UP, Letter
from dask_belief.model_parallel.plan import LEAD, Crossing, Plan
from dask_belief.models.layers import Embedding, Workspace
from dask_belief.models.layers.base import Part
from dask_belief.models.losses import get_loss

Post = Callable[[Letter, Array], None]
"""Sends a message; returns at once. The array is the message's own."""

Steps = Generator[Letter, Array, None]
"""Yields what it cannot go on without, and is sent that."""


@dataclass(frozen=True)
class Batch:
    """A mini-batch, as a piece is told of it."""

    step: int
    n_rows: int
    n_micro_batches: int = 1
    is_training: bool = True
    """Whether a gradient is wanted; else a prediction."""

    has_new_parameters: bool = True
    """Whether what is shared has to be lent anew."""

    key: int | None = None
    """What the pass draws its random numbers from; None where nothing is drawn."""

    def micro_batches(self) -> list[slice]:
        """Give the rows of each micro-batch; no more than there are rows, and one where there are none."""
        n = max(1, min(self.n_micro_batches, self.n_rows))
        borders = [self.n_rows * number // n for number in range(n + 1)]
        return [slice(start, stop) for start, stop in itertools.pairwise(borders)]


class Piece:
    """One piece's share of the arithmetic of a network.

    Parameters
    ----------
    plan
        The whole.
    number
        Which piece this is.
    backend
        What to compute with.
    dtype
        float32 or float64.
    post
        Sends a message.

    Attributes
    ----------
    loss
        Of the last mini-batch that was for training, summed over its rows, where this piece is the lead or knows the
        loss; else zero.
    outputs
        Where it knows the loss: the predictions for the last mini-batch that was not for training.
    """

    def __init__(self, plan: Plan, number: int, backend: Backend, dtype: np.dtype[Any], post: Post) -> None:
        self.plan, self.number = plan, number
        self._own: dict[str, Array] = {}
        self._found: dict[str, Array] = {}
        self.outputs: Array | None = None
        self.loss: Scalar = 0.0
        self._backend, self._dtype, self._post = backend, dtype, post
        self._loss = get_loss(plan.network.loss)
        self._parts: list[Part | None] = [layer.parts[number] for layer in plan.layers]
        self._shares = [
            (which, share) for which, share in enumerate(plan.shares) if number in (share.owner, *share.borrowers)
        ]
        self._borrowed = {
            share.name: (backend.zeros(share.box.shape, dtype), backend.zeros(share.box.shape, dtype))
            for _, share in self._shares
            if share.owner != number
        }
        self._into: dict[int, list[Crossing]] = {}
        self._out_of: dict[int, list[Crossing]] = {}
        for crossing in plan.crossings:
            if crossing.destination == number:
                self._into.setdefault(crossing.array, []).append(crossing)
            if crossing.source == number:
                self._out_of.setdefault(crossing.array, []).append(crossing)
        self._workspaces: dict[tuple[str, int, int], Workspace] = {}

    def steps(
        self, batch: Batch, parameters: Array, gradient: Array | None, rows: Array | None, targets: Array | None
    ) -> Steps:
        """Compute a mini-batch; to be run within `Backend.computing`.

        Parameters
        ----------
        batch
            Which.
        parameters, gradient
            What this piece owns of them, ``(plan.layouts[number].n_parameters,)``; the second is written, summed over
            the rows. None when nothing but a prediction is wanted.
        rows
            The inputs, ``(n_rows, *input_shape)``, for the lead; None for the others.
        targets
            For the piece that knows the loss, when training.
        """
        layout = self.plan.layouts[self.number]
        self._own, self._found = layout.views(parameters), {} if gradient is None else layout.views(gradient)
        yield from self._lend(batch)
        micro_batches = batch.micro_batches()
        # (array, micro-batch) -> the values of the nodes that this piece has.
        held: dict[tuple[int, int], Array] = {}
        taken: dict[tuple[int, int], Array] = {}
        for micro, where in enumerate(micro_batches):
            if rows is not None:
                held[0, micro] = rows[where]
                self._send_up(batch, 0, micro, held[0, micro])
        yield from self._forward(batch, micro_batches, held, taken)
        deltas = yield from self._end(batch, micro_batches, held, targets)
        if batch.is_training:
            yield from self._backward(batch, micro_batches, held, taken, deltas)
            yield from self._return(batch)
            yield from self._tell_loss(batch)

    # Up

    def _forward(
        self,
        batch: Batch,
        micro_batches: list[slice],
        held: dict[tuple[int, int], Array],
        taken: dict[tuple[int, int], Array],
    ) -> Steps:
        for array, part in enumerate(self._parts):
            if part is None:
                continue
            parameters = self._views(array, part, self._own, which=0)
            for micro, where in enumerate(micro_batches):
                inputs = yield from self._take(batch, array, micro, where, held.get((array, micro)))
                taken[array, micro] = inputs
                workspace = self._workspace("part", array, micro)
                workspace.key, workspace.first_row = batch.key if batch.is_training else None, where.start
                held[array + 1, micro] = part.layer.forward(self._backend, parameters, inputs, workspace)
                self._send_up(batch, array + 1, micro, held[array + 1, micro])

    def _take(
        self, batch: Batch, array: int, micro: int, where: slice, held: Array | None
    ) -> Generator[Letter, Array, Array]:
        """Give what this piece needs of an array: what it has, and what comes from others."""
        needed, own = self.plan.needed(array, self.number), self.plan.held(array, self.number)
        assert needed is not None
        into = self._into.get(array, ())
        if not into:
            assert own is not None and held is not None
            return held if own == needed else held[(slice(None), *needed.within(own))]
        dtype = np.dtype(np.int64) if array == 0 and self._has_ids else self._dtype
        shape = (where.stop - where.start, *needed.shape)
        inputs = self._workspace("taken", array, micro).array("values", shape, dtype)
        if own is not None and held is not None and not (both := own & needed).is_empty:
            inputs[(slice(None), *both.within(needed))] = held[(slice(None), *both.within(own))]
        for crossing in into:
            letter = Letter(batch.step, UP, array, crossing.source, self.number, micro)
            received = yield letter
            inputs[(slice(None), *crossing.box.within(needed))] = self._backend.asarray(received)
        return inputs

    def _send_up(self, batch: Batch, array: int, micro: int, held: Array) -> None:
        own = self.plan.held(array, self.number)
        assert own is not None
        for crossing in self._out_of.get(array, ()):
            values = held[(slice(None), *crossing.box.within(own))]
            letter = Letter(batch.step, UP, array, self.number, crossing.destination, micro)
            self._post(letter, self._copied(values))

    # The loss

    def _end(
        self,
        batch: Batch,
        micro_batches: list[slice],
        held: Mapping[tuple[int, int], Array],
        targets: Array | None,
    ) -> Generator[Letter, Array, dict[int, Array]]:
        """Take the outputs of the network; gives the derivative of the loss by them, a micro-batch each."""
        self.loss, self.outputs = 0.0, None
        deltas: dict[int, Array] = {}
        if self.plan.loss_piece != self.number:
            return deltas
        last = len(self._parts)
        predictions = []
        for micro, where in enumerate(micro_batches):
            outputs = yield from self._take(batch, last, micro, where, held.get((last, micro)))
            workspace = self._workspace("loss", last, micro)
            # The loss writes in their place, and the last layer may still want them.
            z = workspace.array("z", outputs.shape, self._dtype)
            z[...] = outputs
            flat = z.reshape(len(z), self.plan.network.n_outputs)
            if not batch.is_training:
                self._loss.prediction_(self._backend, flat)
                predictions.append(self._backend.to_host(flat))
                continue
            assert targets is not None
            losses = workspace.array("losses", (len(z),), self._dtype)
            self._loss.gradient_(self._backend, flat, self._loss.prepare(self._backend, targets[where], flat), losses)
            total: Array = losses.sum(dtype=np.float64)
            self.loss = self.loss + total
            deltas[micro] = z
        if not batch.is_training:
            self.outputs = np.concatenate(predictions)
        return deltas

    # Down

    def _backward(
        self,
        batch: Batch,
        micro_batches: list[slice],
        held: Mapping[tuple[int, int], Array],
        taken: Mapping[tuple[int, int], Array],
        deltas: dict[int, Array],
    ) -> Steps:
        """Go back through the layers; `deltas` are by the inputs of the layer above, of this piece's part of it."""
        last = len(self._parts)
        if self.plan.loss_piece == self.number:
            for micro in range(len(micro_batches)):
                self._send_down(batch, last, micro, deltas[micro])
        for array in reversed(range(last)):
            part = self._parts[array]
            if part is None:
                deltas = {}
                continue
            below: dict[int, Array] = {}
            for micro, where in enumerate(micro_batches):
                delta = yield from self._take_delta(batch, array + 1, micro, where, deltas.get(micro))
                found = self._of_part(array, part, micro, taken[array, micro], held[array + 1, micro], delta)
                if found is not None:
                    below[micro] = found
                    self._send_down(batch, array, micro, found)
            deltas = below

    def _of_part(self, array: int, part: Part, micro: int, inputs: Array, outputs: Array, delta: Array) -> Array | None:
        """Compute one part's derivatives, and add its gradients to those of the micro-batches before."""
        gradients = self._views(array, part, self._found, which=1)
        scratch = self._workspace("gradients", array, 0)
        written = gradients if micro == 0 else {n: scratch.array(n, g.shape, self._dtype) for n, g in gradients.items()}
        if isinstance(part.layer, Embedding):
            # It writes the rows that the inputs choose, and no others.
            written["weights"][...] = 0
        found = part.layer.backward(
            self._backend,
            self._views(array, part, self._own, which=0),
            written,
            inputs,
            outputs,
            delta,
            self._workspace("part", array, micro),
            needs_input_delta=array > 0,
        )
        if micro > 0:
            for name, gradient in gradients.items():
                self._backend.add_(written[name], gradient)
        return found

    def _take_delta(
        self, batch: Batch, array: int, micro: int, where: slice, above: Array | None
    ) -> Generator[Letter, Array, Array]:
        """Add up what this piece and others found of the derivatives by its nodes, always in the same order."""
        held, needed = self.plan.held(array, self.number), self.plan.needed(array, self.number)
        assert held is not None
        out_of = self._out_of.get(array, ())
        if above is not None and not out_of and held == needed:
            return above
        shape = (where.stop - where.start, *held.shape)
        delta = self._workspace("delta", array, micro).array("values", shape, self._dtype)
        delta[...] = 0
        if above is not None and needed is not None and not (both := held & needed).is_empty:
            delta[(slice(None), *both.within(held))] = above[(slice(None), *both.within(needed))]
        for crossing in out_of:
            received = yield Letter(batch.step, DOWN, array, crossing.destination, self.number, micro)
            delta[(slice(None), *crossing.box.within(held))] += self._backend.asarray(received)
        return delta

    def _send_down(self, batch: Batch, array: int, micro: int, found: Array) -> None:
        needed = self.plan.needed(array, self.number)
        assert needed is not None
        if array == 0:
            return
        for crossing in self._into.get(array, ()):
            letter = Letter(batch.step, DOWN, array, self.number, crossing.source, micro)
            self._post(letter, self._copied(found[(slice(None), *crossing.box.within(needed))]))

    # Parameters that several pieces compute with

    def _lend(self, batch: Batch) -> Steps:
        """Send what this piece owns to who borrows it, and take what it borrows."""
        if not batch.has_new_parameters:
            return
        own = self._own
        for which, share in self._shares:
            if share.owner == self.number:
                for borrower in share.borrowers:
                    self._post(Letter(batch.step, LENT, which, self.number, borrower), self._copied(own[share.name]))
        for which, share in self._shares:
            if share.owner != self.number:
                received = yield Letter(batch.step, LENT, which, share.owner, self.number)
                self._borrowed[share.name][0][...] = self._backend.asarray(received)

    def _return(self, batch: Batch) -> Steps:
        """Send what was found of the gradient of what is borrowed to its owner, and add what others found."""
        own = self._found
        for which, share in self._shares:
            if share.owner != self.number:
                found = self._copied(self._borrowed[share.name][1])
                self._post(Letter(batch.step, FOUND, which, self.number, share.owner), found)
        for which, share in self._shares:
            if share.owner == self.number:
                for borrower in share.borrowers:
                    received = yield Letter(batch.step, FOUND, which, borrower, self.number)
                    own[share.name] += self._backend.asarray(received)

    def _tell_loss(self, batch: Batch) -> Steps:
        """Bring the loss to the lead."""
        knower, here = self.plan.loss_piece, self.number
        if knower == LEAD or here not in (knower, LEAD):
            return
        letter = Letter(batch.step, LOSS, 0, knower, LEAD)
        if here == knower:
            loss = self.loss if isinstance(self.loss, float) else self._backend.item(self.loss)
            self._post(letter, np.array([loss]))
        else:
            received = yield letter
            self.loss = float(received[0])

    def _views(self, array: int, part: Part, own: Mapping[str, Array], *, which: int) -> dict[str, Array]:
        """Give a part's arrays by its own names: this piece's, or what it borrows (0) or found of that (1)."""
        views = {}
        for name in part.parameters:
            full = f"{array}.{name}"
            views[name] = own[full] if full in own else self._borrowed[full][which]
        return views

    @property
    def _has_ids(self) -> bool:
        return isinstance(self.plan.network.layers[0], Embedding)

    def _copied(self, values: Array) -> Array:
        """Give a copy on the host, which is the message's own."""
        host = np.empty(values.shape, values.dtype)
        return self._backend.to_host(values, out=host)

    def _workspace(self, what: str, array: int, micro: int) -> Workspace:
        key = (what, array, micro)
        if key not in self._workspaces:
            # A part draws as the whole layer does, by the layer's place.
            self._workspaces[key] = Workspace(self._backend, (array,))
        return self._workspaces[key]


def run_together(pieces: list[Piece], steps: list[Steps], letters: dict[Letter, Array]) -> None:
    """Run all pieces in this thread, each as far as the messages go; `letters` is where they post them.

    Raises
    ------
    RuntimeError
        None can go on: the plan of one is not that of another.
    """
    waiting = {piece.number: next(step, None) for piece, step in zip(pieces, steps, strict=True)}
    while any(letter is not None for letter in waiting.values()):
        ready = [number for number, letter in waiting.items() if letter is not None and letter in letters]
        if not ready:
            raise RuntimeError(f"pieces wait for messages that nobody sends: {waiting}")
        for number in ready:
            letter = waiting[number]
            assert letter is not None
            try:
                waiting[number] = steps[number].send(letters.pop(letter))
            except StopIteration:
                waiting[number] = None
