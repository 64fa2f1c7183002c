"""What is done about old gradients: the ways in which replicas of a Downpour run keep together.

None is the paper's: nothing is done, and every push counts as it is. All others run on the same shards and are
reported alike, so that they can be compared by changing one argument::

    db.Downpour(staleness=None)
    db.Downpour(staleness=db.MaxStaleness(3))

The staleness of a push is the number of updates that a piece of a shard has had since the fetch from which the
gradient was computed, the replica's own included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dask_belief.checks import check_count, check_number
from dask_belief.errors import ArgumentError


@dataclass(frozen=True)
class MaxStaleness:
    """Stale-synchronous: a replica that is too far ahead of the slowest waits (Ho et al., NIPS 2013).

    Replicas that wait for work are not waited for, and one that joins begins beside the slowest.

    Parameters
    ----------
    max_staleness
        Mini-batches that a replica may be ahead of the slowest as it begins one; 0 keeps all in step. With P replicas
        that fetch and push every mini-batch a push is then no staler than
        ``(2 * max_staleness + 3 * fetch_lag + 4) * (P - 1)`` updates of others: replicas are held by what others have
        computed, some of which is still on its way.
    """

    max_staleness: int

    def __post_init__(self) -> None:
        check_count("max_staleness", self.max_staleness, low=0)


@dataclass(frozen=True)
class ScaleByStaleness:
    """Each push is applied at the rule's rate over its staleness, or over 1 (Zhang, Gupta, Lian and Liu, 2015)."""


@dataclass(frozen=True)
class Synchronous:
    """All replicas step together, by the mean of their gradients (Chen et al., "Revisiting distributed SGD", 2016).

    A round ends when enough gradients have come; those of slower replicas are dropped, and their mini-batches with
    them. Which ones is decided once, for all shards. The gradients of a round are added in the order of their leases.

    Parameters
    ----------
    backup_replicas
        So many of the replicas need not be waited for in each round.
    """

    backup_replicas: int = 0

    def __post_init__(self) -> None:
        check_count("backup_replicas", self.backup_replicas, low=0)


@dataclass(frozen=True)
class ElasticAveraging:
    """Replicas explore on their own, tied to the shards' parameters by a spring (Zhang, Choromanska and LeCun, 2015).

    A replica steps by the run's rule on parameters x of its own. After ``n_push`` mini-batches ``alpha * (x - c)`` is
    added to the shards' parameters c and taken from x, with ``alpha = elasticity / n_replicas``. The shards keep no
    state of the rule; with `Momentum` or `Nesterov` it is the paper's EAMSGD.

    Parameters
    ----------
    elasticity
        The paper's beta, more than 0 and less than `n_replicas`; it used 0.9.
    """

    elasticity: float = 0.9

    def __post_init__(self) -> None:
        check_number("elasticity", self.elasticity, low=0.0, is_open=True)


Staleness = MaxStaleness | ScaleByStaleness | Synchronous | ElasticAveraging


def check_staleness(staleness: object) -> None:
    """Refuse what is none of the options; raises `ArgumentError`."""
    if staleness is not None and not isinstance(staleness, Staleness):
        found = staleness.__name__ + ", the class itself" if isinstance(staleness, type) else repr(staleness)
        raise ArgumentError(
            "staleness: expected None, MaxStaleness(...), ScaleByStaleness(), Synchronous(...) or "
            f"ElasticAveraging(...), got {found}."
        )


_WAYS = {way.__name__: way for way in (MaxStaleness, ScaleByStaleness, Synchronous, ElasticAveraging)}


def staleness_from_config(config: Mapping[str, Any]) -> Staleness:
    """Rebuild an option from its name and fields; raises `ArgumentError` when it is unknown."""
    options = dict(config)
    name = options.pop("name", None)
    if name not in _WAYS:
        raise ArgumentError(f"staleness: one of {', '.join(_WAYS)} is needed, got {name!r}.")
    try:
        return _WAYS[name](**options)
    except TypeError as error:
        raise ArgumentError(f"staleness: {name} cannot be made with {sorted(options)}: {error}") from error
