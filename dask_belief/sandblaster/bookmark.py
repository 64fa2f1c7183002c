"""Where a run of a batch method is between two iterations: all that is saved of it beside the vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dask_belief.errors import CheckpointError
from dask_belief.optim.direction import DIAGONAL, GRADIENT, DirectionRule
from dask_belief.optim.stopping import number_from_json, number_to_json


@dataclass(frozen=True)
class Bookmark:
    """A run between two iterations.

    Attributes
    ----------
    iteration, evaluations
        Done so far.
    value, norm
        The objective, and the largest magnitude in its gradient, at the point.
    previous
        The objective an iteration before; None at the first point.
    rule
        What decides directions, as it was then; whoever goes on from here takes a copy.
    pairs
        The slots that hold a step and a change, each with the iteration that made them.
    """

    iteration: int
    evaluations: int
    value: float
    norm: float
    previous: float | None
    rule: DirectionRule
    pairs: Mapping[int, int]

    def vectors(self, point: str) -> dict[str, str | None]:
        """What the shards hold of the run, each with what it is called for good where it will not change.

        Beside point and gradient it is what the next direction is made of: the pairs of a quasi-Newton method, say.
        """
        direction = self.rule.direction()
        wanted: dict[str, str | None] = {point: None, GRADIENT: None}
        for name in {*direction.terms, *direction.scaled_terms} - {GRADIENT}:
            wanted[name] = f"{name[0]}{self.pairs[int(name[1:])]}"
        if direction.scaled_terms:
            wanted[DIAGONAL] = DIAGONAL
        return wanted

    def to_state(self) -> dict[str, Any]:
        """Plain JSON, but for a rule that has no ``to_config``: it is given itself, and cannot go to a checkpoint."""
        to_config = getattr(self.rule, "to_config", None)
        return {
            "iteration": self.iteration,
            "evaluations": self.evaluations,
            "value": number_to_json(self.value),
            "norm": number_to_json(self.norm),
            "previous": None if self.previous is None else number_to_json(self.previous),
            "rule": self.rule if to_config is None else to_config(),
            "pairs": [[slot, iteration] for slot, iteration in sorted(self.pairs.items())],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], rule: Callable[[Mapping[str, Any]], DirectionRule]) -> Bookmark:
        """Rebuild it; `rule` makes what decides directions from its description.

        Raises
        ------
        CheckpointError
            When something is missing, or not what it should be.
        """
        try:
            kept = state["rule"]
            mark = cls(
                iteration=int(state["iteration"]),
                evaluations=int(state["evaluations"]),
                value=_number(state["value"]),
                norm=_number(state["norm"]),
                previous=None if state["previous"] is None else _number(state["previous"]),
                rule=rule(kept) if isinstance(kept, Mapping) else kept,
                pairs={int(slot): int(iteration) for slot, iteration in state["pairs"]},
            )
            if not isinstance(mark.rule, DirectionRule):
                raise TypeError(f"a {type(mark.rule).__name__} is no direction rule")
            # A rule that makes use of a pair which nobody has saved goes no further than the next save.
            mark.vectors("")
            return mark
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(
                f"checkpoint: what it says of the iterations cannot be read: {error!r}. It is damaged, or of another "
                "method; resume from the one before."
            ) from error


def _number(kept: Any) -> float:
    return float(number_from_json(kept))
