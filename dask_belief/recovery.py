"""From where a run goes on when its shards were lost: facts in, decision out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Source(Enum):
    """What lost shards are filled from."""

    SAVED = "the newest saved state"
    BEGINNING = "the beginning of the run"
    KEPT = "the parameters that the driver has a copy of"


@dataclass(frozen=True)
class Loss:
    """What is known when shards were lost.

    Attributes
    ----------
    has_saved
        Whether there is a complete saved state.
    n_saved
        How many states the run has saved, those that were lost since among them.
    can_save
        Whether there is a place to save to: a checkpoint, or a second worker.
    has_kept
        Whether the driver has a copy of newer parameters than the initial ones.
    """

    has_saved: bool
    n_saved: int
    can_save: bool
    has_kept: bool


def source_of(loss: Loss) -> Source:
    """Decide from where to go on.

    A run that has not saved yet is as young as the first save takes, and begins anew: so it gives the numbers of an
    unbroken run. One whose saved state was lost as well, or that has no place to save to, goes on from parameters
    alone: without the history of L-BFGS, or a rule's state, but without losing all.
    """
    if loss.has_saved:
        return Source.SAVED
    if loss.has_kept and (loss.n_saved or not loss.can_save):
        return Source.KEPT
    return Source.BEGINNING
