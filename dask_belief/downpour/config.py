"""The options of Downpour SGD."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from dask_belief.checks import check_count, check_number
from dask_belief.errors import ArgumentError
from dask_belief.optim.rules import Adagrad, Rule


@dataclass(frozen=True)
class Downpour:
    """Asynchronous SGD: replicas fetch parameters from the shards and push gradients to them (section 4.1).

    What is minimised is the mean over rows of the loss plus ``l2 / 2 * ||w||^2``; a mini-batch's gradient is divided
    by its rows.

    Parameters
    ----------
    n_replicas
        Replicas that train at once; None for one on every worker thread.
    n_shards
        Parameter shards. A shard holds at least 65,536 parameters.
    rule
        How a shard applies a push: `SGD`, `Momentum` or `Adagrad`.
    batch_size
        Rows of a mini-batch.
    n_fetch, n_push
        Mini-batches from one fetch, and from one push, to the next; the paper's experiments used 1 for both.
    fetch_lag
        A fetch that is begun at a mini-batch takes effect so many mini-batches later, so that the network hides behind
        the mathematics; 0 waits for it, as in the base form. Fixed, so that a run with one replica is a pure function
        of its options and seed.
    epochs
        Passes over the data.
    l2
        Weight of the penalty, zero or more; a Network's biases are left out of it.
    warm_start_steps
        Mini-batches that one replica trains before the others are released, rounded up to whole leases.
    max_seconds
        Ends the run after so long; None for no limit. Gives up repeatability.
    lease_rows
        Rows that a replica takes at a time, shuffled within; None to derive them from the chunk grid and the batch.

    Raises
    ------
    ArgumentError
        For a value out of range, with its name.
    """

    name: ClassVar[str] = "Downpour SGD"

    n_replicas: int | None = None
    n_shards: int = 1
    rule: Rule = field(default_factory=lambda: Adagrad(0.02))
    batch_size: int = 100
    n_fetch: int = 1
    n_push: int = 1
    fetch_lag: int = 1
    epochs: int = 5
    l2: float = 0.0
    warm_start_steps: int = 0
    max_seconds: float | None = None
    lease_rows: int | None = None

    def __post_init__(self) -> None:
        check_count("n_replicas", self.n_replicas, may_be_none=True)
        for name in ("n_shards", "batch_size", "n_fetch", "n_push", "epochs"):
            check_count(name, getattr(self, name))
        check_count("fetch_lag", self.fetch_lag, low=0)
        check_count("warm_start_steps", self.warm_start_steps, low=0)
        check_count("lease_rows", self.lease_rows, may_be_none=True)
        check_number("l2", self.l2, low=0.0)
        check_number("max_seconds", self.max_seconds, low=0.0, may_be_none=True)
        if not isinstance(self.rule, Rule):
            raise ArgumentError(f"rule: expected SGD, Momentum or Adagrad, got {type(self.rule).__name__}.")
        if self.fetch_lag >= self.n_fetch + 1:
            raise ArgumentError(
                f"fetch_lag: {self.fetch_lag} is more than n_fetch={self.n_fetch}: the next fetch would begin before "
                "this one takes effect."
            )
