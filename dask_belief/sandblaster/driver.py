"""The driver of a Sandblaster run: what a generation is made of, and what is carried from one to the next.

When a generation of actors is lost, the next begins at the last point that was copied to the driver, with an empty
history.
"""

from __future__ import annotations

import logging

from dask_belief.cluster.actors import ActorAddress
from dask_belief.data.units import UnitPlan, plan_units
from dask_belief.objective import penalised_of
from dask_belief.optim.stopping import Criteria, Stop, StopReason
from dask_belief.parameter_server.client import Directory
from dask_belief.parameter_server.deployment import Deployment, DeploymentSpec
from dask_belief.run import Outcome, Run, Vector
from dask_belief.sandblaster.config import Sandblaster
from dask_belief.sandblaster.coordinator import Coordinator
from dask_belief.sandblaster.full_batch import FullBatch
from dask_belief.sandblaster.minimiser import POINT, Minimiser, Progress
from dask_belief.sandblaster.replica import ReplicaSpec, sandblaster_replica

logger = logging.getLogger(__name__)

# Partial sums of a lease are kept within this many bytes; longer leases would save messages and cost memory.
_SUM_BYTES = 256 * 2**20
_MAX_LEVEL = 6


class SandblasterDriver:
    """Runs L-BFGS over the generations of a run.

    Parameters
    ----------
    run
        The run.
    method
        Its options.
    """

    def __init__(self, run: Run, method: Sandblaster) -> None:
        facts = run.facts
        self._run = run
        self._method = method
        self._progress = Progress()
        self._stop: Stop | None = None
        self._plan: UnitPlan = plan_units(
            facts.dataset.n_rows,
            facts.dataset.chunk_rows,
            facts.dataset.row_bytes(facts.dtype),
            facts.objective.n_parameters,
            unit_rows=method.unit_rows,
        )

    def drive(self) -> Outcome:
        """Train to the end.

        Raises
        ------
        NonFiniteError
            When the loss or gradient at the initial parameters is NaN or infinite.
        """
        planned = (float(self._method.max_iter), "iterations")
        return self._run.through_generations(self._deployment_spec(), planned, self._generation, self._lost)

    def kept(self) -> Vector:
        """The best parameters that are on the host."""
        return self._run.best

    def _lost(self) -> str:
        self._progress.go_back()
        return f"back to iteration {self._progress.iteration}, with an empty history"

    def _deployment_spec(self) -> DeploymentSpec:
        facts, method = self._run.facts, self._method
        max_level = max(0, min(_MAX_LEVEL, _SUM_BYTES // facts.initial.nbytes - 1))

        def replica_spec(directory: Directory, coordinator: ActorAddress) -> ReplicaSpec:
            return ReplicaSpec(facts.objective, self._plan, directory, coordinator, facts.backend, method.cache_bytes)

        return DeploymentSpec(
            run=facts.name,
            method=method.name,
            n_parameters=facts.objective.n_parameters,
            dtype=facts.dtype,
            penalised=penalised_of(facts.objective),
            n_shards=method.n_shards,
            n_replicas=None,
            rule=None,
            hub=Coordinator,
            hub_arguments=(len(self._plan), max_level),
            replica=sandblaster_replica,
            replica_spec=replica_spec,
            dataset=facts.dataset,
        )

    def _generation(self, deployment: Deployment) -> Outcome:
        run, method, progress = self._run, self._method, self._progress
        deployment.run(deployment.server.write(POINT, run.best))
        batch = FullBatch(run, deployment, self._plan, method.l2, progress.evaluations)
        criteria = Criteria(method.gtol, method.ftol, method.max_iter, method.max_evaluations, method.max_seconds)
        minimiser = Minimiser(run, deployment, batch, criteria, method.history_size, progress)
        if self._stop is None:
            # Otherwise the former generation was lost after the end, and only validation is left.
            deployment.start_replicas()
            self._stop = self._minimise(minimiser, deployment)
        is_validated = self._stop.reason is not StopReason.INTERRUPTED
        return Outcome(
            parameters=run.best,
            loss=progress.value,
            stop=self._stop,
            passes=float(progress.evaluations),
            repeatable=run.is_repeatable and method.max_seconds is None,
            validation=minimiser.validate() if is_validated else {},
        )

    def _minimise(self, minimiser: Minimiser, deployment: Deployment) -> Stop:
        """Train to the end, and copy the last point to the driver; an interrupt goes back to the last point copied."""
        try:
            stop = minimiser.minimise()
            self._run.keep(deployment, POINT, is_final=True)
            self._progress.keep()
        except KeyboardInterrupt:
            logger.warning("interrupted: the last point that was kept is the result")
            self._progress.go_back()
            stop = Stop(StopReason.INTERRUPTED, {"iteration": float(self._progress.iteration)})
        return stop
