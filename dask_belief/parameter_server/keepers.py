"""The keepers of a run: one for each shard, on another worker than the shard's."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from dask_belief.cluster.actors import ActorAddress, all_of
from dask_belief.cluster.limits import limits
from dask_belief.cluster.placement import place_one
from dask_belief.errors import ActorLostError, CallTimeoutError
from dask_belief.parameter_server.carrying import HandOverParts, Keepers
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
        missing = []
        for shard, actor in enumerate(deployment.directory.shards):
            keeper = self._of_shard.get(shard)
            if keeper is None or keeper.worker not in workers or keeper.worker == actor.worker:
                missing.append(shard)
        made = self._made(deployment, missing)
        if made is None:
            return None
        self._take_up(deployment, made)
        return missing

    def _made(self, deployment: Deployment, shards: Iterable[int]) -> dict[int, ActorAddress] | None:
        """Make keepers, each on another worker than its shard's; None when that was in vain."""
        made: dict[int, ActorAddress] = {}
        for shard in shards:
            taken = [each.worker for each in {**self._of_shard, **made}.values()]
            worker = place_one(deployment.workers, taken, {deployment.directory.shards[shard].worker})
            made[shard] = deployment.host.spawn(Keeper, f"keeper {shard}", worker, generation=self._n_made)
            self._n_made += 1
        try:
            deployment.host.ready(made.values())
        except ActorLostError as error:
            logger.info("no keepers were made: %s", error)
            _drop(deployment, made)
            return None
        return made

    def _take_up(self, deployment: Deployment, made: Mapping[int, ActorAddress]) -> None:
        for shard, keeper in made.items():
            self._forget(deployment, shard)
            self._of_shard[shard] = keeper

    def leaving(self, deployment: Deployment) -> list[int]:
        """The shards whose keepers are on workers that are to be left."""
        return [shard for shard, keeper in self._of_shard.items() if keeper.worker in deployment.leaving]

    def hand_over(self, deployment: Deployment, parts: Mapping[int, Sequence[tuple[str, int]]]) -> bool:
        """Carry what keepers hold to others that take their place.

        Parameters
        ----------
        deployment
            The run on the cluster.
        parts
            By shard, the parts to carry: the name of each one's vector, and where it begins.

        Returns
        -------
        bool
            Whether that was done; else all is as it was.
        """
        if len(deployment.workers) < 2:
            return False
        made = self._made(deployment, parts)
        if made is None:
            return False
        errands = [
            (keeper.worker, HandOverParts(self._of_shard[shard], keeper, limits(), tuple(parts[shard])))
            for shard, keeper in made.items()
        ]
        try:
            deployment.fill(errands)
        except (ActorLostError, CallTimeoutError) as error:
            logger.info("what keepers hold was not handed over: %s", error)
            _drop(deployment, made)
            return False
        self._take_up(deployment, made)
        return True

    def lose(self, deployment: Deployment) -> list[int]:
        """Forget the keepers that are lost, and those that have to go and were not handed over; gives their shards."""
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


def _drop(deployment: Deployment, keepers: Mapping[int, ActorAddress]) -> None:
    for keeper in keepers.values():
        deployment.host.drop(keeper)
