"""The keepers of a run: one for each shard, on another worker than the shard's."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from dask_belief.cluster.actors import ActorAddress, all_of
from dask_belief.cluster.placement import place_one
from dask_belief.errors import ActorLostError, CallTimeoutError
from dask_belief.parameter_server.carrying import Keepers
from dask_belief.parameter_server.deployment import Deployment
from dask_belief.parameter_server.directory import Directory
from dask_belief.parameter_server.keeper import Keeper

logger = logging.getLogger(__name__)


class KeeperSet:
    """Makes keepers, and knows where they are, by the number of their shard."""

    def __init__(self) -> None:
        self._of_shard: dict[int, ActorAddress] = {}
        self._n_made = 0

    @property
    def workers(self) -> dict[int, str]:
        """The worker of each shard's keeper."""
        return {shard: keeper.worker for shard, keeper in self._of_shard.items()}

    def place(self, directory: Directory) -> Keepers:
        """Where each piece of the shards is kept."""
        keepers = self._of_shard.items()
        return Keepers({piece.start: keeper for shard, keeper in keepers for piece in directory.pieces(shard)})

    def make_missing(self, deployment: Deployment) -> list[int] | None:
        """Make the keepers that are missing, or on their shard's own worker.

        Returns
        -------
        list of int or None
            The shards whose keeper is another one than before, and empty; None when there is only one worker.
        """
        workers = deployment.workers
        if len(workers) < 2:
            return None
        made: dict[int, ActorAddress] = {}
        for shard, actor in enumerate(deployment.directory.shards):
            keeper = self._of_shard.get(shard)
            if keeper is not None and keeper.worker in workers and keeper.worker != actor.worker:
                continue
            taken = [each.worker for each in {**self._of_shard, **made}.values()]
            worker = place_one(workers, taken, {actor.worker})
            made[shard] = deployment.host.spawn(Keeper, f"keeper {shard}", worker, generation=self._n_made)
            self._n_made += 1
        try:
            deployment.host.ready(made.values())
        except ActorLostError as error:
            logger.info("no keepers were made: %s", error)
            for keeper in made.values():
                deployment.host.drop(keeper)
            return None
        for shard, keeper in made.items():
            self._forget(deployment, shard)
            self._of_shard[shard] = keeper
        return list(made)

    def lose(self, deployment: Deployment) -> list[int]:
        """Forget the keepers that are lost or have to go; gives their shards."""
        lost = [shard for shard, keeper in self._of_shard.items() if keeper.worker not in deployment.workers]
        for shard in lost:
            keeper = self._of_shard[shard]
            logger.info("%s was lost with worker %s", keeper.name, keeper.worker)
            self._forget(deployment, shard)
        return lost

    def _forget(self, deployment: Deployment, shard: int) -> None:
        keeper = self._of_shard.pop(shard, None)
        if keeper is not None:
            deployment.host.drop(keeper)

    def keep(self, deployment: Deployment, names: Iterable[str]) -> None:
        """Let the keepers drop all vectors but some; also what a save that was given up has left there."""
        if not self._of_shard:
            return
        deployment.caller.start(self._tell(deployment, sorted(names)))

    async def _tell(self, deployment: Deployment, names: list[str]) -> None:
        """Beside the work: a keeper whose worker is frozen must not hold it up."""
        try:
            await all_of([deployment.caller.call(keeper, "keep", names) for keeper in self._of_shard.values()])
        except (ActorLostError, CallTimeoutError) as error:
            logger.info("a keeper could not be told what to drop: %s", error)
