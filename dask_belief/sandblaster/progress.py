"""How far a run of a batch method is, and what its present iteration has cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from dask_belief.sandblaster.backups import BackupCounts
from dask_belief.sandblaster.effort import Effort
from dask_belief.sandblaster.full_batch import Evaluated


@dataclass
class Progress:
    """How far a run is; it outlasts the actors.

    Attributes
    ----------
    iteration, evaluations
        Done so far.
    value
        The objective at the last point; NaN before the first evaluation.
    kept_iteration, kept_value
        Of the point that was last copied to the driver.
    """

    iteration: int = 0
    evaluations: int = 0
    value: float = math.nan
    kept_iteration: int = 0
    kept_value: float = math.nan

    def keep(self) -> None:
        """Note that the last point was copied to the driver."""
        self.kept_iteration, self.kept_value = self.iteration, self.value

    def go_back(self) -> None:
        """Go back to the kept point: what came after it was lost."""
        self.iteration, self.value = self.kept_iteration, self.kept_value


@dataclass
class Costs:
    """What the evaluations since the last iteration have cost.

    Attributes
    ----------
    effort
        Of all replicas.
    busiest_seconds
        Computing of the busiest replica of each evaluation.
    vector_seconds
        Rounds of messages to the shards.
    copied_bytes
        That the driver copied.
    """

    effort: Effort = field(default_factory=Effort)
    busiest_seconds: float = 0.0
    vector_seconds: float = 0.0
    copied_bytes: int = 0
    _backups: BackupCounts = field(default_factory=BackupCounts)
    _backups_before: BackupCounts = field(default_factory=BackupCounts)

    def add(self, evaluated: Evaluated) -> None:
        """Count an evaluation."""
        self.effort += evaluated.status.effort
        self.busiest_seconds += evaluated.status.busiest_seconds
        self.vector_seconds += evaluated.vector_seconds
        self._backups = evaluated.status.backups

    def take(self) -> dict[str, float]:
        """Give the sums by the names of `IterationEnded`'s fields, and begin anew."""
        effort, backups, before = self.effort, self._backups, self._backups_before
        taken = {
            "waiting_seconds": effort.waiting_seconds,
            "reading_seconds": effort.reading_seconds,
            "computing_seconds": effort.computing_seconds,
            "sending_seconds": effort.sending_seconds,
            "busiest_seconds": self.busiest_seconds,
            "vector_seconds": self.vector_seconds,
            "fetched_bytes": effort.fetched_bytes + self.copied_bytes,
            "pushed_bytes": effort.pushed_bytes,
            "cache_hits": effort.cache_hits,
            "cache_misses": effort.cache_misses,
            "backups_started": backups.started - before.started,
            "backups_won": backups.won - before.won,
            "backups_wasted_seconds": backups.wasted_seconds - before.wasted_seconds,
        }
        self.effort, self.busiest_seconds, self.vector_seconds, self.copied_bytes = Effort(), 0.0, 0.0, 0
        self._backups_before = backups
        return taken
