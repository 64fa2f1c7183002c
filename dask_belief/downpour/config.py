"""The options of Downpour SGD."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

from dask_belief.checks import check_count, check_number
from dask_belief.errors import ArgumentError
from dask_belief.optim.rules import Adagrad, Rule, rule_from_config
from dask_belief.parameter_server.consistency import (
    ElasticAveraging,
    Staleness,
    Synchronous,
    check_staleness,
    staleness_from_config,
)


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
    shard_copies
        Further actors for each shard, 0 or 1. With 1 a push counts when both have it, and the loss of a worker loses no
        update; without, a lost shard goes back to what was saved of it a few seconds before.
    rule
        How a shard applies a push: `SGD`, `Momentum`, `Nesterov`, `Adagrad`, `RMSProp` or `Adam`, at a rate that may
        be a schedule by the shard's count of updates.
    batch_size
        Rows of a mini-batch.
    n_fetch, n_push
        Mini-batches from one fetch, and from one push, to the next; the paper's experiments used 1 for both.
    fetch_lag
        A fetch that is begun at a mini-batch takes effect so many mini-batches later, so that the network hides behind
        the mathematics; 0 waits for it, as in the base form. Fixed, so that a run with one replica is a pure function
        of its options and seed. None for 1, or 0 with `Synchronous`.
    epochs
        Passes over the data.
    l2
        Weight of the penalty, zero or more; a Network's biases are left out of it.
    weight_decay
        Before each update the shard multiplies what is penalised by ``1 - rate * weight_decay`` (Loshchilov and Hutter
        2019): it does not pass through the rule's state, as the gradient of `l2` does. In a sparse push only what was
        touched decays.
    clip_norm
        A mini-batch's mean gradient, penalty included, is scaled down to this Euclidean norm; None for no limit.
    warm_start_steps, warm_start_seconds
        Mini-batches, rounded up to whole leases, or seconds, that one replica trains before the others are released.
        Seconds give up repeatability.
    staleness
        What is done about old gradients: None (the paper: nothing), `MaxStaleness`, `ScaleByStaleness`, `Synchronous`
        or `ElasticAveraging`.
    validate_every_steps, validate_every_seconds
        How often the validation set is evaluated, at a snapshot and beside the training: after so many mini-batches of
        all replicas together (looked at as leases are finished), or seconds; None and None for once an epoch, and
        seldom enough to take a fifth of the time at most.
    patience
        Stop after so many validations in a row without a lower loss than the lowest; None for never.
    max_seconds
        Ends the run after so long; None for no limit. Gives up repeatability.
    wire_dtype
        Of what is pushed and fetched: None for the run's dtype, or ``"bfloat16"``, for half the bytes; for runs of
        float32. What rounding leaves out of a push stays with the replica and is a part of its next one (Seide et al.,
        "1-bit stochastic gradient descent", 2014; Karimireddy et al., "Error feedback fixes SignSGD", 2019). What is
        fetched is rounded, so a replica computes at parameters that are off by 2**-9 of each at most. The shards keep
        float32, and so do checkpoints.
    lease_rows
        Rows that a replica takes at a time, shuffled within; None to derive them from the chunk grid and the batch.
    stalled_after_seconds
        When no update was made, or a shard not reached for so long, the run ends with an error.

    Raises
    ------
    ArgumentError
        For a value out of range, with its name.
    """

    name: ClassVar[str] = "Downpour SGD"

    n_replicas: int | None = None
    n_shards: int = 1
    shard_copies: int = 0
    rule: Rule = field(default_factory=lambda: Adagrad(0.02))
    batch_size: int = 100
    n_fetch: int = 1
    n_push: int = 1
    fetch_lag: int | None = None
    epochs: int = 5
    l2: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float | None = None
    warm_start_steps: int = 0
    warm_start_seconds: float = 0.0
    staleness: Staleness | None = None
    validate_every_steps: int | None = None
    validate_every_seconds: float | None = None
    patience: int | None = None
    max_seconds: float | None = None
    wire_dtype: str | None = None
    lease_rows: int | None = None
    stalled_after_seconds: float = 600.0

    def __post_init__(self) -> None:
        for name in ("n_shards", "batch_size", "n_fetch", "n_push", "epochs"):
            check_count(name, getattr(self, name))
        for name in ("n_replicas", "lease_rows", "validate_every_steps", "patience"):
            check_count(name, getattr(self, name), may_be_none=True)
        check_count("fetch_lag", self.fetch_lag, low=0, may_be_none=True)
        check_count("warm_start_steps", self.warm_start_steps, low=0)
        for name in ("l2", "weight_decay", "warm_start_seconds"):
            check_number(name, getattr(self, name), low=0.0)
        for name in ("clip_norm", "validate_every_seconds"):
            check_number(name, getattr(self, name), low=0.0, is_open=True, may_be_none=True)
        check_number("max_seconds", self.max_seconds, low=0.0, may_be_none=True)
        check_number("stalled_after_seconds", self.stalled_after_seconds, low=0.0, is_open=True)
        if isinstance(self.rule, type) or not isinstance(self.rule, Rule):
            raise ArgumentError(
                "rule: expected SGD, Momentum, Nesterov, Adagrad, RMSProp or Adam, got "
                f"{self.rule.__name__ if isinstance(self.rule, type) else type(self.rule).__name__}."
            )
        check_staleness(self.staleness)
        if self.wire_dtype not in (None, "bfloat16"):
            raise ArgumentError(f"wire_dtype: expected None or 'bfloat16', got {self.wire_dtype!r}.")
        if self.shard_copies not in (0, 1):
            raise ArgumentError(f"shard_copies: expected 0 or 1, got {self.shard_copies!r}.")
        if self.lag > self.n_fetch:
            raise ArgumentError(
                f"fetch_lag: {self.fetch_lag} is more than n_fetch={self.n_fetch}: the next fetch would begin before "
                "this one takes effect."
            )
        self._check_ways()

    def _check_ways(self) -> None:
        """Refuse options that do not go with the way in which replicas keep together."""
        if isinstance(self.staleness, Synchronous):
            for name, needed in (("n_fetch", 1), ("n_push", 1), ("fetch_lag", 0)):
                if getattr(self, name) not in (needed, None):
                    raise ArgumentError(f"{name}: with Synchronous it must be {needed}, got {getattr(self, name)}.")
            if self.n_replicas is not None and self.staleness.backup_replicas >= self.n_replicas:
                raise ArgumentError(
                    f"staleness: {self.staleness.backup_replicas} backup replicas of {self.n_replicas} leave none to "
                    "wait for. Ask for fewer, or for more replicas."
                )
        if isinstance(self.staleness, ElasticAveraging):
            if self.n_replicas is None:
                raise ArgumentError("n_replicas: ElasticAveraging divides its elasticity by it; give the number.")
            if self.staleness.elasticity >= self.n_replicas:
                raise ArgumentError(
                    f"staleness: an elasticity of {self.staleness.elasticity:g} over {self.n_replicas} replicas moves "
                    "the shards past the replicas. Give less than n_replicas."
                )
            if self.n_fetch != self.n_push:
                raise ArgumentError(
                    f"n_fetch: with ElasticAveraging one exchange does both: got n_fetch={self.n_fetch} and "
                    f"n_push={self.n_push}. Give the same number."
                )

    @property
    def lag(self) -> int:
        """How many mini-batches after it was begun a fetch takes effect."""
        if self.fetch_lag is None:
            return 0 if isinstance(self.staleness, Synchronous) else 1
        return self.fetch_lag

    def to_config(self) -> dict[str, Any]:
        """Describe the options by plain JSON."""
        config = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        staleness = self.staleness
        if staleness is not None:
            config["staleness"] = {"name": type(staleness).__name__, **asdict(staleness)}
        return config | {"rule": self.rule.to_config()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Downpour:
        """Rebuild the options from `to_config`.

        Raises
        ------
        ArgumentError
            An option is unknown or out of range.
        """
        options = dict(config)
        if "rule" in options:
            options["rule"] = rule_from_config(options["rule"])
        if options.get("staleness") is not None:
            options["staleness"] = staleness_from_config(options["staleness"])
        try:
            return cls(**options)
        except TypeError as error:
            raise ArgumentError(f"config: Downpour cannot be made with {sorted(options)}: {error}") from error
