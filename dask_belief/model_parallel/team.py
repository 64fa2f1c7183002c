"""How the tasks of a replica in pieces come about: what drivers and replicas of both methods ask for them.

For an objective that is in one piece all of this comes to nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from dask_belief.backend import Backend
from dask_belief.cluster.actors import ActorAddress, Caller
from dask_belief.cluster.post_box import Correspondent
from dask_belief.cluster.replicas import InPieces, Team
from dask_belief.cluster.standing import Standing
from dask_belief.model_parallel.own_range import PieceObjective, own_directory, own_renew
from dask_belief.model_parallel.partitioned import PartitionedNetwork
from dask_belief.model_parallel.servant import serve
from dask_belief.objective import Objective
from dask_belief.parameter_server.directory import Directory, Renew
from dask_belief.parameter_server.executor import Executor
from dask_belief.parameter_server.ranges import shard_ranges

logger = logging.getLogger(__name__)


def n_pieces_of(objective: Objective) -> int:
    """Count the tasks of a replica."""
    return objective.plan.n_pieces if isinstance(objective, PartitionedNetwork) else 1


def ranges_of(objective: Objective, n_shards: int) -> tuple[range, ...]:
    """Give the range of each shard; see `ranges.shard_ranges` and `PartitionedNetwork.ranges`."""
    if isinstance(objective, PartitionedNetwork):
        return objective.ranges(n_shards)
    return shard_ranges(objective.n_parameters, n_shards)


def pieces_of(objective: Objective, function: Callable[[Any, int, str], object]) -> InPieces | None:
    """Tell a pool how replicas in pieces are made; None where they are in one."""
    if isinstance(objective, PartitionedNetwork):
        return InPieces(objective.plan.n_pieces, function)
    return None


@dataclass(frozen=True)
class OwnPart:
    """What the executor of one piece is made from, in place of what a whole replica's is made from.

    Attributes
    ----------
    objective, directory, renew
        Of the piece's own range of the parameters.
    correspondent
        Of the piece.
    """

    objective: PieceObjective
    directory: Directory
    renew: Renew
    correspondent: Correspondent


def own_part(
    network: PartitionedNetwork,
    team: Team,
    number: int,
    directory: Directory,
    renew: Renew,
    caller: Caller,
    standing: Standing,
    backend: Backend,
) -> OwnPart:
    """Give what one piece of a replica computes with and talks to.

    Parameters
    ----------
    network
        What is trained.
    team, number
        The tasks of the replica, and which of them this is.
    directory, renew
        Of all shards.
    caller, standing, backend
        Of the task.
    """
    span = network.spans[number]
    correspondent = Correspondent(team.boxes, team.box_name(number), caller, standing)
    objective = PieceObjective(network, number, directory.dtype, backend, correspondent)
    return OwnPart(objective, own_directory(directory, span), own_renew(renew, span), correspondent)


def renew_by(hub: ActorAddress, replica: str, caller: Caller, poll_seconds: float) -> Renew:
    """Ask the hub for newer directories in the name of a replica."""

    async def renew(known: int) -> Directory | None:
        found: Directory | None = await caller.call(hub, "directory", hub.generation, replica, known, poll_seconds)
        return found

    return renew


class PieceLife:
    """What a piece that is not the lead does between its start and its end."""

    def __init__(self, inner: Executor, number: int, correspondent: Correspondent) -> None:
        self._inner = inner
        self._number = number
        self._correspondent = correspondent

    def run(self) -> str:
        """Carry out what the lead orders."""
        return serve(self._inner, self._number, self._correspondent, _no_rows)

    def holdings(self) -> Mapping[str, int]:
        """What it has in the memory of its device."""
        return self._inner.holdings()

    def close(self) -> None:
        """Nothing: threads are the lead's."""


def _no_rows() -> NoReturn:
    raise AssertionError("a piece is not asked for rows")
